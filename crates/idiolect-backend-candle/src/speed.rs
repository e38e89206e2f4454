//! How fast the engine was of late, and what that says of work to come.

use std::time::Duration;

/// What the newest measurement counts against those before.
const WEIGHT: f64 = 0.25;

/// What a measurement may be at most, as times of the mean before it: a process that was held up for once says nothing about
/// how fast it is.
const MOST: f64 = 4.0;

/// Prompt tokens that make a step worth measuring.
const MIN_PREFILL: usize = 16;

/// Steps are told apart by how many candidates they grow: up to 1, 2, 4, 8 and so on.
const SIZES: usize = 10;

/// How fast a backend computes, as it was measured while it worked.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Speed {
    /// Prompt tokens a second; `None` where none could be computed.
    pub prefill_tokens_per_second: Option<f64>,
    /// Tokens a second by how many candidates grew side by side, fewest first; only what was seen.
    pub decode: Vec<DecodeSpeed>,
}

/// How fast candidates grew.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct DecodeSpeed {
    /// Most candidates that grew side by side.
    pub candidates: usize,
    /// Tokens a second, of all of them together.
    pub tokens_per_second: f64,
}

/// Running means of what steps took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    /// Seconds a prompt token.
    prefill: Option<f64>,
    /// By size: seconds a step, and mean candidates in it.
    decode: [Option<(f64, f64)>; SIZES],
}

fn size(candidates: usize) -> usize {
    (candidates.max(1).next_power_of_two().trailing_zeros() as usize).min(SIZES - 1)
}

fn mean(old: Option<f64>, new: f64) -> f64 {
    old.map_or(new, |old| old + WEIGHT * (new - old))
}

/// As [`mean`], of times.
fn mean_time(old: Option<f64>, new: f64) -> f64 {
    mean(old, old.map_or(new, |old| new.min(old * MOST)))
}

#[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
impl Meter {
    /// Takes note of a step.
    pub(crate) fn note(&mut self, prompt_tokens: usize, candidates: usize, took: Duration) {
        let took = took.as_secs_f64();
        if prompt_tokens == 0 && candidates > 0 {
            let of = &mut self.decode[size(candidates)];
            let (seconds, n) = of.unzip();
            *of = Some((mean_time(seconds, took), mean(n, candidates as f64)));
        } else if prompt_tokens >= MIN_PREFILL {
            // What is due to the candidates is known, or it is little beside the prompt.
            let decode = if candidates > 0 { self.decode_step(candidates).unwrap_or(0.0) } else { 0.0 };
            self.prefill = Some(mean_time(self.prefill, (took - decode).max(took * 0.2) / prompt_tokens as f64));
        }
    }

    /// Returns the seconds of a step with so many candidates; `None` when none was measured.
    fn decode_step(&self, candidates: usize) -> Option<f64> {
        let at = size(candidates);
        // More candidates take longer, at worst each as long as those before; fewer are not sure to take less.
        let expect = |(seconds, n): (f64, f64)| seconds * (candidates as f64 / n).max(1.0);
        // What was measured with fewer bounds what was measured long ago with as many: whether a step of that size is
        // taken again depends on what is expected of it.
        let bounds = self.decode[..=at].iter().flatten().map(|of| expect(*of));
        let above = || self.decode[at + 1..].iter().flatten().next().map(|of| expect(*of));
        bounds.reduce(f64::min).or_else(above)
    }

    /// Expects how long a step takes; `None` when nothing like it was measured.
    pub(crate) fn step(&self, prompt_tokens: usize, candidates: usize) -> Option<Duration> {
        let prefill = if prompt_tokens > 0 { self.prefill? * prompt_tokens as f64 } else { 0.0 };
        let decode = if candidates > 0 { self.decode_step(candidates)? } else { 0.0 };
        Duration::try_from_secs_f64(prefill + decode).ok()
    }

    /// Expects how many prompt tokens fit a time.
    pub(crate) fn prompt_tokens_in(&self, time: Duration) -> Option<usize> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of tokens, rounded down")]
        self.prefill.map(|seconds| (time.as_secs_f64() / seconds) as usize)
    }

    /// Says what was measured.
    pub(crate) fn speed(&self) -> Speed {
        let decode = self.decode.iter().enumerate().filter_map(|(i, of)| {
            let (seconds, n) = (*of)?;
            Some(DecodeSpeed { candidates: 1 << i, tokens_per_second: n / seconds })
        });
        Speed { prefill_tokens_per_second: self.prefill.map(|seconds| 1.0 / seconds), decode: decode.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn nothing_is_expected_before_anything_was_seen() {
        let meter = Meter::default();
        assert_eq!((meter.step(1, 0), meter.step(0, 1), meter.prompt_tokens_in(millis(1))), (None, None, None));
        assert_eq!(meter.speed(), Speed::default());
    }

    #[test]
    fn steps_are_expected_to_take_what_they_took() {
        let mut meter = Meter::default();
        meter.note(100, 0, millis(50));
        meter.note(0, 8, millis(10));
        assert_eq!(meter.step(100, 0), Some(millis(50)));
        assert_eq!(meter.step(0, 8), Some(millis(10)));
        assert_eq!(meter.step(0, 3), Some(millis(10)), "fewer may take as long");
        assert_eq!(meter.step(0, 16), Some(millis(20)), "more may take longer");
        assert_eq!(meter.step(200, 8), Some(millis(110)));
        assert_eq!(meter.prompt_tokens_in(millis(10)), Some(20));
        let speed = meter.speed();
        assert_eq!(speed.prefill_tokens_per_second, Some(2000.0));
        assert_eq!(speed.decode, [DecodeSpeed { candidates: 8, tokens_per_second: 800.0 }]);
    }

    #[test]
    fn a_step_that_was_held_up_is_soon_forgotten() {
        let mut meter = Meter::default();
        (0..20).for_each(|_| meter.note(0, 8, millis(10)));
        meter.note(0, 8, millis(5000));
        assert!(meter.step(0, 8).unwrap() < millis(20), "{:?}", meter.step(0, 8));
        (0..4).for_each(|_| meter.note(0, 8, millis(10)));
        assert!(meter.step(0, 8).unwrap() < millis(13));
        // Where the first step of all was held up, and nobody dares to take another of its size.
        let mut meter = Meter::default();
        meter.note(0, 8, millis(5000));
        assert_eq!(meter.step(0, 8), Some(millis(5000)));
        meter.note(0, 2, millis(8));
        assert_eq!(meter.step(0, 8), Some(millis(32)));
        assert_eq!(meter.step(0, 2), Some(millis(8)));
        // A machine that has become slower is believed before long.
        (0..10).for_each(|_| meter.note(0, 2, millis(800)));
        assert!(meter.step(0, 2).unwrap() > millis(500));
    }

    #[test]
    fn what_changes_is_followed() {
        let mut meter = Meter::default();
        meter.note(0, 1, millis(10));
        (0..30).for_each(|_| meter.note(0, 1, millis(20)));
        let step = meter.step(0, 1).unwrap();
        assert!(step > millis(19) && step <= millis(20), "{step:?}");
        meter.note(64, 1, millis(84));
        assert!(meter.step(64, 0).unwrap().abs_diff(millis(64)) < millis(1));
    }
}
