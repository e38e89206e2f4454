//! How well the chance to be masked, predicted from a few revealed rivals, agrees with what the whole population does.
//!
//!     cargo bench -p idiolect-uniqueness --bench calibration -- REPLIES.jsonl [SKIP [PROMPTS]]
//!
//! REPLIES.jsonl has one reply a line: `{"p": PROMPT, "m": MODEL, "t": TEXT}`, each model once a prompt. SKIP prompts are
//! passed over and PROMPTS looked at. The truth is that of all-mpnet-base-v2 with all replies to the prompt revealed.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::collections::BTreeMap;

use idiolect_backend::{Embedder as _, Embedding};
use idiolect_backend_candle::SentenceEncoder;
use idiolect_uniqueness::GateProfile;
use idiolect_uniqueness::chance::{Calibration, Chance};
use idiolect_uniqueness::report::pairwise_distances;
use idiolect_uniqueness::selector::distance_scale;

/// Numbers of rivals that are revealed.
const SEEN: [usize; 8] = [0, 1, 2, 4, 8, 12, 20, 30];

#[derive(serde::Deserialize)]
struct Line {
    p: String,
    t: String,
}

/// One prediction and what came of it.
struct Case {
    prompt: usize,
    n_seen: usize,
    chance: Chance,
    masked: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(file) = args.first() else {
        println!("usage: cargo bench -p idiolect-uniqueness --bench calibration -- REPLIES.jsonl [SKIP [PROMPTS]]");
        return Ok(());
    };
    let number = |i: usize, usual: usize| args.get(i).map_or(Ok(usual), |text| text.parse());
    let (skip, n_prompts) = (number(1, 0)?, number(2, usize::MAX)?);
    let mut by_prompt: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in std::fs::read_to_string(file)?.lines() {
        let line: Line = serde_json::from_str(line)?;
        by_prompt.entry(line.p).or_default().push(line.t.trim().to_owned());
    }
    let prompts: Vec<Vec<String>> = by_prompt.into_values().skip(skip).take(n_prompts).collect();
    println!("{} prompts, {} replies", prompts.len(), prompts.iter().map(Vec::len).sum::<usize>());

    let truth = distances("mpnet", &prompts)?;
    let estimated = distances("minilm", &prompts)?;
    report("all-mpnet-base-v2", &Calibration::MPNET, &truth, &truth);
    report("all-MiniLM-L6-v2", &Calibration::MINILM, &estimated, &truth);
    Ok(())
}

/// Returns the distances between all replies to each prompt.
fn distances(encoder: &str, prompts: &[Vec<String>]) -> Result<Vec<Vec<Vec<f32>>>, Box<dyn std::error::Error>> {
    let dir = idiolect_models::testing::model(encoder)?.dir;
    let encoder = SentenceEncoder::load(&dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let of_prompt = |texts: &Vec<String>| -> Result<_, Box<dyn std::error::Error>> {
        let mut embeddings: Vec<Embedding> = Vec::with_capacity(texts.len());
        for some in texts.chunks(16) {
            embeddings.extend(runtime.block_on(encoder.embed(some))?);
        }
        Ok(pairwise_distances(&embeddings))
    };
    prompts.iter().map(of_prompt).collect()
}

fn report(encoder: &str, calibration: &Calibration, distances: &[Vec<Vec<f32>>], truth: &[Vec<Vec<f32>>]) {
    let profile = GateProfile::TEXT_PROMPTING_2_1;
    let bound = profile.batch.distance_at(profile.pass_above);
    let mut random = 1_u64;
    let mut cases = Vec::new();
    for (prompt, (distances, truth)) in distances.iter().zip(truth).enumerate() {
        for i in 0..distances.len() {
            let nearest = |row: &[f32], others: &[usize]| others.iter().map(|&j| row[j]).min_by(f32::total_cmp);
            let mut others: Vec<usize> = (0..distances.len()).filter(|&j| j != i).collect();
            let masked = nearest(&truth[i], &others).is_none_or(|d| d <= bound);
            let n_others = others.len();
            for n_seen in SEEN.into_iter().filter(|&n| n <= n_others) {
                shuffle(&mut others, &mut random);
                let distance = nearest(&distances[i], &others[..n_seen]).map(|d| d * distance_scale(encoder));
                let chance = calibration.masked(distance, bound, n_seen, n_others - n_seen);
                cases.push(Case { prompt, n_seen, chance, masked });
            }
        }
    }
    println!("\n{encoder}");
    println!("| seen | masked | predicted | Brier | Brier of the share |\n| --- | --- | --- | --- | --- |");
    for n_seen in SEEN {
        let of: Vec<&Case> = cases.iter().filter(|case| case.n_seen == n_seen).collect();
        let (share, predicted) = (share(&of), mean(of.iter().map(|case| case.chance.p)));
        println!(
            "| {n_seen} | {share:.3} | {predicted:.3} | {:.3} | {:.3} |",
            brier(&of, |case| case.chance.p),
            brier(&of, |_| share)
        );
    }
    println!("\n| predicted | masked | cases |\n| --- | --- | --- |");
    for tenth in 0..10_u8 {
        let in_tenth = |case: &&Case| case.n_seen > 0 && (case.chance.p * 10.0).floor().min(9.0) == f32::from(tenth);
        let of: Vec<&Case> = cases.iter().filter(in_tenth).collect();
        if !of.is_empty() {
            println!("| {:.2} | {:.2} | {} |", mean(of.iter().map(|case| case.chance.p)), share(&of), of.len());
        }
    }
    let (mut n_within, mut n) = (0, 0);
    for prompt in 0..distances.len() {
        for n_seen in SEEN {
            let of: Vec<&Case> = cases.iter().filter(|c| c.prompt == prompt && c.n_seen == n_seen).collect();
            let (low, high) = (mean(of.iter().map(|c| c.chance.low)), mean(of.iter().map(|c| c.chance.high)));
            n_within += usize::from((low..=high).contains(&share(&of)));
            n += 1;
        }
    }
    println!("\nThe share of a prompt's replies that is masked lies in the mean range in {n_within} of {n} cases.");
}

fn shuffle(items: &mut [usize], random: &mut u64) {
    for i in (1..items.len()).rev() {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(i, usize::try_from(*random >> 33).unwrap_or(0) % (i + 1));
    }
}

fn mean(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let n = values.len().max(1) as f32;
    values.sum::<f32>() / n
}

fn share(cases: &[&Case]) -> f32 {
    mean(cases.iter().map(|case| f32::from(u8::from(case.masked))))
}

fn brier(cases: &[&Case], predicted: impl Fn(&Case) -> f32) -> f32 {
    mean(cases.iter().map(|case| (predicted(case) - f32::from(u8::from(case.masked))).powi(2)))
}
