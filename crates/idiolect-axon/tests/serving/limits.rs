//! Peers that are too big, too slow, too many.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use idiolect_axon::policy::{Rate, Rules};
use idiolect_axon::{AxonConfig, AxonError};
use idiolect_protocol::NonceStore;
use idiolect_protocol::grpc::sign;
use idiolect_protocol::pb::{ForwardTextPromptingRequest, ForwardTextPromptingResponse, ReturnCode};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Setup, alice, bob, grpc, grpc_metadata, policy, read_answer, request, until, until_async};

const AVAILABILITY: &str = "/availability";

fn forward(content: &str) -> Vec<u8> {
    let message = serde_json::json!({"role": "user", "content": content}).to_string();
    ForwardTextPromptingRequest { messages: vec![message], timeout: 12.0, ..Default::default() }.encode_to_vec()
}

fn reply(message: &[u8]) -> ForwardTextPromptingResponse {
    ForwardTextPromptingResponse::decode(message).unwrap()
}

#[tokio::test]
async fn an_occupied_port_is_named() {
    let served = Setup::default().serve().await;
    let taken = served.address;
    let error = Setup::config(|config| config.listen = taken).bind().await.unwrap_err();
    assert!(matches!(error, AxonError::Bind { address, .. } if address == taken));
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
    assert!(error.to_string().contains("another program uses this port"), "{error}");
}

#[tokio::test]
async fn senseless_figures_are_refused_at_the_start() {
    let error = Setup::config(|config| config.concurrency = 0).bind().await.unwrap_err();
    assert_eq!(error.to_string(), "bad axon configuration: concurrency must not be 0");
}

#[tokio::test]
async fn heads_that_are_too_large_get_431() {
    let served = Setup::config(|config| config.max_header_bytes = 8192).serve().await;
    let long = "x".repeat(9000);
    assert_eq!(served.raw(request("POST", AVAILABILITY, &[("long", &long)], b"{}")).await.status, 431);
    let many: Vec<_> = (0..101).map(|_| ("a", "b")).collect();
    assert_eq!(served.raw(request("POST", AVAILABILITY, &many, b"{}")).await.status, 431);
    let fits = "x".repeat(7000);
    assert_eq!(served.raw(request("POST", AVAILABILITY, &[("long", &fits)], b"{}")).await.status, 200);
}

#[tokio::test]
async fn grpc_metadata_that_is_too_large_is_refused_and_the_next_request_served() {
    let served = Setup::config(|config| config.max_header_bytes = 8192).serve().await;
    let stream = served.connect().await;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}/TextPrompting/Forward", served.address))
        .header("content-type", "application/grpc")
        .header("long", "x".repeat(20_000))
        .body(http_body_util::Full::new(bytes::Bytes::new()))
        .unwrap();
    let answer = sender.send_request(request).await;
    assert!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(|a| a.status() == 431), "{answer:?}");
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    assert_eq!(grpc(served.address, "/TextPrompting/Forward", &metadata, &forward("hi")).await.status, 0);
}

#[tokio::test]
async fn bodies_that_are_too_large_get_413_announced_or_not() {
    let served = Setup::config(|config| config.max_body_bytes = 1000).serve().await;
    let announced =
        "POST /availability HTTP/1.1\r\nhost: miner\r\ncontent-length: 99999999\r\nconnection: close\r\n\r\n";
    let path_with_signature = announced.replace(AVAILABILITY, "/v1/chat/completions");
    let signed = path_with_signature.replace("\r\n\r\n", "\r\nepistula-signed-by: x\r\n\r\n");
    assert_eq!(served.raw(&signed).await.status, 413);
    let mut chunked = signed.replace("content-length: 99999999", "transfer-encoding: chunked").into_bytes();
    for _ in 0..3 {
        chunked.extend_from_slice(format!("1f4\r\n{}\r\n", "x".repeat(500)).as_bytes());
    }
    assert_eq!(served.raw(&chunked).await.status, 413);
}

