//! The scoring of given texts.

use std::fmt;

use crate::{Capabilities, Error, Message, OwnLogits, Request, ScoreSupport, TokenLogprob};

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
    /// Whether what counts of those rows for the text's own tokens is wanted, which takes far less memory. Default false.
    pub own_logits: bool,
    /// A plain text that the text follows, without any chat template and in place of `messages`, of which there are none
    /// then. Both are made tokens together; those of the text begin after as many as the plain text alone has.
    pub plain: Option<String>,
    /// Whether a text that does not fit the context is cut, rather than refused. Default false.
    pub cut: bool,
    /// Whether the moments of all logits before the text are wanted, too. Default false: they have to be computed, where
    /// otherwise a cache may know what comes before the text.
    pub prompt_logits: bool,
}

/// Texts stay out of logs: only their lengths are shown.
impl fmt::Debug for ScoreRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScoreRequest")
            .field("messages", &self.messages)
            .field("completion", &format_args!("{} bytes", self.completion.len()))
            .field("rows", &self.rows)
            .field("own_logits", &self.own_logits)
            .field("plain", &self.plain.as_ref().map(|plain| format!("{} bytes", plain.len())))
            .field("cut", &self.cut)
            .field("prompt_logits", &self.prompt_logits)
            .finish()
    }
}

impl ScoreRequest {
    /// Asks for the log-probability of `completion`, given as the assistant's reply to `messages`.
    pub fn new(messages: impl Into<Vec<Message>>, completion: impl Into<String>) -> Self {
        let (messages, completion) = (messages.into(), completion.into());
        Self { messages, completion, rows: false, own_logits: false, plain: None, cut: false, prompt_logits: false }
    }

    /// Asks for the log-probability of `completion` as the continuation of a plain text, as language models are trained on
    /// it: without a chat template. Only backends with [`ScoreSupport::Rows`] do that.
    pub fn plain(before: impl Into<String>, completion: impl Into<String>) -> Self {
        Self { plain: Some(before.into()), ..Self::new([], completion) }
    }

    /// Asks for as much of the text as the context has room for, where it has not for all.
    #[must_use]
    pub const fn cut_to_context(mut self) -> Self {
        self.cut = true;
        self
    }

    /// Asks for the moments of all logits before the text, too.
    #[must_use]
    pub const fn with_prompt_logits(mut self) -> Self {
        self.prompt_logits = true;
        self
    }

    /// Asks for the rows of logits, too.
    #[must_use]
    pub const fn with_rows(mut self) -> Self {
        self.rows = true;
        self
    }

    /// Asks for the logits of the text's own tokens, too.
    #[must_use]
    pub const fn with_own_logits(mut self) -> Self {
        self.own_logits = true;
        self
    }

    /// Checks what every backend relies on: at least one message that is not empty, or a plain text that is not and no
    /// messages.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] with the reason.
    pub fn validate(&self) -> Result<(), Error> {
        match &self.plain {
            None => Request::new(self.messages.clone()).validate(),
            Some(plain) if plain.is_empty() => {
                Err(Error::InvalidRequest("no text is before the one to be scored".to_owned()))
            }
            Some(_) if !self.messages.is_empty() => {
                let n = self.messages.len();
                Err(Error::InvalidRequest(format!("{n} messages beside a plain text, expected none")))
            }
            Some(_) => Ok(()),
        }
    }

    /// Checks whether a backend can do what is asked.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the backend and what it lacks.
    pub fn check_support(&self, backend: &str, capabilities: &Capabilities) -> Result<(), Error> {
        let what = match capabilities.score {
            ScoreSupport::None => "scoring",
            ScoreSupport::Tokens if self.rows || self.own_logits || self.prompt_logits => "scoring with rows of logits",
            ScoreSupport::Tokens if self.plain.is_some() => "scoring of plain texts",
            ScoreSupport::Tokens if self.cut => "scoring of texts cut to the context",
            ScoreSupport::Tokens | ScoreSupport::Rows => return Ok(()),
        };
        Err(Error::Unsupported { backend: backend.to_owned(), what: what.to_owned() })
    }
}

