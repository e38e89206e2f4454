//! Rotary position embeddings from tables on the device.

use candle_core::{D, Device, Tensor};
use candle_nn::rotary_emb::{rope, rope_i};

use super::Outcome;
use crate::engine::params::{Pairs, Params};

/// Cosines and sines of every position of the context, for each of a model's rotations.
pub(super) struct Rotations {
    tables: Vec<Rotation>,
    pairs: Pairs,
}

/// Cosines and sines of some rows, `[row, 1, pair]`.
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotations {
    /// Computes the tables.
    pub(super) fn new(params: &Params, device: &Device) -> Outcome<Self> {
        let table = |rope: &crate::engine::rope::Rope| {
            let shape = (params.context, 1, rope.frequencies.len());
            let (mut cos, mut sin) = (Vec::new(), Vec::new());
            for position in 0..params.context {
                for (s, c) in rope.rotation(position) {
                    sin.push(s);
                    cos.push(c);
                }
            }
            Ok(Rotation { cos: Tensor::from_vec(cos, shape, device)?, sin: Tensor::from_vec(sin, shape, device)? })
        };
        Ok(Self { tables: params.ropes.iter().map(table).collect::<Outcome<_>>()?, pairs: params.pairs })
    }

    /// Returns those of some positions, for each rotation.
    pub(super) fn of(&self, positions: &Tensor) -> Outcome<Vec<Rotation>> {
        let select = |table: &Rotation| {
            let (cos, sin) = (table.cos.index_select(positions, 0)?, table.sin.index_select(positions, 0)?);
            Ok(Rotation { cos, sin })
        };
        self.tables.iter().map(select).collect()
    }

    /// Turns heads, `[row, head, element]`.
    pub(super) fn turn(&self, heads: &Tensor, by: &Rotation) -> Outcome<Tensor> {
        let turn = match self.pairs {
            Pairs::Neighbours => rope_i,
            Pairs::Halves => rope,
        };
        // Each row is a batch of one position, so that nothing has to change places.
        let heads = heads.unsqueeze(2)?;
        let (width, rotated) = (heads.dim(D::Minus1)?, 2 * by.cos.dim(D::Minus1)?);
        let turned = if rotated == width {
            turn(&heads.contiguous()?, &by.cos, &by.sin)?
        } else {
            let turned = turn(&heads.narrow(D::Minus1, 0, rotated)?.contiguous()?, &by.cos, &by.sin)?;
            let rest = heads.narrow(D::Minus1, rotated, width - rotated)?.contiguous()?;
            Tensor::cat(&[&turned, &rest], D::Minus1)?
        };
        turned.squeeze(2)
    }
}
