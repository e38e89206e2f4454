//! `idiolect mutate eval`: how many replies the gate would have masked, by who chose them, on a recorded population.

mod curve;
mod live;
mod record;
mod report;

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_miner::cli;

use crate::commands::{json_arg, profile_arg};

pub(super) fn command() -> Command {
    let number = |id: &'static str, name: &'static str, default: &'static str| {
        Arg::new(id).long(id).value_name(name).default_value(default)
    };
    let command = Command::new("eval")
        .about("Find out on recorded replies of many models how many of ours the gate would have masked, by who chose them")
        .after_help(
            "FILE has one reply a line, {\"p\": PROMPT, \"m\": MODEL, \"t\": TEXT, \"q\": LABEL}; q, a judge's probability in [0, 1], may be missing and is \
             reported on only. Each --own names the models that are ours, the first of which is sent without a choice; everybody else is a rival. With \
             --visible some rivals' replies to the same prompt are seen, all others are hidden; without any the choice is blind.\n\
             first: our first model. random: any of ours, in the mean. best-of-k: the best of ours by quality alone, with --prompts only: the dpo reward of \
             uniqueness.quality_model, which the selector weighs as well. farthest: from what is seen, or from each other. selector: what the miner \
             would choose. learned: by what the other prompts teach, cross-validated; --prompts tells it what was asked, and labels count for it as far as they are \
             those of other prompts. oracle: with the hidden rivals revealed. masked: by those. gap: how much of the way from random to oracle is gone. distance: to the nearest hidden rival. novel: share of replies that say what no rival says, hidden or seen, by classes of what the gate takes for the same. distinct: \
             such classes among ours. criteria: what the criteria of validators' prompts take, over the prompts of --prompts that have any. Intervals of 95 % are from a bootstrap over \
             prompts, p-values from a paired permutation test of the masked shares against random, adjusted by Holm's rule.\n\
             Example: idiolect mutate eval --replies arena.jsonl.zst --own gpt,gpt_concise,gpt_verbose --own alpaca,vicuna --visible 10 --encoder mpnet",
        )
        .arg(
            Arg::new("replies")
                .long("replies")
                .value_name("FILE")
                .required_unless_present("live")
                .conflicts_with("live")
                .value_parser(value_parser!(PathBuf))
                .help("Recorded replies: JSON lines, compressed where the name ends in .zst"),
        )
        .arg(
            Arg::new("own")
                .long("own")
                .value_name("MODEL,…")
                .required_unless_present("live")
                .conflicts_with("live")
                .action(ArgAction::Append)
                .help("Models that are ours; given again, another experiment"),
        )
        .arg(
            Arg::new("arms")
                .long("arms")
                .value_name("ARM,…")
                .value_delimiter(',')
                .value_parser(ARMS)
                .help("Ways to choose that are reported, of those that can be: plain is first on record, and selector is pipeline with --backend; best-of-k is always among them [default: all]"),
        )
        .arg(number("visible", "N", "10").value_parser(value_parser!(u16)).help("Rivals that are seen; 0 is blind"))
        .arg(number("panels", "N", "20").value_parser(value_parser!(u16).range(1..)).help("Draws of those that are seen, a prompt"))
        .arg(
            Arg::new("curve")
                .long("curve")
                .value_name("N,…")
                .num_args(0..=1)
                .default_missing_values(["0", "1", "2", "5", "10"])
                .value_delimiter(',')
                .value_parser(value_parser!(u16))
                .conflicts_with("live")
                .help("Report the gap closed by how many rivals are seen, N of them, and by how many of ours there are to choose from, too [default: 0,1,2,5,10]"),
        )
        .arg(
            number("subsets", "N", "10")
                .value_parser(value_parser!(u16).range(1..))
                .help("With --curve: sets of so many of ours that figures are the means of; drawn by the seed where there are more"),
        )
        .arg(
            Arg::new("taught")
                .long("taught")
                .action(ArgAction::SetTrue)
                .conflicts_with("live")
                .help("Let the selector use what the other prompts of FILE teach, as the miner does with uniqueness.distinctiveness; cross-validated"),
        )
        .arg(number("seed", "S", "0").value_parser(value_parser!(u64)).help("What the draws start from"))
        .arg(profile_arg())
        .arg(
            Arg::new("embeddings")
                .long("embeddings")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("Keep embeddings here for the next run; one that broke off goes on"),
        )
        .arg(
            Arg::new("plot")
                .long("plot")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with("live")
                .help("Draw the masked shares with their intervals into this file: .png or .svg"),
        )
        .arg(json_arg());
    cli::key_args(live::args(command), |key| {
        key.starts_with("uniqueness.encoder")
            || key == "uniqueness.device"
            || key.starts_with("models.")
            || live::is_key(key)
    })
}

/// All arms by their names, in either kind of experiment.
const ARMS: [&str; 9] =
    ["plain", "first", "random", "best-of-k", "farthest", "selector", "pipeline", "learned", "oracle"];

/// Says whether an arm is to be reported.
fn is_wanted(matches: &ArgMatches, arm: &str) -> bool {
    // As many candidates, and nothing known of anybody else: what all others are measured against.
    if arm.starts_with("best-of-k") {
        return true;
    }
    let is_same = |name: &str, other: &str| match (name, other) {
        ("plain", "first") | ("selector", "pipeline") => true,
        _ => name == other,
    };
    let mut names = matches.get_many::<String>("arms").into_iter().flatten().peekable();
    names.peek().is_none() || names.any(|name| is_same(name, arm) || is_same(arm, name))
}

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    match matches.get_one::<String>("live") {
        Some(spec) => live::run(matches, spec).await,
        None => record::run(matches).await,
    }
}
