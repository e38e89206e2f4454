//! The axon as a miner runs it, with a handler that answers at once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use idiolect_axon::nonces::NoncePersister;
use idiolect_axon::policy::{Rules, StandardPolicy};
use idiolect_axon::{AvailabilityMap, Axon, AxonConfig, Call, Feedback, Handler, HandlerError, Reply};
use idiolect_protocol::{Keypair, Limits, SystemClock, Verifier};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

use crate::client::caller_key;

#[derive(Debug)]
struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn forward(&self, call: Call) -> Result<Reply, HandlerError> {
        let text = call.prompt.messages().last().map(|message| message.content.clone()).unwrap_or_default();
        Ok(Reply { completions: vec![text], finish_reason: "stop", model: "echo".to_owned(), logprobs: None })
    }

    async fn backward(&self, _: Feedback) -> Result<(), HandlerError> {
        Ok(())
    }

    async fn availability(&self, _: Vec<String>, _: Vec<String>) -> (AvailabilityMap, AvailabilityMap) {
        Default::default()
    }
}

/// Serves until its input ends. Each line of input is answered with how many nonces are kept.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder()?;
    tokio::spawn(async move {
        // As the miner does: without it every observation is kept until somebody asks for the metrics.
        let mut ticks = tokio::time::interval(Duration::from_secs(5));
        loop {
            ticks.tick().await;
            metrics.run_upkeep();
        }
    });
    let folder = tempfile::tempdir()?;
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("idiolect.sqlite"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal);
    let pool = SqlitePool::connect_with(options).await?;
    let key = Keypair::from_uri("//Alice")?;
    let own = key.hotkey();
    let clock = Arc::new(SystemClock);
    let (nonces, persister) = NoncePersister::open(pool, &own, 1_000_000, clock.clone()).await?;
    let verifier = Verifier::new(own, Limits::default(), clock, Arc::clone(&nonces));
    // Callers that the miner knows, as it knows validators.
    let allow = (0..crate::N_KEYS).map(|nth| Ok(caller_key(nth)?.hotkey())).collect::<anyhow::Result<_>>()?;
    let policy = StandardPolicy::new(own, Rules { allow, ..Rules::default() }, None);
    let config = AxonConfig { listen: "127.0.0.1:0".parse()?, ..AxonConfig::default() };
    let axon = Axon::bind(config, verifier, Arc::new(policy), Arc::new(Echo)).await?.signed_by(Arc::new(key));
    println!("{} {}", axon.local_addr(), std::process::id());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let saving = tokio::spawn(persister.run(async { drop(stopped.await) }));
    let input_ends = tokio::task::spawn_blocking(move || {
        std::io::stdin().lines().map_while(Result::ok).for_each(|_| println!("{}", nonces.len()));
    });
    axon.run(async { drop(input_ends.await) }).await?;
    drop(stop);
    saving.await??;
    Ok(())
}
