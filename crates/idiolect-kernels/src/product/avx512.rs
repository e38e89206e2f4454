//! Products with AVX-512 and its byte dot product: sixteen weight rows side by side in a register.
//!
//! A group of up to eight activation rows goes through a tile at once, so that weights are unpacked once for eight. Where
//! there are several groups, a tile is first unpacked to memory, and the groups share that.

#![expect(unsafe_code, reason = "SIMD kernels: vector loads through pointers and instructions that need detection")]

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _MM_HINT_T0, _mm_cvtsi32_si128, _mm_load_si128, _mm_prefetch, _mm256_load_si256,
    _mm256_loadu_si256, _mm512_and_si512, _mm512_castsi512_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps,
    _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps,
    _mm512_load_ps, _mm512_load_si512, _mm512_mask_storeu_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi8,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_sll_epi16, _mm512_slli_epi32,
    _mm512_srl_epi16, _mm512_srli_epi16, _mm512_store_ps, _mm512_store_si512, _mm512_sub_ps,
};
use std::cell::RefCell;

use super::Work;
use crate::activations::{GROUP, Group};
use crate::format::{BLOCK, Format, SUPER};
use crate::tile::{Kind, LINE, ROWS, kind, offset, quant_bytes, scale_bytes};

/// Groups from which on it pays to unpack a tile to memory.
const UNPACK_FROM: usize = 3;

/// How far ahead weights are fetched, in bytes.
const AHEAD: usize = 2048;

thread_local! {
    /// The tile that a thread has unpacked.
    static UNPACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Sixteen numbers, or four columns of bytes for sixteen rows.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// Does the work.
pub(super) fn run(work: &Work<'_>) {
    let layout = work.section.layout;
    // The kernels index without checks inside these bounds.
    for group in work.groups {
        let blocks = group.rows * layout.blocks();
        assert!((1..=GROUP).contains(&group.rows), "rows in a group");
        if layout.format.is_quantised() {
            assert_eq!(group.quants.len(), blocks * BLOCK);
            assert_eq!([group.scales.len(), group.sums.len(), group.halves.len()], [blocks; 3]);
            assert!(group.starts.iter().all(|starts| starts.len() == blocks));
        } else {
            assert_eq!(group.floats.len(), blocks * BLOCK);
        }
    }
    // SAFETY: a matrix of this tier is only made where the processor has its instructions; the assertions above, and
    // `Work::tile` and `Work::output`, are the bounds that the kernels rely on.
    unsafe {
        match layout.format {
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

/// Where a group's encoded rows are.
#[derive(Clone, Copy)]
struct Rows {
    quants: *const i8,
    scales: *const f32,
    sums: *const f32,
    starts: *const i32,
    /// Rows in the group.
    n: usize,
}

impl Rows {
    fn new(group: &Group, format: Format) -> Self {
        let starts = match (kind(format), offset(format)) {
            (Kind::Halves, _) => group.halves.as_ptr().cast::<i32>(),
            (_, 16) => group.starts[1].as_ptr(),
            (_, 128) => group.starts[2].as_ptr(),
            _ => group.starts[0].as_ptr(),
        };
        Self {
            quants: group.quants.as_ptr(),
            scales: group.scales.as_ptr(),
            sums: group.sums.as_ptr(),
            starts,
            n: group.rows,
        }
    }
}

/// Scales of one block for sixteen rows, and what else it has: minima, or the scales of the second half.
type Scales = (__m512, __m512);

/// Scales of [`SUPER`] blocks, unpacked.
#[repr(C, align(64))]
struct Unpacked([[[f32; ROWS]; 2]; SUPER]);

/// How a quantised format is read. All methods take where the quants of a block, or all scales, begin.
trait Quantised {
    const FORMAT: Format;
    const KIND: Kind = kind(Self::FORMAT);
    /// How far ahead weights are fetched, in bytes.
    const AHEAD: Option<usize> = Some(AHEAD);

    /// Returns groups `i` and `i + 4` of a block.
    ///
    /// # Safety
    /// `quants` holds a packed block, `i` is below 4, and the processor has this module's instructions.
    unsafe fn pair(quants: *const u8, i: usize) -> (__m512i, __m512i);

    /// Is called before every [`SUPER`]th block.
    ///
    /// # Safety
    /// `scales` holds those of a tile with that block, and the processor has this module's instructions.
    #[inline]
    unsafe fn enter(_scales: *const u8, _block: usize, _unpacked: &mut Unpacked) {}

    /// Returns the scales of a block.
    ///
    /// # Safety
    /// As for [`enter`](Self::enter), which was called.
    unsafe fn scales(scales: *const u8, block: usize, unpacked: &Unpacked) -> Scales;
}

/// Splits sixty-four bytes into their lower and upper halves.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn nibbles(bytes: __m512i) -> (__m512i, __m512i) {
    let mask = _mm512_set1_epi8(15);
    (_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask))
}

/// Shifts to the left, or to the right where `by` is negative, and keeps the bits of `mask` in each byte.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn bits(bytes: __m512i, by: i32, mask: i8) -> __m512i {
    let shifted = if by >= 0 {
        _mm512_sll_epi16(bytes, _mm_cvtsi32_si128(by))
    } else {
        _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(-by))
    };
    _mm512_and_si512(shifted, _mm512_set1_epi8(mask))
}

