//! Attention of a run's rows to its keys and values.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::Outcome;
use super::memory::Pair;
use crate::engine::params::Params;

/// Most scores that are computed at once, of all heads together, where one row has no more. They are there up to four times
/// in 32 bits each, and twice in the type of keys and values: 256 MiB, and 128 or less.
pub(super) const SCORES: usize = 1 << 24;

/// What rows see, by the window of the layer.
pub(super) struct Masks {
    /// Position of the first row; each row is one position further.
    first: usize,
    rows: usize,
    most: usize,
    device: Device,
    /// Of the windows that hide anything; `None` for a mask that is too large to be kept from layer to layer.
    made: Vec<(Option<usize>, Option<Tensor>)>,
}

impl Masks {
    /// Makes what to add to scores so that each row sees what it may: the positions up to its own, of those no more than
    /// the layer's window. No more than `most` numbers of each are kept.
    pub(super) fn new(params: &Params, first: usize, rows: usize, most: usize, device: &Device) -> Outcome<Self> {
        let mut masks = Self { first, rows, most, device: device.clone(), made: Vec::new() };
        let seen = first + rows;
        for layer in &params.layers {
            let narrow = layer.window.is_some_and(|window| window < seen);
            if masks.made.iter().any(|(of, _)| *of == layer.window) || (rows == 1 && !narrow) {
                continue;
            }
            let mask = (rows * seen <= most).then(|| masks.make(layer.window, 0, rows)).transpose()?;
            masks.made.push((layer.window, mask));
        }
        Ok(masks)
    }

    /// Makes the mask of some rows.
    fn make(&self, window: Option<usize>, from: usize, rows: usize) -> Outcome<Tensor> {
        let (first, seen) = (self.first + from, self.first + self.rows);
        #[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
        let positions = |from: usize, to: usize| Tensor::arange(from as f32, to as f32, &self.device);
        let own = positions(first, first + rows)?.reshape((rows, 1))?;
        let ahead = positions(0, seen)?.reshape((1, seen))?.broadcast_sub(&own)?;
        let mut hidden = ahead.gt(0f32)?;
        if let Some(window) = window {
            #[expect(clippy::cast_precision_loss, reason = "windows are below 2^24")]
            let far = ahead.le(-(window as f32))?;
            hidden = hidden.maximum(&far)?;
        }
        let never = Tensor::full(f32::NEG_INFINITY, (rows, seen), &self.device)?;
        let mask = hidden.where_cond(&never, &never.zeros_like()?)?;
        mask.reshape((1, rows, 1, seen))
    }

    /// Returns the mask of some rows in layers with a window, `[1, row, 1, position]`; `None` where all is seen. One row serves
    /// for any number of rows that are at the same position.
    fn of(&self, window: Option<usize>, from: usize, rows: usize) -> Outcome<Option<Tensor>> {
        let Some((_, whole)) = self.made.iter().find(|(of, _)| *of == window) else { return Ok(None) };
        let (from, rows) = if self.rows == 1 { (0, 1) } else { (from, rows) };
        match whole {
            Some(mask) => mask.narrow(1, from, rows).map(Some),
            None => self.make(window, from, rows).map(Some),
        }
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
        let most = (self.masks.most / (params.heads * seen)).max(1);
        let before = self.masks.rows.saturating_sub(rows);
        if rows <= most {
            return self.attend_some(params, queries, self.own.clone(), before);
        }
        let mut parts = Vec::new();
        for first in (0..rows).step_by(most) {
            let n = most.min(rows - first);
            let own = self.own.as_ref().map(|own| own.of(first, n)).transpose()?;
            parts.push(self.attend_some(params, &queries.narrow(0, first, n)?, own, before + first)?);
        }
        Tensor::cat(&parts, 0)
    }

    /// As [`attend`](Self::attend), of rows after some others, with what they have for themselves.
    fn attend_some(&self, params: &Params, queries: &Tensor, own: Option<Pair>, before: usize) -> Outcome<Tensor> {
        let (kv_heads, group, width) = (params.kv_heads, params.heads / params.kv_heads, params.head_width);
        let (rows, seen) = (queries.dim(0)?, self.len()?);
        let dtype = self.shared.first().or(own.as_ref()).map_or(DType::F32, Pair::dtype);
        // All query heads that share a key head are rows of one product.
        let q = queries.reshape((rows, kv_heads, group, width))?.transpose(0, 1)?.to_dtype(dtype)?.contiguous()?;
        let flat = q.reshape((kv_heads, rows * group, width))?;
        let mut parts = Vec::with_capacity(self.shared.len() + 1);
        for pair in &self.shared {
            parts.push(flat.matmul(&pair.keys.t()?)?.reshape((kv_heads, rows, group, pair.len()?))?);
        }
        if let Some(own) = &own {
            parts.push(q.matmul(&own.keys.t()?)?);
        }
        let mut scores = Tensor::cat(&parts, D::Minus1)?.to_dtype(DType::F32)?;
        drop(parts);
        if let Some(cap) = params.attention_softcap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        if let Some(mask) = self.masks.of(self.window, before, rows)? {
            scores = scores.broadcast_add(&mask)?;
        }
        let weights = softmax_last_dim(&scores)?.to_dtype(dtype)?;
        drop(scores);

        let (mut at, mut sum) = (0, None);
        for pair in self.shared.iter().chain(&own) {
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
