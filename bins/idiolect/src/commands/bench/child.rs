//! A process that measures one number of candidates, so that its peak memory is that of this work and of nothing else.
//!
//! It loads the model, says how that went in one line of JSON, measures once for each number of a run that it reads, one a
//! line (with a word after it where tokens are to be drawn with top-p alone), and tells its peak memory at the end of its
//! input.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use idiolect_backend::Backend;
use idiolect_miner::backends::Loader;
use idiolect_miner::config::{BackendConfig, BackendKind, Bytes, Config, EncoderKind, UniquenessSection};
use idiolect_miner::progress::FetchProgress;
use idiolect_miner::{cli, models};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::Settings;
use super::engine::Steps;
use super::measure::{Run, Work, measure, words_for};
use super::memory::peak_rss_mb;
use crate::output;

/// Stands after the number of a run whose tokens are drawn with top-p alone.
const TOP_P_ALONE: &str = " top-p";

/// What a child says when it is ready.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) load_s: f64,
    pub(super) n_words: usize,
}

#[derive(Serialize, Deserialize)]
struct Peak {
    peak_rss_mb: Option<f64>,
}

/// What a child says instead of anything else when it cannot go on.
#[derive(Serialize, Deserialize)]
struct Failure {
    error: String,
}

/// Is the child. What goes wrong is told to the parent, which has the one line to say about it.
pub(super) async fn be(settings: &Settings, n: usize, n_words: Option<usize>) -> anyhow::Result<()> {
    if let Err(error) = serve(settings, n, n_words).await {
        output::say(json!(Failure { error: cli::one_line(&error) }))?;
    }
    Ok(())
}

async fn serve(settings: &Settings, n: usize, n_words: Option<usize>) -> anyhow::Result<()> {
    let steps = Steps::listen()?;
    let began = Instant::now();
    let backend = load(settings).await?;
    let load_s = began.elapsed().as_secs_f64();
    let backend: &dyn Backend = &*backend;
    let n_words = match n_words {
        Some(n_words) => n_words,
        None => words_for(backend, settings.prompt_tokens).await?,
    };
    output::say(json!(Ready { load_s, n_words }))?;
    // Nothing else is to be done while it waits for a line.
    for line in std::io::stdin().lines() {
        let line = line?;
        let (number, top_p_alone) = match line.strip_suffix(TOP_P_ALONE) {
            Some(number) => (number, true),
            None => (line.as_str(), false),
        };
        let run = number.trim().parse().with_context(|| format!("{line:?} is no number of a run"))?;
        let work = Work { n_words, new_tokens: settings.new_tokens, n, top_p_alone };
        output::say(json!(measure(backend, Some(&steps), run, work).await?))?;
    }
    Ok(output::say(json!(Peak { peak_rss_mb: peak_rss_mb(None) }))?)
}

async fn load(settings: &Settings) -> anyhow::Result<Arc<dyn Backend>> {
    let room = settings.prompt_tokens + usize::try_from(settings.new_tokens)? + 64;
    let backend = BackendConfig {
        model: Some(settings.model.clone()),
        threads: settings.threads,
        device: settings.device.clone(),
        context_tokens: Some(u32::try_from(room)?),
        kv_type: Some(settings.kv_type),
        quantize: settings.quantize,
        // No two runs begin alike: what is kept of one would only be counted as memory of the next.
        max_kept_bytes: Some(Bytes(0)),
        ..BackendConfig::of_kind(BackendKind::Candle)
    };
    let defaults = Config::default();
    let config = Config {
        backends: vec![backend],
        uniqueness: UniquenessSection { encoder: EncoderKind::Off, ..defaults.uniqueness.clone() },
        models: settings.models.clone(),
        ..defaults
    };
    let resolver = models::resolver(&config.models, &cli::process_env())?;
    let progress = FetchProgress::default();
    let engines = Loader { resolver: &resolver, progress: &progress }.load(&config).await?;
    let allowed = engines.pool.capabilities().context_tokens.unwrap_or(u32::MAX);
    if usize::try_from(allowed)? < room {
        bail!(
            "a prompt of {} tokens and {} new ones need {room} with the template's, the model's context has {allowed}",
            settings.prompt_tokens,
            settings.new_tokens
        );
    }
    if !engines.pool.capabilities().min_tokens {
        tracing::warn!("the engine lets candidates end early: the work may be smaller than asked for");
    }
    Ok(engines.pool)
}

/// A child, from its parent's side.
pub(super) struct Measuring {
    child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
    pub(super) ready: Ready,
}

impl Measuring {
    /// Starts a child and waits until its model is loaded.
    pub(super) async fn start(settings: &Settings, n: usize, n_words: Option<usize>) -> anyhow::Result<Self> {
        let program: PathBuf = std::env::current_exe().context("this program's own file cannot be found")?;
        let mut command = Command::new(program);
        command.arg("bench").args(["--row", &n.to_string()]).args(settings.args());
        if let Some(n_words) = n_words {
            command.args(["--words", &n_words.to_string()]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the measuring process cannot be started")?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the measuring process has no input or output");
        };
        let mut from = BufReader::new(from).lines();
        let ready = read(&mut from).await?;
        Ok(Self { child, to, from, ready })
    }

    /// Does the work once.
    pub(super) async fn run(&mut self, run: u32) -> anyhow::Result<Run> {
        self.ask(run, "").await
    }

    /// Does the work once, and draws with top-p alone.
    pub(super) async fn run_with_top_p_alone(&mut self, run: u32) -> anyhow::Result<Run> {
        self.ask(run, TOP_P_ALONE).await
    }

    async fn ask(&mut self, run: u32, how: &str) -> anyhow::Result<Run> {
        self.to.write_all(format!("{run}{how}\n").as_bytes()).await.context("the measuring process is gone")?;
        read(&mut self.from).await
    }

    /// Ends it, and returns its peak memory.
    pub(super) async fn end(mut self) -> anyhow::Result<Option<f64>> {
        drop(self.to);
        let peak: Peak = read(&mut self.from).await?;
        self.child.wait().await?;
        Ok(peak.peak_rss_mb)
    }
}

async fn read<T: for<'a> Deserialize<'a>>(from: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<T> {
    let line = from.next_line().await?.context("the measuring process ended without a word")?;
    if let Ok(Failure { error }) = serde_json::from_str(&line) {
        bail!(error);
    }
    serde_json::from_str(&line).with_context(|| format!("{line:?} is no answer of the measuring process"))
}
