//! Scans over logits: maxima, sums of exponentials, moments, and the collection of what lies above a threshold.
//!
//! Each function is plain Rust in sixteen fixed lanes, compiled once for every tier and chosen at run time. The order of
//! additions is fixed, and products are fused with sums in every tier, so that all give the same bits: what is drawn from
//! a vocabulary does not depend on the processor it is drawn on. (A processor without fused operations computes them in
//! software, which is slow: on x86-64 one from before 2013.)
//!
//! ```
//! use idiolect_kernels::scan;
//!
//! let logits = [1.0, 3.0, 2.0];
//! let mut maxima = Vec::new();
//! let greatest = scan::block_maxima(&logits, &mut maxima);
//! assert_eq!(greatest, 3.0);
//! let log_sum = greatest + scan::sum_exp(&logits, greatest, 1.0, &mut Vec::new()).ln() as f32;
//! assert!((log_sum - 3.407_606).abs() < 1e-5);
//!
//! let (mut ids, mut kept) = (Vec::new(), Vec::new());
//! scan::collect_at_least(&logits, &maxima, 2.0, &mut ids, &mut kept);
//! assert_eq!(ids, [1, 2]);
//! assert_eq!(kept, [3.0, 2.0]);
//! ```

#![expect(unsafe_code, reason = "calls functions compiled for vector instructions that were detected")]
#![expect(clippy::inline_always, reason = "what is not inlined into a tier is not compiled for it")]

mod collect;
mod pack;

pub use collect::{
    collect_at_least, collect_best, collect_between, collect_few_at_least, keep_at_least, keep_best, keep_between,
};
use pack::Pack;

/// Values that share one maximum in [`block_maxima`].
pub const BLOCK: usize = 64;

/// Values that share one sum in [`sum_exp`].
pub const CHUNK: usize = 1024;

const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// Lanes of every sum. Fixed, so that the order of additions is.
const LANES: usize = 16;

/// Plain code that gains from wide registers. `run` and all it calls are `inline(always)`.
trait Scan {
    type Output;
    fn run<P: Pack>(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Scan, pack};

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub(super) fn avx512<S: Scan>(scan: S) -> S::Output {
        scan.run::<pack::Avx512>()
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn avx2<S: Scan>(scan: S) -> S::Output {
        scan.run::<pack::Avx2>()
    }

    pub(super) fn has_avx512() -> bool {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && has_avx2()
    }

    pub(super) fn has_avx2() -> bool {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }
}

/// Runs code compiled for the widest registers that there are.
fn widest<S: Scan>(scan: S) -> S::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::has_avx512() {
            // SAFETY: `has_avx512` found every feature that the function is compiled for.
            return unsafe { x86::avx512(scan) };
        }
        if x86::has_avx2() {
            // SAFETY: `has_avx2` found every feature that the function is compiled for.
            return unsafe { x86::avx2(scan) };
        }
    }
    scan.run::<pack::Portable>()
}

/// Returns 2^x for x at most 0: exactly 1 for 0, with a relative error below 3e-7 elsewhere; 0 below -125.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    // 2^x = 2^n · 2^f with n the nearest integer to x and |f| <= 1/2; 2^f = 1 + f · q(f) with q of degree 4 fitted for the
    // least relative error, 9.2e-8.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = if x < -125.0 { -125.0 } else { x };
    let shifted = clamped + MAGIC;
    let f = clamped - (shifted - MAGIC);
    let q = f.mul_add(0.001_326_474_6, 0.009_671_52);
    let q = f.mul_add(q, 0.055_507_34);
    let q = f.mul_add(q, 0.240_222_42);
    let q = f.mul_add(q, 0.693_146_95);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let result = f.mul_add(q, 1.0) * power;
    if x < -125.0 { 0.0 } else { result }
}

/// Returns the greater one; `b` unless `a` is greater.
#[inline(always)]
fn max(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn sum_of(lanes: &[f32; LANES]) -> f32 {
    let mut sum = *lanes;
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            sum[i] += sum[i + width];
        }
    }
    sum[0]
}

struct BlockMaxima<'a> {
    values: &'a [f32],
    maxima: &'a mut Vec<f32>,
}

