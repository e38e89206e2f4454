//! From a prompt to a reply.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use idiolect_axon::{Dictated, HandlerError, Reply, ReplyLogprob};
use idiolect_backend::{Backend, Embedder, Embedding, FinishReason, Message, Request, Role, Sampling};
use idiolect_mutation::guard::{self, Flag, Rules};
use idiolect_mutation::policy::{Context, Draw, Learner, Scored, Wish};
use idiolect_mutation::{Facts, Library, LibraryFile, Mode, Recipe, RecipeSampler, Shape, Task};
use idiolect_protocol::Category;
use idiolect_uniqueness::quality::{self, Quality, Reward};
use idiolect_uniqueness::{
    Candidate, Erase, HistoryStore, Neighbour, Panel, Panels, Population, ReplyHistory, Selection, Selector,
    SqliteHistory, StoreError, StoredReply,
};
use idiolect_validator::task::Prompt as TaskPrompt;
use idiolect_validator::{Profile, RewardModel};
use sqlx::SqlitePool;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::ask::Job;
use crate::claim::{About, Claims, Settled};
use crate::config::{RecordConfig, StorePrompts};
use crate::error::to_handler_error;
use crate::generate::{Draft, Generated, Planned, generate, share_time};
use crate::judge::Judge;
use crate::mend;
use crate::pace::{Measured, Pace};
use crate::provenance::{CandidateRecord, Timings, milliseconds};
use crate::recorder::{Recorder, now_ms};
use crate::reserve::Reserve;
use crate::store::{ProvenanceStore, Rewards};
use crate::{Answer, Ask, PipelineConfig, PipelineError, Provenance, hash, metrics};

/// With less than this left no reply is begun.
const LEAST_BUDGET: Duration = Duration::from_millis(5);
/// Kept back of the deadline for the choice and the record: whoever called drops us when it passes.
const FINISH: Duration = Duration::from_millis(60);
/// How much earlier than our own end the backend is told to stop, so that it can end its candidates properly.
const BACKEND_GRACE: Duration = Duration::from_millis(40);
/// Longest time for the policy's draw of recipes, and for the repair of candidates, and the share of the time left that either may take.
const ASIDE: Duration = Duration::from_secs(1);
const ASIDE_SHARE: u32 = 4;
/// Longest time for embedding a reply after it was sent.
const LATE: Duration = Duration::from_secs(10);
/// Largest share of a reply's time that is kept from generation for embedding.
const SCORE_MOST: f64 = 0.4;
/// Numbers between the seeds of two recipes: backends count their candidates up from a request's seed.
const SEEDS_APART: u64 = 1 << 20;
/// Most quoted winners that candidates are compared with, the last ones: each costs an embedding.
const MOST_QUOTED: usize = 8;
/// Searching more earlier replies than this is moved off the executor.
const SEARCH_INLINE: usize = 256;

/// What a pipeline is put together from.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The language model, or a pool of them.
    pub backend: Arc<dyn Backend>,
    /// The sentence encoder; without one quality alone decides.
    pub embedder: Option<Arc<dyn Embedder>>,
    /// The operators and routes.
    pub library: Arc<Library>,
    /// Where replies are kept; without one the last few live in memory.
    pub store: Option<SqlitePool>,
    /// A history that several miners share, in place of the one in `store`. None of them then sends what another one just
    /// sent in answer to the same prompt.
    pub shared_history: Option<Arc<dyn HistoryStore>>,
    /// Recorded rivals.
    pub panels: Option<Arc<Panels>>,
    /// A library that is read anew when its file changes, in place of `library`.
    pub library_file: Option<Arc<LibraryFile>>,
    /// Learns which recipes bring most, and draws them. Without it, and where `sampling` has a seed, they are drawn by their
    /// operators' weights.
    pub learner: Option<Arc<Learner>>,
    /// The arithmetic that candidates are checked and repaired by. Without it, the built-in one of the version that composes such
    /// prompts.
    pub profile: Option<Arc<Profile>>,
    /// Says how good candidates are, the dpo reward of a small model for one. Without it, or where there is no time for it, the
    /// models' own log-probabilities have to do.
    pub reward: Option<Arc<dyn RewardModel>>,
}

impl Parts {
    /// Takes a backend and nothing else: no encoder, no operators, no store.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        let library = Arc::default();
        Self {
            backend,
            embedder: None,
            library,
            store: None,
            shared_history: None,
            panels: None,
            library_file: None,
            learner: None,
            profile: None,
            reward: None,
        }
    }
}

/// Makes replies: detects the task, mutates the prompt, draws candidates, scores them, chooses one and records how it
/// came to be.
///
/// It implements [`idiolect_axon::Handler`]. A deadline is kept by setting time aside for scoring, as much as scoring was
/// measured to take; candidates that are unfinished by then are used as they are. Dropping the future of a reply stops
/// its work.
///
/// Must be made within a tokio runtime: a task of its own writes the records.
#[derive(Debug)]
pub struct Pipeline {
    config: PipelineConfig,
    backend: Arc<dyn Backend>,
    embedder: Option<Arc<dyn Embedder>>,
    library: Arc<Library>,
    library_file: Option<Arc<LibraryFile>>,
    learner: Option<Arc<Learner>>,
    profile: Option<Arc<Profile>>,
    selector: Arc<Selector>,
    panels: Option<Arc<Panels>>,
    judge: Option<Judge>,
    pace: Pace,
    pub(crate) history: Option<Arc<ReplyHistory>>,
    /// Whether other miners have the same history.
    pub(crate) is_shared: bool,
    pub(crate) claims: Claims,
    recorder: Recorder,
    reserve: Reserve,
    seed: u64,
    n_requests: AtomicU64,
    /// Held from a choice until it is remembered, so that calls that come together are not answered alike.
    choosing: Mutex<()>,
    /// For embedding what was sent without, one reply at a time.
    late: Arc<Semaphore>,
    /// Whether the backend last took a reply's requests one after the other. Taken for true until it is known: then the
    /// worst is that the first reply's first recipe gets half of the time.
    one_by_one: AtomicBool,
}

/// What was settled before anything was generated.
pub(crate) struct Plan {
    task: Task,
    task_name: String,
    mode: Mode,
    /// What the rewards of recipes may depend on.
    context: Context,
    seed: u64,
    requests: Vec<Planned>,
    n_candidates: usize,
    /// Texts are sent exactly as the model said them.
    verbatim: bool,
    /// The last thing that the user said, where recorded rivals are found or candidates judged by it.
    asked: String,
    /// Winning replies of others that the prompt quotes, with what they are called.
    quoted: Vec<(String, String)>,
}

