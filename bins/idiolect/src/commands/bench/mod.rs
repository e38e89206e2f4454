//! `idiolect bench`: how fast a model is on this machine, beside what the machine allows and beside another server.

mod child;
mod demand;
mod engine;
mod machine;
mod measure;
mod memory;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use idiolect_backend_openai::{Flavour, KeySource, OpenAiBackend, OpenAiConfig};
use idiolect_miner::config::{KvFormat, ModelsSection, ServerFlavour, WeightFormat};
use idiolect_miner::progress::FetchProgress;
use idiolect_miner::{cli, models};
use idiolect_models::{DEFAULT_MODEL, Spec};
use serde::Serialize;
use serde_json::{Value, json};

use self::child::Measuring;
use self::demand::Demand;
use self::machine::{Machine, Rates, Shares};
use self::measure::{Run, Work, measure, median};
use super::json_arg;
use crate::output;

/// Where the numbers of the runs that are not counted begin.
const WARM_UP: u32 = 800_000;
/// Where the numbers of the runs begin that draw with top-p alone.
const TOP_P_ALONE: u32 = 700_000;

pub(crate) fn command() -> Command {
    let command = Command::new("bench")
        .about("Measure how fast a model reads a prompt and draws candidates, and how much memory it takes")
        .after_help(
            "Each n is measured in a process of its own, so its peak memory is that of loading the model and of this work. \
             Figures are medians of --repeat runs after one that is not counted; every run has a prompt of its own, and \
             nothing of earlier prompts is kept.\n\
             prefill: tokens of the prompt a second, up to the first token. decode: tokens a second after that, of all \
             candidates together. best of n: n times new tokens by the whole time. The work is drawn with temperature 0.8, \
             top-k 40 and top-p 0.95. sampling: the part of decoding that goes into drawing tokens from their \
             probabilities, in this work and, of as many runs more, with top-p alone, which has all tokens to look at.\n\
             With --against both do the same work in turns, and both are timed alike, by when their texts come: prefill up \
             to the first text of any candidate, decode from there to the end of the answer. Ours comes from within this \
             program, theirs over HTTP as a stream of events, which is part of their time. Without --against the engine \
             itself says how long its steps took.\n\
             Example, beside a server of llama.cpp: idiolect bench -n 8 --new-tokens 32 --against http://127.0.0.1:8080/v1",
        );
    let command = against_args(run_args(engine_args(work_args(command))))
        .arg(Arg::new("row").long("row").hide(true).value_parser(value_parser!(usize)))
        .arg(Arg::new("words").long("words").hide(true).requires("row").value_parser(value_parser!(usize)))
        .arg(json_arg());
    cli::key_args(command, |key| key.starts_with("models."))
}

/// What is to be computed.
fn work_args(command: Command) -> Command {
    command
        .arg(
            Arg::new("model")
                .long("model")
                .value_name("SPEC")
                .default_value(DEFAULT_MODEL)
                .help("The model: an alias, hub:…, wheel:… or a path"),
        )
        .arg(
            Arg::new("prompt-tokens")
                .long("prompt-tokens")
                .value_name("N")
                .default_value("512")
                .value_parser(value_parser!(u32).range(48..=1_000_000))
                .help("Tokens of the prompt, those of the chat template included"),
        )
        .arg(
            Arg::new("new-tokens")
                .long("new-tokens")
                .value_name("N")
                .default_value("64")
                .value_parser(value_parser!(u32).range(2..=8192))
                .help("Tokens of each candidate"),
        )
        .arg(
            Arg::new("n")
                .short('n')
                .long("candidates")
                .value_name("N,…")
                .default_value("1,4,8,16")
                .value_delimiter(',')
                .value_parser(value_parser!(u32).range(1..=64))
                .help("Numbers of candidates to measure"),
        )
}

