//! From a prompt to a reply.

mod choose;
mod examine;
mod plan;
mod reword;
mod waves;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use idiolect_axon::{HandlerError, Reply, ReplyLogprob};
use idiolect_backend::{Backend, Embedder, Embedding, FinishReason, Message, Request, Role};
use idiolect_mutation::guard::Rules;
use idiolect_mutation::policy::Learner;
use idiolect_mutation::{Library, LibraryFile, Mode, Paraphraser};
use idiolect_protocol::Category;
use idiolect_uniqueness::{
    Distinctiveness, Erase, HistoryStore, Panels, ReplyHistory, Selector, SqliteHistory, StoreError, StoredReply,
};
use idiolect_validator::{Profile, RewardModel};
use sqlx::SqlitePool;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::ask::Job;
use crate::awaited::Awaited;
use crate::claim::{About, Claims, Settled};
use crate::config::{RecordConfig, StorePrompts};
use crate::error::to_handler_error;
use crate::generate::{Draft, Generated, Planned, Times, Turn, generate};
use crate::judge::Judge;
use crate::mend;
use crate::pace::Pace;
use crate::provenance::{CandidateRecord, Timings, milliseconds};
use crate::recorder::{Recorder, now_ms};
use crate::reserve::Reserve;
use crate::store::{ProvenanceStore, Rewards};
use crate::{Answer, Ask, PipelineConfig, PipelineError, Provenance, hash, metrics};

pub(crate) use choose::{Choice, distinct};
pub(crate) use examine::Examined;
pub(crate) use plan::Plan;
use plan::SEEDS_APART;

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
    /// Says prompts in other words, for operators that want it. Without it, and where there is no time for it, recipes with such
    /// operators are left out.
    pub paraphraser: Option<Arc<Paraphraser>>,
    /// What other prompts taught of which replies rivals mask. Without it only what is seen counts.
    pub distinctiveness: Option<Arc<Distinctiveness>>,
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
            paraphraser: None,
            distinctiveness: None,
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
    awaited: Awaited,
    profile: Option<Arc<Profile>>,
    selector: Arc<Selector>,
    panels: Option<Arc<Panels>>,
    judge: Option<Judge>,
    paraphraser: Option<Arc<Paraphraser>>,
    distinctiveness: Option<Arc<Distinctiveness>>,
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

impl Pipeline {
    /// Puts a pipeline together, and reads the last replies out of the store.
    ///
    /// # Errors
    /// [`PipelineError::Config`] naming every setting that cannot work, or what the store says.
    pub async fn start(config: PipelineConfig, parts: Parts) -> Result<Self, PipelineError> {
        check(&config, &parts)?;
        metrics::describe();
        let Parts {
            backend,
            embedder,
            library,
            store,
            shared_history,
            panels,
            library_file,
            learner,
            profile,
            reward,
            paraphraser,
            distinctiveness,
        } = parts;
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
            awaited: Awaited::default(),
            selector: Arc::new(Selector::new(config.selector.clone())),
            reserve: Reserve::new(config.score_reserve, SCORE_MOST),
            judge: reward.map(|model| Judge::new(model, config.reward_reserve)),
            paraphraser,
            distinctiveness,
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
        self.learn_reward(&completion_hash, &rewards);
        if self.recorder.rewards(Rewards { completion_hash, rewards }) {
            Ok(())
        } else {
            Err(HandlerError::new(Category::Overloaded, "overloaded"))
        }
    }

    /// Makes one reply.
    pub(crate) async fn run(&self, job: Job) -> Result<Answer, HandlerError> {
        let _in_flight = metrics::InFlight::new();
        let (called, transport) = (Instant::now(), job.transport);
        let prompt_hash = hash::prompt(&job.messages);
        let planned = self.plan(&job, &prompt_hash).await;
        let mode = match &planned {
            Ok(plan) if plan.mode.is_passthrough() => "passthrough",
            Ok(_) => "mutate",
            Err(_) => "none",
        };
        let result = match planned {
            Ok(plan) => self.carry_out(job, plan, prompt_hash, called).await,
            Err(error) => Err(error),
        };
        if result.as_ref().is_err_and(|error| error.category == Category::Timeout) {
            metrics::deadline_missed();
        }
        metrics::reply(transport, mode, result.as_ref().map(|_| ()).map_err(|error| error.category));
        result
    }

