//! `idiolect mutate evolve`: new operators are bred on a file of prompts, offline, and the best of each kind are kept.

mod bench;
mod print;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_arena::texts;
use idiolect_backend::Echo;
use idiolect_miner::backends::Loader;
use idiolect_miner::config::{BackendConfig, Config, EncoderKind, QualityModel};
use idiolect_miner::progress::{Counter, FetchProgress};
use idiolect_miner::{cli, models};
use idiolect_mutation::evolve::{Evolution, EvolveConfig, Gate, Journal, TrialPrompt};
use idiolect_mutation::{Library, Task, lint};
use serde::Deserialize;

use crate::commands::{Usage, json_arg, load, profile, profile_arg, start_logging};
use crate::output;

/// Prompts that are composed where none are given.
const N_PROMPTS: usize = 30;

pub(super) fn command() -> Command {
    let number = |id: &'static str, default: &'static str| Arg::new(id).long(id).value_name("N").default_value(default);
    let path = |id: &'static str, name: &'static str| {
        Arg::new(id).long(id).value_name(name).value_parser(value_parser!(PathBuf))
    };
    let spec = |id: &'static str| Arg::new(id).long(id).value_name("SPEC");
    let command = Command::new("evolve")
        .about("Breed new operators on a file of prompts: a model proposes texts, replies are judged as validators do, the best of each kind are kept")
        .after_help(
            "A line of --prompts is {\"id\": ID, \"prompt\": PROMPT, \"task\": TASK}, of which the task may be missing, or a prompt as plain text. Of each task at least \
             3 are needed, and some are kept back to judge by.\n\
             The same seed, library, prompts and models give the same operators. With --state a run that broke off, or was stopped by Ctrl-C or --minutes, goes on \
             where it was when it is started again; --generations, --budget-tokens and --minutes may then be other ones.\n\
             Example: idiolect mutate evolve --seed 1 --minutes 30 --state evolving --out operators.toml",
        )
        .arg(path("prompts", "FILE").help("Prompts [default: 30 that are composed by --seed as validators do]"))
        .arg(path("library", "FILE").help("The library to start from [default: that of mutation.operators, else the built-in one]"))
        .arg(spec("model").help("The model that writes replies: an alias, hub:…, wheel:… or path, or a kind or name of a backend [default: the configured backends]"))
        .arg(spec("proposer").help("The model that proposes texts [default: the one that writes replies]"))
        .arg(number("generations", "4").value_parser(value_parser!(u16).range(..=1000)).help("Rounds of proposals, after one of the library's own operators"))
        .arg(number("proposals", "6").value_parser(value_parser!(u16).range(..=1000)).help("Proposals a round"))
        .arg(number("starters", "8").value_parser(value_parser!(u16).range(1..=1000)).help("Operators of the library that are tried, for each task"))
        .arg(number("mini-batch", "2").value_parser(value_parser!(u16).range(1..=1000)).help("Prompts that a candidate is first tried on; the better half goes on to twice as many"))
        .arg(number("hold-out", "0.3").value_name("SHARE").value_parser(value_parser!(f64)).help("Prompts that are kept back to judge by, 0 to 0.9"))
        .arg(number("concurrency", "4").value_parser(value_parser!(u16).range(1..=256)).help("Replies that are asked for at a time; changes nothing in what comes out"))
        .arg(Arg::new("budget-tokens").long("budget-tokens").value_name("N").value_parser(value_parser!(u64)).help("Begin no round when so many tokens were spent"))
        .arg(Arg::new("minutes").long("minutes").value_name("M").value_parser(value_parser!(f64)).help(
            "Stop after so long, with what the whole rounds gave; the prompts that were kept back are asked afterwards",
        ))
        .arg(number("seed", "0").value_name("S").value_parser(value_parser!(u64)).help("What all draws start from"))
        .arg(path("state", "DIR").help("Keep all answers here; a run that broke off goes on"))
        .arg(path("out", "FILE").help("Write a library of the old operators and the new elites"))
        .arg(Arg::new("dry-run").long("dry-run").action(ArgAction::SetTrue).help("Only estimate how many replies and tokens it takes, at most"))
        .arg(profile_arg())
        .arg(json_arg());
    cli::key_args(command, |key| {
        let sections = ["sampling.", "uniqueness.encoder", "models."];
        sections.iter().any(|section| key.starts_with(section)) && key != "sampling.seed"
            || matches!(key, "uniqueness.device" | "uniqueness.quality_model" | "mutation.operators")
    })
}

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    start_logging(&loaded)?;
    let mut config = loaded.config.clone();
    if config.uniqueness.encoder == EncoderKind::Off {
        let problem = "uniqueness.encoder is off, expected minilm, mpnet or openai: the gate needs an encoder";
        return Err(Usage(problem.to_owned()).into());
    }
    if let Some(spec) = matches.get_one::<String>("model") {
        config.backends = vec![backend(&config, "--model", spec)?];
    }
    let profile = profile(matches, &config)?;
    let gate = Gate { distance: profile.gate.batch.distance_at(profile.gate.pass_above) };
    let number = |id: &str| matches.get_one::<u16>(id).copied().unwrap_or(1).into();
    let settings = EvolveConfig {
        seed: matches.get_one::<u64>("seed").copied().unwrap_or(0),
        generations: number("generations"),
        proposals: number("proposals"),
        starters: number("starters"),
        mini_batch: number("mini-batch"),
        hold_out: matches.get_one::<f64>("hold-out").copied().unwrap_or(0.3),
        max_tokens: matches.get_one::<u64>("budget-tokens").copied(),
        concurrency: number("concurrency"),
        gate,
    };
    let minutes = matches.get_one::<f64>("minutes").copied();
    let time = match minutes.map(|minutes| Duration::try_from_secs_f64(60.0 * minutes)) {
        Some(Err(_)) => return Err(Usage("--minutes is out of range, expected 0 or more".to_owned()).into()),
        Some(Ok(time)) => Some(time),
        None => None,
    };
    let prompts = prompts(matches.get_one::<PathBuf>("prompts").map(PathBuf::as_path), settings.seed)?;
    let start = matches.get_one::<PathBuf>("library").or(config.mutation.operators.as_ref());
    let start_text = start
        .map(|path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display())))
        .transpose()?;
    let library = match (start, &start_text) {
        (Some(path), Some(text)) => Library::parse(text, &path.display().to_string())?,
        _ => Library::built_in(),
    };

    if matches.get_flag("dry-run") {
        let (nobody, echo) = (bench::Nobody, Echo::new());
        let evolution =
            Evolution::new(settings, &library, prompts.clone(), &nobody, &echo, Journal::in_memory(), BTreeMap::new())?;
        return print::estimate(&evolution, &prompts, config.sampling.max_tokens, matches.get_flag("json"));
    }

    // A reply may take its time here; nobody waits.
    for backend in &mut config.backends {
        backend.timeout = backend.timeout.max(Duration::from_secs(3600));
    }
    let resolver = models::resolver(&config.models, &cli::process_env())?;
    let progress = FetchProgress::default();
    let loader = Loader { resolver: &resolver, progress: &progress };
    let engines = loader.load(&config).await?;
    let proposer = match matches.get_one::<String>("proposer") {
        Some(spec) => {
            let mut other = config.clone();
            other.backends = vec![backend(&config, "--proposer", spec)?];
            other.uniqueness.encoder = EncoderKind::Off;
            other.uniqueness.quality_model = QualityModel::Off;
            loader.load(&other).await.context("--proposer")?
        }
        None => engines.clone(),
    };
    let encoder = engines.encoder.clone().context("there is no encoder")?;
    let names = BTreeMap::from([
        ("models".to_owned(), engines.models.join(", ")),
        ("proposer".to_owned(), proposer.models.join(", ")),
        ("encoder".to_owned(), encoder.name().to_owned()),
        ("quality".to_owned(), engines.quality.as_ref().map_or("none", |(_, name)| name).to_owned()),
        ("profile".to_owned(), profile.name.to_string()),
        ("sampling".to_owned(), serde_json::to_string(&config.sampling)?),
    ]);
    let state = matches.get_one::<PathBuf>("state");
    let journal = state.map_or_else(|| Ok(Journal::in_memory()), |folder| Journal::open(folder))?;
    if journal.n_replies() > 0 {
        tracing::info!(replies = journal.n_replies(), "going on");
    }
    let quality = engines.quality.clone().map(|(model, _)| model);
    let bench = bench::Bench::new(engines.pool.clone(), config.sampling.clone(), encoder, quality, profile);
    let mut evolution = Evolution::new(settings, &library, prompts, &bench, &*proposer.pool, journal, names)?;

    let bar = Counter::new("evolving");
    let mut tell = |done, of| bar.at(done, of);
    let late = async {
        match time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    let stopped = tokio::select! {
        done = evolution.run(&mut tell) => { done?; None }
        () = late => Some(true),
        _ = tokio::signal::ctrl_c() => Some(false),
    };
    // Who pressed Ctrl-C waits for nothing more.
    if stopped != Some(false) {
        tokio::select! {
            done = evolution.hold_out(&mut tell) => done?,
            _ = tokio::signal::ctrl_c() => {}
        }
    }
    bar.close();

    let report = evolution.report();
    let text = evolution.to_toml(start_text.as_deref())?;
    let evolved = Library::parse(&text, "the evolved library")?;
    let before = lint::library(&library);
    let findings: Vec<String> =
        lint::library(&evolved).into_iter().filter(|f| !before.contains(f)).map(|f| f.message).collect();
    if let Some(out) = matches.get_one::<PathBuf>("out") {
        write(out, &text)?;
    }
    if matches.get_flag("json") {
        return output::json(&print::Found { report: &report, lint: &findings, stopped: stopped.is_some() });
    }
    print::print(&report, &findings, stopped.is_some(), state.is_some())
}

