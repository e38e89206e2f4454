//! What is asked of a backend.

use std::fmt;
use std::str::FromStr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::Error;

/// Who speaks a [`Message`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that stand above the conversation.
    System,
    /// The asking side.
    User,
    /// The answering side.
    Assistant,
}

impl Role {
    /// Returns the role's name as every chat API spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Error;

    /// Parses a role by name, in any letter case.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for any other name.
    fn from_str(name: &str) -> Result<Self, Error> {
        [Self::System, Self::User, Self::Assistant]
            .into_iter()
            .find(|role| role.as_str().eq_ignore_ascii_case(name))
            .ok_or_else(|| Error::InvalidRequest(format!("unknown role {name:?}, expected system, user or assistant")))
    }
}

/// One turn of a conversation.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// Makes a message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }

    /// Makes a system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new(Role::System, content)
    }

    /// Makes a user message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new(Role::User, content)
    }

    /// Makes an assistant message.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new(Role::Assistant, content)
    }
}

/// Prompts stay out of logs: only role and length are shown.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {} bytes)", self.role, self.content.len())
    }
}

/// How tokens are drawn. A field that is `None` leaves the choice to the backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// Most tokens a candidate may have; at least 1.
    pub max_tokens: u32,
    /// Softmax temperature, 0 to 5; 0 is greedy.
    pub temperature: Option<f32>,
    /// Keep only the k likeliest tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep the smallest set of tokens whose probability reaches this, in (0, 1].
    pub top_p: Option<f32>,
    /// Keep tokens at least this fraction as likely as the likeliest, in [0, 1).
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of tokens already seen (CTRL); above 0, 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Subtracted from a token's logit per earlier appearance in the candidate, -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Subtracted from a token's logit once it appeared in the candidate, -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Generation ends before any of these texts.
    pub stop: Vec<String>,
    /// Same request, same seed, same build: same candidates. `None` draws afresh.
    pub seed: Option<u64>,
    /// Return log-probabilities with this many alternatives for each token; `Some(0)` returns the chosen token's only.
    pub logprobs: Option<u8>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: None,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            frequency_penalty: None,
            presence_penalty: None,
            stop: Vec::new(),
            seed: None,
            logprobs: None,
        }
    }
}

impl Sampling {
    /// Checks every range that the fields' docs state.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] naming each bad field, its value and what was expected.
    pub fn validate(&self) -> Result<(), Error> {
        let mut bad = Vec::new();
        let mut check = |name: &str, value: Option<f32>, expected: &str, ok: fn(f32) -> bool| {
            if let Some(v) = value
                && !ok(v)
            {
                bad.push(format!("{name} is {v}, expected {expected}"));
            }
        };
        check("temperature", self.temperature, "0 to 5", |v| (0.0..=5.0).contains(&v));
        check("top_p", self.top_p, "above 0 and at most 1", |v| v > 0.0 && v <= 1.0);
        check("min_p", self.min_p, "at least 0 and below 1", |v| (0.0..1.0).contains(&v));
        check("repetition_penalty", self.repetition_penalty, "above 0 and at most 10", |v| v > 0.0 && v <= 10.0);
        check("frequency_penalty", self.frequency_penalty, "-2 to 2", |v| (-2.0..=2.0).contains(&v));
        check("presence_penalty", self.presence_penalty, "-2 to 2", |v| (-2.0..=2.0).contains(&v));
        if self.max_tokens == 0 {
            bad.push("max_tokens is 0, expected at least 1".to_owned());
        }
        if self.stop.iter().any(String::is_empty) {
            bad.push("stop holds an empty text".to_owned());
        }
        if bad.is_empty() { Ok(()) } else { Err(Error::InvalidRequest(bad.join("; "))) }
    }
}

/// One prompt, and how many continuations of it are wanted.
///
/// All candidates share the prompt, so that an engine computes it once.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The conversation so far, oldest first; the last message is usually the user's.
    pub messages: Vec<Message>,
    /// How many candidates to draw; at least 1.
    pub n: usize,
    /// How tokens are drawn. Candidate `i` uses a random stream of its own, derived from (`seed`, `i`).
    pub sampling: Sampling,
    /// Backends that hold several models answer with this one; others ignore it.
    pub model: Option<String>,
    /// When the answer stops being of use. A backend stops by then and returns what it has.
    pub deadline: Option<Instant>,
}

impl Request {
    /// Makes a request for one candidate with default sampling and no deadline.
    #[must_use]
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, n: 1, sampling: Sampling::default(), model: None, deadline: None }
    }

    /// Checks what every backend relies on: at least one message that is not empty, `n` of at least 1, sane sampling.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] with the reason.
    pub fn validate(&self) -> Result<(), Error> {
        if self.messages.iter().all(|m| m.content.trim().is_empty()) {
            return Err(Error::InvalidRequest("no message with any text".to_owned()));
        }
        if self.n == 0 {
            return Err(Error::InvalidRequest("n is 0, expected at least 1".to_owned()));
        }
        self.sampling.validate()
    }
}
