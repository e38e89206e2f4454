//! A step of 50 replies of about 100 tokens, without what models take: tokenising, counting and searching stock phrases,
//! distances to each other and to a full history, masks, penalties, statistics and moving average.
//!
//!     cargo bench -p idiolect-validator
//!
//! Searching the history takes up to four threads, and all else one. The median, the quickest and the slowest of thirty
//! steps, after as many that fill the counts; in the slowest, counts are pruned and phrases weighed again. Needs `minilm` for its vocabulary.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use idiolect_backend::{Embedder, Embedding, Error};
use idiolect_validator::mask::{NsfwClassifier, WordPiece};
use idiolect_validator::task::{Criterion, TaskKind, Unit, text_prompting};
use idiolect_validator::{BertPart, Missing, Models, Profile, Reply, RewardModel, StepTask, Validator};

const REPLIES: u16 = 50;
const STEPS: usize = 30;
const DIMENSIONS: usize = 768;
const HISTORY: usize = 15_500;

/// Numbers that look random and are the same each time.
fn number(seed: u64) -> u64 {
    let mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn embedding(seed: u64) -> Embedding {
    (0..DIMENSIONS as u64).map(|i| (number(seed * 7919 + i) >> 40) as f32 / 16_777_216.0 - 0.5).collect()
}

/// Answers at once: what it costs is not to count.
#[derive(Debug)]
struct Instantly(Vec<Embedding>);

#[async_trait]
impl Embedder for Instantly {
    fn name(&self) -> &str {
        "instantly"
    }

    fn dimensions(&self) -> usize {
        DIMENSIONS
    }

    fn max_tokens(&self) -> usize {
        512
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        Ok(texts.iter().enumerate().map(|(i, text)| self.0[(i * 31 + text.len()) % self.0.len()].clone()).collect())
    }
}

#[async_trait]
impl NsfwClassifier for Instantly {
    async fn scores(&self, texts: &[String]) -> Result<Vec<f32>, Error> {
        Ok(vec![-1.0; texts.len()])
    }
}

#[derive(Debug)]
struct Score(&'static str);

#[async_trait]
impl RewardModel for Score {
    fn name(&self) -> &str {
        self.0
    }

    async fn scores(&self, _: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        Ok(replies.iter().map(|reply| -(reply.len() as f32).sqrt()).collect())
    }
}

const WORDS: [&str; 64] = [
    "the",
    "of",
    "and",
    "light",
    "water",
    "leaf",
    "sugar",
    "to",
    "in",
    "a",
    "is",
    "that",
    "energy",
    "plants",
    "process",
    "cells",
    "which",
    "carbon",
    "oxygen",
    "it",
    "from",
    "they",
    "are",
    "by",
    "green",
    "sun",
    "air",
    "into",
    "when",
    "this",
    "makes",
    "store",
    "because",
    "their",
    "through",
    "roots",
    "soil",
    "with",
    "for",
    "as",
    "can",
    "more",
    "than",
    "during",
    "day",
    "night",
    "chemical",
    "reaction",
    "molecules",
    "absorb",
    "release",
    "growth",
    "tissue",
    "stem",
    "called",
    "takes",
    "place",
    "inside",
    "using",
    "also",
    "other",
    "living",
    "things",
    "need",
];

/// What many models say alike.
const STOCK: [&str; 3] = [
    "as an ai language model i cannot",
    "it is important to note that this process",
    "in conclusion the key takeaway is that",
];

fn reply(step: usize, uid: u16) -> Reply {
    let seed = (step as u64) << 20 | u64::from(uid) << 8;
    let mut text = String::new();
    if number(seed) % 10 < 4 {
        text.push_str(STOCK[(number(seed + 1) % 3) as usize]);
        text.push(' ');
    }
    for i in 0..88 {
        text.push_str(WORDS[(number(seed + 2 + i) % 64) as usize]);
        text.push_str(if i % 11 == 10 { ". " } else { " " });
    }
    Reply::new(uid, text)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let dir = idiolect_models::testing::model("minilm").expect("the default encoder").dir;
    let tokenizer = WordPiece::from_file(dir.join("tokenizer.json")).expect("it loads");
    let n_tokens = tokenizer.encode(&reply(0, 0).text).len();
    let profiles = [Profile::openvalidators_1_2(), Profile::text_prompting_2_1()];
    for (profile, n_earlier) in profiles.into_iter().flat_map(|profile| [(profile.clone(), 0), (profile, HISTORY)]) {
        let name = profile.name.clone();
        let encoder = Arc::new(Instantly((0..4096).map(embedding).collect()));
        let models = Models {
            rewards: ["dpo", "rlhf", "reciprocate"].map(|name| Arc::new(Score(name)) as Arc<dyn RewardModel>).to_vec(),
            encoder: Some(encoder.clone()),
            bert: Some(BertPart { encoder: encoder.clone(), windows: tokenizer.clone() }),
            nsfw: Some(encoder),
            ngrams: Some(tokenizer.clone()),
        };
        let mut validator = Validator::new(profile, models, Missing::Refuse).expect("nothing is missing");
        validator.remember(&(0..n_earlier as u64).map(|i| embedding(10_000 + i)).collect::<Vec<_>>());
        let task = text_prompting::Task {
            kind: TaskKind::Answer,
            base_text: reply(1_000_000, 0).text,
            criteria: vec![Criterion::NoLists, Criterion::Length { target: 100, unit: Unit::Words }],
        };
        let task = StepTask::read(&task.compose(), None).expect("it is a validator's");
        let mut times: Vec<Duration> = Vec::new();
        let mut n_stock = 0;
        for step in 0..2 * STEPS {
            let replies: Vec<Reply> = (0..REPLIES).map(|uid| reply(step, uid)).collect();
            let began = Instant::now();
            let report = runtime.block_on(validator.step(&task, &replies)).expect("it is computed");
            times.push(began.elapsed());
            n_stock = report.factor("blacklist").map_or(0, |f| f.applied.iter().filter(|mask| **mask == 0.0).count());
        }
        let mut last = times.split_off(STEPS);
        last.sort_unstable();
        println!(
            "{name}: a step of {REPLIES} replies of {n_tokens} tokens takes {:.2?}, at best {:.2?}, at worst {:.2?}, with {n_earlier} earlier replies; {n_stock} with a stock phrase",
            last[STEPS / 2],
            last[0],
            last[STEPS - 1],
        );
    }
}
