//! Task texts: the prompts that validators compose, and reading them back.
//!
//! Sources: opentensor/validators 1.2 `openvalidators/prompts.py` and `forward.py`; opentensor/text-prompting 2.1
//! `prompting/validators/tasks.py`, `criteria.py` and `forward.py`. There are no recordings of these; the texts are the
//! wire format.

mod criterion;
pub mod openvalidators;
pub mod text_prompting;
mod winners;

pub use criterion::{ContentMatch, Criterion, Unit};
pub use winners::Winner;

/// What a validator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskKind {
    /// A summary of a text.
    Augment,
    /// A question about it.
    Followup,
    /// An answer to the question.
    Answer,
}

impl std::fmt::Display for TaskKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl TaskKind {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Augment, Self::Followup, Self::Answer];

    /// Returns its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Augment => "augment",
            Self::Followup => "followup",
            Self::Answer => "answer",
        }
    }

    /// Reads the name of a step: `augment`, `followup0`, `answer3` and so on.
    #[must_use]
    pub fn of_step(name: &str) -> Option<Self> {
        let index = |rest: &str| rest.bytes().all(|b| b.is_ascii_digit());
        if name == "augment" {
            Some(Self::Augment)
        } else if name.strip_prefix("followup").is_some_and(index) {
            Some(Self::Followup)
        } else if name.strip_prefix("answer").is_some_and(index) {
            Some(Self::Answer)
        } else {
            None
        }
    }
}

/// A prompt as read: a validator's, or something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Composed as opentensor/validators 1.2 does.
    OpenValidators(openvalidators::Task),
    /// Composed as opentensor/text-prompting 2.1 does.
    TextPrompting(text_prompting::Task),
    /// Neither.
    Unknown,
}

impl Prompt {
    /// Reads a prompt. What fits no template exactly is [`Prompt::Unknown`]; nothing is guessed.
    #[must_use]
    pub fn parse(prompt: &str) -> Self {
        if let Some(task) = text_prompting::Task::parse(prompt) {
            Self::TextPrompting(task)
        } else if let Some(task) = openvalidators::Task::parse(prompt) {
            Self::OpenValidators(task)
        } else {
            Self::Unknown
        }
    }

    /// Returns what is asked for, or `None` where that is unknown.
    #[must_use]
    pub fn kind(&self) -> Option<TaskKind> {
        match self {
            Self::OpenValidators(task) => Some(task.kind()),
            Self::TextPrompting(task) => Some(task.kind),
            Self::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests;
