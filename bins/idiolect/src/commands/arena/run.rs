//! `idiolect arena run`: a tournament against a recorded population.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_arena::scores::normalised;
use idiolect_arena::statistics::Interval;
use idiolect_arena::{AskedPrompt, Replies, Rules, ScoreCache, Standing, StepRecord, Tournament, live};
use idiolect_backend::{Embedder, Embedding};
use idiolect_miner::backends::Loader;
use idiolect_miner::config::EncoderKind;
use idiolect_miner::progress::{Counter, FetchProgress};
use idiolect_miner::{cli, models};
use idiolect_uniqueness::vectors::{dot, normalised as normalised_vector};
use idiolect_validator::{Mask, Profile, RewardModel, RewardText, StepTask};
use serde::Serialize;

use super::contestant::{self, Round};
use crate::commands::{Usage, json_arg, load, profile, profile_arg, start_logging, timeout};
use crate::output;
use crate::record::embed;

pub(super) fn command() -> Command {
    let path = |id: &'static str, name: &'static str| {
        Arg::new(id).long(id).value_name(name).value_parser(value_parser!(PathBuf))
    };
    let command = Command::new("run")
        .about("Let replies compete with a recorded population: masked share, rewards, places, weights")
        .after_help(
            "A population is a file of replies, {\"p\": PROMPT, \"m\": MODEL, \"t\": TEXT, \"q\": LABEL} a line, or a folder with replies.jsonl or replies.jsonl.zst and, if wanted, \
             prompts.jsonl, {\"id\": PROMPT, \"prompt\": TEXT} a line. A step is a prompt and a batch of replies to it, drawn at random from the population's. A contestant \
             takes the place of the last one drawn; several do not meet each other. Each m of a contestant's file is one, but NAME#1, NAME#2 and so on are its \
             copies for --clones. A configuration's name is its file's; its whole pipeline is asked, with a history of its own, and its copies with other seeds. Its replies are kept with the \
             embeddings until anything of it changes.\n\
             masked: share of the steps that the gate masks, with an interval of 95 % by a bootstrap over prompts. batch reward: of the distance to the nearest other reply. \
             reward: what passes earns its quality, less what the penalties of validators' prompts take (criteria, labels of other tasks, stock openings); quality, with prompts, is the normalised dpo reward by uniqueness.quality_model, and 1 without. \
             failed: share of calls without a reply, which earn nothing. irrelevant: share of replies to validators' prompts that are too far from the base text, with mpnet, which earn nothing. place: in the batch by reward, the mean of those that share it; 5 % and 95 % are quantiles over steps. weight: share of the weights after the last step by the validators' moving \
             average. label: mean of the judge's labels, which count for nothing. The history of earlier replies has no part.\n\
             Example: idiolect arena run --population arena --contestant ours.jsonl --batch 50 --steps 300 --encoder mpnet",
        )
        .arg(path("population", "DIR|FILE").required(true).help("Replies of many models to the same prompts"))
        .arg(path("prompts", "FILE").help("What was asked [default: prompts.jsonl of the folder]"))
        .arg(path("contestant", "FILE").action(ArgAction::Append).help("Ready replies to the same prompts, or a miner's configuration (.toml), which is asked now; may be given again"))
        .arg(
            Arg::new("batch")
                .long("batch")
                .value_name("N")
                .default_value("50")
                .value_parser(value_parser!(u16).range(2..=1000))
                .help("Replies of a batch, the contestant's among them; with fewer models all of them"),
        )
        .arg(
            Arg::new("steps")
                .long("steps")
                .value_name("N")
                .value_parser(value_parser!(u32).range(1..=1_000_000))
                .help("Steps [default: one for each prompt]"),
        )
        .arg(
            Arg::new("clones")
                .long("clones")
                .value_name("C")
                .default_value("0")
                .value_parser(value_parser!(u16).range(0..=500))
                .help("Copies of each contestant that take part beside it"),
        )
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("S")
                .default_value("0")
                .value_parser(value_parser!(u64))
                .help("What batches are drawn by"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("TIME")
                .value_parser(timeout)
                .help("How long a validator waits for a configuration that is asked: seconds, or with a unit [default: 10]"),
        )
        .arg(profile_arg())
        .arg(path("embeddings", "DIR").help("Keep embeddings and scores here for the next run; one that broke off goes on"))
        .arg(
            Arg::new("verbose")
                .long("verbose")
                .action(ArgAction::SetTrue)
                .requires("json")
                .help("With --json: each batch with everybody in it, too"),
        )
        .arg(json_arg());
    cli::key_args(command, |key| {
        key.starts_with("uniqueness.encoder")
            || key == "uniqueness.device"
            || key == "uniqueness.quality_model"
            || key.starts_with("models.")
    })
}

