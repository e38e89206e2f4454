//! A backend that answers with recorded replies.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use idiolect_arena::{RecordedBackend, RecordedSpec};
use idiolect_backend::testkit::Conformance;
use idiolect_backend::{Backend as _, BackendExt as _, ErrorKind, FinishReason, Message, Request};
use serde_json::json;

const RAINBOW: &str = "Which colours has the rainbow?";

/// Replies of four models to the rainbow, of two to another prompt, and of all to what the conformance suite asks at the end.
fn record(dir: &Path) {
    let mut lines = Vec::new();
    let long = "word ".repeat(300);
    for (model, text) in [
        ("a", "Red, orange, yellow, green, blue, indigo and violet, in this order."),
        ("b", "There are seven of them, from red on the outside to violet on the inside."),
        ("c", " As many as you like: between any two colours there is a third one. "),
        ("d", "Roughly red, yellow, green and blue; the rest is a matter of names."),
    ] {
        lines.push(json!({"p": RAINBOW, "m": model, "t": text}));
        lines.push(json!({"p": long, "m": model, "t": format!("{model} has nothing to say of words.")}));
    }
    lines.push(json!({"p": "And the sky?", "m": "a", "t": "Blue."}));
    lines.push(json!({"p": "And the sky?", "m": "b", "t": ""}));
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::fs::write(dir.join("replies.jsonl"), text).unwrap();
}

fn open(dir: &Path, options: &str) -> Result<RecordedBackend, String> {
    let spec = format!("recorded:{}{options}", dir.join("replies.jsonl").display());
    RecordedBackend::open("recorded", &spec.parse::<RecordedSpec>().unwrap()).map_err(|error| error.to_string())
}

fn request(prompt: &str, n: usize, seed: Option<u64>) -> Request {
    let mut request = Request { n, ..Request::new(vec![Message::system("Be brief."), Message::user(prompt)]) };
    request.sampling.seed = seed;
    request
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let backend = Arc::new(open(dir.path(), "").unwrap());
    Conformance::new(move || backend.clone()).prompt(RAINBOW).run().await;
}

#[tokio::test]
async fn candidates_are_different_replies_in_the_order_of_the_seed() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let backend = open(dir.path(), "").unwrap();
    let texts = async |n, seed| -> Vec<String> {
        let completion = backend.complete(request(&format!("\n{RAINBOW} "), n, seed)).await.unwrap();
        completion.candidates.into_iter().map(|candidate| candidate.text).collect()
    };
    let in_order = texts(4, None).await;
    assert!(in_order[0].starts_with("Red") && in_order[2].starts_with("As many") && in_order[3].ends_with("names."));
    assert_eq!(texts(2, None).await, in_order[..2]);
    let mut orders = BTreeSet::new();
    for seed in (0..40).map(|i| i << 20) {
        let drawn = texts(4, Some(seed)).await;
        assert_eq!(drawn, texts(4, Some(seed)).await);
        assert_eq!(texts(2, Some(seed)).await, drawn[..2], "fewer are the first of more");
        assert_eq!(drawn.iter().collect::<BTreeSet<_>>(), in_order.iter().collect(), "all of them, none twice");
        assert_eq!(texts(3, Some(seed + 1)).await, drawn[1..], "the next seed goes on");
        orders.insert(drawn);
    }
    assert!(orders.len() > 12, "{} of 24 orders", orders.len());
    assert_eq!(texts(9, Some(1)).await.len(), 4, "no more than there are");
}

#[tokio::test]
async fn models_answer_that_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path());
    let all = open(dir.path(), "").unwrap();
    assert_eq!(all.capabilities().model, "4 recorded models");
    let of = |model: &str| Request { model: Some(model.to_owned()), ..request(RAINBOW, 3, Some(1)) };
    let one = all.complete(of("b")).await.unwrap();
    assert_eq!((one.model.as_str(), one.backend.as_str(), one.candidates.len()), ("b", "recorded", 1));
    assert_eq!(all.complete(of("gpt-9")).await.unwrap().candidates.len(), 3, "a name of somebody else's");
    assert_eq!(all.complete(request(RAINBOW, 3, Some(1))).await.unwrap().model, "4 recorded models");
    let some = open(dir.path(), "?models=d").unwrap();
    assert_eq!(some.capabilities().model, "d");
    assert!(some.ask(RAINBOW).await.unwrap().starts_with("Roughly"));
    assert_eq!(open(dir.path(), "?models=a,e").unwrap_err(), "no reply is by e; there are a, b, c, d",);
}

