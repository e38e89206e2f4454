//! The thread that owns the engine: candidates of all requests grow side by side, one token a step.
//!
//! A step computes one token for each candidate that grows, and beside them the next stretch of the prompts that wait for
//! their turn, which is short enough that nobody who grows is held up for long. Requests join and leave between steps.
//! Whose deadline is nearest comes first: into the batch, and with its prompt. Who has none comes when [`PATIENCE`] would be
//! over, so that those with deadlines cannot keep it waiting for ever.
//!
//! Memory is reserved for the most that a request can come to need before it is let in, so that none has to leave for
//! want of it. What does not fit waits in line, and what is behind it waits, too: many small requests cannot keep a large
//! one out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use idiolect_backend::{Error, Event, FinishReason, Score, TokenLogprob, Usage};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::assembly::{Assembly, Release};
use crate::candidate::Candidate;
use crate::engine::{Engine, EngineError, Feed, Seq, Wants};
use crate::intake::{Answer, Arrival, Cost, Generate, Scoring};
use crate::metrics::Metrics;
use crate::prompt::{Prompter, count};
use crate::sampling::DrawError;
use crate::speed::Meter;

/// Prompt tokens of a step before it is known how fast they are.
const FIRST_CHUNK: usize = 64;
/// Most prompt tokens of a step.
const MOST_CHUNK: usize = 512;
/// Stretches of prompts end where a multiple of this does, so that blocks are filled at once.
const CHUNK_UNIT: usize = 16;
/// Rows of logits that scoring asks for in one step.
const SCORE_CHUNK: usize = 32;
/// About how long a stretch of prompt may hold up candidates that grow.
const BESIDE: Duration = Duration::from_millis(80);
/// About how long it may take where nobody grows: other requests arrive meanwhile.
const ALONE: Duration = Duration::from_millis(250);
/// What requests without a deadline are treated as if they had, where it is asked whose turn is first.
const PATIENCE: Duration = Duration::from_secs(60);

/// Candidates that are never given up so that others end in time.
const FEWEST: usize = 2;
/// Tokens that a candidate has before it is compared with others, and between two comparisons.
const COMPARE: usize = 8;
/// Of the length that the fewest candidates would reach in time: what more candidates must reach, too.
const LENGTH_SHARE: f64 = 0.8;
/// Replies are expected to be at most so many times as long as those that ended of themselves of late.
const USUAL_FACTOR: f64 = 2.0;
/// The least that replies are expected to be.
const USUAL_LEAST: f64 = 32.0;

/// Everything that answering takes.
#[derive(Debug)]
pub(crate) struct Worker<E> {
    pub(crate) engine: E,
    pub(crate) prompter: Arc<Prompter>,
    pub(crate) name: String,
    pub(crate) model: String,
    /// Tokens that are never drawn.
    pub(crate) banned: Vec<u32>,
    /// Most portions of memory for keys and values.
    pub(crate) portions: u64,
    /// Candidates that may grow side by side.
    pub(crate) max_batch: usize,
    pub(crate) meter: Arc<Mutex<Meter>>,
}

/// A request that was let in.
struct Run {
    what: What,
    rank: Rank,
    /// Portions of memory that are set aside for it.
    reserved: u64,
}

/// Whose turn is first: by deadline, and by number where those are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    due: Instant,
    number: u64,
}

enum What {
    Generate(Box<Growth>),
    Score(Box<Judgement>),
}

/// A request for candidates at work.
struct Growth {
    job: Generate,
    /// Candidates that are drawn.
    n: usize,
    cost: Cost,
    prompt: Progress,
    growing: Vec<Candidate>,
    usage: Usage,
    any_text: bool,
    /// How long its last step took.
    last_step: Option<Duration>,
}

/// How far a prompt was computed.
#[derive(Clone, Copy, Debug)]
enum Progress {
    Waits,
    Computes { seq: Seq, done: usize, found: usize },
    Done,
}

/// A request for log-probabilities at work.
struct Judgement {
    job: Scoring,
    progress: Progress,
    rows: Vec<Vec<f32>>,
    /// Of the tokens whose rows are there.
    logprobs: Vec<f32>,
}

/// What a step computes for one run.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Tokens of a prompt or of a text to be scored, up to `end`.
    Stretch { run: usize, seq: Seq, begin: usize, end: usize, wants: Wants },
    /// The last token of a candidate.
    Token { run: usize, candidate: usize },
}

