//! Discounted Thompson sampling with shrinkage towards the wider context.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::arms::Arms;
use super::context::Context;
use super::pick::Scores;
use super::random::Random;
use super::record::Record;
use super::tree::{Known, Tree};
use super::{PolicyConfig, exact};

/// Rewards had, and missed, by an arm in a context; they fade.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// The operator's version that they were had with.
    version: u32,
    #[serde(with = "exact")]
    gained: f64,
    #[serde(with = "exact")]
    missed: f64,
}

impl Evidence {
    /// Returns what is to be believed of a version: all of it for the same one, half of it for any other.
    fn of_version(self, version: u32) -> Self {
        let share = if self.version == version { 1.0 } else { 0.5 };
        Self { version, gained: share * self.gained, missed: share * self.missed }
    }
}

impl Known for Evidence {
    fn amount(&self) -> f64 {
        self.gained + self.missed
    }

    fn check(&self) -> Result<(), String> {
        for (name, value) in [("gained", self.gained), ("missed", self.missed)] {
            if !(0.0..=MOST_EVIDENCE).contains(&value) {
                return Err(format!("{name} is {value}, expected 0 to {MOST_EVIDENCE:e}"));
            }
        }
        Ok(())
    }
}

/// More is not kept of an arm, whatever the discount.
const MOST_EVIDENCE: f64 = 1e6;
/// Evidence that faded to less than this is none.
const LEAST_EVIDENCE: f64 = 1e-9;

/// A beta distribution of an arm's mean reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Posterior {
    /// Its first parameter, above 0.
    pub alpha: f64,
    /// Its second parameter, above 0.
    pub beta: f64,
}

impl Posterior {
    /// Returns the mean, in (0, 1).
    #[must_use]
    pub fn mean(self) -> f64 {
        self.alpha / (self.alpha + self.beta)
    }

    /// Returns the standard deviation.
    #[must_use]
    pub fn deviation(self) -> f64 {
        let sum = self.alpha + self.beta;
        (self.alpha * self.beta / (sum + 1.0)).sqrt() / sum
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Thompson {
    pub(crate) tree: Tree<Evidence>,
}

impl Thompson {
    pub(crate) fn update(&mut self, config: &PolicyConfig, seq: u64, record: &Record) {
        let mut sums: BTreeMap<&str, (u32, f64, f64)> = BTreeMap::new();
        for scored in &record.scored {
            for (name, version) in scored.names() {
                let sum = sums.entry(name).or_insert((version, 0.0, 0.0));
                sum.0 = version;
                sum.1 += scored.reward;
                sum.2 += 1.0 - scored.reward;
            }
        }
        let change = |arms: &mut BTreeMap<String, Evidence>| {
            let discount = if record.again { 1.0 } else { config.discount };
            for arm in arms.values_mut() {
                arm.gained *= discount;
                arm.missed *= discount;
            }
            arms.retain(|_, arm| arm.amount() > LEAST_EVIDENCE);
            for (&name, &(version, gained, missed)) in &sums {
                let arm = arms.entry(name.to_owned()).or_insert(Evidence { version, ..Evidence::default() });
                *arm = arm.of_version(version);
                arm.gained += gained;
                arm.missed += missed;
                let share = (MOST_EVIDENCE / arm.amount()).min(1.0);
                arm.gained *= share;
                arm.missed *= share;
            }
        };
        self.tree.change(&record.context.path(), seq, |_| BTreeMap::new(), change);
        self.tree.keep(config.max_contexts);
    }

    /// Returns what is believed of an operator in a context. The prior is uniform at the root, and below it is worth
    /// `shrinkage` rewards of the parent's mean.
    pub(crate) fn posterior(&self, config: &PolicyConfig, path: &[String], name: &str, version: u32) -> Posterior {
        let mut posterior: Option<Posterior> = None;
        for node in self.tree.along(path) {
            let evidence = node.arms.get(name).map(|arm| arm.of_version(version)).unwrap_or_default();
            let (alpha, beta) = match posterior.map(Posterior::mean) {
                None => (1.0, 1.0),
                Some(mean) => (config.shrinkage * mean, config.shrinkage * (1.0 - mean)),
            };
            posterior = Some(Posterior { alpha: alpha + evidence.gained, beta: beta + evidence.missed });
        }
        // A context of its own that nothing was learnt of yet believes what its parent does, as firmly as a prior may.
        let mut posterior = posterior.unwrap_or(Posterior { alpha: 1.0, beta: 1.0 });
        if self.tree.along(path).count() <= path.len() {
            let mean = posterior.mean();
            posterior = Posterior { alpha: config.shrinkage * mean, beta: config.shrinkage * (1.0 - mean) };
        }
        posterior
    }

    /// Returns what scores are drawn from.
    pub(crate) fn beliefs(&self, config: &PolicyConfig, context: &Context, arms: &Arms<'_>) -> Beliefs {
        let path = context.path();
        let leads = (0..arms.len()).map(|i| arms.lead(i));
        let mut beliefs: Vec<Posterior> = leads.map(|o| self.posterior(config, &path, &o.name, o.version)).collect();
        beliefs.push(self.posterior(config, &path, "", 0));
        Beliefs(beliefs)
    }
}

/// The beliefs about all arms of a request, the no-op's last.
#[derive(Clone, Debug)]
pub(crate) struct Beliefs(pub(crate) Vec<Posterior>);

impl Scores for Beliefs {
    fn sample(&self, random: &mut Random, copies: &[u32], scores: &mut [f64]) {
        for ((score, belief), &copies) in scores.iter_mut().zip(&self.0).zip(copies) {
            let draws = (0..copies.max(1)).map(|_| random.beta(belief.alpha, belief.beta));
            *score = draws.fold(0.0, f64::max);
        }
    }
}
