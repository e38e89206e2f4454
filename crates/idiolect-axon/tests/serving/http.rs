//! bittensor 6 to 10 over the listener.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use idiolect_axon::{AxonError, HandlerError, SynapseAnswer, SynapseCall, SynapseHandler};
use idiolect_protocol::Keypair;
use idiolect_protocol::body_hash::{EMPTY_BODY_HASH, body_hash};
use idiolect_protocol::http_synapse::SynapseSpec;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::{HttpAnswer, Served, Setup, SynapseRequest, alice, bob, now_ns, request, until};

async fn ask(served: &Served, name: &str, content: &str) -> HttpAnswer {
    SynapseRequest::prompt(name, &[content]).send(served).await
}

fn error(answer: &HttpAnswer) -> (u16, String) {
    let code = answer.header("bt_header_axon_status_code").unwrap().parse().unwrap();
    assert_eq!(answer.status, code);
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!(answer.header("bt_header_axon_status_message"), Some(message.as_str()));
    (code, message)
}

#[tokio::test]
async fn plain_synapses_are_answered_as_clients_need_it() {
    let served = Setup::default().serve().await;
    for name in ["Prompting", "PromptingSynapse"] {
        let answer = ask(&served, name, "h\u{e9} 'it\"s'\n\u{1f600}").await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("bt_header_axon_status_code"), Some("200"));
        assert_eq!(answer.header("bt_header_axon_status_message"), Some("Success"));
        let body = answer.json();
        assert_eq!(body["completion"], "echo: user=h\u{e9} 'it\"s'\n\u{1f600}");
        assert_eq!((&body["roles"], &body["messages"][0]), (&json!(["user"]), &json!("h\u{e9} 'it\"s'\n\u{1f600}")));
    }
    assert_eq!(served.echo.calls.lock().unwrap()[1].synapse, "PromptingSynapse");
}

#[tokio::test]
async fn streamed_synapses_come_in_pieces_of_whole_characters() {
    let served = Setup::default().serve().await;
    let text = "naïve café 😀\nzwei ".repeat(40);
    for name in ["StreamPrompting", "StreamPromptingSynapse"] {
        let answer = ask(&served, name, &format!("say {text}")).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/event-stream")));
        assert_eq!(answer.header("bt_header_axon_status_code"), Some("200"));
        assert!(answer.chunks.len() > 10);
        assert!(answer.chunks.iter().all(|chunk| std::str::from_utf8(chunk).is_ok()));
        assert_eq!(answer.text(), text);
    }
}

#[tokio::test]
async fn the_fields_of_later_validators_reach_the_handler() {
    let served = Setup::default().serve().await;
    let body = json!({"timeout": 20.0, "roles": ["system", "USER"], "messages": ["s", "u"], "task_name": "qa",
        "target_model": "m", "seed": 7, "unknown": [1]});
    let hash = body_hash(&[["s".to_owned(), "u".to_owned()].as_slice()]);
    let answer = SynapseRequest::signed(&bob(), "PromptingSynapse", &body, &hash).send(&served).await;
    assert_eq!(answer.json()["completion"], "echo: system=s | user=u");
    assert_eq!(answer.json()["unknown"], json!([1]));
    let calls = served.echo.calls.lock().unwrap();
    assert_eq!((calls[0].task.as_deref(), calls[0].model.as_deref()), (Some("qa"), Some("m")));
    assert!(calls[0].dictated.is_none(), "a seed without sampling parameters dictates nothing");
}

