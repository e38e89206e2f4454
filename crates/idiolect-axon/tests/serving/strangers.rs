//! What somebody who proves nothing can take up: little.

use std::convert::Infallible;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use idiolect_axon::policy::{Rate, Rules};
use idiolect_protocol::body_hash::body_hash;
use idiolect_protocol::pb::{ForwardTextPromptingRequest, ForwardTextPromptingResponse};
use idiolect_protocol::{Keypair, NonceStore, epistula};
use prost::Message as _;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::support::{Served, Setup, SynapseRequest, alice, bob, grpc, grpc_metadata, policy, until, until_async};

type Body = BoxBody<Bytes, Infallible>;

struct Client {
    sender: http2::SendRequest<Body>,
    connection: JoinHandle<()>,
}

impl Client {
    /// Connects over HTTP/2 with so much room for each answer.
    async fn connect(served: &Served, window: u32) -> Self {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake(TokioIo::new(served.connect().await))
            .await
            .unwrap();
        Self { sender, connection: tokio::spawn(async move { drop(connection.await) }) }
    }

    /// Sends a request and waits for its answer in another task.
    fn send(&self, request: http::Request<Body>) -> JoinHandle<Option<http::Response<hyper::body::Incoming>>> {
        let mut sender = self.sender.clone();
        tokio::spawn(async move { sender.send_request(request).await.ok() })
    }
}

fn request(path: &str, content_type: &str, body: Body) -> http::Request<Body> {
    http::Request::post(format!("http://miner{path}")).header("content-type", content_type).body(body).unwrap()
}

