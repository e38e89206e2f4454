//! The thread that owns the engine: candidates of all requests grow side by side, one token a step.
//!
//! A step computes one token for each candidate that grows, and beside them the next stretch of the prompts that wait for
//! their turn, which is short enough that nobody who grows is held up for long. Requests join and leave between steps.
//! Whose deadline is nearest comes first: into the batch, and with its prompt. Who has none comes when [`PATIENCE`] would be
//! over, so that those with deadlines cannot keep it waiting for ever.
//!
//! Memory is set aside before a request is let in, for what it can come to need: all that it asks for, or what it has time
//! for until its deadline, and more on the way where it turns out to have time for more ([`crate::forecast`]). What does not
//! fit waits in line, and what is behind it waits, too: many small requests cannot keep a large one out, and neither can one
//! that has time for more than was expected: it is given no memory that somebody of an earlier rank waits for.

mod admission;
mod deadline;
mod plan;
mod run;
mod step;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::clock::Clock;
use crate::engine::Engine;
use crate::intake::{Arrival, Ticket};
use crate::metrics::Metrics;
use crate::prompt::Prompter;
use crate::speed::Meter;

use run::{Rank, Run};

/// What requests without a deadline are treated as if they had, where it is asked whose turn is first.
const PATIENCE: Duration = Duration::from_secs(60);

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
    pub(crate) clock: Clock,
}

/// What lives as long as the worker runs.
struct Desk<E> {
    worker: Worker<E>,
    metrics: Metrics,
    waiting: Vec<(Rank, Arrival)>,
    runs: Vec<Run>,
    /// Mean length of replies that ended of themselves.
    usual: Option<f64>,
}

impl<E: Engine> Worker<E> {
    /// Answers what arrives until no one can send any more.
    pub(crate) fn run(self, mut arrivals: mpsc::Receiver<(Ticket, Arrival)>) {
        let mut desk = Desk::new(self);
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
    fn new(worker: Worker<E>) -> Self {
        let metrics = Metrics::new(&worker.name);
        Self { worker, metrics, waiting: Vec::new(), runs: Vec::new(), usual: None }
    }

    /// Does the next of what there is to do.
    fn turn(&mut self) {
        self.dismiss();
        let lacks = self.extend();
        self.admit(lacks);
        let plan = self.plan();
        // When somebody leaves, what is to be done is another thing.
        if self.mind_deadlines(&plan) {
            return;
        }
        if plan.parts.is_empty() {
            self.make_way();
        } else {
            self.step(&plan);
        }
    }

    /// Takes in what arrived; waits for something where there is nothing to do. Returns false when all is done for good.
    fn receive(&mut self, arrivals: &mut mpsc::Receiver<(Ticket, Arrival)>) -> bool {
        let idle = self.runs.is_empty() && self.waiting.is_empty();
        if idle {
            self.report();
            match arrivals.blocking_recv() {
                Some((ticket, arrival)) => self.take(&ticket, arrival),
                None => return false,
            }
        }
        loop {
            match arrivals.try_recv() {
                Ok((ticket, arrival)) => self.take(&ticket, arrival),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !(self.runs.is_empty() && self.waiting.is_empty()),
            }
        }
    }

    fn take(&mut self, ticket: &Ticket, arrival: Arrival) {
        let due = arrival.deadline().unwrap_or(ticket.since + PATIENCE);
        let rank = Rank { due, number: ticket.number };
        let place = self.waiting.partition_point(|(other, _)| *other < rank);
        self.waiting.insert(place, (rank, arrival));
    }

    fn report(&self) {
        let candidates = self.runs.iter().map(Run::n_growing).sum();
        let reserved = self.reserved().saturating_mul(self.worker.engine.portion().bytes);
        self.metrics.busy(candidates, self.waiting.len(), reserved, self.worker.engine.kept_tokens());
    }

    /// Ends a run: its sequences and its memory are free.
    fn end(&mut self, index: usize) -> Run {
        let mut run = self.runs.remove(index);
        run.release(&mut self.worker.engine);
        let speed = self.with_meter(|meter| meter.speed());
        self.metrics.speed(&speed);
        run
    }
}
