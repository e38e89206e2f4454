use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use prost::Message as _;
use serde_json::Value;
use tonic::Request;
use tonic::codegen::Service;

use super::*;
use crate::pb::text_prompting_server::{TextPrompting, TextPromptingServer};
use crate::pb::{BackwardTextPromptingRequest, ForwardTextPromptingRequest, MultiForwardTextPromptingRequest};
use crate::testdata::vectors;
use crate::{NonceStore, SystemClock, Verifier};

/// What the recorded reference miner did (it echoed), on top of this crate's functions.
#[derive(Clone, Debug)]
struct EchoMiner {
    verifier: Verifier,
    blacklisted: Hotkey,
}

impl EchoMiner {
    fn admit<R: Outcome>(&self, metadata: &HeaderMap, seconds: f32) -> Result<(), Result<Response<R>, Status>> {
        let limits = self.verifier.limits();
        let caller = claim(metadata, self.verifier.receiver(), limits)
            .and_then(|claim| self.verifier.verify(claim))
            .map_err(|error| Err(refusal(&error)))?;
        if *caller.hotkey() == self.blacklisted {
            return Err(failure(Category::Forbidden, "test blacklist"));
        }
        timeout(seconds, limits).ok_or_else(|| Ok(timed_out(seconds)))?;
        Ok(())
    }

    fn answer(messages: &[String]) -> Result<String, PromptError> {
        let prompt = prompt(messages)?;
        let turns: Vec<_> = prompt.messages().iter().map(|m| format!("{}={}", m.role.as_str(), m.content)).collect();
        Ok(format!("echo: {}", turns.join(" | ")))
    }
}

#[tonic::async_trait]
impl TextPrompting for EchoMiner {
    async fn forward(
        &self,
        request: Request<ForwardTextPromptingRequest>,
    ) -> Result<Response<ForwardTextPromptingResponse>, Status> {
        if let Err(refused) = self.admit(request.metadata().as_ref(), request.get_ref().timeout) {
            return refused;
        }
        match Self::answer(&request.get_ref().messages) {
            Ok(text) => Ok(Response::new(forward_reply(text))),
            Err(error) => prompt_failure(&error),
        }
    }

    async fn backward(
        &self,
        request: Request<BackwardTextPromptingRequest>,
    ) -> Result<Response<BackwardTextPromptingResponse>, Status> {
        if let Err(refused) = self.admit(request.metadata().as_ref(), request.get_ref().timeout) {
            return refused;
        }
        match Self::answer(&request.get_ref().messages) {
            Ok(_) => Ok(Response::new(backward_reply())),
            Err(error) => prompt_failure(&error),
        }
    }

    async fn multi_forward(
        &self,
        request: Request<MultiForwardTextPromptingRequest>,
    ) -> Result<Response<MultiForwardTextPromptingResponse>, Status> {
        if let Err(refused) = self.admit(request.metadata().as_ref(), request.get_ref().timeout) {
            return refused;
        }
        match Self::answer(&request.get_ref().messages) {
            Ok(text) => Ok(Response::new(multi_forward_reply(vec![text, "second".to_owned()]))),
            Err(error) => prompt_failure(&error),
        }
    }
}

/// What a call came to, in the recordings' terms.
#[derive(Debug, PartialEq)]
struct Seen {
    status: String,
    details: String,
    response_hex: String,
}

impl Seen {
    fn error(status: &str, details: &str) -> Self {
        Self { status: status.to_owned(), details: details.to_owned(), response_hex: String::new() }
    }

    fn reply(reply: &impl prost::Message) -> Self {
        Self { status: "OK".to_owned(), details: String::new(), response_hex: hex::encode(reply.encode_to_vec()) }
    }

    fn recorded(case: &Value) -> Self {
        let text = |key: &str| case.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self { status: text("grpc_status"), details: text("grpc_details"), response_hex: text("response_hex") }
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::Internal => "INTERNAL",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Unauthenticated => "UNAUTHENTICATED",
        _ => "other",
    }
}

