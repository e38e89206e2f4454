//! The HTTP side: which route a request takes, and how refusals look.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use idiolect_protocol::http_synapse::error_reply;
use idiolect_protocol::{Category, openai};
use serde::Serialize;

use crate::admission::{Admission, InFlight, Refusal};
use crate::body::{BodyLimits, ReplyBody, RequestBody};
use crate::chat;
use crate::connection::Answered;
use crate::metrics as meters;
use crate::synapse::SynapseFront;

/// Serves everything that is not gRPC.
pub(crate) struct HttpFront {
    admission: Arc<Admission>,
    pub(crate) synapses: SynapseFront,
    availability_rate: DefaultKeyedRateLimiter<IpAddr>,
}

/// Unsigned questions that one address may ask in a minute.
const AVAILABILITY_PER_MINUTE: NonZeroU32 = NonZeroU32::new(60).unwrap();

/// Addresses whose rate is remembered; beyond, those at rest are forgotten.
const MAX_ADDRESSES: usize = 8192;

/// Largest unsigned question.
const MAX_AVAILABILITY_BYTES: usize = 64 << 10;

impl HttpFront {
    pub(crate) fn new(admission: Arc<Admission>) -> Self {
        let synapses = SynapseFront::new(admission.clone());
        let availability_rate = RateLimiter::keyed(Quota::per_minute(AVAILABILITY_PER_MINUTE));
        Self { admission, synapses, availability_rate }
    }

    pub(crate) async fn answer(&self, request: Request<Incoming>, in_flight: &InFlight, arrived: Instant) -> Answered {
        match request.uri().path() {
            openai::CHAT_PATH if request.method() != Method::POST => {
                refused("none", &wrong_method(), method_not_allowed())
            }
            openai::AVAILABILITY_PATH if request.method() != Method::POST => {
                refused("none", &wrong_method(), method_not_allowed())
            }
            openai::CHAT_PATH => chat::answer(&self.admission, in_flight, request, arrived).await,
            openai::AVAILABILITY_PATH => match self.availability(request, in_flight.address()).await {
                Ok(response) => Answered { response, transport: "none", outcome: "ok" },
                Err(refusal) => refused("none", &refusal, refuse(&refusal)),
            },
            _ => self.synapses.answer(in_flight, request, arrived).await,
        }
    }

    /// Answers the one question that nobody signs: which of the named tasks and models are served.
    async fn availability(
        &self,
        request: Request<Incoming>,
        address: IpAddr,
    ) -> Result<Response<ReplyBody<()>>, Refusal> {
        if self.availability_rate.len() > MAX_ADDRESSES {
            self.availability_rate.retain_recent();
            if self.availability_rate.len() > MAX_ADDRESSES {
                return Err(Refusal::overloaded("too many requests"));
            }
        }
        if self.availability_rate.check_key(&address).is_err() {
            return Err(Refusal { category: Category::RateLimited, ..Refusal::overloaded("too many requests") });
        }
        check_encoding(request.headers())?;
        let limits = BodyLimits { max_bytes: MAX_AVAILABILITY_BYTES, ..self.admission.body_limits() };
        let body = read(RequestBody::plain(request.into_body(), limits)).await?;
        let asked = openai::AvailabilityRequest::from_json(&body)
            .map_err(|error| Refusal::new(Category::Malformed, error.to_string()))?;
        let (tasks, models) = self
            .admission
            .availability(
                asked.task_availabilities.into_keys().collect(),
                asked.llm_model_availabilities.into_keys().collect(),
            )
            .await?;
        let reply = openai::AvailabilityReply { task_availabilities: tasks, llm_model_availabilities: models };
        json(StatusCode::OK, &reply)
    }
}

/// Refuses bodies that would have to be unpacked: no client sends any, and a small one can unpack to a large one.
pub(crate) fn check_encoding(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_other = |name, plain: &[u8]| headers.get_all(name).iter().any(|v| !v.as_bytes().eq_ignore_ascii_case(plain));
    if is_other(header::CONTENT_ENCODING, b"identity") || is_other(header::TRANSFER_ENCODING, b"chunked") {
        return Err(Refusal::new(Category::Malformed, "compressed bodies are not accepted"));
    }
    Ok(())
}

/// Reads a body whole.
pub(crate) async fn read(mut body: RequestBody) -> Result<Bytes, Refusal> {
    body.collect_bytes().await.map_err(|error| {
        let refusal = Refusal::new(error.category(), error.to_string());
        if error.category() == Category::Overloaded {
            return Refusal { retry_after: Refusal::overloaded("").retry_after, ..refusal };
        }
        refusal
    })
}

pub(crate) fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response<ReplyBody<()>>, Refusal> {
    let bytes = serde_json::to_vec(value).map_err(|_| Refusal::new(Category::Internal, "internal error"))?;
    Ok(with_type(status, "application/json", ReplyBody::whole(bytes.into())))
}

pub(crate) fn with_type(
    status: StatusCode,
    content_type: &'static str,
    body: ReplyBody<()>,
) -> Response<ReplyBody<()>> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(crate) fn refused(transport: &'static str, refusal: &Refusal, response: Response<ReplyBody<()>>) -> Answered {
    Answered { response, transport, outcome: meters::category_label(refusal.category) }
}

/// Makes the answer of a refused request, in the form that every Bittensor client reads: status, headers, JSON.
pub(crate) fn refuse(refusal: &Refusal) -> Response<ReplyBody<()>> {
    // How long it took to say no is nobody's business.
    let mut response = error_reply(refusal.category, &refusal.message, Duration::ZERO).map(ReplyBody::whole);
    add_retry_after(&mut response, refusal);
    response
}

/// A route that exists, asked with a method that it does not take.
pub(crate) fn method_not_allowed() -> Response<ReplyBody<()>> {
    let mut response = refuse(&wrong_method());
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response.headers_mut().insert("bt_header_axon_status_code", HeaderValue::from_static("405"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
    response
}

pub(crate) fn wrong_method() -> Refusal {
    Refusal::new(Category::NotFound, "Method Not Allowed")
}

pub(crate) fn add_retry_after(response: &mut Response<ReplyBody<()>>, refusal: &Refusal) {
    if let Some(seconds) = refusal.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
}
