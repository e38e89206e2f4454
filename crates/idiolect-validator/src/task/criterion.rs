use std::sync::LazyLock;

use regex::Regex;

use crate::python;

/// What the length of a reply is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Unicode characters, spaces around the reply included.
    Characters,
    /// What white space divides; an empty reply counts as one.
    Words,
    /// Ends of sentences: one of `.?!` that follows no capital letter, before white space or the end.
    Sentences,
    /// What empty lines divide; an empty reply counts as one.
    Paragraphs,
}

impl Unit {
    const ALL: [Self; 4] = [Self::Characters, Self::Words, Self::Sentences, Self::Paragraphs];

    const fn name(self) -> &'static str {
        match self {
            Self::Characters => "characters",
            Self::Words => "words",
            Self::Sentences => "sentences",
            Self::Paragraphs => "paragraphs",
        }
    }

    /// Returns how long a text is.
    #[must_use]
    pub fn count(self, text: &str) -> usize {
        match self {
            Self::Characters => text.chars().count(),
            Self::Words => text.split(python::is_space).filter(|word| !word.is_empty()).count().max(1),
            Self::Sentences => sentences(text),
            Self::Paragraphs => paragraphs(python::strip(text)),
        }
    }
}

fn sentences(text: &str) -> usize {
    let mut before = None;
    let mut rest = text.chars().peekable();
    let mut n_sentences = 0;
    while let Some(c) = rest.next() {
        let ends = matches!(c, '.' | '?' | '!') && !before.is_some_and(|b: char| b.is_ascii_uppercase());
        if ends && rest.peek().is_none_or(|next| python::is_space(*next)) {
            n_sentences += 1;
        }
        before = Some(c);
    }
    n_sentences
}

fn paragraphs(text: &str) -> usize {
    let (mut n_paragraphs, mut newlines) = (1, 0);
    for c in text.chars() {
        newlines = if c == '\n' { newlines + 1 } else { 0 };
        if newlines == 2 {
            n_paragraphs += 1;
        }
    }
    n_paragraphs
}

/// Where the words should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentMatch {
    /// At the start, after white space, as a whole word.
    StartsWith,
    /// At the end, before white space.
    EndsWith,
    /// Anywhere.
    Includes,
}

impl ContentMatch {
    const ALL: [Self; 3] = [Self::StartsWith, Self::EndsWith, Self::Includes];

    const fn name(self) -> &'static str {
        match self {
            Self::StartsWith => "starts with",
            Self::EndsWith => "ends with",
            Self::Includes => "includes",
        }
    }
}

/// One line of a task's criteria (`criteria.py`). What its breach costs is the profile's matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Criterion {
    /// The reply's length.
    Length {
        /// How long.
        target: u32,
        /// Counted in what.
        unit: Unit,
    },
    /// A list with bullets.
    Bullets,
    /// A numbered list.
    Numbers,
    /// Neither kind of list.
    NoLists,
    /// A question mark at the end.
    EndsWithQuestionMark,
    /// No question mark at all.
    NoQuestionMarks,
    /// One of some words in some place; case does not count.
    Words {
        /// Where.
        place: ContentMatch,
        /// Whether they must not be there.
        negated: bool,
        /// The words: at least one, none with `, ` in it.
        words: Vec<String>,
    },
    /// A line that fits none of the above, kept as it is; it is never breached.
    Other(String),
}

const BULLETS: &str = "Your response should be ordered in format of bullet points.";
const NUMBERS: &str = "Your response should be ordered in format of numbered list.";
const NO_LISTS: &str = "Your response should not contain any bullet points or numbered lists.";
const ENDS_WITH_QUESTION_MARK: &str = "Your response should end with a question mark, i.e. \"?\"";
const NO_QUESTION_MARKS: &str = "Your response should not include any question marks";

impl Criterion {
    /// Returns the line's text, without the bullet.
    #[must_use]
    pub fn compose(&self) -> String {
        match self {
            Self::Length { target, unit } => format!("Your response must have {target} {}.", unit.name()),
            Self::Bullets => BULLETS.to_owned(),
            Self::Numbers => NUMBERS.to_owned(),
            Self::NoLists => NO_LISTS.to_owned(),
            Self::EndsWithQuestionMark => ENDS_WITH_QUESTION_MARK.to_owned(),
            Self::NoQuestionMarks => NO_QUESTION_MARKS.to_owned(),
            Self::Words { place, negated, words } => {
                let should = if *negated { "should not" } else { "should" };
                let which = if words.len() > 1 { "one of the following words" } else { "the following word" };
                format!("Your response {should} {} {which}: {}.", place.name(), words.join(", "))
            }
            Self::Other(text) => text.clone(),
        }
    }