fn synapse(signed: SynapseRequest) -> http::Request<Body> {
    let mut request = request(&signed.path, "application/json", Full::new(Bytes::from(signed.body)).boxed());
    request.headers_mut().clear();
    for (name, value) in &signed.headers {
        request.headers_mut().append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    request
}

fn bytes(bytes: &'static [u8]) -> Body {
    Full::new(Bytes::from_static(bytes)).boxed()
}

fn endless() -> Body {
    StreamBody::new(stream::pending()).boxed()
}

fn forward() -> Vec<u8> {
    let messages = vec![r#"{"role": "user", "content": "hi"}"#.to_owned()];
    ForwardTextPromptingRequest { messages, timeout: 12.0, ..Default::default() }.encode_to_vec()
}

#[tokio::test]
async fn questions_that_never_come_take_no_more_than_an_addresss_share_and_not_for_long() {
    for (path, kind) in [
        ("/grpc.health.v1.Health/Check", "application/grpc"),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "application/grpc"),
        ("/v1/chat/completions", "application/json"),
        ("/availability", "application/json"),
    ] {
        let served = Setup::config(|config| {
            config.max_strangers_per_ip = 4;
            config.body_timeout = Duration::from_millis(300);
            config.idle_timeout = Duration::from_millis(300);
        })
        .serve()
        .await;
        let client = Client::connect(&served, 65_535).await;
        let stalled = [(); 4].map(|()| {
            let mut request = request(path, kind, endless());
            request.headers_mut().insert("epistula-signed-by", http::HeaderValue::from_static("x"));
            client.send(request)
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let answer = served.post("/nothing", &[], b"").await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{path}");
        for stalled in stalled {
            if let Some(answer) = stalled.await.unwrap() {
                let _ = answer.into_body().collect().await;
            }
        }
        assert_eq!(served.post("/nothing", &[], b"").await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn streams_that_last_count_against_their_address() {
    let served = Setup::config(|config| config.max_strangers_per_ip = 2).serve().await;
    let client = Client::connect(&served, 65_535).await;
    let watch = || request("/grpc.health.v1.Health/Watch", "application/grpc", bytes(&[0; 5]));
    let first = client.send(watch()).await.unwrap().unwrap();
    let second = client.send(watch()).await.unwrap().unwrap();
    let third = client.send(watch()).await.unwrap().unwrap();
    assert_eq!(third.headers()["grpc-status"], "8");
    drop((first, second));
    until_async("their places are free", async || served.post("/nothing", &[], b"").await.status == 404).await;
}

#[tokio::test]
async fn callers_who_proved_a_key_do_not_count_as_strangers() {
    let served = Setup::config(|config| config.max_strangers_per_ip = 1).serve().await;
    let n_running = || served.echo.n_running.load(Ordering::SeqCst);
    let [one, other] = [(); 2].map(|()| SynapseRequest::prompt("Prompting", &["wait 60000"]));
    let later = async {
        until("the first one runs", || n_running() == 1).await;
        other.send(&served).await
    };
    tokio::select! {
        _ = async { tokio::join!(one.send(&served), later) } => unreachable!("both take a minute"),
        () = until("both run", || n_running() == 2) => {}
    }
}

#[tokio::test]
async fn a_key_that_policy_does_not_let_in_is_a_strangers() {
    let served = Setup::config(|config| config.max_strangers_per_ip = 2).serve().await;
    let client = Client::connect(&served, 65_535).await;
    let stalled = |sender: &str| {
        let mut request = request("/TextPrompting/Forward", "application/grpc", endless());
        request.headers_mut().extend(grpc_metadata(&Keypair::from_uri(sender).unwrap(), &alice().hotkey()));
        client.send(request)
    };
    let _admitted = [stalled("//Bob"), stalled("//Bob"), stalled("//Bob")];
    let _denied = [stalled("//Mallory"), stalled("//Mallory")];
    until_async("the share is taken", async || served.post("/nothing", &[], b"").await.status == 503).await;
    assert_eq!(stalled("//Mallory").await.unwrap().unwrap().headers()["grpc-status"], "8");
}

/// A limit that no slow machine outlasts.
#[expect(clippy::unnecessary_wraps, reason = "it is what the configuration takes")]
fn eleven_then_one_an_hour() -> Option<Rate> {
    Some(Rate { requests: NonZeroU32::MIN, per: Duration::from_secs(3600) })
}

#[tokio::test]
async fn large_forgeries_count_for_what_they_cost() {
    let served = Setup::config(|config| config.max_failures = eleven_then_one_an_hour()).serve().await;
    let body = vec![b' '; 1 << 20];
    let headers = epistula::sign(&bob(), &alice().hotkey(), b"other", 1_000 * 1_000, &uuid::Uuid::new_v4());
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(served.post("/v1/chat/completions", &headers, &body).await.status, 401, "old, but hashed in vain");
    assert_eq!(served.post("/v1/chat/completions", &headers, b"").await.status, 429);
}

#[tokio::test]
async fn a_streamed_answer_that_finds_no_room_ends_its_connection() {
    let served = Setup::config(|config| config.write_timeout = Duration::from_millis(100)).serve().await;
    let client = Client::connect(&served, 0).await;
    let long = format!("say {}", "word ".repeat(100));
    let answer = client.send(synapse(SynapseRequest::prompt("StreamPrompting", &[&long]))).await.unwrap().unwrap();
    assert_eq!(answer.status(), 200);
    until("the connection is cut", || client.connection.is_finished()).await;
    drop(answer);
}

#[tokio::test]
async fn an_address_that_fails_too_often_is_not_listened_to_but_known_keys_are() {
    let charlie = Keypair::from_uri("//Charlie").unwrap();
    let rules = Rules { allow_any: true, allow: [charlie.hotkey()].into(), ..Rules::default() };
    let mut setup = Setup { policy: policy(rules), ..Setup::default() };
    setup.config.max_failures = eleven_then_one_an_hour();
    let served = setup.serve().await;
    let forged = SynapseRequest::prompt("Prompting", &["hi"]).header("computed_body_hash", "00");
    for _ in 0..11 {
        assert_eq!(forged.send(&served).await.status, 401);
    }
    let honest = SynapseRequest::prompt("Prompting", &["hi"]).send(&served).await;
    assert_eq!((honest.status, honest.header("retry-after")), (429, Some("1")));
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    let answer = grpc(served.address, "/TextPrompting/Forward", &metadata, &forward()).await;
    assert_eq!((answer.status, &answer.headers["retry-after"]), (8, &http::HeaderValue::from_static("1")));
    // What everybody does under other names does not count against a key that the miner knows.
    let metadata = grpc_metadata(&charlie, &alice().hotkey());
    assert_eq!(grpc(served.address, "/TextPrompting/Forward", &metadata, &forward()).await.status, 0);
}

#[tokio::test]
async fn a_validator_that_called_before_is_heard_whatever_others_at_its_address_do() {
    let [validator, newcomer] = ["//Charlie", "//Dave"].map(|uri| Keypair::from_uri(uri).unwrap());
    let names: Vec<Keypair> = (0..4).map(|_| Keypair::generate()).collect();
    let allow = names.iter().chain([&validator, &newcomer]).map(Keypair::hotkey).collect();
    let mut setup = Setup { policy: policy(Rules { allow, ..Rules::default() }), ..Setup::default() };
    setup.config.max_failures = eleven_then_one_an_hour();
    let served = setup.serve().await;
    let body = json!({"roles": ["user"], "messages": ["hi"]});
    let hash = body_hash(&[["hi".to_owned()].as_slice()]);
    let honest =
        async |key: &Keypair| SynapseRequest::signed(key, "Prompting", &body, &hash).send(&served).await.status;
    let forged = async |key: &Keypair| {
        let forged = SynapseRequest::signed(key, "Prompting", &body, &hash).header("computed_body_hash", "00");
        forged.send(&served).await.status
    };
    assert_eq!(honest(&validator).await, 200);
    // All names together may fail four times as often as one.
    for name in &names {
        for _ in 0..10 {
            assert_eq!(forged(name).await, 401);
        }
    }
    assert_eq!(forged(&names[0]).await, 401);
    assert_eq!(honest(&newcomer).await, 429, "nobody can tell who it is without looking");
    for _ in 0..11 {
        assert_eq!(honest(&validator).await, 200);
        assert_eq!(forged(&validator).await, 401);
    }
    assert_eq!(honest(&validator).await, 429, "under its own name, from its own address");
}

#[tokio::test]
async fn a_miner_open_to_anybody_limits_forgers_whatever_names_they_claim() {
    let mut setup = Setup { policy: policy(Rules { allow_any: true, ..Rules::default() }), ..Setup::default() };
    setup.config.max_failures = eleven_then_one_an_hour();
    let served = setup.serve().await;
    let body = json!({"roles": ["user"], "messages": ["hi"]});
    let hash = body_hash(&[["hi".to_owned()].as_slice()]);
    for n in 0..11 {
        let name = Keypair::generate();
        if n % 2 == 0 {
            let forged = SynapseRequest::signed(&name, "Prompting", &body, &hash).header("computed_body_hash", "00");
            assert_eq!(forged.send(&served).await.status, 401);
        } else {
            let metadata = grpc_metadata(&name, &bob().hotkey());
            assert_eq!(grpc(served.address, "/TextPrompting/Forward", &metadata, &forward()).await.status, 16);
        }
    }
    let honest = SynapseRequest::signed(&Keypair::generate(), "Prompting", &body, &hash).send(&served).await;
    assert_eq!(honest.status, 429);
}

#[tokio::test]
async fn strangers_who_prove_a_new_key_each_time_are_limited_by_their_address() {
    let (charlie, mallory) = (Keypair::from_uri("//Charlie").unwrap(), Keypair::from_uri("//Mallory").unwrap());
    let rules = Rules { allow: [charlie.hotkey()].into(), deny: [mallory.hotkey()].into(), ..Rules::default() };
    let served_to = async || {
        let mut setup = Setup { policy: policy(rules.clone()), ..Setup::default() };
        setup.config.max_failures = eleven_then_one_an_hour();
        setup.serve().await
    };
    let body = json!({"roles": ["user"], "messages": ["hi"]});
    let hash = body_hash(&[["hi".to_owned()].as_slice()]);
    let synapse = async |served: &Served, key: &Keypair| {
        SynapseRequest::signed(key, "Prompting", &body, &hash).send(served).await.status
    };
    let forward_as = async |served: &Served, key: &Keypair| {
        let metadata = grpc_metadata(key, &alice().hotkey());
        grpc(served.address, "/TextPrompting/Forward", &metadata, &forward()).await
    };
    let chat = async |served: &Served, key: &Keypair, body: &[u8]| {
        let now_ms = u64::try_from(crate::support::now_ns() / 1_000_000).unwrap();
        let headers = epistula::sign(key, &alice().hotkey(), body, now_ms, &uuid::Uuid::new_v4());
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        served.post("/v1/chat/completions", &headers, body).await.status
    };

    let served = served_to().await;
    for n in 0..11 {
        let stranger = Keypair::generate();
        match n % 3 {
            0 => assert_eq!(synapse(&served, &stranger).await, 403),
            1 => {
                let reply = forward_as(&served, &stranger).await;
                let reply = ForwardTextPromptingResponse::decode(reply.message.unwrap()).unwrap();
                assert_eq!(reply.return_code, 25);
            }
            _ => assert_eq!(chat(&served, &stranger, b"{}").await, 403),
        }
    }
    assert_eq!(synapse(&served, &Keypair::generate()).await, 429);
    assert_eq!(forward_as(&served, &Keypair::generate()).await.status, 8);
    assert_eq!(chat(&served, &Keypair::generate(), b"{}").await, 429);
    // A key that is denied by name is no better known.
    assert_eq!(synapse(&served, &mallory).await, 429);
    assert_eq!(synapse(&served, &charlie).await, 200, "known keys are listened to");

    // What had to be hashed counts as well.
    let served = served_to().await;
    assert_eq!(chat(&served, &Keypair::generate(), &vec![b' '; 1 << 20]).await, 403);
    assert_eq!(synapse(&served, &Keypair::generate()).await, 429);

    // A key that policy knows is told no as often as it asks, and shuts nobody out.
    let rate = Rate { requests: NonZeroU32::MIN, per: Duration::from_secs(3600) };
    let rules = Rules { allow_any: true, rate: Some(rate), ..Rules::default() };
    let mut setup = Setup { policy: policy(rules), ..Setup::default() };
    setup.config.max_failures = eleven_then_one_an_hour();
    let served = setup.serve().await;
    assert_eq!(synapse(&served, &bob()).await, 200);
    for _ in 0..15 {
        assert_eq!(synapse(&served, &bob()).await, 429);
    }
    assert_eq!(synapse(&served, &charlie).await, 200);
}

#[tokio::test]
async fn compressed_bodies_are_refused_in_clear_words() {
    let served = Setup::default().serve().await;
    let signed = SynapseRequest::prompt("Prompting", &["hi"]).header("content-encoding", "gzip");
    let epistula = [("content-encoding", "deflate"), ("epistula-signed-by", "x")];
    for answer in [
        signed.send(&served).await,
        served.post("/v1/chat/completions", &epistula, b"{}").await,
        served.post("/availability", &[("Content-Encoding", "br")], b"{}").await,
        served.raw("POST /Prompting HTTP/1.1\r\nhost: m\r\nconnection: close\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n").await,
    ] {
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains("compressed bodies are not accepted"), "{}", answer.text());
    }
    assert_eq!(
        SynapseRequest::prompt("Prompting", &["hi"]).header("content-encoding", "identity").send(&served).await.status,
        200
    );
}

#[tokio::test]
async fn synapses_are_answered_over_http2_too() {
    let served = Setup::default().serve().await;
    let client = Client::connect(&served, 65_535).await;
    for name in ["Prompting", "StreamPromptingSynapse"] {
        let answer = client.send(synapse(SynapseRequest::prompt(name, &["hi"]))).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["bt_header_axon_status_code"], "200");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8(body.to_vec()).unwrap().contains("echo: user=hi"));
    }
}

#[tokio::test]
async fn framing_that_two_readers_could_read_in_two_ways_ends_the_connection() {
    let served = Setup::default().serve().await;
    for head in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "content-length: 5\r\ncontent-length: 6",
        "content-length: +5",
        "content-length: -5",
        "content-length: 99999999999999999999",
        "transfer-encoding: chunked, identity",
        "content-length : 5",
        "x: a\r\n b",
    ] {
        let smuggled = format!(
            "POST /Prompting HTTP/1.1\r\nhost: m\r\n{head}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: m\r\n\r\n"
        );
        // `raw` reads until the connection closes.
        let answer = served.raw(smuggled).await;
        assert_eq!(answer.status, 400, "{head}");
        assert!(!String::from_utf8_lossy(&answer.body).contains("HTTP/1.1"), "{head}: two answers");
    }
}

#[tokio::test]
async fn strangers_of_a_miner_open_to_anybody_leave_half_of_the_nonce_store_to_known_keys() {
    let charlie = Keypair::from_uri("//Charlie").unwrap();
    let rules = Rules { allow_any: true, allow: [charlie.hotkey()].into(), ..Rules::default() };
    let nonces = Arc::new(NonceStore::new(40));
    let served = Setup { policy: policy(rules), nonces: nonces.clone(), ..Setup::default() }.serve().await;
    let body = json!({"roles": ["user"], "messages": ["hi"]});
    let hash = body_hash(&[["hi".to_owned()].as_slice()]);
    let ask = async |key: &Keypair| SynapseRequest::signed(key, "Prompting", &body, &hash).send(&served).await.status;
    // Each is another key, and each request a session of its own.
    for _ in 0..20 {
        assert_eq!(ask(&Keypair::generate()).await, 200);
    }
    for _ in 0..3 {
        assert_eq!(ask(&Keypair::generate()).await, 503, "their half is taken");
    }
    // A known key has its quarter all the same, and no more than that.
    for _ in 0..10 {
        assert_eq!(ask(&charlie).await, 200);
    }
    assert_eq!(ask(&charlie).await, 503);
    // Over gRPC strangers find no room either, and what is kept stays within the bounds.
    let metadata = grpc_metadata(&Keypair::generate(), &alice().hotkey());
    assert_ne!(grpc(served.address, "/TextPrompting/Forward", &metadata, &forward()).await.status, 0);
    assert_eq!(nonces.len(), 30);
    assert_eq!(served.echo.calls.lock().unwrap().len(), 30);
}
