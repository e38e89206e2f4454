//! Deadlines, enforced from outside.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::{
    Backend, Capabilities, Collector, Completion, CompletionStream, Error, Event, Health, Request, Score, ScoreRequest,
    Usage, collect_until,
};

/// How a [`Timeout`] sets deadlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutConfig {
    /// Deadline for requests that have none or a later one; `None` keeps the request's own.
    pub max: Option<Duration>,
    /// The backend inside is given a deadline this much earlier, so that one that keeps deadlines by itself ends
    /// first and can count its tokens exactly.
    pub margin: Duration,
}

impl Default for TimeoutConfig {
    /// No deadline of its own, 20 ms of margin.
    fn default() -> Self {
        Self { max: None, margin: Duration::from_millis(20) }
    }
}

/// Makes any backend keep [`Request::deadline`]: what was streamed by then is the answer.
///
/// Requests with a deadline are asked for as a stream, whole or not. At the deadline the stream is dropped, which stops
/// the work; each unfinished candidate that has text ends with [`FinishReason::Deadline`](crate::FinishReason::Deadline),
/// and those without any are left out. Tokens are then counted by the pieces that arrived, tokens of the prompt are 0.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idiolect_backend::Error> {
/// use std::{sync::Arc, time::Duration};
/// use idiolect_backend::{Backend, Echo, FinishReason, Message, Request, Timeout, TimeoutConfig};
///
/// let slow = Arc::new(Echo::with_delay(Duration::from_millis(40)));
/// let max = Some(Duration::from_millis(150));
/// let backend = Timeout::new(slow, TimeoutConfig { max, ..TimeoutConfig::default() });
/// let answer = backend.complete(Request::new(vec![Message::user("more words than there is time for them")])).await?;
/// assert_eq!(answer.candidates[0].finish_reason, FinishReason::Deadline);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Timeout {
    inner: Arc<dyn Backend>,
    config: TimeoutConfig,
}

impl Timeout {
    /// Wraps a backend.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, config: TimeoutConfig) -> Self {
        Self { inner, config }
    }

    /// Returns the outer deadline, and sets the inner one on the request.
    fn set_deadline(&self, request: &mut Request) -> Option<Instant> {
        let own = request.deadline.map(Instant::from_std);
        let max = self.config.max.and_then(|max| Instant::now().checked_add(max));
        let deadline = own.into_iter().chain(max).min()?;
        let inner = deadline.checked_sub(self.config.margin).filter(|inner| *inner > Instant::now());
        request.deadline = Some(inner.unwrap_or(deadline).into_std());
        Some(deadline)
    }

    async fn start(&self, request: Request, deadline: Instant) -> Result<CompletionStream, Error> {
        if deadline <= Instant::now() {
            return Err(Error::DeadlineExceeded);
        }
        let started = tokio::time::timeout_at(deadline, self.inner.stream(request)).await;
        started.map_err(|_| Error::DeadlineExceeded)?
    }

    fn name(&self) -> String {
        self.inner.capabilities().model.clone()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Backend for Timeout {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn complete(&self, mut request: Request) -> Result<Completion, Error> {
        request.validate()?;
        let Some(deadline) = self.set_deadline(&mut request) else { return self.inner.complete(request).await };
        let stream = self.start(request, deadline).await?;
        let mut completion = collect_until(stream, deadline).await?;
        if completion.model.is_empty() {
            (completion.model, completion.backend) = (self.name(), self.name());
        }
        Ok(completion)
    }

    async fn stream(&self, mut request: Request) -> Result<CompletionStream, Error> {
        request.validate()?;
        let Some(deadline) = self.set_deadline(&mut request) else { return self.inner.stream(request).await };
        let stream = self.start(request, deadline).await?;
        let name = self.name();
        Ok(end_at(stream, deadline, &name, &name))
    }

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        match self.config.max {
            None => self.inner.score(request).await,
            Some(max) => {
                tokio::time::timeout(max, self.inner.score(request)).await.map_err(|_| Error::DeadlineExceeded)?
            }
        }
    }

    async fn health(&self) -> Health {
        self.inner.health().await
    }
}

/// Ends a stream properly at its deadline, whether its backend does or not: at that time the stream is dropped, each
/// unfinished candidate that has text gets its [`Event::Finished`], and the last item names this model and backend.
/// Without any text the stream ends in [`Error::DeadlineExceeded`].
pub fn end_at(stream: CompletionStream, deadline: Instant, model: &str, backend: &str) -> CompletionStream {
    let cut = Cut {
        stream: Some(stream),
        seen: Collector::new(),
        closing: VecDeque::new(),
        deadline,
        model: model.to_owned(),
        backend: backend.to_owned(),
    };
    Box::pin(stream::unfold(cut, |mut cut| async move {
        let item = cut.next().await?;
        Some((item, cut))
    }))
}

