use std::collections::BTreeMap;

use crate::{Normaliser, Profile};

/// One named factor or score for each reply of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Its name, as in the validators' logs.
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

/// A step that cannot be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
}

/// The rewards of a step and what they were made of.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRewards {
    /// Normalised scores of each reward model that the profile weighs.
    pub normalised: Vec<Column>,
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
        let weighed = profile.rewards.iter().filter(|(_, weight)| **weight != 0.0);
        let normaliser = Normaliser::new(profile.normaliser_count_limit);
        Self { models: weighed.map(|(name, &weight)| (name.clone(), (weight, normaliser.clone()))).collect() }
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
        let expected = succeeded.len();
        if let Some(odd) = scores.iter().chain(factors).find(|column| column.values.len() != expected) {
            return Err(StepError::Length { name: odd.name.clone(), found: odd.values.len(), expected });
        }
        if let Some(name) = self.models.keys().find(|name| !scores.iter().any(|column| &column.name == *name)) {
            return Err(StepError::MissingScores { name: name.clone() });
        }
        let mut sums = vec![0.0_f64; expected];
        let mut normalised = Vec::new();
        for column in scores {
            let Some((weight, normaliser)) = self.models.get_mut(&column.name) else { continue };
            let values = column.values.iter().zip(succeeded);
            let counted: Vec<f32> = values.filter(|(_, ok)| **ok).map(|(&value, _)| value).collect();
            let mut counted = normaliser.normalise(&counted).into_iter();
            let mut next = |ok: &bool| if *ok { counted.next().unwrap_or(0.0) } else { 0.0 };
            let values: Vec<f32> = succeeded.iter().map(&mut next).collect();
            sums.iter_mut().zip(&values).for_each(|(sum, &value)| *sum += *weight * f64::from(value));
            normalised.push(Column::new(column.name.clone(), values));
        }
        for factor in factors {
            for (sum, &value) in sums.iter_mut().zip(&factor.values) {
                *sum *= if value.is_finite() { f64::from(value) } else { 0.0 };
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "a sum of weights")]
        let finite = |(&sum, &ok): (&f64, &bool)| if ok && sum.is_finite() { sum as f32 } else { 0.0 };
        Ok(StepRewards { normalised, rewards: sums.iter().zip(succeeded).map(finite).collect() })
    }
}
