use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::SynapseBody;
use crate::{AuthError, Caller, Category, Hotkey, Keypair, keys, status};

/// The version that replies carry: 10.5.0, as new as any client of this protocol. Clients do not look at it.
const VERSION: u32 = 10_005_000;
/// Longest message in a header and in an error's body.
const MAX_MESSAGE_LEN: usize = 200;
/// Size that a piece of a streamed reply aims at.
const PIECE_LEN: usize = 32;
/// Fields of a request that are not sent back: those that are said anew, and the client's own book-keeping.
const NOT_ECHOED: [&str; 7] =
    ["name", "completion", "dendrite", "axon", "computed_body_hash", "total_size", "header_size"];

const STATUS_CODE: HeaderName = HeaderName::from_static("bt_header_axon_status_code");
const STATUS_MESSAGE: HeaderName = HeaderName::from_static("bt_header_axon_status_message");
const PROCESS_TIME: HeaderName = HeaderName::from_static("bt_header_axon_process_time");
const NONCE: HeaderName = HeaderName::from_static("bt_header_axon_nonce");
const SIGNATURE: HeaderName = HeaderName::from_static("bt_header_axon_signature");

/// Writes replies to verified callers, in the form that every client from 6.0 to 10.5 reads.
///
/// With a key ([`signed_by`](Self::signed_by)) replies can be signed, as servers of bittensor 6 do. The text is
/// `<nonce>.<caller>.<miner>.<uuid>` and holds nothing of the caller's choice: the nonce and the UUID are ours, and the
/// caller is who it proved to be. (Reference servers sign whatever addresses a stranger names, so their keys can be
/// borrowed.)
#[derive(Clone, Debug)]
pub struct SynapseReplier {
    identity: HeaderMap,
    hotkey: Hotkey,
    /// What every signed text ends with: the miner's address and the UUID.
    signed_end: String,
    key: Option<Arc<Keypair>>,
}

