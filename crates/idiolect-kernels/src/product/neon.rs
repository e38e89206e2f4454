//! Products with the byte dot product of `AArch64`: four weight rows side by side in a register.
//!
//! What `avx512.rs` does with a tile, this does with halves of it, or with whole tiles where there are few activation
//! rows.

#![expect(unsafe_code, reason = "SIMD kernels: vector loads through pointers and instructions that need detection")]

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, vandq_u8, vcvt_f32_f16, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s8,
    vdupq_n_s32, vdupq_n_u8, veorq_u8, vfmaq_f32, vfmaq_n_f32, vld1_u16, vld1q_f32, vld1q_s8, vld1q_u8, vmovl_u16,
    vmulq_f32, vnegq_f32, vorrq_u8, vreinterpret_f16_u16, vreinterpretq_f32_u32, vreinterpretq_s8_u8, vshlq_n_u32,
    vshlq_u8, vshrq_n_u8, vst1q_f32, vst1q_u8,
};
use std::arch::asm;
use std::marker::PhantomData;

use super::simd::{
    AHEAD, Floats, MEMORY_LINES, Quantised, Rows, Unpacked, fetch, float_kernels, for_format, k_quantised, quantised,
    readers, with_memory,
};
use super::{Work, visited};
use crate::format::{BLOCK, Format, SUPER, scale_and_min};
use crate::tile::{Kind, LINE, ROWS, kind, quant_bytes, unit_blocks, unit_bytes};

readers!("neon", bytes: uint8x16_t, numbers: float32x4_t, rows: ROWS / 4);
float_kernels!("neon", numbers: float32x4_t, rows at once: 1 2 3 4);

/// Groups from which on it pays to unpack a tile to memory, where that is much work.
const UNPACK_FROM: usize = 2;

/// Rows that are multiplied at once.
const ROWS_AT_ONCE: usize = 4;

/// Adds the products of four bytes each to four integers; all take the same four of the right-hand side's bytes.
macro_rules! dot_product {
    ($sum:expr, $weights:expr, $activations:expr, $lane:literal) => {{
        let mut sum: int32x4_t = $sum;
        let (weights, activations): (int8x16_t, int8x16_t) = ($weights, $activations);
        // Its intrinsic is not stable yet. It has no effect but on `sum`, and users are compiled for processors with it.
        asm!(
            concat!("sdot {sum:v}.4s, {weights:v}.16b, {activations:v}.4b[", $lane, "]"),
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            activations = in(vreg) activations,
            options(pure, nomem, nostack, preserves_flags),
        );
        sum
    }};
}

/// Does the work.
pub(super) fn run(work: &Work<'_>) {
    work.check();
    // SAFETY: a matrix of this tier is only made where the processor has its instructions; `Work::check`,
    // `Work::tile` and `Work::output` are the bounds that the kernels rely on.
    unsafe { for_format!(work, floats, quantised) }
}

/// Splits bytes into their lower and upper halves.
#[target_feature(enable = "neon")]
#[inline]
fn nibbles(bytes: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
    (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes))
}

/// Shifts to the left, or to the right where `by` is negative, and keeps the bits of `mask`.
#[target_feature(enable = "neon")]
#[inline]
fn bits(bytes: uint8x16_t, by: i32, mask: u8) -> uint8x16_t {
    vandq_u8(vshlq_u8(bytes, vdupq_n_s8(by as i8)), vdupq_n_u8(mask))
}

#[target_feature(enable = "neon")]
#[inline]
fn or(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
    vorrq_u8(a, b)
}

#[target_feature(enable = "neon")]
#[inline]
fn zero() -> float32x4_t {
    vdupq_n_f32(0.0)
}

#[target_feature(enable = "neon")]
#[inline]
fn multiply_add(weights: float32x4_t, value: f32, sum: float32x4_t) -> float32x4_t {
    vfmaq_n_f32(sum, weights, value)
}

/// Loads a quarter of a line.
///
/// # Safety
/// It is at `at`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn load(at: *const u8) -> uint8x16_t {
    // SAFETY: the caller says so.
    unsafe { vld1q_u8(at) }
}

/// Stores a quarter of a line.
///
/// # Safety
/// There is room for it at `at`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn store(at: *mut u8, bytes: uint8x16_t) {
    // SAFETY: the caller says so.
    unsafe { vst1q_u8(at, bytes) }
}

/// Loads four numbers.
///
/// # Safety
/// They are at `at`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn load_numbers(at: *const f32) -> float32x4_t {
    // SAFETY: the caller says so.
    unsafe { vld1q_f32(at) }
}

/// Stores four numbers.
///
/// # Safety
/// There is room for them at `at`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn store_numbers(at: *mut f32, numbers: float32x4_t) {
    // SAFETY: the caller says so.
    unsafe { vst1q_f32(at, numbers) }
}