/// What was found out about the candidates.
pub(crate) struct Examined {
    qualities: Vec<Quality>,
    flags: Vec<Vec<Flag>>,
    pub(crate) embeddings: Option<Vec<Embedding>>,
    quoted: Option<Arc<Panel>>,
}

/// Which candidates are best, and why.
#[derive(Debug)]
pub(crate) struct Choice {
    selection: Option<Selection>,
    pub(crate) ranking: Vec<usize>,
    reason: &'static str,
    n_history: usize,
}

impl Pipeline {
    /// Puts a pipeline together, and reads the last replies out of the store.
    ///
    /// # Errors
    /// [`PipelineError::Config`] naming every setting that cannot work, or what the store says.
    pub async fn start(config: PipelineConfig, parts: Parts) -> Result<Self, PipelineError> {
        check(&config, &parts)?;
        metrics::describe();
        let Parts { backend, embedder, library, store, shared_history, panels, library_file, learner, profile, reward } =
            parts;
        let is_shared = shared_history.is_some();
        let kept: Option<Arc<dyn HistoryStore>> = match (shared_history, &store) {
            (Some(shared), _) => Some(shared),
            (None, Some(pool)) if embedder.is_some() => Some(Arc::new(SqliteHistory::open(pool.clone()).await?)),
            (None, _) => None,
        };
        let history = match (&embedder, kept) {
            (None, _) => None,
            (Some(embedder), None) => {
                Some(ReplyHistory::in_memory(embedder.name(), embedder.dimensions(), config.history))
            }
            (Some(embedder), Some(kept)) => {
                Some(ReplyHistory::load(kept, embedder.name(), embedder.dimensions(), config.history).await?)
            }
        };
        let history = history.map(Arc::new);
        let store = match store {
            Some(pool) => Some(ProvenanceStore::open(pool).await?),
            None => None,
        };
        let recorder = Recorder::new(store, history.clone(), config.record.clone());
        let seed = config.seed.or(config.sampling.seed).unwrap_or_else(rand::random);
        Ok(Self {
            library,
            library_file,
            profile,
            // What was learnt changes what is drawn: the same prompt would not get the same recipes.
            learner: learner.filter(|_| config.sampling.seed.is_none()),
            selector: Arc::new(Selector::new(config.selector.clone())),
            reserve: Reserve::new(config.score_reserve, SCORE_MOST),
            judge: reward.map(|model| Judge::new(model, config.reward_reserve)),
            pace: Pace::default(),
            config,
            backend,
            embedder,
            panels,
            history,
            is_shared,
            claims: Claims::default(),
            recorder,
            seed,
            n_requests: AtomicU64::new(0),
            choosing: Mutex::new(()),
            late: Arc::new(Semaphore::new(1)),
            one_by_one: AtomicBool::new(true),
        })
    }

    /// Returns the settings.
    #[must_use]
    pub const fn config(&self) -> &PipelineConfig {
        &self.config
    }

    /// Answers a question of our own.
    ///
    /// # Errors
    /// [`HandlerError`] with the category that a peer would be told.
    pub async fn answer(&self, ask: Ask) -> Result<Answer, HandlerError> {
        self.run(ask.into()).await
    }

    /// Returns how a reply came to be: `which` is an id, the beginning of one, or `last`.
    ///
    /// # Errors
    /// [`PipelineError::NotFound`], or what the store says.
    pub async fn explain(&self, which: &str) -> Result<Provenance, PipelineError> {
        self.recorder.explain(which).await
    }

    /// Erases replies, with everything kept of them, and returns how many.
    ///
    /// # Errors
    /// What the store says.
    pub async fn erase(&self, what: &Erase) -> Result<u64, StoreError> {
        self.late_ones().await;
        self.recorder.erase(what).await
    }

    /// Waits until every reply so far is on record. Call it before the process ends.
    pub async fn flush(&self) {
        self.late_ones().await;
        self.recorder.flush().await;
    }

    /// Waits until nothing is being embedded late.
    async fn late_ones(&self) {
        // Nobody closes the semaphore.
        let _ = self.late.acquire().await;
    }

    pub(crate) const fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    pub(crate) fn reward(&self, caller: &str, completion: &str, rewards: Vec<f32>) -> Result<(), HandlerError> {
        const MOST: usize = 64;
        if rewards.len() > MOST || rewards.iter().any(|r| !r.is_finite()) {
            let message = format!("expected at most {MOST} rewards, all of them finite");
            return Err(HandlerError::new(Category::Malformed, message));
        }
        let completion_hash = hash::completion(caller, completion);
        if self.recorder.rewards(Rewards { completion_hash, rewards }) {
            Ok(())
        } else {
            Err(HandlerError::new(Category::Overloaded, "overloaded"))
        }
    }

    /// Makes one reply.
    pub(crate) async fn run(&self, job: Job) -> Result<Answer, HandlerError> {
        let _in_flight = metrics::InFlight::new();
        let transport = job.transport;
        let prompt_hash = hash::prompt(&job.messages);
        let planned = self.plan(&job, &prompt_hash).await;
        let mode = match &planned {
            Ok(plan) if plan.mode.is_passthrough() => "passthrough",
            Ok(_) => "mutate",
            Err(_) => "none",
        };
        let result = match planned {
            Ok(plan) => self.carry_out(job, plan, prompt_hash).await,
            Err(error) => Err(error),
        };
        if result.as_ref().is_err_and(|error| error.category == Category::Timeout) {
            metrics::deadline_missed();
        }
        metrics::reply(transport, mode, result.as_ref().map(|_| ()).map_err(|error| error.category));
        result
    }

