//! What a prompt looks like: its length, whether it asks or commands, whether it brings a text along, its language.

use std::fmt;
use std::str::FromStr;

use idiolect_backend::{Message, Role};
use serde::{Deserialize, Serialize};

/// How a prompt asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Form {
    /// With a question.
    Question,
    /// With an order or a request.
    Imperative,
    /// With neither.
    #[default]
    Statement,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 3] = [Self::Question, Self::Imperative, Self::Statement];

    /// Returns the name used in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Question => "question",
            Self::Imperative => "imperative",
            Self::Statement => "statement",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Form {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let expected = || format!("{name:?}, expected question, imperative or statement");
        Self::ALL.into_iter().find(|form| form.as_str() == name).ok_or_else(expected)
    }
}

/// The languages that [`Shape::language`] tells apart, by their ISO 639-1 codes.
pub const LANGUAGES: [&str; 14] = ["en", "de", "fr", "es", "it", "pt", "nl", "ru", "el", "ar", "hi", "zh", "ja", "ko"];

/// The shape of a prompt, that is of its last user message.
///
/// ```
/// use idiolect_backend::Message;
/// use idiolect_mutation::{Form, Shape};
///
/// let shape = Shape::of(&[Message::user("Why is the sky blue?")]);
/// assert_eq!((shape.words, shape.form, shape.has_context, shape.language), (5, Form::Question, false, "en"));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Words, divided by white space.
    pub words: u32,
    /// Whether it asks or commands: read off its first and its last line.
    pub form: Form,
    /// A paragraph of at least [`CONTEXT_WORDS`] words beside another one: a text to work on.
    pub has_context: bool,
    /// A hint at its language, one of [`LANGUAGES`]; empty where it gives none. By script, for Latin script by small words.
    pub language: &'static str,
}

/// Words of a paragraph that makes it a text to work on.
pub const CONTEXT_WORDS: usize = 40;
/// How far the language is looked for.
const LANGUAGE_CHARACTERS: usize = 2_000;

const ASKING: [&str; 35] = [
    "what", "who", "whom", "whose", "when", "where", "why", "which", "how", "is", "are", "was", "were", "do", "does",
    "did", "can", "could", "should", "would", "will", "has", "have", "am", "what's", "who's", "where's", "how's",
    "isn't", "aren't", "won't", "can't", "doesn't", "shall", "may",
];

const COMMANDING: [&str; 86] = [
    "please",
    "write",
    "explain",
    "describe",
    "give",
    "list",
    "summarize",
    "summarise",
    "tell",
    "create",
    "generate",
    "make",
    "provide",
    "find",
    "name",
    "translate",
    "rewrite",
    "compose",
    "design",
    "show",
    "help",
    "suggest",
    "imagine",
    "act",
    "pretend",
    "answer",
    "ask",
    "read",
    "use",
    "compare",
    "analyze",
    "analyse",
    "calculate",
    "convert",
    "classify",
    "identify",
    "draft",
    "edit",
    "improve",
    "correct",
    "fix",
    "extract",
    "choose",
    "pick",
    "plan",
    "discuss",
    "outline",
    "define",
    "brainstorm",
    "recommend",
    "implement",
    "develop",
    "propose",
    "invent",
    "complete",
    "continue",
    "fill",
    "add",
    "remove",
    "sort",
    "solve",
    "evaluate",
    "assess",
    "review",
    "come",
    "think",
    "consider",
    "paraphrase",
    "rephrase",
    "simplify",
    "elaborate",
    "expand",
    "shorten",
    "teach",
    "turn",
    "change",
    "replace",
    "determine",
    "state",
    "prove",
    "derive",
    "devise",
    "formulate",
    "let's",
    "i",
    "your",
];

/// Openings that are commands though their first word is none in itself.
const COMMANDING_OPENINGS: [&str; 5] =
    ["i want you to", "i need you to", "i would like you to", "i'd like you to", "your task is"];

const SMALL_WORDS: [(&str, &[&str]); 7] = [
    (
        "en",
        &["the", "and", "of", "is", "to", "in", "that", "what", "how", "a", "for", "with", "you", "are", "why", "me"],
    ),
    (
        "de",
        &["der", "die", "das", "und", "ist", "nicht", "ein", "eine", "wie", "ich", "den", "mit", "für", "was", "warum"],
    ),
    (
        "fr",
        &["le", "la", "les", "et", "est", "des", "une", "que", "dans", "pour", "du", "qui", "pourquoi", "quelle", "un"],
    ),
    ("es", &["el", "los", "las", "y", "es", "una", "que", "por", "para", "del", "qué", "cómo", "con", "un", "en"]),
    ("it", &["il", "gli", "e", "è", "una", "che", "per", "di", "non", "come", "della", "con", "perché", "un", "sono"]),
    ("pt", &["o", "os", "as", "e", "é", "uma", "que", "para", "não", "do", "da", "com", "como", "um", "em"]),
    ("nl", &["het", "een", "en", "is", "niet", "van", "dat", "de", "wat", "hoe", "voor", "met", "waarom", "ik", "je"]),
];

impl Shape {
    /// Returns the shape of the last user message; the default where there is none.
    #[must_use]
    pub fn of(messages: &[Message]) -> Self {
        let last_user = messages.iter().rev().find(|m| m.role == Role::User);
        last_user.map(|m| Self::of_text(&m.content)).unwrap_or_default()
    }

