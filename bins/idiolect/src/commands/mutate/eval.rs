//! `idiolect mutate eval`: how many replies the gate would have masked, by who chose them, on a recorded population.

mod live;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_arena::experiment::{Spread, gap_closed};
use idiolect_arena::lessons::Asked;
use idiolect_arena::scores::normalised;
use idiolect_arena::statistics::{Interval, bootstrap, holm, sign_flip};
use idiolect_arena::{Choice, EmbeddingCache, Experiment, Lessons, Outcome, Replies, ScoreCache, lines};
use idiolect_backend::{Embedder, Embedding};
use idiolect_miner::backends::Loader;
use idiolect_miner::config::EncoderKind;
use idiolect_miner::progress::{Counter, FetchProgress};
use idiolect_miner::{cli, models};
use idiolect_uniqueness::quality::{Draft, Reward, estimate};
use idiolect_validator::RewardModel;
use serde::{Deserialize, Serialize};

use crate::commands::{Usage, json_arg, load, plot, profile, profile_arg, start_logging};
use crate::interval_plot::{IntervalPlot, Row, Rows};
use crate::output;
use crate::picture::Picture as _;

/// Draws of the bootstrap and of the permutation tests.
const N_DRAWS: usize = 10_000;

pub(super) fn command() -> Command {
    let number = |id: &'static str, name: &'static str, default: &'static str| {
        Arg::new(id).long(id).value_name(name).default_value(default)
    };
    let command = Command::new("eval")
        .about("Find out on recorded replies of many models how many of ours the gate would have masked, by who chose them")
        .after_help(
            "FILE has one reply a line, {\"p\": PROMPT, \"m\": MODEL, \"t\": TEXT, \"q\": LABEL}; q, a judge's probability in [0, 1], may be missing and is \
             reported on only. Each --own names the models that are ours, the first of which is sent without a choice; everybody else is a rival. With \
             --visible some rivals' replies to the same prompt are seen, all others are hidden; without any the choice is blind.\n\
             first: our first model. random: any of ours, in the mean. best-of-k: the best of ours by quality alone, with --prompts only: the dpo reward of \
             uniqueness.quality_model, which the selector weighs as well. farthest: from what is seen, or from each other. selector: what the miner \
             would choose. learned: by what the other prompts teach, cross-validated; --prompts tells it what was asked, and labels count for it as far as they are \
             those of other prompts. oracle: with the hidden rivals revealed. masked: by those. gap: how much of the way from random to oracle is gone. distance: to the nearest hidden rival. novel: share of replies that say what no rival says, hidden or seen, by classes of what the gate takes for the same. distinct: \
             such classes among ours. Intervals of 95 % are from a bootstrap over \
             prompts, p-values from a paired permutation test of the masked shares against random, adjusted by Holm's rule.\n\
             Example: idiolect mutate eval --replies arena.jsonl.zst --own gpt,gpt_concise,gpt_verbose --own alpaca,vicuna --visible 10 --encoder mpnet",
        )
        .arg(
            Arg::new("replies")
                .long("replies")
                .value_name("FILE")
                .required_unless_present("live")
                .conflicts_with("live")
                .value_parser(value_parser!(PathBuf))
                .help("Recorded replies: JSON lines, compressed where the name ends in .zst"),
        )
        .arg(
            Arg::new("own")
                .long("own")
                .value_name("MODEL,…")
                .required_unless_present("live")
                .conflicts_with("live")
                .action(ArgAction::Append)
                .help("Models that are ours; given again, another experiment"),
        )
        .arg(
            Arg::new("arms")
                .long("arms")
                .value_name("ARM,…")
                .value_delimiter(',')
                .value_parser(Choice::ALL.map(Choice::as_str))
                .help("Ways to choose that are reported [default: all that can be]"),
        )
        .arg(number("visible", "N", "10").value_parser(value_parser!(u16)).help("Rivals that are seen; 0 is blind"))
        .arg(number("panels", "N", "20").value_parser(value_parser!(u16).range(1..)).help("Draws of those that are seen, a prompt"))
        .arg(number("seed", "S", "0").value_parser(value_parser!(u64)).help("What the draws start from"))
        .arg(profile_arg())
        .arg(
            Arg::new("embeddings")
                .long("embeddings")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Keep embeddings here for the next run; one that broke off goes on"),
        )
        .arg(
            Arg::new("plot")
                .long("plot")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with("live")
                .help("Draw the masked shares with their intervals into this file: .png or .svg"),
        )
        .arg(json_arg());
    cli::key_args(live::args(command), |key| {
        key.starts_with("uniqueness.encoder")
            || key == "uniqueness.device"
            || key.starts_with("models.")
            || live::is_key(key)
    })
}

