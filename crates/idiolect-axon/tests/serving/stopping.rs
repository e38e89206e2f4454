//! Stopping: what runs is finished, what comes is refused, nobody waits for ever.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use idiolect_protocol::pb::{ForwardTextPromptingRequest, ForwardTextPromptingResponse};
use prost::Message as _;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tonic::transport::Endpoint;

use crate::support::{Served, Setup, alice, bob, grpc, grpc_metadata, until};

fn forward(content: &str) -> Vec<u8> {
    let message = serde_json::json!({"role": "user", "content": content}).to_string();
    ForwardTextPromptingRequest { messages: vec![message], timeout: 30.0, ..Default::default() }.encode_to_vec()
}

fn ask(served: &Served, content: &str) -> tokio::task::JoinHandle<crate::support::GrpcAnswer> {
    let (address, message) = (served.address, forward(content));
    let metadata = grpc_metadata(&bob(), &alice().hotkey());
    tokio::spawn(async move { grpc(address, "/TextPrompting/Forward", &metadata, &message).await })
}

#[tokio::test]
async fn running_answers_are_finished_and_newcomers_refused() {
    let mut served = Setup::default().serve().await;
    let running = ask(&served, "wait 3000");
    until("the call runs", || served.echo.n_running.load(Ordering::SeqCst) == 1).await;
    served.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(served.is_running());
    assert!(TcpStream::connect(served.address).await.is_err(), "the port is closed at once");
    let answer = running.await.unwrap();
    let reply = ForwardTextPromptingResponse::decode(answer.message.unwrap()).unwrap();
    assert_eq!(reply.response, "waited");
    tokio::time::timeout(Duration::from_secs(5), served.stopped()).await.unwrap();
}

#[tokio::test]
async fn health_says_not_serving_while_it_stops() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
    let mut served = Setup::default().serve().await;
    let channel = Endpoint::try_from(format!("http://{}", served.address)).unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    let request = HealthCheckRequest { service: "TextPrompting".to_owned() };
    let mut states = client.watch(request).await.unwrap().into_inner();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let running = ask(&served, "wait 2000");
    until("the call runs", || served.echo.n_running.load(Ordering::SeqCst) == 1).await;
    served.stop();
    assert_eq!(states.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(running.await.unwrap().status, 0);
    // The watcher would stay for ever; stopping does not wait for it.
    tokio::time::timeout(Duration::from_secs(5), served.stopped()).await.unwrap();
}

#[tokio::test]
async fn work_that_outlasts_the_grace_is_dropped() {
    let served = Setup::config(|config| config.drain = Duration::from_millis(300)).serve().await;
    let running = ask(&served, "wait 20000");
    until("the call runs", || served.echo.n_running.load(Ordering::SeqCst) == 1).await;
    let echo = served.echo.clone();
    let began = Instant::now();
    served.stopped().await;
    assert!(began.elapsed() >= Duration::from_millis(290) && began.elapsed() < Duration::from_secs(10));
    assert_eq!(echo.n_dropped.load(Ordering::SeqCst), 1);
    assert!(running.await.is_err(), "the client sees its connection end");
}

#[tokio::test]
async fn idle_connections_do_not_hold_it_up() {
    let served = Setup::default().serve().await;
    let mut idle = served.connect().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let began = Instant::now();
    served.stopped().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let mut sink = Vec::new();
    let _ = idle.read_to_end(&mut sink).await;
}
