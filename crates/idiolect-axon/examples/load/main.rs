//! Measures what the axon costs: requests per second, latency at a steady pace, memory, CPU time per request.
//!
//! ```text
//! cargo run --release -p idiolect-axon --example load              # everything, against a server of its own
//! cargo run --release -p idiolect-axon --example load -- --quick   # a tenth of the requests
//! cargo run --release -p idiolect-axon --example load -- serve     # only the server; it prints its address and process
//! cargo run --release -p idiolect-axon --example load -- miner target/release/idiolect-miner   # the whole miner, echo backend
//! ```
//!
//! The server is a process of its own: the axon as a miner runs it (signatures, nonces on disk, policy, queue, metrics)
//! with a handler that answers at once. Every request is signed anew by this process, on the same cores.

#![allow(clippy::print_stdout, missing_docs)]

mod client;
mod process;
mod server;
mod stats;

use std::time::Duration;

use anyhow::Context as _;

use crate::client::{Kind, Target};
use crate::process::Server;
use crate::stats::Summary;

/// The miner's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections at one time.
const N_CONNECTIONS: usize = 64;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => runtime.block_on(server::serve()),
        [] => runtime.block_on(measure(Server::start()?, 1)),
        ["--quick"] => runtime.block_on(measure(Server::start()?, 10)),
        ["miner", program] => runtime.block_on(async {
            let data = tempfile::tempdir()?;
            measure(Server::start_miner(program.as_ref(), data.path()).await?, 1).await
        }),
        _ => anyhow::bail!("usage: load [serve | --quick | miner PROGRAM]"),
    }
}

async fn measure(server: Server, divisor: usize) -> anyhow::Result<()> {
    let verify = stats::verify_time()?;
    println!("sr25519 verification with nonce and clock, alone: {:.1} us", verify.as_secs_f64() * 1e6);
    for kind in [Kind::Http, Kind::Grpc] {
        let target = Target { kind, address: server.address };
        client::closed_loop(target, N_CONNECTIONS, 2_000 / divisor).await.context("warming up")?;
        let (n, before) = (40_000 / divisor, server.cpu()?);
        let run = client::closed_loop(target, N_CONNECTIONS, n).await?;
        let per_request = (server.cpu()? - before) / u32::try_from(n)?;
        report(kind, "closed loop", &run);
        println!(
            "{kind:>5}  server CPU per request: {:.4} ms, of which verification {:.0} %",
            per_request.as_secs_f64() * 1e3,
            verify.as_secs_f64() / per_request.as_secs_f64() * 100.0
        );
    }
    for kind in [Kind::Http, Kind::Grpc] {
        let target = Target { kind, address: server.address };
        let paced = client::open_loop(target, N_CONNECTIONS, 2_000, Duration::from_secs(20) / u32::try_from(divisor)?);
        report(kind, "open loop, 2000/s", &paced.await?);
    }
    memory(&server, divisor).await
}

/// Asks 200,000 times and looks at the server's memory ten times.
async fn memory(server: &Server, divisor: usize) -> anyhow::Result<()> {
    println!("resident memory of the server:");
    for step in 0..10 {
        for kind in [Kind::Http, Kind::Grpc] {
            let target = Target { kind, address: server.address };
            client::closed_loop(target, N_CONNECTIONS, 10_000 / divisor).await?;
        }
        println!("  after {:>7} requests: {:.1} MiB", (step + 1) * 20_000 / divisor, server.resident_mib()?);
    }
    Ok(())
}

fn report(kind: Kind, what: &str, run: &Summary) {
    println!(
        "{kind:>5}  {what}: {} requests in {:.2} s = {:.0}/s; latency p50 {:.2} ms, p99 {:.2} ms, worst {:.2} ms",
        run.n,
        run.took.as_secs_f64(),
        run.n as f64 / run.took.as_secs_f64(),
        run.percentile(50.0).as_secs_f64() * 1e3,
        run.percentile(99.0).as_secs_f64() * 1e3,
        run.percentile(100.0).as_secs_f64() * 1e3,
    );
}
