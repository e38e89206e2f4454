//! What was drawn and what it brought.

use serde::{Deserialize, Serialize};

use crate::Recipe;

use super::context::Context;
use super::{PolicyError, exact};

/// A recipe that was drawn, with the chance that it had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Draw {
    /// The recipe.
    pub recipe: Recipe,
    /// The chance that the request's draw has this recipe, in (0, 1]. With k of several it is each one's own, so they sum to k.
    pub propensity: f64,
    /// How many operators there were to choose among.
    pub n_arms: u32,
}

/// A draw with what it brought.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// What was drawn.
    pub draw: &'a Draw,
    /// What it brought, 0 to 1.
    pub reward: f64,
}

/// An operator, as far as learning cares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Played {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) slot: String,
}

/// A request's outcome: a line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) context: Context,
    pub(crate) scored: Vec<ScoredRecord>,
    /// Whether the request was learnt of before: then nothing fades for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) again: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScoredRecord {
    /// None for the no-op.
    pub(crate) operators: Vec<Played>,
    #[serde(with = "exact")]
    pub(crate) propensity: f64,
    #[serde(with = "exact")]
    pub(crate) reward: f64,
    pub(crate) n_arms: u32,
}

impl ScoredRecord {
    /// Returns the arms' names and versions; the no-op is the empty name.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, u32)> {
        let no_op = self.operators.is_empty().then_some(("", 0));
        self.operators.iter().map(|o| (o.name.as_str(), o.version)).chain(no_op)
    }
}

impl Record {
    /// Checks what is to be learnt.
    pub(crate) fn new(context: &Context, scored: &[Scored<'_>]) -> Result<Self, PolicyError> {
        let played = |recipe: &Recipe| -> Vec<Played> {
            let operators = recipe.operators.iter();
            operators.map(|o| Played { name: o.name.clone(), version: o.version, slot: o.slot.clone() }).collect()
        };
        let scored = scored.iter().map(|Scored { draw, reward }| ScoredRecord {
            operators: played(&draw.recipe),
            propensity: draw.propensity,
            reward: *reward,
            n_arms: draw.n_arms,
        });
        let record = Self { context: context.clone(), scored: scored.collect(), again: false };
        record.check()?;
        Ok(record)
    }

    pub(crate) fn check(&self) -> Result<(), PolicyError> {
        self.context.check()?;
        for scored in &self.scored {
            let recipe = || name_of(scored.operators.iter().map(|o| o.name.as_str()));
            if !(0.0..=1.0).contains(&scored.reward) {
                return Err(PolicyError::Reward { recipe: recipe(), reward: scored.reward });
            }
            if !(scored.propensity > 0.0 && scored.propensity <= 1.0) {
                return Err(PolicyError::Propensity { recipe: recipe(), propensity: scored.propensity });
            }
        }
        Ok(())
    }
}

/// Returns a recipe's name of its operators': `angle.causes+register.plain`, or `no-op`.
pub(crate) fn name_of<'a>(operators: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = operators.collect();
    if names.is_empty() { "no-op".to_owned() } else { names.join("+") }
}
