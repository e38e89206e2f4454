//! What real clients of eight versions sent, through the listener, with the clock at the time of sending.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use idiolect_axon::policy::{Rules, StandardPolicy};
use idiolect_protocol::pb::ForwardTextPromptingResponse;
use idiolect_protocol::{Keypair, Limits};
use prost::Message as _;
use serde_json::{Value, json};

use crate::support::{Served, Setup, grpc, request, vectors};

/// Where the recorded server accepted what must be refused: variant and status.
const STRICTER: &[(&str, u16)] = &[
    ("nonce_17s_old_timeout_12", 401),
    ("nonce_60s_old", 401),
    ("nonce_60s_old_version_640", 401),
    ("nonce_60s_old_version_header_lowered_unsigned", 401),
    ("nonce_60s_old_timeout_header_raised_unsigned", 401),
    ("nonce_1h_future", 401),
    ("signature_missing", 401),
    ("signature_empty", 401),
    ("signature_not_hex", 401),
];

/// Where the recorded server answered with a fault of its own (or none at all) what is the client's: variant and status.
const CLEARER: &[(&str, u16)] = &[
    ("nonce_not_a_number", 400),
    ("body_messages_tampered", 401),
    ("body_messages_missing", 400),
    ("body_messages_wrong_type", 400),
    ("body_not_json", 400),
    ("body_empty", 400),
    ("no_bt_headers", 400),
    ("timeout_header_not_number", 400),
    ("input_obj_headers_missing", 400),
    // The proof comes before the black list.
    ("blacklisted_hotkey_and_bad_signature", 401),
    ("blacklisted_hotkey_claimed_without_its_key", 401),
];

async fn served(file: &Value) -> Served {
    let mallory = Keypair::from_uri(file["blacklisted_uri"].as_str().unwrap()).unwrap().hotkey();
    let miner = Keypair::from_uri(file["miner_uri"].as_str().unwrap()).unwrap().hotkey();
    let rules = Rules { allow_any: true, deny: [mallory].into(), ..Rules::default() };
    let mut setup = Setup { limits: Limits { legacy_http: true, ..Limits::default() }, ..Setup::default() };
    setup.policy = Arc::new(StandardPolicy::new(miner, rules, None));
    setup.serve().await
}

fn expected(variant: &str, recorded: Option<u64>) -> u16 {
    let listed = |table: &[(&str, u16)]| table.iter().find(|(v, _)| *v == variant).map(|(_, status)| *status);
    match recorded.and_then(|status| u16::try_from(status).ok()) {
        Some(200) => listed(STRICTER).unwrap_or(200),
        other => listed(CLEARER).or(other).unwrap_or(400),
    }
}

#[tokio::test]
async fn recorded_http_requests_are_answered_as_recorded_or_stricter_for_a_reason() {
    for version in ["6.9.4", "7.4.0", "8.5.2", "9.12.2", "10.5.0"] {
        let file = vectors(&format!("http-{version}.json"));
        let served = served(&file).await;
        for case in file["cases"].as_array().unwrap() {
            let variant = case["variant"].as_str().unwrap();
            served.clock.set(case["sent_at_ns"].as_i64().unwrap().into());
            let sent = &case["request"];
            let headers = sent["headers"].as_object().unwrap();
            let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str().unwrap())).collect();
            let body = sent["body"].as_str().unwrap_or("");
            let (method, path) = (sent["method"].as_str().unwrap(), sent["path"].as_str().unwrap());
            let answer = served.raw(request(method, path, &headers, body.as_bytes())).await;
            let recorded = &case["received"];
            let status = expected(variant, recorded["http_status"].as_u64());
            assert_eq!(answer.status, status, "{version} {variant}: {}", answer.text());
            if status != 200 {
                assert!(answer.json()["message"].is_string(), "{version} {variant}");
                continue;
            }
            let recorded: Value = serde_json::from_str(recorded["body"].as_str().unwrap()).unwrap();
            // Nothing was asked: the recorded server's handler says "echo: " all the same.
            let said = if variant == "empty_lists" { &json!("") } else { &recorded["completion"] };
            assert_eq!(answer.json().get("completion").unwrap_or(&Value::Null), said, "{version} {variant}");
            for field in ["name", "roles", "messages"] {
                assert_eq!(answer.json().get(field), recorded.get(field), "{version} {variant} {field}");
            }
        }
    }
}

