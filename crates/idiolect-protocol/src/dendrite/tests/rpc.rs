//! The gRPC half, against a server made of this crate's server half.

use tonic::{Request, Response, Status};

use super::*;
use crate::grpc::Outcome;
use crate::pb::text_prompting_server::{TextPrompting, TextPromptingServer};
use crate::pb::{
    BackwardTextPromptingRequest, BackwardTextPromptingResponse, ForwardTextPromptingRequest,
    ForwardTextPromptingResponse, MultiForwardTextPromptingRequest, MultiForwardTextPromptingResponse,
};

/// Answers by the words of the prompt.
#[derive(Debug)]
struct Miner {
    verifier: Verifier,
    n_rewards: Arc<AtomicUsize>,
}

impl Miner {
    fn read(&self, metadata: &HeaderMap, messages: &[String]) -> Result<String, Status> {
        let claim = grpc::claim(metadata, self.verifier.receiver(), self.verifier.limits());
        let caller = claim.and_then(|claim| self.verifier.verify(claim)).map_err(|error| grpc::refusal(&error))?;
        assert!(caller.timeout().is_some());
        Ok(grpc::prompt(messages).unwrap().messages()[1].content.clone())
    }
}

#[tonic::async_trait]
impl TextPrompting for Miner {
    async fn forward(
        &self,
        request: Request<ForwardTextPromptingRequest>,
    ) -> Result<Response<ForwardTextPromptingResponse>, Status> {
        let seconds = request.get_ref().timeout;
        match self.read(request.metadata().as_ref(), &request.get_ref().messages)?.as_str() {
            "forbidden" => grpc::failure(Category::Forbidden, "not you"),
            "overloaded" => grpc::failure(Category::Overloaded, "no room"),
            "late" => Ok(grpc::timed_out(seconds)),
            "long" => Ok(Response::new(grpc::forward_reply("x".repeat(10_000)))),
            text => Ok(Response::new(grpc::forward_reply(format!("{text}, {seconds:?} s")))),
        }
    }

    async fn backward(
        &self,
        request: Request<BackwardTextPromptingRequest>,
    ) -> Result<Response<BackwardTextPromptingResponse>, Status> {
        self.read(request.metadata().as_ref(), &request.get_ref().messages)?;
        self.n_rewards.fetch_add(request.get_ref().rewards.len(), Ordering::Relaxed);
        Ok(Response::new(BackwardTextPromptingResponse::failed(crate::pb::ReturnCode::Success, "Success".to_owned())))
    }

    async fn multi_forward(
        &self,
        request: Request<MultiForwardTextPromptingRequest>,
    ) -> Result<Response<MultiForwardTextPromptingResponse>, Status> {
        let text = self.read(request.metadata().as_ref(), &request.get_ref().messages)?;
        Ok(Response::new(grpc::multi_forward_reply(vec![text.clone(), text])))
    }
}

/// A server that can be stopped.
struct Served {
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    async fn stop(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap();
    }
}

fn serve_at(listener: TcpListener, verifier: Verifier) -> Served {
    let miner = TextPromptingServer::new(Miner { verifier, n_rewards: Arc::default() });
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let server = tonic::transport::Server::builder().add_service(miner);
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let task = tokio::spawn(async move {
        server.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }).await.unwrap();
    });
    Served { stop, task }
}

async fn serve_grpc() -> (Target, Arc<AtomicUsize>) {
    let n_rewards = Arc::new(AtomicUsize::new(0));
    let miner = TextPromptingServer::new(Miner { verifier: verifier(), n_rewards: Arc::clone(&n_rewards) });
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<TextPromptingServer<Miner>>().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(miner).add_service(health);
    tokio::spawn(server.serve_with_incoming(tonic::transport::server::TcpIncoming::from(listener)));
    ((address, alice()).into(), n_rewards)
}