    /// Settles what is asked of the backend. The deadlines of the requests are set later.
    async fn plan(&self, job: &Job, prompt_hash: &str) -> Result<Plan, HandlerError> {
        let refuse = |message: String| Err(HandlerError::new(Category::Malformed, message));
        let most = PipelineConfig::MAX_CANDIDATES;
        if !(1..=most).contains(&job.n_completions) {
            return refuse(format!("{} completions asked for, expected 1 to {most}", job.n_completions));
        }
        let task = Task::detect(job.task.as_deref(), &job.messages);
        let task_name = job.task.clone().unwrap_or_else(|| task.as_str().to_owned());
        let facts = Facts {
            transport: job.transport,
            task: &task_name,
            validator: &job.caller,
            shape: Some(Shape::of(&job.messages)),
            dictated: job.dictated.is_some(),
        };
        let library = self.library();
        let varied = library.plan(&facts, task, &job.messages);
        let mode = varied.mode.clone();
        // With a seed for every prompt nothing may depend on what was asked before.
        let nth = if self.config.sampling.seed.is_some() { 0 } else { self.n_requests.fetch_add(1, Ordering::Relaxed) };
        let seed = hash::seed(self.seed, nth, prompt_hash);

        let max_tokens = self.config.sampling.max_tokens;
        let n_candidates = if mode.is_passthrough() {
            job.n_completions
        } else {
            // Fewer candidates that are whole are better than many that the deadline cuts. What remains of one candidate
            // is the plain prompt: what is varied never misses a deadline that the plain prompt would not.
            let left = job.deadline.saturating_duration_since(Instant::now());
            self.pace.fit(self.config.candidates, max_tokens, left - self.set_aside(left)).max(job.n_completions)
        };
        let families = if mode.is_passthrough() || job.model.is_some() { &[] } else { &*self.config.families };
        let n_recipes = varied.candidates(self.config.recipes).max(families.len()).clamp(1, n_candidates);
        let context = Context::new(job.transport, task_name.as_str(), job.caller.as_str()).with("risk", varied.risk);
        let learnt = if n_recipes > 1 && !mode.is_passthrough() {
            let wish = Wish { context: &context, task, mode: &mode, k: n_recipes, request: seed };
            self.drawn(&library, &wish, job.deadline).await
        } else {
            None
        };
        let draws: Vec<(Recipe, Option<Draw>)> = match learnt {
            Some(draws) => draws.into_iter().map(|draw| (draw.recipe.clone(), Some(draw))).collect(),
            None => {
                let sampler = RecipeSampler::new(Arc::clone(&library), self.seed);
                let recipes = sampler.draw_planned(n_recipes, seed, task, &varied);
                recipes.into_iter().map(|recipe| (recipe, None)).collect()
            }
        };
        let capabilities = self.backend.capabilities();
        if mode.is_passthrough() && job.logprobs.is_some() && !capabilities.logprobs {
            return Err(HandlerError::new(Category::Unavailable, "log-probabilities are not available"));
        }
        let logprobs = job.logprobs.filter(|_| capabilities.logprobs).map(|n| n.min(20));
        let sampling = match &job.dictated {
            Some(dictated) => self.dictated(dictated),
            None => Sampling { seed: None, ..self.config.sampling.clone() },
        };
        let mut requests = Vec::with_capacity(draws.len());
        for (i, (recipe, draw)) in draws.into_iter().enumerate() {
            // The first, which is the no-op, takes what does not divide.
            let rest = if i == 0 { n_candidates % n_recipes } else { 0 };
            let mut sampling = sampling.clone();
            recipe.apply_sampling(&mut sampling);
            if job.dictated.is_none() {
                // A seed of our own is no use to a backend that does not keep it; one that was configured is for the backend to judge.
                let first = self.config.sampling.seed.or(capabilities.seed.then_some(seed));
                sampling.seed = first.map(|first| first.wrapping_add(i as u64 * SEEDS_APART));
            }
            sampling.logprobs = logprobs;
            let messages = recipe.apply(&job.messages);
            let request = Request {
                n: n_candidates / n_recipes + rest,
                sampling,
                model: job.model.clone(),
                ..Request::new(messages)
            };
            requests.push(Planned { recipe, draw, request, until: job.deadline });
        }
        // A small library may hold fewer recipes than wanted: the no-op takes their share.
        let drawn: usize = requests.iter().map(|planned| planned.request.n).sum();
        requests[0].request.n += n_candidates.saturating_sub(drawn);
        share_out(&mut requests, families, seed);

        if let Some(Err(error)) = requests.iter().map(|planned| planned.request.validate()).find(Result::is_err) {
            return Err(to_handler_error(error));
        }
        let verbatim = mode.is_passthrough() || job.logprobs.is_some();
        let asked = last_asked(&job.messages);
        let quoted = if self.scores(&mode) { quoted(asked) } else { Vec::new() };
        let is_needed = self.panels.is_some() || self.judge.is_some();
        let asked = if is_needed { asked.to_owned() } else { String::new() };
        Ok(Plan { task, task_name, mode, context, seed, requests, n_candidates, verbatim, asked, quoted })
    }

    /// Has the policy draw recipes on a thread that nobody waits for: it estimates how likely each of them was. `None` where there
    /// is no policy, or no thread soon enough.
    async fn drawn(&self, library: &Arc<Library>, wish: &Wish<'_>, deadline: Instant) -> Option<Vec<Draw>> {
        let learner = Arc::clone(self.learner.as_ref()?);
        let library = Arc::clone(library);
        let (context, mode, Wish { task, k, request, .. }) = (wish.context.clone(), wish.mode.clone(), *wish);
        let draw = tokio::task::spawn_blocking(move || {
            learner.draw(&library, &Wish { context: &context, task, mode: &mode, k, request })
        });
        match tokio::time::timeout(aside(deadline), draw).await {
            Ok(drawn) => drawn.inspect_err(|error| tracing::error!(%error, "recipes not drawn by the policy")).ok(),
            Err(_) => {
                tracing::warn!("no time to draw recipes by the policy");
                None
            }
        }
    }

    /// Says whether candidates are embedded and compared.
    fn scores(&self, mode: &Mode) -> bool {
        self.embedder.is_some() && !mode.is_passthrough()
    }

    fn dictated(&self, dictated: &Dictated) -> Sampling {
        let max_tokens = dictated.max_tokens.unwrap_or(self.config.sampling.max_tokens);
        Sampling {
            max_tokens: max_tokens.min(self.config.max_dictated_tokens),
            temperature: dictated.temperature,
            top_k: dictated.top_k,
            top_p: dictated.top_p,
            repetition_penalty: dictated.repetition_penalty,
            stop: dictated.stop.iter().filter(|stop| !stop.is_empty()).take(16).cloned().collect(),
            seed: dictated.seed,
            ..Sampling::default()
        }
    }

