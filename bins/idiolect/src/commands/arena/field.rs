//! What tournaments are played over: a population, contestants, and everything that is known of their replies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_arena::scores::normalised;
use idiolect_arena::whatif::Effort;
use idiolect_arena::{AskedPrompt, Replies, Rules, ScoreCache, Tournament, live};
use idiolect_backend::{Embedder, Embedding};
use idiolect_miner::backends::Loader;
use idiolect_miner::config::EncoderKind;
use idiolect_miner::progress::{Counter, FetchProgress};
use idiolect_miner::{cli, models};
use idiolect_uniqueness::vectors::{dot, normalised as normalised_vector};
use idiolect_validator::{Mask, Profile, RewardModel, RewardText, StepTask};

use super::contestant::{self, Contestants, Round};
use crate::commands::{Usage, load, profile, profile_arg, start_logging, timeout};
use crate::record::embed;

/// The bound of the relevance mask says nothing of another one's cosines.
const VALIDATORS_ENCODER: &str = "all-mpnet-base-v2";

/// Adds the arguments of commands that play tournaments, but for those that name contestants.
pub(in crate::commands) fn args(command: Command) -> Command {
    let path = |id: &'static str, name: &'static str| {
        Arg::new(id).long(id).value_name(name).value_parser(value_parser!(PathBuf))
    };
    let command = command
        .arg(path("population", "DIR|FILE").required(true).help("Replies of many models to the same prompts"))
        .arg(path("prompts", "FILE").help("What was asked [default: prompts.jsonl of the folder]"))
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
        .arg(Arg::new("timeout").long("timeout").value_name("TIME").value_parser(timeout).help(
            "How long a validator waits for a configuration that is asked: seconds, or with a unit [default: 10]",
        ))
        .arg(profile_arg())
        .arg(
            path("embeddings", "DIR")
                .help("Keep embeddings and scores here for the next run; one that broke off goes on"),
        );
    cli::key_args(command, |key| {
        key.starts_with("uniqueness.encoder")
            || key == "uniqueness.device"
            || key == "uniqueness.quality_model"
            || key.starts_with("models.")
    })
}

/// A population and its contestants, all replies encoded and scored.
pub(in crate::commands) struct Field {
    pub(in crate::commands) how: Rules,
    pub(in crate::commands) profile: Profile,
    pub(in crate::commands) encoder: String,
    /// The reward model; `None` where everybody's quality is 1.
    pub(in crate::commands) quality: Option<String>,
    /// The contestants' names, by the file that has them.
    pub(in crate::commands) names: Vec<Vec<String>>,
    /// What asking them took, by name and prompt.
    pub(in crate::commands) efforts: BTreeMap<String, BTreeMap<String, Effort>>,
    /// The hashes of those that are configurations, by name.
    pub(in crate::commands) configurations: BTreeMap<String, String>,
    /// All of their names.
    all: Vec<String>,
    replies: Replies,
    embeddings: Vec<Embedding>,
    qualities: Option<Vec<f32>>,
    penalties: Vec<Option<f64>>,
    irrelevant: Option<Vec<bool>>,
}

impl Field {
    /// Reads the population and the contestants, asks those that are configurations, and encodes and scores all replies.
    ///
    /// # Errors
    /// Where a file cannot be used, a model is not there, or the rules cannot be played by.
    pub(in crate::commands) async fn prepare(matches: &ArgMatches, contestants: &[PathBuf]) -> anyhow::Result<Self> {
        let loaded = load(matches)?;
        start_logging(&loaded)?;
        let config = &loaded.config;
        if config.uniqueness.encoder == EncoderKind::Off {
            let problem = "uniqueness.encoder is off, expected minilm, mpnet or openai: the gate needs an encoder";
            return Err(Usage(problem.to_owned()).into());
        }
        let profile = profile(matches, config)?;
        let population = matches.get_one::<PathBuf>("population").context("name a population")?;
        let (replies_at, prompts_at) = places(population, matches.get_one::<PathBuf>("prompts"))?;
        let mut replies = Replies::open(&replies_at).with_context(|| format!("cannot use {}", replies_at.display()))?;
        let prompts = match &prompts_at {
            Some(path) => AskedPrompt::open(path).with_context(|| format!("cannot use {}", path.display()))?,
            None => Vec::new(),
        };
        let Joined { names, efforts, configurations } = join(&mut replies, &prompts, contestants, matches).await?;
        let number = |name: &str| matches.get_one::<u16>(name).map_or(0, |&n| usize::from(n));
        let seed = matches.get_one::<u64>("seed").copied().unwrap_or(0);
        let none = vec![Vec::new(); replies.all().len()];
        // Before an hour of encoding, whatever is wrong with names and rules.
        let all = names.concat();
        let dry = Tournament::new(&replies, &none, &all, &profile)?;
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
            Some((model, name)) => Some(qualities((&**model, name), &profile, &replies, &prompts, folder).await?),
            None => None,
        };
        let penalties = penalties(&profile, &replies, &tasks).await?;
        let irrelevant = irrelevant(&profile, &*encoder, &replies, &embeddings, &tasks, folder).await?;
        let (encoder, quality) = (encoder.name().to_owned(), model.map(|(_, name)| name));
        Ok(Self {
            how,
            profile,
            encoder,
            quality,
            names,
            efforts,
            configurations,
            all,
            replies,
            embeddings,
            qualities,
            penalties,
            irrelevant,
        })
    }

    /// Returns the tournament of all contestants.
    ///
    /// # Errors
    /// Where the rules cannot be played by.
    pub(in crate::commands) fn tournament(&self) -> anyhow::Result<Tournament<'_>> {
        let mut tournament = Tournament::new(&self.replies, &self.embeddings, &self.all, &self.profile)?;
        if let Some(qualities) = &self.qualities {
            tournament = tournament.with_qualities(qualities)?;
        }
        if self.penalties.iter().any(Option::is_some) {
            tournament = tournament.with_penalties(&self.penalties)?;
        }
        if let Some(irrelevant) = &self.irrelevant {
            tournament = tournament.with_irrelevant(irrelevant)?;
        }
        Ok(tournament)
    }
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