fn header_map(case: &Value) -> HeaderMap {
    let pairs = case["metadata"].as_array().unwrap();
    pairs
        .iter()
        .map(|pair| {
            let text = |i: usize| pair[i].as_str().unwrap();
            (text(0).parse::<http::HeaderName>().unwrap(), text(1).parse::<HeaderValue>().unwrap())
        })
        .collect()
}

async fn replay(server: &mut TextPromptingServer<EchoMiner>, case: &Value) -> Seen {
    let message = hex::decode(case["request_hex"].as_str().unwrap()).unwrap();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.put_slice(&message);
    let mut request = http::Request::post(case["method"].as_str().unwrap())
        .header("content-type", "application/grpc")
        .body(Full::new(frame.freeze()).map_err(|never: Infallible| match never {}))
        .unwrap();
    request.headers_mut().extend(header_map(case));
    let response = server.call(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = Status::from_header_map(&head.headers).or_else(|| Status::from_header_map(&trailers)).unwrap();
    let bytes: Bytes = body.to_bytes();
    Seen {
        status: code_name(status.code()).to_owned(),
        details: status.message().to_owned(),
        response_hex: hex::encode(bytes.get(5..).unwrap_or_default()),
    }
}

/// Where this crate answers otherwise than the recorded server, and why.
fn differences(version: &str) -> BTreeMap<&'static str, Seen> {
    let mut table = BTreeMap::from([
        // The reference lets its key library's text through.
        ("signature_flipped", Seen::error("UNAUTHENTICATED", "Signature mismatch")),
        // The reference lets Python's text through.
        ("version_missing", Seen::error("UNAUTHENTICATED", "Incorrect Version")),
        // A bad request is the caller's fault, and the text of an exception is nobody's business.
        ("message_not_json", Seen::error("INVALID_ARGUMENT", "message 0 is not an object with role and content")),
        // There is nothing to answer; the reference asks the model all the same.
        (
            "empty_messages",
            Seen::reply(&ForwardTextPromptingResponse::failed(
                ReturnCode::EmptyRequest,
                "no message with any text".to_owned(),
            )),
        ),
        // tonic's words; the codes are equal.
        ("request_not_protobuf", Seen::error("INTERNAL", "failed to decode Protobuf message: invalid varint")),
        ("unknown_method", Seen::error("UNIMPLEMENTED", "")),
    ]);
    if version == "5.3.4" {
        // One server for both generations draws the line where the older one did.
        let echo = forward_reply("echo: user=What is the capital of France?");
        table.insert("version_370", Seen::reply(&echo));
        table.insert("version_509", Seen::reply(&echo));
    }
    table
}

#[tokio::test]
async fn recorded_calls_are_answered_as_recorded() {
    for version in ["5.2.1", "5.3.4"] {
        let recording = vectors(&format!("grpc-{version}.json"));
        let miner = Keypair::from_uri(recording["miner_uri"].as_str().unwrap()).unwrap().hotkey();
        let blacklisted = Keypair::from_uri(recording["blacklisted_uri"].as_str().unwrap()).unwrap().hotkey();
        let nonces = Arc::new(NonceStore::new(1000));
        let verifier = Verifier::new(miner, Limits::default(), Arc::new(SystemClock), nonces);
        let mut server = TextPromptingServer::new(EchoMiner { verifier, blacklisted });
        let mut table = differences(version);
        for case in recording["cases"].as_array().unwrap() {
            let variant = case["variant"].as_str().unwrap();
            let seen = replay(&mut server, case).await;
            let expected = table.remove(variant).unwrap_or_else(|| Seen::recorded(case));
            assert_eq!(seen, expected, "{version} {variant}");
        }
        assert!(table.is_empty(), "{version}: differences without a recording: {table:?}");
    }
}

