//! Clients that keep their connection: one request after the other, or at a given pace.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use idiolect_protocol::body_hash::body_hash;
use idiolect_protocol::pb::ForwardTextPromptingRequest;
use idiolect_protocol::{Hotkey, Keypair, grpc};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::stats::Summary;

const PROMPT: &str = "What is the capital of France, and why is it where it is? Answer in two sentences.";

/// The generation of client that is played.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Http,
    Grpc,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Http => "HTTP",
            Self::Grpc => "gRPC",
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) address: SocketAddr,
}

/// Clients that keep their connections and, as real dendrites do, their sessions.
pub(crate) struct Clients(Vec<Connection>);

impl Clients {
    /// Opens `n` connections, of `n_keys` callers.
    pub(crate) async fn open(target: Target, n: usize, n_keys: usize) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for nth in 0..n {
            connections.push(Connection::open(target, nth % n_keys).await?);
        }
        Ok(Self(connections))
    }

    /// Asks `n` times in all, each client as soon as its last answer is there. With `session_length` each client is
    /// started anew, so to say, after so many requests.
    pub(crate) async fn closed_loop(&mut self, n: usize, session_length: Option<usize>) -> anyhow::Result<Summary> {
        let each = n.div_ceil(self.0.len());
        let start = Instant::now();
        let asking: Vec<_> = self
            .0
            .drain(..)
            .map(|mut connection| {
                tokio::spawn(async move {
                    let mut latencies = Vec::with_capacity(each);
                    for nth in 0..each {
                        if session_length.is_some_and(|length| nth % length == 0) {
                            connection.session().renew();
                        }
                        let asked = Instant::now();
                        connection.ask().await?;
                        latencies.push(asked.elapsed());
                    }
                    anyhow::Ok((connection, latencies))
                })
            })
            .collect();
        let mut latencies = Vec::new();
        for asked in asking {
            let (connection, of_one) = asked.await??;
            self.0.push(connection);
            latencies.extend(of_one);
        }
        Ok(Summary::new(latencies, start.elapsed()))
    }
}

/// Asks `per_second` times a second in all, whether or not answers are there. Latency counts from the moment at which a
/// request was due, so a server that stalls is charged for those that had to wait.
pub(crate) async fn open_loop(
    target: Target,
    n_connections: usize,
    per_second: u32,
    how_long: Duration,
) -> anyhow::Result<Summary> {
    let mut connections = Vec::new();
    for _ in 0..n_connections {
        connections.push(Connection::open(target, 0).await?);
    }
    let gap = Duration::from_secs(1) / per_second;
    let turn = gap * u32::try_from(n_connections)?;
    let start = Instant::now() + Duration::from_millis(50);
    let asking = connections.into_iter().enumerate().map(|(place, mut connection)| {
        tokio::spawn(async move {
            let mut due = start + gap * u32::try_from(place)?;
            let mut latencies = Vec::new();
            while due < start + how_long {
                tokio::time::sleep_until(due.into()).await;
                connection.ask().await?;
                latencies.push(due.elapsed());
                due += turn;
            }
            anyhow::Ok(latencies)
        })
    });
    let asking: Vec<_> = asking.collect();
    let mut latencies = Vec::new();
    for asked in asking {
        latencies.extend(asked.await??);
    }
    Ok(Summary::new(latencies, start.elapsed()))
}

enum Connection {
    Http(HttpConnection),
    Grpc(GrpcConnection),
}

impl Connection {
    async fn open(target: Target, caller: usize) -> anyhow::Result<Self> {
        let session = Session::new(caller)?;
        Ok(match target.kind {
            Kind::Http => Self::Http(HttpConnection::open(target.address, session).await?),
            Kind::Grpc => Self::Grpc(GrpcConnection::open(target.address, session).await?),
        })
    }

    fn session(&mut self) -> &mut Session {
        match self {
            Self::Http(connection) => &mut connection.session,
            Self::Grpc(connection) => &mut connection.session,
        }
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Http(connection) => connection.ask().await,
            Self::Grpc(connection) => connection.ask().await,
        }
    }
}

/// Who asks whom, in a session of its own.
struct Session {
    sender: Arc<Keypair>,
    receiver: Hotkey,
    id: String,
    began: Instant,
}

impl Session {
    fn new(caller: usize) -> anyhow::Result<Self> {
        let sender = Arc::new(caller_key(caller)?);
        let receiver = Keypair::from_uri("//Alice")?.hotkey();
        Ok(Self { sender, receiver, id: new_session_id(), began: Instant::now() })
    }

    fn renew(&mut self) {
        self.id = new_session_id();
    }

