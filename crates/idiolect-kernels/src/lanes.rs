//! Sixteen `f32` at once, on whatever registers there are.
//!
//! Kernels are written once, over [`Lanes`], and [`dispatch`] compiles them for each [`Simd`].

#![expect(unsafe_code, reason = "SIMD: loads and stores through pointers, and instructions that need detection")]
#![expect(clippy::inline_always, reason = "everything here must become part of the function with the right features")]

use crate::Tier;

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Numbers in one value of [`Lanes`].
pub(crate) const LANES: usize = 16;

/// The registers that row-wise kernels use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Simd {
    /// Plain Rust.
    Portable,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 (F, BW, VL).
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Simd {
    /// Returns the registers that a tier has; plain ones where this processor cannot run the tier.
    pub(crate) fn of(tier: Tier) -> Self {
        if !tier.is_available() {
            return Self::Portable;
        }
        match tier {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 | Tier::AvxVnni => Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Vnni => Self::Avx512,
            #[cfg(target_arch = "aarch64")]
            Tier::NeonDot => Self::Neon,
            _ => Self::Portable,
        }
    }
}

/// Sixteen numbers.
///
/// # Safety
/// All functions: the processor has the registers that the type stands for, and pointers are good for sixteen elements.
pub(crate) trait Lanes: Copy {
    /// Whether there are 32 registers, each for all sixteen numbers.
    const WIDE: bool;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn load_f16(p: *const u16) -> Self;
    unsafe fn store_f16(self, p: *mut u16);
    unsafe fn load_i8(p: *const i8) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + sum`.
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self;
    /// The greater of each two; where either is NaN, `other`'s.
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn sum(self) -> f32;
    unsafe fn maximum(self) -> f32;
    /// e^x with a relative error below 3e-7; 0 below -87, infinity above 88.7 or so, NaN for NaN.
    unsafe fn exp(self) -> Self;
    /// Exchanges the two of each pair of neighbours.
    unsafe fn swap_pairs(self) -> Self;
}

/// Something that is computed with [`Lanes`]. Implementations are `inline(always)`, and so is all that they call.
pub(crate) trait Work {
    type Output;
    /// # Safety
    /// The processor has the registers of `L`.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs work on the registers asked for, which [`Simd::of`] found.
#[inline]
pub(crate) fn dispatch<W: Work>(simd: Simd, work: W) -> W::Output {
    match simd {
        // SAFETY: plain code runs everywhere.
        Simd::Portable => unsafe { work.run::<Portable>() },
        // SAFETY: `Simd::of` found these features.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2 => unsafe { x86::run_avx2(work) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512 => unsafe { x86::run_avx512(work) },
        // SAFETY: it is part of the target.
        #[cfg(target_arch = "aarch64")]
        Simd::Neon => unsafe { work.run::<neon::Neon>() },
    }
}

/// Converts half precision to single, NaN and infinity included.
#[inline(always)]
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    // Shifting the exponent into place leaves it 112 too small, which a product mends for subnormals, too.
    let magnitude = f32::from_bits(u32::from(half & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let magnitude =
        if half & 0x7c00 == 0x7c00 { f32::from_bits(0x7f80_0000 | (u32::from(half & 0x3ff) << 13)) } else { magnitude };
    f32::from_bits(magnitude.to_bits() | (u32::from(half & 0x8000) << 16))
}

/// The polynomial of [`Lanes::exp`], for |r| up to ln 2 / 2.
const SERIES: [f32; 6] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts, the first of which has few bits.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Below this `exp` is 0.
const LEAST: f32 = -87.0;
/// Adding and subtracting it rounds to whole numbers.
const MAGIC: f32 = 12_582_912.0;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(self.0.map(f))
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller says that sixteen elements are there.
        Self(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: as above.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: as above.
        Self(unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(f16_to_f32))
    }

    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        let halves = self.0.map(|x| half::f16::from_f32(x).to_bits());
        // SAFETY: as above.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(halves) }
    }

    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: as above.
        Self(unsafe { p.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * factor.0[i] + sum.0[i]))
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|i| self.0[i] + self.0[i + 8]);
        let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    unsafe fn maximum(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a })
    }

    #[inline(always)]
    unsafe fn exp(self) -> Self {
        self.map(|x| {
            // Written so that NaN stays NaN.
            let clamped = if x < LEAST { LEAST } else { x };
            let clamped = if clamped > 89.0 { 89.0 } else { clamped };
            let shifted = clamped * LOG2_E + MAGIC;
            let n = shifted - MAGIC;
            let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
            let series = SERIES.iter().skip(1).fold(SERIES[0], |sum, c| sum * r + c) * r + 1.0;
            // In two factors, as 2^128 is no number.
            let whole = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).cast_signed();
            let half = whole >> 1;
            let power = |n: i32| f32::from_bits(((n + 127) << 23).cast_unsigned());
            let result = series * power(half.clamp(-126, 127)) * power((whole - half).clamp(-126, 127));
            if x < LEAST { 0.0 } else { result }
        })
    }

    #[inline(always)]
    unsafe fn swap_pairs(self) -> Self {
        Self(std::array::from_fn(|i| self.0[i ^ 1]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a mut [f32]);
    impl Work for Exp<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            for chunk in self.0.chunks_exact_mut(LANES) {
                // SAFETY: a chunk has sixteen elements.
                unsafe { L::load(chunk.as_ptr()).exp().store(chunk.as_mut_ptr()) }
            }
        }
    }

    #[test]
    fn exp_is_accurate_and_keeps_what_is_no_number() {
        for simd in Tier::available().into_iter().map(Simd::of) {
            let xs: Vec<f32> = (-8700..8850).map(|i| i as f32 / 100.0).take(17536).collect();
            let mut got = xs.clone();
            dispatch(simd, Exp(&mut got));
            for (x, got) in xs.iter().zip(&got) {
                let exact = f64::from(*x).exp();
                assert!((f64::from(*got) - exact).abs() / exact < 4e-7, "{simd:?}: exp({x}) = {got}");
            }
            let mut odd = [0.0; LANES];
            odd[..5].copy_from_slice(&[f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -200.0, 95.0]);
            dispatch(simd, Exp(&mut odd));
            assert_eq!((odd[0], odd[3], odd[5]), (0.0, 0.0, 1.0), "{simd:?}");
            assert!(odd[1].is_infinite() && odd[4].is_infinite() && odd[2].is_nan(), "{simd:?}: {odd:?}");
        }
    }

    struct Halves<'a>(&'a [f32; LANES], &'a mut [f32; LANES], &'a mut [u16; LANES]);
    impl Work for Halves<'_> {
        type Output = (f32, f32);
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) -> (f32, f32) {
            // SAFETY: the arrays have sixteen elements.
            unsafe {
                let v = L::load(self.0.as_ptr());
                v.store_f16(self.2.as_mut_ptr());
                L::load_f16(self.2.as_ptr()).store(self.1.as_mut_ptr());
                (v.sum(), v.maximum())
            }
        }
    }

    #[test]
    fn all_registers_agree() {
        let mut values = [0.0; LANES];
        for (i, value) in values.iter_mut().enumerate() {
            *value = (i as f32 - 7.3) * 1.7e-7 * 40f32.powi(i as i32 / 3);
        }
        values[3] = 70_000.0;
        let mut expected = None;
        for simd in Tier::available().into_iter().map(Simd::of) {
            let (mut back, mut halves) = ([0.0; LANES], [0; LANES]);
            let (sum, maximum) = dispatch(simd, Halves(&values, &mut back, &mut halves));
            assert!((sum / values.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            assert_eq!(maximum, 70_000.0);
            assert!(back[3].is_infinite());
            for (half, back) in halves.iter().zip(back) {
                assert_eq!(half::f16::from_bits(*half).to_f32(), back, "{simd:?}");
            }
            assert_eq!(*expected.get_or_insert(halves), halves, "{simd:?}");
        }
    }

    #[test]
    fn every_half_converts() {
        for bits in 0..=u16::MAX {
            let (got, expected) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(got == expected || (got.is_nan() && expected.is_nan()), "{bits:#x}: {got} {expected}");
        }
    }
}
