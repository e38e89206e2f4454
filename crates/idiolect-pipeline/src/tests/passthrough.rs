use std::sync::Arc;

use idiolect_axon::Dictated;
use idiolect_backend::testkit::{FaultyBackend, Step};
use idiolect_backend::{Capabilities, Echo, FinishReason, Message};
use idiolect_mutation::Library;
use idiolect_protocol::Category;

use super::double::{SKY, Says, Scripted, ask, parts, says, start};
use crate::{Ask, Parts};

fn dictated() -> Dictated {
    Dictated {
        seed: Some(42),
        temperature: Some(0.7),
        top_p: Some(0.9),
        top_k: Some(40),
        repetition_penalty: Some(1.1),
        max_tokens: Some(17),
        stop: vec![String::new(), "END".to_owned()],
    }
}

fn with_operators(backend: Arc<Scripted>) -> Parts {
    Parts { library: Arc::new(Library::built_in()), backend: backend.clone(), ..parts(Scripted::new(vec![says(SKY)])) }
}

#[tokio::test]
async fn dictated_requests_go_through_untouched() {
    let raw = " \n The text, just as the model said it: unfini";
    let backend = Arc::new(Scripted::new(vec![Says { finish: FinishReason::Length, ..says(raw) }]));
    let pipeline = start(4, with_operators(backend.clone())).await;
    let ask = Ask { dictated: Some(dictated()), logprobs: Some(3), model: Some("m".to_owned()), ..ask() };
    let answer = pipeline.answer(ask).await.unwrap();

    let [request] = &backend.requests()[..] else { panic!("one request") };
    assert_eq!((request.n, request.model.as_deref()), (1, Some("m")));
    assert_eq!(request.messages, [Message::user("Why is the sky blue?")]);
    let sampling = &request.sampling;
    assert_eq!((sampling.seed, sampling.max_tokens, sampling.logprobs), (Some(42), 17, Some(3)));
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (Some(0.7), Some(0.9), Some(40)));
    assert_eq!((sampling.repetition_penalty, sampling.min_p), (Some(1.1), None));
    assert_eq!(sampling.stop, ["END"]);

    assert_eq!(answer.reply.completions, [raw], "not a byte is trimmed");
    assert_eq!(answer.reply.finish_reason, "length");
    let tokens = answer.reply.logprobs.unwrap();
    assert_eq!(tokens.iter().map(|t| t.token.as_str()).collect::<String>(), raw);
    let p = answer.provenance;
    assert_eq!((p.mode.as_str(), p.reason.as_str()), ("passthrough", "passthrough"));
    assert!(p.encoder.is_none() && p.candidates[0].score.is_none() && p.candidates[0].operators.is_empty());
}

#[tokio::test]
async fn the_same_seed_gives_the_same_text() {
    let pipeline = start(4, parts(Echo::new())).await;
    let with_seed = |seed| Ask { dictated: Some(Dictated { seed: Some(seed), ..dictated() }), ..ask() };
    let first = pipeline.answer(with_seed(1)).await.unwrap().reply;
    assert_eq!(pipeline.answer(with_seed(1)).await.unwrap().reply.completions, first.completions);
    assert!(first.logprobs.is_none(), "nobody asked for them");
}

#[tokio::test]
async fn a_seed_that_may_not_be_honoured_is_passed_on_and_noted() {
    for (seed, n_notes) in [(Some(42), 1), (None, 0)] {
        let backend = Arc::new(Scripted::new(vec![says(SKY)]).without_seeds());
        let pipeline = start(4, with_operators(backend.clone())).await;
        let dictated = Dictated { seed, ..dictated() };
        let answer = pipeline.answer(Ask { dictated: Some(dictated), ..ask() }).await.unwrap();
        assert_eq!((backend.requests()[0].sampling.seed, answer.provenance.notes.len()), (seed, n_notes));
        assert!(answer.provenance.notes.iter().all(|note| note.contains("seed")));
    }
}

#[tokio::test]
async fn tasks_that_validators_recompute_are_passthrough_by_name() {
    let backend = Arc::new(Scripted::new(vec![says(SKY)]));
    let pipeline = start(4, with_operators(backend.clone())).await;
    let answer = pipeline.answer(Ask { task: Some("InferenceTask".to_owned()), ..ask() }).await.unwrap();
    assert_eq!(answer.provenance.mode, "passthrough");
    assert_eq!((backend.requests().len(), backend.requests()[0].n), (1, 1));
}

#[tokio::test]
async fn what_is_dictated_is_bounded() {
    let backend = Arc::new(Scripted::new(vec![says(SKY)]));
    let pipeline = start(4, with_operators(backend.clone())).await;
    let ask_with = |dictated| Ask { dictated: Some(dictated), ..ask() };
    pipeline.answer(ask_with(Dictated { max_tokens: Some(u32::MAX), ..dictated() })).await.unwrap();
    assert_eq!(backend.requests()[0].sampling.max_tokens, 4096);
    for bad in [
        Dictated { temperature: Some(f32::NAN), ..dictated() },
        Dictated { temperature: Some(-1.0), ..dictated() },
        Dictated { top_p: Some(1.5), ..dictated() },
        Dictated { max_tokens: Some(0), ..dictated() },
    ] {
        let error = pipeline.answer(ask_with(bad)).await.unwrap_err();
        assert_eq!(error.category, Category::Malformed, "{error}");
    }
    assert_eq!(backend.requests().len(), 1, "bad requests cost nothing");
}

#[tokio::test]
async fn log_probabilities_belong_to_the_text_that_is_sent() {
    let script = vec![Says { finish: FinishReason::Length, ..says(" Once upon a time. There was ") }, says(SKY)];
    let pipeline = start(2, parts(Scripted::new(script))).await;
    for _ in 0..3 {
        let reply = pipeline.answer(Ask { logprobs: Some(0), ..ask() }).await.unwrap().reply;
        let said: String = reply.logprobs.unwrap().iter().map(|t| t.token.as_str()).collect();
        assert_eq!(said, reply.completions[0]);
    }
}

#[tokio::test]
async fn without_log_probabilities_only_checked_answers_are_refused() {
    let backend = FaultyBackend::always("f", Step::say(SKY)).with_capabilities(Capabilities::new("plain"));
    let pipeline = start(1, parts(backend)).await;
    assert!(pipeline.answer(Ask { logprobs: Some(1), ..ask() }).await.unwrap().reply.logprobs.is_none());
    let checked = Ask { logprobs: Some(1), dictated: Some(dictated()), ..ask() };
    assert_eq!(pipeline.answer(checked).await.unwrap_err().category, Category::Unavailable);
}
