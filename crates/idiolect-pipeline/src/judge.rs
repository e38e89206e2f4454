//! How good candidates are by a reward model, where there is time to ask it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idiolect_uniqueness::quality::Reward;
use idiolect_validator::{Normaliser, RewardModel};
use tokio::time::{Instant, timeout_at};

use crate::reserve::Reserve;

/// Largest share of a reply's time that is kept from generation for this.
const MOST: f64 = 0.25;
/// How many rewards the running mean and deviation remember, as validators' do.
const COUNT_LIMIT: usize = 3000;

/// A reward model and what it said so far.
#[derive(Debug)]
pub(crate) struct Judge {
    model: Arc<dyn RewardModel>,
    normaliser: Mutex<Normaliser>,
    reserve: Reserve,
}

/// Why there are no rewards.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Unjudged {
    NoTime,
    Failed,
}

impl Unjudged {
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::NoTime => "no_time",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Unjudged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTime => "there was no time",
            Self::Failed => "the reward model failed",
        })
    }
}

impl Judge {
    pub(crate) fn new(model: Arc<dyn RewardModel>, per_candidate: Duration) -> Self {
        let normaliser = Mutex::new(Normaliser::new(COUNT_LIMIT));
        Self { model, normaliser, reserve: Reserve::new(per_candidate, MOST) }
    }

    pub(crate) fn name(&self) -> &str {
        self.model.name()
    }

    /// Returns the time to set aside for `n` candidates; none where they would take too much of it.
    pub(crate) fn reserve(&self, n: usize, budget: Duration) -> Duration {
        self.reserve.of_if_enough(n, budget)
    }

    /// Asks the model about replies to a prompt, all or none of them, until a moment.
    pub(crate) async fn rewards(
        &self,
        prompt: &str,
        replies: &[String],
        until: Instant,
    ) -> Result<Vec<Reward>, Unjudged> {
        let started = Instant::now();
        let n = replies.len();
        if !self.reserve.fits(n, until.saturating_duration_since(started)) {
            return Err(Unjudged::NoTime);
        }
        let raw = match timeout_at(until, self.model.scores(prompt, replies)).await {
            Err(_) => {
                self.reserve.given_up(n, started.elapsed());
                return Err(Unjudged::NoTime);
            }
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "candidates not judged");
                return Err(Unjudged::Failed);
            }
            Ok(Ok(raw)) => raw,
        };
        if raw.len() != n {
            tracing::warn!(n, n_scores = raw.len(), "the reward model gave nothing of use");
            return Err(Unjudged::Failed);
        }
        self.reserve.measured(n, started.elapsed());
        // What was not looked at is no part of the mean, and the worst.
        let lowest = self.model.lowest();
        let looked_at = raw.iter().map(|&score| if Some(score) == lowest { f32::NAN } else { score });
        let looked_at: Vec<f32> = looked_at.collect();
        let normalised = self.normaliser.lock().unwrap_or_else(PoisonError::into_inner).normalise(&looked_at);
        let rewards = raw.into_iter().zip(normalised);
        Ok(rewards
            .map(|(raw, normalised)| Reward { raw: Some(raw).filter(|raw| raw.is_finite()), normalised })
            .collect())
    }
}
