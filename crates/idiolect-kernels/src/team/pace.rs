//! How many of a team's threads take part in its jobs.
//!
//! A thread that shares its core with another program is off it half of the time, milliseconds at a stretch. Where it
//! holds a task then, all others wait. Two threads are slower than one when that happens often, so fewer take part for a
//! while, and then more are tried again, ever more rarely while it does not pay.

use std::thread::ThreadId;
use std::time::Duration;

/// The part of the time that may be lost to waiting for threads that are off their cores.
const TOLERATED: u32 = 16;

/// What may be lost at once beyond that: about one turn that the system gives to another program.
const BURST: Duration = Duration::from_millis(4);

/// How long fewer threads take part at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(640));

/// A trial succeeds when it lasts this many times the pause before it.
const TRIAL: u32 = 8;

/// What is waited beyond two tasks is no work of others.
const SLACK: Duration = Duration::from_micros(100);

/// Time inside jobs after which it is compared with the processor's time.
const WINDOW: Duration = Duration::from_millis(4);

/// What the calling thread saw of a job. Times are counted from the start of the team.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) began: Duration,
    /// When no task was left to begin.
    pub(super) worked: Duration,
    /// When all others were through, too.
    pub(super) ended: Duration,
    /// Time asleep between the two.
    pub(super) asleep: Duration,
    /// Tasks that this thread did.
    pub(super) tasks: usize,
}

impl Seen {
    /// Returns how long the caller waited for what cannot have been work alone.
    fn stall(&self) -> Duration {
        let Some(n) = u32::try_from(self.tasks).ok().filter(|n| *n > 0) else { return Duration::ZERO };
        let task = self.worked.saturating_sub(self.began) / n;
        self.ended.saturating_sub(self.worked).saturating_sub(2 * task + SLACK)
    }
}

/// The time that a thread has been on a processor.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnCore {
    pub(super) thread: ThreadId,
    pub(super) time: Duration,
}

/// How many threads take part, and why.
#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    /// What may be lost at once.
    burst: Duration,
    threads: usize,
    /// Since when it is so many.
    since: Duration,
    /// How long fewer than all take part.
    pause: Duration,
    /// What was lost lately, less what is tolerated, at the time beside it.
    lost: (Duration, Duration),
    /// Time that the caller was awake in jobs since its processor time was taken.
    inside: Duration,
    on_core: Option<OnCore>,
}

impl Pace {
    /// Lets at most so many threads take part.
    pub(super) const fn new(most: usize) -> Self {
        Self {
            most,
            burst: BURST,
            threads: most,
            since: Duration::ZERO,
            pause: PAUSE.0,
            lost: (Duration::ZERO, Duration::ZERO),
            inside: Duration::ZERO,
            on_core: None,
        }
    }

    /// Lets so many threads take part whatever is lost.
    #[cfg(test)]
    pub(super) const fn steady(threads: usize) -> Self {
        Self { burst: Duration::MAX, ..Self::new(threads) }
    }

    /// Returns the most threads that ever take part.
    pub(super) const fn most(&self) -> usize {
        self.most
    }

    /// Returns how many threads take part in a job that begins now.
    pub(super) fn threads(&mut self, now: Duration) -> usize {
        if self.threads < self.most && now.saturating_sub(self.since) >= self.pause {
            self.set((2 * self.threads).min(self.most), now);
        }
        self.threads
    }

    /// Learns from a job of several threads. `on_core` is asked for the caller's processor time now and then.
    pub(super) fn learn(&mut self, seen: &Seen, on_core: impl FnOnce() -> Option<OnCore>) {
        let mut lost = seen.stall();
        self.inside += seen.ended.saturating_sub(seen.began).saturating_sub(seen.asleep);
        if self.inside >= WINDOW {
            let now = on_core();
            if let (Some(now), Some(before)) = (now, self.on_core)
                && now.thread == before.thread
            {
                // Work between jobs counts as work in them, so this is the least that was lost.
                lost += self.inside.saturating_sub(now.time.saturating_sub(before.time));
            }
            (self.on_core, self.inside) = (now, Duration::ZERO);
        }
        if !lost.is_zero() {
            self.lose(seen.ended, lost);
        }
    }

    fn lose(&mut self, now: Duration, lost: Duration) {
        let (before, at) = self.lost;
        let forgiven = now.saturating_sub(at) / TOLERATED;
        self.lost = (before.saturating_sub(forgiven) + lost, now);
        if self.lost.0 > self.burst && self.threads > 1 {
            let lasted = now.saturating_sub(self.since);
            self.pause = if lasted < TRIAL * self.pause { 2 * self.pause } else { self.pause / 2 };
            self.pause = self.pause.clamp(PAUSE.0, PAUSE.1);
            self.set(self.threads.div_ceil(2), now);
        }
    }

