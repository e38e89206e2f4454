//! How long to wait after failures.

use std::time::Duration;

use crate::random;

/// Growing pauses between tries, spread at random so that many clients don't come back at once.
///
/// ```
/// use std::time::Duration;
/// use idiolect_backend::Backoff;
///
/// let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60), jitter: 0.0 };
/// assert_eq!(backoff.delay(0, 7), Duration::from_secs(1));
/// assert_eq!(backoff.delay(3, 7), Duration::from_secs(8));
/// assert_eq!(backoff.delay(40, 7), Duration::from_secs(60));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The pause after the first failure; each further one doubles it.
    pub first: Duration,
    /// No pause is longer than this.
    pub max: Duration,
    /// How much of a pause is left to chance, 0 to 1: a pause of `d` becomes one in `[d * (1 - jitter), d]`.
    pub jitter: f64,
}

impl Default for Backoff {
    /// Half a second, doubling up to ten seconds, half of it by chance.
    fn default() -> Self {
        Self { first: Duration::from_millis(500), max: Duration::from_secs(10), jitter: 0.5 }
    }
}

impl Backoff {
    /// Returns the pause after `n_before` earlier failures; `salt` picks the point in the range of chance.
    #[must_use]
    pub fn delay(&self, n_before: u32, salt: u64) -> Duration {
        let doubled = 2_u32.checked_pow(n_before).and_then(|factor| self.first.checked_mul(factor));
        let full = doubled.unwrap_or(self.max).min(self.max);
        let jitter = if self.jitter.is_finite() { self.jitter.clamp(0.0, 1.0) } else { 0.0 };
        full.mul_f64(1.0 - jitter * random::unit(random::mix(salt)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_in_range_and_varies() {
        let backoff = Backoff::default();
        let delays: Vec<_> = (0..50).map(|salt| backoff.delay(2, salt)).collect();
        assert!(delays.iter().all(|d| (1.0..=2.0).contains(&d.as_secs_f64())), "{delays:?}");
        assert!(delays.windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn survives_silly_settings() {
        let backoff = Backoff { first: Duration::MAX, max: Duration::from_secs(3), jitter: f64::NAN };
        assert_eq!(backoff.delay(u32::MAX, 1), Duration::from_secs(3));
    }
}
