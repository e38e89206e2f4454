//! `idiolect score`: what a validator would have logged of a step.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_backend::Embedder;
use idiolect_miner::backends::{Loader, load_encoder};
use idiolect_miner::config::{BackendConfig, BackendKind, Config, EncoderKind, QualityModel};
use idiolect_miner::progress::FetchProgress;
use idiolect_miner::{cli, models};
use idiolect_models::{Resolver, Spec};
use idiolect_validator::mask::{WordList, WordPiece};
use idiolect_validator::task::TaskKind;
use idiolect_validator::{
    BertPart, Cell, DpoModel, FactorKind, Missing, Models, Profile, Reply, StepReport, StepTask, Validator,
};
use serde_json::{Map, Value, json};

use super::{Usage, json_arg, profile, profile_arg};
use crate::output;

mod replies;
mod reward_models;

/// What switches a model or list off.
const OFF: &str = "off";

/// Texts of the history encoded at a time.
const AT_A_TIME: usize = 64;

pub(crate) fn command() -> Command {
    let command = Command::new("score")
        .about("Compute what a validator would have logged of one step: every factor of each reply's reward")
        .after_help(
            "REPLIES has one reply a line: a JSON string, or an object with \"text\" (or \"completion\") and, if wanted, \"uid\", \
             \"hotkey\", \"process_time\", \"status_code\" (other than 200: the call failed). They are one step: all answers to one prompt.\n\
             What there is no model for is left out and said; nothing is put in its place. docs/scoring.md explains the columns.\n\
             Examples: idiolect score --prompt prompt.txt --encoder mpnet replies.jsonl\n\
             \x20         idiolect score --profile openvalidators-1.2 --prompt p.txt --task answer --json - < replies.jsonl",
        )
        .arg(
            Arg::new("replies")
                .value_name("REPLIES")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("Replies, one a line; - is standard input"),
        )
        .arg(path_arg("prompt").required(true).help("The prompt, as miners got it"))
        .arg(
            Arg::new("task")
                .long("task")
                .value_name("KIND")
                .value_parser(TaskKind::ALL.map(TaskKind::as_str))
                .help("What the prompt asks for; needed only where it fits no template of the validators"),
        )
        .arg(profile_arg());
    let command = model_args(command)
        .arg(path_arg("history").help(
            "Earlier replies, oldest first, for diversity to compare with; one a line, as in REPLIES. Only for a state that has none",
        ))
        .arg(path_arg("state").help(
            "Statistics, counts, moving averages and embeddings of earlier replies: read where the file is there, and written after the step",
        ))
        .arg(json_arg().help("Print one JSON object a reply, one a line, with the names of the validators' logs"));
    cli::key_args(command, |key| {
        key.starts_with("models.") || key == "uniqueness.encoder" || key == "uniqueness.device"
    })
}

fn path_arg(id: &'static str) -> Arg {
    Arg::new(id).long(id).value_name("FILE").value_parser(value_parser!(PathBuf))
}

