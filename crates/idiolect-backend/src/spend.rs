//! A cap on what a paid backend may cost a day.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::held::{Watch, hold};
use crate::ledger::{Charge, SpendLedger, UtcDay};
use crate::{
    Backend, Capabilities, Completion, CompletionStream, Error, ErrorKind, Event, Health, Message, Request, Score,
    ScoreRequest, Usage,
};

/// What tokens cost, in micro-dollars per million tokens: 0.15 dollars per million is 150,000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Tokens generated.
    pub completion: u64,
}

impl Prices {
    /// Makes prices from dollars per million tokens, as providers print them. Anything that is no price counts as 0.
    ///
    /// ```
    /// use idiolect_backend::Prices;
    ///
    /// assert_eq!(Prices::per_million_dollars(0.15, 0.6), Prices { prompt: 150_000, completion: 600_000 });
    /// ```
    #[must_use]
    pub fn per_million_dollars(prompt: f64, completion: f64) -> Self {
        let micro = |dollars: f64| (dollars * 1e6).round() as u64;
        Self { prompt: micro(prompt), completion: micro(completion) }
    }

    /// Returns what these tokens cost in micro-dollars, rounded up.
    #[must_use]
    pub fn cost(&self, prompt_tokens: u64, completion_tokens: u64) -> u64 {
        let product = |price: u64, tokens: u64| u128::from(price) * u128::from(tokens);
        let total = product(self.prompt, prompt_tokens).saturating_add(product(self.completion, completion_tokens));
        u64::try_from(total.div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// How much a [`SpendingCap`] lets be spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpendingConfig {
    /// Most micro-dollars in a UTC day. 0 lets nothing through that costs anything.
    pub per_day: u64,
    /// What tokens cost.
    pub prices: Prices,
}

/// A paid backend that stops asking when the day's money is spent.
///
/// Before a request its worst case is charged to the ledger: a token for every byte of the prompt, and for each
/// candidate a prompt of its own unless [`Capabilities::batched_candidates`], and `max_tokens`. What would not fit is
/// refused with [`Error::LimitReached`] and costs nothing. After the answer the charge becomes what [`Usage`] says.
/// A request that the other side refused, or that never reached it, is given back whole; one that got no answer, broke off,
/// was dropped, or whose usage is not known stays charged at its worst case, since it may have been billed. (A backend that tries again by itself can be
/// billed for each try; where the cap must hold to the cent, let the pool do the retrying, one cap a member.) Because the charge is on record before the
/// request leaves, neither a crash nor a restart forgets it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idiolect_backend::Error> {
/// use std::sync::Arc;
/// use idiolect_backend::{BackendExt, Echo, ErrorKind, MemoryLedger, Prices, SpendingCap, SpendingConfig};
///
/// let config = SpendingConfig { per_day: 1_000_000, prices: Prices::per_million_dollars(0.5, 1.5) };
/// let backend = SpendingCap::new(Arc::new(Echo::new()), config, Arc::new(MemoryLedger::default()));
/// backend.ask("two words").await?;
/// assert_eq!(backend.spent_today().await?, 4); // 2 x 0.5 + 2 x 1.5 micro-dollars
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SpendingCap {
    inner: Arc<dyn Backend>,
    name: String,
    config: SpendingConfig,
    ledger: Arc<dyn SpendLedger>,
    clock: Clock,
    min_time: Duration,
}

/// Least time that a paid answer is worth asking for in; see [`SpendingCap::with_min_time`].
const MIN_TIME: Duration = Duration::from_millis(200);

#[derive(Clone)]
struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl SpendingCap {
    /// Puts a backend under a cap.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, config: SpendingConfig, ledger: Arc<dyn SpendLedger>) -> Self {
        let name = inner.capabilities().model.clone();
        Self { inner, name, config, ledger, clock: Clock(Arc::new(SystemTime::now)), min_time: MIN_TIME }
    }

    /// Sets how much time a request's deadline must leave, 200 ms if not said. With less it fails with
    /// [`Error::DeadlineExceeded`] and costs nothing: a caller in a hurry could else use the day's money up with
    /// requests that are billed and never answered.
    #[must_use]
    pub const fn with_min_time(mut self, min_time: Duration) -> Self {
        self.min_time = min_time;
        self
    }

    /// Takes the time of day from elsewhere, for tests.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Clock(Arc::new(clock));
        self
    }

