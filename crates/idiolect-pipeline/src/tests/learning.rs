use std::sync::Arc;
use std::time::Duration;

use idiolect_mutation::policy::{Learner, PolicyConfig, Seed};
use idiolect_mutation::{Library, LibraryFile};

use super::double::{OTHER, SKY, Scripted, ask, config, parts, says, start};
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