/// The bound of the relevance mask says nothing of another one's cosines.
const VALIDATORS_ENCODER: &str = "all-mpnet-base-v2";

/// What came of a tournament.
#[derive(Debug, Serialize)]
struct Report {
    rules: Rules,
    profile: String,
    encoder: String,
    /// The reward model; `None` where everybody's quality is 1.
    quality: Option<String>,
    n_models: usize,
    n_prompts: usize,
    n_left_out: usize,
    standings: Vec<Standing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<StepRecord>>,
}

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    start_logging(&loaded)?;
    let config = &loaded.config;
    if config.uniqueness.encoder == EncoderKind::Off {
        let problem = "uniqueness.encoder is off, expected minilm, mpnet or openai: the gate needs an encoder";
        return Err(Usage(problem.to_owned()).into());
    }
    let rules = profile(matches, config)?;
    let population = matches.get_one::<PathBuf>("population").context("name a population")?;
    let (replies_at, prompts_at) = places(population, matches.get_one::<PathBuf>("prompts"))?;
    let mut replies = Replies::open(&replies_at).with_context(|| format!("cannot use {}", replies_at.display()))?;
    let prompts = match &prompts_at {
        Some(path) => AskedPrompt::open(path).with_context(|| format!("cannot use {}", path.display()))?,
        None => Vec::new(),
    };
    let contestants = join(&mut replies, &prompts, matches).await?;
    let number = |name: &str| matches.get_one::<u16>(name).map_or(0, |&n| usize::from(n));
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or(0);
    let none = vec![Vec::new(); replies.all().len()];
    // Before an hour of encoding, whatever is wrong with names and rules.
    let dry = Tournament::new(&replies, &none, &contestants, &rules)?;
    let steps = matches.get_one::<u32>("steps").map_or(dry.n_prompts(), |&n| n as usize);
    let how = Rules { batch: number("batch"), steps, clones: number("clones"), seed };
    dry.play(&Rules { steps: 1, ..how }, &mut |_| ())?;

    let resolver = models::resolver(&config.models, &cli::process_env())?;
    let progress = FetchProgress::default();
    let loader = Loader { resolver: &resolver, progress: &progress };
    let encoder = loader.encoder(config).await?.context("there is no encoder")?;
    let folder = matches.get_one::<PathBuf>("embeddings").map(PathBuf::as_path);
    let texts: Vec<&str> = replies.all().iter().map(|reply| reply.text.as_str()).collect();
    let embeddings = embed(&*encoder, &texts, folder).await?;
    let model = if prompts.is_empty() { None } else { loader.quality(config).await? };
    let tasks = tasks(&prompts);
    let qualities = match &model {
        Some((model, _)) => Some(qualities(&**model, &rules, &replies, &prompts, folder).await?),
        None => None,
    };
    let penalties = penalties(&rules, &replies, &tasks).await?;

    let mut tournament = Tournament::new(&replies, &embeddings, &contestants, &rules)?;
    if let Some(qualities) = &qualities {
        tournament = tournament.with_qualities(qualities)?;
    }
    if penalties.iter().any(Option::is_some) {
        tournament = tournament.with_penalties(&penalties)?;
    }
    let irrelevant = irrelevant(&rules, &*encoder, &replies, &embeddings, &tasks, folder).await?;
    if let Some(irrelevant) = &irrelevant {
        tournament = tournament.with_irrelevant(irrelevant)?;
    }
    let mut steps = matches.get_flag("verbose").then(Vec::new);
    let bar = Counter::new("steps");
    let standings = tournament.play(&how, &mut |step| {
        bar.at(step.step + 1, how.steps);
        if let Some(steps) = &mut steps {
            steps.push(step);
        }
    })?;
    bar.close();
    let report = Report {
        rules: how,
        profile: rules.name.clone(),
        encoder: encoder.name().to_owned(),
        quality: model.map(|(_, name)| name),
        n_models: tournament.n_models(),
        n_prompts: tournament.n_prompts(),
        n_left_out: tournament.n_left_out(),
        standings,
        steps,
    };
    if matches.get_flag("json") { output::json(&report) } else { print(&report) }
}

