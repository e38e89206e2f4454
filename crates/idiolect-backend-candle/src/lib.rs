//! Local models: [`CandleBackend`] runs GGUF language models, [`MiniLm`] encodes sentences.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//!
//! use idiolect_backend::{Backend, Embedder, Message, Request};
//! use idiolect_backend_candle::{CandleBackend, CandleConfig, MiniLm};
//!
//! let backend = CandleBackend::load(Path::new("SmolLM2-135M-Instruct.Q4_1.gguf"), CandleConfig::default())?;
//! let mut request = Request::new(vec![Message::user("Why is the sky blue?")]);
//! request.n = 4;
//! request.sampling.max_tokens = 64;
//! let completion = backend.complete(request).await?;
//! let texts: Vec<String> = completion.candidates.into_iter().map(|c| c.text).collect();
//!
//! let encoder = MiniLm::load(Path::new("all-MiniLM-L6-v2"))?;
//! let embeddings = encoder.embed(&texts).await?;
//! assert_eq!(embeddings.len(), texts.len());
//! # Ok(())
//! # }
//! ```
//!
//! # Models
//! Dense models of the architectures `llama` (SmolLM2, Llama, Mistral, TinyLlama …), `qwen2` and `qwen3`, with byte-level
//! BPE or SentencePiece vocabularies and the chat template that the file carries (ChatML where it carries none). Every
//! weight matrix is held as eight-bit blocks (the precision of Q8_0), whatever the file's format: 1.13 bytes a weight.
//!
//! # What a message cannot do
//! Its text is data: it is never read as a template, and the names of control tokens in it (`<|im_end|>`, `<s>` …) are
//! tokenised as the characters they are.
//!
//! # Threads
//! Each backend and each encoder has one thread that takes requests and a pool that computes; see
//! [`CandleConfig::threads`]. Neither uses the async runtime's threads.

mod assembly;
mod backend;
mod config;
mod device;
mod encoder;
mod engine;
mod error;
mod kernels;
mod loader;
mod math;
mod prompt;
mod sampling;
mod template;
mod tokenizer;
mod worker;

#[cfg(test)]
mod testing;

pub use backend::CandleBackend;
pub use config::{CandleConfig, EncoderConfig};
pub use device::{DeviceChoice, ParseDeviceError};
pub use encoder::MiniLm;
pub use error::LoadError;
