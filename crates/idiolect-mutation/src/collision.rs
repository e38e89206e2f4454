//! How likely a plain answer is to be the answer of others, too, and how much is varied because of it.

use idiolect_backend::{Message, Role};
use serde::{Deserialize, Serialize};

use crate::{Operator, Task, tokens};

/// Coefficients of the chance that a plain answer falls under the validators' gate, and what follows from it.
///
/// The chance is 1 / (1 + exp(-z)), where z is `intercept`, plus the task's own term, plus each further coefficient times
/// its feature (see [`Features`]). Low chances are left alone; for high ones everything is tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollisionModel {
    /// Whether the chance decides anything. Off, all candidates may be varied, by the operators' own weights.
    pub enabled: bool,
    /// Below this chance the prompt is sent as it came, for one candidate.
    pub low: f64,
    /// Above this chance all candidates are made, and `prefer` counts.
    pub high: f64,
    /// Slots whose operators are drawn more often above `high`.
    pub prefer: Vec<String>,
    /// How many times more often.
    pub prefer_factor: f64,
    /// z of an unknown task with all features at 0.
    pub intercept: f64,
    /// Added to z for summaries.
    pub augment: f64,
    /// Added for questions.
    pub followup: f64,
    /// Added for answers about a given text.
    pub answer: f64,
    /// Times [`Features::ln_expected_words`].
    pub ln_expected_words: f64,
    /// Times [`Features::closed`].
    pub closed: f64,
    /// Times [`Features::open`].
    pub open: f64,
    /// Times [`Features::ln_prompt_tokens`].
    pub ln_prompt_tokens: f64,
}

impl Default for CollisionModel {
    /// Returns the coefficients that come with the crate; docs/mutation.md says how they were found.
    fn default() -> Self {
        Self {
            enabled: true,
            low: 0.05,
            high: 0.5,
            prefer: vec!["angle".to_owned(), "lexis".to_owned()],
            prefer_factor: 3.0,
            intercept: -1.73,
            augment: 1.2,
            followup: 0.6,
            answer: 0.8,
            ln_expected_words: 0.58,
            closed: 0.29,
            open: -1.0,
            ln_prompt_tokens: -0.19,
        }
    }
}

/// What the chance is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Features {
    /// The task.
    pub task: Task,
    /// ln(1 + words that the answer will have): what the prompt says ("in 3 sentences", "an essay"), else what is usual.
    pub ln_expected_words: f64,
    /// 1 where the prompt has a sign that there is one right answer ("what is", "define", "translate"), else 0.
    pub closed: f64,
    /// 1 where it has a sign that there are many ("story", "imagine", "suggest"), else 0.
    pub open: f64,
    /// ln(1 + tokens of the last user message), by [`tokens::estimate`].
    pub ln_prompt_tokens: f64,
}

/// What a unit of length comes to in words.
const UNITS: [(&[&str], u32); 6] = [
    (&["word", "words"], 1),
    (&["sentence", "sentences"], 18),
    (&["line", "lines"], 8),
    (&["paragraph", "paragraphs"], 80),
    (&["page", "pages"], 350),
    (
        &[
            "bullet",
            "bullets",
            "points",
            "ideas",
            "examples",
            "tips",
            "ways",
            "things",
            "reasons",
            "steps",
            "questions",
            "names",
        ],
        20,
    ),
];

const NUMBERS: [&str; 13] =
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

/// Words that say how long an answer will be where no number does.
const LENGTHS: [(&[&str], u32); 4] = [
    (
        &["essay", "article", "blog", "story", "script", "speech", "detailed", "detail", "chapter", "letter", "guide"],
        350,
    ),
    (&["poem", "song", "lyrics", "email", "review", "paragraph", "dialogue", "plan", "recipe"], 180),
    (&["briefly", "brief", "short", "concise", "shortly", "sentence", "tweet", "haiku", "title", "slogan"], 50),
    (&["yes", "true", "false"], 15),
];

/// What asks for knowledge or advice that others have, too. A cue counts where a line or sentence begins with it.
const CLOSED: [&str; 47] = [
    "what is",
    "what are",
    "what was",
    "what were",
    "what does",
    "what do",
    "what exactly",
    "what causes",
    "what's",
    "who",
    "when",
    "where",
    "which",
    "how many",
    "how much",
    "how old",
    "how far",
    "how long",
    "how do",
    "how does",
    "how did",
    "how to",
    "how can",
    "how is",
    "why",
    "is",
    "are",
    "does",
    "did",
    "do you know",
    "can you explain",
    "can you help",
    "can you walk",
    "can you give",
    "can i",
    "define",
    "describe how",
    "explain",
    "tell me",
    "walk me",
    "teach me",
    "translate",
    "convert",
    "calculate",
    "solve",
    "classify",
    "name the",
];

