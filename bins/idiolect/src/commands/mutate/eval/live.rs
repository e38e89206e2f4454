//! `idiolect mutate eval --backend`: a model is asked now, plainly and by the whole pipeline, and validators' arithmetic says what each reply would have
//! earned among replies of rivals.

mod bench;
mod print;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_arena::live::{Scorer, Setup, State};
use idiolect_arena::texts::{self, ArenaPrompt};
use idiolect_miner::app::Core;
use idiolect_miner::cli;
use idiolect_miner::config::{BackendConfig, BackendKind, Config, EncoderKind};
use idiolect_miner::progress::{Counter, FetchProgress};
use idiolect_validator::StepTask;

use super::is_wanted;
use crate::commands::{Usage, load, profile, start_logging, timeout};
use crate::output;

/// What `--backend` is where the configuration says it.
const CONFIGURED: &str = "configured";

/// Prompts that are composed where none are given.
const N_PROMPTS: usize = 60;

/// Adds what a live experiment can be told to the command.
pub(super) fn args(command: Command) -> Command {
    let path = |id: &'static str, name: &'static str| {
        Arg::new(id).long(id).value_name(name).value_parser(value_parser!(PathBuf)).help_heading("With --backend")
    };
    let number = |id: &'static str, default: &'static str| {
        Arg::new(id).long(id).value_name("N").default_value(default).help_heading("With --backend")
    };
    command
        .arg(Arg::new("live").long("backend").value_name("SPEC|configured").help(
            "Ask a model now, in place of reading recorded replies: a model of the local engine (alias, hub:…, wheel:… or path), a record \
             (recorded:REPLIES?prompts=FILE&models=NAME,NAME), a kind or name of a backend, or the configured backends",
        ))
        .arg(path("prompts", "FILE").help(
            "Prompts, {\"p\": ID, \"prompt\": PROMPT, \"task\": TASK} a line, such as mutate prompts makes [default: composed by --seed]. With --replies: \
             what was asked; no task is needed",
        ))
        .arg(path("rivals", "FILE").help(
            "Rivals' replies, {\"p\", \"m\", \"t\"} a line: what is missing of 20 a prompt is made by the same model behind four other system prompts, \
             and added",
        ))
        .arg(path("state", "FILE").help("Keep draws and scores here; a run that broke off goes on"))
        .arg(
            Arg::new("n-prompts")
                .long("n-prompts")
                .value_name("N")
                .value_parser(value_parser!(u16).range(1..))
                .help_heading("With --backend")
                .help("Prompts: the first of --prompts [default: all], or so many composed [default: 60]"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("DURATION")
                .default_value("10")
                .value_parser(timeout)
                .help_heading("With --backend")
                .help("What a validator waits for a reply"),
        )
        .arg(number("requests", "0").value_parser(value_parser!(u16)).help("Further requests to the pipeline, of which only the time counts"))
        .arg(number("concurrency", "1").value_parser(value_parser!(u16).range(1..=64)).help("Of --requests, so many at once"))
}

/// Says whether a setting counts for a live experiment.
pub(super) fn is_key(key: &str) -> bool {
    let sections = ["sampling.", "candidates.", "mutation.", "uniqueness.", "pipeline.", "models.", "pool."];
    sections.iter().any(|section| key.starts_with(section))
        && !matches!(key, "sampling.seed" | "mutation.seed" | "uniqueness.profile")
}

pub(super) async fn run(matches: &ArgMatches, spec: &str) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    start_logging(&loaded)?;
    let mut config = loaded.config.clone();
    choose_backend(&mut config, spec)?;
    if config.uniqueness.encoder == EncoderKind::Off {
        let problem = "uniqueness.encoder is off, expected minilm, mpnet or openai: the gate needs an encoder";
        return Err(Usage(problem.to_owned()).into());
    }
    // Its ledger lies in the miner's own data directory, which this command has nothing to do with.
    if let Some(capped) = config.backends.iter().find(|backend| backend.spending_cap.is_some()) {
        let problem =
            format!("backend {} has a spending_cap, which would not count here; choose one without", capped.name);
        return Err(Usage(problem).into());
    }
    let profile = profile(matches, &config)?;
    if let Some(name) = matches.get_one::<String>("profile") {
        config.uniqueness.profile.clone_from(name);
    }
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or(0);
    // The same draws whatever was asked before, so that a run can go on.
    config.sampling.seed = Some(seed);
    let timeout = matches.get_one::<Duration>("timeout").copied().unwrap_or(Duration::from_secs(10));
    let prompts = prompts(matches, seed)?;
    let scratch = tempfile::tempdir().context("no folder for what is not kept")?;
    config.data_dir = scratch.path().to_path_buf();
    // What is sent to nobody is no part of what miners share.
    config.uniqueness.shared_history = None;

    let core = Core::load(&config, &cli::process_env(), &FetchProgress::default()).await?;
    let encoder = core.engines.encoder.clone().context("there is no encoder")?;
    let Some((model, model_name)) = core.engines.quality.clone() else {
        let problem = "uniqueness.quality_model gives no model, expected one: rewards are its log-probabilities";
        return Err(Usage(problem.to_owned()).into());
    };
    let setup = Setup {
        seed,
        k: config.candidates.count,
        timeout_s: timeout.as_secs_f64(),
        models: core.engines.models.clone(),
        encoder: encoder.name().to_owned(),
        profile: profile.name.clone(),
    };
    let mut state = State::open(matches.get_one::<PathBuf>("state").map(PathBuf::as_path), &setup)?;
    let bench = bench::Bench { core, config, seed, timeout, prompts, _scratch: scratch };
    let rivals = bench.rivals(matches.get_one::<PathBuf>("rivals").map(PathBuf::as_path)).await?;
    bench.draw(&mut state).await?;
    let scored = bench.scored(&state, &rivals);
    let folder = matches.get_one::<PathBuf>("embeddings").map(PathBuf::as_path);
    let bar = Counter::new("scoring");
    let mut progress = |_: &'static str, done, of| bar.at(done, of);
    let scorer = Scorer::prepare(profile, encoder, model, &scored, folder, &mut state, &mut progress).await?;
    bar.close();
    let mut report = bench.report(&state, &scored, &scorer).await?;
    report.arms.retain(|arm| is_wanted(matches, arm.arm));
    report.comparisons.retain(|comparison| is_wanted(matches, comparison.arm) && is_wanted(matches, comparison.over));
    let n_requests = matches.get_one::<u16>("requests").copied().unwrap_or(0).into();
    let concurrency = matches.get_one::<u16>("concurrency").copied().unwrap_or(1).into();
    let requests = bench.time(&mut state, n_requests, concurrency).await?;
    let n_rivals = scored.iter().map(|one| one.rivals.len()).sum::<usize>() as f64 / scored.len() as f64;
    let found = print::Found {
        setup: &setup,
        reward_model: &model_name,
        n_rivals,
        missing: scorer.missing()?,
        report: &report,
        requests,
    };
    bench.core.close().await;
    if matches.get_flag("json") { output::json(&found) } else { print::print(&found) }
}

