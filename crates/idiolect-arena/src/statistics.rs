//! Intervals and tests for figures that are paired by prompt.

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde::Serialize;

/// A figure with its interval of 95 %.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The figure of all prompts.
    pub value: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// Returns a figure of some prompts with its percentile bootstrap interval: prompts are drawn with replacement `n` times, and
/// `figure` is told which. Draws on which it is not finite are left out; where all are, so is the interval.
///
/// # Examples
/// ```
/// use idiolect_arena::statistics::bootstrap;
///
/// let values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0];
/// let mean = |chosen: &[usize]| chosen.iter().map(|&i| values[i]).sum::<f64>() / chosen.len() as f64;
/// let interval = bootstrap(values.len(), 1000, 1, &mean);
/// assert!((interval.value - 2.0 / 3.0).abs() < 1e-9 && interval.low < 0.5 && interval.high > 0.8);
/// ```
pub fn bootstrap(n_prompts: usize, n: usize, seed: u64, figure: &dyn Fn(&[usize]) -> f64) -> Interval {
    let all: Vec<usize> = (0..n_prompts).collect();
    let value = figure(&all);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = vec![0; n_prompts];
    let mut values = Vec::with_capacity(n);
    for _ in 0..n {
        drawn.fill_with(|| below(&mut random, n_prompts));
        values.push(figure(&drawn));
    }
    interval(value, values)
}

fn interval(value: f64, mut values: Vec<f64>) -> Interval {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    Interval { value, low: quantile(&values, 0.025), high: quantile(&values, 0.975) }
}

/// Prompts that were drawn with replacement, for the intervals of many figures: they are paired, and nothing is drawn twice. With the same
/// numbers the draws are those of [`bootstrap`].
///
/// # Examples
/// ```
/// use idiolect_arena::statistics::Resamples;
///
/// let (ours, theirs) = ([0.2, 0.4, 0.3, 0.5], [0.4, 0.7, 0.7, 0.9]);
/// let ratio = Resamples::new(4, 1000, 1).of_means(&[&ours, &theirs], &|means| means[0] / means[1]);
/// assert!((ratio.value - 1.4 / 2.7).abs() < 1e-9 && ratio.low > 0.4 && ratio.high < 0.6);
/// ```
#[derive(Clone, Debug)]
pub struct Resamples {
    n_prompts: usize,
    /// One after the other, as many as there are prompts each.
    drawn: Vec<usize>,
}

impl Resamples {
    /// Draws `n` times as many prompts as there are.
    #[must_use]
    pub fn new(n_prompts: usize, n: usize, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        Self { n_prompts, drawn: (0..n * n_prompts).map(|_| below(&mut random, n_prompts)).collect() }
    }

    /// Returns a figure of the means of some columns with its interval. A column has a value for each prompt, in their order; where one has
    /// more or fewer, nothing is a number.
    #[must_use]
    pub fn of_means(&self, columns: &[&[f64]], figure: &dyn Fn(&[f64]) -> f64) -> Interval {
        if columns.iter().any(|column| column.len() != self.n_prompts) {
            return Interval { value: f64::NAN, low: f64::NAN, high: f64::NAN };
        }
        let all: Vec<usize> = (0..self.n_prompts).collect();
        let of = |chosen: &[usize]| {
            let mean = |column: &&[f64]| chosen.iter().map(|&i| column[i]).sum::<f64>() / chosen.len() as f64;
            figure(&columns.iter().map(mean).collect::<Vec<f64>>())
        };
        interval(of(&all), self.drawn.chunks_exact(self.n_prompts.max(1)).map(of).collect())
    }

    /// Returns the share of the draws in which a figure of the columns' means is above 0, draws in which it is 0 counted by half; not a number for columns of
    /// another length.
    #[must_use]
    pub fn share_above(&self, columns: &[&[f64]], figure: &dyn Fn(&[f64]) -> f64) -> f64 {
        if self.n_prompts == 0 || columns.iter().any(|column| column.len() != self.n_prompts) {
            return f64::NAN;
        }
        let (mut above, mut n) = (0.0, 0.0);
        for chosen in self.drawn.chunks_exact(self.n_prompts) {
            let mean = |column: &&[f64]| chosen.iter().map(|&i| column[i]).sum::<f64>() / chosen.len() as f64;
            let value = figure(&columns.iter().map(mean).collect::<Vec<f64>>());
            n += 1.0;
            above += if value > 0.0 { 1.0 } else { f64::from(u8::from(value == 0.0)) / 2.0 };
        }
        above / n
    }
}

/// Returns the two-sided p-value of a paired permutation test: how often differences with random signs have a mean as far
/// from 0 as the given ones, the given ones counted.
#[must_use]
pub fn sign_flip(differences: &[f64], n: usize, seed: u64) -> f64 {
    let observed = differences.iter().sum::<f64>().abs();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut n_as_far = 1;
    for _ in 0..n {
        let sum: f64 = differences.iter().map(|d| if random.next_u32() & 1 == 0 { *d } else { -d }).sum();
        n_as_far += usize::from(sum.abs() >= observed - 1e-12);
    }
    n_as_far as f64 / (n + 1) as f64
}

/// Returns p-values adjusted for there being several (Holm 1979), in the order given; each is at most 1.
///
/// # Examples
/// ```
/// let adjusted = idiolect_arena::statistics::holm(&[0.01, 0.04, 0.03]);
/// for (p, expected) in adjusted.into_iter().zip([0.03, 0.06, 0.06]) {
///     assert!((p - expected).abs() < 1e-12);
/// }
/// ```
#[must_use]
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut least: f64 = 0.0;
    for (rank, index) in order.into_iter().enumerate() {
        least = least.max(p_values[index] * (p_values.len() - rank) as f64).min(1.0);
        adjusted[index] = least;
    }
    adjusted
}

