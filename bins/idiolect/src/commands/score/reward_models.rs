//! Reward models that are classifiers, by the columns that they fill.

use std::path::Path;
use std::sync::Arc;

use clap::{Arg, ArgAction, ArgMatches};
use idiolect_miner::progress::FetchProgress;
use idiolect_models::Resolver;
use idiolect_validator::{Profile, RewardModel};

use super::folder;
use crate::commands::Usage;

const ID: &str = "reward";

/// The reward of a language model, which `--model` names.
const DPO: &str = "dpo";

pub(super) fn arg() -> Arg {
    Arg::new(ID).long(ID).value_name("NAME=MODEL").action(ArgAction::Append).help(
        "A reward model by its column, rlhf or reciprocate: hub:…, wheel:… or a folder with a classifier of the shape of \
         DeBERTa-v3 or GPT-J; once for each [default: none]",
    )
}

/// Reads which column each model is for.
///
/// # Errors
/// [`Usage`] for what is no column and model, and for columns that the profile does not weigh, or that are named twice.
fn named<'a>(given: impl Iterator<Item = &'a String>, profile: &Profile) -> Result<Vec<(&'a str, &'a str)>, Usage> {
    let mut named: Vec<(&str, &str)> = Vec::new();
    for text in given {
        let usage = |problem: String| Err(Usage(format!("--{ID} {text}: {problem}")));
        let Some((name, model)) = text.split_once('=').filter(|(name, model)| !name.is_empty() && !model.is_empty())
        else {
            return usage("expected NAME=MODEL".to_owned());
        };
        let weighed: Vec<&str> = profile.rewards.iter().filter(|(_, w)| **w != 0.0).map(|(n, _)| n.as_str()).collect();
        let others: Vec<&str> = weighed.iter().copied().filter(|other| *other != DPO).collect();
        let expected = if others.is_empty() { "none".to_owned() } else { others.join(" or ") };
        match profile.rewards.get(name) {
            _ if name == DPO => return usage("dpo is the reward of a language model, which --model names".to_owned()),
            None => {
                return usage(format!("{} has no reward model {name:?}, expected {expected}", profile.name));
            }
            Some(0.0) => return usage(format!("{} gives {name} no weight, expected {expected}", profile.name)),
            Some(_) if named.iter().any(|(other, _)| *other == name) => return usage(format!("{name} is named twice")),
            Some(_) => named.push((name, model)),
        }
    }
    Ok(named)
}

/// Loads the models that the command line names.
///
/// # Errors
/// [`Usage`] for a column that makes no sense; models that cannot be found, fetched or loaded, or that have more than one
/// label.
pub(super) async fn load(
    matches: &ArgMatches,
    profile: &Profile,
    resolver: &Resolver,
    progress: &FetchProgress,
) -> anyhow::Result<Vec<Arc<dyn RewardModel>>> {
    let given = matches.get_many::<String>(ID).into_iter().flatten();
    let mut models = Vec::new();
    for (name, model) in named(given, profile)? {
        let dir = folder(resolver, model, progress).await?;
        models.push(classifier(name, model, &dir).await?);
    }
    Ok(models)
}

#[cfg(feature = "candle")]
async fn classifier(name: &str, model: &str, dir: &Path) -> anyhow::Result<Arc<dyn RewardModel>> {
    use anyhow::{Context as _, bail};
    use idiolect_backend::Classifier as _;
    use idiolect_backend_candle::SequenceClassifier;
    use idiolect_validator::ClassifierModel;

    let what = format!("reward model {name}={model}");
    let folder = dir.to_path_buf();
    let loaded = tokio::task::spawn_blocking(move || SequenceClassifier::load(&folder)).await;
    let classifier = loaded.context("loading broke off")?.with_context(|| what.clone())?;
    if classifier.n_labels() != 1 {
        bail!("{what} has {} labels, expected 1: it is no reward model", classifier.n_labels());
    }
    Ok(Arc::new(ClassifierModel::new(name, Arc::new(classifier), input(dir)?)))
}

#[cfg(not(feature = "candle"))]
async fn classifier(name: &str, model: &str, _: &Path) -> anyhow::Result<Arc<dyn RewardModel>> {
    anyhow::bail!("this build has no candle, which reward model {name}={model} needs; build with --features candle")
}

/// The validators' GPT-J reads one text with marks in it, and their DeBERTa a pair.
#[cfg(feature = "candle")]
fn input(dir: &Path) -> anyhow::Result<idiolect_validator::RewardInput> {
    use idiolect_validator::RewardInput;

    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("config.json"))?)?;
    Ok(if config["model_type"] == "gptj" { RewardInput::reciprocate() } else { RewardInput::Pair })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_that_the_profile_weighs() {
        let read = |profile: &Profile, given: &[&str]| {
            let given: Vec<String> = given.iter().map(|&text| text.to_owned()).collect();
            let named = named(given.iter(), profile).map_err(|problem| problem.to_string());
            named.map(|named| named.into_iter().map(|(name, model)| format!("{name} {model}")).collect::<Vec<_>>())
        };
        let (old, new) = (Profile::openvalidators_1_2(), Profile::text_prompting_2_1());
        assert_eq!(read(&old, &["rlhf=./a=b", "reciprocate=x"]).unwrap(), ["rlhf ./a=b", "reciprocate x"]);
        assert!(read(&old, &[]).unwrap().is_empty());
        for (profile, given, expected) in [
            (&old, &["rlhf"][..], "--reward rlhf: expected NAME=MODEL"),
            (&old, &["=x"], "expected NAME=MODEL"),
            (&old, &["rlhf="], "expected NAME=MODEL"),
            (&old, &["dpo=x"], "which --model names"),
            (&old, &["dahoas=x"], "openvalidators-1.2 has no reward model \"dahoas\", expected reciprocate or rlhf"),
            (&new, &["rlhf=x"], "text-prompting-2.1 gives rlhf no weight, expected reciprocate"),
            (&old, &["rlhf=x", "rlhf=y"], "--reward rlhf=y: rlhf is named twice"),
        ] {
            let error = read(profile, given).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
