//! `idiolect mutate list`: the operators of a library.

use clap::{Arg, ArgMatches, Command};
use idiolect_miner::cli;
use idiolect_mutation::{Operator, Task, tokens};
use serde_json::json;

use super::super::{json_arg, load};
use super::{file_arg, library};
use crate::output;

pub(crate) fn command() -> Command {
    let command = Command::new("list")
        .about("List operators with their slots, tasks and weights")
        .after_help("Examples: idiolect mutate list --task followup; idiolect mutate list operators.toml --json")
        .arg(file_arg())
        .arg(task_arg().help("Only those for this task"))
        .arg(json_arg());
    cli::key_args(command, |key| key == "mutation.operators")
}

/// The argument that names a task.
pub(super) fn task_arg() -> Arg {
    let parse = |name: &str| name.parse::<Task>().map_err(|error| error.to_string());
    Arg::new("task").long("task").value_name("TASK").value_parser(parse)
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    let library = library(matches, &loaded.config)?;
    let task = matches.get_one::<Task>("task").copied();
    let operators: Vec<&Operator> =
        library.operators().iter().filter(|operator| task.is_none_or(|task| operator.is_for(task))).collect();
    if matches.get_flag("json") {
        return output::json(&json!({
            "operators": operators,
            "routes": library.routes(),
            "max_operators": library.max_operators(),
            "max_added_tokens": library.max_added_tokens(),
            "allow_rewrite": library.allow_rewrite(),
            "allow_paraphrase": library.allow_paraphrase(),
            "collision": library.collision(),
        }));
    }
    let rows = operators.iter().map(|operator| {
        let tasks: Vec<&str> = operator.tasks.iter().map(|task| task.as_str()).collect();
        let is_silent = operator.is_textless();
        vec![
            format!("{}@{}", operator.name, operator.version),
            operator.slot.clone(),
            if is_silent { "-".to_owned() } else { operator.place.to_string() },
            if tasks.is_empty() { "all".to_owned() } else { tasks.join(",") },
            operator.weight.to_string(),
            tokens_of(operator).to_string(),
            if is_silent { without_text(operator) } else { operator.text.replace('\n', " ") },
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    output::columns(&["name", "slot", "place", "tasks", "weight", "tokens", "text"], &rows)?;
    Ok(output::say(format!("{library}"))?)
}

/// Says what an operator without a text changes.
fn without_text(operator: &Operator) -> String {
    let chosen = |kind: &str, name: &Option<String>| name.as_ref().map(|name| format!("{kind} {name}"));
    let sampling = (!operator.sampling.is_empty()).then(|| "sampling only".to_owned());
    let parts = [chosen("backend", &operator.backend), chosen("model", &operator.model), sampling];
    format!("({})", parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

/// Returns the most tokens that an operator's text came to in some trials.
fn tokens_of(operator: &Operator) -> u32 {
    let task = operator.tasks.first().copied().unwrap_or_default();
    (0..16).filter_map(|seed| operator.render(task, seed).ok()).map(|text| tokens::estimate(&text)).max().unwrap_or(0)
}
