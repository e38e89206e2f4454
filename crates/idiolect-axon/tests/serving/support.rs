//! A served axon with a handler that does what the prompt says, and raw clients.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idiolect_axon::policy::{Policy, Rules, StandardPolicy};
use idiolect_axon::{
    AvailabilityMap, Axon, AxonConfig, AxonError, Call, Feedback, Handler, HandlerError, Reply, ReplyLogprob,
};
use idiolect_protocol::body_hash::body_hash;
use idiolect_protocol::{Category, Clock, Hotkey, Keypair, Limits, NonceStore, Verifier};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A clock that tests can set; it runs with the machine's until then.
#[derive(Debug, Default)]
pub(crate) struct TestClock(Mutex<Option<i128>>);

impl TestClock {
    pub(crate) fn set(&self, now_ns: i128) {
        *self.0.lock().unwrap() = Some(now_ns);
    }
}

impl Clock for TestClock {
    fn now_ns(&self) -> i128 {
        self.0.lock().unwrap().unwrap_or_else(now_ns)
    }
}

pub(crate) fn now_ns() -> i128 {
    i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// Answers `echo: role=content | …`, or does what the last message says: `wait MS`, `fail CATEGORY`, `panic`, `say TEXT`,
/// `nothing`.
#[derive(Debug, Default)]
pub(crate) struct Echo {
    pub(crate) calls: Mutex<Vec<Call>>,
    pub(crate) feedback: Mutex<Vec<Feedback>>,
    /// Calls that were dropped before they were answered.
    pub(crate) n_dropped: AtomicUsize,
    pub(crate) n_running: AtomicUsize,
}

struct Running<'e> {
    echo: &'e Echo,
    is_done: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.echo.n_running.fetch_sub(1, Ordering::SeqCst);
        if !self.is_done {
            self.echo.n_dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl Handler for Echo {
    async fn forward(&self, call: Call) -> Result<Reply, HandlerError> {
        self.n_running.fetch_add(1, Ordering::SeqCst);
        let mut running = Running { echo: self, is_done: false };
        self.calls.lock().unwrap().push(call.clone());
        let last = call.prompt.messages().last().unwrap().content.clone();
        let text = match last.split_once(' ') {
            Some(("wait", ms)) => {
                tokio::time::sleep(Duration::from_millis(ms.parse().unwrap())).await;
                "waited".to_owned()
            }
            Some(("fail", category)) => {
                running.is_done = true;
                let category = match category {
                    "overloaded" => Category::Overloaded,
                    "timeout" => Category::Timeout,
                    _ => Category::Internal,
                };
                return Err(HandlerError::new(category, "no model").with_source("secret internals"));
            }
            Some(("say", text)) => text.to_owned(),
            _ if last == "panic" => panic!("as asked"),
            _ if last == "nothing" => {
                running.is_done = true;
                return Ok(Reply::default());
            }
            _ => {
                let turns: Vec<_> =
                    call.prompt.messages().iter().map(|m| format!("{}={}", m.role.as_str(), m.content)).collect();
                format!("echo: {}", turns.join(" | "))
            }
        };
        running.is_done = true;
        let completions = (0..call.n_completions).map(|n| if n == 0 { text.clone() } else { format!("{text} #{n}") });
        let logprobs = call.logprobs.map(|n| {
            let token = |c: char| ReplyLogprob {
                token: c.to_string(),
                logprob: -0.5,
                top: (0..n).map(|i| (c.to_string(), -0.5 - f32::from(i))).collect(),
            };
            text.chars().map(token).collect()
        });
        Ok(Reply { completions: completions.collect(), logprobs, finish_reason: "stop", model: "echo".to_owned() })
    }

    async fn backward(&self, feedback: Feedback) -> Result<(), HandlerError> {
        self.feedback.lock().unwrap().push(feedback);
        Ok(())
    }

    async fn availability(&self, tasks: Vec<String>, models: Vec<String>) -> (AvailabilityMap, AvailabilityMap) {
        let answer = |names: Vec<String>, served: &str| names.into_iter().map(|n| (n.clone(), n == served)).collect();
        (answer(tasks, "QuestionAnsweringTask"), answer(models, "echo"))
    }
}

pub(crate) fn alice() -> Keypair {
    Keypair::from_uri("//Alice").unwrap()
}

pub(crate) fn bob() -> Keypair {
    Keypair::from_uri("//Bob").unwrap()
}

/// What a test may change before it serves.
pub(crate) struct Setup {
    pub(crate) config: AxonConfig,
    pub(crate) limits: Limits,
    pub(crate) policy: Arc<dyn Policy>,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) nonces: Arc<NonceStore>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: AxonConfig { listen: "127.0.0.1:0".parse().unwrap(), ..AxonConfig::default() },
            limits: Limits::default(),
            policy: any(),
            clock: Arc::default(),
            nonces: Arc::new(NonceStore::new(100_000)),
        }
    }
}