/// Stores the first `n` numbers.
///
/// # Safety
/// There is room for them at `to`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn store_some(to: *mut f32, numbers: float32x4_t, n: usize) {
    if n >= PART {
        // SAFETY: the caller says so.
        return unsafe { vst1q_f32(to, numbers) };
    }
    let mut some = [0.0; PART];
    // SAFETY: `some` has four numbers, of which the caller has room for `n`.
    unsafe {
        vst1q_f32(some.as_mut_ptr(), numbers);
        std::ptr::copy_nonoverlapping(some.as_ptr(), to, n);
    }
}

/// Loads four half precision numbers.
///
/// # Safety
/// They are at `at`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn halves(at: *const u8) -> float32x4_t {
    // SAFETY: the caller says so.
    vcvt_f32_f16(vreinterpret_f16_u16(unsafe { vld1_u16(at.cast::<u16>()) }))
}

/// Loads four numbers that are the upper halves of single precision ones.
///
/// # Safety
/// They are at `at`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn bf16(at: *const u8) -> float32x4_t {
    // SAFETY: the caller says so.
    let bits = unsafe { vld1_u16(at.cast::<u16>()) };
    vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(bits)))
}

/// Unpacks the scales and minima of eight blocks, in six bits each.
///
/// # Safety
/// As for [`Quantised::enter`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn enter6(at: *const u8, quarter: usize, unpacked: &mut Unpacked<PART>) {
    // SAFETY: the caller says that the scales are there: twelve times sixteen bytes, then sixteen scales and minima.
    unsafe {
        let bytes = at.add(quarter * PART);
        let halves_at = at.add(12 * ROWS + quarter * 2 * PART);
        let (scale, minimum) = (halves(halves_at), halves(halves_at.add(2 * ROWS)));
        for (part, [scales, minima]) in unpacked.0.iter_mut().enumerate() {
            let (mut of_scale, mut of_minimum) = ([0.0; PART], [0.0; PART]);
            for row in 0..PART {
                let twelve = std::array::from_fn(|i| bytes.add(i * ROWS + row).read());
                let (scale, minimum) = scale_and_min(&twelve, part);
                (of_scale[row], of_minimum[row]) = (f32::from(scale), f32::from(minimum));
            }
            vst1q_f32(scales.as_mut_ptr(), vmulq_f32(scale, vld1q_f32(of_scale.as_ptr())));
            let product = vmulq_f32(minimum, vld1q_f32(of_minimum.as_ptr()));
            vst1q_f32(minima.as_mut_ptr(), vnegq_f32(product));
        }
    }
}

/// Unpacks the scales of both halves of eight blocks, in eight bits each.
///
/// # Safety
/// As for [`Quantised::enter`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn enter8(at: *const u8, quarter: usize, unpacked: &mut Unpacked<PART>) {
    // SAFETY: the caller says that the scales are there: sixteen times sixteen bytes, then sixteen scales.
    unsafe {
        let scale = halves(at.add(16 * ROWS + quarter * 2 * PART));
        for (part, to) in unpacked.0.as_flattened_mut().iter_mut().enumerate() {
            let bytes = at.add(part * ROWS + quarter * PART).cast::<i8>();
            let of_part: [f32; PART] = std::array::from_fn(|row| f32::from(bytes.add(row).read()));
            vst1q_f32(to.as_mut_ptr(), vmulq_f32(scale, vld1q_f32(of_part.as_ptr())));
        }
    }
}

/// Multiplies the tiles with all groups.
///
/// # Safety
/// The processor has the instructions, and the groups hold as many values as the layout says.
#[target_feature(enable = "neon,dotprod")]
unsafe fn quantised<F: Reader>(work: &Work<'_>) {
    let blocks = work.section.layout.blocks();
    if F::SIMPLE || work.groups.len() < UNPACK_FROM {
        for tile in work.tiles.clone() {
            // SAFETY: `Work::tile` gives whole tiles; the caller says that the groups are whole.
            unsafe { groups::<F>(work, work.tile(tile).as_ptr(), tile, blocks) };
        }
        return;
    }
    with_memory(blocks, |memory| {
        for tile in work.tiles.clone() {
            // SAFETY: as above, and there is memory for a tile.
            unsafe {
                unpack::<F>(work.tile(tile).as_ptr(), memory, blocks);
                groups::<Memory<F>>(work, memory, tile, blocks);
            }
        }
    });
}

