//! Measures a sentence encoder on this machine: milliseconds a text, by length and number of texts.
//!
//! `cargo run --release -p idiolect-backend-candle --example encode -- ENCODER_DIR [THREADS] [TOKENS:TEXTS ...]`
//!
//! Tokenising is included. A row is the median of five rounds; processor time is that of the whole process, which other
//! load hardly changes.

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a measuring program")]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use idiolect_backend::Embedder;
use idiolect_backend_candle::{EncoderConfig, SentenceEncoder};

/// Words that are one token each in the usual vocabularies.
const WORDS: [&str; 16] = [
    "water", "river", "house", "green", "seven", "light", "paper", "stone", "music", "winter", "table", "horse",
    "cloud", "bread", "night", "field",
];

const ROUNDS: usize = 5;

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

/// Texts of so many tokens, two of which the tokenizer adds.
fn texts(tokens: usize, n: usize) -> Vec<String> {
    let word = |i: usize| WORDS[(i * i + 3 * i) % WORDS.len()];
    (0..n).map(|text| (0..tokens.saturating_sub(2)).map(|i| word(i + text)).collect::<Vec<_>>().join(" ")).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: encode ENCODER_DIR [THREADS] [TOKENS:TEXTS ...]")?);
    let mut settings = EncoderConfig::default();
    settings.threads = args.next().map(|n| n.parse::<NonZeroUsize>()).transpose()?;
    let mut cases: Vec<String> = args.collect();
    if cases.is_empty() {
        cases = ["30:1", "30:8", "30:32", "200:1", "200:8", "200:32"].map(str::to_owned).to_vec();
    }
    let began = Instant::now();
    let encoder = SentenceEncoder::load_with(&dir, settings)?;
    println!("{}: loaded in {:.2} s, {} MB resident", encoder.name(), began.elapsed().as_secs_f64(), resident_mb());
    for case in &cases {
        let (tokens, n) = case.split_once(':').ok_or("a case is TOKENS:TEXTS")?;
        let (tokens, n) = (tokens.parse::<usize>()?, n.parse::<usize>()?);
        let texts = texts(tokens, n);
        encoder.embed(&texts).await?;
        let calls = (4800 * 384 / encoder.dimensions() / (tokens * n).max(1)).max(1);
        let each = 1000.0 / (calls * n) as f64;
        let (mut walls, mut cpus) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (wall, cpu) = (Instant::now(), cpu_seconds());
            for _ in 0..calls {
                encoder.embed(&texts).await?;
            }
            walls.push(wall.elapsed().as_secs_f64() * each);
            cpus.push((cpu_seconds() - cpu) * each);
        }
        println!("{tokens:4} tokens, {n:2} texts: {:6.2} ms wall {:6.2} ms cpu a text", median(walls), median(cpus));
    }
    println!("afterwards {} MB resident", resident_mb());
    Ok(())
}
