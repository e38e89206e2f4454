//! Products with AVX2, and with AVX-VNNI on top of it: eight weight rows side by side in a register.
//!
//! What `avx512.rs` does with a tile, this does with its halves, and up to four activation rows at once.

#![expect(unsafe_code, reason = "SIMD kernels: vector loads through pointers and instructions that need detection")]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_HINT_T1, _mm_cvtsi32_si128, _mm_loadl_epi64, _mm_loadu_si128, _mm_prefetch,
    _mm256_and_si256, _mm256_castsi256_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_load_ps, _mm256_load_si256, _mm256_mul_ps, _mm256_or_si256,
    _mm256_set1_epi8, _mm256_set1_ps, _mm256_setzero_ps, _mm256_sll_epi16, _mm256_slli_epi32, _mm256_srl_epi16,
    _mm256_srli_epi16, _mm256_store_ps, _mm256_store_si256, _mm256_storeu_ps, _mm256_sub_ps,
};
use std::cell::RefCell;
use std::marker::PhantomData;

use super::{Work, visited};
use crate::activations::Group;
use crate::format::{BLOCK, Format, SUPER};
use crate::tile::{Kind, LINE, ROWS, kind, offset, quant_bytes, unit_blocks, unit_bytes};

/// Rows of half a tile.
const HALF: usize = ROWS / 2;

/// Bytes of half a line.
const HALF_LINE: usize = LINE / 2;

/// Groups from which on it pays to unpack a tile to memory, where that is much work.
const UNPACK_FROM: usize = 4;

/// Rows that are multiplied at once.
const ROWS_AT_ONCE: usize = 4;

/// How far ahead weights are fetched into the second-level cache, in bytes.
const AHEAD: usize = 8192;

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
            (_, 128) => (group.starts[2].as_ptr(), 1),
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

/// Scales of one block for eight rows, and what else it has: minima, or the scales of the second half.
type Scales = (__m256, __m256);

/// Scales of [`SUPER`] blocks, unpacked.
#[repr(C, align(64))]
struct Unpacked([[[f32; HALF]; 2]; SUPER]);

/// How a quantised format is read. Pointers are to what belongs to one half of a tile's rows; the other half's lies half
/// a line further on.
trait Quantised {
    const KIND: Kind;
    /// The largest byte.
    const LARGEST: i16;
    /// Blocks in a unit.
    const UNIT: usize;
    /// Bytes of a block's quants.
    const SIZE: usize;
    /// Bytes of a unit.
    const UNIT_BYTES: usize;

    /// Whether it comes from far away.
    const FETCH: bool;
    /// Groups from which on it pays to unpack a tile to memory.
    const UNPACK_FROM: usize;

    /// What is kept of a unit's scales.
    type Held;
    /// The same before the first unit.
    const NOTHING: Self::Held;

    /// Returns groups `i` and `i + 4` of a block.
    ///
    /// # Safety
    /// A block's quants are at `quants`, `i` is below 4, and the processor has AVX2.
    unsafe fn pair(quants: *const u8, i: usize) -> (__m256i, __m256i);

    /// Begins a unit.
    ///
    /// # Safety
    /// Its scales are at `scales`, `half` is below 2, and the processor has AVX2.
    unsafe fn enter(scales: *const u8, half: usize, held: &mut Self::Held);

    /// Returns the scales of a block.
    ///
    /// # Safety
    /// The unit that was entered is still there and has that block, and the processor has AVX2 and F16C.
    unsafe fn scales(held: &Self::Held, block: usize) -> Scales;
}

/// Splits bytes into their lower and upper halves.
#[target_feature(enable = "avx2")]
#[inline]
fn nibbles(bytes: __m256i) -> (__m256i, __m256i) {
    let mask = _mm256_set1_epi8(15);
    (_mm256_and_si256(bytes, mask), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask))
}

/// Shifts to the left, or to the right where `by` is negative, and keeps the bits of `mask` in each byte.
#[target_feature(enable = "avx2")]
#[inline]
fn bits(bytes: __m256i, by: i32, mask: i8) -> __m256i {
    let shifted = if by >= 0 {
        _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(by))
    } else {
        _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(-by))
    };
    _mm256_and_si256(shifted, _mm256_set1_epi8(mask))
}

