//! What kind of text a validator asks for.

use std::fmt;
use std::str::FromStr;

use idiolect_backend::{Message, Role};
use serde::{Deserialize, Serialize};

/// The task behind a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Task {
    /// A summary of a given text.
    Augment,
    /// One question about a given text.
    Followup,
    /// An answer to a question about a given text.
    Answer,
    /// Anything else.
    #[default]
    Unknown,
}

/// Phrases of the validators' own templates, old and new, that give a task away.
const PHRASES: [(&str, Task); 6] = [
    ("summarize the preceding context", Task::Augment),
    ("your task is to summarize", Task::Augment),
    ("ask a single relevant and insightful question", Task::Followup),
    ("your task is to ask a single relevant", Task::Followup),
    ("read the preceding context delimited", Task::Answer),
    ("answer the question step by step", Task::Answer),
];

impl Task {
    /// All tasks.
    pub const ALL: [Self; 4] = [Self::Augment, Self::Followup, Self::Answer, Self::Unknown];

    /// Returns the name that validators use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Augment => "augment",
            Self::Followup => "followup",
            Self::Answer => "answer",
            Self::Unknown => "unknown",
        }
    }

    /// Finds the task by the name the caller gives (`followup3` is a followup), otherwise by the templates' phrases in
    /// the last user message. Of several phrases the last one counts: what stands above it is the text to work on.
    #[must_use]
    pub fn detect(name: Option<&str>, messages: &[Message]) -> Self {
        let by_name = name.and_then(|name| name.trim_end_matches(|c: char| c.is_ascii_digit()).parse().ok());
        by_name.unwrap_or_else(|| {
            let last_user = messages.iter().rev().find(|m| m.role == Role::User);
            let text = last_user.map(|m| m.content.to_lowercase()).unwrap_or_default();
            let found = PHRASES.iter().filter_map(|&(phrase, task)| Some((text.rfind(phrase)?, task)));
            found.max().map_or(Self::Unknown, |(_, task)| task)
        })
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No task has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown task {0:?}, expected augment, followup, answer or unknown")]
pub struct UnknownTask(String);

impl FromStr for Task {
    type Err = UnknownTask;

    fn from_str(name: &str) -> Result<Self, UnknownTask> {
        Self::ALL.into_iter().find(|task| task.as_str() == name).ok_or_else(|| UnknownTask(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: Option<&str>, text: &str, expected: Task) {
        let messages =
            [Message::system("Answer the question step by step"), Message::user(text), Message::assistant("…")];
        assert_eq!(Task::detect(name, &messages), expected);
    }

    #[test]
    fn tasks_are_known_by_name_or_by_template() {
        check(Some("augment"), "", Task::Augment);
        check(Some("followup3"), "", Task::Followup);
        check(Some("answer0"), "Summarize the preceding context in 4 sentences.", Task::Answer);
        check(Some("InferenceTask"), "Hi", Task::Unknown);
        check(None, "A text.\n\nSummarize the preceding context in 6 sentences. Do not try …", Task::Augment);
        check(None, "A text.\nAsk a single relevant and insightful question about it.", Task::Followup);
        check(None, "C\n\nQuestion:Why\nAnswer the question step by step and explain your thoughts.", Task::Answer);
        check(None, "Your task is to summarize. C\n\nQuestion:Why\nAnswer the question step by step", Task::Answer);
        check(None, "What is the capital of Texas?", Task::Unknown);
        assert_eq!(Task::detect(None, &[]), Task::Unknown);
    }
}
