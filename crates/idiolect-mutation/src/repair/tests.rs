use std::sync::Arc;

use idiolect_validator::Profile;
use idiolect_validator::task::{ContentMatch, Criterion, TaskKind, Unit, openvalidators, text_prompting};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::Task;

fn rules(kind: TaskKind, criteria: &[Criterion]) -> Rules {
    let base_text = "Leaves make sugar out of light and water. They do so in the morning.".to_owned();
    let prompt = text_prompting::Task { kind, base_text, criteria: criteria.to_vec() };
    Rules::detect(Task::Unknown, &prompt.compose())
}

#[track_caller]
fn check(kind: TaskKind, criteria: &[Criterion], text: &str, expected: &str) {
    let rules = rules(kind, criteria);
    let repaired = repair(&rules, text);
    assert_eq!(repaired.text, expected, "{:?}", repaired.repairs);
    assert_eq!(repaired.repairs.is_empty(), text == expected);
}

fn length(target: u32, unit: Unit) -> Criterion {
    Criterion::Length { target, unit }
}

fn words(place: ContentMatch, negated: bool, words: &[&str]) -> Criterion {
    Criterion::Words { place, negated, words: words.iter().map(|&word| word.to_owned()).collect() }
}

use TaskKind::{Answer, Augment, Followup};

#[test]
fn labels_and_preambles_go() {
    check(Augment, &[], "The data: three leaves.", "The data three leaves.");
    check(Augment, &[], "Criteria:three, data:four.", "Criteria three, data four.");
    check(Augment, &[], "**Answer:** Sugar is made.\nA: It is.", "Sugar is made.\nIt is.");
    check(Augment, &[], "Summary: Sugar is made.", "Sugar is made.");
    check(Augment, &[], "### QUESTION 1:\nSugar is made.", "Sugar is made.");
    check(Answer, &[], "Answer: Sugar, of course.", "Sugar, of course.");
    check(Answer, &[], "At 10:30 the answer: sugar.", "At 10:30 the answer: sugar.");
    check(
        Augment,
        &[],
        "Sure! Here is a summary: sugar is made there by all leaves.",
        "Sugar is made there by all leaves.",
    );
    check(
        Augment,
        &[],
        "Certainly! Here is a summary.\n\nSugar is made by all leaves.",
        "Sugar is made by all leaves.",
    );
    check(Answer, &[], "Leaves make it.\nUser: thanks", "Leaves make it.");
    check(Augment, &[], "Keep `data: 3` as it is.", "Keep `data: 3` as it is.");
}

#[test]
fn lists_come_and_go() {
    let none = [Criterion::NoLists];
    check(Augment, &none, "- Leaves make it.\n* 2. It is sweet.\n", "Leaves make it.\nIt is sweet.");
    check(Augment, &none, "Sugar - a food - is made.", "Sugar – a food – is made.");
    check(Augment, &none, "**Sugar** is made, 2 * 3 + 1 a day.", "Sugar is made, 2 × 3 plus 1 a day.");
    check(Augment, &none, "It began in 1999. The leaves fell.", "It began in 1999; the leaves fell.");
    check(Augment, &none, "Steps are 1. Mix 2. Bake.", "Steps are 1) Mix 2) Bake.");
    check(Augment, &none, "It is a well-known 3.5 part.", "It is a well-known 3.5 part.");
    check(Augment, &none, "One\n---\n+ Two •\nthree", "One\nTwo\nthree");
    let bullets = [Criterion::Bullets];
    check(Augment, &bullets, "Leaves make it. It is sweet.", "- Leaves make it.\n- It is sweet.");
    check(Augment, &bullets, "It is so:\n1. Leaves.\n2. Sugar.", "It is so:\n- Leaves.\n- Sugar.");
    check(Answer, &[Criterion::Numbers], "Leaves make it\nIt is sweet", "1. Leaves make it\n2. It is sweet");
    let lines = "It is sweet. It is white.\nLeaves make it. All day.";
    check(Answer, &bullets, lines, "- It is sweet.\n- It is white.\n- Leaves make it.\n- All day.");
    let code = "```\n- others - all\n```";
    check(Augment, &none, &format!("- Leaves:\n{code}"), &format!("- Leaves:\n{code}"));
    check(Answer, &[length(3, Unit::Words)], &format!("It is sweet.\n{code}\nAnd so."), "It is sweet.");
}

