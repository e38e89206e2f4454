use std::time::{Duration, Instant};

use futures_util::StreamExt;
use idiolect_backend::{
    Backend, BackendExt, Completion, Embedder, Error, ErrorKind, Event, FinishReason, Health, Message, Request,
    ScoreRequest,
};
use idiolect_backend_openai::{Candidates, Flavour, KeySource, OpenAiBackend, OpenAiEmbedder, OpenAiEmbedderConfig};
use serde_json::json;

use crate::server::{Act, END, Loopback, head, header, piece};

fn request() -> Request {
    Request::new(vec![Message::user("one two three")])
}

async fn backend(script: impl IntoIterator<Item = Act>) -> (Loopback, OpenAiBackend) {
    let server = Loopback::start(script).await;
    let backend = OpenAiBackend::new(server.config(Flavour::OpenAi)).unwrap();
    (server, backend)
}

/// Asks once as a stream and returns what came of it, with the number of requests that the server saw.
async fn streamed(script: impl IntoIterator<Item = Act>) -> (Result<Completion, Error>, usize) {
    let (server, backend) = backend(script).await;
    (backend.stream_and_collect(request()).await, server.n_requests())
}

async fn whole(script: impl IntoIterator<Item = Act>) -> (Result<Completion, Error>, usize) {
    let (server, backend) = backend(script).await;
    (backend.complete(request()).await, server.n_requests())
}

fn text(result: &Result<Completion, Error>) -> &str {
    &result.as_ref().unwrap().candidates[0].text
}

fn kind(result: &Result<Completion, Error>) -> ErrorKind {
    result.as_ref().unwrap_err().kind()
}