#[tokio::test]
async fn questions_are_understood_and_answers_read() {
    let (target, n_rewards) = serve_grpc().await;
    let (dendrite, options) = (bob(), QueryOptions::default());
    let reply = dendrite.query(&target, Via::Grpc, &prompt("héllo 😀"), &options).await.unwrap();
    assert_eq!(reply.text, "héllo 😀, 12.0 s");
    assert_eq!((reply.status_code, reply.status_message.as_str()), (200, "Success"));
    let several = dendrite.multi_forward(&target, &prompt("x"), &options).await.unwrap();
    assert_eq!(several, ["x", "x"]);
    let within = Duration::from_secs(5);
    dendrite.backward(&target, &prompt("x"), "completion", &[0.5, -1.0], within).await.unwrap();
    assert_eq!(n_rewards.load(Ordering::Relaxed), 2);
    assert!(dendrite.grpc_health(&target, "", within).await.unwrap());
    assert!(dendrite.grpc_health(&target, "TextPrompting", within).await.unwrap());
}

#[tokio::test]
async fn failures_are_told_apart() {
    let (target, _) = serve_grpc().await;
    let options = QueryOptions { max_reply_bytes: 1000, ..QueryOptions::default() };
    let check = |text: &'static str, expected: &'static str, code: u16| {
        let (target, options) = (target.clone(), options.clone());
        async move {
            let error = bob().query(&target, Via::Grpc, &prompt(text), &options).await.unwrap_err();
            assert_eq!((error.to_string().as_str(), error.status_code().as_u16()), (expected, code), "{text}");
        }
    };
    check("forbidden", "refused with Blacklisted: not you", 403).await;
    check("overloaded", "refused with RESOURCE_EXHAUSTED: no room", 429).await;
    check("late", "no answer within 12s", 408).await;
    check("long", "the answer has more than 1000 bytes", 422).await;
    let other = Target { hotkey: bob().hotkey(), ..target.clone() };
    let error = bob().query(&other, Via::Grpc, &prompt("x"), &options).await.unwrap_err();
    assert_eq!(error.to_string(), "refused with UNAUTHENTICATED: Signature mismatch");
    let error = bob().grpc_health(&target, "Nope", Duration::from_secs(5)).await.unwrap_err();
    assert!(error.to_string().starts_with("refused with NOT_FOUND"), "{error}");
}

#[tokio::test]
async fn a_connection_that_is_gone_is_made_anew() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (dendrite, options): (_, QueryOptions) = (bob(), QueryOptions::default());
    let target: Target = (address, alice()).into();
    let ask = async || dendrite.query(&target, Via::Grpc, &prompt("x"), &options).await;

    let first = serve_at(listener, verifier());
    ask().await.unwrap();
    first.stop().await;
    let error = ask().await.unwrap_err();
    assert!(matches!(error, DendriteError::Broken { .. } | DendriteError::Connect { .. }), "{error:?}");

    let again = serve_at(TcpListener::bind(address).await.unwrap(), verifier());
    ask().await.unwrap();
    again.stop().await;
}

#[tokio::test]
async fn many_calls_at_once_are_all_answered() {
    let (target, _) = serve_grpc().await;
    let (dendrite, prompt, options) = (bob(), prompt("x"), QueryOptions::default());
    let many = (0..64).map(|_| dendrite.query(&target, Via::Grpc, &prompt, &options));
    for reply in futures_util::future::join_all(many).await {
        reply.unwrap();
    }
}

#[tokio::test]
async fn presigned_requests_are_whole() {
    let dendrite = bob();
    let target: Target = ("127.0.0.1:1".parse::<SocketAddr>().unwrap(), alice()).into();
    let request = dendrite.signed_request(&target, Via::Grpc, &prompt("x"), &QueryOptions::default()).unwrap();
    let mut server = TextPromptingServer::new(Miner { verifier: verifier(), n_rewards: Arc::default() });
    let mut request = request.map(Full::new);
    request.headers_mut().insert("grpc-timeout", "12S".parse().unwrap());
    let reply = tonic::codegen::Service::call(&mut server, request).await.unwrap();
    let body = reply.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    let message: ForwardTextPromptingResponse = prost::Message::decode(&body.to_bytes()[5..]).unwrap();
    assert_eq!(message.outcome().1, "Success");
}
