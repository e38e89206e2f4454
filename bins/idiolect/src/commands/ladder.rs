//! `idiolect ladder`: from the arena to the network that pays, a rung at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::{Arg, ArgMatches, Command, value_parser};
use idiolect_arena::ladder::{Figures, Gate, Ladder, LogFigures, Record, Rung, Standing, Status, Uid};
use idiolect_dataset::{Entry, History};
use idiolect_miner::config::Loaded;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::arena::contestant;
use super::{Usage, json_arg};
use crate::output;

/// Settings that say where a miner is, and not what it says.
const ELSEWHERE: [&str; 17] = [
    "network",
    "netuid",
    "preset",
    "data_dir",
    "axon.",
    "metrics.",
    "wallet.",
    "policy.",
    "transports.",
    "queue.",
    "log",
    "ready_file",
    "pipeline.store",
    "pipeline.retention",
    "pipeline.max_replies",
    "models.",
    "uniqueness.shared_history",
];
/// A larger file, such as a model, is known by its size.
const MOST_HASHED: u64 = 16 << 20;

pub(crate) fn command() -> Command {
    let rung =
        || Arg::new("rung").value_name("RUNG").required(true).value_parser(rung).help("arena, local, test or target");
    Command::new("ladder")
        .about("Practise before paying: what a configuration has shown in the arena, on a local chain, on a test network")
        .after_help(
            "The rungs are arena, local, test, target. One is passed with enough steps, few masked replies, a place whose interval of 95 % is surely in the better part of a batch, and no \
             missed call. What was shown counts for the configuration that showed it; it is void once that changes (where the miner is, such as ports and wallets, is no part of it; the \
             content of files that it names is).\n\
             --gates is a TOML file, one table for each rung: [arena], steps = 300, masked_share = 0.1, place_part = 0.5, missed = 0.\n\
             Example: idiolect arena run --population arena --contestant miner.toml --steps 600 --json > run.json; idiolect ladder record arena run.json --config miner.toml",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            common(Command::new("status").about("Show what is passed, with the figures, and what is missing")).arg(
                Arg::new("require")
                    .long("require")
                    .value_name("RUNG")
                    .value_parser(self::rung)
                    .help("Exit with 1 unless this rung and all before it are passed"),
            ),
            common(Command::new("record").about("Record what was shown, out of a report of the arena or a log of a validator"))
                .arg(rung())
                .arg(
                    Arg::new("report")
                        .value_name("FILE")
                        .required(true)
                        .value_parser(value_parser!(PathBuf))
                        .help("What `arena run --json` printed, or a validators' log, such as that of `arena serve-validator`"),
                )
                .arg(
                    Arg::new("contestant")
                        .long("contestant")
                        .value_name("NAME")
                        .help("Who it is in the report [default: the configuration's file's name]"),
                )
                .arg(Arg::new("uid").long("uid").value_name("N").value_parser(value_parser!(u32)).help("Which uid it is in the log"))
                .arg(
                    Arg::new("hotkey")
                        .long("hotkey")
                        .value_name("SS58")
                        .conflicts_with("uid")
                        .help("Whose uid it is in the log, by its state rows"),
                ),
        ])
}

