//! A small server that speaks the API: by default it answers with an echo, and for as many requests as it has a script
//! it does what the script says.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use idiolect_backend::{
    Backend, Echo, Embedder, Event, FinishReason, HashEmbedder, Message, Request, Role, ScoreRequest, TokenLogprob,
};
use idiolect_backend_openai::{Flavour, OpenAiConfig, ServerConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with one request.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Sends these bytes, each piece after a pause, and closes.
    Send(Vec<(u64, Vec<u8>)>),
    /// Sends these bytes and then nothing, for ever.
    Stall(Vec<u8>),
    /// Breaks the connection without having read the request.
    Reset,
    /// Answers as it should.
    Answer,
}

impl Act {
    pub(crate) fn status(status: u16, headers: &str, body: &str) -> Self {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{headers}\r\n"
        );
        Self::Send(vec![(0, (head + body).into_bytes())])
    }

    /// A good status with any type and body.
    pub(crate) fn body(kind: &str, body: impl AsRef<[u8]>) -> Self {
        let mut bytes = head(kind).into_bytes();
        bytes.extend_from_slice(body.as_ref());
        Self::Send(vec![(0, bytes)])
    }

    /// A stream of these events; nothing is added to them.
    pub(crate) fn events(events: &[&str]) -> Self {
        Self::body("text/event-stream", events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>())
    }
}

pub(crate) fn head(kind: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n")
}

/// One piece of a streamed answer.
pub(crate) fn piece(text: &str) -> String {
    json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}).to_string()
}

/// The last piece of a candidate.
pub(crate) const END: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) head: String,
    pub(crate) body: Value,
}

#[derive(Debug)]
struct State {
    script: Mutex<VecDeque<Act>>,
    seen: Mutex<Vec<Seen>>,
    active: AtomicUsize,
    echo: Echo,
    ignores_n: bool,
}

/// The server. It ends with the runtime of its test.
#[derive(Clone, Debug)]
pub(crate) struct Loopback {
    address: SocketAddr,
    state: Arc<State>,
}

impl Loopback {
    pub(crate) async fn start(script: impl IntoIterator<Item = Act>) -> Self {
        Self::with(script, Duration::ZERO, false).await
    }

    pub(crate) async fn with(script: impl IntoIterator<Item = Act>, delay: Duration, ignores_n: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            script: Mutex::new(script.into_iter().collect()),
            seen: Mutex::default(),
            active: AtomicUsize::new(0),
            echo: Echo::with_delay(delay),
            ignores_n,
        });
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                tokio::spawn(async move { state.serve(socket).await });
            }
        });
        Self { address, state }
    }

    /// A backend's settings for this server, quick enough for tests.
    pub(crate) fn config(&self, flavour: Flavour) -> OpenAiConfig {
        OpenAiConfig { flavour, server: self.server_config(), ..OpenAiConfig::new("echo") }
    }

    pub(crate) fn server_config(&self) -> ServerConfig {
        let mut server = ServerConfig { base_url: format!("http://{}/v1", self.address), ..ServerConfig::default() };
        server.retries.backoff.first = Duration::from_millis(5);
        server
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub(crate) fn n_requests(&self) -> usize {
        self.seen().len()
    }

    /// Requests that the server still works on.
    pub(crate) fn active(&self) -> usize {
        self.state.active.load(Ordering::SeqCst)
    }

    pub(crate) fn then(&self, act: Act) {
        self.state.script.lock().unwrap().push_back(act);
    }
}

