//! Measures what the axon costs: requests per second, latency at a steady pace, memory, CPU time per request.
//!
//! ```text
//! cargo run --release -p idiolect-axon --example load              # everything, against a server of its own
//! cargo run --release -p idiolect-axon --example load -- --quick   # a tenth of the requests
//! cargo run --release -p idiolect-axon --example load -- memory    # memory only
//! cargo run --release -p idiolect-axon --example load -- memory --long   # memory over three times as many requests, and at rest
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

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::client::{Clients, Kind, Target};
use crate::process::Server;
use crate::stats::Summary;

/// The miner's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Connections at one time.
const N_CONNECTIONS: usize = 64;

/// As many callers, where there are several: each connection is another's.
const N_KEYS: usize = N_CONNECTIONS;

/// How often memory is looked at: after so many requests.
const LOOK_EVERY: usize = 50_000;

/// How often memory is looked at on the way, and three times as often with `--long`.
const N_LOOKS: usize = 4;

/// Longer than any nonce is kept after the last request.
const REST: Duration = Duration::from_secs(30);

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
    let n_looks = if flag("--long") { 3 * N_LOOKS } else { N_LOOKS };
    let is_memory = flag("memory");
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let data = tempfile::tempdir()?;
        let mut server = match words[..] {
            ["serve"] => return server::serve().await,
            [] => Server::start()?,
            ["miner", program] => Server::start_miner(program.as_ref(), data.path()).await?,
            _ => anyhow::bail!("usage: load [serve | [memory] [miner PROGRAM] [--quick] [--long]]"),
        };
        if !is_memory {
            measure(&server, divisor).await?;
        }
        memory(&mut server, divisor, n_looks).await
    })
}

async fn measure(server: &Server, divisor: usize) -> anyhow::Result<()> {
    let verify = stats::verify_time()?;
    println!("sr25519 verification with nonce and clock, alone: {:.1} us", verify.as_secs_f64() * 1e6);
    for (kind, n_keys) in [(Kind::Http, 1), (Kind::Http, N_KEYS), (Kind::Grpc, 1)] {
        let target = Target { kind, address: server.address };
        let mut clients = Clients::open(target, N_CONNECTIONS, n_keys).await?;
        // Enough for all keys to be known ones.
        clients.closed_loop(10_000 / divisor, None).await.context("warming up")?;
        let (n, before) = (40_000 / divisor, server.cpu()?);
        let run = clients.closed_loop(n, None).await?;
        let per_request = (server.cpu()? - before) / u32::try_from(n)?;
        report(kind, &format!("closed loop{}", of_keys(n_keys)), &run);
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

/// Asks 200,000 times in one go over each transport, then over gRPC from clients that are started anew all the time, then as
/// many callers, and looks at the server's memory. With three times as many looks also after a rest.
async fn memory(server: &mut Server, divisor: usize, n_looks: usize) -> anyhow::Result<()> {
    println!("resident memory of the server: {:.1} MiB", server.resident_mib()?);
    let ways = [
        (Kind::Http, None, 1),
        (Kind::Grpc, None, 1),
        (Kind::Grpc, Some(SESSION_LENGTH), 1),
        (Kind::Http, None, N_KEYS),
    ];
    for (kind, session_length, n_keys) in ways {
        let sessions = session_length.map_or(String::new(), |n| format!(", a new session every {n} requests"));
        let how = sessions + &of_keys(n_keys);
        let mut clients = Clients::open(Target { kind, address: server.address }, N_CONNECTIONS, n_keys).await?;
        let (mut n_asked, began) = (0, Instant::now());
        look(server, kind, n_asked, began, &how)?;
        // A key may have a quarter of the nonce store: so many sessions in five minutes and no more.
        let n_looks = if session_length.is_some() { N_LOOKS } else { n_looks };
        for _ in 0..n_looks {
            clients.closed_loop(LOOK_EVERY / divisor, session_length).await?;
            n_asked += LOOK_EVERY / divisor;
            look(server, kind, n_asked, began, &how)?;
        }
        if n_looks > N_LOOKS {
            tokio::time::sleep(REST).await;
            // The store forgets while it is asked.
            clients.closed_loop(N_CONNECTIONS, session_length).await?;
            look(server, kind, n_asked, began, &format!("{how}, after a rest"))?;
        }
    }
    Ok(())
}

fn look(server: &mut Server, kind: Kind, n_asked: usize, began: Instant, how: &str) -> anyhow::Result<()> {
    let nonces = server.n_nonces()?.map_or(String::new(), |n| format!(", {n:>7} nonces kept"));
    let (seconds, mib) = (began.elapsed().as_secs_f64(), server.resident_mib()?);
    println!("{kind:>5}  after {n_asked:>7} requests, {seconds:>5.1} s: {mib:.1} MiB{nonces}{how}");
    Ok(())
}

fn of_keys(n_keys: usize) -> String {
    if n_keys > 1 { format!(", {n_keys} callers") } else { String::new() }
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
