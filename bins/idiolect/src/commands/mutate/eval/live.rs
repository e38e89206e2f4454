//! `idiolect mutate eval --backend`: a model is asked now, plainly and by the whole pipeline, and validators' arithmetic says what each reply would have
//! earned among replies of rivals.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Arg, ArgMatches, Command, value_parser};
use futures_util::StreamExt as _;
use idiolect_arena::live::{self, Drawn, DrawnReply, Outcome, Scored, Scorer, Setup, Source, State};
use idiolect_arena::texts::{self, ArenaPrompt};
use idiolect_arena::{rivals, statistics::Interval};
use idiolect_miner::app::Core;
use idiolect_miner::cli;
use idiolect_miner::config::{BackendConfig, BackendKind, Config, EncoderKind};
use idiolect_miner::progress::{Counter, FetchProgress};
use idiolect_models::Spec;
use idiolect_pipeline::{Ask, Pipeline};
use idiolect_protocol::{Message, Prompt, Role};
use idiolect_validator::StepTask;
use serde::Serialize;

use crate::commands::{Usage, load, profile, start_logging, timeout};
use crate::output;

/// What `--backend` is where the configuration says it.
const CONFIGURED: &str = "configured";

/// Prompts that are composed where none are given.
const N_PROMPTS: usize = 60;

/// Adds what a live experiment can be told to the command.
pub(super) fn args(command: Command) -> Command {
    let path = |id: &'static str, name: &'static str| {
        Arg::new(id).long(id).value_name(name).value_parser(value_parser!(PathBuf)).help_heading("With --backend")
    };
    let number = |id: &'static str, default: &'static str| {
        Arg::new(id).long(id).value_name("N").default_value(default).help_heading("With --backend")
    };
    command
        .arg(Arg::new("live").long("backend").value_name("SPEC|configured").help(
            "Ask a model now, in place of reading recorded replies: a model of the local engine (alias, hub:…, wheel:… or path), a kind or name of a backend, or the \
             configured backends",
        ))
        .arg(path("prompts", "FILE").help(
            "Prompts, {\"p\": ID, \"prompt\": PROMPT, \"task\": TASK} a line, such as mutate prompts makes [default: composed by --seed]",
        ))
        .arg(path("rivals", "FILE").help(
            "Rivals' replies, {\"p\", \"m\", \"t\"} a line: what is missing of 20 a prompt is made by the same model behind four other system prompts, and added",
        ))
        .arg(path("state", "FILE").help("Keep draws and scores here; a run that broke off goes on"))
        .arg(
            Arg::new("n-prompts")
                .long("n-prompts")
                .value_name("N")
                .value_parser(value_parser!(u16).range(1..))
                .help_heading("With --backend")
                .help("Prompts: the first of --prompts [default: all], or so many composed [default: 60]"),
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("DURATION")
                .default_value("10")
                .value_parser(timeout)
                .help_heading("With --backend")
                .help("What a validator waits for a reply"),
        )
        .arg(number("requests", "0").value_parser(value_parser!(u16)).help("Further requests to the pipeline, of which only the time counts"))
        .arg(number("concurrency", "1").value_parser(value_parser!(u16).range(1..=64)).help("Of --requests, so many at once"))
}

/// Says whether a setting counts for a live experiment.
pub(super) fn is_key(key: &str) -> bool {
    let sections = ["sampling.", "candidates.", "mutation.", "uniqueness.", "pipeline.", "models.", "pool."];
    sections.iter().any(|section| key.starts_with(section))
        && !matches!(key, "sampling.seed" | "mutation.seed" | "uniqueness.profile")
}

/// All that an experiment has to do with.
struct Bench {
    core: Core,
    config: Config,
    seed: u64,
    timeout: Duration,
    prompts: Vec<(ArenaPrompt, StepTask)>,
    /// Files that nobody wants to keep; gone at the end.
    _scratch: tempfile::TempDir,
}

#[derive(Serialize)]
struct Found<'a> {
    setup: &'a Setup,
    reward_model: &'a str,
    n_rivals: f64,
    missing: Vec<&'a str>,
    #[serde(flatten)]
    report: &'a live::Report,
    requests: Option<live::Latency>,
}

