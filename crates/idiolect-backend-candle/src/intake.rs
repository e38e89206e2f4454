//! What happens to a request before it is computed: tokens are made of it, and what can never be answered is refused.
//!
//! In threads of their own, so that a long text to tokenise holds up no candidate that grows, and few others that arrive.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use idiolect_backend::{Error, Event, Moments, OwnLogits, Preset, Request, Score, ScoreRequest};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::clock::Clock;
use crate::cost::Cost;
use crate::engine::Portion;
use crate::forecast::{Forecast, Wish};
use crate::prompt::{Prompt, Prompter, count};
use crate::sampling::{Plan, Texts};
use crate::speed::Meter;
use crate::tokenizer::TokenizeError;

/// What a backend is asked to do. The permit is a place in the queue.
pub(crate) enum Job {
    /// Draw candidates.
    Generate { request: Box<Request>, answer: Answer, place: OwnedSemaphorePermit },
    /// Score a given reply.
    Score { request: ScoreRequest, reply: oneshot::Sender<Result<Score, Error>>, place: OwnedSemaphorePermit },
}

/// Where the candidates of a request go.
pub(crate) struct Answer {
    /// Hears whether the prompt was computed; afterwards `events` has the rest.
    pub(crate) started: Option<oneshot::Sender<Result<(), Error>>>,
    /// Has room for everything: for each candidate `max_tokens` (or the context, if less) and three, and one.
    pub(crate) events: mpsc::Sender<Result<Event, Error>>,
}

impl Answer {
    /// Says whether somebody still waits.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.events.is_closed() && !self.started.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    /// Ends in an error.
    pub(crate) fn fail(mut self, error: Error) {
        match self.started.take() {
            Some(started) => drop(started.send(Err(error))),
            None => drop(self.events.try_send(Err(error))),
        }
    }
}

/// When a request's turn came to be made ready, whatever overtook it meanwhile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) number: u64,
    pub(crate) since: Instant,
}

/// A request that is ready to be computed.
pub(crate) enum Arrival {
    Generate(Generate),
    Score(Scoring),
}

impl Arrival {
    /// Returns when its answer stops being of use.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Generate(generate) => generate.request.deadline,
            Self::Score(_) => None,
        }
    }
}

/// A request for candidates.
pub(crate) struct Generate {
    pub(crate) request: Box<Request>,
    pub(crate) prompt: Vec<u32>,
    /// Tokens that were left out of the prompt.
    pub(crate) trimmed: u32,
    /// Most tokens of a candidate.
    pub(crate) room: usize,
    /// How tokens are drawn.
    pub(crate) plan: Plan,
    pub(crate) answer: Answer,
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

impl Scoring {
    /// Returns of which token on the logits are wanted.
    pub(crate) const fn first_wanted(&self) -> usize {
        if self.prompt_logits { 0 } else { self.begin - 1 }
    }
}

impl Generate {
    /// Returns what `n` candidates of it would be.
    pub(crate) fn wish(&self, n: usize, now: Instant) -> Wish {
        let left = self.request.deadline.map(|deadline| deadline.saturating_duration_since(now));
        Wish { n, prompt: self.prompt.len(), room: self.room, left }
    }
}

/// A request for log-probabilities of a given reply.
pub(crate) struct Scoring {
    /// All tokens but the last, whose own logits nobody needs.
    pub(crate) tokens: Vec<u32>,
    /// Where the reply begins.
    pub(crate) begin: usize,
    pub(crate) ids: Vec<u32>,
    /// Whether the caller wants the rows of logits.
    pub(crate) rows: bool,
    /// Whether the caller wants what counts of them for the reply's own tokens.
    pub(crate) own_logits: bool,
    /// Whether the caller wants the moments of those before the reply.
    pub(crate) prompt_logits: bool,
    /// Of keys and values, and of the logits that are kept for the caller.
    pub(crate) cost: Cost,
    pub(crate) reply: oneshot::Sender<Result<Score, Error>>,
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

/// A text to be scored.
struct Scored {
    /// All tokens but the last.
    tokens: Vec<u32>,
    /// How many of them are the prompt.
    begin: usize,
    /// The rest, and the last.
    ids: Vec<u32>,
    cost: Cost,
}

/// Makes tokens of requests.
pub(crate) struct Intake {
    pub(crate) prompter: Arc<Prompter>,
    pub(crate) portion: Portion,
    /// Most bytes of keys and values, and of rows of logits that are kept for callers.
    pub(crate) max_kv_bytes: u64,
    /// Candidates that may grow side by side.
    pub(crate) max_batch: usize,
    /// Logits of a row.
    pub(crate) vocabulary: usize,
    /// The order of stages for requests without a chain of their own.
    pub(crate) preset: Preset,
    /// The texts of tokens, for stages that look at them.
    pub(crate) texts: Texts,
    /// How fast the engine is.
    pub(crate) meter: Arc<Mutex<Meter>>,
    pub(crate) clock: Clock,
}

/// The jobs that several threads take from, one after the other.
#[derive(Debug)]
pub(crate) struct Queue {
    jobs: mpsc::Receiver<Job>,
    clock: Clock,
    taken: u64,
}

impl Queue {
    pub(crate) const fn new(jobs: mpsc::Receiver<Job>, clock: Clock) -> Self {
        Self { jobs, clock, taken: 0 }
    }

