//! Vectors of AVX2 and AVX-512.

#![expect(unsafe_code, reason = "instructions that not every processor has, found at run time")]

use std::arch::x86_64::*;

use super::lanes::{Lanes, Tile, Work, tile};

/// Runs work with AVX2 and FMA.
///
/// # Safety
/// The processor must have them; and what the work asks for.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn eight(work: impl Work) {
    // SAFETY: the caller's promise.
    unsafe { work.run::<__m256>() }
}

/// Runs work with AVX-512F.
///
/// # Safety
/// The processor must have it; and what the work asks for.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn sixteen(work: impl Work) {
    // SAFETY: the caller's promise.
    unsafe { work.run::<__m512>() }
}

/// Implements what differs in names alone.
macro_rules! lanes {
    ($vector:ty, $lanes:literal, $rows:literal, [$($r:literal)*], $features:literal, $tile:ident,
     $splat:ident $load:ident $store:ident $add:ident $sub:ident $mul:ident $div:ident $max:ident $min:ident $fmadd:ident,
     power_of_two: |$x:ident| $power_of_two:expr, sum: |$s:ident| $sum:expr, largest: |$l:ident| $largest:expr) => {
        /// Computes a tile, with registers to itself.
        ///
        /// # Safety
        /// The processor must have the instructions; and the addresses must be those that [`Tile`] describes.
        #[target_feature(enable = $features)]
        #[inline(never)]
        unsafe fn $tile<const R: usize>(t: &Tile) {
            // SAFETY: the caller's promise.
            unsafe { tile::<$vector, R>(t) }
        }

        // SAFETY, for all of it: callers of the trait's methods promise that the processor has the instructions, and that
        // addresses are good for a vector.
        impl Lanes for $vector {
            const LANES: usize = $lanes;
            const ROWS: usize = $rows;

            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                unsafe { $splat(value) }
            }

            #[inline(always)]
            unsafe fn load(at: *const f32) -> Self {
                unsafe { $load(at) }
            }

            #[inline(always)]
            unsafe fn store(self, at: *mut f32) {
                unsafe { $store(at, self) }
            }

            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                unsafe { $add(self, other) }
            }

            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                unsafe { $sub(self, other) }
            }

            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                unsafe { $mul(self, other) }
            }

            #[inline(always)]
            unsafe fn div(self, other: Self) -> Self {
                unsafe { $div(self, other) }
            }

            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                unsafe { $max(self, other) }
            }

            #[inline(always)]
            unsafe fn min(self, other: Self) -> Self {
                unsafe { $min(self, other) }
            }

            #[inline(always)]
            unsafe fn mul_add(self, factor: Self, summand: Self) -> Self {
                unsafe { $fmadd(self, factor, summand) }
            }

            #[inline(always)]
            unsafe fn power_of_two(self) -> Self {
                let $x = self;
                unsafe { $power_of_two }
            }

            #[inline(always)]
            unsafe fn sum(self) -> f32 {
                let $s = self;
                unsafe { $sum }
            }

            #[inline(always)]
            unsafe fn largest(self) -> f32 {
                let $l = self;
                unsafe { $largest }
            }

            #[inline(always)]
            unsafe fn tile(rows: usize, t: &Tile) {
                unsafe {
                    match rows {
                        $($r => $tile::<$r>(t),)*
                        _ => unreachable!("a tile of {rows} rows"),
                    }
                }
            }
        }
    };
}

/// The bits of 1.
const ONE: i32 = 0x3f80_0000;

lanes!(
    __m256, 8, 6, [1 2 3 4 5 6], "avx2,fma", tile_eight,
    _mm256_set1_ps _mm256_loadu_ps _mm256_storeu_ps _mm256_add_ps _mm256_sub_ps _mm256_mul_ps _mm256_div_ps
    _mm256_max_ps _mm256_min_ps _mm256_fmadd_ps,
    power_of_two: |x| _mm256_castsi256_ps(_mm256_add_epi32(
        _mm256_slli_epi32::<23>(_mm256_castps_si256(x)), _mm256_set1_epi32(ONE))),
    sum: |x| {
        let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    },
    largest: |x| {
        let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
);

lanes!(
    __m512, 16, 12, [1 2 3 4 5 6 7 8 9 10 11 12], "avx512f", tile_sixteen,
    _mm512_set1_ps _mm512_loadu_ps _mm512_storeu_ps _mm512_add_ps _mm512_sub_ps _mm512_mul_ps _mm512_div_ps
    _mm512_max_ps _mm512_min_ps _mm512_fmadd_ps,
    power_of_two: |x| _mm512_castsi512_ps(_mm512_add_epi32(
        _mm512_slli_epi32::<23>(_mm512_castps_si512(x)), _mm512_set1_epi32(ONE))),
    sum: |x| _mm512_reduce_add_ps(x),
    largest: |x| _mm512_reduce_max_ps(x)
);