/// How it is computed.
fn engine_args(command: Command) -> Command {
    command
        .arg(
            Arg::new("threads")
                .long("threads")
                .value_name("T")
                .value_parser(value_parser!(NonZeroUsize))
                .help("Threads that compute [default: all cores]"),
        )
        .arg(
            Arg::new("device")
                .long("device")
                .value_name("DEVICE")
                .default_value("cpu")
                .help("Where the model computes: cpu, cuda, cuda:1, metal …, as this build allows"),
        )
        .arg(
            Arg::new("kv-type")
                .long("kv-type")
                .value_name("TYPE")
                .default_value(KvFormat::F16.as_str())
                .value_parser(KvFormat::ALL.iter().map(|kept| kept.as_str()).collect::<Vec<_>>())
                .help("How keys and values are kept"),
        )
        .arg(
            Arg::new("quantize")
                .long("quantize")
                .value_name("FORMAT")
                .value_parser(
                    WeightFormat::ALL.iter().map(|format| format.as_str()).chain(["none"]).collect::<Vec<_>>(),
                )
                .help("Encode the weights in this format when the model is loaded; none, the default, keeps the file's own"),
        )
}

/// How often, and beside which limits.
fn run_args(command: Command) -> Command {
    command
        .arg(
            Arg::new("repeat")
                .long("repeat")
                .value_name("N")
                .default_value("3")
                .value_parser(value_parser!(u32).range(1..=999))
                .help("Runs that each figure is the median of"),
        )
        .arg(Arg::new("limits").long("limits").action(ArgAction::SetTrue).help(
            "Measure what the machine allows (reading memory and cache, multiplying), and give the share that is reached",
        ))
}

/// The server that does the same work.
fn against_args(command: Command) -> Command {
    command
        .arg(
            Arg::new("against")
                .long("against")
                .value_name("URL")
                .help("Have an OpenAI-shaped server do the same work, in turn, and give the ratio; up to /v1"),
        )
        .arg(
            Arg::new("against-model")
                .long("against-model")
                .value_name("NAME")
                .default_value("default")
                .requires("against")
                .help("The model's name on that server"),
        )
        .arg(
            Arg::new("against-flavour")
                .long("against-flavour")
                .value_name("KIND")
                .default_value(ServerFlavour::LlamaCpp.as_str())
                .requires("against")
                .value_parser(ServerFlavour::ALL.iter().map(|flavour| flavour.as_str()).collect::<Vec<_>>())
                .help("What kind of server it is, which decides the fields that a request may have"),
        )
        .arg(
            Arg::new("against-key-env")
                .long("against-key-env")
                .value_name("VARIABLE")
                .requires("against")
                .help("Environment variable that holds the server's key"),
        )
        .arg(
            Arg::new("against-pid")
                .long("against-pid")
                .value_name("PID")
                .requires("against")
                .value_parser(value_parser!(u32))
                .help("The server's process on this machine, to give its peak memory, too"),
        )
}

/// What each row's work is made of.
#[derive(Clone, Debug)]
struct Settings {
    model: String,
    prompt_tokens: usize,
    new_tokens: u32,
    threads: Option<NonZeroUsize>,
    device: String,
    kv_type: KvFormat,
    quantize: Option<WeightFormat>,
    /// Where models come from.
    models: ModelsSection,
}

impl Settings {
    fn read(matches: &ArgMatches, models: ModelsSection) -> Self {
        let number = |name: &str| matches.get_one::<u32>(name).copied().unwrap_or_default();
        let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
        Self {
            model: text("model"),
            prompt_tokens: number("prompt-tokens") as usize,
            new_tokens: number("new-tokens"),
            threads: matches.get_one::<NonZeroUsize>("threads").copied(),
            device: text("device"),
            kv_type: KvFormat::ALL
                .iter()
                .copied()
                .find(|kept| kept.as_str() == text("kv-type"))
                .unwrap_or(KvFormat::F16),
            quantize: WeightFormat::ALL.iter().copied().find(|format| format.as_str() == text("quantize")),
            models,
        }
    }

