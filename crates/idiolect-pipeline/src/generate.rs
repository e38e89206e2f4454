//! Drawing candidates: all recipes at once, and whatever is there at the deadline.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use idiolect_backend::{Backend, Candidate, Collector, Completion, Error, FinishReason, Request, Usage};
use idiolect_mutation::policy::Draw;
use idiolect_mutation::repair::Repair;
use idiolect_mutation::{Flag, Recipe};
use tokio::time::Instant;

use crate::trim::to_whole_sentence;
use crate::{error, metrics};

/// One request to the backend, and the recipe behind it.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) recipe: Recipe,
    /// How a policy drew the recipe.
    pub(crate) draw: Option<Draw>,
    pub(crate) request: Request,
    /// When its stream is dropped. The request's own deadline is a little earlier.
    pub(crate) until: Instant,
}

/// A candidate with some text.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    /// Which of the plan's recipes it comes from.
    pub(crate) recipe: usize,
    /// The candidate; its text is as it would be sent.
    pub(crate) candidate: Candidate,
    /// Whether the end was cut off.
    pub(crate) trimmed: bool,
    /// What was changed of the text since.
    pub(crate) repairs: Vec<Repair>,
    /// What is wrong with it, where the rules were looked at already.
    pub(crate) flags: Option<Vec<Flag>>,
    pub(crate) model: String,
    pub(crate) backend: String,
}

/// What came of a plan.
#[derive(Debug, Default)]
pub(crate) struct Generated {
    pub(crate) drafts: Vec<Draft>,
    pub(crate) usage: Usage,
    pub(crate) notes: Vec<String>,
    /// The error that tells most, when there was any.
    pub(crate) error: Option<Error>,
    /// Whether the backend took the requests one after the other; `None` when that cannot be told.
    pub(crate) one_by_one: Option<bool>,
}

/// What came of one request, and when.
struct Outcome {
    completion: Option<Completion>,
    error: Option<Error>,
    began: Option<Instant>,
    ended: Instant,
}

/// Shares the time out: all of it for each request where the backend takes them side by side, otherwise one share
/// after the other, by the number of candidates. A request that ends early leaves its time to the next. Requests that
/// prefer different backends do not wait for each other.
pub(crate) fn share_time(plan: &mut [Planned], until: Instant, grace: Duration, one_by_one: bool) {
    let now = Instant::now();
    let mut totals: HashMap<Option<String>, usize> = HashMap::new();
    for Planned { request, .. } in plan.iter() {
        *totals.entry(request.prefer.clone()).or_default() += request.n;
    }
    let mut done: HashMap<Option<String>, usize> = HashMap::new();
    for planned in plan {
        let total = totals.get(&planned.request.prefer).copied().unwrap_or(1);
        let done = done.entry(planned.request.prefer.clone()).or_default();
        *done += planned.request.n;
        let share = if one_by_one { *done as f64 / total.max(1) as f64 } else { 1.0 };
        planned.until = now + until.saturating_duration_since(now).mul_f64(share.min(1.0));
        planned.request.deadline = Some((planned.until - grace).into_std());
    }
}

/// Runs a plan until its requests' times are over. With `verbatim` texts stay exactly as the model said them.
///
/// # Cancellation
/// Dropping the future drops the backend's streams, which stops the work.
pub(crate) async fn generate(backend: &dyn Backend, plan: &[Planned], verbatim: bool) -> Generated {
    let requests = plan.iter().map(|planned| collect(backend, planned.request.clone(), planned.until));
    let outcomes = join_all(requests).await;
    let mut generated = Generated { one_by_one: one_by_one(plan, &outcomes), ..Generated::default() };
    for (recipe, Outcome { completion, error, .. }) in outcomes.into_iter().enumerate() {
        if let Some(completion) = completion {
            generated.take(recipe, completion, &backend.capabilities().model, verbatim);
        }
        if let Some(error) = error {
            metrics::backend_failed();
            generated.notes.push(format!("{}: {error}", plan[recipe].recipe));
            if generated.error.as_ref().is_none_or(|other| error::rank(&error) > error::rank(other)) {
                generated.error = Some(error);
            }
        }
    }
    generated
}