pub(super) async fn run(matches: &ArgMatches, spec: &str) -> anyhow::Result<()> {
    let loaded = load(matches)?;
    start_logging(&loaded)?;
    let mut config = loaded.config.clone();
    choose_backend(&mut config, spec)?;
    if config.uniqueness.encoder == EncoderKind::Off {
        let problem = "uniqueness.encoder is off, expected minilm, mpnet or openai: the gate needs an encoder";
        return Err(Usage(problem.to_owned()).into());
    }
    let profile = profile(matches, &config)?;
    if let Some(name) = matches.get_one::<String>("profile") {
        config.uniqueness.profile.clone_from(name);
    }
    let seed = matches.get_one::<u64>("seed").copied().unwrap_or(0);
    // The same draws whatever was asked before, so that a run can go on.
    config.sampling.seed = Some(seed);
    let timeout = matches.get_one::<Duration>("timeout").copied().unwrap_or(Duration::from_secs(10));
    let prompts = prompts(matches, seed)?;
    let scratch = tempfile::tempdir().context("no folder for what is not kept")?;
    config.data_dir = scratch.path().to_path_buf();

    let core = Core::load(&config, &cli::process_env(), &FetchProgress::default()).await?;
    let encoder = core.engines.encoder.clone().context("there is no encoder")?;
    let Some((model, model_name)) = core.engines.quality.clone() else {
        let problem = "uniqueness.quality_model gives no model, expected one: rewards are its log-probabilities";
        return Err(Usage(problem.to_owned()).into());
    };
    let setup = Setup {
        seed,
        k: config.candidates.count,
        timeout_s: timeout.as_secs_f64(),
        models: core.engines.models.clone(),
        encoder: encoder.name().to_owned(),
        profile: profile.name.clone(),
    };
    let mut state = State::open(matches.get_one::<PathBuf>("state").map(PathBuf::as_path), &setup)?;
    let bench = Bench { core, config, seed, timeout, prompts, _scratch: scratch };
    let rivals = bench.rivals(matches.get_one::<PathBuf>("rivals").map(PathBuf::as_path)).await?;
    bench.draw(&mut state).await?;
    let scored = bench.scored(&state, &rivals);
    let folder = matches.get_one::<PathBuf>("embeddings").map(PathBuf::as_path);
    let bar = Counter::new("scoring");
    let mut progress = |_: &'static str, done, of| bar.at(done, of);
    let scorer = Scorer::prepare(profile, encoder, model, &scored, folder, &mut state, &mut progress).await?;
    bar.close();
    let report = bench.report(&state, &scored, &scorer).await?;
    let n_requests = matches.get_one::<u16>("requests").copied().unwrap_or(0).into();
    let concurrency = matches.get_one::<u16>("concurrency").copied().unwrap_or(1).into();
    let requests = bench.time(&mut state, n_requests, concurrency).await?;
    let n_rivals = scored.iter().map(|one| one.rivals.len()).sum::<usize>() as f64 / scored.len() as f64;
    let found = Found {
        setup: &setup,
        reward_model: &model_name,
        n_rivals,
        missing: vec!["relevance.bert", "blacklist", "nsfw"],
        report: &report,
        requests,
    };
    bench.core.close().await;
    if matches.get_flag("json") { output::json(&found) } else { print(&found) }
}

/// Puts what `--backend` names in place of the configured backends.
fn choose_backend(config: &mut Config, spec: &str) -> anyhow::Result<()> {
    if spec == CONFIGURED {
        return Ok(());
    }
    if let Some(named) = config.backends.iter().find(|backend| backend.name == spec) {
        config.backends = vec![named.clone()];
        return Ok(());
    }
    let kinds = [BackendKind::Candle, BackendKind::OpenAi, BackendKind::Echo];
    let backend = match kinds.into_iter().find(|kind| kind.as_str() == spec) {
        Some(kind) => BackendConfig::of_kind(kind),
        None => {
            let is_spec = spec.parse::<Spec>();
            is_spec.map_err(|problem| Usage(format!("--backend: {problem}")))?;
            BackendConfig { model: Some(spec.to_owned()), ..BackendConfig::of_kind(BackendKind::Candle) }
        }
    };
    if backend.kind == BackendKind::OpenAi {
        let problem =
            "--backend openai: there is no such backend in the configuration, which would say where its server is";
        return Err(Usage(problem.to_owned()).into());
    }
    config.backends = vec![backend];
    Ok(())
}