impl Scan for BlockMaxima<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<P: Pack>(self) -> f32 {
        self.maxima.clear();
        for block in self.values.chunks(BLOCK) {
            self.maxima.push(maximum_of::<P>(block));
        }
        self.maxima.iter().fold(f32::NEG_INFINITY, |greatest, block| max(*block, greatest))
    }
}

/// Returns the greatest value; negative infinity when there is none. NaN counts as nothing, and zero has no sign.
#[inline(always)]
fn maximum_of<P: Pack>(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for i in 0..LANES {
            lanes[i] = max(row[i], lanes[i]);
        }
    }
    // SAFETY: tiers run where their registers are.
    let greatest = unsafe { P::maximum(&lanes) };
    rest.iter().fold(greatest, |greatest, value| max(*value, greatest)) + 0.0
}

/// Writes the greatest value of each [`BLOCK`] to `maxima` and returns the greatest of all: negative infinity when there
/// is none. NaN counts as nothing; [`sum_exp`] finds it.
pub fn block_maxima(values: &[f32], maxima: &mut Vec<f32>) -> f32 {
    widest(BlockMaxima { values, maxima })
}

/// Returns the sum of `exp((x - greatest) · scale)` over at most [`CHUNK`] values, of which `own` is the greatest.
///
/// It is computed from the chunk's own greatest value, so that it can be before the greatest of all is known.
#[inline(always)]
fn sum_of_chunk(chunk: &[f32], own: f32, scale: f32) -> f32 {
    // Finite, so that the difference to an impossible token's logit is no NaN.
    let own = max(own, f32::MIN);
    let mut lanes = [0f32; LANES];
    let (rows, rest) = chunk.as_chunks::<LANES>();
    for row in rows {
        for i in 0..LANES {
            lanes[i] += exp2((row[i] - own) * scale);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane += exp2((value - own) * scale);
    }
    sum_of(&lanes)
}

/// Returns what a sum taken from a chunk's own greatest value is multiplied by to be one taken from the greatest of all.
#[inline(always)]
fn weight_of_chunk(own: f32, greatest: f32, scale: f32) -> f64 {
    f64::from(exp2((max(own, f32::MIN) - greatest) * scale))
}

struct SumExp<'a> {
    values: &'a [f32],
    greatest: f32,
    scale: f32,
    sums: &'a mut Vec<f64>,
}

impl Scan for SumExp<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<P: Pack>(self) -> f64 {
        self.sums.clear();
        self.sums.reserve(self.values.len().div_ceil(CHUNK));
        let scale = self.scale * LOG2_E;
        let mut sum = 0.0;
        for chunk in self.values.chunks(CHUNK) {
            let own = maximum_of::<P>(chunk);
            let chunk = f64::from(sum_of_chunk(chunk, own, scale)) * weight_of_chunk(own, self.greatest, scale);
            sum += chunk;
            self.sums.push(chunk);
        }
        sum
    }
}

/// Returns the sum of `exp((x - greatest) · scale)`, and writes the sum of each [`CHUNK`] to `sums`. No value may be
/// above `greatest`, which is finite; `scale` is above 0. The sum is NaN when any value is.
pub fn sum_exp(values: &[f32], greatest: f32, scale: f32, sums: &mut Vec<f64>) -> f64 {
    widest(SumExp { values, greatest, scale, sums })
}

struct Begin<'a> {
    values: &'a [f32],
    maxima: &'a mut Vec<f32>,
    sums: &'a mut Vec<f64>,
}

impl Scan for Begin<'_> {
    type Output = (f32, f64);

    #[inline(always)]
    fn run<P: Pack>(self) -> (f32, f64) {
        self.maxima.clear();
        self.maxima.reserve(self.values.len().div_ceil(BLOCK));
        self.sums.clear();
        self.sums.reserve(self.values.len().div_ceil(CHUNK));
        let mut greatest = f32::NEG_INFINITY;
        for chunk in self.values.chunks(CHUNK) {
            let mut own = f32::NEG_INFINITY;
            for block in chunk.chunks(BLOCK) {
                let block = maximum_of::<P>(block);
                own = max(block, own);
                self.maxima.push(block);
            }
            self.sums.push(f64::from(sum_of_chunk(chunk, own, LOG2_E)));
            greatest = max(own, greatest);
        }
        let mut sum = 0.0;
        for (chunk, maxima) in self.sums.iter_mut().zip(self.maxima.chunks(CHUNK / BLOCK)) {
            let own = maxima.iter().fold(f32::NEG_INFINITY, |greatest, block| max(*block, greatest));
            *chunk *= weight_of_chunk(own, greatest, LOG2_E);
            sum += *chunk;
        }
        (greatest, sum)
    }
}