    async fn carry_out(&self, job: Job, mut plan: Plan, prompt_hash: String) -> Result<Answer, HandlerError> {
        let started = Instant::now();
        let time_ms = now_ms();
        let budget = job.deadline.saturating_duration_since(started);
        if budget < LEAST_BUDGET {
            return Err(HandlerError::new(Category::Timeout, "out of time"));
        }
        let n_texts = plan.n_candidates + plan.quoted.len();
        let mut reserve = if self.scores(&plan.mode) { self.reserve.of(n_texts, budget) } else { Duration::ZERO };
        if let Some(judge) = self.judge.as_ref().filter(|_| plan.n_candidates > 1 && !plan.mode.is_passthrough()) {
            reserve += judge.reserve(plan.n_candidates, budget);
        }
        metrics::reserve(reserve);
        let generate_until = job.deadline - reserve.max(finish(budget));
        let grace = BACKEND_GRACE.min(budget / 20);
        share_time(&mut plan.requests, generate_until, grace, self.one_by_one.load(Ordering::Relaxed));
        let planned_at = Instant::now();
        let mut generated = generate(&*self.backend, &plan.requests, plan.verbatim).await;
        let generated_at = Instant::now();
        if let Some(one_by_one) = generated.one_by_one {
            self.one_by_one.store(one_by_one, Ordering::Relaxed);
        }
        if generated.drafts.is_empty() {
            let nothing = || HandlerError::new(Category::Unavailable, "the model gave no text");
            return Err(generated.error.take().map_or_else(nothing, to_handler_error));
        }
        self.measure(&generated, generated_at - planned_at);
        let rules = self.rules(&job, &plan);
        if let Some(rules) = &rules {
            generated.drafts = mended(rules, generated.drafts, job.deadline).await;
            self.once_more(rules, &job, &mut plan, &mut generated, generate_until).await;
        }
        let mended_at = Instant::now();
        metrics::trimmed(generated.usage.trimmed_tokens);
        let asks_for_seed = job.dictated.as_ref().is_some_and(|dictated| dictated.seed.is_some());
        if asks_for_seed && !self.backend.capabilities().seed {
            generated.notes.push("the backend does not promise to honour the seed that was asked for".to_owned());
        }

        let id = uuid::Uuid::now_v7().to_string();
        let looked_at = self.examine(&job, &plan, &mut generated).await;
        // Neither a slow disk nor a full house may cost the reply.
        let until = job.deadline - finish(job.deadline.saturating_duration_since(Instant::now()));
        let choosing = timeout_at(until, self.choosing.lock()).await;
        let about = About {
            id: &id,
            caller: &job.caller,
            prompt_hash: &prompt_hash,
            time_ms,
            n_completions: job.n_completions,
            is_local: job.transport == "local",
            deadline: job.deadline,
        };
        let Settled { choice, sent, is_claimed, note } =
            self.settle(&looked_at, &plan, &generated.drafts, about, until).await?;
        generated.notes.extend(note);
        let nearest_source = self.count_choice(&choice, &plan, &mut generated, looked_at.embeddings.is_some(), sent[0]);
        let scored_at = Instant::now();
        self.learn(&plan, &generated.drafts, &looked_at, &choice);

        let timings = Timings {
            plan_ms: milliseconds(planned_at - started),
            generate_ms: milliseconds(mended_at - planned_at),
            score_ms: milliseconds(scored_at - mended_at),
            total_ms: milliseconds(scored_at - started),
            reserve_ms: milliseconds(reserve),
            budget_ms: milliseconds(budget),
        };
        metrics::stage("plan", planned_at - started);
        metrics::stage("generate", mended_at - planned_at);
        metrics::stage("score", scored_at - mended_at);
        metrics::stage("total", scored_at - started);

        let deadline = job.deadline;
        let reply = reply(&generated.drafts, &sent, job.logprobs.is_some());
        let embeddings = looked_at.embeddings.clone();
        let mut provenance =
            self.provenance(id, time_ms, job, &plan, generated, looked_at, choice, sent, prompt_hash, timings);
        provenance.nearest_source = nearest_source.map(str::to_owned);
        let mut history = self.remember(&provenance, embeddings.as_deref());
        drop(choosing);
        if is_claimed {
            history.clear();
        }
        self.recorder.reply(&provenance, history, deadline).await;
        Ok(Answer { reply, provenance })
    }

    /// Reads what the prompt asks for; `None` where texts are sent as the model said them.
    fn rules(&self, job: &Job, plan: &Plan) -> Option<Rules> {
        if plan.verbatim {
            return None;
        }
        let asked = last_asked(&job.messages);
        Some(match &self.profile {
            Some(profile) => Rules::new(Arc::clone(profile), plan.task, asked),
            None => Rules::detect(plan.task, asked),
        })
    }

