//! bittensor 5 over the listener.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use idiolect_protocol::Keypair;
use idiolect_protocol::pb::{
    BackwardTextPromptingRequest, BackwardTextPromptingResponse, ForwardTextPromptingRequest,
    ForwardTextPromptingResponse, MultiForwardTextPromptingRequest, MultiForwardTextPromptingResponse, ReturnCode,
};
use prost::Message as _;

use crate::support::{GrpcAnswer, Served, Setup, alice, bob, grpc, grpc_framed, grpc_metadata, now_ns, until};

const FORWARD: &str = "/TextPrompting/Forward";

fn message(content: &str) -> String {
    serde_json::json!({"role": "user", "content": content}).to_string()
}

fn forward(content: &str, timeout: f32) -> Vec<u8> {
    ForwardTextPromptingRequest { messages: vec![message(content)], timeout, ..Default::default() }.encode_to_vec()
}

async fn ask(served: &Served, content: &str, timeout: f32) -> ForwardTextPromptingResponse {
    decode(call(served, &forward(content, timeout)).await)
}

async fn call(served: &Served, message: &[u8]) -> GrpcAnswer {
    grpc(served.address, FORWARD, &grpc_metadata(&bob(), &alice().hotkey()), message).await
}

fn decode<R: prost::Message + Default>(answer: GrpcAnswer) -> R {
    assert_eq!((answer.status, answer.details.as_str()), (0, ""));
    R::decode(answer.message.unwrap()).unwrap()
}

#[tokio::test]
async fn all_three_methods_answer() {
    let served = Setup::default().serve().await;
    let reply = ask(&served, "hi", 12.0).await;
    assert_eq!((reply.return_code(), reply.response.as_str()), (ReturnCode::Success, "echo: user=hi"));

    let many = MultiForwardTextPromptingRequest { messages: vec![message("hi")], timeout: 12.0, ..Default::default() };
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    let answer = grpc(served.address, "/TextPrompting/MultiForward", &metadata, &many.encode_to_vec()).await;
    let reply: MultiForwardTextPromptingResponse = decode(answer);
    assert_eq!(reply.multi_completions.len(), 4);

    let rewards = BackwardTextPromptingRequest {
        rewards: vec![0.25],
        messages: vec![message("hi")],
        response: "echo: user=hi".to_owned(),
        timeout: 12.0,
        ..Default::default()
    };
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    let answer = grpc(served.address, "/TextPrompting/Backward", &metadata, &rewards.encode_to_vec()).await;
    let reply: BackwardTextPromptingResponse = decode(answer);
    assert_eq!(reply.return_code(), ReturnCode::Success);
    let feedback = served.echo.feedback.lock().unwrap();
    assert_eq!(feedback[0].rewards, [0.25]);
    assert_eq!(*feedback[0].caller.hotkey(), bob().hotkey());
}

#[tokio::test]
async fn the_handler_sees_every_turn_and_a_deadline_before_the_clients_timeout() {
    // Reference miners dropped assistant turns over a capital letter.
    let served = Setup::default().serve().await;
    let messages = ["{\"role\": \"system\", \"content\": \"s\"}", "{\"role\": \"Assistant\", \"content\": \"a\"}"];
    let mut messages: Vec<String> = messages.map(str::to_owned).into();
    messages.push(message("u"));
    let request = ForwardTextPromptingRequest { messages, timeout: 5.0, ..Default::default() };
    let asked = std::time::Instant::now();
    let reply: ForwardTextPromptingResponse = decode(call(&served, &request.encode_to_vec()).await);
    assert_eq!(reply.response, "echo: system=s | assistant=a | user=u");
    let calls = served.echo.calls.lock().unwrap();
    let budget = Duration::from_millis(4500);
    assert!(calls[0].deadline >= asked + budget && calls[0].deadline <= std::time::Instant::now() + budget);
    assert_eq!(calls[0].synapse, "TextPrompting.Forward");
    assert!(calls[0].dictated.is_none());
}