#[tokio::test]
async fn a_head_that_drips_is_cut_off() {
    let served = Setup::config(|config| config.header_timeout = Duration::from_millis(200)).serve().await;
    // One that says nothing, one that stops within the first line, one that stops within its headers.
    for sent in ["", "POS", "POST /availability HTTP/1.1\r\nhost: mi"] {
        let mut stream = served.connect().await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let began = Instant::now();
        let mut sink = Vec::new();
        let _ = stream.read_to_end(&mut sink).await;
        assert!(began.elapsed() >= Duration::from_millis(150), "{sent:?}");
        assert!(began.elapsed() < Duration::from_secs(4), "{sent:?}");
    }
    // One that keeps dripping gains nothing by it.
    let mut stream = served.connect().await;
    let began = Instant::now();
    let drip = async {
        let (mut read, mut write) = stream.split();
        let mut sink = Vec::new();
        tokio::select! {
            _ = read.read_to_end(&mut sink) => {}
            () = async { loop {
                if write.write_all(b"a").await.is_err() { break }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }} => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(5), drip).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_body_that_drips_gets_408() {
    let served = Setup::config(|config| config.body_timeout = Duration::from_millis(200)).serve().await;
    let mut stream = served.connect().await;
    let head = "POST /availability HTTP/1.1\r\nhost: miner\r\ncontent-length: 100\r\nconnection: close\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let began = Instant::now();
    let answer = read_answer(&mut stream).await.unwrap();
    assert_eq!(answer.status, 408);
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_grpc_message_that_drips_is_cut_off() {
    let served = Setup::config(|config| config.body_timeout = Duration::from_millis(200)).serve().await;
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    let stream = served.connect().await;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let never = futures_util::stream::pending::<Result<http_body::Frame<bytes::Bytes>, std::convert::Infallible>>();
    let mut request = http::Request::post(format!("http://{}/TextPrompting/Forward", served.address))
        .header("content-type", "application/grpc")
        .body(http_body_util::StreamBody::new(never))
        .unwrap();
    request.headers_mut().extend(metadata);
    let answer = tokio::time::timeout(Duration::from_secs(3), sender.send_request(request)).await.unwrap().unwrap();
    assert_eq!(answer.headers()["grpc-status"], "4");
}

#[tokio::test]
async fn idle_connections_are_closed_but_live_ones_reused() {
    let served = Setup::config(|config| {
        config.header_timeout = Duration::from_secs(5);
        config.idle_timeout = Duration::from_millis(400);
    })
    .serve()
    .await;
    let mut stream = served.connect().await;
    let asking = "POST /availability HTTP/1.1\r\nhost: miner\r\ncontent-length: 2\r\n\r\n{}";
    let mut buffer = [0; 4096];
    for _ in 0..3 {
        stream.write_all(asking.as_bytes()).await.unwrap();
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..n].starts_with(b"HTTP/1.1 200"));
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    let began = Instant::now();
    assert_eq!(stream.read(&mut buffer).await.unwrap_or(0), 0);
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so_and_room_is_made_again() {
    let served = Setup::config(|config| config.max_connections = 2).serve().await;
    let first = served.connect().await;
    let _second = served.connect().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut third = served.connect().await;
    let answer = read_answer(&mut third).await.unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(answer.json()["message"], "too many connections");
    assert_eq!(answer.header("content-length").unwrap(), answer.body.len().to_string());
    drop(first);
    until_async("there is room", async || served.post(AVAILABILITY, &[], b"{}").await.status == 200).await;
}

#[tokio::test]
async fn one_address_cannot_take_every_connection() {
    let served = Setup::config(|config| config.max_connections_per_ip = 1).serve().await;
    let _first = served.connect().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut second = served.connect().await;
    assert_eq!(read_answer(&mut second).await.unwrap().status, 503);
}

#[tokio::test]
async fn requests_beyond_the_limit_are_shed_on_both_sides() {
    let served = Setup::config(|config| config.max_requests = 1).serve().await;
    let address = served.address;
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    let busy =
        tokio::spawn(async move { grpc(address, "/TextPrompting/Forward", &metadata, &forward("wait 3000")).await });
    until("the first request runs", || served.echo.n_running.load(Ordering::SeqCst) == 1).await;

    let answer = served.post(AVAILABILITY, &[], b"{}").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    assert_eq!(answer.header("bt_header_axon_status_code"), Some("503"));
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    let answer = grpc(address, "/TextPrompting/Forward", &metadata, &forward("hi")).await;
    assert_eq!(answer.status, 8);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(busy.await.unwrap().status, 0);
}

#[tokio::test]
async fn a_full_queue_sheds_with_resource_exhausted() {
    let served = Setup::config(|config| {
        config.concurrency = 1;
        config.max_waiting = 1;
    })
    .serve()
    .await;
    let address = served.address;
    let ask = move |content: &'static str| {
        let metadata = grpc_metadata(&bob(), &alice().hotkey());
        tokio::spawn(async move { grpc(address, "/TextPrompting/Forward", &metadata, &forward(content)).await })
    };
    let running = ask("wait 3000");
    until("the first call runs", || served.echo.n_running.load(Ordering::SeqCst) == 1).await;
    let waiting = ask("hi");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let shed = ask("hi").await.unwrap();
    assert_eq!((shed.status, shed.details.as_str()), (8, "too many requests"));
    assert_eq!(running.await.unwrap().status, 0);
    assert_eq!(waiting.await.unwrap().status, 0);
    assert_eq!(served.echo.calls.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn callers_above_their_rate_are_told_to_back_off() {
    let rate = Rate { requests: 1.try_into().unwrap(), per: Duration::from_secs(3600) };
    let policy = policy(Rules { allow_any: true, rate: Some(rate), ..Rules::default() });
    let served = Setup { policy, ..Setup::default() }.serve().await;
    let ask = async || {
        let metadata = grpc_metadata(&bob(), &alice().hotkey());
        let answer = grpc(served.address, "/TextPrompting/Forward", &metadata, &forward("hi")).await;
        reply(&answer.message.unwrap()).return_code()
    };
    assert_eq!(ask().await, ReturnCode::Success);
    assert_eq!(ask().await, ReturnCode::Backoff);
}

#[tokio::test]
async fn held_bodies_have_a_common_bound() {
    let served = Setup::config(|config| config.max_buffered_bytes = 10_000).serve().await;
    let mut hog = served.connect().await;
    let head = "POST /availability HTTP/1.1\r\nhost: miner\r\ncontent-length: 20000\r\n\r\n";
    hog.write_all(head.as_bytes()).await.unwrap();
    hog.write_all(&[b' '; 9_000]).await.unwrap();
    until_async("there is no room", async || served.post(AVAILABILITY, &[], &[b' '; 2_000]).await.status == 503).await;
    drop(hog);
    until_async("there is room", async || served.post(AVAILABILITY, &[], b"{}").await.status == 200).await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_cut_off() {
    let served = Setup::config(|config| config.write_timeout = Duration::from_millis(300)).serve().await;
    let mut stream = served.connect().await;
    // Sends requests and never reads: answers fill the socket's buffers until the axon cannot write any more.
    let asking = "POST /nothing HTTP/1.1\r\nhost: miner\r\ncontent-length: 0\r\n\r\n".repeat(1000);
    let flood = async {
        loop {
            if stream.write_all(asking.as_bytes()).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), flood).await.expect("the connection is cut");
}

#[tokio::test]
async fn the_default_limits_are_what_the_documentation_says() {
    let config = AxonConfig::default();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8091");
    assert_eq!((config.max_body_bytes, config.max_header_bytes), (4 << 20, 32 << 10));
}

#[tokio::test]
async fn idle_connections_make_room_for_new_ones() {
    let served = Setup::config(|config| {
        config.max_connections = 4;
        config.max_connections_per_ip = 4;
    })
    .serve()
    .await;
    // Four that say nothing, but for one that is being answered and one that spoke HTTP/2 once.
    let mut silent = [served.connect().await, served.connect().await];
    let io = hyper_util::rt::TokioIo::new(served.connect().await);
    let (_sender, http2) = hyper::client::conn::http2::handshake::<_, _, http_body_util::Full<bytes::Bytes>>(
        hyper_util::rt::TokioExecutor::new(),
        io,
    )
    .await
    .unwrap();
    let http2 = tokio::spawn(http2);
    let (metadata, address) = (grpc_metadata(&bob(), &alice().hotkey()), served.address);
    let busy =
        tokio::spawn(async move { grpc(address, "/TextPrompting/Forward", &metadata, &forward("wait 4000")).await });
    until("a call is in hand", || served.echo.n_running.load(Ordering::SeqCst) == 1).await;
    // At first all of them may still be about to ask.
    assert_eq!(served.raw(request("POST", AVAILABILITY, &[], b"{}")).await.status, 503);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // Then those that rest go, one for each that comes, and the one in hand is answered.
    let mut newcomers = Vec::new();
    for _ in 0..3 {
        let mut newcomer = served.connect().await;
        let request = b"POST /availability HTTP/1.1\r\nhost: miner\r\ncontent-length: 2\r\n\r\n{}";
        newcomer.write_all(request).await.unwrap();
        let mut answer = [0; 12];
        newcomer.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        newcomers.push(newcomer);
    }
    for stream in &mut silent {
        let mut sink = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut sink)).await.unwrap();
        assert!(sink.is_empty());
    }
    let _ = tokio::time::timeout(Duration::from_secs(5), http2).await.unwrap();
    assert_eq!(tokio::time::timeout(Duration::from_secs(20), busy).await.unwrap().unwrap().status, 0);
}

#[tokio::test]
async fn what_is_kept_of_a_session_does_not_grow_with_its_requests() {
    let nonces = Arc::new(NonceStore::new(100_000));
    let served = Setup { nonces: nonces.clone(), ..Setup::default() }.serve().await;
    let session = "62b764fc-e650-11f1-a3fe-02fc00000001";
    for nonce in 1..=300 {
        let metadata = sign(&bob(), &alice().hotkey(), nonce, session);
        assert_eq!(
            grpc(served.address, "/TextPrompting/Forward", &metadata, &forward("hi")).await.status,
            0,
            "{nonce}"
        );
        assert_eq!(nonces.len(), usize::try_from(nonce.min(256)).unwrap());
    }
    let forgotten = sign(&bob(), &alice().hotkey(), 1, session);
    assert_eq!(grpc(served.address, "/TextPrompting/Forward", &forgotten, &forward("hi")).await.status, 16);
}
