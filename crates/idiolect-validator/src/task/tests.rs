use proptest::prelude::*;

use super::text_prompting::cut_followup;
use super::*;

/// Texts with the templates' own words in them.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        "[ -~\\n]{0,20}",
        "\\PC{0,12}",
        Just("'''".to_owned()),
        Just("\n\nThe following criteria must be respected:\n- ".to_owned()),
        Just("Question:".to_owned()),
        Just("### SUMMARY CONTEXT:\n".to_owned()),
    ];
    proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}

fn word() -> impl Strategy<Value = String> {
    "[a-zA-Z?!']{1,8}"
}

fn criterion() -> impl Strategy<Value = Criterion> {
    let unit = prop_oneof![Just(Unit::Characters), Just(Unit::Words), Just(Unit::Sentences), Just(Unit::Paragraphs)];
    let place = prop_oneof![Just(ContentMatch::StartsWith), Just(ContentMatch::EndsWith), Just(ContentMatch::Includes)];
    prop_oneof![
        (any::<u32>(), unit).prop_map(|(target, unit)| Criterion::Length { target, unit }),
        Just(Criterion::Bullets),
        Just(Criterion::Numbers),
        Just(Criterion::NoLists),
        Just(Criterion::EndsWithQuestionMark),
        Just(Criterion::NoQuestionMarks),
        (place, any::<bool>(), proptest::collection::vec(word(), 1..4))
            .prop_map(|(place, negated, words)| Criterion::Words { place, negated, words }),
        "[ -~]{0,30}[a-z]".prop_map(Criterion::Other),
    ]
}