/// Returns what [`block_maxima`] returns and, with a scale of 1, [`sum_exp`], and writes what they write, with the same bits;
/// but reads the values once. Where no value is finite, the sum means nothing.
pub fn begin(values: &[f32], maxima: &mut Vec<f32>, sums: &mut Vec<f64>) -> (f32, f64) {
    widest(Begin { values, maxima, sums })
}

/// How many thresholds [`masses`] has.
pub const LEVELS: usize = 8;

struct Masses<'a> {
    values: &'a [f32],
    greatest: f32,
    scale: f32,
    thresholds: &'a [f32; LEVELS],
}

impl Scan for Masses<'_> {
    type Output = [f64; LEVELS];

    #[inline(always)]
    fn run<P: Pack>(self) -> [f64; LEVELS] {
        let scale = self.scale * LOG2_E;
        let mut masses = [0.0; LEVELS];
        for chunk in self.values.chunks(CHUNK) {
            let mut sums = [[0f32; LANES]; LEVELS];
            let (rows, rest) = chunk.as_chunks::<LANES>();
            for row in rows {
                add_to_levels::<P>(&mut sums, row, self.thresholds, self.greatest, scale);
            }
            if !rest.is_empty() {
                let mut row = [f32::NEG_INFINITY; LANES];
                row[..rest.len()].copy_from_slice(rest);
                add_to_levels::<P>(&mut sums, &row, self.thresholds, self.greatest, scale);
            }
            for (mass, sum) in masses.iter_mut().zip(&sums) {
                *mass += f64::from(sum_of(sum));
            }
        }
        masses
    }
}

/// Adds the weights of sixteen values to the sums of those thresholds that they reach.
#[inline(always)]
fn add_to_levels<P: Pack>(
    sums: &mut [[f32; LANES]; LEVELS],
    row: &[f32; LANES],
    thresholds: &[f32; LEVELS],
    greatest: f32,
    scale: f32,
) {
    let mut weights = [0f32; LANES];
    for i in 0..LANES {
        weights[i] = exp2((row[i] - greatest) * scale);
    }
    for (sum, threshold) in sums.iter_mut().zip(thresholds) {
        // SAFETY: tiers run where their registers are.
        unsafe { P::add_where(sum, &weights, row, *threshold) };
    }
}

/// Returns, for each threshold, the sum of `exp((x - greatest) · scale)` of the values that reach it, under the conditions of
/// [`sum_exp`].
#[must_use]
pub fn masses(values: &[f32], greatest: f32, scale: f32, thresholds: &[f32; LEVELS]) -> [f64; LEVELS] {
    widest(Masses { values, greatest, scale, thresholds })
}

struct ExpInto<'a> {
    values: &'a [f32],
    greatest: f32,
    scale: f32,
    weights: &'a mut Vec<f32>,
}

impl Scan for ExpInto<'_> {
    type Output = ();

    #[inline(always)]
    fn run<P: Pack>(self) {
        self.weights.clear();
        self.weights.resize(self.values.len(), 0.0);
        let scale = self.scale * LOG2_E;
        for (weight, value) in self.weights.iter_mut().zip(self.values) {
            *weight = exp2((value - self.greatest) * scale);
        }
    }
}

/// Writes `exp((x - greatest) · scale)` of each value to `weights`, under the conditions of [`sum_exp`].
pub fn exp_into(values: &[f32], greatest: f32, scale: f32, weights: &mut Vec<f32>) {
    widest(ExpInto { values, greatest, scale, weights });
}

/// Returns `exp((x - greatest) · scale)` of one value, with the bits of [`exp_into`].
#[must_use]
pub fn exp_one(value: f32, greatest: f32, scale: f32) -> f32 {
    exp2((value - greatest) * (scale * LOG2_E))
}

struct SumExpMoment<'a> {
    values: &'a [f32],
    greatest: f32,
    scale: f32,
}

