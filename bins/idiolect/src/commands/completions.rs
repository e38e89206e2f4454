//! `idiolect completions`: completion scripts for shells.

use std::io::Write as _;

use clap::{Arg, ArgMatches, Command, value_parser};
use clap_complete::Shell;

pub(crate) fn command() -> Command {
    Command::new("completions")
        .about("Print a completion script for a shell")
        .after_help("Example: idiolect completions bash > ~/.local/share/bash-completion/completions/idiolect")
        .arg(Arg::new("shell").required(true).value_parser(value_parser!(Shell)).help("The shell"))
        .arg(miner_arg())
}

/// The flag that chooses the miner's command instead of the tool's.
pub(crate) fn miner_arg() -> Arg {
    Arg::new("miner").long("miner").action(clap::ArgAction::SetTrue).help("For idiolect-miner instead of this tool")
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let Some(shell) = matches.get_one::<Shell>("shell") else { return Ok(()) };
    let mut command = if matches.get_flag("miner") { idiolect_miner::cli::command() } else { super::command() };
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut command, name, &mut script);
    Ok(std::io::stdout().lock().write_all(&script)?)
}
