//! The HTTP synapses, against a server made of this crate's server half, and against recorded requests.

use super::*;
use crate::http_synapse::{
    SynapseBody, SynapseKind, SynapseReplier, Synapses, error_reply, read_head, refusal_message,
};

/// A miner's synapse routes made of this crate's server half. It answers with what it understood.
async fn serve_synapses(verifier: Verifier) -> Target {
    let replier = SynapseReplier::new(&alice(), None);
    serve(move |head, body| {
        let (verifier, replier) = (verifier.clone(), replier.clone());
        async move { answer(&verifier, &replier, &head, body).map(Full::new) }
    })
    .await
}

fn answer(
    verifier: &Verifier,
    replier: &SynapseReplier,
    request: &http::request::Parts,
    body: Bytes,
) -> Response<Bytes> {
    let spent = Duration::from_millis(3);
    let synapses = Synapses::default();
    let Some(synapse) = synapses.find(request.uri.path()) else {
        return error_reply(Category::NotFound, "no such synapse", spent);
    };
    let head = match read_head(&request.headers, synapse, verifier.receiver(), verifier.limits()) {
        Ok(head) => head,
        Err(error) => return error_reply(error.category(), &refusal_message(&error), spent),
    };
    let caller = match verifier.verify(head.claim) {
        Ok(caller) => caller,
        Err(error) => return error_reply(error.category(), &refusal_message(&error), spent),
    };
    let body = match SynapseBody::parse(synapse, &head.body_hash, body) {
        Ok(body) => body,
        Err(error) => return error_reply(Category::BodyMismatch, &error.to_string(), spent),
    };
    match synapse.kind() {
        SynapseKind::Prompt => {
            let prompt = body.prompt().unwrap();
            let extra = body.text("task_name").map(|task| format!(" {task} {:?}", body.integer("seed")));
            let text = format!(
                "{} {:?}{}: {}",
                synapse.name(),
                caller.timeout(),
                extra.unwrap_or_default(),
                prompt.messages()[1].content
            );
            if synapse.is_streaming() {
                replier.stream_head(spent).map(|()| Bytes::from(text))
            } else {
                replier.completion(&body, &text, spent)
            }
        }
        SynapseKind::Availability => {
            let (tasks, models) = body.availability().unwrap();
            let map = |names: Vec<String>, value: bool| names.into_iter().map(|n| (n, json!(value))).collect::<Value>();
            let maps = json!({"task_availabilities": map(tasks, true), "llm_model_availabilities": map(models, false)});
            replier.answer(&body, maps.as_object().unwrap(), spent)
        }
        _ => replier.pong(&body, spent),
    }
}

#[tokio::test]
async fn plain_and_streamed_questions_are_understood_and_answers_read() {
    let (dendrite, target) = (bob(), serve_synapses(verifier()).await);
    let text = "it's \"héllo\" 😀\n\u{7f}\u{200b}";
    for (via, name) in [
        (Via::Http, "Prompting"),
        (Via::Http, "PromptingSynapse"),
        (Via::Stream, "StreamPrompting"),
        (Via::Stream, "StreamPromptingSynapse"),
    ] {
        let options = QueryOptions { synapse: Some(name.to_owned()), ..QueryOptions::default() };
        let reply = dendrite.query(&target, via, &prompt(text), &options).await.unwrap();
        assert_eq!(reply.text, format!("{name} Some(12s): {text}"));
        assert_eq!((reply.status_code, reply.status_message.as_str()), (200, "Success"));
        assert!(reply.headers.contains_key("bt_header_axon_process_time"));
        assert!(reply.first_byte <= reply.elapsed);
    }
    let reply = dendrite.query(&target, Via::Stream, &prompt("x"), &QueryOptions::default()).await.unwrap();
    assert_eq!(reply.text, "StreamPrompting Some(12s): x");
}

#[tokio::test]
async fn macrocosms_fields_travel_with_the_task() {
    let target = serve_synapses(verifier()).await;
    let options = QueryOptions {
        synapse: Some("StreamPromptingSynapse".into()),
        task: Some("QuestionAnsweringTask".into()),
        seed: Some(9),
        ..QueryOptions::default()
    };
    let reply = bob().query(&target, Via::Stream, &prompt("x"), &options).await.unwrap();
    assert_eq!(reply.text, "StreamPromptingSynapse Some(12s) QuestionAnsweringTask Some(9): x");
    let request = bob().signed_request(&target, Via::Stream, &prompt("x"), &options).unwrap();
    assert_eq!(request.headers()["bt_header_input_obj_task_name"], "IiI=");
}

