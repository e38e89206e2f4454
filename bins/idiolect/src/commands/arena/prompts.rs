//! `idiolect arena prompts`: what a log asked, for whoever wants to answer it.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_arena::AskedPrompt;
use idiolect_arena::replay::step_id;
use idiolect_dataset::{Entry, History};
use serde::Serialize;

use crate::output;

pub(super) fn command() -> Command {
    Command::new("prompts")
        .about("Print the prompts of a validators' log, with the names by which `arena replay` knows them")
        .after_help(
            "One JSON object a line, {\"id\": RUN/ROW, \"prompt\": TEXT}; a row of openvalidators 1.0 has two, RUN/ROW/followup and RUN/ROW/answer. Whatever answers \
             them, {\"p\": ID, \"m\": NAME, \"t\": TEXT} a line, can be a contestant of `arena replay`.\n\
             Example: idiolect arena prompts history.jsonl > prompts.jsonl",
        )
        .arg(history_arg())
}

/// The argument that names logs.
pub(super) fn history_arg() -> Arg {
    Arg::new("history")
        .value_name("FILE")
        .required(true)
        .num_args(1..)
        .value_parser(value_parser!(PathBuf))
        .help("What validators logged: JSON lines or CSV (also .zst or .gz), or Parquet")
}

#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    prompt: &'a str,
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    for asked in of_logs(matches, &|_| true)? {
        output::say(serde_json::to_string(&Line { id: &asked.id, prompt: &asked.text })?)?;
    }
    Ok(())
}

/// Returns what the named logs asked, of the runs that are wanted.
///
/// # Errors
/// Where a file cannot be read.
pub(super) fn of_logs(matches: &ArgMatches, is_wanted: &dyn Fn(&str) -> bool) -> anyhow::Result<Vec<AskedPrompt>> {
    let mut asked = Vec::new();
    let mut nth = 0;
    for path in matches.get_many::<PathBuf>("history").into_iter().flatten() {
        let context = || format!("cannot use {}", path.display());
        for entry in History::open(path).with_context(context)? {
            if let Entry::Step(step) = entry.with_context(context)? {
                let id = step_id(&step, nth);
                nth += 1;
                if is_wanted(step.origin.run.as_deref().unwrap_or("?")) {
                    asked.push(AskedPrompt { id, text: step.prompt });
                }
            }
        }
    }
    Ok(asked)
}