/// The contestants' names by file, what asking them took, and the hashes of those that are configurations.
struct Joined {
    names: Vec<Vec<String>>,
    efforts: BTreeMap<String, BTreeMap<String, Effort>>,
    configurations: BTreeMap<String, String>,
}

/// Adds the contestants' replies to the population's.
async fn join(
    replies: &mut Replies,
    prompts: &[AskedPrompt],
    contestants: &[PathBuf],
    matches: &ArgMatches,
) -> anyhow::Result<Joined> {
    let mut names: Vec<Vec<String>> = Vec::new();
    let (mut efforts, mut configurations) = (BTreeMap::new(), BTreeMap::new());
    let by_prompt: BTreeSet<String> = replies.by_prompt().into_keys().map(str::to_owned).collect();
    let asked: Vec<AskedPrompt> = prompts.iter().filter(|asked| by_prompt.contains(&asked.id)).cloned().collect();
    let round = Round {
        prompts: &asked,
        clones: matches.get_one::<u16>("clones").map_or(0, |&n| n.into()),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or(0),
        timeout: matches.get_one::<Duration>("timeout").copied().unwrap_or(Duration::from_secs(10)),
        folder: matches.get_one::<PathBuf>("embeddings").map(PathBuf::as_path),
    };
    let flag = if matches.try_contains_id("contestant").is_ok() { "--contestant " } else { "" };
    for path in contestants {
        let context = || format!("{flag}{}", path.display());
        let is_config = path.extension().is_some_and(|extension| extension == "toml");
        if is_config && asked.is_empty() {
            return Err(Usage(format!(
                "{}: a configuration is asked, expected --prompts that the population answers",
                context()
            ))
            .into());
        }
        let own = if is_config { contestant::ask(path, matches, &round).await } else { contestant::read(path) };
        let Contestants { replies: own, efforts: took, configuration } = own.with_context(context)?;
        configurations.extend(configuration);
        let copies = |name: &str| name.rsplit_once('#').is_some_and(|(_, n)| n.parse::<u32>().is_ok());
        let found: BTreeSet<&str> =
            own.all().iter().map(|reply| reply.model.as_str()).filter(|name| !copies(name)).collect();
        let known: BTreeSet<&str> = replies.all().iter().map(|reply| reply.model.as_str()).collect();
        if let Some(both) = found.iter().find(|name| known.contains(**name)) {
            let place = if names.iter().flatten().any(|name| name == both) {
                "another contestant"
            } else {
                "in the population, too"
            };
            let problem = format!("{}: {both} is {place}, expected a name of its own", context());
            return Err(Usage(problem).into());
        }
        names.push(found.into_iter().map(str::to_owned).collect());
        efforts.extend(took);
        replies.join(own).with_context(context)?;
    }
    Ok(Joined { names, efforts, configurations })
}

/// Returns the prompts that are validators' own, by their ids.
fn tasks(prompts: &[AskedPrompt]) -> HashMap<&str, StepTask> {
    let task = |asked: &AskedPrompt| StepTask::read(&asked.text, None).ok();
    prompts.iter().filter_map(|asked| Some((asked.id.as_str(), task(asked)?))).collect()
}

/// Returns the normalised reward of each reply, against the text that validators compute it against.
async fn qualities(
    (model, name): (&dyn RewardModel, &str),
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
    let mut cache = ScoreCache::open(folder, name)?;
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
