//! `idiolect mutate replay`: what other policies would have had, by what was logged of one.

use std::fs::File;
use std::io::{self, BufReader};

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_mutation::policy::replay::{Interval, ReplayConfig, Target, read, replay};

use crate::commands::json_arg;
use crate::output;

pub(crate) fn command() -> Command {
    Command::new("replay")
        .about("Judge policies by a log of recipes, propensities and rewards")
        .after_help(
            "Each line of the log is an object with recipe (no-op, or angle.causes@1+register.plain@1), propensity, reward \
             (0 to 1) and, where known, request (rows of one request belong together) and context {protocol, task, \
             validator, features}.\n\
             Examples: idiolect mutate replay log.jsonl; idiolect mutate replay log.jsonl --policy fixed:angle.causes",
        )
        .arg(Arg::new("log").value_name("LOG.jsonl").required(true).help("The log; - for standard input"))
        .arg(
            Arg::new("policy")
                .long("policy")
                .value_name("POLICY")
                .action(ArgAction::Append)
                .value_parser(|text: &str| text.parse::<Target>())
                .help(
                    "A policy to judge: logged, no-op, uniform, greedy, thompson, linear, exp3 or fixed:OPERATOR[+OPERATOR]; \
                     may be given again [default: all but fixed]",
                ),
        )
        .arg(
            Arg::new("learn")
                .long("learn")
                .value_name("SHARE")
                .default_value("0.5")
                .value_parser(value_parser!(f64))
                .help("The share of the requests, the first ones, that policies and the model of rewards learn of; the rest judges"),
        )
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .default_value("0")
                .value_parser(value_parser!(u64))
                .help("The seed of all draws"),
        )
        .arg(json_arg())
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let name = matches.get_one::<String>("log").map_or("-", String::as_str);
    let rows = if name == "-" {
        read(io::stdin().lock(), "standard input")?
    } else {
        read(BufReader::new(File::open(name).with_context(|| format!("{name} cannot be read"))?), name)?
    };
    let targets: Vec<Target> = match matches.get_many::<Target>("policy") {
        Some(named) => named.cloned().collect(),
        None => Target::USUAL.to_vec(),
    };
    let mut config = ReplayConfig::default();
    if let Some(&share) = matches.get_one::<f64>("learn") {
        config.learn_share = share;
    }
    if let Some(&seed) = matches.get_one::<u64>("seed") {
        config.seed = seed;
    }
    let estimates = replay(&rows, &targets, &config)?;
    if matches.get_flag("json") {
        return output::json(&estimates);
    }
    if let Some(first) = estimates.first() {
        output::say(format!(
            "mean reward of {} requests, {} draws, with 95 % intervals",
            first.n_requests, first.n_rows
        ))?;
    }
    let rows = estimates.iter().map(|estimate| {
        vec![
            estimate.policy.clone(),
            estimate.snips.map_or_else(|| "never logged".to_owned(), shown),
            shown(estimate.doubly_robust),
            format!("{:.0}", estimate.effective_sample_size),
            format!("{:.1} %", 100.0 * estimate.clipped),
        ]
    });
    let head = ["policy", "weighted", "doubly robust", "effective draws", "clipped"];
    Ok(output::columns(&head, &rows.collect::<Vec<_>>())?)
}

fn shown(interval: Interval) -> String {
    let Interval { value, low, high } = interval;
    format!("{value:.3} ({low:.3} to {high:.3})")
}