fn common(command: Command) -> Command {
    command
        .arg(
            Arg::new("config")
                .long("config")
                .short('c')
                .value_name("FILE")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("The miner's configuration"),
        )
        .arg(
            Arg::new("ladder")
                .long("ladder")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Where it is kept [default: ladder.json in the configuration's data_dir]"),
        )
        .arg(
            Arg::new("gates")
                .long("gates")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("What each rung asks for"),
        )
        .arg(json_arg())
}

fn rung(text: &str) -> Result<Rung, String> {
    Rung::of_name(text).ok_or_else(|| format!("is {text}, expected arena, local, test or target"))
}

/// Returns a hash of all settings that decide what a miner says, and of the files that they name.
pub(super) fn hash(loaded: &Loaded) -> String {
    let mut hasher = Sha256::new();
    if let Value::Object(settings) = loaded.to_json(false) {
        for (key, value) in &settings {
            if ELSEWHERE.iter().any(|start| key.starts_with(start)) {
                continue;
            }
            hasher.update(format!("{key}={value}\n"));
            named(value, &mut hasher);
        }
    }
    hasher.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Takes in the files that a value names.
fn named(value: &Value, hasher: &mut Sha256) {
    match value {
        Value::String(text) => {
            let path = Path::new(text);
            // Short words are seldom files, even where one is called so.
            let is_path = path.components().count() > 1 || path.extension().is_some();
            let Ok(about) = std::fs::metadata(path) else { return };
            if !is_path || !about.is_file() {
                return;
            }
            match std::fs::read(path) {
                Ok(bytes) if about.len() <= MOST_HASHED => hasher.update(bytes),
                _ => hasher.update(about.len().to_le_bytes()),
            }
        }
        Value::Array(list) => list.iter().for_each(|value| named(value, hasher)),
        Value::Object(values) => values.values().for_each(|value| named(value, hasher)),
        _ => {}
    }
}

/// What rungs ask for, as a file has it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gates {
    arena: Option<GateOf>,
    local: Option<GateOf>,
    test: Option<GateOf>,
    target: Option<GateOf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GateOf {
    steps: Option<usize>,
    masked_share: Option<f64>,
    place_part: Option<f64>,
    missed: Option<usize>,
}

fn gates(matches: &ArgMatches) -> anyhow::Result<BTreeMap<Rung, Gate>> {
    let read = match matches.get_one::<PathBuf>("gates") {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            toml::from_str::<Gates>(&text).with_context(|| format!("--gates {}", path.display()))?
        }
        None => Gates::default(),
    };
    let mut gates = BTreeMap::new();
    for (rung, of) in
        [(Rung::Arena, read.arena), (Rung::Local, read.local), (Rung::Test, read.test), (Rung::Target, read.target)]
    {
        let base = Gate::default();
        let gate = of.map_or(base, |of| Gate {
            steps: of.steps.unwrap_or(base.steps),
            masked_share: of.masked_share.unwrap_or(base.masked_share),
            place_part: of.place_part.unwrap_or(base.place_part),
            missed: of.missed.unwrap_or(base.missed),
        });
        for (key, value) in [("masked_share", gate.masked_share), ("place_part", gate.place_part)] {
            if !(0.0..=1.0).contains(&value) {
                let problem = format!("--gates: {}.{key} is {value}, expected a number from 0 to 1", rung.as_str());
                return Err(Usage(problem).into());
            }
        }
        gates.insert(rung, gate);
    }
    Ok(gates)
}

#[derive(Debug, Serialize)]
struct Report {
    configuration: String,
    ladder: PathBuf,
    gates: BTreeMap<&'static str, Gate>,
    rungs: Vec<Status>,
}

pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    let path = matches.get_one::<PathBuf>("config").context("name a configuration")?;
    let loaded = contestant::configuration(path, matches)?;
    let configuration = hash(&loaded);
    let place =
        matches.get_one::<PathBuf>("ladder").cloned().unwrap_or_else(|| loaded.config.data_dir.join("ladder.json"));
    let mut ladder = Ladder::open(&place)?;
    let gates = gates(matches)?;
    if name == "record" {
        let rung = *matches.get_one::<Rung>("rung").context("name a rung")?;
        let record = record(matches, rung, path, configuration.clone(), gates.get(&rung).copied().unwrap_or_default())?;
        ladder.records.push(record);
        ladder.save(&place)?;
    }
    let rungs = ladder.status(&configuration, &gates);
    let short =
        matches.try_get_one::<Rung>("require").ok().flatten().copied().filter(|required| {
            rungs.iter().any(|status| status.rung <= *required && status.standing != Standing::Passed)
        });
    let gates = gates.into_iter().map(|(rung, gate)| (rung.as_str(), gate)).collect();
    let report = Report { configuration, ladder: place, gates, rungs };
    if matches.get_flag("json") {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    match short {
        Some(rung) => bail!("the ladder up to {} is not passed", rung.as_str()),
        None => Ok(()),
    }
}

fn record(
    matches: &ArgMatches,
    rung: Rung,
    configured: &Path,
    configuration: String,
    gate: Gate,
) -> anyhow::Result<Record> {
    let path = matches.get_one::<PathBuf>("report").context("name a report")?;
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let report: Option<Value> =
        serde_json::from_str(&text).ok().filter(|report: &Value| report["standings"].is_array());
    let figures = match &report {
        Some(report) if rung == Rung::Arena => of_report(matches, report, path, configured, &configuration)?,
        Some(_) => {
            let problem = format!(
                "{} is a report of the arena, expected a validators' log for {}",
                path.display(),
                rung.as_str()
            );
            return Err(Usage(problem).into());
        }
        None => of_log(matches, path)?,
    };
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Ok(Record { rung, configuration, gate, figures, source: path.display().to_string(), time })
}

/// Reads what a contestant did in a tournament. It must have been this configuration that was asked.
fn of_report(
    matches: &ArgMatches,
    report: &Value,
    path: &Path,
    configured: &Path,
    configuration: &str,
) -> anyhow::Result<Figures> {
    let stem = configured.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let name = matches.get_one::<String>("contestant").cloned().unwrap_or(stem);
    match report["configurations"][&name].as_str() {
        Some(other) if other == configuration => {}
        Some(other) => bail!(
            "{}: {name} was configuration {other}, this one is {configuration}: it has changed since, and has to be run again",
            path.display()
        ),
        None => bail!(
            "{}: {name} is not there, or was no configuration; expected a report in which `--contestant {}` was asked",
            path.display(),
            configured.display()
        ),
    }
    let all = report["standings"].as_array().context("no standings")?;
    let own =
        all.iter().find(|one| one["name"] == name.as_str() && one["contestant"] == true).context("no standing")?;
    let number = |value: &Value| value.as_f64().context("no number where one is expected");
    let place = &own["intervals"]["place_mean"];
    let steps = own["steps"].as_u64().and_then(|n| usize::try_from(n).ok()).context("no steps")?;
    let missed = (number(&own["failed_share"])? * steps as f64).round();
    // With fewer models than a batch has seats all of them are in it.
    let seats = number(&report["rules"]["batch"])?.min(number(&report["n_models"])? + 1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most as many as steps")]
    let missed = missed as usize;
    Ok(Figures {
        steps,
        masked_share: number(&own["masked_share"])?,
        place: [number(&place["value"])?, number(&place["low"])?, number(&place["high"])?],
        batch: seats,
        missed,
    })
}

/// Reads what a uid did by a log.
fn of_log(matches: &ArgMatches, path: &Path) -> anyhow::Result<Figures> {
    let context = || format!("cannot use {}", path.display());
    let uid = match (matches.get_one::<u32>("uid"), matches.get_one::<String>("hotkey")) {
        (Some(uid), _) => *uid,
        (None, Some(hotkey)) => {
            let mut found = None;
            for entry in History::open(path).with_context(context)? {
                if let Entry::State(state) = entry.with_context(context)? {
                    found = state.hotkeys.iter().position(|other| other == hotkey).or(found);
                }
            }
            let found = found.and_then(|uid| u32::try_from(uid).ok());
            found.with_context(|| format!("{} has no {hotkey} in its state rows", path.display()))?
        }
        (None, None) => return Err(Usage("a log needs --uid or --hotkey: whose calls are they?".to_owned()).into()),
    };
    let mut figures = LogFigures::default();
    for entry in History::open(path).with_context(context)? {
        figures.take(&entry.with_context(context)?, Uid(uid));
    }
    figures.figures(0).with_context(|| format!("uid {uid} was asked in no step of {}", path.display()))
}

fn print(report: &Report) -> anyhow::Result<()> {
    output::say(format!("configuration {}, {}", report.configuration, report.ladder.display()))?;
    let row = |status: &Status| {
        let standing = match status.standing {
            Standing::Passed => "passed",
            Standing::Waits => "waits",
            Standing::Short => "short",
            Standing::Void => "void",
            Standing::Open => "open",
        };
        let mut row = vec![status.rung.as_str().to_owned(), standing.to_owned()];
        match &status.record {
            Some(Record { figures, .. }) => {
                let [place, low, high] = figures.place;
                row.extend([
                    figures.steps.to_string(),
                    format!("{:.3}", figures.masked_share),
                    format!("{place:.1} ({low:.1} to {high:.1}) of {:.0}", figures.batch),
                    figures.missed.to_string(),
                ]);
            }
            None => row.extend(["", "", "", ""].map(str::to_owned)),
        }
        row.push(status.lacks.join("; "));
        row
    };
    let rows: Vec<Vec<String>> = report.rungs.iter().map(row).collect();
    Ok(output::columns(&["rung", "", "steps", "masked", "place", "missed", "what is missing"], &rows)?)
}