    /// The arguments that give the same settings.
    fn args(&self) -> Vec<String> {
        let mut args = vec![
            "--model".to_owned(),
            self.model.clone(),
            "--device".to_owned(),
            self.device.clone(),
            "--prompt-tokens".to_owned(),
            self.prompt_tokens.to_string(),
            "--new-tokens".to_owned(),
            self.new_tokens.to_string(),
            "--kv-type".to_owned(),
            self.kv_type.as_str().to_owned(),
        ];
        if let Some(format) = self.quantize {
            args.extend(["--quantize".to_owned(), format.as_str().to_owned()]);
        }
        if let Some(threads) = self.threads {
            args.extend(["--threads".to_owned(), threads.to_string()]);
        }
        if let Some(dir) = &self.models.cache_dir {
            args.extend(["--models.cache_dir".to_owned(), dir.display().to_string()]);
        }
        if self.models.offline {
            args.push("--models.offline".to_owned());
        }
        args
    }
}

/// What time is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Timing {
    /// What the engine says of its own steps.
    Engine,
    /// When texts come, which is all that another server shows.
    Texts,
}

/// The figures of one number of candidates.
#[derive(Clone, Debug, Serialize)]
struct Row {
    n: usize,
    prompt_tokens: u32,
    completion_tokens: u32,
    prefill_tok_s: f64,
    decode_tok_s: f64,
    best_of_n_tok_s: f64,
    /// Which part of decoding goes into drawing tokens; `None` of other servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    sampling_share: Option<f64>,
    /// As before, where they are drawn with top-p alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p_sampling_share: Option<f64>,
    peak_rss_mb: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_limit: Option<Shares>,
}

impl Row {
    /// Takes medians of runs, and of those that drew with top-p alone.
    fn new(n: usize, timing: Timing, runs: &[Run], top_p_alone: &[Run], peak_rss_mb: Option<f64>) -> Self {
        let of = |figure: &dyn Fn(&Run) -> f64| {
            let timed = runs.iter().map(|run| figure(&if timing == Timing::Texts { run.by_texts() } else { *run }));
            tenth(median(timed.collect()))
        };
        Self {
            n,
            prompt_tokens: runs.last().map_or(0, |run| run.prompt_tokens),
            completion_tokens: runs.iter().map(|run| run.completion_tokens).min().unwrap_or(0),
            prefill_tok_s: of(&Run::prefill_tok_s),
            decode_tok_s: of(&|run| run.decode_tok_s(n)),
            best_of_n_tok_s: of(&Run::best_of_n_tok_s),
            sampling_share: sampling_share(runs),
            top_p_sampling_share: sampling_share(top_p_alone),
            peak_rss_mb,
            share_of_limit: None,
        }
    }

    fn rates(&self, new_tokens: u32) -> Rates {
        Rates {
            n: self.n as f64,
            prompt_tokens: f64::from(self.prompt_tokens),
            new_tokens: f64::from(new_tokens),
            prefill_tok_s: self.prefill_tok_s,
            decode_tok_s: self.decode_tok_s,
            best_of_n_tok_s: self.best_of_n_tok_s,
        }
    }
}

