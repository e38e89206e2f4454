//! How long a draw takes: milliseconds a token, and how many plain scans for the greatest logit that is.
//!
//!     cargo run --release -p idiolect-sampling --example draw [VOCABULARY [CHAIN]]
//!
//! Of the chains those are timed whose name contains CHAIN; without it all.
//! Eight rows of logits take turns, as those of eight candidates would. Of 21 rounds the fastest and the median are shown;
//! the ratio is that of the fastest.

#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use idiolect_sampling::{
    Ban, Chain, Dry, Mirostat, MirostatVersion, Preset, Sampler, Scope, Stage, Stream, Temperature, TopK, TopP,
    Typical, Vocabulary, Xtc,
};

/// Candidates that take turns.
const ROWS: usize = 8;
/// Draws of each in a round.
const DRAWS: usize = 16;
/// Timed rounds.
const ROUNDS: usize = 21;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let n = std::env::args().nth(1).map_or(Ok(49_152), |n| n.parse())?;
    let wanted = std::env::args().nth(2).unwrap_or_default();
    let rows: Vec<Vec<f32>> = (0..ROWS as u64).map(|row| logits(row, n)).collect();
    // A prompt that repeats itself now and then, so that penalties and DRY have work.
    let prompt: Vec<u32> = (0..512u64).map(|i| (mix(i / 40 * 7 + i % 40) % 3000) as u32).collect();
    let banned: Vec<u32> = (0..17).collect();
    let vocabulary = Arc::new(Vocabulary::new((0..n).map(token_text), &[0]));

    let scan = time(|| {
        for row in &rows {
            for _ in 0..DRAWS {
                black_box(greatest(black_box(row)));
            }
        }
    });
    println!("{n} tokens, {ROWS} candidates, 1 thread");
    println!("{:<46} {:>11} {:>11} {:>7}", "", "ms, fastest", "ms, median", "x scan");
    let show = |name: &str, time: Times| {
        println!("{name:<46} {:>11.4} {:>11.4} {:>7.2}", time.fastest, time.median, time.fastest / scan.fastest);
    };
    show("plain scan for the greatest logit", scan);

    for (name, stages, n_top) in chains().into_iter().filter(|(name, ..)| name.contains(&wanted)) {
        let chain = Arc::new(Chain::new(&stages, Some(&vocabulary))?);
        let mut samplers: Vec<Sampler> = (0..ROWS as u64)
            .map(|candidate| {
                Sampler::new(&chain, Stream { seed: 1, request: 0, candidate }, &prompt).with_top_logprobs(n_top)
            })
            .collect();
        let mut failed = None;
        let times = time(|| {
            for _ in 0..DRAWS {
                for (sampler, row) in samplers.iter_mut().zip(&rows) {
                    match sampler.draw(black_box(row), &banned) {
                        Ok(drawn) => drop(black_box(drawn)),
                        Err(error) => failed = Some(error),
                    }
                }
            }
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        show(name, times);
    }
    Ok(())
}

/// The chains to time: name, stages, alternatives for each token.
fn chains() -> Vec<(&'static str, Vec<Stage>, usize)> {
    let heat = |temperature| Stage::Temperature(Temperature { temperature, ..Temperature::default() });
    let dry = Stage::Dry(Dry { multiplier: 0.8, scope: Scope::All, ..Dry::default() });
    let full = |preset: Preset| {
        let mut stages = preset.stages();
        for stage in [
            Stage::TopK(TopK { k: 40 }),
            Stage::TopP(TopP { p: 0.95 }),
            preset.min_p(0.05),
            heat(0.8),
            preset.repetition(1.1),
            preset.frequency_presence(0.1, 0.1),
            dry.clone(),
            Stage::Xtc(Xtc { probability: 0.3, threshold: 0.1 }),
        ] {
            preset.place(&mut stages, stage);
        }
        stages
    };
    let phrases = ["as an AI", "delve into", "important to note"].map(str::to_owned).to_vec();
    let mirostat = |version| vec![heat(0.8), Stage::Mirostat(Mirostat { version, ..Mirostat::default() })];
    vec![
        ("greedy", vec![heat(0.0)], 0),
        ("greedy, 5 alternatives", vec![heat(0.0)], 5),
        ("temperature 0.8", vec![heat(0.8)], 0),
        ("temperature 0.8, top-p 0.95", vec![heat(0.8), Stage::TopP(TopP { p: 0.95 })], 0),
        ("top-p 0.95, temperature 0.8", vec![Stage::TopP(TopP { p: 0.95 }), heat(0.8)], 0),
        ("top-p 0.95, temperature 0.8, 5 alternatives", vec![Stage::TopP(TopP { p: 0.95 }), heat(0.8)], 5),
        ("temperature 2, top-p 0.95 (thousands are left)", vec![heat(2.0), Stage::TopP(TopP { p: 0.95 })], 0),
        ("top-k 40", vec![Stage::TopK(TopK { k: 40 })], 0),
        ("llamacpp as it is", Preset::LlamaCpp.stages(), 0),
        ("llamacpp with penalties, DRY, XTC", full(Preset::LlamaCpp), 0),
        ("vllm with penalties, DRY, XTC", full(Preset::Vllm), 0),
        ("mistralrs with penalties, DRY, XTC", full(Preset::MistralRs), 0),
        (
            "three banned phrases, top-p 0.95",
            vec![Stage::Ban(Ban { phrases, ..Ban::default() }), Stage::TopP(TopP { p: 0.95 })],
            0,
        ),
        ("typical 0.9", vec![Stage::Typical(Typical { p: 0.9 })], 0),
        ("mirostat 1", mirostat(MirostatVersion::V1), 0),
        ("mirostat 2", mirostat(MirostatVersion::V2), 0),
    ]
}

/// Milliseconds a draw.
#[derive(Clone, Copy)]
struct Times {
    fastest: f64,
    median: f64,
}

/// Times rounds of draws.
fn time(mut round: impl FnMut()) -> Times {
    round();
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            round();
            begin.elapsed().as_secs_f64() * 1e3 / (ROWS * DRAWS) as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    Times { fastest: times[0], median: times[ROUNDS / 2] }
}

/// Returns where the first greatest logit is, the plain way.
fn greatest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best
}

/// Logits like a model's: a bell with a standard deviation of 2.5, and a head of about a hundred likely tokens whose
/// probabilities fall off as those of words do.
fn logits(row: u64, n: usize) -> Vec<f32> {
    let unit = |i: u64| (mix(row << 40 | i) >> 11) as f64 / (1u64 << 53) as f64;
    let mut logits: Vec<f32> =
        (0..n as u64).map(|i| ((0..12).map(|k| unit(12 * i + k)).sum::<f64>() - 6.0) as f32 * 2.5).collect();
    for rank in 0..100u64 {
        let at = mix(row << 20 | rank) as usize % n;
        logits[at] = 18.0 - 1.6 * (rank as f32 + 1.0).ln();
    }
    logits
}

/// Texts like a model's tokens, all different.
fn token_text(token: usize) -> String {
    let syllables =
        ["an", "to", "del", "ve", "in", "im", "por", "tant", "no", "te", " as", " AI", "s", ":", "\n", " the"];
    let mut text = String::new();
    let mut rest = token;
    loop {
        text.push_str(syllables[rest % syllables.len()]);
        rest /= syllables.len();
        if rest == 0 {
            return text;
        }
    }
}

/// Mixes the bits of a number (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
