//! Latencies, and the time of a verification alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use idiolect_protocol::{Keypair, Limits, NonceStore, SystemClock, Verifier, grpc};

/// What a run measured.
pub(crate) struct Summary {
    pub(crate) n: usize,
    pub(crate) took: Duration,
    sorted: Vec<Duration>,
}

impl Summary {
    pub(crate) fn new(mut latencies: Vec<Duration>, took: Duration) -> Self {
        latencies.sort_unstable();
        Self { n: latencies.len(), took, sorted: latencies }
    }

    pub(crate) fn percentile(&self, percent: f64) -> Duration {
        let rank = (percent / 100.0 * self.sorted.len() as f64).ceil() as usize;
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

/// Verifies signed claims in a row, as the axon does for each request, and returns the CPU time of one.
pub(crate) fn verify_time() -> anyhow::Result<Duration> {
    const N: u32 = 4_000;
    let (alice, bob) = (Keypair::from_uri("//Alice")?, Keypair::from_uri("//Bob")?);
    let limits = Limits::default();
    let nonces = Arc::new(NonceStore::new(100_000));
    let verifier = Verifier::new(alice.hotkey(), limits.clone(), Arc::new(SystemClock), nonces);
    let heads: Vec<_> =
        (0..N).map(|n| grpc::sign(&bob, &alice.hotkey(), n.into(), "62b764fc-e650-11f1-a3fe-02fc00000001")).collect();
    let start = thread_cpu()?;
    for head in &heads {
        verifier.verify(grpc::claim(head, &alice.hotkey(), &limits)?)?;
    }
    Ok((thread_cpu()? - start) / N)
}

/// The CPU time of this thread: unlike a clock on the wall it does not count what others take of the core.
fn thread_cpu() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(stat.split_whitespace().next().context("no schedstat")?.parse()?))
}
