//! When which candidates are drawn: all at once, but the first time several are wanted, when nobody knows what that costs.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idiolect_backend::{FinishReason, Request};
use tokio::time::{Instant, timeout_at};

use super::Pipeline;
use super::plan::Plan;
use crate::generate::{Draft, Generated, Planned, Times, Turn, generate};
use crate::pace::Measured;

/// Share of the time that must be left when the first candidate is whole, for others to be drawn.
const WORTH_IT: f64 = 0.1;

impl Pipeline {
    /// Draws what is planned.
    ///
    /// Until it was measured how much slower several candidates are than one, the unchanged prompt goes ahead alone, as it would
    /// without recipes; the others have what time it leaves. Where nothing is heard of it in half of the time, they go beside it.
    /// With a configured seed all go together: not every backend draws the same when it is asked twice.
    pub(super) async fn generated(&self, plan: &Plan, times: Times) -> Generated {
        let has_begun = AtomicBool::new(false);
        if plan.requests.len() < 2 || !self.pace.goes_ahead() || self.config.sampling.seed.is_some() {
            return self.wave(plan, all(&plan.requests), times, &has_begun).await;
        }
        let (ahead, others) = one_ahead(&plan.requests);
        let began = Instant::now();
        let budget = times.until.saturating_duration_since(began);
        let mut first = pin!(self.wave(plan, ahead, times, &has_begun));
        let of_others = AtomicBool::new(false);
        let mut generated = match timeout_at(began + budget / 2, &mut first).await {
            Ok(generated) => generated,
            Err(_) if has_begun.load(Ordering::Relaxed) => first.await,
            Err(_) => {
                let others = self.wave(plan, others, times, &of_others);
                let (mut generated, others) = tokio::join!(first, others);
                generated.add(others);
                self.pace.allow_several();
                return generated;
            }
        };
        let left = times.until.saturating_duration_since(Instant::now());
        if left >= budget.mul_f64(WORTH_IT) {
            generated.add(self.wave(plan, others, times, &of_others).await);
            self.pace.allow_several();
        } else if generated.drafts.iter().all(is_cut) {
            // Alone it is not whole either: next time there is nothing to spoil.
            self.pace.allow_several();
        }
        generated
    }

    async fn wave(&self, plan: &Plan, turns: Vec<Turn>, times: Times, has_begun: &AtomicBool) -> Generated {
        let began = Instant::now();
        let generated = generate(&*self.backend, &plan.requests, turns, times, plan.verbatim, has_begun).await;
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

fn is_cut(draft: &Draft) -> bool {
    draft.candidate.finish_reason == FinishReason::Deadline
}

fn all(requests: &[Planned]) -> Vec<Turn> {
    requests.iter().enumerate().map(|(recipe, planned)| Turn { recipe, request: planned.request.clone() }).collect()
}

/// Returns one candidate of the first recipe of each backend, and what else is wanted.
fn one_ahead(requests: &[Planned]) -> (Vec<Turn>, Vec<Turn>) {
    let (mut ahead, mut others): (Vec<Turn>, Vec<Turn>) = Default::default();
    for mut turn in all(requests) {
        if ahead.iter().all(|other| other.request.prefer != turn.request.prefer) {
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