    /// Returns the micro-dollars charged so far in this UTC day, worst cases of requests in flight included.
    ///
    /// # Errors
    /// Whatever keeps the ledger from being read.
    pub async fn spent_today(&self) -> Result<u64, Error> {
        self.ledger.spent(UtcDay::of((self.clock.0)())).await
    }

    fn worst_case(&self, messages: &[Message], n: usize, tokens_each: u64) -> u64 {
        // No tokenizer makes more tokens than bytes; a chat template adds a few for each message and its own header.
        let prompt = messages.iter().fold(32, |sum: u64, m| sum.saturating_add(m.content.len() as u64 + 16));
        let n = n as u64;
        let n_prompts = if self.inner.capabilities().batched_candidates { 1 } else { n };
        self.config.prices.cost(prompt.saturating_mul(n_prompts), tokens_each.saturating_mul(n))
    }

    async fn admit(&self, request: &Request) -> Result<Charged, Error> {
        request.validate()?;
        let soonest = tokio::time::Instant::now().into_std() + self.min_time;
        if request.deadline.is_some_and(|deadline| deadline < soonest) {
            return Err(Error::DeadlineExceeded);
        }
        self.charge(self.worst_case(&request.messages, request.n, request.sampling.max_tokens.into())).await
    }

    async fn charge(&self, amount: u64) -> Result<Charged, Error> {
        let now = (self.clock.0)();
        let day = UtcDay::of(now);
        match self.ledger.charge(day, amount, self.config.per_day).await? {
            Charge::Accepted { .. } => {
                Ok(Charged { ledger: Arc::clone(&self.ledger), prices: self.config.prices, day, amount })
            }
            Charge::Refused { spent } => Err(Error::LimitReached(format!(
                "{} of {} spent on {} today, this request may cost {}, a new day starts in {}",
                Dollars(spent),
                Dollars(self.config.per_day),
                self.name,
                Dollars(amount),
                HoursMinutes(UtcDay::left(now)),
            ))),
        }
    }
}

/// Worst case of one request, on record and not yet settled.
#[derive(Clone, Debug)]
struct Charged {
    ledger: Arc<dyn SpendLedger>,
    prices: Prices,
    day: UtcDay,
    amount: u64,
}

impl Charged {
    /// Turns the worst case into what was used. A backend that doesn't know what it used leaves it as it is.
    async fn settle(self, usage: Usage) -> Result<(), Error> {
        if usage.prompt_tokens == 0 {
            return Ok(());
        }
        let actual = self.prices.cost(usage.prompt_tokens.into(), usage.completion_tokens.into());
        self.ledger.settle(self.day, self.amount, actual).await
    }

    async fn give_back(self) -> Result<(), Error> {
        self.ledger.settle(self.day, self.amount, 0).await
    }

    async fn give_back_if_refused(self, error: &Error) -> Result<(), Error> {
        if is_free(error) { self.give_back().await } else { Ok(()) }
    }
}

/// Says whether a request that failed so, before any text, was surely not billed.
fn is_free(error: &Error) -> bool {
    if matches!(error, Error::Unanswered { .. }) {
        return false;
    }
    matches!(
        error.kind(),
        ErrorKind::InvalidRequest
            | ErrorKind::Unsupported
            | ErrorKind::Overloaded
            | ErrorKind::Unauthorized
            | ErrorKind::Unavailable
            | ErrorKind::LimitReached
    )
}

struct Dollars(u64);

impl fmt::Display for Dollars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

struct HoursMinutes(Duration);

impl fmt::Display for HoursMinutes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.0.as_secs().div_ceil(60);
        write!(f, "{} h {} min", minutes / 60, minutes % 60)
    }
}

/// Logs that the ledger could not be corrected: the answer is there all the same, and the charge stays too high.
fn log_unsettled(result: Result<(), Error>) {
    if let Err(error) = result {
        tracing::warn!(%error, "spending ledger could not be settled, the worst case stays charged");
    }
}

/// Settles when the last item goes by.
struct Settling {
    charged: Option<Charged>,
    has_text: bool,
}

