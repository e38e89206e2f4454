//! The way of every request, whatever its transport: proof, policy, queue, handler; and what it may be refused by.

use std::borrow::Cow;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use idiolect_protocol::{AuthError, Caller, Category, Claim, Hotkey, Verifier};

use crate::body::{BodyBudget, BodyLimits};
use crate::config::AxonConfig;
use crate::handler::{AvailabilityMap, Call, Feedback, Handler, HandlerError, Reply};
use crate::metrics as meters;
use crate::policy::{Decision, Policy, PolicyContext};
use crate::queue::{Priority, QueueError, StakeQueue};
use crate::strangers::{Failures, Source, Strangers};

/// Why a request is not answered, as far as the peer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) category: Category,
    pub(crate) message: Cow<'static, str>,
    pub(crate) retry_after: Option<Duration>,
}

impl Refusal {
    pub(crate) fn new(category: Category, message: impl Into<Cow<'static, str>>) -> Self {
        Self { category, message: message.into(), retry_after: None }
    }

    pub(crate) fn overloaded(message: &'static str) -> Self {
        Self { retry_after: Some(Duration::from_secs(1)), ..Self::new(Category::Overloaded, message) }
    }

    /// Says that an address is not listened to for a while.
    pub(crate) fn too_many_failures(error: &AuthError) -> Self {
        Self { retry_after: Some(Duration::from_secs(1)), ..Self::new(Category::RateLimited, error.to_string()) }
    }

    pub(crate) fn stopping() -> Self {
        Self { retry_after: Some(Duration::from_secs(5)), ..Self::new(Category::Unavailable, "stopping") }
    }

    /// Returns `Retry-After`'s whole seconds, at least one.
    pub(crate) fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).map(|s| s.max(1))
    }
}

impl From<QueueError> for Refusal {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Timeout => Self::new(Category::Timeout, "no turn before the deadline"),
            QueueError::Shed => Self::overloaded("too many requests"),
            QueueError::Closed => Self::stopping(),
        }
    }
}

/// When a call must be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// What the handler is told.
    pub(crate) soft: Instant,
    /// When its future is dropped: within the margin, so that an answer given at the last moment still goes out.
    pub(crate) hard: Instant,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) config: AxonConfig,
    pub(crate) verifier: Verifier,
    policy: Arc<dyn Policy>,
    handler: Arc<dyn Handler>,
    queue: StakeQueue,
    budget: Arc<BodyBudget>,
    strangers: Strangers,
    failures: Failures,
    n_requests: AtomicUsize,
    n_lasting: AtomicUsize,
    is_stopping: AtomicBool,
}

