//! Who goes first when the handler is busy: more stake first, then first come, first served.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

/// Rank in the queue; larger goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u64);

impl Priority {
    /// Before everybody else.
    pub const FIRST: Self = Self(u64::MAX);

    /// Makes the priority of a stake in RAO.
    #[must_use]
    pub const fn of_stake(rao: u64) -> Self {
        Self(rao)
    }
}

/// Why a call got no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// Its deadline passed while it waited.
    #[error("no turn before the deadline")]
    Timeout,
    /// The queue is full of calls with at least its priority.
    #[error("too many calls are waiting")]
    Shed,
    /// The axon stops.
    #[error("the queue is closed")]
    Closed,
}

/// A bounded number of turns at a time, and a bounded queue before them.
///
/// A turn lasts as long as its [`Turn`]. Waiting calls are served by priority, equal ones in the order they came. When
/// the queue is full the call with the least priority, and of those the youngest, is refused. Waiting takes no task and
/// no lock; a dropped `admit` future leaves the queue at once.
#[derive(Clone)]
pub struct StakeQueue {
    shared: Arc<Mutex<State>>,
}

struct State {
    free: usize,
    max_waiting: usize,
    next_ticket: u64,
    closed: bool,
    waiting: BTreeMap<Place, Waiting>,
}

/// Order in the queue: priority downwards, then arrival upwards.
type Place = (Reverse<Priority>, u64);

struct Waiting {
    deadline: Instant,
    wake: oneshot::Sender<Result<(), QueueError>>,
}

impl fmt::Debug for StakeQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("StakeQueue").field("free", &state.free).field("waiting", &state.waiting.len()).finish()
    }
}