    /// Asks for one more candidate, told what the others broke, where all of them lose much by rule and there is time for it.
    async fn once_more(&self, rules: &Rules, job: &Job, plan: &mut Plan, generated: &mut Generated, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        // A text that was cut for want of time is not for want of advice.
        let fits = self.pace.one(self.config.sampling.max_tokens).is_some_and(|one| one.mul_f64(1.2) <= left);
        let Some(recipe) = mend::once_more(rules, &generated.drafts).filter(|_| fits) else { return };
        let Some(first) = plan.requests.first() else { return };
        let mut request = Request { n: 1, messages: recipe.apply(&job.messages), ..first.request.clone() };
        let n_before = plan.requests.len() as u64;
        request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(n_before * SEEDS_APART));
        let mut planned = vec![Planned { recipe, draw: None, request, until }];
        share_time(&mut planned, until, BACKEND_GRACE, false);
        let mut more = generate(&*self.backend, &planned, plan.verbatim).await;
        more.drafts = mended(rules, more.drafts, job.deadline).await;
        generated.add(more, plan.requests.len());
        plan.requests.extend(planned);
    }

    /// Returns the library that is in use now.
    fn library(&self) -> Arc<Library> {
        self.library_file.as_ref().map_or_else(|| Arc::clone(&self.library), |file| file.current())
    }

    /// Tells the policy what each recipe brought: the mean, over its candidates, of quality times the chance not to be masked.
    fn learn(&self, plan: &Plan, drafts: &[Draft], looked_at: &Examined, choice: &Choice) {
        let Some(learner) = &self.learner else { return };
        // Without embeddings nothing is known of the gate.
        let Some(selection) = choice.selection.as_ref().filter(|_| looked_at.embeddings.is_some()) else { return };
        let mut brought: Vec<(Draw, Vec<f64>)> = Vec::new();
        for (draft, score) in drafts.iter().zip(&selection.scores) {
            let Some(draw) = plan.requests.get(draft.recipe).and_then(|planned| planned.draw.as_ref()) else {
                continue;
            };
            let passes = score.masked.map_or(score.predicted, |masked| 1.0 - masked.p);
            let reward = f64::from(score.quality * passes).clamp(0.0, 1.0);
            match brought.iter_mut().find(|(other, _)| other.recipe == draw.recipe) {
                Some((_, rewards)) => rewards.push(reward),
                None => brought.push((draw.clone(), vec![reward])),
            }
        }
        if brought.is_empty() {
            return;
        }
        let (learner, context) = (Arc::clone(learner), plan.context.clone());
        // It is written down, too.
        tokio::task::spawn_blocking(move || {
            let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len() as f64;
            let scored = brought.iter().map(|(draw, rewards)| Scored { draw, reward: mean(rewards) });
            match learner.update(&context, &scored.collect::<Vec<_>>()) {
                Ok(()) => metrics::learnt("yes"),
                Err(error) => {
                    metrics::learnt("failed");
                    tracing::warn!(error = &error as &dyn std::error::Error, "not learnt of what the recipes brought");
                }
            }
        });
    }

    /// Returns how much of a budget is about to be set aside for scoring one candidate.
    fn set_aside(&self, budget: Duration) -> Duration {
        let embedding = self.embedder.as_ref().map_or(Duration::ZERO, |_| self.reserve.of(1, budget));
        embedding.max(finish(budget)).min(budget)
    }

    fn measure(&self, generated: &Generated, took: Duration) {
        let of = |draft: &Draft| draft.candidate.n_tokens;
        let is_cut = |draft: &Draft| draft.candidate.finish_reason == FinishReason::Deadline;
        self.pace.measured(Measured {
            n_candidates: generated.drafts.len(),
            took,
            length: generated.drafts.iter().map(of).max().unwrap_or(0),
            is_cut: generated.drafts.iter().any(is_cut),
        });
    }

    /// Compares later replies with this one, and returns what is to be written of it.
    fn remember(&self, provenance: &Provenance, embeddings: Option<&[Embedding]>) -> Vec<StoredReply> {
        let Some(history) = &self.history else { return Vec::new() };
        let of_sent: Option<Vec<Embedding>> =
            embeddings.map(|all| provenance.sent.iter().filter_map(|&index| all.get(index).cloned()).collect());
        match of_sent {
            Some(embeddings) => remember_all(history, &self.config.record, provenance, embeddings),
            None => {
                // Nobody compares what is passed through.
                if provenance.mode != "passthrough" {
                    self.remember_later(provenance.clone());
                }
                Vec::new()
            }
        }
    }

    /// Embeds a reply that was sent without for want of time: the validators will have it in their history, too. Where
    /// another one is being embedded already, it is left out.
    fn remember_later(&self, provenance: Provenance) {
        let (Some(history), Some(embedder)) = (self.history.clone(), self.embedder.clone()) else { return };
        let Ok(turn) = Arc::clone(&self.late).try_acquire_owned() else { return };
        let config = self.config.record.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let sent = provenance.sent.iter().filter_map(|&index| provenance.candidates.get(index)?.text.clone());
            let texts: Vec<String> = sent.collect();
            let Ok(Ok(embeddings)) = tokio::time::timeout(LATE, embedder.embed(&texts)).await else { return };
            let replies = remember_all(&history, &config, &provenance, embeddings);
            if let Err(error) = history.save(&replies).await {
                tracing::error!(error = &error as &dyn std::error::Error, "history not written");
            }
        });
    }

    /// Finds out what there is to know of the candidates in the time that is left.
    async fn examine(&self, job: &Job, plan: &Plan, generated: &mut Generated) -> Examined {
        let drafts = &generated.drafts;
        let asked = last_asked(&job.messages);
        let check = |draft: &Draft| guard::check(plan.task, asked, &draft.candidate.text);
        let flags: Vec<Vec<Flag>> =
            drafts.iter().map(|draft| draft.flags.clone().unwrap_or_else(|| check(draft))).collect();
        for flag in flags.iter().flatten() {
            metrics::flag(flag.kind.as_str());
        }
        if plan.mode.is_passthrough() {
            let qualities = quality::estimate(&described(drafts, &flags, None));
            return Examined { qualities, flags, embeddings: None, quoted: None };
        }
        let mut quoted = None;
        let embeddings = match self.embed(drafts, &plan.quoted, job.deadline).await {
            Ok(mut embeddings) => {
                quoted = self.panel_of(&plan.quoted, embeddings.split_off(drafts.len()));
                Some(embeddings)
            }
            Err(why) => {
                metrics::unscored(why.label());
                generated.notes.push(format!("chosen without embeddings: {}", why.text()));
                None
            }
        };
        // The gate comes first: it takes all of the reward.
        let rewards = self.judge(drafts, plan, job.deadline, &mut generated.notes).await;
        let qualities = quality::estimate(&described(&generated.drafts, &flags, rewards.as_deref()));
        Examined { qualities, flags, embeddings, quoted }
    }

    /// Asks the reward model about candidates that there is a choice among.
    async fn judge(
        &self,
        drafts: &[Draft],
        plan: &Plan,
        deadline: Instant,
        notes: &mut Vec<String>,
    ) -> Option<Vec<Reward>> {
        let judge = self.judge.as_ref()?;
        let texts: Vec<String> = drafts.iter().map(|draft| draft.candidate.text.clone()).collect();
        if texts.iter().map(|text| text.trim()).collect::<HashSet<_>>().len() < 2 {
            return None;
        }
        let until = deadline - finish(deadline.saturating_duration_since(Instant::now()));
        match judge.rewards(&plan.asked, &texts, until).await {
            Ok(rewards) => Some(rewards),
            Err(why) => {
                metrics::unjudged(why.label());
                notes.push(format!("chosen without rewards by {}: {why}", judge.name()));
                None
            }
        }
    }

    fn panel_of(&self, quoted: &[(String, String)], embeddings: Vec<Embedding>) -> Option<Arc<Panel>> {
        let embedder = self.embedder.as_ref().filter(|_| !quoted.is_empty())?;
        let mut panel = Panel::new(embedder.name(), embedder.dimensions());
        for ((label, _), embedding) in quoted.iter().zip(&embeddings) {
            panel.push(label.as_str(), embedding);
        }
        Some(Arc::new(panel))
    }

    /// Chooses, beside all that is known of earlier replies by now and can be compared with in time.
    pub(crate) async fn choose(
        &self,
        looked_at: &Examined,
        plan: &Plan,
        drafts: &[Draft],
        prompt_hash: &str,
        deadline: Instant,
    ) -> Choice {
        if plan.mode.is_passthrough() {
            let ranking = (0..drafts.len()).collect();
            return Choice { selection: None, ranking, reason: "passthrough", n_history: 0 };
        }
        let n_history = self.history.as_ref().map_or(0, |history| history.len());
        let selection = self.select(drafts, looked_at, plan, prompt_hash, deadline).await;
        let (ranking, reason) = (selection.ranking.clone(), selection.reason.as_str());
        Choice { selection: Some(selection), ranking, reason, n_history }
    }

    /// Counts the choice that counts, notes what there was no time for, and returns what the sent reply is nearest to.
    fn count_choice(
        &self,
        choice: &Choice,
        plan: &Plan,
        generated: &mut Generated,
        is_embedded: bool,
        sent: usize,
    ) -> Option<&'static str> {
        metrics::selection(choice.reason);
        let selection = choice.selection.as_ref()?;
        if selection.n_unsearched > 0 {
            metrics::search_cut();
            let (n, n_candidates) = (selection.n_unsearched, selection.scores.len());
            let note = format!("no time to compare {n} of {n_candidates} candidates with earlier replies");
            generated.notes.push(note);
        }
        let score = selection.scores.get(sent).filter(|_| is_embedded)?;
        metrics::gate(score.distance, score.predicted);
        let source = match score.nearest.as_ref()? {
            Neighbour::Sibling(i) => {
                let (own, other) = (generated.drafts.get(sent)?, generated.drafts.get(*i)?);
                let is_no_op = plan.requests.get(other.recipe).is_some_and(|r| r.recipe.operators.is_empty());
                match (own.model == other.model, is_no_op) {
                    (false, _) => "sibling_model",
                    (true, true) => "no_op",
                    (true, false) => "sibling",
                }
            }
            Neighbour::Panel(_) => "panel",
            Neighbour::Quoted(_) => "quoted",
            _ => "history",
        };
        metrics::nearest(source);
        Some(source)
    }

    /// Returns the embeddings of the candidates, and behind them those of the winners that the prompt quotes.
    async fn embed(
        &self,
        drafts: &[Draft],
        quoted: &[(String, String)],
        deadline: Instant,
    ) -> Result<Vec<Embedding>, NotEmbedded> {
        let embedder = self.embedder.as_ref().ok_or(NotEmbedded::NoEncoder)?;
        let started = Instant::now();
        let until = deadline - finish(deadline.saturating_duration_since(started));
        let candidates = drafts.iter().map(|draft| draft.candidate.text.clone());
        let texts: Vec<String> = candidates.chain(quoted.iter().map(|(_, text)| text.clone())).collect();
        let result = tokio::time::timeout_at(until, embedder.embed(&texts)).await;
        if result.is_ok() {
            self.reserve.measured(texts.len(), started.elapsed());
        }
        match result {
            Err(_) => {
                self.reserve.given_up(texts.len(), started.elapsed());
                Err(NotEmbedded::NoTime)
            }
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "candidates not embedded");
                Err(NotEmbedded::Failed)
            }
            Ok(Ok(embeddings)) => {
                let n_values = embedder.dimensions();
                let is_usable = |e: &Embedding| e.len() == n_values && e.iter().all(|v| v.is_finite());
                // One text that cannot be placed counts as a repeat; where none can, the encoder is to blame.
                if embeddings.len() == texts.len() && embeddings.iter().take(drafts.len()).any(is_usable) {
                    return Ok(embeddings);
                }
                tracing::warn!(n_texts = texts.len(), n = embeddings.len(), "the encoder gave nothing of use");
                Err(NotEmbedded::Failed)
            }
        }
    }

    async fn select(
        &self,
        drafts: &[Draft],
        looked_at: &Examined,
        plan: &Plan,
        prompt_hash: &str,
        deadline: Instant,
    ) -> Selection {
        let Examined { qualities, embeddings, quoted, .. } = looked_at;
        let known: Vec<(String, f32)> =
            drafts.iter().zip(qualities).map(|(draft, quality)| (draft.model.clone(), quality.score)).collect();
        let (embeddings, quoted) = (embeddings.clone(), quoted.clone());
        let (selector, history, panels) = (Arc::clone(&self.selector), self.history.clone(), self.panels.clone());
        let is_plain = |draft: &Draft| plan.requests.get(draft.recipe).is_some_and(|r| r.recipe.is_no_op());
        let plain: Vec<usize> =
            drafts.iter().enumerate().filter(|(_, draft)| is_plain(draft)).map(|(index, _)| index).collect();
        let n_rivals = self.config.rivals;
        let asked = panels.as_ref().map(|_| plan.asked.clone()).unwrap_or_default();
        let encoder = self.embedder.as_ref().map_or(String::new(), |embedder| embedder.name().to_owned());
        let prompt_hash = prompt_hash.to_owned();
        let n_rows =
            history.as_ref().map_or(0, |h| h.len()) + panels.as_ref().map_or(0, |panels| panels.elsewhere().len());
        let search = move |until: std::time::Instant| {
            let embedding = |i: usize| embeddings.as_ref().and_then(|e| e.get(i)).map(Vec::as_slice);
            let with_place = known.iter().enumerate();
            let candidates: Vec<Candidate<'_>> = with_place
                .map(|(i, (source, quality))| Candidate { embedding: embedding(i), quality: *quality, source })
                .collect();
            let mut population = Population::new(&encoder).with_rivals(n_rivals).with_plain(&plain);
            // All were made for this encoder: `start` checks it.
            if let Some(with) = history.as_deref().and_then(|h| population.with_history(h, &prompt_hash).ok()) {
                population = with;
            }
            if let Some(panels) = panels.as_deref() {
                let to_prompt = panels.to_prompt(&asked).and_then(|panel| population.with_panel(panel).ok());
                population = to_prompt.unwrap_or(population);
                population = population.with_elsewhere(panels.elsewhere()).unwrap_or(population);
            }
            if let Some(with) = quoted.as_deref().and_then(|panel| population.with_quoted(panel).ok()) {
                population = with;
            }
            selector.select_until(&candidates, &population, until)
        };
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        // The search stops by itself; where it finds no thread to begin on, it is not waited for.
        let (enough, too_late) = (left.saturating_sub(finish(left) / 2), left.saturating_sub(finish(left) / 4));
        let until = std::time::Instant::now() + enough;
        let selection = if n_rows <= SEARCH_INLINE {
            search(until)
        } else {
            let search = Arc::new(search);
            let elsewhere = Arc::clone(&search);
            match timeout_at(now + too_late, tokio::task::spawn_blocking(move || elsewhere(until))).await {
                Ok(Ok(selection)) => selection,
                Ok(Err(error)) => {
                    tracing::error!(%error, "the choice failed; the first candidate is sent");
                    None
                }
                Err(_) => {
                    tracing::warn!("no thread was free to search earlier replies in time");
                    search(std::time::Instant::now())
                }
            }
        };
        selection.unwrap_or_else(|| Selection {
            chosen: 0,
            ranking: (0..qualities.len()).collect(),
            scores: Vec::new(),
            reason: idiolect_uniqueness::Reason::OnlyCandidate,
            n_unsearched: 0,
            vendi: None,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "one place where everything known of a reply comes together")]
    fn provenance(
        &self,
        id: String,
        time_ms: i64,
        job: Job,
        plan: &Plan,
        generated: Generated,
        looked_at: Examined,
        choice: Choice,
        sent: Vec<usize>,
        prompt_hash: String,
        timings: Timings,
    ) -> Provenance {
        let vendi = choice.selection.as_ref().filter(|_| looked_at.embeddings.is_some()).and_then(|s| s.vendi);
        let is_judged = looked_at.qualities.iter().any(|quality| quality.reward.is_some());
        let reward_model = self.judge.as_ref().filter(|_| is_judged).map(|judge| judge.name().to_owned());
        let mut details = looked_at.qualities.into_iter().zip(looked_at.flags);
        let mut candidates = Vec::with_capacity(generated.drafts.len());
        for (index, draft) in generated.drafts.into_iter().enumerate() {
            let Some((quality, flags)) = details.next() else { break };
            let Planned { recipe, draw, .. } = &plan.requests[draft.recipe];
            let gate = choice.selection.as_ref().filter(|_| looked_at.embeddings.is_some());
            candidates.push(CandidateRecord {
                index,
                recipe: recipe.to_string(),
                operators: recipe.operators.clone(),
                sampling: recipe.sampling.clone(),
                propensity: draw.as_ref().map(|draw| to_f32(draw.propensity).max(f32::MIN_POSITIVE)),
                backend: draft.backend,
                model: draft.model,
                text: Some(draft.candidate.text),
                n_tokens: draft.candidate.n_tokens,
                finish: draft.candidate.finish_reason,
                trimmed: draft.trimmed,
                repairs: draft.repairs,
                mean_logprob: draft.candidate.mean_logprob,
                flags,
                quality,
                score: gate.and_then(|selection| selection.scores.get(index)).cloned(),
                rank: choice.ranking.iter().position(|&i| i == index).unwrap_or(index),
                sent: sent.contains(&index),
            });
        }
        Provenance {
            id,
            time_ms,
            caller: (!job.caller.is_empty()).then_some(job.caller),
            transport: job.transport.to_owned(),
            synapse: short(&job.synapse),
            task: short(&plan.task_name),
            mode: if plan.mode.is_passthrough() { "passthrough" } else { "mutate" }.to_owned(),
            n_messages: job.messages.len(),
            prompt: Some(job.messages),
            prompt_hash: Some(prompt_hash),
            seed: plan.seed,
            candidates,
            sent,
            reason: choice.reason.to_owned(),
            nearest_source: None,
            reward_model,
            vendi: vendi.map(to_f32),
            encoder: looked_at.embeddings.and(self.embedder.as_ref().map(|embedder| embedder.name().to_owned())),
            profile: self.selector.config().profile.name.clone().into_owned(),
            n_history: choice.n_history,
            prompt_tokens: generated.usage.prompt_tokens,
            cached_tokens: generated.usage.cached_tokens,
            trimmed_tokens: generated.usage.trimmed_tokens,
            completion_tokens: generated.usage.completion_tokens,
            notes: generated.notes,
            timings,
            rewards: Vec::new(),
        }
    }
}

