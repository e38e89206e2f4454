//! Measures what repairs save: the penalties of a model's replies to prompts with criteria, before and after.
//!
//! `cargo run -p idiolect-mutation --example repair -- [--model MODEL] [--replies FILE.jsonl] [--breaches] [--encoder FOLDER]`
//!
//! With a model (a GGUF file) the replies are drawn anew, and written to the file where one is named. Without a model they are
//! read from the file, by default the one that the tests use. `--breaches` tells which criteria are still broken afterwards,
//! `--encoder` (all-mpnet-base-v2) how relevant replies are before and after.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::cast_precision_loss, reason = "a measuring program")]

#[path = "../tests/support/composed.rs"]
mod composed;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use composed::Answered;
use idiolect_backend::{Backend, Embedder, Message, Request};
use idiolect_backend_candle::{CandleBackend, CandleConfig, SentenceEncoder};
use idiolect_mutation::guard::{self, Rules};
use idiolect_mutation::{FlagKind, Task, repair, retry};
use idiolect_validator::task::{TaskKind, text_prompting};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/replies.jsonl");

/// Replies that grow side by side.
const TOGETHER: usize = 8;

/// What a reply may lose before another one is asked for.
const RETRY_ABOVE: f32 = 0.2;

#[derive(Default)]
struct Options {
    model: Option<String>,
    replies: Option<String>,
    breaches: bool,
    encoder: Option<String>,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut options = Options::default();
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--model" => options.model = Some(value()?),
            "--replies" => options.replies = Some(value()?),
            "--encoder" => options.encoder = Some(value()?),
            "--breaches" => options.breaches = true,
            _ => return Err(format!("{flag:?} is none of --model, --replies, --encoder, --breaches").into()),
        }
    }
    let answered = match &options.model {
        Some(model) => ask(model).await?,
        None => {
            let text = std::fs::read_to_string(options.replies.as_deref().unwrap_or(RECORDED))?;
            text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?
        }
    };
    if let (Some(_), Some(file)) = (&options.model, &options.replies) {
        let lines = answered.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        std::fs::write(file, lines.join("\n") + "\n")?;
    }
    report(&answered, options.breaches)?;
    match &options.encoder {
        Some(folder) => relevance(&answered, folder).await,
        None => Ok(()),
    }
}

/// Draws a reply to each prompt, with the settings that the miner has by default.
async fn ask(model: &str) -> Outcome<Vec<Answered>> {
    let backend = Arc::new(CandleBackend::load(Path::new(model), CandleConfig::default())?);
    let prompts = composed::prompts();
    let mut answered = Vec::new();
    for (chunk, first) in prompts.chunks(TOGETHER).zip((0..).step_by(TOGETHER)) {
        let mut tasks = tokio::task::JoinSet::new();
        for (number, prompt) in (first..).zip(chunk) {
            let mut request = Request::new(vec![Message::user(prompt.compose())]);
            request.sampling.seed = Some(number as u64);
            let backend = Arc::clone(&backend);
            tasks.spawn(async move {
                let completion = backend.complete(request).await?;
                let reply = completion.candidates.into_iter().next().map(|c| c.text).unwrap_or_default();
                Ok::<_, idiolect_backend::Error>(Answered { prompt: number, reply })
            });
        }
        while let Some(done) = tasks.join_next().await {
            answered.push(done??);
        }
        eprintln!("{} of {} prompts answered", answered.len(), prompts.len());
    }
    answered.sort_by_key(|answered| answered.prompt);
    Ok(answered)
}

#[derive(Default)]
struct Sums {
    n: usize,
    before: [f64; 3],
    after: [f64; 3],
}

/// Criteria; the other exact rules together; all flags together.
fn costs(rules: &Rules, text: &str) -> [f64; 3] {
    let flags = rules.check(text);
    let of = |is_counted: fn(FlagKind) -> bool| {
        let counted = flags.iter().filter(|flag| is_counted(flag.kind));
        1.0 - counted.map(|flag| 1.0 - f64::from(flag.penalty)).product::<f64>()
    };
    let others = of(|kind| kind.is_exact() && kind != FlagKind::Criteria);
    [of(|kind| kind == FlagKind::Criteria), others, f64::from(guard::penalty(&flags))]
}

