//! `idiolect mutate`: the operators that vary prompts.

mod eval;
mod evolve;
mod learn;
mod lint;
mod list;
mod preview;
mod prompts;
mod replay;

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_miner::config::Config;
use idiolect_mutation::{Library, LibraryError};

pub(crate) fn command() -> Command {
    Command::new("mutate")
        .about("Look at the operators that vary prompts, and at the choice among replies: list and check them, see what they make of a prompt, measure choices, judge policies")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([list::command(), lint::command(), preview::command(), prompts::command(), eval::command(), learn::command(), evolve::command(), replay::command()])
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.subcommand() {
        Some(("list", matches)) => list::run(matches),
        Some(("lint", matches)) => lint::run(matches),
        Some(("preview", matches)) => preview::run(matches),
        Some(("prompts", matches)) => prompts::run(matches),
        Some(("eval", matches)) => eval::run(matches).await,
        Some(("learn", matches)) => learn::run(matches).await,
        Some(("evolve", matches)) => evolve::run(matches).await,
        Some(("replay", matches)) => replay::run(matches),
        _ => Ok(()),
    }
}

/// The argument that names a library.
fn file_arg() -> Arg {
    Arg::new("file")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("A library [default: that of mutation.operators, else the built-in one]")
}

/// Reads the library that was named, else the configured one, else the built-in one.
fn library(matches: &ArgMatches, config: &Config) -> Result<Library, LibraryError> {
    let named = matches.get_one::<PathBuf>("file").or(config.mutation.operators.as_ref());
    named.map_or_else(|| Ok(Library::built_in()), |path| Library::load(path))
}
