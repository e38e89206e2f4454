use std::fmt;

use crate::task::{Criterion, Prompt, TaskKind, openvalidators};

/// What openvalidators 1.2 puts between the best summary and what was asked and answered since.
const EARLIER_QUESTIONS: &str = "\nPrevious Question \nQuestion:";

/// A prompt that a validator's arithmetic needs more knowledge of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// The prompt is none of the validators', and nobody said what it asks for.
    #[error("the prompt fits no template of the validators; say which task it is: augment, followup or answer")]
    Unknown,
    /// It is of another task than was said.
    #[error("the prompt is a task of kind {found}, expected {told}")]
    Other {
        /// What the prompt asks for.
        found: TaskKind,
        /// What was said.
        told: TaskKind,
    },
}

/// What a step's replies are measured against.
#[derive(Clone, PartialEq, Eq)]
pub struct StepTask {
    /// What is asked for.
    pub kind: TaskKind,
    /// The whole prompt, as miners get it.
    pub prompt: String,
    /// What masks compare replies with, and in version 2.1 reward models, too. In version 2.1 the text between the quotes.
    /// In 1.2 of a summary the whole prompt, of a question the best summary, of an answer the question.
    pub base_text: String,
    /// What the reply should look like; none in version 1.2.
    pub criteria: Vec<Criterion>,
}

/// Prompts stay out of logs: only their lengths are shown.
impl fmt::Debug for StepTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepTask")
            .field("kind", &self.kind)
            .field("prompt", &format_args!("{} bytes", self.prompt.len()))
            .field("base_text", &format_args!("{} bytes", self.base_text.len()))
            .field("criteria", &self.criteria)
            .finish()
    }
}

impl StepTask {
    /// Reads a prompt of either version. One that fits no template needs `told`; it is then its own base text, without
    /// criteria.
    ///
    /// # Errors
    /// [`TaskError`] where the kind is unknown, or another than `told`.
    pub fn read(prompt: &str, told: Option<TaskKind>) -> Result<Self, TaskError> {
        let parsed = Prompt::parse(prompt);
        let kind = match (parsed.kind(), told) {
            (Some(found), Some(told)) if found != told => return Err(TaskError::Other { found, told }),
            (Some(kind), _) | (None, Some(kind)) => kind,
            (None, None) => return Err(TaskError::Unknown),
        };
        let (base_text, criteria) = match parsed {
            Prompt::TextPrompting(task) => (task.base_text, task.criteria),
            Prompt::OpenValidators(openvalidators::Task::Followup { context, .. }) => {
                let summary = context.split(EARLIER_QUESTIONS).next().unwrap_or_default().to_owned();
                (summary, Vec::new())
            }
            Prompt::OpenValidators(openvalidators::Task::Answer { question, .. }) => (question, Vec::new()),
            Prompt::OpenValidators(openvalidators::Task::Augment { .. }) | Prompt::Unknown => {
                (prompt.to_owned(), Vec::new())
            }
        };
        Ok(Self { kind, prompt: prompt.to_owned(), base_text, criteria })
    }
}

/// What one miner answered.
#[derive(Clone, PartialEq)]
pub struct Reply {
    /// The miner's uid.
    pub uid: u16,
    /// Its hotkey, where known. It counts for nothing here.
    pub hotkey: Option<String>,
    /// The reply as it came.
    pub text: String,
    /// Whether the call succeeded. One that failed gets nothing, and stays out of all statistics.
    pub succeeded: bool,
    /// How many seconds the miner took, where known. Both versions log it and let it count for nothing.
    pub process_time: Option<f64>,
}

impl Reply {
    /// Makes the reply of a call that succeeded.
    pub fn new(uid: u16, text: impl Into<String>) -> Self {
        Self { uid, hotkey: None, text: text.into(), succeeded: true, process_time: None }
    }
}

/// Replies stay out of logs: only their lengths are shown.
impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("uid", &self.uid)
            .field("hotkey", &self.hotkey)
            .field("text", &format_args!("{} bytes", self.text.len()))
            .field("succeeded", &self.succeeded)
            .field("process_time", &self.process_time)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::text_prompting;

    #[test]
    fn base_texts_are_what_the_versions_compare_with() {
        let base = |task: &openvalidators::Task| StepTask::read(&task.compose(), None).unwrap().base_text;
        let augment = openvalidators::Task::Augment { text: "A text.".to_owned(), sentences: 5 };
        assert_eq!(base(&augment), augment.compose());
        let context = "The summary.".to_owned();
        assert_eq!(base(&openvalidators::Task::Followup { context, first: true }), "The summary.");
        let context =
            "The summary.\nPrevious Question \nQuestion:Why?\nAnswer:So.\nQuestion:When?\nAnswer:Now.".to_owned();
        assert_eq!(base(&openvalidators::Task::Followup { context: context.clone(), first: false }), "The summary.");
        let question = "Where?".to_owned();
        assert_eq!(base(&openvalidators::Task::Answer { context, question }), "Where?");
        let task = text_prompting::Task {
            kind: TaskKind::Followup,
            base_text: "### SUMMARY CONTEXT:\nA summary.".to_owned(),
            criteria: vec![Criterion::EndsWithQuestionMark],
        };
        let read = StepTask::read(&task.compose(), Some(TaskKind::Followup)).unwrap();
        assert_eq!((read.base_text, read.criteria), (task.base_text.clone(), task.criteria.clone()));
        let error = StepTask::read(&task.compose(), Some(TaskKind::Answer)).unwrap_err().to_string();
        assert_eq!(error, "the prompt is a task of kind followup, expected answer");
    }

    #[test]
    fn other_prompts_need_to_be_told() {
        assert_eq!(StepTask::read("Why?", None), Err(TaskError::Unknown));
        let task = StepTask::read("Why?", Some(TaskKind::Answer)).unwrap();
        assert_eq!((task.base_text.as_str(), task.criteria.len()), ("Why?", 0));
        assert!(!format!("{task:?}").contains("Why"));
        assert!(!format!("{:?}", Reply::new(1, "secret")).contains("secret"));
    }
}