impl Scan for SumExpMoment<'_> {
    type Output = (f64, f64);

    #[inline(always)]
    fn run<P: Pack>(self) -> (f64, f64) {
        let scale = self.scale * LOG2_E;
        let (mut sum, mut moment) = (0.0, 0.0);
        for chunk in self.values.chunks(CHUNK) {
            let mut sums = [0f32; LANES];
            let mut moments = [0f32; LANES];
            let (rows, rest) = chunk.as_chunks::<LANES>();
            for row in rows {
                for i in 0..LANES {
                    // Clamped, because 0 times infinity is no number.
                    let d = max((row[i] - self.greatest) * scale, -130.0);
                    let e = exp2(d);
                    sums[i] += e;
                    moments[i] += e * d;
                }
            }
            for (i, value) in rest.iter().enumerate() {
                let d = max((value - self.greatest) * scale, -130.0);
                let e = exp2(d);
                sums[i] += e;
                moments[i] += e * d;
            }
            sum += f64::from(sum_of(&sums));
            moment += f64::from(sum_of(&moments));
        }
        // In powers of two so far.
        (sum, moment * std::f64::consts::LN_2)
    }
}

/// Returns the sums of `exp(d)` and of `exp(d) · d` with `d = (x - greatest) · scale`, under the conditions of
/// [`sum_exp`]. With sums S and M, the entropy of the softmax is `ln S - M / S`.
#[must_use]
pub fn sum_exp_moment(values: &[f32], greatest: f32, scale: f32) -> (f64, f64) {
    widest(SumExpMoment { values, greatest, scale })
}

struct Deviation<'a> {
    values: &'a [f32],
    greatest: f32,
}

impl Scan for Deviation<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<P: Pack>(self) -> f64 {
        let (mut n, mut sum, mut squares) = (0u64, 0.0, 0.0);
        for chunk in self.values.chunks(CHUNK) {
            let mut ns = [0u32; LANES];
            let mut sums = [0f32; LANES];
            let mut all_squares = [0f32; LANES];
            let (rows, rest) = chunk.as_chunks::<LANES>();
            let mut padded = [f32::NEG_INFINITY; LANES];
            padded[..rest.len()].copy_from_slice(rest);
            for row in rows.iter().chain(std::iter::once(&padded)) {
                for i in 0..LANES {
                    let is_finite = row[i] > f32::NEG_INFINITY;
                    let d = if is_finite { row[i] - self.greatest } else { 0.0 };
                    ns[i] += u32::from(is_finite);
                    sums[i] += d;
                    all_squares[i] += d * d;
                }
            }
            n += ns.iter().map(|n| u64::from(*n)).sum::<u64>();
            sum += f64::from(sum_of(&sums));
            squares += f64::from(sum_of(&all_squares));
        }
        if n == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a vocabulary has fewer than 2^53 tokens")]
        let n = n as f64;
        let mean = sum / n;
        (squares / n - mean * mean).max(0.0).sqrt()
    }
}

/// Returns the population standard deviation of the values above negative infinity; 0 when there is none. No value may be
/// above `greatest`, which is finite.
#[must_use]
pub fn standard_deviation(values: &[f32], greatest: f32) -> f64 {
    widest(Deviation { values, greatest })
}

struct Sum<'a>(&'a [f32]);

impl Scan for Sum<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<P: Pack>(self) -> f64 {
        let mut sum = 0.0;
        for chunk in self.0.chunks(CHUNK) {
            let mut lanes = [0f32; LANES];
            let (rows, rest) = chunk.as_chunks::<LANES>();
            for row in rows {
                for i in 0..LANES {
                    lanes[i] += row[i];
                }
            }
            for (lane, value) in lanes.iter_mut().zip(rest) {
                *lane += value;
            }
            sum += f64::from(sum_of(&lanes));
        }
        sum
    }
}

/// Returns the sum of the values, to about seven digits.
#[must_use]
pub fn sum(values: &[f32]) -> f64 {
    widest(Sum(values))
}

