//! Contestants that are asked now: a miner's configuration, its whole pipeline behind it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ArgMatches;
use idiolect_arena::lines::{self, Lines};
use idiolect_arena::whatif::Effort;
use idiolect_arena::{AskedPrompt, Replies};
use idiolect_miner::app::Core;
use idiolect_miner::cli;
use idiolect_miner::config::{Config, Loaded, Sources, load as load_config};
use idiolect_miner::progress::{Counter, FetchProgress};
use idiolect_pipeline::{Ask, Provenance};
use idiolect_protocol::{Message, Prompt, Role};
use idiolect_uniqueness::lexical::fnv1a;
use serde::{Deserialize, Serialize};

use crate::commands::{Usage, ladder};

/// What is asked of whom, and how.
pub(super) struct Round<'a> {
    pub(super) prompts: &'a [AskedPrompt],
    /// Copies that are asked beside the first.
    pub(super) clones: usize,
    pub(super) seed: u64,
    /// How long a validator waits.
    pub(super) timeout: Duration,
    /// Where replies are kept.
    pub(super) folder: Option<&'a Path>,
}

/// A reply, as it is kept: a line that a file of ready replies may have, too.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    p: String,
    m: String,
    /// Nothing where it failed, or came too late.
    t: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latency_ms: Option<f64>,
    /// Read and generated for it, whatever was sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens: Option<f64>,
    /// By the backends' prices, where they have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
    /// The chance to be masked that the miner saw for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    predicted_masked: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Replies of contestants.
pub(super) struct Contestants {
    pub(super) replies: Replies,
    /// What asking for them took, by name and prompt.
    pub(super) efforts: BTreeMap<String, BTreeMap<String, Effort>>,
    /// The name and the hash of the configuration that was asked, where one was.
    pub(super) configuration: Option<(String, String)>,
}

/// Reads a miner's configuration as `--contestant` does: flags are the command's own, the environment counts as for the miner.
///
/// # Errors
/// Where the file is no configuration.
pub(in crate::commands) fn configuration(path: &Path, matches: &ArgMatches) -> anyhow::Result<Loaded> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut sources = cli::sources(matches, cli::process_env())?;
    sources.flags.clear();
    Ok(load_config(&Sources { file: Some((path.to_owned(), text)), ..sources })?)
}

/// Reads ready replies. What they took is read where it is there.
///
/// # Errors
/// Where the file cannot be read, or a line is no reply.
pub(super) fn read(path: &Path) -> anyhow::Result<Contestants> {
    let replies = Replies::open(path)?;
    // Packed files have nothing but replies.
    let is_packed = path.extension().is_some_and(|extension| extension == "zst");
    let kept: Vec<Kept> = if is_packed { Vec::new() } else { lines::read(path).unwrap_or_default() };
    Ok(Contestants { replies, efforts: efforts(&kept), configuration: None })
}

fn efforts(kept: &[Kept]) -> BTreeMap<String, BTreeMap<String, Effort>> {
    let mut all: BTreeMap<String, BTreeMap<String, Effort>> = BTreeMap::new();
    for Kept { p, m, latency_ms, tokens, cost_usd, predicted_masked, .. } in kept {
        let effort = Effort {
            latency_ms: *latency_ms,
            tokens: *tokens,
            cost_usd: *cost_usd,
            predicted_masked: *predicted_masked,
        };
        all.entry(m.clone()).or_default().insert(p.clone(), effort);
    }
    all
}

/// Asks the pipeline of a configuration every prompt that it was not asked before, and returns its replies; the name is the file's.
///
/// # Errors
/// Where the file is no configuration, or what it names is not there.
pub(super) async fn ask(path: &Path, matches: &ArgMatches, round: &Round<'_>) -> anyhow::Result<Contestants> {
    let loaded = configuration(path, matches)?;
    let mut config = loaded.config.clone();
    if let Some(capped) = config.backends.iter().find(|backend| backend.spending_cap.is_some()) {
        let problem =
            format!("backend {} has a spending_cap, which would not count here; choose one without", capped.name);
        return Err(Usage(problem).into());
    }
    // What is sent to nobody is no part of what miners share.
    config.uniqueness.shared_history = None;
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let settings = loaded.to_json(false).to_string();
    let hash = fnv1a(format!("{settings} {} {:?}", round.seed, round.timeout).bytes());
    let scratch = tempfile::tempdir().context("no folder for what is not kept")?;
    let kept_at = match round.folder {
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            folder.join(format!("{name}.{hash:016x}.replies.jsonl"))
        }
        None => scratch.path().join("replies.jsonl"),
    };
    let (mut lines, mut kept) = Lines::open::<Kept>(&kept_at)?;
    let bar = Counter::new("asking");
    let n_all = round.prompts.len() * (1 + round.clones);
    for clone in 0..=round.clones {
        let model = if clone == 0 { name.clone() } else { format!("{name}#{clone}") };
        let known: HashSet<&str> = kept.iter().filter(|one| one.m == model).map(|one| one.p.as_str()).collect();
        let missing: Vec<&AskedPrompt> =
            round.prompts.iter().filter(|asked| !known.contains(asked.id.as_str())).collect();
        if missing.is_empty() {
            continue;
        }
        let data_dir: PathBuf = scratch.path().join(format!("data-{clone}"));
        let config = of_clone(&config, data_dir, round.seed.wrapping_add(clone as u64));
        let core = Core::load(&config, &cli::process_env(), &FetchProgress::default())
            .await
            .with_context(|| format!("{} cannot be asked", path.display()))?;
        for asked in missing {
            bar.at(kept.len(), n_all);
            let reply = one(&core, &config, asked, &model, round.timeout).await;
            lines.add(std::slice::from_ref(&reply))?;
            kept.push(reply);
        }
        core.close().await;
    }
    bar.close();
    let wanted: HashSet<&str> = round.prompts.iter().map(|asked| asked.id.as_str()).collect();
    kept.retain(|one| wanted.contains(one.p.as_str()));
    let mut text = Vec::new();
    for one in &kept {
        serde_json::to_writer(&mut text, one)?;
        text.push(b'\n');
    }
    let configuration = Some((name, ladder::hash(&loaded)));
    Ok(Contestants { replies: Replies::read(&mut &text[..])?, efforts: efforts(&kept), configuration })
}

