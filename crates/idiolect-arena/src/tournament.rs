//! Batches as validators send them, of replies on record: who would have been masked, what everybody would have earned, and in which place
//! a contestant would have stood.
//!
//! A step is a prompt and a batch of replies to it, drawn from all models of the record. The gate compares each reply with all others of
//! the batch; what it lets pass earns its quality, less what penalties take. Moving averages and weights are the validators' own.
//!
//! A contestant takes the place of the last one drawn, so that batches stay as large as they were, and everybody else is who they were: contestants
//! do not meet each other. Its clones, if there are any, take more places, and meet it.
//!
//! A reply without any text is a call that failed: it earns nothing, and nobody is compared with it.
//!
//! The history of earlier replies has no part: among replies to other prompts hardly any is near enough to count (0.04 %
//! of them), and a validator that knows fewer than 502 has none.

mod play;
mod standing;

use std::collections::BTreeMap;

use idiolect_backend::Embedding;
use idiolect_uniqueness::vectors::normalised;
use idiolect_validator::Profile;
use serde::Serialize;

use crate::replies::{Recorded, Replies};

pub use standing::{Member, Standing, StepRecord};

/// How a tournament is played.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rules {
    /// Replies of a batch, 2 or more; with as many models or fewer all of them take part. Validators ask 50 miners.
    pub batch: usize,
    /// Steps; prompts come again, in another order, where there are fewer.
    pub steps: usize,
    /// Copies of each contestant that take part beside it: replies of `NAME#1`, `NAME#2` and so on where those are on record, else the same
    /// reply once more.
    pub clones: usize,
    /// What is drawn by.
    pub seed: u64,
}

/// Why a tournament cannot be played.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TournamentError {
    /// There are not as many figures as replies.
    #[error("{found} {what}, expected one for each of {expected} replies")]
    Figures {
        /// Embeddings, qualities.
        what: &'static str,
        /// Replies.
        expected: usize,
        /// Figures.
        found: usize,
    },
    /// The batch is none.
    #[error("a batch of {0}, expected 2 or more")]
    Batch(usize),
    /// Clones leave no room for rivals.
    #[error("{clones} clones in a batch of {batch}, expected at most {}", batch.saturating_sub(2))]
    Clones {
        /// How many.
        clones: usize,
        /// In a batch of so many.
        batch: usize,
    },
    /// There is nothing to play for.
    #[error("0 steps, expected 1 or more")]
    Steps,
    /// A contestant is in no line.
    #[error("no reply is by {0}")]
    Unknown(String),
    /// No prompt can be played.
    #[error("there is no prompt that {contestants} and 1 other model answer")]
    NoPrompt {
        /// Who should.
        contestants: String,
    },
}

/// Everybody's replies, and who of them contests.
#[derive(Clone, Debug)]
pub struct Tournament<'a> {
    replies: &'a Replies,
    profile: &'a Profile,
    /// Of unit length; `None` without a direction, and of calls that failed.
    embeddings: Vec<Option<Vec<f32>>>,
    qualities: Option<&'a [f32]>,
    penalties: Option<&'a [Option<f64>]>,
    irrelevant: Option<&'a [bool]>,
    /// Models of the population, sorted.
    models: Vec<&'a str>,
    contestants: Vec<Contestant<'a>>,
    prompts: Vec<Asked<'a>>,
    /// Prompts that not all contestants answer, or nobody else.
    n_left_out: usize,
}

/// A contestant and its copies.
#[derive(Clone, Debug)]
struct Contestant<'a> {
    name: &'a str,
    /// By the prompt's place: its reply, and those of its copies that are on record.
    replies: Vec<(usize, Vec<usize>)>,
}

/// A prompt with the replies of the population.
#[derive(Clone, Debug)]
struct Asked<'a> {
    prompt: &'a str,
    /// The model of each, by its place among the models, and the reply.
    rivals: Vec<(usize, usize)>,
}

