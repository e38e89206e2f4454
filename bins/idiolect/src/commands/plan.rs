//! `idiolect plan`: would it pay?

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_miner::config::{PRESETS, PresetKind, preset};
use idiolect_plan::{Assumptions, Date, FIELDS, Inputs, Plan, Range};
use serde_json::Value;

use super::{Usage, json_arg};
use crate::output;

pub(crate) fn command() -> Command {
    let mut command = Command::new("plan")
        .about("Would a miner earn its registration back? Income, cost, break-even, and the honest answer \"don't\"")
        .after_help(
            "Values come from flags, else from --snapshot, else defaults; the answer lists all of them with their dates. A snapshot is a TOML file: date = \"2026-11-20\", burn_tao = 0.5 or \
             burn_tao = { value = 0.5, date = \"2026-11-19\", source = \"btcli\" }, and incentives = [...], each miner's incentive.\n\
             What the miner would earn is a share of the weights, or a place among all miners, each with an interval of 95 %: VALUE or VALUE:LOW:HIGH. --arena takes it from what `arena \
             replay --json` or `arena run --json` printed.\n\
             --preset says which network it is for. Where nothing can be earned with this protocol, it says why, and no plan is made.\n\
             Example: idiolect plan --snapshot prices.toml --gpu-usd-per-hour 0.34 --arena replay.json --contestant ours --explain",
        )
        .arg(
            Arg::new("preset")
                .long("preset")
                .value_name("NAME")
                .default_value("custom")
                .help("Which network: custom, or one of `idiolect config presets`"),
        )
        .arg(
            Arg::new("snapshot")
                .long("snapshot")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("What is known of the network and of prices, with dates"),
        )
        .arg(
            Arg::new("weight-share")
                .long("weight-share")
                .value_name("SHARE")
                .value_parser(range)
                .conflicts_with("arena")
                .help("Share of the weights, 0 to 1, such as 0.004:0.002:0.007"),
        )
        .arg(
            Arg::new("place")
                .long("place")
                .value_name("PLACE")
                .value_parser(range)
                .conflicts_with("arena")
                .help("Place among all miners, such as 40:25:60; with incentives it says what is earned"),
        )
        .arg(
            Arg::new("arena")
                .long("arena")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("What `arena replay --json` or `arena run --json` printed"),
        )
        .arg(
            Arg::new("contestant")
                .long("contestant")
                .value_name("NAME")
                .requires("arena")
                .help("Whose figures to take from it [default: those of the only one]"),
        )
        .arg(
            Arg::new("today")
                .long("today")
                .value_name("DATE")
                .value_parser(|text: &str| text.parse::<Date>().map_err(|problem| problem.to_string()))
                .help("The day that ages are counted from [default: today]"),
        )
        .arg(
            Arg::new("futures")
                .long("futures")
                .value_name("N")
                .default_value("10000")
                .value_parser(value_parser!(u32).range(100..=1_000_000))
                .help("How many futures are drawn"),
        )
        .arg(Arg::new("seed").long("seed").value_name("S").default_value("0").value_parser(value_parser!(u64)).help("What they are drawn by"))
        .arg(Arg::new("explain").long("explain").action(ArgAction::SetTrue).help("Print every formula, with its numbers and where it comes from"))
        .arg(json_arg());
    for field in FIELDS {
        let unit = if field.unit.is_empty() { String::new() } else { format!(", {}", field.unit) };
        let default = field.default.map_or_else(String::new, |value| format!(" [default: {value}]"));
        command = command.arg(
            Arg::new(field.key)
                .long(field.flag)
                .value_name("X")
                .value_parser(value_parser!(f64))
                .allow_negative_numbers(true)
                .help(format!("{}{unit}{default}", field.about)),
        );
    }
    command
}

/// Reads `VALUE` or `VALUE:LOW:HIGH`.
fn range(text: &str) -> Result<Range, String> {
    let numbers: Option<Vec<f64>> = text.split(':').map(|part| part.trim().parse().ok()).collect();
    match numbers.as_deref() {
        Some(&[value]) => Ok(Range { value, low: value, high: value }),
        Some(&[value, low, high]) => Ok(Range { value, low, high }),
        _ => Err(format!("is {text}, expected VALUE or VALUE:LOW:HIGH")),
    }
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    refuse(matches.get_one::<String>("preset").map_or("custom", String::as_str))?;
    let today = match matches.get_one::<Date>("today") {
        Some(date) => *date,
        None => Date::new(time::OffsetDateTime::from(SystemTime::now()).date()),
    };
    let mut inputs = Inputs::new();
    for field in FIELDS {
        if let Some(value) = matches.get_one::<f64>(field.key) {
            let set = inputs.set_flag(field.key, *value, today);
            set.map_err(|problem| Usage(format!("--{}: {problem}", field.flag)))?;
        }
    }
    if let Some(path) = matches.get_one::<PathBuf>("snapshot") {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        inputs.add_snapshot(&text).with_context(|| format!("cannot use {}", path.display()))?;
    }
    let mut assumptions = Assumptions {
        weight_share: matches.get_one::<Range>("weight-share").copied(),
        place: matches.get_one::<Range>("place").copied(),
        futures: matches.get_one::<u32>("futures").map_or(10_000, |&n| n as usize),
        seed: matches.get_one::<u64>("seed").copied().unwrap_or(0),
        source: "flags".to_owned(),
        ..Assumptions::default()
    };
    if let Some(path) = matches.get_one::<PathBuf>("arena") {
        let name = matches.get_one::<String>("contestant").map(String::as_str);
        assumptions = of_arena(path, name, inputs.value("n_miners")?, assumptions)?;
    }
    let plan = Plan::new(&inputs, &assumptions, today)?;
    if matches.get_flag("json") {
        return output::json(&plan);
    }
    output::say(plan.to_string().trim_end())?;
    if matches.get_flag("explain") {
        output::say(format!("\n{}", plan.explain().trim_end()))?;
    }
    Ok(())
}

