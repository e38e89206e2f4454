use std::sync::Arc;
use std::time::Duration;

use idiolect_mutation::{FlagKind, Library};
use idiolect_validator::task::{Criterion, TaskKind, Unit, text_prompting};

use super::double::{Scripted, config, parts, prompt, says, says_slowly};
use crate::{Ask, Parts, Pipeline, PipelineConfig};

const GOOD: &str = "Leaves turn light into sugar.";
const LISTED: &str = "Sure! Here is a summary:\n- Leaves turn light into sugar.\n- That is all there is.";

fn asked(criteria: Vec<Criterion>) -> Ask {
    let task = text_prompting::Task {
        kind: TaskKind::Augment,
        base_text: "Leaves make sugar out of light and water.".to_owned(),
        criteria,
    };
    Ask::new(prompt(&task.compose()))
}

async fn start(candidates: usize, scripted: Scripted) -> Pipeline {
    let config = PipelineConfig { recipes: 1, ..config(candidates) };
    Pipeline::start(config, parts(scripted)).await.unwrap()
}

#[tokio::test]
async fn what_breaks_a_criterion_is_repaired_and_the_record_says_how() {
    let pipeline = start(2, Scripted::new(vec![says(LISTED), says(LISTED)])).await;
    let criteria = vec![Criterion::NoLists, Criterion::Length { target: 10, unit: Unit::Words }];
    let answer = pipeline.answer(asked(criteria)).await.unwrap();
    let sent = &answer.reply.completions[0];
    assert!(!sent.contains("- ") && !sent.contains("Sure"), "{sent}");
    let record = answer.provenance;
    let chosen = record.chosen().unwrap();
    assert!(chosen.repairs.iter().any(|repair| repair.kind.as_str() == "lists"), "{record}");
    assert!(record.to_string().contains("repaired, lists: "), "{record}");
}

#[tokio::test]
async fn a_clean_text_stays_as_it_is() {
    let pipeline = start(1, Scripted::new(vec![says(GOOD)])).await;
    let answer = pipeline.answer(asked(vec![Criterion::NoLists])).await.unwrap();
    assert_eq!(answer.reply.completions, [GOOD]);
    assert!(answer.provenance.candidates[0].repairs.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_no_repair_helps_is_asked_for_once_more_with_advice_if_there_is_time() {
    // No rule makes a text longer; the second answer is.
    let long = "Leaves turn light and water into sugar, which is what all the rest of them lives on.";
    let criteria = || vec![Criterion::Length { target: 17, unit: Unit::Words }];
    let pipeline = start(1, Scripted::new(vec![says(GOOD), says(long)])).await;
    let record = pipeline.answer(asked(criteria())).await.unwrap().provenance;
    assert_eq!(record.candidates.len(), 2, "{record}");
    let again = &record.candidates[1];
    assert_eq!((again.recipe.as_str(), again.text.as_deref()), ("retry@1", Some(long)));
    assert_eq!(again.operators[0].text, "Use about 17 words.");
    assert!(again.sent, "it loses nothing: {record}");
    assert!(record.messages(again).unwrap()[0].content.ends_with(&again.operators[0].text));

    let slow = start(1, Scripted::new(vec![says_slowly(GOOD, 900), says_slowly(GOOD, 900)])).await;
    for _ in 0..2 {
        let ask = Ask { timeout: Duration::from_secs(6), ..asked(criteria()) };
        assert_eq!(slow.answer(ask).await.unwrap().provenance.candidates.len(), 1, "there is no time");
    }
}

#[tokio::test]
async fn what_an_operator_forbids_costs_the_candidates_of_that_operator() {
    const LEAKED: &str = "Air scatters blue light, see the plan: causes first, then what follows from them.";
    const CLEAN: &str = "Sunlight is bent and spread by tiny molecules, short waves far more than long ones.";
    let library = |forbid: &str| {
        let text = format!(
            "[[operator]]\nname = \"angle.plan\"\nslot = \"angle\"\nplace = \"append\"\ntext = \"Go from causes to effects.\"\nversion = 1\n{forbid}"
        );
        Arc::new(Library::parse(&text, "operators.toml").unwrap())
    };
    for (forbid, says_what, expected) in [
        ("forbid = [\"Plan:\"]", [CLEAN, LEAKED], [None, Some("Plan:")]),
        // The plain prompt is nobody's doing.
        ("forbid = [\"Plan:\"]", [LEAKED, CLEAN], [None, None]),
        ("", [CLEAN, LEAKED], [None, None]),
    ] {
        let parts = Parts { library: library(forbid), ..parts(Scripted::new(says_what.map(says).to_vec())) };
        let pipeline = Pipeline::start(PipelineConfig { recipes: 2, ..config(2) }, parts).await.unwrap();
        let record = pipeline.answer(Ask::new(prompt("Why is the sky blue?"))).await.unwrap().provenance;
        let found = record.candidates.iter().map(|candidate| {
            let flag = candidate.flags.iter().find(|flag| flag.kind == FlagKind::Forbidden)?;
            assert_eq!((flag.penalty, candidate.quality.penalty), (0.25, 0.25), "{record}");
            Some(flag.rule.as_str())
        });
        assert_eq!(found.collect::<Vec<_>>(), expected, "{record}");
        assert_eq!(record.to_string().contains("forbidden"), expected[1].is_some(), "{record}");
        if expected[1].is_some() {
            assert!(record.candidates[0].sent, "{record}");
        }
    }
}
