//! Repairs of a finished text: small changes by rule that let it lose less of its reward.
//!
//! Each repair is tried on its own and kept only if what the [`Rules`] take off gets less, by the validator's own arithmetic no
//! more than before. So a text that loses nothing stays as it is to the byte, and a repaired one stays as it is when repaired
//! again. Whatever stands in a fenced block of code is left alone: such a block stays as it is, or falls as a whole where
//! the text is cut before it.
//!
//! Relevance, which takes a model, is not computed. Instead a repair takes off no more than half of the words, unless a length, a
//! question or an opening was asked for, and of the words that are left about as many must be the prompt's own text's as
//! before, unless the text had lost all its reward anyway.
//!
//! ```
//! use idiolect_mutation::{Task, guard::Rules, repair};
//! use idiolect_validator::task::{Criterion, TaskKind, Unit, text_prompting};
//!
//! let prompt = text_prompting::Task {
//!     kind: TaskKind::Augment,
//!     base_text: "Leaves make sugar out of light.".to_owned(),
//!     criteria: vec![Criterion::NoLists, Criterion::Length { target: 5, unit: Unit::Words }],
//! };
//! let rules = Rules::detect(Task::Augment, &prompt.compose());
//! let repaired = repair::repair(&rules, "Sure! Here is a summary:\n- Light becomes sugar in leaves.\n- That is all.");
//! assert_eq!(repaired.text, "Light becomes sugar in leaves.");
//! assert!(repaired.before > 0.5 && repaired.after == 0.0);
//! let kinds: Vec<&str> = repaired.repairs.iter().map(|repair| repair.kind.as_str()).collect();
//! assert_eq!(kinds, ["preamble", "lists", "length"]);
//! ```

mod ending;
mod labels;
mod length;
mod lists;
mod opening;
mod prose;
mod question;
mod sentences;
mod topic;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::guard::Rules;
use prose::{Prose, n_words};
use topic::Topic;

/// Texts beyond this stay as they are: no reply that a validator asks for is as long.
const MOST_BYTES: usize = 128 * 1024;

/// Less than this is no gain.
const LEAST_GAIN: f64 = 1e-6;

/// What a repair does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RepairKind {
    /// Takes off white space around the text.
    Space,
    /// Ends the text where it goes on to speak for the asking side.
    RoleLeak,
    /// Takes off what comes before the reply itself.
    Preamble,
    /// Keeps one question of a text that should be one.
    Question,
    /// Takes off labels, or their colons.
    Labels,
    /// Begins the text at a place where it begins as asked.
    Opening,
    /// Takes list markers out.
    Lists,
    /// Makes a list of lines or sentences.
    Layout,
    /// Takes question marks out.
    QuestionMarks,
    /// Takes out sentences with words that must not be there.
    Words,
    /// Cuts the text to the length asked for.
    Length,
    /// Ends the text as asked.
    Ending,
}

impl RepairKind {
    /// Returns the name used in provenance and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Space => "space",
            Self::RoleLeak => "role_leak",
            Self::Preamble => "preamble",
            Self::Labels => "labels",
            Self::Question => "question",
            Self::Opening => "opening",
            Self::Lists => "lists",
            Self::Layout => "layout",
            Self::QuestionMarks => "question_marks",
            Self::Words => "words",
            Self::Length => "length",
            Self::Ending => "ending",
        }
    }

    /// Says whether it may take off more than half of the words: a text that is cut to what was asked for.
    const fn may_shorten(self) -> bool {
        matches!(self, Self::RoleLeak | Self::Question | Self::Opening | Self::Length)
    }

    /// Says whether it may take off what the text is about.
    const fn may_stray(self) -> bool {
        self.may_shorten() || matches!(self, Self::Preamble | Self::QuestionMarks | Self::Words)
    }
}

/// One repair that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// What it did.
    pub kind: RepairKind,
    /// The same in words and figures; nothing of the text.
    pub note: String,
}

/// A text after its repairs.
#[derive(Clone, PartialEq)]
pub struct Repaired<'a> {
    /// The text; borrowed where nothing was done.
    pub text: Cow<'a, str>,
    /// What was done, in order.
    pub repairs: Vec<Repair>,
    /// Share of the reward that the text lost as it came, in [0, 1].
    pub before: f32,
    /// Share that it loses now.
    pub after: f32,
}

