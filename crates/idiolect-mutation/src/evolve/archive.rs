//! The best operator of each niche.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Task;

/// How long replies are, beside plain ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Less than 0.8 times as many words.
    Shorter,
    /// As long.
    Alike,
    /// More than 1.25 times as many words.
    Longer,
}

impl Length {
    /// Reads it off the words of replies and of the plain ones, in all.
    #[must_use]
    pub fn of(words: usize, plain: usize) -> Self {
        let ratio = words as f64 / plain.max(1) as f64;
        if ratio < 0.8 {
            Self::Shorter
        } else if ratio > 1.25 {
            Self::Longer
        } else {
            Self::Alike
        }
    }
}

/// How a reply begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opening {
    /// With a mark of a list.
    List,
    /// With a question.
    Question,
    /// With "the", "a", "this", "it" and the like.
    Article,
    /// With "I", "we", "you".
    Person,
    /// With a small word that leads up to something: "in", "when", "although".
    Lead,
    /// With the matter itself.
    Direct,
}

impl Opening {
    /// Reads it off a reply.
    #[must_use]
    pub fn of(reply: &str) -> Self {
        let reply = reply.trim_start();
        let first = reply.split_whitespace().next().unwrap_or_default();
        let is_number = first.ends_with(['.', ')']) && first.trim_end_matches(['.', ')']).parse::<u32>().is_ok();
        if matches!(first, "-" | "*" | "•") || is_number {
            return Self::List;
        }
        if reply.find(['.', '!', '?']).is_some_and(|at| reply[at..].starts_with('?')) {
            return Self::Question;
        }
        let word = first.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
        match word.as_str() {
            "the" | "a" | "an" | "this" | "that" | "these" | "those" | "it" | "its" | "they" | "there" => Self::Article,
            "i" | "we" | "you" | "my" | "our" | "your" | "i'm" | "i'd" | "let's" => Self::Person,
            "in" | "on" | "at" | "by" | "for" | "from" | "with" | "when" | "while" | "although" | "though" | "if"
            | "as" | "because" | "since" | "after" | "before" | "to" | "of" | "among" | "according" => Self::Lead,
            _ => Self::Direct,
        }
    }

    /// Returns what most replies begin with; of equals the first.
    #[must_use]
    pub fn of_all<'a>(replies: impl Iterator<Item = &'a str>) -> Self {
        let mut counts: BTreeMap<Self, usize> = BTreeMap::new();
        for reply in replies {
            *counts.entry(Self::of(reply)).or_default() += 1;
        }
        counts.into_iter().rev().max_by_key(|(_, n)| *n).map_or(Self::Direct, |(opening, _)| opening)
    }
}

/// What replies are like: one operator is kept for each.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Niche {
    /// What is asked for.
    pub task: Task,
    /// The operator's slot.
    pub slot: String,
    /// How long the replies are.
    pub length: Length,
    /// How most of them begin.
    pub opening: Opening,
}

impl fmt::Display for Niche {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (length, opening) = (format!("{:?}", self.length), format!("{:?}", self.opening));
        write!(f, "{}/{}/{}/{}", self.task, self.slot, length.to_lowercase(), opening.to_lowercase())
    }
}

/// The elites: of each niche the number of a candidate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archive(BTreeMap<Niche, usize>);

impl Archive {
    /// Returns who is in a niche.
    #[must_use]
    pub fn elite(&self, niche: &Niche) -> Option<usize> {
        self.0.get(niche).copied()
    }

    pub(super) fn put(&mut self, niche: Niche, candidate: usize) {
        self.0.insert(niche, candidate);
    }

    /// Returns all niches that are taken, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Niche, usize)> {
        self.0.iter().map(|(niche, candidate)| (niche, *candidate))
    }

    /// Returns the elites of a task, in the order of the niches.
    #[must_use]
    pub fn of_task(&self, task: Task) -> Vec<usize> {
        self.iter().filter(|(niche, _)| niche.task == task).map(|(_, candidate)| candidate).collect()
    }

    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Says whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
