use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use idiolect_uniqueness::GateProfile;
use serde::{Deserialize, Serialize};

use crate::dpo::DpoRules;
use crate::mask::NgramRules;
use crate::penalty::OpeningRules;
use crate::task::{Criterion, TaskKind};

mod file;

const OPENVALIDATORS_1_2: &str = include_str!("profile/openvalidators-1.2.toml");
const TEXT_PROMPTING_2_1: &str = include_str!("profile/text-prompting-2.1.toml");

/// A profile that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// The file is not TOML.
    #[error("line {line}: {reason}")]
    Syntax {
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A key that is unknown, missing or of another type.
    #[error("{}{key}{reason}", at(*.line))]
    Key {
        /// Where, from 1; `None` where the file says nothing of it.
        line: Option<usize>,
        /// Which, as a path with dots.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The reward models' weights do not add up.
    #[error("{}rewards: the weights add up to {sum}, expected 1", at(*.line))]
    Weights {
        /// Where they begin, from 1.
        line: Option<usize>,
        /// What they add up to.
        sum: String,
    },
    /// A figure out of its range.
    #[error("{}{key} is {found}, expected {expected}", at(*.line))]
    Range {
        /// Where, from 1; `None` where the figure is the base profile's.
        line: Option<usize>,
        /// Which, as a path with dots.
        key: String,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// No built-in profile has this name.
    #[error("unknown profile {0:?}, expected openvalidators-1.2, text-prompting-2.1 or a file")]
    Unknown(String),
    /// A file that cannot be read.
    #[error("profile {}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

fn at(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!("line {line}: "))
}

/// What the breach of a criterion costs at most.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CriteriaPenalties {
    /// Of a list, or none, in a summary or question.
    pub layout: f64,
    /// The same in an answer.
    pub layout_in_answer: f64,
    /// Of the length.
    pub length: f64,
    /// How quickly the cost of a wrong length grows; see [`Criterion::breach`].
    pub length_steepness: f64,
    /// Of words and question marks.
    pub content: f64,
}

impl CriteriaPenalties {
    fn most(&self, kind: TaskKind, criterion: &Criterion) -> f64 {
        match criterion {
            Criterion::Length { .. } => self.length,
            layout if layout.is_layout() && kind == TaskKind::Answer => self.layout_in_answer,
            layout if layout.is_layout() => self.layout,
            _ => self.content,
        }
    }

    /// Returns what a reply loses by all of a task's criteria together, before the limit.
    #[must_use]
    pub fn penalty(&self, kind: TaskKind, criteria: &[Criterion], reply: &str) -> f64 {
        let cost = |criterion: &Criterion| self.most(kind, criterion) * criterion.breach(reply, self.length_steepness);
        // A sum of nothing would be minus nought.
        criteria.iter().map(cost).fold(0.0, |sum, cost| sum + cost)
    }
}

/// What penalties take off: each at most so much of the reward.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Penalties {
    /// The criteria.
    pub task_validation: f64,
    /// Stock openings.
    pub content_match: f64,
    /// Labels of other tasks.
    pub keyword_match: f64,
    /// What each criterion costs.
    pub criteria: CriteriaPenalties,
    /// What stock openings cost.
    pub openings: OpeningRules,
}

/// The bounds of the relevance mask.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelevanceBounds {
    /// Of minus the root mean square difference.
    pub bert: f32,
    /// Of the absolute cosine.
    pub mpnet: f32,
}

/// What reward models see of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RewardText {
    /// All of it.
    Prompt,
    /// The text that it is about ([`StepTask::base_text`](crate::StepTask::base_text)).
    BaseText,
}

/// One of the masks, in the order that a [`Profile`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// Whole replies (version 1.2), or stock phrases where the profile has [`NgramRules`].
    Blacklist,
    /// Labels of other tasks.
    TaskValidator,
    /// How near the reply is to the prompt.
    Relevance,
    /// How far it is from other replies; a product in version 1.2.
    Diversity,
    /// Hateful or indecent text.
    Nsfw,
}

impl Mask {
    /// Returns its name in profiles.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Blacklist => "blacklist",
            Self::TaskValidator => "task_validator",
            Self::Relevance => "relevance",
            Self::Diversity => "diversity",
            Self::Nsfw => "nsfw",
        }
    }
}