fn prompts(matches: &ArgMatches, seed: u64) -> anyhow::Result<Vec<(ArenaPrompt, StepTask)>> {
    let n = matches.get_one::<u16>("n-prompts").map(|&n| usize::from(n));
    let prompts = match matches.get_one::<PathBuf>("prompts") {
        Some(path) => {
            let mut prompts = texts::open(path).with_context(|| format!("--prompts {}", path.display()))?;
            prompts.truncate(n.unwrap_or(usize::MAX));
            prompts
        }
        None => texts::read(texts::compose(&texts::built_in(), n.unwrap_or(N_PROMPTS), seed))?,
    };
    Ok(prompts)
}

impl Bench {
    fn pipeline(&self) -> &Pipeline {
        &self.core.pipeline
    }

    /// Returns the rivals' replies, by prompt, in the order of [`prompts`](Self::prompts).
    async fn rivals(&self, path: Option<&Path>) -> anyhow::Result<Vec<Vec<String>>> {
        let forgotten = self.config.data_dir.join("rivals.jsonl");
        let prompts: Vec<ArenaPrompt> = self.prompts.iter().map(|(prompt, _)| prompt.clone()).collect();
        let bar = Counter::new("rivals");
        let mut progress = |done, of| bar.at(done, of);
        let (backend, sampling) = (&*self.core.engines.pool, &self.config.sampling);
        let path = path.unwrap_or(&forgotten);
        let made = rivals::make(backend, sampling, &prompts, path, self.seed, &mut progress).await;
        bar.close();
        let made = made?;
        let of = |prompt: &ArenaPrompt| {
            let replies = made.iter().filter(|reply| reply.prompt == prompt.id);
            replies.map(|reply| reply.text.clone()).collect()
        };
        Ok(prompts.iter().map(of).collect())
    }

    /// Draws what the state does not have yet.
    async fn draw(&self, state: &mut State) -> anyhow::Result<()> {
        let sources = [Source::Plain, Source::BestOfK, Source::Pipeline];
        let is_done = |prompt: &ArenaPrompt| sources.iter().all(|&source| state.drawn(&prompt.id, source).is_some());
        if !self.prompts.iter().all(|(prompt, _)| is_done(prompt)) {
            self.warm_up().await;
        }
        let bar = Counter::new("asking");
        for (nth, (prompt, _)) in self.prompts.iter().enumerate() {
            bar.at(nth, self.prompts.len());
            // Who comes later finds the prompt's beginning in the engine's cache: each of them is first in turn.
            for place in 0..sources.len() {
                let source = sources[(nth + place) % sources.len()];
                if state.drawn(&prompt.id, source).is_none() {
                    let drawn = self.draw_one(prompt, source).await?;
                    state.keep(drawn)?;
                }
            }
        }
        bar.close();
        Ok(())
    }

    async fn draw_one(&self, prompt: &ArenaPrompt, source: Source) -> anyhow::Result<Drawn> {
        let n = match source {
            Source::Plain => 1,
            Source::BestOfK => self.config.candidates.count,
            Source::Pipeline | Source::Timed => return self.ask(prompt, source).await,
        };
        let wish = live::Plain { n, seed: self.seed, timeout: self.timeout, margin: self.config.pipeline.margin };
        let backend = &*self.core.engines.pool;
        Ok(live::plain(backend, &self.config.sampling, prompt, source, wish).await)
    }

    /// Lets the pipeline find out how quick the model is, as the miner's questions to itself do when it starts.
    async fn warm_up(&self) {
        for question in ["Why is the sky blue?", "How does a bicycle stay upright?"] {
            if let Ok(prompt) = Prompt::new(vec![Message::new(Role::User, question)]) {
                drop(self.pipeline().answer(Ask { timeout: self.budget(), ..Ask::new(prompt) }).await);
            }
        }
    }

    /// What is left of a validator's patience, as the miner counts it.
    fn budget(&self) -> Duration {
        self.timeout.saturating_sub(self.config.pipeline.margin).min(self.config.pipeline.cap)
    }