/// Why candidates have no embeddings.
#[derive(Clone, Copy, Debug)]
enum NotEmbedded {
    NoEncoder,
    NoTime,
    Failed,
}

impl NotEmbedded {
    const fn label(self) -> &'static str {
        match self {
            Self::NoEncoder => "no_encoder",
            Self::NoTime => "no_time",
            Self::Failed => "failed",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NoEncoder => "there is no encoder",
            Self::NoTime => "there was no time",
            Self::Failed => "the encoder failed",
        }
    }
}

/// Compares later replies with what was sent, and returns what is to be written of it. `embeddings` are those of the
/// completions sent, in order.
fn remember_all(
    history: &ReplyHistory,
    config: &RecordConfig,
    provenance: &Provenance,
    embeddings: Vec<Embedding>,
) -> Vec<StoredReply> {
    let mut replies = Vec::with_capacity(embeddings.len());
    for ((part, &index), embedding) in (0..).zip(&provenance.sent).zip(embeddings) {
        let Some(sent) = provenance.candidates.get(index) else { continue };
        let mut reply = StoredReply {
            reply_id: provenance.id.clone(),
            part,
            caller: provenance.caller.clone().unwrap_or_default(),
            prompt_hash: provenance.prompt_hash.clone().unwrap_or_default(),
            encoder: history.encoder().to_owned(),
            embedding,
            text: sent.text.clone().filter(|_| config.store_replies),
            time_ms: provenance.time_ms,
        };
        if !history.remember(&reply) {
            continue;
        }
        if config.store_prompts == StorePrompts::None {
            reply.prompt_hash.clear();
        }
        replies.push(reply);
    }
    replies
}

