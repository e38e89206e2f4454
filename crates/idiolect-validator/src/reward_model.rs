use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use idiolect_backend::{Backend, Error, ScoreRequest};

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
/// Prompt and reply are one plain text, without a chat template; what of the reply does not fit the model's context behind
/// the prompt is cut off, and a prompt that does not fit gets the lowest reward. Validators use cerebras/btlm-3b-8k-base;
/// another model gives other figures of the same kind.
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
        if prompt.is_empty() {
            // Nothing would say how likely the reply's first token is.
            return Ok(self.rules.lowest);
        }
        let mut request = ScoreRequest::plain(prompt, reply).with_rows().cut_to_context();
        request.prompt_logits = self.rules.wants_prompt();
        match self.backend.score(request).await {
            Ok(score) => {
                let rows = score.rows.unwrap_or_default();
                Ok(self.rules.reward(&score.token_ids, &rows, score.prompt_logits.unwrap_or_default()))
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
