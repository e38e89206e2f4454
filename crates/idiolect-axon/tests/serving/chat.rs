//! `/v1/chat/completions` and `/availability`: Epistula and btauth over the listener.

use idiolect_protocol::openai::sse::{Event, SseParser};
use idiolect_protocol::{Keypair, btauth, epistula};
use serde_json::{Value, json};

use crate::support::{HttpAnswer, Served, Setup, alice, bob, now_ns, request};

const PATH: &str = "/v1/chat/completions";

fn pairs(headers: &http::HeaderMap) -> Vec<(&str, &str)> {
    headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect()
}

fn epistula_headers(sender: &Keypair, body: &[u8]) -> http::HeaderMap {
    let now_ms = u64::try_from(now_ns() / 1_000_000).unwrap();
    epistula::sign(sender, &alice().hotkey(), body, now_ms, &uuid::Uuid::new_v4())
}

async fn ask(served: &Served, body: &Value) -> HttpAnswer {
    let body = body.to_string();
    served.post(PATH, &pairs(&epistula_headers(&bob(), body.as_bytes())), body.as_bytes()).await
}

fn body(content: &str, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": content}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn events(answer: &HttpAnswer) -> Vec<Value> {
    let mut events = SseParser::new(1 << 20).push(&answer.body).unwrap();
    assert_eq!(events.pop(), Some(Event::Done));
    let data = |event| match event {
        Event::Data(data) => serde_json::from_str(&data).unwrap(),
        Event::Done => panic!("done twice"),
    };
    events.into_iter().map(data).collect()
}

fn content(chunk: &Value) -> Option<&str> {
    chunk["choices"][0]["delta"]["content"].as_str()
}

#[tokio::test]
async fn a_streamed_answer_comes_in_chunks_that_make_up_the_text() {
    let served = Setup::default().serve().await;
    let text = "naïve café 😀 ".repeat(30);
    let answer = ask(&served, &body(&format!("say {text}"), json!({"stream": true, "model": null}))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert!(answer.chunks.len() > 5, "real chunks, not one piece");
    assert!(answer.chunks.iter().all(|chunk| std::str::from_utf8(chunk).is_ok()));
    let events = events(&answer);
    let joined: String = events.iter().filter_map(content).collect();
    assert_eq!(joined, text);
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "stop");
    let call = served.echo.calls.lock().unwrap()[0].clone();
    assert!(call.dictated.is_none() && call.logprobs.is_none());
    assert_eq!(call.synapse, PATH);
}

#[tokio::test]
async fn an_inference_task_is_passed_through_with_its_seed_and_log_probabilities() {
    let served = Setup::default().serve().await;
    let request = json!({"stream": true, "task": "InferenceTask", "seed": 42, "n": 3, "model": "m",
        "sampling_parameters": {"temperature": 0.7, "top_p": 0.95, "top_k": 50, "max_new_tokens": 256, "do_sample": true}});
    let answer = ask(&served, &body("say Hé!", request)).await;
    let events = events(&answer);
    let tokens: Vec<_> =
        events.iter().filter_map(|e| e["choices"][0]["logprobs"]["content"][0]["token"].as_str()).collect();
    assert_eq!(tokens, ["H", "é", "!"]);
    let top = events[0]["choices"][0]["logprobs"]["content"][0]["top_logprobs"].as_array().unwrap();
    assert_eq!(top[0], json!({"token": "H", "logprob": -0.5}));
    let call = served.echo.calls.lock().unwrap()[0].clone();
    let dictated = call.dictated.unwrap();
    assert_eq!((dictated.seed, dictated.max_tokens, dictated.top_k), (Some(42), Some(256), Some(50)));
    assert_eq!((call.n_completions, call.task.as_deref()), (1, Some("InferenceTask")));
}

