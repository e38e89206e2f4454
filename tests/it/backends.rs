//! Several backends behind one miner.

use std::time::Duration;

use idiolect_miner::config::{BackendConfig, BackendKind, ServerFlavour};
use idiolect_protocol::dendrite::{QueryOptions, Via};
use serde_json::{Value, json};

use crate::support::{FakeOpenAi, Node, config, prompt};

fn remote(name: &str, url: &str) -> BackendConfig {
    BackendConfig {
        name: name.to_owned(),
        model: Some("fake".to_owned()),
        base_url: Some(url.to_owned()),
        max_retries: 0,
        ..BackendConfig::of_kind(BackendKind::OpenAi)
    }
}

#[tokio::test]
async fn another_backend_steps_in_for_a_dead_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = config(dir.path(), &[]);
    settings.backends.insert(0, remote("dead", "http://127.0.0.1:9/v1"));
    let node = Node::with(dir, &settings).await;
    let reply = node.ask(Via::Grpc, "Is there another one?").await.expect("a reply");
    assert!(reply.text.contains("another"), "{}", reply.text);
    node.miner.pipeline().flush().await;
    let found = node.miner.pipeline().explain("last").await.expect("a record");
    assert_eq!(found.chosen().map(|c| c.backend.as_str()), Some("echo"));
    node.stop().await;
}

#[tokio::test]
async fn a_server_answers_and_its_spending_ends_at_the_cap() {
    let server = FakeOpenAi::start(Duration::ZERO).await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings =
        config(dir.path(), &[("candidates.count", "1"), ("mutation.enabled", "false"), ("sampling.max_tokens", "100")]);
    // Worst case of a question: 100 tokens at 10 dollars a million are 0.001 dollars, and the prompt.
    settings.backends = vec![BackendConfig {
        prompt_price: 0.01,
        completion_price: 10.0,
        spending_cap: Some(0.0015),
        ..remote("paid", &server.url)
    }];
    let node = Node::with(dir, &settings).await;
    let reply = node.ask(Via::Http, "What does it cost?").await.expect("a reply");
    assert!(reply.text.contains("far server"), "{}", reply.text);
    let mut n_answered = 1;
    while node.ask(Via::Http, "And again?").await.is_ok() {
        n_answered += 1;
        assert!(n_answered < 20, "the cap never came");
    }
    assert_eq!(server.n_asked(), n_answered, "a refused question costs nothing");
    node.stop().await;
}

/// Asks a miner with these settings, in front of a server of this kind, and returns what the server was asked.
async fn asked_of(flavour: ServerFlavour, given: &[(&str, &str)], via: Via, options: &QueryOptions) -> Vec<Value> {
    let server = FakeOpenAi::start(Duration::ZERO).await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = config(dir.path(), given);
    settings.backends = vec![BackendConfig { flavour, ..remote("server", &server.url) }];
    let node = Node::with(dir, &settings).await;
    let reply = node.ask_with(via, &prompt("Why is the sky blue?"), options).await.expect("a reply");
    assert!(reply.text.starts_with("Reply number "), "{}", reply.text);
    node.stop().await;
    server.bodies()
}

#[tokio::test]
async fn a_server_gets_exactly_what_is_configured() {
    let given = [
        ("mutation.enabled", "false"),
        ("candidates.count", "3"),
        ("sampling.temperature", "0.35"),
        ("sampling.top_p", "0.81"),
        ("sampling.max_tokens", "77"),
        ("sampling.top_k", "23"),
        ("sampling.min_p", "0.07"),
        ("sampling.repetition_penalty", "1.13"),
        ("sampling.frequency_penalty", "0.21"),
        ("sampling.presence_penalty", "-0.4"),
        ("sampling.stop", "THE END"),
        ("sampling.seed", "11"),
    ];
    let plain = QueryOptions::default();
    let common = json!({
        "model": "fake", "messages": [{ "role": "user", "content": "Why is the sky blue?" }], "n": 3,
        "temperature": 0.35, "top_p": 0.81, "frequency_penalty": 0.21, "presence_penalty": -0.4, "stop": ["THE END"],
        "seed": 11,
    });
    let openai = json!({ "max_completion_tokens": 77 });
    // Each penalty under its own name, and none that the server does not know.
    let vllm = json!({ "max_tokens": 77, "top_k": 23, "min_p": 0.07, "repetition_penalty": 1.13 });
    for (flavour, own) in [(ServerFlavour::OpenAi, openai), (ServerFlavour::Vllm, vllm)] {
        let mut bodies = asked_of(flavour, &given, Via::Http, &plain).await;
        assert_eq!(bodies.len(), 1, "one request for all candidates: {bodies:?}");
        let body = bodies[0].as_object_mut().expect("an object");
        body.remove("stream");
        body.remove("stream_options");
        let expected = [&common, &own].into_iter().flat_map(|part| part.as_object().expect("an object").clone());
        assert_eq!(*body, expected.collect::<serde_json::Map<_, _>>(), "{flavour:?}");
    }
}

