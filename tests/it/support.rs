//! A miner in this process, clients for it, and an OpenAI-shaped server to put behind it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use idiolect_miner::app::Miner;
use idiolect_miner::config::{Config, Sources, load};
use idiolect_models::NoProgress;
use idiolect_protocol::btauth::{self, SignedParts};
use idiolect_protocol::dendrite::{Dendrite, DendriteError, DendriteReply, QueryOptions, Target, Via};
use idiolect_protocol::{Keypair, Message, Prompt, Role};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Returns the process's variables: where models and package indexes are.
pub(crate) fn env() -> BTreeMap<String, String> {
    idiolect_miner::cli::process_env()
}

/// Returns a configuration of free ports and the echo backend, and what `given` changes.
pub(crate) fn config(data_dir: &Path, given: &[(&str, &str)]) -> Config {
    let mut values = BTreeMap::from([
        ("backend", "echo"),
        ("uniqueness.encoder", "off"),
        ("candidates.count", "4"),
        ("mutation.recipes", "2"),
        ("axon.port", "0"),
        ("metrics.addr", "off"),
        ("policy.allow", "any"),
    ]);
    values.extend(given.iter().copied());
    let data_dir = data_dir.display().to_string();
    values.insert("data_dir", &data_dir);
    let flags = values.into_iter().map(|(k, v)| (k.to_owned(), k.to_owned(), vec![v.to_owned()])).collect();
    load(&Sources { flags, ..Sources::default() }).unwrap_or_else(|e| panic!("{e}")).config
}

/// A miner, its data directory, and a validator that asks it.
pub(crate) struct Node {
    pub(crate) miner: Miner,
    pub(crate) validator: Dendrite,
    pub(crate) dir: TempDir,
}

impl Node {
    /// Starts a miner in a new data directory.
    pub(crate) async fn start(given: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let config = config(dir.path(), given);
        Self::with(dir, &config).await
    }

    /// Starts a miner with this configuration.
    pub(crate) async fn with(dir: TempDir, config: &Config) -> Self {
        let miner = Miner::start(config, &env(), &NoProgress).await.unwrap_or_else(|e| panic!("{e:#}"));
        Self { miner, validator: Dendrite::new(Keypair::generate()), dir }
    }

    pub(crate) fn target(&self) -> Target {
        Target::from((self.miner.address(), self.miner.hotkey()))
    }

    /// Asks as the validator.
    pub(crate) async fn ask(&self, via: Via, question: &str) -> Result<DendriteReply, DendriteError> {
        self.ask_with(via, &prompt(question), &QueryOptions::default()).await
    }

    pub(crate) async fn ask_with(
        &self,
        via: Via,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<DendriteReply, DendriteError> {
        self.validator.query(&self.target(), via, prompt, options).await
    }

    /// Stops the miner and gives its data directory back.
    pub(crate) async fn stop(self) -> TempDir {
        self.miner.stop().await.unwrap_or_else(|e| panic!("{e:#}"));
        self.dir
    }
}

pub(crate) fn prompt(question: &str) -> Prompt {
    Prompt::new(vec![Message::new(Role::User, question)]).expect("a prompt")
}

/// Sends a request as it stands and returns status and body.
pub(crate) async fn send_raw(address: SocketAddr, request: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(request).await.expect("written");
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    read.expect("an answer in time").expect("readable");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    (status, body)
}

/// Sends a GET request.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    send_raw(address, format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await
}

/// Writes a signed HTTP/1.1 request down, so that it can be changed or sent twice.
pub(crate) fn signed(node: &Node, via: Via, question: &str) -> Vec<u8> {
    let request = node
        .validator
        .signed_request(&node.target(), via, &prompt(question), &QueryOptions::default())
        .expect("a request");
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut text =
        format!("{} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", head.method, node.miner.address());
    for (name, value) in &head.headers {
        if !["host", "connection", "content-length"].contains(&name.as_str()) {
            text.push_str(&format!("{name}: {}\r\n", value.to_str().expect("text")));
        }
    }
    text.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    [text.as_bytes(), &body].concat()
}

