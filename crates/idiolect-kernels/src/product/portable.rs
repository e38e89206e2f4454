//! Products in plain Rust: the meaning of all others, which compute the same bits.

use super::Work;
use crate::activations::{GROUP, Group};
use crate::format::{BLOCK, Format};
use crate::tile::{Block, Kind, Layout, ROWS, kind};

/// Does the work.
pub(super) fn run(work: &Work<'_>) {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("fma") {
        #[expect(unsafe_code, reason = "an instruction that needs detection")]
        // SAFETY: the processor has fma.
        unsafe {
            run_fused(work);
        };
        return;
    }
    run_with::<{ cfg!(target_arch = "aarch64") }>(work);
}

/// The same code with multiplications and additions fused in one instruction.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma")]
fn run_fused(work: &Work<'_>) {
    run_with::<true>(work);
}

/// Multiplies and adds: rounding once where that is one instruction, and twice where it would be a slow function.
#[expect(clippy::inline_always, reason = "it must become part of the caller, which may fuse")]
#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[expect(clippy::inline_always, reason = "it must become part of the caller, which may fuse")]
#[inline(always)]
fn run_with<const FUSED: bool>(work: &Work<'_>) {
    let layout = work.section.layout;
    for tile in work.tiles.clone() {
        let bytes = work.tile(tile);
        for (index, group) in work.groups.iter().enumerate() {
            let sums = if layout.format.is_quantised() {
                quantised::<FUSED>(layout, bytes, group)
            } else {
                floats::<FUSED>(layout, bytes, group)
            };
            for (row, sums) in sums.iter().enumerate().take(group.rows) {
                work.store(tile, index, row, sums);
            }
        }
    }
}

#[expect(clippy::inline_always, reason = "it must become part of the caller, which may fuse")]
#[inline(always)]
fn quantised<const FUSED: bool>(layout: Layout, tile: &[u8], group: &Group) -> [[f32; ROWS]; GROUP] {
    let mut sums = [[0.0; ROWS]; GROUP];
    let mut block = Block::default();
    let kind = kind(layout.format);
    let again = group.again.iter().map(|block| *block as usize);
    for (index, from) in (0..layout.blocks()).chain(again).enumerate() {
        layout.unpack(tile, from, &mut block);
        for (row, sums) in sums.iter_mut().enumerate().take(group.rows) {
            let at = index * group.rows + row;
            let activations = &group.quants[at * BLOCK..][..BLOCK];
            let (scale, sum) = (group.scales[at], group.sums[at]);
            let start = start(layout.format, group, at);
            let mut dots = [[start[0]; ROWS], [start[1]; ROWS]];
            for (g, (weights, four)) in block.quants.chunks_exact(4 * ROWS).zip(activations.chunks_exact(4)).enumerate()
            {
                let dots = &mut dots[usize::from(kind == Kind::Halves && g >= 4)];
                for (dot, weights) in dots.iter_mut().zip(weights.as_chunks::<4>().0) {
                    for (weight, activation) in weights.iter().zip(four) {
                        *dot += i32::from(*weight) * i32::from(*activation);
                    }
                }
            }
            for (i, total) in sums.iter_mut().enumerate() {
                #[expect(clippy::cast_precision_loss, reason = "below 2^24")]
                let [first, second] = [dots[0][i] as f32, dots[1][i] as f32];
                let scaled = first * block.scales[i];
                *total = match kind {
                    Kind::Offset => multiply_add::<FUSED>(scaled, scale, *total),
                    Kind::Minimum => {
                        let total = multiply_add::<FUSED>(scaled, scale, *total);
                        multiply_add::<FUSED>(block.seconds[i], sum, total)
                    }
                    Kind::Halves => {
                        let scaled = multiply_add::<FUSED>(second, block.seconds[i], scaled);
                        multiply_add::<FUSED>(scaled, scale, *total)
                    }
                };
            }
        }
    }
    sums
}

/// Returns what the dot products of a block begin at.
fn start(format: Format, group: &Group, at: usize) -> [i32; 2] {
    match format {
        Format::Q4_0 => [group.starts[0][at], 0],
        Format::Q5_0 => [group.starts[1][at], 0],
        Format::Q8_0 => [group.starts[2][at], 0],
        Format::Q6K => group.halves[at],
        _ => [0; 2],
    }
}

#[expect(clippy::inline_always, reason = "it must become part of the caller, which may fuse")]
#[inline(always)]
fn floats<const FUSED: bool>(layout: Layout, tile: &[u8], group: &Group) -> [[f32; ROWS]; GROUP] {
    let mut sums = [[0.0; ROWS]; GROUP];
    for col in 0..layout.cols {
        let weights = layout.column(tile, col);
        for (row, sums) in sums.iter_mut().enumerate().take(group.rows) {
            let activation = group.floats[(col / BLOCK * group.rows + row) * BLOCK + col % BLOCK];
            for (total, weight) in sums.iter_mut().zip(weights) {
                *total = multiply_add::<FUSED>(weight, activation, *total);
            }
        }
    }
    sums
}
