//! Who is let in, with how much memory.

use idiolect_backend::{Error, Moments, OwnLogits, Usage};

use super::Desk;
use super::run::{Failure, Growth, Judgement, Progress, Rank, Run, What};
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

    /// Sets more memory aside for candidates that become longer than was expected. Returns who is the first that lacks some:
    /// nobody behind it is let in before it has that.
    ///
    /// Whoever waits to be let in and comes before a candidate has the better claim on what is free.
    pub(super) fn extend(&mut self) -> Option<Rank> {
        let now = self.worker.clock.now();
        let (mut lacks, mut index) = (None, 0);
        while index < self.runs.len() {
            let (others, rank) = (self.n_beside(index), self.runs[index].rank);
            index += 1;
            let at = index - 1;
            let What::Generate(growth) = &self.runs[at].what else { continue };
            if growth.growing.is_empty() {
                continue;
            }
            let (drawn, length, n) = (growth.drawn(), growth.length, growth.growing.len());
            let more = self.forecast(0, others, |forecast| forecast.more(drawn, length, n, &growth.wish(now)));
            let Some(more) = more else { continue };
            let (portion, prompt) = (self.worker.engine.portion(), growth.job.prompt.len());
            let others = self.reserved() - self.runs[at].reserved();
            let free = self.worker.portions.saturating_sub(others).saturating_sub(self.claimed_before(rank));
            let longer = more.min(longest(portion, prompt, n, free));
            if longer < more {
                lacks = lacks.or(Some(rank));
            }
            if longer <= length {
                continue;
            }
            let What::Generate(growth) = &mut self.runs[at].what else { continue };
            let mut seqs = growth.growing.iter().map(|candidate| candidate.seq);
            if let Err(error) = seqs.try_for_each(|seq| self.worker.engine.allow(seq, longer)) {
                self.fail(at, Failure::Error(Error::internal("the engine failed", error)));
                // Those behind it move up.
                index = at;
                continue;
            }
            growth.length = longer;
            growth.cost = Cost::new(portion, prompt, longer);
        }
        lacks
    }

    /// Returns the portions that those need who wait to be let in and come before a rank.
    fn claimed_before(&self, rank: Rank) -> u64 {
        let before = self.waiting.iter().take_while(|(other, _)| *other < rank);
        before
            .map(|(_, arrival)| self.needs(arrival))
            .fold(0, |sum, (share, cost)| sum.saturating_add(cost.of(share.n)))
    }

    /// Chooses what a request is given when it is let in, and what that takes.
    fn needs(&self, arrival: &Arrival) -> (Share, Cost) {
        match arrival {
            Arrival::Generate(job) => {
                let share = self.share(job, job.request.n);
                (share, Cost::new(self.worker.engine.portion(), job.prompt.len(), share.length))
            }
            Arrival::Score(job) => (Share { n: 1, expected: 0, length: 0 }, job.cost),
        }
    }

    /// Lets in those that come first, as long as they fit; nobody behind one who lacks memory.
    pub(super) fn admit(&mut self, lacks: Option<Rank>) {
        while let Some((rank, first)) = self.waiting.first() {
            if lacks.is_some_and(|lacks| *rank > lacks) {
                return;
            }
            let places: usize = self.runs.iter().map(Run::n_places).sum();
            let (share, cost) = self.needs(first);
            let fits = self.reserved().saturating_add(cost.of(share.n)) <= self.worker.portions
                && places + share.n <= self.worker.max_batch;
            if !fits && !self.runs.is_empty() {
                return;
            }
            let (rank, arrival) = self.waiting.remove(0);
            let what = match arrival {
                Arrival::Generate(mut job) => {
                    job.place = None;
                    let later = self.later(job.request.n, share.n);
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
                        first: 0,
                        n: share.n,
                        later,
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
                    let own = job.own_logits.then(|| OwnLogits::new(&job.ids));
                    What::Score(Box::new(Judgement {
                        job,
                        progress: Progress::Waits,
                        rows: Vec::new(),
                        own,
                        logprobs: Vec::new(),
                        before: Moments::default(),
                        n_rows: 0,
                    }))
                }
            };
            let place = self.runs.partition_point(|other| other.rank < rank);
            self.runs.insert(place, Run { what, rank });
        }
    }

    /// Chooses what a request of which `n` candidates are still to be drawn is given when it comes next.
    pub(super) fn share(&self, job: &Generate, n: usize) -> Share {
        let ahead = self.runs.iter().map(Run::prompt_left).sum();
        let others = self.runs.iter().map(Run::n_to_grow).sum();
        let (wish, portion) =
            (job.wish(n.min(self.worker.max_batch), self.worker.clock.now()), self.worker.engine.portion());
        self.forecast(ahead, others, |forecast| forecast.share_of(&wish, portion, self.worker.portions))
    }

    /// Returns how many of `n` candidates are begun when the first `begun` have ended. There is time for no more where there
    /// was none for as many as may grow side by side.
    pub(super) fn later(&self, n: usize, begun: usize) -> usize {
        let later = if begun == n.min(self.worker.max_batch) { n - begun } else { 0 };
        self.metrics.cut("start", n - begun - later);
        later
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
