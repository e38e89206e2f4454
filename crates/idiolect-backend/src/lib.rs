//! The contract of an inference backend: what a miner asks of a language model, and what it gets back.
//!
//! A backend is anything that implements [`Backend`]: a local model, a remote server, a pool of both.
//! Sentence encoders implement the smaller [`Embedder`]. This crate knows no engine and no network; the
//! engines are crates of their own, and yours can be one of them. (The one file it touches is [`FileLedger`]'s.)
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), idiolect_backend::Error> {
//! use std::sync::Arc;
//! use std::time::Duration;
//! use idiolect_backend::{Backend, Echo, Limit, LimitConfig, Member, Message, Pool, PoolConfig, Request};
//!
//! // Any backend can stand behind limits, and any number of them in a pool: wrappers are backends themselves.
//! let careful = Limit::new(Arc::new(Echo::new()), LimitConfig { max_concurrent: 2, ..LimitConfig::default() });
//! let members = vec![Member::new("first", Arc::new(careful)), Member::new("spare", Arc::new(Echo::new()))];
//! let pool = Pool::new(PoolConfig::default(), members)?;
//!
//! let mut request = Request::new(vec![Message::user("What does an echo say?")]);
//! request.n = 4;
//! request.sampling.max_tokens = 64;
//! request.deadline = Some(std::time::Instant::now() + Duration::from_secs(9));
//! let answer = pool.complete(request).await?;
//! assert_eq!(answer.candidates.len(), 4);
//! assert_eq!(answer.candidates[0].text, "What does an echo say?");
//! assert_eq!(answer.backend, "first");
//! # Ok(())
//! # }
//! ```
//!
//! # The contract
//! [`Backend`], [`Request`], [`Completion`], [`Event`], [`Capabilities`], [`Score`], [`Moments`], [`Error`], [`Embedder`].
//!
//! How tokens are drawn is data, [`Sampling`] and the [`ChainSpec`] in it, whose types are those of `idiolect-sampling`
//! without its sampler: an engine takes the sampler from there, or has one of its own.
//!
//! # Backends around backends
//! | type | does |
//! | --- | --- |
//! | [`Pool`] | load balancing, fallback and cooldown over several backends |
//! | [`Limit`] | bounded concurrency and queue, requests a minute |
//! | [`Timeout`] | keeps the deadline for backends that don't: best so far, in time |
//! | [`SpendingCap`] | a cap on what a paid backend may cost a day, across restarts |
//!
//! # Small things
//! [`Echo`] and [`HashEmbedder`] need no model. [`collect()`] joins a stream, [`stream_of`] makes one, [`BackendExt`]
//! has conveniences, [`Backoff`] says how long to wait.
//!
//! # Features
//! | feature | adds |
//! | --- | --- |
//! | `test-utils` | `testkit`: the conformance suite for your own backend or encoder, and a scriptable mock |

mod backend;
mod backoff;
mod capabilities;
mod classifier;
mod collect;
mod completion;
mod echo;
mod embedder;
mod error;
mod ext;
mod held;
mod ledger;
mod limit;
mod own_logits;
mod pool;
mod random;
mod rate;
mod request;
mod score;
mod spend;
#[cfg(any(test, feature = "test-utils"))]
pub mod testkit;
mod timeout;

pub use backend::{Backend, CompletionStream, Health};
pub use backoff::Backoff;
pub use capabilities::{Capabilities, ScoreSupport};
pub use classifier::{Classifier, ClassifierInput};
pub use collect::{Collector, collect, collect_until};
pub use completion::{Candidate, Completion, Event, FinishReason, TokenLogprob, TopLogprob, Usage};
pub use echo::{Echo, EchoConfig, HashEmbedder};
pub use embedder::{Embedder, Embedding};
pub use error::{Error, ErrorKind};
pub use ext::{BackendExt, stream_of};
#[doc(no_inline)]
pub use idiolect_sampling::{ChainSpec, ConstraintSpec, Preset, Stage, StageKind};
pub use ledger::{Charge, FileLedger, MemoryLedger, SpendLedger, UtcDay};
pub use limit::{Limit, LimitConfig};
pub use own_logits::OwnLogits;
pub use pool::{Member, MemberSnapshot, Pool, PoolConfig, Strategy};
pub use request::{Message, Request, Role, Sampling};
pub use score::{Moments, Score, ScoreRequest};
pub use spend::{Prices, SpendingCap, SpendingConfig};
pub use timeout::{Timeout, TimeoutConfig, end_at};
