//! Attention of a run's rows to its keys and values.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::Outcome;
use super::memory::Pair;
use crate::engine::params::Params;

/// Most scores that are computed at once: what they take is bounded, however long a stretch and its context are.
const SCORES: usize = 1 << 25;

/// What rows see, by the window of the layer.
#[derive(Default)]
pub(super) struct Masks(Vec<(Option<usize>, Tensor)>);

impl Masks {
    /// Makes what to add to scores so that each row sees what it may: the positions up to its own, of those no more than
    /// the layer's window. `first` is the first row's position; each row is one position further.
    pub(super) fn new(params: &Params, first: usize, rows: usize, device: &Device) -> Outcome<Self> {
        let mut masks = Self::default();
        let seen = first + rows;
        for layer in &params.layers {
            let narrow = layer.window.is_some_and(|window| window < seen);
            if masks.of(layer.window).is_some() || (rows == 1 && !narrow) {
                continue;
            }
            #[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
            let positions = |from: usize, to: usize| Tensor::arange(from as f32, to as f32, device);
            let own = positions(first, seen)?.reshape((rows, 1))?;
            let ahead = positions(0, seen)?.reshape((1, seen))?.broadcast_sub(&own)?;
            let mut hidden = ahead.gt(0f32)?;
            if let Some(window) = layer.window {
                #[expect(clippy::cast_precision_loss, reason = "windows are below 2^24")]
                let far = ahead.le(-(window as f32))?;
                hidden = hidden.maximum(&far)?;
            }
            let never = Tensor::full(f32::NEG_INFINITY, (rows, seen), device)?;
            let mask = hidden.where_cond(&never, &never.zeros_like()?)?;
            masks.0.push((layer.window, mask.reshape((1, rows, 1, seen))?));
        }
        Ok(masks)
    }

    /// Returns the mask of a window, `[1, row, 1, position]`; `None` where all is seen.
    fn of(&self, window: Option<usize>) -> Option<&Tensor> {
        self.0.iter().find(|(of, _)| *of == window).map(|(_, mask)| mask)
    }
}

/// What rows attend to in one layer.
pub(super) struct Sight<'a> {
    /// What all rows share, in order: keys and values `[key head, position, element]`.
    pub(super) shared: Vec<Pair>,
    /// What each row has for itself after that: `[key head, row, position, element]`.
    pub(super) own: Option<Pair>,
    pub(super) masks: &'a Masks,
    pub(super) window: Option<usize>,
}

impl Sight<'_> {
    fn len(&self) -> Outcome<usize> {
        self.shared.iter().chain(&self.own).map(Pair::len).sum()
    }

    /// Returns what `n` queries, `[row, head, element]`, take from values: `[row, head x element]`. They are those of the
    /// last rows for which the masks were made.
    pub(super) fn attend(&self, params: &Params, queries: &Tensor) -> Outcome<Tensor> {
        let (rows, seen) = (queries.dim(0)?, self.len()?);
        let most = (SCORES / (params.heads * seen)).max(1);
        if rows <= most || self.own.is_some() {
            return self.attend_some(params, queries, 0);
        }
        let mut parts = Vec::new();
        for first in (0..rows).step_by(most) {
            let n = most.min(rows - first);
            parts.push(self.attend_some(params, &queries.narrow(0, first, n)?, rows - first - n)?);
        }
        Tensor::cat(&parts, 0)
    }

    /// As [`attend`](Self::attend), of rows that `after` others follow.
    fn attend_some(&self, params: &Params, queries: &Tensor, after: usize) -> Outcome<Tensor> {
        let (kv_heads, group, width) = (params.kv_heads, params.heads / params.kv_heads, params.head_width);
        let (rows, seen) = (queries.dim(0)?, self.len()?);
        let dtype = self.shared.first().or(self.own.as_ref()).map_or(DType::F32, Pair::dtype);
        // All query heads that share a key head are rows of one product.
        let q = queries.reshape((rows, kv_heads, group, width))?.transpose(0, 1)?.to_dtype(dtype)?.contiguous()?;
        let flat = q.reshape((kv_heads, rows * group, width))?;
        let mut scores = Vec::with_capacity(self.shared.len() + 1);
        for pair in &self.shared {
            scores.push(flat.matmul(&pair.keys.t()?)?.reshape((kv_heads, rows, group, pair.len()?))?);
        }
        if let Some(own) = &self.own {
            scores.push(q.matmul(&own.keys.t()?)?);
        }
        let mut scores = Tensor::cat(&scores, D::Minus1)?.to_dtype(DType::F32)?;
        if let Some(cap) = params.attention_softcap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        if let Some(mask) = self.masks.of(self.window) {
            // One row of a mask may serve for many rows that are at the same position.
            let of = mask.dim(1)?;
            let mask = if of > rows { mask.narrow(1, of - rows - after, rows)? } else { mask.clone() };
            scores = scores.broadcast_add(&mask)?;
        }
        let weights = softmax_last_dim(&scores)?.to_dtype(dtype)?;
        drop(scores);

        let (mut at, mut sum) = (0, None);
        for pair in self.shared.iter().chain(&self.own) {
            let len = pair.len()?;
            let of = if len == seen { weights.clone() } else { weights.narrow(D::Minus1, at, len)?.contiguous()? };
            let part = if pair.keys.rank() == 3 {
                of.reshape((kv_heads, rows * group, len))?
                    .matmul(&pair.values)?
                    .reshape((kv_heads, rows, group, width))?
            } else {
                of.matmul(&pair.values)?
            };
            sum = Some(match sum {
                Some(sum) => (sum + part)?,
                None => part,
            });
            at += len;
        }
        let sum = sum.ok_or_else(|| candle_core::Error::msg("there is nothing to attend to"))?;
        sum.transpose(0, 1)?.to_dtype(DType::F32)?.contiguous()?.reshape((rows, params.q_width()))
    }
}
