//! [`Lanes`] on AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::{LEAST, LN_2_HIGH, LN_2_LOW, LOG2_E, Lanes, MAGIC, SERIES, Work};

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<W: Work>(work: W) -> W::Output {
    // SAFETY: this function has the features.
    unsafe { work.run::<Avx2>() }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run_avx512<W: Work>(work: W) -> W::Output {
    // SAFETY: this function has the features.
    unsafe { work.run::<Avx512>() }
}

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

// SAFETY of all blocks below: the trait asks for the features, and for good pointers.
impl Lanes for Avx512 {
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Self(_mm512_loadu_ps(p)) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, sum.0)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn maximum(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        unsafe {
            // The second operand is returned where either is NaN.
            let x = _mm512_min_ps(_mm512_set1_ps(89.0), _mm512_max_ps(_mm512_set1_ps(LEAST), self.0));
            let n = _mm512_roundscale_ps::<8>(_mm512_mul_ps(x, _mm512_set1_ps(LOG2_E)));
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN_2_HIGH), x);
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN_2_LOW), r);
            let mut series = _mm512_set1_ps(SERIES[0]);
            for c in &SERIES[1..] {
                series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(*c));
            }
            series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(1.0));
            let small = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, _mm512_set1_ps(LEAST));
            Self(_mm512_mask_mov_ps(_mm512_scalef_ps(series, n), small, _mm512_setzero_ps()))
        }
    }

    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        unsafe { Self(_mm512_permute_ps::<0b10_11_00_01>(self.0)) }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

impl Lanes for Avx2 {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast()))) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1));
        }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe {
            let bytes = _mm_loadu_si128(p.cast());
            Self(
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))),
            )
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        unsafe { Self(_mm256_fmadd_ps(self.0, factor.0, sum.0), _mm256_fmadd_ps(self.1, factor.1, sum.1)) }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let eight = _mm256_add_ps(self.0, self.1);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn maximum(self) -> f32 {
        unsafe {
            let eight = _mm256_max_ps(self.0, self.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        #[inline(always)]
        unsafe fn half(v: __m256) -> __m256 {
            unsafe {
                let x = _mm256_min_ps(_mm256_set1_ps(89.0), _mm256_max_ps(_mm256_set1_ps(LEAST), v));
                let shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(LOG2_E), _mm256_set1_ps(MAGIC));
                let n = _mm256_sub_ps(shifted, _mm256_set1_ps(MAGIC));
                let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN_2_HIGH), x);
                let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(LN_2_LOW), r);
                let mut series = _mm256_set1_ps(SERIES[0]);
                for c in &SERIES[1..] {
                    series = _mm256_fmadd_ps(series, r, _mm256_set1_ps(*c));
                }
                series = _mm256_fmadd_ps(series, r, _mm256_set1_ps(1.0));
                // In two factors, as 2^128 is no number.
                let whole = _mm256_cvtps_epi32(n);
                let first = _mm256_srai_epi32::<1>(whole);
                let second = _mm256_sub_epi32(whole, first);
                let bias = _mm256_set1_epi32(127);
                let power = |n| _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, bias)));
                let result = _mm256_mul_ps(_mm256_mul_ps(series, power(first)), power(second));
                _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(v, _mm256_set1_ps(LEAST)), result)
            }
        }
        unsafe { Self(half(self.0), half(self.1)) }
    }

    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        unsafe { Self(_mm256_permute_ps::<0b10_11_00_01>(self.0), _mm256_permute_ps::<0b10_11_00_01>(self.1)) }
    }
}