    /// Reads a line without its bullet. What is not exactly a known text is [`Criterion::Other`].
    #[must_use]
    pub fn parse(line: &str) -> Self {
        let known = match line {
            BULLETS => Some(Self::Bullets),
            NUMBERS => Some(Self::Numbers),
            NO_LISTS => Some(Self::NoLists),
            ENDS_WITH_QUESTION_MARK => Some(Self::EndsWithQuestionMark),
            NO_QUESTION_MARKS => Some(Self::NoQuestionMarks),
            _ => Self::parse_length(line).or_else(|| Self::parse_words(line)),
        };
        known.filter(|c| c.compose() == line).unwrap_or_else(|| Self::Other(line.to_owned()))
    }

    fn parse_length(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("Your response must have ")?.strip_suffix('.')?;
        let (number, unit) = rest.split_once(' ')?;
        let unit = Unit::ALL.into_iter().find(|u| u.name() == unit)?;
        Some(Self::Length { target: number.parse().ok()?, unit })
    }

    fn parse_words(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("Your response should ")?.strip_suffix('.')?;
        let (negated, rest) = rest.strip_prefix("not ").map_or((false, rest), |rest| (true, rest));
        let place = ContentMatch::ALL.into_iter().find(|p| rest.starts_with(p.name()))?;
        let rest = &rest[place.name().len()..];
        let words = match rest.strip_prefix(" the following word: ") {
            Some(word) => vec![word.to_owned()],
            None => rest.strip_prefix(" one of the following words: ")?.split(", ").map(str::to_owned).collect(),
        };
        Some(Self::Words { place, negated, words })
    }

    /// Returns how badly a reply breaks the criterion, from 0 to 1: to be multiplied by what it costs at most.
    ///
    /// Lengths: 1 - exp(-steepness r²) with r the relative error (validators' steepness is 10); a target of 0 is broken by
    /// any length but 0. All else: 0 or 1.
    #[must_use]
    pub fn breach(&self, reply: &str, steepness: f64) -> f64 {
        let broken = match self {
            Self::Length { target, unit } => return length_breach(unit.count(reply), *target, steepness),
            Self::Bullets => !has_bullets(reply),
            Self::Numbers => !has_numbers(reply),
            Self::NoLists => has_bullets(reply) || has_numbers(reply),
            Self::EndsWithQuestionMark => !reply.trim_end_matches(python::is_space).ends_with('?'),
            Self::NoQuestionMarks => reply.contains('?'),
            Self::Words { place, negated, words } => has_words(*place, words, reply) == *negated,
            Self::Other(_) => false,
        };
        f64::from(u8::from(broken))
    }

    /// Says whether the criterion is about lists, which cost more than others.
    #[must_use]
    pub const fn is_layout(&self) -> bool {
        matches!(self, Self::Bullets | Self::Numbers | Self::NoLists)
    }
}

fn length_breach(length: usize, target: u32, steepness: f64) -> f64 {
    if length == target as usize {
        return 0.0;
    }
    if target == 0 {
        return 1.0;
    }
    let relative = (f64::from(target) - length as f64) / f64::from(target);
    1.0 - (-steepness * relative * relative).exp()
}

/// A bullet character before white space, anywhere: a dash between words counts.
fn has_bullets(text: &str) -> bool {
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if matches!(c, '*' | '-' | '+' | '•' | '‣' | '◦') && chars.peek().is_some_and(|n| python::is_space(*n)) {
            return true;
        }
    }
    false
}

/// A decimal digit, a full stop and white space, anywhere: a sentence that ends in a year counts. As in Python a digit is one of
/// Unicode's category Nd, of whatever script; superscripts, fractions and Roman numerals are none.
static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(&python::pattern(r"\p{Nd}\.\s")).ok());

fn has_numbers(text: &str) -> bool {
    NUMBER.as_ref().is_some_and(|number| number.is_match(text))
}

fn has_words(place: ContentMatch, words: &[String], text: &str) -> bool {
    let text = match place {
        ContentMatch::StartsWith => text.trim_start_matches(python::is_space),
        ContentMatch::EndsWith => text.trim_end_matches(python::is_space),
        ContentMatch::Includes => text,
    };
    words.iter().any(|word| {
        let escaped = python::pattern(&regex::escape(word));
        let pattern = match place {
            ContentMatch::StartsWith => format!("(?i)^{escaped}"),
            ContentMatch::EndsWith => format!("(?i){escaped}$"),
            ContentMatch::Includes => format!("(?i){escaped}"),
        };
        // An escaped word always compiles but for one beyond the size limit, which no prompt can usefully hold.
        let found = Regex::new(&pattern).ok().and_then(|regex| regex.find(text));
        // At the start a word ends where what is part of one meets what is none.
        found.is_some_and(|found| place != ContentMatch::StartsWith || is_edge(text, found.end()))
    })
}

/// Says whether only one of the characters before and after is part of a word.
fn is_edge(text: &str, at: usize) -> bool {
    let (before, after) = text.split_at(at);
    before.ends_with(python::is_word) != after.starts_with(python::is_word)
}