/// Puts what `--backend` names in place of the configured backends.
fn choose_backend(config: &mut Config, spec: &str) -> anyhow::Result<()> {
    if spec == CONFIGURED {
        return Ok(());
    }
    if let Some(named) = config.backends.iter().find(|backend| backend.name == spec) {
        config.backends = vec![named.clone()];
        return Ok(());
    }
    if spec == BackendKind::OpenAi.as_str() {
        let problem =
            "--backend openai: there is no such backend in the configuration, which would say where its server is";
        return Err(Usage(problem.to_owned()).into());
    }
    let backend = BackendConfig::of_spec(spec).map_err(|problem| Usage(format!("--backend: {problem}")))?;
    if backend.kind == BackendKind::Recorded {
        // It knows prompts by their wording.
        config.mutation.recipes = 1;
    }
    config.backends = vec![backend];
    Ok(())
}

fn prompts(matches: &ArgMatches, seed: u64) -> anyhow::Result<Vec<(ArenaPrompt, StepTask)>> {
    let n = matches.get_one::<u16>("n-prompts").map(|&n| usize::from(n));
    let prompts = match matches.get_one::<PathBuf>("prompts") {
        Some(path) => {
            let mut prompts = texts::open(path).with_context(|| format!("--prompts {}", path.display()))?;
            prompts.truncate(n.unwrap_or(usize::MAX));
            prompts
        }
        None => texts::read(texts::compose(&texts::built_in(), n.unwrap_or(N_PROMPTS), seed))?,
    };
    Ok(prompts)
}
