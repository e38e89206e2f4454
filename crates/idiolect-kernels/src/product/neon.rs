//! Products with the byte dot product of `AArch64`: four weight rows side by side in a register.
//!
//! What `avx512.rs` does with a tile, this does with halves of it, or with whole tiles where there are few activation
//! rows.

#![expect(unsafe_code, reason = "SIMD kernels: vector loads through pointers and instructions that need detection")]

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, uint16x4_t, vandq_u8, vcvt_f32_f16, vcvtq_f32_s32, vdupq_n_f32,
    vdupq_n_s8, vdupq_n_s32, vdupq_n_u8, veorq_u8, vfmaq_f32, vfmaq_n_f32, vld1_u16, vld1q_f32, vld1q_s8, vld1q_u8,
    vmovl_u16, vmulq_f32, vnegq_f32, vorrq_u8, vreinterpret_f16_u16, vreinterpretq_f32_u32, vreinterpretq_s8_u8,
    vshlq_n_u32, vshlq_u8, vshrq_n_u8, vst1q_f32, vst1q_u8,
};
use std::arch::asm;
use std::cell::RefCell;
use std::marker::PhantomData;

use super::{Work, visited};
use crate::activations::Group;
use crate::format::{BLOCK, Format, SUPER, scale_and_min};
use crate::tile::{Kind, LINE, ROWS, kind, offset, quant_bytes, unit_blocks, unit_bytes};

/// Rows in a register.
const QUARTER: usize = ROWS / 4;

/// Bytes of a register.
const QUARTER_LINE: usize = LINE / 4;

/// Groups from which on it pays to unpack a tile to memory.
const UNPACK_FROM: usize = 2;

/// Rows that are multiplied at once.
const ROWS_AT_ONCE: usize = 4;

/// Lines that a block takes when it is unpacked to memory.
const MEMORY_LINES: usize = 10;

thread_local! {
    /// The tile that a thread has unpacked.
    static UNPACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Sixteen numbers, or four columns of bytes for sixteen rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Where a group's encoded rows are.
#[derive(Clone, Copy)]
struct Rows<'a> {
    quants: *const i8,
    scales: *const f32,
    sums: *const f32,
    /// Not for formats of eight bits: their weights become signed.
    starts: *const i32,
    /// Numbers in `starts` for each row.
    n_starts: usize,
    /// Rows in the group.
    n: usize,
    /// The blocks that come again after the last.
    again: &'a [u32],
}

impl<'a> Rows<'a> {
    fn new(group: &'a Group, format: Format) -> Self {
        let (starts, n_starts) = match (kind(format), offset(format)) {
            (Kind::Halves, _) => (group.halves.as_ptr().cast::<i32>(), 2),
            (_, 16) => (group.starts[1].as_ptr(), 1),
            _ => (group.starts[0].as_ptr(), 1),
        };
        Self {
            quants: group.quants.as_ptr(),
            scales: group.scales.as_ptr(),
            sums: group.sums.as_ptr(),
            starts,
            n_starts,
            n: group.rows,
            again: &group.again,
        }
    }

    /// Skips so many rows of a block, which are followed by the rows of the next.
    ///
    /// # Safety
    /// There are so many.
    #[inline]
    unsafe fn skip(self, rows: usize) -> Self {
        // SAFETY: the caller says so.
        unsafe {
            Self {
                quants: self.quants.add(rows * BLOCK),
                scales: self.scales.add(rows),
                sums: self.sums.add(rows),
                starts: self.starts.add(rows * self.n_starts),
                ..self
            }
        }
    }
}

/// Scales of one block for four rows, and what else it has: minima, or the scales of the second half.
type Scales = (float32x4_t, float32x4_t);

/// Scales of [`SUPER`] blocks, unpacked.
struct Unpacked([[[f32; QUARTER]; 2]; SUPER]);

/// How a quantised format is read. Pointers are to what belongs to one quarter of a tile's rows; the next quarter's lies
/// a quarter of a line further on.
trait Quantised {
    const KIND: Kind;
    /// Whether bytes are to become signed by flipping their highest bit.
    const FLIP: bool;
    /// Blocks in a unit.
    const UNIT: usize;
    /// Bytes of a block's quants.
    const SIZE: usize;
    /// Bytes of a unit.
    const UNIT_BYTES: usize;

    /// What is kept of a unit's scales.
    type Held;
    /// The same before the first unit.
    const NOTHING: Self::Held;

    /// Returns groups `i` and `i + 4` of a block.
    ///
    /// # Safety
    /// A block's quants are at `quants`, and `i` is below 4.
    unsafe fn pair(quants: *const u8, i: usize) -> (uint8x16_t, uint8x16_t);

