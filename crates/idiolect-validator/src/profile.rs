use std::collections::BTreeMap;

use idiolect_uniqueness::{GateMode, GateProfile, Sigmoid};
use serde::Deserialize;
use toml::Spanned;

use crate::dpo::Repetition;
use crate::mask::NgramRules;
use crate::task::{Criterion, text_prompting};

const OPENVALIDATORS_1_2: &str = include_str!("profile/openvalidators-1.2.toml");
const TEXT_PROMPTING_2_1: &str = include_str!("profile/text-prompting-2.1.toml");

/// A profile that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// The file is not what a profile looks like.
    #[error("invalid profile: {0}")]
    Invalid(String),
    /// The reward models' weights do not add up.
    #[error("line {line}: weights of the reward models add up to {sum}, expected 1")]
    Weights {
        /// Where they begin, from 1.
        line: usize,
        /// What they add up to.
        sum: String,
    },
    /// A figure out of its range.
    #[error("{key} is {found}, expected {expected}")]
    Range {
        /// Which.
        key: &'static str,
        /// What it is.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
    /// No built-in profile has this name.
    #[error("unknown profile {0:?}, expected openvalidators-1.2 or text-prompting-2.1")]
    Unknown(String),
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
    /// Of words and question marks.
    pub content: f64,
}

impl CriteriaPenalties {
    fn most(&self, task: &text_prompting::Task, criterion: &Criterion) -> f64 {
        match criterion {
            Criterion::Length { .. } => self.length,
            layout if layout.is_layout() && task.kind == crate::task::TaskKind::Answer => self.layout_in_answer,
            layout if layout.is_layout() => self.layout,
            _ => self.content,
        }
    }

    /// Returns what a reply loses by all the task's criteria together, before the limit.
    #[must_use]
    pub fn penalty(&self, task: &text_prompting::Task, reply: &str) -> f64 {
        task.criteria.iter().map(|criterion| self.most(task, criterion) * criterion.breach(reply)).sum()
    }
}

/// What each penalty takes off at most; a version without penalties has 0 everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PenaltyLimits {
    /// The criteria.
    pub task_validation: f64,
    /// Stock openings.
    pub content_match: f64,
    /// Labels of other tasks.
    pub keyword_match: f64,
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

/// One validator version's arithmetic as data.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The newest step's share of the moving average.
    pub alpha: f64,
    /// Where the normaliser's count stops.
    pub normaliser_count_limit: usize,
    /// The reward models' weights; they add up to 1.
    pub rewards: BTreeMap<String, f64>,
    /// Names of the masks, in their order.
    pub masks: Vec<String>,
    /// What penalties take off at most.
    pub penalties: PenaltyLimits,
    /// What criteria cost at most.
    pub criteria: CriteriaPenalties,
    /// The relevance mask.
    pub relevance: RelevanceBounds,
    /// Scores of the nsfw classifier above this are masked.
    pub nsfw_bound: f32,
    /// Repetition in the `dpo` reward.
    pub repetition: Repetition,
    /// The counter of stock phrases; `None` in a version that compares whole replies.
    pub ngram_blacklist: Option<NgramRules>,
    /// The diversity mask.
    pub gate: GateProfile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    alpha: f64,
    normaliser_count_limit: usize,
    masks: Vec<Mask>,
    nsfw_bound: f32,
    rewards: Spanned<BTreeMap<String, f64>>,
    penalties: PenaltyLimits,
    criteria: CriteriaPenalties,
    relevance: RelevanceBounds,
    repetition: RepetitionSection,
    ngram_blacklist: Option<NgramRules>,
    gate: GateSection,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mask {
    Blacklist,
    TaskValidator,
    Relevance,
    Diversity,
    Nsfw,
}

