//! Prompts in other words, for recipes that want them.

use std::time::Duration;

use futures_util::future::join_all;
use idiolect_mutation::policy::Draw;
use idiolect_mutation::{Library, ParaphraseError, Recipe};
use tokio::time::Instant;

use super::{Pipeline, last_asked};
use crate::ask::Job;
use crate::metrics;

/// Largest share of the time left that goes into it.
const MOST: f64 = 1.0 / 6.0;
/// How many times as long as a plain reply is likely to take has to be left after it.
const SAFETY: f64 = 1.25;

impl Pipeline {
    /// Returns how much of the time left may go into saying the prompt in other words: none before it is known how long a reply takes, and
    /// no more than a plain reply can spare.
    pub(super) fn rewording(&self, library: &Library, left: Duration) -> Duration {
        if self.paraphraser.is_none() || !library.allow_paraphrase() {
            return Duration::ZERO;
        }
        let most = left.mul_f64(MOST);
        if self.config.sampling.seed.is_some() {
            // What is drawn must not depend on what was asked before.
            return most;
        }
        let Some(one) = self.pace.one(self.config.sampling.max_tokens) else { return Duration::ZERO };
        most.min(left.saturating_sub(self.set_aside(left)).saturating_sub(one.mul_f64(SAFETY)))
    }

    /// Has the prompt said in other words for the recipes that want it, side by side, within some time. Those that go without are left
    /// out: they would change nothing, or not what they say.
    pub(super) async fn reworded(
        &self,
        draws: Vec<(Recipe, Option<Draw>)>,
        job: &Job,
        seed: u64,
        within: Duration,
    ) -> Vec<(Recipe, Option<Draw>)> {
        if !draws.iter().any(|(recipe, _)| recipe.wants_paraphrase()) {
            return draws;
        }
        let text = last_asked(&job.messages);
        let until = Instant::now() + within;
        let reworded = (0..).zip(draws).map(|(nth, (mut recipe, draw))| async move {
            if recipe.wants_paraphrase() {
                recipe.set_paraphrase(&self.in_other_words(text, seed.wrapping_add(nth), until).await?);
            }
            Some((recipe, draw))
        });
        join_all(reworded).await.into_iter().flatten().collect()
    }

    async fn in_other_words(&self, text: &str, seed: u64, until: Instant) -> Option<std::sync::Arc<str>> {
        let paraphraser = self.paraphraser.as_ref()?;
        if let Some(known) = paraphraser.known(text, seed) {
            metrics::paraphrase("known");
            return Some(known);
        }
        if until <= Instant::now() {
            metrics::paraphrase("no_time");
            return None;
        }
        let said = paraphraser.paraphrase(text, seed, Some(until.into_std()));
        let outcome = match tokio::time::timeout_at(until, said).await {
            Ok(Ok(said)) => {
                metrics::paraphrase("said");
                return Some(said);
            }
            Err(_) => "no_time",
            Ok(Err(error)) => {
                // Its texts are the caller's: what it says of them are words and numbers only.
                tracing::debug!(error = &error as &dyn std::error::Error, "a recipe goes without other words");
                match error {
                    ParaphraseError::Length { .. } => "length",
                    ParaphraseError::OverBudget { .. } => "over_budget",
                    ParaphraseError::Unfaithful(_) => "refused",
                    _ => "failed",
                }
            }
        };
        metrics::paraphrase(outcome);
        None
    }
}
