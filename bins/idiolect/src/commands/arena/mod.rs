//! `idiolect arena`: whether a configuration would win, before anything is paid.

pub(super) mod contestant;
pub(super) mod field;
pub(super) mod page;
mod prompts;
mod replay;
mod run;
mod serve_validator;
mod verify;

use clap::{ArgMatches, Command};

pub(crate) fn command() -> Command {
    Command::new("arena")
        .about("Find out offline what validators' arithmetic makes of replies among those of many other models")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            run::command(),
            replay::command(),
            prompts::command(),
            serve_validator::command(),
            verify::command(),
        ])
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.subcommand() {
        Some(("run", matches)) => run::run(matches).await,
        Some(("replay", matches)) => replay::run(matches).await,
        Some(("prompts", matches)) => prompts::run(matches),
        Some(("serve-validator", matches)) => serve_validator::run(matches).await,
        Some(("verify", matches)) => verify::run(matches).await,
        _ => Ok(()),
    }
}