fn report(answered: &[Answered], tells_breaches: bool) -> Outcome<()> {
    let prompts = composed::prompts();
    let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let mut left: BTreeMap<String, f64> = BTreeMap::new();
    let (mut n_repaired, mut n_advised, mut slowest, mut spent) = (0, 0, Duration::ZERO, Duration::ZERO);
    for Answered { prompt, reply } in answered {
        let task = prompts.get(*prompt).ok_or_else(|| format!("there is no prompt {prompt}"))?;
        let rules = Rules::detect(Task::Unknown, &task.compose());
        let began = Instant::now();
        let repaired = repair::repair(&rules, reply);
        let took = began.elapsed();
        (slowest, spent) = (slowest.max(took), spent + took);
        n_repaired += usize::from(!repaired.repairs.is_empty());
        n_advised += usize::from(retry::advice(&rules, &repaired.text, RETRY_ABOVE).is_some());
        for repair in &repaired.repairs {
            *kinds.entry(repair.kind.as_str()).or_default() += 1;
        }
        for breach in rules.breaches(&repaired.text) {
            *left.entry(format!("{}: {}", task.kind, breach.criterion.compose())).or_default() += breach.cost;
        }
        let (before, after) = (costs(&rules, reply), costs(&rules, &repaired.text));
        for name in [task.kind.as_str(), "all"] {
            let sums = sums.entry(name).or_default();
            sums.n += 1;
            for i in 0..3 {
                sums.before[i] += before[i];
                sums.after[i] += after[i];
            }
        }
    }
    println!("{:9} {:>4}  {:>25}  {:>25}  {:>25}", "", "n", "criteria", "labels, openings, copies", "all flags");
    for name in TaskKind::ALL.map(TaskKind::as_str).into_iter().chain(["all"]) {
        let Some(sums) = sums.get(name) else { continue };
        print!("{name:9} {:4}", sums.n);
        for i in 0..3 {
            let (before, after) = (sums.before[i] / sums.n as f64, sums.after[i] / sums.n as f64);
            print!("  {before:.4} -> {after:.4} ({:4.0} %)", 100.0 * after / before.max(f64::MIN_POSITIVE));
        }
        println!();
    }
    println!("{n_repaired} of {} repaired; {n_advised} would be tried again (over {RETRY_ABOVE})", answered.len());
    println!("repairs: {kinds:?}");
    let millis = |time: Duration| 1000.0 * time.as_secs_f64();
    println!("{:.2} ms a reply, {:.2} ms the slowest", millis(spent) / answered.len().max(1) as f64, millis(slowest));
    if tells_breaches {
        for (name, cost) in left {
            println!("{cost:.3} {name}");
        }
    }
    Ok(())
}

/// Tells the absolute cosines of replies with the texts that they are about: what validators mask by.
async fn relevance(answered: &[Answered], folder: &str) -> Outcome<()> {
    let encoder = SentenceEncoder::load(Path::new(folder))?;
    let prompts = composed::prompts();
    let mut cosines = [Vec::new(), Vec::new()];
    let mut bound = 0.0;
    for Answered { prompt, reply } in answered {
        let task = &prompts[*prompt];
        let rules = Rules::detect(Task::Unknown, &task.compose());
        bound = rules.profile().relevance.mpnet;
        let repaired = repair::repair(&rules, reply);
        let words = rules.profile().followup_words.filter(|_| task.kind == TaskKind::Followup);
        let scored = |text: &str| words.map_or_else(|| text.to_owned(), |n| text_prompting::cut_followup(text, n));
        let texts = [task.base_text.clone(), scored(reply), scored(&repaired.text)];
        let texts = encoder.embed(&texts).await?;
        for (cosines, embedding) in cosines.iter_mut().zip(&texts[1..]) {
            cosines.push(texts[0].iter().zip(embedding).map(|(a, b)| a * b).sum::<f32>().abs());
        }
    }
    for (name, cosines) in ["before", "after"].into_iter().zip(&cosines) {
        let n_masked = cosines.iter().filter(|cosine| **cosine < bound).count();
        let mean = cosines.iter().sum::<f32>() / cosines.len().max(1) as f32;
        println!("relevance {name}: {mean:.3} on average, {n_masked} of {} under {bound}", cosines.len());
    }
    let pairs = || cosines[0].iter().zip(&cosines[1]);
    let lost = pairs().filter(|(before, after)| **before >= bound && **after < bound).count();
    let won = pairs().filter(|(before, after)| **before < bound && **after >= bound).count();
    println!("{lost} fell under the bound by their repairs, {won} rose above it");
    Ok(())
}
