//! One pass over the layers, and what comes of it.

use candle_core::Tensor;

use super::attention::Masks;
use super::batch::{self, Batch, Group};
use super::model::{Heads, States};
use super::run::Run;
use super::{EngineError, Tensors};

/// What a pass gives.
pub(super) struct Outcome {
    /// For each row a number that shows whether the row is one.
    sums: Vec<f32>,
    /// Of the rows that went through the last layer.
    logits: Vec<f32>,
    last_sums: Vec<f32>,
}

impl Tensors {
    /// Computes a batch.
    pub(super) fn compute(&self, batch: &Batch) -> Result<Outcome, EngineError> {
        let Self { model, memory, runs, .. } = self;
        let params = &model.params;
        let groups: Vec<(&Group, &Run, Masks)> = batch
            .groups
            .iter()
            .map(|group| {
                let run = batch::run(runs, group.place)?;
                let rows = if group.seqs.is_some() { 1 } else { group.n };
                let masks = Masks::new(params, run.position(), rows, self.most_scores, &model.device)?;
                Ok((group, run, masks))
            })
            .collect::<Result<_, EngineError>>()?;
        let attend = |layer: usize, heads: &Heads| {
            let is_last = layer + 1 == params.layers.len();
            let mut parts = Vec::with_capacity(groups.len());
            for (group, run, masks) in &groups {
                let attend = || {
                    let heads = heads.narrow(group.first, group.n)?;
                    let sight = run.store(memory, params, layer, &heads, masks)?;
                    let n = if is_last { group.last } else { group.n };
                    let part = |n: usize| sight.attend(params, &heads.q.narrow(0, group.n - n, n)?);
                    Ok((n > 0).then(|| part(n)).transpose()?)
                };
                // What a run stores here it stores again where the step is taken once more.
                let outcome: Result<_, EngineError> = attend();
                parts.extend(outcome.map_err(|error| error.of(run.any_seq()))?);
            }
            Ok(if parts.is_empty() { None } else { Some(Tensor::cat(&parts, 0)?) })
        };
        let States { sums, last } = model.forward(&batch.tokens, &batch.positions, &batch.last, attend)?;
        let (logits, last_sums) = match &last {
            Some(hidden) => model.project(hidden)?,
            None => (Vec::new(), Vec::new()),
        };
        // This also waits until the device is done.
        Ok(Outcome { sums: sums.to_vec1()?, logits, last_sums })
    }

    /// Takes note of what a batch gave.
    pub(super) fn advance(&mut self, batch: &Batch, outcome: &Outcome) {
        let Outcome { sums, logits, last_sums } = outcome;
        let vocabulary = self.model.params.vocabulary;
        // Whether the rows that went through the last layer are sound.
        let mut sound: Vec<bool> = last_sums.iter().map(|sum| sum.is_finite()).collect();
        let mut at = 0;
        for group in &batch.groups {
            let Some(run) = &mut self.runs[group.place] else { continue };
            let rows = &sums[group.first..group.first + group.n];
            if group.seqs.is_some() {
                run.stepped();
                for (sound, sum) in sound[at..at + group.last].iter_mut().zip(rows) {
                    *sound &= sum.is_finite() && !run.spoiled;
                }
            } else {
                run.computed += group.n;
                run.spoiled |= !rows.iter().all(|sum| sum.is_finite());
                sound[at..at + group.last].iter_mut().for_each(|sound| *sound &= !run.spoiled);
            }
            at += group.last;
        }
        self.logits.reserve(batch.wanted.len() * vocabulary);
        for row in &batch.wanted {
            if sound[*row] {
                self.logits.extend_from_slice(&logits[row * vocabulary..(row + 1) * vocabulary]);
            } else {
                self.logits.resize(self.logits.len() + vocabulary, f32::NAN);
            }
        }
    }
}
