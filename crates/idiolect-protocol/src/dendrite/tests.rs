use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::openai::{AvailabilityRequest, ChatRequest, ErrorReply, ReplyHead, StreamedReply, TopLogprob};
use crate::testdata::vectors;
use crate::{
    AuthError, Category, Limits, Message, NonceStore, Role, Verifier, body_hash, btauth, epistula, grpc, status,
};

mod rpc;
mod synapses;

fn bob() -> Dendrite {
    Dendrite::new(Keypair::from_uri("//Bob").unwrap())
}

fn alice() -> Hotkey {
    Keypair::from_uri("//Alice").unwrap().hotkey()
}

fn prompt(text: &str) -> Prompt {
    let system = Message::new(Role::System, "Answer in one word. 'Really'.");
    Prompt::new(vec![system, Message::new(Role::User, text)]).unwrap()
}

fn verifier() -> Verifier {
    Verifier::new(alice(), Limits::default(), Arc::new(SystemClock), Arc::new(NonceStore::new(1000)))
}

type Reply = Response<Full<Bytes>>;

/// Serves HTTP/1.1 on a loopback port until the test ends.
async fn serve<F, A>(answer: F) -> Target
where
    F: Fn(http::request::Parts, Bytes) -> A + Clone + Send + 'static,
    A: Future<Output = Reply> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    Ok::<_, hyper::Error>(answer(head, body).await)
                }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, alice()).into()
}

/// Sends fixed bytes to whoever connects and asks something, then closes.
async fn serve_bytes(bytes: &'static [u8], keeps_open: bool) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = vec![0; 4096];
                let _ = stream.read(&mut seen).await;
                let _ = stream.write_all(bytes).await;
                if keeps_open {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (address, alice()).into()
}

/// A port that nobody listens on.
async fn nobody() -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), alice()).into()
}

fn respond(code: StatusCode, content_type: &str, body: impl Into<Bytes>) -> Reply {
    Response::builder().status(code).header(header::CONTENT_TYPE, content_type).body(Full::new(body.into())).unwrap()
}

fn refuse(category: Category, message: &str) -> Reply {
    let body = serde_json::to_vec(&ErrorReply::new(category, message)).unwrap();
    respond(status::http_status(category), "application/json", body)
}

/// A miner's chat route made of this crate's server half. It answers with what it understood.
async fn chat_server(verifier: Verifier) -> Target {
    serve(move |head, body| {
        let verifier = verifier.clone();
        async move { chat(&verifier, &head, &body).unwrap_or_else(|error| refuse(error.category(), &error.to_string())) }
    })
    .await
}

fn chat(verifier: &Verifier, head: &http::request::Parts, body: &[u8]) -> Result<Reply, AuthError> {
    if head.uri.path() == crate::openai::AVAILABILITY_PATH {
        let asked = AvailabilityRequest::from_json(body).unwrap();
        let reply = AvailabilityReply {
            task_availabilities: asked.task_availabilities.into_keys().map(|name| (name, true)).collect(),
            llm_model_availabilities: asked.llm_model_availabilities.into_keys().map(|name| (name, false)).collect(),
        };
        return Ok(respond(StatusCode::OK, "application/json", serde_json::to_vec(&reply).unwrap()));
    }
    let limits = verifier.limits();
    let claim = if btauth::is_btauth(&head.headers) {
        let target = head.uri.path_and_query().unwrap().as_str();
        let parts = btauth::SignedParts { method: head.method.as_str(), target, body };
        btauth::claim(&head.headers, parts, verifier.receiver(), limits)?
    } else {
        assert!(epistula::is_epistula(&head.headers));
        epistula::claim(&head.headers, body, verifier.receiver(), limits)?
    };
    let caller = verifier.verify(claim)?;
    let request = match ChatRequest::from_json(body) {
        Ok(request) => request,
        Err(error) => return Ok(refuse(Category::Malformed, &error.to_string())),
    };
    let dictated = epistula::dictated(&head.headers, &request);
    let text = format!(
        "{} {} {:?} dictated={:?}",
        caller.transport(),
        request.prompt.messages()[1].content,
        caller.timeout().map(|t| t.as_secs()),
        dictated.as_ref().map(|d| (d.seed, d.temperature)),
    );
    let logprobs = request.wanted_logprobs(dictated.is_some()).map(|n| {
        let top = (0..n).map(|i| TopLogprob { token: i.to_string(), logprob: -1.0 }).collect();
        vec![TokenLogprob { token: text.clone(), logprob: -0.5, top_logprobs: top }]
    });
    let head = ReplyHead { id: "chatcmpl-1".into(), created: 1, model: request.model.clone().unwrap_or("own".into()) };
    if request.stream {
        let reply = StreamedReply { head, text, logprobs, finish_reason: "stop".into() };
        let body: Vec<u8> = reply.events().flatten().collect();
        Ok(respond(StatusCode::OK, "text/event-stream; charset=utf-8", body))
    } else {
        let completion = head.completion(vec![text], logprobs, "length");
        Ok(respond(StatusCode::OK, "application/json", serde_json::to_vec(&completion).unwrap()))
    }
}

