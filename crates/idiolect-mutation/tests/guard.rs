//! The guard's exact rules against whole steps of the validator's.

use std::sync::Arc;

use idiolect_mutation::guard::Rules;
use idiolect_mutation::{FlagKind, Task};
use idiolect_validator::task::{ContentMatch, Criterion, TaskKind, Unit, openvalidators, text_prompting};
use idiolect_validator::{Missing, Models, Profile, Reply, StepTask, Validator};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const BASE: &str = "Leaves make sugar out of light. What do they make it of?";

fn criterion() -> impl Strategy<Value = Criterion> {
    let unit = prop_oneof![Just(Unit::Characters), Just(Unit::Words), Just(Unit::Sentences), Just(Unit::Paragraphs)];
    let place = prop_oneof![Just(ContentMatch::StartsWith), Just(ContentMatch::EndsWith), Just(ContentMatch::Includes)];
    let word = proptest::sample::select(&["what", "how", "?", "leaves"][..]).prop_map(str::to_owned);
    prop_oneof![
        (0..30_u32, unit).prop_map(|(target, unit)| Criterion::Length { target, unit }),
        Just(Criterion::Bullets),
        Just(Criterion::Numbers),
        Just(Criterion::NoLists),
        Just(Criterion::EndsWithQuestionMark),
        Just(Criterion::NoQuestionMarks),
        (place, any::<bool>(), proptest::collection::vec(word, 1..3))
            .prop_map(|(place, negated, words)| Criterion::Words { place, negated, words }),
        Just(Criterion::Other("Be kind.".to_owned())),
    ]
}

fn prompt() -> impl Strategy<Value = String> {
    let base = || BASE.to_owned();
    let kind = proptest::sample::select(&TaskKind::ALL[..]);
    prop_oneof![
        4 => (kind, proptest::collection::vec(criterion(), 0..4)).prop_map(move |(kind, criteria)| {
            text_prompting::Task { kind, base_text: base(), criteria }.compose()
        }),
        1 => proptest::sample::select(&[0, 1, 2][..]).prop_map(move |i| match i {
            0 => openvalidators::Task::Augment { text: base(), sentences: 4 }.compose(),
            1 => openvalidators::Task::Followup { context: base(), first: true }.compose(),
            _ => openvalidators::Task::Answer { context: base(), question: "Why?".to_owned() }.compose(),
        }),
    ]
}

fn reply() -> impl Strategy<Value = String> {
    const PIECES: &[&str] = &[
        "Sure! Here is a summary. ",
        "Answer: ",
        "Q: ",
        "The data: ",
        "paraphrase :",
        "The question was ",
        "### QUESTION 1:\n",
        "- ",
        "1. ",
        "\n",
        "\n\n",
        "It is so. ",
        "What is it? ",
        "Leaves make sugar out of light.",
        "Why?",
        " ",
        "That is an excellent question.",
        "how they do. ",
        "3.5 ",
        BASE,
    ];
    let piece = prop_oneof![3 => proptest::sample::select(PIECES).prop_map(str::to_owned), 1 => "\\PC{0,8}"];
    proptest::collection::vec(piece, 0..7).prop_map(|pieces| pieces.concat())
}

fn profile() -> impl Strategy<Value = Profile> {
    let changed =
        "extends = \"text-prompting-2.1\"\nmasks = [\"task_validator\"]\n[penalties]\ntask_validation = 0.8\n";
    prop_oneof![
        Just(Profile::openvalidators_1_2()),
        Just(Profile::text_prompting_2_1()),
        Just(Profile::from_toml(changed).unwrap()),
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
    fn the_exact_rules_are_the_steps_factors(profile in profile(), prompt in prompt(), text in reply()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut validator = Validator::new(profile.clone(), Models::default(), Missing::LeaveOut).unwrap();
        let task = StepTask::read(&prompt, None).unwrap();
        let report = runtime.block_on(validator.step(&task, &[Reply::new(0, text.as_str())])).unwrap();

        let rules = Rules::new(Arc::new(profile), Task::Unknown, &prompt);
        prop_assert_eq!(rules.kind(), Some(task.kind));
        let flags = rules.check(&text);
        let names = [
            (FlagKind::Criteria, "task_validation"),
            (FlagKind::ContentMatch, "content_match"),
            (FlagKind::KeywordMatch, "keyword_match"),
            (FlagKind::TaskValidator, "task_validator"),
            (FlagKind::Blacklist, "blacklist"),
        ];
        let (mut theirs, mut ours) = (1.0, 1.0);
        for (kind, name) in names {
            // What the step leaves out for want of a tokenizer has nothing to compare with.
            if kind == FlagKind::Blacklist && report.factor(name).is_none() {
                continue;
            }
            let applied = report.factor(name).map_or(1.0, |factor| factor.applied[0]);
            let cost = flags.iter().find(|flag| flag.kind == kind).map_or(0.0, |flag| flag.penalty);
            prop_assert!((applied - (1.0 - cost)).abs() < 1e-6, "{}: {} {}", name, applied, cost);
            theirs *= f64::from(applied);
            ours *= 1.0 - f64::from(cost);
        }
        prop_assert!((theirs - ours).abs() < 1e-6);
        if !flags.iter().any(|flag| flag.kind == FlagKind::Blacklist) {
            prop_assert!((rules.factor(&text) - theirs).abs() < 1e-6);
        }
    }
}

#[test]
fn replies_that_only_repeat_are_blacklisted() {
    let task = text_prompting::Task { kind: TaskKind::Answer, base_text: BASE.to_owned(), criteria: vec![] };
    let rules = Rules::detect(Task::Unknown, &task.compose());
    assert_eq!(rules.factor("Leaves make sugar out of light."), 0.0);
    assert_eq!(rules.factor("Leaves make sugar out of lamps."), 1.0);
    let task = openvalidators::Task::Answer { context: BASE.to_owned(), question: "Why?".to_owned() };
    let rules = Rules::detect(Task::Unknown, &task.compose());
    assert_eq!((rules.factor(" Why?\n"), rules.factor("Why? So.")), (0.0, 1.0));
    assert!(!format!("{rules:?}").contains("sugar"));
}

#[test]
fn prompts_of_no_validator_have_no_exact_rules() {
    let rules = Rules::detect(Task::Unknown, "Why is the sky blue?");
    assert_eq!((rules.kind(), rules.factor("Answer: data:")), (None, 1.0));
    assert_eq!(rules.check("Answer: air.")[0].kind, FlagKind::Label);
    // The caller's name for the task brings the labels of version 1.2.
    let rules = Rules::detect(Task::Augment, "Sum it up.");
    assert_eq!(rules.check("The data: air.")[0].kind, FlagKind::TaskValidator);
}
