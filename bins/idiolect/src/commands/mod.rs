//! The subcommands: one file each, with `command` (its arguments) and `run`.

mod completions;
mod config;
mod man;
mod models;
mod wallet;

use clap::{Arg, ArgAction, ArgMatches, Command};
use idiolect_miner::cli;
use idiolect_miner::config::{Loaded, load as load_config};

/// Makes the tool's command.
pub(crate) fn command() -> Command {
    Command::new("idiolect")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Looks after an Idiolect miner: ask, probe, explain, models, configuration, keys")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([models::command(), config::command(), wallet::command(), completions::command(), man::command()])
}

/// Runs the subcommand that was asked for.
///
/// # Errors
/// Whatever the subcommand could not do.
pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.subcommand() {
        Some(("models", matches)) => models::run(matches).await,
        Some(("config", matches)) => config::run(matches),
        Some(("wallet", matches)) => wallet::run(matches),
        Some(("completions", matches)) => completions::run(matches),
        Some(("man", matches)) => man::run(matches),
        _ => Ok(()),
    }
}

/// The flag of every command that prints data.
fn json_arg() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print JSON")
}

/// Loads the configuration that a command's settings, the environment and the file give.
fn load(matches: &ArgMatches) -> anyhow::Result<Loaded> {
    let sources = cli::sources(matches, cli::process_env())?;
    Ok(load_config(&sources)?)
}
