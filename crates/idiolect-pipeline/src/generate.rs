//! Drawing candidates: all recipes at once, and whatever is there at the deadline.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use idiolect_backend::{Backend, Candidate, Collector, Completion, Error, Event, FinishReason, Request, Usage};
use idiolect_mutation::policy::Draw;
use idiolect_mutation::repair::Repair;
use idiolect_mutation::{Flag, Recipe};
use tokio::time::{Instant, timeout_at};

use crate::trim::to_whole_sentence;
use crate::{error, metrics};

/// One request to the backend, and the recipe behind it.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) recipe: Recipe,
    /// How a policy drew the recipe.
    pub(crate) draw: Option<Draw>,
    pub(crate) request: Request,
}

/// When generation ends, and how the backend shares its time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// When streams are dropped.
    pub(crate) until: Instant,
    /// When those of all turns but the first are dropped where nothing is whole by then: what was to be whole long ago may be whole in
    /// time if it is alone.
    pub(crate) others_until: Instant,
    /// When that of the first turn is dropped where nothing is whole by then: no less time than it would have without the others.
    pub(crate) alone_until: Instant,
    /// How much earlier than that the backend is told to end.
    pub(crate) grace: Duration,
    /// Whether the backend takes requests one after the other.
    pub(crate) one_by_one: bool,
}

/// Something that is asked of the backend.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// Which of the plan's recipes it is for.
    pub(crate) recipe: usize,
    pub(crate) request: Request,
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
    /// Whether the first turn took more than the time that all may have.
    pub(crate) is_late: bool,
}

/// What came of one request, and when.
struct Outcome {
    completion: Option<Completion>,
    error: Option<Error>,
    began: Option<Instant>,
    ended: Instant,
    /// Whether it had more time than was meant for it.
    went_on: bool,
}

/// Returns when each turn's stream is dropped: all the time for each where the backend takes them side by side, otherwise one
/// share after the other, by the number of candidates. A turn that ends early leaves its time to the next. Turns that prefer
/// different backends do not wait for each other. The first turn of a backend may take all the time, whatever becomes of the
/// others: it is the unchanged prompt's, or the one that would have been alone.
fn share_time(turns: &[Turn], times: Times) -> Vec<Instant> {
    let now = Instant::now();
    let left = times.until.saturating_duration_since(now);
    let mut totals: HashMap<Option<&str>, usize> = HashMap::new();
    for Turn { request, .. } in turns {
        *totals.entry(request.prefer.as_deref()).or_default() += request.n;
    }
    let mut done: HashMap<Option<&str>, usize> = HashMap::new();
    let mut untils = Vec::with_capacity(turns.len());
    for Turn { request, .. } in turns {
        let total = totals.get(&request.prefer.as_deref()).copied().unwrap_or(1);
        let done = done.entry(request.prefer.as_deref()).or_default();
        let is_first = *done == 0;
        *done += request.n;
        let share = if times.one_by_one && !is_first { *done as f64 / total.max(1) as f64 } else { 1.0 };
        untils.push(now + left.mul_f64(share.min(1.0)));
    }
    untils
}

/// Asks the backend for what a plan's turns want, until their times are over. With `verbatim` texts stay exactly as the model said
/// them.
///
/// # Cancellation
/// Dropping the future drops the backend's streams, which stops the work.
pub(crate) async fn generate(
    backend: &dyn Backend,
    plan: &[Planned],
    turns: Vec<Turn>,
    times: Times,
    verbatim: bool,
) -> Generated {
    let untils = share_time(&turns, times);
    let is_whole = AtomicBool::new(false);
    let requests = turns.iter().zip(&untils).enumerate().map(|(nth, (turn, &until))| {
        let is_first = nth == 0;
        let (time, last) = match is_first {
            true => (until, times.alone_until.max(until)),
            false => (times.others_until.min(until), until),
        };
        let request = Request { deadline: Some((last - times.grace).into_std()), ..turn.request.clone() };
        collect(backend, request, Until { time, last, goes_on_if_whole: !is_first, is_whole: &is_whole })
    });
    let outcomes = join_all(requests).await;
    let is_late = outcomes.first().is_some_and(|first| first.went_on);
    let mut generated = Generated { one_by_one: one_by_one(&turns, &outcomes), is_late, ..Generated::default() };
    for (Turn { recipe, .. }, Outcome { completion, error, .. }) in turns.into_iter().zip(outcomes) {
        if let Some(completion) = completion {
            generated.take(recipe, completion, &backend.capabilities().model, verbatim);
        }
        if let Some(error) = error {
            metrics::backend_failed();
            generated.notes.push(format!("{}: {error}", plan[recipe].recipe));
            generated.failed(error);
        }
    }
    generated
}