    /// The time of day, for HTTP.
    fn clock() -> anyhow::Result<i128> {
        Ok(i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
    }

    /// A counter, for gRPC.
    fn counter(&self) -> anyhow::Result<i128> {
        Ok(i128::try_from(self.began.elapsed().as_nanos())?)
    }
}

/// Returns the key of the `nth` caller.
pub(crate) fn caller_key(nth: usize) -> anyhow::Result<Keypair> {
    Ok(Keypair::from_uri(&format!("//Bob//{nth}"))?)
}

/// With the time in it, as Bittensor's have.
fn new_session_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// A dendrite of bittensor 10 that does no more than it must.
struct HttpConnection {
    stream: TcpStream,
    session: Session,
    hash: String,
    body: String,
    buffer: Vec<u8>,
}

impl HttpConnection {
    async fn open(address: SocketAddr, session: Session) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let body = serde_json::json!({"name": "Prompting", "timeout": 12.0, "total_size": 3296, "header_size": 0,
            "dendrite": {"version": 10_005_000}, "axon": {"ip": "127.0.0.1"}, "computed_body_hash": "",
            "roles": ["user"], "messages": [PROMPT], "completion": ""});
        let hash = body_hash(&[[PROMPT.to_owned()].as_slice()]);
        Ok(Self { stream, session, hash, body: body.to_string(), buffer: vec![0; 16 << 10] })
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        let (nonce, hash) = (Session::clock()?, &self.hash);
        let (hotkey, receiver, session) = (self.session.sender.hotkey(), self.session.receiver, &self.session.id);
        let signed = format!("{nonce}.{hotkey}.{receiver}.{session}.{hash}");
        let signature: String =
            self.session.sender.sign(signed.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let request = format!(
            "POST /Prompting HTTP/1.1\r\nhost: miner\r\nname: Prompting\r\ntimeout: 12.0\r\n\
             bt_header_axon_ip: 127.0.0.1\r\nbt_header_axon_port: 8091\r\nbt_header_axon_hotkey: {receiver}\r\n\
             bt_header_dendrite_ip: 192.0.2.1\r\nbt_header_dendrite_version: 10005000\r\n\
             bt_header_dendrite_nonce: {nonce}\r\nbt_header_dendrite_uuid: {session}\r\n\
             bt_header_dendrite_hotkey: {hotkey}\r\nbt_header_dendrite_signature: 0x{signature}\r\n\
             bt_header_input_obj_roles: W10=\r\nbt_header_input_obj_messages: W10=\r\nheader_size: 0\r\n\
             total_size: 3296\r\ncomputed_body_hash: {hash}\r\naccept: */*\r\n\
             accept-encoding: gzip, deflate\r\nuser-agent: load\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{}",
            self.body.len(),
            self.body
        );
        self.stream.write_all(request.as_bytes()).await?;
        self.read_answer().await
    }

    async fn read_answer(&mut self) -> anyhow::Result<()> {
        let mut filled = 0;
        loop {
            let n = self.stream.read(&mut self.buffer[filled..]).await?;
            ensure!(n > 0, "the connection was closed");
            filled += n;
            let answer = &self.buffer[..filled];
            let Some(end) = answer.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&answer[..end])?;
            ensure!(head.starts_with("HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
            let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
            if filled >= end + 4 + length.context("no length")?.parse::<usize>()? {
                return Ok(());
            }
        }
    }
}

/// A dendrite of bittensor 5.
struct GrpcConnection {
    sender: SendRequest<Full<Bytes>>,
    session: Session,
    url: String,
    framed: Bytes,
}

impl GrpcConnection {
    async fn open(address: SocketAddr, session: Session) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let message = serde_json::json!({"role": "user", "content": PROMPT}).to_string();
        let message = ForwardTextPromptingRequest { messages: vec![message], timeout: 12.0, ..Default::default() };
        let message = message.encode_to_vec();
        let mut framed = vec![0];
        framed.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
        framed.extend_from_slice(&message);
        let url = format!("http://{address}/TextPrompting/Forward");
        Ok(Self { sender, session, url, framed: framed.into() })
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        let Session { sender, receiver, id, .. } = &self.session;
        let metadata = grpc::sign(sender, receiver, self.session.counter()?, id);
        let mut request = http::Request::post(&self.url)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(self.framed.clone()))?;
        request.headers_mut().extend(metadata);
        self.sender.ready().await?;
        let answer = self.sender.send_request(request).await?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await?;
        let status = body.trailers().and_then(|trailers| trailers.get("grpc-status"));
        ensure!(status.is_some_and(|status| status == "0"), "{:?} {:?}", head.headers, body.trailers());
        Ok(())
    }
}
