//! Any OpenAI-shaped server as an inference backend: OpenAI, vLLM, TGI, Ollama, llama.cpp, OpenRouter.
//!
//! ```
//! use idiolect_backend::{Backend, Prices};
//! use idiolect_backend_openai::{Flavour, KeySource, OpenAiBackend, OpenAiConfig};
//!
//! // A server of one's own, which needs no key.
//! let mut config = OpenAiConfig::new("llama3.2:3b");
//! config.flavour = Flavour::Ollama;
//! config.server.base_url = "http://127.0.0.1:11434/v1".to_owned();
//! let local = OpenAiBackend::new(config)?;
//! assert!(!local.capabilities().paid);
//!
//! // A paid one. The key is read here, and never shown or logged.
//! let file = std::env::temp_dir().join("idiolect-doc-key");
//! std::fs::write(&file, "sk-not-a-real-key\n").unwrap();
//! let mut config = OpenAiConfig::new("gpt-4o-mini");
//! config.server.key = KeySource::File(file);
//! config.server.base_url = "http://127.0.0.1:9/v1".to_owned(); // a gateway of the operator's own
//! config.prices = Some(Prices::per_million_dollars(0.15, 0.6));
//! let paid = OpenAiBackend::new(config)?;
//! assert!(paid.capabilities().paid);
//! assert!(!format!("{paid:?}").contains("sk-not"));
//! # Ok::<(), idiolect_backend::Error>(())
//! ```
//!
//! Asking works as with any [`Backend`](idiolect_backend::Backend):
//!
//! ```no_run
//! # async fn ask() -> Result<(), idiolect_backend::Error> {
//! use idiolect_backend::BackendExt;
//! use idiolect_backend_openai::{OpenAiBackend, OpenAiConfig};
//!
//! let backend = OpenAiBackend::new(OpenAiConfig::new("gpt-4o-mini"))?;
//! println!("{}", backend.ask("Why is the sky blue?").await?);
//! # Ok(())
//! # }
//! ```
//!
//! Main types: [`OpenAiBackend`] with [`OpenAiConfig`], [`OpenAiEmbedder`] with [`OpenAiEmbedderConfig`], and what both
//! configurations share in [`ServerConfig`].
//!
//! # Sampler chains
//! A [`Sampling::chain`](idiolect_backend::Sampling::chain) is put into the server's words where it has them, and refused
//! with the stage's name where it has not: [`Flavour`] lists the stages. vLLM has one order, that of its preset; llama.cpp is
//! told the order; the others keep theirs to themselves. Constraints are sent as `response_format`: any JSON, or a schema.
//!
//! # What is read from outside
//! No environment variable is read except the one that [`KeySource::Env`] names: no `OPENAI_API_KEY`, no
//! `OPENAI_BASE_URL`, no `HTTPS_PROXY` behind the operator's back. (The certificates that `https` is checked against
//! are the system's; there `SSL_CERT_FILE` and `SSL_CERT_DIR` count as for every program.) TLS is rustls with the
//! provider that the program has installed, and aws-lc where it has installed none.
//!
//! # What stays inside
//! Keys, prompts and answers are in no log, error or `Debug` output. Of a server's error only its status and an
//! identifier are kept, since its words may quote the prompt.
//!
//! # Limits
//! Answers, single events and errors of any size are read up to a bound. Redirects are not followed. Seeds are sent as
//! signed 64-bit numbers. OpenAI takes four stop texts: the others, and stop texts that a server runs over, are seen to
//! here. Where a server ignores or refuses `n`, candidates are asked for one by one ([`Candidates`]). Tokens of the
//! prompt are 0 where the server did not count them.
//!
//! # Features
//! - `fuzzing`, off: shows the decoders to the fuzz targets in `fuzz/`.

mod backend;
mod chain;
mod config;
mod embedder;
mod fault;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod lane;
mod sse;
mod stop;
mod transport;
mod wire;

pub use backend::OpenAiBackend;
pub use config::{Candidates, Flavour, KeySource, LengthField, OpenAiConfig, RetryConfig, ServerConfig, Timeouts};
pub use embedder::{OpenAiEmbedder, OpenAiEmbedderConfig};
