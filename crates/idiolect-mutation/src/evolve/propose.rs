//! What a backend is asked for a new text, and what of its answer can be used.

use idiolect_backend::Message;
use serde::{Deserialize, Serialize};

use crate::Task;
use crate::slot::SLOTS;

/// Why a text is not tried or not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reject {
    /// There is no text.
    Empty,
    /// It has a template's braces: texts are data.
    Template,
    /// It has no end.
    Unfinished,
    /// It talks to us, or has characters that no instruction has.
    Chatter,
    /// It has too few words, or too many.
    Length,
    /// It leads to what validators punish: a layout, a label, a question.
    Mark,
    /// It quotes words.
    Quotation,
    /// It has five words in a row that another text has.
    SharedRun,
    /// It is a known text.
    Duplicate,
    /// It is nearly a known text, by the encoder.
    NearDuplicate,
    /// A library would not take it, or never draw it.
    Library,
    /// Its replies share a run of words that others do not have: it plants a phrase.
    Planted,
}

/// Most words of a text.
const MAX_WORDS: usize = 32;
/// Fewest words of a text.
const MIN_WORDS: usize = 4;

/// How models begin that talk about the task.
const CHATTER: [&str; 12] = [
    "sure",
    "certainly",
    "of course",
    "here is",
    "here's",
    "here are",
    "as an ai",
    "i'm ",
    "i am ",
    "i will ",
    "i can",
    "the new instruction",
];

/// A text with what it brought.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) text: String,
    pub(super) fitness: f64,
}

/// Puts the question for one new text: another of a slot, or one out of two.
pub(super) fn question(
    task: Task,
    slot: &str,
    parent: &Shown,
    feedback: &str,
    other: Option<&Shown>,
    elites: &[Shown],
) -> Vec<Message> {
    let what = SLOTS.iter().find(|(name, _)| *name == slot).map_or("", |(_, what)| what);
    let asked = match task {
        Task::Augment => "summarise a text",
        Task::Followup => "ask one question about a text",
        Task::Answer => "answer a question about a text",
        Task::Unknown => "answer a request",
    };
    let system = "You improve short style instructions that are added to a writer's assignment. You reply with one instruction and nothing else: one \
                  sentence of at most 25 words, in the imperative, without quotation marks, lists, labels or questions.";
    let mut user = format!("Writers are asked to {asked}. The instruction is about: {what}.\n\n");
    if !elites.is_empty() {
        user.push_str("Instructions so far, with their scores (0 to 1, higher is better):\n");
        for elite in elites {
            user.push_str(&format!("{:.2} {}\n", elite.fitness, elite.text));
        }
        user.push('\n');
    }
    user.push_str(&format!("This one scored {:.2}: {}\nWhat was found: {feedback}.\n", parent.fitness, parent.text));
    match other {
        Some(other) => user.push_str(&format!(
            "This one scored {:.2}: {}\n\nWrite one new instruction that joins what is good in these two.",
            other.fitness, other.text
        )),
        None => user.push_str("\nWrite one new instruction, different from all of these, that avoids what was found."),
    }
    vec![Message::system(system), Message::user(user)]
}

/// Takes the instruction out of an answer: the first line that is not an introduction, without marks of lists, labels and quotes.
pub(super) fn clean(said: &str, ended: bool) -> Result<String, Reject> {
    if said.contains(['{', '}']) {
        return Err(Reject::Template);
    }
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let is_introduction = |line: &&str| line.ends_with(':');
    let Some(at) = lines.iter().position(|line| !is_introduction(line)) else { return Err(Reject::Empty) };
    let is_last = at + 1 == lines.len();
    let mut text = lines[at];
    let marks: &[char] = &['-', '*', '•', '#', '"', '“', '”', '\'', '`', ' '];
    loop {
        let before = text;
        text = text.trim_matches(marks);
        let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
        if digits.len() < text.len()
            && let Some(rest) = digits.strip_prefix(". ").or_else(|| digits.strip_prefix(") "))
        {
            text = rest;
        }
        if let Some((label, rest)) = text.split_once(':')
            && label.split_whitespace().count() <= 3
            && label.to_lowercase().contains("instruction")
        {
            text = rest;
        }
        if text == before {
            break;
        }
    }
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() {
        return Err(Reject::Empty);
    }
    let lower = text.to_lowercase();
    let is_odd = |c: char| c.is_control() || "<>|\\/=_~^[]@".contains(c);
    if text.chars().any(is_odd) || CHATTER.iter().any(|opening| lower.starts_with(opening)) {
        return Err(Reject::Chatter);
    }
    let n_words = text.split_whitespace().count();
    if !(MIN_WORDS..=MAX_WORDS).contains(&n_words) {
        return Err(Reject::Length);
    }
    if !text.ends_with(['.', '!', '?']) {
        if is_last && !ended {
            return Err(Reject::Unfinished);
        }
        text.push('.');
    }
    if text.starts_with(char::is_lowercase) {
        text = text.chars().take(1).flat_map(char::to_uppercase).chain(text.chars().skip(1)).collect();
    }
    Ok(text)
}
