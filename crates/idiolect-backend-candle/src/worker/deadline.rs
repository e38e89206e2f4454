//! What is done so that answers come before their deadlines.

use std::time::Duration;

use idiolect_backend::{Error, FinishReason};

use super::Desk;
use super::plan::Plan;
use super::run::What;
use crate::candidate::Candidate;
use crate::engine::Engine;
use crate::forecast::FEWEST;

/// Tokens that a candidate has before it is compared with others, and between two comparisons.
const COMPARE: usize = 8;

impl<E: Engine> Desk<E> {
    /// Ends those for whom the planned step would come too late, and gives up candidates where the others can then end in
    /// time. Returns whether anything changed.
    pub(super) fn mind_deadlines(&mut self, plan: &Plan) -> bool {
        let now = self.worker.clock.now();
        let mut changed = false;
        for index in (0..self.runs.len()).rev() {
            let Some(deadline) = self.runs[index].deadline() else { continue };
            let What::Generate(growth) = &self.runs[index].what else { continue };
            let growing = !growth.growing.is_empty();
            let last = growth.last_step;
            let step = self.with_meter(|meter| meter.step(plan.prompt_tokens, plan.candidates));
            let step = step.or(last).unwrap_or_default();
            if now + if growing { step } else { Duration::ZERO } >= deadline {
                self.cut(index);
                changed = true;
            } else if growing && growth.may_grow() {
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
        growth.later = 0;
        let all = growth.take_worst(0);
        if all.is_empty() {
            // Those that would have come next never began.
            return self.close(index);
        }
        self.give_up(index, all, "end");
    }

    /// Gives up the worst candidates of a run when all of them would not end in time, and fewer would. Returns whether it did.
    fn give_up_worst(&mut self, index: usize, left: Duration, candidates: usize) -> bool {
        let What::Generate(growth) = &self.runs[index].what else { return false };
        let (drawn, n) = (growth.drawn(), growth.growing.len());
        if n <= FEWEST || drawn == 0 || drawn % COMPARE != 0 {
            return false;
        }
        let room = growth.job.room;
        let kept = self.forecast(0, candidates - n, |forecast| forecast.kept(n, drawn, room, left));
        let Some(kept) = kept else { return false };
        let What::Generate(growth) = &mut self.runs[index].what else { return false };
        let worst = growth.take_worst(kept);
        self.give_up(index, worst, "worst");
        true
    }

    /// Ends candidates before they are done; what they have is part of the answer.
    fn give_up(&mut self, index: usize, candidates: Vec<Candidate>, when: &'static str) {
        self.metrics.cut(when, candidates.len());
        let ended = candidates.into_iter().map(|candidate| (candidate, FinishReason::Deadline)).collect();
        let outcome = self.finish(index, ended);
        self.conclude(index, outcome);
    }

    /// Gives up the worst candidate of whoever comes last, where all wait for memory that nobody else will free.
    pub(super) fn make_way(&mut self) {
        let waits = |what: &What| matches!(what, What::Generate(growth) if !growth.may_grow());
        let Some(index) = self.runs.iter().rposition(|run| waits(&run.what)) else { return };
        let What::Generate(growth) = &mut self.runs[index].what else { return };
        let worst = growth.take_worst(growth.growing.len().saturating_sub(1));
        self.give_up(index, worst, "memory");
    }
}