/// Returns sets of `k` of `n` places, each in ascending order: all there are, or `most` different ones drawn by the seed where there are
/// more.
///
/// # Examples
/// ```
/// use idiolect_arena::statistics::subsets;
///
/// assert_eq!(subsets(3, 2, 10, 0), [[0, 1], [0, 2], [1, 2]]);
/// assert_eq!(subsets(40, 20, 5, 0).len(), 5);
/// ```
#[must_use]
pub fn subsets(n: usize, k: usize, most: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut sets = BTreeSet::new();
    if n_subsets(n, k) <= most as u128 {
        let mut set: Vec<usize> = (0..k).collect();
        while set.len() <= n {
            sets.insert(set.clone());
            // The last place that can move on does, and those behind it follow at once.
            let Some(at) = (0..k).rev().find(|&at| set[at] < n - k + at) else { break };
            let from = set[at] + 1;
            for (place, value) in set[at..].iter_mut().zip(from..) {
                *place = value;
            }
        }
        return sets.into_iter().collect();
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    while sets.len() < most {
        let mut all: Vec<usize> = (0..n).collect();
        for i in 0..k {
            let other = i + below(&mut random, n - i);
            all.swap(i, other);
        }
        all.truncate(k);
        all.sort_unstable();
        sets.insert(all);
    }
    sets.into_iter().collect()
}

/// Returns how many sets of `k` of `n` there are; far too many count as the most there can be.
fn n_subsets(n: usize, k: usize) -> u128 {
    if k > n {
        return 0;
    }
    // Each factor is a whole number after its division. By the smaller half they only grow.
    (0..k.min(n - k) as u128).fold(1_u128, |all, i| match all.checked_mul(n as u128 - i) {
        Some(product) => product / (i + 1),
        None => u128::MAX,
    })
}

/// Returns a number from 0 to `n` - 1; 0 of none.
pub(crate) fn below(random: &mut ChaCha8Rng, n: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "below n")]
    let index = ((u128::from(random.next_u64()) * n as u128) >> 64) as usize;
    index
}

pub(crate) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q * last as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - at.floor())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signs_tell_a_shift_from_noise() {
        let shifted: Vec<f64> = (0..40).map(|i| 0.3 + f64::from(i % 5) * 0.1).collect();
        assert!(sign_flip(&shifted, 2000, 1) < 0.001);
        let noise: Vec<f64> = (0..40).map(|i| if i % 2 == 0 { 0.5 } else { -0.5 }).collect();
        assert!(sign_flip(&noise, 2000, 1) > 0.9);
        assert_eq!(sign_flip(&[], 10, 1), 1.0);
    }

    #[test]
    fn sets_of_very_many_are_counted() {
        assert_eq!((n_subsets(4, 2), n_subsets(4, 4), n_subsets(2, 3), n_subsets(200, 200)), (6, 1, 0, 1));
        assert_eq!((n_subsets(200, 199), n_subsets(200, 100)), (200, u128::MAX));
        assert_eq!(subsets(200, 200, 3, 1).len(), 1);
    }

    #[test]
    fn a_figure_without_a_value_has_no_interval() {
        let interval = bootstrap(3, 10, 1, &|_| f64::NAN);
        assert!(interval.value.is_nan() && interval.low.is_nan());
        assert!(bootstrap(0, 10, 1, &|chosen| chosen.len() as f64).value == 0.0);
        let resamples = Resamples::new(2, 10, 1);
        assert!(resamples.of_means(&[&[1.0, 2.0], &[1.0]], &|means| means[0]).low.is_nan(), "a value is missing");
        assert!(Resamples::new(0, 10, 1).of_means(&[&[]], &|means| means[0]).value.is_nan());
    }

    proptest! {
        #[test]
        fn sets_are_different_and_as_many_as_wanted(n in 0_usize..9, k in 0_usize..10, most in 0_usize..40, seed in 0_u64..9) {
            let sets = subsets(n, k, most, seed);
            let all = (0_u32..1 << n).filter(|bits| bits.count_ones() as usize == k).count();
            prop_assert_eq!(sets.len(), all.min(most));
            prop_assert!(sets.iter().all(|set| set.len() == k && set.windows(2).all(|pair| pair[0] < pair[1])));
            prop_assert!(sets.iter().flatten().all(|&place| place < n) && sets.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(sets, subsets(n, k, most, seed));
        }

        #[test]
        fn intervals_hold_the_mean_and_holm_never_lowers(values in proptest::collection::vec(0.0_f64..1.0, 1..40)) {
            let mean = |chosen: &[usize]| chosen.iter().map(|&i| values[i]).sum::<f64>() / chosen.len() as f64;
            let interval = bootstrap(values.len(), 400, 3, &mean);
            let again = Resamples::new(values.len(), 400, 3).of_means(&[&values], &|means| means[0]);
            prop_assert_eq!((again.value, again.low, again.high), (interval.value, interval.low, interval.high));
            prop_assert!(interval.low <= interval.value + 1e-9 && interval.value <= interval.high + 1e-9);
            for (p, adjusted) in values.iter().zip(holm(&values)) {
                prop_assert!(adjusted >= *p && adjusted <= 1.0);
            }
        }
    }
}
