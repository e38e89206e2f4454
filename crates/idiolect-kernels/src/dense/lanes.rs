//! Vectors of `f32` as wide as the processor has them, and what is computed on them.
//!
//! Code is written once, for any [`Lanes`], and compiled for each instruction set by [`dispatch`].

#![expect(unsafe_code, reason = "values are read and written through addresses, with instructions found at run time")]
#![expect(clippy::inline_always, reason = "what is not inlined is not compiled for the wider instructions")]

/// Most columns of a panel on any instruction set.
pub(super) const MAX_PANEL: usize = 32;

/// Columns of a panel: two vectors.
pub(super) const fn panel<V: Lanes>() -> usize {
    2 * V::LANES
}

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// Plain Rust, four values at a time.
    Four,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Eight,
    /// AVX-512F.
    #[cfg(target_arch = "x86_64")]
    Sixteen,
}

impl Width {
    /// Returns the best one of this processor.
    pub(super) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return if is_x86_feature_detected!("avx512f") { Self::Sixteen } else { Self::Eight };
        }
        Self::Four
    }

    /// Returns those that this processor can run, the plainest first.
    #[cfg(test)]
    pub(super) fn runnable() -> Vec<Self> {
        match Self::detect() {
            Self::Four => vec![Self::Four],
            #[cfg(target_arch = "x86_64")]
            Self::Eight => vec![Self::Four, Self::Eight],
            #[cfg(target_arch = "x86_64")]
            Self::Sixteen => vec![Self::Four, Self::Eight, Self::Sixteen],
        }
    }

    /// Returns the columns of a panel.
    pub(super) const fn panel(self) -> usize {
        match self {
            Self::Four => panel::<[f32; 4]>(),
            #[cfg(target_arch = "x86_64")]
            Self::Eight => panel::<std::arch::x86_64::__m256>(),
            #[cfg(target_arch = "x86_64")]
            Self::Sixteen => panel::<std::arch::x86_64::__m512>(),
        }
    }

    /// Returns the most rows of a tile.
    pub(super) const fn rows(self) -> usize {
        match self {
            Self::Four => <[f32; 4]>::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Eight => std::arch::x86_64::__m256::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Sixteen => std::arch::x86_64::__m512::ROWS,
        }
    }
}

/// Work that is written for any vectors.
pub(super) trait Work {
    /// Does it. Implementations are `inline(always)`, and so is what they call.
    ///
    /// # Safety
    /// The processor must have the instructions of `V`; and what the implementation asks for.
    unsafe fn run<V: Lanes>(self);
}

