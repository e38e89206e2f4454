//! A captured request does not work again after the process was killed: with a real process and a real kill.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use idiolect_axon::nonces::NoncePersister;
use idiolect_protocol::pb::ForwardTextPromptingRequest;
use idiolect_protocol::{Limits, SystemClock, btauth, epistula};
use prost::Message as _;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};

use crate::support::{Setup, SynapseRequest, alice, bob, grpc, grpc_metadata, now_ns, raw_to};

/// Where the child keeps its store; set for the child only.
const FOLDER: &str = "IDIOLECT_TEST_FOLDER";
const CHAT: &str = "/v1/chat/completions";

fn store(folder: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(folder.join("idiolect.sqlite")).journal_mode(SqliteJournalMode::Wal)
}

/// The child: a miner that serves until it is killed. Does nothing in an ordinary run of the tests.
#[tokio::test]
async fn child_miner() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let pool = SqlitePool::connect_with(store(&folder).create_if_missing(true)).await.unwrap();
    let clock = Arc::new(SystemClock);
    let (nonces, persister) = NoncePersister::open(pool, &alice().hotkey(), 1000, clock).await.unwrap();
    let limits = Limits { legacy_http: true, ..Limits::default() };
    let served = Setup { nonces, limits, ..Setup::default() }.serve().await;
    std::fs::write(folder.join("address.new"), served.address.to_string()).unwrap();
    std::fs::rename(folder.join("address.new"), folder.join("address")).unwrap();
    persister.run(std::future::pending()).await.unwrap();
}

struct Miner {
    child: Child,
    address: SocketAddr,
}

impl Miner {
    async fn start(folder: &Path) -> Self {
        let _ = std::fs::remove_file(folder.join("address"));
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["killed::child_miner", "--exact", "--quiet"])
            .env(FOLDER, folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut miner = Self { child, address: ([0; 4], 0).into() };
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            if let Ok(address) = std::fs::read_to_string(folder.join("address")) {
                miner.address = address.parse().unwrap();
                return miner;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the child does not start");
    }

    /// SIGKILL: no time for anything.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Miner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The bytes of a request, as somebody on the way sees them.
struct Captured {
    what: &'static str,
    bytes: Vec<u8>,
}

impl Captured {
    fn http(what: &'static str, path: &str, headers: &[(String, String)], body: &str) -> Self {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Self { what, bytes: crate::support::request("POST", path, &headers, body.as_bytes()) }
    }

    fn synapse(what: &'static str, request: &SynapseRequest) -> Self {
        Self::http(what, &request.path, &request.headers, &request.body)
    }

    fn chat(what: &'static str, headers: &http::HeaderMap, body: &str) -> Self {
        let text = |value: &http::HeaderValue| value.to_str().unwrap().to_owned();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        Self::http(what, CHAT, &headers, body)
    }

    async fn send(&self, miner: &Miner) -> u16 {
        raw_to(miner.address, &self.bytes).await.status
    }
}

fn forward() -> Vec<u8> {
    let messages = vec![r#"{"role": "user", "content": "hi"}"#.to_owned()];
    ForwardTextPromptingRequest { messages, timeout: 12.0, ..Default::default() }.encode_to_vec()
}

/// Waits until so many counters are on disk.
async fn saved_counters(folder: &Path, n: i64) {
    let pool = SqlitePool::connect_with(store(folder)).await.unwrap();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        let saved: i64 =
            sqlx::query_scalar("SELECT count(*) FROM nonce_monotonic WHERE key != '*'").fetch_one(&pool).await.unwrap();
        if saved >= n {
            return pool.close().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("counters are not saved");
}

#[tokio::test]
async fn nothing_captured_works_again_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut miner = Miner::start(folder.path()).await;
    let alice = alice().hotkey();

    let metadata = grpc_metadata(&bob(), &alice);
    assert_eq!(grpc(miner.address, "/TextPrompting/Forward", &metadata, &forward()).await.status, 0);
    let counter = SynapseRequest::legacy("Prompting", &["hi"], 2_188_881_312_626);
    let counter = Captured::synapse("bittensor 6", &counter);
    assert_eq!(counter.send(&miner).await, 200);
    // Counters reach the disk 100 ms late; what is lost of them is lost. Of clock readings nothing may be.
    saved_counters(folder.path(), 2).await;

    let body = r#"{"messages": [{"role": "user", "content": "hi"}]}"#;
    let now_ms = u64::try_from(now_ns() / 1_000_000).unwrap();
    let epistula = epistula::sign(&bob(), &alice, body.as_bytes(), now_ms, &uuid::Uuid::new_v4());
    let parts = btauth::SignedParts { method: "POST", target: CHAT, body: body.as_bytes() };
    let captured = [
        Captured::synapse("Prompting", &SynapseRequest::prompt("Prompting", &["hi"])),
        Captured::synapse("StreamPrompting", &SynapseRequest::prompt("StreamPrompting", &["hi"])),
        Captured::chat("epistula", &epistula, body),
        Captured::chat("btauth", &btauth::sign(&bob(), Some(&alice), parts, now_ns()), body),
    ];
    for request in &captured {
        assert_eq!(request.send(&miner).await, 200, "{}", request.what);
        assert_eq!(request.send(&miner).await, 401, "{} again", request.what);
    }
    // Signed before the kill and not yet sent: as good as captured.
    let held_back = Captured::synapse("held back", &SynapseRequest::prompt("Prompting", &["hi"]));
    miner.kill();

    let mut miner = Miner::start(folder.path()).await;
    for request in captured.iter().chain([&counter, &held_back]) {
        assert_eq!(request.send(&miner).await, 401, "{} after the kill", request.what);
    }
    assert_eq!(grpc(miner.address, "/TextPrompting/Forward", &metadata, &forward()).await.status, 16);
    let new = Captured::synapse("new", &SynapseRequest::prompt("Prompting", &["hi"]));
    assert_eq!(new.send(&miner).await, 200);

    // And once more, with nothing new in between for a while.
    miner.kill();
    let miner = Miner::start(folder.path()).await;
    for request in captured.iter().chain([&counter, &held_back, &new]) {
        assert_eq!(request.send(&miner).await, 401, "{} after two kills", request.what);
    }
}