#[tokio::test]
async fn comes_back_after_429_when_it_was_told_to() {
    let limited = Act::status(429, "retry-after: 0.2\r\n", r#"{"error":{"code":"rate_limit_exceeded"}}"#);
    let start = Instant::now();
    let (result, n) = whole([limited.clone(), Act::Answer]).await;
    assert_eq!((text(&result), n), ("one two three", 2));
    assert!(start.elapsed() >= Duration::from_millis(200));
    let (result, n) = streamed([limited.clone(), limited.clone(), Act::Answer]).await;
    assert_eq!((text(&result), n), ("one two three", 3));
    // Tries end, and the error says when to come back.
    let (result, n) = whole([limited.clone(), limited.clone(), limited]).await;
    assert!(
        matches!(&result, Err(Error::Overloaded { retry_after: Some(wait), .. }) if wait.as_millis() == 200),
        "{result:?}"
    );
    assert_eq!(n, 3);
    let (result, n) = whole([Act::status(429, "retry-after: 3600\r\n", "{}")]).await;
    assert_eq!((kind(&result), n), (ErrorKind::Overloaded, 1), "an hour is not waited for");
}

#[tokio::test]
async fn the_deadline_bounds_the_tries() {
    let (server, backend) = backend([Act::status(429, "retry-after: 5\r\n", "{}")]).await;
    let start = Instant::now();
    let result = backend.complete_within(Duration::from_secs(3), request()).await;
    assert_eq!((kind(&result), server.n_requests()), (ErrorKind::Overloaded, 1));
    assert!(start.elapsed() < Duration::from_secs(2), "no pause that outlasts the deadline");
}

#[tokio::test]
async fn statuses_mean_what_they_should() {
    for (status, body, expected, n_expected) in [
        (500, "{}", ErrorKind::Unavailable, 3),
        (502, "<html>bad gateway</html>", ErrorKind::Unavailable, 3),
        (503, "{}", ErrorKind::Overloaded, 3),
        (408, "{}", ErrorKind::Unavailable, 3),
        (401, r#"{"error":{"message":"no"}}"#, ErrorKind::Unauthorized, 1),
        (403, "{}", ErrorKind::Unauthorized, 1),
        (402, "{}", ErrorKind::LimitReached, 1),
        (429, r#"{"error":{"code":"insufficient_quota"}}"#, ErrorKind::LimitReached, 1),
        (404, r#"{"error":"model 'x' not found"}"#, ErrorKind::Unavailable, 1),
        (400, r#"{"error":{"type":"invalid_request_error"}}"#, ErrorKind::Unsupported, 1),
        (301, "", ErrorKind::Unavailable, 1),
    ] {
        let script = || std::iter::repeat_n(Act::status(status, "location: http://127.0.0.1:9/\r\n", body), 3);
        let (result, n) = whole(script()).await;
        assert_eq!((kind(&result), n), (expected, n_expected), "{status} {result:?}");
        let (result, n) = streamed(script()).await;
        assert_eq!((kind(&result), n), (expected, n_expected), "{status} streamed {result:?}");
    }
    let (result, _) = whole([Act::status(500, "", "{}"), Act::status(500, "", "{}"), Act::Answer]).await;
    assert_eq!(text(&result), "one two three");
}

#[tokio::test]
async fn a_broken_connection_is_tried_again() {
    let (result, n) = whole([Act::Reset, Act::Answer]).await;
    assert_eq!((text(&result), n), ("one two three", 2));
    let (result, n) = streamed([Act::Reset, Act::Reset, Act::Reset]).await;
    assert_eq!((kind(&result), n), (ErrorKind::Unavailable, 3));
    // The server had read the request: it may send a bill.
    assert!(matches!(result, Err(Error::Unanswered { .. })), "{result:?}");
    // Nobody listens there.
    let mut config = Loopback::start([]).await.config(Flavour::OpenAi);
    config.server.base_url = "http://127.0.0.1:9/v1".to_owned();
    config.server.retries.num_retries = 0;
    let error = OpenAiBackend::new(config).unwrap().ask("x").await.unwrap_err().to_string();
    assert_eq!(error, "openai is unavailable: no connection: connection refused");
}

#[tokio::test]
async fn tls_needs_no_provider_installed_by_the_program() {
    let server = Loopback::start([]).await;
    let mut config = server.config(Flavour::OpenAi);
    config.server.base_url = config.server.base_url.replace("http://", "https://");
    config.server.timeouts.connect = Duration::from_millis(500);
    config.server.retries.num_retries = 0;
    match OpenAiBackend::new(config) {
        // The server does not speak TLS.
        Ok(backend) => assert_eq!(backend.ask("x").await.unwrap_err().kind(), ErrorKind::Unavailable),
        // A machine without certificates says so instead of panicking.
        Err(error) => assert_eq!(error.to_string(), "http client cannot be set up"),
    }
}

#[tokio::test]
async fn nonsense_is_not_tried_again() {
    for (kind_of, body) in [
        ("application/json", "{\"choices\": [{\"mess"),
        ("application/json", "[]"),
        ("application/json", "{\"choices\": \"none\"}"),
        ("application/json", "{\"choices\": []}"),
        ("text/html", "<html>login</html>"),
        ("text/event-stream", "data: {}\n\n"),
    ] {
        let (result, n) = whole([Act::body(kind_of, body)]).await;
        assert_eq!((kind(&result), n), (ErrorKind::Protocol, 1), "{kind_of} {body} {result:?}");
    }
    for (kind_of, body) in [
        ("text/html", "<html>login</html>"),
        ("text/event-stream", "data: {\"choices\": [{\"del\n\n"),
        ("text/event-stream", "data: <html>\n\n"),
        ("text/event-stream", "data: [DONE]\n\n"),
        ("text/event-stream", ""),
        ("text/event-stream", "data: {\"choices\": 3}\n\n"),
        ("application/json", "{}"),
    ] {
        let (result, n) = streamed([Act::body(kind_of, body)]).await;
        assert_eq!((kind(&result), n), (ErrorKind::Protocol, 1), "{kind_of} {body} {result:?}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_stream_is_understood() {
    let body = json!({"choices": [{"index": 0, "message": {"content": "all\nat once"}, "finish_reason": "stop"}]});
    let pretty = serde_json::to_string_pretty(&body).unwrap();
    let (result, _) = streamed([Act::body("application/json; charset=utf-8", pretty)]).await;
    assert_eq!(text(&result), "all\nat once");
}

#[tokio::test]
async fn a_stream_that_ends_early_is_no_answer() {
    let (result, n) = streamed([Act::events(&[&piece("so"), &piece(" far")])]).await;
    assert_eq!((kind(&result), n), (ErrorKind::Protocol, 1));
    // The end of the candidate counts, not the last word of the protocol.
    let (result, _) = streamed([Act::events(&[&piece("so far"), END])]).await;
    let completion = result.unwrap();
    assert_eq!((completion.candidates[0].text.as_str(), completion.candidates[0].n_tokens), ("so far", 1));
    assert_eq!((completion.usage.prompt_tokens, completion.usage.completion_tokens), (0, 1));
}

#[tokio::test]
async fn a_stream_that_breaks_says_so_after_what_it_gave() {
    // Chunked, and cut off within a chunk.
    let event = format!("data: {}\n\n", piece("so far"));
    let chunked = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{event}\r\n99\r\nda",
        event.len()
    );
    let (_, backend) = backend([Act::Send(vec![(0, chunked.into_bytes())])]).await;
    let mut stream = backend.stream(request()).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(Event::Delta { text, .. })) if text == "so far"));
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn an_error_within_a_stream_is_an_error() {
    let error = r#"{"error":{"code":502,"message":"upstream gone"}}"#;
    let (result, n) = streamed([Act::events(&[error]), Act::Answer]).await;
    assert_eq!((text(&result), n), ("one two three", 2), "before the first text it is tried again");
    let (result, n) = streamed([Act::events(&[&piece("so"), error])]).await;
    assert_eq!((kind(&result), n), (ErrorKind::Unavailable, 1));
}

#[tokio::test]
async fn a_candidate_that_nobody_asked_for_is_left_out() {
    let answer = |index: u64| {
        let choice = json!({ "index": index, "message": { "content": "so" }, "finish_reason": "stop" });
        Act::body("application/json", json!({ "choices": [choice] }).to_string())
    };
    for index in [1, u64::MAX] {
        let server = Loopback::start([answer(index), answer(index)]).await;
        let mut config = server.config(Flavour::OpenAi);
        config.candidates = Candidates::OneByOne;
        let backend = OpenAiBackend::new(config).unwrap();
        let result = backend.complete(Request { n: 2, ..request() }).await;
        assert_eq!((kind(&result), server.n_requests()), (ErrorKind::Protocol, 2), "{index}");
    }
}

#[tokio::test]
async fn silence_has_an_end() {
    let stalled = || Act::Stall((head("text/event-stream") + &format!("data: {}\n\n", piece("so far"))).into_bytes());
    let server =
        Loopback::start([stalled(), Act::Stall(Vec::new()), Act::Answer, stalled(), Act::Stall(Vec::new())]).await;
    let mut config = server.config(Flavour::OpenAi);
    config.server.timeouts.idle = Duration::from_millis(300);
    config.server.timeouts.first_byte = Duration::from_millis(900);
    let backend = OpenAiBackend::new(config).unwrap();
    let error = backend.stream_and_collect(request()).await.unwrap_err();
    assert_eq!(error.to_string(), "openai did not answer: no answer within 300 ms");
    assert_eq!(backend.stream_and_collect(request()).await.unwrap().candidates[0].text, "one two three");
    assert_eq!(server.n_requests(), 3, "slow headers are tried again");

    // With a deadline, what was said until then is the answer.
    let mut config = server.config(Flavour::OpenAi);
    config.prices = None;
    let backend = OpenAiBackend::new(config).unwrap();
    let part = backend.complete_within(Duration::from_millis(1200), request()).await.unwrap();
    assert_eq!(
        (part.candidates[0].text.as_str(), part.candidates[0].finish_reason),
        ("so far", FinishReason::Deadline)
    );
    assert_eq!((part.model.as_str(), part.backend.as_str(), part.usage.prompt_tokens), ("echo", "openai", 0));
    let nothing = backend.complete_within(Duration::from_millis(200), request()).await;
    assert_eq!(kind(&nothing), ErrorKind::DeadlineExceeded);
}

#[tokio::test]
async fn dropping_a_stream_ends_the_request() {
    let (server, backend) =
        backend([Act::Stall((head("text/event-stream") + &format!("data: {}\n\n", piece("x"))).into_bytes())]).await;
    let mut stream = backend.stream(request()).await.unwrap();
    stream.next().await.unwrap().unwrap();
    assert_eq!(server.active(), 1);
    drop(stream);
    let start = Instant::now();
    while server.active() > 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "the request goes on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn characters_split_between_packets_stay_whole() {
    let mut body = head("text/event-stream").into_bytes();
    for text in ["Grüße ", "👋🏽 ", "你好"] {
        body.extend_from_slice(format!("data: {}\r\n\r\n", piece(text)).as_bytes());
    }
    body.extend_from_slice(format!("data: {END}\n\ndata: [DONE]\n\n").as_bytes());
    let pieces = body.chunks(3).map(|piece| (0, piece.to_vec())).collect();
    let (result, _) = streamed([Act::Send(pieces)]).await;
    assert_eq!(text(&result), "Grüße 👋🏽 你好");
}

#[tokio::test]
async fn no_answer_is_read_without_end() {
    let server = Loopback::start([]).await;
    let mut config = server.config(Flavour::OpenAi);
    config.server.max_body_bytes = 10_000;
    let backend = OpenAiBackend::new(config).unwrap();
    let huge = format!("{{\"choices\": [], \"pad\": \"{}\"}}", "x".repeat(20_000));
    server.then(Act::body("application/json", &huge));
    let error = backend.complete(request()).await.unwrap_err().to_string();
    assert_eq!(error, "openai sent an answer that could not be read: an answer of more than 10000 bytes");
    server.then(Act::events(&[&piece("a"), &huge]));
    let error = backend.stream_and_collect(request()).await.unwrap_err().to_string();
    assert_eq!(error, "openai sent an answer that could not be read: an answer is too long");
    // An error's body of any size costs no more than a look at its beginning.
    server.then(Act::status(400, "", &format!("{{\"error\": \"{}\"}}", "x".repeat(5 << 20))));
    assert_eq!(backend.complete(request()).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_server_that_ignores_n_is_asked_for_one_at_a_time() {
    let server = Loopback::with([], Duration::ZERO, true).await;
    let backend = OpenAiBackend::new(server.config(Flavour::OpenAi)).unwrap();
    let mut three = request();
    three.n = 3;
    let indexes = |c: &Completion| c.candidates.iter().map(|c| c.index).collect::<Vec<_>>();
    let first = backend.complete(three.clone()).await.unwrap();
    assert_eq!((indexes(&first), server.n_requests()), (vec![0, 1, 2], 3));
    assert_eq!((first.usage.prompt_tokens, first.usage.completion_tokens), (9, 9), "each request is billed");
    let second = backend.stream_and_collect(three.clone()).await.unwrap();
    assert_eq!((indexes(&second), server.n_requests()), (vec![0, 1, 2], 6));
    let with_n = server.seen().iter().filter(|seen| seen.body.get("n").is_some()).count();
    assert_eq!(with_n, 1, "n is not sent again");

    let mut config = server.config(Flavour::OpenAi);
    config.candidates = Candidates::AtOnce;
    let insisting = OpenAiBackend::new(config).unwrap();
    assert_eq!(indexes(&insisting.complete(three).await.unwrap()), [0]);
}

#[tokio::test]
async fn a_server_that_refuses_n_is_asked_for_one_at_a_time() {
    let (server, backend) = backend([Act::status(400, "", r#"{"error":{"type":"invalid_request_error"}}"#)]).await;
    let mut two = request();
    two.n = 2;
    two.sampling.seed = Some(41);
    assert_eq!(backend.complete(two).await.unwrap().candidates.len(), 2);
    let mut seeds: Vec<_> = server.seen().iter().skip(1).map(|seen| seen.body["seed"].as_u64().unwrap()).collect();
    seeds.sort_unstable();
    assert_eq!(seeds, [41, 42]);
}

#[tokio::test]
async fn one_broken_candidate_does_not_spoil_the_others() {
    let server = Loopback::start([Act::events(&[&piece("so far")]), Act::Answer]).await;
    let mut config = server.config(Flavour::Ollama);
    config.server.max_parallel_requests = 1;
    let backend = OpenAiBackend::new(config).unwrap();
    let mut two = request();
    two.n = 2;
    two.deadline = Some(Instant::now() + Duration::from_secs(30));
    let completion = backend.complete(two).await.unwrap();
    assert_eq!(completion.candidates.len(), 1);
    assert_eq!(completion.candidates[0].text, "one two three");
    assert_eq!(completion.usage.prompt_tokens, 0, "what the broken one cost is not known");
}

#[tokio::test]
async fn one_broken_candidate_does_not_spoil_a_stream() {
    let shown = |completion: Completion| {
        let candidates = completion.candidates.into_iter();
        candidates.map(|c| (c.text, c.finish_reason)).collect::<Vec<_>>()
    };
    let server = Loopback::start([Act::events(&[&piece("so far")]), Act::Answer]).await;
    let mut config = server.config(Flavour::Ollama);
    config.server.max_parallel_requests = 1;
    let backend = OpenAiBackend::new(config).unwrap();
    let mut two = request();
    two.n = 2;
    let texts = shown(backend.stream_and_collect(two.clone()).await.unwrap());
    assert_eq!(
        texts,
        [("so far".to_owned(), FinishReason::Deadline), ("one two three".to_owned(), FinishReason::Stop)]
    );

    // All in one answer, of which a part is whole when it breaks off, or when the time is over.
    let first = r#"{"choices":[{"index":0,"delta":{"content":"whole"},"finish_reason":"stop"}]}"#;
    let second = r#"{"choices":[{"index":1,"delta":{"content":"so far"}}]}"#;
    let error = r#"{"error":{"code":502,"message":"upstream gone"}}"#;
    let stalled = head("text/event-stream") + &format!("data: {first}\n\ndata: {second}\n\n");
    for act in [Act::events(&[first, second]), Act::events(&[first, second, error]), Act::Stall(stalled.into_bytes())] {
        let server = Loopback::start([act]).await;
        let backend = OpenAiBackend::new(server.config(Flavour::OpenAi)).unwrap();
        two.deadline = Some(Instant::now() + Duration::from_millis(500));
        let texts = shown(backend.stream_and_collect(two.clone()).await.unwrap());
        assert_eq!(texts, [("whole".to_owned(), FinishReason::Stop), ("so far".to_owned(), FinishReason::Deadline)]);
    }
}

#[tokio::test]
async fn stop_texts_hold_even_where_the_server_runs_over_them() {
    let (server, backend) =
        backend([Act::events(&[&piece("red ST"), &piece("OP green"), &piece(" blue"), END, "[DONE]"])]).await;
    let mut r = request();
    r.sampling.stop = ["v", "w", "x", "y", "STOP"].map(str::to_owned).to_vec();
    let completion = backend.stream_and_collect(r).await.unwrap();
    assert_eq!(
        (completion.candidates[0].text.as_str(), completion.candidates[0].finish_reason),
        ("red ", FinishReason::Stop)
    );
    assert_eq!(server.seen()[0].body["stop"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn headers_and_fields_are_as_configured() {
    let server = Loopback::start([]).await;
    let mut config = server.config(Flavour::Vllm);
    config.server.key = KeySource::Value("sk-test".to_owned().into());
    config.server.organization = Some("org-1".to_owned());
    config.server.headers = vec![("X-Title".to_owned(), "miner".to_owned())];
    config.extra = json!({"user": "u1"}).as_object().unwrap().clone();
    config.context_tokens = Some(4096);
    let backend = OpenAiBackend::new(config).unwrap();
    let mut r = request();
    r.sampling.top_k = Some(40);
    backend.stream_and_collect(r).await.unwrap();
    let seen = server.seen().remove(0);
    let get = |name| header(&seen.head, name);
    assert_eq!(get("authorization").as_deref(), Some("Bearer sk-test"));
    assert_eq!((get("openai-organization").as_deref(), get("x-title").as_deref()), (Some("org-1"), Some("miner")));
    assert_eq!((seen.path.as_str(), get("accept").as_deref()), ("/v1/chat/completions", Some("text/event-stream")));
    assert_eq!((&seen.body["top_k"], &seen.body["user"]), (&json!(40), &json!("u1")));
    assert_eq!(seen.body["stream_options"], json!({"include_usage": true}));
    assert_eq!(backend.capabilities().context_tokens, Some(4096));
}

#[tokio::test]
async fn a_prompt_too_long_is_named_so() {
    let body = r#"{"error":{"message":"This model's maximum context length is 4096 tokens. However, your prompt has 9000 tokens.","code":"context_length_exceeded"}}"#;
    let (result, n) = whole([Act::status(400, "", body)]).await;
    assert!(matches!(result, Err(Error::ContextTooLong { prompt_tokens: 9000, context_tokens: 4096 })), "{result:?}");
    assert_eq!(n, 1);
}

#[tokio::test]
async fn health_is_asked_for_and_remembered() {
    let (server, backend) = backend([]).await;
    assert_eq!((backend.health().await, backend.health().await), (Health::Ready, Health::Ready));
    assert_eq!((server.n_requests(), server.seen()[0].path.as_str()), (1, "/v1/models"));

    let server = Loopback::start([Act::status(401, "", "{}"), Act::status(404, "", "{}")]).await;
    let mut config = server.config(Flavour::OpenAi);
    config.server.health_ttl = Duration::ZERO;
    let backend = OpenAiBackend::new(config).unwrap();
    assert_eq!(backend.health().await, Health::Unavailable("status 401".to_owned()));
    assert_eq!(backend.health().await, Health::Ready, "no list of models, but a server");
}

#[tokio::test]
async fn scoring_needs_a_server_that_can() {
    let (server, backend) = backend([]).await;
    let error = backend.score(ScoreRequest::new(request().messages, "x")).await.unwrap_err();
    assert_eq!((error.to_string().as_str(), server.n_requests()), ("openai does not support scoring", 0));
    let vllm = Loopback::start([Act::Answer, Act::body("application/json", "{\"choices\":[]}")]).await;
    let backend = OpenAiBackend::new(vllm.config(Flavour::Vllm)).unwrap();
    assert_eq!(
        backend.score(ScoreRequest::new(request().messages, "x")).await.unwrap_err().kind(),
        ErrorKind::Protocol
    );
    assert!(backend.score(ScoreRequest::new(request().messages, "")).await.unwrap().tokens.is_empty());
}

#[tokio::test]
async fn embeddings_of_another_shape_are_refused() {
    let server = Loopback::start([
        Act::body("application/json", r#"{"data":[{"index":0,"embedding":[1.0,0.0]}]}"#),
        Act::body("application/json", r#"{"data":[]}"#),
        Act::body("application/json", r#"{"data":[{"embedding":"AAAA"}]}"#),
        Act::status(500, "", "{}"),
    ])
    .await;
    let mut config = OpenAiEmbedderConfig::new("hash", 32);
    config.server = server.server_config();
    let embedder = OpenAiEmbedder::new(config).unwrap();
    for part in ["2 dimensions, expected 32", "0 embeddings for 1 texts", "another shape"] {
        let error = embedder.embed(&["a".to_owned()]).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(embedder.embed(&["a".to_owned(), " ".to_owned()]).await.unwrap()[1], vec![0.0; 32]);
    assert_eq!(server.n_requests(), 5);
}