impl Admission {
    pub(crate) fn new(
        config: AxonConfig,
        verifier: Verifier,
        policy: Arc<dyn Policy>,
        handler: Arc<dyn Handler>,
    ) -> Self {
        Self {
            queue: StakeQueue::new(config.concurrency, config.max_waiting),
            budget: Arc::new(BodyBudget::new(config.max_buffered_bytes)),
            strangers: Strangers::new(config.max_strangers_per_ip),
            failures: Failures::new(config.max_failures),
            config,
            verifier,
            policy,
            handler,
            n_requests: AtomicUsize::new(0),
            n_lasting: AtomicUsize::new(0),
            is_stopping: AtomicBool::new(false),
        }
    }

    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::SeqCst)
    }

    /// Returns how many requests are in flight that will come to an end by themselves.
    pub(crate) fn n_unanswered(&self) -> usize {
        self.n_requests.load(Ordering::SeqCst).saturating_sub(self.n_lasting.load(Ordering::SeqCst))
    }

    /// Counts a request from `address` in, if there is room for it.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<InFlight, Refusal> {
        if self.is_stopping() {
            return Err(Refusal::stopping());
        }
        if !self.strangers.enter(address) {
            meters::shed("requests");
            return Err(Refusal::overloaded("too many requests"));
        }
        let n = self.n_requests.fetch_add(1, Ordering::SeqCst) + 1;
        let is_admitted = AtomicBool::new(false);
        let entered = InFlight { admission: self.clone(), address, is_admitted, is_lasting: false };
        if n.saturating_sub(self.n_lasting.load(Ordering::SeqCst)) > self.config.max_requests {
            meters::shed("requests");
            return Err(Refusal::overloaded("too many requests"));
        }
        meters::in_flight(n);
        Ok(entered)
    }

    pub(crate) fn body_limits(&self) -> BodyLimits {
        meters::buffered(self.budget.held());
        BodyLimits {
            max_bytes: self.config.max_body_bytes,
            timeout: self.config.body_timeout,
            budget: self.budget.clone(),
        }
    }

    /// Proves a claim. This takes about 40 µs of computing, less than a thread of its own would cost to reach.
    fn verify(&self, claim: Claim, address: IpAddr, n_hashed: usize) -> Result<Caller, AuthError> {
        let start = Instant::now();
        let source = self.source(address, Some(claim.hotkey));
        if self.failures.is_over(&source, start) {
            return Err(AuthError::TooManyFailures);
        }
        let verified = self.verifier.verify_as(claim, |_| source.1.is_some());
        if verified.is_ok() {
            self.failures.note_proof(&source);
        }
        if let Err(error) = &verified {
            // Only these took a signature to find out; an old clock reading is told by a look.
            let had_signature = matches!(error, AuthError::SignatureMismatch | AuthError::Replayed);
            self.failures.count(source, n_blocks(n_hashed).saturating_add(had_signature.into()), start);
        }
        meters::verified(start.elapsed());
        if let Err(error) = &verified {
            tracing::debug!(%error, "request is not verified");
        }
        verified
    }

    /// Whose failure it is when `address` claims a key and fails.
    fn source(&self, address: IpAddr, claimed: Option<Hotkey>) -> Source {
        (address, claimed.filter(|hotkey| self.policy.knows(hotkey)))
    }

    /// Asks policy about a caller for whose proof so many bytes had to be hashed.
    fn decide(&self, caller: &Caller, address: IpAddr, n_hashed: usize, synapse: &str) -> Result<Priority, Refusal> {
        match self.policy.decide(caller, &PolicyContext { synapse }) {
            Decision::Allow { priority } => Ok(priority),
            Decision::Deny(denial) => {
                let source = self.source(address, Some(*caller.hotkey()));
                if source.1.is_none() && denial.category != Category::RateLimited {
                    // Whoever makes a key for each request costs as much as whoever forges one.
                    self.failures.count(source, n_blocks(n_hashed).saturating_add(1), Instant::now());
                }
                meters::denied(denial.rule);
                tracing::debug!(hotkey = %caller.hotkey(), synapse, rule = denial.rule, "refused by policy");
                Err(Refusal { category: denial.category, message: denial.reason, retry_after: denial.retry_after })
            }
        }
    }

    /// Computes the deadline of a request that came at `arrived` from a client that waits `timeout`.
    pub(crate) fn deadline(&self, arrived: Instant, timeout: Option<Duration>) -> Deadline {
        let timeout = timeout.unwrap_or(self.config.default_timeout).min(self.verifier.limits().max_timeout);
        let budget = self.config.budget(timeout);
        Deadline { soft: arrived + budget, hard: arrived + budget + (timeout - budget) / 2 }
    }

    pub(crate) async fn forward(&self, call: Call, priority: Priority, deadline: Deadline) -> Result<Reply, Refusal> {
        let n_completions = call.n_completions;
        let mut reply = self.work(priority, deadline, self.handler.forward(call)).await?;
        if reply.completions.is_empty() {
            tracing::error!("the handler's reply holds no completion");
            return Err(internal());
        }
        reply.completions.truncate(n_completions.max(1));
        Ok(reply)
    }

    pub(crate) async fn backward(
        &self,
        feedback: Feedback,
        priority: Priority,
        deadline: Deadline,
    ) -> Result<(), Refusal> {
        self.work(priority, deadline, self.handler.backward(feedback)).await
    }

    /// Asks what is served. That is cheap by contract, so it passes the queue by.
    pub(crate) async fn availability(
        &self,
        tasks: Vec<String>,
        models: Vec<String>,
    ) -> Result<(AvailabilityMap, AvailabilityMap), Refusal> {
        let limit = tokio::time::Instant::now() + AVAILABILITY_TIMEOUT;
        finish(limit, self.handler.availability(tasks, models).map(Ok)).await
    }

    /// Waits for a turn, then does the work within the deadline.
    pub(crate) async fn work<T>(
        &self,
        priority: Priority,
        deadline: Deadline,
        work: impl Future<Output = Result<T, HandlerError>>,
    ) -> Result<T, Refusal> {
        let queued = Instant::now();
        let turn = self.queue.admit(priority, deadline.soft.into()).await;
        meters::queued(self.queue.n_waiting(), queued.elapsed());
        if matches!(turn, Err(QueueError::Shed)) {
            meters::shed("queue");
        }
        let _turn = turn?;
        finish(deadline.hard.into(), work).await
    }
}

/// How long the maps of availability may take.
const AVAILABILITY_TIMEOUT: Duration = Duration::from_secs(4);

/// Runs a handler's work; a panic in it is a fault of ours and no more.
async fn finish<T>(
    limit: tokio::time::Instant,
    work: impl Future<Output = Result<T, HandlerError>>,
) -> Result<T, Refusal> {
    match tokio::time::timeout_at(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(Ok(done))) => Ok(done),
        Ok(Ok(Err(error))) => {
            let cause = error.source.as_deref().map(tracing::field::display);
            tracing::warn!(category = ?error.category, told = error.message, cause, "the handler has no answer");
            Err(Refusal::new(error.category, error.message))
        }
        Ok(Err(_panic)) => {
            tracing::error!("the handler panicked");
            Err(internal())
        }
        Err(_elapsed) => Err(Refusal::new(Category::Timeout, "no answer before the deadline")),
    }
}

fn internal() -> Refusal {
    Refusal::new(Category::Internal, "internal error")
}

/// A request that is being read, checked, queued or answered.
#[derive(Debug)]
pub(crate) struct InFlight {
    admission: Arc<Admission>,
    address: IpAddr,
    is_admitted: AtomicBool,
    is_lasting: bool,
}

