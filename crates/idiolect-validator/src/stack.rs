use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::normaliser::SavedNormaliser;
use crate::{Normaliser, Profile};

/// One named factor or score for each reply of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its name, as in profiles.
    pub name: String,
    /// One value for each reply, in order.
    pub values: Vec<f32>,
}

impl Column {
    /// Makes a column.
    pub fn new(name: impl Into<String>, values: Vec<f32>) -> Self {
        Self { name: name.into(), values }
    }
}

/// What becomes of a factor that the profile has and nobody can compute: its model is not there.
///
/// Whatever it is, nothing is put in its place, and a [`StepReport`](crate::StepReport) names what is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// The step is refused.
    #[default]
    Refuse,
    /// It is left out; a reward model's weight is lost, so that rewards are at most what the others weigh.
    LeaveOut,
    /// It is left out, and the other reward models' weights are scaled up to add up to 1.
    Renormalise,
}

/// A step that cannot be computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// A column of another length than the list of replies.
    #[error("column {name} has {found} values, expected one for each of {expected} replies")]
    Length {
        /// The column's name.
        name: String,
        /// Its length.
        found: usize,
        /// How many replies there are.
        expected: usize,
    },
    /// The profile weighs a reward model that there are no scores of.
    #[error("no scores of the reward model {name}, which the profile weighs")]
    MissingScores {
        /// The model's name.
        name: String,
    },
    /// The profile has factors that nobody can compute, and that may not be left out.
    #[error("nothing to compute {} with", names.join(", "))]
    Missing {
        /// Which.
        names: Vec<String>,
    },
    /// A model or encoder failed.
    #[error("{factor} cannot be computed")]
    Model {
        /// Which factor it is for.
        factor: String,
        /// Why.
        source: idiolect_backend::Error,
    },
}

/// The rewards of a step and what they were made of.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRewards {
    /// Normalised scores of each reward model that the profile weighs.
    pub normalised: Vec<Column>,
    /// What each of these weighed.
    pub weights: Vec<f64>,
    /// Each reply's reward; never anything but a finite number.
    pub rewards: Vec<f32>,
}

/// The reward of a step by a profile (`forward.py` and `reward/reward.py` of both versions): weighed, normalised scores
/// times masks and penalties. It keeps each model's statistics from step to step. Equal to the recording `step_v1.json`.
#[derive(Clone, Debug)]
pub struct Stack {
    models: BTreeMap<String, (f64, Normaliser)>,
}

impl Stack {
    /// Makes a stack that has seen nothing.
    #[must_use]
    pub fn new(profile: &Profile) -> Self {
        let normaliser = Normaliser::new(profile.normaliser_count_limit);
        let weighed = profile.weighed().map(|(name, weight)| (name.clone(), (weight, normaliser.clone())));
        Self { models: weighed.collect() }
    }

    /// Returns the statistics of a reward model; `None` where the profile does not weigh it.
    #[must_use]
    pub fn normaliser(&self, name: &str) -> Option<&Normaliser> {
        self.models.get(name).map(|(_, normaliser)| normaliser)
    }

    /// Computes a step. `succeeded` says which calls returned a reply: the others are 0 throughout and no part of the
    /// statistics. `scores` are raw scores of the reward models, `factors` masks and applied penalties. Scores of models
    /// that the profile does not weigh are passed over. A factor that is no number counts as 0.
    ///
    /// # Errors
    /// [`StepError`]; no statistics have changed then.
    pub fn step(
        &mut self,
        succeeded: &[bool],
        scores: &[Column],
        factors: &[Column],
    ) -> Result<StepRewards, StepError> {
        self.step_with(Missing::Refuse, succeeded, scores, factors)
    }

    /// As [`step`](Self::step), with a choice of what becomes of reward models that there are no scores of.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn step_with(
        &mut self,
        missing: Missing,
        succeeded: &[bool],
        scores: &[Column],
        factors: &[Column],
    ) -> Result<StepRewards, StepError> {
        let expected = succeeded.len();
        if let Some(odd) = scores.iter().chain(factors).find(|column| column.values.len() != expected) {
            return Err(StepError::Length { name: odd.name.clone(), found: odd.values.len(), expected });
        }
        let is_there = |name: &String| scores.iter().any(|column| &column.name == name);
        if missing == Missing::Refuse
            && let Some(name) = self.models.keys().find(|name| !is_there(name))
        {
            return Err(StepError::MissingScores { name: name.clone() });
        }
        let there: f64 = self.models.iter().filter(|(name, _)| is_there(name)).map(|(_, (weight, _))| weight).sum();
        let scale = if missing == Missing::Renormalise && there > 0.0 { 1.0 / there } else { 1.0 };
        let mut sums = vec![0.0_f64; expected];
        let (mut normalised, mut weights) = (Vec::new(), Vec::new());
        for column in scores {
            let Some((weight, normaliser)) = self.models.get_mut(&column.name) else { continue };
            let weight = *weight * scale;
            let values = column.values.iter().zip(succeeded);
            let counted: Vec<f32> = values.filter(|(_, ok)| **ok).map(|(&value, _)| value).collect();
            let mut counted = normaliser.normalise(&counted).into_iter();
            let mut next = |ok: &bool| if *ok { counted.next().unwrap_or(0.0) } else { 0.0 };
            let values: Vec<f32> = succeeded.iter().map(&mut next).collect();
            sums.iter_mut().zip(&values).for_each(|(sum, &value)| *sum += weight * f64::from(value));
            normalised.push(Column::new(column.name.clone(), values));
            weights.push(weight);
        }
        for factor in factors {
            for (sum, &value) in sums.iter_mut().zip(&factor.values) {
                *sum *= if value.is_finite() { f64::from(value) } else { 0.0 };
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "a sum of weights")]
        let finite = |(&sum, &ok): (&f64, &bool)| if ok && sum.is_finite() { sum as f32 } else { 0.0 };
        let rewards = sums.iter().zip(succeeded).map(finite).collect();
        Ok(StepRewards { normalised, weights, rewards })
    }

    pub(crate) fn saved(&self) -> BTreeMap<String, SavedNormaliser> {
        self.models.iter().map(|(name, (_, normaliser))| (name.clone(), normaliser.saved())).collect()
    }

    /// Takes saved statistics of the models that it weighs; of the others there are none yet.
    pub(crate) fn restore(&mut self, saved: &BTreeMap<String, SavedNormaliser>) -> Result<(), String> {
        for (name, (_, normaliser)) in &mut self.models {
            if let Some(saved) = saved.get(name) {
                normaliser.restore(saved).map_err(|reason| format!("normalisers.{name}.{reason}"))?;
            }
        }
        Ok(())
    }
}
