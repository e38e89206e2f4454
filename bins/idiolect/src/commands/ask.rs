//! `idiolect ask`: the whole pipeline once, without a network.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command};
use idiolect_miner::app::Core;
use idiolect_miner::cli;
use idiolect_miner::progress::FetchProgress;
use idiolect_pipeline::{Answer, Ask};
use serde_json::json;

use super::{json_arg, prompt_args, prompt_of};
use crate::output;

pub(crate) fn command() -> Command {
    let command = Command::new("ask")
        .about("Answer a prompt as the miner would, and show every candidate, its scores and the choice")
        .after_help("Example: idiolect ask \"Why is the sky blue?\" --candidates 8\nNothing leaves the machine unless a backend is a remote one.")
        .arg(Arg::new("prompt").required(true).help("What to ask; - reads it from standard input"));
    let command = prompt_args(command)
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("DURATION")
                .allow_hyphen_values(true)
                .value_parser(super::timeout)
                .help("How long it may take, such as 5, 0.5 or 500ms [default: pipeline.cap less pipeline.margin, as for a validator]"),
        )
        .arg(
            Arg::new("reply-only")
                .long("reply-only")
                .action(ArgAction::SetTrue)
                .help("Print the reply and nothing else"),
        )
        .arg(json_arg());
    cli::config_args(command)
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = super::load(matches)?;
    let config = &loaded.config;
    super::start_logging(&loaded)?;
    let prompt = prompt_of(matches)?;
    let core = Core::load(config, &cli::process_env(), &FetchProgress::default()).await?;
    let mut ask = Ask::new(prompt);
    let usual = config.pipeline.cap.saturating_sub(config.pipeline.margin);
    ask.timeout = matches.get_one::<Duration>("timeout").copied().unwrap_or(usual);
    let answered = core.pipeline.answer(ask).await;
    core.close().await;
    let answer = answered.context("no reply")?;
    if matches.get_flag("json") {
        return output::json(&json!({ "reply": answer.reply.completions.first(), "provenance": answer.provenance }));
    }
    print(&answer, matches.get_flag("reply-only"))
}

fn print(answer: &Answer, reply_only: bool) -> anyhow::Result<()> {
    let reply = answer.reply.completions.first().map_or("", |reply| reply.trim());
    if reply_only {
        return Ok(output::say(reply)?);
    }
    output::say(answer.provenance.to_string().trim_end())?;
    Ok(output::say(format!("\nthe reply:\n{reply}"))?)
}
