use std::path::Path;
use std::sync::Arc;

use idiolect_backend::HashEmbedder;
use idiolect_dataset::{Entry, History};

use super::*;

/// In the sample these follow other rules than validators': its texts were made for reading them, not for scoring.
const MADE_UP: [&str; 3] = ["blacklist_filter", "diversity_reward_model", "task_validation_penalty_raw"];

async fn verified(name: &str, change: impl Fn(&mut Entry)) -> Verifier {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../idiolect-dataset/tests/data/openvalidators");
    let mut verifier = Verifier::new(1e-4);
    for entry in History::open(&folder.join(name)).unwrap() {
        let mut entry = entry.unwrap();
        change(&mut entry);
        verifier.take(&entry).await.unwrap();
    }
    verifier
}

fn of(verifier: &Verifier, figure: &str) -> Check {
    let checks = verifier.checks();
    checks.iter().find(|check| check.figure == figure).unwrap_or_else(|| panic!("no {figure} in {checks:#?}")).clone()
}

#[tokio::test]
async fn what_was_recorded_is_what_the_formulas_give() {
    for (name, figures) in [
        ("history_v1.0.jsonl.zst", &[("best", 24)][..]),
        (
            "history_v1.2.0.jsonl.zst",
            &[
                ("best", 36),
                ("diversity_reward_model_normalized", 432),
                ("rewards", 432),
                ("dpo_reward_model_normalized", 432),
                ("rlhf_reward_model_normalized", 432),
                ("reciprocate_reward_model_normalized", 432),
                ("neuron_weights", 128),
                ("task_validator_filter", 378),
            ][..],
        ),
        (
            "history_text_prompting_2.1.jsonl.zst",
            &[
                ("best", 84),
                ("diversity_reward_model_normalized", 1008),
                ("rewards", 1008),
                ("dpo_reward_model_normalized", 1008),
                ("reciprocate_reward_model_normalized", 1008),
                ("neuron_weights", 448),
                ("keyword_match_penalty_raw", 887),
                ("sentence_match_penalty_raw", 887),
                ("keyword_match_penalty_applied", 1008),
                ("sentence_match_penalty_applied", 1008),
                ("task_validation_penalty_applied", 1008),
                ("task_validation_penalty_adjusted", 1008),
            ][..],
        ),
    ] {
        let verifier = verified(name, |_| ()).await;
        for &(figure, n) in figures {
            let check = of(&verifier, figure);
            assert_eq!((check.n, check.n_off), (n, 0), "{name}: {check:?}");
            assert!(check.largest < 1e-6, "{name}: {check:?}");
        }
        let others = verifier.checks().into_iter().filter(|check| check.n_off > 0);
        assert!(
            others.clone().all(|check| MADE_UP.contains(&check.figure.as_str())),
            "{:?}",
            others.collect::<Vec<_>>()
        );
    }
}

#[tokio::test]
async fn what_is_off_is_found_with_its_place() {
    let nth = |entry: &mut Entry, at: u64| match entry {
        Entry::Step(step) if step.origin.row == Some(at) && step.origin.run.as_deref() == Some("syn21ccc") => {
            Some(step.clone())
        }
        _ => None,
    };
    let verifier = verified("history_text_prompting_2.1.jsonl.zst", |entry| {
        if let Some(mut step) = nth(entry, 5) {
            let reward = step.calls[3].reward.unwrap();
            step.calls[3].reward = Some(reward + 2e-4);
            step.best = Some("somebody else's".to_owned());
            step.columns.get_mut("keyword_match_penalty_applied").unwrap()[7] = 0.25;
            *entry = Entry::Step(step);
        }
    })
    .await;
    let rewards = of(&verifier, "rewards");
    // The reward that was changed, and the one that the penalty takes to a quarter, unless it is none anyway.
    assert!(rewards.n_off >= 1 && rewards.largest >= 2e-4 - 1e-9, "{rewards:?}");
    let penalty = of(&verifier, "keyword_match_penalty_applied");
    assert_eq!((penalty.n_off, penalty.largest), (1, 0.75));
    assert_eq!(penalty.at.as_deref(), Some("run syn21ccc, row 5, reply 7"));
    let best = of(&verifier, "best");
    assert_eq!((best.n_off, best.at.as_deref()), (1, Some("run syn21ccc, row 5, reply 0")));

    // A moving average remembers what was paid.
    let state = verified("history_v1.2.0.jsonl.zst", |entry| {
        if let Entry::Step(step) = entry
            && step.origin.row == Some(15)
        {
            step.calls[0].reward = Some(10.0);
        }
    })
    .await;
    let state = of(&state, "neuron_weights");
    assert!(state.n_off >= 1 && state.largest > 0.1, "{state:?}");
}

#[tokio::test]
async fn what_cannot_be_computed_is_named() {
    let verifier = verified("history_v1.2.0.jsonl.zst", |entry| {
        if let Entry::Step(step) = entry {
            if step.origin.row == Some(0) {
                step.columns.clear();
            }
            if step.name == "augment" {
                step.prompt = "What now?".to_owned();
                step.name = "chat".to_owned();
            }
            if let Some(column) = step.columns.get_mut("dpo_reward_model_normalized") {
                column.iter_mut().for_each(|value| *value *= 0.5);
            }
        }
    })
    .await;
    let unchecked = verifier.unchecked();
    let n = |figure: &str, reason: &str| {
        unchecked.iter().find(|u| u.figure == figure && u.reason == reason).map_or(0, |u| u.n_steps)
    };
    assert_eq!(n("every factor", EMPTY), 1);
    assert_eq!(n("dpo_reward_model_normalized", EARLIER), 35);
    assert_eq!(n("masks and penalties", NO_TASK), 4);
    assert_eq!(n("neuron_weights", "the first of its run"), 1);
    assert!(of(&verifier, "rewards").n_off > 100);
}

#[tokio::test]
async fn distances_are_computed_where_there_is_an_encoder() {
    let encoder = Arc::new(HashEmbedder::new(16));
    let cache = EmbeddingCache::open(None, &*encoder).unwrap();
    let mut verifier = Verifier::new(1e-4).with_encoder(encoder, cache);
    let line = r#"{"task_type": "t", "name": "answer0", "prompt": "Why?", "completions": [" So. ", "So.", "No."], "completion_status_codes": ["200", "200", "408"],
        "diversity_reward_model_batch": [0.018, 0.018, 0.5], "relevance_filter_mpnet_score": [null, null, 0.5]}"#;
    let line = line.replace('\n', " ");
    for entry in History::of_json_lines("log", line.as_bytes()) {
        verifier.take(&entry.unwrap()).await.unwrap();
    }
    // Two that are equal are at distance 0, sigmoid(-4); a call that failed is not compared.
    let check = of(&verifier, "diversity_reward_model_batch");
    assert_eq!((check.n, check.n_off), (2, 0));
    assert!((check.largest - 1.38e-5).abs() < 1e-6, "{check:?}");
    assert_eq!(of(&verifier, "relevance_filter_mpnet_score").n, 0);
}