#[tokio::test]
async fn epistula_questions_are_understood_and_their_streams_read() {
    let (dendrite, target) = (bob(), chat_server(verifier()).await);
    let options = QueryOptions { model: Some("m".into()), ..QueryOptions::default() };
    let reply = dendrite.query(&target, Via::Epistula, &prompt("héllo 😀"), &options).await.unwrap();
    assert_eq!(reply.text, "epistula héllo 😀 Some(12) dictated=None");
    assert_eq!((reply.status_code, reply.model.as_deref()), (200, Some("m")));
    assert_eq!(reply.finish_reason.as_deref(), Some("stop"));
    assert!(reply.first_byte <= reply.elapsed && reply.n_pieces >= 1 && reply.logprobs.is_empty());

    let parameters = json!({"temperature": 0.25, "top_p": 0.9, "do_sample": true});
    let options = QueryOptions {
        seed: Some(7),
        task: Some(epistula::INFERENCE_TASK.into()),
        sampling_parameters: parameters.as_object().cloned(),
        ..QueryOptions::default()
    };
    let reply = dendrite.query(&target, Via::Epistula, &prompt("x"), &options).await.unwrap();
    assert_eq!(reply.text, "epistula x Some(12) dictated=Some((Some(7), Some(0.25)))");
    assert_eq!((reply.logprobs.len(), reply.logprobs[0].top_logprobs.len()), (1, 10));
    assert_eq!(reply.logprobs[0].token, reply.text);
}

#[tokio::test]
async fn btauth_questions_are_understood_plain_and_streamed() {
    let (dendrite, target) = (bob(), chat_server(verifier()).await);
    for (stream, finish_reason) in [(false, "length"), (true, "stop")] {
        let options = QueryOptions { stream, ..QueryOptions::default() };
        let reply = dendrite.query(&target, Via::Btauth, &prompt("hi"), &options).await.unwrap();
        assert_eq!(reply.text, "btauth hi None dictated=None");
        assert_eq!(reply.finish_reason.as_deref(), Some(finish_reason));
        assert_eq!(reply.model.as_deref(), Some("own"));
    }
}

#[tokio::test]
async fn refusals_come_with_status_and_message() {
    let target = chat_server(verifier()).await;
    let other = Target { hotkey: bob().hotkey(), ..target.clone() };
    for via in [Via::Epistula, Via::Btauth] {
        let error = bob().query(&other, via, &prompt("x"), &QueryOptions::default()).await.unwrap_err();
        assert_eq!(error.to_string(), "refused with 401 Unauthorized: Wrong receiver", "{via}");
        assert_eq!(error.status_code(), 401);
    }
}

