//! What is asked of the backend: the route, the recipes, the candidates, and who answers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use idiolect_axon::{Dictated, HandlerError};
use idiolect_backend::{Request, Sampling};
use idiolect_mutation::policy::{Context, Draw, Wish};
use idiolect_mutation::{Facts, Library, Mode, Recipe, RecipeSampler, Shape, Task};
use idiolect_protocol::Category;
use idiolect_validator::task::Prompt as TaskPrompt;
use tokio::time::Instant;

use super::{Pipeline, aside, last_asked};
use crate::ask::Job;
use crate::error::to_handler_error;
use crate::generate::Planned;
use crate::{PipelineConfig, hash};

/// Numbers between the seeds of two recipes: backends count their candidates up from a request's seed.
pub(super) const SEEDS_APART: u64 = 1 << 20;
/// Most quoted winners that candidates are compared with, the last ones: each costs an embedding.
const MOST_QUOTED: usize = 8;

/// What was settled before anything was generated.
pub(crate) struct Plan {
    /// The operators as they were when recipes were drawn: they may be others before the reply is made.
    pub(super) library: Arc<Library>,
    pub(super) task: Task,
    pub(super) task_name: String,
    pub(super) mode: Mode,
    /// What the rewards of recipes may depend on.
    pub(super) context: Context,
    pub(super) seed: u64,
    pub(super) requests: Vec<Planned>,
    pub(super) n_candidates: usize,
    /// Texts are sent exactly as the model said them.
    pub(super) verbatim: bool,
    /// The last thing that the user said, where recorded rivals are found or candidates judged by it.
    pub(super) asked: String,
    /// Winning replies of others that the prompt quotes, with what they are called.
    pub(super) quoted: Vec<(String, String)>,
}

impl Pipeline {
    /// Settles what is asked of the backend. The deadlines of the requests are set later.
    pub(super) async fn plan(&self, job: &Job, prompt_hash: &str) -> Result<Plan, HandlerError> {
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
        let mut rewording = Duration::ZERO;
        let n_candidates = if mode.is_passthrough() {
            job.n_completions
        } else {
            // Fewer candidates that are whole are better than many that the deadline cuts. What remains of one candidate
            // is the plain prompt: what is varied never misses a deadline that the plain prompt would not.
            let left = job.deadline.saturating_duration_since(Instant::now());
            rewording = self.rewording(&library, left);
            let left = left - self.set_aside(left);
            self.pace.fit(self.config.candidates, max_tokens, left.saturating_sub(rewording)).max(job.n_completions)
        };
        let families = if mode.is_passthrough() || job.model.is_some() { &[] } else { &*self.config.families };
        let n_recipes = varied.candidates(self.config.recipes).max(families.len()).clamp(1, n_candidates);
        let context = Context::new(job.transport, task_name.as_str(), job.caller.as_str()).with("risk", varied.risk);
        let learnt = if n_recipes > 1 && !mode.is_passthrough() {
            let amount = varied.amount;
            let wish = Wish { context: &context, task, mode: &mode, amount, k: n_recipes, request: seed };
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
        let draws = self.reworded(draws, job, seed, rewording).await;
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
                // What the caller asked for is stronger than what a recipe chooses.
                model: job.model.clone().or_else(|| recipe.model().map(str::to_owned)),
                prefer: recipe.backend().map(str::to_owned),
                ..Request::new(messages)
            };
            requests.push(Planned { recipe, draw, request });
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
        Ok(Plan { library, task, task_name, mode, context, seed, requests, n_candidates, verbatim, asked, quoted })
    }

    /// Has the policy draw recipes on a thread that nobody waits for: it estimates how likely each of them was. `None` where there
    /// is no policy, or no thread soon enough.
    async fn drawn(&self, library: &Arc<Library>, wish: &Wish<'_>, deadline: Instant) -> Option<Vec<Draw>> {
        let learner = Arc::clone(self.learner.as_ref()?);
        let library = Arc::clone(library);
        let (context, mode) = (wish.context.clone(), wish.mode.clone());
        let Wish { task, amount, k, request, .. } = *wish;
        let draw = tokio::task::spawn_blocking(move || {
            learner.draw(&library, &Wish { context: &context, task, mode: &mode, amount, k, request })
        });
        match tokio::time::timeout(aside(deadline), draw).await {
            Ok(drawn) => drawn.inspect_err(|error| tracing::error!(%error, "recipes not drawn by the policy")).ok(),
            Err(_) => {
                tracing::warn!("no time to draw recipes by the policy");
                None
            }
        }
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

    /// Returns the library that is in use now.
    fn library(&self) -> Arc<Library> {
        self.library_file.as_ref().map_or_else(|| Arc::clone(&self.library), |file| file.current())
    }
}

/// Gives each request whose recipe chooses none the backend that should answer it: in turns, by their weights. Whose turn is the first, which the
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
    for planned in requests.iter_mut().filter(|planned| planned.request.prefer.is_none()) {
        planned.request.prefer = Some(families[next()].0.clone());
    }
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