/// The same draws whatever was asked before, so that a run can go on.
fn of_clone(config: &Config, data_dir: PathBuf, seed: u64) -> Config {
    let mut config = config.clone();
    config.sampling.seed = Some(seed);
    config.data_dir = data_dir;
    config
}

async fn one(core: &Core, config: &Config, asked: &AskedPrompt, model: &str, timeout: Duration) -> Kept {
    let (p, m, t) = (asked.id.clone(), model.to_owned(), String::new());
    let mut kept =
        Kept { p, m, t, latency_ms: None, tokens: None, cost_usd: None, predicted_masked: None, error: None };
    let prompt = match Prompt::new(vec![Message::new(Role::User, asked.text.as_str())]) {
        Ok(prompt) => prompt,
        Err(error) => return Kept { error: Some(error.to_string()), ..kept },
    };
    let budget = timeout.saturating_sub(config.pipeline.margin).min(config.pipeline.cap);
    let began = Instant::now();
    let answer = core.pipeline.answer(Ask { timeout: budget, ..Ask::new(prompt) }).await;
    let took = began.elapsed();
    kept.latency_ms = Some((took.as_secs_f64() * 1e6).round() / 1e3);
    if let Ok(answer) = &answer {
        let (tokens, cost) = effort(config, &answer.provenance);
        (kept.tokens, kept.cost_usd) = (Some(tokens), cost);
        let chance = answer.provenance.chosen().and_then(|chosen| chosen.score.as_ref()?.masked);
        kept.predicted_masked = chance.map(|chance| f64::from(chance.p));
    }
    match answer {
        Ok(_) if took > timeout => kept.error = Some("too late".to_owned()),
        Ok(answer) => {
            let first = answer.reply.completions.into_iter().next();
            kept.t = first.map(|text| text.trim().to_owned()).unwrap_or_default();
        }
        Err(error) => kept.error = Some(error.to_string()),
    }
    kept
}

/// Returns the tokens that a reply took, and what they cost by the backends' prices, in US dollars; no cost where no backend has a price.
///
/// Each recipe is a prompt of its own, which its backend reads once for all of its candidates.
fn effort(config: &Config, made: &Provenance) -> (f64, Option<f64>) {
    let price = |name: &str| {
        let backend = config.backends.iter().find(|backend| backend.name == name);
        backend.map_or((0.0, 0.0), |backend| (backend.prompt_price, backend.completion_price))
    };
    let read: BTreeSet<(&str, &str)> =
        made.candidates.iter().map(|candidate| (candidate.backend.as_str(), candidate.recipe.as_str())).collect();
    let of_prompt = f64::from(made.prompt_tokens);
    let mut cost: f64 = read.iter().map(|(backend, _)| price(backend).0 * of_prompt).sum();
    let mut written = 0.0;
    for candidate in &made.candidates {
        cost += price(&candidate.backend).1 * f64::from(candidate.n_tokens);
        written += f64::from(candidate.n_tokens);
    }
    // Candidates that came to nothing were paid for, too.
    let lost = (f64::from(made.completion_tokens) - written).max(0.0);
    if let Some(candidate) = made.candidates.first() {
        cost += price(&candidate.backend).1 * lost;
    }
    let is_priced = config.backends.iter().any(|backend| backend.prompt_price > 0.0 || backend.completion_price > 0.0);
    let tokens = read.len().max(1) as f64 * of_prompt + written + lost;
    (tokens, is_priced.then_some(cost / 1e6))
}