/// What asks for invention or taste. A cue counts anywhere.
const OPEN: [&str; 46] = [
    "story",
    "poem",
    "song",
    "lyrics",
    "haiku",
    "rap",
    "imagine",
    "brainstorm",
    "creative",
    "fictional",
    "invent",
    "pretend",
    "act as",
    "design",
    "compose",
    "joke",
    "funny",
    "dialogue",
    "script",
    "novel",
    "plot",
    "character",
    "scene",
    "scenario",
    "persona",
    "motto",
    "slogan",
    "tagline",
    "in the style of",
    "hypothetical",
    "pitch",
    "resume",
    "announcement",
    "your favorite",
    "your favourite",
    "your opinion",
    "do you think",
    "how would you",
    "would you be able",
    "alternatives",
    "gift",
    "recommend",
    "suggest",
    "critical thinking",
    "speech",
    "launch",
];

/// How far words are looked for.
const LOOKED_AT: usize = 4_000;

impl Features {
    /// Returns the features of a conversation: those of its last user message.
    #[must_use]
    pub fn of(task: Task, messages: &[Message]) -> Self {
        let text = messages.iter().rev().find(|m| m.role == Role::User).map_or("", |m| m.content.as_str());
        // Where the text is long, what is asked stands at its end as often as at its beginning.
        let n = text.chars().count();
        let head = text
            .chars()
            .take(LOOKED_AT / 2)
            .chain(text.chars().skip(n.saturating_sub(LOOKED_AT / 2).max(LOOKED_AT / 2)));
        let lower: String = head.flat_map(char::to_lowercase).collect();
        let words: Vec<&str> =
            lower.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty()).collect();
        let has = |cues: &[&str]| f64::from(u8::from(cues.iter().any(|cue| holds(&words, cue))));
        Self {
            task,
            ln_expected_words: f64::from(expected_words(task, &words)).ln_1p(),
            closed: starts_closed(&lower),
            open: has(&OPEN),
            ln_prompt_tokens: f64::from(tokens::estimate(text)).ln_1p(),
        }
    }
}

/// Says whether the words of a cue follow one another somewhere.
fn holds(words: &[&str], cue: &str) -> bool {
    let cue: Vec<&str> = cue.split(' ').collect();
    words.windows(cue.len()).any(|window| window == cue)
}

/// A closed cue counts where a line or sentence begins with it.
fn starts_closed(lower: &str) -> f64 {
    let begins = |part: &str| {
        let words: Vec<&str> =
            part.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|w| !w.is_empty()).take(3).collect();
        CLOSED.iter().any(|cue| {
            let cue: Vec<&str> = cue.split(' ').collect();
            words.starts_with(&cue)
        })
    };
    f64::from(u8::from(lower.split(['\n', '.', '!', '?', ':', ';']).any(begins)))
}

fn expected_words(task: Task, words: &[&str]) -> u32 {
    let number = |word: &str| {
        let spelt = || NUMBERS.iter().position(|name| *name == word).and_then(|n| u32::try_from(n).ok());
        word.parse::<u32>().ok().or_else(spelt).filter(|n| (1..=20_000).contains(n))
    };
    let unit = |word: &str| UNITS.iter().find(|(names, _)| names.contains(&word)).map(|(_, words)| *words);
    // "in 3 sentences", "three short sentences": the last such is what counts.
    let said = words.windows(3).filter_map(|w| Some(number(w[0])? * unit(w[1]).or_else(|| unit(w[2]))?)).next_back();
    let said = said.or_else(|| words.windows(2).filter_map(|w| Some(number(w[0])? * unit(w[1])?)).next_back());
    if let Some(n) = said {
        return n.min(2_000);
    }
    match task {
        Task::Augment => 80,
        Task::Followup => 20,
        Task::Answer => 90,
        _ => LENGTHS.iter().find(|(names, _)| words.iter().any(|w| names.contains(w))).map_or(120, |(_, n)| *n),
    }
}

/// How much is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amount {
    /// The prompt as it came, one candidate.
    Nothing,
    /// As configured.
    Usual,
    /// As configured, with the preferred slots drawn more often.
    Most,
}

impl CollisionModel {
    /// Returns the chance that a plain answer falls under the gate, in [0, 1].
    #[must_use]
    pub fn risk(&self, features: &Features) -> f64 {
        let task = match features.task {
            Task::Augment => self.augment,
            Task::Followup => self.followup,
            Task::Answer => self.answer,
            _ => 0.0,
        };
        let z = self.intercept
            + task
            + self.ln_expected_words * features.ln_expected_words
            + self.closed * features.closed
            + self.open * features.open
            + self.ln_prompt_tokens * features.ln_prompt_tokens;
        1.0 / (1.0 + (-z).exp())
    }