/// What came of one choice.
#[derive(Debug, Serialize)]
struct Arm {
    choice: &'static str,
    masked: Interval,
    gap_closed: Option<Interval>,
    distance: f64,
    novel: f64,
    quality: Option<f64>,
    label_gained: Option<f64>,
    p: Option<f64>,
}

/// What came of one set of our models.
#[derive(Debug, Serialize)]
struct Group {
    own: Vec<String>,
    n_prompts: usize,
    visible: usize,
    /// Of ours to one prompt, in the mean: how many say different things, how far they are from each other, their Vendi score.
    distinct: f64,
    pairwise: Option<f64>,
    vendi: Option<f64>,
    arms: Vec<Arm>,
}

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    if let Some(spec) = matches.get_one::<String>("live") {
        return live::run(matches, spec).await;
    }
    let plot = plot(matches)?;
    let loaded = load(matches)?;
    start_logging(&loaded)?;
    let config = &loaded.config;
    if config.uniqueness.encoder == EncoderKind::Off {
        return Err(Usage(
            "uniqueness.encoder is off, expected minilm, mpnet or openai: distances need an encoder".to_owned(),
        )
        .into());
    }
    let profile = profile(matches, config)?.gate;
    let path = matches.get_one::<PathBuf>("replies").context("name a file of replies")?;
    let replies = Replies::open(path).with_context(|| format!("cannot use {}", path.display()))?;
    let groups = matches.get_many::<String>("own").into_iter().flatten();
    let groups: Vec<Vec<String>> =
        groups.map(|own| own.split(',').map(|model| model.trim().to_owned()).collect()).collect();

    let resolver = models::resolver(&config.models, &cli::process_env())?;
    let progress = FetchProgress::default();
    let loader = Loader { resolver: &resolver, progress: &progress };
    let encoder = loader.encoder(config).await?;
    let encoder = encoder.context("there is no encoder")?;
    let folder = matches.get_one::<PathBuf>("embeddings");
    // Before an hour of encoding, whatever is wrong with the names.
    let none = vec![Embedding::new(); replies.all().len()];
    for own in &groups {
        Experiment::new(&replies, &none, own, profile.clone()).with_context(|| format!("--own {}", own.join(",")))?;
    }
    let asked = asked(matches)?;
    let mut texts: Vec<&str> = replies.all().iter().map(|reply| reply.text.as_str()).collect();
    texts.extend(asked.iter().map(|one| one.prompt.as_str()));
    let mut embeddings = embed(&*encoder, &texts, folder.map(PathBuf::as_path)).await?;
    let of_prompts = embeddings.split_off(replies.all().len());
    let asked = asked.into_iter().zip(of_prompts);
    let asked: HashMap<String, Asked> =
        asked.map(|(one, embedding)| (one.id, Asked { text: one.prompt, embedding })).collect();

    let visible = matches.get_one::<u16>("visible").copied().unwrap_or(0);
    let panels = matches.get_one::<u16>("panels").copied().unwrap_or(1);
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or(0);
    let model = if asked.is_empty() { None } else { loader.quality(config).await? };
    let own: Vec<&String> = groups.iter().flatten().collect();
    let qualities = match &model {
        Some((model, _)) => Some(rewards(&**model, &replies, &asked, &own, folder.map(PathBuf::as_path)).await?),
        None => None,
    };
    let lessons = Lessons::new(&replies, &embeddings, &asked, profile.clone(), seed);
    let mut found = Vec::with_capacity(groups.len());
    for own in &groups {
        let experiment = Experiment::new(&replies, &embeddings, own, profile.clone())?;
        let mut experiment = experiment.with_encoder(encoder.name()).with_lessons(&lessons);
        if let Some(qualities) = &qualities {
            experiment = experiment.with_qualities(qualities);
        }
        let run = |choice| experiment.run_with(choice, visible.into(), panels.into(), seed);
        let outcomes = Choice::ALL.map(|choice| (choice, run(choice)));
        let outcomes: Vec<(Choice, Outcome)> = outcomes.into_iter().filter(|(_, o)| !o.picks.is_empty()).collect();
        let n_prompts = experiment.prompts().len();
        let spread = experiment.spread();
        let mean = |of: &dyn Fn(&Spread) -> Option<f64>| {
            let values: Vec<f64> = spread.iter().filter_map(of).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        found.push(Group {
            own: own.clone(),
            n_prompts,
            visible: visible.into(),
            distinct: mean(&|spread| Some(spread.n_distinct as f64)).unwrap_or(0.0),
            pairwise: mean(&|spread| spread.pairwise),
            vendi: mean(&|spread| spread.vendi),
            arms: arms(&outcomes, n_prompts, seed),
        });
    }
    // For all of them, whichever are shown.
    adjust(&mut found);
    if let Some(wanted) = matches.get_many::<String>("arms") {
        let wanted: Vec<&String> = wanted.collect();
        for group in &mut found {
            group.arms.retain(|arm| wanted.iter().any(|name| *name == arm.choice));
        }
    }
    if let Some(path) = plot {
        draw(&found, path)?;
    }
    if matches.get_flag("json") {
        return output::json(&found);
    }
    print(&found)
}