/// One validator version's arithmetic as data: every threshold, half-life and constant.
///
/// ```
/// use idiolect_validator::Profile;
///
/// let changed = Profile::from_toml("extends = \"text-prompting-2.1\"\n[gate]\npass_above = 0.5\n")?;
/// assert_eq!(changed.gate.pass_above, 0.5);
/// assert_eq!(changed.rewards, Profile::text_prompting_2_1().rewards);
///
/// let error = Profile::from_toml("extends = \"text-prompting-2.1\"\n[gate]\npass_over = 0.5\n").unwrap_err();
/// assert!(error.to_string().starts_with("line 3: gate.pass_over: unknown field `pass_over`"), "{error}");
/// # Ok::<(), idiolect_validator::ProfileError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The newest step's share of the moving average.
    pub alpha: f64,
    /// Where the normaliser's count stops.
    pub normaliser_count_limit: usize,
    /// What reward models see.
    pub reward_text: RewardText,
    /// To how many words questions are cut before anything is computed of them; `None`: not at all.
    pub followup_words: Option<usize>,
    /// The reward models' weights; they add up to 1.
    pub rewards: BTreeMap<String, f64>,
    /// The masks, in their order.
    pub masks: Vec<Mask>,
    /// The penalties; `None` in a version that has none.
    pub penalties: Option<Penalties>,
    /// The relevance mask.
    pub relevance: RelevanceBounds,
    /// Scores of the nsfw classifier above this are masked.
    pub nsfw_bound: f32,
    /// The `dpo` reward.
    pub dpo: DpoRules,
    /// The counter of stock phrases; `None` in a version that compares whole replies.
    pub ngram_blacklist: Option<NgramRules>,
    /// The diversity mask.
    pub gate: GateProfile,
}

impl Profile {
    /// opentensor/validators 1.2.
    ///
    /// # Panics
    /// Never: the file is part of the crate and tested.
    #[must_use]
    pub fn openvalidators_1_2() -> Self {
        Self::from_toml(OPENVALIDATORS_1_2).expect("the built-in file is valid")
    }

    /// opentensor/text-prompting 2.1.
    ///
    /// # Panics
    /// Never: the file is part of the crate and tested.
    #[must_use]
    pub fn text_prompting_2_1() -> Self {
        Self::from_toml(TEXT_PROMPTING_2_1).expect("the built-in file is valid")
    }

    /// Returns a built-in profile's file, which also documents the keys.
    ///
    /// # Errors
    /// [`ProfileError::Unknown`].
    pub fn built_in_toml(name: &str) -> Result<&'static str, ProfileError> {
        match name {
            "openvalidators-1.2" => Ok(OPENVALIDATORS_1_2),
            "text-prompting-2.1" => Ok(TEXT_PROMPTING_2_1),
            _ => Err(ProfileError::Unknown(name.to_owned())),
        }
    }

    /// Reads a profile's file. It must hold every key and no other, or say which built-in profile it `extends` and hold
    /// what is different.
    ///
    /// # Errors
    /// [`ProfileError`] with the key, what was expected of it and, where the file has it, its line.
    pub fn from_toml(text: &str) -> Result<Self, ProfileError> {
        file::read(text)
    }

    /// Returns the built-in profile of a name, or reads the file there.
    ///
    /// # Errors
    /// As [`from_toml`](Self::from_toml), with the file's name; [`ProfileError::Unknown`] where there is neither.
    pub fn find(name_or_path: &str) -> Result<Self, ProfileError> {
        if let Ok(text) = Self::built_in_toml(name_or_path) {
            return Self::from_toml(text);
        }
        let path = Path::new(name_or_path);
        let failed = |reason: String| ProfileError::File { path: path.to_owned(), reason };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            // What looks like a file's name is told as a file that is not there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_file_name(path) => {
                return Err(ProfileError::Unknown(name_or_path.to_owned()));
            }
            Err(error) => return Err(failed(error.to_string())),
        };
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
            failed(format!("line {line}: no UTF-8"))
        })?;
        Self::from_toml(&text).map_err(|error| failed(error.to_string()))
    }

    /// Returns the reward models that count, with their weights.
    pub(crate) fn weighed(&self) -> impl Iterator<Item = (&String, f64)> {
        self.rewards.iter().map(|(name, weight)| (name, *weight)).filter(|(_, weight)| *weight != 0.0)
    }
}

/// Versions end in digits after a point.
fn is_file_name(path: &Path) -> bool {
    let is_toml = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
    is_toml || path.components().count() > 1
}

#[cfg(test)]
mod tests;