impl Watch for Settling {
    fn item(&mut self, item: &mut Result<Event, Error>) {
        let amount_known = match item {
            Ok(Event::Done { usage, .. }) => Some(*usage),
            Err(error) if !self.has_text && is_free(error) => None,
            Ok(_) => {
                self.has_text = true;
                return;
            }
            Err(_) => return,
        };
        let Some(charged) = self.charged.take() else { return };
        // A task of its own: the reader may drop the stream as soon as it has the last item.
        tokio::spawn(async move {
            log_unsettled(match amount_known {
                Some(usage) => charged.settle(usage).await,
                None => charged.give_back().await,
            });
        });
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Backend for SpendingCap {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        let charged = self.admit(&request).await?;
        match self.inner.complete(request).await {
            Ok(completion) => {
                log_unsettled(charged.settle(completion.usage).await);
                Ok(completion)
            }
            Err(error) => {
                log_unsettled(charged.give_back_if_refused(&error).await);
                Err(error)
            }
        }
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        let charged = self.admit(&request).await?;
        match self.inner.stream(request).await {
            Ok(stream) => Ok(hold(stream, Settling { charged: Some(charged), has_text: false })),
            Err(error) => {
                log_unsettled(charged.give_back_if_refused(&error).await);
                Err(error)
            }
        }
    }

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        let mut all = request.messages.clone();
        all.push(Message::assistant(request.completion.as_str()));
        // Scoring generates at most one token; what it used is not told, so the worst case stays.
        let charged = self.charge(self.worst_case(&all, 1, 1)).await?;
        let score = self.inner.score(request).await;
        if let Err(error) = &score {
            log_unsettled(charged.give_back_if_refused(error).await);
        }
        score
    }

