//! What a backend can do, and the scoring of given texts.

use crate::TokenLogprob;

/// How far a backend can score a given text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ScoreSupport {
    /// [`Backend::score`](crate::Backend::score) fails with [`Error::Unsupported`](crate::Error::Unsupported).
    #[default]
    None,
    /// The log-probability of each token of the text.
    Tokens,
    /// The same, and the whole row of logits behind each.
    Rows,
}

/// Plain facts about a backend. They don't change while it lives.
///
/// The default is the most cautious answer, so that a backend written against an older version of this crate keeps
/// its meaning when a field is added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The model's name.
    pub model: String,
    /// Tokens that prompt and candidate may have together; `None` when unknown.
    pub context_tokens: Option<u32>,
    /// The same seed gives the same candidates.
    pub seed: bool,
    /// Log-probabilities can be asked for.
    pub logprobs: bool,
    /// All `n` candidates come from one pass over the prompt. Without it `n` costs `n` times as much.
    pub batched_candidates: bool,
    /// How far given texts can be scored.
    pub score: ScoreSupport,
    /// Every token costs the operator money.
    pub paid: bool,
    /// Family of the model ("llama", "gpt", …), where known: replies of one family are alike.
    pub family: Option<String>,
}

impl Capabilities {
    /// Makes the most cautious capabilities for a named model.
    pub fn new(model: impl Into<String>) -> Self {
        Self { model: model.into(), ..Self::default() }
    }
}

/// The likelihood of a given text under a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// One entry for each token of the completion; `top` is empty.
    pub tokens: Vec<TokenLogprob>,
    /// Token ids of the completion, in the model's vocabulary.
    pub token_ids: Vec<u32>,
    /// For each token of the completion the logits it was drawn from, length = vocabulary; only with [`ScoreSupport::Rows`].
    pub rows: Option<Vec<Vec<f32>>>,
}

impl Score {
    /// Returns the mean log-probability a token, or `None` for an empty completion.
    #[must_use]
    pub fn mean_logprob(&self) -> Option<f32> {
        if self.tokens.is_empty() {
            return None;
        }
        let sum: f64 = self.tokens.iter().map(|t| f64::from(t.logprob)).sum();
        #[expect(clippy::cast_possible_truncation, reason = "a mean of f32 values fits f32")]
        Some((sum / self.tokens.len() as f64) as f32)
    }
}
