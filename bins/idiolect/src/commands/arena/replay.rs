//! `idiolect arena replay`: published runs of validators with one more miner.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_arena::replay::{Paths, Replay, RunReport, answers};
use idiolect_arena::statistics::Interval;
use idiolect_arena::{EmbeddingCache, Replies, ScoreCache};
use idiolect_dataset::History;
use idiolect_miner::backends::Loader;
use idiolect_miner::config::EncoderKind;
use idiolect_miner::progress::{Counter, FetchProgress};
use idiolect_miner::{cli, models};
use serde::Serialize;

use super::contestant::{self, Round};
use super::page;
use super::prompts::{history_arg, of_logs};
use crate::commands::{Usage, json_arg, load, profile, profile_arg, start_logging, timeout};
use crate::output;

pub(super) fn command() -> Command {
    let path = |id: &'static str, name: &'static str| {
        Arg::new(id).long(id).value_name(name).value_parser(value_parser!(PathBuf))
    };
    let command = Command::new("replay")
        .about("Replay published runs of validators with your replies in them: rewards, places, and weights over time")
        .after_help(
            "Every logged step is computed again with one reply more. Rivals keep what was recorded of them, unless the new reply is so near to theirs that the diversity mask \
             would have taken it. Of ours is computed what the texts give: diversity in the batch and against earlier replies, relevance (with mpnet), labels, penalties. What the \
             validators' reward models would have said nobody knows: it is drawn from what they said of the rivals in the same step, or, where the local model of \
             uniqueness.quality_model goes with what they said (Spearman surely above 0), of the fifth of the rivals that it finds as good. Masks whose models are \
             not here are taken to pass. Intervals are of 95 %, over these draws, over steps, and over which steps the miner is asked in.\n\
             Example: idiolect arena prompts history.jsonl > prompts.jsonl; idiolect arena replay history.jsonl --contestant ours.jsonl --encoder mpnet",
        )
        .arg(history_arg())
        .arg(
            path("contestant", "FILE")
                .action(ArgAction::Append)
                .required(true)
                .help("Ready replies, {\"p\": ID, \"m\": NAME, \"t\": TEXT} a line, by the ids of `arena prompts`, or a miner's configuration (.toml), which is asked now; may be given again"),
        )
        .arg(
            Arg::new("run")
                .long("run")
                .value_name("ID")
                .action(ArgAction::Append)
                .help("Only this run; may be given again"),
        )
        .arg(
            Arg::new("asked")
                .long("asked")
                .value_name("SHARE")
                .value_parser(value_parser!(f64))
                .help("Chance that a validator asks the miner in a step [default: the share of miners that it asked]"),
        )
        .arg(
            Arg::new("paths")
                .long("paths")
                .value_name("N")
                .default_value("200")
                .value_parser(value_parser!(u32).range(20..=100_000))
                .help("Draws of a run"),
        )
        .arg(Arg::new("seed").long("seed").value_name("S").default_value("0").value_parser(value_parser!(u64)).help("What is drawn by"))
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("TIME")
                .value_parser(timeout)
                .help("How long a validator waits for a configuration that is asked: seconds, or with a unit [default: 10]"),
        )
        .arg(profile_arg().help("Score every step by this profile [default: by the log's own]"))
        .arg(path("embeddings", "DIR").help("Keep embeddings, scores and replies here for the next run; one that broke off goes on"))
        .arg(page::arg())
        .arg(json_arg());
    cli::key_args(command, |key| {
        key.starts_with("uniqueness.encoder")
            || key == "uniqueness.device"
            || key == "uniqueness.quality_model"
            || key.starts_with("models.")
    })
}

#[derive(Debug, Serialize)]
struct Report {
    encoder: String,
    /// The reward model that is here; `None` where there is none.
    quality: Option<String>,
    paths: Paths,
    contestants: Vec<Contestant>,
}

