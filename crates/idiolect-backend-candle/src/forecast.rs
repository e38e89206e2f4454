//! How many candidates a request is given, and how long they may become, so that they end before its deadline.
//!
//! Both follow from how fast prompts and candidates were computed of late. All candidates are drawn where all are expected
//! to end in time; else as many as are, but not fewer than [`FEWEST`]; and as many more as cost little of the length that
//! those few would reach. Their length is what the time that is left allows, and half as much again: memory is set aside
//! for that, and not for all that was asked for. Where it goes faster than expected, more is set aside on the way.
//!
//! Without a deadline, or where no speed could be measured, a request is given what it asks for.

use std::time::Duration;

use crate::cost::longest;
use crate::engine::Portion;
use crate::speed::Meter;

/// Candidates that are never given up so that others end in time.
pub(crate) const FEWEST: usize = 2;
/// Of the length that the fewest candidates would reach in time: what more candidates must reach, too.
const LENGTH_SHARE: f64 = 0.8;
/// Replies are expected to be at most so many times as long as those that ended of themselves of late.
const USUAL_FACTOR: f64 = 2.0;
/// The least that replies are expected to be.
const USUAL_LEAST: f64 = 32.0;
/// Memory is set aside for so many times the tokens that time is expected to allow ...
const RESERVE: f64 = 1.5;
/// ... and for so many more.
const SPARE: usize = 32;
/// Candidates that come so near to the end of what is set aside are given more.
const AHEAD: usize = 16;

/// What a request wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) n: usize,
    /// Tokens of its prompt.
    pub(crate) prompt: usize,
    /// Most tokens of a candidate.
    pub(crate) room: usize,
    /// Time until its deadline, if it has one.
    pub(crate) left: Option<Duration>,
}

/// What a request is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    /// Candidates that are drawn.
    pub(crate) n: usize,
    /// Tokens that each is expected to have time for, at most what was asked for.
    pub(crate) expected: usize,
    /// Tokens of each that memory is set aside for.
    pub(crate) length: usize,
}

/// What is known of the time to come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forecast<'a> {
    pub(crate) meter: &'a Meter,
    /// Prompt tokens that are computed first.
    pub(crate) ahead: usize,
    /// Candidates of other requests that grow beside.
    pub(crate) others: usize,
    /// Mean length of replies that ended of themselves.
    pub(crate) usual: Option<f64>,
}

impl Forecast<'_> {
    /// Chooses what a request is given, whatever memory there is.
    pub(crate) fn share(&self, wish: &Wish) -> Share {
        let all = Share { n: wish.n, expected: wish.room, length: wish.room };
        let (Some(left), Some(prefill)) = (wish.left, self.meter.step(self.ahead + wish.prompt, 0)) else { return all };
        let left = left.saturating_sub(prefill).as_secs_f64();
        let step = |n: usize| self.meter.step(0, self.others + n).map(|step| step.as_secs_f64().max(1e-9));
        let fewest = wish.n.min(FEWEST);
        let Some(quickest) = step(fewest) else { return all };
        // A step that takes longer costs too much of the length, and candidates do not end either.
        let longest = (left / self.expected_length(wish.room)).max(quickest / LENGTH_SHARE);
        let n = (fewest..=wish.n).rev().find(|n| step(*n).is_some_and(|step| step <= longest)).unwrap_or(fewest);
        let tokens = left / step(n).unwrap_or(quickest);
        Share { n, expected: whole(tokens).clamp(1, wish.room.max(1)), length: with_reserve(tokens, wish.room) }
    }

    /// As [`share`](Self::share), within some portions of memory.
    pub(crate) fn share_of(&self, wish: &Wish, portion: Portion, portions: u64) -> Share {
        let mut share = self.share(wish);
        let fits = |n: usize| longest(portion, wish.prompt, n, portions);
        // Fewer that become long rather than many that hardly begin.
        while share.n > wish.n.min(FEWEST) && fits(share.n) < share.length.min(SPARE) {
            share.n -= 1;
        }
        share.length = share.length.min(fits(share.n)).max(1);
        share
    }

    /// Returns the length that memory should be set aside for, of `n` candidates that have `drawn` tokens; `None` where what
    /// is set aside, `length`, is enough for now.
    pub(crate) fn more(&self, drawn: usize, length: usize, n: usize, wish: &Wish) -> Option<usize> {
        if length >= wish.room || drawn + AHEAD < length {
            return None;
        }
        let step = self.meter.step(0, self.others + n);
        let (Some(left), Some(step)) = (wish.left, step) else { return Some(wish.room) };
        let tokens = left.as_secs_f64() / step.as_secs_f64().max(1e-9);
        let is_enough = drawn.saturating_add(whole(tokens)) <= length;
        (!is_enough).then(|| with_reserve(tokens, wish.room - drawn).saturating_add(drawn).min(wish.room))
    }

    /// Returns how many of `n` candidates to go on with, where all would not end in time and so many will; `None` where all
    /// should.
    pub(crate) fn kept(&self, n: usize, drawn: usize, room: usize, left: Duration) -> Option<usize> {
        #[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^52")]
        let needed = self.expected_length(room) - drawn as f64;
        let tokens = |kept: usize| {
            let step = self.meter.step(0, self.others + kept);
            step.map_or(f64::INFINITY, |step| left.as_secs_f64() / step.as_secs_f64().max(1e-9))
        };
        if needed <= 0.0 || tokens(n) >= needed {
            return None;
        }
        (FEWEST..n).rev().find(|kept| tokens(*kept) >= needed)
    }

    /// Returns how many tokens a candidate is expected to have in the end, if it has the time.
    fn expected_length(&self, room: usize) -> f64 {
        let usual = self.usual.map_or(f64::INFINITY, |usual| (usual * USUAL_FACTOR).max(USUAL_LEAST));
        #[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^52")]
        usual.min(room.max(1) as f64)
    }
}