/// What a step computes.
#[derive(Debug, Default)]
struct Plan {
    parts: Vec<Part>,
    prompt_tokens: usize,
    candidates: usize,
    /// Rows of logits for texts to be scored.
    score_rows: usize,
}

/// Why a request ended without an answer.
enum Failure {
    /// Nobody waits for it any more.
    Abandoned,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<DrawError> for Failure {
    fn from(error: DrawError) -> Self {
        Self::Error(match error {
            DrawError::NotFinite => Error::internal("the engine failed", error),
            // Bans and constraints that leave nothing are the request's own.
            other => Error::InvalidRequest(other.to_string()),
        })
    }
}

/// What lives as long as the worker runs.
struct Desk<E> {
    worker: Worker<E>,
    metrics: Metrics,
    waiting: Vec<(Rank, Arrival)>,
    runs: Vec<Run>,
    arrived: u64,
    /// Mean length of replies that ended of themselves.
    usual: Option<f64>,
}

impl<E: Engine> Worker<E> {
    /// Answers what arrives until no one can send any more.
    pub(crate) fn run(self, mut arrivals: mpsc::Receiver<Arrival>) {
        let metrics = Metrics::new(&self.name);
        let mut desk = Desk { worker: self, metrics, waiting: Vec::new(), runs: Vec::new(), arrived: 0, usual: None };
        while desk.receive(&mut arrivals) {
            if catch_unwind(AssertUnwindSafe(|| desk.turn())).is_err() {
                // Those who wait for what was at work see their channels closed.
                tracing::error!(backend = %desk.worker.name, "the engine panicked");
                desk.runs.clear();
                desk.worker.engine.reset();
            }
        }
    }
}

impl<E: Engine> Desk<E> {
    fn turn(&mut self) {
        self.dismiss();
        self.admit();
        let plan = self.plan();
        // When somebody leaves, what is to be done is another thing.
        if !self.mind_deadlines(&plan) {
            self.step(&plan);
        }
    }

    /// Takes in what arrived; waits for something where there is nothing to do. Returns false when all is done for good.
    fn receive(&mut self, arrivals: &mut mpsc::Receiver<Arrival>) -> bool {
        let idle = self.runs.is_empty() && self.waiting.is_empty();
        if idle {
            self.report();
            match arrivals.blocking_recv() {
                Some(arrival) => self.take(arrival),
                None => return false,
            }
        }
        loop {
            match arrivals.try_recv() {
                Ok(arrival) => self.take(arrival),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !(self.runs.is_empty() && self.waiting.is_empty()),
            }
        }
    }

    fn take(&mut self, arrival: Arrival) {
        self.arrived += 1;
        let due = arrival.deadline().unwrap_or_else(|| Instant::now() + PATIENCE);
        let rank = Rank { due, number: self.arrived };
        let place = self.waiting.partition_point(|(other, _)| *other < rank);
        self.waiting.insert(place, (rank, arrival));
    }

    fn report(&self) {
        let candidates = self.runs.iter().map(Run::n_growing).sum();
        let reserved = self.reserved().saturating_mul(self.worker.engine.portion().bytes);
        self.metrics.busy(candidates, self.waiting.len(), reserved, self.worker.engine.kept_tokens());
    }

    fn reserved(&self) -> u64 {
        self.runs.iter().map(|run| run.reserved).sum()
    }

    /// Sends away those that nobody waits for, and those whose time was over before their turn came.
    fn dismiss(&mut self) {
        let now = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        for (rank, arrival) in waiting {
            let wanted = match &arrival {
                Arrival::Generate(generate) => generate.answer.is_wanted(),
                Arrival::Score(score) => !score.reply.is_closed(),
            };
            match arrival {
                _ if !wanted => {}
                Arrival::Generate(generate) if generate.request.deadline.is_some_and(|deadline| now >= deadline) => {
                    generate.answer.fail(Error::DeadlineExceeded);
                }
                arrival => self.waiting.push((rank, arrival)),
            }
        }
        let gone = (0..self.runs.len()).rev().filter(|i| !self.runs[*i].is_wanted()).collect::<Vec<_>>();
        for index in gone {
            self.end(index);
        }
    }

    /// Ends a run: its sequences and its memory are free.
    fn end(&mut self, index: usize) -> Run {
        let mut run = self.runs.remove(index);
        run.release(&mut self.worker.engine);
        let speed = self.worker.meter.lock().unwrap_or_else(PoisonError::into_inner).speed();
        self.metrics.speed(&speed);
        run
    }