#[tokio::test]
async fn availability_is_asked_without_a_signature() {
    let target = chat_server(verifier()).await;
    let (tasks, models) = (["QA".to_owned()], ["m".to_owned()]);
    let reply = bob().availability(&target, Via::Epistula, &tasks, &models, Duration::from_secs(5)).await.unwrap();
    assert_eq!((reply.task_availabilities["QA"], reply.llm_model_availabilities["m"]), (true, false));
}

#[tokio::test]
async fn a_replayed_head_is_refused_and_many_at_once_are_not() {
    let (dendrite, verifier) = (bob(), verifier());
    for via in [Via::Epistula, Via::Btauth] {
        let target = chat_server(verifier.clone()).await;
        let request = dendrite.signed_request(&target, via, &prompt("x"), &QueryOptions::default()).unwrap();
        assert_eq!(send::send(&dendrite.http, &target, request.clone(), 1 << 20).await.unwrap().status, 200);
        assert_eq!(send::send(&dendrite.http, &target, request, 1 << 20).await.unwrap().status, 401);
        let options = QueryOptions::default();
        let prompt = prompt("x");
        let many = (0..32).map(|_| dendrite.query(&target, via, &prompt, &options));
        for reply in futures_util::future::join_all(many).await {
            reply.unwrap();
        }
    }
}

#[tokio::test]
async fn nobody_home_is_a_connect_error_every_way() {
    for via in Via::ALL {
        let target = nobody().await;
        let error = bob().query(&target, via, &prompt("x"), &QueryOptions::default()).await.unwrap_err();
        assert!(matches!(error, DendriteError::Connect { .. }), "{via}: {error:?}");
        assert_eq!(error.status_code(), 503);
    }
}

#[tokio::test]
async fn silence_is_a_timeout_every_way() {
    for via in Via::ALL {
        let target = serve_bytes(b"", true).await;
        let options = QueryOptions { timeout: Duration::from_millis(50), ..QueryOptions::default() };
        let started = Instant::now();
        let error = bob().query(&target, via, &prompt("x"), &options).await.unwrap_err();
        assert!(matches!(error, DendriteError::Timeout { .. }), "{via}: {error:?}");
        assert!(started.elapsed() < Duration::from_secs(5), "{via}");
    }
}

#[tokio::test]
async fn nonsense_is_a_bad_answer_or_a_broken_connection_every_way() {
    for via in Via::ALL {
        let target = serve_bytes(b"SSH-2.0-OpenSSH_9.6\r\n", false).await;
        let error = bob().query(&target, via, &prompt("x"), &QueryOptions::default()).await.unwrap_err();
        assert!(matches!(error, DendriteError::Broken { .. } | DendriteError::Connect { .. }), "{via}: {error:?}");
    }
}

#[tokio::test]
async fn replies_are_read_up_to_a_limit_and_no_further() {
    for via in [Via::Http, Via::Stream, Via::Epistula, Via::Btauth] {
        let target = serve(move |_, _| async move {
            let content_type = match via {
                Via::Epistula => "text/event-stream",
                Via::Stream => "text/plain",
                _ => "application/json",
            };
            let mut reply = respond(StatusCode::OK, content_type, vec![b'x'; 10_000]);
            reply.headers_mut().insert("bt_header_axon_status_code", 200.into());
            reply
        })
        .await;
        let options = QueryOptions { max_reply_bytes: 1000, ..QueryOptions::default() };
        let error = bob().query(&target, via, &prompt("x"), &options).await.unwrap_err();
        assert!(matches!(error, DendriteError::TooLarge { max_bytes: 1000 }), "{via}: {error:?}");
    }
}

