//! Products with AVX-512 and its byte dot product: sixteen weight rows side by side in a register.
//!
//! A group of up to eight activation rows goes through a tile at once, so that weights are unpacked once for eight. Where
//! unpacking is much work and there are many groups, a tile is first unpacked to memory, and the groups share that.

#![expect(unsafe_code, reason = "SIMD kernels: vector loads through pointers and instructions that need detection")]

use std::arch::x86_64::{
    __m128i, __m256i, __m512, __m512i, _mm_cvtsi32_si128, _mm_load_si128, _mm_loadu_si128, _mm256_load_si256,
    _mm512_and_si512, _mm512_castsi512_ps, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32,
    _mm512_cvtepu16_epi32, _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_load_ps, _mm512_load_si512,
    _mm512_mask_storeu_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_sll_epi16, _mm512_slli_epi32, _mm512_srl_epi16, _mm512_srli_epi16,
    _mm512_store_ps, _mm512_store_si512, _mm512_sub_ps,
};
use std::marker::PhantomData;

use super::simd::{
    AHEAD, Floats, MEMORY_LINES, Quantised, Rows, Unpacked, fetch, float_kernels, for_format, k_quantised, quantised,
    readers, with_memory,
};
use super::{Work, visited};
use crate::format::{BLOCK, Format, SUPER};
use crate::tile::{Kind, LINE, ROWS, kind, quant_bytes, unit_blocks, unit_bytes};

readers!("avx512f,avx512bw", bytes: __m512i, numbers: __m512, rows: ROWS);
float_kernels!("avx512f,avx512bw", numbers: __m512, rows at once: 1 2 3 4 5 6 7 8);

/// Rows that are multiplied at once: all of a group.
const ROWS_AT_ONCE: usize = 8;

/// Groups from which on it pays to unpack a tile to memory, where that is much work.
const UNPACK_FROM: usize = 8;

/// Does the work.
pub(super) fn run(work: &Work<'_>) {
    work.check();
    // SAFETY: a matrix of this tier is only made where the processor has its instructions; `Work::check`,
    // `Work::tile` and `Work::output` are the bounds that the kernels rely on.
    unsafe { for_format!(work, floats, quantised) }
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
fn bits(bytes: __m512i, by: i32, mask: u8) -> __m512i {
    let shifted = if by >= 0 {
        _mm512_sll_epi16(bytes, _mm_cvtsi32_si128(by))
    } else {
        _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(-by))
    };
    _mm512_and_si512(shifted, _mm512_set1_epi8(mask.cast_signed()))
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn or(a: __m512i, b: __m512i) -> __m512i {
    _mm512_or_si512(a, b)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn zero() -> __m512 {
    _mm512_setzero_ps()
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn multiply_add(weights: __m512, value: f32, sum: __m512) -> __m512 {
    _mm512_fmadd_ps(weights, _mm512_set1_ps(value), sum)
}

/// Loads a line.
///
/// # Safety
/// There is one at `at`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn load(at: *const u8) -> __m512i {
    // SAFETY: the caller says so.
    unsafe { _mm512_load_si512(at.cast::<__m512i>()) }
}

/// Stores a line.
///
/// # Safety
/// There is room for one at `at`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn store(at: *mut u8, bytes: __m512i) {
    // SAFETY: the caller says so.
    unsafe { _mm512_store_si512(at.cast::<__m512i>(), bytes) }
}

/// Loads sixteen numbers.
///
/// # Safety
/// They are a line at `at`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn load_numbers(at: *const f32) -> __m512 {
    // SAFETY: the caller says so.
    unsafe { _mm512_load_ps(at) }
}

/// Stores sixteen numbers.
///
/// # Safety
/// There is room for a line at `at`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn store_numbers(at: *mut f32, numbers: __m512) {
    // SAFETY: the caller says so.
    unsafe { _mm512_store_ps(at, numbers) }
}

