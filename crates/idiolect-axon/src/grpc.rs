//! The gRPC side: `TextPrompting`, health and reflection.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use idiolect_protocol::grpc::{self as wire, Outcome};
use idiolect_protocol::pb::text_prompting_server::{TextPrompting, TextPromptingServer};
use idiolect_protocol::pb::{
    BackwardTextPromptingRequest, BackwardTextPromptingResponse, FILE_DESCRIPTOR_SET, ForwardTextPromptingRequest,
    ForwardTextPromptingResponse, MultiForwardTextPromptingRequest, MultiForwardTextPromptingResponse,
};
use idiolect_protocol::{Caller, Category, Prompt, PromptError, status};
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::server::HealthReporter;
use tower::Service as _;

use crate::admission::{Admission, InFlight, Refusal};
use crate::body::{BodyError, BodyLimits, RequestBody};
use crate::handler::{Call, Feedback, Reply};
use crate::metrics as meters;
use crate::queue::Priority;

/// The name under which health is asked for besides the empty one.
const SERVICE: &str = "TextPrompting";

/// All gRPC services of the port.
pub(crate) struct GrpcServices {
    admission: Arc<Admission>,
    text_prompting: TextPromptingServer<TextPromptingFront>,
    health: HealthReporter,
    extras: Routes,
}

impl GrpcServices {
    pub(crate) async fn new(admission: Arc<Admission>) -> Self {
        let front = TextPromptingFront { admission: admission.clone() };
        let max_bytes = admission.config.max_body_bytes;
        let text_prompting = TextPromptingServer::new(front).max_decoding_message_size(max_bytes);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status(SERVICE, tonic_health::ServingStatus::Serving).await;
        let mut extras = Routes::new(health_service.max_decoding_message_size(MAX_EXTRA_BYTES));
        if admission.config.reflection {
            let reflection = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .build_v1();
            match reflection {
                Ok(service) => extras = extras.add_service(service.max_decoding_message_size(MAX_EXTRA_BYTES)),
                Err(error) => tracing::error!(%error, "gRPC reflection is off: the descriptors do not fit together"),
            }
        }
        Self { admission, text_prompting, health, extras: extras.prepare() }
    }

    pub(crate) async fn set_not_serving(&self) {
        for service in ["", SERVICE] {
            self.health.set_service_status(service, tonic_health::ServingStatus::NotServing).await;
        }
    }

    /// Answers a request; the second value says how it went, for metrics.
    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        in_flight: &InFlight,
        arrived: Instant,
    ) -> (Response<Body>, &'static str) {
        let path = request.uri().path();
        if !path.starts_with("/TextPrompting/") {
            let extras = path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.");
            return if extras { self.answer_extra(request).await } else { refuse(&not_found()) };
        }
        let synapse = match path {
            "/TextPrompting/Forward" => "TextPrompting.Forward",
            "/TextPrompting/MultiForward" => "TextPrompting.MultiForward",
            "/TextPrompting/Backward" => "TextPrompting.Backward",
            _ => return refuse(&not_found()),
        };
        let admission = &self.admission;
        let claim = wire::claim(request.headers(), admission.verifier.receiver(), admission.verifier.limits());
        let caller = match claim.and_then(|claim| in_flight.verify(claim, 0)) {
            Ok(caller) => caller,
            Err(error) => {
                let mut status = wire::refusal(&error);
                if matches!(error.category(), Category::Overloaded | Category::RateLimited) {
                    add_retry_after(&mut status, &Refusal::overloaded(""));
                }
                return (status.into_http(), meters::category_label(error.category()));
            }
        };
        // Decided now, told in the answer's own message, which is made once the request's message is there.
        let decision = in_flight.decide(&caller, 0, synapse);
        let limits = admission.body_limits();
        let mut request = request.map(|body| bounded(body, limits));
        request.extensions_mut().insert(Verified { caller, arrived, decision });
        let response = match self.text_prompting.clone().call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let outcome = response.extensions().get::<OutcomeLabel>().map_or_else(|| status_label(&response), |o| o.0);
        (response, outcome)
    }

    async fn answer_extra(&self, request: Request<Incoming>) -> (Response<Body>, &'static str) {
        // Nobody proves anything here, so nobody may keep us waiting for the question either.
        let config = &self.admission.config;
        let timeout = if is_lasting(&request) { config.idle_timeout } else { config.body_timeout };
        let limits = BodyLimits { max_bytes: MAX_EXTRAS_BYTES, timeout, ..self.admission.body_limits() };
        let request = request.map(|body| bounded(body, limits));
        match self.extras.clone().call(request).await {
            Ok(response) => (response.map(Body::new), "ok"),
            Err(never) => match never {},
        }
    }
}

