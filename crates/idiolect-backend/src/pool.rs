//! Several backends as one.

mod member;
mod order;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub use member::{Member, MemberSnapshot};
use state::{Attempt, Shared};

use crate::held::hold;
use crate::{
    Backend, Backoff, Capabilities, Completion, CompletionStream, Error, ErrorKind, Event, Health, Request, Score,
    ScoreRequest, collect,
};

/// Which member a [`Pool`] asks first. The others follow as fallbacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The first in the list, always.
    #[default]
    Fallback,
    /// Each in turn, in proportion to its weight.
    RoundRobin,
    /// The one with the fewest requests in flight for its weight.
    LeastBusy,
}

impl Strategy {
    const ALL: [(Self, &str); 3] =
        [(Self::Fallback, "fallback"), (Self::RoundRobin, "round-robin"), (Self::LeastBusy, "least-busy")];
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(strategy, _)| strategy == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Strategy {
    type Err = Error;

    /// Parses a strategy by name.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for any other name.
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(strategy, _)| *strategy).ok_or_else(|| {
            Error::InvalidRequest(format!("unknown strategy {name:?}, expected fallback, round-robin or least-busy"))
        })
    }
}

/// How a [`Pool`] chooses and what it does about failures. Names follow LiteLLM where it has the same thing.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolConfig {
    /// The pool's name, for errors.
    pub name: String,
    /// Which member is asked first.
    pub strategy: Strategy,
    /// How many members may be asked after the first one failed; `None` asks each once. No member is asked twice for
    /// one request.
    pub num_retries: Option<usize>,
    /// Failures in a row that a member may have before it must cool down.
    pub allowed_fails: u32,
    /// How long a failing member is left alone: `first` is LiteLLM's `cooldown_time`, each further failure doubles it.
    pub cooldown: Backoff,
    /// Asks a cooling member all the same when nobody else is left. One that the other side asked to leave alone (by
    /// `Retry-After`, or by refusing the credentials) is never asked before its time.
    pub last_resort: bool,
    /// How long a member may stay silent before it is given up and the next one is asked. With it, whole answers are asked
    /// for as a stream too. `None` gives no member up: of a stream that has a deadline, the next member is asked beside
    /// the silent one when half of the time left is over, and the first to speak wins.
    pub first_byte_timeout: Option<Duration>,
    /// For a model, those that answer when all its members fail, in order.
    pub fallbacks: BTreeMap<String, Vec<String>>,
}

impl Default for PoolConfig {
    /// In order, each member once, five seconds to five minutes of cooldown from the second failure in a row.
    fn default() -> Self {
        Self {
            name: "pool".to_owned(),
            strategy: Strategy::default(),
            num_retries: None,
            allowed_fails: 1,
            cooldown: Backoff { first: Duration::from_secs(5), max: Duration::from_secs(300), jitter: 0.2 },
            last_resort: true,
            first_byte_timeout: None,
            fallbacks: BTreeMap::new(),
        }
    }
}

