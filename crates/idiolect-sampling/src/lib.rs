//! Drawing tokens from logits: a sampler chain as data, deterministic for each candidate.
//!
//! A [`ChainSpec`] says which [`Stage`]s run, in which order, with which parameters: in JSON, TOML or code, by a [`Preset`]
//! that orders them as a well-known engine does, or one by one. [`Chain`] makes it ready for a model, once a request;
//! a [`Sampler`] for each candidate draws with it.
//!
//! ```
//! # #[cfg(feature = "sampler")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use idiolect_sampling::{Chain, ChainSpec, Sampler, Stream, Vocabulary};
//!
//! let spec: ChainSpec = serde_json::from_str(
//!     r#"{
//!         "preset": "llamacpp",
//!         "stages": [
//!             {"stage": "dry", "multiplier": 0.8},
//!             {"stage": "ban", "phrases": ["as an AI"]},
//!             {"stage": "temperature", "temperature": 0.9}
//!         ]
//!     }"#,
//! )?;
//! spec.validate()?;
//!
//! // What stages know of the model: the bytes of its tokens, and those that end the output.
//! let vocabulary = Arc::new(Vocabulary::new(["as an", " AI", " owl", "</s>"], &[3]));
//! let chain = Arc::new(Chain::from_spec(&spec, Some(&vocabulary))?);
//!
//! // Equal streams draw equal tokens from equal logits, whatever is drawn beside them.
//! let stream = Stream { seed: 7, request: 0, candidate: 0 };
//! let mut sampler = Sampler::new(&chain, stream, &[]).with_min_tokens(2, vocabulary.ends()).with_top_logprobs(2);
//! let first = sampler.draw(&[9.0, 0.0, 0.0, 0.0], &[])?;
//! assert_eq!(first.token, 0);
//! assert_eq!(sampler.top()[0], (first.token, first.logprob));
//! // " AI" would complete the banned phrase, and it is too early for the end.
//! assert_eq!(sampler.draw(&[0.0, 9.0, 3.0, 9.0], &[])?.token, 2);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "sampler"))]
//! # fn main() {}
//! ```
//!
//! # Main types
//! As data: [`ChainSpec`], [`Stage`] and the parameters of each, [`Preset`], [`ConstraintSpec`]. To draw: [`Vocabulary`],
//! [`Chain`], [`Stream`], [`Sampler`].
//!
//! # What can be relied on
//! - What is drawn depends on chain, [`Stream`], prompt, logits and the tokens drawn before, and on nothing else: not on
//!   the batch, not on the thread, not on the processor (see [`idiolect_kernels::scan`]).
//! - No stage leaves nothing, bans and constraints aside. Equal logits count by token id.
//! - Log-probabilities are the model's own, before every stage.
//! - Logits that are no numbers are an error; negative infinity is a token that cannot be drawn.
//! - The vocabulary is never sorted: truncations collect what lies above a threshold and cut there. `examples/draw.rs`
//!   prints what a draw takes.
//! - Each stage and whole chains are tested against a plain reference that sorts everything, in double precision.
//!
//! # Features
//! | feature | adds |
//! | --- | --- |
//! | `sampler` (default) | the sampler; without it there are only the types that describe a chain |
//! | `constrained` | [`ConstraintSpec`] is followed, by way of `llguidance`: five small crates more |
//!
//! The types that describe a chain are part of requests, so the contract of backends (`idiolect-backend`) depends on this
//! crate without the sampler: one dependency, no engine, nothing to run.

#[cfg(feature = "sampler")]
mod candidates;
#[cfg(feature = "sampler")]
mod chain;
#[cfg(feature = "constrained")]
mod constrained;
mod constraint;
#[cfg(feature = "sampler")]
mod cut;
#[cfg(feature = "sampler")]
mod dry;
#[cfg(feature = "sampler")]
mod history;
#[cfg(feature = "sampler")]
mod phrases;
#[cfg(feature = "sampler")]
mod random;
#[cfg(feature = "sampler")]
mod sampler;
mod spec;
mod stage;
#[cfg(all(test, feature = "sampler"))]
mod tests;
#[cfg(feature = "sampler")]
mod vocabulary;

#[cfg(feature = "sampler")]
pub use chain::Chain;
pub use constraint::{Constraint, ConstraintSpec};
#[cfg(feature = "sampler")]
pub use random::Stream;
#[cfg(feature = "sampler")]
pub use sampler::{DrawError, Drawn, Sampler};
pub use spec::{ChainError, ChainSpec, Preset};
pub use stage::{
    Ban, Dry, FrequencyPresence, LogitBias, MinP, Mirostat, MirostatVersion, Repetition, Scope, Stage, StageKind,
    Temperature, TopK, TopNSigma, TopP, Typical, Xtc,
};
#[cfg(feature = "sampler")]
pub use vocabulary::Vocabulary;
