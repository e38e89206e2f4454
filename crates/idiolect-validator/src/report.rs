use serde::Serialize;

use crate::task::TaskKind;

/// A value of the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Cell {
    /// A figure.
    Number(f32),
    /// A text.
    Text(String),
    /// Nothing: the call failed, or there is no such figure yet.
    Nothing,
}

impl From<Option<f32>> for Cell {
    fn from(value: Option<f32>) -> Self {
        value.map_or(Self::Nothing, Self::Number)
    }
}

/// A column of the log: one cell for each reply.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogColumn {
    /// Its name, as validators log it.
    pub name: String,
    /// One for each reply, in order.
    pub cells: Vec<Cell>,
}

/// What a factor is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FactorKind {
    /// A weighed, normalised score.
    RewardModel {
        /// What it weighed in this step.
        weight: f64,
    },
    /// A mask; diversity in version 1.2 is any number from 0 to 1.
    Mask,
    /// A penalty.
    Penalty,
}

/// One factor of a step's rewards.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Its name: `dpo`, `relevance`, `content_match`.
    pub name: String,
    /// What it is.
    pub kind: FactorKind,
    /// The figure before normalising, or the raw penalty; `None` of calls that failed.
    pub raw: Vec<Option<f32>>,
    /// What entered the reward: the normalised score, the mask, or 1 less the penalty.
    pub applied: Vec<f32>,
    /// What it was made of, by the names that version 2.1 logs.
    pub details: Vec<LogColumn>,
}

impl Factor {
    /// Returns the name under which validators log it.
    #[must_use]
    pub fn log_name(&self) -> String {
        match (self.kind, self.name.as_str()) {
            (FactorKind::Penalty, "content_match") => "sentence_match_penalty".to_owned(),
            (FactorKind::Penalty, name) => format!("{name}_penalty"),
            (FactorKind::RewardModel { .. }, name) | (FactorKind::Mask, name @ "diversity") => {
                format!("{name}_reward_model")
            }
            (FactorKind::Mask, name) => format!("{name}_filter"),
        }
    }

    /// Returns the columns that validators log of it.
    #[must_use]
    pub fn log_columns(&self) -> Vec<LogColumn> {
        let name = self.log_name();
        let column = |suffix: &str, cells: Vec<Cell>| LogColumn { name: format!("{name}{suffix}"), cells };
        let raw = self.raw.iter().map(|&value| value.into()).collect();
        let applied = |of: fn(f32) -> f32| self.applied.iter().map(|&value| Cell::Number(of(value))).collect();
        let mut columns = match self.kind {
            FactorKind::Penalty => vec![
                column("_raw", raw),
                column("_adjusted", applied(|factor| 1.0 - factor)),
                column("_applied", applied(|factor| factor)),
            ],
            FactorKind::RewardModel { .. } | FactorKind::Mask => {
                vec![column("", raw), column("_normalized", applied(|factor| factor))]
            }
        };
        columns.extend(self.details.iter().cloned());
        columns
    }
}

/// A factor of the profile that was not computed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MissingFactor {
    /// Its name; `relevance.bert` is a part of one.
    pub name: String,
    /// What the profile weighs it, of reward models.
    pub weight: Option<f64>,
    /// What it would have needed.
    pub needs: &'static str,
}

/// What a validator would have logged of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// What was asked for.
    pub kind: TaskKind,
    /// The factors that were computed, in the order in which they are applied.
    pub factors: Vec<Factor>,
    /// The profile's factors that were not.
    pub missing: Vec<MissingFactor>,
    /// Each reply's reward; `None` where no reward model was there, since masks alone are no reward.
    pub rewards: Option<Vec<f32>>,
    /// Each asked miner's moving average after the step; as before it where there are no rewards.
    pub moving_average: Vec<f64>,
    /// Each asked miner's weight after the step, before the chain's own limits: its share of all miners' moving averages.
    pub weights: Vec<f64>,
    /// The reply of the highest reward, the first of equal ones; `None` where there are no rewards.
    pub best: Option<usize>,
}

impl StepReport {
    /// Returns the factor of a name.
    #[must_use]
    pub fn factor(&self, name: &str) -> Option<&Factor> {
        self.factors.iter().find(|factor| factor.name == name)
    }

    /// Returns all columns of the log but uid, time and text.
    #[must_use]
    pub fn log_columns(&self) -> Vec<LogColumn> {
        let mut columns: Vec<LogColumn> = self.factors.iter().flat_map(Factor::log_columns).collect();
        if let Some(rewards) = &self.rewards {
            let cells = rewards.iter().map(|&reward| Cell::Number(reward)).collect();
            columns.push(LogColumn { name: "rewards".to_owned(), cells });
        }
        columns
    }
}
