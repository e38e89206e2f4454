//! What a reply is worth, in a figure and in words.

use std::collections::BTreeMap;

use idiolect_backend::Embedding;
use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::{FlagKind, guard};

/// When two replies are too much alike: what is known of a validator's gate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// A reply passes beside another that lies farther than this, 1 - |cos|.
    pub distance: f32,
}

impl Default for Gate {
    /// That of text-prompting 2.1: (4 - ln 4) / 40.
    fn default() -> Self {
        Self { distance: 0.065_343 }
    }
}

impl Gate {
    /// Says whether a reply passes beside another.
    #[must_use]
    pub fn passes(self, a: &Embedding, b: &Embedding) -> bool {
        distance(a, b) > self.distance
    }
}

/// Returns 1 - |cos| of two embeddings of unit length; 1 where they have different lengths.
pub(super) fn distance(a: &Embedding, b: &Embedding) -> f32 {
    if a.len() != b.len() {
        return 1.0;
    }
    1.0 - a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>().abs()
}

/// What log-probabilities of plain replies to a task's prompts are like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usual {
    mean: f64,
    deviation: f64,
}

/// Least deviation of log-probabilities: few prompts may have nearly the same.
const LEAST_DEVIATION: f64 = 0.1;

impl Usual {
    pub(super) fn of(logprobs: &[f64]) -> Self {
        let n = logprobs.len().max(1) as f64;
        let mean = logprobs.iter().sum::<f64>() / n;
        let variance = logprobs.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
        Self { mean, deviation: variance.sqrt().max(LEAST_DEVIATION) }
    }

    /// Returns where a log-probability stands among those of plain replies, as validators normalise: Φ((x - mean) / deviation).
    fn quality(self, logprob: Option<f64>) -> f64 {
        let Some(logprob) = logprob.filter(|logprob| logprob.is_finite()) else { return 0.5 };
        0.5 * libm::erfc(-(logprob - self.mean) / self.deviation * std::f64::consts::FRAC_1_SQRT_2)
    }
}

/// Returns what a reply is worth by itself: quality × (1 - penalties), and nothing where it is irrelevant.
pub(super) fn worth(outcome: &Outcome, usual: Usual) -> f64 {
    if !outcome.relevant {
        return 0.0;
    }
    usual.quality(outcome.logprob) * (1.0 - f64::from(guard::penalty(&outcome.flags)))
}

/// Returns the chance to pass beside the rival's reply and one of the others, drawn evenly: nothing where the rival's is too near, else
/// the share of the others that are not.
pub(super) fn pass<'a>(
    gate: Gate,
    own: &Embedding,
    rival: &Embedding,
    others: impl Iterator<Item = &'a Embedding>,
) -> f64 {
    if !gate.passes(own, rival) {
        return 0.0;
    }
    let (mut n, mut passed) = (0_u32, 0_u32);
    for other in others {
        n += 1;
        passed += u32::from(gate.passes(own, other));
    }
    if n == 0 { 1.0 } else { f64::from(passed) / f64::from(n) }
}

/// Says in words what became of replies, each with the plain reply that the rival gives.
#[must_use]
pub fn feedback(gate: Gate, replies: &[(&Outcome, &Outcome)]) -> String {
    let n = replies.len();
    let mut said = Vec::new();
    let near: Vec<f32> = replies
        .iter()
        .map(|(own, rival)| distance(&own.embedding, &rival.embedding))
        .filter(|d| *d <= gate.distance)
        .collect();
    if !near.is_empty() {
        let least = near.iter().copied().fold(f32::INFINITY, f32::min);
        said.push(format!(
            "{} of {n} replies were too near to the plain reply (least distance {least:.3})",
            near.len()
        ));
    }
    for (sign, word) in [(1.0, "over"), (-1.0, "under")] {
        let errors: Vec<f64> =
            replies.iter().filter_map(|(own, _)| Some(own.length_error? * sign)).filter(|error| *error > 0.1).collect();
        if !errors.is_empty() {
            let mean = 100.0 * errors.iter().sum::<f64>() / errors.len() as f64;
            said.push(format!("in {} of {n} replies the length was {mean:.0} % {word}", errors.len()));
        }
    }
    let irrelevant = replies.iter().filter(|(own, _)| !own.relevant).count();
    if irrelevant > 0 {
        said.push(format!("{irrelevant} of {n} replies left the subject"));
    }
    let mut flags: BTreeMap<(FlagKind, &str), usize> = BTreeMap::new();
    for flag in replies.iter().flat_map(|(own, _)| &own.flags) {
        *flags.entry((flag.kind, flag.rule.as_str())).or_default() += 1;
    }
    for ((kind, rule), count) in flags {
        said.push(format!("{count} of {n} replies lost to {} ({rule})", kind.as_str().replace('_', " ")));
    }
    if said.is_empty() { "nothing was wrong with the replies".to_owned() } else { said.join("; ") }
}