    /// Lets in those that come first, as long as they fit.
    fn admit(&mut self) {
        while let Some((_, first)) = self.waiting.first() {
            let (engine, reserved) = (&self.worker.engine, self.reserved());
            let places: usize = self.runs.iter().map(Run::n_places).sum();
            let (n, cost) = match first {
                Arrival::Generate(job) => {
                    (self.affordable(job), Cost::new(engine.portion(), job.prompt.len(), job.room))
                }
                Arrival::Score(job) => (1, job.cost),
            };
            let needed = cost.of(n);
            let fits = reserved.saturating_add(needed) <= self.worker.portions && places + n <= self.worker.max_batch;
            if !fits && !self.runs.is_empty() {
                return;
            }
            let (rank, arrival) = self.waiting.remove(0);
            let what = match arrival {
                Arrival::Generate(mut job) => {
                    job.place = None;
                    self.metrics.cut("start", job.request.n - n);
                    let usage = Usage {
                        prompt_tokens: count(job.prompt.len()),
                        trimmed_tokens: job.trimmed,
                        ..Usage::default()
                    };
                    What::Generate(Box::new(Growth {
                        job,
                        n,
                        cost,
                        prompt: Progress::Waits,
                        growing: Vec::new(),
                        usage,
                        any_text: false,
                        last_step: None,
                    }))
                }
                Arrival::Score(mut job) => {
                    job.place = None;
                    What::Score(Box::new(Judgement {
                        job,
                        progress: Progress::Waits,
                        rows: Vec::new(),
                        logprobs: Vec::new(),
                    }))
                }
            };
            let place = self.runs.partition_point(|other| other.rank < rank);
            self.runs.insert(place, Run { what, rank, reserved: needed });
        }
    }

    /// Chooses how many candidates of a request to draw, so that they have a chance to end before its deadline: all, where
    /// that is expected; else as many as are, but not fewer than [`FEWEST`]; else, as all will be cut, as many as cost little
    /// of the length that those few would reach.
    fn affordable(&self, job: &Generate) -> usize {
        let n = job.request.n;
        let fewest = n.min(FEWEST);
        let Some(deadline) = job.request.deadline else { return n };
        let meter = self.worker.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead: usize = self.runs.iter().map(Run::prompt_left).sum();
        let Some(prefill) = meter.step(ahead + job.prompt.len(), 0) else { return n };
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(prefill).as_secs_f64();
        let others: usize = self.runs.iter().map(Run::n_to_grow).sum();
        let tokens = |n: usize| meter.step(0, others + n).map(|step| left / step.as_secs_f64().max(1e-9));
        let expected = self.expected_length(job.room);
        if tokens(n).is_none_or(|tokens| tokens >= expected) {
            return n;
        }
        let ends = (fewest..n).rev().find(|n| tokens(*n).is_some_and(|tokens| tokens >= expected));
        let least = tokens(fewest).unwrap_or(0.0) * LENGTH_SHARE;
        ends.or_else(|| (fewest..=n).rev().find(|n| tokens(*n).is_some_and(|tokens| tokens >= least))).unwrap_or(n)
    }

    /// Returns how many tokens a candidate is expected to have in the end.
    #[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^52")]
    fn expected_length(&self, room: usize) -> f64 {
        let usual = self.usual.map_or(f64::INFINITY, |usual| (usual * USUAL_FACTOR).max(USUAL_LEAST));
        usual.min(room as f64)
    }

    /// Divides the next step: a token for each candidate, and stretches of prompts.
    fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        for (index, run) in self.runs.iter().enumerate() {
            if let What::Generate(growth) = &run.what {
                let tokens = 0..growth.growing.len();
                plan.parts.extend(tokens.map(|candidate| Part::Token { run: index, candidate }));
                plan.candidates += growth.growing.len();
            }
        }
        let mut budget = self.chunk(plan.candidates);
        let mut index = 0;
        while index < self.runs.len() && budget > 0 {
            match self.stretch(index, &plan, budget) {
                Ok(Some(part @ Part::Stretch { begin, end, wants, .. })) => {
                    plan.prompt_tokens += end - begin;
                    plan.score_rows += if wants == Wants::All { end - begin } else { 0 };
                    budget = budget.saturating_sub(end - begin);
                    plan.parts.push(part);
                }
                Ok(_) => {}
                Err(error) => {
                    // It has no part in the plan, but those behind it move up.
                    self.fail(index, Error::internal("the engine failed", error).into());
                    return self.plan();
                }
            }
            index += 1;
        }
        plan
    }

