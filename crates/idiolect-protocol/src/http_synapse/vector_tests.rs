//! Every recorded request of five SDK versions, through head, proof and body, in the recorded order.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::*;
use crate::status::http_status;
use crate::{AuthError, Caller, Clock, Hotkey, Keypair, Limits, NonceStore, PromptError, Verifier, testdata};

const VERSIONS: [&str; 5] = ["6.9.4", "7.4.0", "8.5.2", "9.12.2", "10.5.0"];

/// Where we refuse what the recorded server accepted, each time with 401: variant, version (`*` for all), why.
const STRICTER: &[(&str, &str, &str)] = &[
    ("nonce_17s_old_timeout_12", "6.9.4", "clock readings have a window whatever version the client gives"),
    ("nonce_60s_old", "6.9.4", "clock readings have a window whatever version the client gives"),
    ("nonce_60s_old_version_640", "*", "the version is not signed, so it cannot turn the window off"),
    (
        "nonce_60s_old_version_header_lowered_unsigned",
        "*",
        "the version is not signed, so it cannot turn the window off",
    ),
    ("nonce_60s_old_timeout_header_raised_unsigned", "*", "the timeout is not signed, so it widens the window little"),
    ("nonce_1h_future", "*", "the window has an upper end"),
    ("signature_missing", "9.12.2", "the recorded server has a hole"),
    ("signature_empty", "9.12.2", "the recorded server has a hole"),
];

/// Where we refuse with another status than 401, 403, 404 or 405 as recorded, or where the recorded server crashed (500),
/// hung up, or answered before it had looked at the signature.
const OTHER_STATUS: &[(&str, u16, &str)] = &[
    ("nonce_not_a_number", 400, "500 from 7.2 on"),
    ("timeout_header_not_number", 400, "500 from 7.2 on"),
    ("input_obj_headers_missing", 400, "500 from 7.2 on"),
    ("no_bt_headers", 400, "500 from 7.2 on"),
    ("body_messages_tampered", 401, "500: the body is not the signed one, so nobody proved to have sent it"),
    ("body_messages_missing", 400, "500 or no answer"),
    ("body_messages_wrong_type", 400, "500 or no answer"),
    ("body_not_json", 400, "422"),
    ("body_empty", 400, "500"),
    ("blacklisted_hotkey_and_bad_signature", 401, "403: the list can be probed by anybody"),
    ("blacklisted_hotkey_claimed_without_its_key", 401, "403: the list can be probed by anybody"),
];

#[derive(Debug)]
struct TestClock(AtomicI64);

impl Clock for TestClock {
    fn now_ns(&self) -> i128 {
        self.0.load(Ordering::Relaxed).into()
    }
}

/// A server as far as this crate goes.
struct Server {
    clock: Arc<TestClock>,
    verifier: Verifier,
    synapses: Synapses,
    blacklisted: Hotkey,
}

impl Server {
    fn new(file: &Value) -> Self {
        let clock = Arc::new(TestClock(AtomicI64::new(0)));
        let receiver = Keypair::from_uri(file["miner_uri"].as_str().unwrap()).unwrap().hotkey();
        assert_eq!(receiver.to_string(), file["miner_hotkey"]);
        let limits = Limits { legacy_http: true, ..Limits::default() };
        let nonces = Arc::new(NonceStore::new(10_000));
        let blacklisted = Keypair::from_uri(file["blacklisted_uri"].as_str().unwrap()).unwrap().hotkey();
        let verifier = Verifier::new(receiver, limits, clock.clone(), nonces);
        Self { clock, verifier, synapses: Synapses::default(), blacklisted }
    }

    fn answer(&self, case: &Value) -> Result<(Caller, SynapseBody), (u16, String)> {
        let request = &case["request"];
        self.clock.0.store(case["sent_at_ns"].as_i64().unwrap(), Ordering::Relaxed);
        if !["GET", "POST"].contains(&request["method"].as_str().unwrap()) {
            return Err((405, "method".into()));
        }
        let headers: HeaderMap = request["headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| {
                let name: HeaderName = name.parse().unwrap();
                (name, HeaderValue::from_str(value.as_str().unwrap()).unwrap())
            })
            .collect();
        let synapse = self.synapses.find(request["path"].as_str().unwrap()).ok_or((404, "not found".into()))?;
        let refused = |error: AuthError| (http_status(error.category()).as_u16(), error.to_string());
        let head = read_head(&headers, synapse, self.verifier.receiver(), self.verifier.limits()).map_err(refused)?;
        let caller = self.verifier.verify(head.claim).map_err(refused)?;
        if *caller.hotkey() == self.blacklisted {
            return Err((403, "blacklisted".into()));
        }
        let body = Bytes::copy_from_slice(request["body"].as_str().unwrap_or("").as_bytes());
        let body = SynapseBody::parse(synapse, &head.body_hash, body)
            .map_err(|error| (http_status(error.category()).as_u16(), error.to_string()))?;
        Ok((caller, body))
    }
}