/// Several backends as one: load balancing, fallback, cooldown.
///
/// # Which members are asked
/// - [`Request::model`] picks the members that were given that name ([`Member::models`]). A name that nobody was given
///   goes to the members that were given none, since they ignore it; without such a member it is
///   [`Error::Unsupported`].
/// - Of these, members that can honour the request's `seed` and `logprobs` come first.
/// - Then the [`Strategy`] orders them. A request with a seed always finds the same order, so that the same request
///   gets the same answer from the same member while that one is up.
/// - A member that [`Request::prefer`] names is asked before all others.
/// - Members that cool down, are at [`Member::max_parallel_requests`] or at [`Member::rpm`] are passed over. When that
///   leaves nobody the error is [`Error::Overloaded`] or [`Error::Unavailable`], at once: put a
///   [`Limit`](crate::Limit) in front for a queue.
///
/// # Fallback
/// The next member is asked when one fails before its first text, streams included. A stream that fails later passes
/// the error on: what was said cannot be unsaid. A member that stays silent costs half of the time: then the next one is
/// asked beside it (see [`PoolConfig::first_byte_timeout`]). [`Error::InvalidRequest`] and a passed deadline end the search.
///
/// # Cooldown
/// Overload, unavailability, nonsense and silence beyond `first_byte_timeout` count as failures, and so does a stream
/// that breaks off. Passed deadlines do not, else a caller in a hurry could put every member to sleep. A limit of the
/// operator's own does not either.
///
/// The memory a pool uses depends on its members and their `rpm`, never on the number of requests.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idiolect_backend::Error> {
/// use std::sync::Arc;
/// use idiolect_backend::{BackendExt, Echo, Member, Pool, PoolConfig};
///
/// let members = vec![
///     Member::new("local", Arc::new(Echo::new())).max_parallel_requests(4),
///     Member::new("remote", Arc::new(Echo::new())).rpm(60),
/// ];
/// let pool = Pool::new(PoolConfig::default(), members)?;
/// assert_eq!(pool.ask("hello").await?, "hello");
/// assert_eq!(pool.members()[0].requests_total, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pool {
    config: PoolConfig,
    shared: Arc<Shared>,
    capabilities: Capabilities,
}

impl Pool {
    /// Makes a pool.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] naming everything that is wrong: no members, a name given twice, a weight of 0, a
    /// fallback to a model that no member was given.
    pub fn new(config: PoolConfig, members: Vec<Member>) -> Result<Self, Error> {
        check(&config, &members)?;
        let capabilities = joint_capabilities(&members);
        let shared = Arc::new(Shared::new(&config, members));
        Ok(Self { config, shared, capabilities })
    }

    /// Returns how each member is doing, in the order given.
    #[must_use]
    pub fn members(&self) -> Vec<MemberSnapshot> {
        self.shared.snapshot()
    }

    /// Asks members in turn until one succeeds. With `hedged`, one that has not answered in half of the time left stays
    /// at work while the next one is asked, too: the first to answer wins.
    async fn try_each<T, F, Fut>(&self, request: &Request, hedged: bool, ask: F) -> Result<T, Error>
    where
        F: Fn(Attempt, Request) -> Fut,
        Fut: Future<Output = Result<T, Failed>>,
    {
        let mut order = self.shared.order(&self.config, request)?.into_iter();
        let deadline = request.deadline.map(Instant::from_std);
        let mut failures = Failures::default();
        let mut at_work = FuturesUnordered::new();
        let is_enough = |failures: &Failures, n_at_work: usize| {
            self.config.num_retries.is_some_and(|retries| failures.asked + n_at_work > retries)
        };
        loop {
            let is_late = deadline.is_some_and(|deadline| deadline <= Instant::now());
            let next = if is_late || is_enough(&failures, at_work.len()) {
                None
            } else {
                self.next_free(&mut order, &mut failures)
            };
            if let Some((attempt, model)) = next {
                let (index, mut request) = (attempt.index(), request.clone());
                request.model = model.or(request.model);
                at_work.push(ask(attempt, request).map(move |answer| (index, answer)));
            } else if at_work.is_empty() {
                return Err(failures.into_error(&self.config.name, is_late));
            }
            let may_hedge = hedged && order.len() > 0 && !is_late && !is_enough(&failures, at_work.len());
            let patience = async {
                match deadline.filter(|_| may_hedge) {
                    Some(deadline) => tokio::time::sleep((deadline - Instant::now()) / 2).await,
                    None => std::future::pending().await,
                }
            };
            let answered = tokio::select! {
                biased;
                answered = at_work.next() => answered,
                () = patience => continue,
            };
            match answered {
                Some((_, Ok(answer))) => return Ok(answer),
                Some((_, Err(Failed { error, is_final: true }))) => {
                    if at_work.is_empty() || error.kind() == ErrorKind::InvalidRequest {
                        return Err(error);
                    }
                    // Out of time: nobody else is asked, but who is at work may still answer.
                    order = Vec::new().into_iter();
                    failures.last = Some(error);
                }
                Some((index, Err(Failed { error, .. }))) => {
                    let member = self.shared.name(index);
                    if error.kind() == ErrorKind::InvalidRequest {
                        // Nothing is wrong with a member whose context a prompt is too long for.
                        tracing::debug!(pool = %self.config.name, %member, %error, "member cannot take this request");
                    } else {
                        tracing::warn!(pool = %self.config.name, %member, %error, "member failed");
                    }
                    failures.asked += 1;
                    failures.last = Some(error);
                }
                None => {}
            }
        }
    }

