//! One step: computing, drawing, and what comes of it.

use idiolect_backend::{Error, Event, FinishReason, Score, TokenLogprob};

use super::Desk;
use super::plan::{Part, Plan};
use super::run::{Failure, Growth, Judgement, Progress, What};
use crate::assembly::Release;
use crate::candidate::Candidate;
use crate::engine::{Engine, EngineError, Feed, Seq, Wants};
use crate::intake::{Answer, Scoring};
use crate::prompt::count;
use crate::sampling::DrawError;
use crate::worker::Worker;

/// The sequence of who has none.
const NOBODY: Seq = Seq(u32::MAX);

impl<E: Engine> Desk<E> {
    /// Computes a plan and deals with what comes of it.
    pub(super) fn step(&mut self, plan: &Plan) {
        let began = self.worker.clock.now();
        let outcome = {
            let Self { worker: Worker { engine, .. }, runs, .. } = self;
            let feeds: Vec<Feed<'_>> = plan.parts.iter().filter_map(|part| part.feed(runs)).collect();
            engine.forward(&feeds)
        };
        if let Err(error) = outcome {
            let whose = match &error {
                EngineError::Sequence { seq, .. } => plan.run_of(&self.runs, *seq),
                _ => None,
            };
            let reason = error.to_string();
            // Where it is not known whose fault it is, all fail; else the others take the step once more.
            for index in whose.map_or_else(|| plan.runs(), |run| vec![run]).into_iter().rev() {
                let error = Error::internal("the engine failed", std::io::Error::other(reason.clone()));
                self.fail(index, error.into());
            }
            return;
        }
        self.advance(plan);
        let computed = self.worker.clock.now();
        self.draw(plan);
        let drew = self.worker.clock.now().saturating_duration_since(computed);
        let outcomes: Vec<_> = plan.runs().into_iter().rev().map(|index| (index, self.settle(index))).collect();
        let took = self.worker.clock.now().saturating_duration_since(began);
        self.with_meter(|meter| meter.note(plan.prompt_tokens, plan.candidates, took));
        // Who hears that an answer is whole finds all of it counted.
        self.metrics.step(plan.prompt_tokens, plan.candidates, took, drew);
        for (index, outcome) in outcomes {
            if let What::Generate(growth) = &mut self.runs[index].what {
                growth.last_step = Some(took);
            }
            self.conclude(index, outcome);
        }
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
                            if growth.first == 0 {
                                growth.usage.cached_tokens = count(cached);
                            }
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

    /// Draws a token for every candidate that the plan was for, all at once. The others wait for memory: there are no logits
    /// of theirs.
    fn draw(&mut self, plan: &Plan) {
        let Self { worker: Worker { engine, banned, .. }, runs, .. } = self;
        let computed = plan.runs();
        let computed = runs.iter_mut().enumerate().filter(|(index, _)| computed.binary_search(index).is_ok());
        let growing = computed.filter_map(|(_, run)| match &mut run.what {
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
        let now = self.worker.clock.now();
        let growth = match &mut self.runs[index].what {
            What::Generate(growth) => growth,
            What::Score(_) => return Ok(()),
        };
        if growth.growing.is_empty() {
            return Ok(());
        }
        let first = growth.drawn() == 0;
        if growth.job.answer.started.is_some() && growth.job.request.deadline.is_some_and(|deadline| now >= deadline) {
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
            part(&mut self.worker.engine, growth, &mut ended)?;
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
    pub(super) fn finish(&mut self, index: usize, ended: Vec<(Candidate, FinishReason)>) -> Result<(), Failure> {
        let run = &mut self.runs[index];
        let What::Generate(growth) = &mut run.what else { return Ok(()) };
        let Growth { job, growing, usage, any_text, .. } = &mut **growth;
        // First of all, as nobody knows of them any more if what follows finds that the caller is gone.
        for (candidate, _) in &ended {
            if candidate.seq != NOBODY {
                self.worker.engine.release(candidate.seq);
            }
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
    pub(super) fn conclude(&mut self, index: usize, outcome: Result<(), Failure>) {
        if let Err(failure) = outcome {
            return self.fail(index, failure);
        }
        let done = match &self.runs[index].what {
            What::Generate(growth) => matches!(growth.prompt, Progress::Done) && growth.growing.is_empty(),
            What::Score(_) => self.runs[index].prompt_left() == 0,
        };
        if done && !self.go_on(index) {
            self.close(index);
        }
    }

    /// Begins the next candidates of a request that wants more of them than may grow side by side. Says whether there are any.
    fn go_on(&mut self, index: usize) -> bool {
        let What::Generate(growth) = &self.runs[index].what else { return false };
        let now = self.worker.clock.now();
        if growth.later == 0 || growth.job.request.deadline.is_some_and(|deadline| now >= deadline) {
            return false;
        }
        // No more than places and memory are held for.
        let wanted = growth.later.min(growth.n);
        let n = self.share(&growth.job, wanted).n;
        let later = if n == wanted { growth.later - n } else { 0 };
        self.metrics.cut("start", growth.later - n - later);
        let What::Generate(growth) = &mut self.runs[index].what else { return false };
        growth.first += growth.n;
        (growth.n, growth.later, growth.prompt) = (n, later, Progress::Waits);
        true
    }

    /// Ends a run whose answer is whole.
    pub(super) fn close(&mut self, index: usize) {
        match self.end(index).what {
            What::Generate(growth) => {
                let (model, backend) = (self.worker.model.clone(), self.worker.name.clone());
                let done = Event::Done { usage: growth.usage, model, backend };
                drop(growth.job.answer.events.try_send(Ok(done)));
            }
            What::Score(judgement) => {
                let Judgement { job, rows, own, logprobs, before, .. } = *judgement;
                let Scoring { ids, reply, rows: wanted, prompt_logits, .. } = job;
                let (rows, prompt_logits) = (wanted.then_some(rows), prompt_logits.then_some(before));
                let score = self.judge(ids, &logprobs);
                drop(reply.send(score.map(|score| Score { rows, own_logits: own, prompt_logits, ..score })));
            }
        }
    }

    pub(super) fn fail(&mut self, index: usize, failure: Failure) {
        match (self.end(index).what, failure) {
            (What::Generate(growth), Failure::Error(error)) => growth.job.answer.fail(error),
            (What::Score(judgement), Failure::Error(error)) => drop(judgement.job.reply.send(Err(error))),
            (_, Failure::Abandoned) => {}
        }
    }

    /// Scores a text that was computed.
    fn judge(&self, ids: Vec<u32>, logprobs: &[f32]) -> Result<Score, Error> {
        let tokenizer = &self.worker.prompter.tokenizer;
        if logprobs.len() != ids.len() || logprobs.iter().any(|logprob| !logprob.is_finite()) {
            return Err(Error::internal("the engine failed", DrawError::NotFinite));
        }
        let token = |(id, logprob): (&u32, &f32)| TokenLogprob {
            token: tokenizer.show(*id),
            logprob: logprob.min(0.0),
            top: Vec::new(),
        };
        Ok(Score { tokens: ids.iter().zip(logprobs).map(token).collect(), token_ids: ids, ..Score::default() })
    }
}

/// Gives candidates whose first token was drawn sequences of their own: until here all have one.
fn part(engine: &mut impl Engine, growth: &mut Growth, ended: &mut [(Candidate, FinishReason)]) -> Result<(), Failure> {
    let seq = growth.growing.first().or(ended.first().map(|(c, _)| c)).map(|candidate| candidate.seq);
    for candidate in growth.growing.iter_mut().skip(1) {
        candidate.seq = engine.fork(candidate.seq).map_err(|e| Error::internal("the engine failed", e))?;
    }
    if growth.growing.is_empty()
        && let Some(seq) = seq
    {
        engine.release(seq);
    }
    for (candidate, _) in ended {
        candidate.seq = NOBODY;
    }
    Ok(())
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
