//! The thread that owns the engine: one request at a time, all its candidates in one batch.

use std::time::{Duration, Instant};

use idiolect_backend::{Error, Event, FinishReason, Message, Request, Score, TokenLogprob, TopLogprob, Usage};
use rayon::prelude::*;
use tokio::sync::{mpsc, oneshot};

use crate::assembly::{Assembly, Release};
use crate::engine::{Engine, EngineError, Session};
use crate::prompt::{Prompter, count};
use crate::sampling::{Drawn, NotFinite, Sampler};

/// What the worker is asked to do.
pub(crate) enum Job {
    /// Draw candidates.
    Generate {
        request: Box<Request>,
        /// Hears whether the prompt was computed; afterwards `events` has the rest.
        started: oneshot::Sender<Result<(), Error>>,
        /// Has room for everything: for each candidate `max_tokens` (or the context, if less) and three, and one.
        events: mpsc::Sender<Result<Event, Error>>,
    },
    /// Score a given reply.
    Score { messages: Vec<Message>, completion: String, reply: oneshot::Sender<Result<Score, Error>> },
}

/// Everything that answering takes.
#[derive(Debug)]
pub(crate) struct Worker<E> {
    pub(crate) engine: E,
    pub(crate) prompter: Prompter,
    pub(crate) name: String,
    pub(crate) model: String,
    /// Tokens that are never drawn.
    pub(crate) banned: Vec<u32>,
    /// Most bytes of keys and values of one request.
    pub(crate) max_kv_bytes: u64,
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

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Error(Error::internal("the engine failed", error))
    }
}

impl From<NotFinite> for Failure {
    fn from(error: NotFinite) -> Self {
        Self::Error(Error::internal("the engine failed", error))
    }
}

/// One candidate that grows.
struct Growing {
    index: usize,
    sampler: Sampler,
    assembly: Assembly,
    n_drawn: usize,
    drawn: Result<Drawn, NotFinite>,
}

impl<E: Engine> Worker<E> {
    /// Answers jobs until no one can send any more.
    pub(crate) fn run(&self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.blocking_recv() {
            let mut job = Some(job);
            let mut work = || {
                if let Some(job) = job.take() {
                    self.answer(job);
                }
            };
            // A panic drops the job's channels, which the asking side sees; the next job starts afresh.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.engine.within(&mut work)));
            if outcome.is_err() {
                tracing::error!(backend = %self.name, "the engine panicked");
            }
        }
    }

    fn answer(&self, job: Job) {
        match job {
            Job::Generate { request, started, events } => {
                let mut started = Some(started);
                match self.generate(&request, &mut started, &events) {
                    Ok(()) | Err(Failure::Abandoned) => {}
                    Err(Failure::Error(error)) => match started.take() {
                        Some(started) => drop(started.send(Err(error))),
                        None => drop(events.try_send(Err(error))),
                    },
                }
            }
            Job::Score { messages, completion, reply } => {
                match self.score(&messages, &completion, &mut || !reply.is_closed()) {
                    Ok(score) => drop(reply.send(Ok(score))),
                    Err(Failure::Error(error)) => drop(reply.send(Err(error))),
                    Err(Failure::Abandoned) => {}
                }
            }
        }
    }

