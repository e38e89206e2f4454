//! Products with AVX2, and with AVX-VNNI on top of it: eight weight rows side by side in a register.
//!
//! What `avx512.rs` does with a tile, this does with its halves, and up to four activation rows at once.

#![expect(unsafe_code, reason = "SIMD kernels: vector loads through pointers and instructions that need detection")]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_cvtsi32_si128, _mm_load_si128, _mm_loadl_epi64, _mm256_and_si256,
    _mm256_castsi256_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32, _mm256_cvtepu16_epi32,
    _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_load_ps, _mm256_load_si256, _mm256_mul_ps, _mm256_or_si256,
    _mm256_set1_epi8, _mm256_set1_ps, _mm256_setzero_ps, _mm256_sll_epi16, _mm256_slli_epi32, _mm256_srl_epi16,
    _mm256_srli_epi16, _mm256_store_ps, _mm256_store_si256, _mm256_storeu_ps, _mm256_sub_ps,
};
use std::marker::PhantomData;

use super::simd::{
    AHEAD, Floats, MEMORY_LINES, Quantised, Rows, Unpacked, fetch, float_kernels, for_format, k_quantised, quantised,
    readers, with_memory,
};
use super::{Work, visited};
use crate::format::{BLOCK, Format, SUPER};
use crate::tile::{Kind, LINE, ROWS, kind, quant_bytes, unit_blocks, unit_bytes};

readers!("avx2,fma,f16c", bytes: __m256i, numbers: __m256, rows: ROWS / 2);
float_kernels!("avx2,fma,f16c", numbers: __m256, rows at once: 1 2 3 4);

/// Groups from which on it pays to unpack a tile to memory, where that is much work.
const UNPACK_FROM: usize = 4;

/// Rows that are multiplied at once.
const ROWS_AT_ONCE: usize = 4;

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
fn bits(bytes: __m256i, by: i32, mask: u8) -> __m256i {
    let shifted = if by >= 0 {
        _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(by))
    } else {
        _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(-by))
    };
    _mm256_and_si256(shifted, _mm256_set1_epi8(mask.cast_signed()))
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn or(a: __m256i, b: __m256i) -> __m256i {
    _mm256_or_si256(a, b)
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn zero() -> __m256 {
    _mm256_setzero_ps()
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn multiply_add(weights: __m256, value: f32, sum: __m256) -> __m256 {
    _mm256_fmadd_ps(weights, _mm256_set1_ps(value), sum)
}

/// Loads half a line.
///
/// # Safety
/// It is at `at`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn load(at: *const u8) -> __m256i {
    // SAFETY: the caller says so.
    unsafe { _mm256_load_si256(at.cast::<__m256i>()) }
}

/// Stores half a line.
///
/// # Safety
/// There is room for it at `at`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn store(at: *mut u8, bytes: __m256i) {
    // SAFETY: the caller says so.
    unsafe { _mm256_store_si256(at.cast::<__m256i>(), bytes) }
}

/// Loads eight numbers.
///
/// # Safety
/// They are half a line at `at`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn load_numbers(at: *const f32) -> __m256 {
    // SAFETY: the caller says so.
    unsafe { _mm256_load_ps(at) }
}

/// Stores eight numbers.
///
/// # Safety
/// There is room for half a line at `at`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn store_numbers(at: *mut f32, numbers: __m256) {
    // SAFETY: the caller says so.
    unsafe { _mm256_store_ps(at, numbers) }
}

/// Stores the first `n` numbers.
///
/// # Safety
/// There is room for them at `to`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn store_some(to: *mut f32, numbers: __m256, n: usize) {
    if n >= PART {
        // SAFETY: the caller says so.
        return unsafe { _mm256_storeu_ps(to, numbers) };
    }
    let mut some = [0.0; PART];
    // SAFETY: `some` has eight numbers, of which the caller has room for `n`.
    unsafe {
        _mm256_storeu_ps(some.as_mut_ptr(), numbers);
        std::ptr::copy_nonoverlapping(some.as_ptr(), to, n);
    }
}

/// Loads eight half precision numbers.
///
/// # Safety
/// They are a quarter of a line at `at`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller says so.
    _mm256_cvtph_ps(unsafe { _mm_load_si128(at.cast::<__m128i>()) })
}

/// Loads eight numbers that are the upper halves of single precision ones.
///
/// # Safety
/// They are a quarter of a line at `at`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn bf16(at: *const u8) -> __m256 {
    // SAFETY: the caller says so.
    let bits = unsafe { _mm_load_si128(at.cast::<__m128i>()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
}

/// Unpacks the scales and minima of eight blocks, in six bits each.
///
/// # Safety
/// As for [`Quantised::enter`].
#[target_feature(enable = "avx2,f16c")]
#[inline]
unsafe fn enter6(at: *const u8, half: usize, unpacked: &mut Unpacked<PART>) {
    // SAFETY: the caller says that the scales are there: twelve times sixteen bytes, then sixteen scales and minima.
    unsafe {
        let bytes = at.add(half * PART);
        let halves_at = at.add(12 * ROWS + half * 2 * PART);
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
unsafe fn enter8(at: *const u8, half: usize, unpacked: &mut Unpacked<PART>) {
    // SAFETY: the caller says that the scales are there: sixteen times sixteen bytes, then sixteen scales.
    unsafe {
        let scale = halves(at.add(16 * ROWS + half * 2 * PART));
        for (part, to) in unpacked.0.as_flattened_mut().iter_mut().enumerate() {
            let bytes = _mm_loadl_epi64(at.add(part * ROWS + half * PART).cast::<__m128i>());
            _mm256_store_ps(to.as_mut_ptr(), _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))));
        }
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
                unsafe { for_format!(work, floats, quantised) }
            }

            /// Multiplies the tiles with all groups.
            ///
            /// # Safety
            /// The processor has the instructions, and the groups hold as many values as the layout says.
            #[target_feature(enable = $features)]
            unsafe fn quantised<F: Reader>(work: &Work<'_>) {
                let blocks = work.section.layout.blocks();
                if F::SIMPLE || work.groups.len() < UNPACK_FROM {
                    for tile in work.tiles.clone() {
                        // SAFETY: `Work::tile` gives whole tiles, aligned to lines; the caller says that the groups are
                        // whole.
                        unsafe { groups::<F>(work, work.tile(tile).as_ptr(), tile, blocks) };
                    }
                    return;
                }
                with_memory(blocks, |memory| {
                    for tile in work.tiles.clone() {
                        // SAFETY: as above, and there is memory for a tile.
                        unsafe { unpack::<F>(work.tile(tile).as_ptr(), memory, blocks) };
                        let size = work.section.layout.tile_bytes();
                        fetch(work.tile(tile).as_ptr().wrapping_add(size), size);
                        // SAFETY: as above.
                        unsafe { groups::<Memory<F>>(work, memory, tile, blocks) };
                    }
                });
            }

            /// Multiplies one tile with all groups.
            ///
            /// # Safety
            /// The tile and the groups have so many blocks.
            #[target_feature(enable = $features)]
            unsafe fn groups<F: Reader>(work: &Work<'_>, tile: *const u8, index: usize, blocks: usize) {
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
                                                    store_products(work, index, half, group_index, from, sums);
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
                                            store_products(work, index, half, group_index, from, &sums[0]);
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
            unsafe fn dots<F: Reader, const M: usize, const N: usize>(
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
                            let quants = unit_at.add(block * F::SIZE + half * PART_LINE);
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
                                    pairs[t] = F::pair(quants.add(t * PART_LINE), i);
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
