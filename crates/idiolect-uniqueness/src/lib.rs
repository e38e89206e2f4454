//! The uniqueness scorer: how near a reply is to those of others, and which of several candidates to send.
//!
//! Validators multiply a reply's reward by a gate: a reply whose nearest neighbour among some fifty simultaneous
//! replies is too near earns nothing, and being still more unusual earns nothing more ([`gate`]). A miner sees none of
//! those replies, so [`Selector`] estimates them by the sibling candidates, a [`Panel`] of stand-ins and its own
//! [`ReplyHistory`], takes the best candidate that clears the gate, and says how likely the gate is to mask it all the
//! same ([`chance`]). What other prompts taught of rivals can count, too ([`distinctiveness`]).
//!
//! ```
//! use idiolect_uniqueness::quality::{Draft, estimate};
//! use idiolect_uniqueness::{Candidate, GateProfile, Panel, Population, Reason, Selector, SelectorConfig};
//!
//! // Embeddings come from an `idiolect_backend::Embedder`.
//! let texts = ["Leaves make sugar out of light.", "Sugar is what leaves make of light.", "Ask a botanist."];
//! let embeddings = [[0.9, 0.1, 0.0], [0.9, 0.12, 0.0], [0.0, 0.2, 0.9]];
//!
//! let drafts = texts.map(|text| Draft {
//!     text, mean_logprob: None, model: "m", prompt: 0, complete: true, penalty: 0.0, reward: None,
//! });
//! let qualities = estimate(&drafts);
//! let candidates: Vec<_> = embeddings
//!     .iter()
//!     .zip(&qualities)
//!     .map(|(embedding, quality)| Candidate { embedding: Some(embedding), quality: quality.score, source: "m", distinctiveness: None })
//!     .collect();
//!
//! let mut panel = Panel::new("demo-encoder", 3);
//! panel.push("a rival", &vec![0.9, 0.1, 0.05]);
//! let population = Population::new("demo-encoder").with_panel(&panel)?;
//!
//! let config = SelectorConfig { profile: GateProfile::TEXT_PROMPTING_2_1, ..SelectorConfig::default() };
//! let selection = Selector::new(config).select(&candidates, &population).expect("there are candidates");
//! assert_eq!(selection.chosen, 2);
//! assert_eq!(selection.reason, Reason::BestThatClears);
//! assert!(selection.scores[0].predicted < 0.05);
//! # Ok::<(), idiolect_uniqueness::EncoderMismatch>(())
//! ```
//!
//! Main types: [`GateProfile`], [`GateHistory`], [`ReplyHistory`], [`HistoryStore`], [`Panel`], [`Population`],
//! [`Selector`], [`Selection`]. [`lexical`] compares texts without an encoder, and [`report`] puts all together for a batch. [`store`] opens the SQLite file that all components share.

pub mod chance;
pub mod distinctiveness;
pub mod gate;
pub mod history;
pub mod lexical;
pub mod panels;
pub mod population;
pub mod quality;
pub mod report;
pub mod selector;
pub mod store;
#[cfg(any(test, feature = "test-utils"))]
pub mod testkit;
pub mod vectors;

pub use distinctiveness::{Distinctiveness, DistinctivenessError};
pub use gate::{GateHistory, GateMode, GateProfile, NotUnit, Sigmoid};
#[cfg(feature = "postgres")]
pub use history::PostgresHistory;
pub use history::{
    Erase, HistoryStore, ImportError, JsonlError, Newer, Page, ReplyHistory, Retention, SqliteHistory, StoredReply,
    check_jsonl, export_jsonl, import_jsonl,
};
pub use panels::{PanelError, Panels, read_panel};
pub use population::{EncoderMismatch, Panel, Population};
pub use selector::{Candidate, CandidateScore, Neighbour, Reason, Selection, Selector, SelectorConfig};
pub use store::StoreError;