fn check(config: &PipelineConfig, parts: &Parts) -> Result<(), PipelineError> {
    let mut bad = Vec::new();
    let most = PipelineConfig::MAX_CANDIDATES;
    if !(1..=most).contains(&config.candidates) {
        bad.push(format!("candidates is {}, expected 1 to {most}", config.candidates));
    }
    if config.recipes == 0 {
        bad.push("recipes is 0, expected at least 1".to_owned());
    }
    if config.max_dictated_tokens == 0 {
        bad.push("max_dictated_tokens is 0, expected at least 1".to_owned());
    }
    if let Err(error) = config.sampling.validate() {
        bad.push(error.to_string());
    }
    if let (Some(panels), Some(embedder)) = (&parts.panels, &parts.embedder)
        && panels.encoder() != embedder.name()
    {
        bad.push(format!("the panel was embedded by {}, the encoder is {}", panels.encoder(), embedder.name()));
    }
    if parts.shared_history.is_some() && parts.embedder.is_none() {
        bad.push("a history is shared, but there is no encoder to compare replies with".to_owned());
    }
    if bad.is_empty() { Ok(()) } else { Err(PipelineError::Config(bad.join("; "))) }
}

/// Names come from the caller, and may be anything.
fn short(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Figures on record have seven digits: more do not survive JSON.
#[expect(clippy::cast_possible_truncation, reason = "that is what it is for")]
const fn to_f32(value: f64) -> f32 {
    value as f32
}

fn aside(deadline: Instant) -> Duration {
    ASIDE.min(deadline.saturating_duration_since(Instant::now()) / ASIDE_SHARE)
}

fn finish(budget: Duration) -> Duration {
    FINISH.min(budget / 4)
}

fn described<'a>(drafts: &'a [Draft], flags: &[Vec<Flag>], rewards: Option<&[Reward]>) -> Vec<quality::Draft<'a>> {
    let described = drafts.iter().zip(flags).enumerate().map(|(i, (draft, flags))| quality::Draft {
        text: &draft.candidate.text,
        mean_logprob: draft.candidate.mean_logprob,
        model: &draft.model,
        prompt: draft.recipe,
        complete: draft.candidate.finish_reason == FinishReason::Stop,
        penalty: guard::penalty(flags),
        reward: rewards.and_then(|rewards| rewards.get(i)).copied(),
    });
    described.collect()
}