    /// Waits for the next job; `None` when no one can send any more.
    fn next(&mut self) -> Option<(Ticket, Job)> {
        let job = self.jobs.blocking_recv()?;
        self.taken += 1;
        Some((Ticket { number: self.taken, since: self.clock.now() }, job))
    }
}

impl Intake {
    /// Takes jobs until no one can send any more. Any number of threads may do so.
    pub(crate) fn run(&self, queue: &Mutex<Queue>, arrivals: &mpsc::Sender<(Ticket, Arrival)>) {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some((ticket, job)) = next() {
            // A panic drops the job's channels, which the asking side sees; the next job starts afresh.
            let arrival = catch_unwind(AssertUnwindSafe(|| self.take(job)));
            if let Ok(Some(arrival)) = arrival
                && arrivals.blocking_send((ticket, arrival)).is_err()
            {
                return;
            }
        }
    }

    pub(crate) fn take(&self, job: Job) -> Option<Arrival> {
        match job {
            Job::Generate { request, answer, place } => {
                if !answer.is_wanted() {
                    return None;
                }
                match self.prepare(&request) {
                    Ok((prompt, room, plan)) => {
                        let (prompt, trimmed, place) = (prompt.tokens, prompt.trimmed, Some(place));
                        Some(Arrival::Generate(Generate { request, prompt, trimmed, room, plan, answer, place }))
                    }
                    Err(error) => {
                        answer.fail(error);
                        None
                    }
                }
            }
            Job::Score { request, reply, place } => {
                if reply.is_closed() {
                    return None;
                }
                match self.prepare_score(&request) {
                    Ok(Some(Scored { tokens, begin, ids, cost })) => Some(Arrival::Score(Scoring {
                        tokens,
                        begin,
                        ids,
                        rows: request.rows,
                        own_logits: request.own_logits,
                        prompt_logits: request.prompt_logits,
                        cost,
                        reply,
                        place: Some(place),
                    })),
                    Ok(None) => {
                        let score = Score {
                            rows: request.rows.then(Vec::new),
                            own_logits: request.own_logits.then(|| OwnLogits::new(&[])),
                            prompt_logits: request.prompt_logits.then(Moments::default),
                            ..Score::default()
                        };
                        drop(reply.send(Ok(score)));
                        None
                    }
                    Err(error) => {
                        drop(reply.send(Err(error)));
                        None
                    }
                }
            }
        }
    }

    fn prepare(&self, request: &Request) -> Result<(Prompt, usize, Plan), Error> {
        if request.deadline.is_some_and(|deadline| self.clock.now() >= deadline) {
            return Err(Error::DeadlineExceeded);
        }
        let max_tokens = request.sampling.max_tokens;
        let prompt = self.prompter.prompt(&request.messages, max_tokens)?;
        let room = self.prompter.context.saturating_sub(prompt.tokens.len());
        let room = usize::try_from(max_tokens).unwrap_or(usize::MAX).min(room);
        self.check_memory(prompt.tokens.len(), request, room)?;
        let plan = Plan::new(&request.sampling, self.preset, &self.texts, &self.prompter.tokenizer)?;
        Ok((prompt, room, plan))
    }

    /// Refuses what would take more memory than there is, in the time that it has.
    fn check_memory(&self, prompt: usize, request: &Request, room: usize) -> Result<(), Error> {
        let left = request.deadline.map(|deadline| deadline.saturating_duration_since(self.clock.now()));
        let wish = Wish { n: request.n.min(self.max_batch), prompt, room, left };
        let share = {
            let meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
            Forecast { meter: &meter, ahead: 0, others: 0, usual: None }.share(&wish)
        };
        let (n, length) = (share.n, share.expected);
        let needed = Cost::new(self.portion, prompt, length).of(n).saturating_mul(self.portion.bytes);
        let allowed = self.max_kv_bytes;
        if needed <= allowed {
            return Ok(());
        }
        Err(Error::InvalidRequest(format!(
            "{n} candidates of {length} tokens after a prompt of {prompt} need {needed} bytes of keys and values, \
             {allowed} are allowed"
        )))
    }

