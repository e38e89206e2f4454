//! Evolving operators: new texts are proposed from what became of old ones, and an archive keeps the best of each kind.
//!
//! [`Evolution`] is the loop. It asks a [`Backend`](idiolect_backend::Backend) for texts and an [`Evaluator`] what replies they bring about, and is
//! otherwise pure: the same seed and the same answers give the same [`Archive`], whatever the number of requests at a time. Every answer goes into a
//! [`Journal`] before it is used, so that a run which broke off goes on where it was: it is the same run, most of whose answers are known.
//!
//! The parts come from the field: reflection on feedback in words and parents off a Pareto front over prompts (GEPA, Agrawal et al. 2025), known texts
//! with their scores in the question (OPRO, Yang et al. 2023), an archive of niches (MAP-Elites, Mouret and Clune 2015), and more prompts for
//! the better half of the candidates (successive halving, Karnin et al. 2013; TRIPLE, Shi et al. 2024).
//!
//! A proposal is data. One with a template's marks is refused, so none is ever evaluated.

mod archive;
mod clauses;
mod engine;
mod fitness;
mod journal;
mod propose;
mod random;
mod report;
mod screen;
#[cfg(test)]
mod tests;

use std::fmt;

use async_trait::async_trait;
use idiolect_backend::{Embedding, Error};
use serde::{Deserialize, Serialize};

pub use archive::{Archive, Length, Niche, Opening};
pub use engine::Evolution;
pub use fitness::{Gate, feedback};
pub use journal::{Journal, JournalError};
pub use propose::Reject;
pub use report::{Compared, EliteReport, Gain, Report};

use crate::{Flag, Recipe, Task};

/// A prompt to try operators on.
#[derive(Clone, PartialEq, Eq)]
pub struct TrialPrompt {
    /// Its id, unique among the prompts.
    pub id: String,
    /// What a miner is asked.
    pub text: String,
    /// What it asks for.
    pub task: Task,
}

/// Prompts stay out of logs.
impl fmt::Debug for TrialPrompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrialPrompt").field("id", &self.id).field("task", &self.task).finish_non_exhaustive()
    }
}

/// A reply to be had.
#[derive(Clone, Copy, Debug)]
pub struct Trial<'a> {
    /// To what.
    pub prompt: &'a TrialPrompt,
    /// What is done to the prompt.
    pub recipe: &'a Recipe,
    /// What the reply's tokens are drawn by.
    pub seed: u64,
}

/// A reply, and what a validator would make of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The reply.
    pub text: String,
    /// Mean log-probability of its tokens as a continuation of what it is about, by a model that does not see the operator; `None` where nobody knows.
    pub logprob: Option<f64>,
    /// Absolute cosine to the text that it is about; `None` where the prompt has none.
    pub relevance: Option<f32>,
    /// Whether the validator takes it for relevant.
    pub relevant: bool,
    /// What is wrong with it, by [`guard`](crate::guard).
    pub flags: Vec<Flag>,
    /// How much too long it is, as a share of the length asked for; below 0 too short. `None` where no length is asked for.
    pub length_error: Option<f64>,
    /// Tokens that it cost, those of the prompt included.
    pub tokens: u64,
    /// Where it lies in the encoder's space, of unit length.
    #[serde(with = "journal::bits")]
    pub embedding: Embedding,
}

/// Makes replies and says what a validator would make of them.
#[async_trait]
pub trait Evaluator: fmt::Debug + Send + Sync {
    /// Has one reply made and looked at. The same trial gives the same outcome, as far as the model can.
    ///
    /// # Errors
    /// When there is no reply. It ends the run, which can go on later.
    async fn evaluate(&self, trial: Trial<'_>) -> Result<Outcome, Error>;

    /// Encodes texts: those of operators, to tell which are nearly the same.
    ///
    /// # Errors
    /// When the encoder fails.
    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error>;
}

/// How operators are evolved.
#[derive(Clone, Debug, PartialEq)]
pub struct EvolveConfig {
    /// What all draws start from.
    pub seed: u64,
    /// Rounds of proposals after the first, in which only operators of the library are tried.
    pub generations: usize,
    /// Proposals a generation.
    pub proposals: usize,
    /// Operators of the library that are tried, for each task.
    pub starters: usize,
    /// Prompts of a task that each candidate is tried on; the better half goes on to twice as many.
    pub mini_batch: usize,
    /// Share of each task's prompts that only the report is made by, in [0, 0.9].
    pub hold_out: f64,
    /// No generation begins when so many tokens were spent.
    pub max_tokens: Option<u64>,
    /// Replies that are asked for at a time.
    pub concurrency: usize,
    /// When two replies are too much alike.
    pub gate: Gate,
}

impl Default for EvolveConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            generations: 4,
            proposals: 6,
            starters: 8,
            mini_batch: 2,
            hold_out: 0.3,
            max_tokens: None,
            concurrency: 4,
            gate: Gate::default(),
        }
    }
}

/// Why operators cannot be evolved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvolveError {
    /// A setting is out of range.
    #[error("{name} is {found}, expected {expected}")]
    Setting {
        /// Which.
        name: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// There are too few prompts of a task to keep some back.
    #[error("prompts of the task {task}: {n}, expected at least 3, some of which are kept back to judge by")]
    FewPrompts {
        /// Which task.
        task: Task,
        /// How many there are.
        n: usize,
    },
    /// Two prompts have one id.
    #[error("the prompt {id} is there twice")]
    Twice {
        /// Which.
        id: String,
    },
    /// No operator of the library can be tried.
    #[error("the library has no operator with a text for {task}, expected at least one that is put beside the prompt")]
    NoOperator {
        /// For which task.
        task: Task,
    },
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A backend or the encoder failed. What was answered before is kept.
    #[error("{what}")]
    Backend {
        /// What was asked for.
        what: String,
        /// Why there is none.
        source: Error,
    },
    /// The new operators do not make a library with the old ones.
    #[error(transparent)]
    Library(#[from] crate::LibraryError),
}