/// Everybody but Mallory.
pub(crate) fn any() -> Arc<dyn Policy> {
    let mallory = Keypair::from_uri("//Mallory").unwrap().hotkey();
    policy(Rules { allow_any: true, deny: [mallory].into(), ..Rules::default() })
}

pub(crate) fn policy(rules: Rules) -> Arc<dyn Policy> {
    Arc::new(StandardPolicy::new(alice().hotkey(), rules, None))
}

impl Setup {
    pub(crate) fn config(change: impl FnOnce(&mut AxonConfig)) -> Self {
        let mut setup = Self::default();
        change(&mut setup.config);
        setup
    }

    pub(crate) async fn bind(self) -> Result<(Axon, Arc<Echo>, Arc<TestClock>), AxonError> {
        let verifier = Verifier::new(alice().hotkey(), self.limits, self.clock.clone(), self.nonces);
        let echo = Arc::new(Echo::default());
        let axon = Axon::bind(self.config, verifier, self.policy, echo.clone()).await?.signed_by(Arc::new(alice()));
        Ok((axon, echo, self.clock))
    }

    pub(crate) async fn serve(self) -> Served {
        let (axon, echo, clock) = self.bind().await.unwrap();
        Served::new(axon, echo, clock)
    }
}

/// A running axon. Dropping it drops every connection.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) echo: Arc<Echo>,
    pub(crate) clock: Arc<TestClock>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), AxonError>>,
}

impl Served {
    pub(crate) fn new(axon: Axon, echo: Arc<Echo>, clock: Arc<TestClock>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let address = axon.local_addr();
        let task = tokio::spawn(axon.run(async { drop(stopped.await) }));
        Self { address, echo, clock, stop: Some(stop), task }
    }

    /// Tells it to stop.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Tells it to stop and waits until it did.
    pub(crate) async fn stopped(mut self) {
        self.stop();
        (&mut self.task).await.unwrap().unwrap();
    }

    pub(crate) fn is_running(&self) -> bool {
        !self.task.is_finished()
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request as it is and reads the answer until the connection closes.
    pub(crate) async fn raw(&self, request: impl AsRef<[u8]>) -> HttpAnswer {
        raw_to(self.address, request.as_ref()).await
    }

    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> HttpAnswer {
        self.raw(request("POST", path, headers, body)).await
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends a request as it is and reads the answer until the connection closes.
pub(crate) async fn raw_to(address: SocketAddr, request: &[u8]) -> HttpAnswer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    read_answer(&mut stream).await.expect("the connection closed without an answer")
}

pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: miner\r\nconnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) struct HttpAnswer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The chunks in which a chunked body came.
    pub(crate) chunks: Vec<Vec<u8>>,
}

impl HttpAnswer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }
}

/// Reads all there is until the peer closes, and takes it apart; `None` where nothing came.
pub(crate) async fn read_answer(stream: &mut TcpStream) -> Option<HttpAnswer> {
    let mut bytes = Vec::new();
    // A reset after the answer is as good as an end.
    let reading = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
    assert!(reading.is_ok(), "the connection stays open; so far: {}", String::from_utf8_lossy(&bytes));
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<_> = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let rest = &bytes[end + 4..];
    let is_chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let chunks = if is_chunked { dechunk(rest) } else { Vec::new() };
    let body = if is_chunked { chunks.concat() } else { rest.to_vec() };
    Some(HttpAnswer { status, headers, body, chunks })
}

fn dechunk(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n").expect("a chunk's length");
        let length = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return chunks;
        }
        chunks.push(bytes[end + 2..end + 2 + length].to_vec());
        bytes = &bytes[end + 4 + length..];
    }
}

/// The answer of a unary gRPC call.
#[derive(Debug)]
pub(crate) struct GrpcAnswer {
    pub(crate) status: i32,
    pub(crate) details: String,
    pub(crate) message: Option<Bytes>,
    pub(crate) headers: http::HeaderMap,
}

/// Calls a gRPC method with metadata and message bytes as they are.
pub(crate) async fn grpc(address: SocketAddr, path: &str, metadata: &http::HeaderMap, message: &[u8]) -> GrpcAnswer {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    framed.extend_from_slice(message);
    grpc_framed(address, path, metadata, framed.into()).await
}

