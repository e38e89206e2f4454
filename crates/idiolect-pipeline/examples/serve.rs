//! A miner without a model: the pipeline behind an axon, with a store, in one file.
//!
//! ```text
//! cargo run --release -p idiolect-pipeline --example serve
//! cargo run --release -p idiolect-axon --example load -- miner target/release/examples/serve
//! ```
//!
//! It knows two arguments of the real miner, `--data-dir` and `--ready-file`, and passes over the others, so that the
//! load tool can start it.

#![allow(clippy::print_stdout, missing_docs)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use idiolect_axon::nonces::NoncePersister;
use idiolect_axon::policy::{Rules, StandardPolicy};
use idiolect_axon::{Axon, AxonConfig};
use idiolect_backend::Echo;
use idiolect_pipeline::{Parts, Pipeline, PipelineConfig};
use idiolect_protocol::{Keypair, Limits, SystemClock, Verifier};
use idiolect_uniqueness::store;

/// The miner's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Error> {
    tokio::runtime::Runtime::new()?.block_on(serve())
}

async fn serve() -> Result<(), Error> {
    let metrics = metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(&[0.001, 0.01, 0.1, 1.0])?
        .install_recorder()?;
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            metrics.run_upkeep();
        }
    });
    let temporary = tempfile::tempdir()?;
    let data_dir = argument("--data-dir").unwrap_or_else(|| temporary.path().to_owned());
    let pool = store::open(&data_dir.join("idiolect.sqlite")).await?;

    // Nothing of what an echo says is worth choosing by: one candidate, no encoder.
    let config = PipelineConfig { candidates: 1, recipes: 1, ..PipelineConfig::default() };
    let parts = Parts { store: Some(pool.clone()), ..Parts::new(Arc::new(Echo::new())) };
    let pipeline = Arc::new(Pipeline::start(config, parts).await?);

    let key = Keypair::from_uri("//Alice")?;
    let (own, clock) = (key.hotkey(), Arc::new(SystemClock));
    let (nonces, persister) = NoncePersister::open(pool, &own, 1_000_000, clock.clone()).await?;
    let verifier = Verifier::new(own, Limits::default(), clock, nonces);
    let policy = StandardPolicy::new(own, Rules { allow_any: true, ..Rules::default() }, None);
    let config = AxonConfig { listen: "127.0.0.1:0".parse()?, ..AxonConfig::default() };
    let axon = Axon::bind(config, verifier, Arc::new(policy), pipeline.clone()).await?.signed_by(Arc::new(key));
    let address = axon.local_addr();
    println!("{address} {}", std::process::id());
    if let Some(file) = argument("--ready-file") {
        std::fs::write(file, format!("{{\"axon\": \"{address}\"}}"))?;
    }

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let saving = tokio::spawn(persister.run(async { drop(stopped.await) }));
    axon.run(async { drop(tokio::signal::ctrl_c().await) }).await?;
    drop(stop);
    saving.await??;
    pipeline.flush().await;
    Ok(())
}

/// Returns what follows `name` on the command line.
fn argument(name: &str) -> Option<PathBuf> {
    std::env::args_os().skip_while(|argument| argument != name).nth(1).map(PathBuf::from)
}
