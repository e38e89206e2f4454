//! How many candidates can be drawn in the time there is.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What is known of generation's speed: the time of a token grows with the candidates that grow side by side, y = a + b n.
///
/// Fitted by least squares to what was measured, of which the older counts less and less. Where all had the same n, the
/// slope is that of a batch whose third candidate doubles the time of a token.
///
/// A slope that was only guessed may be far off, so the first time several candidates are wanted one of them goes ahead
/// ([`goes_ahead`](Self::goes_ahead)).
#[derive(Debug, Default)]
pub(crate) struct Pace(Mutex<Sums>);

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    weight: f64,
    n: f64,
    n_n: f64,
    y: f64,
    n_y: f64,
    /// Tokens that a reply takes.
    length: f64,
    length_length: f64,
    /// What is known of several candidates at once.
    several: Several,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Several {
    /// Nothing: they may spoil a reply that would be whole without them.
    #[default]
    Unknown,
    /// They may be tried together: there is nothing to spoil, or they were tried and nothing came.
    Allowed,
    Measured,
}

impl Sums {
    /// Returns a and b in seconds; `None` of nothing.
    fn line(&self) -> Option<(f64, f64)> {
        if self.weight <= 0.0 {
            return None;
        }
        let mean = |sum: f64| sum / self.weight;
        let (n, y) = (mean(self.n), mean(self.y));
        let slope_by_default = y / (n + 2.0);
        let variance = mean(self.n_n) - n * n;
        let covariance = mean(self.n_y) - n * y;
        let slope = ((covariance + PRIOR * slope_by_default) / (variance + PRIOR)).max(0.0);
        Some(((y - slope * n).max(0.0), slope))
    }

    /// Returns how many tokens a reply is likely to have at most: their mean and a standard deviation more.
    fn length(&self, max_tokens: u32) -> f64 {
        let mean = self.length / self.weight;
        let variance = (self.length_length / self.weight - mean * mean).max(0.0);
        (mean + variance.sqrt()).min(f64::from(max_tokens))
    }
}

/// What counts of the earlier measurements when one is added.
const KEPT: f64 = 0.7;
/// Weight of the slope that is taken for granted, in candidates squared.
const PRIOR: f64 = 0.05;
/// What counts as no more time than one candidate takes.
const SAME: f64 = 1.1;
/// Share of the time that generation may be predicted to take.
const MOST: f64 = 0.8;

/// One generation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) n_candidates: usize,
    pub(crate) took: Duration,
    /// Tokens of the longest candidate.
    pub(crate) length: u32,
    /// Whether the deadline cut any short.
    pub(crate) is_cut: bool,
}

impl Pace {
    /// Takes a measurement in.
    pub(crate) fn measured(&self, measured: Measured) {
        let Measured { n_candidates, took, length, is_cut } = measured;
        if n_candidates == 0 || length == 0 {
            return;
        }
        let (n, y) = (n_candidates as f64, took.as_secs_f64() / f64::from(length));
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if n_candidates > 1 {
            sums.several = Several::Measured;
        }
        // How long it would have become nobody knows; not less than others, if it had little time.
        let usual = if sums.weight > 0.0 { sums.length / sums.weight } else { 0.0 };
        let length = if is_cut { (1.5 * f64::from(length)).max(usual) } else { f64::from(length) };
        let add = |sum: &mut f64, value: f64| *sum = KEPT * *sum + value;
        add(&mut sums.weight, 1.0);
        add(&mut sums.n, n);
        add(&mut sums.n_n, n * n);
        add(&mut sums.y, y);
        add(&mut sums.n_y, n * y);
        add(&mut sums.length, length);
        add(&mut sums.length_length, length * length);
    }

    /// Returns how long one candidate of at most `max_tokens` tokens is likely to take; `None` before anything was measured.
    pub(crate) fn one(&self, max_tokens: u32) -> Option<Duration> {
        let sums = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (alone, slope) = sums.line()?;
        Duration::try_from_secs_f64((alone + slope) * sums.length(max_tokens)).ok()
    }