fn prompt() -> impl Strategy<Value = Prompt> {
    let kind = prop_oneof![Just(TaskKind::Augment), Just(TaskKind::Followup), Just(TaskKind::Answer)];
    prop_oneof![
        (text(), any::<u32>()).prop_map(|(text, sentences)| openvalidators::Task::Augment { text, sentences }),
        (text(), any::<bool>()).prop_map(|(context, first)| openvalidators::Task::Followup { context, first }),
        (text(), text()).prop_map(|(context, question)| {
            let question = question.replace("Question:", "");
            openvalidators::Task::Answer { context, question }
        }),
    ]
    .prop_map(Prompt::OpenValidators)
    .boxed()
    .prop_union(
        (kind, text(), proptest::collection::vec(criterion(), 0..4))
            .prop_map(|(kind, base_text, criteria)| {
                Prompt::TextPrompting(text_prompting::Task { kind, base_text, criteria })
            })
            .boxed(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_composed_is_read_back(prompt in prompt()) {
        prop_assert_eq!(Prompt::parse(&compose(&prompt)), prompt);
    }

    #[test]
    fn any_text_can_be_read(text in "\\PC{0,80}") {
        prop_assert_eq!(Prompt::parse(&text), Prompt::Unknown);
    }

    #[test]
    fn damaged_prompts_are_unknown_or_read_as_they_are(
        (prompt, edits) in (prompt(), proptest::collection::vec(edit(), 1..4)),
    ) {
        let text = edits.iter().fold(compose(&prompt), |text, edit| edit.apply(&text));
        let read = Prompt::parse(&text);
        if read != Prompt::Unknown {
            prop_assert_eq!(without_variants(&compose(&read)), without_variants(&text));
        }
    }
}

fn compose(prompt: &Prompt) -> String {
    match prompt {
        Prompt::OpenValidators(task) => task.compose(),
        Prompt::TextPrompting(task) => task.compose(),
        Prompt::Unknown => unreachable!("never drawn"),
    }
}

/// Takes off what recorded runs of version 2.1 have in two forms: the empty line before the criteria, the spaces after them.
fn without_variants(text: &str) -> String {
    let text = text.replace("'''\n\nThe following criteria", "'''\nThe following criteria");
    text.replace(&format!("{}\n- Do not", " ".repeat(38)), "\n- Do not")
}

/// A damage at places in parts of a text's length, so that it fits any text.
#[derive(Clone, Debug)]
enum Edit {
    /// Takes out what is between two places.
    Cut(f64, f64),
    /// Says what is between two places twice.
    Twice(f64, f64),
    /// Swaps the characters at two places.
    Swap(f64, f64),
    /// Swaps two lines.
    SwapLines(f64, f64),
    /// Says a line twice.
    LineTwice(f64),
    /// Takes out a line.
    CutLine(f64),
}

fn edit() -> impl Strategy<Value = Edit> {
    let place = || 0.0..1.0_f64;
    // Few characters at a time: most damage to a long part leaves nothing that looks like a template.
    let near = || (place(), 0.0..0.02_f64).prop_map(|(from, more)| (from, (from + more).min(1.0)));
    prop_oneof![
        near().prop_map(|(from, to)| Edit::Cut(from, to)),
        near().prop_map(|(from, to)| Edit::Twice(from, to)),
        near().prop_map(|(a, b)| Edit::Swap(a, b)),
        (place(), place()).prop_map(|(a, b)| Edit::SwapLines(a, b)),
        place().prop_map(Edit::LineTwice),
        place().prop_map(Edit::CutLine),
        (place(), place()).prop_map(|(a, b)| Edit::Cut(a.min(b), a.max(b))),
    ]
}

impl Edit {
    fn apply(&self, text: &str) -> String {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place below the length")]
        let at = |part: f64, n: usize| ((part * n as f64) as usize).min(n.saturating_sub(1));
        let mut chars: Vec<char> = text.chars().collect();
        let mut lines: Vec<&str> = text.split('\n').collect();
        let (n_chars, n_lines) = (chars.len(), lines.len());
        if n_chars == 0 {
            return String::new();
        }
        match *self {
            Self::Cut(from, to) => drop(chars.drain(at(from, n_chars)..=at(to, n_chars))),
            Self::Twice(from, to) => {
                let (from, to) = (at(from, n_chars), at(to, n_chars));
                let again = chars[from..=to].to_vec();
                chars.splice(from..from, again);
            }
            Self::Swap(a, b) => chars.swap(at(a, n_chars), at(b, n_chars)),
            Self::SwapLines(a, b) => lines.swap(at(a, n_lines), at(b, n_lines)),
            Self::LineTwice(line) => lines.insert(at(line, n_lines), lines[at(line, n_lines)]),
            Self::CutLine(line) => drop(lines.remove(at(line, n_lines))),
        }
        match self {
            Self::Cut(..) | Self::Twice(..) | Self::Swap(..) => chars.into_iter().collect(),
            Self::SwapLines(..) | Self::LineTwice(_) | Self::CutLine(_) => lines.join("\n"),
        }
    }
}

#[test]
fn near_misses_are_unknown() {
    for prompt in [
        "",
        "Summarize the preceding context in 5 sentences.",
        "A\n\nSummarize the preceding context in five sentences. Do not try to create questions or answers for your summarization.\n\n",
        "A\n\nSummarize the preceding context in 05 sentences. Do not try to create questions or answers for your summarization.\n\n",
        "Your task is to summarize the text delimited with triple backticks:\n'''A'''\n\nBe brief.\n",
    ] {
        assert_eq!(Prompt::parse(prompt), Prompt::Unknown, "{prompt}");
    }
}

#[test]
fn steps_have_kinds() {
    assert_eq!(TaskKind::of_step("augment"), Some(TaskKind::Augment));
    assert_eq!(TaskKind::of_step("followup2"), Some(TaskKind::Followup));
    assert_eq!(TaskKind::of_step("answer0"), Some(TaskKind::Answer));
    assert_eq!(TaskKind::of_step("augmented"), None);
    assert_eq!(TaskKind::of_step("answers"), None);
}

#[test]
fn followups_are_cut_to_one_question() {
    assert_eq!(cut_followup("Well. Let me see. What is it? And why?", 40), " What is it?");
    assert_eq!(cut_followup("One. Two.", 40), " Two?");
    assert_eq!(cut_followup("", 40), "");
    assert_eq!(cut_followup("...", 40), "...");
    assert_eq!(cut_followup(&"w ".repeat(60), 40).split(' ').count(), 40);
}

#[test]
fn words_in_their_places() {
    let starts = Criterion::parse("Your response should starts with one of the following words: who, what, is.");
    assert_eq!(starts.breach("  What is it?", 10.0), 0.0);
    assert_eq!(starts.breach("IS, or isn't it?", 10.0), 0.0);
    assert_eq!(starts.breach("Isn't it?", 10.0), 1.0);
    assert_eq!(starts.breach("Whatever?", 10.0), 1.0);
    assert_eq!(Criterion::EndsWithQuestionMark.breach("Why?  ", 10.0), 0.0);
    assert_eq!(Criterion::NoQuestionMarks.breach("Why? So.", 10.0), 1.0);
    assert_eq!(Criterion::Other("Be kind.".to_owned()).breach("No.", 10.0), 0.0);
}

#[test]
fn lists_are_numbered_in_decimal_digits() {
    for plain in [
        "The area is 5 m\u{b2}. The rest is sea.",
        "Take \u{bd}. Then stir.",
        "Volume \u{2163}. The end.",
        "Step \u{2460}. Begin.",
        "In the end, none.",
    ] {
        assert_eq!(Criterion::NoLists.breach(plain, 10.0), 0.0, "{plain}");
        assert_eq!(Criterion::Numbers.breach(plain, 10.0), 1.0, "{plain}");
    }
    for list in ["1. Begin.", "It was in 1999. Then came", "\u{661}. Begin.", "\u{967}.\nBegin.", "12.\tBegin."] {
        assert_eq!(Criterion::NoLists.breach(list, 10.0), 1.0, "{list}");
        assert_eq!(Criterion::Numbers.breach(list, 10.0), 0.0, "{list}");
    }
}
