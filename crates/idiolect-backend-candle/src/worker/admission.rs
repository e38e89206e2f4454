//! Who is let in, with how much memory.

use idiolect_backend::{Error, Usage};

use super::Desk;
use super::run::{Failure, Growth, Judgement, Progress, Run, What};
use crate::cost::{Cost, longest};
use crate::engine::Engine;
use crate::forecast::{Forecast, Share};
use crate::intake::{Arrival, Generate};
use crate::prompt::count;
use crate::speed::Meter;

impl<E: Engine> Desk<E> {
    pub(super) fn reserved(&self) -> u64 {
        self.runs.iter().map(Run::reserved).sum()
    }

    /// Sends away those that nobody waits for, and those whose time was over before their turn came.
    pub(super) fn dismiss(&mut self) {
        let now = self.worker.clock.now();
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

    /// Sets more memory aside for candidates that become longer than was expected. Returns whether all have what they need:
    /// they come before those that are not in yet.
    pub(super) fn extend(&mut self) -> bool {
        let now = self.worker.clock.now();
        let mut enough = true;
        for index in 0..self.runs.len() {
            let others = self.n_beside(index);
            let What::Generate(growth) = &self.runs[index].what else { continue };
            if growth.growing.is_empty() {
                continue;
            }
            let (drawn, length, n) = (growth.drawn(), growth.length, growth.growing.len());
            let more = self.forecast(0, others, |forecast| forecast.more(drawn, length, n, &growth.wish(now)));
            let Some(more) = more else { continue };
            let (portion, prompt) = (self.worker.engine.portion(), growth.job.prompt.len());
            let own = self.runs[index].reserved();
            let free = self.worker.portions.saturating_sub(self.reserved()).saturating_add(own);
            let longer = more.min(longest(portion, prompt, n, free));
            enough &= longer >= more;
            if longer <= length {
                continue;
            }
            let What::Generate(growth) = &mut self.runs[index].what else { continue };
            let mut seqs = growth.growing.iter().map(|candidate| candidate.seq);
            if let Err(error) = seqs.try_for_each(|seq| self.worker.engine.allow(seq, longer)) {
                self.fail(index, Failure::Error(Error::internal("the engine failed", error)));
                // Those behind it move up, and are looked at before the next step.
                return false;
            }
            growth.length = longer;
            growth.cost = Cost::new(portion, prompt, longer);
        }
        enough
    }

    /// Lets in those that come first, as long as they fit.
    pub(super) fn admit(&mut self) {
        while let Some((_, first)) = self.waiting.first() {
            let places: usize = self.runs.iter().map(Run::n_places).sum();
            let (share, cost) = match first {
                Arrival::Generate(job) => {
                    let share = self.share(job);
                    (share, Cost::new(self.worker.engine.portion(), job.prompt.len(), share.length))
                }
                Arrival::Score(job) => (Share { n: 1, expected: 0, length: 0 }, job.cost),
            };
            let fits = self.reserved().saturating_add(cost.of(share.n)) <= self.worker.portions
                && places + share.n <= self.worker.max_batch;
            if !fits && !self.runs.is_empty() {
                return;
            }
            let (rank, arrival) = self.waiting.remove(0);
            let what = match arrival {
                Arrival::Generate(mut job) => {
                    job.place = None;
                    self.metrics.cut("start", job.request.n - share.n);
                    if job.request.deadline.is_some() {
                        self.metrics.planned(share.length);
                        let (asked_n, n, asked_length) = (job.request.n, share.n, job.room);
                        let Share { expected, length, .. } = share;
                        tracing::debug!(asked_n, n, asked_length, expected, length, "planned for a deadline");
                    }
                    let usage = Usage {
                        prompt_tokens: count(job.prompt.len()),
                        trimmed_tokens: job.trimmed,
                        ..Usage::default()
                    };
                    What::Generate(Box::new(Growth {
                        job,
                        n: share.n,
                        length: share.length,
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
            self.runs.insert(place, Run { what, rank });
        }
    }

    /// Chooses what a request that comes next is given.
    fn share(&self, job: &Generate) -> Share {
        let ahead = self.runs.iter().map(Run::prompt_left).sum();
        let others = self.runs.iter().map(Run::n_to_grow).sum();
        let (wish, portion) = (job.wish(job.request.n, self.worker.clock.now()), self.worker.engine.portion());
        self.forecast(ahead, others, |forecast| forecast.share_of(&wish, portion, self.worker.portions))
    }

    /// Counts the candidates that grow beside those of a run.
    pub(super) fn n_beside(&self, index: usize) -> usize {
        let others = self.runs.iter().enumerate().filter(|(other, _)| *other != index);
        others.map(|(_, run)| run.n_growing()).sum()
    }

    /// Asks how things will go.
    pub(super) fn forecast<T>(&self, ahead: usize, others: usize, ask: impl FnOnce(&Forecast<'_>) -> T) -> T {
        self.with_meter(|meter| ask(&Forecast { meter, ahead, others, usual: self.usual }))
    }

    pub(super) fn with_meter<T>(&self, ask: impl FnOnce(&mut Meter) -> T) -> T {
        ask(&mut self.worker.meter.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