fn is_stricter(variant: &str, version: &str) -> bool {
    STRICTER.iter().any(|(v, w, _)| *v == variant && [version, "*"].contains(w))
}

#[test]
fn recorded_requests_are_accepted_and_refused_as_recorded_or_stricter_for_a_reason() {
    let mut n_cases = 0;
    for version in VERSIONS {
        let file = testdata::vectors(&format!("http-{version}.json"));
        let server = Server::new(&file);
        for case in file["cases"].as_array().unwrap() {
            n_cases += 1;
            let variant = case["variant"].as_str().unwrap();
            let was_accepted = case["received"]["http_status"] == 200;
            let answer = server.answer(case);
            if let (true, Err((status, _))) = (was_accepted, &answer) {
                assert_eq!(*status, 401, "{version} {variant}");
            }
            if let (false, Err((status, _))) = (was_accepted, &answer) {
                let other = OTHER_STATUS.iter().find(|(v, _, _)| *v == variant).map(|(_, status, _)| json!(status));
                let recorded = other.as_ref().unwrap_or(&case["received"]["http_status"]);
                assert_eq!(*recorded, *status, "{version} {variant}");
            }
            let expected = was_accepted && !is_stricter(variant, version);
            assert_eq!(answer.is_ok(), expected, "{version} {variant}: {:?}", answer.err());
            assert!(was_accepted || !is_stricter(variant, version), "{version} {variant} need not be listed");
            if let Ok((caller, body)) = answer {
                check_accepted(case, &caller, &body);
            }
        }
    }
    assert_eq!(n_cases, 5 * 55);
}

/// Looks at what came out of an accepted request, and at our reply beside the recorded one.
fn check_accepted(case: &Value, caller: &Caller, body: &SynapseBody) {
    let (request, received) = (&case["request"], &case["received"]);
    let variant = &case["variant"];
    assert_eq!(hex::encode(caller.hotkey().as_bytes()), request["signer_public_key"], "{variant}");
    let asked: Value = serde_json::from_str(request["body"].as_str().unwrap()).unwrap();
    match body.synapse().kind() {
        SynapseKind::Prompt if variant == "empty_lists" => {
            assert!(body.asks_nothing());
            assert_eq!(body.prompt(), Err(PromptError::Empty));
        }
        SynapseKind::Prompt => {
            assert!(!body.asks_nothing(), "{variant}");
            let prompt = body.prompt().unwrap();
            let contents: Vec<_> = prompt.messages().iter().map(|m| m.content.as_str()).collect();
            assert_eq!(serde_json::to_value(contents).unwrap(), asked["messages"], "{variant}");
        }
        _ => assert!(body.prompt().is_err()),
    }
    let recorded: Value = serde_json::from_str(received["body"].as_str().unwrap()).unwrap();
    let reply = SynapseReplier::new(&Hotkey::from_bytes([1; 32]), None).completion(body, "x", Duration::from_millis(1));
    let value: Value = serde_json::from_slice(reply.body()).unwrap();
    for field in ["name", "timeout", "roles", "messages", "required_hash_fields"] {
        assert_eq!(value.get(field), recorded.get(field), "{variant} {field}");
    }
    for header in ["content-type", "bt_header_axon_status_code", "bt_header_axon_status_message"] {
        assert_eq!(reply.headers()[header], received["headers"][header].as_str().unwrap(), "{variant} {header}");
    }
}

#[test]
fn counters_are_refused_unless_asked_for() {
    let file = testdata::vectors("http-6.9.4.json");
    let mut server = Server::new(&file);
    let (receiver, limits) = (*server.verifier.receiver(), Limits::default());
    server.verifier = Verifier::new(receiver, limits, server.clock.clone(), Arc::new(NonceStore::new(100)));
    let (_, error) = server.answer(&file["cases"][0]).unwrap_err();
    assert_eq!(error, "bittensor 6.0 to 7.1 clients are not served here");
}

#[test]
fn the_matrix_says_what_the_recordings_say() {
    let matrix = testdata::vectors("http-status-matrix.json");
    for version in VERSIONS {
        for case in testdata::vectors(&format!("http-{version}.json"))["cases"].as_array().unwrap() {
            let variant = case["variant"].as_str().unwrap();
            let recorded = case["received"].get("http_status").unwrap_or(&Value::Null);
            assert_eq!(matrix["status"][variant][version], *recorded, "{version} {variant}");
        }
    }
}
