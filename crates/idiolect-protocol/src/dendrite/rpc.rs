//! gRPC, as bittensor 5 asks it.

use std::error::Error;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Request, StatusCode, header};
use prost::Message as _;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::send::shorten;
use super::session::Session;
use super::{Dendrite, DendriteError, DendriteReply, QueryOptions, Target, next_counter};
use crate::grpc::{self, Outcome};
use crate::pb::text_prompting_client::TextPromptingClient;
use crate::pb::{
    BackwardTextPromptingRequest, ForwardTextPromptingRequest, MultiForwardTextPromptingRequest, ReturnCode,
};
use crate::{Prompt, status};

/// Most connections that are kept.
const MAX_CHANNELS: usize = 1024;
/// Longest reply to anything but a prompt, in bytes.
const MAX_SMALL_REPLY: usize = 64 << 10;
/// How long connecting may take, at most; the question's own timeout bounds it as well.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Client version of the wire, as a number in the message.
const WIRE_VERSION: i32 = grpc::CLIENT_VERSION as i32;

impl Dendrite {
    /// Returns the channel to a miner, connecting where there is none yet.
    async fn channel(&self, target: &Target) -> Result<Channel, DendriteError> {
        let known = self.lock_channels().get(&target.authority).cloned();
        if let Some(channel) = known {
            return Ok(channel);
        }
        let connect_error =
            |source| DendriteError::Connect { address: target.address().to_owned(), source: Box::new(source) };
        let endpoint = Endpoint::from_shared(format!("http://{}", target.address())).map_err(connect_error)?;
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(connect_error)?;
        let mut channels = self.lock_channels();
        if channels.len() >= MAX_CHANNELS {
            channels.clear();
        }
        channels.insert(target.authority.clone(), channel.clone());
        Ok(channel)
    }