impl<'a> Tournament<'a> {
    /// Sets a tournament up. `embeddings` has one for each reply, by the encoder whose distances count; `contestants` are models of the record,
    /// everybody else but their copies (`NAME#1`, `NAME#2` and so on) is the population.
    ///
    /// # Errors
    /// Any [`TournamentError`] but those of [`Rules`].
    pub fn new(
        replies: &'a Replies,
        embeddings: &[Embedding],
        contestants: &'a [String],
        profile: &'a Profile,
    ) -> Result<Self, TournamentError> {
        let all = replies.all();
        if embeddings.len() != all.len() {
            return Err(TournamentError::Figures { what: "embeddings", expected: all.len(), found: embeddings.len() });
        }
        if let Some(unknown) = contestants.iter().find(|name| all.iter().all(|reply| reply.model != **name)) {
            return Err(TournamentError::Unknown(unknown.clone()));
        }
        let owner = |model: &str| {
            let base = model.rsplit_once('#').filter(|(_, n)| n.parse::<u32>().is_ok()).map_or(model, |(base, _)| base);
            contestants.iter().position(|name| name == model || name == base)
        };
        let mut models: Vec<&str> =
            all.iter().map(|reply| reply.model.as_str()).filter(|model| owner(model).is_none()).collect();
        models.sort_unstable();
        models.dedup();
        let mut of_contestants: Vec<Contestant<'_>> =
            contestants.iter().map(|name| Contestant { name, replies: Vec::new() }).collect();
        let (mut prompts, mut n_left_out) = (Vec::new(), 0);
        for (prompt, members) in replies.by_prompt() {
            let mut own: BTreeMap<usize, (Option<usize>, Vec<usize>)> = BTreeMap::new();
            let mut rivals = Vec::new();
            for index in members {
                let model = all[index].model.as_str();
                match owner(model) {
                    Some(contestant) if contestants[contestant] == model => {
                        own.entry(contestant).or_default().0 = Some(index);
                    }
                    Some(contestant) => own.entry(contestant).or_default().1.push(index),
                    None => rivals.extend(models.binary_search(&model).ok().map(|place| (place, index))),
                }
            }
            let is_whole = own.len() == contestants.len() && own.values().all(|(reply, _)| reply.is_some());
            if !is_whole || rivals.len() + usize::from(!contestants.is_empty()) < 2 {
                n_left_out += 1;
                continue;
            }
            rivals.sort_unstable();
            for (contestant, (reply, copies)) in own {
                of_contestants[contestant].replies.extend(reply.map(|reply| (reply, copies)));
            }
            prompts.push(Asked { prompt, rivals });
        }
        if prompts.is_empty() {
            let contestants = if contestants.is_empty() {
                "a model".to_owned()
            } else {
                format!("all of {}", contestants.join(", "))
            };
            return Err(TournamentError::NoPrompt { contestants });
        }
        let unit = |(reply, e): (&Recorded, &Embedding)| normalised(e).filter(|_| !reply.text.is_empty());
        let embeddings = all.iter().zip(embeddings).map(unit).collect();
        let (qualities, penalties, irrelevant) = (None, None, None);
        Ok(Self {
            replies,
            profile,
            embeddings,
            qualities,
            penalties,
            irrelevant,
            models,
            contestants: of_contestants,
            prompts,
            n_left_out,
        })
    }

    /// Says how good each reply is, in [0, 1], in the order of all replies: what it earns if the gate lets it pass. Without, everybody earns the same.
    ///
    /// # Errors
    /// [`TournamentError::Figures`] for another number of them.
    pub fn with_qualities(self, qualities: &'a [f32]) -> Result<Self, TournamentError> {
        self.check("qualities", qualities.len())?;
        Ok(Self { qualities: Some(qualities), ..self })
    }

    /// Says what the penalties of its prompt take of each reply, in [0, 1] and in the order of all replies.
    ///
    /// # Errors
    /// [`TournamentError::Figures`] for another number of them.
    pub fn with_penalties(self, penalties: &'a [Option<f64>]) -> Result<Self, TournamentError> {
        self.check("figures of penalties", penalties.len())?;
        Ok(Self { penalties: Some(penalties), ..self })
    }

    /// Says of each reply whether it is too far from what was asked, in the order of all replies: such a one earns nothing.
    ///
    /// # Errors
    /// [`TournamentError::Figures`] for another number of them.
    pub fn with_irrelevant(self, irrelevant: &'a [bool]) -> Result<Self, TournamentError> {
        self.check("words on relevance", irrelevant.len())?;
        Ok(Self { irrelevant: Some(irrelevant), ..self })
    }

    fn check(&self, what: &'static str, found: usize) -> Result<(), TournamentError> {
        let expected = self.replies.all().len();
        if found == expected { Ok(()) } else { Err(TournamentError::Figures { what, expected, found }) }
    }

    /// Returns how many prompts are played.
    #[must_use]
    pub const fn n_prompts(&self) -> usize {
        self.prompts.len()
    }

    /// Returns how many are not, since not all contestants answer them, or nobody else does.
    #[must_use]
    pub const fn n_left_out(&self) -> usize {
        self.n_left_out
    }

    /// Returns how many models the population has.
    #[must_use]
    pub const fn n_models(&self) -> usize {
        self.models.len()
    }
}

#[cfg(test)]
mod tests;
