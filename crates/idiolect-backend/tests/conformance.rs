//! The conformance suite over everything in this crate that is a backend or an encoder.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use idiolect_backend::testkit::{Conformance, conformance, embedder_conformance};
use idiolect_backend::{
    Backend, Capabilities, Completion, CompletionStream, Echo, EchoConfig, Error, HashEmbedder, Health, Limit,
    LimitConfig, Member, MemoryLedger, Pool, PoolConfig, Prices, Request, Score, ScoreRequest, SpendingCap,
    SpendingConfig, Strategy, Timeout, TimeoutConfig,
};

fn slow() -> Arc<Echo> {
    Arc::new(Echo::with_delay(Duration::from_millis(3)))
}

fn pool(config: PoolConfig) -> Arc<dyn Backend> {
    let members = vec![Member::new("a", slow()), Member::new("b", slow()), Member::new("c", slow())];
    Arc::new(Pool::new(config, members).expect("a pool"))
}

#[tokio::test]
async fn echo() {
    conformance(|| Arc::new(Echo::new())).await;
}

#[tokio::test(start_paused = true)]
async fn slow_echo_in_a_context() {
    let delay_per_token = Duration::from_millis(10);
    let config = EchoConfig { delay_per_token, context_tokens: Some(400), ..EchoConfig::default() };
    let echo = Arc::new(Echo::with_config(config));
    let watched = Arc::clone(&echo);
    Conformance::new(move || Arc::clone(&echo) as _).in_flight(move || watched.in_flight()).run().await;
}

#[tokio::test(start_paused = true)]
async fn pools() {
    for strategy in [Strategy::Fallback, Strategy::RoundRobin, Strategy::LeastBusy] {
        conformance(move || pool(PoolConfig { strategy, ..PoolConfig::default() })).await;
    }
    let first_byte_timeout = Some(Duration::from_secs(5));
    conformance(move || pool(PoolConfig { first_byte_timeout, ..PoolConfig::default() })).await;
}

#[tokio::test(start_paused = true)]
async fn limited() {
    let echo = slow();
    let config = LimitConfig { max_concurrent: 2, max_queue: 8, rpm: None };
    let limit = Arc::new(Limit::new(Arc::clone(&echo) as _, config));
    Conformance::new(move || Arc::clone(&limit) as _).in_flight(move || echo.in_flight()).run().await;
}

#[tokio::test(start_paused = true)]
async fn timed() {
    for max in [None, Some(Duration::from_secs(30))] {
        let config = TimeoutConfig { max, ..TimeoutConfig::default() };
        conformance(move || Arc::new(Timeout::new(slow(), config))).await;
    }
}

#[tokio::test(start_paused = true)]
async fn capped() {
    let config = SpendingConfig { per_day: u64::MAX, prices: Prices::per_million_dollars(1.0, 2.0) };
    conformance(move || Arc::new(SpendingCap::new(slow(), config, Arc::new(MemoryLedger::default())))).await;
}

#[tokio::test(start_paused = true)]
async fn everything_stacked() {
    conformance(|| {
        let spending = SpendingConfig { per_day: u64::MAX, prices: Prices::per_million_dollars(1.0, 2.0) };
        let paid = Arc::new(SpendingCap::new(slow(), spending, Arc::new(MemoryLedger::default())));
        let timed = Arc::new(Timeout::new(paid, TimeoutConfig::default()));
        let members = vec![Member::new("only", timed).max_parallel_requests(64)];
        let pool = Arc::new(Pool::new(PoolConfig::default(), members).expect("a pool"));
        Arc::new(Limit::new(pool, LimitConfig::default()))
    })
    .await;
}

/// Answers a little after the deadline.
#[derive(Debug)]
struct Late(Arc<Echo>);

#[async_trait]
impl Backend for Late {
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    async fn health(&self) -> Health {
        self.0.health().await
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        let deadline = request.deadline;
        let completion = self.0.complete(request).await?;
        match deadline.map(tokio::time::Instant::from_std).filter(|deadline| *deadline > tokio::time::Instant::now()) {
            None => Ok(completion),
            Some(deadline) => {
                tokio::time::sleep_until(deadline + Duration::from_secs(1)).await;
                Ok(completion)
            }
        }
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        self.0.stream(request).await
    }

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        self.0.score(request).await
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "came 1s after it")]
async fn late_answers_are_found_out() {
    conformance(|| Arc::new(Late(Arc::new(Echo::new())))).await;
}

/// Holds up its thread beyond any deadline.
#[derive(Debug)]
struct HoldsUp(Arc<Echo>);

#[async_trait]
impl Backend for HoldsUp {
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    async fn health(&self) -> Health {
        self.0.health().await
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        if request.deadline.is_some_and(|deadline| deadline > std::time::Instant::now()) {
            #[expect(clippy::disallowed_methods, reason = "blocking the executor's thread is what is to be found out")]
            std::thread::sleep(Duration::from_millis(1500));
            return self.0.complete(Request { deadline: None, ..request }).await;
        }
        self.0.complete(request).await
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        self.0.stream(request).await
    }

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        self.0.score(request).await
    }
}

#[tokio::test]
#[should_panic(expected = "after it")]
async fn threads_that_are_held_up_are_found_out() {
    conformance(|| Arc::new(HoldsUp(Arc::new(Echo::new())))).await;
}

#[tokio::test(start_paused = true)]
async fn what_passes_after_a_deadline_is_measured_by_the_clock_that_is_given() {
    let make = || Arc::new(Late(Arc::new(Echo::new()))) as _;
    Conformance::new(make).clock(|| Duration::ZERO).slack(Duration::ZERO).run().await;
}

#[tokio::test]
async fn hash_embedder() {
    for dimensions in [8, 64, 384] {
        embedder_conformance(&HashEmbedder::new(dimensions)).await;
    }
}