#[test]
fn signed_texts_are_the_recorded_ones() {
    let mut n_signed = 0;
    for version in ["5.2.1", "5.3.4"] {
        let recording = vectors(&format!("grpc-{version}.json"));
        for case in recording["cases"].as_array().unwrap() {
            let Some(signed) = case["signed_message"].as_str() else { continue };
            let receiver: Hotkey = signed.split('.').nth(2).unwrap().parse().unwrap();
            let Ok(claim) = claim(&header_map(case), &receiver, &Limits::default()) else { continue };
            assert_eq!(String::from_utf8(claim.signed).unwrap(), signed);
            n_signed += 1;
        }
    }
    assert!(n_signed > 40, "{n_signed}");
}

#[test]
fn signature_headers_of_another_shape_are_refused() {
    let keys = (Keypair::from_uri("//Bob").unwrap(), Keypair::from_uri("//Alice").unwrap().hotkey());
    let good = sign(&keys.0, &keys.1, 1, "62b764fc-e650-11f1-a3fe-02fc00000001");
    let header = good[SIGNATURE_HEADER].to_str().unwrap().to_owned();
    let with = |text: String| {
        let mut metadata = good.clone();
        metadata.insert(SIGNATURE_HEADER, HeaderValue::from_bytes(text.as_bytes()).unwrap());
        claim(&metadata, &keys.1, &Limits::default())
    };
    assert!(with(header.clone()).is_ok());
    for text in [
        format!("{header}.x"),
        format!("{header}."),
        header.replacen("1.", ".", 1),
        header.replacen("1.", "1e3.", 1),
        header.replacen("1.", "+1.", 1),
        header.replacen("1.", &format!("{}.", "9".repeat(300)), 1),
        header.replacen(".5", ".6", 1),
        format!("{}x", &header[..header.len() - 36]) + &"y".repeat(100),
        header[..header.len() - 36].to_owned(),
        "....".to_owned(),
    ] {
        assert_eq!(with(text.clone()), Err(AuthError::UnknownSignatureFormat), "{text}");
    }
    assert_eq!(with(header.replacen("0x", "0y", 1)), Err(AuthError::SignatureMismatch));
    assert_eq!(with(String::new()), Err(AuthError::Missing(SIGNATURE_HEADER)));
    let mut twice = good.clone();
    twice.append(SIGNATURE_HEADER, good[SIGNATURE_HEADER].clone());
    let error = claim(&twice, &keys.1, &Limits::default()).unwrap_err();
    assert_eq!(refusal(&error).message(), "Unknown signature format");
    let off = Limits { grpc: false, ..Limits::default() };
    assert!(matches!(claim(&good, &keys.1, &off), Err(AuthError::TransportOff(_))));
}

#[test]
fn what_another_axon_was_made_to_sign_is_no_request() {
    // Reference axons sign `<time>.<dendrite>.<axon>.<uuid>` with both addresses as the asker wrote them.
    let (validator, miner) = (Keypair::from_uri("//Bob").unwrap(), Keypair::from_uri("//Alice").unwrap().hotkey());
    let with = |nonce: i128, limits: &Limits| {
        claim(&sign(&validator, &miner, nonce, "62b764fc-e650-11f1-a3fe-02fc00000001"), &miner, limits)
    };
    let (strict, open) = (Limits::default(), Limits { grpc_clock_nonces: true, ..Limits::default() });
    for clock in [1_795_335_808_422_349_442, FIRST_CLOCK_NONCE, LAST_CLOCK_NONCE] {
        let error = with(clock, &strict).unwrap_err();
        assert_eq!(error, AuthError::ClockNonce);
        assert_eq!(
            (refusal(&error).code(), refusal(&error).message()),
            (Code::Unauthenticated, "Nonce is a clock reading")
        );
        assert!(with(clock, &open).is_ok());
    }
    for counter in [-7, 1, 3_435_268_445_144, FIRST_CLOCK_NONCE - 1, LAST_CLOCK_NONCE + 1, 10_i128.pow(30)] {
        assert!(with(counter, &strict).is_ok(), "{counter}");
    }
}