/// Runs work compiled for an instruction set.
///
/// # Safety
/// `width` must come from [`Width::detect`] or be lesser; and what the work asks for.
pub(super) unsafe fn dispatch(width: Width, work: impl Work) {
    match width {
        // SAFETY: plain Rust needs no instructions; the rest is the caller's promise.
        Width::Four => unsafe { work.run::<[f32; 4]>() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promise.
        Width::Eight => unsafe { super::lanes_x86::eight(work) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller's promise.
        Width::Sixteen => unsafe { super::lanes_x86::sixteen(work) },
    }
}

/// Several `f32`, worked on together.
///
/// All methods need the instructions that the type stands for; those with addresses need [`LANES`](Self::LANES) values
/// there.
pub(super) trait Lanes: Copy {
    /// How many.
    const LANES: usize;
    /// Rows of a tile, so that its sums and operands fit the registers.
    const ROWS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(at: *const f32) -> Self;
    unsafe fn store(self, at: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    unsafe fn max(self, other: Self) -> Self;
    unsafe fn min(self, other: Self) -> Self;
    /// Returns `self · factor + summand`.
    unsafe fn mul_add(self, factor: Self, summand: Self) -> Self;
    /// Returns 2ⁿ for values [`MAGIC`]` + n`.
    unsafe fn power_of_two(self) -> Self;
    unsafe fn sum(self) -> f32;
    unsafe fn largest(self) -> f32;
    /// Computes a tile of up to [`ROWS`](Self::ROWS) rows; see [`Tile`].
    unsafe fn tile(rows: usize, tile: &Tile);
}

/// Added to a number of at most 2²² in magnitude, leaves its nearest integer in the low bits.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// A product of some rows with one panel of columns: `out[r][c] = Σₖ a[r][k] · b[k][c]`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Rows of `k` values each.
    pub(super) a: *const f32,
    /// Values from row to row.
    pub(super) a_stride: usize,
    /// `k` times the values of a panel's columns.
    pub(super) b: *const f32,
    pub(super) b_stride: usize,
    pub(super) k: usize,
    /// Room for a panel's columns in each row.
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
}

/// How far ahead of its use the second operand is fetched, in steps of `k`: some 600 cycles.
const AHEAD: usize = 16;

/// Computes a tile of `R` rows.
///
/// # Safety
/// As [`Lanes`]; and the addresses must be those that [`Tile`] describes.
#[inline(always)]
pub(super) unsafe fn tile<V: Lanes, const R: usize>(tile: &Tile) {
    let Tile { a, a_stride, mut b, b_stride, k, out, out_stride } = *tile;
    // SAFETY: the caller's promise; addresses beyond it are computed, but not followed (a prefetch follows none).
    unsafe {
        let mut sums = [[V::splat(0.0); 2]; R];
        // Addressing reaches two strides further from each of these; an address a row would not fit the registers.
        let bases: [*const f32; 4] = std::array::from_fn(|i| a.wrapping_add(3 * i * a_stride));
        for i in 0..k {
            let columns = [V::load(b), V::load(b.add(V::LANES))];
            let ahead = b.wrapping_add(AHEAD * b_stride);
            prefetch(ahead);
            if V::LANES == 16 {
                prefetch(ahead.wrapping_add(16));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let value = V::splat(*bases[r / 3].add(i + r % 3 * a_stride));
                sums[0] = value.mul_add(columns[0], sums[0]);
                sums[1] = value.mul_add(columns[1], sums[1]);
            }
            b = b.wrapping_add(b_stride);
        }
        for (r, sums) in sums.iter().enumerate() {
            sums[0].store(out.add(r * out_stride));
            sums[1].store(out.add(r * out_stride + V::LANES));
        }
    }
}

/// Asks for the cache line at an address, which need not be one of anything.
#[inline(always)]
pub(super) fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has it, and it has no effect but on the caches, whatever the address.
    unsafe {
        std::arch::x86_64::_mm_prefetch(at.cast(), std::arch::x86_64::_MM_HINT_T0);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Returns a polynomial's value; the coefficient of the highest power comes first.
#[inline(always)]
unsafe fn polynomial<V: Lanes, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = V::splat(coefficients[0]);
        for coefficient in &coefficients[1..] {
            sum = sum.mul_add(x, V::splat(*coefficient));
        }
        sum
    }
}

/// Returns eˣ with a relative error below 3e-7 from -87 to 88; beyond, the value there.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn exp<V: Lanes>(x: V) -> V {
    // e^x = 2^n · e^r with n the nearest integer to x / ln 2 and |r| <= ln 2 / 2; e^r by its Taylor series.
    // SAFETY: the caller's promise.
    unsafe {
        let x = x.max(V::splat(-87.0)).min(V::splat(88.0));
        let shifted = x.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(MAGIC));
        let n = shifted.sub(V::splat(MAGIC));
        let r = n.mul_add(V::splat(2.121_944_4e-4), n.mul_add(V::splat(-0.693_359_4), x));
        let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
        polynomial(r, series).mul(shifted.power_of_two())
    }
}

/// Returns the exact GELU, x · Φ(x), with an absolute error below 3e-7 · |x|.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
pub(super) unsafe fn gelu<V: Lanes>(x: V) -> V {
    // erf(u) = u · p(u²) / q(u²), fitted for the least absolute error up to 3.9, where the function is 1 to the last bit.
    const P: [f32; 7] =
        [2.011_884_2e-8, -1.996_945_2e-6, 1.474_771e-4, 3.896_345_6e-3, 5.114_909e-2, 2.042_262_6e-1, 1.128_378_7];
    const Q: [f32; 5] = [1.006_621_4e-3, 1.473_061_5e-2, 1.167_860_9e-1, 5.143_198_4e-1, 1.0];
    const LIMIT: f32 = 3.9;
    // SAFETY: the caller's promise.
    unsafe {
        let u = x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)).max(V::splat(-LIMIT)).min(V::splat(LIMIT));
        let square = u.mul(u);
        let erf = u.mul(polynomial(square, P)).div(polynomial(square, Q));
        let half = x.mul(V::splat(0.5));
        half.mul_add(erf, half)
    }
}

/// Plain Rust; compilers turn it into what every processor of the kind has.
impl Lanes for [f32; 4] {
    const LANES: usize = 4;
    const ROWS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { at.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] * other[i])
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] / other[i])
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] > other[i] { self[i] } else { other[i] })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] < other[i] { self[i] } else { other[i] })
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, summand: Self) -> Self {
        // Fused where the processor always has that; elsewhere it would be a call of the C library.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            std::array::from_fn(|i| self[i].mul_add(factor[i], summand[i]))
        } else {
            std::array::from_fn(|i| self[i] * factor[i] + summand[i])
        }
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        self.map(|value| f32::from_bits((value.to_bits() << 23).wrapping_add(1f32.to_bits())))
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        (self[0] + self[2]) + (self[1] + self[3])
    }

    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self[0].max(self[1]).max(self[2].max(self[3]))
    }

    unsafe fn tile(rows: usize, t: &Tile) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                1 => tile::<Self, 1>(t),
                2 => tile::<Self, 2>(t),
                3 => tile::<Self, 3>(t),
                4 => tile::<Self, 4>(t),
                _ => unreachable!("a tile of {rows} rows"),
            }
        }
    }
}
