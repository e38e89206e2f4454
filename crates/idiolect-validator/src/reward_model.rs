use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use idiolect_backend::{Backend, Error, Score, ScoreRequest};

use crate::dpo::{DpoRules, Repetition};

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

    /// Returns what replies get that were not looked at, where there is such a score.
    fn lowest(&self) -> Option<f32> {
        None
    }
}

/// So many replies are scored at a time.
const SIDE_BY_SIDE: usize = 8;

/// The `dpo` reward by a backend that scores texts with their logits. It is asked for within a tokio runtime.
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

    fn request(prompt: &str, reply: &str) -> ScoreRequest {
        ScoreRequest::plain(prompt, reply).cut_to_context()
    }

    /// Returns a reply's reward where the log-probabilities of its tokens are enough.
    async fn by_logprobs(&self, prompt: &str, reply: &str) -> Result<Option<f32>, Error> {
        // Nothing would say how likely the first token is of a reply to an empty prompt.
        if self.rules.too_short(reply) || prompt.is_empty() {
            return Ok(Some(self.rules.lowest));
        }
        if matches!(self.rules.repetition, Repetition::Scaled { .. }) {
            return Ok(None);
        }
        let score = self.backend.score(Self::request(prompt, reply)).await?;
        let is_enough = !self.rules.wants_rows(&score.token_ids);
        let logprobs = score.tokens.iter().map(|token| token.logprob);
        Ok(is_enough.then(|| self.rules.reward_of_logprobs(logprobs)))
    }

    /// Returns a reply's reward where a rule changes logits before the softmax.
    async fn by_logits(&self, prompt: &str, reply: &str) -> Result<f32, Error> {
        let mut request = Self::request(prompt, reply).with_own_logits();
        request.prompt_logits = self.rules.wants_prompt();
        let Score { token_ids, own_logits, prompt_logits, .. } = self.backend.score(request).await?;
        let (rules, before) = (self.rules, prompt_logits.unwrap_or_default());
        // Of a long reply too long for a thread that others wait for.
        let reward = tokio::task::spawn_blocking(move || {
            own_logits.map_or(rules.lowest, |own| rules.reward_of_own(&token_ids, &own, before))
        });
        reward.await.map_err(|error| Error::internal("the reward broke off", error))
    }

    /// Gives the lowest reward where a prompt leaves no room for the reply.
    fn or_lowest(&self, result: Result<Option<f32>, Error>) -> Result<Option<f32>, Error> {
        match result {
            Err(Error::ContextTooLong { .. }) => Ok(Some(self.rules.lowest)),
            result => result,
        }
    }
}

#[async_trait]
impl RewardModel for DpoModel {
    fn name(&self) -> &str {
        "dpo"
    }

    async fn scores(&self, prompt: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        // Logits take memory, and the prompt's its being computed anew. Most replies need neither, and what needs neither
        // is computed together.
        let mut found = Vec::with_capacity(replies.len());
        for some in replies.chunks(SIDE_BY_SIDE) {
            let by_logprobs = some.iter().map(|reply| self.by_logprobs(prompt, reply));
            found.extend(futures_util::future::join_all(by_logprobs).await);
        }
        let mut scores = Vec::with_capacity(replies.len());
        for (found, reply) in found.into_iter().zip(replies) {
            let mut score = self.or_lowest(found)?;
            if score.is_none() {
                score = self.or_lowest(self.by_logits(prompt, reply).await.map(Some))?;
            }
            scores.push(score.unwrap_or(self.rules.lowest));
        }
        Ok(scores)
    }

    fn lowest(&self) -> Option<f32> {
        Some(self.rules.lowest)
    }
}
