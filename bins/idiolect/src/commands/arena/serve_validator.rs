//! `idiolect arena serve-validator`: a test validator for anybody's miner.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use async_trait::async_trait;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_arena::lines;
use idiolect_arena::lines::Lines;
use idiolect_arena::rivals::SYSTEM_PROMPTS;
use idiolect_arena::rounds::{
    Asked, Clock, EchoMiner, Miner, MinerRecord, PanelMiner, RoundRules, TestValidator, state_row, step_row,
};
use idiolect_arena::texts::{Text, built_in};
use idiolect_backend::{Backend, Sampling};
use idiolect_miner::backends::Loader;
use idiolect_miner::config::EncoderKind;
use idiolect_miner::progress::FetchProgress;
use idiolect_miner::{cli, models};
use idiolect_protocol::dendrite::{Dendrite, QueryOptions, Target, Via};
use idiolect_protocol::{Hotkey, Message, Prompt, Role};
use idiolect_validator::{Missing, Models, Validator};
use serde::Serialize;

use crate::commands::{Usage, json_arg, load, probe, profile, profile_arg, start_logging, timeout};
use crate::output;

/// As in validators' own configuration.
const PANEL_MOST: usize = 256;

pub(super) fn command() -> Command {
    let path = |id: &'static str, name: &'static str| {
        Arg::new(id).long(id).value_name(name).value_parser(value_parser!(PathBuf))
    };
    let command = Command::new("serve-validator")
        .about("Be a validator for miners that run: ask them in rounds, score their replies, and log what a validator logs")
        .after_help(
            "A round is a text and what validators ask about it: a summary, then questions about the best summary and answers to the best question, 4 of each in openvalidators 1.2 and 3 in \
             text-prompting 2.1. All miners of a step are asked at once; what takes longer than --timeout failed. Masks, penalties, moving averages and weights are the \
             profile's; of its reward models dpo is there, by uniqueness.quality_model, and the others add nothing, which the end says.\n\
             MINER is VIA://HOST:PORT/HOTKEY, VIA being grpc, http, stream, epistula or btauth; or echo, which repeats what it is asked; or panel:N, which is N stock miners \
             on this machine's own backends; each may have a name, NAME=MINER. Requests are signed as those of `idiolect probe`: a miner must let that key in.\n\
             --log has each step and, after each round, the moving averages, in the validators' own schema: `arena verify`, `arena replay` and scripts for validators' runs read it.\n\
             Example: idiolect arena serve-validator --miner mine=http://127.0.0.1:8091/5F… --miner panel:8 --rounds 5 --log events.jsonl",
        )
        .arg(
            Arg::new("miner")
                .long("miner")
                .value_name("MINER")
                .required(true)
                .action(ArgAction::Append)
                .value_parser(MinerSpec::from_str)
                .help("Whom to ask; may be given again"),
        )
        .arg(
            Arg::new("rounds")
                .long("rounds")
                .value_name("N")
                .value_parser(value_parser!(u32).range(1..))
                .help("Stop after so many rounds [default: go on until interrupted]"),
        )
        .arg(
            Arg::new("followups")
                .long("followups")
                .value_name("N")
                .value_parser(value_parser!(u8).range(0..=16))
                .help("Questions and answers of a round [default: the profile's]"),
        )
        .arg(
            Arg::new("batch")
                .long("batch")
                .value_name("K")
                .default_value("50")
                .value_parser(value_parser!(u16).range(1..))
                .help("Miners that are asked in a step"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("TIME")
                .value_parser(timeout)
                .help("How long a miner has: seconds, or with a unit [default: 10]"),
        )
        .arg(path("texts", "FILE").help("Texts to ask about, {\"id\": ID, \"title\": TITLE, \"text\": TEXT} a line [default: built in]"))
        .arg(path("log", "FILE").help("Append what a validator logs, a JSON object a line"))
        .arg(path("state", "FILE").help("Go on from the moving averages, statistics and history in this file, and save them there after each round"))
        .arg(Arg::new("seed").long("seed").value_name("S").default_value("0").value_parser(value_parser!(u64)).help("What texts, criteria and miners are drawn by"))
        .arg(profile_arg())
        .arg(json_arg());
    cli::key_args(command, |key| {
        ["wallet.", "uniqueness.encoder", "uniqueness.quality_model", "models.", "backend"]
            .iter()
            .any(|start| key.starts_with(start))
            || matches!(key, "data_dir" | "uniqueness.device" | "model")
    })
}

/// Whom to ask.
#[derive(Clone, Debug, PartialEq)]
struct MinerSpec {
    name: Option<String>,
    kind: MinerKind,
}

#[derive(Clone, Debug, PartialEq)]
enum MinerKind {
    Echo,
    Panel(usize),
    Network { via: Via, address: String, hotkey: Hotkey },
}

impl FromStr for MinerSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = match text.split_once('=') {
            Some(("", _)) => return Err("the name before = is empty".to_owned()),
            Some((name, rest)) => (Some(name.to_owned()), rest),
            None => (None, text),
        };
        if rest == "echo" {
            return Ok(Self { name, kind: MinerKind::Echo });
        }
        if let Some(n) = rest.strip_prefix("panel:") {
            let n: usize = n
                .parse()
                .ok()
                .filter(|n| (1..=PANEL_MOST).contains(n))
                .ok_or_else(|| format!("panel of {n}, expected 1 to {PANEL_MOST} miners"))?;
            return Ok(Self { name, kind: MinerKind::Panel(n) });
        }
        let expected = "expected VIA://HOST:PORT/HOTKEY, echo or panel:N";
        let (via, place) = rest.split_once("://").ok_or_else(|| format!("is {rest}, {expected}"))?;
        let via: Via = via.parse().map_err(|problem| format!("{problem}"))?;
        let (address, hotkey) = place.rsplit_once('/').ok_or_else(|| format!("is {rest}, {expected}"))?;
        let hotkey: Hotkey = hotkey.parse().map_err(|problem| format!("{hotkey} is no hotkey: {problem}"))?;
        Target::new(address, hotkey).map_err(|problem| problem.to_string())?;
        Ok(Self { name, kind: MinerKind::Network { via, address: address.to_owned(), hotkey } })
    }
}

