//! What peers and operators get wrong: each has a clear answer.

use std::net::TcpListener;

use idiolect_miner::app::Miner;
use idiolect_models::NoProgress;
use idiolect_protocol::dendrite::{QueryOptions, Via};
use idiolect_protocol::pb::text_prompting_client::TextPromptingClient;
use idiolect_protocol::pb::{ForwardTextPromptingRequest, ReturnCode};
use idiolect_protocol::{Keypair, Message, Prompt, Role, grpc};

use crate::support::{Node, config, env, send_raw, signed, signed_chat};

async fn no_start(given: &[(&str, &str)], expected: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let error = Miner::start(&config(dir.path(), given), &env(), &NoProgress).await.expect_err("no start");
    let error = format!("{error:#}");
    assert!(error.contains(expected), "{error}\nlacks\n{expected}");
}

#[tokio::test]
async fn an_occupied_port_is_named_before_anything_is_fetched() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let port = address.port().to_string();
    no_start(
        &[("axon.port", &port), ("backend", "candle"), ("model", "no-such-model")],
        &format!("cannot listen on {address}: another program uses this port"),
    )
    .await;
    no_start(
        &[("metrics.addr", &address.to_string()), ("backend", "candle"), ("model", "no-such-model")],
        "for metrics; choose another address with --metrics.addr",
    )
    .await;
}

#[tokio::test]
async fn models_that_are_not_there_are_named() {
    no_start(&[("backend", "candle"), ("model", "no-such-model")], "unknown model \"no-such-model\"").await;
    no_start(&[("backend", "candle"), ("model", "./no/such/file.gguf")], "no/such/file.gguf does not exist").await;
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("broken.gguf");
    std::fs::write(&file, b"GGUF and then nothing of use").expect("written");
    no_start(&[("backend", "candle"), ("model", &file.display().to_string())], "broken.gguf").await;
    no_start(&[("mutation.operators", "/no/such/operators.toml")], "/no/such/operators.toml").await;
}

#[tokio::test]
async fn an_unusable_data_directory_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    std::fs::write(&file, "no folder").expect("written");
    let settings = config(&file.join("below"), &[]);
    let error = Miner::start(&settings, &env(), &NoProgress).await.expect_err("no start");
    assert!(format!("{error:#}").contains("file/below"), "{error:#}");
}

/// Changes a request's body, its length with it, and sends it.
async fn send_altered(node: &Node, request: Vec<u8>, from: &str, to: &str) -> (u16, String) {
    let text = String::from_utf8(request).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a body");
    assert!(body.contains(from), "{from} is not in {body}");
    let body = body.replacen(from, to, 1);
    let length = head.lines().find(|l| l.starts_with("content-length")).expect("a length");
    let request = format!("{}\r\n\r\n{body}", head.replace(length, &format!("content-length: {}", body.len())));
    send_raw(node.miner.address(), request.as_bytes()).await
}

#[tokio::test]
async fn bodies_altered_after_signing_are_refused_without_a_completion() {
    let node = Node::start(&[]).await;
    // A synapse's hash is of the messages alone, so another role reaches the check of roles.
    for (from, to, code, expected) in [
        ("\"user\"", "\"owner\"", 400, "unknown role \\\"owner\\\""),
        ("a question", "\u{fffd} quest", 401, "hash"),
        ("{", "[", 400, "not a JSON object"),
    ] {
        let (status, answer) =
            send_altered(&node, signed(&node, Via::Http, "a question that is signed"), from, to).await;
        assert!(status == code && answer.contains(expected), "{from} -> {to}: {status} {answer}");
    }
    for via in [Via::Epistula, Via::Btauth] {
        let request = signed(&node, via, "a question that is signed");
        let (status, answer) = send_altered(&node, request, "\"user\"", "\"owner\"").await;
        assert!(status == 401 && !answer.contains("owner"), "{via}: {status} {answer}");
    }
    node.ask(Via::Http, "Still there?").await.expect("yes");
    node.stop().await;
}