#[tokio::test]
async fn prompts_are_found_by_what_their_file_says() {
    let dir = tempfile::tempdir().unwrap();
    let line = |p: &str, m: &str, t: &str| format!("{}\n", json!({"p": p, "m": m, "t": t}));
    let text = line("sky", "a", "Blue.") + &line("sky", "b", "Grey.") + &line("7", "a", "Green.");
    std::fs::write(dir.path().join("replies.jsonl"), text).unwrap();
    let prompts = dir.path().join("prompts.jsonl");
    std::fs::write(
        &prompts,
        "{\"id\": \"sky\", \"prompt\": \"Which colour?\\n\"}\n{\"id\": 7, \"prompt\": \"Grass?\"}\n",
    )
    .unwrap();
    let options = format!("?prompts={}", prompts.display());
    let backend = open(dir.path(), &options).unwrap();
    assert_eq!(backend.ask("Which colour?").await.unwrap(), "Blue.");
    assert_eq!(backend.ask("Grass?").await.unwrap(), "Green.");
    let error = backend.ask("sky").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "somebody else may know it");
    let error = error.to_string();
    assert!(error.starts_with("recorded does not support a prompt that is not on record: "), "{error}");
    assert!(error.ends_with("replies.jsonl has 2 prompts (7, sky), answered by a, b"), "{error}");

    let without = open(dir.path(), "").unwrap().ask("Grass?").await.unwrap_err().to_string();
    assert!(without.ends_with("has 2 prompts, answered by a, b"), "no prompt stands in a message: {without}");
    let only_b = open(dir.path(), &format!("{options}&models=b")).unwrap();
    assert!(only_b.ask("Grass?").await.unwrap_err().to_string().ends_with("1 prompt (sky), answered by b"));
    std::fs::write(&prompts, "{\"id\": 7, \"prompt\": \"Grass?\"}\n").unwrap();
    let error = open(dir.path(), &options).unwrap_err();
    assert!(error.contains("answer prompt sky, which the prompts "), "{error}");
}

#[tokio::test]
async fn replies_are_cut_as_a_model_would_be() {
    let dir = tempfile::tempdir().unwrap();
    let line = json!({"p": "Count.", "m": "a", "t": "One, two; 12345 and\n\nelephantine日本"});
    std::fs::write(dir.path().join("replies.jsonl"), format!("{line}\n")).unwrap();
    let backend = open(dir.path(), "").unwrap();
    let cut = async |most: u32, stop: &str| {
        let mut request = request("Count.", 1, None);
        request.sampling.max_tokens = most;
        request.sampling.stop.extend((!stop.is_empty()).then(|| stop.to_owned()));
        let one = backend.complete(request).await.unwrap().candidates.remove(0);
        (one.text, one.finish_reason, one.n_tokens)
    };
    // One , two ; 123 45 and elephan tine 日 本
    assert_eq!(cut(11, "").await, ("One, two; 12345 and\n\nelephantine日本".to_owned(), FinishReason::Stop, 11));
    assert_eq!(cut(8, "").await, ("One, two; 12345 and\n\nelephan".to_owned(), FinishReason::Length, 8));
    assert_eq!(cut(10, "; 1").await, ("One, two".to_owned(), FinishReason::Stop, 3));
    let usage = backend.complete(request("Count.", 2, None)).await.unwrap().usage;
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (5, 11));
}

#[test]
fn texts_that_name_no_record_are_refused() {
    for (text, expected) in [
        ("replies.jsonl", "\"replies.jsonl\" names no record, expected recorded:REPLIES or"),
        ("recorded:", "\"recorded:\" names no record"),
        ("recorded:x?prompts=", "option \"prompts=\" of a record, expected prompts=FILE or models=NAME,NAME"),
        ("recorded:x?models=a,,b", "option \"models=a,,b\" of a record"),
    ] {
        let error = text.parse::<RecordedSpec>().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    for text in ["recorded:x", "recorded:x.zst?prompts=y&models=a,b", "recorded:x?models=a"] {
        assert_eq!(text.parse::<RecordedSpec>().unwrap().to_string(), text);
    }
    let dir = tempfile::tempdir().unwrap();
    let error = open(dir.path(), "").unwrap_err();
    assert!(error.starts_with("cannot use the replies ") && error.ends_with("replies.jsonl"), "{error}");
    std::fs::write(dir.path().join("replies.jsonl"), "{\"p\": 1, \"m\": \"a\", \"t\": \" \"}").unwrap();
    assert!(open(dir.path(), "").unwrap_err().ends_with("have no text, expected one at least"));
}