    async fn ask(&self, prompt: &ArenaPrompt, source: Source) -> anyhow::Result<Drawn> {
        let asked = Prompt::new(vec![Message::new(Role::User, prompt.prompt.as_str())])
            .with_context(|| format!("prompt {}", prompt.id))?;
        let began = Instant::now();
        let answer = self.pipeline().answer(Ask { timeout: self.budget(), ..Ask::new(asked) }).await;
        let took = began.elapsed();
        let mut drawn = Drawn {
            prompt: prompt.id.clone(),
            source,
            sent: None,
            candidates: Vec::new(),
            latency_ms: live::milliseconds(took),
            missed: answer.is_err() || took > self.timeout,
            error: None,
        };
        match answer {
            Ok(answer) if source == Source::Pipeline => {
                let first = answer.provenance.sent.first();
                let all = answer.provenance.candidates;
                drawn.sent = all.iter().position(|one| Some(&one.index) == first).filter(|_| !drawn.missed);
                drawn.candidates = all
                    .into_iter()
                    .map(|one| DrawnReply {
                        text: one.text.unwrap_or_default().trim().to_owned(),
                        logprob: one.mean_logprob.filter(|logprob| logprob.is_finite()),
                        n_tokens: one.n_tokens,
                        recipe: Some(one.recipe),
                    })
                    .collect();
            }
            Ok(_) => {}
            Err(error) => drawn.error = Some(format!("{error}")),
        }
        Ok(drawn)
    }

    /// Puts together what is scored: of each prompt the replies of all sources one after the other.
    fn scored(&self, state: &State, rivals: &[Vec<String>]) -> Vec<Scored> {
        let of = |((prompt, task), rivals): (&(ArenaPrompt, StepTask), &Vec<String>)| Scored {
            prompt: prompt.id.clone(),
            task: task.clone(),
            rivals: rivals.clone(),
            own: self.own(state, prompt).map(|(_, reply)| reply.text.clone()).collect(),
        };
        self.prompts.iter().zip(rivals).map(of).collect()
    }

    fn own<'a>(&self, state: &'a State, prompt: &ArenaPrompt) -> impl Iterator<Item = (Source, &'a DrawnReply)> {
        let sources = [Source::Plain, Source::BestOfK, Source::Pipeline].into_iter();
        let drawn: Vec<&Drawn> = sources.filter_map(|source| state.drawn(&prompt.id, source)).collect();
        drawn.into_iter().flat_map(|drawn| drawn.candidates.iter().map(|reply| (drawn.source, reply)))
    }

    /// Returns the places of a source's replies among all of a prompt's.
    fn places(&self, state: &State, prompt: &ArenaPrompt, source: Source) -> Vec<usize> {
        let all = self.own(state, prompt).enumerate();
        all.filter(|(_, (of, _))| *of == source).map(|(place, _)| place).collect()
    }

    async fn report(&self, state: &State, scored: &[Scored], scorer: &Scorer) -> anyhow::Result<live::Report> {
        let drawn = |source: Source| -> Vec<&Drawn> {
            self.prompts.iter().filter_map(|(prompt, _)| state.drawn(&prompt.id, source)).collect()
        };
        let place = |nth: usize, source: Source, which: &dyn Fn(&Drawn, &[usize]) -> Option<usize>| {
            let prompt = &self.prompts[nth].0;
            let places = self.places(state, prompt, source);
            // Nothing can be chosen of what came too late.
            let drawn = state.drawn(&prompt.id, source).filter(|drawn| !drawn.missed)?;
            which(drawn, &places).and_then(|i| places.get(i).copied())
        };
        let sent = |source: Source| move |nth: usize| place(nth, source, &|drawn, _| drawn.sent);
        let likeliest = |nth: usize| {
            place(nth, Source::BestOfK, &|_, places| {
                let score = |i: usize| scorer.logprob(&scored[nth], places[i]).unwrap_or(f32::NEG_INFINITY);
                (0..places.len()).rev().max_by(|&a, &b| score(a).total_cmp(&score(b)))
            })
        };
        let random = |nth: usize| {
            let id = &self.prompts[nth].0.id;
            place(nth, Source::Pipeline, &|_, places| live::at_random(self.seed, id, places.len()))
        };
        let pipeline = drawn(Source::Pipeline);
        let mut oracle: Vec<Outcome> = Vec::new();
        for i in 0..pipeline.iter().map(|drawn| drawn.candidates.len()).max().unwrap_or(0) {
            let nth_candidate = |nth: usize| place(nth, Source::Pipeline, &|_, _| Some(i));
            let outcomes = scorer.outcomes(scored, &nth_candidate).await?;
            if oracle.is_empty() {
                oracle = outcomes;
                continue;
            }
            for (best, other) in oracle.iter_mut().zip(outcomes) {
                if other.reward > best.reward {
                    *best = other;
                }
            }
        }
        let best = drawn(Source::BestOfK);
        let arms = [
            live::Arm::new("plain", scorer.outcomes(scored, &sent(Source::Plain)).await?, drawn(Source::Plain), true),
            live::Arm::new("best-of-k", scorer.outcomes(scored, &sent(Source::BestOfK)).await?, best.clone(), true),
            live::Arm::new("best-of-k-dpo", scorer.outcomes(scored, &likeliest).await?, best, false),
            live::Arm::new("random", scorer.outcomes(scored, &random).await?, pipeline.clone(), false),
            live::Arm::new("pipeline", scorer.outcomes(scored, &sent(Source::Pipeline)).await?, pipeline.clone(), true),
            live::Arm::new("oracle", oracle, pipeline, false),
        ];
        Ok(live::report(&arms, self.seed))
    }

    /// Asks the pipeline so many further prompts, and returns how long it took.
    async fn time(&self, state: &mut State, n: usize, concurrency: usize) -> anyhow::Result<Option<live::Latency>> {
        if n == 0 {
            return Ok(None);
        }
        let prompts = texts::compose(&texts::built_in(), n, self.seed.wrapping_add(1));
        let missing: Vec<&ArenaPrompt> =
            prompts.iter().filter(|prompt| state.drawn(&prompt.id, Source::Timed).is_none()).collect();
        let (n_known, bar) = (n - missing.len(), Counter::new("requests"));
        if !missing.is_empty() {
            self.warm_up().await;
        }
        let asked = futures_util::stream::iter(missing.iter().map(|prompt| self.ask(prompt, Source::Timed)));
        let mut asked = asked.buffer_unordered(concurrency);
        let mut done = n_known;
        while let Some(drawn) = asked.next().await {
            state.keep(drawn?)?;
            done += 1;
            bar.at(done, n);
        }
        bar.close();
        let drawn: Vec<&Drawn> = prompts.iter().filter_map(|p| state.drawn(&p.id, Source::Timed)).collect();
        Ok(Some(live::Latency::of(&drawn)))
    }
}