#[test]
fn lengths_are_cut_at_sentences() {
    let text = "Leaves make it all day. It is sweet and white. Dr. Hill said so in 1999. So it is.";
    check(Augment, &[length(2, Unit::Sentences)], text, "Leaves make it all day. It is sweet and white.");
    check(Augment, &[length(9, Unit::Words)], text, "Leaves make it all day. It is sweet and white.");
    check(Augment, &[length(24, Unit::Characters)], text, "Leaves make it all day.");
    check(Augment, &[length(90, Unit::Words)], text, text);
    let steps = [length(2, Unit::Sentences), Criterion::Numbers];
    check(Answer, &steps, "1. Leaves make it.\n2. It is sweet.", "1. Leaves make it\n2. It is sweet");
    check(Answer, &[length(2, Unit::Sentences)], "Leaves make it\nIt is sweet", "Leaves make it.\nIt is sweet.");
    check(Augment, &[length(1, Unit::Paragraphs)], "One part.\n\nAnd another.", "One part.\nAnd another.");
    let parts = "Leaves make it all day.\n\nIt is sweet and white.";
    check(Augment, &[length(2, Unit::Paragraphs)], &parts.replace("\n\n", " "), parts);
}

#[test]
fn questions_are_one_and_answers_none() {
    let starts = [words(ContentMatch::StartsWith, false, &["what", "how"]), Criterion::EndsWithQuestionMark];
    check(Followup, &starts, "Here it is: what makes sugar sweet?", "What makes sugar sweet?");
    check(Followup, &starts, "Is it sweet? How do leaves make it? Whatever.", "How do leaves make it?");
    check(Followup, &starts, "In the evening, what do leaves make? Tell me.", "What do leaves make?");
    check(Followup, &starts, "What makes it? And how?", "What makes it? And how?");
    let five = [length(5, Unit::Words)];
    check(Followup, &five, "What? How do leaves make sugar? So it is.", "How do leaves make sugar?");
    let none = [Criterion::NoQuestionMarks];
    check(Answer, &none, "Leaves make it all day. It is sweet. Is that all?", "Leaves make it all day. It is sweet.");
    check(Answer, &none, "Is it sweet?", "Is it sweet.");
    check(
        Answer,
        &[words(ContentMatch::Includes, true, &["?"])],
        "Leaves make it all day. Is it?",
        "Leaves make it all day.",
    );
    check(Answer, &[Criterion::EndsWithQuestionMark], "It is sweet.", "It is sweet?");
    check(Answer, &[words(ContentMatch::EndsWith, false, &["sweet"])], "It is sweet. So.", "It is sweet");
    check(Answer, &[words(ContentMatch::EndsWith, false, &["!"])], "It is sweet.", "It is sweet!");
    check(Answer, &[words(ContentMatch::StartsWith, true, &["however"])], "However, it is sweet.", "It is sweet.");

    // Version 1.2 does not cut questions: what comes after the first costs all.
    let task = openvalidators::Task::Followup { context: "Leaves make sugar.".to_owned(), first: true };
    let rules = Rules::detect(Task::Unknown, &task.compose());
    assert_eq!(repair(&rules, "What is it? Answer: sugar.").text, "What is it?");
    assert_eq!(repair(&rules, "What is it? And why?").text, "What is it? And why?");
}

#[test]
fn repairs_say_what_they_did_and_nothing_of_the_text() {
    let rules = rules(Augment, &[length(4, Unit::Words)]);
    let repaired = repair(&rules, "Leaves make it all. Nobody else does.");
    assert_eq!(repaired.repairs[0].note, "cut from 7 to 4 words, 4 asked for");
    assert_eq!((repaired.repairs[0].kind, repaired.after), (RepairKind::Length, 0.0));
    assert!(!format!("{repaired:?}").contains("Leaves"));
}

