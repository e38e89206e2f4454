//! The scoring of given texts.

use std::fmt;

use crate::{Capabilities, Error, Message, Request, ScoreSupport, TokenLogprob};

/// A text whose likelihood is wanted.
///
/// ```
/// use idiolect_backend::{Message, ScoreRequest};
///
/// let request = ScoreRequest::new([Message::user("Say hello.")], "hello");
/// assert!(!request.rows, "log-probabilities only");
/// assert!(request.with_rows().rows);
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScoreRequest {
    /// The conversation that the text is the reply to, oldest message first.
    pub messages: Vec<Message>,
    /// The text, as the assistant's reply.
    pub completion: String,
    /// Whether the row of logits behind each token is wanted, too. Default false: rows take memory for each token and
    /// each entry of the vocabulary, so that a backend may refuse with them what it would score without.
    pub rows: bool,
}

/// Texts stay out of logs: only their lengths are shown.
impl fmt::Debug for ScoreRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScoreRequest")
            .field("messages", &self.messages)
            .field("completion", &format_args!("{} bytes", self.completion.len()))
            .field("rows", &self.rows)
            .finish()
    }
}

impl ScoreRequest {
    /// Asks for the log-probability of `completion`, given as the assistant's reply to `messages`.
    pub fn new(messages: impl Into<Vec<Message>>, completion: impl Into<String>) -> Self {
        Self { messages: messages.into(), completion: completion.into(), rows: false }
    }

    /// Asks for the rows of logits, too.
    #[must_use]
    pub const fn with_rows(mut self) -> Self {
        self.rows = true;
        self
    }

    /// Checks what every backend relies on: at least one message that is not empty.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] with the reason.
    pub fn validate(&self) -> Result<(), Error> {
        Request::new(self.messages.clone()).validate()
    }

    /// Checks whether a backend can do what is asked.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the backend and what it lacks.
    pub fn check_support(&self, backend: &str, capabilities: &Capabilities) -> Result<(), Error> {
        let what = match capabilities.score {
            ScoreSupport::None => "scoring",
            ScoreSupport::Tokens if self.rows => "scoring with rows of logits",
            ScoreSupport::Tokens | ScoreSupport::Rows => return Ok(()),
        };
        Err(Error::Unsupported { backend: backend.to_owned(), what: what.to_owned() })
    }
}

/// The likelihood of a given text under a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// One entry for each token of the completion; `top` is empty.
    pub tokens: Vec<TokenLogprob>,
    /// Token ids of the completion, in the model's vocabulary.
    pub token_ids: Vec<u32>,
    /// For each token of the completion the logits it was drawn from, length = vocabulary; there if and only if
    /// [`ScoreRequest::rows`] asked for them.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backend_lacks_is_named() {
        let plain = ScoreRequest::new([Message::user("x")], "secret");
        let mut capabilities = Capabilities::new("m");
        let lacks = |request: &ScoreRequest, capabilities: &Capabilities| {
            request.check_support("b", capabilities).map_err(|error| error.to_string())
        };
        assert_eq!(lacks(&plain, &capabilities), Err("b does not support scoring".to_owned()));
        capabilities.score = ScoreSupport::Tokens;
        assert_eq!(lacks(&plain, &capabilities), Ok(()));
        let rows = plain.with_rows();
        assert_eq!(lacks(&rows, &capabilities), Err("b does not support scoring with rows of logits".to_owned()));
        capabilities.score = ScoreSupport::Rows;
        assert_eq!(lacks(&rows, &capabilities), Ok(()));
        assert!(!format!("{rows:?}").contains("secret"));
        assert!(ScoreRequest::new([], "x").validate().is_err());
    }
}
