use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::testdata::{FixedClock, vectors};
use crate::{Caller, NonceStore, Verifier};

fn header_map(case: &Value) -> HeaderMap {
    let pairs = case["headers"].as_object().unwrap();
    pairs.iter().map(|(k, v)| (k.parse::<HeaderName>().unwrap(), v.as_str().unwrap().parse().unwrap())).collect()
}

fn text<'c>(case: &'c Value, key: &str) -> &'c str {
    case[key].as_str().unwrap()
}

fn verifier(case: &Value, limits: Limits) -> Verifier {
    let clock = FixedClock::at_ns(case["verifier_now_ns"].as_i64().unwrap().into());
    let receiver = text(case, "verifier_hotkey").parse().unwrap();
    Verifier::new(receiver, limits, Arc::new(clock), Arc::new(NonceStore::new(100)))
}

fn verify(verifier: &Verifier, case: &Value) -> Result<Caller, AuthError> {
    let (method, target) = (text(case, "method"), text(case, "path"));
    let request = SignedParts { method, target, body: text(case, "body_utf8").as_bytes() };
    verifier.verify(claim(&header_map(case), request, verifier.receiver(), verifier.limits())?)
}

/// Names an outcome as bittensor 11 does.
fn name(outcome: &Result<Caller, AuthError>) -> &'static str {
    match outcome {
        Ok(_) => "ok",
        Err(AuthError::Malformed { .. } | AuthError::Missing(_)) => "MalformedAuth",
        Err(AuthError::WrongReceiver) => "WrongReceiver",
        Err(AuthError::TooOld { .. } | AuthError::TooFarAhead) => "StaleRequest",
        Err(AuthError::SignatureMismatch) => "BadSignature",
        Err(AuthError::Replayed) => "ReplayedRequest",
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn recorded_requests_are_judged_as_recorded() {
    for case in vectors("btauth.json")["cases"].as_array().unwrap() {
        let verifier = verifier(case, Limits::default());
        if case["nonce_already_seen"] == true {
            assert!(verify(&verifier, case).is_ok());
        }
        assert_eq!(name(&verify(&verifier, case)), text(case, "result"), "{}", case["variant"]);
    }
}

#[test]
fn recorded_payloads_are_composed() {
    let mut n_checked = 0;
    for case in vectors("btauth.json")["cases"].as_array().unwrap() {
        if case["result"] != "ok" {
            continue;
        }
        let (method, target) = (text(case, "method"), text(case, "path"));
        let request = SignedParts { method, target, body: text(case, "body_utf8").as_bytes() };
        let receiver = text(case, "verifier_hotkey").parse().unwrap();
        let claim = claim(&header_map(case), request, &receiver, &Limits::default()).unwrap();
        assert_eq!(String::from_utf8(claim.signed).unwrap(), text(case, "signed_payload"), "{}", case["variant"]);
        n_checked += 1;
    }
    assert!(n_checked >= 8, "{n_checked}");
}

#[test]
fn requests_for_anybody_count_where_allowed() {
    let recording = vectors("btauth.json");
    let case = recording["cases"].as_array().unwrap().iter().find(|case| case["variant"] == "unbound").unwrap();
    let limits = Limits { btauth_unbound: true, ..Limits::default() };
    assert!(verify(&verifier(case, limits), case).is_ok());
}

#[test]
fn ed25519_counts_under_its_own_name() {
    use ed25519_dalek::Signer;
    let secret = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let sender = Hotkey::from_bytes(secret.verifying_key().to_bytes());
    let receiver = Keypair::from_uri("//Alice").unwrap().hotkey();
    let request = SignedParts { method: "post", target: "/x?y=1", body: b"body" };
    let signed = request.signed_text("ed25519", "5", &sender, Some(&receiver));
    let signature = format!("0x{}", hex::encode(secret.sign(signed.as_bytes()).to_bytes()));
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (VERSION_HEADER, VERSION.to_owned()),
        (HOTKEY_HEADER, sender.to_string()),
        (RECEIVER_HEADER, receiver.to_string()),
        (NONCE_HEADER, "5".to_owned()),
        (CRYPTO_HEADER, "ed25519".to_owned()),
        (SIGNATURE_HEADER, signature),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    let limits = Limits::default();
    let nonces = Arc::new(NonceStore::new(10));
    let verifier = Verifier::new(receiver, limits.clone(), Arc::new(FixedClock::at_ns(6)), nonces);
    let verify = |headers: &HeaderMap| verifier.verify(claim(headers, request, &receiver, &limits).unwrap());
    let mut other_scheme = headers.clone();
    other_scheme.remove(CRYPTO_HEADER);
    assert_eq!(verify(&other_scheme), Err(AuthError::SignatureMismatch));
    assert_eq!(*verify(&headers).unwrap().hotkey(), sender);
    assert_eq!(verify(&headers), Err(AuthError::Replayed));
}

#[test]
fn our_headers_are_the_recorded_ones_by_name() {
    let recorded = header_map(&vectors("btauth.json")["cases"][0]);
    let (bob, alice) = (Keypair::from_uri("//Bob").unwrap(), Keypair::from_uri("//Alice").unwrap().hotkey());
    let request = SignedParts { method: "POST", target: "/", body: b"" };
    let ours = sign(&bob, Some(&alice), request, 1);
    let names = |headers: &HeaderMap| {
        let mut names: Vec<_> = headers.keys().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(names(&ours), names(&recorded));
    assert!(!sign(&bob, None, request, 1).contains_key(RECEIVER_HEADER));
}

#[test]
fn nonces_have_one_spelling() {
    for text in ["", "-1", "+1", "01", "1e9", "1.0", " 1", "9999999999999999999999999999999"] {
        assert_eq!(parse_nonce(text), None, "{text:?}");
    }
    assert_eq!(parse_nonce("1700000000000000000"), Some(1_700_000_000_000_000_000));
    assert_eq!(parse_nonce("0"), Some(0));
}

proptest::proptest! {
    #[test]
    fn no_head_makes_the_reader_panic(
        values in proptest::collection::vec("\\PC{0,140}", 5),
        target in "\\PC{0,40}",
        method in "\\PC{0,10}",
        body: Vec<u8>,
    ) {
        let names = [HOTKEY_HEADER, NONCE_HEADER, SIGNATURE_HEADER, RECEIVER_HEADER, CRYPTO_HEADER];
        let mut headers = HeaderMap::new();
        headers.insert(VERSION_HEADER, HeaderValue::from_static(VERSION));
        for (name, value) in names.into_iter().zip(&values) {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.insert(name, value);
            }
        }
        let request = SignedParts { method: &method, target: &target, body: &body };
        let _ = claim(&headers, request, &Hotkey::from_bytes([1; 32]), &Limits::default());
        let _ = parse_nonce(&target);
        let _ = parse_signature(&target);
    }
}
