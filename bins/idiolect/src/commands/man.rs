//! `idiolect man`: manual pages.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};

use super::completions::miner_arg;

pub(crate) fn command() -> Command {
    Command::new("man")
        .about("Print the manual page, or write all pages into a folder")
        .arg(
            Arg::new("dir")
                .long("dir")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Write a page for each command there"),
        )
        .arg(miner_arg())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let command = if matches.get_flag("miner") { idiolect_miner::cli::command() } else { super::command() };
    match matches.get_one::<PathBuf>("dir") {
        Some(dir) => {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
            clap_mangen::generate_to(command, dir).with_context(|| format!("cannot write pages into {}", dir.display()))
        }
        None => Ok(std::io::stdout().lock().write_all(&page(command)?)?),
    }
}

fn page(command: Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}