/// Returns the middle one of the runs' shares; `None` of other servers'.
fn sampling_share(runs: &[Run]) -> Option<f64> {
    let shares: Vec<f64> = runs.iter().filter_map(Run::sampling_share).collect();
    (!shares.is_empty()).then(|| (median(shares) * 1e4).round() / 1e4)
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Ours by theirs.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ratio {
    prefill: f64,
    decode: f64,
    best_of_n: f64,
}

impl Ratio {
    fn new(ours: &Row, theirs: &Row) -> Self {
        let by = |a: f64, b: f64| if b > 0.0 { (a / b * 100.0).round() / 100.0 } else { 0.0 };
        Self {
            prefill: by(ours.prefill_tok_s, theirs.prefill_tok_s),
            decode: by(ours.decode_tok_s, theirs.decode_tok_s),
            best_of_n: by(ours.best_of_n_tok_s, theirs.best_of_n_tok_s),
        }
    }
}

/// The other server.
struct Peer {
    url: String,
    backend: OpenAiBackend,
    pid: Option<u32>,
}

impl Peer {
    fn read(matches: &ArgMatches) -> anyhow::Result<Option<Self>> {
        let Some(url) = matches.get_one::<String>("against") else { return Ok(None) };
        let model = matches.get_one::<String>("against-model").cloned().unwrap_or_default();
        let mut config = OpenAiConfig::new(model);
        config.name = "the other server".to_owned();
        let flavour = matches.get_one::<String>("against-flavour").map_or("", String::as_str);
        config.flavour = flavour.parse::<Flavour>()?;
        config.server.base_url.clone_from(url);
        config.server.retries.num_retries = 0;
        config.server.max_parallel_requests = 64;
        if let Some(name) = matches.get_one::<String>("against-key-env") {
            config.server.key = KeySource::Env(name.clone());
        }
        // Going on beyond the end; and nothing may be remembered from the run before. Others may refuse fields they do not know.
        if matches!(config.flavour, Flavour::LlamaCpp | Flavour::Vllm) {
            config.extra.insert("ignore_eos".to_owned(), json!(true));
        }
        if config.flavour == Flavour::LlamaCpp {
            config.extra.insert("cache_prompt".to_owned(), json!(false));
        }
        let backend = OpenAiBackend::new(config).with_context(|| format!("--against {url}"))?;
        Ok(Some(Self { url: url.clone(), backend, pid: matches.get_one::<u32>("against-pid").copied() }))
    }

    async fn run(&self, run: u32, work: Work) -> anyhow::Result<Run> {
        measure(&self.backend, None, run, work).await.with_context(|| format!("{} did not do its work", self.url))
    }
}

pub(crate) async fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let loaded = super::load(matches)?;
    super::start_logging(&loaded)?;
    let settings = Settings::read(matches, loaded.config.models);
    if let Some(n) = matches.get_one::<usize>("row") {
        return child::be(&settings, *n, matches.get_one::<usize>("words").copied()).await;
    }
    let peer = Peer::read(matches)?;
    let weights = weights(&settings).await?;
    let threads = settings.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get);
    let as_json = matches.get_flag("json");
    let machine = matches.get_flag("limits").then(|| Machine::measure(threads));
    let demand = match Demand::read(&weights, settings.quantize, settings.kv_type) {
        Ok(demand) => Some(demand),
        // Nobody asked.
        Err(_) if machine.is_none() => None,
        Err(error) => {
            tracing::warn!("shares of the limits cannot be given: {}", cli::one_line(&error));
            None
        }
    };
    if let (Some(machine), false) = (&machine, as_json) {
        print_limits(machine, demand.as_ref())?;
    }
    let repeat = matches.get_one::<u32>("repeat").copied().unwrap_or(3);
    let mut bench =
        Bench { settings, repeat, peer, n_words: None, load_s: Vec::new(), rows: Vec::new(), theirs: Vec::new() };
    for n in matches.get_many::<u32>("n").into_iter().flatten() {
        let n = *n as usize;
        bench.row(n).await.with_context(|| format!("n = {n}"))?;
        if let (Some(machine), Some(demand), Some(row)) = (&machine, &demand, bench.rows.last_mut()) {
            row.share_of_limit = Some(machine.shares(demand, &row.rates(bench.settings.new_tokens)));
        }
    }
    if as_json {
        output::json(&bench.described(threads, machine.as_ref(), demand.as_ref()))
    } else {
        bench.print(threads)
    }
}

/// Finds the model's file, fetching it where it is not there, so that no row has to.
async fn weights(settings: &Settings) -> anyhow::Result<PathBuf> {
    let spec: Spec = settings.model.parse()?;
    let resolver = models::resolver(&settings.models, &cli::process_env())?;
    let files = resolver.resolve(&spec, &FetchProgress::default()).await?;
    Ok(files.weights().with_context(|| format!("model {spec} has no file of weights"))?.to_path_buf())
}