    async fn health(&self) -> Health {
        let one_token = self.config.prices.cost(1, 1);
        match self.spent_today().await {
            Ok(spent) if spent.saturating_add(one_token) <= self.config.per_day => self.inner.health().await,
            Ok(spent) => {
                Health::Unavailable(format!("{} of {} spent today", Dollars(spent), Dollars(self.config.per_day)))
            }
            Err(error) => Health::Unavailable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::StreamExt;

    use super::*;
    use crate::testkit::{FaultyBackend, Step};
    use crate::{BackendExt, Echo, FileLedger, MemoryLedger};

    const PRICES: Prices = Prices { prompt: 1_000_000, completion: 2_000_000 };

    fn request(text: &str, max_tokens: u32) -> Request {
        let mut request = Request::new(vec![Message::user(text)]);
        request.sampling.max_tokens = max_tokens;
        request
    }

    fn capped(per_day: u64, ledger: Arc<dyn SpendLedger>) -> SpendingCap {
        let day = Duration::from_secs(20_000 * 86_400 + 3600);
        SpendingCap::new(Arc::new(Echo::new()), SpendingConfig { per_day, prices: PRICES }, ledger)
            .with_clock(move || SystemTime::UNIX_EPOCH + day)
    }

    #[test]
    fn costs_round_up_and_never_overflow() {
        let prices = Prices { prompt: 150_000, completion: 600_000 };
        assert_eq!(prices.cost(1, 0), 1);
        assert_eq!(prices.cost(1000, 100), 210);
        assert_eq!(Prices { prompt: u64::MAX, completion: u64::MAX }.cost(u64::MAX, u64::MAX), u64::MAX);
        assert_eq!(Prices::per_million_dollars(-1.0, f64::NAN), Prices::default());
    }

    #[tokio::test]
    async fn refuses_with_figures_what_might_not_fit() {
        // Worst case: (32 + 16 + 3) prompt tokens at 1, 10 completion tokens at 2 = 71 micro-dollars.
        let cap = capped(100, Arc::new(MemoryLedger::default()));
        cap.complete(request("a b", 10)).await.unwrap();
        assert_eq!(cap.spent_today().await.unwrap(), 2 + 4);
        let error = cap.complete(request("a b", 100)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "limit reached: $0.000006 of $0.000100 spent on echo today, this request may cost $0.000251, \
             a new day starts in 23 h 0 min"
        );
        assert_eq!(cap.spent_today().await.unwrap(), 6);
        cap.complete(request("a b", 10)).await.unwrap();
    }

    #[tokio::test]
    async fn concurrent_requests_cannot_exceed_the_cap_together() {
        let cap = Arc::new(capped(200, Arc::new(MemoryLedger::default())));
        let mut streams = Vec::new();
        while let Ok(stream) = cap.stream(request("a b", 10)).await {
            streams.push(stream);
        }
        assert_eq!((streams.len(), cap.spent_today().await.unwrap()), (2, 142));
        // One is read to its end and settles; the other is dropped and stays charged.
        let first = streams.remove(0);
        assert!(first.collect::<Vec<_>>().await.iter().all(Result::is_ok));
        drop(streams);
        tokio::task::yield_now().await;
        assert_eq!(cap.spent_today().await.unwrap(), 71 + 6);
    }

    #[tokio::test]
    async fn a_restart_does_not_reset_the_day_and_midnight_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spent.json");
        capped(100, Arc::new(FileLedger::new(&path))).complete(request("a b", 10)).await.unwrap();

        let now = Arc::new(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400 + 86_399)));
        let clock = Arc::clone(&now);
        let cap = capped(100, Arc::new(FileLedger::new(&path))).with_clock(move || *clock.lock().unwrap());
        assert_eq!(cap.spent_today().await.unwrap(), 6);
        *now.lock().unwrap() += Duration::from_secs(1);
        assert_eq!(cap.spent_today().await.unwrap(), 0);
        cap.ask("a b").await.unwrap_err();
        cap.complete(request("a b", 10)).await.unwrap();
        // A clock that goes back finds the later day's spending.
        *now.lock().unwrap() -= Duration::from_secs(10);
        assert_eq!(cap.spent_today().await.unwrap(), 6);
    }

    #[tokio::test]
    async fn what_was_refused_is_given_back() {
        let cap = capped(1000, Arc::new(MemoryLedger::default()));
        let mut past = request("a b", 10);
        past.n = 0;
        cap.complete(past).await.unwrap_err();
        let echo = Arc::new(Echo::with_config(crate::EchoConfig { context_tokens: Some(1), ..Default::default() }));
        let cap = SpendingCap { inner: echo, ..cap };
        cap.complete(request("a b", 10)).await.unwrap_err();
        assert_eq!(cap.spent_today().await.unwrap(), 0);
    }

    #[test]
    fn what_may_have_been_billed_is_not_given_back() {
        let (backend, reason) = (|| "b".to_owned(), || "r".to_owned());
        assert!(is_free(&Error::Unavailable { backend: backend(), reason: reason() }));
        assert!(!is_free(&Error::Unanswered { backend: backend(), reason: reason() }));
        assert!(!is_free(&Error::Protocol { backend: backend(), reason: reason() }));
        assert!(!is_free(&Error::DeadlineExceeded));
    }

    #[tokio::test]
    async fn a_stream_is_given_back_only_when_it_was_refused_before_any_text() {
        let breaks = |text: &str, kind| Step::Break(text.to_owned(), kind);
        for (step, expected) in [
            (breaks("", ErrorKind::Overloaded), 0),
            (breaks("so far", ErrorKind::Overloaded), 71),
            (breaks("", ErrorKind::Protocol), 71),
            (Step::Truncate("so far".to_owned()), 71),
            (Step::Fail(ErrorKind::Internal), 71),
            (Step::say("ok"), 1 + 2),
        ] {
            let inner = Arc::new(FaultyBackend::new("f", [step.clone()]));
            let cap = SpendingCap { inner, ..capped(1000, Arc::new(MemoryLedger::default())) };
            if let Ok(stream) = cap.stream(request("a b", 10)).await {
                stream.collect::<Vec<_>>().await;
            }
            tokio::task::yield_now().await;
            assert_eq!(cap.spent_today().await.unwrap(), expected, "{step:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_in_a_hurry_cost_nothing() {
        let inner = Arc::new(FaultyBackend::always("f", Step::Hang));
        let cap = SpendingCap { inner: Arc::clone(&inner) as _, ..capped(1000, Arc::new(MemoryLedger::default())) };
        for ms in [0, 1, 199] {
            let error = cap.complete_within(Duration::from_millis(ms), request("a b", 10)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        }
        assert_eq!((cap.spent_today().await.unwrap(), inner.n_requests()), (0, 0));
    }

    #[tokio::test]
    async fn health_tells_that_the_money_is_gone() {
        let cap = capped(2, Arc::new(MemoryLedger::default()));
        assert_eq!(cap.health().await, Health::Unavailable("$0.000000 of $0.000002 spent today".to_owned()));
        assert_eq!(capped(3, Arc::new(MemoryLedger::default())).health().await, Health::Ready);
    }
}
