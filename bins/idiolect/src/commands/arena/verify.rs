//! `idiolect arena verify`: whether what validators logged is what their arithmetic gives.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_arena::EmbeddingCache;
use idiolect_arena::verify::{Basis, Check, Unchecked, Verifier};
use idiolect_dataset::{Counts, History};
use idiolect_miner::backends::Loader;
use idiolect_miner::progress::{Counter, FetchProgress};
use idiolect_miner::{cli, models};
use serde::Serialize;

use crate::commands::{Usage, json_arg, load, start_logging};
use crate::output;

pub(super) fn command() -> Command {
    let command = Command::new("verify")
        .about("Compute the rewards that validators logged anew, and print the largest difference of each factor")
        .after_help(
            "Files are the validators' history: JSON lines or CSV (also .zst or .gz), or Parquet; of openvalidators 1.0 to 1.2 and text-prompting 2. \
             row: computed from other figures of the row (rewards, penalties, the diversity mask). run: from earlier rows, too (normalised scores, moving averages). texts: from the texts \
             (masks, penalties; with --texts-encoder distances and relevance, for which validators used mpnet). What needs a model that is not here is named. \
             Exit code 1 where a figure is further off than the tolerance.\n\
             Example: idiolect arena verify history.jsonl.zst",
        )
        .arg(
            Arg::new("history")
                .value_name("FILE")
                .required(true)
                .num_args(1..)
                .value_parser(value_parser!(PathBuf))
                .help("What validators logged"),
        )
        .arg(
            Arg::new("tolerance")
                .long("tolerance")
                .value_name("X")
                .default_value("0.0001")
                .value_parser(tolerance)
                .help("Differences up to this are none"),
        )
        .arg(
            Arg::new("except")
                .long("except")
                .value_name("FIGURE")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .help("Figures that are shown and do not count, such as those of a log that was made up; may be given again"),
        )
        .arg(
            Arg::new("texts-encoder")
                .long("texts-encoder")
                .action(ArgAction::SetTrue)
                .help("Compute distances and relevance, too, with uniqueness.encoder"),
        )
        .arg(
            Arg::new("embeddings")
                .long("embeddings")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Keep embeddings here for the next run"),
        )
        .arg(json_arg());
    cli::key_args(command, |key| {
        key.starts_with("uniqueness.encoder") || key == "uniqueness.device" || key.starts_with("models.")
    })
}

fn tolerance(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text} is no number"))?;
    if (0.0..1.0).contains(&number) {
        Ok(number)
    } else {
        Err(format!("{text}, expected a number from 0 to less than 1"))
    }
}

#[derive(Debug, Serialize)]
struct Read {
    file: PathBuf,
    rows: u64,
    steps: u64,
    states: u64,
    unknown: u64,
    broken: u64,
    described: Vec<String>,
}

impl Read {
    fn new(file: &std::path::Path, counts: &Counts) -> Self {
        let Counts { rows, steps, states, unknown, broken, described } = counts.clone();
        Self { file: file.to_owned(), rows, steps, states, unknown, broken, described }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    tolerance: f64,
    files: Vec<Read>,
    checks: Vec<Check>,
    unchecked: Vec<Unchecked>,
    except: Vec<String>,
    /// Figures that are off, without those that do not count.
    off: Vec<String>,
}

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    start_logging(&loaded)?;
    let tolerance = matches.get_one::<f64>("tolerance").copied().unwrap_or(1e-4);
    let mut verifier = Verifier::new(tolerance);
    if matches.get_flag("texts-encoder") {
        let config = &loaded.config;
        let resolver = models::resolver(&config.models, &cli::process_env())?;
        let progress = FetchProgress::default();
        let loader = Loader { resolver: &resolver, progress: &progress };
        let encoder = loader.encoder(config).await?.ok_or_else(|| {
            Usage("uniqueness.encoder is off, expected minilm, mpnet or openai with --texts-encoder".to_owned())
        })?;
        let cache = EmbeddingCache::open(matches.get_one::<PathBuf>("embeddings").map(PathBuf::as_path), &*encoder)?;
        verifier = verifier.with_encoder(encoder, cache);
    }
    let mut files = Vec::new();
    for path in matches.get_many::<PathBuf>("history").into_iter().flatten() {
        let context = || format!("cannot use {}", path.display());
        let mut history = History::open(path).with_context(context)?;
        let bar = Counter::new("verifying rows");
        let mut n = 0;
        for entry in history.by_ref() {
            verifier.take(&entry.with_context(context)?).await?;
            n += 1;
            bar.at(n, n);
        }
        bar.close();
        files.push(Read::new(path, history.counts()));
    }
    let except: Vec<String> = matches.get_many::<String>("except").into_iter().flatten().cloned().collect();
    let checks = verifier.checks();
    if let Some(unknown) = except.iter().find(|name| checks.iter().all(|check| check.figure != **name)) {
        let mut known: Vec<&str> = checks.iter().map(|check| check.figure.as_str()).collect();
        known.sort_unstable();
        known.dedup();
        return Err(
            Usage(format!("--except: no figure is called {unknown}, expected one of {}", known.join(", "))).into()
        );
    }
    let is_off = |check: &&Check| check.n_off > 0 && !except.contains(&check.figure);
    let off: Vec<String> = checks.iter().filter(is_off).map(|check| check.figure.clone()).collect();
    let report = Report { tolerance, files, checks, unchecked: verifier.unchecked(), except, off };
    if matches.get_flag("json") {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    if report.checks.iter().all(|check| check.n == 0) {
        bail!("nothing was compared: no row has a figure that can be computed");
    }
    if let [first, ..] = &report.off[..] {
        bail!(
            "{} of {} figures are off by more than {tolerance}, {first} first",
            report.off.len(),
            report.checks.len()
        );
    }
    Ok(())
}

fn print(report: &Report) -> anyhow::Result<()> {
    for Read { file, rows, steps, states, unknown, broken, described } in &report.files {
        output::say(format!(
            "{}: {rows} rows, {steps} steps, {states} states, {unknown} of other software, {broken} broken",
            file.display()
        ))?;
        for problem in described {
            output::say(format!("  {problem}"))?;
        }
    }
    let row = |check: &Check| {
        let basis = match check.basis {
            Basis::Row => "row",
            Basis::Run => "run",
            Basis::Texts => "texts",
        };
        let verdict = match (check.n_off, report.except.contains(&check.figure)) {
            _ if check.n == 0 => "nothing to compare",
            (0, _) => "agrees",
            (_, true) => "off, does not count",
            (_, false) => "OFF",
        };
        vec![
            check.profile.clone(),
            check.figure.clone(),
            basis.to_owned(),
            check.n.to_string(),
            check.n_off.to_string(),
            format!("{:.1e}", check.largest),
            verdict.to_owned(),
            check.at.clone().filter(|_| check.n_off > 0).unwrap_or_default(),
        ]
    };
    let rows: Vec<Vec<String>> = report.checks.iter().map(row).collect();
    output::columns(&["profile", "figure", "from", "compared", "off", "largest", "", "where"], &rows)?;
    for Unchecked { profile, figure, n_steps, reason } in &report.unchecked {
        output::say(format!("not computed: {profile} {figure} of {n_steps} steps, {reason}"))?;
    }
    Ok(())
}
