//! A small team of threads for hot loops: hundreds of joint jobs a second each as short as a few microseconds.

#![expect(
    unsafe_code,
    reason = "closures and slices are lent to threads that live longer, and are back before a call returns"
)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use pace::{OnCore, Pace, Seen};

mod pace;

/// How long a thread looks for work, or for the end of others' work, before it gives its core away.
const SPIN: Duration = Duration::from_micros(40);

/// Looks between two looks at the clock.
const LOOKS: u32 = 16;

/// Bits of [`Shared::state`] that count threads inside the job.
const INSIDE: u64 = (1 << 31) - 1;
/// Set while a job takes threads in.
const OPEN: u64 = 1 << 31;
/// One job further.
const NEXT: u64 = 1 << 32;

/// Threads that work together on one job at a time.
///
/// The calling thread is one of them. Tasks are dealt out in contiguous shares, and who is through with their own share
/// takes from the others', so that a thread whose core is busy elsewhere holds up no more than the task it is in.
/// Threads without work look for some for a few tens of microseconds and then sleep. Where other programs keep threads of
/// the team from their cores so often that waiting for them costs more than they give, fewer take part for a while.
///
/// ```
/// let team = idiolect_kernels::Team::new(2)?;
/// let mut squares = vec![0; 1000];
/// team.chunks_mut(&mut squares, 100, |chunk, values| {
///     for (i, value) in values.iter_mut().enumerate() {
///         *value = (chunk * 100 + i).pow(2);
///     }
/// });
/// assert_eq!(squares[777], 777 * 777);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Team {
    shared: Arc<Shared>,
    /// Held while a job runs; who does not get it works alone.
    turn: Mutex<Pace>,
    /// What times are counted from.
    began: Instant,
    helpers: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Team({})", self.threads())
    }
}

struct Shared {
    /// Number of the job (high half), [`OPEN`], and how many helpers are [`INSIDE`].
    state: AtomicU64,
    /// Helpers that are to go into the job, by their number; others need not.
    wanted: AtomicUsize,
    stop: AtomicBool,
    /// Written by the caller while no helper is inside and the job is closed, read by helpers while inside.
    job: UnsafeCell<Job>,
    shares: Box<[Share]>,
    /// For each helper, whether it sleeps or is about to.
    sleeps: Box<[Flag]>,
    /// Whether the caller sleeps or is about to.
    caller_sleeps: AtomicBool,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Panic>,
}

/// What a task panicked with, if one did.
type Panic = Option<Box<dyn Any + Send>>;

// SAFETY: the only field that is not `Sync` by itself is `job`. The caller writes it while the state says that nobody is
// inside and nobody may come in, and helpers read it between entering and leaving, which the state orders; what it points
// to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is only followed while the caller waits for the job to end.
unsafe impl Send for Shared {}

#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
}

/// Tasks that one thread begins with. On cache lines of its own.
#[repr(align(128))]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
}

#[repr(align(128))]
struct Flag(AtomicBool);

