//! Experiments on recorded populations: real replies of many models to the same prompts stand in for the miners of a subnet.
//!
//! Some of the models are ours, a few of the others are seen, all the rest are rivals that nobody shows us. A [`Choice`]
//! picks one of our replies by what is seen; whether the gate masks it is known, since everybody's reply is on record.
//!
//! ```
//! use idiolect_arena::{Choice, Experiment, Replies};
//! use idiolect_uniqueness::GateProfile;
//!
//! let lines = r#"
//! {"p": "sky", "m": "ours", "t": "Air scatters blue light."}
//! {"p": "sky", "m": "ours_verbose", "t": "Look up: what you see has bounced about."}
//! {"p": "sky", "m": "rival", "t": "Air scatters blue light!"}
//! "#;
//! let replies = Replies::read(&mut lines.as_bytes()).unwrap();
//! // One embedding for each reply, as an `idiolect_backend::Embedder` gives them.
//! let embeddings = vec![vec![1.0, 0.0], vec![0.0, 1.0], vec![1.0, 0.01]];
//! let own = ["ours", "ours_verbose"].map(str::to_owned);
//! let experiment = Experiment::new(&replies, &embeddings, &own, GateProfile::TEXT_PROMPTING_2_1).unwrap();
//! let outcome = experiment.run(Choice::Oracle, 1, 0);
//! assert_eq!((experiment.run(Choice::First, 1, 0).share_masked(), outcome.share_masked()), (1.0, 0.0));
//! ```
//!
//! Main types: [`Replies`], [`Experiment`], [`Choice`], [`Outcome`], and the intervals of [`statistics`].
//!
//! Where nobody's replies are on record, a model is asked now: [`texts`] composes the prompts of validators, [`rivals`] has a model answer
//! them as stock miners do, and [`live`] computes what validators would have given for replies among those. [`recorded`] is a backend that
//! answers with what is on record.

pub mod cache;
pub mod experiment;
pub mod ladder;
pub mod lessons;
pub mod lines;
pub mod live;
pub mod recorded;
pub mod replay;
pub mod replies;
pub mod rivals;
mod round;
pub mod rounds;
pub mod scores;
pub mod statistics;
pub mod texts;
pub mod tournament;
pub mod verify;
pub mod whatif;

pub use cache::{CacheError, EmbeddingCache};
pub use experiment::{Choice, Experiment, ExperimentError, Outcome, Pick};
pub use lessons::{Learned, Lessons};
pub use recorded::{RecordedBackend, RecordedError, RecordedSpec};
pub use replies::{AskedPrompt, Recorded, Replies, RepliesError};
pub use scores::{ScoreCache, ScoreError};
pub use tournament::{Rules, Standing, StepRecord, Tournament, TournamentError};
