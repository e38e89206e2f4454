//! What comes of choices.

use serde::Serialize;

/// One choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pick {
    /// The prompt's place among [`Experiment::prompts`](super::Experiment::prompts).
    pub prompt: usize,
    /// Which of ours was chosen; `None` of [`Choice::Random`](super::Choice::Random), whose figures are means.
    pub chosen: Option<usize>,
    /// Whether the hidden rivals mask it, 0 or 1.
    pub masked: f64,
    /// Distance to the nearest hidden rival.
    pub distance: f64,
    /// Whether it says what no rival says, hidden or seen: those are put into classes, each of what the gate takes for the same as its first
    /// member, and it belongs to none; 0 or 1.
    pub novel: f64,
    /// The quality that was given, where any was.
    pub quality: Option<f64>,
    /// What the criteria of the prompt take, in [0, 1], where it has any ([`Experiment::with_criteria`](super::Experiment::with_criteria)).
    pub criteria: Option<f64>,
    /// The judge's label, where there is one.
    pub label: Option<f64>,
    /// That of our first model's reply.
    pub first_label: Option<f64>,
}

/// How different our models' replies to a prompt are from each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Of how many classes they are, each of what the gate takes for the same as its first member (`distinct_k` of NoveltyBench, with
    /// the gate in place of its classifier).
    pub n_distinct: usize,
    /// Mean distance between two of them; `None` of one.
    pub pairwise: Option<f64>,
    /// Their Vendi score, the effective number of different ones; `None` where no embedding has a direction.
    pub vendi: Option<f64>,
}

/// What came of one way to choose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Each prompt with each panel.
    pub picks: Vec<Pick>,
}

impl Outcome {
    /// Returns the share of replies that the hidden rivals mask, each prompt counting the same.
    #[must_use]
    pub fn share_masked(&self) -> f64 {
        mean(&self.by_prompt(|pick| Some(pick.masked)))
    }

    /// Returns the mean distance to the nearest hidden rival.
    #[must_use]
    pub fn distance(&self) -> f64 {
        mean(&self.by_prompt(|pick| Some(pick.distance)))
    }

    /// Returns the share of replies that say what no rival says.
    #[must_use]
    pub fn share_novel(&self) -> f64 {
        mean(&self.by_prompt(|pick| Some(pick.novel)))
    }

    /// Returns the mean quality of what was sent; not a number where none was given.
    #[must_use]
    pub fn quality(&self) -> f64 {
        mean(&self.by_prompt(|pick| pick.quality))
    }

    /// Returns the mean of what criteria take, over the prompts that have any; not a number where none has.
    #[must_use]
    pub fn criteria(&self) -> f64 {
        mean(&self.by_prompt(|pick| pick.criteria))
    }

    /// Returns how much better than our first model's reply the judge finds what was sent, in the mean of the prompts that have
    /// labels; not a number where none has.
    #[must_use]
    pub fn label_gained(&self) -> f64 {
        mean(&self.by_prompt(|pick| Some(pick.label? - pick.first_label?)))
    }

    /// Returns a figure's mean for each prompt that has it, in their order.
    #[must_use]
    pub fn by_prompt(&self, figure: impl Fn(&Pick) -> Option<f64>) -> Vec<f64> {
        let mut means = Vec::new();
        for picks in self.picks.chunk_by(|a, b| a.prompt == b.prompt) {
            let values: Vec<f64> = picks.iter().filter_map(&figure).collect();
            if !values.is_empty() {
                means.push(mean(&values));
            }
        }
        means
    }
}

/// Returns how much of the way from a random choice to the oracle's a choice goes; not a number where there is none to go.
#[must_use]
pub fn gap_closed(random: f64, choice: f64, oracle: f64) -> f64 {
    if random > oracle { (random - choice) / (random - oracle) } else { f64::NAN }
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
