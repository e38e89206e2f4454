//! Layer normalisation.

#![expect(unsafe_code, reason = "tasks write to different rows of one matrix")]
#![expect(clippy::inline_always, reason = "what is not inlined is not compiled for the wider instructions")]

use super::lanes::{Lanes, Width, Work, dispatch};
use super::rows::{Rows, Target};
use crate::Team;

/// Rows of a task: enough that handing it over does not show.
const ROWS: usize = 64;

/// Layer normalisation: each row is brought to mean 0 and variance 1, then scaled and shifted.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
    width: Width,
}

impl LayerNorm {
    /// Makes the layer from its weights.
    ///
    /// # Panics
    /// When there are not as many biases as weights.
    #[must_use]
    pub fn new(weight: Vec<f32>, bias: Vec<f32>, epsilon: f32) -> Self {
        Self::new_for(Width::detect(), weight, bias, epsilon)
    }

    pub(super) fn new_for(width: Width, weight: Vec<f32>, bias: Vec<f32>, epsilon: f32) -> Self {
        assert_eq!(weight.len(), bias.len(), "weights and biases");
        Self { weight, bias, epsilon, width }
    }

    /// Normalises every row in place.
    ///
    /// # Panics
    /// When rows are of another width.
    pub fn apply(&self, team: &Team, rows: &mut Rows) {
        assert_eq!(rows.width(), self.weight.len(), "width of the rows");
        let (n, stride, target) = (rows.n(), rows.stride(), rows.target());
        team.run(n.div_ceil(ROWS), &|task| {
            let first = task * ROWS;
            let work = Normalise { layer: self, rows: target, stride, first, end: n.min(first + ROWS) };
            // SAFETY: the width was detected (or is lesser). The rows are there, and each belongs to one task.
            unsafe { dispatch(self.width, work) };
        });
    }
}

struct Normalise<'a> {
    layer: &'a LayerNorm,
    rows: Target,
    stride: usize,
    first: usize,
    end: usize,
}

impl Work for Normalise<'_> {
    /// # Safety
    /// The rows from `first` to `end` must be there, and nobody else may use them meanwhile.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let LayerNorm { weight, bias, epsilon, .. } = self.layer;
        let n = weight.len();
        #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
        let count = n as f32;
        let whole = n / V::LANES * V::LANES;
        for row in self.first..self.end {
            // SAFETY: the caller's promise; nobody else has the row.
            let values = unsafe { std::slice::from_raw_parts_mut(self.rows.at(row * self.stride), n) };
            let at = values.as_mut_ptr();
            // SAFETY: whole vectors below `whole` are inside the row, and inside weight and bias, which are as long.
            unsafe {
                let mut sum = V::splat(0.0);
                for i in (0..whole).step_by(V::LANES) {
                    sum = sum.add(V::load(at.add(i)));
                }
                let mean = (sum.sum() + values[whole..].iter().sum::<f32>()) / count;
                let means = V::splat(mean);
                let mut squares = V::splat(0.0);
                for i in (0..whole).step_by(V::LANES) {
                    let value = V::load(at.add(i)).sub(means);
                    squares = value.mul_add(value, squares);
                }
                let rest: f32 = values[whole..].iter().map(|value| (value - mean) * (value - mean)).sum();
                let scale = 1.0 / ((squares.sum() + rest) / count + epsilon).sqrt();
                let scales = V::splat(scale);
                for i in (0..whole).step_by(V::LANES) {
                    let value = V::load(at.add(i)).sub(means).mul(scales);
                    let shifted = value.mul_add(V::load(weight.as_ptr().add(i)), V::load(bias.as_ptr().add(i)));
                    shifted.store(at.add(i));
                }
                for i in whole..n {
                    values[i] = (values[i] - mean) * scale * weight[i] + bias[i];
                }
            }
        }
    }
}