    /// Begins a unit.
    ///
    /// # Safety
    /// Its scales are at `scales`, and `quarter` is below 4.
    unsafe fn enter(scales: *const u8, quarter: usize, held: &mut Self::Held);

    /// Returns the scales of a block.
    ///
    /// # Safety
    /// The unit that was entered is still there and has that block.
    unsafe fn scales(held: &Self::Held, block: usize) -> Scales;
}

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

/// Splits bytes into their lower and upper halves.
#[target_feature(enable = "neon")]
#[inline]
fn nibbles(bytes: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
    (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes))
}

/// Shifts to the left, or to the right where `by` is negative, and keeps the bits of `mask`.
#[target_feature(enable = "neon")]
#[inline]
fn bits(bytes: uint8x16_t, by: i8, mask: u8) -> uint8x16_t {
    vandq_u8(vshlq_u8(bytes, vdupq_n_s8(by)), vdupq_n_u8(mask))
}

/// Loads four half precision numbers.
///
/// # Safety
/// They are at `at`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn halves(at: *const u8) -> float32x4_t {
    // SAFETY: the caller says so.
    let bits: uint16x4_t = unsafe { vld1_u16(at.cast::<u16>()) };
    vcvt_f32_f16(vreinterpret_f16_u16(bits))
}

/// Four bits: groups `i` and `i + 4` share a line.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn pair4(quants: *const u8, i: usize) -> (uint8x16_t, uint8x16_t) {
    // SAFETY: the caller says so.
    nibbles(unsafe { vld1q_u8(quants.add(i * LINE)) })
}

/// Five bits: a fifth line has the highest.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn pair5(quants: *const u8, i: usize) -> (uint8x16_t, uint8x16_t) {
    // SAFETY: the caller says so.
    let ((low, high), fifth) = unsafe { (pair4(quants, i), vld1q_u8(quants.add(4 * LINE))) };
    let by = i as i8;
    (vorrq_u8(low, bits(fifth, 4 - by, 16)), vorrq_u8(high, bits(fifth, -by, 16)))
}

/// Six bits: two more lines have the highest two, one for each half of the groups.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn pair6(quants: *const u8, i: usize) -> (uint8x16_t, uint8x16_t) {
    // SAFETY: the caller says so.
    let ((low, high), first, second) =
        unsafe { (pair4(quants, i), vld1q_u8(quants.add(4 * LINE)), vld1q_u8(quants.add(5 * LINE))) };
    let by = 4 - 2 * i as i8;
    (vorrq_u8(low, bits(first, by, 0x30)), vorrq_u8(high, bits(second, by, 0x30)))
}

/// Eight bits.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn pair8(quants: *const u8, i: usize) -> (uint8x16_t, uint8x16_t) {
    // SAFETY: the caller says so.
    unsafe { (vld1q_u8(quants.add(i * LINE)), vld1q_u8(quants.add((i + 4) * LINE))) }
}

/// Scales alone.
///
/// # Safety
/// The unit's scales are at `scales`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn scale(scales: *const u8, block: usize) -> Scales {
    // SAFETY: the caller says so.
    (unsafe { halves(scales.add(block * 2 * ROWS)) }, vdupq_n_f32(0.0))
}

/// Scales and minima.
///
/// # Safety
/// The unit's scales are at `scales`.
#[target_feature(enable = "neon")]
#[inline]
unsafe fn scale_and_minimum(scales: *const u8, block: usize) -> Scales {
    // SAFETY: the caller says so.
    unsafe {
        let at = scales.add(block * 4 * ROWS);
        (halves(at), halves(at.add(2 * ROWS)))
    }
}