    /// Returns how many tokens of prompts a step may compute.
    fn chunk(&self, candidates: usize) -> usize {
        let meter = self.worker.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let mut time = if candidates > 0 { BESIDE } else { ALONE };
        let growing = self.runs.iter().filter(|run| run.n_growing() > 0);
        if let Some(deadline) = growing.filter_map(Run::deadline).min() {
            let left = deadline.saturating_duration_since(Instant::now());
            time = time.min(left.saturating_sub(meter.step(0, candidates).unwrap_or_default()));
        }
        let tokens = meter.prompt_tokens_in(time).unwrap_or(FIRST_CHUNK);
        (tokens / CHUNK_UNIT * CHUNK_UNIT).clamp(CHUNK_UNIT, MOST_CHUNK)
    }

    /// Returns the next stretch of a run's prompt; `None` where there is none, or where another run of the plan computes
    /// the same tokens, which can then be taken from it.
    fn stretch(&mut self, index: usize, plan: &Plan, budget: usize) -> Result<Option<Part>, EngineError> {
        let Self { worker: Worker { engine, .. }, runs, .. } = self;
        let others = plan.parts.iter().filter_map(|part| match part {
            Part::Stretch { run, begin, .. } => Some((&runs[*run], *begin)),
            Part::Token { .. } => None,
        });
        let run = &runs[index];
        let Some((tokens, progress)) = run.prompt() else { return Ok(None) };
        if let Progress::Waits = progress {
            let same = |other: &[u32], begin: usize| {
                let end = (begin + CHUNK_UNIT).min(tokens.len());
                other.len() >= end && other[..end] == tokens[..end] && end % CHUNK_UNIT == 0
            };
            for (other, begin) in others {
                if other.prompt().is_some_and(|(other, _)| same(other, begin)) {
                    return Ok(None);
                }
            }
        }
        let run = &mut runs[index];
        let (seq, begin) = match run.progress() {
            Progress::Done => return Ok(None),
            Progress::Computes { seq, done, .. } => (seq, done),
            Progress::Waits => {
                // Tokens whose rows of logits are wanted are computed in any case.
                let (tokens, known, room) = match &run.what {
                    What::Generate(growth) => (&growth.job.prompt[..], growth.job.prompt.len() - 1, growth.job.room),
                    What::Score(judgement) => (&judgement.job.tokens[..], judgement.job.begin - 1, 0),
                };
                let (seq, done) = engine.begin(tokens, known, room)?;
                *run.progress_mut() = Progress::Computes { seq, done, found: done };
                (seq, done)
            }
        };
        let (len, first_wanted) = match &run.what {
            What::Generate(growth) => (growth.job.prompt.len(), growth.job.prompt.len()),
            What::Score(judgement) => (judgement.job.tokens.len(), judgement.job.begin - 1),
        };
        let is_score = matches!(run.what, What::Score(_));
        let (mut end, mut wants) = (len.min(begin + budget), Wants::Nothing);
        if is_score && begin < first_wanted {
            end = end.min(first_wanted);
        } else if is_score {
            let rows = SCORE_CHUNK.saturating_sub(plan.score_rows);
            if rows == 0 {
                return Ok(None);
            }
            (end, wants) = (end.min(begin + rows), Wants::All);
        } else if end == len {
            wants = Wants::Last;
        }
        if end < len && wants == Wants::Nothing && end / CHUNK_UNIT * CHUNK_UNIT > begin && end != first_wanted {
            end = end / CHUNK_UNIT * CHUNK_UNIT;
        }
        Ok(Some(Part::Stretch { run: index, seq, begin, end, wants }))
    }

    /// Ends those for whom the planned step would come too late, and gives up candidates where the others can then end in
    /// time. Returns whether anything changed.
    fn mind_deadlines(&mut self, plan: &Plan) -> bool {
        let now = Instant::now();
        let mut changed = false;
        for index in (0..self.runs.len()).rev() {
            let Some(deadline) = self.runs[index].deadline() else { continue };
            let What::Generate(growth) = &self.runs[index].what else { continue };
            let growing = !growth.growing.is_empty();
            let last = growth.last_step;
            let step = {
                let meter = self.worker.meter.lock().unwrap_or_else(PoisonError::into_inner);
                meter.step(plan.prompt_tokens, plan.candidates).or(last).unwrap_or_default()
            };
            if now + if growing { step } else { Duration::ZERO } >= deadline {
                self.cut(index);
                changed = true;
            } else if growing {
                changed |= self.give_up_worst(index, deadline.saturating_duration_since(now), plan.candidates);
            }
        }
        changed
    }