    fn generate(
        &self,
        request: &Request,
        started: &mut Option<oneshot::Sender<Result<(), Error>>>,
        events: &mpsc::Sender<Result<Event, Error>>,
    ) -> Result<(), Failure> {
        let late = |ahead: Duration| request.deadline.is_some_and(|deadline| Instant::now() + ahead >= deadline);
        let wanted = |started: &Option<oneshot::Sender<_>>| {
            !events.is_closed() && !started.as_ref().is_some_and(oneshot::Sender::is_closed)
        };
        if !wanted(started) {
            return Err(Failure::Abandoned);
        }
        if late(Duration::ZERO) {
            return Err(Error::DeadlineExceeded.into());
        }
        let sampling = &request.sampling;
        let prompt = self.prompter.prompt(&request.messages, sampling.max_tokens)?;
        let room = self.engine.context() - prompt.tokens.len();
        let room = usize::try_from(sampling.max_tokens).unwrap_or(usize::MAX).min(room);

        self.admit(prompt.tokens.len(), request.n, room)?;

        let prefill_began = Instant::now();
        let mut go_on = || wanted(started) && !late(Duration::ZERO);
        let session = self.engine.start(&prompt.tokens, request.n, room, &mut go_on);
        let mut session = match session {
            Err(EngineError::Interrupted) if wanted(started) => return Err(Error::DeadlineExceeded.into()),
            Err(EngineError::Interrupted) => return Err(Failure::Abandoned),
            other => other?,
        };

        let seed = sampling.seed.unwrap_or_else(rand::random);
        let drop_space = self.prompter.tokenizer.has_dummy_space();
        let mut growing: Vec<Growing> = (0..request.n)
            .map(|index| Growing {
                index,
                sampler: Sampler::new(sampling, seed, index, &prompt.tokens),
                assembly: Assembly::new(&sampling.stop, drop_space),
                n_drawn: 0,
                drawn: Err(NotFinite),
            })
            .collect();
        let mut usage =
            Usage { prompt_tokens: count(prompt.tokens.len()), completion_tokens: 0, trimmed_tokens: prompt.trimmed };
        let mut any_text = false;
        // Until one is measured: a step computes a token for each candidate, the prompt took as long for its own.
        let mut step_time = prefill_began.elapsed() * count(request.n) / count(prompt.tokens.len());
        loop {
            if events.is_closed() {
                return Err(Failure::Abandoned);
            }
            let step_began = Instant::now();
            let computes = growing.iter().any(|g| g.n_drawn > 0);
            let mut finished = Vec::new();
            if late(if computes { step_time } else { Duration::ZERO }) {
                // Another step would come too late: what is there is the answer.
                if !any_text && !growing.iter().any(|g| g.assembly.holds_text()) {
                    return Err(Error::DeadlineExceeded.into());
                }
                finished.extend(growing.drain(..).map(|g| (g, FinishReason::Deadline)));
            } else {
                self.advance(&mut *session, &mut growing, room, &mut finished)?;
            }
            if let Some(started) = started.take() {
                // Nothing but the engine can fail from here on.
                drop(started.send(Ok(())));
            }
            for candidate in &mut growing {
                any_text |= self.send_delta(events, candidate.index, candidate.assembly.release())?;
            }
            for (mut candidate, reason) in finished {
                any_text |= self.send_delta(events, candidate.index, candidate.assembly.finish())?;
                usage.completion_tokens += candidate.assembly.n_tokens();
                let event = Event::Finished {
                    candidate: candidate.index,
                    reason,
                    n_tokens: candidate.assembly.n_tokens(),
                    mean_logprob: candidate.assembly.mean_logprob(),
                };
                events.try_send(Ok(event)).map_err(|_| Failure::Abandoned)?;
            }
            if growing.is_empty() {
                break;
            }
            if computes {
                step_time = step_began.elapsed();
            }
        }
        let done = Event::Done { usage, model: self.model.clone(), backend: self.name.clone() };
        events.try_send(Ok(done)).map_err(|_| Failure::Abandoned)
    }

    /// Refuses what would take more memory than one request may have.
    fn admit(&self, prompt: usize, n: usize, room: usize) -> Result<(), Failure> {
        let tokens = (n as u64).saturating_mul(room as u64).saturating_add(prompt as u64);
        let (needed, allowed) = (tokens.saturating_mul(self.engine.kv_bytes_per_token()), self.max_kv_bytes);
        if needed <= allowed {
            return Ok(());
        }
        Err(Error::InvalidRequest(format!(
            "{n} candidates of {room} tokens after a prompt of {prompt} need {needed} bytes of keys and values, \
             {allowed} are allowed"
        ))
        .into())
    }

