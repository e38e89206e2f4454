use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use idiolect_backend::{Backend, Error, Message, ScoreRequest};

use crate::dpo::DpoRules;

/// A model that says how good replies to a prompt are.
///
/// One raw score for each reply, in order, of any range: the [`Normaliser`](crate::Normaliser) makes them comparable. A
/// reply's score does not depend on the others.
#[async_trait]
pub trait RewardModel: Debug + Send + Sync + 'static {
    /// Returns the name under which a profile weighs it: `dpo`, `rlhf`, `reciprocate`.
    fn name(&self) -> &str;

    /// Scores replies.
    async fn scores(&self, prompt: &str, replies: &[String]) -> Result<Vec<f32>, Error>;
}

/// The `dpo` reward by a backend that scores texts with whole rows of logits.
///
/// Validators use cerebras/btlm-3b-8k-base, with prompt and reply as one plain text; a backend that puts messages into a
/// chat template, or another model, gives other figures of the same kind. Backends return no rows of the prompt, so the
/// floor of [`Repetition::NoRepeatNgram`](crate::dpo::Repetition::NoRepeatNgram) comes from the reply's rows alone. A reply
/// that does not fit the context after the prompt gets the lowest reward, where validators cut it.
#[derive(Clone, Debug)]
pub struct DpoModel {
    backend: Arc<dyn Backend>,
    rules: DpoRules,
}

impl DpoModel {
    /// Makes the reward of a backend and a profile's rules.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, rules: DpoRules) -> Self {
        Self { backend, rules }
    }

    async fn score(&self, prompt: &str, reply: &str) -> Result<f32, Error> {
        if self.rules.too_short(reply) {
            return Ok(self.rules.lowest);
        }
        let request = ScoreRequest::new([Message::user(prompt)], reply).with_rows();
        match self.backend.score(request).await {
            Ok(score) => {
                let rows = score.rows.unwrap_or_default();
                Ok(self.rules.reward(&score.token_ids, &rows, &[]))
            }
            Err(Error::ContextTooLong { .. }) => Ok(self.rules.lowest),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl RewardModel for DpoModel {
    fn name(&self) -> &str {
        "dpo"
    }

    async fn scores(&self, prompt: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        let mut scores = Vec::with_capacity(replies.len());
        for reply in replies {
            scores.push(self.score(prompt, reply).await?);
        }
        Ok(scores)
    }
}