/// Loads half a line.
///
/// # Safety
/// It is at `at`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn half_line(at: *const u8) -> __m256i {
    // SAFETY: the caller says so.
    unsafe { _mm256_load_si256(at.cast::<__m256i>()) }
}

/// Loads eight half precision numbers.
///
/// # Safety
/// They are at `at`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller says so.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast::<__m128i>()) })
}

/// Four bits: groups `i` and `i + 4` share a line.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn pair4(quants: *const u8, i: usize) -> (__m256i, __m256i) {
    // SAFETY: the caller says so.
    nibbles(unsafe { half_line(quants.add(i * LINE)) })
}

/// Five bits: a fifth line has the highest.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn pair5(quants: *const u8, i: usize) -> (__m256i, __m256i) {
    // SAFETY: the caller says so.
    let ((low, high), fifth) = unsafe { (pair4(quants, i), half_line(quants.add(4 * LINE))) };
    let by = i as i32;
    (_mm256_or_si256(low, bits(fifth, 4 - by, 16)), _mm256_or_si256(high, bits(fifth, -by, 16)))
}

/// Six bits: two more lines have the highest two, one for each half of the groups.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn pair6(quants: *const u8, i: usize) -> (__m256i, __m256i) {
    // SAFETY: the caller says so.
    let ((low, high), first, second) =
        unsafe { (pair4(quants, i), half_line(quants.add(4 * LINE)), half_line(quants.add(5 * LINE))) };
    let by = 4 - 2 * i as i32;
    (_mm256_or_si256(low, bits(first, by, 0x30)), _mm256_or_si256(high, bits(second, by, 0x30)))
}

/// Eight bits.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn pair8(quants: *const u8, i: usize) -> (__m256i, __m256i) {
    // SAFETY: the caller says so.
    unsafe { (half_line(quants.add(i * LINE)), half_line(quants.add((i + 4) * LINE))) }
}

/// Scales alone.
///
/// # Safety
/// The unit's scales are at `scales`.
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn scale(scales: *const u8, block: usize) -> Scales {
    // SAFETY: the caller says so.
    (unsafe { halves(scales.add(block * 2 * ROWS)) }, _mm256_setzero_ps())
}

/// Scales and minima.
///
/// # Safety
/// The unit's scales are at `scales`.
#[target_feature(enable = "avx2,f16c")]
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
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn enter6(at: *const u8, half: usize, unpacked: &mut Unpacked) {
    // SAFETY: the caller says that the scales are there: twelve times sixteen bytes, then sixteen scales and minima.
    unsafe {
        let bytes = at.add(half * HALF);
        let halves_at = at.add(12 * ROWS + half * 2 * HALF);
        let (scale, minimum) = (halves(halves_at), halves(halves_at.add(2 * ROWS)));
        for (part, [scales, minima]) in unpacked.0.iter_mut().enumerate() {
            let (of_scale, of_minimum) = if part < 4 {
                (
                    _mm256_and_si256(eight(bytes.add(part * ROWS)), _mm256_set1_epi8(63)),
                    _mm256_and_si256(eight(bytes.add((part + 4) * ROWS)), _mm256_set1_epi8(63)),
                )
            } else {
                let (low, high) = nibbles(eight(bytes.add((part + 4) * ROWS)));
                (
                    _mm256_or_si256(low, bits(eight(bytes.add((part - 4) * ROWS)), -2, 0x30)),
                    _mm256_or_si256(high, bits(eight(bytes.add(part * ROWS)), -2, 0x30)),
                )
            };
            _mm256_store_ps(scales.as_mut_ptr(), _mm256_mul_ps(scale, _mm256_cvtepi32_ps(of_scale)));
            let product = _mm256_mul_ps(minimum, _mm256_cvtepi32_ps(of_minimum));
            _mm256_store_ps(minima.as_mut_ptr(), _mm256_sub_ps(_mm256_set1_ps(-0.0), product));
        }
    }
}

/// Loads eight bytes as integers.
///
/// # Safety
/// They are at `at`.
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn eight(at: *const u8) -> __m256i {
    // SAFETY: the caller says so.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(at.cast::<__m128i>()) })
}