/// Returns where the first of the greatest values is, given what [`block_maxima`] wrote and returned; `None` when there
/// is nothing above negative infinity.
#[must_use]
pub fn first_greatest(values: &[f32], maxima: &[f32], greatest: f32) -> Option<usize> {
    if greatest == f32::NEG_INFINITY {
        return None;
    }
    let first = maxima.iter().position(|block| *block == greatest)? * BLOCK;
    let at = values.get(first..)?.iter().position(|value| *value == greatest)?;
    Some(first + at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    use super::collect::{AtLeast, Best, Between, Keep, List, Range};

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        let value = prop_oneof![9 => -60f32..30.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(3.0f32)];
        prop::collection::vec(value, 0..3000)
    }

    fn greatest(values: &[f32]) -> f32 {
        values.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    fn near(a: f64, b: f64, tolerance: f64) -> bool {
        (a - b).abs() <= tolerance * b.abs().max(1e-30)
    }

    fn levels(top: f32, step: f32) -> [f32; LEVELS] {
        std::array::from_fn(|i| top - step * i as f32)
    }

    /// Everything there is, on one tier.
    fn everything(run: impl Fn(&mut dyn FnMut(Tier)), values: &[f32]) -> Vec<Vec<u32>> {
        let top = greatest(values);
        let mut results = Vec::new();
        run(&mut |tier| {
            let mut bits = Vec::new();
            let (mut maxima, mut sums, mut weights) = (Vec::new(), Vec::new(), Vec::new());
            let (mut ids, mut kept) = (Vec::new(), Vec::new());
            bits.push(tier.run(BlockMaxima { values, maxima: &mut maxima }).to_bits());
            bits.extend(maxima.iter().map(|m| m.to_bits()));
            let sum = tier.run(SumExp { values, greatest: top, scale: 0.7, sums: &mut sums });
            tier.run(ExpInto { values, greatest: top, scale: 0.7, weights: &mut weights });
            let (a, b) = tier.run(SumExpMoment { values, greatest: top, scale: 0.7 });
            let deviation = tier.run(Deviation { values, greatest: top });
            let plain = tier.run(Sum(&weights));
            let masses = tier.run(Masses { values, greatest: top, scale: 0.7, thresholds: &levels(top, 3.0) });
            for wide in [sum, a, b, deviation, plain].into_iter().chain(sums.iter().copied()).chain(masses) {
                bits.extend([(wide.to_bits() >> 32) as u32, wide.to_bits() as u32]);
            }
            bits.extend(weights.iter().map(|w| w.to_bits()));
            let wish = AtLeast(top - 9.0);
            tier.run(List {
                values,
                maxima: &maxima,
                bar: wish.0,
                wish,
                most: usize::MAX,
                ids: &mut ids,
                kept: &mut kept,
            });
            bits.extend(&ids);
            bits.extend(kept.iter().map(|k| k.to_bits()));
            let best = || Best { key: kept.last().copied().unwrap_or_default(), n_equal: 2 };
            let (mut best_ids, mut best_kept) = (ids.clone(), kept.clone());
            tier.run(Keep { wish: best(), ids: Some(&mut best_ids), kept: &mut best_kept });
            let (mut listed_ids, mut listed) = (Vec::new(), Vec::new());
            let (listed_in, listed_kept) = (&mut listed_ids, &mut listed);
            let all = usize::MAX;
            let (bar, wish) = (best().key, best());
            tier.run(List { values, maxima: &maxima, bar, wish, most: all, ids: listed_in, kept: listed_kept });
            assert_eq!((&listed_ids, &listed), (&best_ids, &best_kept));
            bits.extend(listed_ids);
            let between = || Between { low: top - 5.0, above: top - 2.0 };
            let (mut ranged, mut between_kept) = (Vec::new(), kept.clone());
            tier.run(Range { values, wish: between(), into: &mut ranged });
            tier.run(Keep { wish: between(), ids: None, kept: &mut between_kept });
            assert_eq!(ranged, between_kept);
            bits.extend(ranged.iter().map(|k| k.to_bits()));
            let (mut begun, mut begun_sums) = (Vec::new(), Vec::new());
            let (greatest, total) = tier.run(Begin { values, maxima: &mut begun, sums: &mut begun_sums });
            assert_eq!((greatest, &begun), (top, &maxima));
            let plain = tier.run(SumExp { values, greatest: top, scale: 1.0, sums: &mut sums });
            assert_eq!((total.to_bits(), begun_sums), (plain.to_bits(), sums));
            results.push(bits);
        });
        results
    }

    #[derive(Clone, Copy)]
    enum Tier {
        Portable,
        #[cfg(target_arch = "x86_64")]
        Avx2,
        #[cfg(target_arch = "x86_64")]
        Avx512,
    }

    impl Tier {
        fn run<S: Scan>(self, scan: S) -> S::Output {
            match self {
                Self::Portable => scan.run::<pack::Portable>(),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `each_tier` asked for the feature.
                Self::Avx2 => unsafe { x86::avx2(scan) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `each_tier` asked for the features.
                Self::Avx512 => unsafe { x86::avx512(scan) },
            }
        }
    }

    fn each_tier(with: &mut dyn FnMut(Tier)) {
        with(Tier::Portable);
        #[cfg(target_arch = "x86_64")]
        {
            if x86::has_avx2() {
                with(Tier::Avx2);
            }
            if x86::has_avx512() {
                with(Tier::Avx512);
            }
        }
    }

    #[test]
    fn exponentials_are_accurate() {
        for i in -12_500..=0 {
            let x = i as f32 / 100.0;
            assert!(near(f64::from(exp2(x)), f64::from(x).exp2(), 3e-7), "exp2({x})");
            // The product with log2 e is rounded, too.
            let x = i as f32 / 150.0;
            let exact = f64::from(x).exp();
            assert!(near(f64::from(exp_one(x, 0.0, 1.0)), exact, 3e-7 + 1.3e-7 * f64::from(-x)), "exp({x})");
        }
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(-126.0), 0.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert!(exp2(f32::NAN).is_nan());
        assert_eq!(exp_one(1.0, 1.0, 3.0), 1.0);
    }

    #[test]
    fn strange_values_are_seen_wherever_they_are() {
        for n in [1, 15, 16, 64, 65, 130, 1100] {
            for at in 0..n {
                let mut values = vec![0.5; n];
                for strange in [f32::NAN, -f32::NAN] {
                    values[at] = strange;
                    assert!(!block_maxima(&values, &mut Vec::new()).is_nan());
                    assert!(sum_exp(&values, 0.5, 1.0, &mut Vec::new()).is_nan(), "{at} of {n}");
                }
                values[at] = f32::INFINITY;
                assert_eq!(block_maxima(&values, &mut Vec::new()), f32::INFINITY, "{at} of {n}");
            }
        }
        assert_eq!(block_maxima(&[], &mut Vec::new()), f32::NEG_INFINITY);
        assert_eq!(block_maxima(&[f32::NAN], &mut Vec::new()), f32::NEG_INFINITY);
        assert_eq!(first_greatest(&[], &[], f32::NEG_INFINITY), None);
    }

    proptest! {
        #[test]
        fn every_tier_gives_the_same_bits(values in logits()) {
            prop_assume!(greatest(&values) > f32::NEG_INFINITY);
            let results = everything(each_tier, &values);
            for other in &results[1..] {
                prop_assert_eq!(&results[0], other);
            }
        }

        #[test]
        fn sums_are_those_of_a_plain_loop(values in logits(), scale in 0.1f32..4.0) {
            let mut maxima = Vec::new();
            let top = block_maxima(&values, &mut maxima);
            prop_assert_eq!(top, greatest(&values));
            prop_assume!(top > f32::NEG_INFINITY);
            prop_assert_eq!(first_greatest(&values, &maxima, top), values.iter().position(|v| *v == top));

            let exact = |v: f32| (f64::from(v - top) * f64::from(scale)).exp();
            let sum: f64 = values.iter().map(|v| exact(*v)).sum();
            let mut sums = Vec::new();
            let got = sum_exp(&values, top, scale, &mut sums);
            prop_assert!(near(got, sum, 5e-6), "{} {}", got, sum);
            prop_assert_eq!(sums.len(), values.len().div_ceil(CHUNK));
            let mut all = Vec::new();
            exp_into(&values, top, scale, &mut all);
            prop_assert!(near(super::sum(&all), got, 2e-6));
            let mut weights = Vec::new();
            exp_into(&values, top, scale, &mut weights);
            for (weight, value) in weights.iter().zip(&values) {
                prop_assert_eq!(*weight, exp_one(*value, top, scale));
            }
            let levels = levels(top, 9.0);
            for (mass, level) in masses(&values, top, scale, &levels).into_iter().zip(levels) {
                let plain: f64 = values.iter().filter(|v| **v >= level).map(|v| exact(*v)).sum();
                prop_assert!(near(mass, plain, 5e-6), "{} {}", mass, plain);
            }
            let (again, moment) = sum_exp_moment(&values, top, scale);
            let exact_moment: f64 = values.iter().filter(|v| **v > f32::NEG_INFINITY)
                .map(|v| exact(*v) * f64::from(v - top) * f64::from(scale)).sum();
            prop_assert!(near(again, sum, 5e-6));
            prop_assert!((moment - exact_moment).abs() <= 1e-5 * exact_moment.abs() + 1e-9, "{} {}", moment, exact_moment);
        }

        #[test]
        fn deviations_are_those_of_a_plain_loop(values in logits()) {
            let finite: Vec<f64> = values.iter().filter(|v| **v > f32::NEG_INFINITY).map(|v| f64::from(*v)).collect();
            prop_assume!(!finite.is_empty());
            let n = finite.len() as f64;
            let mean = finite.iter().sum::<f64>() / n;
            let exact = (finite.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
            let got = standard_deviation(&values, greatest(&values));
            prop_assert!((got - exact).abs() < 1e-3 + 1e-4 * exact, "{} {}", got, exact);
        }

        #[test]
        fn what_is_collected_is_what_lies_above(values in logits(), threshold in -60f32..30.0) {
            let mut maxima = Vec::new();
            block_maxima(&values, &mut maxima);
            let (mut ids, mut kept) = (Vec::new(), Vec::new());
            for threshold in [threshold, 3.0, f32::NEG_INFINITY] {
                collect_at_least(&values, &maxima, threshold, &mut ids, &mut kept);
                let expected: Vec<(u32, f32)> =
                    (0..).zip(values.iter().copied()).filter(|(_, v)| *v >= threshold).collect();
                prop_assert_eq!(ids.iter().copied().zip(kept.iter().copied()).collect::<Vec<_>>(), expected.clone());
                for most in [0, expected.len().saturating_sub(1), expected.len(), usize::MAX] {
                    let all = collect_few_at_least(&values, &maxima, (threshold, most), &mut ids, &mut kept);
                    prop_assert_eq!(all, expected.len() <= most);
                    let found: Vec<(u32, f32)> = ids.iter().copied().zip(kept.iter().copied()).collect();
                    prop_assert_eq!(&found[..], &expected[..found.len()]);
                    prop_assert!(!all || found.len() == expected.len());
                }
            }
        }

        #[test]
        fn the_best_are_those_of_a_sorted_list(values in logits(), at: prop::sample::Index, n_equal in 0usize..40) {
            prop_assume!(!values.is_empty());
            let key = *at.get(&values);
            let mut left = n_equal;
            let mut expected = Vec::new();
            for (id, value) in (0u32..).zip(&values) {
                let order = value.total_cmp(&key);
                if order.is_gt() || (order.is_eq() && left > 0) {
                    left -= usize::from(order.is_eq());
                    expected.push((id, *value));
                }
            }
            let (mut maxima, mut ids, mut kept) = (Vec::new(), Vec::new(), Vec::new());
            block_maxima(&values, &mut maxima);
            collect_best(&values, &maxima, (key, n_equal), &mut ids, &mut kept);
            prop_assert_eq!(ids.into_iter().zip(kept).collect::<Vec<_>>(), expected.clone());
            let (mut ids, mut kept): (Vec<u32>, Vec<f32>) = (0..).zip(values.iter().copied()).unzip();
            keep_best((key, n_equal), &mut ids, &mut kept);
            prop_assert_eq!(ids.into_iter().zip(kept).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn what_lies_between_is_what_a_filter_leaves(values in logits(), low in -60f32..30.0, width in 0f32..60.0) {
            for (low, above) in [(low, low + width), (low, f32::INFINITY), (3.0, 3.0f32.next_up()), (0.0, -1.0)] {
                let expected: Vec<f32> = values.iter().copied().filter(|v| *v >= low && *v < above).collect();
                let mut found = Vec::new();
                collect_between(&values, low, above, &mut found);
                prop_assert_eq!(&found, &expected);
                let mut kept = values.clone();
                keep_between(low, above, &mut kept);
                prop_assert_eq!(&kept, &expected);
                let (mut ids, mut kept): (Vec<u32>, Vec<f32>) = (0..).zip(values.iter().copied()).unzip();
                keep_at_least(low, &mut ids, &mut kept);
                let expected: Vec<(u32, f32)> = (0..).zip(values.iter().copied()).filter(|(_, v)| *v >= low).collect();
                prop_assert_eq!(ids.into_iter().zip(kept).collect::<Vec<_>>(), expected);
            }
        }
    }
}