/// Multiplies one tile with all groups.
///
/// # Safety
/// The tile and the groups have so many blocks.
#[target_feature(enable = "neon,dotprod")]
unsafe fn groups<F: Reader>(work: &Work<'_>, tile: *const u8, index: usize, blocks: usize) {
    for (group_index, group) in work.groups.iter().enumerate() {
        let all = Rows::new(group, work.section.layout.format);
        for from in (0..group.rows).step_by(ROWS_AT_ONCE) {
            // SAFETY: `from` is below the number of rows.
            let rows = unsafe { all.skip(from) };
            macro_rules! dispatch {
                ($($n:literal, $m:literal);*) => {
                    match (group.rows - from).min(ROWS_AT_ONCE) {
                        $(
                            $n => {
                                for first in (0..4).step_by($m) {
                                    // SAFETY: the caller says so, and there are so many rows.
                                    let sums = unsafe { dots::<F, $m, $n>(tile, first, rows, blocks) };
                                    for (quarter, sums) in (first..).zip(&sums) {
                                        store_products(work, index, quarter, group_index, from, sums);
                                    }
                                }
                            }
                        )*
                        _ => {}
                    }
                };
            }
            dispatch!(1, 4; 2, 4; 3, 2; 4, 2);
        }
    }
}

/// Multiplies `M` quarters of a tile, from the given one on, with `N` rows.
///
/// # Safety
/// The tile has the quarters, it and the rows have so many blocks, and there are `N` rows.
#[target_feature(enable = "neon,dotprod")]
#[inline(never)]
unsafe fn dots<F: Reader, const M: usize, const N: usize>(
    tile: *const u8,
    quarter: usize,
    rows: Rows<'_>,
    blocks: usize,
) -> [[float32x4_t; N]; M] {
    let mut sums = [[vdupq_n_f32(0.0); N]; M];
    let mut held = [const { F::NOTHING }; M];
    let mut rows_at = rows;
    let units = blocks.div_ceil(F::UNIT);
    for visit in 0..units + rows.again.len() {
        let (unit, inside) = visited(visit, F::UNIT, blocks, rows.again);
        // SAFETY: unit and block are below what the caller says is there, and each row index below `N`.
        unsafe {
            let unit_at = tile.add(unit * F::UNIT_BYTES);
            if F::FETCH && quarter == 0 && visit < units {
                fetch(unit_at.wrapping_add(AHEAD), F::UNIT_BYTES);
            }
            for (t, held) in held.iter_mut().enumerate() {
                F::enter(unit_at.add(F::UNIT * F::SIZE), quarter + t, held);
            }
            for block in inside {
                let quants = unit_at.add(block * F::SIZE + quarter * PART_LINE);
                let mut first = [[vdupq_n_s32(0); N]; M];
                let mut second = [[vdupq_n_s32(0); N]; M];
                for t in 0..M {
                    for j in 0..N {
                        match F::KIND {
                            Kind::Offset if const { F::LARGEST == 255 } => {}
                            Kind::Offset => first[t][j] = vdupq_n_s32(*rows_at.starts.add(j)),
                            Kind::Minimum => {}
                            Kind::Halves => {
                                first[t][j] = vdupq_n_s32(*rows_at.starts.add(2 * j));
                                second[t][j] = vdupq_n_s32(*rows_at.starts.add(2 * j + 1));
                            }
                        }
                    }
                }
                macro_rules! pairs {
                    ($($i:literal)*) => {
                        $(
                            let mut pairs = [(vdupq_n_u8(0), vdupq_n_u8(0)); M];
                            for t in 0..M {
                                pairs[t] = F::pair(quants.add(t * PART_LINE), $i);
                                if const { F::LARGEST == 255 } {
                                    let middle = vdupq_n_u8(128);
                                    pairs[t] = (veorq_u8(pairs[t].0, middle), veorq_u8(pairs[t].1, middle));
                                }
                            }
                            for j in 0..N {
                                let of_low = vld1q_s8(rows_at.quants.add(j * BLOCK));
                                let of_high = vld1q_s8(rows_at.quants.add(j * BLOCK + BLOCK / 2));
                                for t in 0..M {
                                    let (low, high) = pairs[t];
                                    first[t][j] = dot_product!(first[t][j], vreinterpretq_s8_u8(low), of_low, $i);
                                    let other = match F::KIND {
                                        Kind::Halves => &mut second[t][j],
                                        Kind::Offset | Kind::Minimum => &mut first[t][j],
                                    };
                                    *other = dot_product!(*other, vreinterpretq_s8_u8(high), of_high, $i);
                                }
                            }
                        )*
                    };
                }
                pairs!(0 1 2 3);
                for t in 0..M {
                    let (scale, other) = F::scales(&held[t], block);
                    for j in 0..N {
                        let sum = &mut sums[t][j];
                        let mut scaled = vmulq_f32(vcvtq_f32_s32(first[t][j]), scale);
                        if matches!(F::KIND, Kind::Halves) {
                            scaled = vfmaq_f32(scaled, vcvtq_f32_s32(second[t][j]), other);
                        }
                        *sum = vfmaq_n_f32(*sum, scaled, *rows_at.scales.add(j));
                        if matches!(F::KIND, Kind::Minimum) {
                            *sum = vfmaq_n_f32(*sum, other, *rows_at.sums.add(j));
                        }
                    }
                }
                rows_at = rows_at.skip(rows_at.n);
            }
        }
    }
    sums
}