/// Unpacks the scales of both halves of eight blocks, in eight bits each.
///
/// # Safety
/// As for [`Quantised::enter`].
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn enter8(at: *const u8, half: usize, unpacked: &mut Unpacked) {
    // SAFETY: the caller says that the scales are there: sixteen times sixteen bytes, then sixteen scales.
    unsafe {
        let scale = halves(at.add(16 * ROWS + half * 2 * HALF));
        for (part, to) in unpacked.0.as_flattened_mut().iter_mut().enumerate() {
            let bytes = _mm_loadl_epi64(at.add(part * ROWS + half * HALF).cast::<__m128i>());
            _mm256_store_ps(to.as_mut_ptr(), _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))));
        }
    }
}

macro_rules! constants {
    ($name:ident, $largest:literal) => {
        const KIND: Kind = kind(Format::$name);
        const LARGEST: i16 = $largest;
        const UNIT: usize = unit_blocks(Format::$name);
        const SIZE: usize = quant_bytes(Format::$name);
        const UNIT_BYTES: usize = unit_bytes(Format::$name);
        const FETCH: bool = true;
        const UNPACK_FROM: usize = match Format::$name {
            Format::Q4_0 | Format::Q4_1 | Format::Q8_0 => usize::MAX,
            _ => UNPACK_FROM,
        };
    };
}

macro_rules! quantised {
    ($name:ident, $largest:literal, $pair:ident, $scales:ident) => {
        struct $name;

        impl Quantised for $name {
            constants!($name, $largest);
            type Held = *const u8;
            const NOTHING: *const u8 = std::ptr::null();

            #[target_feature(enable = "avx2")]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> (__m256i, __m256i) {
                // SAFETY: the caller says so.
                unsafe { $pair(quants, i) }
            }

            #[target_feature(enable = "avx2")]
            #[inline]
            unsafe fn enter(scales: *const u8, half: usize, held: &mut *const u8) {
                // SAFETY: both halves' scales are there.
                *held = unsafe { scales.add(half * 2 * HALF) };
            }

            #[target_feature(enable = "avx2,f16c")]
            #[inline]
            unsafe fn scales(held: &*const u8, block: usize) -> Scales {
                // SAFETY: the caller says so.
                unsafe { $scales(*held, block) }
            }
        }
    };
}

macro_rules! k_quantised {
    ($name:ident, $largest:literal, $pair:ident, $enter:ident) => {
        struct $name;

        impl Quantised for $name {
            constants!($name, $largest);
            type Held = Unpacked;
            const NOTHING: Unpacked = Unpacked([[[0.0; HALF]; 2]; SUPER]);

            #[target_feature(enable = "avx2")]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> (__m256i, __m256i) {
                // SAFETY: the caller says so.
                unsafe { $pair(quants, i) }
            }

            #[target_feature(enable = "avx2,f16c")]
            #[inline]
            unsafe fn enter(scales: *const u8, half: usize, held: &mut Unpacked) {
                // SAFETY: the caller says so.
                unsafe { $enter(scales, half, held) }
            }

            #[target_feature(enable = "avx2,f16c")]
            #[inline]
            unsafe fn scales(held: &Unpacked, block: usize) -> Scales {
                let [first, second] = &held.0[block];
                // SAFETY: both are whole.
                unsafe { (_mm256_load_ps(first.as_ptr()), _mm256_load_ps(second.as_ptr())) }
            }
        }
    };
}

quantised!(Q4_0, 15, pair4, scale);
quantised!(Q4_1, 15, pair4, scale_and_minimum);
quantised!(Q5_0, 31, pair5, scale);
quantised!(Q5_1, 31, pair5, scale_and_minimum);
quantised!(Q8_0, 255, pair8, scale);
k_quantised!(Q4K, 15, pair4, enter6);
k_quantised!(Q5K, 31, pair5, enter6);
k_quantised!(Q6K, 63, pair6, enter8);

/// A tile that was unpacked to memory: for each block, bytes in whole lines, then scales in single precision.
struct Memory<F>(PhantomData<F>);