/// Bytes that take about as long to hash as a signature takes to check.
const HASHED_PER_FAILURE: usize = 32 << 10;

/// Returns how many failures the hashing of so many bytes counts for.
fn n_blocks(n_hashed: usize) -> u32 {
    u32::try_from(n_hashed / HASHED_PER_FAILURE).unwrap_or(u32::MAX)
}

/// Most requests at one time that may go on for ever.
const MAX_LASTING: usize = 256;

impl InFlight {
    /// Marks a request that may go on for ever, such as watching health: stopping does not wait for it.
    pub(crate) fn set_lasting(&mut self) -> Result<(), Refusal> {
        if !std::mem::replace(&mut self.is_lasting, true)
            && self.admission.n_lasting.fetch_add(1, Ordering::SeqCst) >= MAX_LASTING
        {
            meters::shed("requests");
            return Err(Refusal::overloaded("too many streams"));
        }
        Ok(())
    }

    /// Returns the network it came from.
    pub(crate) const fn address(&self) -> IpAddr {
        self.address
    }

    /// Refuses those who failed too often, before anything is done for them.
    pub(crate) fn check_failures(&self, claimed: Option<Hotkey>) -> Result<(), AuthError> {
        let source = self.admission.source(self.address, claimed);
        match self.admission.failures.is_over(&source, Instant::now()) {
            true => Err(AuthError::TooManyFailures),
            false => Ok(()),
        }
    }

    /// Proves a claim for which so many bytes had to be hashed.
    pub(crate) fn verify(&self, claim: Claim, n_hashed: usize) -> Result<Caller, AuthError> {
        self.admission.verify(claim, self.address, n_hashed)
    }

    /// Asks policy about a caller for whose proof so many bytes had to be hashed. Whom it lets in is a stranger no more;
    /// a key alone is quickly made, so being turned away with an unknown one counts as a failure.
    pub(crate) fn decide(&self, caller: &Caller, n_hashed: usize, synapse: &str) -> Result<Priority, Refusal> {
        let priority = self.admission.decide(caller, self.address, n_hashed, synapse)?;
        self.leave_strangers();
        Ok(priority)
    }

    fn leave_strangers(&self) {
        if !self.is_admitted.swap(true, Ordering::SeqCst) {
            self.admission.strangers.leave(self.address);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.leave_strangers();
        if self.is_lasting {
            self.admission.n_lasting.fetch_sub(1, Ordering::SeqCst);
        }
        let n = self.admission.n_requests.fetch_sub(1, Ordering::SeqCst) - 1;
        meters::in_flight(n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Nobody;

    #[async_trait::async_trait]
    impl Handler for Nobody {
        async fn forward(&self, _: Call) -> Result<Reply, HandlerError> {
            Err(HandlerError::new(Category::Unavailable, "nobody"))
        }

        async fn backward(&self, _: Feedback) -> Result<(), HandlerError> {
            Ok(())
        }

        async fn availability(&self, _: Vec<String>, _: Vec<String>) -> (AvailabilityMap, AvailabilityMap) {
            Default::default()
        }
    }

    #[test]
    fn the_handlers_deadline_and_the_last_moment_lie_before_the_clients_timeout() {
        use idiolect_protocol::{Hotkey, Limits, NonceStore, SystemClock};
        let nonces = Arc::new(NonceStore::new(1));
        let key = Hotkey::from_bytes([1; 32]);
        let verifier = Verifier::new(key, Limits::default(), Arc::new(SystemClock), nonces);
        let policy = Arc::new(crate::policy::StandardPolicy::new(key, crate::policy::Rules::default(), None));
        let admission = Admission::new(AxonConfig::default(), verifier, policy, Arc::new(Nobody));
        let arrived = Instant::now();
        let check = |timeout: Option<Duration>, soft_ms: u64, hard_ms: u64| {
            let deadline = admission.deadline(arrived, timeout);
            assert_eq!(deadline.soft - arrived, Duration::from_millis(soft_ms), "{timeout:?}");
            assert_eq!(deadline.hard - arrived, Duration::from_millis(hard_ms), "{timeout:?}");
        };
        check(Some(Duration::from_secs(12)), 11_500, 11_750);
        check(Some(Duration::from_secs(1)), 900, 950);
        check(None, 9_500, 9_750);
        // However long a client claims to wait, the cap holds.
        check(Some(Duration::MAX), 59_500, 59_750);
        check(Some(Duration::ZERO), 0, 0);
    }

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        let seconds = |ms| {
            let retry_after = Some(Duration::from_millis(ms));
            Refusal { retry_after, ..Refusal::new(Category::RateLimited, "") }.retry_after_seconds()
        };
        assert_eq!(seconds(0), Some(1));
        assert_eq!(seconds(1), Some(1));
        assert_eq!(seconds(1000), Some(1));
        assert_eq!(seconds(1001), Some(2));
        assert_eq!(Refusal::new(Category::Forbidden, "").retry_after_seconds(), None);
    }
}