/// The models and lists that factors are computed by.
fn model_args(command: Command) -> Command {
    command
        .arg(Arg::new("dpo-model").long("model").value_name("MODEL").help(
            "The language model of the dpo reward: alias, hub:…, wheel:… or path; or off, for no dpo [default: the default model, \
             where the profile weighs dpo]",
        ))
        .arg(reward_models::arg())
        .arg(Arg::new("bert").long("bert").value_name("MODEL").help(
            "bert-base-uncased, for the first part of the relevance mask: hub:…, wheel:… or path [default: none]",
        ))
        .arg(path_arg("nsfw-words").value_name("FILE|off").help(
            "Words, one a line, of which each condemns a reply: a stand-in for the nsfw classifier; or off [default: a small list]",
        ))
        .arg(path_arg("vocabulary").help(
            "The tokenizer.json of the n-gram blacklist; validators use bert-base-cased's [default: the encoder's]",
        ))
        .arg(
            Arg::new("missing")
                .long("missing")
                .value_name("WHAT")
                .default_value("renormalise")
                .value_parser(["renormalise", "leave-out", "refuse"])
                .help("What becomes of the weights of reward models that are not there"),
        )
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = super::load(matches)?;
    super::start_logging(&loaded)?;
    let path = |name: &str| matches.get_one::<PathBuf>(name);
    let profile = profile(matches, &loaded.config)?;
    let task = task(path("prompt").context("name a prompt")?, matches.get_one::<String>("task"))?;
    let replies = replies::read(path("replies").context("name a file of replies")?)?;
    if path("history").is_some() && loaded.config.uniqueness.encoder == EncoderKind::Off {
        return Err(Usage("--history counts for nothing with --encoder off".to_owned()).into());
    }
    let history = path("history").map_or(Ok(Vec::new()), |path| crate::replies::read(path))?;
    let missing = match matches.get_one::<String>("missing").map_or("", String::as_str) {
        "refuse" => Missing::Refuse,
        "leave-out" => Missing::LeaveOut,
        _ => Missing::Renormalise,
    };
    let models = load(matches, &loaded.config, &profile).await?;
    let encoder = models.encoder.clone();
    let mut validator = Validator::new(profile, models, missing)?;
    let state = path("state");
    if let Some(state) = state.filter(|state| state.exists()) {
        validator.load(state)?;
        let n_saved = validator.history().map_or(0, idiolect_uniqueness::GateHistory::len);
        if n_saved > 0 && path("history").is_some() {
            bail!(
                "--history is for a state without earlier replies, and {} has {n_saved}; leave it out, or begin another state",
                state.display()
            );
        }
    }
    if let Some(encoder) = &encoder {
        for some in history.chunks(AT_A_TIME) {
            let texts: Vec<String> = some.iter().map(|line| line.text.clone()).collect();
            validator.remember(&encoder.embed(&texts).await.context("the history cannot be encoded")?);
        }
    }
    let n_remembered = validator.history().map_or(0, idiolect_uniqueness::GateHistory::len);
    let report = validator.step(&task, &replies).await?;
    if let Some(state) = state {
        validator.save(state)?;
    }
    if matches.get_flag("json") {
        return describe(&validator, &report, &replies);
    }
    print(&report, &replies)?;
    remarks(&validator, &report, &replies, encoder.as_deref(), n_remembered)
}

/// Reads the prompt as it is or, as editors end files with one, without the last line break.
fn task(path: &Path, told: Option<&String>) -> anyhow::Result<StepTask> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the prompt {}", path.display()))?;
    let prompt = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to() + 1;
        anyhow::anyhow!("the prompt {} is no UTF-8 at byte {at}", path.display())
    })?;
    if prompt.trim().is_empty() {
        bail!("the prompt {} is empty", path.display());
    }
    let told = told.and_then(|told| TaskKind::ALL.into_iter().find(|kind| kind.as_str() == told));
    let cut = prompt.strip_suffix('\n').unwrap_or(&prompt);
    let read = StepTask::read(&prompt, None).or_else(|_| StepTask::read(cut, None));
    let task = match (read, told) {
        (Ok(task), None) => Ok(task),
        (Ok(task), Some(_)) => StepTask::read(&task.prompt, told),
        (Err(_), told) => StepTask::read(cut, told),
    };
    task.map_err(|problem| Usage(format!("--task: {problem}")).into())
}

