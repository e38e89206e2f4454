//! Exponential weights for rewards that others work against.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::arms::Arms;
use super::context::Context;
use super::record::Record;
use super::tree::{Known, Tree};
use super::{PolicyConfig, exact};

/// An arm's weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Weight {
    version: u32,
    /// The logarithm, 0 for the heaviest.
    #[serde(with = "exact")]
    log: f64,
}

/// No arm is lighter, so that each can come back.
const LIGHTEST: f64 = -50.0;

impl Weight {
    /// Returns the logarithm for a version: that of another version is half as far from the heaviest.
    fn of_version(self, version: u32) -> f64 {
        if self.version == version { self.log } else { 0.5 * self.log }
    }
}

impl Known for Weight {
    fn amount(&self) -> f64 {
        self.log
    }

    fn check(&self) -> Result<(), String> {
        if (LIGHTEST..=0.0).contains(&self.log) {
            Ok(())
        } else {
            Err(format!("log is {}, expected {LIGHTEST} to 0", self.log))
        }
    }
}

/// EXP3.S (Auer et al. 2002), for several draws at once as EXP3.M. A context that is new begins with its parent's weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Exp3 {
    pub(crate) tree: Tree<Weight>,
}

impl Exp3 {
    pub(crate) fn update(&mut self, config: &PolicyConfig, seq: u64, record: &Record) {
        let change = |arms: &mut BTreeMap<String, Weight>| {
            let begin = mean_log(arms.values().map(|arm| arm.log), arms.len());
            let n_drawn = record.scored.iter().filter(|scored| !scored.operators.is_empty()).count().max(1) as f64;
            for scored in &record.scored {
                let n_arms = f64::from(scored.n_arms.max(1)) + 1.0;
                // A step of 1 is the largest that a draw with mixing can make.
                let step = (config.mixing * n_drawn * scored.reward / (scored.propensity * n_arms)).min(1.0);
                for (name, version) in scored.names() {
                    let arm = arms.entry(name.to_owned()).or_insert(Weight { version, log: begin });
                    *arm = Weight { version, log: arm.of_version(version) + step };
                }
            }
            // Every arm gets a share of all, so that none is so far behind that it cannot catch up.
            let heaviest = arms.values().map(|arm| arm.log).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = arms.values().map(|arm| libm::exp(arm.log - heaviest)).sum();
            let share = std::f64::consts::E * config.share * sum / arms.len().max(1) as f64;
            let share = if record.again { 0.0 } else { share };
            for arm in arms.values_mut() {
                arm.log = libm::log(libm::exp(arm.log - heaviest) + share);
            }
            let heaviest = arms.values().map(|arm| arm.log).fold(f64::NEG_INFINITY, f64::max);
            for arm in arms.values_mut() {
                arm.log = (arm.log - heaviest).clamp(LIGHTEST, 0.0);
            }
        };
        self.tree.change(&record.context.path(), seq, Clone::clone, change);
        self.tree.keep(config.max_contexts);
    }

    /// Returns the chances of one draw, which sum to 1. What is not known weighs as much as the mean of what is.
    pub(crate) fn chances<'a>(
        &self,
        config: &PolicyConfig,
        context: &Context,
        names: impl Iterator<Item = (&'a str, u32)>,
    ) -> Vec<f64> {
        let path = context.path();
        let arms = self.tree.along(&path).last().map(|node| &node.arms);
        let logs: Vec<Option<f64>> = names.map(|(name, version)| Some(arms?.get(name)?.of_version(version))).collect();
        let known = || logs.iter().flatten().copied();
        let mean = mean_log(known(), known().count());
        let weights: Vec<f64> = logs.iter().map(|log| libm::exp(log.unwrap_or(mean))).collect();
        let (sum, n): (f64, f64) = (weights.iter().sum(), weights.len() as f64);
        weights.iter().map(|weight| (1.0 - config.mixing) * weight / sum + config.mixing / n).collect()
    }

    /// Returns what the arms and the no-op are drawn in proportion to: their chances, times their weights.
    pub(crate) fn arm_chances(&self, config: &PolicyConfig, context: &Context, arms: &Arms<'_>) -> Vec<f64> {
        let leads = (0..arms.len()).map(|i| (arms.lead(i).name.as_str(), arms.lead(i).version));
        let mut chances = self.chances(config, context, leads.chain([("", 0)]));
        for (i, chance) in chances.iter_mut().take(arms.len()).enumerate() {
            *chance *= arms.weight(i);
        }
        chances
    }
}

/// Returns the logarithm of the mean weight, 0 of none.
fn mean_log(logs: impl Iterator<Item = f64>, n: usize) -> f64 {
    if n == 0 { 0.0 } else { libm::log(logs.map(libm::exp).sum::<f64>() / n as f64) }
}
