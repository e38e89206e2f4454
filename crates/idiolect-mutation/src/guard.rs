//! Checks on a finished text: what validators punish by rule, found before it is sent.
//!
//! A flag never changes the text; it tells the selector how much of the reward the text would lose.

use serde::{Deserialize, Serialize};

use crate::Task;

/// What is wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FlagKind {
    /// There is no text.
    Empty,
    /// The text is a part of the prompt.
    Echo,
    /// It holds a label that belongs to another task, as "Answer:" in a summary.
    Keyword,
    /// It opens with a stock phrase of assistants.
    Preamble,
    /// It opens with a label of its own.
    Label,
    /// It goes on to speak for the asking side.
    RoleLeak,
}

impl FlagKind {
    /// Returns the name used in provenance and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Echo => "echo",
            Self::Keyword => "keyword",
            Self::Preamble => "preamble",
            Self::Label => "label",
            Self::RoleLeak => "role_leak",
        }
    }
}

/// One thing that is wrong with a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flag {
    /// What it is.
    pub kind: FlagKind,
    /// Share of the reward that it costs, in [0, 1].
    pub penalty: f32,
    /// The rule's own text that was found: never the reply's.
    pub rule: String,
}

const ANSWER_LABELS: [&str; 4] = ["answer:", "response:", "a:", "completion:"];
const QUESTION_LABELS: [&str; 3] = ["question:", "query:", "q:"];
const SUMMARY_LABELS: [&str; 4] = ["summary:", "paraphrase:", "paraphrasing:", "paraphrased:"];
/// Section marks of the validators' own templates.
const MARKS: [&str; 3] = ["### question", "### answer", "### summary"];

/// How assistants open their replies. Looked for in the first characters only.
const PREAMBLES: [&str; 16] = [
    "sure! here",
    "sure, here",
    "sure! i",
    "certainly! here",
    "certainly, here",
    "of course! here",
    "absolutely! here",
    "great question",
    "that is an excellent question",
    "that's an excellent question",
    "here is a ",
    "here's the ",
    "here are ",
    "as an ai",
    "the question was",
    "i hope this helps",
];
const PREAMBLE_CHARACTERS: usize = 200;

/// Checks a text. The order of the flags is that of [`FlagKind`].
///
/// The labels are looked for as the validators do: anywhere, in any letter case, inside words too, so that "data: 3" in a
/// summary costs the whole reward. They count only where the task is one of the validators' own.
///
/// # Examples
/// ```
/// use idiolect_mutation::{FlagKind, Task, guard};
///
/// let flags = guard::check(Task::Augment, "Summarize the preceding context.", "The data: all of it.");
/// assert_eq!((flags[0].kind, flags[0].penalty), (FlagKind::Keyword, 1.0));
/// assert_eq!(guard::penalty(&flags), 1.0);
/// assert!(guard::check(Task::Unknown, "What is it?", "The data: all of it.").is_empty());
/// ```
#[must_use]
pub fn check(task: Task, prompt: &str, text: &str) -> Vec<Flag> {
    let text = text.trim();
    if text.is_empty() {
        return vec![flag(FlagKind::Empty, 1.0, "no text")];
    }
    let lower = text.to_lowercase();
    let mut flags = Vec::new();
    if prompt.contains(text) {
        flags.push(flag(FlagKind::Echo, 1.0, "part of the prompt"));
    }
    flags.extend(keyword(task, &lower));
    flags.extend(preambles(&lower));
    let labels = ANSWER_LABELS.iter().chain(&QUESTION_LABELS).chain(&SUMMARY_LABELS);
    if let Some(label) = labels.into_iter().find(|&&label| lower.starts_with(label)) {
        flags.push(flag(FlagKind::Label, 0.1, label));
    }
    let leaks = ["\nuser:", "\nhuman:", "\nassistant:", "<|im_start|>", "<|im_end|>", "</s>"];
    if let Some(leak) = leaks.into_iter().find(|leak| lower.contains(leak)) {
        flags.push(flag(FlagKind::RoleLeak, 0.5, leak.trim_start()));
    }
    flags
}