    /// Draws one token for each candidate, after computing the logits of the last ones; moves out who ended.
    fn advance(
        &self,
        session: &mut dyn Session,
        growing: &mut Vec<Growing>,
        room: usize,
        finished: &mut Vec<(Growing, FinishReason)>,
    ) -> Result<(), Failure> {
        let first = growing.iter().all(|g| g.n_drawn == 0);
        if !first {
            let mut batch = Vec::with_capacity(growing.len());
            for candidate in &*growing {
                let drawn = candidate.drawn.as_ref().map_err(|_| NotFinite)?;
                batch.push((candidate.index, drawn.token));
            }
            session.step(&batch)?;
        }
        let vocabulary = self.engine.vocabulary();
        let logits = session.logits();
        growing.par_iter_mut().enumerate().for_each(|(row, candidate)| {
            let row = if first { 0 } else { row };
            let logits = &logits[row * vocabulary..(row + 1) * vocabulary];
            candidate.drawn = candidate.sampler.draw(logits, &self.banned);
        });
        let tokenizer = &self.prompter.tokenizer;
        for mut candidate in std::mem::take(growing) {
            let drawn = candidate.drawn.as_ref().map_err(|_| NotFinite)?;
            candidate.n_drawn += 1;
            let reason = if tokenizer.is_end(drawn.token) {
                Some(FinishReason::Stop)
            } else {
                let detail = candidate.sampler.wants_logprobs().then(|| self.detail(drawn));
                if candidate.assembly.push(&tokenizer.bytes(drawn.token), drawn.logprob, detail) {
                    Some(FinishReason::Stop)
                } else {
                    (candidate.n_drawn >= room).then_some(FinishReason::Length)
                }
            };
            match reason {
                Some(reason) => finished.push((candidate, reason)),
                None => growing.push(candidate),
            }
        }
        Ok(())
    }

    fn detail(&self, drawn: &Drawn) -> TokenLogprob {
        let tokenizer = &self.prompter.tokenizer;
        let top = drawn.top.iter();
        TokenLogprob {
            token: tokenizer.show(drawn.token),
            logprob: drawn.logprob,
            top: top.map(|(token, logprob)| TopLogprob { token: tokenizer.show(*token), logprob: *logprob }).collect(),
        }
    }

    /// Sends what was released, if anything; says whether it held text.
    fn send_delta(
        &self,
        events: &mpsc::Sender<Result<Event, Error>>,
        candidate: usize,
        release: Release,
    ) -> Result<bool, Failure> {
        let Release { text, logprobs } = release;
        let has_text = !text.is_empty();
        if has_text || !logprobs.is_empty() {
            let delta = Event::Delta { candidate, text, logprobs };
            events.try_send(Ok(delta)).map_err(|_| Failure::Abandoned)?;
        }
        Ok(has_text)
    }

    fn score(&self, messages: &[Message], completion: &str, go_on: &mut dyn FnMut() -> bool) -> Result<Score, Failure> {
        let tokenizer = &self.prompter.tokenizer;
        let ids = tokenizer.encode(completion).map_err(|e| Error::InvalidRequest(e.to_string()))?;
        if ids.is_empty() {
            return Ok(Score { tokens: Vec::new(), token_ids: Vec::new(), rows: Some(Vec::new()) });
        }
        if ids.len() >= self.engine.context() {
            return Err(too_long(ids.len(), self.engine.context()));
        }
        let prompt = self.prompter.prompt(messages, count(ids.len()))?;
        let mut all = prompt.tokens;
        let begin = all.len();
        all.extend_from_slice(&ids);
        if all.len() > self.engine.context() {
            return Err(too_long(all.len(), self.engine.context()));
        }
        self.admit(begin, 1, ids.len())?;
        // The logits after token i predict token i + 1, so the last token's own logits are not needed.
        all.pop();
        let mut rows = Vec::with_capacity(ids.len());
        match self.engine.rows(&all, begin - 1, go_on, &mut |row| rows.push(row.to_vec())) {
            Err(EngineError::Interrupted) => return Err(Failure::Abandoned),
            other => other?,
        }
        let mut tokens = Vec::with_capacity(ids.len());
        for (id, row) in ids.iter().zip(&rows) {
            let logprob = row[*id as usize] - crate::math::log_sum_exp(row);
            if !logprob.is_finite() {
                return Err(NotFinite.into());
            }
            tokens.push(TokenLogprob { token: tokenizer.show(*id), logprob: logprob.min(0.0), top: Vec::new() });
        }
        Ok(Score { tokens, token_ids: ids, rows: Some(rows) })
    }
}

fn too_long(tokens: usize, context: usize) -> Failure {
    Error::ContextTooLong { prompt_tokens: count(tokens), context_tokens: count(context) }.into()
}