struct Active<'a>(&'a AtomicUsize);

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl State {
    async fn serve(&self, mut socket: TcpStream) {
        let Some((head, mut body)) = read_head(&mut socket).await else { return };
        let act = self.script.lock().unwrap().pop_front().unwrap_or(Act::Answer);
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        if matches!(act, Act::Reset) {
            self.seen.lock().unwrap().push(Seen { path, head, body: Value::Null });
            return; // Unread bytes make the kernel reset the connection.
        }
        let length = header(&head, "content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        while body.len() < length {
            let mut more = [0; 4096];
            match socket.read(&mut more).await {
                Ok(n) if n > 0 => body.extend_from_slice(&more[..n]),
                _ => return,
            }
        }
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        self.seen.lock().unwrap().push(Seen { path: path.clone(), head, body: body.clone() });
        self.active.fetch_add(1, Ordering::SeqCst);
        let _active = Active(&self.active);
        let (mut reader, mut writer) = socket.split();
        let work = async {
            match act {
                Act::Send(pieces) => {
                    for (pause_ms, bytes) in pieces {
                        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                        writer.write_all(&bytes).await?;
                        writer.flush().await?;
                    }
                }
                Act::Stall(bytes) => {
                    writer.write_all(&bytes).await?;
                    std::future::pending::<()>().await;
                }
                Act::Reset => {}
                Act::Answer => self.answer(&path, &body, &mut writer).await?,
            }
            writer.shutdown().await
        };
        // The client is gone when there is nothing more to read: its work ends there.
        let mut rest = [0; 64];
        tokio::select! {
            _ = work => {}
            _ = reader.read(&mut rest) => {}
        }
    }

    async fn answer(&self, path: &str, body: &Value, out: &mut (impl AsyncWriteExt + Unpin)) -> std::io::Result<()> {
        match path {
            "/v1/chat/completions" if body["stream"] == true => self.stream(body, out).await,
            "/v1/chat/completions" => json_answer(out, &self.complete(body).await).await,
            "/v1/embeddings" => json_answer(out, &embeddings(body).await).await,
            "/v1/models" => json_answer(out, &json!({"object": "list", "data": [{"id": "echo"}]})).await,
            _ => out.write_all(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n").await,
        }
    }

    async fn complete(&self, body: &Value) -> Value {
        if body.get("prompt_logprobs").is_some() {
            return self.score(body).await;
        }
        let answer = self.echo.complete(self.request(body)).await.expect("an echo");
        let choices: Vec<Value> = (answer.candidates.iter())
            .map(|c| {
                json!({
                    "index": c.index,
                    "message": {"role": "assistant", "content": c.text},
                    "finish_reason": reason(c.finish_reason),
                    "logprobs": c.logprobs.as_ref().map(|tokens| logprobs(tokens)),
                })
            })
            .collect();
        let usage =
            json!({"prompt_tokens": answer.usage.prompt_tokens, "completion_tokens": answer.usage.completion_tokens});
        json!({"id": "x", "object": "chat.completion", "model": answer.model, "choices": choices, "usage": usage})
    }

    async fn stream(&self, body: &Value, out: &mut (impl AsyncWriteExt + Unpin)) -> std::io::Result<()> {
        out.write_all(head("text/event-stream; charset=utf-8").as_bytes()).await?;
        let mut events = self.echo.stream(self.request(body)).await.expect("an echo");
        while let Some(event) = events.next().await {
            let chunk = match event.expect("an echo") {
                Event::Delta { candidate, text, logprobs: tokens } => {
                    let logprobs = (!tokens.is_empty()).then(|| logprobs(&tokens));
                    json!({"choices": [{"index": candidate, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null}]})
                }
                Event::Finished { candidate, reason: r, .. } => {
                    json!({"choices": [{"index": candidate, "delta": {}, "finish_reason": reason(r)}]})
                }
                Event::Done { usage, model, .. } => {
                    let usage =
                        json!({"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens});
                    json!({"choices": [], "model": model, "usage": usage})
                }
            };
            out.write_all(format!("data: {chunk}\n\n").as_bytes()).await?;
            out.flush().await?;
        }
        out.write_all(b"data: [DONE]\n\n").await
    }

    async fn score(&self, body: &Value) -> Value {
        let mut messages = messages(body);
        let completion = messages.pop().expect("a completion").content;
        let n_before: usize = messages.iter().map(|m| m.content.split_whitespace().count()).sum();
        let score = self.echo.score(ScoreRequest::new(messages, completion)).await.expect("a score");
        let mut rows = vec![Value::Null; n_before];
        for (token, id) in score.tokens.iter().zip(&score.token_ids) {
            let row = [(id.to_string(), json!({"logprob": token.logprob, "rank": 1, "decoded_token": token.token}))];
            rows.push(Value::Object(row.into_iter().collect()));
        }
        json!({"choices": [], "prompt_logprobs": rows})
    }

    fn request(&self, body: &Value) -> Request {
        let mut request = Request::new(messages(body));
        request.n = if self.ignores_n { 1 } else { body["n"].as_u64().unwrap_or(1) as usize };
        let length = body.get("max_tokens").or_else(|| body.get("max_completion_tokens"));
        request.sampling.max_tokens = length.and_then(Value::as_u64).unwrap_or(100) as u32;
        request.sampling.min_tokens = body.get("min_tokens").and_then(Value::as_u64).map(|n| n as u32);
        request.sampling.seed = body["seed"].as_u64();
        let stops = body["stop"].as_array().cloned().unwrap_or_default();
        request.sampling.stop = stops.iter().filter_map(|s| s.as_str().map(str::to_owned)).collect();
        if body["logprobs"] == true {
            request.sampling.logprobs = Some(body["top_logprobs"].as_u64().unwrap_or(0) as u8);
        }
        request
    }
}

fn messages(body: &Value) -> Vec<Message> {
    let message = |m: &Value| {
        let role: Role = m["role"].as_str().unwrap_or_default().parse().expect("a role");
        Message::new(role, m["content"].as_str().unwrap_or_default())
    };
    body["messages"].as_array().map(|all| all.iter().map(message).collect()).unwrap_or_default()
}

async fn embeddings(body: &Value) -> Value {
    let input: Vec<String> = serde_json::from_value(body["input"].clone()).expect("texts");
    let embeddings = HashEmbedder::new(32).embed(&input).await.expect("embeddings");
    // Longer than unit length, and in another order than asked.
    let row = |(index, e): (usize, &Vec<f32>)| json!({"index": index, "embedding": e.iter().map(|v| v * 3.0).collect::<Vec<_>>()});
    let rows: Vec<Value> = embeddings.iter().enumerate().map(row).rev().collect();
    json!({"object": "list", "data": rows})
}

fn reason(reason: FinishReason) -> &'static str {
    if reason == FinishReason::Length { "length" } else { "stop" }
}

fn logprobs(tokens: &[TokenLogprob]) -> Value {
    let token = |t: &TokenLogprob| {
        let top: Vec<_> = t.top.iter().map(|top| json!({"token": top.token, "logprob": top.logprob})).collect();
        json!({"token": t.token, "logprob": t.logprob, "bytes": null, "top_logprobs": top})
    };
    json!({"content": tokens.iter().map(token).collect::<Vec<_>>()})
}

async fn json_answer(out: &mut (impl AsyncWriteExt + Unpin), value: &Value) -> std::io::Result<()> {
    let body = value.to_string();
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    out.write_all((head + &body).as_bytes()).await
}

/// Reads a request's head, and what came of the body with it.
async fn read_head(socket: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            return Some((String::from_utf8_lossy(&bytes).into_owned(), body));
        }
        // One byte at a time: what is left unread decides whether a close is a reset.
        let byte = socket.read_u8().await.ok()?;
        bytes.push(byte);
    }
}

pub(crate) fn header(head: &str, name: &str) -> Option<String> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