#[tokio::test]
async fn unverified_callers_get_unauthenticated_and_are_not_read() {
    let served = Setup::default().serve().await;
    let check = async |metadata: &http::HeaderMap, details: &str| {
        // Not even protobuf: an unverified caller must not get as far as the decoder.
        let answer = grpc(served.address, FORWARD, metadata, b"\xff\xff").await;
        assert_eq!((answer.status, answer.details.as_str(), answer.message), (16, details, None));
    };
    check(&http::HeaderMap::new(), "Request signature missing").await;
    check(&grpc_metadata(&bob(), &bob().hotkey()), "Signature mismatch").await;
    let mut old = grpc_metadata(&bob(), &alice().hotkey());
    old.insert("bittensor-version", 369.into());
    check(&old, "Incorrect Version").await;
    let with_signature = |text: &str| {
        let mut metadata = grpc_metadata(&bob(), &alice().hotkey());
        metadata.insert("bittensor-signature", text.parse().unwrap());
        metadata
    };
    let sound = grpc_metadata(&bob(), &alice().hotkey())["bittensor-signature"].to_str().unwrap().to_owned();
    let parts: Vec<&str> = sound.split('.').collect();
    for (malformed, details) in [
        ("x".to_owned(), "Unknown signature format"),
        (format!("{sound}.x"), "Unknown signature format"),
        (sound.replacen(parts[0], "soon", 1), "Unknown signature format"),
        (sound.replacen(parts[1], "5xyz", 1), "Unknown signature format"),
        (sound.replacen(parts[3], "a b", 1), "Unknown signature format"),
        (sound.replacen(parts[2], "0x12", 1), "Signature mismatch"),
        (sound.replacen(parts[0], "1001", 1), "Signature mismatch"),
    ] {
        check(&with_signature(&malformed), details).await;
    }
    let signed_at = |nonce: i128, made_ms: u64| {
        let session = uuid::Builder::from_unix_timestamp_millis(made_ms, &[7; 10]).into_uuid().to_string();
        idiolect_protocol::grpc::sign(&bob(), &alice().hotkey(), nonce, &session)
    };
    let now_ms = u64::try_from(now_ns() / 1_000_000).unwrap();
    check(&signed_at(now_ns(), now_ms), "Nonce is a clock reading").await;
    check(&signed_at(1_000, now_ms + 25 * 3_600_000), "Nonce is too far in the future").await;
    let mallory = Keypair::from_uri("//Mallory").unwrap();
    check(&grpc_metadata(&mallory, &bob().hotkey()), "Signature mismatch").await;
    let twice = grpc_metadata(&bob(), &alice().hotkey());
    assert_eq!(grpc(served.address, FORWARD, &twice, &forward("hi", 1.0)).await.status, 0);
    check(&twice, "Nonce is too small").await;
    assert_eq!(served.echo.calls.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn denied_callers_get_return_code_25() {
    let served = Setup::default().serve().await;
    let mallory = Keypair::from_uri("//Mallory").unwrap();
    let metadata = grpc_metadata(&mallory, &alice().hotkey());
    let reply: ForwardTextPromptingResponse =
        decode(grpc(served.address, FORWARD, &metadata, &forward("hi", 12.0)).await);
    assert_eq!((reply.return_code(), reply.response.as_str()), (ReturnCode::Blacklisted, ""));
    assert_eq!(reply.return_message, "not allowed");
}

#[tokio::test]
async fn bad_messages_are_refused_each_in_its_way() {
    let served = Setup::default().serve().await;
    assert_eq!(call(&served, b"\xff\xff\xff").await.status, 13, "no protobuf is INTERNAL, as in the reference");
    let answer = call(&served, &with_messages(vec!["no json".to_owned()])).await;
    assert_eq!(answer.status, 3);
    let answer = call(&served, &with_messages(vec!["{\"role\": \"robot\", \"content\": \"x\"}".to_owned()])).await;
    assert_eq!(answer.status, 3);
    assert!(answer.details.contains("unknown role \"robot\""), "{}", answer.details);
    let reply: ForwardTextPromptingResponse = decode(call(&served, &with_messages(vec![])).await);
    assert_eq!((reply.return_code(), reply.response.as_str()), (ReturnCode::EmptyRequest, ""));
    // A text field with bytes that are no UTF-8.
    let invalid = [0x1a, 2, 0xff, 0xfe, 0x25, 0, 0, 0x40, 0x41];
    assert_eq!(call(&served, &invalid).await.status, 13);
    assert!(served.echo.calls.lock().unwrap().is_empty());
}

fn with_messages(messages: Vec<String>) -> Vec<u8> {
    ForwardTextPromptingRequest { messages, timeout: 12.0, ..Default::default() }.encode_to_vec()
}

#[tokio::test]
async fn timeouts_of_any_size_are_survived() {
    let served = Setup::default().serve().await;
    for (seconds, message) in [(0.0, "GRPC request timeout after: 0.0s"), (-1.0, "GRPC request timeout after: -1.0s")] {
        let reply = ask(&served, "hi", seconds).await;
        assert_eq!((reply.return_code(), reply.return_message.as_str()), (ReturnCode::Timeout, message));
    }
    assert_eq!(ask(&served, "hi", f32::NAN).await.return_code(), ReturnCode::Timeout);
    for (seconds, message) in [
        (f32::NEG_INFINITY, "GRPC request timeout after: -infs"),
        (f32::MIN, "GRPC request timeout after: -3.4028235e38s"),
        (1e-45, "GRPC request timeout after: 1e-45s"),
        (1e-9, "GRPC request timeout after: 1e-9s"),
    ] {
        let reply = ask(&served, "wait 60000", seconds).await;
        assert_eq!((reply.return_code(), reply.return_message.as_str()), (ReturnCode::Timeout, message));
    }
    for seconds in [f32::INFINITY, f32::MAX, 1e9] {
        assert_eq!(ask(&served, "hi", seconds).await.return_code(), ReturnCode::Success);
        let deadline = served.echo.calls.lock().unwrap().last().unwrap().deadline;
        assert!(deadline.saturating_duration_since(std::time::Instant::now()) <= Duration::from_secs(60));
    }
}

#[tokio::test]
async fn a_handler_that_is_late_is_dropped_and_the_client_told_in_time() {
    let served = Setup::default().serve().await;
    let asked = std::time::Instant::now();
    let reply = ask(&served, "wait 60000", 0.5).await;
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!((reply.return_code(), reply.response.as_str()), (ReturnCode::Timeout, ""));
    assert_eq!(reply.return_message, "GRPC request timeout after: 0.5s");
    assert_eq!(served.echo.n_dropped.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn failures_of_the_handler_are_never_completions() {
    // A reference miner sent "Error: ..." as its answer.
    let served = Setup::default().serve().await;
    let reply = ask(&served, "fail internal", 12.0).await;
    assert_eq!((reply.return_code(), reply.response.as_str()), (ReturnCode::UnknownException, ""));
    assert_eq!(reply.return_message, "no model");
    for prompt in ["panic", "nothing"] {
        let reply = ask(&served, prompt, 12.0).await;
        assert_eq!((reply.return_code(), reply.response.as_str()), (ReturnCode::UnknownException, ""));
    }
    let overloaded = call(&served, &forward("fail overloaded", 12.0)).await;
    assert_eq!(overloaded.status, 8);
    assert_eq!(ask(&served, "hi", 12.0).await.return_code(), ReturnCode::Success);
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented_and_names_nothing() {
    let served = Setup::default().serve().await;
    for path in ["/TextPrompting/Nope", "/Other/Forward", "/TextPrompting/Forward/x"] {
        let answer = grpc(served.address, path, &http::HeaderMap::new(), b"").await;
        assert_eq!((answer.status, answer.details.as_str()), (12, "Method not found!"));
    }
}

#[tokio::test]
async fn a_client_that_goes_away_stops_the_work() {
    let served = Setup::default().serve().await;
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    let message = forward("wait 60000", 60.0);
    let asking = tokio::time::timeout(Duration::from_millis(300), grpc(served.address, FORWARD, &metadata, &message));
    assert!(asking.await.is_err());
    until("the handler's future is dropped", || served.echo.n_dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn messages_above_the_limit_are_resource_exhausted_even_when_only_announced() {
    let served = Setup::config(|config| config.max_body_bytes = 100_000).serve().await;
    let fits = "x".repeat(90_000);
    assert_eq!(ask(&served, &fits, 12.0).await.return_code(), ReturnCode::Success);
    let answer = call(&served, &forward(&"x".repeat(100_001), 12.0)).await;
    assert_eq!((answer.status, answer.details.as_str()), (8, "request too large"));
    let announced = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    assert_eq!(grpc_framed(served.address, FORWARD, &metadata, announced).await.status, 8);
}

#[tokio::test]
async fn a_prompt_of_one_mebibyte_is_answered_by_default() {
    let served = Setup::default().serve().await;
    let prompt = "é".repeat(512 << 10);
    let reply = ask(&served, &prompt, 30.0).await;
    assert_eq!(reply.response.len(), "echo: user=".len() + prompt.len());
}

#[tokio::test]
async fn health_and_reflection_answer_on_the_same_port() {
    use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
    let served = Setup::default().serve().await;
    for service in ["", "TextPrompting"] {
        let request = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
        let answer = grpc(served.address, "/grpc.health.v1.Health/Check", &http::HeaderMap::new(), &request).await;
        let reply: HealthCheckResponse = decode(answer);
        assert_eq!(reply.status, 1);
    }
    let list = [0x3a, 0];
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let answer = grpc(served.address, path, &http::HeaderMap::new(), &list).await;
    let names = String::from_utf8_lossy(&answer.message.unwrap()).into_owned();
    assert!(names.contains("TextPrompting") && names.contains("grpc.health.v1.Health"), "{names}");

    let without = Setup::config(|config| config.reflection = false).serve().await;
    assert_eq!(grpc(without.address, path, &http::HeaderMap::new(), &list).await.status, 12);
}

#[tokio::test]
async fn rewards_must_be_numbers() {
    let served = Setup::default().serve().await;
    let request = BackwardTextPromptingRequest {
        rewards: vec![f32::NAN],
        messages: vec![message("hi")],
        timeout: 12.0,
        ..Default::default()
    };
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    let answer = grpc(served.address, "/TextPrompting/Backward", &metadata, &request.encode_to_vec()).await;
    assert_eq!(answer.status, 3);
    assert!(served.echo.feedback.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_switched_off_generation_is_refused() {
    let mut setup = Setup::default();
    setup.limits.grpc = false;
    let served = setup.serve().await;
    let answer = call(&served, &forward("hi", 12.0)).await;
    assert_eq!((answer.status, answer.details.as_str()), (16, "bittensor 5 clients are not served here"));
}
