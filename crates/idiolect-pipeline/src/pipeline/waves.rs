//! When which candidates are drawn: all at once, but the first time several are wanted, when nobody knows what that costs.

use std::sync::atomic::Ordering;
use std::time::Duration;

use idiolect_backend::{FinishReason, Request};
use tokio::time::Instant;

use super::plan::Plan;
use super::{Pipeline, finish};
use crate::generate::{Draft, Generated, Planned, Times, Turn, generate};
use crate::pace::Measured;

/// Share of the time that must be left when the first candidate is whole, for others to be drawn.
const WORTH_IT: f64 = 0.1;

/// How much longer than the time there is a reply may be expected to take, and yet be hoped for: those that are cut again and again
/// are expected to take half as much more.
const HOPEFUL: f64 = 1.3;

impl Pipeline {
    /// Draws what is planned.
    ///
    /// Until it was measured how much slower several candidates are than one, the unchanged prompt goes ahead alone, as it would
    /// without recipes, and the others have what time it leaves. With a configured seed all go together: not every backend draws
    /// the same when it is asked twice.
    pub(super) async fn generated(&self, plan: &Plan, times: Times) -> Generated {
        if plan.requests.len() < 2 || !self.pace.goes_ahead() || self.config.sampling.seed.is_some() {
            let now = Instant::now();
            let left = times.until.saturating_duration_since(now);
            let others_until = now + self.pace.together(plan.n_candidates, self.config.sampling.max_tokens, left);
            let mut generated = self.wave(plan, all(&plan.requests), Times { others_until, ..times }).await;
            if generated.is_late {
                let n_drafts = generated.drafts.len();
                generated.drafts = first_alone(generated.drafts);
                let n_left_out = n_drafts - generated.drafts.len();
                if n_left_out > 0 {
                    generated
                        .notes
                        .push(format!("{n_left_out} unfinished candidates left out: no time to look at them"));
                }
            }
            return generated;
        }
        let (ahead, others) = one_ahead(&plan.requests);
        let began = Instant::now();
        let mut generated = self.wave(plan, ahead, times).await;
        let now = Instant::now();
        let left = times.until.saturating_duration_since(now);
        if left >= times.until.saturating_duration_since(began).mul_f64(WORTH_IT) {
            generated.add(self.wave(plan, others, times).await);
        } else if !generated.drafts.is_empty() && generated.drafts.iter().all(is_cut) {
            // Alone it is not whole either: next time there is nothing to spoil.
            self.pace.allow_several();
        }
        generated
    }

    /// Returns until when the unchanged prompt would have time if no others were drawn beside it; now, where it is not going to be whole
    /// by then anyway, or nothing else is drawn.
    pub(super) fn alone_until(&self, plan: &Plan, deadline: Instant, budget: Duration) -> Instant {
        let scoring =
            if self.scores(&plan.mode) { self.reserve.of(1 + plan.quoted.len(), budget) } else { Duration::ZERO };
        let left = budget.saturating_sub(scoring.max(finish(budget)));
        let is_whole = self.pace.one(self.config.sampling.max_tokens).is_none_or(|one| one <= left.mul_f64(HOPEFUL));
        if is_whole && plan.requests.len() > 1 { deadline - (budget - left) } else { Instant::now() }
    }

    async fn wave(&self, plan: &Plan, turns: Vec<Turn>, times: Times) -> Generated {
        let began = Instant::now();
        let generated = generate(&*self.backend, &plan.requests, turns, times, plan.verbatim).await;
        self.measure(&generated, began.elapsed());
        if let Some(one_by_one) = generated.one_by_one {
            self.one_by_one.store(one_by_one, Ordering::Relaxed);
        }
        generated
    }

    fn measure(&self, generated: &Generated, took: Duration) {
        let of = |draft: &Draft| draft.candidate.n_tokens;
        self.pace.measured(Measured {
            n_candidates: generated.drafts.len(),
            took,
            length: generated.drafts.iter().map(of).max().unwrap_or(0),
            is_cut: generated.drafts.iter().any(is_cut),
        });
    }
}

/// Returns one candidate of the first recipe: there is no time left to look at others, and none of them is whole.
fn first_alone(drafts: Vec<Draft>) -> Vec<Draft> {
    let best = |draft: &Draft| (draft.recipe == 0, !is_cut(draft), draft.candidate.text.len());
    drafts.into_iter().max_by_key(best).into_iter().collect()
}

fn is_cut(draft: &Draft) -> bool {
    draft.candidate.finish_reason == FinishReason::Deadline
}

fn all(requests: &[Planned]) -> Vec<Turn> {
    requests.iter().enumerate().map(|(recipe, planned)| Turn { recipe, request: planned.request.clone() }).collect()
}

/// Returns one candidate of the first recipe, or of the first of each backend where all have one, and what else is wanted.
fn one_ahead(requests: &[Planned]) -> (Vec<Turn>, Vec<Turn>) {
    let (mut ahead, mut others): (Vec<Turn>, Vec<Turn>) = Default::default();
    for mut turn in all(requests) {
        // A backend that a recipe chose may be the very one that answers the plain prompt, if that has none of its own.
        let is_other = ahead.first().is_none_or(|first| first.request.prefer.is_some());
        if is_other && ahead.iter().all(|other| other.request.prefer != turn.request.prefer) {
            let n = turn.request.n - 1;
            ahead.push(Turn { request: Request { n: 1, ..turn.request.clone() }, ..turn });
            turn.request.n = n;
            turn.request.sampling.seed = turn.request.sampling.seed.map(|seed| seed.wrapping_add(1));
        }
        if turn.request.n > 0 {
            others.push(turn);
        }
    }
    (ahead, others)
}