#[test]
fn nonces_of_any_size_are_read() {
    let check = |text: &str, expected: Option<(&str, i128)>| {
        assert_eq!(parse_nonce(text), expected.map(|(text, value)| (text.to_owned(), value)), "{text}");
    };
    check("7", Some(("7", 7)));
    check("-7", Some(("-7", -7)));
    check("007", Some(("7", 7)));
    check("-0", Some(("0", 0)));
    check(&format!("1{}", "0".repeat(30)), Some((&format!("1{}", "0".repeat(30)), 10_i128.pow(30))));
    check(&"9".repeat(60), Some((&"9".repeat(60), i128::MAX)));
    check(&format!("-{}", "9".repeat(60)), Some((&format!("-{}", "9".repeat(60)), i128::MIN)));
    for text in ["", "-", "--1", "1_0", " 1", "1.5", "٣"] {
        check(text, None);
    }
}

#[test]
fn the_clients_deadline_is_read_and_capped() {
    let check = |text: &str, expected: Option<Duration>| {
        let metadata = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]);
        assert_eq!(grpc_timeout(&metadata), expected, "{text}");
    };
    check("12S", Some(Duration::from_secs(12)));
    check("11999m", Some(Duration::from_millis(11_999)));
    check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
    for text in ["", "S", "é", "12", "123456789S", "-1S", "1x"] {
        check(text, None);
    }
    let keys = (Keypair::from_uri("//Bob").unwrap(), Keypair::from_uri("//Alice").unwrap().hotkey());
    let mut metadata = sign(&keys.0, &keys.1, 1, "s");
    metadata.insert("grpc-timeout", HeaderValue::from_static("9H"));
    let limits = Limits::default();
    assert_eq!(claim(&metadata, &keys.1, &limits).unwrap().timeout, Some(limits.max_timeout));
}