    /// Says how much to vary at a chance.
    #[must_use]
    pub fn amount(&self, risk: f64) -> Amount {
        match risk {
            _ if !self.enabled => Amount::Usual,
            risk if risk < self.low => Amount::Nothing,
            risk if risk > self.high => Amount::Most,
            _ => Amount::Usual,
        }
    }

    /// Returns an operator's weight at an amount.
    #[must_use]
    pub fn weight(&self, operator: &Operator, amount: Amount) -> f64 {
        let is_preferred = amount == Amount::Most && self.prefer.contains(&operator.slot);
        operator.weight * if is_preferred { self.prefer_factor } else { 1.0 }
    }

    /// Returns what is wrong with the values, each with its key.
    pub(crate) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (key, value) in [("low", self.low), ("high", self.high)] {
            if !(0.0..=1.0).contains(&value) {
                problems.push((key, format!("{key} is {value}, expected 0 to 1")));
            }
        }
        if self.low > self.high {
            problems.push(("low", format!("low is {}, expected at most high, {}", self.low, self.high)));
        }
        if !(1.0..=1000.0).contains(&self.prefer_factor) {
            problems.push(("prefer_factor", format!("prefer_factor is {}, expected 1 to 1000", self.prefer_factor)));
        }
        for (key, value) in self.coefficients() {
            if !(-100.0..=100.0).contains(&value) {
                problems.push((key, format!("{key} is {value}, expected -100 to 100")));
            }
        }
        problems
    }

    fn coefficients(&self) -> [(&'static str, f64); 8] {
        [
            ("intercept", self.intercept),
            ("augment", self.augment),
            ("followup", self.followup),
            ("answer", self.answer),
            ("ln_expected_words", self.ln_expected_words),
            ("closed", self.closed),
            ("open", self.open),
            ("ln_prompt_tokens", self.ln_prompt_tokens),
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn features(text: &str) -> Features {
        Features::of(Task::Unknown, &[Message::user(text)])
    }

    #[track_caller]
    fn expects(text: &str, words: u32) {
        assert!((features(text).ln_expected_words.exp_m1() - f64::from(words)).abs() < 1e-6, "{text}");
    }

    #[test]
    fn expected_words_are_what_the_prompt_says() {
        expects("Say it in 30 words.", 30);
        expects("Say it in three short sentences.", 54);
        expects("Answer in 2 sentences", 36);
        expects("Write an essay on rain.", 350);
        expects("Briefly: why?", 50);
        expects("Why?", 120);
        expects("List 4000000000 things", 120);
    }

    #[test]
    fn cues_are_found() {
        assert_eq!((features("What is rain?").closed, features("What is rain?").open), (1.0, 0.0));
        assert_eq!(features("Here is a text.\nTranslate it.").closed, 1.0);
        assert_eq!(features("Write a story about what is lost.").open, 1.0);
        assert_eq!(features("Write a story about what is lost.").closed, 0.0, "it does not begin with it");
        assert_eq!(features("Nowhere whichever").closed, 0.0, "whole words only");
    }

    #[test]
    fn closed_questions_collide_more_than_open_ones() {
        let model = CollisionModel::default();
        let risk = |text: &str| model.risk(&features(text));
        assert!(risk("What is the capital of Texas?") > risk("Write a story about a lighthouse keeper."));
    }

    #[test]
    fn the_chance_decides_how_much_is_varied() {
        let model = CollisionModel::default();
        assert_eq!(model.amount(0.04), Amount::Nothing);
        assert_eq!(model.amount(0.05), Amount::Usual);
        assert_eq!(model.amount(0.5), Amount::Usual);
        assert_eq!(model.amount(0.51), Amount::Most);
        let off = CollisionModel { enabled: false, ..model.clone() };
        assert_eq!(off.amount(0.01), Amount::Usual);
        let operator = |slot: &str| Operator::new("o", slot, crate::Place::Append, "x");
        assert_eq!(model.weight(&operator("angle"), Amount::Most), 3.0);
        assert_eq!(model.weight(&operator("persona"), Amount::Most), 1.0);
        assert_eq!(model.weight(&operator("angle"), Amount::Usual), 1.0);
        assert!(model.problems().is_empty());
    }

    proptest! {
        #[test]
        fn chances_are_chances(text in "(.|\n){0,300}") {
            for task in Task::ALL {
                let risk = CollisionModel::default().risk(&Features::of(task, &[Message::user(text.clone())]));
                prop_assert!((0.0..=1.0).contains(&risk));
            }
        }
    }
}
