//! `idiolect mutate prompts`: prompts as validators compose them, to measure with.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_arena::texts::{built_in, compose};

pub(super) fn command() -> Command {
    Command::new("prompts")
        .about("Compose prompts with criteria as validators do, over texts that come with Idiolect")
        .after_help(
            "Each line is {\"p\": ID, \"prompt\": PROMPT, \"task\": TASK, \"base_text\": TEXT}: what mutate eval --backend takes as --prompts.\n\
             Example: idiolect mutate prompts --seed 1 -n 60 --out prompts.jsonl",
        )
        .arg(
            Arg::new("n")
                .short('n')
                .long("number")
                .value_name("N")
                .default_value("60")
                .value_parser(value_parser!(u16).range(1..))
                .help("How many; each text is used once before any is again"),
        )
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("S")
                .default_value("0")
                .value_parser(value_parser!(u64))
                .help("What texts, tasks and criteria are drawn by"),
        )
        .arg(
            Arg::new("out")
                .long("out")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Where to write them [default: standard output]"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let n = matches.get_one::<u16>("n").copied().unwrap_or(60);
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or(0);
    let mut out: Box<dyn Write> = match matches.get_one::<PathBuf>("out") {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            Box::new(BufWriter::new(file))
        }
        None => Box::new(std::io::stdout().lock()),
    };
    for prompt in compose(&built_in(), n.into(), seed) {
        writeln!(out, "{}", serde_json::to_string(&prompt)?)?;
    }
    Ok(out.flush()?)
}