#[tokio::test]
async fn half_a_stream_is_no_answer() {
    let check = |body: &'static str, expected: Result<&'static str, &'static str>| async move {
        let target = serve(move |_, _| async move { respond(StatusCode::OK, "text/event-stream", body) }).await;
        let reply = bob().query(&target, Via::Epistula, &prompt("x"), &QueryOptions::default()).await;
        assert_eq!(
            reply.map(|r| r.text).map_err(|e| e.to_string()),
            expected.map(str::to_owned).map_err(str::to_owned)
        );
    };
    let done = "data: {\"choices\": [{\"delta\": {\"content\": \"a\"}}]}\n\ndata: [DONE]\n\n";
    check(done, Ok("a")).await;
    let finished = "data: {\"choices\": [{\"delta\": {\"content\": \"a\"}, \"finish_reason\": \"stop\"}]}";
    check(finished, Ok("a")).await;
    let cut = "data: {\"choices\": [{\"delta\": {\"content\": \"a\"}}]}\n\n";
    check(cut, Err("bad answer: the stream ends without a finish reason")).await;
    check("data: {\"cho\n\n", Err("bad answer: an event is not JSON")).await;
    let failed = "data: {\"error\": {\"message\": \"out of memory\"}}\n\n";
    check(failed, Err("bad answer: the stream broke off: out of memory")).await;
}

#[tokio::test]
async fn messages_of_refusals_are_found_and_kept_short() {
    let check = |body: &'static str, expected: &'static str| async move {
        let target = serve(move |_, _| async move { respond(StatusCode::FORBIDDEN, "text/plain", body) }).await;
        let error = bob().query(&target, Via::Btauth, &prompt("x"), &QueryOptions::default()).await.unwrap_err();
        let DendriteError::Refused { code, message, .. } = error else { panic!("{error:?}") };
        assert_eq!((code, message.as_str()), (StatusCode::FORBIDDEN, expected));
    };
    check(r#"{"message": "a"}"#, "a").await;
    check(r#"{"error": {"message": "b"}}"#, "b").await;
    check(r#"{"detail": "c"}"#, "c").await;
    check("go away\u{1b}[2J", "go away[2J").await;
    check("", "").await;
    let target = serve(|_, _| async { respond(StatusCode::FORBIDDEN, "text/plain", "x".repeat(9000)) }).await;
    let error = bob().query(&target, Via::Btauth, &prompt("x"), &QueryOptions::default()).await.unwrap_err();
    assert!(error.to_string().len() < 600);
}

#[test]
fn addresses_are_checked() {
    for address in ["127.0.0.1:8091", "[::1]:8091", "miner.example:80"] {
        let target = Target::new(address, alice()).unwrap();
        assert_eq!(target.address(), address);
    }
    assert_eq!(Target::new("[::1]:8091", alice()).unwrap().port(), 8091);
    for address in ["", "127.0.0.1", ":8091", "http://x:1", "x:1/y", "user@x:1", "x:99999", "a b:1"] {
        assert!(matches!(Target::new(address, alice()), Err(DendriteError::BadAddress { .. })), "{address}");
    }
    let address: SocketAddr = "[::1]:5".parse().unwrap();
    assert_eq!(Target::from((address, alice())).address(), "[::1]:5");
}

#[test]
fn ways_are_named() {
    for via in Via::ALL {
        assert_eq!(via.to_string().to_uppercase().parse::<Via>(), Ok(via));
    }
    assert!("carrier pigeon".parse::<Via>().is_err());
}

#[test]
fn nonces_grow_in_all_threads() {
    for next in [next_nonce, next_counter] {
        let threads: Vec<_> =
            (0..4).map(|_| std::thread::spawn(move || (0..1000).map(|_| next()).collect::<Vec<_>>())).collect();
        let mut all: Vec<i64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[1] - pair[0] >= 1000));
    }
    let hour = 3_600_000_000_000;
    assert!((0..hour).contains(&next_counter()), "gRPC servers refuse the time of day");
}

#[test]
fn debug_shows_no_completion() {
    let reply = DendriteReply {
        text: "secret".into(),
        status_code: 200,
        status_message: String::new(),
        elapsed: Duration::ZERO,
        first_byte: Duration::ZERO,
        n_pieces: 1,
        headers: HeaderMap::new(),
        model: None,
        finish_reason: None,
        logprobs: Vec::new(),
    };
    assert!(!format!("{reply:?}").contains("secret"));
}