/// Writes a chat request with this body down, signed as it stands.
pub(crate) fn signed_chat(node: &Node, body: &[u8]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos();
    let parts = SignedParts { method: "POST", target: "/v1/chat/completions", body };
    let headers =
        btauth::sign(&Keypair::generate(), Some(&node.miner.hotkey()), parts, i128::try_from(now).expect("this age"));
    let mut head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", node.miner.address());
    for (name, value) in &headers {
        head.push_str(&format!("{name}: {}\r\n", value.to_str().expect("text")));
    }
    head.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len()));
    [head.as_bytes(), body].concat()
}

/// A server that speaks enough of the OpenAI API, after a pause, and keeps what it was asked.
pub(crate) struct FakeOpenAi {
    pub(crate) url: String,
    bodies: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

impl FakeOpenAi {
    pub(crate) async fn start(pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let bodies = Arc::<Mutex<Vec<Value>>>::default();
        let kept = Arc::clone(&bodies);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, pause, Arc::clone(&kept)));
            }
        });
        Self { url, bodies, task }
    }

    /// Returns how many completions it was asked for.
    pub(crate) fn n_asked(&self) -> usize {
        self.bodies.lock().expect("unpoisoned").len()
    }

    /// Returns the bodies of the requests for completions.
    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.bodies.lock().expect("unpoisoned").clone()
    }
}

impl Drop for FakeOpenAi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn converse(mut stream: TcpStream, pause: Duration, kept: Arc<Mutex<Vec<Value>>>) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let head_end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&buffer[..head_end]).to_lowercase();
        let length =
            head.lines().find_map(|l| l.strip_prefix("content-length: ")?.trim().parse::<usize>().ok()).unwrap_or(0);
        while buffer.len() < head_end + length {
            if stream.read_buf(&mut buffer).await.ok()? == 0 {
                return None;
            }
        }
        let body: Value = serde_json::from_slice(&buffer[head_end..head_end + length]).unwrap_or_default();
        buffer.drain(..head_end + length);
        let (kind, answer) = if head.starts_with("get ") {
            ("application/json", json!({ "object": "list", "data": [{ "id": "fake", "object": "model" }] }).to_string())
        } else {
            kept.lock().expect("unpoisoned").push(body.clone());
            tokio::time::sleep(pause).await;
            completion(&body)
        };
        let text =
            format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{answer}", answer.len());
        stream.write_all(text.as_bytes()).await.ok()?;
    }
}

fn completion(body: &Value) -> (&'static str, String) {
    let n = body["n"].as_u64().unwrap_or(1);
    let usage = json!({ "prompt_tokens": 9, "completion_tokens": 12 * n, "total_tokens": 9 + 12 * n });
    let said = |i: u64| format!("Reply number {i} of the far server: it knows what it says at 10:{i}0.");
    if body["stream"].as_bool() != Some(true) {
        let choices: Vec<Value> = (0..n)
            .map(|i| json!({ "index": i, "finish_reason": "stop", "message": { "role": "assistant", "content": said(i) } }))
            .collect();
        return ("application/json", json!({ "id": "c", "object": "chat.completion", "created": 1, "model": "fake", "choices": choices, "usage": usage }).to_string());
    }
    let mut events = String::new();
    let mut event = |choices: Value, usage: Value| {
        let chunk = json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "fake", "choices": choices, "usage": usage });
        events.push_str(&format!("data: {chunk}\n\n"));
    };
    for i in 0..n {
        event(
            json!([{ "index": i, "delta": { "role": "assistant", "content": said(i) }, "finish_reason": null }]),
            Value::Null,
        );
        event(json!([{ "index": i, "delta": {}, "finish_reason": "stop" }]), Value::Null);
    }
    event(json!([]), usage);
    events.push_str("data: [DONE]\n\n");
    ("text/event-stream", events)
}