/// Returns where the replies are, and what was asked.
fn places(population: &Path, prompts: Option<&PathBuf>) -> anyhow::Result<(PathBuf, Option<PathBuf>)> {
    if !population.is_dir() {
        return Ok((population.to_owned(), prompts.cloned()));
    }
    let names = ["replies.jsonl", "replies.jsonl.zst"];
    let replies = names.iter().map(|name| population.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        Usage(format!("--population: {} has neither {} nor {}", population.display(), names[0], names[1]))
    })?;
    let beside = Some(population.join("prompts.jsonl")).filter(|path| path.is_file());
    Ok((replies, prompts.cloned().or(beside)))
}

/// Adds the contestants' replies to the population's, and returns their names.
async fn join(replies: &mut Replies, prompts: &[AskedPrompt], matches: &ArgMatches) -> anyhow::Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let by_prompt: BTreeSet<String> = replies.by_prompt().into_keys().map(str::to_owned).collect();
    let asked: Vec<AskedPrompt> = prompts.iter().filter(|asked| by_prompt.contains(&asked.id)).cloned().collect();
    let round = Round {
        prompts: &asked,
        clones: matches.get_one::<u16>("clones").map_or(0, |&n| n.into()),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or(0),
        timeout: matches.get_one::<Duration>("timeout").copied().unwrap_or(Duration::from_secs(10)),
        folder: matches.get_one::<PathBuf>("embeddings").map(PathBuf::as_path),
    };
    for path in matches.get_many::<PathBuf>("contestant").into_iter().flatten() {
        let context = || format!("--contestant {}", path.display());
        let is_config = path.extension().is_some_and(|extension| extension == "toml");
        if is_config && asked.is_empty() {
            return Err(Usage(format!(
                "{}: a configuration is asked, expected --prompts that the population answers",
                context()
            ))
            .into());
        }
        let own = if is_config {
            contestant::ask(path, matches, &round).await
        } else {
            Replies::open(path).map_err(Into::into)
        };
        let own = own.with_context(context)?;
        let copies = |name: &str| name.rsplit_once('#').is_some_and(|(_, n)| n.parse::<u32>().is_ok());
        let found: BTreeSet<&str> =
            own.all().iter().map(|reply| reply.model.as_str()).filter(|name| !copies(name)).collect();
        let known: BTreeSet<&str> = replies.all().iter().map(|reply| reply.model.as_str()).collect();
        if let Some(both) = found.iter().find(|name| known.contains(**name)) {
            let problem = format!("{}: {both} is in the population, too, expected a name of its own", context());
            return Err(Usage(problem).into());
        }
        names.extend(found.into_iter().map(str::to_owned));
        replies.join(own).with_context(context)?;
    }
    Ok(names)
}

/// Returns the prompts that are validators' own, by their ids.
fn tasks(prompts: &[AskedPrompt]) -> HashMap<&str, StepTask> {
    let task = |asked: &AskedPrompt| StepTask::read(&asked.text, None).ok();
    prompts.iter().filter_map(|asked| Some((asked.id.as_str(), task(asked)?))).collect()
}

/// Returns the normalised reward of each reply, against the text that validators compute it against.
async fn qualities(
    model: &dyn RewardModel,
    rules: &Profile,
    replies: &Replies,
    prompts: &[AskedPrompt],
    folder: Option<&Path>,
) -> anyhow::Result<Vec<f32>> {
    let tasks = tasks(prompts);
    let against = |asked: &'_ AskedPrompt| match tasks.get(asked.id.as_str()) {
        Some(task) if rules.reward_text == RewardText::BaseText => task.base_text.clone(),
        _ => asked.text.clone(),
    };
    let by_id: HashMap<&str, String> = prompts.iter().map(|asked| (asked.id.as_str(), against(asked))).collect();
    let mut pairs: Vec<(&str, &str)> = Vec::with_capacity(replies.all().len());
    let mut order: Vec<usize> = Vec::with_capacity(replies.all().len());
    for (prompt, members) in replies.by_prompt() {
        let asked = by_id.get(prompt).with_context(|| format!("--prompts does not have {prompt}"))?;
        for index in members {
            pairs.push((asked, replies.all()[index].text.as_str()));
            order.push(index);
        }
    }
    let mut cache = ScoreCache::open(folder, model.name())?;
    let bar = Counter::new("scoring replies");
    let scores = cache.scores(model, &pairs, &mut |done, all| bar.at(done, all)).await;
    bar.close();
    let mut qualities = vec![0.0; replies.all().len()];
    for (index, placed) in order.into_iter().zip(normalised(&scores?, model.lowest())) {
        qualities[index] = placed;
    }
    Ok(qualities)
}