impl<F: Quantised> Quantised for Memory<F> {
    const KIND: Kind = F::KIND;
    const LARGEST: i16 = F::LARGEST;
    const UNIT: usize = 1;
    const SIZE: usize = 8 * LINE;
    const UNIT_BYTES: usize = MEMORY_LINES * LINE;
    const FETCH: bool = false;
    const UNPACK_FROM: usize = usize::MAX;
    type Held = *const u8;
    const NOTHING: *const u8 = std::ptr::null();

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn pair(quants: *const u8, i: usize) -> (__m256i, __m256i) {
        // SAFETY: the caller says so.
        unsafe { pair8(quants, i) }
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn enter(scales: *const u8, half: usize, held: &mut *const u8) {
        // SAFETY: both halves' scales are there.
        *held = unsafe { scales.add(half * HALF_LINE) };
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn scales(held: &*const u8, _block: usize) -> Scales {
        let at = held.cast::<f32>();
        // SAFETY: the caller says so; there are two lines for each block.
        unsafe { (_mm256_load_ps(at), _mm256_load_ps(at.add(ROWS))) }
    }
}

/// Asks for so many bytes.
#[inline]
fn fetch(at: *const u8, bytes: usize) {
    for line in 0..bytes / LINE {
        // SAFETY: fetching is allowed at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(line * LINE).cast::<i8>()) };
    }
}

/// Unpacks a tile to memory.
///
/// # Safety
/// There is a packed tile of so many blocks, and room for [`MEMORY_LINES`] for each.
#[target_feature(enable = "avx2,f16c")]
unsafe fn unpack<F: Quantised>(tile: *const u8, to: *mut u8, blocks: usize) {
    for half in 0..2 {
        let mut held = F::NOTHING;
        for block in 0..blocks {
            // SAFETY: the caller says so.
            unsafe {
                let unit = tile.add(block / F::UNIT * F::UNIT_BYTES);
                if block % F::UNIT == 0 {
                    F::enter(unit.add(F::UNIT * F::SIZE), half, &mut held);
                }
                let from = unit.add(block % F::UNIT * F::SIZE + half * HALF_LINE);
                let to = to.add(block * MEMORY_LINES * LINE + half * HALF_LINE);
                for i in 0..4 {
                    let (low, high) = F::pair(from, i);
                    _mm256_store_si256(to.add(i * LINE).cast::<__m256i>(), low);
                    _mm256_store_si256(to.add((i + 4) * LINE).cast::<__m256i>(), high);
                }
                let (first, second) = F::scales(&held, block % F::UNIT);
                _mm256_store_ps(to.add(8 * LINE).cast::<f32>(), first);
                _mm256_store_ps(to.add(9 * LINE).cast::<f32>(), second);
            }
        }
    }
}

/// Stores the products of half a tile with some rows of a group.
#[target_feature(enable = "avx2")]
#[inline]
fn store(work: &Work<'_>, tile: usize, half: usize, group: usize, from: usize, sums: &[__m256]) {
    for (row, sums) in sums.iter().enumerate() {
        let (to, n) = work.output(tile, group, from + row);
        let mut products = [0.0; HALF];
        // SAFETY: `products` has eight numbers; `output` gives room for n that only this task writes, of which this half
        // of the tile has those after the first `half * HALF`.
        unsafe {
            _mm256_storeu_ps(products.as_mut_ptr(), *sums);
            let n = n.saturating_sub(half * HALF).min(HALF);
            if n > 0 {
                std::ptr::copy_nonoverlapping(products.as_ptr(), to.add(half * HALF), n);
            }
        }
    }
}

/// How a floating point format is read.
trait Floats {
    const SIZE: usize;

    /// Loads eight numbers.
    ///
    /// # Safety
    /// They are at `at`, and the processor has AVX2 and F16C.
    unsafe fn load(at: *const u8) -> __m256;
}

struct F32;
struct F16;
struct Bf16;

impl Floats for F32 {
    const SIZE: usize = 4;

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller says so.
        unsafe { _mm256_load_ps(at.cast::<f32>()) }
    }
}

impl Floats for F16 {
    const SIZE: usize = 2;

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller says so.
        unsafe { halves(at) }
    }
}

impl Floats for Bf16 {
    const SIZE: usize = 2;