#[test]
fn messages_are_json_objects_with_known_roles() {
    let check = |messages: &[&str], expected: Result<&[(Role, &str)], PromptError>| {
        let messages: Vec<String> = messages.iter().map(|m| (*m).to_owned()).collect();
        let expected = expected.map(|turns| turns.iter().map(|(r, c)| Message::new(*r, *c)).collect::<Vec<_>>());
        assert_eq!(prompt(&messages).map(Prompt::into_messages), expected, "{messages:?}");
    };
    check(
        &[r#"{"role": "System", "content": "be brief"}"#, r#"{"content": "caf\u00e9", "role": "USER", "name": "x"}"#],
        Ok(&[(Role::System, "be brief"), (Role::User, "café")]),
    );
    check(&[], Err(PromptError::Empty));
    check(&[r#"{"role": "user", "content": " "}"#], Err(PromptError::Empty));
    check(&[r#"{"role": "tool", "content": "x"}"#], Err(PromptError::UnknownRole("tool".to_owned())));
    let good = r#"{"role": "user", "content": "x"}"#;
    for bad in [
        "",
        "not json",
        "null",
        "{}",
        r#"{"role": "user"}"#,
        r#"{"role": "user", "content": null}"#,
        r#"["user", "x"]"#,
    ] {
        check(&[good, bad], Err(PromptError::NotAMessage { index: 1 }));
    }
    check(&[r#"{"role": "user", "content": "\ud800"}"#], Err(PromptError::NotAMessage { index: 0 }));
    check(&[good; 1025], Err(PromptError::TooMany { n_messages: 1025, max: 1024 }));
}

#[test]
fn requests_are_written_as_python_writes_them() {
    let recording = vectors("grpc-5.3.4.json");
    let case = recording["cases"].as_array().unwrap().iter().find(|case| case["variant"] == "unicode").unwrap();
    let bytes = hex::decode(case["request_hex"].as_str().unwrap()).unwrap();
    let recorded = ForwardTextPromptingRequest::decode(&bytes[..]).unwrap();
    assert_eq!(wire_messages(&prompt(&recorded.messages).unwrap()), recorded.messages);
}

#[test]
fn failures_travel_where_clients_of_the_time_look_for_them() {
    type Reply = ForwardTextPromptingResponse;
    let code = |category| failure::<Reply>(category, "m").map(|r| r.into_inner().return_code()).map_err(|s| s.code());
    assert_eq!(code(Category::Forbidden), Ok(ReturnCode::Blacklisted));
    assert_eq!(code(Category::RateLimited), Ok(ReturnCode::Backoff));
    assert_eq!(code(Category::Timeout), Ok(ReturnCode::Timeout));
    assert_eq!(code(Category::Internal), Ok(ReturnCode::UnknownException));
    assert_eq!(code(Category::Overloaded), Err(Code::ResourceExhausted));
    assert_eq!(code(Category::Unavailable), Err(Code::Unavailable));
    assert_eq!(code(Category::Malformed), Err(Code::InvalidArgument));
    let (code, message) = (ReturnCode::Timeout, "GRPC request timeout after: 0.0s");
    assert_eq!(timed_out::<Reply>(0.0).get_ref().outcome(), (code, message));
    assert_eq!(timed_out::<Reply>(f32::NAN).get_ref().return_message, "GRPC request timeout after: NaNs");
}

#[test]
fn return_codes_name_their_categories() {
    use Category as C;
    for c in [C::TooLarge, C::Unauthenticated, C::Forbidden, C::RateLimited, C::NotFound, C::Overloaded] {
        assert_eq!(category(return_code(c)), Some(c));
    }
    for c in [C::Malformed, C::Unavailable, C::Timeout, C::Internal] {
        assert_eq!(category(return_code(c)), Some(c));
    }
    assert_eq!(category(ReturnCode::Success), None);
}

#[test]
fn debug_shows_no_prompt() {
    let request = ForwardTextPromptingRequest { messages: vec!["secret".to_owned()], ..Default::default() };
    let reply = forward_reply("secret");
    let backward = BackwardTextPromptingRequest { response: "secret".to_owned(), ..Default::default() };
    assert!(!format!("{request:?} {reply:?} {backward:?}").contains("secret"));
}

proptest::proptest! {
    #[test]
    fn no_metadata_makes_the_reader_panic(signature in "\\PC{0,200}", version in "\\PC{0,8}") {
        let mut metadata = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(signature.as_bytes()) {
            metadata.insert(SIGNATURE_HEADER, value);
        }
        if let Ok(value) = HeaderValue::from_bytes(version.as_bytes()) {
            metadata.insert("grpc-timeout", value.clone());
            metadata.insert(VERSION_HEADER, value);
        }
        let _ = claim(&metadata, &Hotkey::from_bytes([1; 32]), &Limits::default());
    }

    #[test]
    fn near_misses_of_a_signature_header_are_no_panic(parts in proptest::collection::vec("[0-9a-zA-Z-]{0,140}", 3..6)) {
        let mut metadata = HeaderMap::new();
        metadata.insert(VERSION_HEADER, HeaderValue::from_static("534"));
        metadata.insert(SIGNATURE_HEADER, parts.join(".").parse().unwrap());
        proptest::prop_assert!(claim(&metadata, &Hotkey::from_bytes([1; 32]), &Limits::default()).is_err());
    }

    #[test]
    fn messages_round_trip(turns in proptest::collection::vec((0..3_usize, "\\PC{1,40}"), 1..6)) {
        let roles = [Role::System, Role::User, Role::Assistant];
        let messages = turns.into_iter().map(|(role, text)| Message::new(roles[role], text)).collect();
        if let Ok(original) = Prompt::new(messages) {
            proptest::prop_assert_eq!(prompt(&wire_messages(&original)), Ok(original));
        }
    }

    #[test]
    fn no_message_makes_the_reader_panic(texts in proptest::collection::vec("\\PC{0,60}", 0..4)) {
        let _ = prompt(&texts);
    }
}
