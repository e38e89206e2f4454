//! Measures what the store of nonces takes of the memory: `cargo run --release -p idiolect-protocol --example nonce_memory`.

#![allow(clippy::print_stdout, missing_docs)]

use std::time::Duration;

use idiolect_protocol::{Nonce, NonceStore};

const S: i128 = 1_000_000_000;
const NOW: i128 = 1_795_335_808 * S;
const N: usize = 240_000;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let session =
        |n: usize| format!("5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty:{n:08x}-e650-11f1-a3fe-02fc00000001");
    let counter = |n: usize, value| Nonce::Monotonic { key: session(n), value };
    let clock = |n: usize, at_ns: i128| Nonce::Windowed {
        key: session(n),
        value: at_ns.to_string(),
        at_ns,
        max_age: Duration::from_secs(24),
        max_ahead: Duration::from_secs(60),
    };
    let (few, many) = (N / 256, N);
    let start = resident()?;
    let store = NonceStore::new(4 * N);
    for n in 0..many {
        store.check_and_store(&clock(n, NOW), NOW)?;
    }
    report("clock readings, each in a session of its own", many, start)?;
    drop((store.take_unsaved(), store));

    let start = resident()?;
    let store = NonceStore::new(4 * N);
    for value in 0..256 {
        for n in 0..few {
            store.check_and_store(&clock(n, NOW + value * 1000), NOW)?;
        }
        drop(store.take_unsaved());
    }
    report("clock readings, 256 a session", few * 256, start)?;
    drop(store);

    let start = resident()?;
    let store = NonceStore::new(4 * N);
    for n in 0..many {
        store.check_and_store(&counter(n, 1), NOW)?;
    }
    drop(store.take_unsaved());
    report("counters in use", many, start)?;
    store.check_and_store(&counter(many, 1), NOW + 600 * S)?;
    report("counters at rest", store.len(), start)?;
    Ok(())
}

fn report(what: &str, n: usize, start: usize) -> Result<()> {
    let bytes = resident()?.saturating_sub(start);
    println!("{n:>7} {what}: {:.1} MiB, {} bytes each", bytes as f64 / f64::from(1 << 20), bytes / n);
    Ok(())
}

/// Resident memory in bytes.
fn resident() -> Result<usize> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().next().ok_or("no figure")?.parse::<usize>()? * 1024)
}