#[tokio::test]
async fn pings_and_availability_are_answered() {
    let (dendrite, target) = (bob(), serve_synapses(verifier()).await);
    let within = Duration::from_secs(5);
    assert!(dendrite.ping(&target, within).await.unwrap() < within);
    let (tasks, models) = (["a".to_owned(), "b".to_owned()], ["m".to_owned()]);
    let reply = dendrite.availability(&target, Via::Http, &tasks, &models, within).await.unwrap();
    assert_eq!(reply.task_availabilities, [("a".to_owned(), true), ("b".to_owned(), true)].into());
    assert_eq!(reply.llm_model_availabilities, [("m".to_owned(), false)].into());
    assert!(matches!(dendrite.ping(&nobody().await, within).await, Err(DendriteError::Connect { .. })));
}

#[tokio::test]
async fn refusals_come_with_the_axons_status() {
    let (dendrite, target) = (bob(), serve_synapses(verifier()).await);
    let other = Target { hotkey: bob().hotkey(), ..target.clone() };
    for via in [Via::Http, Via::Stream] {
        let error = dendrite.query(&other, via, &prompt("x"), &QueryOptions::default()).await.unwrap_err();
        let expected = "refused with 401 Unauthorized: Not Verified with error: Signature mismatch";
        assert_eq!(error.to_string(), expected, "{via}");
    }
    let options = QueryOptions { synapse: Some("Nope".into()), ..QueryOptions::default() };
    let error = dendrite.query(&target, Via::Http, &prompt("x"), &options).await.unwrap_err();
    assert_eq!(error.status_code(), 404);
    for name in ["", "a/b", "../x", "1a", "é"] {
        let options = QueryOptions { synapse: Some(name.into()), ..QueryOptions::default() };
        let error = dendrite.query(&target, Via::Http, &prompt("x"), &options).await.unwrap_err();
        assert!(matches!(error, DendriteError::BadRequest { .. }), "{name}");
    }
}

#[tokio::test]
async fn many_calls_at_once_are_all_answered() {
    let (dendrite, target) = (bob(), serve_synapses(verifier()).await);
    let (prompt, options) = (prompt("x"), QueryOptions::default());
    let many = (0..64).map(|_| dendrite.query(&target, Via::Http, &prompt, &options));
    for reply in futures_util::future::join_all(many).await {
        reply.unwrap();
    }
}

#[tokio::test]
async fn characters_split_between_pieces_are_put_together() {
    let bytes = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nbt_header_axon_status_code: 200\r\n\
                  transfer-encoding: chunked\r\n\r\n2\r\na\xf0\r\n3\r\n\x9f\x98\x80\r\n0\r\n\r\n";
    let target = serve_bytes(bytes, false).await;
    let reply = bob().query(&target, Via::Stream, &prompt("x"), &QueryOptions::default()).await.unwrap();
    assert_eq!(reply.text, "a😀");
}

