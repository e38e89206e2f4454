//! Checks on a finished text: what validators punish by rule, found before it is sent.
//!
//! [`Rules`] are what one prompt holds its replies to: the validators' own arithmetic of `idiolect_validator`, criteria
//! included, and phrases that are worth avoiding whatever the prompt ([`StockPhrases`]). [`check`] is for those who have
//! no more than a task's name. A flag never changes the text; it tells the selector how much of the reward the text would
//! lose, and [`repair`](crate::repair) what to mend.

mod phrases;
mod rules;

use idiolect_validator::penalty::keyword_match;
use idiolect_validator::task::TaskKind;
use serde::{Deserialize, Serialize};

pub use phrases::{PhrasesError, StockPhrases};
pub use rules::{Breach, Rules};

pub(crate) use phrases::starts_with;
pub(crate) use rules::unit_name;

use crate::Task;

/// What is wrong with a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// It breaks criteria of the prompt; the validator's penalty of them all.
    Criteria,
    /// It has stock openings of the validator's list; the validator's penalty.
    ContentMatch,
    /// It has another task's label or a mark of the prompt's own; the validator's penalty.
    KeywordMatch,
    /// It has another task's label; the mask of version 1.2.
    TaskValidator,
    /// It says nothing of its own: the validator's blacklist of whole replies.
    Blacklist,
    /// It has a text that an operator of its recipe forbids: [`Library::induced`](crate::Library::induced) finds it, rules of texts alone never do.
    Forbidden,
    /// It is too far from the text that it is about, by the encoder of the validator's relevance mask. Rules of texts alone never say so.
    Irrelevant,
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
            Self::Criteria => "criteria",
            Self::ContentMatch => "content_match",
            Self::KeywordMatch => "keyword_match",
            Self::TaskValidator => "task_validator",
            Self::Blacklist => "blacklist",
            Self::Forbidden => "forbidden",
            Self::Irrelevant => "irrelevant",
        }
    }

    /// Says whether it is a factor of the validator's own, computed as the validator does. The others are estimates.
    #[must_use]
    pub const fn is_exact(self) -> bool {
        matches!(self, Self::Criteria | Self::ContentMatch | Self::KeywordMatch | Self::TaskValidator | Self::Blacklist)
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

/// Checks a text by its task alone. The order of the flags is that of [`FlagKind`].
///
/// The labels are looked for as the validators do: anywhere, in any letter case, inside words too, so that "data: 3" in a
/// summary costs the whole reward. They count only where the task is one of the validators' own. What else a prompt of the
/// validators' holds a reply to, [`Rules`] know.
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
    let phrases = StockPhrases::built_in();
    let mut flags = signs(phrases, prompt, text);
    let text = text.trim();
    if !text.is_empty()
        && let Some(kind) = kind_of(task)
        && keyword_match(kind, text) > 0.0
    {
        flags.push(flag(FlagKind::Keyword, 1.0, phrases.label_in(text)));
    }
    flags.sort_by_key(|flag| flag.kind);
    flags
}

/// Returns the share of the reward that all flags together cost, in [0, 1]: 1 - Π (1 - penalty).
#[must_use]
pub fn penalty(flags: &[Flag]) -> f32 {
    (1.0 - flags.iter().map(|flag| 1.0 - flag.penalty).product::<f32>()).clamp(0.0, 1.0)
}

/// What is wrong with a text whatever the prompt asks for; nothing else of an empty one.
fn signs(phrases: &StockPhrases, prompt: &str, text: &str) -> Vec<Flag> {
    let text = text.trim();
    if text.is_empty() {
        return vec![flag(FlagKind::Empty, 1.0, "no text")];
    }
    let mut flags = Vec::new();
    if prompt.contains(text) {
        flags.push(flag(FlagKind::Echo, 1.0, "part of the prompt"));
    }
    // Validators take a tenth for each, and two tenths at most.
    flags.extend(phrases.preambles_in(text).take(2).map(|phrase| flag(FlagKind::Preamble, 0.1, phrase)));
    if let Some(label) = phrases.label_at_start(text) {
        flags.push(flag(FlagKind::Label, 0.1, label));
    }
    if let Some((_, mark)) = phrases.role_leak(text) {
        flags.push(flag(FlagKind::RoleLeak, 0.5, mark.trim_start()));
    }
    flags
}

fn flag(kind: FlagKind, penalty: f32, rule: &str) -> Flag {
    Flag { kind, penalty, rule: rule.to_owned() }
}

fn kind_of(task: Task) -> Option<TaskKind> {
    match task {
        Task::Augment => Some(TaskKind::Augment),
        Task::Followup => Some(TaskKind::Followup),
        Task::Answer => Some(TaskKind::Answer),
        Task::Unknown => None,
    }
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
        kinds(Task::Augment, "Sure! Here comes the Answer: 3", &[FlagKind::Keyword, FlagKind::Preamble]);
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