/// Rounds a number of tokens down.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of tokens; casts saturate")]
const fn whole(tokens: f64) -> usize {
    tokens as usize
}

fn with_reserve(tokens: f64, most: usize) -> usize {
    whole((tokens * RESERVE).ceil()).saturating_add(SPARE).min(most).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cost::Cost;

    fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A prompt token takes one millisecond, and a step of so many candidates what is listed.
    fn meter(steps: &[(usize, u64)]) -> Meter {
        let mut meter = Meter::default();
        meter.note(100, 0, millis(100));
        steps.iter().for_each(|(n, took)| meter.note(0, *n, millis(*took)));
        meter
    }

    fn forecast(meter: &Meter) -> Forecast<'_> {
        Forecast { meter, ahead: 0, others: 0, usual: None }
    }

    fn wish(n: usize, room: usize, left: u64) -> Wish {
        Wish { n, prompt: 100, room, left: Some(millis(left)) }
    }

    #[test]
    fn without_a_deadline_or_a_measurement_all_is_given() {
        let all = Share { n: 8, expected: 500, length: 500 };
        assert_eq!(forecast(&Meter::default()).share(&wish(8, 500, 10)), all);
        let meter = meter(&[(8, 10)]);
        assert_eq!(forecast(&meter).share(&Wish { left: None, ..wish(8, 500, 0) }), all);
        assert_eq!(forecast(&meter).share(&wish(8, 500, 5100)), all, "time for everything");
    }

    #[test]
    fn length_is_what_time_allows_and_half_as_much_again() {
        let meter = meter(&[(8, 10)]);
        assert_eq!(forecast(&meter).share(&wish(8, 4000, 2100)), Share { n: 8, expected: 200, length: 332 });
        assert_eq!(forecast(&meter).share(&wish(8, 250, 2100)), Share { n: 8, expected: 200, length: 250 });
        let later = Forecast { ahead: 1000, ..forecast(&meter) };
        assert_eq!(later.share(&wish(8, 4000, 2100)), Share { n: 8, expected: 100, length: 182 });
        assert_eq!(forecast(&meter).share(&wish(8, 4000, 0)), Share { n: 8, expected: 1, length: 32 });
    }

    #[test]
    fn fewer_are_drawn_where_all_would_not_end() {
        let meter = meter(&[(2, 10), (4, 20), (8, 40)]);
        let n = |room: usize, left: u64| forecast(&meter).share(&wish(8, room, left)).n;
        assert_eq!((n(60, 100 + 2400), n(60, 100 + 1300), n(60, 100 + 600)), (8, 4, 2));
        assert_eq!(n(4000, 700), 2, "none would end: as long as can be");
        let usual = Forecast { usual: Some(10.0), ..forecast(&meter) };
        assert_eq!(usual.share(&wish(8, 4000, 100 + 32 * 40)).n, 8, "replies are short of late");
        let cheap = super::tests::meter(&[(2, 10), (8, 12)]);
        assert_eq!(forecast(&cheap).share(&wish(8, 4000, 700)).n, 8, "more of them cost little of the length");
    }

    #[test]
    fn more_is_set_aside_where_it_goes_faster() {
        let meter = meter(&[(8, 10)]);
        let forecast = forecast(&meter);
        let more = |drawn: usize, left: u64| forecast.more(drawn, 132, 8, &wish(8, 1000, left));
        assert_eq!(more(100, 5000), None, "not yet");
        assert_eq!(more(116, 160), None, "time is over by then");
        assert_eq!(more(116, 1000), Some(116 + 150 + 32));
        assert_eq!(more(120, 60_000), Some(1000), "no more than was asked for");
        assert_eq!(forecast.more(999, 1000, 8, &wish(8, 1000, 60_000)), None);
    }

    prop_compose! {
        fn meters()(steps in prop::collection::vec((1usize..40, 1u64..200), 1..6), prefill in 1u64..300) -> Meter {
            let mut meter = Meter::default();
            meter.note(100, 0, millis(prefill));
            steps.iter().for_each(|(n, took)| meter.note(0, *n, millis(*took)));
            meter
        }
    }

    proptest! {
        #[test]
        fn shares_are_within_what_was_asked_for_and_grow_with_time(
            meter in meters(),
            (n, prompt, room) in (1usize..20, 1usize..600, 1usize..2000),
            (others, usual) in (0usize..20, prop::option::of(1f64..500.0)),
            times in prop::collection::vec(0u64..100_000, 2..8),
        ) {
            let forecast = Forecast { meter: &meter, ahead: 0, others, usual };
            let mut times = times;
            times.sort_unstable();
            let mut before: Option<Share> = None;
            for left in times {
                let share = forecast.share(&Wish { n, prompt, room, left: Some(millis(left)) });
                prop_assert!((n.min(FEWEST)..=n).contains(&share.n));
                prop_assert!((1..=room).contains(&share.length) && (1..=share.length).contains(&share.expected));
                if let Some(before) = before {
                    prop_assert!(before.n <= share.n, "{before:?} {share:?}");
                    let grows = before.length <= share.length && before.expected <= share.expected;
                    prop_assert!(before.n < share.n || grows, "{before:?} {share:?}");
                }
                before = Some(share);
            }
            let share = forecast.share(&Wish { n, prompt, room, left: Some(Duration::from_secs(1_000_000)) });
            prop_assert_eq!(share, Share { n, expected: room, length: room });
        }

        #[test]
        fn shares_fit_the_memory(
            meter in meters(),
            (n, prompt, room) in (1usize..20, 1usize..600, 1usize..2000),
            left in prop::option::of(0u64..100_000),
            (tokens, more) in (1usize..33, 0u64..2000),
        ) {
            let portion = Portion { tokens, bytes: 1 };
            let fewest = n.min(FEWEST);
            // What is let in at all: the least that it may be given fits.
            let portions = Cost::new(portion, prompt, 1).of(fewest) + more;
            let wish = Wish { n, prompt, room, left: left.map(millis) };
            let share = forecast(&meter).share_of(&wish, portion, portions);
            prop_assert!(Cost::new(portion, prompt, share.length).of(share.n) <= portions, "{share:?}");
            prop_assert!((fewest..=n).contains(&share.n) && (1..=room).contains(&share.length));
            let unbounded = forecast(&meter).share_of(&wish, portion, u64::MAX / 2);
            prop_assert_eq!(unbounded, forecast(&meter).share(&wish));
        }

        #[test]
        fn more_is_never_less(
            meter in meters(),
            (drawn, length, room) in (1usize..600, 1usize..600, 1usize..2000),
            left in prop::option::of(0u64..100_000),
        ) {
            let (length, drawn) = (length.min(room), drawn.min(room).min(length + 1));
            let wish = Wish { n: 4, prompt: 10, room, left: left.map(millis) };
            if let Some(more) = forecast(&meter).more(drawn, length, 4, &wish) {
                prop_assert!(more > length && more <= room, "{more} after {length}");
            }
        }
    }
}
