//! The contract of an inference backend: what a miner asks of a language model, and what it gets back.
//!
//! A backend is anything that implements [`Backend`]: a local model, a remote server, a pool of both.
//! Sentence encoders implement the smaller [`Embedder`]. This crate does no I/O and knows no engine; the
//! engines are crates of their own, and yours can be one of them.
//!
//! Main types: [`Backend`], [`Request`], [`Completion`], [`Event`], [`Capabilities`], [`Error`], [`Embedder`].

mod backend;
mod capabilities;
mod completion;
mod embedder;
mod error;
mod request;

pub use backend::{Backend, CompletionStream, Health};
pub use capabilities::{Capabilities, Score, ScoreSupport};
pub use completion::{Candidate, Completion, Event, FinishReason, TokenLogprob, TopLogprob, Usage};
pub use embedder::{Embedder, Embedding};
pub use error::{Error, ErrorKind};
pub use request::{Message, Request, Role, Sampling};