/// Says whether a request asks for a stream that ends when the client wants.
pub(crate) fn is_lasting<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    path == "/grpc.health.v1.Health/Watch" || path.starts_with("/grpc.reflection.")
}

/// All questions of one stream of reflection together.
const MAX_EXTRAS_BYTES: usize = 64 << 10;

fn bounded(body: Incoming, limits: BodyLimits) -> Body {
    let refused = |error: BodyError| {
        labelled_status(Status::new(status::grpc_code(error.category()), error.to_string()), error.category())
    };
    Body::new(RequestBody::grpc(body, limits).map_err(refused))
}

/// Health and reflection requests are a few words.
const MAX_EXTRA_BYTES: usize = 4096;

fn not_found() -> Status {
    Status::unimplemented("Method not found!")
}

/// Makes the answer of a request that is refused as a whole.
pub(crate) fn refuse_for(refusal: &Refusal) -> (Response<Body>, &'static str) {
    let mut status = Status::new(status::grpc_code(refusal.category), refusal.message.to_string());
    add_retry_after(&mut status, refusal);
    (status.into_http(), meters::category_label(refusal.category))
}

fn refuse(status: &Status) -> (Response<Body>, &'static str) {
    (status.clone().into_http(), label(status.code()))
}

fn add_retry_after(status: &mut Status, refusal: &Refusal) {
    let Some(seconds) = refusal.retry_after_seconds() else { return };
    if let Ok(value) = MetadataValue::try_from(seconds.to_string()) {
        status.metadata_mut().insert("retry-after", value);
    }
}

/// Reads the status that tonic put into an answer without a message: the label it carries, otherwise what its code says.
fn status_label(response: &Response<Body>) -> &'static str {
    let status = response.extensions().get::<Status>();
    if let Some(label) = status.and_then(|status| status.source()?.downcast_ref::<OutcomeLabel>()) {
        return label.0;
    }
    Status::from_header_map(response.headers()).map_or("ok", |status| label(status.code()))
}

fn label(code: Code) -> &'static str {
    meters::category_label(match code {
        Code::Ok => return "ok",
        Code::Unauthenticated => Category::Unauthenticated,
        Code::ResourceExhausted => Category::Overloaded,
        Code::OutOfRange => Category::TooLarge,
        Code::Unavailable => Category::Unavailable,
        Code::DeadlineExceeded => Category::Timeout,
        Code::Unimplemented => Category::NotFound,
        Code::InvalidArgument => Category::Malformed,
        _ => Category::Internal,
    })
}

/// Put beside a request once its metadata was proved; without it no method answers.
#[derive(Clone)]
struct Verified {
    caller: Caller,
    arrived: Instant,
    decision: Result<Priority, Refusal>,
}