/// A miner behind a socket.
#[derive(Debug)]
struct NetworkMiner {
    name: String,
    dendrite: Dendrite,
    target: Target,
    hotkey: Hotkey,
    via: Via,
}

#[async_trait]
impl Miner for NetworkMiner {
    fn name(&self) -> &str {
        &self.name
    }

    fn hotkey(&self) -> String {
        self.hotkey.to_string()
    }

    async fn ask(&self, prompt: &str, timeout: Duration) -> Asked {
        let began = Instant::now();
        let failed =
            |status: u16, message: String| Asked { text: String::new(), status, message, time: began.elapsed() };
        let prompt = match Prompt::new(vec![Message::new(Role::User, prompt)]) {
            Ok(prompt) => prompt,
            Err(problem) => return failed(400, problem.to_string()),
        };
        let options = QueryOptions { timeout, ..QueryOptions::default() };
        match self.dendrite.query(&self.target, self.via, &prompt, &options).await {
            Ok(reply) => Asked {
                text: reply.text,
                status: reply.status_code,
                message: reply.status_message,
                time: reply.elapsed,
            },
            Err(error) => failed(error.status_code().as_u16(), error.to_string()),
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    record: MinerRecord,
    mean_reward: f64,
    place_mean: f64,
    masked_share: f64,
    time_p50_s: f64,
    time_p95_s: f64,
    moving_average: f64,
    weight_share: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    profile: String,
    encoder: String,
    rounds: u32,
    steps: u64,
    timeout_s: f64,
    /// Factors of the profile that were not computed.
    missing: Vec<String>,
    miners: Vec<Row>,
}

pub(super) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    start_logging(&loaded)?;
    let config = &loaded.config;
    if config.uniqueness.encoder == EncoderKind::Off {
        let problem = "uniqueness.encoder is off, expected minilm, mpnet or openai: the gate needs an encoder";
        return Err(Usage(problem.to_owned()).into());
    }
    let profile = profile(matches, config)?;
    let texts = match matches.get_one::<PathBuf>("texts") {
        Some(path) => lines::read::<Text>(path).with_context(|| format!("cannot use {}", path.display()))?,
        None => built_in(),
    };
    let specs: Vec<MinerSpec> = matches.get_many::<MinerSpec>("miner").into_iter().flatten().cloned().collect();
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or(0);
    let rules = RoundRules {
        batch: matches.get_one::<u16>("batch").map_or(50, |&n| n.into()),
        timeout: matches.get_one::<Duration>("timeout").copied().unwrap_or(Duration::from_secs(10)),
        followups: matches.get_one::<u8>("followups").map(|&n| n.into()),
        seed,
    };

    let resolver = models::resolver(&config.models, &cli::process_env())?;
    let progress = FetchProgress::default();
    let loader = Loader { resolver: &resolver, progress: &progress };
    let has_panel = specs.iter().any(|spec| matches!(spec.kind, MinerKind::Panel(_)));
    let (encoder, quality, backend) = if has_panel {
        let engines = loader.load(config).await?;
        (engines.encoder, engines.quality, Some(engines.pool as Arc<dyn Backend>))
    } else {
        (loader.encoder(config).await?, loader.quality(config).await?, None)
    };
    let encoder = encoder.context("there is no encoder")?;
    let Some((model, _)) = quality else {
        let problem = "uniqueness.quality_model gives no model, expected one: a round goes on with the best reply";
        return Err(Usage(problem.to_owned()).into());
    };
    let miners = miners(&specs, config, backend.as_ref(), seed)?;
    let models = Models { rewards: vec![model], encoder: Some(encoder.clone()), ..Models::default() };
    let mut validator = Validator::new(profile, models, Missing::LeaveOut)?;
    let state = matches.get_one::<PathBuf>("state");
    if let Some(path) = state.filter(|path| path.exists()) {
        validator.load(path).with_context(|| format!("--state {}", path.display()))?;
    }
    let missing: Vec<String> = validator.missing().iter().map(|missing| missing.name.clone()).collect();
    let mut log = match matches.get_one::<PathBuf>("log") {
        Some(path) => Some(Lines::open::<serde_json::Value>(path)?.0),
        None => None,
    };
    let mut loops = TestValidator::new(validator, miners, texts, rules)?;
    let began = SystemTime::now();
    let since = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut clock = Clock { run: format!("local-{:x}", since.as_millis()), row: 0, began, now: began };
    let n_rounds = matches.get_one::<u32>("rounds").copied();
    let as_json = matches.get_flag("json");
    let mut done = 0;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    while n_rounds.is_none_or(|n| done < n) {
        let mut failed = None;
        let mut each = |loops: &TestValidator, step: &idiolect_arena::rounds::StepDone| {
            clock.now = SystemTime::now();
            let written = log.as_mut().map_or(Ok(()), |log| log.add(&[step_row(loops, step, &clock)]));
            clock.row += 1;
            let told = if as_json { Ok(()) } else { say(done, loops, step) };
            if let Err(problem) = written.map_err(anyhow::Error::from).and(told) {
                failed.get_or_insert(problem);
            }
        };
        tokio::select! {
            played = loops.round(&mut each) => played?,
            _ = &mut interrupted => break,
        }
        if let Some(problem) = failed {
            return Err(problem);
        }
        done += 1;
        clock.now = SystemTime::now();
        if let Some(log) = &mut log {
            log.add(&[state_row(&loops, &clock)])?;
        }
        clock.row += 1;
        if let Some(path) = state {
            loops.validator().save(path).with_context(|| format!("--state {}", path.display()))?;
        }
    }
    let report = Report {
        profile: loops.validator().profile().name.clone(),
        encoder: encoder.name().to_owned(),
        rounds: done,
        steps: loops.validator().n_steps(),
        timeout_s: rules.timeout.as_secs_f64(),
        missing,
        miners: rows(&loops),
    };
    if as_json { output::json(&report) } else { print(&report) }
}

/// Makes those who are asked.
fn miners(
    specs: &[MinerSpec],
    config: &idiolect_miner::config::Config,
    backend: Option<&Arc<dyn Backend>>,
    seed: u64,
) -> anyhow::Result<Vec<Arc<dyn Miner>>> {
    let is_asked = specs.iter().any(|spec| matches!(spec.kind, MinerKind::Network { .. }));
    let dendrite = is_asked.then(|| probe::signing_key(config)).transpose()?.map(|(key, _)| Dendrite::new(key));
    let mut miners: Vec<Arc<dyn Miner>> = Vec::new();
    for spec in specs {
        match &spec.kind {
            MinerKind::Echo => {
                let name = spec.name.clone().unwrap_or_else(|| "echo".to_owned());
                miners.push(Arc::new(EchoMiner::new(name)));
            }
            MinerKind::Panel(n) => {
                let backend = backend.context("there is no backend")?;
                let base = spec.name.clone().unwrap_or_else(|| "panel".to_owned());
                for nth in 0..*n {
                    let system = SYSTEM_PROMPTS[nth % SYSTEM_PROMPTS.len()];
                    let seed = seed.wrapping_add((nth as u64 + 1) << 32);
                    let miner = PanelMiner::new(
                        format!("{base}-{}", nth + 1),
                        backend.clone(),
                        system,
                        Sampling::default(),
                        seed,
                    );
                    miners.push(Arc::new(miner));
                }
            }
            MinerKind::Network { via, address, hotkey } => {
                let name = spec.name.clone().unwrap_or_else(|| format!("{via}://{address}"));
                let dendrite = dendrite.clone().context("there is no key to sign with")?;
                let target = Target::new(address, *hotkey)?;
                miners.push(Arc::new(NetworkMiner { name, dendrite, target, hotkey: *hotkey, via: *via }));
            }
        }
    }
    let mut names: Vec<&str> = miners.iter().map(|miner| miner.name()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(
            Usage(format!("--miner: two are called {}, expected NAME=MINER with different names", twice[0])).into()
        );
    }
    Ok(miners)
}

fn say(round: u32, loops: &TestValidator, step: &idiolect_arena::rounds::StepDone) -> anyhow::Result<()> {
    let rewards = step.report.rewards.as_deref().unwrap_or_default();
    let n_came = step.asked.iter().filter(|asked| asked.status == 200).count();
    let best = step.report.best.and_then(|nth| Some((step.uids.get(nth)?, rewards.get(nth)?)));
    let best = best
        .map_or_else(String::new, |(&uid, reward)| format!(", best {} with {reward:.3}", loops.records()[uid].name));
    Ok(output::say(format!(
        "round {} {:<9} {n_came} of {} replied in {:.1} s{best}",
        round + 1,
        step.name,
        step.asked.len(),
        step.took.as_secs_f64()
    ))?)
}

fn rows(loops: &TestValidator) -> Vec<Row> {
    let average = loops.validator().average();
    let weights = average.weights();
    let of = |values: &[f64], uid: usize| values.get(uid).copied().unwrap_or(0.0);
    let mut rows: Vec<Row> = loops
        .records()
        .iter()
        .map(|record| Row {
            mean_reward: record.mean_reward(),
            place_mean: record.place_mean(),
            masked_share: record.masked_share(),
            time_p50_s: record.time(0.5),
            time_p95_s: record.time(0.95),
            moving_average: of(average.scores(), record.uid),
            weight_share: of(&weights, record.uid),
            record: record.clone(),
        })
        .collect();
    rows.sort_by(|a, b| b.weight_share.total_cmp(&a.weight_share).then(a.record.uid.cmp(&b.record.uid)));
    rows
}

fn print(report: &Report) -> anyhow::Result<()> {
    output::say(format!(
        "{} rounds, {} steps in all, {}, {}, {} s to reply",
        report.rounds, report.steps, report.profile, report.encoder, report.timeout_s
    ))?;
    let row = |row: &Row| {
        vec![
            row.record.name.clone(),
            row.record.uid.to_string(),
            row.record.asked.to_string(),
            row.record.failed.to_string(),
            row.record.timed_out.to_string(),
            format!("{:.3}", row.masked_share),
            format!("{:.2}", row.time_p50_s),
            format!("{:.2}", row.time_p95_s),
            format!("{:.3}", row.mean_reward),
            format!("{:.1}", row.place_mean),
            format!("{:.4}", row.moving_average),
            format!("{:.4}", row.weight_share),
        ]
    };
    let head = [
        "name",
        "uid",
        "asked",
        "failed",
        "late",
        "masked",
        "time 50 %",
        "95 %",
        "reward",
        "place",
        "average",
        "weight",
    ];
    output::columns(&head, &report.miners.iter().map(row).collect::<Vec<_>>())?;
    if !report.missing.is_empty() {
        output::say(format!("not computed, and so without effect: {}", report.missing.join(", ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn miners_are_read_and_what_is_wrong_is_said() {
        let hotkey = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
        let read = |text: &str| text.parse::<MinerSpec>();
        let mine = read(&format!("mine=http://127.0.0.1:8091/{hotkey}")).unwrap();
        assert_eq!(mine.name.as_deref(), Some("mine"));
        let MinerKind::Network { via, address, .. } = mine.kind else { panic!() };
        assert_eq!((via, address.as_str()), (Via::Http, "127.0.0.1:8091"));
        assert_eq!(read("panel:8").unwrap(), MinerSpec { name: None, kind: MinerKind::Panel(8) });
        assert_eq!(read("e=echo").unwrap(), MinerSpec { name: Some("e".to_owned()), kind: MinerKind::Echo });
        for (text, expected) in [
            ("=echo", "the name before = is empty"),
            ("panel:0", "panel of 0, expected 1 to 256 miners"),
            ("127.0.0.1:8091", "is 127.0.0.1:8091, expected VIA://HOST:PORT/HOTKEY"),
            ("http://127.0.0.1:8091", "is http://127.0.0.1:8091, expected"),
            ("http://127.0.0.1:8091/5abc", "5abc is no hotkey"),
            ("smtp://127.0.0.1:8091/5abc", "smtp"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains(expected) || problem.starts_with(expected), "{text}: {problem}");
        }
    }
}