/// What was measured so far.
struct Bench {
    settings: Settings,
    repeat: u32,
    peer: Option<Peer>,
    n_words: Option<usize>,
    load_s: Vec<f64>,
    rows: Vec<Row>,
    theirs: Vec<Row>,
}

impl Bench {
    /// Measures one number of candidates: ours and theirs in turn.
    async fn row(&mut self, n: usize) -> anyhow::Result<()> {
        let mut ours = Measuring::start(&self.settings, n, self.n_words).await?;
        self.load_s.push(ours.ready.load_s);
        let n_words = *self.n_words.insert(ours.ready.n_words);
        let work = Work { n_words, new_tokens: self.settings.new_tokens, n, top_p_alone: false };
        let number = u32::try_from(n)? * 1000;
        ours.run(WARM_UP + number).await?;
        let their_pid = self.peer.as_ref().and_then(|peer| peer.pid);
        if let Some(peer) = &self.peer {
            if their_pid.is_some() {
                memory::forget_peak(their_pid);
            }
            peer.run(WARM_UP + number, work).await?;
        }
        let (mut our_runs, mut their_runs) = (Vec::new(), Vec::new());
        for i in 1..=self.repeat {
            our_runs.push(ours.run(number + i).await?);
            if let Some(peer) = &self.peer {
                their_runs.push(peer.run(number + i, work).await?);
            }
        }
        let mut top_p_alone = Vec::new();
        for i in 1..=self.repeat {
            top_p_alone.push(ours.run_with_top_p_alone(TOP_P_ALONE + number + i).await?);
        }
        self.rows.push(Row::new(n, self.timing(), &our_runs, &top_p_alone, ours.end().await?));
        if self.peer.is_some() {
            let peak = their_pid.and_then(|pid| memory::peak_rss_mb(Some(pid)));
            self.theirs.push(Row::new(n, self.timing(), &their_runs, &[], peak));
        }
        Ok(())
    }

    /// Both are timed alike.
    const fn timing(&self) -> Timing {
        if self.peer.is_some() { Timing::Texts } else { Timing::Engine }
    }

    fn load_s(&self) -> f64 {
        (median(self.load_s.clone()) * 1000.0).round() / 1000.0
    }

    fn described(&self, threads: usize, machine: Option<&Machine>, demand: Option<&Demand>) -> Value {
        let mut value = json!({
            "model": self.settings.model, "device": self.settings.device, "threads": threads,
            "kv_type": self.settings.kv_type.as_str(), "quantize": self.settings.quantize.map(WeightFormat::as_str),
            "load_s": self.load_s(),
            "new_tokens": self.settings.new_tokens, "repeat": self.repeat, "timed_by": self.timing(), "rows": self.rows, "limits": machine, "demand": demand,
        });
        if let Some(peer) = &self.peer {
            let rows = self.rows.iter().zip(&self.theirs).map(|(ours, theirs)| {
                let mut row = json!(theirs);
                row["ratio"] = json!(Ratio::new(ours, theirs));
                row
            });
            value["against"] = json!({ "url": peer.url, "rows": rows.collect::<Vec<_>>() });
        }
        value
    }

    fn print_early_ends(&self, rows: &[Row]) -> std::io::Result<()> {
        let is_short = |row: &&Row| (row.completion_tokens as usize) < row.n * self.settings.new_tokens as usize;
        rows.iter().filter(is_short).try_for_each(|row| {
            let (n, came) = (row.n, row.completion_tokens);
            output::say(format!("n = {n}: only {came} tokens came, since candidates ended early"))
        })
    }