/// Loads a line.
///
/// # Safety
/// There is one at `at`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn line(at: *const u8) -> __m512i {
    // SAFETY: the caller says so.
    unsafe { _mm512_load_si512(at.cast::<__m512i>()) }
}

/// Loads sixteen half precision numbers.
///
/// # Safety
/// They are at `at`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller says so.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast::<__m256i>()) })
}

/// Four bits: groups `i` and `i + 4` share a line.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn pair4(quants: *const u8, i: usize) -> (__m512i, __m512i) {
    // SAFETY: the caller says so.
    nibbles(unsafe { line(quants.add(i * LINE)) })
}

/// Five bits: a fifth line has the highest.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn pair5(quants: *const u8, i: usize) -> (__m512i, __m512i) {
    // SAFETY: the caller says so.
    let (low, high) = unsafe { pair4(quants, i) };
    // SAFETY: likewise.
    let fifth = unsafe { line(quants.add(4 * LINE)) };
    let by = i as i32;
    (_mm512_or_si512(low, bits(fifth, 4 - by, 16)), _mm512_or_si512(high, bits(fifth, -by, 16)))
}

/// Scales alone.
///
/// # Safety
/// As for [`Quantised::scales`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn scale(scales: *const u8, block: usize) -> Scales {
    // SAFETY: the caller says so.
    (unsafe { halves(scales.add(block * 2 * ROWS)) }, _mm512_setzero_ps())
}

/// Scales and minima.
///
/// # Safety
/// As for [`Quantised::scales`].
#[target_feature(enable = "avx512f,avx512bw")]
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
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn enter6(scales: *const u8, block: usize, unpacked: &mut Unpacked) {
    #[repr(C, align(64))]
    struct Lines([[u8; LINE]; 4]);
    let mut lines = Lines([[0; LINE]; 4]);
    // SAFETY: the caller says that the scales are there: twelve times sixteen bytes, then sixteen scales and minima.
    unsafe {
        let at = scales.add(block / SUPER * scale_bytes(Format::Q4K));
        let load = |i: usize| std::arch::x86_64::_mm512_loadu_si512(at.add(i * LINE).cast::<__m512i>());
        let (first, second, third) = (load(0), load(1), load(2));
        let (scale, minimum) = (halves(at.add(12 * ROWS)), halves(at.add(14 * ROWS)));
        let six = _mm512_set1_epi8(63);
        let (low, high) = nibbles(third);
        let to = lines.0.as_mut_ptr().cast::<__m512i>();
        // Parts 0 to 3 and 4 to 7 of the scales, then of the minima.
        _mm512_store_si512(to, _mm512_and_si512(first, six));
        _mm512_store_si512(to.add(1), _mm512_or_si512(low, bits(first, -2, 0x30)));
        _mm512_store_si512(to.add(2), _mm512_and_si512(second, six));
        _mm512_store_si512(to.add(3), _mm512_or_si512(high, bits(second, -2, 0x30)));
        let from = lines.0.as_ptr().cast::<__m128i>();
        for (part, [scales, minima]) in unpacked.0.iter_mut().enumerate() {
            let integers = |i: usize| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(from.add(i))));
            _mm512_store_ps(scales.as_mut_ptr(), _mm512_mul_ps(scale, integers(part)));
            let product = _mm512_mul_ps(minimum, integers(SUPER + part));
            _mm512_store_ps(minima.as_mut_ptr(), _mm512_sub_ps(_mm512_set1_ps(-0.0), product));
        }
    }
}

/// Returns unpacked scales.
///
/// # Safety
/// The processor has this module's instructions.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn unpacked_scales(block: usize, unpacked: &Unpacked) -> Scales {
    let [first, second] = &unpacked.0[block % SUPER];
    // SAFETY: both are whole lines.
    unsafe { (_mm512_load_ps(first.as_ptr()), _mm512_load_ps(second.as_ptr())) }
}

