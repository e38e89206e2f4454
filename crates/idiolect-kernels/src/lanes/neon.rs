//! [`Lanes`] on NEON, which every processor of the kind has.

use std::arch::aarch64::*;

use super::{LEAST, LN_2_HIGH, LN_2_LOW, LOG2_E, Lanes, SERIES};

/// Numbers in one register.
const FOUR: usize = 4;

#[derive(Clone, Copy)]
pub(super) struct Neon([float32x4_t; 4]);

impl Neon {
    #[inline(always)]
    fn map(self, f: impl Fn(float32x4_t) -> float32x4_t) -> Self {
        let [a, b, c, d] = self.0;
        Self([f(a), f(b), f(c), f(d)])
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        let ([a, b, c, d], [e, g, h, i]) = (self.0, other.0);
        Self([f(a, e), f(b, g), f(c, h), f(d, i)])
    }
}

// SAFETY of all blocks below: NEON is always there, and the trait asks for good pointers.
impl Lanes for Neon {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Self([vdupq_n_f32(x); 4]) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Self([vld1q_f32(p), vld1q_f32(p.add(FOUR)), vld1q_f32(p.add(2 * FOUR)), vld1q_f32(p.add(3 * FOUR))]) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            for (i, four) in self.0.into_iter().enumerate() {
                vst1q_f32(p.add(i * FOUR), four);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        #[inline(always)]
        unsafe fn four(p: *const u16) -> float32x4_t {
            unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))) }
        }
        unsafe { Self([four(p), four(p.add(FOUR)), four(p.add(2 * FOUR)), four(p.add(3 * FOUR))]) }
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        unsafe {
            for (i, four) in self.0.into_iter().enumerate() {
                vst1_u16(p.add(i * FOUR), vreinterpret_u16_f16(vcvt_f16_f32(four)));
            }
        }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        unsafe {
            let bytes = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            Self([
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ])
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vaddq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vsubq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vmulq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vdivq_f32(a, b) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        let products = self.0.into_iter().zip(factor.0);
        let mut sums = sum.0;
        for (sum, (a, b)) in sums.iter_mut().zip(products) {
            *sum = unsafe { vfmaq_f32(*sum, a, b) };
        }
        Self(sums)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe {
            let [a, b, c, d] = self.0;
            let four = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vaddv_f32(two)
        }
    }

    #[inline(always)]
    unsafe fn maximum(self) -> f32 {
        unsafe {
            let [a, b, c, d] = self.0;
            vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d)))
        }
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        self.map(|v| unsafe {
            // Both keep what is no number.
            let x = vminq_f32(vdupq_n_f32(89.0), vmaxq_f32(vdupq_n_f32(LEAST), v));
            let n = vrndnq_f32(vmulq_n_f32(x, LOG2_E));
            let r = vfmsq_n_f32(x, n, LN_2_HIGH);
            let r = vfmsq_n_f32(r, n, LN_2_LOW);
            let mut series = vdupq_n_f32(SERIES[0]);
            for c in &SERIES[1..] {
                series = vfmaq_f32(vdupq_n_f32(*c), series, r);
            }
            series = vfmaq_f32(vdupq_n_f32(1.0), series, r);
            // In two factors, as 2^128 is no number.
            let whole = vcvtq_s32_f32(n);
            let first = vshrq_n_s32::<1>(whole);
            let second = vsubq_s32(whole, first);
            let power = |n| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127))));
            let result = vmulq_f32(vmulq_f32(series, power(first)), power(second));
            vbslq_f32(vcltq_f32(v, vdupq_n_f32(LEAST)), vdupq_n_f32(0.0), result)
        })
    }

    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        self.map(|x| unsafe { vrev64q_f32(x) })
    }
}