/// Gives each request the backend that should answer it: in turns, by their weights. Whose turn is the first, which the
/// unchanged prompt goes to, the seed decides.
fn share_out(requests: &mut Vec<Planned>, families: &[(String, u32)], seed: u64) {
    let total: i64 = families.iter().map(|(_, weight)| i64::from((*weight).max(1))).sum();
    if families.is_empty() {
        return;
    }
    // Fewer recipes than backends: the same recipe is asked of several.
    while requests.len() < families.len() {
        let Some(largest) = (0..requests.len()).rev().max_by_key(|&i| requests[i].request.n) else { return };
        let n = requests[largest].request.n;
        if n < 2 {
            break;
        }
        let mut half = requests[largest].clone();
        half.request.n = n / 2;
        half.request.sampling.seed =
            half.request.sampling.seed.map(|s| s.wrapping_add(requests.len() as u64 * SEEDS_APART));
        requests[largest].request.n = n - n / 2;
        requests.push(half);
    }
    let mut credit: Vec<i64> = vec![0; families.len()];
    let turns = (seed % total.unsigned_abs()) as usize;
    let mut next = || {
        for (credit, (_, weight)) in credit.iter_mut().zip(families) {
            *credit += i64::from((*weight).max(1));
        }
        let chosen = (0..families.len()).rev().max_by_key(|&i| credit[i]).unwrap_or(0);
        credit[chosen] -= total;
        chosen
    };
    for _ in 0..turns {
        next();
    }
    for planned in requests {
        planned.request.prefer = Some(families[next()].0.clone());
    }
}

/// Repairs candidates on a thread that nobody waits for; where none is free, or it takes too long, they stay as they are.
async fn mended(rules: &Rules, mut drafts: Vec<Draft>, deadline: Instant) -> Vec<Draft> {
    let (rules, before) = (rules.clone(), drafts.clone());
    let mended = tokio::task::spawn_blocking(move || {
        mend::mend(&rules, &mut drafts);
        drafts
    });
    match tokio::time::timeout(aside(deadline), mended).await {
        Ok(Ok(drafts)) => drafts,
        Ok(Err(error)) => {
            tracing::error!(%error, "candidates not repaired");
            before
        }
        Err(_) => {
            tracing::warn!("no time to repair candidates");
            before
        }
    }
}

/// Returns the last thing that the user said.
fn last_asked(messages: &[Message]) -> &str {
    messages.iter().rev().find(|m| m.role == Role::User).map_or("", |m| &m.content)
}

/// Returns the last of the winning replies that a validator's prompt quotes, with what they are called.
fn quoted(asked: &str) -> Vec<(String, String)> {
    let prompt = TaskPrompt::parse(asked);
    let mut winners = prompt.winners();
    let winners = winners.split_off(winners.len().saturating_sub(MOST_QUOTED));
    let labelled = |(nth, winner): (usize, idiolect_validator::task::Winner<'_>)| {
        (format!("quoted {} {}", winner.kind, nth + 1), winner.text.to_owned())
    };
    winners.into_iter().enumerate().map(labelled).collect()
}

/// Returns the best `n` candidates with different texts; where there are fewer, the best of the rest fill up.
pub(crate) fn distinct(ranking: &[usize], drafts: &[Draft], n: usize) -> Vec<usize> {
    let mut seen = HashSet::new();
    let (first, again): (Vec<usize>, Vec<usize>) =
        ranking.iter().partition(|&&i| seen.insert(drafts[i].candidate.text.trim()));
    first.into_iter().chain(again).take(n.max(1)).collect()
}

fn reply(drafts: &[Draft], sent: &[usize], with_logprobs: bool) -> Reply {
    let chosen = &drafts[sent[0]];
    let logprob = |token: &idiolect_backend::TokenLogprob| ReplyLogprob {
        token: token.token.clone(),
        logprob: token.logprob,
        top: token.top.iter().map(|top| (top.token.clone(), top.logprob)).collect(),
    };
    let logprobs = chosen.candidate.logprobs.as_ref().filter(|_| with_logprobs);
    Reply {
        completions: sent.iter().map(|&i| drafts[i].candidate.text.clone()).collect(),
        logprobs: logprobs.map(|tokens| tokens.iter().map(logprob).collect()),
        finish_reason: if chosen.candidate.finish_reason == FinishReason::Stop { "stop" } else { "length" },
        model: chosen.model.clone(),
    }
}