    fn lock_channels(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<http::uri::Authority, Channel>> {
        // A map of channels is whole after any panic.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signed<T>(&self, session: &Session, target: &Target, timeout: Duration, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(self.metadata(session, target));
        request.set_timeout(timeout);
        request
    }

    fn metadata(&self, session: &Session, target: &Target) -> http::HeaderMap {
        grpc::sign(&self.keypair, target.hotkey(), next_counter().into(), &session.to_string())
    }

    /// Makes the error of a call that ended with a status, and forgets a connection that is gone.
    fn failed(&self, target: &Target, timeout: Duration, max_bytes: usize, status: Status) -> DendriteError {
        let address = target.address().to_owned();
        match status.code() {
            Code::DeadlineExceeded => return DendriteError::Timeout { after: timeout },
            // This is how tonic says that it stopped reading; no server of bittensor's uses the code.
            Code::OutOfRange => return DendriteError::TooLarge { max_bytes },
            _ => {}
        }
        // A status that came over the wire has no source; one that tonic made up has.
        if status.source().is_some() {
            self.lock_channels().remove(&target.authority);
            let source = Box::new(status);
            return match Cause::of(source.as_ref()) {
                Cause::Deadline => DendriteError::Timeout { after: timeout },
                Cause::Connect => DendriteError::Connect { address, source },
                Cause::Other => DendriteError::Broken { address, source },
            };
        }
        DendriteError::Refused {
            code: http_code(status.code()),
            status: code_name(status.code()).to_owned(),
            message: shorten(status.message()),
        }
    }

    pub(super) fn grpc_request(
        &self,
        session: &Session,
        target: &Target,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<Request<Bytes>, DendriteError> {
        let message = forward_request(prompt, options);
        let len = message.encoded_len();
        let too_long = || DendriteError::BadRequest { reason: "the prompt is too long".to_owned() };
        let mut frame = BytesMut::with_capacity(len + 5);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(len).map_err(|_| too_long())?);
        message.encode(&mut frame).map_err(|_| too_long())?;
        let mut request = Request::post(format!("http://{}/TextPrompting/Forward", target.address()))
            .version(http::Version::HTTP_2)
            .body(frame.freeze())
            .map_err(|error| DendriteError::BadRequest { reason: error.to_string() })?;
        *request.headers_mut() = self.metadata(session, target);
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        Ok(request)
    }

    pub(super) async fn grpc_forward(
        &self,
        target: &Target,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<DendriteReply, DendriteError> {
        let started = Instant::now();
        let mut client = self.client(target, options.max_reply_bytes).await?;
        let session = self.sessions.take();
        let request = self.signed(&session, target, options.timeout, forward_request(prompt, options));
        let failed = |status| self.failed(target, options.timeout, options.max_reply_bytes, status);
        let reply = client.forward(request).await.map_err(failed)?;
        let elapsed = started.elapsed();
        let (metadata, message, _) = reply.into_parts();
        check_outcome(&message, options.timeout)?;
        Ok(DendriteReply {
            text: message.response,
            status_code: 200,
            status_message: message.return_message,
            elapsed,
            first_byte: elapsed,
            n_pieces: 1,
            headers: metadata.into_headers(),
            model: None,
            finish_reason: None,
            logprobs: Vec::new(),
        })
    }

    pub(super) async fn grpc_multi_forward(
        &self,
        target: &Target,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<Vec<String>, DendriteError> {
        let mut client = self.client(target, options.max_reply_bytes).await?;
        let message = MultiForwardTextPromptingRequest {
            version: WIRE_VERSION,
            hotkey: self.hotkey().to_string(),
            messages: grpc::wire_messages(prompt),
            timeout: options.timeout.as_secs_f32(),
        };
        let session = self.sessions.take();
        let request = self.signed(&session, target, options.timeout, message);
        let failed = |status| self.failed(target, options.timeout, options.max_reply_bytes, status);
        let reply = client.multi_forward(request).await.map_err(failed)?;
        check_outcome(reply.get_ref(), options.timeout)?;
        Ok(reply.into_inner().multi_completions)
    }

    pub(super) async fn grpc_backward(
        &self,
        target: &Target,
        prompt: &Prompt,
        completion: &str,
        rewards: &[f32],
        timeout: Duration,
    ) -> Result<(), DendriteError> {
        let mut client = self.client(target, MAX_SMALL_REPLY).await?;
        let message = BackwardTextPromptingRequest {
            version: WIRE_VERSION,
            hotkey: String::new(),
            rewards: rewards.to_vec(),
            messages: grpc::wire_messages(prompt),
            response: completion.to_owned(),
            timeout: timeout.as_secs_f32(),
        };
        let session = self.sessions.take();
        let request = self.signed(&session, target, timeout, message);
        let failed = |status| self.failed(target, timeout, MAX_SMALL_REPLY, status);
        let reply = client.backward(request).await.map_err(failed)?;
        check_outcome(reply.get_ref(), timeout)
    }

    pub(super) async fn ask_health(
        &self,
        target: &Target,
        service: &str,
        timeout: Duration,
    ) -> Result<bool, DendriteError> {
        let mut client = HealthClient::new(self.channel(target).await?).max_decoding_message_size(MAX_SMALL_REPLY);
        let request = HealthCheckRequest { service: service.to_owned() };
        let failed = |status| self.failed(target, timeout, MAX_SMALL_REPLY, status);
        let reply = client.check(request).await.map_err(failed)?;
        Ok(reply.get_ref().status() == ServingStatus::Serving)
    }

    async fn client(
        &self,
        target: &Target,
        max_reply_bytes: usize,
    ) -> Result<TextPromptingClient<Channel>, DendriteError> {
        Ok(TextPromptingClient::new(self.channel(target).await?).max_decoding_message_size(max_reply_bytes))
    }
}

fn forward_request(prompt: &Prompt, options: &QueryOptions) -> ForwardTextPromptingRequest {
    ForwardTextPromptingRequest {
        version: WIRE_VERSION,
        hotkey: String::new(),
        messages: grpc::wire_messages(prompt),
        timeout: options.timeout.as_secs_f32(),
    }
}

fn check_outcome(reply: &impl Outcome, timeout: Duration) -> Result<(), DendriteError> {
    let (code, message) = reply.outcome();
    match code {
        ReturnCode::Success => Ok(()),
        ReturnCode::Timeout => Err(DendriteError::Timeout { after: timeout }),
        _ => Err(DendriteError::Refused {
            code: grpc::category(code).map_or(StatusCode::INTERNAL_SERVER_ERROR, status::http_status),
            status: format!("{code:?}"),
            message: shorten(message),
        }),
    }
}

/// What ended a call before a status came over the wire.
enum Cause {
    /// The client's own deadline.
    Deadline,
    /// Connecting anew failed.
    Connect,
    /// Anything else.
    Other,
}

impl Cause {
    fn of(error: &(dyn Error + 'static)) -> Self {
        use std::io::ErrorKind as K;
        let mut next = Some(error);
        while let Some(error) = next {
            if error.is::<tonic::TimeoutExpired>() {
                return Self::Deadline;
            }
            if let Some(error) = error.downcast_ref::<std::io::Error>() {
                return match error.kind() {
                    K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable | K::TimedOut => Self::Connect,
                    _ => Self::Other,
                };
            }
            next = error.source();
        }
        Self::Other
    }
}

/// The HTTP status nearest to a gRPC code.
const fn http_code(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound | Code::Unimplemented => StatusCode::NOT_FOUND,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The code as gRPC writes it.
const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