/// Requests that a backend takes one by one never overlap, and the last of them may never begin.
fn one_by_one(turns: &[Turn], outcomes: &[Outcome]) -> Option<bool> {
    let mut of_backend: HashMap<Option<&str>, Vec<&Outcome>> = HashMap::new();
    for (turn, outcome) in turns.iter().zip(outcomes) {
        of_backend.entry(turn.request.prefer.as_deref()).or_default().push(outcome);
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
    /// Adds what came of more turns.
    pub(crate) fn add(&mut self, more: Self) {
        let Self { drafts, usage, notes, error, one_by_one, is_late } = more;
        self.drafts.extend(drafts);
        self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(usage.completion_tokens);
        self.usage.prompt_tokens = self.usage.prompt_tokens.max(usage.prompt_tokens);
        self.usage.trimmed_tokens = self.usage.trimmed_tokens.max(usage.trimmed_tokens);
        self.usage.cached_tokens = self.usage.cached_tokens.max(usage.cached_tokens);
        self.notes.extend(notes);
        self.one_by_one = one_by_one.or(self.one_by_one);
        self.is_late |= is_late;
        error.into_iter().for_each(|error| self.failed(error));
    }

    fn failed(&mut self, error: Error) {
        if self.error.as_ref().is_none_or(|other| error::rank(&error) > error::rank(other)) {
            self.error = Some(error);
        }
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

/// When a stream is dropped.
#[derive(Clone, Copy)]
struct Until<'a> {
    time: Instant,
    /// The same, or later, if by then some candidate is whole, or none is.
    last: Instant,
    goes_on_if_whole: bool,
    /// Whether any candidate of all is whole.
    is_whole: &'a AtomicBool,
}

impl Until<'_> {
    /// Waits for a piece of work, `None` where it was cut, and says whether it had more than the first of its times.
    async fn cut<T>(self, work: impl Future<Output = T>) -> (Option<T>, bool) {
        let mut work = pin!(work);
        if let Ok(result) = timeout_at(self.time, &mut work).await {
            return (Some(result), false);
        }
        let goes_on = self.last > self.time && self.is_whole.load(Ordering::Relaxed) == self.goes_on_if_whole;
        if goes_on { (timeout_at(self.last, work).await.ok(), true) } else { (None, false) }
    }
}

/// Joins one stream as far as it comes. Text that was there before an error or the deadline is kept.
async fn collect(backend: &dyn Backend, request: Request, until: Until<'_>) -> Outcome {
    let mut collector = Collector::new().expecting(request.n);
    let mut began = None;
    let work = async {
        let mut stream = backend.stream(request).await?;
        while let Some(event) = stream.next().await {
            began.get_or_insert_with(Instant::now);
            let event = event?;
            let is_end = matches!(event, Event::Finished { reason: FinishReason::Stop | FinishReason::Length, .. });
            collector.push(event)?;
            until.is_whole.fetch_or(is_end, Ordering::Relaxed);
        }
        Ok(())
    };
    let (result, went_on) = until.cut(work).await;
    let ended = Instant::now();
    if collector.is_done() {
        return match collector.finish() {
            Ok(completion) => Outcome { completion: Some(completion), error: None, began, ended, went_on },
            Err(error) => Outcome { completion: None, error: Some(error), began, ended, went_on },
        };
    }
    let error = match result {
        Some(Ok(())) => Some(Error::Protocol {
            backend: backend.capabilities().model.clone(),
            reason: "the stream ended without its last item".to_owned(),
        }),
        Some(Err(error)) => Some(error),
        // Being cut is no failure while there is something to show.
        None if collector.has_text() => None,
        None => Some(Error::DeadlineExceeded),
    };
    Outcome { completion: collector.cut(), error, began, ended, went_on }
}
