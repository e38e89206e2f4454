//! Bounded concurrency and rate.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::held::{Watch, hold};
use crate::rate::RateWindow;
use crate::{Backend, Capabilities, Completion, CompletionStream, Error, Event, Health, Request, Score, ScoreRequest};

/// How much a [`Limit`] lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitConfig {
    /// Most requests in work at the same time, at least 1; a stream counts until its last item.
    pub max_concurrent: usize,
    /// Most requests that wait for a place; one more is [`Error::Overloaded`].
    pub max_queue: usize,
    /// Most requests in any sixty seconds; one more is [`Error::LimitReached`]. `None` is no limit.
    pub rpm: Option<NonZeroU32>,
}

impl Default for LimitConfig {
    /// Eight at a time, 64 waiting, any rate.
    fn default() -> Self {
        Self { max_concurrent: 8, max_queue: 64, rpm: None }
    }
}

/// A backend behind a bounded queue. First come, first served.
///
/// A request whose deadline passes while it waits fails with [`Error::DeadlineExceeded`]; one that is dropped leaves
/// the queue. [`score`](Backend::score) counts like any other request.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idiolect_backend::Error> {
/// use std::sync::Arc;
/// use idiolect_backend::{BackendExt, Echo, Limit, LimitConfig};
///
/// let backend = Limit::new(Arc::new(Echo::new()), LimitConfig { max_concurrent: 2, ..LimitConfig::default() });
/// assert_eq!(backend.ask("hello").await?, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Limit {
    inner: Arc<dyn Backend>,
    name: String,
    config: LimitConfig,
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    rate: Option<Mutex<RateWindow>>,
}

impl Limit {
    /// Puts a backend behind limits.
    #[must_use]
    pub fn new(inner: Arc<dyn Backend>, config: LimitConfig) -> Self {
        let places = Arc::new(Semaphore::new(config.max_concurrent.clamp(1, Semaphore::MAX_PERMITS)));
        let name = inner.capabilities().model.clone();
        let rate = config.rpm.map(|rpm| Mutex::new(RateWindow::new(rpm)));
        Self { inner, name, config, places, waiting: Arc::default(), rate }
    }

    /// Returns how many requests wait for a place.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    async fn enter(&self, deadline: Option<std::time::Instant>) -> Result<Place, Error> {
        let permit = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.queue(deadline).await?,
        };
        self.check_rate()?;
        Ok(Place { _permit: permit })
    }

    async fn queue(&self, deadline: Option<std::time::Instant>) -> Result<OwnedSemaphorePermit, Error> {
        let _waiting = Waiting::join(&self.waiting, self.config.max_queue)
            .ok_or_else(|| Error::Overloaded { backend: self.name.clone(), retry_after: None })?;
        let place = Arc::clone(&self.places).acquire_owned();
        let permit = match deadline {
            None => place.await,
            Some(deadline) => tokio::time::timeout_at(Instant::from_std(deadline), place)
                .await
                .map_err(|_| Error::DeadlineExceeded)?,
        };
        permit.map_err(|closed| Error::internal("the queue is closed", closed))
    }

    fn check_rate(&self) -> Result<(), Error> {
        let Some(rate) = &self.rate else { return Ok(()) };
        let mut window = rate.lock().unwrap_or_else(PoisonError::into_inner);
        window.admit(Instant::now()).map_err(|wait| {
            Error::LimitReached(format!(
                "{} requests a minute for {}, next in {:.1} s",
                window.rpm(),
                self.name,
                wait.as_secs_f64()
            ))
        })
    }
}

/// One place among those in work.
#[derive(Debug)]
struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Watch for Place {
    fn item(&mut self, _: &mut Result<Event, Error>) {}
}

/// One place in the queue.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn join(waiting: &'a AtomicUsize, max: usize) -> Option<Self> {
        let joined = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < max).then_some(n + 1));
        // Not `then_some`: one that is made and refused would leave a queue it never joined.
        joined.is_ok().then(|| Self(waiting))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Backend for Limit {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        request.validate()?;
        let _place = self.enter(request.deadline).await?;
        self.inner.complete(request).await
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        request.validate()?;
        let place = self.enter(request.deadline).await?;
        Ok(hold(self.inner.stream(request).await?, place))
    }

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        let _place = self.enter(None).await?;
        self.inner.score(request).await
    }

    async fn health(&self) -> Health {
        self.inner.health().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt, StreamExt};

    use super::*;
    use crate::Message;
    use crate::{BackendExt, Echo, ErrorKind};

    fn limited(max_concurrent: usize, max_queue: usize, rpm: Option<u32>) -> (Arc<Echo>, Arc<Limit>) {
        let echo = Arc::new(Echo::with_delay(Duration::from_secs(1)));
        let rpm = rpm.and_then(NonZeroU32::new);
        (Arc::clone(&echo), Arc::new(Limit::new(echo, LimitConfig { max_concurrent, max_queue, rpm })))
    }

    #[tokio::test(start_paused = true)]
    async fn queue_is_bounded_and_served_in_order() {
        let (echo, limit) = limited(1, 1, None);
        let ask = |text: &'static str| {
            let limit = Arc::clone(&limit);
            tokio::spawn(async move { limit.ask(text).await })
        };
        let (first, second) = (ask("a b"), ask("c"));
        tokio::task::yield_now().await;
        assert_eq!((echo.in_flight(), limit.waiting()), (1, 1));
        assert_eq!(limit.ask("d").await.unwrap_err().kind(), ErrorKind::Overloaded);
        assert_eq!(first.await.unwrap().unwrap(), "a b");
        assert_eq!(second.await.unwrap().unwrap(), "c");
        assert_eq!((echo.in_flight(), limit.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_holds_its_place_until_the_last_item_or_its_drop() {
        let (_, limit) = limited(1, 0, None);
        let request = Request::new(vec![Message::user("a b")]);
        let mut stream = limit.stream(request.clone()).await.unwrap();
        stream.next().await.unwrap().unwrap();
        assert_eq!(limit.ask("x").await.unwrap_err().kind(), ErrorKind::Overloaded);
        while !matches!(stream.next().await.unwrap().unwrap(), Event::Done { .. }) {}
        assert_eq!(limit.ask("x").await.unwrap(), "x");

        let again = limit.stream(request).await.unwrap();
        drop(again);
        assert_eq!(limit.ask("x").await.unwrap(), "x");
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_and_drop_leave_the_queue() {
        let (_, limit) = limited(1, 2, None);
        let mut late = Request::new(vec![Message::user("late")]);
        late.deadline = Some((Instant::now() + Duration::from_millis(500)).into_std());
        let _busy = limit.stream(Request::new(vec![Message::user("a b c")])).await.unwrap();
        assert_eq!(limit.complete(late).await.unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        let mut dropped = Box::pin(limit.ask("dropped"));
        assert!(dropped.as_mut().now_or_never().is_none());
        assert_eq!(limit.waiting(), 1);
        drop(dropped);
        assert_eq!(limit.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn rate_is_refused_with_figures() {
        let (_, limit) = limited(4, 4, Some(2));
        limit.ask("a").await.unwrap();
        limit.ask("b").await.unwrap();
        let error = limit.ask("c").await.unwrap_err();
        assert_eq!(error.to_string(), "limit reached: 2 requests a minute for echo, next in 58.0 s");
        tokio::time::advance(Duration::from_secs(58)).await;
        limit.ask("c").await.unwrap();
    }
}