#[tokio::test]
async fn signed_bodies_that_make_no_sense_are_refused_with_the_reason() {
    let node = Node::start(&[]).await;
    let said = |messages: &str| format!("{{\"messages\": {messages}}}").into_bytes();
    let mut broken = said(r#"[{"role": "user", "content": "????"}]"#);
    let at = broken.iter().position(|byte| *byte == b'?').expect("a question mark");
    broken[at] = 0xff;
    for (body, expected) in [
        (said(r#"[{"role": "owner", "content": "x"}]"#), "unknown role"),
        (said("[]"), "no message with any text"),
        (said(r#"[{"role": "user", "content": "  "}]"#), "no message with any text"),
        (said("7"), "messages"),
        (b"[]".to_vec(), "must be an object"),
        (b"{".to_vec(), "JSON"),
        (broken, "JSON"),
    ] {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let (status, answer) = send_raw(node.miner.address(), &signed_chat(&node, &body)).await;
        assert_eq!(status, 400, "{shown}: {answer}");
        assert!(answer.contains(expected) && !answer.contains("choices"), "{shown}: {answer}");
    }
    let whole = said(r#"[{"role": "user", "content": "Still there?"}]"#);
    assert_eq!(send_raw(node.miner.address(), &signed_chat(&node, &whole)).await.0, 200);
    node.stop().await;
}

#[tokio::test]
async fn a_prompt_of_one_mebibyte_is_answered_or_refused_in_time() {
    let node = Node::start(&[]).await;
    let long = "word ".repeat((1 << 20) / 5);
    for via in [Via::Grpc, Via::Http, Via::Epistula] {
        node.ask(via, &long).await.unwrap_or_else(|e| panic!("{via}: {e}"));
    }
    node.stop().await;
    let node = Node::start(&[("axon.max_body", "64KiB")]).await;
    // The announced length is enough: the refusal comes in the way that each generation of clients reads.
    for (via, code, status) in [
        (Via::Grpc, 429, "RESOURCE_EXHAUSTED"),
        (Via::Http, 413, "413 Payload Too Large"),
        (Via::Stream, 413, "413 Payload Too Large"),
        (Via::Epistula, 413, "413 Payload Too Large"),
        (Via::Btauth, 413, "413 Payload Too Large"),
    ] {
        let error = node.ask(via, &long).await.expect_err("too large");
        assert_eq!(error.status_code().as_u16(), code, "{via}: {error}");
        assert_eq!(error.to_string(), format!("refused with {status}: request too large"), "{via}");
    }
    node.ask(Via::Http, "Still there?").await.expect("yes");
    node.stop().await;
}

#[tokio::test]
async fn a_history_longer_than_the_context_is_trimmed_with_a_note() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut settings =
        config(dir.path(), &[("backend", "candle"), ("candidates.count", "1"), ("sampling.max_tokens", "8")]);
    settings.backends[0].context_tokens = Some(256);
    let node = Node::with(dir, &settings).await;
    let turn = |role, n: usize| Message::new(role, format!("Turn {n}: {}", "so it went on and on ".repeat(5)));
    let turns = (0..20).map(|n| turn(if n % 2 == 0 { Role::User } else { Role::Assistant }, n));
    let history = turns.chain([Message::new(Role::User, "And what was the first turn about?")]).collect();
    let long = Prompt::new(history).expect("a prompt");
    node.ask_with(Via::Epistula, &long, &QueryOptions::default()).await.expect("a reply to what fits");
    node.miner.pipeline().flush().await;
    let found = node.miner.pipeline().explain("last").await.expect("a record");
    assert!(found.trimmed_tokens > 0, "{found}");
    assert!(found.to_string().contains("left out of the middle of the prompt"), "{found}");

    let question = "why ".repeat(2000);
    let error = node.ask(Via::Http, &question).await.expect_err("nothing can be kept");
    assert!(error.to_string().contains("context length is 256"), "{error}");
    node.stop().await;
}

#[tokio::test]
async fn timeouts_of_any_size_are_survived() {
    let node = Node::start(&[]).await;
    // What is no number, or no time at all, is malformed; the header is not signed, so a huge one is capped.
    for (timeout, expected) in [
        ("-5", 400),
        ("0", 400),
        ("nan", 400),
        ("soon", 400),
        ("inf", 400),
        ("-inf", 400),
        ("1e309", 400),
        ("1e300", 200),
        ("1e308", 200),
        ("99999999999999999999", 200),
        ("0.000000001", 408),
    ] {
        let fresh = String::from_utf8(signed(&node, Via::Http, "How long do you wait?")).expect("text");
        let line =
            fresh.lines().find(|l| l.to_lowercase().starts_with("timeout:")).expect("a timeout header").to_owned();
        let (status, answer) =
            send_raw(node.miner.address(), fresh.replace(&line, &format!("timeout: {timeout}")).as_bytes()).await;
        assert_eq!(status, expected, "{timeout}: {answer}");
    }
    let url = format!("http://{}", node.miner.address());
    let mut client = TextPromptingClient::connect(url).await.expect("connected");
    let (validator, session) = (Keypair::generate(), "62b764fc-e650-11f1-a3fe-000000000001");
    for (nonce, timeout, expected) in [
        (1, -5.0, ReturnCode::Timeout),
        (2, 0.0, ReturnCode::Timeout),
        (3, f32::NAN, ReturnCode::Timeout),
        (4, f32::NEG_INFINITY, ReturnCode::Timeout),
        (5, f32::MIN_POSITIVE, ReturnCode::Timeout),
        (6, f32::MAX, ReturnCode::Success),
        (7, f32::INFINITY, ReturnCode::Success),
    ] {
        let messages = vec![r#"{"role": "user", "content": "How long do you wait?"}"#.to_owned()];
        let mut request = tonic::Request::new(ForwardTextPromptingRequest { messages, timeout, ..Default::default() });
        *request.metadata_mut() =
            tonic::metadata::MetadataMap::from_headers(grpc::sign(&validator, &node.miner.hotkey(), nonce, session));
        let reply = client.forward(request).await.unwrap_or_else(|e| panic!("{timeout}: {e}")).into_inner();
        assert_eq!(reply.return_code(), expected, "{timeout}: {}", reply.return_message);
        assert_eq!(reply.response.is_empty(), expected == ReturnCode::Timeout, "{timeout}");
    }
    node.ask(Via::Http, "Still there?").await.expect("yes");
    node.stop().await;
}