    fn print(&self, threads: usize) -> anyhow::Result<()> {
        let Settings { model, prompt_tokens, new_tokens, device, kv_type, quantize, .. } = &self.settings;
        let read = self.rows.last().map_or(0, |row| row.prompt_tokens);
        output::say(format!(
            "model    {model} on {device} with {}, loaded in {:.2} s",
            counted(threads),
            self.load_s()
        ))?;
        let weights =
            quantize.map_or("as the file has them".to_owned(), |format| format!("encoded anew in {}", format.as_str()));
        output::say(format!("formats  weights {weights}, keys and values in {}", kv_type.as_str()))?;
        output::say(format!(
            "work     a prompt of {read} tokens ({prompt_tokens} asked for), {new_tokens} new ones each; {}\n",
            if self.repeat == 1 { "one run".to_owned() } else { format!("medians of {} runs", self.repeat) }
        ))?;
        let head = ["n", "prefill tok/s", "decode tok/s", "best of n tok/s", "sampling", "with top-p", "peak MB"];
        let rows: Vec<Vec<String>> = self.rows.iter().map(cells).collect();
        output::columns(&head, &rows)?;
        self.print_early_ends(&self.rows)?;
        let Some(peer) = &self.peer else { return Ok(()) };
        output::say(format!("\n{}, in turn with the above:", peer.url))?;
        output::columns(&head, &self.theirs.iter().map(cells).collect::<Vec<_>>())?;
        self.print_early_ends(&self.theirs)?;
        output::say("\nours by theirs, both timed by when their texts came:")?;
        let ratios: Vec<Vec<String>> = self.rows.iter().zip(&self.theirs).map(ratio_cells).collect();
        Ok(output::columns(&["n", "prefill", "decode", "best of n"], &ratios)?)
    }
}

fn counted(threads: usize) -> String {
    if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") }
}

fn cells(row: &Row) -> Vec<String> {
    let figure = |value: f64, share: Option<machine::Share>| match share {
        Some(share) => format!("{value:.1} ({:.0} % of {})", share.share * 100.0, share.binds),
        None => format!("{value:.1}"),
    };
    let shares = row.share_of_limit;
    let share = |of: Option<f64>| of.map_or_else(|| "unknown".to_owned(), |share| format!("{:.1} %", share * 100.0));
    vec![
        row.n.to_string(),
        figure(row.prefill_tok_s, shares.map(|s| s.prefill)),
        figure(row.decode_tok_s, shares.map(|s| s.decode)),
        figure(row.best_of_n_tok_s, shares.map(|s| s.best_of_n)),
        share(row.sampling_share),
        share(row.top_p_sampling_share),
        row.peak_rss_mb.map_or_else(|| "unknown".to_owned(), |mb| format!("{mb:.0}")),
    ]
}

fn ratio_cells((ours, theirs): (&Row, &Row)) -> Vec<String> {
    let ratio = Ratio::new(ours, theirs);
    let times = |value: f64| format!("{value:.2} x");
    vec![ours.n.to_string(), times(ratio.prefill), times(ratio.decode), times(ratio.best_of_n)]
}

fn print_limits(machine: &Machine, demand: Option<&Demand>) -> anyhow::Result<()> {
    let line = |what: &str, figure: machine::Figure, unit: &str| {
        vec![
            what.to_owned(),
            format!("{:.1}", figure.one_thread),
            format!("{:.1}", figure.all_threads),
            unit.to_owned(),
        ]
    };
    let all = counted(machine.threads);
    let rows = [
        line("reading memory", machine.memory_gb_s, "GB/s"),
        line(&format!("reading the last cache ({:.0} MB)", machine.cache_mb), machine.cache_gb_s, "GB/s"),
        line(&format!("byte products ({})", machine.tier), machine.int8_gmac_s, "G/s"),
        line("f32 products", machine.f32_gmac_s, "G/s"),
    ];
    output::columns(&["limit", "1 thread", &all, ""], &rows)?;
    if let Some(demand) = demand {
        output::say(format!(
            "a step reads {:.1} MB of weights and {:.1} KB of keys and values a token, and multiplies {:.1} M weights a candidate",
            demand.weight_bytes / 1e6,
            demand.kv_bytes / 1e3,
            demand.macs / 1e6
        ))?;
    }
    Ok(output::say("")?)
}