fn print(found: &Found<'_>) -> anyhow::Result<()> {
    let with = |interval: Interval| format!("{:.3} ({:.3} to {:.3})", interval.value, interval.low, interval.high);
    let seconds = |ms: Option<f64>| ms.map_or_else(String::new, |ms| format!("{:.1}", ms / 1e3));
    let row = |arm: &live::ArmReport| {
        vec![
            arm.arm.to_owned(),
            with(arm.reward),
            with(arm.criteria),
            format!("{:.3}", arm.keyword),
            format!("{:.3}", arm.content),
            format!("{:.3}", arm.quality),
            format!("{:.2}", arm.logprob),
            format!("{:.3}", arm.irrelevant),
            format!("{:.3}", arm.masked),
            format!("{:.0}", arm.tokens),
            seconds(arm.latency.map(|latency| latency.p50_ms)),
            seconds(arm.latency.map(|latency| latency.p95_ms)),
            arm.latency.map_or_else(String::new, |latency| latency.misses.to_string()),
        ]
    };
    let head = [
        "arm",
        "reward",
        "criteria",
        "keyword",
        "content",
        "quality",
        "log p",
        "irrelevant",
        "masked",
        "tokens",
        "p50 s",
        "p95 s",
        "missed",
    ];
    output::columns(&head, &found.report.arms.iter().map(row).collect::<Vec<_>>())?;
    output::say("")?;
    let row = |comparison: &live::Comparison| {
        vec![
            format!("{} over {}", comparison.arm, comparison.over),
            with(comparison.ratio.reward),
            with(comparison.difference),
            with(comparison.ratio.criteria),
            format!("{:.4}", comparison.p),
        ]
    };
    let rows: Vec<Vec<String>> = found.report.comparisons.iter().map(row).collect();
    output::columns(&["", "reward, ratio", "reward, difference", "criteria, ratio", "p"], &rows)?;
    output::say(format!(
        "\n{} prompts, {:.0} rivals each; {} candidates in {} s; gate and relevance by {}, quality by {}; not computed: {}",
        found.report.n_prompts,
        found.n_rivals,
        found.setup.k,
        found.setup.timeout_s,
        found.setup.encoder,
        found.reward_model,
        found.missing.join(", "),
    ))?;
    if let Some(requests) = &found.requests {
        output::say(format!(
            "{} further requests: half within {:.1} s, 95 % within {:.1} s; {} missed the deadline, {:.2} % (at most {:.2} %, with a confidence of 95 %)",
            requests.n,
            requests.p50_ms / 1e3,
            requests.p95_ms / 1e3,
            requests.misses,
            100.0 * requests.miss_rate,
            100.0 * requests.miss_rate_below,
        ))?;
    }
    Ok(())
}