async fn load(matches: &ArgMatches, config: &Config, profile: &Profile) -> anyhow::Result<Models> {
    let resolver = models::resolver(&config.models, &cli::process_env())?;
    let progress = FetchProgress::default();
    let loader = Loader { resolver: &resolver, progress: &progress };
    let rewards = reward_models::load(matches, profile, &resolver, &progress).await?;
    let mut models = Models { rewards, ..Models::default() };
    if let Some(model) = dpo_model(matches, profile)? {
        let backend = BackendConfig { model: Some(model.to_owned()), ..BackendConfig::of_kind(BackendKind::Candle) };
        let mut config = Config { backends: vec![backend], ..config.clone() };
        config.uniqueness.quality_model = QualityModel::Off;
        let engines = loader.load(&config).await?;
        models.rewards.push(Arc::new(DpoModel::new(engines.pool, profile.dpo)));
        models.encoder = engines.encoder;
    } else {
        models.encoder = loader.encoder(config).await?;
    }
    if let Some(bert) = matches.get_one::<String>("bert") {
        let dir = folder(&resolver, bert, &progress).await?;
        let encoder = load_encoder(bert, &dir, &config.uniqueness.device).await?;
        models.bert = Some(BertPart { encoder, windows: WordPiece::from_file(dir.join("tokenizer.json"))? });
    }
    models.nsfw = match matches.get_one::<PathBuf>("nsfw-words") {
        None => Some(Arc::new(WordList::small())),
        Some(path) if path.as_os_str() == OFF => None,
        Some(path) => {
            let words = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(Arc::new(WordList::of_lines(&words)))
        }
    };
    if let Some(path) = matches.get_one::<PathBuf>("vocabulary") {
        models.ngrams = Some(WordPiece::from_file(path)?);
    } else if config.uniqueness.encoder != EncoderKind::Off {
        let dir = folder(&resolver, config.uniqueness.encoder.as_str(), &progress).await?;
        models.ngrams = Some(WordPiece::from_file(dir.join("tokenizer.json"))?);
    }
    Ok(models)
}

/// Returns the language model of the dpo reward; `None` where there is none, or nothing to have one for.
///
/// # Errors
/// [`Usage`] for a model that the profile has no weight for.
fn dpo_model<'a>(matches: &'a ArgMatches, profile: &Profile) -> Result<Option<&'a str>, Usage> {
    let is_weighed = profile.rewards.get("dpo").is_some_and(|weight| *weight != 0.0);
    match matches.get_one::<String>("dpo-model").map(String::as_str) {
        Some(OFF) => Ok(None),
        Some(model) if !is_weighed => Err(Usage(format!("--model {model}: {} gives dpo no weight", profile.name))),
        Some(model) => Ok(Some(model)),
        // Without the local engine nothing could run it.
        None => Ok((is_weighed && cfg!(feature = "candle")).then_some(idiolect_models::DEFAULT_MODEL)),
    }
}

async fn folder(resolver: &Resolver, spec: &str, progress: &FetchProgress) -> anyhow::Result<PathBuf> {
    Ok(resolver.resolve(&spec.parse::<Spec>()?, progress).await?.dir)
}

/// Prints one object a reply.
fn describe(validator: &Validator, report: &StepReport, replies: &[Reply]) -> anyhow::Result<()> {
    let missing: Vec<&str> = report.missing.iter().map(|missing| missing.name.as_str()).collect();
    let columns = report.log_columns();
    for (i, reply) in replies.iter().enumerate() {
        let mut object = Map::new();
        let mut put = |name: &str, value: Value| drop(object.insert(name.to_owned(), value));
        put("uid", reply.uid.into());
        put("hotkey", reply.hotkey.clone().into());
        put("process_time", reply.process_time.into());
        put("succeeded", reply.succeeded.into());
        put("profile", validator.profile().name.as_str().into());
        put("task", report.kind.as_str().into());
        columns.iter().for_each(|column| put(&column.name, json!(column.cells[i])));
        if report.rewards.is_none() {
            put("rewards", Value::Null);
        }
        put("moving_average", report.moving_average[i].into());
        put("weight", report.weights[i].into());
        put("best", (report.best == Some(i)).into());
        put("missing", json!(missing));
        output::say(serde_json::to_string(&object)?)?;
    }
    Ok(())
}