impl SynapseReplier {
    /// Makes a writer for the miner with this key, at this address as the chain knows it.
    #[must_use]
    pub fn new(hotkey: &Hotkey, external: Option<SocketAddr>) -> Self {
        let mut identity = HeaderMap::new();
        let mut add = |name: &'static str, text: String| {
            // Keys, numbers, addresses and UUIDs are plain ASCII.
            if let Ok(value) = HeaderValue::try_from(text) {
                identity.insert(HeaderName::from_static(name), value);
            }
        };
        add("bt_header_axon_hotkey", hotkey.to_string());
        add("bt_header_axon_version", VERSION.to_string());
        let uuid = Uuid::new_v4().to_string();
        add("bt_header_axon_uuid", uuid.clone());
        if let Some(external) = external {
            add("bt_header_axon_ip", external.ip().to_string());
            add("bt_header_axon_port", external.port().to_string());
        }
        Self { identity, hotkey: *hotkey, signed_end: format!("{hotkey}.{uuid}"), key: None }
    }

    /// Lets [`sign`](Self::sign) sign, with the miner's own key; another key is ignored.
    #[must_use]
    pub fn signed_by(mut self, key: Arc<Keypair>) -> Self {
        self.key = Some(key).filter(|key| key.hotkey() == self.hotkey);
        self
    }

    /// Signs a reply to a caller that proved its key, by two more headers. Takes about as long as a verification.
    ///
    /// Without a key this does nothing, nor for a caller that holds the miner's own key: such a text could serve as a
    /// gRPC request of the miner to itself.
    pub fn sign(&self, headers: &mut HeaderMap, caller: &Caller) {
        let Some(key) = self.key.as_ref().filter(|_| *caller.hotkey() != self.hotkey) else { return };
        let nonce = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let text = format!("{nonce}.{}.{}", caller.hotkey(), self.signed_end);
        let signature = keys::format_signature(&key.sign(text.as_bytes()));
        // Digits are plain ASCII.
        if let (Ok(nonce), Ok(signature)) = (nonce.to_string().try_into(), signature.try_into()) {
            headers.insert(NONCE, nonce);
            headers.insert(SIGNATURE, signature);
        }
    }

    /// Answers a prompt.
    #[must_use]
    pub fn completion(&self, body: &SynapseBody, completion: &str, process_time: Duration) -> Response<Bytes> {
        self.fields(body, process_time, |fields| fields.add("completion", completion))
    }

    /// Answers a ping.
    #[must_use]
    pub fn pong(&self, body: &SynapseBody, process_time: Duration) -> Response<Bytes> {
        self.fields(body, process_time, |_| {})
    }

    /// Answers with other fields than a completion; they stand in for the request's own of the same name.
    #[must_use]
    pub fn answer(&self, body: &SynapseBody, answer: &Map<String, Value>, process_time: Duration) -> Response<Bytes> {
        self.fields(body, process_time, |fields| {
            for (name, value) in answer {
                fields.add(name, value);
            }
        })
    }

    /// The head of a streamed answer, status included: it is decided before the first byte. Any text may follow, in
    /// pieces that split no character ([`stream_pieces`]).
    #[must_use]
    pub fn stream_head(&self, process_time: Duration) -> Response<()> {
        let mut response = Response::new(());
        *response.headers_mut() = self.headers(process_time);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        response
    }

    fn headers(&self, process_time: Duration) -> HeaderMap {
        let mut headers = self.identity.clone();
        add_status(&mut headers, StatusCode::OK, "Success", process_time);
        headers
    }

    fn fields(&self, body: &SynapseBody, process_time: Duration, add: impl FnOnce(&mut Fields)) -> Response<Bytes> {
        let mut fields = Fields::default();
        fields.add("name", body.synapse().name());
        add(&mut fields);
        // Behind a proxy that drops headers with underscores this is where the client finds the status.
        let axon = Axon { status_code: 200, status_message: "Success", process_time: process_time.as_secs_f64() };
        fields.add("axon", &axon);
        for (name, value) in body.fields() {
            if !NOT_ECHOED.contains(&name) && !fields.has(name) {
                fields.add_json(name, value);
            }
        }
        let mut response = Response::new(fields.finish());
        *response.headers_mut() = self.headers(process_time);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

#[derive(Serialize)]
struct Axon {
    status_code: u16,
    status_message: &'static str,
    process_time: f64,
}

/// A JSON object in the making.
#[derive(Default)]
struct Fields {
    text: Vec<u8>,
    names: Vec<String>,
}

impl Fields {
    fn add<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        // Texts, numbers and JSON values always serialise.
        if let Ok(json) = serde_json::to_vec(value) {
            self.add_json(name, &json);
            self.names.push(name.into());
        }
    }

    fn add_json(&mut self, name: &str, json: &[u8]) {
        self.text.push(if self.text.is_empty() { b'{' } else { b',' });
        if serde_json::to_writer(&mut self.text, name).is_ok() {
            self.text.push(b':');
            self.text.extend_from_slice(json);
        }
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    fn finish(mut self) -> Bytes {
        self.text.push(b'}');
        self.text.into()
    }
}

/// Tells any peer, verified or not, that its request failed, and nothing else.
///
/// The message is cut to 200 characters, and anything but printable ASCII in it is replaced, because it is sent as a
/// header as well.
#[must_use]
pub fn error_reply(category: Category, message: &str, process_time: Duration) -> Response<Bytes> {
    let status = status::http_status(category);
    let message = header_text(message);
    let mut fields = Fields::default();
    fields.add("message", &message);
    let mut response = Response::new(fields.finish());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    add_status(response.headers_mut(), status, &message, process_time);
    response
}

/// Says why a claim was not believed, in the words that clients know.
#[must_use]
pub fn refusal_message(error: &AuthError) -> String {
    format!("Not Verified with error: {error}")
}

fn add_status(headers: &mut HeaderMap, status: StatusCode, message: &str, process_time: Duration) {
    headers.insert(STATUS_CODE, status.as_u16().into());
    if let Ok(value) = HeaderValue::from_str(message) {
        headers.insert(STATUS_MESSAGE, value);
    }
    if let Ok(value) = HeaderValue::try_from(format!("{:.9}", process_time.as_secs_f64())) {
        headers.insert(PROCESS_TIME, value);
    }
}

fn header_text(message: &str) -> String {
    message.chars().take(MAX_MESSAGE_LEN).map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect()
}

/// Cuts a text into the pieces of a streamed reply: of about 32 bytes, after a blank where there is one.
///
/// Clients decode every piece on its own, so no piece ends within a character.
pub fn stream_pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let limit = rest.floor_char_boundary(PIECE_LEN);
        let at = match rest[..limit].rfind(char::is_whitespace) {
            // The blank itself goes with the word before it.
            Some(blank) if limit < rest.len() => rest.ceil_char_boundary(blank + 1),
            _ => limit,
        };
        let (piece, after) = rest.split_at(at);
        rest = after;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::{BodyHash, Synapses};
    use super::*;
    use crate::Transport;
    use crate::body_hash::{EMPTY_BODY_HASH, body_hash};

    const TIME: Duration = Duration::from_micros(1500);

    fn body(path: &str, hash: &str, text: &str) -> SynapseBody {
        let synapses = Synapses::default();
        let spec: &Arc<_> = synapses.find(path).unwrap();
        SynapseBody::parse(spec, &BodyHash::for_tests(Some(hash)), Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn replier() -> SynapseReplier {
        SynapseReplier::new(&Hotkey::from_bytes([7; 32]), Some("192.0.2.7:8091".parse().unwrap()))
    }

    #[test]
    fn a_completion_comes_with_the_request_unchanged_and_the_status_twice() {
        let hash = body_hash(&[["h\u{e9}".to_owned()].as_slice()]);
        let text = r#"{"name": "x", "timeout": 12.0, "total_size": 5, "dendrite": {"ip": "192.0.2.1"}, "axon": {}, "roles": ["USER"],
            "messages": ["h\u00e9"], "task_name": "qa", "completion": "prefilled", "required_hash_fields": ["messages"]}"#;
        let reply = replier().completion(&body("/Prompting", &hash, text), "\"so\"\n\u{1f600}", TIME);
        assert_eq!(reply.status(), 200);
        let header = |name: &str| reply.headers()[name].to_str().unwrap();
        assert_eq!(header("content-type"), "application/json");
        assert_eq!(header("bt_header_axon_status_code"), "200");
        assert_eq!(header("bt_header_axon_status_message"), "Success");
        assert_eq!(header("bt_header_axon_process_time"), "0.001500000");
        assert_eq!(header("bt_header_axon_ip"), "192.0.2.7");
        assert_eq!(header("bt_header_axon_port"), "8091");
        assert!(reply.headers().keys().all(|name| !name.as_str().contains("signature")));
        let value: Value = serde_json::from_slice(reply.body()).unwrap();
        let expected = json!({
            "name": "Prompting",
            "completion": "\"so\"\n\u{1f600}",
            "axon": {"status_code": 200, "status_message": "Success", "process_time": 0.0015},
            "timeout": 12.0,
            "roles": ["USER"],
            "messages": ["h\u{e9}"],
            "task_name": "qa",
            "required_hash_fields": ["messages"],
        });
        assert_eq!(value, expected);
    }

    fn caller(hotkey: Hotkey) -> Caller {
        Caller { transport: Transport::Http, hotkey, timeout: None, version: None }
    }

    #[test]
    fn a_reply_is_signed_for_its_caller_and_nobody_else() {
        let [miner, validator] = ["//Alice", "//Bob"].map(|uri| Keypair::from_uri(uri).unwrap());
        let (own, asking) = (miner.hotkey(), validator.hotkey());
        let miner = Arc::new(miner);
        let replier = SynapseReplier::new(&own, None).signed_by(miner.clone());
        let mut head = replier.stream_head(TIME);
        replier.sign(head.headers_mut(), &caller(asking));
        let header = |name: &str| head.headers()[name].to_str().unwrap();
        let text = format!("{}.{asking}.{own}.{}", header("bt_header_axon_nonce"), header("bt_header_axon_uuid"));
        let signature = hex::decode(header("bt_header_axon_signature").strip_prefix("0x").unwrap()).unwrap();
        assert!(own.verify(text.as_bytes(), &signature.try_into().unwrap()));

        let is_signed = |replier: &SynapseReplier, hotkey| {
            let mut headers = HeaderMap::new();
            replier.sign(&mut headers, &caller(hotkey));
            !headers.is_empty()
        };
        assert!(is_signed(&replier, asking));
        assert!(!is_signed(&replier, own), "a text that we could be taken for");
        assert!(!is_signed(&SynapseReplier::new(&own, None), asking), "no key");
        assert!(!is_signed(&SynapseReplier::new(&asking, None).signed_by(miner), asking), "somebody else's key");
    }

    #[test]
    fn pings_and_other_answers() {
        let ping = body("/Synapse", EMPTY_BODY_HASH, "{\"timeout\": 1.0}");
        let value: Value = serde_json::from_slice(replier().pong(&ping, TIME).body()).unwrap();
        assert_eq!(
            (&value["name"], &value["timeout"], &value["axon"]["status_code"]),
            (&json!("Synapse"), &json!(1.0), &json!(200))
        );
        let asked = body("/AvailabilitySynapse", EMPTY_BODY_HASH, r#"{"task_availabilities": {"qa": false}, "x": 1}"#);
        let Value::Object(answer) = json!({"task_availabilities": {"qa": true}, "llm_model_availabilities": {}}) else {
            unreachable!()
        };
        let reply = replier().answer(&asked, &answer, TIME);
        let value: Value = serde_json::from_slice(reply.body()).unwrap();
        assert_eq!(value["task_availabilities"], json!({"qa": true}));
        assert_eq!(value["x"], 1);
    }

    #[test]
    fn a_streamed_reply_has_its_status_up_front() {
        let head = replier().stream_head(TIME);
        assert_eq!(head.headers()["content-type"], "text/event-stream");
        assert_eq!(head.headers()["bt_header_axon_status_code"], "200");
    }

    #[test]
    fn errors_say_their_status_twice_and_nothing_of_us() {
        let reply = error_reply(Category::Forbidden, "n\u{e9}in\r\nX: 1", TIME);
        assert_eq!(reply.status(), 403);
        assert_eq!(reply.headers()["bt_header_axon_status_code"], "403");
        assert_eq!(reply.headers()["bt_header_axon_status_message"], "n?in??X: 1");
        assert_eq!(reply.body().as_ref(), br#"{"message":"n?in??X: 1"}"#);
        assert!(!reply.headers().contains_key("bt_header_axon_hotkey"));
        let long = error_reply(Category::Internal, &"x".repeat(10_000), TIME);
        assert_eq!(long.headers()["bt_header_axon_status_message"].len(), 200);
        assert_eq!(refusal_message(&AuthError::Missing("Nonce")), "Not Verified with error: Missing Nonce");
    }

    proptest::proptest! {
        #[test]
        fn pieces_make_up_the_text(text in "(\\PC|\\s){0,200}") {
            let pieces: Vec<_> = stream_pieces(&text).collect();
            proptest::prop_assert_eq!(pieces.concat(), text.as_str());
            proptest::prop_assert!(pieces.iter().all(|piece| (1..=PIECE_LEN).contains(&piece.len())));
        }

        #[test]
        fn any_message_makes_a_reply(message: String) {
            let reply = error_reply(Category::Internal, &message, TIME);
            proptest::prop_assert!(reply.headers().contains_key("bt_header_axon_status_message"));
            proptest::prop_assert!(serde_json::from_slice::<Value>(reply.body()).is_ok());
        }
    }
}