    #[target_feature(enable = "avx2")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m256 {
        // SAFETY: the caller says so.
        let bits = unsafe { _mm_loadu_si128(at.cast::<__m128i>()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
    }
}

/// Makes the kernels of a tier: `$vnni` says whether `$dot_product` is to be used, which adds four products of an
/// unsigned and a signed byte to each of eight integers.
macro_rules! kernels {
    ($d:tt $tier:ident, $features:literal, $vnni:literal, $dot_product:path) => {
        pub(super) mod $tier {
            use std::arch::x86_64::{
                _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_cvtepi32_ps, _mm256_fmadd_ps,
                _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16,
                _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8,
                _mm256_xor_si256,
            };

            use super::*;

            /// Does the work.
            pub(in super::super) fn run(work: &Work<'_>) {
                work.check();
                // SAFETY: a matrix of this tier is only made where the processor has its instructions; `Work::check`,
                // `Work::tile` and `Work::output` are the bounds that the kernels rely on.
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

            /// Multiplies the tiles with all groups.
            ///
            /// # Safety
            /// The processor has the instructions, and the groups hold as many values as the layout says.
            #[target_feature(enable = $features)]
            unsafe fn quantised<F: Quantised>(work: &Work<'_>) {
                let blocks = work.section.layout.blocks();
                // SAFETY: `Work::tile` gives whole tiles, aligned to lines; the caller says that the groups are whole.
                unsafe {
                    if work.groups.len() < F::UNPACK_FROM {
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
                        let size = work.section.layout.tile_bytes();
                        fetch(work.tile(tile).as_ptr().wrapping_add(size), size);
                        groups::<Memory<F>>(work, to, tile, blocks);
                    }
                    UNPACKED.set(memory);
                }
            }

            /// Multiplies one tile with all groups.
            ///
            /// # Safety
            /// The tile and the groups have so many blocks.
            #[target_feature(enable = $features)]
            unsafe fn groups<F: Quantised>(work: &Work<'_>, tile: *const u8, index: usize, blocks: usize) {
                for (group_index, group) in work.groups.iter().enumerate() {
                    let all = Rows::new(group, work.section.layout.format);
                    for from in (0..group.rows).step_by(ROWS_AT_ONCE) {
                        // SAFETY: `from` is below the number of rows.
                        let rows = unsafe { all.skip(from) };
                        macro_rules! dispatch {
                            ($d($n:literal, $m:literal);*) => {
                                match group.rows - from {
                                    $d(
                                        $n => {
                                            for first in (0..2).step_by($m) {
                                                // SAFETY: the caller says so, and there are so many rows.
                                                let sums = unsafe { dots::<F, $m, $n>(tile, first, rows, blocks) };
                                                for (half, sums) in (first..).zip(&sums) {
                                                    store(work, index, half, group_index, from, sums);
                                                }
                                            }
                                        }
                                    )*
                                    _ => {
                                        for half in 0..2 {
                                            // SAFETY: the caller says so, and there are four rows at least.
                                            let sums = unsafe {
                                                dots::<F, 1, ROWS_AT_ONCE>(tile, half, rows, blocks)
                                            };
                                            store(work, index, half, group_index, from, &sums[0]);
                                        }
                                    }
                                }
                            };
                        }
                        dispatch!(1, 2; 2, 2; 3, 1);
                    }
                }
            }

            /// Multiplies `M` halves of a tile, from the given one on, with `N` rows.
            ///
            /// # Safety
            /// The tile has the halves, it and the rows have so many blocks, and there are `N` rows.
            #[target_feature(enable = $features)]
            #[inline(never)]
            unsafe fn dots<F: Quantised, const M: usize, const N: usize>(
                tile: *const u8,
                half: usize,
                rows: Rows<'_>,
                blocks: usize,
            ) -> [[__m256; N]; M] {
                let ones = _mm256_set1_epi16(1);
                let mut sums = [[_mm256_setzero_ps(); N]; M];
                let mut held = [const { F::NOTHING }; M];
                let mut rows_at = rows;
                let units = blocks.div_ceil(F::UNIT);
                for visit in 0..units + rows.again.len() {
                    let (unit, inside) = visited(visit, F::UNIT, blocks, rows.again);
                    // SAFETY: unit and block are below what the caller says is there, and each row index below `N`.
                    unsafe {
                        let unit_at = tile.add(unit * F::UNIT_BYTES);
                        if F::FETCH && half == 0 && visit < units {
                            fetch(unit_at.wrapping_add(AHEAD), F::UNIT_BYTES);
                        }
                        for t in 0..M {
                            F::enter(unit_at.add(F::UNIT * F::SIZE), half + t, &mut held[t]);
                        }
                        for block in inside {
                            let quants = unit_at.add(block * F::SIZE + half * HALF_LINE);
                            let mut first = [[_mm256_setzero_si256(); N]; M];
                            let mut second = [[_mm256_setzero_si256(); N]; M];
                            for t in 0..M {
                                for j in 0..N {
                                    match F::KIND {
                                        Kind::Offset if !$vnni && F::LARGEST == 255 => {}
                                        Kind::Offset => first[t][j] = _mm256_set1_epi32(*rows_at.starts.add(j)),
                                        Kind::Minimum => {}
                                        Kind::Halves => {
                                            first[t][j] = _mm256_set1_epi32(*rows_at.starts.add(2 * j));
                                            second[t][j] = _mm256_set1_epi32(*rows_at.starts.add(2 * j + 1));
                                        }
                                    }
                                }
                            }
                            // Sums in sixteen bits, for as many pairs as they can take.
                            let mut first_short = [[_mm256_setzero_si256(); N]; M];
                            let mut second_short = [[_mm256_setzero_si256(); N]; M];
                            let activations = rows_at.quants.cast::<i32>();
                            for i in 0..4 {
                                let mut pairs = [(_mm256_setzero_si256(), _mm256_setzero_si256()); M];
                                for t in 0..M {
                                    pairs[t] = F::pair(quants.add(t * HALF_LINE), i);
                                    if !$vnni && F::LARGEST == 255 {
                                        let middle = _mm256_set1_epi8(-128);
                                        pairs[t].0 = _mm256_xor_si256(pairs[t].0, middle);
                                        pairs[t].1 = _mm256_xor_si256(pairs[t].1, middle);
                                    }
                                }
                                for j in 0..N {
                                    let at = activations.add(j * (BLOCK / 4) + i);
                                    let of_low = _mm256_set1_epi32(at.read_unaligned());
                                    let of_high = _mm256_set1_epi32(at.add(4).read_unaligned());
                                    for t in 0..M {
                                        let (low, high) = pairs[t];
                                        if $vnni {
                                            first[t][j] = $dot_product(first[t][j], low, of_low);
                                            let other = match F::KIND {
                                                Kind::Halves => &mut second[t][j],
                                                Kind::Offset | Kind::Minimum => &mut first[t][j],
                                            };
                                            *other = $dot_product(*other, high, of_high);
                                        } else if F::LARGEST == 255 {
                                            // Two products of an unsigned and a signed byte could exceed sixteen bits,
                                            // but not with the sign of the weights on the activations: those are
                                            // at most 127.
                                            let low = _mm256_maddubs_epi16(
                                                _mm256_abs_epi8(low),
                                                _mm256_sign_epi8(of_low, low),
                                            );
                                            let high = _mm256_maddubs_epi16(
                                                _mm256_abs_epi8(high),
                                                _mm256_sign_epi8(of_high, high),
                                            );
                                            let both = _mm256_add_epi32(
                                                _mm256_madd_epi16(low, ones),
                                                _mm256_madd_epi16(high, ones),
                                            );
                                            first[t][j] = _mm256_add_epi32(first[t][j], both);
                                        } else {
                                            let low = _mm256_maddubs_epi16(low, of_low);
                                            let high = _mm256_maddubs_epi16(high, of_high);
                                            first_short[t][j] = _mm256_add_epi16(first_short[t][j], low);
                                            let other = match F::KIND {
                                                Kind::Halves => &mut second_short[t][j],
                                                Kind::Offset | Kind::Minimum => &mut first_short[t][j],
                                            };
                                            *other = _mm256_add_epi16(*other, high);
                                            // Fifteen times 127 twice fits eight times, 31 four and 63 two times.
                                            let full = F::LARGEST > 15 && i == 1 || i == 3;
                                            if full {
                                                first[t][j] = _mm256_add_epi32(
                                                    first[t][j],
                                                    _mm256_madd_epi16(first_short[t][j], ones),
                                                );
                                                first_short[t][j] = _mm256_setzero_si256();
                                                if matches!(F::KIND, Kind::Halves) {
                                                    second[t][j] = _mm256_add_epi32(
                                                        second[t][j],
                                                        _mm256_madd_epi16(second_short[t][j], ones),
                                                    );
                                                    second_short[t][j] = _mm256_setzero_si256();
                                                }
                                            }
                                        }
                                    }
                                }
                            }
                            for t in 0..M {
                                let (scale, other) = F::scales(&held[t], block);
                                for j in 0..N {
                                    let sum = &mut sums[t][j];
                                    let mut scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(first[t][j]), scale);
                                    if matches!(F::KIND, Kind::Halves) {
                                        scaled = _mm256_fmadd_ps(_mm256_cvtepi32_ps(second[t][j]), other, scaled);
                                    }
                                    *sum = _mm256_fmadd_ps(scaled, _mm256_set1_ps(*rows_at.scales.add(j)), *sum);
                                    if matches!(F::KIND, Kind::Minimum) {
                                        *sum = _mm256_fmadd_ps(other, _mm256_set1_ps(*rows_at.sums.add(j)), *sum);
                                    }
                                }
                            }
                            rows_at = rows_at.skip(rows_at.n);
                        }
                    }
                }
                sums
            }

            /// Multiplies tiles of floating point numbers with all groups.
            ///
            /// # Safety
            /// As for [`quantised`].
            #[target_feature(enable = $features)]
            unsafe fn floats<F: Floats>(work: &Work<'_>) {
                let blocks = work.section.layout.blocks();
                for tile in work.tiles.clone() {
                    let weights = work.tile(tile).as_ptr();
                    for (index, group) in work.groups.iter().enumerate() {
                        for from in (0..group.rows).step_by(ROWS_AT_ONCE) {
                            macro_rules! dispatch {
                                ($d($n:literal)*) => {
                                    match (group.rows - from).min(ROWS_AT_ONCE) {
                                        $d(
                                            $n => {
                                                // SAFETY: the caller says that the group is whole, the tile is, and
                                                // there are so many rows from that one on.
                                                let sums = unsafe {
                                                    let rows = group.floats.as_ptr().add(from * BLOCK);
                                                    float_dots::<F, $n>(weights, rows, group.rows, blocks)
                                                };
                                                for (half, sums) in sums.iter().enumerate() {
                                                    store(work, tile, half, index, from, sums);
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
            #[target_feature(enable = $features)]
            #[inline(never)]
            unsafe fn float_dots<F: Floats, const N: usize>(
                weights: *const u8,
                rows: *const f32,
                n: usize,
                blocks: usize,
            ) -> [[__m256; N]; 2] {
                let mut sums = [[_mm256_setzero_ps(); N]; 2];
                for block in 0..blocks {
                    for k in 0..BLOCK {
                        // SAFETY: the caller says that there are so many blocks of `n` rows.
                        unsafe {
                            let from = weights.add((block * BLOCK + k) * ROWS * F::SIZE);
                            fetch(from.wrapping_add(AHEAD), LINE);
                            let weights = (F::load(from), F::load(from.add(HALF * F::SIZE)));
                            for j in 0..N {
                                let value = _mm256_set1_ps(*rows.add((block * n + j) * BLOCK + k));
                                sums[0][j] = _mm256_fmadd_ps(weights.0, value, sums[0][j]);
                                sums[1][j] = _mm256_fmadd_ps(weights.1, value, sums[1][j]);
                            }
                        }
                    }
                }
                sums
            }
        }
    };
}

/// Stands for the instruction where there is none.
#[target_feature(enable = "avx2")]
#[inline]
fn no_dot_product(sum: __m256i, _weights: __m256i, _activations: __m256i) -> __m256i {
    sum
}

kernels!($ plain, "avx2,fma,f16c", false, no_dot_product);
kernels!($ vnni, "avx2,fma,f16c,avxvnni", true, std::arch::x86_64::_mm256_dpbusd_avx_epi32);

// The same instruction in the encoding of AVX-512, to test the kernels where that is all there is.
#[cfg(test)]
kernels!($ vnni_of_avx512, "avx2,fma,f16c,avx512vnni,avx512vl", true, std::arch::x86_64::_mm256_dpbusd_epi32);