impl Team {
    /// Starts `threads - 1` helpers; 0 counts as 1. No more take part at a time than the system has cores for.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(threads: usize) -> io::Result<Self> {
        let cores = std::thread::available_parallelism().map_or(usize::MAX, std::num::NonZero::get);
        let threads = threads.clamp(1, 1024);
        Self::with_pace(threads, Pace::new(threads.min(cores)))
    }

    fn with_pace(threads: usize, pace: Pace) -> io::Result<Self> {
        let nothing: &'static (dyn Fn(usize) + Sync) = &|_| ();
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            wanted: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(Job { task: nothing }),
            shares: (0..threads).map(|_| Share { next: AtomicUsize::new(0), end: AtomicUsize::new(0) }).collect(),
            sleeps: (1..threads).map(|_| Flag(AtomicBool::new(false))).collect(),
            caller_sleeps: AtomicBool::new(false),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
        });
        let mut team = Self { shared, turn: Mutex::new(pace), began: Instant::now(), helpers: Vec::new() };
        for home in 1..threads {
            let shared = Arc::clone(&team.shared);
            let helper = std::thread::Builder::new().name(format!("team-{home}")).spawn(move || shared.help(home))?;
            team.helpers.push(helper);
        }
        Ok(team)
    }

    /// Returns the number of threads, the caller's included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `task(0)` to `task(n_tasks - 1)`, each once, on any of the threads, and returns when all are through.
    ///
    /// A call from within a task, or while another thread's call is under way, runs its tasks alone, one by one.
    ///
    /// # Panics
    /// When a task does, after the others that had begun; tasks that had not may be left out.
    pub fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let pace = if self.helpers.is_empty() || n_tasks < 2 { None } else { self.take_turn() };
        if let Some(mut pace) = pace
            && pace.most() > 1
        {
            let began = self.began.elapsed();
            let threads = pace.threads(began);
            if threads > 1 {
                let (seen, panic) = self.share(threads, n_tasks, task, began);
                pace.learn(&seen, on_core);
                drop(pace);
                return if let Some(panic) = panic {
                    resume_unwind(panic)
                };
            }
        }
        (0..n_tasks).for_each(task);
    }

    /// Returns the turn unless somebody has it.
    fn take_turn(&self) -> Option<MutexGuard<'_, Pace>> {
        match self.turn.try_lock() {
            Ok(pace) => Some(pace),
            Err(TryLockError::Poisoned(pace)) => Some(pace.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Runs a job of several threads; the caller has the turn.
    fn share(&self, threads: usize, n_tasks: usize, task: &(dyn Fn(usize) + Sync), began: Duration) -> (Seen, Panic) {
        let shared = &*self.shared;
        shared.deal(n_tasks, threads);
        // SAFETY: only the lifetime changes. The pointer is followed by helpers inside the job alone, and this function
        // does not return or unwind before the job is closed and all helpers have left.
        let task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(task)
        };
        // SAFETY: the last job was closed and left by all, and this thread holds the turn: nobody else looks.
        unsafe { *shared.job.get() = Job { task } };
        shared.wanted.store(threads, Ordering::Relaxed);
        let open = (shared.state.load(Ordering::Relaxed) & !(NEXT - 1)).wrapping_add(NEXT) | OPEN;
        shared.state.store(open, Ordering::SeqCst);
        for (sleeps, helper) in shared.sleeps.iter().zip(&self.helpers).take(threads - 1) {
            if sleeps.0.load(Ordering::SeqCst) && sleeps.0.swap(false, Ordering::SeqCst) {
                helper.thread().unpark();
            }
        }
        let tasks = shared.work(0, Job { task });
        shared.state.fetch_and(!OPEN, Ordering::SeqCst);
        let worked = self.began.elapsed();
        let asleep = shared.wait();
        let ended = asleep.map_or(worked, |_| self.began.elapsed());
        let seen = Seen { began, worked, ended, asleep: asleep.unwrap_or_default(), tasks };
        (seen, shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take())
    }

    /// Runs `f` on every chunk of `chunk_len` elements (the last may be shorter) with the chunk's number.
    ///
    /// # Panics
    /// When `f` does, or for a `chunk_len` of 0.
    pub fn chunks_mut<T: Send>(&self, slice: &mut [T], chunk_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        assert!(chunk_len > 0, "chunks have at least one element");
        let len = slice.len();
        let base = Base(slice.as_mut_ptr());
        self.run(len.div_ceil(chunk_len), &|chunk| {
            let begin = chunk * chunk_len;
            let n = chunk_len.min(len - begin);
            // SAFETY: chunks do not overlap, each is inside the slice, and each number comes up once.
            f(chunk, unsafe { std::slice::from_raw_parts_mut(base.at(begin), n) });
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // Helpers catch the panics of tasks, so there is nothing to hear.
            drop(helper.join());
        }
    }
}

/// The first element of a slice that several threads write to, each its own part.
pub(crate) struct Base<T>(pub(crate) *mut T);

// SAFETY: a `&mut [T]` may be used by another thread when `T` is `Send`; who uses which part is the user's matter.
unsafe impl<T: Send> Sync for Base<T> {}

impl<T> Base<T> {
    /// Returns a pointer to element `i`, which is at most the slice's length.
    pub(crate) const fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

impl Shared {
    /// Gives each of so many threads its share of the tasks.
    fn deal(&self, n_tasks: usize, threads: usize) {
        let (each, more) = (n_tasks / threads, n_tasks % threads);
        let mut begin = 0;
        for (i, share) in self.shares.iter().enumerate() {
            let end = if i < threads { begin + each + usize::from(i < more) } else { begin };
            share.next.store(begin, Ordering::Relaxed);
            share.end.store(end, Ordering::Relaxed);
            begin = end;
        }
    }

    /// Works until no task is left that nobody has begun: first on the own share, then on the others'. Returns how many
    /// tasks that were.
    fn work(&self, home: usize, job: Job) -> usize {
        let (before, from) = self.shares.split_at(home);
        let mut n = 0;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for share in from.iter().chain(before) {
                let end = share.end.load(Ordering::Relaxed);
                while share.next.load(Ordering::Relaxed) < end {
                    let task = share.next.fetch_add(1, Ordering::Relaxed);
                    if task >= end {
                        break;
                    }
                    // SAFETY: this thread is inside the job (or is the caller), so the closure is still there.
                    unsafe { (*job.task)(task) };
                    n += 1;
                }
            }
        }));
        if let Err(panic) = outcome {
            for share in &self.shares {
                share.next.store(share.end.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
        n
    }

    /// Waits until all helpers have left the closed job. Returns how long this thread slept, or nothing where all had
    /// left before.
    fn wait(&self) -> Option<Duration> {
        let is_done = || self.state.load(Ordering::SeqCst) & INSIDE == 0;
        if is_done() {
            return None;
        }
        if spin_until(is_done) {
            return Some(Duration::ZERO);
        }
        let began = Instant::now();
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while !is_done() {
            std::thread::park();
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
        Some(began.elapsed())
    }

    /// What a helper does all its life.
    fn help(&self, home: usize) {
        let sleeps = &self.sleeps[home - 1].0;
        let mut last = 0;
        loop {
            let news = || {
                let state = self.state.load(Ordering::SeqCst);
                let is_wanted = || self.wanted.load(Ordering::Relaxed) > home;
                (state & OPEN != 0 && state & !(NEXT - 1) != last && is_wanted()) || self.stop.load(Ordering::SeqCst)
            };
            while !spin_until(news) {
                // Said anew before each sleep: a job may have been over before this thread was awake.
                sleeps.store(true, Ordering::SeqCst);
                if !news() {
                    std::thread::park();
                }
                sleeps.store(false, Ordering::SeqCst);
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if let Some(number) = self.enter() {
                last = number;
                // SAFETY: inside the job, the caller writes nothing.
                let job = unsafe { *self.job.get() };
                self.work(home, job);
                let left = self.state.fetch_sub(1, Ordering::SeqCst) - 1;
                if left & (OPEN | INSIDE) == 0 && self.caller_sleeps.load(Ordering::SeqCst) {
                    let caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(caller) = &*caller {
                        caller.unpark();
                    }
                }
            }
        }
    }

    /// Goes into the job that is open, if one is; returns its number.
    fn enter(&self) -> Option<u64> {
        let enter = |state: u64| (state & OPEN != 0).then_some(state + 1);
        let state = self.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, enter).ok()?;
        Some(state & !(NEXT - 1))
    }
}

/// Returns how long this thread has been on a processor, where the system tells.
fn on_core() -> Option<OnCore> {
    #[cfg(all(target_os = "linux", not(miri)))]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let time = Duration::try_from(time).ok()?;
        Some(OnCore { thread: std::thread::current().id(), time })
    }
    #[cfg(not(all(target_os = "linux", not(miri))))]
    None
}

/// Looks whether something is so, for a short while.
fn spin_until(is_so: impl Fn() -> bool) -> bool {
    if is_so() {
        return true;
    }
    let began = Instant::now();
    loop {
        for _ in 0..LOOKS {
            std::hint::spin_loop();
            if is_so() {
                return true;
            }
        }
        if began.elapsed() > SPIN {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A team whose helpers all take part, however many cores there are and whatever else runs.
    fn steady(threads: usize) -> Team {
        Team::with_pace(threads, Pace::steady(threads)).unwrap()
    }

    fn check(team: &Team, n_tasks: usize) {
        let times: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
        team.run(n_tasks, &|task| {
            times[task].fetch_add(1, Ordering::Relaxed);
        });
        assert!(times.iter().all(|n| n.load(Ordering::Relaxed) == 1), "each of {n_tasks} tasks once");
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [0, 1, 2, 3, 8] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads.max(1));
            check(&team, 100);
            let team = steady(threads.max(1));
            for n_tasks in [0, 1, 2, 3, 7, 64, 1000] {
                check(&team, n_tasks);
            }
        }
    }

    #[test]
    fn many_short_jobs_with_pauses_between_them() {
        let team = steady(4);
        for round in 0..20_000 {
            check(&team, round % 9);
            if round % 2000 == 0 {
                // Long enough for the helpers to fall asleep.
                std::thread::park_timeout(SPIN * 10);
            }
        }
    }

    #[test]
    fn several_callers_and_calls_from_within_get_their_tasks_done() {
        let team = steady(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..500).for_each(|round| check(&team, round % 20)));
            }
        });
        let sum = AtomicUsize::new(0);
        team.run(5, &|a| {
            team.run(5, &|b| {
                sum.fetch_add(a * b, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), 100);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = steady(3);
        for bad in [0, 1, 50, 99] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.run(100, &|task| assert!(task != bad, "task {task}"));
            }));
            let panic = outcome.unwrap_err();
            assert_eq!(panic.downcast_ref::<String>(), Some(&format!("task {bad}")));
            // Nobody need work alone from then on.
            assert!(team.take_turn().is_some());
            check(&team, 100);
        }
    }

    #[test]
    fn fewer_threads_than_the_team_has_do_all_tasks() {
        let team = Team::with_pace(4, Pace::steady(3)).unwrap();
        (0..5000).for_each(|round| check(&team, round % 11));
        let alone = Team::with_pace(4, Pace::steady(1)).unwrap();
        let me = std::thread::current().id();
        alone.run(100, &|_| assert_eq!(std::thread::current().id(), me));
    }

    /// What has no answer within a minute has lost a wake-up. `IDIOLECT_STRESS_S` makes the test last.
    #[test]
    #[expect(clippy::print_stderr, reason = "what a test that is stuck has to say, and how far one came")]
    fn several_teams_on_few_cores_never_wait_for_nothing() {
        let seconds = std::env::var("IDIOLECT_STRESS_S").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        let until = Instant::now() + Duration::from_secs(seconds);
        let n_jobs = AtomicUsize::new(0);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                let (mut last, mut at) = (0, Instant::now());
                while !is_over.load(Ordering::SeqCst) {
                    std::thread::park_timeout(Duration::from_millis(100));
                    let now = n_jobs.load(Ordering::Relaxed);
                    if now != last {
                        (last, at) = (now, Instant::now());
                    } else if at.elapsed() > Duration::from_secs(60) {
                        eprintln!("no job of a team ended for a minute, after {now}");
                        std::process::abort();
                    }
                }
            });
            let makers: Vec<_> = (0..6_usize)
                .map(|maker| {
                    let n_jobs = &n_jobs;
                    scope.spawn(move || {
                        let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(maker as u64 + 1);
                        let mut draw = |n: u64| {
                            random ^= random << 13;
                            random ^= random >> 7;
                            random ^= random << 17;
                            random % n
                        };
                        while Instant::now() < until {
                            let threads = 2 + draw(4) as usize;
                            // Half as the system allows, half come what may.
                            let team = if draw(2) == 0 { steady(threads) } else { Team::new(threads).unwrap() };
                            for _ in 0..draw(3000) {
                                let (n, work) = (draw(24) as usize, draw(20) * draw(20) * draw(20));
                                let bad = if draw(50) == 0 { draw(24) as usize } else { usize::MAX };
                                let outcome = catch_unwind(AssertUnwindSafe(|| {
                                    let times: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                                    team.run(n, &|task| {
                                        times[task].fetch_add(1, Ordering::Relaxed);
                                        (0..work).for_each(|i| assert!(std::hint::black_box(i) < work));
                                        if task == bad {
                                            std::panic::resume_unwind(Box::new(()));
                                        }
                                    });
                                    assert!(times.iter().all(|n| n.load(Ordering::Relaxed) == 1));
                                }));
                                assert_eq!(outcome.is_err(), bad < n);
                                n_jobs.fetch_add(1, Ordering::Relaxed);
                                if draw(200) == 0 {
                                    std::thread::park_timeout(Duration::from_micros(draw(300)));
                                }
                            }
                        }
                    })
                })
                .collect();
            let outcomes: Vec<_> = makers.into_iter().map(|maker| maker.join()).collect();
            is_over.store(true, Ordering::SeqCst);
            watcher.thread().unpark();
            assert!(outcomes.iter().all(Result::is_ok));
        });
        eprintln!("{} jobs", n_jobs.into_inner());
    }

    #[test]
    fn chunks_cover_the_slice() {
        let team = steady(2);
        for (len, chunk) in [(0, 3), (1, 3), (9, 3), (10, 3), (100, 1), (5, 100)] {
            let mut values = vec![0; len];
            team.chunks_mut(&mut values, chunk, |i, part| {
                assert!(part.len() == chunk || (i + 1) * chunk > len);
                part.iter_mut().for_each(|v| *v += i + 1);
            });
            let expected: Vec<usize> = (0..len).map(|i| i / chunk + 1).collect();
            assert_eq!(values, expected);
        }
    }

    #[test]
    fn a_thread_that_is_held_up_holds_up_its_task_alone() {
        let team = steady(2);
        let done = AtomicUsize::new(0);
        team.run(10, &|task| {
            // The first of the helper's share.
            if task == 5 {
                let began = Instant::now();
                while done.load(Ordering::SeqCst) < 9 && began.elapsed() < Duration::from_secs(5) {
                    std::thread::yield_now();
                }
                assert_eq!(done.load(Ordering::SeqCst), 9, "all others were done meanwhile");
            }
            done.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(done.into_inner(), 10);
    }
}