/// Stores the first `n` numbers.
///
/// # Safety
/// There is room for them at `to`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn store_some(to: *mut f32, numbers: __m512, n: usize) {
    // SAFETY: the caller says so.
    unsafe { _mm512_mask_storeu_ps(to, ((1u32 << n) - 1) as u16, numbers) }
}

/// Loads sixteen half precision numbers.
///
/// # Safety
/// They are half a line at `at`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller says so.
    _mm512_cvtph_ps(unsafe { _mm256_load_si256(at.cast::<__m256i>()) })
}

/// Loads sixteen numbers that are the upper halves of single precision ones.
///
/// # Safety
/// They are half a line at `at`.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn bf16(at: *const u8) -> __m512 {
    // SAFETY: the caller says so.
    let bits = unsafe { _mm256_load_si256(at.cast::<__m256i>()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

/// Unpacks the scales and minima of eight blocks, in six bits each.
///
/// # Safety
/// As for [`Quantised::enter`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn enter6(at: *const u8, _part: usize, unpacked: &mut Unpacked<ROWS>) {
    #[repr(C, align(64))]
    struct Lines([[u8; LINE]; 4]);
    let mut lines = Lines([[0; LINE]; 4]);
    // SAFETY: the caller says that the scales are there: twelve times sixteen bytes, then sixteen scales and minima.
    unsafe {
        let (first, second, third) = (load(at), load(at.add(LINE)), load(at.add(2 * LINE)));
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
            let of_scale = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(from.add(part))));
            _mm512_store_ps(scales.as_mut_ptr(), _mm512_mul_ps(scale, of_scale));
            let of_minimum = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(from.add(SUPER + part))));
            let product = _mm512_mul_ps(minimum, of_minimum);
            _mm512_store_ps(minima.as_mut_ptr(), _mm512_sub_ps(_mm512_set1_ps(-0.0), product));
        }
    }
}

/// Unpacks the scales of both halves of eight blocks, in eight bits each.
///
/// # Safety
/// As for [`Quantised::enter`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn enter8(at: *const u8, _part: usize, unpacked: &mut Unpacked<ROWS>) {
    // SAFETY: the caller says that the scales are there: sixteen times sixteen bytes, then sixteen scales.
    unsafe {
        let scale = halves(at.add(16 * ROWS));
        for (part, to) in unpacked.0.as_flattened_mut().iter_mut().enumerate() {
            let bytes = _mm_loadu_si128(at.add(part * ROWS).cast::<__m128i>());
            _mm512_store_ps(to.as_mut_ptr(), _mm512_mul_ps(scale, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))));
        }
    }
}

/// Multiplies the tiles with all groups.
///
/// # Safety
/// The processor has the instructions, and the groups hold as many values as the layout says.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn quantised<F: Reader>(work: &Work<'_>) {
    let layout = work.section.layout;
    let (format, blocks) = (layout.format, layout.blocks());
    if F::SIMPLE || work.groups.len() < UNPACK_FROM {
        for tile in work.tiles.clone() {
            let at = work.tile(tile).as_ptr();
            for (index, group) in work.groups.iter().enumerate() {
                // SAFETY: `Work::tile` gives whole tiles, aligned to lines; the caller says that the groups are whole.
                unsafe { multiply_group::<F>(work, at, blocks, tile, index, Rows::new(group, format)) };
            }
        }
        return;
    }
    with_memory(blocks, |memory| {
        for tile in work.tiles.clone() {
            // SAFETY: the tile is whole, and there is memory for it.
            unsafe { unpack::<F>(work.tile(tile).as_ptr(), memory, blocks) };
            // Each group asks for its share of the next tile.
            let size = layout.tile_bytes();
            let share = size.div_ceil(work.groups.len()).next_multiple_of(LINE);
            for (index, group) in work.groups.iter().enumerate() {
                fetch(work.tile(tile).as_ptr().wrapping_add(size + index * share), share);
                // SAFETY: as above.
                unsafe { multiply_group::<Memory<F>>(work, memory, blocks, tile, index, Rows::new(group, format)) };
            }
        }
    });
}

