//! Prompts in other words.

use std::sync::Arc;
use std::time::Duration;

use idiolect_backend::testkit::{FaultyBackend, Step};
use idiolect_backend::{Backend, Message};
use idiolect_mutation::policy::{Learner, PolicyConfig, Seed};
use idiolect_mutation::{Library, ParaphraseConfig, Paraphraser};

use super::double::{OTHER, SKY, Scripted, ask, config, prompt, says};
use crate::{Ask, Parts, Pipeline, PipelineConfig, Provenance, RecordConfig, StorePrompts};

const SAID: &str = "What is the reason that the sky looks blue?";

fn library() -> Arc<Library> {
    let text = "allow_paraphrase = true\nallow_rewrite = true\n[[operator]]\nname = \"paraphrase.x\"\nslot = \"paraphrase\"\n\
                place = \"rewrite\"\ntext = \"Now: {{ paraphrase }}\"\n";
    Arc::new(Library::parse(text, "o.toml").unwrap())
}

fn paraphraser(script: impl IntoIterator<Item = Step>) -> (Arc<FaultyBackend>, Arc<Paraphraser>) {
    let backend = Arc::new(FaultyBackend::new("script", script));
    let config = ParaphraseConfig { variants: 1, ..ParaphraseConfig::default() };
    let paraphraser = Paraphraser::new(Arc::clone(&backend) as Arc<dyn Backend>, config);
    (backend, Arc::new(paraphraser))
}

async fn start(backend: &Arc<Scripted>, paraphraser: Option<Arc<Paraphraser>>, config: PipelineConfig) -> Pipeline {
    let embedder: Option<Arc<dyn idiolect_backend::Embedder>> = Some(Arc::new(idiolect_backend::HashEmbedder::new(64)));
    let backend = Arc::<Scripted>::clone(backend);
    let parts = Parts { library: library(), paraphraser, embedder, ..Parts::new(backend) };
    Pipeline::start(config, parts).await.unwrap()
}

fn backend() -> Arc<Scripted> {
    Arc::new(Scripted::new(vec![says(SKY), says(OTHER)]))
}

fn reworded(record: &Provenance) -> Vec<Option<&str>> {
    let operators = record.candidates.iter().flat_map(|candidate| &candidate.operators);
    operators.map(|operator| operator.paraphrase.as_deref()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_model_is_asked_in_other_words_and_the_record_has_them() {
    let backend = backend();
    let (script, paraphraser) = paraphraser([Step::say(SAID)]);
    let pipeline = start(&backend, Some(paraphraser), config(2)).await;
    // Nobody knows yet how much time a reply leaves.
    let first = pipeline.answer(ask()).await.unwrap().provenance;
    assert_eq!((first.candidates.len(), reworded(&first), script.n_requests()), (2, Vec::new(), 0));
    for _ in 0..2 {
        let record = pipeline.answer(ask()).await.unwrap().provenance;
        assert_eq!(reworded(&record), [Some(SAID)]);
        let asked = backend.requests().pop().unwrap().messages;
        assert_eq!(asked, [Message::user(format!("Now: {SAID}"))]);
        let candidate = record.candidates.iter().find(|candidate| !candidate.operators.is_empty()).unwrap();
        let recipe =
            idiolect_mutation::Recipe { operators: candidate.operators.clone(), sampling: candidate.sampling.clone() };
        assert_eq!(recipe.apply(record.prompt.as_ref().unwrap()), asked);
    }
    assert_eq!(script.n_requests(), 1, "what was said is kept");
}

#[tokio::test(start_paused = true)]
async fn what_goes_without_other_words_is_left_out_and_not_learnt_of() {
    for step in [Step::say("The sky is blue."), Step::Hang, Step::say("Why is it so?").after(Duration::from_secs(60))] {
        let backend = backend();
        let (script, paraphraser) = paraphraser([step, Step::Hang, Step::Hang]);
        let learner = Arc::new(Learner::in_memory(PolicyConfig::default(), Seed::from(3)).unwrap());
        let parts = Parts {
            library: library(),
            paraphraser: Some(paraphraser),
            learner: Some(Arc::clone(&learner)),
            embedder: Some(Arc::new(idiolect_backend::HashEmbedder::new(64))),
            ..Parts::new(Arc::<Scripted>::clone(&backend))
        };
        let pipeline = Pipeline::start(config(2), parts).await.unwrap();
        for _ in 0..3 {
            let began = tokio::time::Instant::now();
            let record = pipeline.answer(Ask { timeout: Duration::from_secs(6), ..ask() }).await.unwrap().provenance;
            // A sixth of the time, and no more.
            assert!(began.elapsed() <= Duration::from_millis(1_000), "{:?}", began.elapsed());
            let (taken, timings) = (began.elapsed().as_secs_f64() * 1000.0, record.timings);
            assert!((timings.total_ms - taken).abs() < 50.0 && timings.plan_ms > taken - 50.0, "{taken} {timings:?}");
            assert!((timings.budget_ms - 6_000.0).abs() < 1.0, "{timings:?}");
            assert_eq!(record.candidates.len(), 2, "the plain prompt has its candidates");
            assert!(record.candidates.iter().all(|candidate| candidate.operators.is_empty()));
        }
        assert!(script.n_requests() > 0);
        assert!(backend.requests().iter().all(|request| request.messages == [Message::user("Why is the sky blue?")]));
        for _ in 0..200 {
            if learner.n_updates() == 3 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(learner.n_updates() == 3 && !learner.to_json().contains("paraphrase.x"), "{}", learner.to_json());
    }
}

#[tokio::test(start_paused = true)]
async fn without_what_says_them_recipes_that_want_other_words_are_left_out() {
    let backend = backend();
    let pipeline = start(&backend, None, config(2)).await;
    for _ in 0..2 {
        let record = pipeline.answer(ask()).await.unwrap().provenance;
        assert_eq!(record.candidates.len(), 2);
        assert!(record.candidates.iter().all(|candidate| candidate.operators.is_empty()));
    }
}

#[tokio::test]
async fn other_words_are_kept_where_prompts_are_and_nowhere_else() {
    for (store_prompts, max_prompt_bytes, is_kept) in [
        (StorePrompts::All, 10_000, true),
        (StorePrompts::All, 5, false),
        (StorePrompts::Hash, 10_000, false),
        (StorePrompts::None, 10_000, false),
    ] {
        let backend = backend();
        let (_, paraphraser) = paraphraser([Step::say(SAID)]);
        let record = RecordConfig { store_prompts, max_prompt_bytes, ..RecordConfig::default() };
        let mut config = PipelineConfig { record, ..config(2) };
        config.sampling.seed = Some(3);
        let pipeline = start(&backend, Some(paraphraser), config).await;
        let answer = pipeline.answer(Ask::new(prompt("Why is the sky blue?"))).await.unwrap();
        assert_eq!(reworded(&answer.provenance), [Some(SAID)]);
        pipeline.flush().await;
        let kept = pipeline.explain(&answer.provenance.id).await.unwrap();
        assert_eq!(kept.prompt.is_some(), is_kept);
        assert_eq!(reworded(&kept), [is_kept.then_some(SAID)]);
        assert_eq!(serde_json::to_string(&kept).unwrap().contains(SAID), is_kept);
    }
}
