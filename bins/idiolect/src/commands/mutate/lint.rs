//! `idiolect mutate lint`: what may be wrong with a library, and what replies show of it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_miner::cli;
use idiolect_mutation::lint::{self, Finding, Row, Sharing};
use idiolect_mutation::{LibraryError, Problem};
use serde::Deserialize;
use serde_json::json;

use super::super::{json_arg, load};
use super::{file_arg, library};
use crate::{output, replies};

pub(crate) fn command() -> Command {
    let command = Command::new("lint")
        .about("Check a library of operators, and what replies show of them")
        .after_help(
            "Finds what the miner would refuse, operators that are never drawn, routes that are never reached, texts that \
             lead to what validators punish, and runs of 5 words that several operators' texts share.\n\
             With --replies it measures for each operator the share of replies that have a run of 5 words in common which \
             their prompts do not have; more than 2 % is a finding. Where an operator's replies answer several prompts, the \
             run has to occur in answers to more than one. A row is {\"operators\": [NAME, ...], \"text\": TEXT, \"prompt\": TEXT}; \
             no operators for the prompt as it came, and the prompt may be left out.\n\
             Exit code 1 where anything is found.\n\
             Examples: idiolect mutate lint operators.toml; idiolect mutate lint --replies replies.jsonl --json",
        )
        .arg(file_arg())
        .arg(
            Arg::new("replies")
                .long("replies")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Replies with their operators, one JSON object a line; - is standard input"),
        )
        .arg(json_arg());
    cli::key_args(command, |key| key == "mutation.operators")
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    let as_json = matches.get_flag("json");
    let library = match library(matches, &loaded.config) {
        Ok(library) => library,
        Err(LibraryError::Invalid { name, problems }) => return refused(&name, &problems, as_json),
        Err(error) => return Err(error.into()),
    };
    let rows = matches.get_one::<PathBuf>("replies").map(|path| read(path)).transpose()?;
    let mut findings = lint::library(&library);
    let sharing = rows.as_deref().map(lint::sharing).unwrap_or_default();
    findings.extend(lint::replies(&library, rows.as_deref().unwrap_or_default()));
    if as_json {
        output::json(&json!({ "problems": [], "findings": findings, "sharing": sharing }))?;
    } else {
        show(&findings, &sharing)?;
    }
    if findings.is_empty() {
        if !as_json {
            output::say(format!("nothing found in {library}"))?;
        }
        return Ok(());
    }
    bail!("{} found", plural(findings.len(), "thing"))
}

fn refused(name: &str, problems: &[Problem], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let problems: Vec<_> = problems.iter().map(|p| json!({ "line": p.line, "message": p.message })).collect();
        output::json(&json!({ "problems": problems, "findings": [], "sharing": [] }))?;
    } else {
        for problem in problems {
            output::say(format!("{name}:{}: {}", problem.line, problem.message))?;
        }
    }
    bail!("{} in {name}, which no miner would start with", plural(problems.len(), "bad value"))
}

fn show(findings: &[Finding], sharing: &[Sharing]) -> anyhow::Result<()> {
    if !sharing.is_empty() {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let rows = sharing.iter().map(|sharing| {
            vec![
                sharing.operator.clone().unwrap_or_else(|| "no-op".to_owned()),
                sharing.n_replies.to_string(),
                percent(sharing.share),
                percent(sharing.elsewhere),
                sharing.run.clone(),
            ]
        });
        output::columns(&["operator", "replies", "sharing", "elsewhere", "run of words"], &rows.collect::<Vec<_>>())?;
    }
    for finding in findings {
        let of = finding.operator.as_deref().unwrap_or("library");
        output::say(format!("{of}: {}", finding.message))?;
    }
    Ok(())
}

fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    operators: Vec<Named>,
    #[serde(default)]
    prompt: String,
    #[serde(alias = "reply", alias = "completion")]
    text: String,
}

/// An operator by its name, or as a record of a reply has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Named {
    Name(String),
    Applied { name: String },
}

fn read(path: &Path) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    replies::read_lines(path, &mut |number, text| {
        let line: Line = serde_json::from_str(text).with_context(|| {
            format!("line {number} is no row, expected a JSON object with text and, if wanted, operators and prompt")
        })?;
        let operators = line.operators.into_iter().map(|named| match named {
            Named::Name(name) | Named::Applied { name } => name,
        });
        rows.push(Row { operators: operators.collect(), prompt: line.prompt, text: line.text });
        Ok(())
    })?;
    if rows.is_empty() {
        bail!("there are no replies in {}", replies::name(path));
    }
    Ok(rows)
}