    fn of_text(text: &str) -> Self {
        let n_words = |text: &str| text.split_whitespace().count();
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let has_context = lines.len() > 1 && lines.iter().any(|line| n_words(line) >= CONTEXT_WORDS);
        Self {
            words: u32::try_from(n_words(text)).unwrap_or(u32::MAX),
            form: form(&lines),
            has_context,
            language: language(text),
        }
    }
}

/// A question mark at the end of the first or last line, or an asking word at its beginning, is a question, unless the
/// other line commands.
fn form(lines: &[&str]) -> Form {
    let of_line = |line: &&str| {
        let lower: String = line.chars().take(200).flat_map(char::to_lowercase).collect();
        let first = lower.split(|c: char| c.is_whitespace() || ",.:;!?".contains(c)).find(|word| !word.is_empty());
        let first = first.unwrap_or_default();
        let commands = COMMANDING.contains(&first) && first != "i" && first != "your"
            || COMMANDING_OPENINGS.iter().any(|opening| lower.starts_with(opening));
        if commands {
            Form::Imperative
        } else if line.ends_with(['?', '？', '؟']) || ASKING.contains(&first) {
            Form::Question
        } else {
            Form::Statement
        }
    };
    let forms: Vec<Form> = lines.first().into_iter().chain(lines.last()).map(of_line).collect();
    [Form::Imperative, Form::Question].into_iter().find(|form| forms.contains(form)).unwrap_or_default()
}

fn language(text: &str) -> &'static str {
    let mut n = [0_usize; 8];
    for c in text.chars().take(LANGUAGE_CHARACTERS) {
        let script = match c {
            '\u{3040}'..='\u{30ff}' => 0,
            '\u{ac00}'..='\u{d7af}' => 1,
            '\u{4e00}'..='\u{9fff}' => 2,
            '\u{0400}'..='\u{04ff}' => 3,
            '\u{0370}'..='\u{03ff}' => 4,
            '\u{0600}'..='\u{06ff}' => 5,
            '\u{0900}'..='\u{097f}' => 6,
            c if c.is_alphabetic() => 7,
            _ => continue,
        };
        n[script] += 1;
    }
    let all: usize = n.iter().sum();
    if all == 0 {
        return "";
    }
    // Japanese has characters of its own among the Chinese ones.
    if n[0] * 10 > all {
        return "ja";
    }
    let of_script = [(n[1], "ko"), (n[2], "zh"), (n[3], "ru"), (n[4], "el"), (n[5], "ar"), (n[6], "hi")];
    if let Some((_, language)) = of_script.into_iter().find(|(n, _)| n * 2 > all) {
        return language;
    }
    let lower: String = text.chars().take(LANGUAGE_CHARACTERS).flat_map(char::to_lowercase).collect();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphabetic() && c != '\'').filter(|w| !w.is_empty()).collect();
    let counts = SMALL_WORDS.map(|(language, small)| (words.iter().filter(|w| small.contains(w)).count(), language));
    // Of equals the first; one word in ten has to speak for it.
    let best = counts.into_iter().rev().max_by_key(|(n, _)| *n);
    best.filter(|(n, _)| *n > 0 && n * 10 >= words.len()).map_or("", |(_, language)| language)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn form_of(text: &str, expected: Form) {
        assert_eq!(Shape::of_text(text).form, expected, "{text:?}");
    }

    #[test]
    fn forms_are_read_off_the_first_and_the_last_line() {
        form_of("Why is the sky blue?", Form::Question);
        form_of("why is the sky blue", Form::Question);
        form_of("Write a poem about rain.", Form::Imperative);
        form_of("Please tell me, what is rain?", Form::Imperative);
        form_of("Some text.\n\nSummarize it.", Form::Imperative);
        form_of("Some text.\n\nIs it true?", Form::Question);
        form_of("I want you to act as a guide.", Form::Imperative);
        form_of("I like rain.", Form::Statement);
        form_of("", Form::Statement);
    }

    #[test]
    fn a_text_to_work_on_is_context() {
        let text = "word ".repeat(50);
        assert!(Shape::of_text(&format!("{text}\nSummarize it.")).has_context);
        assert!(!Shape::of_text(&text).has_context);
        assert!(!Shape::of_text("One line.\nAnd another.").has_context);
    }

    #[test]
    fn languages_are_guessed_from_script_and_small_words() {
        for (text, expected) in [
            ("What is the capital of France?", "en"),
            ("Was ist die Hauptstadt von Frankreich und warum?", "de"),
            ("Quelle est la capitale de la France ?", "fr"),
            ("¿Cuál es la capital de los Países Bajos y por qué?", "es"),
            ("Почему небо голубое?", "ru"),
            ("空はなぜ青いのですか", "ja"),
            ("天空为什么是蓝色的", "zh"),
            ("하늘은 왜 파란가요", "ko"),
            ("1 + 1 = ", ""),
            ("Xyzzy", ""),
        ] {
            let found = Shape::of_text(text).language;
            assert_eq!(found, expected, "{text}");
            assert!(found.is_empty() || LANGUAGES.contains(&found));
        }
    }

    #[test]
    fn only_the_last_user_message_counts() {
        let messages =
            [Message::user("a b c"), Message::assistant("d"), Message::user("Why?"), Message::assistant("e f")];
        assert_eq!(Shape::of(&messages).words, 1);
        assert_eq!(Shape::of(&[Message::system("x")]), Shape::default());
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "(.|\n){0,200}") {
            Shape::of_text(&text);
        }
    }
}
