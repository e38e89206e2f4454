//! One reply: detect the task, mutate the prompt, draw candidates, score them, choose one, record how it came to be.
//!
//! [`Pipeline`] implements [`idiolect_axon::Handler`], so it can be served by an axon; [`Pipeline::answer`] asks it
//! without a network.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use idiolect_backend::{Echo, HashEmbedder};
//! use idiolect_mutation::Library;
//! use idiolect_pipeline::{Ask, Parts, Pipeline, PipelineConfig};
//! use idiolect_protocol::{Message, Prompt, Role};
//!
//! let parts = Parts {
//!     embedder: Some(Arc::new(HashEmbedder::default())),
//!     library: Arc::new(Library::built_in()),
//!     ..Parts::new(Arc::new(Echo::new()))
//! };
//! let pipeline = Pipeline::start(PipelineConfig::default(), parts).await?;
//!
//! let prompt = Prompt::new(vec![Message::new(Role::User, "Why is the sky blue?")])?;
//! let answer = pipeline.answer(Ask::new(prompt)).await?;
//! assert_eq!(answer.reply.completions.len(), 1);
//! assert_eq!(answer.provenance.candidates.len(), 4);
//! println!("{}", answer.provenance);
//!
//! assert_eq!(pipeline.explain("last").await?.id, answer.provenance.id);
//! pipeline.flush().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Passthrough
//! A caller that dictates seed and sampling, or names a task that validators recompute, gets the model's own answer:
//! one candidate, no operators, no choice, not a byte trimmed, log-probabilities of that very text.
//!
//! # Time
//! The deadline is the call's. Time for scoring is set aside before generation starts, as much as scoring was measured
//! to take; what is unfinished then is used up to its last whole sentence. When even the encoder runs out of time,
//! quality alone decides, and the reply is embedded after it was sent. Only with no text at all there is an error.
//!
//! # Quality
//! With a reward model ([`Parts::reward`]) quality is what it says of each candidate as a reply to what validators score
//! against (in version 2.1 the base text of their prompts, else all that was asked), normalised over all that it said so far, as
//! validators do. It is asked after the encoder, gets at most a quarter of the time from generation, and is left out where it
//! would not be done in time; the models' own log-probabilities take its place then.
//!
//! With the validators' own encoder, all-mpnet-base-v2, the base text is embedded, too, where there is more than one candidate:
//! those that the relevance mask would take are sent only where all are such.
//!
//! # History
//! With an encoder and a store, a reply is in the history before it is sent, and only there if nothing came in since it was
//! chosen; otherwise the choice is made anew, beside what came in. So miners that share a history
//! ([`Parts::shared_history`]) know of each other's replies, and a process that is killed loses none that was sent. It takes
//! half a second at most: with a history that fails or is slower the reply is sent all the same, and the history left alone
//! for five seconds. What another miner of a shared history sent within the last two minutes in answer to the same prompt is
//! not sent again; where a caller would get nothing else, it gets an error.
//!
//! # Records
//! Each reply's [`Provenance`] is written behind its back, through a bounded queue, into the SQLite file that
//! `idiolect_uniqueness::store::open` opens; [`Pipeline::flush`] waits for it. What is kept, and for how long, is in
//! [`RecordConfig`]; [`Pipeline::erase`] forgets.

mod ask;
mod awaited;
mod claim;
mod config;
mod error;
mod generate;
mod handler;
mod hash;
mod judge;
mod mend;
pub mod metrics;
mod pace;
mod pipeline;
pub mod provenance;
mod recorder;
mod reserve;
mod store;
mod trim;

#[cfg(test)]
mod tests;

pub use ask::{Answer, Ask};
pub use config::{PipelineConfig, RecordConfig, StorePrompts};
pub use error::PipelineError;
pub use pipeline::{Parts, Pipeline};
pub use provenance::{CandidateRecord, Provenance, Timings};
pub use store::{Listed, ProvenanceStore};