/// Put beside an answer whose failure stands in its message, where no status tells of it, and into a status whose code
/// stands for several categories.
#[derive(Clone, Copy, Debug)]
struct OutcomeLabel(&'static str);

impl fmt::Display for OutcomeLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for OutcomeLabel {}

fn labelled_status(mut status: Status, category: Category) -> Status {
    status.set_source(Arc::new(OutcomeLabel(meters::category_label(category))));
    status
}

/// The service that tonic calls with decoded messages.
struct TextPromptingFront {
    admission: Arc<Admission>,
}

type Answer<R> = Result<tonic::Response<R>, Status>;

/// What the three kinds of request have in common once they are read.
struct Asked {
    caller: Caller,
    arrived: Instant,
    priority: Priority,
    prompt: Prompt,
    timeout: std::time::Duration,
}

/// An answer that comes before any work, or the work.
type Checked<R> = Result<Asked, Answer<R>>;

impl TextPromptingFront {
    fn check<R: Outcome>(&self, extensions: &tonic::Extensions, messages: &[String], seconds: f32) -> Checked<R> {
        let Some(Verified { caller, arrived, decision }) = extensions.get().cloned() else {
            return Err(Err(Status::unauthenticated("Request signature missing")));
        };
        let priority = decision.map_err(|refusal| failed(&refusal))?;
        let limits = self.admission.verifier.limits();
        let Some(timeout) = wire::timeout(seconds, limits) else { return Err(Ok(late(seconds))) };
        let timeout = caller.timeout().map_or(timeout, |limit| limit.min(timeout));
        let prompt = wire::prompt(messages).map_err(|error| bad_prompt(&error))?;
        Ok(Asked { caller, arrived, priority, prompt, timeout })
    }

    async fn complete(&self, asked: Asked, synapse: &str, n_completions: usize) -> Result<Reply, Refusal> {
        let deadline = self.admission.deadline(asked.arrived, Some(asked.timeout));
        let call = Call {
            caller: asked.caller,
            synapse: synapse.to_owned(),
            prompt: asked.prompt,
            deadline: deadline.soft,
            n_completions,
            task: None,
            model: None,
            dictated: None,
            logprobs: None,
        };
        self.admission.forward(call, asked.priority, deadline).await
    }
}

#[tonic::async_trait]
impl TextPrompting for TextPromptingFront {
    async fn forward(
        &self,
        request: tonic::Request<ForwardTextPromptingRequest>,
    ) -> Answer<ForwardTextPromptingResponse> {
        const SYNAPSE: &str = "TextPrompting.Forward";
        let (_, extensions, message) = request.into_parts();
        let asked = match self.check(&extensions, &message.messages, message.timeout) {
            Ok(asked) => asked,
            Err(answer) => return answer,
        };
        match self.complete(asked, SYNAPSE, 1).await {
            Ok(reply) => {
                let completion = reply.completions.into_iter().next().unwrap_or_default();
                Ok(tonic::Response::new(wire::forward_reply(completion)))
            }
            Err(refusal) => failed_or_late(&refusal, message.timeout),
        }
    }

    async fn multi_forward(
        &self,
        request: tonic::Request<MultiForwardTextPromptingRequest>,
    ) -> Answer<MultiForwardTextPromptingResponse> {
        const SYNAPSE: &str = "TextPrompting.MultiForward";
        let (_, extensions, message) = request.into_parts();
        let asked = match self.check(&extensions, &message.messages, message.timeout) {
            Ok(asked) => asked,
            Err(answer) => return answer,
        };
        match self.complete(asked, SYNAPSE, self.admission.config.n_multi_completions).await {
            Ok(reply) => Ok(tonic::Response::new(wire::multi_forward_reply(reply.completions))),
            Err(refusal) => failed_or_late(&refusal, message.timeout),
        }
    }

    async fn backward(
        &self,
        request: tonic::Request<BackwardTextPromptingRequest>,
    ) -> Answer<BackwardTextPromptingResponse> {
        let (_, extensions, message) = request.into_parts();
        let asked = match self.check(&extensions, &message.messages, message.timeout) {
            Ok(asked) => asked,
            Err(answer) => return answer,
        };
        if message.rewards.iter().any(|reward| !reward.is_finite()) {
            return Err(Status::invalid_argument("rewards must be finite numbers"));
        }
        let deadline = self.admission.deadline(asked.arrived, Some(asked.timeout));
        let feedback = Feedback {
            caller: asked.caller,
            prompt: asked.prompt,
            completion: message.response,
            rewards: message.rewards,
        };
        match self.admission.backward(feedback, asked.priority, deadline).await {
            Ok(()) => Ok(tonic::Response::new(wire::backward_reply())),
            Err(refusal) => failed_or_late(&refusal, message.timeout),
        }
    }
}

fn failed_or_late<R: Outcome>(refusal: &Refusal, seconds: f32) -> Answer<R> {
    if refusal.category == Category::Timeout {
        return Ok(late(seconds));
    }
    failed(refusal)
}

fn failed<R: Outcome>(refusal: &Refusal) -> Answer<R> {
    match wire::failure(refusal.category, refusal.message.clone()) {
        Ok(response) => Ok(labelled(response, meters::category_label(refusal.category))),
        Err(mut status) => {
            add_retry_after(&mut status, refusal);
            Err(labelled_status(status, refusal.category))
        }
    }
}

fn late<R: Outcome>(seconds: f32) -> tonic::Response<R> {
    labelled(wire::timed_out(seconds), meters::category_label(Category::Timeout))
}

fn bad_prompt<R: Outcome>(error: &PromptError) -> Answer<R> {
    wire::prompt_failure(error).map(|response| labelled(response, meters::category_label(Category::Malformed)))
}

fn labelled<R>(mut response: tonic::Response<R>, label: &'static str) -> tonic::Response<R> {
    response.extensions_mut().insert(OutcomeLabel(label));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_that_share_a_code_are_told_apart_in_metrics() {
        for category in [Category::TooLarge, Category::Overloaded, Category::Unavailable] {
            let refusal = Refusal::new(category, "no");
            let status = failed::<ForwardTextPromptingResponse>(&refusal).expect_err("a status");
            assert_eq!(status_label(&status.into_http()), meters::category_label(category), "{category:?}");
        }
    }
}