#[derive(Deserialize)]
#[serde(tag = "rule", rename_all = "kebab-case", deny_unknown_fields)]
enum RepetitionSection {
    Ignored,
    Scaled { factor: f64 },
    NoRepeatNgram { n: usize, deviations: f64 },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Curve {
    slope: f64,
    offset: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GateSection {
    batch: Curve,
    historic: Curve,
    history_skip: usize,
    history_keep: usize,
    mode: GateMode,
    pass_above: f32,
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

    /// Returns a built-in profile's file, to be changed and read by [`from_toml`](Self::from_toml).
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

    /// Reads a profile's file. It must hold every key, and no other.
    ///
    /// # Errors
    /// [`ProfileError`] with the line, or with the key and the figure.
    pub fn from_toml(text: &str) -> Result<Self, ProfileError> {
        let file: File = toml::from_str(text).map_err(|error| ProfileError::Invalid(error.to_string()))?;
        check_weights(text, &file.rewards)?;
        file.check()?;
        Ok(file.into_profile())
    }
}

fn check_weights(text: &str, rewards: &Spanned<BTreeMap<String, f64>>) -> Result<(), ProfileError> {
    let sum: f64 = rewards.get_ref().values().sum();
    let negative = rewards.get_ref().values().any(|weight| *weight < 0.0);
    if (sum - 1.0).abs() <= 1e-6 && !negative {
        return Ok(());
    }
    let before = text.get(..rewards.span().start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let sum = if negative { format!("{sum} with a negative one among them") } else { sum.to_string() };
    Err(ProfileError::Weights { line, sum })
}

fn check(key: &'static str, value: f64, fits: bool, expected: &'static str) -> Result<(), ProfileError> {
    if fits { Ok(()) } else { Err(ProfileError::Range { key, found: value.to_string(), expected }) }
}

impl File {
    fn check(&self) -> Result<(), ProfileError> {
        let unit = [
            ("alpha", self.alpha),
            ("penalties.task_validation", self.penalties.task_validation),
            ("penalties.content_match", self.penalties.content_match),
            ("penalties.keyword_match", self.penalties.keyword_match),
            ("criteria.layout", self.criteria.layout),
            ("criteria.layout_in_answer", self.criteria.layout_in_answer),
            ("criteria.length", self.criteria.length),
            ("criteria.content", self.criteria.content),
        ];
        for (key, value) in unit {
            check(key, value, (0.0..=1.0).contains(&value), "a number from 0 to 1")?;
        }
        if let RepetitionSection::Scaled { factor } = self.repetition {
            check("repetition.factor", factor, factor > 0.0 && factor.is_finite(), "a number above 0")?;
        }
        if let Some(rules) = &self.ngram_blacklist {
            let error = rules.error;
            check("ngram_blacklist.error", error, error > 0.0 && error <= 1.0, "a number above 0, at most 1")?;
            check("ngram_blacklist.n_min", rules.n_min as f64, rules.n_min > 0, "at least 1")?;
            check("ngram_blacklist.half_life", rules.half_life as f64, rules.half_life > 0, "at least 1")?;
            let n_max = rules.n_max;
            check("ngram_blacklist.n_max", n_max as f64, n_max >= rules.n_min && n_max <= 64, "n_min to 64")?;
        }
        Ok(())
    }

    fn into_profile(self) -> Profile {
        let curve = |c: Curve| Sigmoid { slope: c.slope, offset: c.offset };
        let mask = |mask: &Mask| match mask {
            Mask::Blacklist => "blacklist",
            Mask::TaskValidator => "task_validator",
            Mask::Relevance => "relevance",
            Mask::Diversity => "diversity",
            Mask::Nsfw => "nsfw",
        };
        Profile {
            gate: GateProfile {
                name: self.name.clone().into(),
                batch: curve(self.gate.batch),
                historic: curve(self.gate.historic),
                history_skip: self.gate.history_skip,
                history_keep: self.gate.history_keep,
                mode: self.gate.mode,
                pass_above: self.gate.pass_above,
            },
            name: self.name,
            alpha: self.alpha,
            normaliser_count_limit: self.normaliser_count_limit,
            rewards: self.rewards.into_inner(),
            masks: self.masks.iter().map(|m| mask(m).to_owned()).collect(),
            penalties: self.penalties,
            criteria: self.criteria,
            relevance: self.relevance,
            nsfw_bound: self.nsfw_bound,
            repetition: match self.repetition {
                RepetitionSection::Ignored => Repetition::Ignored,
                RepetitionSection::Scaled { factor } => Repetition::Scaled { factor },
                RepetitionSection::NoRepeatNgram { n, deviations } => Repetition::NoRepeatNgram { n, deviations },
            },
            ngram_blacklist: self.ngram_blacklist,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_those_of_the_uniqueness_crate() {
        assert_eq!(Profile::openvalidators_1_2().gate, GateProfile::OPENVALIDATORS_1_2);
        assert_eq!(Profile::text_prompting_2_1().gate, GateProfile::TEXT_PROMPTING_2_1);
    }

    #[track_caller]
    fn check_error(from: &str, to: &str, expected: &str) {
        let text = Profile::built_in_toml("text-prompting-2.1").unwrap();
        assert!(text.contains(from), "{from}");
        let error = Profile::from_toml(&text.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn errors_name_line_and_figure() {
        check_error("dpo = 0.6", "dpo = 0.7", "add up to 1.1, expected 1");
        check_error("dpo = 0.6", "dpo = 0.7", "line ");
        check_error("alpha = 0.05", "alpha = 0.05\nbeta = 1", "beta");
        check_error("alpha = 0.05", "alpha = 0.05\nbeta = 1", "line 5");
        check_error("alpha = 0.05\n", "", "alpha");
        check_error("alpha = 0.05", "alpha = 5.0", "alpha is 5, expected a number from 0 to 1");
        check_error("n_max = 10", "n_max = 4", "ngram_blacklist.n_max is 4");
        assert!(Profile::built_in_toml("x").is_err());
    }
}
