//! `idiolect mutate preview`: what a model would be asked, without asking it.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_backend::{Message, Sampling};
use idiolect_miner::cli;
use idiolect_mutation::{Amount, Facts, Library, Plan, Recipe, RecipeSampler, Shape, Task};
use serde_json::{Map, Value, json};

use super::super::{json_arg, load};
use super::library;
use super::list::task_arg;
use crate::{output, replies};

pub(crate) fn command() -> Command {
    let command = Command::new("preview")
        .about("Show the recipes of a prompt, with the messages and the sampling that a model would be given")
        .after_help(
            "No model is asked. The miner draws by a seed of its own for each request, and by what its policy has learnt: the \
             recipes here are of that kind, not the very ones. The file has the prompt's text, or a JSON list of messages, {\"role\": ..., \"content\": ...}.\n\
             Examples: echo 'Why is the sky blue?' | idiolect mutate preview --prompt -; \
             idiolect mutate preview --prompt prompt.txt --task answer -k 4 --seed 7 --json",
        )
        .arg(
            Arg::new("prompt")
                .long("prompt")
                .value_name("FILE|-")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The prompt; - is standard input"),
        )
        .arg(
            Arg::new("file")
                .long("library")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("A library [default: that of mutation.operators, else the built-in one]"),
        )
        .arg(task_arg().help("The task [default: as the prompt's wording tells]"))
        .arg(
            Arg::new("k")
                .short('k')
                .value_name("N")
                .value_parser(value_parser!(u32).range(1..=64))
                .help("How many recipes, with the one that changes nothing [default: mutation.recipes]"),
        )
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("What recipes are drawn by [default: mutation.seed, else 0]"),
        )
        .arg(
            Arg::new("transport")
                .long("transport")
                .value_name("NAME")
                .value_parser(["grpc", "http", "epistula", "btauth"])
                .help("What the request comes over, for routes"),
        )
        .arg(Arg::new("validator").long("validator").value_name("HOTKEY").help("Who asks, for routes"))
        .arg(json_arg());
    cli::key_args(command, |key| {
        let is_of_mutation = ["mutation.enabled", "mutation.operators", "mutation.recipes"].contains(&key);
        is_of_mutation || key == "mutation.seed" || key.starts_with("sampling.") && key != "sampling.seed"
    })
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    let config = &loaded.config;
    let is_named = matches.get_one::<PathBuf>("file").is_some();
    let library = if config.mutation.enabled || is_named { library(matches, config)? } else { Library::default() };
    let library = Arc::new(library);
    let messages = messages(matches.get_one::<PathBuf>("prompt").context("name a prompt")?)?;
    let task = matches.get_one::<Task>("task").copied().unwrap_or_else(|| Task::detect(None, &messages));
    let text = |name: &str| matches.get_one::<String>(name).map_or("", String::as_str);
    let facts = Facts {
        transport: text("transport"),
        task: task.as_str(),
        validator: text("validator"),
        shape: Some(Shape::of(&messages)),
        dictated: false,
    };
    let plan = library.plan(&facts, task, &messages);
    let k = matches.get_one::<u32>("k").map_or(config.mutation.recipes, |&k| k as usize);
    let seed = matches.get_one::<u64>("seed").copied().or(config.mutation.seed).unwrap_or(0);
    let recipes = RecipeSampler::new(library, seed).draw_planned(k, 0, task, &plan);
    let of_recipe = |recipe: &Recipe| {
        let mut sampling = config.sampling.clone();
        recipe.apply_sampling(&mut sampling);
        (recipe.apply(&messages), sampling)
    };
    if matches.get_flag("json") {
        let recipes = recipes.iter().map(|recipe| {
            let (messages, sampling) = of_recipe(recipe);
            json!({ "recipe": recipe.to_string(), "operators": recipe.operators, "messages": messages, "sampling": given(&sampling) })
        });
        return output::json(&json!({
            "task": task,
            "shape": facts.shape,
            "mode": if plan.mode.is_passthrough() { "passthrough" } else { "mutate" },
            "risk": plan.risk,
            "amount": plan.amount,
            "recipes": recipes.collect::<Vec<_>>(),
        }));
    }
    output::say(summary(task, &plan))?;
    for (i, recipe) in recipes.iter().enumerate() {
        let (messages, sampling) = of_recipe(recipe);
        output::say(format!("\n# {} {recipe}", i + 1))?;
        let settings: Vec<String> = given(&sampling).iter().map(|(key, value)| format!("{key} = {value}")).collect();
        output::say(format!("sampling: {}", settings.join(", ")))?;
        for message in messages {
            output::say(format!("[{}]\n{}", message.role, message.content))?;
        }
    }
    Ok(())
}

fn summary(task: Task, plan: &Plan) -> String {
    if plan.mode.is_passthrough() {
        return format!("task {task}, passthrough: prompt and sampling go to the model as they came");
    }
    let amount = match plan.amount {
        Amount::Nothing => "too low to vary anything",
        Amount::Usual => "varied as configured",
        Amount::Most => "varied as much as configured, the preferred slots first",
    };
    format!("task {task}, chance that others answer alike {:.0} %: {amount}", 100.0 * plan.risk)
}

/// Returns the settings that say anything.
fn given(sampling: &Sampling) -> Map<String, Value> {
    // By way of text, which has 0.9 for what would be 0.8999999761581421 as a wider number.
    let text = serde_json::to_string(sampling).unwrap_or_default();
    let settings: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
    settings.into_iter().filter(|(_, v)| !v.is_null() && v.as_array().is_none_or(|list| !list.is_empty())).collect()
}

fn messages(path: &Path) -> anyhow::Result<Vec<Message>> {
    let mut text = String::new();
    if replies::is_standard_input(path) {
        std::io::stdin().read_to_string(&mut text).context("the prompt on standard input cannot be read")?;
    } else {
        text =
            std::fs::read_to_string(path).with_context(|| format!("the prompt {} cannot be read", path.display()))?;
    }
    let list: Option<Vec<Message>> =
        text.trim_start().starts_with('[').then(|| serde_json::from_str(&text).ok()).flatten();
    // A file's last line break is no part of the prompt.
    let messages = list.unwrap_or_else(|| vec![Message::user(text.strip_suffix('\n').unwrap_or(&text))]);
    if messages.iter().all(|message| message.content.trim().is_empty()) {
        bail!("the prompt is empty; give some text");
    }
    Ok(messages)
}