    /// Returns the tokens before a text that is to be scored, and those of the text.
    fn split_score(&self, request: &ScoreRequest) -> Result<(Vec<u32>, Vec<u32>), Error> {
        let context = self.prompter.context;
        let too_long = |tokens| Error::ContextTooLong { prompt_tokens: count(tokens), context_tokens: count(context) };
        let tokenizer = &self.prompter.tokenizer;
        let failed = |error: TokenizeError| Error::InvalidRequest(error.to_string());
        let (before, mut ids) = if let Some(plain) = &request.plain {
            let before = tokenizer.encode_from_beginning(plain).map_err(failed)?;
            let both = format!("{plain}{}", request.completion);
            let mut both = tokenizer.encode_from_beginning(&both).map_err(failed)?;
            // At the border both may have become one token: it counts as one before the text.
            let ids = both.split_off(before.len().min(both.len()));
            (both, ids)
        } else {
            let mut ids = tokenizer.encode(&request.completion).map_err(failed)?;
            if request.cut {
                ids.truncate(context);
            }
            if ids.len() >= context && !request.cut {
                return Err(too_long(ids.len()));
            }
            let room = if request.cut { 1 } else { count(ids.len()) };
            let prompt = self.prompter.prompt(&request.messages, room)?;
            if prompt.trimmed > 0 {
                // After part of the prompt only, the text would have other log-probabilities.
                return Err(too_long(prompt.tokens.len() + prompt.trimmed as usize + ids.len()));
            }
            (prompt.tokens, ids)
        };
        if before.len() >= context {
            return Err(too_long(before.len()));
        }
        if request.cut {
            ids.truncate(context - before.len());
        }
        if before.len() + ids.len() > context {
            return Err(too_long(before.len() + ids.len()));
        }
        Ok((before, ids))
    }

    fn prepare_score(&self, request: &ScoreRequest) -> Result<Option<Scored>, Error> {
        if request.completion.is_empty() {
            return Ok(None);
        }
        let (mut tokens, ids) = self.split_score(request)?;
        if ids.is_empty() {
            return Ok(None);
        }
        let begin = tokens.len();
        if begin == 0 {
            return Err(Error::InvalidRequest("no token is before the text to be scored".to_owned()));
        }
        tokens.extend_from_slice(&ids);
        tokens.pop();
        let rows = if request.rows { (ids.len() as u64).saturating_mul(self.vocabulary as u64 * 4) } else { 0 };
        let own = if request.own_logits { OwnLogits::size_bytes(&ids) } else { 0 };
        let cost = Cost::new(self.portion, tokens.len(), 0).and_bytes(self.portion, rows.saturating_add(own));
        let (needed, allowed) = (cost.of(1).saturating_mul(self.portion.bytes), self.max_kv_bytes);
        if needed > allowed {
            return Err(Error::InvalidRequest(format!(
                "scoring {} tokens after a prompt of {begin} needs {needed} bytes, {rows} of them for rows of {} logits, \
                 {allowed} are allowed",
                ids.len(),
                self.vocabulary
            )));
        }
        Ok(Some(Scored { tokens, begin, ids, cost }))
    }
}

#[cfg(test)]
mod tests {
    use idiolect_backend::Message;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::template::Template;
    use crate::testing::TinyGguf;
    use crate::tokenizer::Tokenizer;

    fn intake() -> Intake {
        let (_dir, gguf) = TinyGguf::model("llama").open();
        let tokenizer = Tokenizer::read(&gguf).unwrap();
        let template = Template::read(&gguf, &tokenizer).unwrap();
        Intake {
            prompter: Arc::new(Prompter { tokenizer, template, context: 1 << 24 }),
            portion: Portion { tokens: 1, bytes: 1 },
            max_kv_bytes: 1 << 30,
            max_batch: 64,
            vocabulary: 259,
            preset: Preset::LlamaCpp,
            texts: Texts::default(),
            meter: Arc::default(),
            clock: Clock::System,
        }
    }

    #[test]
    fn a_long_text_holds_up_nobody_and_keeps_its_turn() {
        let (intake, places) = (intake(), Arc::new(Semaphore::new(2)));
        let (jobs, queue) = mpsc::channel(2);
        let (ready, mut arrivals) = mpsc::channel(2);
        let mut listeners = Vec::new();
        for text in ["he said ".repeat(1 << 17), "x".to_owned()] {
            let (started, begun) = oneshot::channel();
            let (events, received) = mpsc::channel(1);
            listeners.push((begun, received));
            let answer = Answer { started: Some(started), events };
            let place = Arc::clone(&places).try_acquire_owned().unwrap();
            let request = Box::new(Request::new(vec![Message::user(text)]));
            assert!(jobs.try_send(Job::Generate { request, answer, place }).is_ok());
        }
        drop(jobs);
        let queue = Mutex::new(Queue::new(queue, Clock::System));
        std::thread::scope(|scope| {
            for ready in [ready.clone(), ready] {
                let (intake, queue) = (&intake, &queue);
                scope.spawn(move || intake.run(queue, &ready));
            }
        });
        let mut next = || match arrivals.try_recv().unwrap() {
            (ticket, Arrival::Generate(generate)) => (ticket.number, generate.prompt.len()),
            (_, Arrival::Score(_)) => unreachable!("nothing to score was asked"),
        };
        let (first, second) = (next(), next());
        assert!(first.0 == 2 && first.1 < 100, "{first:?}");
        assert!(second.0 == 1 && second.1 > 1 << 19, "{second:?}");
    }
}