    /// Takes a place at the next member that has one.
    fn next_free(
        &self,
        order: &mut impl Iterator<Item = (usize, Option<String>)>,
        failures: &mut Failures,
    ) -> Option<(Attempt, Option<String>)> {
        order.find_map(|(index, model)| match self.shared.enter(index) {
            Ok(attempt) => Some((attempt, model)),
            Err(wait) => {
                failures.note_busy(wait);
                None
            }
        })
    }

    async fn whole(&self, mut attempt: Attempt, request: Request) -> Result<Completion, Failed> {
        if self.config.first_byte_timeout.is_some() {
            // The stream itself keeps count of how it ends, so a late failure only has to be passed on.
            let stream = self.start(attempt, request).await?;
            return collect(stream).await.map_err(|error| Failed { is_final: is_final(&error), error });
        }
        match attempt.backend().complete(request).await {
            Ok(mut completion) => {
                attempt.name().clone_into(&mut completion.backend);
                attempt.succeeded();
                Ok(completion)
            }
            Err(error) => Err(attempt.failed(error)),
        }
    }

    async fn start(&self, mut attempt: Attempt, request: Request) -> Result<CompletionStream, Failed> {
        let opening = open(attempt.backend(), request);
        let opened = match self.config.first_byte_timeout {
            None => opening.await,
            Some(limit) => match tokio::time::timeout(limit, opening).await {
                Ok(opened) => opened,
                Err(_) => {
                    let reason = format!("no text within {} ms", limit.as_millis());
                    Err(Error::Unavailable { backend: attempt.name().to_owned(), reason })
                }
            },
        };
        match opened {
            Ok(stream) => Ok(hold(stream, attempt)),
            Err(error) => Err(attempt.failed(error)),
        }
    }
}

/// Starts a stream and waits for the first item that shows the member at work.
async fn open(backend: Arc<dyn Backend>, request: Request) -> Result<CompletionStream, Error> {
    let mut stream = backend.stream(request).await?;
    let mut first = Vec::new();
    while let Some(event) = stream.next().await {
        let event = event?;
        let is_empty = matches!(&event, Event::Delta { text, .. } if text.is_empty());
        first.push(Ok(event));
        if !is_empty {
            return Ok(Box::pin(stream::iter(first).chain(stream)));
        }
    }
    Err(Error::Protocol { backend: backend.capabilities().model.clone(), reason: "an empty stream".to_owned() })
}

/// One member's failure, and whether asking another is of use.
struct Failed {
    error: Error,
    is_final: bool,
}

/// What went wrong so far with one request.
#[derive(Default)]
struct Failures {
    asked: usize,
    last: Option<Error>,
    /// Members passed over, and the shortest time until one of them may be asked, where known.
    busy: bool,
    wait: Option<Duration>,
}

impl Failures {
    fn note_busy(&mut self, wait: Option<Duration>) {
        self.busy = true;
        self.wait = self.wait.into_iter().chain(wait).min();
    }