#[tokio::test]
async fn a_whole_answer_is_openai_shaped_json() {
    let served = Setup::default().serve().await;
    let answer = ask(&served, &body("hi", json!({"n": 2, "logprobs": true, "top_logprobs": 2}))).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let json = answer.json();
    assert_eq!(json["object"], "chat.completion");
    assert_eq!(json["choices"][0]["message"]["content"], "echo: user=hi");
    assert_eq!(json["choices"][1]["message"]["content"], "echo: user=hi #1");
    assert_eq!(json["choices"][0]["logprobs"]["content"][0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(json["model"], "echo");
}

#[tokio::test]
async fn btauth_requests_are_answered_on_the_same_path() {
    let served = Setup::default().serve().await;
    let body = body("hi", json!({})).to_string();
    let parts = btauth::SignedParts { method: "POST", target: "/v1/chat/completions?x=1", body: body.as_bytes() };
    let headers = btauth::sign(&bob(), Some(&alice().hotkey()), parts, now_ns());
    let send = async |path: &str, body: &str| served.post(path, &pairs(&headers), body.as_bytes()).await;
    assert_eq!(send(PATH, &body).await.status, 401, "the query is signed too");
    assert_eq!(send("/v1/chat/completions?x=1", &body.replace("hi", "ho")).await.status, 401);
    let answer = send("/v1/chat/completions?x=1", &body).await;
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "echo: user=hi");
    let again = send("/v1/chat/completions?x=1", &body).await;
    assert_eq!((again.status, again.json()["error"]["message"].as_str()), (401, Some("Nonce is too small")));
}

#[tokio::test]
async fn unverified_and_denied_callers_are_told_so_in_openais_shape() {
    let served = Setup::default().serve().await;
    let body = body("hi", json!({})).to_string();
    let send = async |headers: &http::HeaderMap, body: &str| served.post(PATH, &pairs(headers), body.as_bytes()).await;

    let unsigned = send(&http::HeaderMap::new(), &body).await;
    assert_eq!((unsigned.status, unsigned.json()["error"]["type"].as_str()), (401, Some("authentication_error")));
    let tampered = send(&epistula_headers(&bob(), b"other"), &body).await;
    assert_eq!((tampered.status, tampered.json()["error"]["message"].as_str()), (401, Some("Signature mismatch")));
    let mallory = Keypair::from_uri("//Mallory").unwrap();
    let denied = send(&epistula_headers(&mallory, body.as_bytes()), &body).await;
    assert_eq!((denied.status, denied.json()["error"]["message"].as_str()), (403, Some("not allowed")));
    assert!(served.echo.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn requests_out_of_time_or_malformed_are_told_that_and_no_more() {
    const S: i128 = 1_000_000_000;
    let served = Setup::default().serve().await;
    let now = now_ns();
    served.clock.set(now);
    let body = body("hi", json!({})).to_string();
    let mallory = Keypair::from_uri("//Mallory").unwrap();
    let epistula = |sender: &Keypair, at: i128| {
        let at_ms = u64::try_from(at / 1_000_000).unwrap();
        epistula::sign(sender, &alice().hotkey(), body.as_bytes(), at_ms, &uuid::Uuid::new_v4())
    };
    let btauth = |sender: &Keypair, at: i128| {
        let parts = btauth::SignedParts { method: "POST", target: PATH, body: body.as_bytes() };
        btauth::sign(sender, Some(&alice().hotkey()), parts, at)
    };
    let with = |mut headers: http::HeaderMap, name: &'static str, value: &str| {
        headers.insert(name, value.parse().unwrap());
        headers
    };
    let mut checks = Vec::new();
    for sender in [&bob(), &mallory] {
        let too_old = |max: u32| format!("Nonce is too old: acceptable delta is {max}s but request was ");
        let too_far = "Nonce is too far in the future".to_owned();
        checks.extend([
            (epistula(sender, now - 9 * S), 401, too_old(8)),
            (epistula(sender, 0), 401, too_old(8)),
            (epistula(sender, now + 62 * S), 401, too_far.clone()),
            (btauth(sender, now - 11 * S), 401, too_old(10)),
            (btauth(sender, now + 3 * S), 401, too_far),
        ]);
        for (name, value, expected) in [
            ("epistula-timestamp", "soon", "milliseconds since 1970"),
            ("epistula-timestamp", "-1", "milliseconds since 1970"),
            ("epistula-uuid", "a.b", "a uuid"),
            ("epistula-signed-by", "5xyz", "an ss58 address with prefix 42"),
            ("epistula-request-signature", "0x12", "0x and 128 hexadecimal digits"),
            ("x-client-timeout", "nan", "seconds above 0"),
        ] {
            let message = format!("Malformed {name}: expected {expected}");
            checks.push((with(epistula(sender, now), name, value), 400, message));
        }
        for (name, value, expected) in [
            (btauth::VERSION_HEADER, "2", "1"),
            (btauth::NONCE_HEADER, "1e18", "nanoseconds since 1970"),
            (btauth::HOTKEY_HEADER, "5xyz", "an ss58 address with prefix 42"),
            (btauth::CRYPTO_HEADER, "rot13", "sr25519 or ed25519"),
            (btauth::SIGNATURE_HEADER, "12", "128 hexadecimal digits"),
        ] {
            let message = format!("Malformed {name}: expected {expected}");
            checks.push((with(btauth(sender, now), name, value), 400, message));
        }
        let for_bob = bob().hotkey().to_string();
        checks.push((with(epistula(sender, now), "epistula-signed-for", &for_bob), 401, "Wrong receiver".to_owned()));
        checks.push((with(btauth(sender, now), btauth::RECEIVER_HEADER, &for_bob), 401, "Wrong receiver".to_owned()));
    }
    for (headers, status, expected) in &checks {
        let answer = served.post(PATH, &pairs(headers), body.as_bytes()).await;
        let json = answer.json();
        let message = json["error"]["message"].as_str().unwrap();
        assert_eq!(answer.status, *status, "{message}");
        assert!(message.starts_with(expected.as_str()), "{message}");
        let all = format!("{:?} {}", answer.headers, answer.text());
        for (name, value) in pairs(headers).into_iter().filter(|(_, value)| value.len() > 8) {
            assert!(!all.contains(value), "{name} comes back in {all}");
        }
    }
    assert!(served.echo.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn one_epistula_request_counts_once() {
    let served = Setup::default().serve().await;
    let body = body("hi", json!({})).to_string();
    let headers = epistula_headers(&bob(), body.as_bytes());
    assert_eq!(served.post(PATH, &pairs(&headers), body.as_bytes()).await.status, 200);
    assert_eq!(served.post(PATH, &pairs(&headers), body.as_bytes()).await.status, 401);
}

#[tokio::test]
async fn bad_bodies_are_refused_with_the_place_of_the_mistake() {
    let served = Setup::default().serve().await;
    let check = async |body: &[u8], expected: &str| {
        let answer = served.post(PATH, &pairs(&epistula_headers(&bob(), body)), body).await;
        assert_eq!(answer.status, 400);
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(expected), "{message}");
    };
    check(b"{", "not JSON").await;
    check(b"\xff\xfe", "not JSON").await;
    check(br#"{"messages": []}"#, "no message").await;
    check(br#"{"messages": [{"role": "robot", "content": "x"}]}"#, "unknown role").await;
    check(br#"{"messages": [{"role": "user", "content": "x"}], "temperature": -1}"#, "temperature").await;
}

#[tokio::test]
async fn failures_are_decided_before_the_first_byte_of_a_stream() {
    let served = Setup::default().serve().await;
    for (prompt, status) in [("fail internal", 500), ("fail overloaded", 503), ("fail timeout", 408), ("panic", 500)] {
        let answer = ask(&served, &body(prompt, json!({"stream": true}))).await;
        assert_eq!((answer.status, answer.header("content-type")), (status, Some("application/json")));
        assert!(!answer.text().contains("secret"), "internals stay inside");
    }
}

#[tokio::test]
async fn the_clients_own_timeout_sets_the_deadline() {
    let served = Setup::default().serve().await;
    let body = body("wait 60000", json!({"stream": true})).to_string();
    let headers = epistula_headers(&bob(), body.as_bytes());
    let mut headers = pairs(&headers);
    headers.push(("x-client-timeout", "0.5"));
    let asked = std::time::Instant::now();
    assert_eq!(served.post(PATH, &headers, body.as_bytes()).await.status, 408);
    assert!(asked.elapsed().as_secs() < 5, "{:?}", asked.elapsed());
}

#[tokio::test]
async fn availability_is_told_to_anybody_but_not_without_end() {
    let served = Setup::default().serve().await;
    let question = json!({"task_availabilities": {"QuestionAnsweringTask": false, "Other": true},
        "llm_model_availabilities": {"echo": false}})
    .to_string();
    let answer = served.post("/availability", &[], question.as_bytes()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({"task_availabilities": {"QuestionAnsweringTask": true, "Other": false},
               "llm_model_availabilities": {"echo": true}})
    );
    assert_eq!(served.post("/availability", &[], b"[]").await.status, 400);
    assert_eq!(served.post("/availability", &[], &vec![b' '; 70_000]).await.status, 413);
    let mut last = 200;
    for _ in 0..80 {
        let answer = served.post("/availability", &[], question.as_bytes()).await;
        last = answer.status;
        if last == 429 {
            assert!(answer.header("retry-after").is_some());
            break;
        }
    }
    assert_eq!(last, 429);
}

#[tokio::test]
async fn only_post_is_taken() {
    let served = Setup::default().serve().await;
    for path in [PATH, "/availability"] {
        let answer = served.raw(request("GET", path, &[], b"")).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    }
}
