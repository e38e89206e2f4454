//! Reward models that are classifiers with one label.

use std::sync::Arc;

use async_trait::async_trait;
use idiolect_backend::{Classifier, ClassifierInput, Error};

use crate::RewardModel;

/// How prompt and reply become what a classifier reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RewardInput {
    /// As a pair: the tokenizer joins them.
    Pair,
    /// As one text.
    Text {
        /// What stands before the prompt.
        before: String,
        /// What stands between prompt and reply.
        between: String,
        /// What stands after the reply.
        after: String,
    },
}

impl RewardInput {
    /// Returns what the validators' `reciprocate` model reads (opentensor/validators 1.2 `reward/reciprocate.py`).
    #[must_use]
    pub fn reciprocate() -> Self {
        let (before, between) = ("<|prompter|>".to_owned(), "</s><|assistant|>".to_owned());
        Self::Text { before, between, after: "</s><|endoftext|>".to_owned() }
    }

    fn of(&self, prompt: &str, reply: &str) -> ClassifierInput {
        match self {
            Self::Pair => ClassifierInput::pair(prompt, reply),
            Self::Text { before, between, after } => {
                ClassifierInput::one([before, prompt, between, reply, after].concat())
            }
        }
    }
}

/// A reward model that is a classifier: the logit of its first label is the raw score.
///
/// Validators use OpenAssistant/reward-model-deberta-v3-large-v2 with pairs under the name `rlhf`, and
/// reciprocate/gpt-j_rm_format-oa with [`RewardInput::reciprocate`] under the name `reciprocate`.
#[derive(Clone, Debug)]
pub struct ClassifierModel {
    name: String,
    classifier: Arc<dyn Classifier>,
    input: RewardInput,
}

impl ClassifierModel {
    /// Makes the reward that a profile weighs under `name`.
    #[must_use]
    pub fn new(name: impl Into<String>, classifier: Arc<dyn Classifier>, input: RewardInput) -> Self {
        Self { name: name.into(), classifier, input }
    }
}

#[async_trait]
impl RewardModel for ClassifierModel {
    fn name(&self) -> &str {
        &self.name
    }

    async fn scores(&self, prompt: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        let inputs: Vec<ClassifierInput> = replies.iter().map(|reply| self.input.of(prompt, reply)).collect();
        let rows = self.classifier.logits(&inputs).await?;
        let malformed = || {
            let context = format!("{} gave {} rows for {} replies", self.classifier.name(), rows.len(), replies.len());
            Error::Internal { context, source: None }
        };
        if rows.len() != replies.len() {
            return Err(malformed());
        }
        rows.iter().map(|row| row.first().copied().ok_or_else(malformed)).collect()
    }
}