/// Replies stay out of logs: only the length is shown.
impl std::fmt::Debug for Repaired<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repaired")
            .field("text", &format_args!("{} bytes", self.text.len()))
            .field("repairs", &self.repairs)
            .field("before", &self.before)
            .field("after", &self.after)
            .finish()
    }
}

/// A changed text that may be better, and what was done to it.
struct Draft {
    text: String,
    note: String,
}

impl Draft {
    fn new(text: impl Into<String>, note: impl Into<String>) -> Self {
        Self { text: text.into(), note: note.into() }
    }
}

/// Proposes changed texts; of equally good ones the first is taken.
type Attempt = fn(&Rules, &Prose<'_>) -> Vec<Draft>;

/// In the order in which they are tried: what takes text off comes before what counts it.
const ATTEMPTS: [(RepairKind, Attempt); 12] = [
    (RepairKind::RoleLeak, ending::before_role_leak),
    (RepairKind::Preamble, opening::without_preamble),
    (RepairKind::Question, question::one_question),
    (RepairKind::Labels, labels::without_labels),
    (RepairKind::Opening, opening::asked_opening),
    (RepairKind::Lists, lists::without_lists),
    (RepairKind::Layout, lists::with_list),
    (RepairKind::QuestionMarks, question::without_question_marks),
    (RepairKind::Words, sentences::without_words),
    (RepairKind::Length, length::shortened),
    (RepairKind::Ending, ending::asked_ending),
    (RepairKind::Space, |_, prose| vec![Draft::new(prose.text().trim(), "white space around it taken off")]),
];

/// Repairs a text. Takes time in proportion to its length, some milliseconds for a long reply with many faults.
#[must_use]
pub fn repair<'a>(rules: &Rules, text: &'a str) -> Repaired<'a> {
    let before = rules.loss(text);
    let mut loss = before;
    let mut current = Cow::Borrowed(text);
    let mut repairs = Vec::new();
    let topic = Topic::of(rules.base_text());
    // Each turn takes a gain off what is lost, so the turns end.
    let mut is_changed = loss.total > 0.0 && text.len() <= MOST_BYTES;
    while is_changed {
        is_changed = false;
        for (kind, attempt) in ATTEMPTS {
            let mut best: Option<Draft> = None;
            let is_lost = loss.total >= 1.0;
            for draft in attempt(rules, &Prose::new(&current, rules.phrases())) {
                if !is_within_bounds(rules, &topic, kind, is_lost, &current, &draft.text) {
                    continue;
                }
                let found = rules.loss(&draft.text);
                if found.total < loss.total - LEAST_GAIN && found.exact <= loss.exact {
                    loss = found;
                    best = Some(draft);
                }
            }
            if let Some(Draft { text, note }) = best {
                current = Cow::Owned(text);
                repairs.push(Repair { kind, note });
                is_changed = true;
            }
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "0 to 1")]
    let (before, after) = (before.total as f32, loss.total as f32);
    Repaired { text: current, repairs, before, after }
}

/// What cannot be computed here, as relevance and likelihood, must not suffer: enough of the text stays, about the same topic
/// unless all is lost as it is, and no code is damaged.
fn is_within_bounds(rules: &Rules, topic: &Topic<'_>, kind: RepairKind, is_lost: bool, old: &str, new: &str) -> bool {
    let short = rules.profile().dpo.short_characters;
    let is_long = |text: &str| text.chars().nth(short).is_some();
    !new.trim().is_empty()
        && (is_long(new.trim()) || !is_long(old.trim()))
        && (kind.may_shorten() || n_words(new) * 2 >= n_words(old))
        && (!kind.may_stray() || is_lost || topic.is_kept(&rules.scored(old), &rules.scored(new)))
        && keeps_code(rules, old, new)
}

fn keeps_code(rules: &Rules, old: &str, new: &str) -> bool {
    let (old, new) = (Prose::new(old, rules.phrases()), Prose::new(new, rules.phrases()));
    let mut old = old.fenced_blocks();
    new.fenced_blocks().all(|block| old.any(|whole| whole.trim_end() == block.trim_end()))
}

#[cfg(test)]
mod tests;