    fn into_error(self, pool: &str, is_late: bool) -> Error {
        if let Some(error) = self.last {
            return error;
        }
        if is_late {
            return Error::DeadlineExceeded;
        }
        let backend = pool.to_owned();
        if self.busy {
            return Error::Overloaded { backend, retry_after: self.wait };
        }
        Error::Unavailable { backend, reason: "every member is cooling down after failures".to_owned() }
    }
}

fn check(config: &PoolConfig, members: &[Member]) -> Result<(), Error> {
    let mut bad = Vec::new();
    if members.is_empty() {
        bad.push("a pool without members".to_owned());
    }
    let mut names = BTreeSet::new();
    for member in members {
        if !names.insert(member.name.as_str()) {
            bad.push(format!("two members named {:?}", member.name));
        }
        if member.weight == 0 {
            bad.push(format!("weight of member {:?} is 0, expected at least 1", member.name));
        }
    }
    for (model, others) in &config.fallbacks {
        for other in others {
            if !members.iter().any(|member| member.serves(other)) {
                bad.push(format!("fallback of {model:?} to {other:?}, which no member serves"));
            }
        }
    }
    if bad.is_empty() { Ok(()) } else { Err(Error::InvalidRequest(bad.join("; "))) }
}

/// What holds for every member; names are the first one's.
fn joint_capabilities(members: &[Member]) -> Capabilities {
    let all: Vec<&Capabilities> = members.iter().map(|member| member.backend.capabilities()).collect();
    let Some(first) = all.first() else { return Capabilities::default() };
    let same_model = all.iter().all(|c| c.model == first.model);
    Capabilities {
        model: first.model.clone(),
        context_tokens: all.iter().map(|c| c.context_tokens).min().flatten(),
        // Another model gives another text for the same seed.
        seed: same_model && all.iter().all(|c| c.seed),
        logprobs: all.iter().all(|c| c.logprobs),
        batched_candidates: all.iter().all(|c| c.batched_candidates),
        score: all.iter().map(|c| c.score).min().unwrap_or_default(),
        min_tokens: all.iter().all(|c| c.min_tokens),
        stages: first.stages.iter().copied().filter(|kind| all.iter().all(|c| c.stages.contains(kind))).collect(),
        paid: all.iter().any(|c| c.paid),
        family: first.family.clone().filter(|family| all.iter().all(|c| c.family.as_ref() == Some(family))),
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Backend for Pool {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        request.validate()?;
        self.try_each(&request, false, |attempt, request| self.whole(attempt, request)).await
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        request.validate()?;
        self.try_each(&request, true, |attempt, request| self.start(attempt, request)).await
    }

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        request.check_support(&self.config.name, &self.capabilities)?;
        let wish = &ScoreRequest { messages: Vec::new(), ..request };
        let request = Request::new(request.messages);
        let ask = |mut attempt: Attempt, request: Request| async move {
            let scored = ScoreRequest { messages: request.messages, ..wish.clone() };
            match attempt.backend().score(scored).await {
                Ok(score) => {
                    attempt.succeeded();
                    Ok(score)
                }
                Err(error) => Err(attempt.failed(error)),
            }
        };
        self.try_each(&request, false, ask).await
    }

    async fn health(&self) -> Health {
        let health = join_all(
            self.shared.awake().into_iter().map(|(name, backend)| async move { (name, backend.health().await) }),
        );
        let mut reasons = Vec::new();
        for (name, health) in health.await {
            match health {
                Health::Ready => return Health::Ready,
                Health::Unavailable(reason) => reasons.push(format!("{name}: {reason}")),
            }
        }
        if reasons.is_empty() {
            return Health::Unavailable("every member is cooling down after failures".to_owned());
        }
        Health::Unavailable(reasons.join("; "))
    }
}

/// Says whether no other member should be asked after this error.
fn is_final(error: &Error) -> bool {
    match error.kind() {
        // A prompt too long for one member may fit another.
        ErrorKind::InvalidRequest => !matches!(error, Error::ContextTooLong { .. }),
        ErrorKind::DeadlineExceeded => true,
        _ => false,
    }
}