fn draw(groups: &[Group], path: &Path) -> anyhow::Result<()> {
    let row = |arm: &Arm| {
        let Interval { value, low, high } = arm.masked;
        Row { label: arm.choice.to_owned(), value, low, high }
    };
    let rows = |group: &Group| Rows {
        heading: format!("{}: {} prompts, {} rivals seen", group.own.join(","), group.n_prompts, group.visible),
        rows: group.arms.iter().map(row).collect(),
    };
    let groups: Vec<Rows> = groups.iter().map(rows).collect();
    IntervalPlot { title: "share of replies that the hidden rivals mask", groups: &groups }.save(path)
}

/// A prompt of a file, by the names that records use.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "p", alias = "id")]
    id: String,
    prompt: String,
}

/// Reads what was asked; nothing where no file is named.
fn asked(matches: &ArgMatches) -> anyhow::Result<Vec<Line>> {
    let Some(path) = matches.get_one::<PathBuf>("prompts") else { return Ok(Vec::new()) };
    lines::read(path).with_context(|| format!("cannot use {}", path.display()))
}

/// Returns how good each reply of some models is, in [0, 1], as the miner would say: by where its reward stands among all of them, its length
/// beside those of ours, and its repetitions. 0 for everybody else's.
async fn rewards(
    model: &dyn RewardModel,
    replies: &Replies,
    asked: &HashMap<String, Asked>,
    own: &[&String],
    folder: Option<&Path>,
) -> anyhow::Result<Vec<f32>> {
    let mut ours: Vec<(&str, usize)> = Vec::new();
    for (prompt, members) in replies.by_prompt() {
        let members = members.into_iter().filter(|&index| own.contains(&&replies.all()[index].model));
        for index in members {
            let asked = asked.get(prompt).with_context(|| format!("--prompts does not have {prompt}"))?;
            ours.push((&asked.text, index));
        }
    }
    let pairs: Vec<(&str, &str)> =
        ours.iter().map(|&(prompt, index)| (prompt, replies.all()[index].text.as_str())).collect();
    let mut cache = ScoreCache::open(folder, model.name())?;
    let bar = Counter::new("scoring replies");
    let scores = cache.scores(model, &pairs, &mut |done, all| bar.at(done, all)).await;
    bar.close();
    let scores = scores?;
    let placed = normalised(&scores, model.lowest());
    let mut qualities = vec![0.0; replies.all().len()];
    let all: Vec<(&str, usize, f32)> =
        ours.iter().zip(placed).map(|(&(prompt, i), placed)| (prompt, i, placed)).collect();
    for same in all.chunk_by(|a, b| a.0 == b.0) {
        let draft = |&(_, index, placed): &(&str, usize, f32)| Draft {
            text: &replies.all()[index].text,
            mean_logprob: None,
            model: &replies.all()[index].model,
            prompt: 0,
            complete: true,
            penalty: 0.0,
            reward: Some(Reward { raw: None, normalised: placed }),
        };
        let drafts: Vec<Draft<'_>> = same.iter().map(draft).collect();
        for (&(_, index, _), quality) in same.iter().zip(estimate(&drafts)) {
            qualities[index] = quality.score;
        }
    }
    Ok(qualities)
}

async fn embed(encoder: &dyn Embedder, texts: &[&str], folder: Option<&Path>) -> anyhow::Result<Vec<Embedding>> {
    let mut cache = EmbeddingCache::open(folder, encoder)?;
    let bar = Counter::new("encoding replies");
    let embeddings = cache.embed(encoder, texts, &mut |done, all| bar.at(done, all)).await;
    bar.close();
    let embeddings = embeddings?;
    if embeddings.len() != texts.len() {
        bail!("{} embeddings for {} texts", embeddings.len(), texts.len());
    }
    Ok(embeddings)
}