    /// Ends a run at its deadline: what is there is the answer.
    fn cut(&mut self, index: usize) {
        let What::Generate(growth) = &mut self.runs[index].what else { return };
        if !growth.any_text && !growth.growing.iter().any(|candidate| candidate.assembly.holds_text()) {
            self.fail(index, Error::DeadlineExceeded.into());
            return;
        }
        let ended: Vec<Candidate> = growth.growing.drain(..).collect();
        self.metrics.cut("end", ended.len());
        let ended = ended.into_iter().map(|candidate| (candidate, FinishReason::Deadline)).collect();
        let outcome = self.finish(index, ended);
        self.conclude(index, outcome);
    }

    /// Gives up the worst candidates of a run when all of them would not end in time, and fewer would. Returns whether it did.
    fn give_up_worst(&mut self, index: usize, left: Duration, candidates: usize) -> bool {
        let What::Generate(growth) = &self.runs[index].what else { return false };
        let drawn = growth.growing.first().map_or(0, |candidate| candidate.tokens().len());
        let n = growth.growing.len();
        if n <= FEWEST || drawn == 0 || drawn % COMPARE != 0 {
            return false;
        }
        let expected = self.expected_length(growth.job.room);
        #[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^52")]
        let needed = expected - drawn as f64;
        let kept = {
            let meter = self.worker.meter.lock().unwrap_or_else(PoisonError::into_inner);
            let tokens = |kept: usize| {
                let step = meter.step(0, candidates - n + kept);
                step.map_or(f64::INFINITY, |step| left.as_secs_f64() / step.as_secs_f64().max(1e-9))
            };
            if needed <= 0.0 || tokens(n) >= needed {
                return false;
            }
            (FEWEST..n).rev().find(|kept| tokens(*kept) >= needed)
        };
        let Some(kept) = kept else { return false };
        let What::Generate(growth) = &mut self.runs[index].what else { return false };
        let mut worth: Vec<(f64, usize)> = growth.growing.iter().map(|c| (c.worth(), c.index)).collect();
        worth.sort_by(|a, b| b.0.total_cmp(&a.0));
        let given_up: Vec<usize> = worth[kept..].iter().map(|(_, index)| *index).collect();
        let (ended, growing) = growth.growing.drain(..).partition(|c: &Candidate| given_up.contains(&c.index));
        growth.growing = growing;
        let ended: Vec<Candidate> = ended;
        self.metrics.cut("worst", ended.len());
        let ended = ended.into_iter().map(|candidate| (candidate, FinishReason::Deadline)).collect();
        let outcome = self.finish(index, ended);
        self.conclude(index, outcome);
        true
    }

    /// Computes a plan and deals with what comes of it.
    fn step(&mut self, plan: &Plan) {
        if plan.parts.is_empty() {
            return;
        }
        let began = Instant::now();
        let outcome = {
            let Self { worker: Worker { engine, .. }, runs, .. } = self;
            let feeds: Vec<Feed<'_>> = plan.parts.iter().filter_map(|part| part.feed(runs)).collect();
            engine.forward(&feeds)
        };
        if let Err(error) = outcome {
            // It is not known whose fault it is.
            let reason = error.to_string();
            for index in plan.runs().into_iter().rev() {
                let error = Error::internal("the engine failed", std::io::Error::other(reason.clone()));
                self.fail(index, error.into());
            }
            return;
        }
        self.advance(plan);
        self.draw();
        for index in plan.runs().into_iter().rev() {
            let outcome = self.settle(index);
            if let Some(What::Generate(growth)) = self.runs.get_mut(index).map(|run| &mut run.what) {
                growth.last_step = Some(began.elapsed());
            }
            self.conclude(index, outcome);
        }
        let took = began.elapsed();
        self.worker.meter.lock().unwrap_or_else(PoisonError::into_inner).note(
            plan.prompt_tokens,
            plan.candidates,
            took,
        );
        self.metrics.step(plan.prompt_tokens, plan.candidates, took);
        self.report();
    }