/// Where the recorded server answered otherwise: variant, our gRPC status.
const GRPC_OTHERS: &[(&str, i32)] = &[
    // Bad JSON is the client's fault: INVALID_ARGUMENT, not UNKNOWN.
    ("message_not_json", 3),
    // Signed as the others are. 5.2.1 answers these versions, which 5.3.4 refuses by their number alone.
    ("version_370", 0),
    ("version_509", 0),
];

#[tokio::test]
async fn recorded_grpc_requests_are_answered_as_recorded() {
    for version in ["5.2.1", "5.3.4"] {
        let file = vectors(&format!("grpc-{version}.json"));
        let served = served(&file).await;
        for case in file["cases"].as_array().unwrap() {
            let variant = case["variant"].as_str().unwrap();
            let mut metadata = HeaderMap::new();
            for pair in case["metadata"].as_array().unwrap() {
                let name: HeaderName = pair[0].as_str().unwrap().parse().unwrap();
                metadata.append(name, HeaderValue::from_str(pair[1].as_str().unwrap()).unwrap());
            }
            metadata.remove("user-agent");
            let message = unhex(case["request_hex"].as_str().unwrap());
            let answer = grpc(served.address, case["method"].as_str().unwrap(), &metadata, &message).await;
            let recorded = case["grpc_status"].as_str().unwrap();
            let status = GRPC_OTHERS.iter().find(|(v, _)| *v == variant).map_or_else(|| code(recorded), |(_, s)| *s);
            assert_eq!(answer.status, status, "{version} {variant}: {}", answer.details);
            if case["method"] != "/TextPrompting/Forward" || status != 0 {
                continue;
            }
            let reply = ForwardTextPromptingResponse::decode(answer.message.unwrap()).unwrap();
            let recorded = &case["response"];
            if recorded.is_null() {
                assert_eq!(
                    (reply.return_code, reply.response.as_str()),
                    (1, "echo: user=What is the capital of France?"),
                    "{variant}"
                );
                continue;
            }
            if variant == "empty_messages" {
                assert_eq!(reply.return_code, 6, "nothing to answer");
                continue;
            }
            assert_eq!(i64::from(reply.return_code), recorded["return_code"], "{version} {variant}");
            assert_eq!(reply.response, recorded["response"].as_str().unwrap(), "{version} {variant}");
        }
    }
}

fn code(name: &str) -> i32 {
    match name {
        "OK" => 0,
        "UNIMPLEMENTED" => 12,
        "INTERNAL" => 13,
        "UNAUTHENTICATED" => 16,
        other => panic!("{other}"),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

#[tokio::test]
async fn recorded_epistula_and_btauth_requests_are_proved_as_recorded() {
    // Their bodies are no prompts throughout, so what counts is which side of the proof they end on: 401, or beyond.
    for (name, clock) in [("epistula.json", "verifier_now_ms"), ("btauth.json", "verifier_now_ns")] {
        let file = vectors(name);
        for case in file["cases"].as_array().unwrap() {
            let variant = case["variant"].as_str().unwrap();
            let is_epistula = name == "epistula.json";
            let alice = Keypair::from_uri("//Alice").unwrap().hotkey();
            if case["verifier_hotkey"] != alice.to_string() || case["nonce_already_seen"] == true {
                continue;
            }
            let path = if is_epistula { "/v1/chat/completions" } else { case["path"].as_str().unwrap() };
            let method = if is_epistula { "POST" } else { case["method"].as_str().unwrap() };
            if !path.starts_with("/v1/chat/completions") || !method.eq_ignore_ascii_case("POST") {
                continue;
            }
            let served = Setup::default().serve().await;
            let now: i128 = case[clock].as_i64().unwrap().into();
            served.clock.set(if is_epistula { now * 1_000_000 } else { now });
            let headers = case["headers"].as_object().unwrap();
            let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str().unwrap())).collect();
            let body = case["body_utf8"].as_str().unwrap().as_bytes();
            let answer = served.raw(request("POST", path, &headers, body)).await;
            let was_proved = case["expected"] == "ok" || case["result"] == "ok";
            let is_proved = match (was_proved, answer.status) {
                (_, 200) => true,
                // A proved btauth request whose body is no prompt.
                (true, 400) => !is_epistula,
                _ => false,
            };
            // An hour ahead is beyond the window.
            let expected = was_proved && variant != "one_hour_in_the_future";
            assert_eq!(is_proved, expected, "{name} {variant}: {} {}", answer.status, answer.text());
            assert_eq!(served.echo.calls.lock().unwrap().is_empty(), !(expected && is_epistula), "{name} {variant}");
        }
    }
}
