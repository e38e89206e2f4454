//! Measures what the axon costs: requests per second, latency at a steady pace, memory, CPU time per request.
//!
//! ```text
//! cargo run --release -p idiolect-axon --example load              # everything, against a server of its own
//! cargo run --release -p idiolect-axon --example load -- --quick   # a tenth of the requests
//! cargo run --release -p idiolect-axon --example load -- memory    # memory only
//! cargo run --release -p idiolect-axon --example load -- serve     # only the server; it prints its address and process
//! cargo run --release -p idiolect-axon --example load -- miner target/release/idiolect-miner   # the whole miner, echo backend
//! cargo run --release -p idiolect-axon --example load -- memory miner target/release/idiolect-miner
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

use crate::client::{Clients, Kind, Target};
use crate::process::Server;
use crate::stats::Summary;

/// The miner's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections at one time.
const N_CONNECTIONS: usize = 64;

/// After how many requests memory is looked at.
const LOOKS: [usize; 5] = [20_000, 50_000, 100_000, 150_000, 200_000];

/// Requests of a client between two starts, where clients that are often started anew are played.
const SESSION_LENGTH: usize = 100;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut flag = |name: &str| {
        let n = words.len();
        words.retain(|word| *word != name);
        words.len() < n
    };
    let divisor = if flag("--quick") { 10 } else { 1 };
    let is_memory = flag("memory");
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let data = tempfile::tempdir()?;
        let server = match words[..] {
            ["serve"] => return server::serve().await,
            [] => Server::start()?,
            ["miner", program] => Server::start_miner(program.as_ref(), data.path()).await?,
            _ => anyhow::bail!("usage: load [serve | [memory] [miner PROGRAM] [--quick]]"),
        };
        if !is_memory {
            measure(&server, divisor).await?;
        }
        memory(&server, divisor).await
    })
}

async fn measure(server: &Server, divisor: usize) -> anyhow::Result<()> {
    let verify = stats::verify_time()?;
    println!("sr25519 verification with nonce and clock, alone: {:.1} us", verify.as_secs_f64() * 1e6);
    for kind in [Kind::Http, Kind::Grpc] {
        let target = Target { kind, address: server.address };
        let mut clients = Clients::open(target, N_CONNECTIONS).await?;
        clients.closed_loop(2_000 / divisor, None).await.context("warming up")?;
        let (n, before) = (40_000 / divisor, server.cpu()?);
        let run = clients.closed_loop(n, None).await?;
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
    Ok(())
}

/// Asks 200,000 times in one go over each transport, then over gRPC from clients that are started anew all the time, and
/// looks at the server's memory.
async fn memory(server: &Server, divisor: usize) -> anyhow::Result<()> {
    println!("resident memory of the server: {:.1} MiB", server.resident_mib()?);
    for (kind, session_length) in [(Kind::Http, None), (Kind::Grpc, None), (Kind::Grpc, Some(SESSION_LENGTH))] {
        let mut clients = Clients::open(Target { kind, address: server.address }, N_CONNECTIONS).await?;
        let sessions = session_length.map_or(String::new(), |n| format!(", a new session every {n} requests"));
        let (mut n_asked, began) = (0, std::time::Instant::now());
        for look in LOOKS.map(|look| look / divisor) {
            clients.closed_loop(look - n_asked, session_length).await?;
            n_asked = look;
            let seconds = began.elapsed().as_secs_f64();
            println!(
                "{kind:>5}  after {n_asked:>7} requests, {seconds:>5.1} s: {:.1} MiB{sessions}",
                server.resident_mib()?
            );
        }
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
