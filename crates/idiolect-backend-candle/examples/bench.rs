//! Measures a model file on this machine: load time, prefill and decode rates, memory.
//!
//! `cargo run --release -p idiolect-backend-candle --example bench -- MODEL.gguf [ENCODER_DIR] [THREADS] [DEVICE]`
//!
//! Rates are given by wall clock and by the processor seconds of the whole process, which other load does not change.

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a measuring program")]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use idiolect_backend::{Backend, Embedder, Message, Request};
use idiolect_backend_candle::{CandleBackend, CandleConfig, DeviceChoice, EncoderConfig, SentenceEncoder};

/// Wall clock and processor seconds from a moment on.
struct Clock(Instant, f64);

impl Clock {
    fn start() -> Self {
        Self(Instant::now(), cpu_seconds())
    }

    fn read(&self) -> (f64, f64) {
        (self.0.elapsed().as_secs_f64(), cpu_seconds() - self.1)
    }
}

/// Processor seconds of this process, from Linux's accounting in hundredths.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let field = |i: usize| after_name.split_whitespace().nth(i).and_then(|v| v.parse::<f64>().ok()).unwrap_or(0.0);
    (field(11) + field(12)) / 100.0
}

fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn request(prompt: &str, n: usize, max_tokens: u32) -> Request {
    let mut request = Request::new(vec![Message::user(prompt)]);
    request.n = n;
    request.sampling.max_tokens = max_tokens;
    request.sampling.temperature = Some(1.0);
    request.sampling.seed = Some(1);
    request
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = PathBuf::from(args.next().ok_or("usage: bench MODEL.gguf [ENCODER_DIR] [THREADS] [DEVICE]")?);
    let encoder = args.next().map(PathBuf::from);
    let threads = args.next().map(|n| n.parse::<NonZeroUsize>()).transpose()?;
    let device = args.next().map(|name| name.parse::<DeviceChoice>()).transpose()?;

    let clock = Clock::start();
    let mut config = CandleConfig::default();
    config.threads = threads;
    config.device = device.unwrap_or_default();
    let backend = CandleBackend::load(&model, config)?;
    let (wall, cpu) = clock.read();
    println!("load           {wall:6.2} s wall {cpu:6.2} s cpu, {} MB resident", resident_mb());

    let long = "The quick brown fox jumps over the lazy dog near the river bank. ".repeat(32);
    let clock = Clock::start();
    let completion = backend.complete(request(&long, 1, 1)).await?;
    let (wall, cpu) = clock.read();
    let tokens = f64::from(completion.usage.prompt_tokens);
    println!("prefill {tokens:4}   {:6.0} tok/s wall {:6.0} tok/s cpu", tokens / wall, tokens / cpu);

    let prompt = "Write a long story about a lighthouse keeper, a storm and a ship that is lost. ".repeat(5);
    for n in [1, 4, 8] {
        let first = Clock::start();
        backend.complete(request(&prompt, 1, 1)).await?;
        let (first_wall, first_cpu) = first.read();
        let clock = Clock::start();
        let completion = backend.complete(request(&prompt, n, 64)).await?;
        let (wall, cpu) = clock.read();
        let tokens = f64::from(completion.usage.completion_tokens);
        println!(
            "decode n={n}     {:6.0} tok/s wall {:6.0} tok/s cpu; prompt of {} and {tokens} tokens in {wall:.2} s, {cpu:.2} s cpu",
            tokens / (wall - first_wall),
            tokens / (cpu - first_cpu),
            completion.usage.prompt_tokens,
        );
    }
    println!("idle           {} MB resident", resident_mb());

    if let Some(dir) = encoder {
        let clock = Clock::start();
        let mut settings = EncoderConfig::default();
        settings.threads = threads;
        let encoder = SentenceEncoder::load_with(&dir, settings)?;
        let (wall, cpu) = clock.read();
        println!("encoder load   {wall:6.2} s wall {cpu:6.2} s cpu, {} MB resident", resident_mb());
        let short =
            "a sentence of about thirty tokens that says nothing in particular but is neither long nor short so to say";
        for (name, text) in [("short", short.to_owned()), ("long", [short; 8].join(" "))] {
            for n in [1, 8] {
                let texts = vec![text.clone(); n];
                encoder.embed(&texts).await?;
                let clock = Clock::start();
                for _ in 0..5 {
                    encoder.embed(&texts).await?;
                }
                let (wall, cpu) = clock.read();
                let each = 1000.0 / (5 * n) as f64;
                println!("encode {name} n={n} {:6.1} ms wall {:6.1} ms cpu a text", wall * each, cpu * each);
            }
        }
        println!("idle with both {} MB resident", resident_mb());
    }
    Ok(())
}
