//! A backend that fails on command.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};

use crate::held::{Watch, hold};
use crate::{
    Backend, Capabilities, Completion, CompletionStream, Error, ErrorKind, Event, FinishReason, Health, Request, Score,
    ScoreRequest, Usage, collect,
};

/// What a [`FaultyBackend`] does with one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Says this, a word an item.
    Say(String),
    /// Fails at once with an error of this kind.
    Fail(ErrorKind),
    /// Fails at once with [`Error::Overloaded`] that names a time to come back.
    RetryAfter(Duration),
    /// Says this, and then breaks off with an error of this kind.
    Break(String, ErrorKind),
    /// Says this, and then ends without its last item.
    Truncate(String),
    /// Says this, and then nothing, for ever.
    Stall(String),
    /// Never answers.
    Hang,
    /// Waits, and then does this.
    After(Duration, Box<Self>),
}

impl Step {
    /// Says this.
    pub fn say(text: impl Into<String>) -> Self {
        Self::Say(text.into())
    }

    /// Waits before it does the same.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self::After(wait, Box::new(self))
    }
}

/// A backend that does what a script says, one [`Step`] a request, and says `"ok"` when the script is over.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use idiolect_backend::testkit::{FaultyBackend, Step};
/// use idiolect_backend::{BackendExt, ErrorKind};
///
/// let backend = FaultyBackend::new("flaky", [Step::Fail(ErrorKind::Unavailable), Step::say("better now")]);
/// assert_eq!(backend.ask("hello").await.unwrap_err().kind(), ErrorKind::Unavailable);
/// assert_eq!(backend.ask("hello").await.unwrap(), "better now");
/// assert_eq!(backend.n_requests(), 2);
/// # }
/// ```
#[derive(Debug)]
pub struct FaultyBackend {
    capabilities: Capabilities,
    script: Mutex<VecDeque<Step>>,
    afterwards: Step,
    requests: Mutex<Vec<Request>>,
    in_flight: Arc<AtomicUsize>,
    health: Mutex<Health>,
}

impl FaultyBackend {
    /// Makes a backend with a script; the name is that of its model, too.
    pub fn new(name: impl Into<String>, script: impl IntoIterator<Item = Step>) -> Self {
        Self {
            capabilities: Capabilities::new(name),
            script: Mutex::new(script.into_iter().collect()),
            afterwards: Step::say("ok"),
            requests: Mutex::default(),
            in_flight: Arc::default(),
            health: Mutex::new(Health::Ready),
        }
    }

    /// Makes a backend that does the same for ever.
    pub fn always(name: impl Into<String>, step: Step) -> Self {
        Self { afterwards: step, ..Self::new(name, []) }
    }

    /// Claims other capabilities.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Changes what [`health`](Backend::health) says.
    pub fn set_health(&self, health: Health) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// Returns how many requests came.
    #[must_use]
    pub fn n_requests(&self) -> usize {
        self.requests().len()
    }

    /// Returns the requests that came.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how many requests are in work; dropping one ends it.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn next_step(&self) -> Step {
        let next = self.script.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        next.unwrap_or_else(|| self.afterwards.clone())
    }

    fn error(&self, kind: ErrorKind) -> Error {
        let backend = self.capabilities.model.clone();
        let reason = "as the script says".to_owned();
        match kind {
            ErrorKind::InvalidRequest => Error::InvalidRequest(reason),
            ErrorKind::Unsupported => Error::Unsupported { backend, what: reason },
            ErrorKind::Overloaded => Error::Overloaded { backend, retry_after: None },
            ErrorKind::Unavailable => Error::Unavailable { backend, reason },
            ErrorKind::DeadlineExceeded => Error::DeadlineExceeded,
            ErrorKind::LimitReached => Error::LimitReached(reason),
            ErrorKind::Unauthorized => Error::Unauthorized { backend },
            ErrorKind::Protocol => Error::Protocol { backend, reason },
            ErrorKind::Internal => Error::Internal { context: reason, source: None },
        }
    }

    fn words(text: &str, n: usize) -> Vec<Result<Event, Error>> {
        let words = text.split_inclusive(' ').flat_map(|word| {
            (0..n).map(move |candidate| Ok(Event::Delta { candidate, text: word.to_owned(), logprobs: Vec::new() }))
        });
        words.collect()
    }

    fn whole(&self, text: &str, n: usize) -> Vec<Result<Event, Error>> {
        let n_tokens = u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX);
        let mut events = Self::words(text, n);
        events.extend((0..n).map(|candidate| {
            Ok(Event::Finished { candidate, reason: FinishReason::Stop, n_tokens, mean_logprob: None })
        }));
        let usage = Usage { prompt_tokens: 1, completion_tokens: n_tokens * n as u32, ..Usage::default() };
        let name = self.capabilities.model.clone();
        events.push(Ok(Event::Done { usage, model: name.clone(), backend: name }));
        events
    }

    async fn act(&self, mut step: Step, n: usize) -> Result<CompletionStream, Error> {
        while let Step::After(wait, then) = step {
            tokio::time::sleep(wait).await;
            step = *then;
        }
        Ok(match step {
            Step::Say(text) => Box::pin(stream::iter(self.whole(&text, n))),
            Step::Fail(kind) => return Err(self.error(kind)),
            Step::RetryAfter(wait) => {
                return Err(Error::Overloaded { backend: self.capabilities.model.clone(), retry_after: Some(wait) });
            }
            Step::Break(text, kind) => {
                let mut events = Self::words(&text, n);
                events.push(Err(self.error(kind)));
                Box::pin(stream::iter(events))
            }
            Step::Truncate(text) => Box::pin(stream::iter(Self::words(&text, n))),
            Step::Stall(text) => Box::pin(stream::iter(Self::words(&text, n)).chain(stream::pending())),
            Step::Hang | Step::After(..) => std::future::pending().await,
        })
    }
}

struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watch for InFlight {
    fn item(&mut self, _: &mut Result<Event, Error>) {}
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Backend for FaultyBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        collect(self.stream(request).await?).await
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        request.validate()?;
        let n = request.n;
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = InFlight(Arc::clone(&self.in_flight));
        Ok(hold(self.act(self.next_step(), n).await?, in_flight))
    }

    async fn score(&self, _: ScoreRequest) -> Result<Score, Error> {
        Err(Error::Unsupported { backend: self.capabilities.model.clone(), what: "scoring".to_owned() })
    }

    async fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