#[tokio::test]
async fn dictated_sampling_makes_a_synapse_passthrough() {
    let served = Setup::default().serve().await;
    let hash = body_hash(&[["hi".to_owned()].as_slice()]);
    let ask = async |extra: serde_json::Value| {
        let mut body = serde_json::json!({"roles": ["user"], "messages": ["hi"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = SynapseRequest::signed(&bob(), "StreamPromptingSynapse", &body, &hash).send(&served).await;
        (answer.status, served.echo.calls.lock().unwrap().pop().and_then(|call| call.dictated))
    };
    let parameters = serde_json::json!({"temperature": 0.5, "max_new_tokens": 9, "seed": null});
    let (status, dictated) = ask(serde_json::json!({"seed": 7, "sampling_parameters": parameters})).await;
    let dictated = dictated.unwrap();
    assert_eq!((status, dictated.seed, dictated.temperature, dictated.max_tokens), (200, Some(7), Some(0.5), Some(9)));
    let (status, dictated) = ask(serde_json::json!({"seed": 7, "task_name": "InferenceTask"})).await;
    assert_eq!((status, dictated.unwrap().seed), (200, Some(7)));
    // A seed alone, parameters alone: ours to choose the rest.
    assert_eq!(ask(serde_json::json!({"seed": 7, "task_name": "qa"})).await, (200, None));
    assert_eq!(ask(serde_json::json!({"seed": null, "sampling_parameters": {"top_p": 0.9}})).await, (200, None));
    assert_eq!(ask(serde_json::json!({"seed": 7, "sampling_parameters": "{}"})).await, (400, None));
    assert_eq!(ask(serde_json::json!({"seed": "x", "sampling_parameters": {}})).await, (400, None));
}

#[tokio::test]
async fn pings_and_availability_are_answered() {
    let served = Setup::default().serve().await;
    let answer =
        SynapseRequest::signed(&bob(), "Synapse", &json!({"timeout": 12.0}), EMPTY_BODY_HASH).send(&served).await;
    assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some("Synapse")));
    let maps =
        json!({"task_availabilities": {"QuestionAnsweringTask": false}, "llm_model_availabilities": {"other": true}});
    let answer = SynapseRequest::signed(&bob(), "AvailabilitySynapse", &maps, EMPTY_BODY_HASH).send(&served).await;
    let body = answer.json();
    assert_eq!(body["task_availabilities"], json!({"QuestionAnsweringTask": true}));
    assert_eq!(body["llm_model_availabilities"], json!({"other": false}));
    assert!(served.echo.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn replies_are_signed_for_the_caller_that_proved_its_key() {
    let served = Setup::default().serve().await;
    for name in ["Prompting", "StreamPrompting"] {
        let answer = SynapseRequest::prompt(name, &["hi"]).send(&served).await;
        let header = |name: &str| answer.header(name).unwrap().to_owned();
        let [nonce, uuid, hex] = ["nonce", "uuid", "signature"].map(|field| header(&format!("bt_header_axon_{field}")));
        let text = format!("{nonce}.{}.{}.{uuid}", bob().hotkey(), alice().hotkey());
        let hex = hex.strip_prefix("0x").unwrap();
        let signature: Vec<u8> = (0..64).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
        assert!(alice().hotkey().verify(text.as_bytes(), &signature.try_into().unwrap()), "{name}");
    }
}

#[tokio::test]
async fn unverified_callers_learn_nothing() {
    // Reference servers listed their routes, echoed headers, signed texts of the caller's choice, and told who stands
    // on the black list before anything was proved.
    let served = Setup::default().serve().await;
    let mallory = Keypair::from_uri("//Mallory").unwrap();
    let body = json!({"roles": ["user"], "messages": ["hi"]});
    let hash = body_hash(&[["hi".to_owned()].as_slice()]);
    let listed = SynapseRequest::signed(&mallory, "Prompting", &body, &hash).header("bt_header_dendrite_uuid", "other");
    let unlisted = SynapseRequest::prompt("Prompting", &["hi"]).header("bt_header_dendrite_uuid", "other");
    let refused = [listed.send(&served).await, unlisted.send(&served).await];
    assert_eq!(error(&refused[0]), error(&refused[1]));
    assert_eq!(error(&refused[0]), (401, "Not Verified with error: Signature mismatch".to_owned()));
    let mut answers: Vec<HttpAnswer> = refused.into();
    answers.push(served.post("/Prompting", &[("secret-header", "value")], b"{}").await);
    answers.push(served.post("/Nothing", &[], b"{}").await);
    answers.push(served.post("/", &[], b"").await);
    answers.push(served.raw(request("PUT", "/Prompting", &[], b"")).await);
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [401, 401, 400, 404, 404, 405]);
    for answer in &answers {
        let all = format!("{:?} {}", answer.headers, answer.text());
        for word in ["Prompting", "secret", "signature\"", "hotkey", "uuid", "nonce", "server"] {
            assert!(!all.contains(word), "{word} in {all}");
        }
    }
}

#[tokio::test]
async fn requests_out_of_time_or_malformed_are_told_that_and_no_more() {
    const S: i128 = 1_000_000_000;
    let served = Setup::default().serve().await;
    let now = now_ns();
    served.clock.set(now);
    let (mallory, body) = (Keypair::from_uri("//Mallory").unwrap(), json!({"roles": ["user"], "messages": ["hi"]}));
    let hash = body_hash(&[["hi".to_owned()].as_slice()]);
    let at = |sender: &Keypair, nonce: i128| SynapseRequest::signed_at(sender, "Prompting", &body, &hash, nonce);
    let off = "bittensor 6.0 to 7.1 clients are not served here";
    let times = [
        (now - 17 * S, "10005000", "Nonce is too old: acceptable delta is 16s but request was 17s old"),
        (now + 61 * S, "10005000", "Nonce is too far in the future"),
        (i128::MAX, "10005000", "Nonce is too far in the future"),
        (7, "694", off),
        (i128::MIN, "694", off),
    ];
    let malformed = [
        ("bt_header_dendrite_nonce", "abc", 400, "Malformed bt_header_dendrite_nonce: expected an integer"),
        ("bt_header_dendrite_nonce", "1e300", 400, "Malformed bt_header_dendrite_nonce: expected an integer"),
        ("bt_header_dendrite_nonce", "", 400, "Malformed bt_header_dendrite_nonce: expected an integer"),
        ("bt_header_dendrite_version", "ten", 400, "Malformed bt_header_dendrite_version: expected an integer"),
        ("bt_header_dendrite_uuid", "a.b", 400, "Malformed bt_header_dendrite_uuid: expected a UUID"),
        ("timeout", "soon", 400, "Malformed timeout: expected a number of seconds above 0"),
        ("bt_header_dendrite_hotkey", "5xyz", 401, "Signature mismatch"),
        ("bt_header_dendrite_signature", "0x12", 401, "Signature mismatch"),
        ("bt_header_dendrite_signature", "", 401, "Missing Signature"),
        ("computed_body_hash", "a.b", 401, "Signature mismatch"),
    ];
    let mut checks = Vec::new();
    // Whether the key stands on a list, or was proved at all, makes no difference.
    for sender in [bob(), mallory] {
        for (nonce, version, expected) in times {
            let request = || at(&sender, nonce).header("bt_header_dendrite_version", version);
            checks.push((request(), 401, expected));
            checks.push((request().header("computed_body_hash", "00"), 401, expected));
        }
        for (name, value, status, expected) in malformed {
            checks.push((at(&sender, now).header(name, value), status, expected));
        }
        let mut without = at(&sender, now);
        without.headers.retain(|(name, _)| name != "bt_header_input_obj_roles");
        checks.push((
            without,
            400,
            "Malformed bt_header_input_obj: expected a header of this kind for each required field",
        ));
    }
    let replayed = at(&bob(), now);
    assert_eq!(replayed.send(&served).await.status, 200);
    checks.push((replayed, 401, "Nonce is too small"));
    for (request, status, expected) in &checks {
        let answer = request.send(&served).await;
        assert_eq!(error(&answer), (*status, format!("Not Verified with error: {expected}")));
        assert_eq!(answer.json().as_object().unwrap().len(), 1, "{}", answer.text());
        let all = format!("{:?} {}", answer.headers, answer.text());
        let sent = request.headers.iter().filter(|(name, _)| name.starts_with("bt_header") || name.starts_with("comp"));
        for (name, value) in sent.filter(|(_, value)| value.len() > 4) {
            assert!(!all.contains(value), "{name} comes back in {all}");
        }
        for field in ["nonce", "uuid", "signature", "hotkey"] {
            assert_eq!(answer.header(&format!("bt_header_axon_{field}")), None, "{all}");
        }
    }
    assert_eq!(served.echo.calls.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn denied_callers_get_403_in_the_words_that_clients_know() {
    let served = Setup::default().serve().await;
    let mallory = Keypair::from_uri("//Mallory").unwrap();
    let body = json!({"roles": ["user"], "messages": ["hi"]});
    let hash = body_hash(&[["hi".to_owned()].as_slice()]);
    let answer = SynapseRequest::signed(&mallory, "Prompting", &body, &hash).send(&served).await;
    assert_eq!(error(&answer), (403, "Forbidden. Key is blacklisted: not allowed.".to_owned()));
}

#[tokio::test]
async fn bodies_other_than_the_signed_one_are_refused() {
    let served = Setup::default().serve().await;
    let check = async |body: &[u8], status: u16, expected: &str| {
        let asked = SynapseRequest::prompt("Prompting", &["hi"]);
        let headers: Vec<_> = asked.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let answer = served.post("/Prompting", &headers, body).await;
        let (code, message) = error(&answer);
        assert_eq!(code, status, "{message}");
        assert!(message.contains(expected), "{message}");
    };
    check(br#"{"roles": ["user"], "messages": ["ho"]}"#, 401, "hash").await;
    check(br#"{"roles": ["user"], "messages": "hi"}"#, 400, "messages").await;
    check(br#"{"roles": ["user"]}"#, 400, "messages").await;
    check(b"{", 400, "JSON").await;
    check(b"", 400, "JSON").await;
    check(b"\"\xff\"", 400, "UTF-8").await;
    // Bad UTF-8 within a message of a body that is sound otherwise, and characters that are none.
    check(b"{\"roles\": [\"user\"], \"messages\": [\"h\xff\"]}", 400, "UTF-8").await;
    check(b"{\"roles\": [\"user\"], \"messages\": [\"\xed\xa0\x80\"]}", 400, "UTF-8").await;
    check(b"{\"roles\": [\"user\xc3\"], \"messages\": [\"hi\"]}", 400, "UTF-8").await;
    check(br#"{"roles": ["user"], "messages": ["\ud800"]}"#, 400, "messages").await;
    assert!(served.echo.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn unknown_roles_and_empty_prompts_are_named() {
    let served = Setup::default().serve().await;
    let send = async |roles: Value, messages: &[&str]| {
        let body = json!({"roles": roles, "messages": messages});
        let messages: Vec<String> = messages.iter().map(|m| (*m).to_owned()).collect();
        let hash = body_hash(&[messages.as_slice()]);
        error(&SynapseRequest::signed(&bob(), "Prompting", &body, &hash).send(&served).await)
    };
    assert_eq!(send(json!(["robot"]), &["hi"]).await.0, 400);
    assert!(send(json!(["robot"]), &["hi"]).await.1.contains("unknown role \"robot\""));
    assert_eq!(send(json!(["user"]), &[]).await, (400, "1 roles for 0 messages".to_owned()));
    assert_eq!(send(json!([]), &["hi"]).await, (400, "0 roles for 1 messages".to_owned()));
    assert_eq!(send(json!(["user"]), &[""]).await, (400, "no message with any text".to_owned()));
    assert_eq!(send(json!(["user"]), &["  "]).await, (400, "no message with any text".to_owned()));
    assert_eq!(send(json!(["user"]), &["a", "b"]).await, (400, "1 roles for 2 messages".to_owned()));
}

#[tokio::test]
async fn empty_lists_ask_nothing_and_are_told_nothing() {
    let served = Setup::default().serve().await;
    for (name, kind) in [("Prompting", "application/json"), ("StreamPrompting", "text/event-stream")] {
        let answer = SynapseRequest::prompt(name, &[]).send(&served).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(kind)), "{name}");
        assert_eq!(answer.header("bt_header_axon_status_message"), Some("Success"));
        match name {
            "Prompting" => {
                let body = answer.json();
                assert_eq!(
                    (&body["completion"], &body["roles"], &body["messages"]),
                    (&json!(""), &json!([]), &json!([]))
                );
            }
            _ => assert_eq!(answer.text(), ""),
        }
    }
    // The proof, policy and body hash come first as ever.
    let denied = Keypair::from_uri("//Mallory").unwrap();
    let body = json!({"roles": [], "messages": []});
    let empty = body_hash(&[Vec::<String>::new().as_slice()]);
    assert_eq!(SynapseRequest::signed(&denied, "Prompting", &body, &empty).send(&served).await.status, 403);
    assert_eq!(
        SynapseRequest::signed(&bob(), "Prompting", &body, &body_hash(&[["x".to_owned()].as_slice()]))
            .send(&served)
            .await
            .status,
        401
    );
    let forged = SynapseRequest::prompt("Prompting", &[]).header("bt_header_dendrite_nonce", "1");
    assert_eq!(forged.send(&served).await.status, 401);
    assert!(served.echo.calls.lock().unwrap().is_empty(), "nobody was asked");
}

#[tokio::test]
async fn timeouts_of_any_size_are_survived() {
    let served = Setup::default().serve().await;
    for (timeout, prompt, status) in [
        ("-1.0", "hi", 400),
        ("-1e308", "hi", 400),
        ("-inf", "hi", 400),
        ("0", "hi", 400),
        ("-0.0", "hi", 400),
        ("nan", "hi", 400),
        ("NaN", "hi", 400),
        ("inf", "hi", 400),
        ("1e309", "hi", 400),
        ("abc", "hi", 400),
        ("", "hi", 400),
        ("5e-324", "wait 60000", 408),
        ("1e-10", "wait 60000", 408),
        ("1e-9", "wait 60000", 408),
        ("0.001", "wait 60000", 408),
        ("60", "hi", 200),
        ("1e10", "hi", 200),
        ("1e300", "hi", 200),
        ("1e308", "hi", 200),
        ("99999999999999999999", "hi", 200),
    ] {
        let before = served.echo.calls.lock().unwrap().len();
        let answer = SynapseRequest::prompt("Prompting", &[prompt]).header("timeout", timeout).send(&served).await;
        assert_eq!(answer.status, status, "{timeout:?}: {}", answer.text());
        if status == 200 {
            let deadline = served.echo.calls.lock().unwrap()[before].deadline;
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            assert!(left <= Duration::from_secs(60), "{timeout}: {left:?}");
        }
    }
}

#[tokio::test]
async fn failures_have_their_status_and_are_never_completions() {
    let served = Setup::default().serve().await;
    for name in ["Prompting", "StreamPrompting"] {
        let cases =
            [("fail overloaded", 503), ("fail timeout", 408), ("fail internal", 500), ("panic", 500), ("nothing", 500)];
        for (prompt, status) in cases {
            let answer = ask(&served, name, prompt).await;
            assert_eq!(error(&answer).0, status, "{name} {prompt}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert!(!answer.text().contains("secret") && answer.json().get("completion").is_none());
        }
    }
    assert_eq!(ask(&served, "Prompting", "hi").await.status, 200, "it goes on after failures");
}

/// A reference miner that was told to end with its first failure ended with its first success.
#[tokio::test]
async fn it_goes_on_after_a_success_and_after_a_failure() {
    let served = Setup::default().serve().await;
    for (prompt, status) in [("hi", 200), ("hi", 200), ("fail internal", 500), ("hi", 200), ("panic", 500), ("hi", 200)]
    {
        assert_eq!(ask(&served, "Prompting", prompt).await.status, status, "{prompt}");
        assert!(served.is_running());
    }
}

#[tokio::test]
async fn a_late_handler_is_answered_for_in_time() {
    let served = Setup::default().serve().await;
    let asked = std::time::Instant::now();
    let answer = SynapseRequest::prompt("Prompting", &["wait 60000"]).header("timeout", "0.5").send(&served).await;
    assert_eq!(error(&answer).0, 408);
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_client_that_goes_away_stops_the_work() {
    let served = Setup::default().serve().await;
    let asked = SynapseRequest::prompt("Prompting", &["wait 60000"]);
    let headers: Vec<_> = asked.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let mut stream = served.connect().await;
    stream.write_all(&request("POST", "/Prompting", &headers, asked.body.as_bytes())).await.unwrap();
    until("the call runs", || served.echo.n_running.load(Ordering::SeqCst) == 1).await;
    drop(stream);
    until("the handler's future is dropped", || served.echo.n_dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_prompt_of_one_mebibyte_is_answered_by_default_and_refused_where_configured() {
    let prompt = "é".repeat(512 << 10);
    let served = Setup::default().serve().await;
    let answer = ask(&served, "Prompting", &prompt).await;
    assert_eq!(answer.json()["completion"].as_str().unwrap().len(), "echo: user=".len() + prompt.len());
    let strict = Setup::config(|config| config.max_body_bytes = 100_000).serve().await;
    let asked = SynapseRequest::prompt("Prompting", &[&prompt]);
    let headers: Vec<_> = asked.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let mut stream = strict.connect().await;
    // The answer comes before the body is sent.
    let bytes = request("POST", "/Prompting", &headers, asked.body.as_bytes());
    let head = bytes.len() - asked.body.len();
    stream.write_all(&bytes[..head]).await.unwrap();
    assert_eq!(crate::support::read_answer(&mut stream).await.unwrap().status, 413);
}

#[tokio::test]
async fn a_refused_request_leaves_its_connection_usable() {
    use tokio::io::AsyncReadExt as _;
    let served = Setup::default().serve().await;
    let mut stream = served.connect().await;
    let mut buffer = [0; 8192];
    for _ in 0..3 {
        let asked = SynapseRequest::prompt("Prompting", &["hi"]).header("bt_header_dendrite_uuid", "other");
        let headers: Vec<_> = asked.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let bytes = request("POST", "/Prompting", &headers, asked.body.as_bytes());
        let bytes = String::from_utf8(bytes).unwrap().replace("connection: close\r\n", "");
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..n].starts_with(b"HTTP/1.1 401"), "{}", String::from_utf8_lossy(&buffer[..n]));
    }
}

#[derive(Debug)]
struct Ranker;

#[async_trait]
impl SynapseHandler for Ranker {
    async fn call(&self, call: SynapseCall) -> Result<SynapseAnswer, HandlerError> {
        let mut documents: Vec<String> = call.field("documents")?;
        if documents.is_empty() {
            return Ok(SynapseAnswer::Text("nothing to rank".to_owned()));
        }
        documents.sort();
        Ok(SynapseAnswer::Fields(Map::from_iter([("ranked".to_owned(), json!(documents))])))
    }
}

#[tokio::test]
async fn synapses_of_other_subnets_are_served_with_the_same_checks() {
    let spec = || SynapseSpec::custom("Ranking").hashed(["documents"]).required(["documents"]);
    let (axon, echo, clock) = Setup::default().bind().await.unwrap();
    let axon = axon.with_synapse(spec(), Arc::new(Ranker)).unwrap();
    let axon = axon.with_prompt_synapse(SynapseSpec::prompt("Chat").streaming()).unwrap();
    let (other, ..) = Setup::default().bind().await.unwrap();
    let twice = other.with_synapse(SynapseSpec::custom("Prompting"), Arc::new(Ranker)).unwrap_err();
    assert!(matches!(twice, AxonError::DuplicateSynapse(name) if name == "Prompting"));
    let served = Served::new(axon, echo, clock);

    let send = async |documents: &[&str], hash_of: &[&str]| {
        let hash_of: Vec<String> = hash_of.iter().map(|d| (*d).to_owned()).collect();
        let hash = body_hash(&[hash_of.as_slice()]);
        let body = json!({"documents": documents, "query": "q"});
        SynapseRequest::signed(&bob(), "Ranking", &body, &hash)
            .header("bt_header_input_obj_documents", "W10=")
            .send(&served)
            .await
    };
    let answer = send(&["b", "a"], &["b", "a"]).await;
    assert_eq!((answer.json()["ranked"].clone(), answer.json()["query"].clone()), (json!(["a", "b"]), json!("q")));
    assert_eq!(error(&send(&["b", "c"], &["b", "a"]).await).0, 401);
    assert_eq!(send(&[], &[]).await.text(), "nothing to rank");
    assert_eq!(ask(&served, "Chat", "hi").await.text(), "echo: user=hi");
}

#[tokio::test]
async fn expect_continue_and_pipelined_requests_are_understood() {
    let served = Setup::default().serve().await;
    let asked = SynapseRequest::prompt("Prompting", &["hi"]).header("expect", "100-continue");
    let answer = asked.send(&served).await;
    assert!(answer.status == 200 || answer.status == 100, "{}", answer.status);
    let one = "POST /availability HTTP/1.1\r\nhost: miner\r\ncontent-length: 2\r\n\r\n{}";
    let last = one.replace("host", "connection: close\r\nhost");
    let answer = served.raw(format!("{one}{one}{last}")).await;
    assert_eq!(String::from_utf8_lossy(&answer.body).matches("HTTP/1.1 200").count(), 2);
}