impl StakeQueue {
    /// Makes a queue with so many turns at a time and so many waiting places.
    #[must_use]
    pub fn new(concurrency: usize, max_waiting: usize) -> Self {
        let state = State { free: concurrency, max_waiting, next_ticket: 0, closed: false, waiting: BTreeMap::new() };
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    /// Returns how many calls wait.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// [`QueueError::Timeout`] at the deadline, [`QueueError::Shed`] when the queue is full and everybody in it comes
    /// first, [`QueueError::Closed`] after [`close`](Self::close).
    pub async fn admit(&self, priority: Priority, deadline: Instant) -> Result<Turn, QueueError> {
        let mut waiter = match self.enter(priority, deadline)? {
            Entry::Turn(turn) => return Ok(turn),
            Entry::Waiter(waiter) => waiter,
        };
        match tokio::time::timeout_at(deadline, &mut waiter.wake).await {
            Ok(Ok(Ok(()))) => {
                waiter.settled = true;
                Ok(Turn { queue: self.clone() })
            }
            Ok(Ok(Err(refusal))) => {
                waiter.settled = true;
                Err(refusal)
            }
            Ok(Err(_gone)) => Err(QueueError::Closed),
            Err(_elapsed) => Err(QueueError::Timeout),
        }
    }

    /// Refuses everybody who waits and everybody who comes. Turns already given last on.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        for (_, waiting) in std::mem::take(&mut state.waiting) {
            let _ = waiting.wake.send(Err(QueueError::Closed));
        }
    }

    fn enter(&self, priority: Priority, deadline: Instant) -> Result<Entry, QueueError> {
        let mut state = self.lock();
        if state.closed {
            return Err(QueueError::Closed);
        }
        if deadline <= Instant::now() {
            return Err(QueueError::Timeout);
        }
        if state.free > 0 {
            state.free -= 1;
            return Ok(Entry::Turn(Turn { queue: self.clone() }));
        }
        if state.waiting.len() >= state.max_waiting {
            state.shed_below(priority)?;
        }
        let place = (Reverse(priority), state.next_ticket);
        state.next_ticket += 1;
        let (wake, woken) = oneshot::channel();
        state.waiting.insert(place, Waiting { deadline, wake });
        Ok(Entry::Waiter(Waiter { queue: self.clone(), place, wake: woken, settled: false }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes room by refusing the last in line, when that one comes after `priority`.
    fn shed_below(&mut self, priority: Priority) -> Result<(), QueueError> {
        let last = self.waiting.last_entry().ok_or(QueueError::Shed)?;
        if last.key().0.0 >= priority {
            return Err(QueueError::Shed);
        }
        let _ = last.remove().wake.send(Err(QueueError::Shed));
        Ok(())
    }

    /// Gives a turn that came free to the first in line that still wants it.
    fn pass_on(&mut self) {
        let now = Instant::now();
        while let Some((_, waiting)) = self.waiting.pop_first() {
            let late = waiting.deadline <= now;
            let answer = if late { Err(QueueError::Timeout) } else { Ok(()) };
            if waiting.wake.send(answer).is_ok() && !late {
                return;
            }
        }
        self.free += 1;
    }
}

enum Entry {
    Turn(Turn),
    Waiter(Waiter),
}

struct Waiter {
    queue: StakeQueue,
    place: Place,
    wake: oneshot::Receiver<Result<(), QueueError>>,
    settled: bool,
}

impl Drop for Waiter {
    /// Leaves the queue. A turn that was given but not taken goes to the next.
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut state = self.queue.lock();
        if state.waiting.remove(&self.place).is_none() && matches!(self.wake.try_recv(), Ok(Ok(()))) {
            state.pass_on();
        }
    }
}

/// The right to work; dropping it gives the next call its turn.
#[must_use = "the turn ends when this is dropped"]
pub struct Turn {
    queue: StakeQueue,
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Turn")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.queue.lock().pass_on();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;

    fn in_ms(ms: u64) -> Instant {
        Instant::now() + Duration::from_millis(ms)
    }

    /// Starts a call that reports its name when it gets a turn and ends the turn at once.
    fn start(
        queue: &StakeQueue,
        name: usize,
        priority: u64,
        deadline: Instant,
        done: &mpsc::Sender<(usize, Result<(), QueueError>)>,
    ) -> tokio::task::JoinHandle<()> {
        let (queue, done) = (queue.clone(), done.clone());
        tokio::spawn(async move {
            let turn = queue.admit(Priority(priority), deadline).await;
            let _ = done.try_send((name, turn.as_ref().map(|_| ()).map_err(|error| *error)));
        })
    }

    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn more_stake_goes_first_and_equals_in_order() {
        let queue = StakeQueue::new(1, 10);
        let running = queue.admit(Priority(0), in_ms(1000)).await.unwrap();
        let (done, mut order) = mpsc::channel(16);
        for (name, stake) in [5, 9, 5, 9, 7].into_iter().enumerate() {
            start(&queue, name, stake, in_ms(1000), &done);
            settle().await;
        }
        assert_eq!(queue.n_waiting(), 5);
        drop(running);
        let mut names = Vec::new();
        for _ in 0..5 {
            names.push(order.recv().await.unwrap().0);
        }
        assert_eq!(names, [1, 3, 4, 0, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_past_the_deadline_is_a_timeout() {
        let queue = StakeQueue::new(1, 10);
        let _running = queue.admit(Priority(0), in_ms(1000)).await.unwrap();
        let asked = Instant::now();
        assert_eq!(queue.admit(Priority::FIRST, in_ms(250)).await.unwrap_err(), QueueError::Timeout);
        assert_eq!(asked.elapsed().as_millis(), 250);
        assert_eq!(queue.n_waiting(), 0);
        assert_eq!(queue.admit(Priority::FIRST, Instant::now()).await.unwrap_err(), QueueError::Timeout);
    }

    #[tokio::test(start_paused = true)]
    async fn full_queue_sheds_the_least_priority() {
        let queue = StakeQueue::new(1, 2);
        let running = queue.admit(Priority(0), in_ms(1000)).await.unwrap();
        let (done, mut order) = mpsc::channel(16);
        for (name, stake) in [3, 1, 1, 2, 4].into_iter().enumerate() {
            start(&queue, name, stake, in_ms(1000), &done);
            settle().await;
        }
        // 2 finds the queue full of its equals; 3 (stake 2) drives out 1; 4 (stake 4) drives out 3 again.
        assert_eq!(order.recv().await.unwrap(), (2, Err(QueueError::Shed)));
        assert_eq!(order.recv().await.unwrap(), (1, Err(QueueError::Shed)));
        assert_eq!(order.recv().await.unwrap(), (3, Err(QueueError::Shed)));
        drop(running);
        assert_eq!(order.recv().await.unwrap(), (4, Ok(())));
        assert_eq!(order.recv().await.unwrap(), (0, Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn without_waiting_places_a_busy_queue_sheds_at_once() {
        let queue = StakeQueue::new(1, 0);
        let running = queue.admit(Priority(0), in_ms(1000)).await.unwrap();
        assert_eq!(queue.admit(Priority::FIRST, in_ms(1000)).await.unwrap_err(), QueueError::Shed);
        drop(running);
        assert!(queue.admit(Priority(0), in_ms(1000)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_goes_away_leaves_its_place_and_its_turn() {
        let queue = StakeQueue::new(1, 10);
        let running = queue.admit(Priority(0), in_ms(1000)).await.unwrap();
        let (done, mut order) = mpsc::channel(16);
        let first = start(&queue, 0, 9, in_ms(1000), &done);
        settle().await;
        start(&queue, 1, 1, in_ms(1000), &done);
        settle().await;
        first.abort();
        settle().await;
        assert_eq!(queue.n_waiting(), 1);
        // Given its turn and gone before it took it: the turn must not be lost.
        let third = queue.admit(Priority(9), in_ms(1000));
        let mut third = Box::pin(third);
        assert!(futures_util::poll!(&mut third).is_pending());
        drop(running);
        drop(third);
        assert_eq!(order.recv().await.unwrap(), (1, Ok(())));
        assert!(queue.admit(Priority(0), in_ms(1000)).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn close_refuses_those_who_wait_and_those_who_come() {
        let queue = StakeQueue::new(1, 10);
        let _running = queue.admit(Priority(0), in_ms(1000)).await.unwrap();
        let (done, mut order) = mpsc::channel(16);
        start(&queue, 0, 9, in_ms(1000), &done);
        settle().await;
        queue.close();
        assert_eq!(order.recv().await.unwrap(), (0, Err(QueueError::Closed)));
        assert_eq!(queue.admit(Priority::FIRST, in_ms(1000)).await.unwrap_err(), QueueError::Closed);
    }

    #[derive(Clone, Copy, Debug)]
    struct Job {
        arrives_ms: u64,
        stake: u64,
        patience_ms: u64,
        work_ms: u64,
        gives_up_ms: Option<u64>,
    }

    fn job() -> impl Strategy<Value = Job> {
        (0u64..60, 0u64..4, 0u64..80, 0u64..20, proptest::option::of(0u64..40)).prop_map(
            |(arrives_ms, stake, patience_ms, work_ms, gives_up_ms)| Job {
                arrives_ms,
                stake,
                patience_ms,
                work_ms,
                gives_up_ms,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However calls come, wait, give up and end: never more turns than allowed, never more waiting than allowed,
        /// nobody starts late, and at the end every turn is back.
        #[test]
        fn turns_are_neither_lost_nor_doubled(
            jobs in proptest::collection::vec(job(), 1..40),
            concurrency in 1usize..4,
            max_waiting in 0usize..6,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async move {
                let queue = StakeQueue::new(concurrency, max_waiting);
                let running = Arc::new(std::sync::atomic::AtomicUsize::new(0));
                let calls: Vec<_> = jobs.into_iter().map(|job| {
                    let (queue, running) = (queue.clone(), running.clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(job.arrives_ms)).await;
                        let deadline = in_ms(job.patience_ms);
                        let work = async {
                            let turn = queue.admit(Priority(job.stake), deadline).await;
                            assert!(queue.n_waiting() <= max_waiting);
                            let Ok(_turn) = turn else { return };
                            assert!(Instant::now() <= deadline);
                            let now_running = running.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                            assert!(now_running <= concurrency);
                            tokio::time::sleep(Duration::from_millis(job.work_ms)).await;
                            running.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        };
                        match job.gives_up_ms {
                            // Only calls that never work may give up here, or the counter above would be off.
                            Some(ms) if job.work_ms == 0 => { let _ = tokio::time::timeout(Duration::from_millis(ms), work).await; }
                            _ => work.await,
                        }
                    })
                }).collect();
                for call in calls {
                    call.await.unwrap();
                }
                assert_eq!(queue.n_waiting(), 0);
                let mut turns = Vec::new();
                for _ in 0..concurrency {
                    turns.push(queue.admit(Priority(0), in_ms(1)).await.unwrap());
                }
                assert!(queue.admit(Priority(0), in_ms(1)).await.is_err());
            });
        }
    }
}
