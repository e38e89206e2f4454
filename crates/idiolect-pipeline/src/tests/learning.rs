use std::sync::Arc;
use std::time::Duration;

use idiolect_axon::Handler as _;
use idiolect_mutation::policy::{Context, Learner, PolicyConfig, Seed};
use idiolect_mutation::{Library, LibraryFile};

use super::double::{OTHER, SKY, Scripted, ask, config, parts, says, start};
use super::records::{call, caller};
use crate::{Parts, Pipeline, PipelineConfig};

fn learner() -> Arc<Learner> {
    Arc::new(Learner::in_memory(PolicyConfig::default(), Seed::from(3)).unwrap())
}

fn parts_with(learner: &Arc<Learner>) -> Parts {
    let library = Arc::new(Library::built_in());
    Parts { library, learner: Some(Arc::clone(learner)), ..parts(Scripted::new(vec![says(SKY), says(OTHER)])) }
}

/// Learning comes after the reply.
async fn updates(learner: &Learner, expected: u64) {
    for _ in 0..1000 {
        if learner.n_updates() == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{} updates, expected {expected}", learner.n_updates());
}

#[tokio::test]
async fn recipes_come_with_their_chance_and_what_they_brought_is_learnt() {
    let learner = learner();
    let pipeline = start(4, parts_with(&learner)).await;
    for nth in 1..=5 {
        let record = pipeline.answer(ask()).await.unwrap().provenance;
        assert!(record.candidates.iter().all(|c| c.propensity.is_some_and(|p| p > 0.0 && p <= 1.0)), "{record}");
        assert!(record.candidates.iter().any(|c| c.operators.is_empty()), "the no-op is always among them");
        updates(&learner, nth).await;
    }
    assert!(learner.to_json().contains("local"), "{}", learner.to_json());
}

#[tokio::test]
async fn what_a_validator_gave_for_a_reply_is_learnt_once() {
    // Both learn the same from the reply itself: what differs is the validator's word.
    let believed = async |rewards: Vec<f32>| {
        let learner = learner();
        let pipeline = start(2, parts_with(&learner)).await;
        let alice = caller("//Alice");
        let hotkey = alice.hotkey().to_string();
        pipeline.forward(call(alice, "Why is the sky blue?")).await.unwrap();
        updates(&learner, 1).await;
        let record = pipeline.explain("last").await.unwrap();
        let chosen = record.chosen().unwrap().clone();
        let text = chosen.text.clone().unwrap();
        pipeline.reward("somebody else", &text, rewards.clone()).unwrap();
        pipeline.reward(&hotkey, "never sent", rewards.clone()).unwrap();
        pipeline.reward(&hotkey, &text, Vec::new()).unwrap();
        pipeline.reward(&hotkey, &text, rewards.clone()).unwrap();
        updates(&learner, 2).await;
        pipeline.reward(&hotkey, &text, rewards).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(learner.n_updates(), 2);
        let context = Context::new("grpc", "unknown", hotkey.as_str());
        let library = Library::built_in();
        let applied = chosen.operators.first().map(|applied| applied.name.clone());
        let operator = applied.and_then(|name| library.operators().iter().find(|operator| operator.name == name));
        learner.posterior(&context, operator).unwrap().mean()
    };
    let (praised, blamed) = (believed(vec![0.8, 7.0]).await, believed(vec![-1.0]).await);
    assert!(praised > blamed + 0.01, "{praised} {blamed}");
}

#[tokio::test]
async fn with_a_seed_for_every_prompt_nothing_that_was_learnt_changes_what_is_drawn() {
    let learner = learner();
    let mut sampling = PipelineConfig::default().sampling;
    sampling.seed = Some(7);
    let config = PipelineConfig { sampling, ..config(4) };
    let pipeline = Pipeline::start(config, parts_with(&learner)).await.unwrap();
    let recipes = async || {
        let record = pipeline.answer(ask()).await.unwrap().provenance;
        record.candidates.iter().map(|c| (c.recipe.clone(), c.propensity)).collect::<Vec<_>>()
    };
    let first = recipes().await;
    assert!(first.iter().all(|(_, propensity)| propensity.is_none()));
    assert_eq!(recipes().await, first);
    assert_eq!(learner.n_updates(), 0);
}

#[tokio::test]
async fn a_library_that_changes_is_used_from_the_next_reply_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("operators.toml");
    std::fs::write(&path, "").unwrap();
    let file = Arc::new(LibraryFile::open(&path).unwrap());
    let scripted = Scripted::new(vec![says(SKY), says(OTHER)]);
    let pipeline = start(4, Parts { library_file: Some(Arc::clone(&file)), ..parts(scripted) }).await;
    let n_recipes = async || {
        let record = pipeline.answer(ask()).await.unwrap().provenance;
        record.candidates.iter().map(|c| c.recipe.clone()).collect::<std::collections::BTreeSet<_>>().len()
    };
    assert_eq!(n_recipes().await, 1, "an empty library changes nothing");
    std::fs::write(&path, "include_built_in = true\n").unwrap();
    file.poll();
    assert_eq!(n_recipes().await, 2);
    std::fs::write(&path, "include_built_in = 5\n").unwrap();
    file.poll();
    assert_eq!(n_recipes().await, 2, "the old one stays in use");
}