#[tokio::test]
async fn what_is_not_configured_is_left_to_the_server() {
    let given = [
        ("mutation.enabled", "false"),
        ("candidates.count", "1"),
        ("sampling.temperature", "none"),
        ("sampling.top_p", "none"),
        ("sampling.top_k", "none"),
        ("sampling.min_p", "none"),
        ("sampling.repetition_penalty", "none"),
        ("sampling.frequency_penalty", "none"),
        ("sampling.presence_penalty", "none"),
    ];
    let bodies = asked_of(ServerFlavour::Vllm, &given, Via::Grpc, &QueryOptions::default()).await;
    let body = bodies[0].as_object().expect("an object");
    for absent in
        ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "frequency_penalty", "stop", "n", "seed"]
    {
        assert!(!body.contains_key(absent), "{absent} in {body:?}");
    }
}

#[tokio::test]
async fn a_server_gets_what_an_inference_task_dictates_and_nothing_else() {
    let sampling = json!({ "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 33 });
    let options = QueryOptions {
        seed: Some(4242),
        task: Some("InferenceTask".to_owned()),
        sampling_parameters: sampling.as_object().cloned(),
        ..QueryOptions::default()
    };
    let given = [("candidates.count", "3"), ("sampling.temperature", "0.35"), ("sampling.stop", "THE END")];
    let bodies = asked_of(ServerFlavour::Vllm, &given, Via::Epistula, &options).await;
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let body = bodies[0].as_object().expect("an object");
    for (name, value) in
        [("temperature", json!(0.6)), ("top_p", json!(0.9)), ("max_tokens", json!(33)), ("seed", json!(4242))]
    {
        assert_eq!(body.get(name), Some(&value), "{body:?}");
    }
    assert!(!body.contains_key("n") && !body.contains_key("stop"), "{body:?}");
    assert_eq!(body["messages"], json!([{ "role": "user", "content": "Why is the sky blue?" }]));
}

#[tokio::test]
async fn every_candidate_that_was_paid_for_takes_part_and_is_charged_once() {
    let server = FakeOpenAi::start(Duration::ZERO).await;
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = config(dir.path(), &[("candidates.count", "4"), ("mutation.enabled", "false")]);
    settings.backends = vec![BackendConfig {
        prompt_price: 1000.0,
        completion_price: 10_000.0,
        spending_cap: Some(100.0),
        ..remote("paid", &server.url)
    }];
    let node = Node::with(dir, &settings).await;
    let reply = node.ask(Via::Http, "Which of the four?").await.expect("a reply");
    assert_eq!(server.bodies().iter().map(|body| body["n"].clone()).collect::<Vec<_>>(), [json!(4)]);
    node.miner.pipeline().flush().await;
    let found = node.miner.pipeline().explain("last").await.expect("a record");
    let mut texts: Vec<_> = found.candidates.iter().filter_map(|candidate| candidate.text.clone()).collect();
    texts.sort();
    let expected = |i| format!("Reply number {i} of the far server: it knows what it says at 10:{i}0.");
    assert_eq!(texts, (0..4).map(expected).collect::<Vec<_>>(), "all four were there to choose from");
    let mut ranks: Vec<_> = found.candidates.iter().map(|candidate| candidate.rank).collect();
    ranks.sort();
    assert_eq!(ranks, [0, 1, 2, 3], "all four were ranked: {found}");
    assert!(texts.contains(&reply.text), "{}", reply.text);
    // The server counted 9 tokens of prompt and 48 of reply: 9 * 1000 + 48 * 10000 dollars a million.
    let ledger = std::fs::read_to_string(node.dir.path().join("spending-paid.json")).expect("a ledger");
    let ledger: Value = serde_json::from_str(&ledger).expect("JSON");
    assert_eq!(ledger["spent_microdollars"], json!(489_000), "{ledger}");
    node.stop().await;
}

#[tokio::test]
async fn with_no_backend_there_is_an_error_and_no_text() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings = config(dir.path(), &[]);
    settings.backends = vec![remote("dead", "http://127.0.0.1:9/v1")];
    let node = Node::with(dir, &settings).await;
    for via in [Via::Grpc, Via::Http, Via::Stream, Via::Epistula, Via::Btauth] {
        let error = node.ask(via, "Is anybody there?").await.expect_err("nobody is");
        assert!(error.status_code().as_u16() >= 500, "{via}: {error}");
    }
    node.stop().await;
}