    fn set(&mut self, threads: usize, now: Duration) {
        (self.threads, self.since) = (threads, now);
        (self.lost, self.inside, self.on_core) = ((Duration::ZERO, now), Duration::ZERO, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);
    const MS: Duration = Duration::from_millis(1);

    /// A team's time, and what its jobs see.
    struct Course {
        pace: Pace,
        now: Duration,
        on_core: Duration,
        thread: ThreadId,
    }

    impl Course {
        fn new(most: usize) -> Self {
            let thread = std::thread::current().id();
            Self { pace: Pace::new(most), now: Duration::ZERO, on_core: Duration::ZERO, thread }
        }

        /// A job of ten tasks with 10 µs each, then a wait; the caller is off its core for a part of the work.
        fn job(&mut self, wait: Duration, off: Duration) -> usize {
            let threads = self.pace.threads(self.now);
            let (began, work) = (self.now, 100 * US + off);
            self.now += work;
            self.on_core += 100 * US;
            if threads > 1 {
                let worked = self.now;
                self.now += wait;
                let seen = Seen { began, worked, ended: self.now, asleep: wait, tasks: 10 };
                let on_core = OnCore { thread: self.thread, time: self.on_core };
                self.pace.learn(&seen, || Some(on_core));
            }
            threads
        }

        /// Jobs for some time, with a wait of `wait` in one of `every`; returns the share of time with all threads.
        fn run(&mut self, time: Duration, every: usize, wait: Duration, off: Duration) -> f64 {
            let (from, mut together) = (self.now, Duration::ZERO);
            let mut jobs = 0;
            while self.now < from + time {
                jobs += 1;
                let (before, hit) = (self.now, jobs % every == 0);
                let threads = self.job(if hit { wait } else { 10 * US }, if hit { off } else { Duration::ZERO });
                if threads == self.pace.most() {
                    together += self.now - before;
                }
            }
            together.as_secs_f64() / (self.now - from).as_secs_f64()
        }
    }

    #[test]
    fn all_take_part_while_waits_are_no_longer_than_tasks() {
        let mut course = Course::new(4);
        assert_eq!(course.run(1000 * MS, 1, 110 * US, Duration::ZERO), 1.0);
    }

    #[test]
    fn a_rare_stall_is_tolerated() {
        let mut course = Course::new(2);
        // 3 ms in a hundred.
        assert_eq!(course.run(5000 * MS, 1000, 3 * MS, Duration::ZERO), 1.0);
    }

    #[test]
    fn fewer_take_part_when_helpers_are_off_their_cores_often() {
        let mut course = Course::new(2);
        // 3 ms in six.
        let share = course.run(1000 * MS, 30, 3 * MS, Duration::ZERO);
        assert!(share < 0.15, "{share}");
        // What does not pay is tried ever more rarely.
        let share = course.run(5000 * MS, 30, 3 * MS, Duration::ZERO);
        assert!(share < 0.04, "{share}");
    }

    #[test]
    fn fewer_take_part_when_the_caller_is_off_its_core_often() {
        let mut course = Course::new(2);
        course.run(1000 * MS, 30, 10 * US, 3 * MS);
        let share = course.run(5000 * MS, 30, 10 * US, 3 * MS);
        assert!(share < 0.05, "{share}");
    }

    #[test]
    fn all_are_back_soon_after_a_load_ends() {
        let mut course = Course::new(8);
        course.run(5000 * MS, 30, 3 * MS, Duration::ZERO);
        course.run(3 * PAUSE.1, 30, 10 * US, Duration::ZERO);
        assert_eq!(course.run(1000 * MS, 30, 10 * US, Duration::ZERO), 1.0);
        // And what was a bad time long ago does not make the next pause a long one.
        course.run(20_000 * MS, 30, 10 * US, Duration::ZERO);
        while course.job(3 * MS, Duration::ZERO) == 8 {}
        assert!(course.pace.pause < PAUSE.1);
    }

    #[test]
    fn fewer_means_half_and_at_last_one() {
        let mut course = Course::new(6);
        let mut seen = Vec::new();
        for _ in 0..20 {
            seen.push(course.job(3 * MS, Duration::ZERO));
        }
        seen.dedup();
        assert_eq!(seen[..4], [6, 3, 2, 1]);
        assert_eq!(Pace::new(1).threads(Duration::MAX), 1);
    }

    #[test]
    fn processor_times_of_different_threads_are_not_compared() {
        let mut pace = Pace::new(2);
        let other = std::thread::spawn(|| std::thread::current().id()).join().unwrap();
        for (i, thread) in (0..100).zip([std::thread::current().id(), other].into_iter().cycle()) {
            let (began, ended) = (10 * MS * i, 10 * MS * (i + 1));
            let seen = Seen { began, worked: ended, ended, asleep: Duration::ZERO, tasks: 1 };
            pace.learn(&seen, || Some(OnCore { thread, time: Duration::ZERO }));
        }
        assert_eq!(pace.threads(2000 * MS), 2);
    }
}