#[derive(Debug, Serialize)]
struct Contestant {
    name: String,
    runs: Vec<RunReport>,
}

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    start_logging(&loaded)?;
    let config = &loaded.config;
    if config.uniqueness.encoder == EncoderKind::Off {
        let problem = "uniqueness.encoder is off, expected minilm, mpnet or openai: the gate needs an encoder";
        return Err(Usage(problem.to_owned()).into());
    }
    let by_profile = matches.contains_id("profile").then(|| profile(matches, config)).transpose()?;
    let runs: Option<BTreeSet<String>> = matches.get_many::<String>("run").map(|runs| runs.cloned().collect());
    let is_wanted = |run: &str| runs.as_ref().is_none_or(|runs| runs.contains(run));
    let paths = Paths {
        n: matches.get_one::<u32>("paths").map_or(200, |&n| n as usize),
        asked: matches.get_one::<f64>("asked").copied(),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or(0),
        ..Paths::default()
    };
    if let Some(asked) = paths.asked.filter(|asked| !(*asked > 0.0 && *asked <= 1.0)) {
        return Err(Usage(format!("--asked is {asked}, expected more than 0, up to 1")).into());
    }
    let contestants = contestants(matches, &paths, &is_wanted).await?;

    let resolver = models::resolver(&config.models, &cli::process_env())?;
    let progress = FetchProgress::default();
    let loader = Loader { resolver: &resolver, progress: &progress };
    let encoder = loader.encoder(config).await?.context("there is no encoder")?;
    let quality = loader.quality(config).await?;
    let folder = matches.get_one::<PathBuf>("embeddings").map(PathBuf::as_path);
    let mut report = Report {
        encoder: encoder.name().to_owned(),
        quality: quality.as_ref().map(|(_, name)| name.clone()),
        paths,
        contestants: Vec::new(),
    };
    for (name, replies) in contestants {
        let mut replay = Replay::new(encoder.clone(), EmbeddingCache::open(folder, &*encoder)?);
        if let Some(profile) = &by_profile {
            replay = replay.with_profile(profile.clone());
        }
        if let Some((model, of)) = &quality {
            replay = replay.with_local_model(model.clone(), ScoreCache::open(folder, of)?);
        }
        let bar = Counter::new("replaying steps");
        let mut n = 0;
        for path in matches.get_many::<PathBuf>("history").into_iter().flatten() {
            let context = || format!("cannot use {}", path.display());
            for entry in History::open(path).with_context(context)? {
                let entry = entry.with_context(context)?;
                replay.take(&entry, &answers(&replies)).await?;
                n += 1;
                bar.at(n, n);
            }
        }
        bar.close();
        let mut of_runs = Vec::new();
        for run in replay.runs().into_iter().filter(|run| is_wanted(run)) {
            of_runs.extend(replay.season(run, &paths)?.filter(|season| season.steps > 0));
        }
        if of_runs.is_empty() {
            bail!("{name} answers no step of these logs; `idiolect arena prompts` prints the names of all");
        }
        report.contestants.push(Contestant { name, runs: of_runs });
    }
    if let Some(path) = matches.get_one::<PathBuf>("html") {
        let facts = [
            ("paths", report.paths.n.to_string()),
            ("seed", report.paths.seed.to_string()),
            ("encoder", report.encoder.clone()),
            ("local model", report.quality.clone().unwrap_or_else(|| "none".to_owned())),
        ];
        let mut runs = Vec::new();
        for contestant in &report.contestants {
            runs.extend(contestant.runs.iter().map(|run| (contestant.name.as_str(), run)));
        }
        page::save_replay(path, &facts, &runs)?;
    }
    if matches.get_flag("json") { output::json(&report) } else { print(&report) }
}