macro_rules! quantised {
    ($name:ident, $pair:ident, $scales:ident) => {
        struct $name;

        impl Quantised for $name {
            const FORMAT: Format = Format::$name;

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> (__m512i, __m512i) {
                // SAFETY: the caller says so.
                unsafe { $pair(quants, i) }
            }

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn scales(scales: *const u8, block: usize, _unpacked: &Unpacked) -> Scales {
                // SAFETY: the caller says so.
                unsafe { $scales(scales, block) }
            }
        }
    };
}

quantised!(Q4_0, pair4, scale);
quantised!(Q4_1, pair4, scale_and_minimum);
quantised!(Q5_0, pair5, scale);
quantised!(Q5_1, pair5, scale_and_minimum);
quantised!(Q8_0, pair8, scale);

/// Eight bits.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn pair8(quants: *const u8, i: usize) -> (__m512i, __m512i) {
    // SAFETY: the caller says so.
    unsafe { (line(quants.add(i * LINE)), line(quants.add((i + 4) * LINE))) }
}

macro_rules! k_quantised {
    ($name:ident, $pair:ident, $enter:ident) => {
        struct $name;

        impl Quantised for $name {
            const FORMAT: Format = Format::$name;

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn pair(quants: *const u8, i: usize) -> (__m512i, __m512i) {
                // SAFETY: the caller says so.
                unsafe { $pair(quants, i) }
            }

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn enter(scales: *const u8, block: usize, unpacked: &mut Unpacked) {
                // SAFETY: the caller says so.
                unsafe { $enter(scales, block, unpacked) }
            }

            #[target_feature(enable = "avx512f,avx512bw")]
            #[inline]
            unsafe fn scales(_scales: *const u8, block: usize, unpacked: &Unpacked) -> Scales {
                // SAFETY: the caller says so.
                unsafe { unpacked_scales(block, unpacked) }
            }
        }
    };
}

k_quantised!(Q4K, pair4, enter6);
k_quantised!(Q5K, pair5, enter6);
k_quantised!(Q6K, pair6, enter8);

/// Six bits: two more lines have the highest two, one for each half of the groups.
///
/// # Safety
/// As for [`Quantised::pair`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn pair6(quants: *const u8, i: usize) -> (__m512i, __m512i) {
    // SAFETY: the caller says so.
    let (low, high, first, second) = unsafe {
        let (low, high) = pair4(quants, i);
        (low, high, line(quants.add(4 * LINE)), line(quants.add(5 * LINE)))
    };
    let by = 4 - 2 * i as i32;
    (_mm512_or_si512(low, bits(first, by, 0x30)), _mm512_or_si512(high, bits(second, by, 0x30)))
}

/// Unpacks the scales of both halves of eight blocks, in eight bits each.
///
/// # Safety
/// As for [`Quantised::enter`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn enter8(scales: *const u8, block: usize, unpacked: &mut Unpacked) {
    // SAFETY: the caller says that the scales are there: sixteen times sixteen bytes, then sixteen scales.
    unsafe {
        let at = scales.add(block / SUPER * scale_bytes(Format::Q6K));
        let scale = halves(at.add(16 * ROWS));
        for (part, to) in unpacked.0.as_flattened_mut().iter_mut().enumerate() {
            let bytes = std::arch::x86_64::_mm_loadu_si128(at.add(part * ROWS).cast::<__m128i>());
            _mm512_store_ps(to.as_mut_ptr(), _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))));
        }
    }
}

/// A tile of a format that was unpacked to memory: bytes in whole lines, then scales in single precision.
struct Memory<F>(F);