/// Multiplies one tile with a group and stores the products.
///
/// # Safety
/// The tile and the group have so many blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline]
unsafe fn multiply_group<F: Reader>(
    work: &Work<'_>,
    tile: *const u8,
    blocks: usize,
    index: usize,
    group: usize,
    rows: Rows<'_>,
) {
    macro_rules! dispatch {
        ($($n:literal)*) => {
            match rows.n {
                $(
                    $n => {
                        // SAFETY: the caller says so.
                        let sums = unsafe { dots::<F, $n>(tile, rows, blocks) };
                        store_products(work, index, 0, group, 0, &sums);
                    }
                )*
                _ => {}
            }
        };
    }
    dispatch!(1 2 3 4 5 6 7 8);
}

/// Multiplies a tile with `N` rows.
///
/// # Safety
/// The tile and the rows have so many blocks, and there are `N` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[inline(never)]
unsafe fn dots<F: Reader, const N: usize>(tile: *const u8, mut rows: Rows<'_>, blocks: usize) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    let mut held = F::NOTHING;
    let units = blocks.div_ceil(F::UNIT);
    for visit in 0..units + rows.again.len() {
        let (unit, inside) = visited(visit, F::UNIT, blocks, rows.again);
        // SAFETY: unit and block are below what the caller says is there, and each row index below `N`.
        unsafe {
            let unit_at = tile.add(unit * F::UNIT_BYTES);
            let scales = unit_at.add(F::UNIT * F::SIZE);
            F::enter(scales, 0, &mut held);
            if F::FETCH && visit < units {
                fetch(scales.wrapping_add(AHEAD), F::UNIT_BYTES - F::UNIT * F::SIZE);
            }
            for block in inside {
                let quants = unit_at.add(block * F::SIZE);
                if F::FETCH && visit < units {
                    fetch(quants.wrapping_add(AHEAD), F::SIZE);
                }
                // Loops rather than closures: those would not become part of this function's instructions for sure.
                let mut first = [_mm512_setzero_si512(); N];
                let mut second = [_mm512_setzero_si512(); N];
                for j in 0..N {
                    match F::KIND {
                        Kind::Offset => first[j] = _mm512_set1_epi32(*rows.starts.add(j)),
                        Kind::Minimum => {}
                        Kind::Halves => {
                            first[j] = _mm512_set1_epi32(*rows.starts.add(2 * j));
                            second[j] = _mm512_set1_epi32(*rows.starts.add(2 * j + 1));
                        }
                    }
                }
                let activations = rows.quants.cast::<i32>();
                for i in 0..4 {
                    let (low, high) = F::pair(quants, i);
                    for j in 0..N {
                        let at = activations.add(j * (BLOCK / 4) + i);
                        let of_low = _mm512_set1_epi32(at.read_unaligned());
                        let of_high = _mm512_set1_epi32(at.add(4).read_unaligned());
                        first[j] = _mm512_dpbusd_epi32(first[j], low, of_low);
                        let other = match F::KIND {
                            Kind::Halves => &mut second[j],
                            Kind::Offset | Kind::Minimum => &mut first[j],
                        };
                        *other = _mm512_dpbusd_epi32(*other, high, of_high);
                    }
                }
                let (scale, other) = F::scales(&held, block);
                for (j, sum) in sums.iter_mut().enumerate() {
                    let mut scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(first[j]), scale);
                    if matches!(F::KIND, Kind::Halves) {
                        scaled = _mm512_fmadd_ps(_mm512_cvtepi32_ps(second[j]), other, scaled);
                    }
                    *sum = _mm512_fmadd_ps(scaled, _mm512_set1_ps(*rows.scales.add(j)), *sum);
                    if matches!(F::KIND, Kind::Minimum) {
                        *sum = _mm512_fmadd_ps(other, _mm512_set1_ps(*rows.sums.add(j)), *sum);
                    }
                }
                rows = rows.skip(N);
            }
        }
    }
    sums
}
