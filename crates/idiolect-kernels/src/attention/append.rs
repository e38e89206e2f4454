//! Preparing queries and keys, and storing keys and values.

use super::store::{F16, F32, Q8, Store};
use super::{KvShape, KvType, Turn, Write};
use crate::lanes::{LANES, Lanes, Work};

pub(super) struct Append<'a> {
    pub(super) shape: KvShape,
    /// The first byte of the layer's first tile.
    pub(super) block: *mut u8,
    pub(super) turn: &'a Turn<'a>,
    pub(super) write: Write,
    /// The first of the rows that are this task's.
    pub(super) rows: *mut f32,
    pub(super) row_width: usize,
}

impl Work for Append<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller says that the registers are there.
        unsafe {
            match self.shape.kv_type {
                KvType::F32 => self.rows::<L, F32>(),
                KvType::F16 => self.rows::<L, F16>(),
                KvType::Q8 => self.rows::<L, Q8>(),
            }
        }
    }
}

impl Append<'_> {
    /// # Safety
    /// The processor has the registers of `L`.
    #[inline(always)]
    unsafe fn rows<L: Lanes, S: Store>(self) {
        let Self { shape, block, turn, write, rows, row_width } = self;
        let KvShape { kv_heads, head_width, .. } = shape;
        let dims = shape.dims();
        // Heads that do not fill their registers are stored from a copy that zeros follow.
        let mut padded = [const { Vec::new() }; 2];
        if dims.padded != head_width {
            padded = [vec![0.0; dims.padded], vec![0.0; dims.padded]];
        }
        for i in 0..write.n {
            // SAFETY: `append` checked that the rows are inside `qkv` and no other task's.
            let row = unsafe { std::slice::from_raw_parts_mut(rows.add(i * row_width), row_width) };
            if let Some(bias) = turn.bias {
                for (value, bias) in row.iter_mut().zip(bias) {
                    *value += bias;
                }
            }
            let (cosines, sines) = turn.rotation.row(write.row + i);
            let (queries, rest) = row.split_at_mut(turn.heads * head_width);
            let (keys, values) = rest.split_at_mut(kv_heads * head_width);
            for (heads, norm, scale) in [(queries, turn.q_norm, turn.query_scale), (&mut *keys, turn.k_norm, 1.0)] {
                for head in heads.chunks_exact_mut(head_width) {
                    if let Some(norm) = norm {
                        rms_norm_head(head, norm, turn.epsilon);
                    }
                    // SAFETY: the registers are there.
                    unsafe { rotate::<L>(head, cosines, sines, turn.rotation.neighbours, scale) };
                }
            }
            for (head, (key, value)) in keys.chunks_exact(head_width).zip(values.chunks_exact(head_width)).enumerate() {
                let tile = block.wrapping_add(head * 2 * dims.values);
                let (key, value) = if dims.padded == head_width {
                    (key.as_ptr(), value.as_ptr())
                } else {
                    padded[0][..head_width].copy_from_slice(key);
                    padded[1][..head_width].copy_from_slice(value);
                    (padded[0].as_ptr(), padded[1].as_ptr())
                };
                // SAFETY: `append` has the cache for itself and checked that each block is written by one task; the
                // position is inside the block.
                unsafe { S::put::<L>(tile, dims, write.slot + i, key, value) };
            }
        }
    }
}

#[inline(always)]
fn rms_norm_head(head: &mut [f32], weight: &[f32], epsilon: f32) {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = head.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            sums[i] += chunk[i] * chunk[i];
        }
    }
    let sum = sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    #[expect(clippy::cast_precision_loss, reason = "a head has a few hundred elements")]
    let scale = 1.0 / (sum / head.len() as f32 + epsilon).sqrt();
    for (value, weight) in head.iter_mut().zip(weight) {
        *value *= scale * weight;
    }
}

/// Turns one head and scales all of it.
///
/// # Safety
/// The processor has the registers of `L`.
#[inline(always)]
unsafe fn rotate<L: Lanes>(head: &mut [f32], cosines: &[f32], sines: &[f32], neighbours: bool, scale: f32) {
    let width = cosines.len();
    let half = width / 2;
    let (turned, rest) = head.split_at_mut(width);
    if neighbours && width.is_multiple_of(LANES) {
        // SAFETY: the registers are there, and the slices have whole registers of elements.
        unsafe {
            let scale = L::splat(scale);
            for i in (0..width).step_by(LANES) {
                let x = L::load(turned.as_ptr().add(i));
                let (cos, sin) = (L::load(cosines.as_ptr().add(i)), L::load(sines.as_ptr().add(i)));
                x.swap_pairs().mul_add(sin, x.mul(cos)).mul(scale).store(turned.as_mut_ptr().add(i));
            }
        }
    } else if !neighbours && half.is_multiple_of(LANES) {
        // SAFETY: as above.
        unsafe {
            let scale = L::splat(scale);
            for i in (0..half).step_by(LANES) {
                let a = L::load(turned.as_ptr().add(i));
                let b = L::load(turned.as_ptr().add(half + i));
                // Both halves have the same angles; the second has the sines' own sign.
                let (cos, sin) = (L::load(cosines.as_ptr().add(i)), L::load(sines.as_ptr().add(half + i)));
                a.mul(cos).sub(b.mul(sin)).mul(scale).store(turned.as_mut_ptr().add(i));
                a.mul_add(sin, b.mul(cos)).mul(scale).store(turned.as_mut_ptr().add(half + i));
            }
        }
    } else {
        for i in 0..half {
            let (a, b) = if neighbours { (2 * i, 2 * i + 1) } else { (i, half + i) };
            let (cos, sin) = (cosines[b], sines[b]);
            let (x, y) = (turned[a], turned[b]);
            (turned[a], turned[b]) = ((x * cos - y * sin) * scale, (x * sin + y * cos) * scale);
        }
    }
    for value in rest {
        *value *= scale;
    }
}
