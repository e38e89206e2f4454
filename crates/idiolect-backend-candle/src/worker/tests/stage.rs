//! Where scripted engines are tried out: the worker without its threads. What arrives, and between which steps, is up to the
//! test, and time passes with the steps alone, so that no other load of the machine changes what is decided.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use idiolect_backend::{Completion, Error, Event, Message, Request, Score, ScoreRequest};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::super::Desk;
use crate::backend::{assemble, collect, most_events};
use crate::config::CandleConfig;
use crate::engine::Engine;
use crate::intake::{Answer, Intake, Job, Ticket};
use crate::prompt::count;
use crate::speed::Speed;
use crate::testing::script::{Script, Scripted};

/// More turns than any test takes.
const MOST_TURNS: usize = 100_000;

pub(crate) struct Stage {
    pub(crate) script: Arc<Script>,
    intake: Intake,
    desk: Desk<Scripted>,
    places: Arc<Semaphore>,
    n_asked: u64,
}

/// A request that was asked, and what comes of it.
pub(crate) struct Asked {
    n: usize,
    started: oneshot::Receiver<Result<(), Error>>,
    events: mpsc::Receiver<Result<Event, Error>>,
}

/// Asks for `n` candidates of so many tokens.
pub(crate) fn request(text: &str, n: usize, max_tokens: u32) -> Request {
    let mut request = Request::new(vec![Message::user(text)]);
    request.n = n;
    request.sampling.max_tokens = max_tokens;
    request.sampling.seed = Some(5);
    request
}

impl Stage {
    /// A stage with an engine whose steps take so many microseconds, and so many more for each candidate and each token of a
    /// prompt.
    pub(crate) fn paced(step: u64, candidate: u64, prompt_token: u64) -> Self {
        Self::new(Script::paced(step, candidate, prompt_token), |_| ())
    }

    pub(crate) fn new(script: Script, change: impl FnOnce(&mut CandleConfig)) -> Self {
        let script = Arc::new(script);
        let (engine, prompter, config) = script.engine(change);
        let (intake, worker) =
            assemble(engine, prompter, Vec::new(), "script".to_owned(), &config, script.clock()).unwrap();
        Self { script, intake, desk: Desk::new(worker), places: Arc::new(Semaphore::new(1000)), n_asked: 0 }
    }

    /// Gives a request this long.
    pub(crate) fn due(&self, mut request: Request, millis: u64) -> Request {
        request.deadline = Some(self.script.now() + Duration::from_millis(millis));
        request
    }

    fn take(&mut self, job: Job) {
        self.n_asked += 1;
        let ticket = Ticket { number: self.n_asked, since: self.script.now() };
        if let Some(arrival) = self.intake.take(job) {
            self.desk.take(&ticket, arrival);
        }
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Asked {
        let (started, begun) = oneshot::channel();
        let (events, received) = mpsc::channel(most_events(request, count(self.desk.worker.engine.context())));
        let place = Arc::clone(&self.places).try_acquire_owned().unwrap();
        let answer = Answer { started: Some(started), events };
        self.take(Job::Generate { request: Box::new(request.clone()), answer, place });
        Asked { n: request.n, started: begun, events: received }
    }

    pub(crate) fn ask_score(&mut self, request: &ScoreRequest) -> oneshot::Receiver<Result<Score, Error>> {
        let (reply, score) = oneshot::channel();
        let place = Arc::clone(&self.places).try_acquire_owned().unwrap();
        self.take(Job::Score { request: request.clone(), reply, place });
        score
    }

    /// Takes a turn. Says whether there was anything to do.
    pub(crate) fn turn(&mut self) -> bool {
        let is_idle = self.desk.runs.is_empty() && self.desk.waiting.is_empty();
        if !is_idle {
            self.desk.turn();
        }
        !is_idle
    }

    /// Takes turns until something is so, at least one, or nothing is left to do.
    pub(crate) fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..MOST_TURNS {
            if !self.turn() || done(self) {
                return;
            }
        }
        panic!("it goes on and on");
    }

    /// Takes turns until nothing is left to do.
    pub(crate) fn run(&mut self) {
        self.until(|_| false);
    }

    /// Asks, and takes turns until everything is answered.
    pub(crate) fn complete(&mut self, request: &Request) -> Result<Completion, Error> {
        let asked = self.ask(request);
        self.run();
        asked.answer()
    }

    /// Returns how many steps were computed.
    pub(crate) fn n_steps(&self) -> usize {
        self.script.steps().len()
    }

    pub(crate) fn speed(&self) -> Speed {
        self.desk.worker.meter.lock().unwrap_or_else(PoisonError::into_inner).speed()
    }
}

impl Asked {
    /// Returns what came since it was last asked for.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.events.try_recv().ok()).map(Result::unwrap).collect()
    }

    /// Returns the answer, of what was not taken from it.
    pub(crate) fn answer(mut self) -> Result<Completion, Error> {
        self.started.try_recv().unwrap_or_else(|_| panic!("it was not begun"))?;
        let whole = collect(self.n, false, &mut self.events).now_or_never();
        whole.unwrap_or_else(|| panic!("it is not answered")).map(|answer| answer.expect("the last event"))
    }

    /// Says whether it was answered, or refused.
    pub(crate) fn is_answered(&self) -> bool {
        self.events.is_closed()
    }
}