fn flag(kind: FlagKind, penalty: f32, rule: &str) -> Flag {
    Flag { kind, penalty, rule: rule.to_owned() }
}

fn keyword(task: Task, lower: &str) -> Option<Flag> {
    let mut labels: Vec<&str> = match task {
        Task::Augment => [&ANSWER_LABELS[..], &QUESTION_LABELS].concat(),
        Task::Followup => [&ANSWER_LABELS[..], &SUMMARY_LABELS].concat(),
        Task::Answer => [&QUESTION_LABELS[..], &SUMMARY_LABELS].concat(),
        _ => return None,
    };
    labels.extend(MARKS);
    let found = labels.into_iter().find(|label| lower.contains(label))?;
    Some(flag(FlagKind::Keyword, 1.0, found))
}

fn preambles(lower: &str) -> impl Iterator<Item = Flag> {
    let head: String = lower.chars().take(PREAMBLE_CHARACTERS).collect();
    let found = PREAMBLES.into_iter().filter(move |phrase| head.contains(phrase));
    // Validators take a tenth for each, and two tenths at most.
    found.take(2).map(|phrase| flag(FlagKind::Preamble, 0.1, phrase))
}

/// Returns the share of the reward that all flags together cost, in [0, 1]: 1 - Π (1 - penalty).
#[must_use]
pub fn penalty(flags: &[Flag]) -> f32 {
    (1.0 - flags.iter().map(|flag| 1.0 - flag.penalty).product::<f32>()).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_cost_what_the_validators_recorded() {
        let path = format!("{}/../../tests/data/vectors/scoring/task_validator.json", env!("CARGO_MANIFEST_DIR"));
        let recorded: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for (name, penalties) in recorded["keyword_penalty_v2"].as_object().unwrap() {
            let task = Task::detect(Some(name), &[]);
            for (text, expected) in
                recorded["completions"].as_array().unwrap().iter().zip(penalties.as_array().unwrap())
            {
                let text = text.as_str().unwrap();
                let flags = check(task, "", text);
                let ours = flags.iter().find(|f| f.kind == FlagKind::Keyword).map_or(0.0, |f| f.penalty);
                assert_eq!(f64::from(ours), expected.as_f64().unwrap(), "{name}: {text}");
            }
        }
    }

    #[track_caller]
    fn kinds(task: Task, text: &str, expected: &[FlagKind]) {
        let found: Vec<FlagKind> =
            check(task, "What is the capital of Texas? It is Austin.", text).iter().map(|f| f.kind).collect();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn each_rule() {
        kinds(Task::Unknown, "Austin has been the capital since 1839.", &[]);
        kinds(Task::Unknown, " \n\t", &[FlagKind::Empty]);
        kinds(Task::Unknown, "It is Austin.", &[FlagKind::Echo]);
        kinds(Task::Unknown, "Sure! Here is a summary.", &[FlagKind::Preamble, FlagKind::Preamble]);
        kinds(Task::Unknown, "Answer: Austin", &[FlagKind::Label]);
        kinds(Task::Unknown, "Austin.\nUser: thanks", &[FlagKind::RoleLeak]);
        kinds(Task::Unknown, "FAQ: at 10:30, see data: 3", &[]);
        kinds(Task::Answer, "As said.\n### QUESTION 2:\nwhy", &[FlagKind::Keyword]);
        let late = format!("{}Sure! Here it comes.", "x".repeat(200));
        kinds(Task::Unknown, &late, &[]);
    }

    proptest! {
        #[test]
        fn penalties_stay_in_range(prompt in ".{0,60}", text in ".{0,60}") {
            for task in Task::ALL {
                let flags = check(task, &prompt, &text);
                prop_assert!((0.0..=1.0).contains(&penalty(&flags)));
                prop_assert_eq!(&flags, &check(task, &prompt, &text));
            }
        }
    }
}