/// Requests that a backend takes one by one never overlap, and the last of them may never begin.
fn one_by_one(plan: &[Planned], outcomes: &[Outcome]) -> Option<bool> {
    let mut of_backend: HashMap<Option<&str>, Vec<&Outcome>> = HashMap::new();
    for (planned, outcome) in plan.iter().zip(outcomes) {
        of_backend.entry(planned.request.prefer.as_deref()).or_default().push(outcome);
    }
    let told = of_backend.values().filter_map(|outcomes| {
        let mut spans: Vec<(Instant, Instant)> = outcomes.iter().filter_map(|o| Some((o.began?, o.ended))).collect();
        spans.sort();
        let is_told = !spans.is_empty() && outcomes.len() > 1;
        is_told.then(|| spans.windows(2).all(|pair| pair[0].1 <= pair[1].0))
    });
    told.reduce(|a, b| a && b)
}

impl Generated {
    /// Adds what came of one more request, whose recipe has this place in the plan.
    pub(crate) fn add(&mut self, more: Self, recipe: usize) {
        let Self { drafts, usage, notes, .. } = more;
        self.drafts.extend(drafts.into_iter().map(|draft| Draft { recipe, ..draft }));
        self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(usage.completion_tokens);
        self.usage.prompt_tokens = self.usage.prompt_tokens.max(usage.prompt_tokens);
        self.notes.extend(notes);
    }

    fn take(&mut self, recipe: usize, completion: Completion, model: &str, verbatim: bool) {
        let Usage { prompt_tokens, completion_tokens, trimmed_tokens, cached_tokens } = completion.usage;
        // The recipes share the caller's prompt: the longest says most of what it cost to read.
        self.usage.prompt_tokens = self.usage.prompt_tokens.max(prompt_tokens);
        self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(completion_tokens);
        self.usage.trimmed_tokens = self.usage.trimmed_tokens.max(trimmed_tokens);
        self.usage.cached_tokens = self.usage.cached_tokens.max(cached_tokens);
        // An answer that was cut short never says whose it is.
        let model = if completion.model.is_empty() { model.to_owned() } else { completion.model };
        for mut candidate in completion.candidates {
            metrics::candidate(candidate.finish_reason);
            let trimmed = !verbatim && trim(&mut candidate);
            candidate.mean_logprob = candidate.mean_logprob.filter(|v| v.is_finite());
            if candidate.text.trim().is_empty() {
                self.notes.push("a candidate without any text was left out".to_owned());
                continue;
            }
            let (model, backend) = (model.clone(), completion.backend.clone());
            self.drafts.push(Draft { recipe, candidate, trimmed, repairs: Vec::new(), flags: None, model, backend });
        }
    }
}

/// Takes white space off the text's ends, and off a cut text its unfinished sentence. Says whether it did the latter.
fn trim(candidate: &mut Candidate) -> bool {
    let text = candidate.text.trim();
    let is_cut = matches!(candidate.finish_reason, FinishReason::Deadline | FinishReason::Length);
    let kept = if is_cut { to_whole_sentence(text) } else { text };
    let trimmed = kept.len() < text.len();
    candidate.text = kept.to_owned();
    trimmed
}

/// Joins one stream as far as it comes. Text that was there before an error or the deadline is kept.
async fn collect(backend: &dyn Backend, request: Request, until: Instant) -> Outcome {
    let mut collector = Collector::new().expecting(request.n);
    let mut began = None;
    let work = async {
        let mut stream = backend.stream(request).await?;
        while let Some(event) = stream.next().await {
            began.get_or_insert_with(Instant::now);
            collector.push(event?)?;
        }
        Ok(())
    };
    let result = tokio::time::timeout_at(until, work).await;
    let ended = Instant::now();
    if collector.is_done() {
        return match collector.finish() {
            Ok(completion) => Outcome { completion: Some(completion), error: None, began, ended },
            Err(error) => Outcome { completion: None, error: Some(error), began, ended },
        };
    }
    let error = match result {
        Ok(Ok(())) => Some(Error::Protocol {
            backend: backend.capabilities().model.clone(),
            reason: "the stream ended without its last item".to_owned(),
        }),
        Ok(Err(error)) => Some(error),
        // Being cut is no failure while there is something to show.
        Err(_) if collector.has_text() => None,
        Err(_) => Some(Error::DeadlineExceeded),
    };
    Outcome { completion: collector.cut(), error, began, ended }
}
