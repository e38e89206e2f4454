//! The checked form of what validators ask: the one place where roles and bounds of wire types are checked.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
    /// Returns the role as it stands on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

impl FromStr for Role {
    type Err = PromptError;

    /// Parses a role in any letter case (reference miners dropped turns over a capital letter).
    fn from_str(name: &str) -> Result<Self, PromptError> {
        [Self::System, Self::User, Self::Assistant]
            .into_iter()
            .find(|role| role.as_str().eq_ignore_ascii_case(name))
            .ok_or_else(|| PromptError::UnknownRole(name.chars().take(32).collect()))
    }
}

/// One turn of the conversation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// Prompts stay out of logs.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {} bytes)", self.role.as_str(), self.content.len())
    }
}

/// Why a list of messages is no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// There is nothing to answer.
    #[error("no message with any text")]
    Empty,
    /// Another role than the three.
    #[error("unknown role {0:?}, expected system, user or assistant")]
    UnknownRole(String),
    /// The parallel lists of roles and messages differ in length.
    #[error("{n_roles} roles for {n_messages} messages")]
    LengthMismatch {
        /// Length of `roles`.
        n_roles: usize,
        /// Length of `messages`.
        n_messages: usize,
    },
    /// A message is not the JSON object `{"role": …, "content": …}`.
    #[error("message {index} is not an object with role and content")]
    NotAMessage {
        /// Its place in the list, from 0.
        index: usize,
    },
    /// More messages than allowed.
    #[error("{n_messages} messages, at most {max} are allowed")]
    TooMany {
        /// How many came.
        n_messages: usize,
        /// How many may come.
        max: usize,
    },
}

/// A conversation to be continued: at least one message with some text, at most [`Prompt::MAX_MESSAGES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    messages: Vec<Message>,
}

impl Prompt {
    /// Most messages that a prompt may have.
    pub const MAX_MESSAGES: usize = 1024;

    /// Checks and takes messages.
    ///
    /// # Errors
    /// [`PromptError::Empty`] or [`PromptError::TooMany`].
    pub fn new(messages: Vec<Message>) -> Result<Self, PromptError> {
        if messages.len() > Self::MAX_MESSAGES {
            return Err(PromptError::TooMany { n_messages: messages.len(), max: Self::MAX_MESSAGES });
        }
        if messages.iter().all(|m| m.content.trim().is_empty()) {
            return Err(PromptError::Empty);
        }
        Ok(Self { messages })
    }

    /// Checks and takes the parallel lists that HTTP synapses carry.
    ///
    /// # Errors
    /// As [`Prompt::new`], and [`PromptError::LengthMismatch`], [`PromptError::UnknownRole`].
    pub fn from_parallel(roles: &[String], messages: &[String]) -> Result<Self, PromptError> {
        if roles.len() != messages.len() {
            return Err(PromptError::LengthMismatch { n_roles: roles.len(), n_messages: messages.len() });
        }
        let messages = roles
            .iter()
            .zip(messages)
            .map(|(role, content)| Ok(Message::new(role.parse()?, content.clone())))
            .collect::<Result<_, PromptError>>()?;
        Self::new(messages)
    }

    /// Returns the messages, oldest first.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Takes the messages out.
    #[must_use]
    pub fn into_messages(self) -> Vec<Message> {
        self.messages
    }
}
