//! Intervals and tests for figures that are paired by prompt.

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
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    Interval { value, low: quantile(&values, 0.025), high: quantile(&values, 0.975) }
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

/// Returns a number from 0 to `n` - 1; 0 of none.
pub(crate) fn below(random: &mut ChaCha8Rng, n: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "below n")]
    let index = ((u128::from(random.next_u64()) * n as u128) >> 64) as usize;
    index
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
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
    fn a_figure_without_a_value_has_no_interval() {
        let interval = bootstrap(3, 10, 1, &|_| f64::NAN);
        assert!(interval.value.is_nan() && interval.low.is_nan());
        assert!(bootstrap(0, 10, 1, &|chosen| chosen.len() as f64).value == 0.0);
    }

    proptest! {
        #[test]
        fn intervals_hold_the_mean_and_holm_never_lowers(values in proptest::collection::vec(0.0_f64..1.0, 1..40)) {
            let mean = |chosen: &[usize]| chosen.iter().map(|&i| values[i]).sum::<f64>() / chosen.len() as f64;
            let interval = bootstrap(values.len(), 400, 3, &mean);
            prop_assert!(interval.low <= interval.value + 1e-9 && interval.value <= interval.high + 1e-9);
            for (p, adjusted) in values.iter().zip(holm(&values)) {
                prop_assert!(adjusted >= *p && adjusted <= 1.0);
            }
        }
    }
}
