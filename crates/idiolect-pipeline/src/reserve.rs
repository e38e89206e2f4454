//! How much time to set aside for a piece of work that follows generation.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A moving estimate of what such work costs, a candidate.
///
/// It rises fast and falls slowly: a reply sent a little early costs nothing, one sent late costs everything.
#[derive(Debug)]
pub(crate) struct Reserve {
    seconds_per_candidate: Mutex<f64>,
    /// Largest share of the budget that is set aside.
    most: f64,
}

const RISE: f64 = 0.5;
const FALL: f64 = 0.1;
/// The estimate is the middle of what was seen; the reserve must hold for nearly all.
const SAFETY: f64 = 1.5;
const FIXED: Duration = Duration::from_millis(20);

impl Reserve {
    pub(crate) fn new(per_candidate: Duration, most: f64) -> Self {
        Self { seconds_per_candidate: Mutex::new(per_candidate.as_secs_f64().min(60.0)), most }
    }

    /// Returns the time to set aside for `n` candidates, at most the largest share of the budget.
    pub(crate) fn of(&self, n: usize, budget: Duration) -> Duration {
        self.wanted(n).min(budget.mul_f64(self.most))
    }

    /// As [`of`](Self::of), and nothing where the largest share would not be enough.
    pub(crate) fn of_if_enough(&self, n: usize, budget: Duration) -> Duration {
        let wanted = self.wanted(n);
        if wanted <= budget.mul_f64(self.most) { wanted } else { Duration::ZERO }
    }

    fn wanted(&self, n: usize) -> Duration {
        Duration::from_secs_f64(self.estimate() * SAFETY * n as f64) + FIXED
    }

    fn estimate(&self) -> f64 {
        *self.seconds_per_candidate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether `n` candidates are likely to be done in this time. Where they are not, the estimate is lowered a
    /// little, so that it is tried again one day.
    pub(crate) fn fits(&self, n: usize, left: Duration) -> bool {
        let fits = self.estimate() * n as f64 <= left.as_secs_f64();
        if !fits {
            *self.seconds_per_candidate.lock().unwrap_or_else(PoisonError::into_inner) *= 1.0 - FALL;
        }
        fits
    }

    /// Takes in what the work on `n` candidates cost.
    pub(crate) fn measured(&self, n: usize, took: Duration) {
        self.take_in(n, took.as_secs_f64());
    }

    /// Takes in that the work on `n` candidates was given up after this long. What it would have cost is not known, so
    /// it is taken for four times as much: that finds the right amount in a few replies.
    pub(crate) fn given_up(&self, n: usize, after: Duration) {
        self.take_in(n, after.as_secs_f64() * 4.0);
    }

    fn take_in(&self, n: usize, seconds: f64) {
        if n == 0 {
            return;
        }
        let seen = (seconds / n as f64).min(60.0);
        let mut estimate = self.seconds_per_candidate.lock().unwrap_or_else(PoisonError::into_inner);
        *estimate += (seen - *estimate) * if seen > *estimate { RISE } else { FALL };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_fast_falls_slowly_and_is_bounded() {
        let reserve = Reserve::new(Duration::from_millis(100), 0.4);
        let budget = Duration::from_secs(10);
        let first = reserve.of(4, budget);
        assert_eq!(first, Duration::from_millis(620));
        reserve.measured(4, Duration::from_secs(4));
        let risen = reserve.of(4, budget);
        assert!(risen > Duration::from_secs(3), "{risen:?}");
        reserve.measured(4, Duration::from_millis(4));
        let fallen = reserve.of(4, budget);
        assert!(fallen < risen && fallen > Duration::from_secs(2), "{fallen:?}");
        assert_eq!(reserve.of(64, Duration::from_secs(1)), Duration::from_millis(400));
        reserve.measured(0, Duration::MAX);
        reserve.measured(1, Duration::MAX);
        reserve.given_up(1, Duration::MAX);
        assert_eq!(reserve.of(1, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn what_does_not_fit_is_tried_again_one_day() {
        let reserve = Reserve::new(Duration::from_secs(1), 0.25);
        let (n, budget) = (4, Duration::from_secs(10));
        assert_eq!(reserve.of_if_enough(n, budget), Duration::ZERO);
        assert!(reserve.of_if_enough(1, budget) > Duration::from_secs(1));
        let refused = (0..).take_while(|_| !reserve.fits(n, Duration::from_secs(2))).count();
        assert!((5..10).contains(&refused), "{refused}");
        assert!(reserve.fits(n, Duration::from_secs(2)));
    }
}
