//! The prompts of opentensor/validators 1.2 (`openvalidators/prompts.py`).

use super::TaskKind;

const AUGMENT: &str = "\n\nSummarize the preceding context in ";
const AUGMENT_END: &str = " sentences. Do not try to create questions or answers for your summarization.\n\n";
const FOLLOWUP_FIRST: &str = "\n\nAsk a single relevant and insightful question about the preceding context\n. Do not try to return an answer or a summary:";
const FOLLOWUP_LATER: &str = "\n\nAsk a single relevant and insightful question about the preceding context and previous questions. Do not try to return an answer or a summary:\n";
const QUESTION: &str = "\n\nQuestion:";
const ANSWER_END: &str = "\nAnswer the question step by step and explain your thoughts. Do not include questions or summaries in your answer.";

/// One task of version 1.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Summarise the text.
    Augment {
        /// The text.
        text: String,
        /// In how many sentences; validators draw 4 to 8.
        sentences: u32,
    },
    /// Ask about the context.
    Followup {
        /// The best summary and, in later rounds, what was asked and answered.
        context: String,
        /// Whether it is the first question of the round.
        first: bool,
    },
    /// Answer the question.
    Answer {
        /// What the question is about.
        context: String,
        /// The question. It must not hold an empty line followed by `Question:`, as the last of these divides the prompt.
        question: String,
    },
}

impl Task {
    /// Returns what is asked for.
    #[must_use]
    pub const fn kind(&self) -> TaskKind {
        match self {
            Self::Augment { .. } => TaskKind::Augment,
            Self::Followup { .. } => TaskKind::Followup,
            Self::Answer { .. } => TaskKind::Answer,
        }
    }

    /// Returns the prompt as a validator sends it.
    #[must_use]
    pub fn compose(&self) -> String {
        match self {
            Self::Augment { text, sentences } => format!("{text}{AUGMENT}{sentences}{AUGMENT_END}"),
            Self::Followup { context, first: true } => format!("{context}{FOLLOWUP_FIRST}"),
            Self::Followup { context, first: false } => format!("{context}{FOLLOWUP_LATER}"),
            Self::Answer { context, question } => format!("{context}{QUESTION}{question}{ANSWER_END}"),
        }
    }

    /// Reads a prompt back; `None` for any other text.
    #[must_use]
    pub fn parse(prompt: &str) -> Option<Self> {
        if let Some(rest) = prompt.strip_suffix(AUGMENT_END) {
            let (text, number) = rest.rsplit_once(AUGMENT)?;
            let sentences: u32 = number.parse().ok()?;
            return (sentences.to_string() == number).then(|| Self::Augment { text: text.to_owned(), sentences });
        }
        if let Some(context) = prompt.strip_suffix(FOLLOWUP_FIRST) {
            return Some(Self::Followup { context: context.to_owned(), first: true });
        }
        if let Some(context) = prompt.strip_suffix(FOLLOWUP_LATER) {
            return Some(Self::Followup { context: context.to_owned(), first: false });
        }
        let (context, question) = prompt.strip_suffix(ANSWER_END)?.rsplit_once(QUESTION)?;
        Some(Self::Answer { context: context.to_owned(), question: question.to_owned() })
    }
}