pub(crate) async fn grpc_framed(
    address: SocketAddr,
    path: &str,
    metadata: &http::HeaderMap,
    framed: Bytes,
) -> GrpcAnswer {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(framed))
        .unwrap();
    request.headers_mut().extend(metadata.clone());
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let (head, body) = response.into_parts();
    let collected = body.collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let bytes = collected.to_bytes();
    let status_of = |map: &http::HeaderMap| map.get("grpc-status").map(|v| v.to_str().unwrap().parse().unwrap());
    let from = if status_of(&trailers).is_some() { &trailers } else { &head.headers };
    let details = tonic::Status::from_header_map(from).map(|s| s.message().to_owned()).unwrap_or_default();
    connection.abort();
    GrpcAnswer {
        status: status_of(from).expect("a grpc-status"),
        details,
        message: (bytes.len() >= 5).then(|| bytes.slice(5..)),
        headers: head.headers,
    }
}

/// Waits until a condition holds; fails after twenty seconds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    until_async(what, async || condition()).await;
}

/// Waits until what is asked for holds; fails after twenty seconds.
pub(crate) async fn until_async(what: &str, condition: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("still not so after twenty seconds: {what}");
}

/// Counters of a dendrite's monotonic clock, and sessions, that no test shares.
pub(crate) fn grpc_metadata(sender: &Keypair, receiver: &Hotkey) -> http::HeaderMap {
    static N: AtomicUsize = AtomicUsize::new(1);
    let n = N.fetch_add(1, Ordering::SeqCst);
    idiolect_protocol::grpc::sign(sender, receiver, 1_000, &format!("62b764fc-e650-11f1-a3fe-{n:012}"))
}

/// A request of bittensor 10 as its dendrite signs it, to be changed at will before it is sent.
pub(crate) struct SynapseRequest {
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) path: String,
}

impl SynapseRequest {
    /// Asks with messages of a user; `hashed` is what the signature covers.
    pub(crate) fn prompt(name: &str, messages: &[&str]) -> Self {
        let messages: Vec<String> = messages.iter().map(|m| (*m).to_owned()).collect();
        let roles = vec!["user"; messages.len()];
        let body = serde_json::json!({"name": name, "timeout": 12.0, "roles": roles, "messages": messages});
        Self::signed(&bob(), name, &body, &body_hash(&[messages.as_slice()]))
    }

    /// Asks as bittensor 6.9.4 does, with a counter for a nonce.
    pub(crate) fn legacy(name: &str, messages: &[&str], nonce: i128) -> Self {
        let messages: Vec<String> = messages.iter().map(|m| (*m).to_owned()).collect();
        let roles = vec!["user"; messages.len()];
        let body = serde_json::json!({"name": name, "timeout": 12.0, "roles": roles, "messages": messages});
        Self::signed_at(&bob(), name, &body, &body_hash(&[messages.as_slice()]), nonce)
            .header("bt_header_dendrite_version", "694")
    }

    pub(crate) fn signed(sender: &Keypair, name: &str, body: &serde_json::Value, hash: &str) -> Self {
        Self::signed_at(sender, name, body, hash, now_ns())
    }

    pub(crate) fn signed_at(sender: &Keypair, name: &str, body: &serde_json::Value, hash: &str, nonce: i128) -> Self {
        static N: AtomicUsize = AtomicUsize::new(1);
        let session = format!("fea3e5be-e64d-11f1-8d31-{:012}", N.fetch_add(1, Ordering::SeqCst));
        let text = format!("{nonce}.{}.{}.{session}.{hash}", sender.hotkey(), alice().hotkey());
        let hex: String = sender.sign(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
        let headers = [
            ("name", name.to_owned()),
            ("timeout", "12.0".to_owned()),
            ("bt_header_dendrite_version", "10005000".to_owned()),
            ("bt_header_dendrite_nonce", nonce.to_string()),
            ("bt_header_dendrite_uuid", session),
            ("bt_header_dendrite_hotkey", sender.hotkey().to_string()),
            ("bt_header_dendrite_signature", format!("0x{hex}")),
            ("bt_header_input_obj_roles", "W10=".to_owned()),
            ("bt_header_input_obj_messages", "W10=".to_owned()),
            ("computed_body_hash", hash.to_owned()),
            ("content-type", "application/json".to_owned()),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value)).into();
        Self { headers, body: body.to_string(), path: format!("/{name}") }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(n, _)| n != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) async fn send(&self, served: &Served) -> HttpAnswer {
        let headers: Vec<_> = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        served.post(&self.path, &headers, self.body.as_bytes()).await
    }
}

/// A recorded file of `tests/data/vectors`.
pub(crate) fn vectors(name: &str) -> serde_json::Value {
    let path = format!("{}/../../tests/data/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}