/// The likelihood of a given text under a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// One entry for each token of the completion; `top` is empty.
    pub tokens: Vec<TokenLogprob>,
    /// Token ids of the completion, in the model's vocabulary.
    pub token_ids: Vec<u32>,
    /// For each token of the completion the logits it was drawn from, length = vocabulary; there if and only if
    /// [`ScoreRequest::rows`] asked for them.
    pub rows: Option<Vec<Vec<f32>>>,
    /// What counts of those rows for the completion's own tokens; there if and only if [`ScoreRequest::own_logits`] asked for
    /// it.
    pub own_logits: Option<OwnLogits>,
    /// The moments of the logits that the tokens before the completion were drawn from, but those of the first, which nothing
    /// is before; there if and only if [`ScoreRequest::prompt_logits`] asked for them.
    pub prompt_logits: Option<Moments>,
}

/// How many numbers there were, their mean, and how far they were from it.
///
/// ```
/// use idiolect_backend::Moments;
///
/// let mut moments = Moments::default();
/// moments.add(&[1.0, 2.0]);
/// moments.add(&[6.0]);
/// assert_eq!((moments.count(), moments.mean()), (3, 3.0));
/// assert_eq!(moments.variance(), 7.0, "of a sample: divided by one less than there are");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    count: u64,
    mean: f64,
    /// Of the differences from the mean.
    squares: f64,
}

impl Moments {
    /// Adds numbers.
    pub fn add(&mut self, numbers: &[f32]) {
        let n = to_f64(numbers.len() as u64);
        if numbers.is_empty() {
            return;
        }
        let mean = numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let squares = numbers.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
        self.merge(Self { count: numbers.len() as u64, mean, squares });
    }

    /// Adds the numbers that others are the moments of (Chan, Golub and LeVeque 1979).
    pub fn merge(&mut self, other: Self) {
        if other.count == 0 {
            return;
        }
        let (ours, theirs) = (to_f64(self.count), to_f64(other.count));
        let apart = other.mean - self.mean;
        self.mean += apart * theirs / (ours + theirs);
        self.squares += other.squares + apart * apart * ours * theirs / (ours + theirs);
        self.count += other.count;
    }

    /// Returns how many numbers there were.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Returns their mean; 0 of none.
    #[must_use]
    pub const fn mean(&self) -> f64 {
        self.mean
    }

    /// Returns their variance as a sample's; NaN of fewer than two.
    #[must_use]
    pub fn variance(&self) -> f64 {
        if self.count < 2 { f64::NAN } else { self.squares / to_f64(self.count - 1) }
    }
}

#[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 numbers")]
const fn to_f64(n: u64) -> f64 {
    n as f64
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

        capabilities.score = ScoreSupport::Tokens;
        let plain = ScoreRequest::plain("hidden", "secret");
        assert_eq!(lacks(&plain, &capabilities), Err("b does not support scoring of plain texts".to_owned()));
        let cut = ScoreRequest::new([Message::user("x")], "y").cut_to_context();
        assert_eq!(
            lacks(&cut, &capabilities),
            Err("b does not support scoring of texts cut to the context".to_owned())
        );
        let shown = format!("{plain:?}");
        assert!(!shown.contains("hidden") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn a_plain_text_stands_alone() {
        let reason = |request: ScoreRequest| request.validate().map_err(|error| error.to_string());
        assert_eq!(reason(ScoreRequest::plain("before", "after")), Ok(()));
        assert!(reason(ScoreRequest::plain("", "after")).unwrap_err().contains("no text is before"));
        let both = ScoreRequest { messages: vec![Message::user("x")], ..ScoreRequest::plain("before", "after") };
        assert!(reason(both).unwrap_err().contains("1 messages beside a plain text"));
    }

    #[test]
    fn moments_do_not_depend_on_how_numbers_come() {
        let numbers: Vec<f32> = (0..1000u16).map(|i| f32::from(i * 37 % 101) - 900.0).collect();
        let mut whole = Moments::default();
        whole.add(&numbers);
        let mut parts = Moments::default();
        numbers.chunks(77).for_each(|chunk| parts.add(chunk));
        parts.add(&[]);
        let mean = numbers.iter().map(|x| f64::from(*x)).sum::<f64>() / 1000.0;
        let variance = numbers.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / 999.0;
        for moments in [whole, parts] {
            assert_eq!(moments.count(), 1000);
            assert!((moments.mean() - mean).abs() < 1e-9 && (moments.variance() - variance).abs() < 1e-9);
        }
        assert!(Moments::default().variance().is_nan());
    }
}