impl<F: Quantised> Quantised for Memory<F> {
    const FORMAT: Format = F::FORMAT;
    const AHEAD: Option<usize> = None;

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn pair(quants: *const u8, i: usize) -> (__m512i, __m512i) {
        // SAFETY: the caller says so.
        unsafe { pair8(quants, i) }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn scales(scales: *const u8, block: usize, _unpacked: &Unpacked) -> Scales {
        // SAFETY: the caller says so; there are two lines for each block.
        unsafe {
            let at = scales.add(block * 2 * LINE).cast::<f32>();
            (_mm512_load_ps(at), _mm512_load_ps(at.add(ROWS)))
        }
    }
}

/// Multiplies the tiles with all groups.
///
/// # Safety
/// The processor has the instructions, and the groups hold as many values as the layout says.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn quantised<F: Quantised>(work: &Work<'_>) {
    let layout = work.section.layout;
    let blocks = layout.blocks();
    let size = quant_bytes(F::FORMAT);
    // SAFETY: `Work::tile` gives whole tiles, aligned to lines; the caller says that the groups are whole.
    unsafe {
        if work.groups.len() < UNPACK_FROM {
            for tile in work.tiles.clone() {
                let quants = work.tile(tile).as_ptr();
                let scales = quants.add(layout.scales_at());
                for (index, group) in work.groups.iter().enumerate() {
                    multiply::<F>(work, (quants, scales, size), tile, index, group, blocks);
                }
            }
            return;
        }
        let mut memory = UNPACKED.with_borrow_mut(std::mem::take);
        memory.resize(blocks * 10, Line([0; LINE]));
        for tile in work.tiles.clone() {
            let packed = work.tile(tile).as_ptr();
            let quants = memory.as_mut_ptr().cast::<u8>();
            let scales = quants.add(blocks * 8 * LINE);
            unpack::<F>(packed, packed.add(layout.scales_at()), quants, scales, blocks);
            for (index, group) in work.groups.iter().enumerate() {
                multiply::<Memory<F>>(work, (quants, scales, 8 * LINE), tile, index, group, blocks);
            }
        }
        UNPACKED.set(memory);
    }
}

/// Unpacks a tile to memory.
///
/// # Safety
/// There is a packed tile of so many blocks, and room for ten lines for each.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn unpack<F: Quantised>(
    quants: *const u8,
    scales: *const u8,
    to_quants: *mut u8,
    to_scales: *mut u8,
    blocks: usize,
) {
    let mut unpacked = Unpacked([[[0.0; ROWS]; 2]; SUPER]);
    for block in 0..blocks {
        // SAFETY: the caller says so.
        unsafe {
            if block % SUPER == 0 {
                F::enter(scales, block, &mut unpacked);
            }
            let from = quants.add(block * quant_bytes(F::FORMAT));
            let to = to_quants.add(block * 8 * LINE).cast::<__m512i>();
            for i in 0..4 {
                let (low, high) = F::pair(from, i);
                _mm512_store_si512(to.add(i), low);
                _mm512_store_si512(to.add(i + 4), high);
            }
            let (first, second) = F::scales(scales, block, &unpacked);
            let to = to_scales.add(block * 2 * LINE).cast::<f32>();
            _mm512_store_ps(to, first);
            _mm512_store_ps(to.add(ROWS), second);
        }
    }
}

/// Multiplies one tile with one group and stores the products.
///
/// # Safety
/// The tile and the group have so many blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn multiply<F: Quantised>(
    work: &Work<'_>,
    weights: (*const u8, *const u8, usize),
    tile: usize,
    index: usize,
    group: &Group,
    blocks: usize,
) {
    let rows = Rows::new(group, F::FORMAT);
    macro_rules! dispatch {
        ($($n:literal)*) => {
            match group.rows {
                $(
                    $n => {
                        // SAFETY: the caller says so.
                        let sums = unsafe { dots::<F, $n>(weights, rows, blocks) };
                        store(work, tile, index, &sums);
                    }
                )*
                _ => {}
            }
        };
    }
    dispatch!(1 2 3 4 5 6 7 8);
}

/// Stores the products of a tile with the rows of a group.
#[target_feature(enable = "avx512f")]
#[inline]
fn store(work: &Work<'_>, tile: usize, group: usize, sums: &[__m512]) {
    for (row, sums) in sums.iter().enumerate() {
        let (to, n) = work.output(tile, group, row);
        // SAFETY: `output` gives room for n numbers that only this task writes.
        unsafe { _mm512_mask_storeu_ps(to, ((1u32 << n) - 1) as u16, *sums) };
    }
}