/// Returns what penalties take of each reply to a prompt of a validator's, in [0, 1]: criteria, other tasks' labels, stock openings.
async fn penalties(
    rules: &Profile,
    replies: &Replies,
    tasks: &HashMap<&str, StepTask>,
) -> anyhow::Result<Vec<Option<f64>>> {
    let mut taken = vec![None; replies.all().len()];
    if rules.penalties.is_none() {
        return Ok(taken);
    }
    for (prompt, members) in replies.by_prompt() {
        let Some(task) = tasks.get(prompt) else { continue };
        let texts: Vec<&str> = members.iter().map(|&index| replies.all()[index].text.as_str()).collect();
        for (index, of_reply) in members.into_iter().zip(live::penalties(rules, task, &texts).await?) {
            taken[index] = Some(of_reply);
        }
    }
    Ok(taken)
}

/// Says of each reply whether the encoder's part of the relevance mask takes it; `None` where the profile has no such mask, no prompt is a
/// validator's, or the encoder is another than theirs, whose bound it is.
async fn irrelevant(
    rules: &Profile,
    encoder: &dyn Embedder,
    replies: &Replies,
    embeddings: &[Embedding],
    tasks: &HashMap<&str, StepTask>,
    folder: Option<&Path>,
) -> anyhow::Result<Option<Vec<bool>>> {
    if !rules.masks.contains(&Mask::Relevance) || tasks.is_empty() || encoder.name() != VALIDATORS_ENCODER {
        return Ok(None);
    }
    let by_prompt = replies.by_prompt();
    let asked: Vec<(&StepTask, &Vec<usize>)> =
        by_prompt.iter().filter_map(|(prompt, members)| Some((tasks.get(prompt)?, members))).collect();
    let texts: Vec<&str> = asked.iter().map(|(task, _)| task.base_text.as_str()).collect();
    let bases = embed(encoder, &texts, folder).await?;
    let mut irrelevant = vec![false; replies.all().len()];
    for ((_, members), base) in asked.into_iter().zip(&bases) {
        for &index in members {
            irrelevant[index] = cosine(base, &embeddings[index]).abs() < f64::from(rules.relevance.mpnet);
        }
    }
    Ok(Some(irrelevant))
}

/// Returns the cosine of the angle between two embeddings; 0 where one has no direction.
fn cosine(a: &Embedding, b: &Embedding) -> f64 {
    match (normalised_vector(a), normalised_vector(b)) {
        (Some(a), Some(b)) if a.len() == b.len() => f64::from(dot(&a, &b)),
        _ => 0.0,
    }
}

fn print(report: &Report) -> anyhow::Result<()> {
    let Report { rules, profile, encoder, quality, n_models, n_prompts, n_left_out, .. } = report;
    let quality = quality.as_ref().map_or_else(|| "quality 1 for all".to_owned(), |name| format!("quality by {name}"));
    output::say(format!(
        "{} steps with batches of {} from {n_models} models, {n_prompts} prompts, {profile}, {encoder}, {quality}",
        rules.steps, rules.batch
    ))?;
    if *n_left_out > 0 {
        output::say(format!("{n_left_out} prompts left out, which not all contestants answer, or nobody else"))?;
    }
    let figure = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
    let with = |Interval { value, low, high }: Interval| format!("{value:.3} ({low:.3} to {high:.3})");
    let row = |standing: &Standing| {
        vec![
            if standing.contestant { format!("> {}", standing.name) } else { format!("  {}", standing.name) },
            standing.steps.to_string(),
            format!("{:.3}", standing.failed_share),
            format!("{:.3}", standing.irrelevant_share),
            with(standing.intervals.masked_share),
            format!("{:.3}", standing.mean_batch_reward),
            with(standing.intervals.mean_reward),
            format!("{:.1}", standing.place_mean),
            format!("{:.1}", standing.place_p05),
            format!("{:.1}", standing.place_p95),
            format!("{:.4}", standing.weight_share),
            figure(standing.mean_quality),
            figure(standing.mean_penalties),
            figure(standing.mean_label),
        ]
    };
    let rows: Vec<Vec<String>> = report.standings.iter().map(row).collect();
    let head = [
        "  name",
        "steps",
        "failed",
        "irrelevant",
        "masked",
        "batch reward",
        "reward",
        "place",
        "5 %",
        "95 %",
        "weight",
        "quality",
        "penalties",
        "label",
    ];
    Ok(output::columns(&head, &rows)?)
}
