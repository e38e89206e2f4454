//! Measures what the store of nonces takes of the memory: `cargo run --release -p idiolect-protocol --example nonce_memory`.

#![allow(clippy::print_stdout, missing_docs)]

use std::time::Duration;

use idiolect_protocol::{Nonce, NonceStore};

const S: i128 = 1_000_000_000;
const NOW: i128 = 1_795_335_808 * S;
const N: usize = 240_000;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    // Each case in a process of its own: what an allocator got it seldom gives back.
    match std::env::args().nth(1).as_deref() {
        None => {
            for case in ["single", "full", "counters", "rested"] {
                std::process::Command::new(std::env::current_exe()?).arg(case).status()?;
            }
            Ok(())
        }
        Some(case) => measure(case),
    }
}

fn measure(case: &str) -> Result<()> {
    let session =
        |n: usize| format!("5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty:{n:08x}-e650-11f1-a3fe-02fc00000001");
    let counter = |n: usize| Nonce::Monotonic { key: session(n), value: 1 };
    let clock = |n: usize, at_ns: i128| Nonce::Windowed {
        key: session(n),
        value: at_ns.to_string(),
        at_ns,
        max_age: Duration::from_secs(24),
        max_ahead: Duration::from_secs(60),
    };
    let store = NonceStore::new(8 * N);
    let start = resident()?;
    let what = match case {
        "single" => {
            for n in 0..N {
                store.check_and_store(&clock(n, NOW), NOW)?;
                save_now_and_then(&store, n);
            }
            "clock readings, each in a session of its own"
        }
        "full" => {
            for n in 0..N {
                let nth = i128::try_from(n / (N / 256))?;
                store.check_and_store(&clock(n % (N / 256), NOW + nth * 1000), NOW)?;
                save_now_and_then(&store, n);
            }
            "clock readings, 256 a session"
        }
        _ => {
            for n in 0..N {
                store.check_and_store(&counter(n), NOW)?;
                save_now_and_then(&store, n);
                if case == "rested" && n.is_multiple_of(1000) {
                    // Time goes on, and those before are used no more.
                    store.check_and_store(&counter(n + N), NOW + 600 * S * i128::try_from(n)?)?;
                }
            }
            if case == "rested" { "counters at rest" } else { "counters in use" }
        }
    };
    report(what, store.len(), start)
}

/// As a miner does every 100 ms.
fn save_now_and_then(store: &NonceStore, n: usize) {
    if n.is_multiple_of(1000) {
        drop(store.take_unsaved());
    }
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