/// Ends with the reason where nothing can be earned on a network.
fn refuse(name: &str) -> anyhow::Result<()> {
    let Some(preset) = preset(name) else {
        let known: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        return Err(Usage(format!("--preset: there is no {name}, expected one of {}", known.join(", "))).into());
    };
    match preset.kind {
        PresetKind::Card => bail!("don't: {}. {}", preset.summary, preset.about),
        PresetKind::Historic => {
            bail!(
                "don't: nothing is paid for it any more, {}. {} For a subnet of your own that works alike: --preset custom",
                preset.summary,
                preset.about
            )
        }
        PresetKind::Runs if preset.name == "local" => {
            bail!("don't: nothing of value is earned on this machine, and none is burnt. {}", preset.about)
        }
        PresetKind::Runs => Ok(()),
    }
}

/// Takes the share of the weights out of a report. Among more miners than there it is less in proportion, and the place is further back.
fn of_arena(path: &Path, name: Option<&str>, n_miners: f64, base: Assumptions) -> anyhow::Result<Assumptions> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let context = || format!("{} is no report of the arena", path.display());
    let report: Value = serde_json::from_str(&text).with_context(context)?;
    let replayed = report["contestants"].as_array().map(|all| (all, true));
    let found = replayed.or_else(|| report["standings"].as_array().map(|all| (all, false)));
    let (all, is_replay) = found.with_context(context)?;
    let ours: Vec<&Value> = all.iter().filter(|one| is_replay || one["contestant"] == true).collect();
    let names: Vec<&str> = ours.iter().filter_map(|one| one["name"].as_str()).collect();
    let own = match name {
        Some(name) => ours.iter().find(|one| one["name"] == name),
        None if ours.len() == 1 => ours.first(),
        None => None,
    };
    let Some(own) = own else {
        let problem = format!("--contestant: {} has {}", path.display(), names.join(", "));
        return Err(Usage(format!("{problem}; expected one of them")).into());
    };
    let number = |value: &Value| value.as_f64().with_context(context);
    let range = |value: &Value| -> anyhow::Result<Range> {
        let (value, low, high) = (number(&value["value"])?, number(&value["low"])?, number(&value["high"])?);
        // Means of skewed draws may lie beside their interval.
        Ok(Range { value, low: low.min(value), high: high.max(value) })
    };
    let name = own["name"].as_str().unwrap_or_default();
    if is_replay {
        let runs = own["runs"].as_array().with_context(context)?;
        // The longest run says most.
        let run = runs.iter().max_by_key(|run| run["steps"].as_u64()).with_context(context)?;
        let n_there = number(&run["n_miners"])? + 1.0;
        let of_run = run["run"].as_str().unwrap_or_default();
        let (share, place) = (range(&run["weight_share"])?, range(&run["final_place"])?);
        let place = scaled(place, n_miners / n_there, n_miners);
        return Ok(Assumptions {
            weight_share: Some(scaled(share, n_there / n_miners, 1.0)),
            place: Some(Range { value: place.value.max(1.0), low: place.low.max(1.0), high: place.high.max(1.0) }),
            source: format!("{}, {name}, run {of_run}, among {n_there} miners", path.display()),
            ..base
        });
    }
    // A tournament has no interval of the weight: it moves with the reward.
    let share = number(&own["weight_share"])?;
    let reward = range(&own["intervals"]["mean_reward"])?;
    let by = |other: f64| if reward.value > 0.0 { share * other / reward.value } else { share };
    let share = Range { value: share, low: by(reward.low), high: by(reward.high) };
    let n_there = number(&report["n_models"])? + 1.0;
    Ok(Assumptions {
        weight_share: Some(scaled(share, n_there / n_miners, 1.0)),
        source: format!("{}, {name}, among {n_there} miners; its weight moves with its reward", path.display()),
        ..base
    })
}

fn scaled(range: Range, by: f64, most: f64) -> Range {
    let of = |value: f64| (value * by).clamp(0.0, most);
    Range { value: of(range.value), low: of(range.low), high: of(range.high) }
}
