//! A loopback HTTP server with faults on demand, fake wheels, and a progress recorder.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use idiolect_models::{Alias, AliasFile, Event, Progress, Resolver, ResolverConfig, Spec};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// What the server saw of a request.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub headers: BTreeMap<String, String>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What it answers.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Closes the connection after this many body bytes.
    pub cut_after: Option<usize>,
    /// Falls silent after this many body bytes.
    pub stall_after: Option<usize>,
    /// Falls silent before the head.
    pub mute: bool,
    /// Whether `Range` requests are honoured.
    pub ranges: bool,
    /// Replaces the true content length.
    pub claimed_length: Option<u64>,
}

impl Reply {
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self {
            status: 200,
            headers: Vec::new(),
            body,
            cut_after: None,
            stall_after: None,
            mute: false,
            ranges: true,
            claimed_length: None,
        }
    }

    pub fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

type Routes = Arc<Mutex<BTreeMap<String, Vec<Reply>>>>;

/// Answers by path; with several replies for a path the last one repeats.
#[derive(Debug, Clone)]
pub struct Server {
    pub address: SocketAddr,
    routes: Routes,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), routes: Routes::default(), seen: Arc::default() };
        let shared = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                tokio::spawn(async move { shared.serve(stream).await });
            }
        });
        server
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn on(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        self.routes.lock().unwrap().insert(path.into(), replies.into_iter().collect());
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    /// Requests whose path is this.
    pub fn hits(&self, path: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.target.split('?').next() == Some(path)).collect()
    }

    async fn serve(self, mut stream: TcpStream) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let text = String::from_utf8(head).ok()?;
        let mut lines = text.lines();
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
        let headers: BTreeMap<String, String> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        if let Some(length) = headers.get("content-length").and_then(|length| length.parse::<usize>().ok()) {
            stream.read_exact(&mut vec![0; length]).await.ok()?;
        }
        let seen = Seen { method, target, headers };
        self.seen.lock().unwrap().push(seen.clone());
        let path = seen.target.split('?').next().unwrap_or_default().to_owned();
        let reply = {
            let mut routes = self.routes.lock().unwrap();
            match routes.get_mut(&path) {
                Some(replies) if replies.len() > 1 => replies.remove(0),
                Some(replies) => replies[0].clone(),
                None => Reply::status(404),
            }
        };
        if reply.mute {
            tokio::time::sleep(Duration::from_secs(600)).await;
        }
        let mut status = reply.status;
        let mut body = reply.body.as_slice();
        let mut extra = String::new();
        let start: Option<usize> =
            seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        if let (true, Some(start), 200) = (reply.ranges, start, status) {
            if start < body.len() {
                extra = format!("content-range: bytes {start}-{}/{}\r\n", body.len() - 1, body.len());
                body = &body[start..];
                status = 206;
            } else {
                extra = format!("content-range: bytes */{}\r\n", body.len());
                body = &[];
                status = 416;
            }
        }
        let length = reply.claimed_length.unwrap_or(body.len() as u64);
        let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n{extra}");
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await.ok()?;
        if seen.method == "HEAD" {
            return None;
        }
        let limit = reply.cut_after.or(reply.stall_after).unwrap_or(body.len()).min(body.len());
        stream.write_all(&body[..limit]).await.ok()?;
        stream.flush().await.ok()?;
        if reply.stall_after.is_some() {
            tokio::time::sleep(Duration::from_secs(600)).await;
        }
        stream.shutdown().await.ok()
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// Bytes that do not compress and do not repeat.
pub fn noise(n: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(n).collect()
}

pub fn zip(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in members {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Offers a wheel on a JSON index page at `/simple`.
pub fn offer(server: &Server, package: &str, version: &str, wheel: &[u8]) -> String {
    offer_as(server, package, version, wheel, &sha256(wheel))
}

pub fn offer_as(server: &Server, package: &str, version: &str, wheel: &[u8], hash: &str) -> String {
    let filename = format!("{}-{version}-py3-none-any.whl", package.replace('-', "_"));
    let path = format!("/files/{filename}");
    let page = format!(
        r#"{{"meta":{{"api-version":"1.0"}},"name":"{package}","files":[{{"filename":"{filename}","url":"..{}{path}","hashes":{{"sha256":"{hash}"}},"size":{}}}]}}"#,
        "/..",
        wheel.len()
    );
    server.on(
        &format!("/simple/{package}/"),
        [Reply::ok(page).header("content-type", "application/vnd.pypi.simple.v1+json")],
    );
    server.on(&path, [Reply::ok(wheel)]);
    path
}

/// A resolver that knows only the loopback server, is impatient and never calls pip.
pub fn config(folder: &tempfile::TempDir, server: &Server) -> ResolverConfig {
    let mut config = ResolverConfig::new(folder.path().join("models"));
    config.wheel.indexes = vec![server.url("/simple").parse().unwrap()];
    config.wheel.pip = Vec::new();
    config.hub.endpoint = server.url("/hub");
    config.network.connect_timeout = Duration::from_millis(500);
    config.network.answer_timeout = Duration::from_millis(500);
    config.network.stall_timeout = Duration::from_millis(300);
    config.network.backoff = Duration::from_millis(5);
    config.network.use_proxies = false;
    config
}

pub fn resolver(config: ResolverConfig) -> Resolver {
    Resolver::new(config).unwrap()
}

/// An alias of one file at the hub (`o/r`) and in the wheel `w==1` under `w/`.
pub fn alias(name: &str, content: &[u8]) -> Alias {
    Alias {
        name: name.into(),
        description: String::new(),
        licence: String::new(),
        files: vec![AliasFile { name: "model.gguf".into(), sha256: sha256(content), bytes: content.len() as u64 }],
        sources: vec![vec![spec("hub:o/r/model.gguf@rev")], vec![spec("wheel:w==1/w/model.gguf")]],
    }
}

pub fn spec(text: &str) -> Spec {
    text.parse().unwrap()
}

/// Remembers every event as text.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    pub fn texts(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn has(&self, part: &str) -> bool {
        self.texts().iter().any(|text| text.contains(part))
    }
}

impl Progress for Recorder {
    fn event(&self, event: Event<'_>) {
        self.0.lock().unwrap().push(format!("{event:?}"));
    }
}

/// Every file below a folder, relative.
pub fn tree(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(folder).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}