fn print(report: &StepReport, replies: &[Reply]) -> anyhow::Result<()> {
    let mut columns: Vec<(String, Vec<String>)> = Vec::new();
    columns.push(("uid".to_owned(), replies.iter().map(|reply| reply.uid.to_string()).collect()));
    if replies.iter().any(|reply| reply.hotkey.is_some()) {
        // The beginning tells them apart.
        let short = |key: &String| key.chars().take(8).collect();
        let keys = replies.iter().map(|reply| reply.hotkey.as_ref().map_or_else(dash, short));
        columns.push(("hotkey".to_owned(), keys.collect()));
    }
    if replies.iter().any(|reply| reply.process_time.is_some()) {
        let times = replies.iter().map(|reply| reply.process_time.map_or_else(dash, |time| format!("{time:.2}")));
        columns.push(("time s".to_owned(), times.collect()));
    }
    for factor in &report.factors {
        let applied = factor.applied.iter().map(|&value| figure(value)).collect();
        if matches!(factor.kind, FactorKind::RewardModel { .. }) || factor.name == "diversity" {
            let raw = factor.raw.iter().map(|value| value.map_or_else(dash, figure)).collect();
            columns.push((format!("{} raw", factor.name), raw));
        }
        columns.push((factor.name.clone(), applied));
    }
    if let Some(rewards) = &report.rewards {
        columns.push(("reward".to_owned(), rewards.iter().map(|&reward| figure(reward)).collect()));
        let averages = report.moving_average.iter().map(|average| format!("{average:.5}"));
        columns.push(("average".to_owned(), averages.collect()));
        let weights = report.weights.iter().map(|weight| format!("{weight:.5}"));
        columns.push(("weight".to_owned(), weights.collect()));
    }
    let head: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let row = |i: usize| columns.iter().map(|(_, cells)| cells[i].clone()).collect();
    Ok(output::columns(&head, &(0..replies.len()).map(row).collect::<Vec<_>>())?)
}

fn dash() -> String {
    "-".to_owned()
}

/// A figure with four decimals, or fewer where these are noughts.
fn figure(value: f32) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Says what the figures do not tell by themselves.
fn remarks(
    validator: &Validator,
    report: &StepReport,
    replies: &[Reply],
    encoder: Option<&dyn Embedder>,
    n_remembered: usize,
) -> anyhow::Result<()> {
    let profile = validator.profile();
    output::say(format!("\n{}, {}, step {}", profile.name, report.kind, validator.n_steps()))?;
    if let Some(factor) = report.factor("blacklist") {
        let phrases = factor.details.iter().find(|column| column.name.ends_with("_matched_ngram"));
        for (reply, cell) in replies.iter().zip(phrases.into_iter().flat_map(|column| &column.cells)) {
            if let Cell::Text(phrase) = cell {
                output::say(format!("uid {} has the stock phrase {phrase:?}", reply.uid))?;
            }
        }
    }
    let weights = report.factors.iter().filter_map(|factor| match factor.kind {
        FactorKind::RewardModel { weight } => Some(format!("{} {}", factor.name, (weight * 1e4).round() / 1e4)),
        FactorKind::Mask | FactorKind::Penalty => None,
    });
    let weights: Vec<String> = weights.collect();
    for missing in &report.missing {
        let weight = missing.weight.map_or_else(String::new, |weight| format!(" (weight {weight})"));
        output::say(format!("missing: {}{weight}, which needs {}", missing.name, missing.needs))?;
    }
    if report.rewards.is_none() {
        output::say(
            "no rewards: there is no reward model; --model gives the one that a language model computes, --reward the others",
        )?;
    } else if !report.missing.is_empty() {
        output::say(format!("rewards without what is missing; weights: {}", weights.join(", ")))?;
    }
    let needed = profile.gate.history_skip + profile.gate.history_rank;
    if report.factor("diversity").is_some() && n_remembered < needed {
        output::say(format!(
            "no historic reward: {n_remembered} earlier replies are known, and {} compares from {needed} on",
            profile.name
        ))?;
    }
    if let Some(encoder) = encoder.filter(|encoder| idiolect_uniqueness::selector::distance_scale(encoder.name()) < 1.0)
    {
        output::say(format!(
            "{} sees larger distances than the validators' encoder: --encoder mpnet is theirs",
            encoder.name()
        ))?;
    }
    Ok(())
}