fn piece() -> impl Strategy<Value = String> {
    const FIXED: &[&str] = &[
        "Sure! Here is a summary: ",
        "Answer: ",
        "**Question:** ",
        "data:",
        "### QUESTION 1:\n",
        "- ",
        "* ",
        "1. ",
        "\n",
        "\n\n",
        "\n- ",
        "\n2. ",
        "It is so. ",
        "What is it? ",
        "how? ",
        "in 1999. ",
        "```\n",
        "`- a` ",
        "\nUser: ",
        " e.g. this ",
        "! ",
        "+ ",
        "• ",
        "Leaves make sugar out of light, and water. ",
        "ſ: ",
        "İa: ",
        "½. ",
        "\u{661}. ",
        "\r\n",
        "¿Qué? ",
        "~~~\nx\n",
        "a: ",
    ];
    let fixed = proptest::sample::select(FIXED).prop_map(str::to_owned);
    prop_oneof![3 => fixed, 1 => "\\PC{0,6}", 1 => "[a-z]{1,8} ", 1 => proptest::collection::vec(any::<char>(), 0..3).prop_map(String::from_iter)]
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(piece(), 0..14).prop_map(|pieces| pieces.concat())
}

fn criterion() -> impl Strategy<Value = Criterion> {
    let unit = prop_oneof![Just(Unit::Characters), Just(Unit::Words), Just(Unit::Sentences), Just(Unit::Paragraphs)];
    let place = prop_oneof![Just(ContentMatch::StartsWith), Just(ContentMatch::EndsWith), Just(ContentMatch::Includes)];
    let word = proptest::sample::select(&["what", "how", "is", "?", "leaves", ".", "ü", "so"][..]);
    prop_oneof![
        3 => (0..40_u32, unit).prop_map(|(target, unit)| Criterion::Length { target, unit }),
        1 => Just(Criterion::Bullets),
        1 => Just(Criterion::Numbers),
        1 => Just(Criterion::NoLists),
        1 => Just(Criterion::EndsWithQuestionMark),
        1 => Just(Criterion::NoQuestionMarks),
        2 => (place, any::<bool>(), proptest::collection::vec(word.prop_map(str::to_owned), 1..4))
            .prop_map(|(place, negated, words)| Criterion::Words { place, negated, words }),
    ]
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let kind = proptest::sample::select(&TaskKind::ALL[..]);
    let task = proptest::sample::select(&Task::ALL[..]);
    prop_oneof![
        4 => (kind, proptest::collection::vec(criterion(), 0..4)).prop_map(|(kind, criteria)| rules(kind, &criteria)),
        1 => task.prop_map(|task| Rules::new(Arc::new(Profile::openvalidators_1_2()), task, "Leaves make sugar.")),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(5),
        ..ProptestConfig::default()
    })]

    #[test]
    fn repairs_only_help_and_only_once(rules in any_rules(), text in text()) {
        let (before, repaired) = (rules.loss(&text), repair(&rules, &text));
        let after = rules.loss(&repaired.text);
        prop_assert!(after.exact <= before.exact && after.total <= before.total);
        prop_assert_eq!(repaired.text == text, repaired.repairs.is_empty());
        prop_assert_eq!(after.total < before.total, !repaired.repairs.is_empty());
        if before.total == 0.0 {
            prop_assert!(matches!(repaired.text, Cow::Borrowed(_)));
        }
        let again = repair(&rules, &repaired.text);
        prop_assert_eq!(&again.text, &repaired.text, "{:?} {:?}", repaired.repairs, again.repairs);
        prop_assert!(again.repairs.is_empty());
        prop_assert!(keeps_code(&rules, &text, &repaired.text));
        prop_assert!(crate::retry::advice(&rules, &repaired.text, 2.0).is_none());
        let _ = crate::retry::advice(&rules, &repaired.text, 0.0);
    }
}
