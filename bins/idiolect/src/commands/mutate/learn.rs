//! `idiolect mutate learn`: what a record of many models' replies teaches the miner's choice.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_arena::lessons::{Asked, Gate};
use idiolect_arena::{Lessons, Replies};
use idiolect_miner::backends::Loader;
use idiolect_miner::config::EncoderKind;
use idiolect_miner::progress::FetchProgress;
use idiolect_miner::{cli, models};
use idiolect_uniqueness::selector::distance_scale;
use serde::Serialize;

use crate::commands::{Usage, json_arg, load, profile, profile_arg, start_logging};
use crate::output;
use crate::record::{asked, embed};

pub(super) fn command() -> Command {
    let path = |id: &'static str, name: &'static str| {
        Arg::new(id).long(id).value_name(name).value_parser(value_parser!(PathBuf))
    };
    let command = Command::new("learn")
        .about("Learn from recorded replies of many models what sort of reply is unlike everybody's, for uniqueness.distinctiveness")
        .after_help(
            "FILE has one reply a line, {\"p\": PROMPT, \"m\": MODEL, \"t\": TEXT}, of ten or more models to each of a hundred or more prompts; the more they are like \
             those that will be asked, the better. A ridge regression predicts how far a reply is from all others' by its embedding, by what can be counted in its \
             text and by how near it is to the prompt. Distances are those of the validators' encoder, mpnet, whichever the miner has, unless --gate says otherwise. The slope says how much of that counts: it is fitted to choices among sets of models, with up to ten rivals seen, beside \
             all that the selector knows without it. Shares of choices that the gate masks, and Brier scores of the chances to be masked, are cross-validated by prompt: lower is better. mutate eval --taught measures \
             the choices.\n\
             Example: idiolect mutate learn --replies arena.jsonl.zst --prompts prompts.jsonl --encoder mpnet --out learnt.json",
        )
        .arg(path("replies", "FILE").required(true).help("Recorded replies: JSON lines, compressed where the name ends in .zst"))
        .arg(path("prompts", "FILE").help("What was asked, {\"p\": ID, \"prompt\": PROMPT} a line"))
        .arg(path("out", "FILE").required(true).help("Where to write what was learnt"))
        .arg(path("embeddings", "DIR").help("Keep embeddings here for the next run; one that broke off goes on"))
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("S")
                .default_value("0")
                .value_parser(value_parser!(u64))
                .help("What the draws start from"),
        )
        .arg(
            Arg::new("gate")
                .long("gate")
                .value_name("ENCODER")
                .default_value("mpnet")
                .value_parser(["mpnet", "same"])
                .help("Whose distances count: mpnet's, as validators take them, or those of uniqueness.encoder in their scale"),
        )
        .arg(profile_arg())
        .arg(json_arg());
    cli::key_args(command, |key| {
        key.starts_with("uniqueness.encoder") || key == "uniqueness.device" || key.starts_with("models.")
    })
}