#[tokio::test]
async fn answers_that_a_validator_would_not_count_are_bad_answers() {
    let check = |via: Via, bytes: &'static [u8], expected: &'static str| async move {
        let target = serve_bytes(bytes, false).await;
        let error = bob().query(&target, via, &prompt("x"), &QueryOptions::default()).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    let no_status = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 43\r\n\r\n\
                      {\"roles\":[],\"messages\":[],\"completion\":\"x\"}";
    check(Via::Http, no_status, "bad answer: no status code").await;
    let no_fields = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nbt_header_axon_status_code: 200\r\n\
                      content-length: 18\r\n\r\n{\"completion\":\"x\"}";
    check(Via::Http, no_fields, "bad answer: no roles").await;
    let not_json = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nbt_header_axon_status_code: 200\r\n\
                     content-length: 3\r\n\r\n{\"a";
    check(Via::Http, not_json, "bad answer: the body is not JSON: line 1, column 3").await;
    let plain = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nbt_header_axon_status_code: 200\r\n\
                  content-length: 1\r\n\r\nx";
    check(Via::Http, plain, "bad answer: the content type is not application/json").await;
    let in_header = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nbt_header_axon_status_code: 403\r\n\
                      bt_header_axon_status_message: no\r\ncontent-length: 0\r\n\r\n";
    check(Via::Stream, in_header, "refused with 403 Forbidden: no").await;
    let in_body = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 52\r\n\r\n\
                    {\"axon\":{\"status_code\":408,\"status_message\":\"late\"}}";
    check(Via::Http, in_body, "refused with 408 Request Timeout: late").await;
    let latin = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nbt_header_axon_status_code: 200\r\n\
                  content-length: 1\r\n\r\n\xe9";
    check(Via::Stream, latin, "bad answer: the text is not UTF-8").await;
}

fn recorded(variant: &str) -> Value {
    let recording = vectors("http-10.5.0.json");
    let cases = recording["cases"].as_array().unwrap();
    cases.iter().find(|case| case["variant"] == variant).unwrap()["request"].clone()
}

/// The names in an object, at every level, in order.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(name, value)| json!([name, shape(value)])).collect(),
        Value::Number(n) if n.is_f64() => json!("float"),
        Value::Number(_) => json!("int"),
        Value::String(_) => json!("text"),
        Value::Array(items) => json!({"list": items.len()}),
        Value::Bool(_) | Value::Null => value.clone(),
    }
}

#[test]
fn our_requests_have_the_shape_of_recorded_ones() {
    let target: Target = ("127.0.0.1:18200".parse::<SocketAddr>().unwrap(), alice()).into();
    let prompt = Prompt::new(vec![Message::new(Role::User, "What is the capital of France?")]).unwrap();
    let ours = bob().signed_request(&target, Via::Http, &prompt, &QueryOptions::default()).unwrap();
    let theirs = recorded("valid");
    assert_eq!(ours.uri().path(), theirs["path"]);
    assert_eq!(ours.method().as_str(), theirs["method"]);
    let mut names: Vec<&str> = ours.headers().keys().map(|name| name.as_str()).collect();
    names.retain(|name| *name != "content-type");
    names.sort_unstable();
    assert_eq!(names, theirs["headers"].as_object().unwrap().keys().collect::<Vec<_>>());
    for name in ["name", "timeout", "computed_body_hash", "bt_header_dendrite_hotkey", "bt_header_dendrite_version"]
        .into_iter()
        .chain(names.iter().copied().filter(|name| name.contains("input_obj") || name.contains("axon")))
    {
        assert_eq!(ours.headers()[name].to_str().unwrap(), theirs["headers"][name], "{name}");
    }
    let body: Value = serde_json::from_slice(ours.body()).unwrap();
    let recorded_body: Value = serde_json::from_str(theirs["body"].as_str().unwrap()).unwrap();
    assert_eq!(shape(&body), shape(&recorded_body));
    assert_eq!(body["dendrite"]["nonce"].to_string(), ours.headers()["bt_header_dendrite_nonce"].to_str().unwrap());
}

#[test]
fn our_hash_of_recorded_messages_is_the_recorded_one() {
    for variant in ["valid", "unicode_quotes_escapes", "empty_lists"] {
        let request = recorded(variant);
        let body: Value = serde_json::from_str(request["body"].as_str().unwrap()).unwrap();
        let messages: Vec<String> = serde_json::from_value(body["messages"].clone()).unwrap();
        assert_eq!(body_hash::body_hash(&[messages.as_slice()]), request["headers"]["computed_body_hash"], "{variant}");
    }
}

#[test]
fn our_ping_has_the_shape_of_the_recorded_one() {
    let target: Target = ("127.0.0.1:18200".parse::<SocketAddr>().unwrap(), alice()).into();
    let dendrite = bob();
    let ours = dendrite.ping_request(&dendrite.sessions.take(), &target, Duration::from_secs(12)).unwrap();
    let theirs = recorded("ping_Synapse");
    let mut names: Vec<&str> = ours.headers().keys().map(|name| name.as_str()).collect();
    names.retain(|name| *name != "content-type");
    names.sort_unstable();
    assert_eq!(names, theirs["headers"].as_object().unwrap().keys().collect::<Vec<_>>());
    let body: Value = serde_json::from_slice(ours.body()).unwrap();
    assert_eq!(shape(&body), shape(&serde_json::from_str(theirs["body"].as_str().unwrap()).unwrap()));
}
