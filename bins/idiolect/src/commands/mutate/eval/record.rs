//! Choices among recorded replies.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ArgMatches;
use idiolect_arena::experiment::Spread;
use idiolect_arena::lessons::Asked;
use idiolect_arena::scores::normalised;
use idiolect_arena::{AskedPrompt, Choice, Experiment, Lessons, Outcome, Replies, ScoreCache, live};
use idiolect_backend::Embedding;
use idiolect_miner::backends::Loader;
use idiolect_miner::config::EncoderKind;
use idiolect_miner::progress::{Counter, FetchProgress};
use idiolect_miner::{cli, models};
use idiolect_uniqueness::quality::{Draft, Reward, estimate};
use idiolect_validator::{Profile, RewardModel, StepTask};

use super::curve::{self, Wish};
use super::is_wanted;
use super::report::{Group, adjust, arms, draw, print};
use crate::commands::{Usage, load, plot, profile, start_logging};
use crate::output;
use crate::record::{asked, embed};

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
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
    let rules = profile(matches, config)?;
    let profile = rules.gate.clone();
    let path = matches.get_one::<PathBuf>("replies").context("name a file of replies")?;
    let replies = Replies::open(path).with_context(|| format!("cannot use {}", path.display()))?;
    let groups = matches.get_many::<String>("own").into_iter().flatten();
    let groups: Vec<Vec<String>> =
        groups.map(|own| own.split(',').map(|model| model.trim().to_owned()).collect()).collect();

    let wish = curve_wish(matches, &groups)?;

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
    let own: Vec<&String> = groups.iter().flatten().collect();
    let criteria = criteria(&rules, &replies, &asked, &own).await?;
    let mut texts: Vec<&str> = replies.all().iter().map(|reply| reply.text.as_str()).collect();
    texts.extend(asked.iter().map(|one| one.text.as_str()));
    let mut embeddings = embed(&*encoder, &texts, folder.map(PathBuf::as_path)).await?;
    let of_prompts = embeddings.split_off(replies.all().len());
    let asked = asked.into_iter().zip(of_prompts);
    let asked: HashMap<String, Asked> =
        asked.map(|(one, embedding)| (one.id, Asked { text: one.text, embedding })).collect();

    let visible = matches.get_one::<u16>("visible").copied().unwrap_or(0);
    let panels = matches.get_one::<u16>("panels").copied().unwrap_or(1);
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or(0);
    let model = if asked.is_empty() { None } else { loader.quality(config).await? };
    let qualities = match &model {
        Some((model, name)) => {
            Some(rewards((&**model, name), &replies, &asked, &criteria, &own, folder.map(PathBuf::as_path)).await?)
        }
        None => None,
    };
    let lessons = Lessons::new(&replies, &embeddings, &asked, profile.clone(), seed);
    let taught = matches.get_flag("taught").then(|| lessons.taught(encoder.name(), seed)).transpose()?;
    let mut found = Vec::with_capacity(groups.len());
    for own in &groups {
        let experiment = Experiment::new(&replies, &embeddings, own, profile.clone())?;
        let mut experiment = experiment.with_encoder(encoder.name()).with_lessons(&lessons);
        if let Some(qualities) = &qualities {
            experiment = experiment.with_qualities(qualities);
        }
        if let Some(taught) = &taught {
            experiment = experiment.with_taught(taught);
        }
        if criteria.iter().any(Option::is_some) {
            experiment = experiment.with_criteria(&criteria);
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
            arms: arms(&outcomes, seed),
            curve: wish.as_ref().map(|wish| curve::of(&experiment, own, wish)).transpose()?,
        });
    }
    // For all of them, whichever are shown.
    adjust(&mut found);
    let wanted = wanted(matches);
    for group in &mut found {
        group.arms.retain(|arm| wanted.iter().any(|choice| choice.as_str() == arm.choice));
    }
    if let Some(path) = plot {
        draw(&found, path)?;
    }
    if matches.get_flag("json") {
        return output::json(&found);
    }
    print(&found)
}

/// Returns the ways to choose that are reported.
fn wanted(matches: &ArgMatches) -> Vec<Choice> {
    Choice::ALL.into_iter().filter(|choice| is_wanted(matches, choice.as_str())).collect()
}

/// Reads what a curve is to be of, where one is wanted.
fn curve_wish(matches: &ArgMatches, groups: &[Vec<String>]) -> anyhow::Result<Option<Wish>> {
    let Some(visible) = matches.get_many::<u16>("curve") else { return Ok(None) };
    if let Some(own) = groups.iter().find(|own| own.len() < 2) {
        let problem = format!("--curve: there is 1 model in --own {}, expected 2 or more", own.join(","));
        return Err(Usage(problem).into());
    }
    let mut visible: Vec<usize> = visible.map(|&n| n.into()).collect();
    visible.sort_unstable();
    visible.dedup();
    let number = |name: &str| matches.get_one::<u16>(name).map_or(1, |&n| n.into());
    Ok(Some(Wish {
        visible,
        n_panels: number("panels"),
        n_subsets: number("subsets"),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or(0),
        choices: wanted(matches),
    }))
}

/// Returns what the criteria of validators' prompts take of each reply of some models; nothing of everybody else's, and where a prompt has no
/// criteria.
async fn criteria(
    rules: &Profile,
    replies: &Replies,
    asked: &[AskedPrompt],
    own: &[&String],
) -> anyhow::Result<Vec<Option<f64>>> {
    let mut criteria = vec![None; replies.all().len()];
    if rules.penalties.is_none() {
        return Ok(criteria);
    }
    let by_prompt = replies.by_prompt();
    for prompt in asked {
        let task = StepTask::read(&prompt.text, None).ok().filter(|task| !task.criteria.is_empty());
        let (Some(task), Some(members)) = (task, by_prompt.get(prompt.id.as_str())) else { continue };
        let members: Vec<usize> =
            members.iter().copied().filter(|&index| own.contains(&&replies.all()[index].model)).collect();
        let texts: Vec<&str> = members.iter().map(|&index| replies.all()[index].text.as_str()).collect();
        for (index, taken) in members.into_iter().zip(live::criteria(rules, &task, &texts).await?) {
            criteria[index] = Some(taken);
        }
    }
    Ok(criteria)
}

/// Returns how good each reply of some models is, in [0, 1], as the miner would say: by where its reward stands among all of them, its length
/// beside those of ours, its repetitions, and what criteria take. 0 for everybody else's.
async fn rewards(
    (model, name): (&dyn RewardModel, &str),
    replies: &Replies,
    asked: &HashMap<String, Asked>,
    criteria: &[Option<f64>],
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
    let mut cache = ScoreCache::open(folder, name)?;
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
            penalty: criteria[index].unwrap_or(0.0) as f32,
            reward: Some(Reward { raw: None, normalised: placed }),
        };
        let drafts: Vec<Draft<'_>> = same.iter().map(draft).collect();
        for (&(_, index, _), quality) in same.iter().zip(estimate(&drafts)) {
            qualities[index] = quality.score;
        }
    }
    Ok(qualities)
}
