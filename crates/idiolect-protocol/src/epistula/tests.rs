use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::testdata::{FixedClock, vectors};
use crate::{Caller, NonceStore, Verifier};

fn header_map(case: &Value) -> HeaderMap {
    let pairs = case["headers"].as_object().unwrap();
    pairs.iter().map(|(k, v)| (k.parse::<HeaderName>().unwrap(), v.as_str().unwrap().parse().unwrap())).collect()
}

fn verifier(receiver: Hotkey, now_ms: u64) -> Verifier {
    let clock = FixedClock::at_ns(i128::from(now_ms) * 1_000_000);
    Verifier::new(receiver, Limits::default(), Arc::new(clock), Arc::new(NonceStore::new(100)))
}

fn verify(verifier: &Verifier, headers: &HeaderMap, body: &[u8]) -> Result<Caller, AuthError> {
    verifier.verify(claim(headers, body, verifier.receiver(), verifier.limits())?)
}

/// Names an outcome as the recording does.
fn name(outcome: &Result<Caller, AuthError>) -> &'static str {
    match outcome {
        Ok(_) => "ok",
        Err(AuthError::WrongReceiver) => "Bad Request, message is not intended for self",
        Err(AuthError::TooOld { .. }) => "Request is too stale",
        Err(AuthError::SignatureMismatch) => "Signature Mismatch",
        Err(AuthError::TooFarAhead) => "too far ahead",
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn recorded_requests_are_judged_as_recorded() {
    // The reference takes requests from any distance ahead, so a stolen one can be kept for later.
    let mut differences = BTreeMap::from([("one_hour_in_the_future", "too far ahead")]);
    for case in vectors("epistula.json")["cases"].as_array().unwrap() {
        let variant = case["variant"].as_str().unwrap();
        let receiver = case["verifier_hotkey"].as_str().unwrap().parse().unwrap();
        let verifier = verifier(receiver, case["verifier_now_ms"].as_u64().unwrap());
        let body = case["body_utf8"].as_str().unwrap().as_bytes();
        let outcome = verify(&verifier, &header_map(case), body);
        let expected = differences.remove(variant).unwrap_or(case["expected"].as_str().unwrap());
        assert_eq!(name(&outcome), expected, "{variant}");
        if outcome.is_ok() {
            assert_eq!(verify(&verifier, &header_map(case), body), Err(AuthError::Replayed), "{variant}");
        }
    }
    assert!(differences.is_empty());
}

#[test]
fn recorded_texts_are_signed() {
    for case in vectors("epistula.json")["cases"].as_array().unwrap() {
        let headers = header_map(case);
        let text = |name| headers[name].to_str().unwrap();
        let receiver: Hotkey = text(SIGNED_FOR_HEADER).parse().unwrap();
        let secrets = secret_texts(text(TIMESTAMP_HEADER).parse().unwrap(), &receiver);
        assert_eq!(secrets.to_vec(), serde_json::from_value::<Vec<String>>(case["secret_messages"].clone()).unwrap());
        if case["expected"] == "ok" {
            let body = case["body_utf8"].as_str().unwrap().as_bytes();
            let signed = signed_text(body, text(UUID_HEADER), text(TIMESTAMP_HEADER), &receiver);
            assert_eq!(signed, case["signed_message"]);
        }
    }
}

#[test]
fn our_headers_are_the_recorded_ones_by_name() {
    let recording = vectors("epistula.json");
    let recorded = header_map(&recording["cases"][0]);
    let (bob, alice) = (Keypair::from_uri("//Bob").unwrap(), Keypair::from_uri("//Alice").unwrap().hotkey());
    let ours = sign(&bob, &alice, b"{}", 1_700_000_000_001, &Uuid::new_v4());
    let names = |headers: &HeaderMap| {
        let mut names: Vec<_> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(names(&ours), names(&recorded));
    assert!(verify(&verifier(alice, 1_700_000_000_001), &ours, b"{}").is_ok());
    let secret = keys::parse_signature(ours[SECRET_SIGNATURE_HEADERS[1]].to_str().unwrap()).unwrap();
    assert!(bob.hotkey().verify(format!("1700000010000.0.{alice}").as_bytes(), &secret));
}

#[test]
fn a_request_counts_once_and_another_at_the_same_time_too() {
    let (bob, alice) = (Keypair::from_uri("//Bob").unwrap(), Keypair::from_uri("//Alice").unwrap().hotkey());
    let verifier = verifier(alice, 1_700_000_000_000);
    let signed = |uuid: u128| sign(&bob, &alice, b"{}", 1_700_000_000_000, &Uuid::from_u128(uuid));
    let first = signed(1);
    assert!(verify(&verifier, &first, b"{}").is_ok());
    assert_eq!(verify(&verifier, &first, b"{}"), Err(AuthError::Replayed));
    assert!(verify(&verifier, &signed(2), b"{}").is_ok());
    assert!(verify(&verifier, &signed(0), b"{}").is_ok());
}

#[test]
fn heads_with_holes_are_refused() {
    let (bob, alice) = (Keypair::from_uri("//Bob").unwrap(), Keypair::from_uri("//Alice").unwrap().hotkey());
    let good = sign(&bob, &alice, b"{}", 1, &Uuid::new_v4());
    let read = |headers: &HeaderMap| claim(headers, b"{}", &alice, &Limits::default());
    for name in [TIMESTAMP_HEADER, UUID_HEADER, SIGNED_BY_HEADER, SIGNED_FOR_HEADER, SIGNATURE_HEADER] {
        let mut headers = good.clone();
        headers.remove(name);
        assert_eq!(read(&headers), Err(AuthError::Missing(name)));
    }
    for (name, value) in [
        (TIMESTAMP_HEADER, "-1"),
        (TIMESTAMP_HEADER, "1.5"),
        (TIMESTAMP_HEADER, "99999999999999999999999"),
        (UUID_HEADER, "a.b"),
        (SIGNED_BY_HEADER, "bob"),
        (SIGNATURE_HEADER, "0x12"),
        (TIMEOUT_HEADER, "-3"),
        (TIMEOUT_HEADER, "nan"),
        (TIMEOUT_HEADER, "soon"),
    ] {
        let mut headers = good.clone();
        headers.insert(name, HeaderValue::from_static(value));
        assert!(matches!(read(&headers), Err(AuthError::Malformed { name: n, .. }) if n == name), "{name}: {value}");
    }
    let mut headers = good.clone();
    headers.insert(SIGNED_FOR_HEADER, HeaderValue::from_static("me"));
    assert_eq!(read(&headers), Err(AuthError::WrongReceiver));
}

#[test]
fn the_clients_timeout_is_capped() {
    let (bob, alice) = (Keypair::from_uri("//Bob").unwrap(), Keypair::from_uri("//Alice").unwrap().hotkey());
    let mut headers = sign(&bob, &alice, b"{}", 1, &Uuid::new_v4());
    let limits = Limits::default();
    let timeout = |headers: &HeaderMap| claim(headers, b"{}", &alice, &limits).unwrap().timeout;
    assert_eq!(timeout(&headers), None);
    headers.insert(TIMEOUT_HEADER, HeaderValue::from_static("10"));
    assert_eq!(timeout(&headers), Some(Duration::from_secs(10)));
    headers.insert(TIMEOUT_HEADER, HeaderValue::from_static("1e99"));
    assert_eq!(timeout(&headers), Some(limits.max_timeout));
}

#[test]
fn dictating_requests_are_told_from_others() {
    let body = |rest: &str| {
        let text = format!(r#"{{"messages": [{{"role": "user", "content": "hi"}}]{rest}}}"#);
        ChatRequest::from_json(text.as_bytes()).unwrap()
    };
    let none = HeaderMap::new();
    assert_eq!(dictated(&none, &body("")), None);
    assert_eq!(dictated(&none, &body(r#", "seed": 7"#)), None);
    assert_eq!(dictated(&none, &body(r#", "sampling_parameters": {"temperature": 0.5}"#)), None);
    assert_eq!(dictated(&none, &body(r#", "task": "QuestionAnsweringTask""#)), None);

    let both = dictated(&none, &body(r#", "seed": 7, "sampling_parameters": {"temperature": 0.5}"#)).unwrap();
    assert_eq!((both.seed, both.temperature), (Some(7), Some(0.5)));
    let by_body = dictated(&none, &body(r#", "task": "InferenceTask", "top_p": 0.9, "max_tokens": 5"#)).unwrap();
    assert_eq!((by_body.seed, by_body.top_p, by_body.max_tokens), (None, Some(0.9), Some(5)));
    let header = HeaderMap::from_iter([
        (HeaderName::from_static("task"), HeaderValue::from_static(INFERENCE_TASK)),
        // Text for Python's eval; nobody evaluates it here.
        (HeaderName::from_static("sampling_parameters"), HeaderValue::from_static("{'temperature': 5.0}")),
    ]);
    let by_header = dictated(&header, &body(r#", "seed": 3"#)).unwrap();
    assert_eq!((by_header.seed, by_header.temperature), (Some(3), None));
}

proptest::proptest! {
    #[test]
    fn no_head_makes_the_reader_panic(values in proptest::collection::vec("\\PC{0,140}", 6), body: Vec<u8>) {
        let alice = Keypair::from_uri("//Alice").unwrap().hotkey();
        let names = [TIMESTAMP_HEADER, UUID_HEADER, SIGNED_BY_HEADER, SIGNATURE_HEADER, TIMEOUT_HEADER, "task"];
        let mut headers = HeaderMap::new();
        headers.insert(SIGNED_FOR_HEADER, alice.to_string().parse().unwrap());
        for (name, value) in names.into_iter().zip(&values) {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.insert(name, value);
            }
        }
        let _ = claim(&headers, &body, &alice, &Limits::default());
    }
}