/// Returns what each contestant answers, by the steps' names.
async fn contestants(
    matches: &ArgMatches,
    paths: &Paths,
    is_wanted: &dyn Fn(&str) -> bool,
) -> anyhow::Result<BTreeMap<String, HashMap<String, String>>> {
    let mut all: BTreeMap<String, HashMap<String, String>> = BTreeMap::new();
    for path in matches.get_many::<PathBuf>("contestant").into_iter().flatten() {
        let context = || format!("--contestant {}", path.display());
        let replies = if path.extension().is_some_and(|extension| extension == "toml") {
            let asked = of_logs(matches, is_wanted)?;
            let round = Round {
                prompts: &asked,
                clones: 0,
                seed: paths.seed,
                timeout: matches.get_one::<Duration>("timeout").copied().unwrap_or(Duration::from_secs(10)),
                folder: matches.get_one::<PathBuf>("embeddings").map(PathBuf::as_path),
            };
            contestant::ask(path, matches, &round).await.with_context(context)?.replies
        } else {
            Replies::open(path).with_context(context)?
        };
        for reply in replies.all() {
            let of_name = all.entry(reply.model.clone()).or_default();
            if of_name.insert(reply.prompt.clone(), reply.text.clone()).is_some() {
                let problem = format!("{}: {} answers {} in two files", context(), reply.model, reply.prompt);
                return Err(Usage(problem).into());
            }
        }
    }
    Ok(all)
}

fn print(report: &Report) -> anyhow::Result<()> {
    let quality = report.quality.as_ref().map_or_else(String::new, |name| format!(", local model {name}"));
    output::say(format!("{} paths, {}{quality}", report.paths.n, report.encoder))?;
    let with = |Interval { value, low, high }: Interval| format!("{value:.3} ({low:.3} to {high:.3})");
    let place = |Interval { value, low, high }: Interval| format!("{value:.1} ({low:.1} to {high:.1})");
    let mut rows = Vec::new();
    for contestant in &report.contestants {
        for run in &contestant.runs {
            rows.push(vec![
                contestant.name.clone(),
                run.run.clone(),
                run.steps.to_string(),
                format!("{:.3}", run.failed_share),
                with(run.masked_share),
                format!("{:.3}", run.mean_penalties),
                with(run.mean_reward),
                format!("{:.3}", run.mean_reward_of_rivals),
                format!("{} of {:.0}", place(run.place_mean), run.mean_rivals + 1.0),
                format!("{} of {}", place(run.final_place), run.n_miners + 1),
                format!("{:.4} ({:.4} to {:.4})", run.weight_share.value, run.weight_share.low, run.weight_share.high),
            ]);
        }
    }
    let head = [
        "name",
        "run",
        "steps",
        "failed",
        "masked",
        "penalties",
        "reward",
        "rivals' reward",
        "place in a step",
        "place at the end",
        "weight at the end",
    ];
    output::columns(&head, &rows)?;
    let mut said = BTreeSet::new();
    for run in report.contestants.iter().flat_map(|contestant| &contestant.runs) {
        let coverage = &run.coverage;
        let imputed = match &run.correlation {
            Some(c) if c.used => format!(
                "from rivals that the local model finds as good (Spearman {}, {} steps)",
                with(c.spearman),
                c.n_steps
            ),
            Some(c) => format!(
                "from any rival of the step, since the local model's scores do not go with what was recorded (Spearman {}, {} steps)",
                with(c.spearman),
                c.n_steps
            ),
            None => "from any rival of the step".to_owned(),
        };
        let lines = format!(
            "{}, {}: computed: {}; drawn {imputed}: {}; taken to pass: {}; asked in a step with a chance of {:.2}",
            run.run,
            run.profile,
            coverage.computed.join(", "),
            coverage.imputed.join(", "),
            if coverage.taken_to_pass.is_empty() { "nothing".to_owned() } else { coverage.taken_to_pass.join(", ") },
            run.asked,
        );
        if said.insert(lines.clone()) {
            output::say(lines)?;
        }
    }
    Ok(())
}