/// Unpacks the scales and minima of eight blocks, in six bits each.
///
/// # Safety
/// As for [`Quantised::enter`].
#[target_feature(enable = "neon")]
#[inline]
unsafe fn enter6(at: *const u8, quarter: usize, unpacked: &mut Unpacked) {
    // SAFETY: the caller says that the scales are there: twelve times sixteen bytes, then sixteen scales and minima.
    unsafe {
        let bytes = at.add(quarter * QUARTER);
        let halves_at = at.add(12 * ROWS + quarter * 2 * QUARTER);
        let (scale, minimum) = (halves(halves_at), halves(halves_at.add(2 * ROWS)));
        for (part, [scales, minima]) in unpacked.0.iter_mut().enumerate() {
            let (mut of_scale, mut of_minimum) = ([0.0; QUARTER], [0.0; QUARTER]);
            for row in 0..QUARTER {
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
unsafe fn enter8(at: *const u8, quarter: usize, unpacked: &mut Unpacked) {
    // SAFETY: the caller says that the scales are there: sixteen times sixteen bytes, then sixteen scales.
    unsafe {
        let scale = halves(at.add(16 * ROWS + quarter * 2 * QUARTER));
        for (part, to) in unpacked.0.as_flattened_mut().iter_mut().enumerate() {
            let bytes = at.add(part * ROWS + quarter * QUARTER).cast::<i8>();
            let of_part: [f32; QUARTER] = std::array::from_fn(|row| f32::from(bytes.add(row).read()));
            vst1q_f32(to.as_mut_ptr(), vmulq_f32(scale, vld1q_f32(of_part.as_ptr())));
        }
    }
}

macro_rules! constants {
    ($name:ident) => {
        const KIND: Kind = kind(Format::$name);
        const FLIP: bool = offset(Format::$name) == 128;
        const UNIT: usize = unit_blocks(Format::$name);
        const SIZE: usize = quant_bytes(Format::$name);
        const UNIT_BYTES: usize = unit_bytes(Format::$name);
    };
}

macro_rules! quantised {
    ($name:ident, $pair:ident, $scales:ident) => {
        struct $name;

        impl Quantised for $name {
            constants!($name);
            type Held = *const u8;
            const NOTHING: *const u8 = std::ptr::null();

            #[target_feature(enable = "neon")]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> (uint8x16_t, uint8x16_t) {
                // SAFETY: the caller says so.
                unsafe { $pair(quants, i) }
            }

            #[target_feature(enable = "neon")]
            #[inline]
            unsafe fn enter(scales: *const u8, quarter: usize, held: &mut *const u8) {
                // SAFETY: all quarters' scales are there.
                *held = unsafe { scales.add(quarter * 2 * QUARTER) };
            }

            #[target_feature(enable = "neon")]
            #[inline]
            unsafe fn scales(held: &*const u8, block: usize) -> Scales {
                // SAFETY: the caller says so.
                unsafe { $scales(*held, block) }
            }
        }
    };
}

macro_rules! k_quantised {
    ($name:ident, $pair:ident, $enter:ident) => {
        struct $name;

        impl Quantised for $name {
            constants!($name);
            type Held = Unpacked;
            const NOTHING: Unpacked = Unpacked([[[0.0; QUARTER]; 2]; SUPER]);

            #[target_feature(enable = "neon")]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> (uint8x16_t, uint8x16_t) {
                // SAFETY: the caller says so.
                unsafe { $pair(quants, i) }
            }

            #[target_feature(enable = "neon")]
            #[inline]
            unsafe fn enter(scales: *const u8, quarter: usize, held: &mut Unpacked) {
                // SAFETY: the caller says so.
                unsafe { $enter(scales, quarter, held) }
            }

            #[target_feature(enable = "neon")]
            #[inline]
            unsafe fn scales(held: &Unpacked, block: usize) -> Scales {
                let [first, second] = &held.0[block];
                // SAFETY: both are whole.
                unsafe { (vld1q_f32(first.as_ptr()), vld1q_f32(second.as_ptr())) }
            }
        }
    };
}

quantised!(Q4_0, pair4, scale);
quantised!(Q4_1, pair4, scale_and_minimum);
quantised!(Q5_0, pair5, scale);
quantised!(Q5_1, pair5, scale_and_minimum);
quantised!(Q8_0, pair8, scale);
k_quantised!(Q4K, pair4, enter6);
k_quantised!(Q5K, pair5, enter6);
k_quantised!(Q6K, pair6, enter8);

/// A tile that was unpacked to memory: for each block, bytes in whole lines, then scales in single precision.
struct Memory<F>(PhantomData<F>);

impl<F: Quantised> Quantised for Memory<F> {
    const KIND: Kind = F::KIND;
    const FLIP: bool = F::FLIP;
    const UNIT: usize = 1;
    const SIZE: usize = 8 * LINE;
    const UNIT_BYTES: usize = MEMORY_LINES * LINE;
    type Held = *const u8;
    const NOTHING: *const u8 = std::ptr::null();

    #[target_feature(enable = "neon")]
    #[inline]
    unsafe fn pair(quants: *const u8, i: usize) -> (uint8x16_t, uint8x16_t) {
        // SAFETY: the caller says so.
        unsafe { pair8(quants, i) }
    }

    #[target_feature(enable = "neon")]
    #[inline]
    unsafe fn enter(scales: *const u8, quarter: usize, held: &mut *const u8) {
        // SAFETY: all quarters' scales are there.
        *held = unsafe { scales.add(quarter * QUARTER_LINE) };
    }

    #[target_feature(enable = "neon")]
    #[inline]
    unsafe fn scales(held: &*const u8, _block: usize) -> Scales {
        let at = held.cast::<f32>();
        // SAFETY: the caller says so; there are two lines for each block.
        unsafe { (vld1q_f32(at), vld1q_f32(at.add(ROWS))) }
    }
}

/// Does the work.
pub(super) fn run(work: &Work<'_>) {
    work.check();
    // SAFETY: a matrix of this tier is only made where the processor has its instructions; `Work::check`, `Work::tile` and
    // `Work::output` are the bounds that the kernels rely on.
    unsafe {
        match work.section.layout.format {
            Format::F32 => floats::<F32>(work),
            Format::F16 => floats::<F16>(work),
            Format::Bf16 => floats::<Bf16>(work),
            Format::Q4_0 => quantised::<Q4_0>(work),
            Format::Q4_1 => quantised::<Q4_1>(work),
            Format::Q5_0 => quantised::<Q5_0>(work),
            Format::Q5_1 => quantised::<Q5_1>(work),
            Format::Q8_0 => quantised::<Q8_0>(work),
            Format::Q4K => quantised::<Q4K>(work),
            Format::Q5K => quantised::<Q5K>(work),
            Format::Q6K => quantised::<Q6K>(work),
        }
    }
}

/// Unpacks a tile to memory.
///
/// # Safety
/// There is a packed tile of so many blocks, and room for [`MEMORY_LINES`] for each.
#[target_feature(enable = "neon")]
unsafe fn unpack<F: Quantised>(tile: *const u8, to: *mut u8, blocks: usize) {
    for quarter in 0..4 {
        let mut held = F::NOTHING;
        for block in 0..blocks {
            // SAFETY: the caller says so.
            unsafe {
                let unit = tile.add(block / F::UNIT * F::UNIT_BYTES);
                if block % F::UNIT == 0 {
                    F::enter(unit.add(F::UNIT * F::SIZE), quarter, &mut held);
                }
                let from = unit.add(block % F::UNIT * F::SIZE + quarter * QUARTER_LINE);
                let to = to.add(block * MEMORY_LINES * LINE + quarter * QUARTER_LINE);
                for i in 0..4 {
                    let (low, high) = F::pair(from, i);
                    vst1q_u8(to.add(i * LINE), low);
                    vst1q_u8(to.add((i + 4) * LINE), high);
                }
                let (first, second) = F::scales(&held, block % F::UNIT);
                vst1q_f32(to.add(8 * LINE).cast::<f32>(), first);
                vst1q_f32(to.add(9 * LINE).cast::<f32>(), second);
            }
        }
    }
}

/// Stores the products of a quarter of a tile with some rows of a group.
#[target_feature(enable = "neon")]
#[inline]
fn store(work: &Work<'_>, tile: usize, quarter: usize, group: usize, from: usize, sums: &[float32x4_t]) {
    for (row, sums) in sums.iter().enumerate() {
        let (to, n) = work.output(tile, group, from + row);
        let mut products = [0.0; QUARTER];
        // SAFETY: `products` has four numbers; `output` gives room for n that only this task writes, of which this quarter
        // of the tile has those after the first `quarter * QUARTER`.
        unsafe {
            vst1q_f32(products.as_mut_ptr(), *sums);
            let n = n.saturating_sub(quarter * QUARTER).min(QUARTER);
            if n > 0 {
                std::ptr::copy_nonoverlapping(products.as_ptr(), to.add(quarter * QUARTER), n);
            }
        }
    }
}

/// Multiplies the tiles with all groups.
///
/// # Safety
/// The processor has the instructions, and the groups hold as many values as the layout says.
#[target_feature(enable = "neon,dotprod")]
unsafe fn quantised<F: Quantised>(work: &Work<'_>) {
    let blocks = work.section.layout.blocks();
    // SAFETY: `Work::tile` gives whole tiles; the caller says that the groups are whole.
    unsafe {
        if work.groups.len() < UNPACK_FROM {
            for tile in work.tiles.clone() {
                groups::<F>(work, work.tile(tile).as_ptr(), tile, blocks);
            }
            return;
        }
        let mut memory = UNPACKED.with_borrow_mut(std::mem::take);
        memory.resize(blocks * MEMORY_LINES, Line([0; LINE]));
        for tile in work.tiles.clone() {
            let to = memory.as_mut_ptr().cast::<u8>();
            unpack::<F>(work.tile(tile).as_ptr(), to, blocks);
            groups::<Memory<F>>(work, to, tile, blocks);
        }
        UNPACKED.set(memory);
    }
}

/// Multiplies one tile with all groups.
///
/// # Safety
/// The tile and the groups have so many blocks.
#[target_feature(enable = "neon,dotprod")]
unsafe fn groups<F: Quantised>(work: &Work<'_>, tile: *const u8, index: usize, blocks: usize) {
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
                                        store(work, index, quarter, group_index, from, sums);
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
unsafe fn dots<F: Quantised, const M: usize, const N: usize>(
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
            for (t, held) in held.iter_mut().enumerate() {
                F::enter(unit_at.add(F::UNIT * F::SIZE), quarter + t, held);
            }
            for block in inside {
                let quants = unit_at.add(block * F::SIZE + quarter * QUARTER_LINE);
                let mut first = [[vdupq_n_s32(0); N]; M];
                let mut second = [[vdupq_n_s32(0); N]; M];
                for t in 0..M {
                    for j in 0..N {
                        match F::KIND {
                            Kind::Offset if F::FLIP => {}
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
                                pairs[t] = F::pair(quants.add(t * QUARTER_LINE), $i);
                                if F::FLIP {
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

/// How a floating point format is read.
trait Floats {
    const SIZE: usize;

    /// Loads four numbers.
    ///
    /// # Safety
    /// They are at `at`.
    unsafe fn load(at: *const u8) -> float32x4_t;
}

struct F32;
struct F16;
struct Bf16;

impl Floats for F32 {
    const SIZE: usize = 4;

    #[target_feature(enable = "neon")]
    #[inline]
    unsafe fn load(at: *const u8) -> float32x4_t {
        // SAFETY: the caller says so.
        unsafe { vld1q_f32(at.cast::<f32>()) }
    }
}

impl Floats for F16 {
    const SIZE: usize = 2;

    #[target_feature(enable = "neon")]
    #[inline]
    unsafe fn load(at: *const u8) -> float32x4_t {
        // SAFETY: the caller says so.
        unsafe { halves(at) }
    }
}

impl Floats for Bf16 {
    const SIZE: usize = 2;

    #[target_feature(enable = "neon")]
    #[inline]
    unsafe fn load(at: *const u8) -> float32x4_t {
        // SAFETY: the caller says so.
        let bits = unsafe { vld1_u16(at.cast::<u16>()) };
        vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(bits)))
    }
}

/// Multiplies tiles of floating point numbers with all groups.
///
/// # Safety
/// As for [`quantised`].
#[target_feature(enable = "neon,dotprod")]
unsafe fn floats<F: Floats>(work: &Work<'_>) {
    let blocks = work.section.layout.blocks();
    for tile in work.tiles.clone() {
        let weights = work.tile(tile).as_ptr();
        for (index, group) in work.groups.iter().enumerate() {
            for from in (0..group.rows).step_by(ROWS_AT_ONCE) {
                macro_rules! dispatch {
                    ($($n:literal)*) => {
                        match (group.rows - from).min(ROWS_AT_ONCE) {
                            $(
                                $n => {
                                    // SAFETY: the caller says that the group is whole, the tile is, and there are so many
                                    // rows from that one on.
                                    let sums = unsafe {
                                        let rows = group.floats.as_ptr().add(from * BLOCK);
                                        float_dots::<F, $n>(weights, rows, group.rows, blocks)
                                    };
                                    for (quarter, sums) in sums.iter().enumerate() {
                                        store(work, tile, quarter, index, from, sums);
                                    }
                                }
                            )*
                            _ => {}
                        }
                    };
                }
                dispatch!(1 2 3 4);
            }
        }
    }
}

/// Multiplies a tile of floating point numbers with `N` of `n` rows.
///
/// # Safety
/// The tile and the rows have so many blocks, and there are `N` rows in each of `n`.
#[target_feature(enable = "neon,dotprod")]
#[inline(never)]
unsafe fn float_dots<F: Floats, const N: usize>(
    weights: *const u8,
    rows: *const f32,
    n: usize,
    blocks: usize,
) -> [[float32x4_t; N]; 4] {
    let mut sums = [[vdupq_n_f32(0.0); N]; 4];
    for block in 0..blocks {
        for k in 0..BLOCK {
            // SAFETY: the caller says that there are so many blocks of `n` rows.
            unsafe {
                let from = weights.add((block * BLOCK + k) * ROWS * F::SIZE);
                for (quarter, sums) in sums.iter_mut().enumerate() {
                    let weights = F::load(from.add(quarter * QUARTER * F::SIZE));
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = vfmaq_n_f32(*sum, weights, *rows.add((block * n + j) * BLOCK + k));
                    }
                }
            }
        }
    }
    sums
}
