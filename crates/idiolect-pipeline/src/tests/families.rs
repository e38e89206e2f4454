use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use idiolect_backend::{Backend, Member, Pool, PoolConfig};
use idiolect_mutation::Library;

use super::double::{OTHER, SKY, Scripted, ask, config, parts, says, says_slowly};
use crate::{Ask, Parts, Pipeline, PipelineConfig, Provenance};

const NAMES: [&str; 2] = ["first", "second"];

/// Two backends that each say one thing.
fn pool(says_what: [super::double::Says; 2]) -> Arc<dyn Backend> {
    let member =
        |(name, says): (&str, super::double::Says)| Member::new(name, Arc::new(Scripted::new(vec![says])) as _);
    let members = NAMES.into_iter().zip(says_what).map(member).collect();
    Arc::new(Pool::new(PoolConfig::default(), members).unwrap())
}

async fn start(candidates: usize, weights: [u32; 2], says_what: [super::double::Says; 2]) -> Pipeline {
    let families = NAMES.into_iter().map(str::to_owned).zip(weights).collect();
    let config = PipelineConfig { families, ..config(candidates) };
    let parts =
        Parts { backend: pool(says_what), library: Arc::new(Library::built_in()), ..parts(Scripted::new(vec![])) };
    Pipeline::start(config, parts).await.unwrap()
}

/// Returns how many candidates each of two texts has.
fn counts(record: &Provenance) -> [usize; 2] {
    [SKY, OTHER].map(|text| record.candidates.iter().filter(|c| c.text.as_deref() == Some(text)).count())
}

#[tokio::test(start_paused = true)]
async fn every_family_answers_every_prompt_and_the_best_of_all_is_sent() {
    let pipeline = start(4, [1, 1], [says(SKY), says(OTHER)]).await;
    let mut no_op_by = BTreeMap::new();
    for _ in 0..16 {
        let record = pipeline.answer(ask()).await.unwrap().provenance;
        assert_eq!(counts(&record), [2, 2], "{record}");
        let no_op = record.candidates.iter().find(|c| c.operators.is_empty()).unwrap();
        *no_op_by.entry(no_op.text.clone()).or_insert(0) += 1;
    }
    assert_eq!(no_op_by.len(), 2, "each has the plain prompt at times: {no_op_by:?}");
}

#[tokio::test(start_paused = true)]
async fn weights_are_shares_over_time() {
    let pipeline = start(4, [3, 1], [says(SKY), says(OTHER)]).await;
    let mut total = [0, 0];
    for _ in 0..200 {
        let counts = counts(&pipeline.answer(ask()).await.unwrap().provenance);
        total = [total[0] + counts[0], total[1] + counts[1]];
    }
    let share = total[0] as f64 / (total[0] + total[1]) as f64;
    assert!((0.65..0.85).contains(&share), "{total:?}");
}

#[tokio::test(start_paused = true)]
async fn a_family_that_hangs_costs_its_own_candidates_only() {
    let hangs = says_slowly("never to be heard", 3_600_000);
    let pipeline = start(4, [1, 1], [says(SKY), hangs]).await;
    let answer = pipeline.answer(Ask { timeout: Duration::from_secs(5), ..ask() }).await.unwrap();
    assert_eq!(answer.reply.completions, [SKY]);
    assert!(counts(&answer.provenance)[0] >= 2);
}

#[tokio::test(start_paused = true)]
async fn fewer_candidates_than_families_go_to_some_of_them() {
    let pipeline = start(1, [1, 1], [says(SKY), says(OTHER)]).await;
    let mut seen = [0, 0];
    for _ in 0..16 {
        let record = pipeline.answer(ask()).await.unwrap().provenance;
        assert_eq!(record.candidates.len(), 1);
        let counts = counts(&record);
        seen = [seen[0] + counts[0], seen[1] + counts[1]];
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_recipe_may_choose_who_answers() {
    let operator = |name: &str, chosen: &str| format!("[[operator]]\nname = \"{name}\"\nslot = \"model\"\n{chosen}\n");
    let text =
        [operator("model.second", "backend = \"second\""), operator("model.odd", "model = \"m-7b\"\nweight = 0")];
    let library = Arc::new(Library::parse(&text.concat(), "o.toml").unwrap());
    // Spread over both, and with one that is always asked first.
    for families in [Vec::new(), NAMES.map(|name| (name.to_owned(), 1)).to_vec()] {
        let n_families = families.len();
        let config = PipelineConfig { families, ..config(4) };
        let backend = pool([says(SKY), says(OTHER)]);
        let parts = Parts { backend, library: Arc::clone(&library), ..parts(Scripted::new(vec![])) };
        let pipeline = Pipeline::start(config, parts).await.unwrap();
        for nth in 0..12 {
            let record = pipeline.answer(ask()).await.unwrap().provenance;
            let (chosen, plain): (Vec<_>, Vec<_>) =
                record.candidates.iter().partition(|candidate| !candidate.operators.is_empty());
            assert_eq!((chosen.len(), plain.len()), (2, 2), "{nth} {record}");
            assert!(chosen.iter().all(|candidate| candidate.text.as_deref() == Some(OTHER)), "{nth} {record}");
            assert!(n_families > 0 || plain.iter().all(|candidate| candidate.text.as_deref() == Some(SKY)), "{record}");
            assert_eq!(chosen[0].operators[0].backend.as_deref(), Some("second"), "it is on record");
        }
    }
}

#[tokio::test]
async fn the_model_that_the_caller_asks_for_is_stronger_than_a_recipes() {
    let text = "[[operator]]\nname = \"model.m\"\nslot = \"model\"\nmodel = \"m-7b\"\n";
    let library = Arc::new(Library::parse(text, "o.toml").unwrap());
    for (asked, expected) in [(None, Some("m-7b")), (Some("their-own"), Some("their-own"))] {
        let backend = Arc::new(Scripted::new(vec![says(SKY), says(OTHER)]));
        let parts = Parts { library: Arc::clone(&library), ..Parts::new(Arc::<Scripted>::clone(&backend)) };
        let pipeline = Pipeline::start(config(2), parts).await.unwrap();
        pipeline.answer(Ask { model: asked.map(str::to_owned), ..ask() }).await.unwrap();
        let models: Vec<Option<String>> = backend.requests().into_iter().map(|request| request.model).collect();
        assert_eq!(models, [asked.map(str::to_owned), expected.map(str::to_owned)]);
    }
}