    /// Says whether candidates are embedded and compared.
    fn scores(&self, mode: &Mode) -> bool {
        self.embedder.is_some() && !mode.is_passthrough()
    }

    async fn carry_out(
        &self,
        job: Job,
        mut plan: Plan,
        prompt_hash: String,
        called: Instant,
    ) -> Result<Answer, HandlerError> {
        let time_ms = now_ms();
        let budget = job.deadline.saturating_duration_since(Instant::now());
        if budget < LEAST_BUDGET {
            return Err(HandlerError::new(Category::Timeout, "out of time"));
        }
        let rules = self.rules(&job, &plan);
        let n_beside = if plan.n_candidates > 1 { self.beside(rules.as_ref(), &plan.asked).n() } else { 0 };
        let n_texts = plan.n_candidates + plan.quoted.len() + n_beside;
        let mut reserve = if self.scores(&plan.mode) { self.reserve.of(n_texts, budget) } else { Duration::ZERO };
        if let Some(judge) = self.judge.as_ref().filter(|_| plan.n_candidates > 1 && !plan.mode.is_passthrough()) {
            reserve += judge.reserve(plan.n_candidates, budget);
        }
        metrics::reserve(reserve);
        let generate_until = job.deadline - reserve.max(finish(budget));
        let grace = BACKEND_GRACE.min(budget / 20);
        let times = Times {
            until: generate_until,
            others_until: generate_until,
            alone_until: self.alone_until(&plan, job.deadline, budget).max(generate_until),
            grace,
            one_by_one: self.one_by_one.load(Ordering::Relaxed),
        };
        let planned_at = Instant::now();
        let mut generated = self.generated(&plan, times).await;
        if generated.drafts.is_empty() {
            let nothing = || HandlerError::new(Category::Unavailable, "the model gave no text");
            return Err(generated.error.take().map_or_else(nothing, to_handler_error));
        }
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
        let looked_at = self.examine(&job, &plan, rules.as_ref(), &mut generated).await;
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
        self.await_reward(&plan, &generated.drafts, &sent, &job.caller);

        let timings = Timings {
            plan_ms: milliseconds(planned_at - called),
            generate_ms: milliseconds(mended_at - planned_at),
            score_ms: milliseconds(scored_at - mended_at),
            total_ms: milliseconds(scored_at - called),
            reserve_ms: milliseconds(reserve),
            budget_ms: milliseconds(job.deadline.saturating_duration_since(called)),
        };
        metrics::stage("plan", planned_at - called);
        metrics::stage("generate", mended_at - planned_at);
        metrics::stage("score", scored_at - mended_at);
        metrics::stage("total", scored_at - called);

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
        let n_before = plan.requests.len();
        request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(n_before as u64 * SEEDS_APART));
        let turn = Turn { recipe: n_before, request: request.clone() };
        plan.requests.push(Planned { recipe, draw: None, request });
        let times = Times { until, others_until: until, alone_until: until, grace: BACKEND_GRACE, one_by_one: false };
        let mut more = generate(&*self.backend, &plan.requests, vec![turn], times, plan.verbatim).await;
        more.drafts = mended(rules, more.drafts, job.deadline).await;
        generated.add(more);
    }

    /// Returns how much of a budget is about to be set aside for scoring one candidate.
    fn set_aside(&self, budget: Duration) -> Duration {
        let embedding = self.embedder.as_ref().map_or(Duration::ZERO, |_| self.reserve.of(1, budget));
        embedding.max(finish(budget)).min(budget)
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
    if let (Some(learnt), Some(embedder)) = (&parts.distinctiveness, &parts.embedder)
        && (learnt.encoder(), learnt.dimensions()) != (embedder.name(), embedder.dimensions())
    {
        let of = |name: &str, n: usize| format!("{name} of {n} values");
        let (theirs, ours) = (of(learnt.encoder(), learnt.dimensions()), of(embedder.name(), embedder.dimensions()));
        bad.push(format!("what other prompts taught is for {theirs}, the encoder is {ours}"));
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