    /// Says whether one candidate should go ahead of others: nobody knows what they cost.
    pub(crate) fn goes_ahead(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).several == Several::Unknown
    }

    /// Lets several candidates be drawn together though it was not measured what that costs.
    pub(crate) fn allow_several(&self) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sums.several == Several::Unknown {
            sums.several = Several::Allowed;
        }
    }

    /// Returns for how long `n` candidates may grow of which none is whole, if there is `left`: as long as one of them could still
    /// become as long as it may when it is alone from then on, and at least as long as they should take. All the time before it
    /// was measured what several cost.
    pub(crate) fn together(&self, n: usize, max_tokens: u32, left: Duration) -> Duration {
        let sums = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((alone, slope)) = sums.line().filter(|_| sums.several == Several::Measured) else { return left };
        let expected = (alone + slope * n as f64) * sums.length(max_tokens) * SAME;
        let spare = left.as_secs_f64() - (alone + slope) * f64::from(max_tokens);
        Duration::try_from_secs_f64(expected.max(spare)).map_or(left, |time| time.min(left))
    }

    /// Returns how many of `wanted` candidates of at most `max_tokens` tokens fit into the time: all before it was
    /// measured what several cost, and 1 at least.
    pub(crate) fn fit(&self, wanted: usize, max_tokens: u32, left: Duration) -> usize {
        let sums = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((alone, slope)) = sums.line().filter(|_| sums.several == Several::Measured) else { return wanted };
        let length = sums.length(max_tokens);
        let predicted = |n: usize| (alone + slope * n as f64) * length;
        // Where one is too many already, so are those that cost nothing beside it: the deadline cuts all of them alike.
        let allowed = (left.as_secs_f64() * MOST).max(predicted(1) * SAME);
        (1..=wanted).rev().find(|&n| predicted(n) <= allowed).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(n_candidates: usize, ms_a_token: f64, is_cut: bool) -> Measured {
        Measured { n_candidates, took: Duration::from_secs_f64(ms_a_token * 0.1), length: 100, is_cut }
    }

    #[test]
    fn as_many_as_the_measured_speed_allows_and_one_at_least() {
        let pace = Pace::default();
        let fit = |seconds| pace.fit(8, 160, Duration::from_secs(seconds));
        assert_eq!(fit(1), 8, "nothing is known yet");
        // 100 ms a token for 8: 10 s for a reply of 100.
        pace.measured(generation(8, 100.0, false));
        assert_eq!((fit(13), fit(1)), (8, 1));
        assert!((2..8).contains(&fit(6)), "{}", fit(6));
        // Two are hardly faster: the time is that of a token, whatever grows beside it.
        for _ in 0..20 {
            pace.measured(generation(2, 95.0, false));
            pace.measured(generation(8, 100.0, false));
        }
        assert_eq!((fit(13), fit(6)), (8, 8), "six seconds are too little for any number of them");
        // Each costs as much as the first.
        for _ in 0..20 {
            pace.measured(generation(2, 25.0, false));
            pace.measured(generation(8, 100.0, false));
        }
        assert_eq!((fit(13), fit(7), fit(1)), (8, 4, 1));
        // A faster machine is noticed within a few replies, also where few candidates are drawn.
        let n_replies = (0..).find(|_| {
            let n = fit(7);
            pace.measured(generation(n, 5.0 + n as f64, false));
            n == 8
        });
        assert!(n_replies.is_some_and(|n| n < 15), "{n_replies:?}");
    }

    #[test]
    fn cut_replies_would_have_become_longer_up_to_the_limit_of_tokens() {
        let (cut, whole) = (Pace::default(), Pace::default());
        cut.measured(generation(4, 60.0, true));
        whole.measured(generation(4, 60.0, false));
        let seconds = Duration::from_secs(8);
        assert_eq!(whole.fit(4, 160, seconds), 4);
        assert!(cut.fit(4, 160, seconds) < 4);
        assert_eq!(cut.fit(4, 100, seconds), 4);
    }

    #[test]
    fn nothing_generated_tells_nothing() {
        let pace = Pace::default();
        pace.measured(Measured { n_candidates: 0, took: Duration::MAX, length: 5, is_cut: false });
        pace.measured(Measured { n_candidates: 3, took: Duration::MAX, length: 0, is_cut: false });
        assert_eq!(pace.fit(8, 160, Duration::ZERO), 8);
        pace.measured(Measured { n_candidates: 3, took: Duration::MAX, length: 1, is_cut: true });
        assert_eq!(pace.fit(8, 160, Duration::from_secs(9)), 1);
    }
}