fn arms(outcomes: &[(Choice, Outcome)], n_prompts: usize, seed: u64) -> Vec<Arm> {
    let masked = |choice: Choice| -> Vec<f64> {
        let found = outcomes.iter().find(|(other, _)| *other == choice);
        found.map_or_else(Vec::new, |(_, outcome)| outcome.by_prompt(|pick| Some(pick.masked)))
    };
    let mean = |values: &[f64], chosen: &[usize]| chosen.iter().map(|&i| values[i]).sum::<f64>() / chosen.len() as f64;
    let (random, oracle) = (masked(Choice::Random), masked(Choice::Oracle));
    let arm = |(choice, outcome): &(Choice, Outcome)| {
        let own = masked(*choice);
        let gap = |chosen: &[usize]| gap_closed(mean(&random, chosen), mean(&own, chosen), mean(&oracle, chosen));
        let differences: Vec<f64> = own.iter().zip(&random).map(|(own, random)| own - random).collect();
        let is_real = !matches!(choice, Choice::First | Choice::Random | Choice::Oracle);
        Arm {
            choice: choice.as_str(),
            masked: bootstrap(n_prompts, N_DRAWS, seed, &|chosen| mean(&own, chosen)),
            gap_closed: Some(bootstrap(n_prompts, N_DRAWS, seed, &gap)).filter(|gap| is_real && gap.value.is_finite()),
            distance: outcome.distance(),
            novel: outcome.share_novel(),
            quality: Some(outcome.quality()).filter(|quality| quality.is_finite()),
            label_gained: Some(outcome.label_gained()).filter(|gained| gained.is_finite()),
            p: is_real.then(|| sign_flip(&differences, N_DRAWS, seed)),
        }
    };
    outcomes.iter().map(arm).collect()
}

/// Adjusts the p-values of all experiments for there being several.
fn adjust(groups: &mut [Group]) {
    let arms: Vec<&mut f64> =
        groups.iter_mut().flat_map(|group| &mut group.arms).filter_map(|arm| arm.p.as_mut()).collect();
    let adjusted = holm(&arms.iter().map(|p| **p).collect::<Vec<_>>());
    for (p, adjusted) in arms.into_iter().zip(adjusted) {
        *p = adjusted;
    }
}

fn print(groups: &[Group]) -> anyhow::Result<()> {
    let with = |interval: Interval| format!("{:.3} ({:.3} to {:.3})", interval.value, interval.low, interval.high);
    let figure = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
    for group in groups {
        output::say(format!("{}: {} prompts, {} rivals seen", group.own.join(","), group.n_prompts, group.visible))?;
        let of_group = format!("{:.2} of {} distinct", group.distinct, group.own.len());
        let apart = group.pairwise.map_or_else(String::new, |pairwise| format!(", {pairwise:.3} apart"));
        let vendi = group.vendi.map_or_else(String::new, |vendi| format!(", Vendi score {vendi:.3}"));
        output::say(format!("ours: {of_group}{apart}{vendi}"))?;
        let row = |arm: &Arm| {
            vec![
                arm.choice.to_owned(),
                with(arm.masked),
                arm.gap_closed.map_or_else(String::new, with),
                format!("{:.3}", arm.distance),
                format!("{:.3}", arm.novel),
                figure(arm.quality),
                arm.label_gained.map_or_else(String::new, |gained| format!("{gained:+.3}")),
                arm.p.map_or_else(String::new, |p| format!("{p:.4}")),
            ]
        };
        let rows: Vec<Vec<String>> = group.arms.iter().map(row).collect();
        output::columns(&["choice", "masked", "gap", "distance", "novel", "quality", "label", "p"], &rows)?;
        output::say(String::new())?;
    }
    for choice in [Choice::BestOfK, Choice::Farthest, Choice::Selector, Choice::Learned] {
        let gaps: Vec<f64> = groups
            .iter()
            .filter_map(|group| group.arms.iter().find(|arm| arm.choice == choice.as_str())?.gap_closed)
            .map(|gap| gap.value)
            .collect();
        if gaps.len() > 1 {
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            output::say(format!(
                "{}: {mean:.3} of the gap, in the mean of {} experiments",
                choice.as_str(),
                gaps.len()
            ))?;
        }
    }
    Ok(())
}