    /// Notes what was computed, and which rows of logits are whose.
    fn advance(&mut self, plan: &Plan) {
        let Self { worker, runs, metrics, .. } = self;
        let vocabulary = worker.engine.vocabulary();
        let logits = worker.engine.logits();
        let mut row = 0;
        for part in &plan.parts {
            match *part {
                Part::Token { run, candidate } => {
                    if let What::Generate(growth) = &mut runs[run].what {
                        growth.growing[candidate].row = row;
                    }
                    row += 1;
                }
                Part::Stretch { run, seq, begin, end, wants } => {
                    let mut cached = 0;
                    if let Progress::Computes { done, found, .. } = runs[run].progress_mut() {
                        *done = end;
                        cached = *found;
                        if wants == Wants::Last {
                            metrics.prompt(end - cached, cached);
                        }
                    }
                    match &mut runs[run].what {
                        What::Generate(growth) if wants == Wants::Last => {
                            growth.usage.cached_tokens = count(cached);
                            growth.prompt = Progress::Done;
                            growth.begin(seq, row, worker.prompter.tokenizer.has_dummy_space());
                            row += 1;
                        }
                        What::Score(judgement) if wants == Wants::All => {
                            let rows = logits[row * vocabulary..].chunks_exact(vocabulary);
                            judgement.take(rows.take(end - begin));
                            row += end - begin;
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// Draws a token for every candidate, all at once.
    fn draw(&mut self) {
        let Self { worker: Worker { engine, banned, .. }, runs, .. } = self;
        let growing = runs.iter_mut().filter_map(|run| match &mut run.what {
            What::Generate(growth) => Some(growth.growing.iter_mut()),
            What::Score(_) => None,
        });
        let mut growing: Vec<&mut Candidate> = growing.flatten().collect();
        let (logits, vocabulary) = (engine.logits(), engine.vocabulary());
        engine.team().chunks_mut(&mut growing, 1, |_, candidates| {
            for candidate in candidates {
                candidate.draw(logits, vocabulary, banned);
            }
        });
    }

    /// Takes in what was drawn for a run, or what was computed of a text to be scored.
    fn settle(&mut self, index: usize) -> Result<(), Failure> {
        let tokenizer = &self.worker.prompter.tokenizer;
        let growth = match &mut self.runs[index].what {
            What::Generate(growth) => growth,
            What::Score(_) => return Ok(()),
        };
        if growth.growing.is_empty() {
            return Ok(());
        }
        let first = growth.job.answer.started.is_some();
        if first && growth.job.request.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(Error::DeadlineExceeded.into());
        }
        let mut ended = Vec::new();
        let n = growth.growing.len();
        let mut growing = Vec::with_capacity(n);
        let (room, with_logprobs) = (growth.job.room, growth.job.plan.wants_logprobs());
        for mut candidate in std::mem::take(&mut growth.growing) {
            match candidate.settle(tokenizer, room, with_logprobs) {
                Ok(None) => growing.push(candidate),
                Ok(Some(reason)) => ended.push((candidate, reason)),
                Err(error) => {
                    // Whatever was drawn holds a sequence that goes with the run.
                    growing.push(candidate);
                    growth.growing = growing;
                    growth.growing.extend(ended.into_iter().map(|(candidate, _)| candidate));
                    return Err(error.into());
                }
            }
        }
        self.metrics.tokens(n);
        growth.growing = growing;
        if first {
            // Until here all candidates are one sequence. Who goes on has one of their own from now on.
            let seq = growth.growing.first().or(ended.first().map(|(c, _)| c)).map(|candidate| candidate.seq);
            for candidate in growth.growing.iter_mut().skip(1) {
                candidate.seq =
                    self.worker.engine.fork(candidate.seq).map_err(|e| Error::internal("the engine failed", e))?;
            }
            if growth.growing.is_empty()
                && let Some(seq) = seq
            {
                self.worker.engine.release(seq);
            }
            for (candidate, _) in &mut ended {
                candidate.seq = NOBODY;
            }
        }
        if let Some(started) = growth.job.answer.started.take() {
            // Nothing but the engine can fail from here on.
            drop(started.send(Ok(())));
        }
        for (candidate, reason) in &ended {
            if *reason == FinishReason::Stop {
                #[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^52")]
                let len = candidate.tokens().len() as f64;
                self.usual = Some(self.usual.map_or(len, |usual| usual + 0.1 * (len - usual)));
            }
        }
        self.finish(index, ended)
    }

    /// Sends what may leave, and the ends of those that ended.
    fn finish(&mut self, index: usize, ended: Vec<(Candidate, FinishReason)>) -> Result<(), Failure> {
        let run = &mut self.runs[index];
        let What::Generate(growth) = &mut run.what else { return Ok(()) };
        let Growth { job, growing, usage, any_text, cost, .. } = &mut **growth;
        // First of all, as nobody knows of them any more if what follows finds that the caller is gone.
        for (candidate, _) in &ended {
            if candidate.seq != NOBODY {
                self.worker.engine.release(candidate.seq);
            }
            run.reserved = run.reserved.saturating_sub(cost.each);
        }
        for candidate in growing.iter_mut() {
            *any_text |= send_delta(&job.answer, candidate.index, candidate.assembly.release())?;
        }
        for (mut candidate, reason) in ended {
            *any_text |= send_delta(&job.answer, candidate.index, candidate.assembly.finish())?;
            usage.completion_tokens += candidate.assembly.n_tokens();
            let event = Event::Finished {
                candidate: candidate.index,
                reason,
                n_tokens: candidate.assembly.n_tokens(),
                mean_logprob: candidate.assembly.mean_logprob(),
            };
            job.answer.events.try_send(Ok(event)).map_err(|_| Failure::Abandoned)?;
        }
        Ok(())
    }

    /// Ends a run that failed or is through.
    fn conclude(&mut self, index: usize, outcome: Result<(), Failure>) {
        if let Err(failure) = outcome {
            return self.fail(index, failure);
        }
        let done = match &self.runs[index].what {
            What::Generate(growth) => matches!(growth.prompt, Progress::Done) && growth.growing.is_empty(),
            What::Score(_) => self.runs[index].prompt_left() == 0,
        };
        if !done {
            return;
        }
        match self.end(index).what {
            What::Generate(growth) => {
                let (model, backend) = (self.worker.model.clone(), self.worker.name.clone());
                let done = Event::Done { usage: growth.usage, model, backend };
                drop(growth.job.answer.events.try_send(Ok(done)));
            }
            What::Score(judgement) => {
                let Judgement { job: Scoring { ids, reply, rows: wanted, .. }, rows, logprobs, .. } = *judgement;
                drop(reply.send(self.judge(ids, wanted.then_some(rows), &logprobs)));
            }
        }
    }

    fn fail(&mut self, index: usize, failure: Failure) {
        match (self.end(index).what, failure) {
            (What::Generate(growth), Failure::Error(error)) => growth.job.answer.fail(error),
            (What::Score(judgement), Failure::Error(error)) => drop(judgement.job.reply.send(Err(error))),
            (_, Failure::Abandoned) => {}
        }
    }

    /// Scores a text that was computed.
    fn judge(&self, ids: Vec<u32>, rows: Option<Vec<Vec<f32>>>, logprobs: &[f32]) -> Result<Score, Error> {
        let tokenizer = &self.worker.prompter.tokenizer;
        if logprobs.len() != ids.len() || logprobs.iter().any(|logprob| !logprob.is_finite()) {
            return Err(Error::internal("the engine failed", DrawError::NotFinite));
        }
        let token = |(id, logprob): (&u32, &f32)| TokenLogprob {
            token: tokenizer.show(*id),
            logprob: logprob.min(0.0),
            top: Vec::new(),
        };
        Ok(Score { tokens: ids.iter().zip(logprobs).map(token).collect(), token_ids: ids, rows })
    }
}

/// The sequence of who has none.
const NOBODY: Seq = Seq(u32::MAX);

impl Part {
    fn feed<'a>(&self, runs: &'a [Run]) -> Option<Feed<'a>> {
        match *self {
            Self::Stretch { run, seq, begin, end, wants } => {
                let (tokens, _) = runs[run].prompt()?;
                Some(Feed { seq, tokens: &tokens[begin..end], wants })
            }
            Self::Token { run, candidate } => {
                let What::Generate(growth) = &runs[run].what else { return None };
                let candidate = &growth.growing[candidate];
                let tokens = std::slice::from_ref(candidate.tokens().last()?);
                Some(Feed { seq: candidate.seq, tokens, wants: Wants::Last })
            }
        }
    }

    const fn run(&self) -> usize {
        match self {
            Self::Stretch { run, .. } | Self::Token { run, .. } => *run,
        }
    }
}

impl Plan {
    /// Returns the runs that have a part, in order.
    fn runs(&self) -> Vec<usize> {
        let mut runs: Vec<usize> = self.parts.iter().map(Part::run).collect();
        runs.sort_unstable();
        runs.dedup();
        runs
    }
}

impl Run {
    fn is_wanted(&self) -> bool {
        match &self.what {
            What::Generate(growth) => growth.job.answer.is_wanted(),
            What::Score(judgement) => !judgement.job.reply.is_closed(),
        }
    }

    /// When its answer stops being of use.
    fn deadline(&self) -> Option<Instant> {
        match &self.what {
            What::Generate(growth) => growth.job.request.deadline,
            What::Score(_) => None,
        }
    }

    fn n_growing(&self) -> usize {
        match &self.what {
            What::Generate(growth) => growth.growing.len(),
            What::Score(_) => 0,
        }
    }

    /// How many candidates it has, or will have when its prompt is computed.
    fn n_to_grow(&self) -> usize {
        match &self.what {
            What::Generate(growth) if !matches!(growth.prompt, Progress::Done) => growth.n,
            _ => self.n_growing(),
        }
    }

    /// How many places of the batch it takes.
    fn n_places(&self) -> usize {
        match &self.what {
            What::Generate(_) => self.n_to_grow(),
            What::Score(_) => 1,
        }
    }

    /// Returns the tokens to be computed before anything can be drawn or judged, and how far that is.
    fn prompt(&self) -> Option<(&[u32], Progress)> {
        match &self.what {
            What::Generate(growth) if matches!(growth.prompt, Progress::Done) => None,
            What::Generate(growth) => Some((&growth.job.prompt, growth.prompt)),
            What::Score(judgement) => Some((&judgement.job.tokens, judgement.progress)),
        }
    }

    fn prompt_left(&self) -> usize {
        self.prompt().map_or(0, |(tokens, progress)| match progress {
            Progress::Waits => tokens.len(),
            Progress::Computes { done, .. } => tokens.len() - done,
            Progress::Done => 0,
        })
    }

    fn progress(&self) -> Progress {
        match &self.what {
            What::Generate(growth) => growth.prompt,
            What::Score(judgement) => judgement.progress,
        }
    }

    fn progress_mut(&mut self) -> &mut Progress {
        match &mut self.what {
            What::Generate(growth) => &mut growth.prompt,
            What::Score(judgement) => &mut judgement.progress,
        }
    }

    /// Gives its sequences back.
    fn release(&mut self, engine: &mut impl Engine) {
        if let Progress::Computes { seq, .. } = self.progress() {
            engine.release(seq);
        }
        if let What::Generate(growth) = &mut self.what {
            // Before the first draw is settled, all candidates have the same.
            let mut seqs: Vec<Seq> = growth.growing.iter().map(|candidate| candidate.seq).collect();
            seqs.sort_unstable();
            seqs.dedup();
            seqs.into_iter().for_each(|seq| engine.release(seq));
        }
    }
}

impl Growth {
    /// Begins the candidates, all on the sequence of their prompt.
    fn begin(&mut self, seq: Seq, row: usize, drop_space: bool) {
        let sampling = &self.job.request.sampling;
        let seed = sampling.seed.unwrap_or_else(rand::random);
        let candidate = |index| {
            let sampler = self.job.plan.sampler(seed, index, &self.job.prompt);
            let mut candidate = Candidate::new(index, seq, sampler, Assembly::new(&sampling.stop, drop_space));
            candidate.row = row;
            candidate
        };
        self.growing = (0..self.n).map(candidate).collect();
    }
}

impl Judgement {
    /// Takes in the next rows of logits.
    fn take<'a>(&mut self, rows: impl Iterator<Item = &'a [f32]>) {
        for row in rows {
            let logit = self.job.ids.get(self.logprobs.len()).and_then(|id| row.get(*id as usize));
            self.logprobs.push(logit.map_or(f32::NAN, |logit| logit - crate::math::log_sum_exp(row)));
            if self.job.rows {
                self.rows.push(row.to_vec());
            }
        }
    }
}

/// Sends what was released, if anything; says whether it held text.
fn send_delta(answer: &Answer, candidate: usize, release: Release) -> Result<bool, Failure> {
    let Release { text, logprobs } = release;
    let has_text = !text.is_empty();
    if has_text || !logprobs.is_empty() {
        let delta = Event::Delta { candidate, text, logprobs };
        answer.events.try_send(Ok(delta)).map_err(|_| Failure::Abandoned)?;
    }
    Ok(has_text)
}