/// Writes a file as a whole, or not at all.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let written = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

/// Finds the backend that a command line names.
fn backend(config: &Config, option: &str, spec: &str) -> anyhow::Result<BackendConfig> {
    if let Some(named) = config.backends.iter().find(|backend| backend.name == spec) {
        return Ok(named.clone());
    }
    BackendConfig::of_spec(spec).map_err(|problem| Usage(format!("{option}: {problem}")).into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(alias = "p")]
    id: Option<String>,
    prompt: String,
    task: Option<String>,
    #[serde(rename = "base_text")]
    _base_text: Option<String>,
}

fn prompts(path: Option<&Path>, seed: u64) -> anyhow::Result<Vec<TrialPrompt>> {
    let Some(path) = path else {
        let composed = texts::compose(&texts::built_in(), N_PROMPTS, seed);
        return composed.into_iter().map(|p| prompt(p.id, p.prompt, p.task.as_deref())).collect();
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("--prompts {}", path.display()))?;
    let mut prompts = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let place = || format!("--prompts {}, line {}", path.display(), i + 1);
        let line = if line.trim_start().starts_with('{') {
            serde_json::from_str(line).with_context(place)?
        } else {
            Line { id: None, prompt: line.trim().to_owned(), task: None, _base_text: None }
        };
        let id = line.id.unwrap_or_else(|| format!("line {}", i + 1));
        prompts.push(prompt(id, line.prompt, line.task.as_deref()).with_context(place)?);
    }
    if prompts.is_empty() {
        bail!("--prompts {} has no prompts", path.display());
    }
    Ok(prompts)
}

fn prompt(id: String, text: String, task: Option<&str>) -> anyhow::Result<TrialPrompt> {
    let message = idiolect_backend::Message::user(text.as_str());
    let told = task.map(|task| task.trim_end_matches(|c: char| c.is_ascii_digit()).parse::<Task>()).transpose()?;
    let task = told.unwrap_or_else(|| Task::detect(None, &[message]));
    Ok(TrialPrompt { id, text, task })
}