/// What was learnt.
#[derive(Debug, Serialize)]
struct Report {
    encoder: String,
    n_prompts: usize,
    n_replies: usize,
    slope: f64,
    /// The least and the greatest where a tenth of the prompts is left out.
    slope_range: [f64; 2],
    n_candidates: usize,
    brier_without: f64,
    brier_with: f64,
    n_choices: usize,
    /// Shares of the choices that the gate masks.
    masked_random: f64,
    masked_without: f64,
    masked_with: f64,
    out: PathBuf,
}

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    start_logging(&loaded)?;
    let config = &loaded.config;
    if config.uniqueness.encoder == EncoderKind::Off {
        let problem = "uniqueness.encoder is off, expected minilm or mpnet: what is learnt is learnt of distances";
        return Err(Usage(problem.to_owned()).into());
    }
    let profile = profile(matches, config)?.gate;
    let path = matches.get_one::<PathBuf>("replies").context("name a file of replies")?;
    let out = matches.get_one::<PathBuf>("out").context("name a file to write")?;
    let replies = Replies::open(path).with_context(|| format!("cannot use {}", path.display()))?;
    let prompts = asked(matches)?;
    // Before an hour of encoding.
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(Usage(format!("--out: there is no folder {}", folder.display())).into());
    }
    let resolver = models::resolver(&config.models, &cli::process_env())?;
    let progress = FetchProgress::default();
    let loader = Loader { resolver: &resolver, progress: &progress };
    let encoder = loader.encoder(config).await?.context("there is no encoder")?;
    let is_same = matches.get_one::<String>("gate").is_some_and(|gate| gate == "same");
    let gate = if is_same || config.uniqueness.encoder == EncoderKind::Mpnet {
        None
    } else {
        let mut validators = config.clone();
        validators.uniqueness.encoder = EncoderKind::Mpnet;
        Some(loader.encoder(&validators).await?.context("there is no encoder as validators have it")?)
    };
    let mut texts: Vec<&str> = replies.all().iter().map(|reply| reply.text.as_str()).collect();
    texts.extend(prompts.iter().map(|one| one.text.as_str()));
    let kept = matches.get_one::<PathBuf>("embeddings").map(PathBuf::as_path);
    let mut embeddings = embed(&*encoder, &texts, kept).await?;
    let of_prompts = embeddings.split_off(replies.all().len());
    let asked = prompts.into_iter().zip(of_prompts);
    let asked: HashMap<String, Asked> =
        asked.map(|(one, embedding)| (one.id, Asked { text: one.text, embedding })).collect();
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or(0);
    let by_gate = match gate {
        Some(gate) => {
            let texts: Vec<&str> = replies.all().iter().map(|reply| reply.text.as_str()).collect();
            Some(embed(&*gate, &texts, kept).await?)
        }
        None => None,
    };
    let gate = match &by_gate {
        Some(embeddings) => Gate { embeddings, scale: 1.0 },
        None => Gate { embeddings: &embeddings, scale: distance_scale(encoder.name()) },
    };
    let lessons = Lessons::by_gate(&replies, &embeddings, gate, &asked, profile, seed);
    let context = || format!("cannot learn from {}", path.display());
    let taught = lessons.taught(encoder.name(), seed).with_context(context)?;
    let learnt = lessons.teach(encoder.name(), seed).with_context(context)?;
    fs::write(out, learnt.to_json()).with_context(|| format!("cannot write {}", out.display()))?;
    let [brier_without, brier_with] = taught.brier();
    let [masked_random, masked_without, masked_with] = taught.masked();
    let slopes = || taught.slopes().iter().copied();
    let (n_prompts, n_replies) = learnt.sources();
    let report = Report {
        encoder: encoder.name().to_owned(),
        n_prompts,
        n_replies,
        slope: learnt.slope(),
        slope_range: [slopes().fold(f64::INFINITY, f64::min), slopes().fold(0.0, f64::max)],
        n_candidates: taught.n_cases(),
        brier_without,
        brier_with,
        n_choices: taught.n_choices(),
        masked_random,
        masked_without,
        masked_with,
        out: out.clone(),
    };
    if matches.get_flag("json") {
        return output::json(&report);
    }
    print(&report)
}

fn print(report: &Report) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let Report { n_prompts, n_replies, encoder, slope, slope_range: [low, high], .. } = report;
    writeln!(out, "learnt from {n_replies} replies to {n_prompts} prompts, by {encoder}")?;
    writeln!(out, "slope {slope:.2} ({low:.2} to {high:.2} with a tenth of the prompts left out)")?;
    if *slope == 0.0 {
        writeln!(out, "which says nothing of who is masked: leave it out")?;
    }
    let Report { n_candidates, brier_without, brier_with, .. } = report;
    let Report { n_choices, masked_random, masked_without, masked_with, .. } = report;
    writeln!(
        out,
        "masked of {n_choices} choices: {masked_with:.3} with it, {masked_without:.3} without, {masked_random:.3} at random"
    )?;
    writeln!(
        out,
        "Brier score of {n_candidates} chances to be masked: {brier_with:.4} with it, {brier_without:.4} without"
    )?;
    writeln!(out, "set uniqueness.distinctiveness = {:?}", report.out.display().to_string())?;
    Ok(())
}