/// Multiplies a tile with `N` rows.
///
/// # Safety
/// The tile and the rows have so many blocks, and there are `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
unsafe fn dots<F: Quantised, const N: usize>(
    (quants, scales, size): (*const u8, *const u8, usize),
    rows: Rows,
    blocks: usize,
) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    let mut unpacked = Unpacked([[[0.0; ROWS]; 2]; SUPER]);
    for block in 0..blocks {
        // SAFETY: block is below the number of blocks that the caller says are there, and each row index below `N`.
        unsafe {
            if block % SUPER == 0 {
                F::enter(scales, block, &mut unpacked);
            }
            let from = quants.add(block * size);
            if let Some(ahead) = F::AHEAD {
                for i in 0..size / LINE {
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(ahead + i * LINE).cast::<i8>());
                }
            }
            let activations = rows.quants.add(block * rows.n * BLOCK).cast::<i32>();
            let at = block * rows.n;
            let mut first = [_mm512_setzero_si512(); N];
            let mut second = [_mm512_setzero_si512(); N];
            for j in 0..N {
                match F::KIND {
                    Kind::Offset => first[j] = _mm512_set1_epi32(*rows.starts.add(at + j)),
                    Kind::Minimum => {}
                    Kind::Halves => {
                        first[j] = _mm512_set1_epi32(*rows.starts.add((at + j) * 2));
                        second[j] = _mm512_set1_epi32(*rows.starts.add((at + j) * 2 + 1));
                    }
                }
            }
            for i in 0..4 {
                let (low, high) = F::pair(from, i);
                for j in 0..N {
                    let four = |group: usize| _mm512_set1_epi32(activations.add(j * (BLOCK / 4) + group).read_unaligned());
                    first[j] = _mm512_dpbusd_epi32(first[j], low, four(i));
                    let other = if matches!(F::KIND, Kind::Halves) { &mut second[j] } else { &mut first[j] };
                    *other = _mm512_dpbusd_epi32(*other, high, four(i + 4));
                }
            }
            let (scale, other) = F::scales(scales, block, &unpacked);
            for j in 0..N {
                let of_row = _mm512_set1_ps(*rows.scales.add(at + j));
                let mut scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(first[j]), scale);
                if matches!(F::KIND, Kind::Halves) {
                    scaled = _mm512_fmadd_ps(_mm512_cvtepi32_ps(second[j]), other, scaled);
                }
                sums[j] = _mm512_fmadd_ps(scaled, of_row, sums[j]);
                if matches!(F::KIND, Kind::Minimum) {
                    sums[j] = _mm512_fmadd_ps(other, _mm512_set1_ps(*rows.sums.add(at + j)), sums[j]);
                }
            }
        }
    }
    sums
}

/// How a floating point format is read.
trait Floats {
    const SIZE: usize;

    /// Loads sixteen numbers.
    ///
    /// # Safety
    /// They are at `at`, and the processor has this module's instructions.
    unsafe fn load(at: *const u8) -> __m512;
}

struct F32;
struct F16;
struct Bf16;

impl Floats for F32 {
    const SIZE: usize = 4;

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller says so.
        unsafe { _mm512_load_ps(at.cast::<f32>()) }
    }
}

impl Floats for F16 {
    const SIZE: usize = 2;

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller says so.
        unsafe { halves(at) }
    }
}

impl Floats for Bf16 {
    const SIZE: usize = 2;

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn load(at: *const u8) -> __m512 {
        // SAFETY: the caller says so.
        let bits = unsafe { _mm256_load_si256(at.cast::<__m256i>()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
    }
}

/// Multiplies tiles of floating point numbers with all groups.
///
/// # Safety
/// As for [`quantised`].
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn floats<F: Floats>(work: &Work<'_>) {
    let blocks = work.section.layout.blocks();
    for tile in work.tiles.clone() {
        let weights = work.tile(tile).as_ptr();
        for (index, group) in work.groups.iter().enumerate() {
            macro_rules! dispatch {
                ($($n:literal)*) => {
                    match group.rows {
                        $(
                            $n => {
                                // SAFETY: the caller says that the group is whole, and the tile is.
                                let sums = unsafe { float_dots::<F, $n>(weights, group.floats.as_ptr(), blocks) };
                                store(work, tile, index, &sums);
                            }
                        )*
                        _ => {}
                    }
                };
            }
            dispatch!(1 2 3 4 5 6 7 8);
        }
    }
}

/// Multiplies a tile of floating point numbers with `N` rows.
///
/// # Safety
/// The tile and the rows have so many blocks, and there are `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
unsafe fn float_dots<F: Floats, const N: usize>(weights: *const u8, rows: *const f32, blocks: usize) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    for block in 0..blocks {
        for k in 0..BLOCK {
            // SAFETY: the caller says that there are so many blocks of `N` rows.
            unsafe {
                let from = weights.add((block * BLOCK + k) * ROWS * F::SIZE);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast::<i8>());
                let weights = F::load(from);
                for (j, sum) in sums.iter_mut().enumerate() {
                    let value = *rows.add((block * N + j) * BLOCK + k);
                    *sum = _mm512_fmadd_ps(weights, _mm512_set1_ps(value), *sum);
                }
            }
        }
    }
    sums
}