struct Cut {
    stream: Option<CompletionStream>,
    seen: Collector,
    closing: VecDeque<Event>,
    deadline: Instant,
    model: String,
    backend: String,
}

impl Cut {
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        let Some(stream) = &mut self.stream else { return self.closing.pop_front().map(Ok) };
        match tokio::time::timeout_at(self.deadline, stream.next()).await {
            Ok(Some(Ok(event))) => Some(self.pass(event)),
            Ok(last) => {
                self.stream = None;
                last
            }
            Err(_) => {
                self.stream = None;
                self.close()
            }
        }
    }

    fn pass(&mut self, event: Event) -> Result<Event, Error> {
        if let Err(error) = self.seen.push(event.clone()) {
            self.stream = None;
            return Err(error);
        }
        if self.seen.is_done() {
            self.stream = None;
        }
        Ok(event)
    }

    fn close(&mut self) -> Option<Result<Event, Error>> {
        let Some(closing) = self.seen.closing() else { return Some(Err(Error::DeadlineExceeded)) };
        self.closing.extend(closing);
        let usage = Usage { completion_tokens: self.seen.n_tokens(), ..Usage::default() };
        let (model, backend) = (std::mem::take(&mut self.model), std::mem::take(&mut self.backend));
        self.closing.push_back(Event::Done { usage, model, backend });
        self.closing.pop_front().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Message;
    use crate::{BackendExt, Echo, ErrorKind, FinishReason};

    /// A backend that knows no deadlines.
    #[derive(Debug)]
    struct Heedless(Echo);

    #[async_trait]
    impl Backend for Heedless {
        fn capabilities(&self) -> &Capabilities {
            self.0.capabilities()
        }
        async fn complete(&self, mut request: Request) -> Result<Completion, Error> {
            request.deadline = None;
            self.0.complete(request).await
        }
        async fn stream(&self, mut request: Request) -> Result<CompletionStream, Error> {
            request.deadline = None;
            self.0.stream(request).await
        }
        async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
            self.0.score(request).await
        }
        async fn health(&self) -> Health {
            self.0.health().await
        }
    }

    fn timeout(max_ms: Option<u64>) -> (Arc<Heedless>, Timeout) {
        let inner = Arc::new(Heedless(Echo::with_delay(Duration::from_millis(100))));
        let config = TimeoutConfig { max: max_ms.map(Duration::from_millis), ..TimeoutConfig::default() };
        (Arc::clone(&inner), Timeout::new(inner, config))
    }

    #[tokio::test(start_paused = true)]
    async fn cuts_a_heedless_backend() {
        let (inner, backend) = timeout(None);
        let mut request = Request::new(vec![Message::user("one two three four")]);
        let start = Instant::now();
        request.deadline = Some((start + Duration::from_millis(250)).into_std());
        let whole = backend.complete(request.clone()).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(250));
        assert_eq!((whole.candidates[0].text.as_str(), whole.candidates[0].n_tokens), ("one two", 2));
        assert_eq!((whole.model.as_str(), whole.backend.as_str()), ("echo", "echo"));
        assert_eq!(inner.0.in_flight(), 0);

        request.deadline = Some((Instant::now() + Duration::from_millis(250)).into_std());
        assert_eq!(backend.stream_and_collect(request).await.unwrap(), whole);
        assert_eq!(inner.0.in_flight(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_limit_counts() {
        let (_, backend) = timeout(Some(50));
        assert_eq!(backend.ask("one two").await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        let (_, backend) = timeout(Some(10_000));
        assert_eq!(backend.ask("one two").await.unwrap(), "one two");
        let mut request = Request::new(vec![Message::user("one two")]);
        request.deadline = Some(Instant::now().into_std());
        assert_eq!(backend.complete(request).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn leaves_exact_counting_to_a_backend_that_keeps_deadlines() {
        let echo = Arc::new(Echo::with_delay(Duration::from_millis(100)));
        let backend = Timeout::new(echo, TimeoutConfig::default());
        let mut request = Request::new(vec![Message::user("one two three four")]);
        request.deadline = Some((Instant::now() + Duration::from_millis(250)).into_std());
        let c = backend.complete(request).await.unwrap();
        assert_eq!((c.candidates[0].finish_reason, c.usage.prompt_tokens), (FinishReason::Deadline, 4));
    }
}
