//! bittensor 5.0 to 5.3: the gRPC service `TextPrompting`.
//!
//! The caller signs a text in the metadata, [`claim`] reads it. **The signature covers neither the method nor the
//! message**, so what a message says of its sender counts for nothing, and a stolen head can be used once with any body.
//!
//! The nonces are the client's monotonic clock: they say nothing about the time of day and only ever grow, so the last
//! one of each session has to be remembered across restarts ([`Nonce::Monotonic`]). A nonce that *is* the time of day is
//! refused: servers of later versions can be made to sign texts of that shape for anybody ([`Limits::grpc_clock_nonces`]).
//!
//! ```
//! use std::sync::Arc;
//!
//! use idiolect_protocol::{Keypair, Limits, NonceStore, SystemClock, Verifier, grpc};
//!
//! let (validator, miner) = (Keypair::from_uri("//Bob")?, Keypair::from_uri("//Alice")?);
//! let limits = Limits::default();
//!
//! // The client's side.
//! let metadata = grpc::sign(&validator, &miner.hotkey(), 3_097_098_418_811, "62b764fc-e650-11f1-a3fe-02fc00000001");
//!
//! // The server's side.
//! let verifier = Verifier::new(miner.hotkey(), limits.clone(), Arc::new(SystemClock), Arc::new(NonceStore::new(1000)));
//! let caller = verifier.verify(grpc::claim(&metadata, &miner.hotkey(), &limits)?)?;
//! assert_eq!(*caller.hotkey(), validator.hotkey());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use tonic::{Code, Response, Status};

use crate::caller::FIRST_CLOCK_NONCE;
use crate::pb::{
    self, BackwardTextPromptingResponse, ForwardTextPromptingResponse, MultiForwardTextPromptingResponse, ReturnCode,
};
use crate::{
    AuthError, Category, Claim, Hotkey, Keypair, Limits, Message, Nonce, Prompt, PromptError, Role, Scheme, Transport,
    headers, keys, python_json, status,
};

/// The metadata entry that holds nonce, sender, signature and session.
pub const SIGNATURE_HEADER: &str = "bittensor-signature";
/// The metadata entry that holds the client's version number.
pub const VERSION_HEADER: &str = "bittensor-version";
/// A metadata entry that clients send and nobody reads.
pub const AUTH_HEADER: &str = "rpc-auth-header";
/// The version number that our own client gives: bittensor 5.3.4.
pub const CLIENT_VERSION: i64 = 534;
/// The `return_message` of a reply that holds what was asked for.
pub const SUCCESS: &str = "Success";

/// Oldest version that is served. bittensor 5.0 to 5.2 drew the line here, 5.3 at 510; one server for both takes the
/// lower. The number is not signed, so no safety hangs on it.
const MIN_VERSION: i64 = 370;
/// Clocks that count nanoseconds in 64 bits end in 2262. Above, a nonce is a large counter.
const LAST_CLOCK_NONCE: i128 = i64::MAX as i128;
/// Longest nonce that is read, in characters.
const MAX_NONCE_LEN: usize = 256;

/// Reads who claims to call out of a request's metadata (`request.metadata().as_ref()` with tonic).
///
/// [`Claim::timeout`] is what the `grpc-timeout` header says; see [`timeout`] for the message's own field.
///
/// # Errors
/// [`AuthError`] in the reference server's order: signature missing, version, format. [`refusal`] makes the status.
pub fn claim(metadata: &HeaderMap, receiver: &Hotkey, limits: &Limits) -> Result<Claim, AuthError> {
    if !limits.grpc {
        return Err(AuthError::TransportOff("bittensor 5"));
    }
    let signature = headers::required(metadata, SIGNATURE_HEADER)?;
    let version = headers::optional(metadata, VERSION_HEADER)?
        .and_then(|text| text.trim().parse::<i64>().ok())
        .filter(|version| *version >= MIN_VERSION)
        .ok_or(AuthError::IncorrectVersion)?;
    let parts: Vec<&str> = signature.splitn(5, '.').collect();
    let &[nonce, sender, signature, session] = &parts[..] else { return Err(AuthError::UnknownSignatureFormat) };
    let (nonce_text, value) = parse_nonce(nonce).ok_or(AuthError::UnknownSignatureFormat)?;
    if !limits.grpc_clock_nonces && (FIRST_CLOCK_NONCE..=LAST_CLOCK_NONCE).contains(&value) {
        return Err(AuthError::ClockNonce);
    }
    if !headers::is_session_id(session) {
        return Err(AuthError::UnknownSignatureFormat);
    }
    let hotkey: Hotkey = sender.parse().map_err(|_| AuthError::UnknownSignatureFormat)?;
    // The reference answers with its key library's words here; to the client both mean the same.
    let signature = keys::parse_signature(signature).ok_or(AuthError::SignatureMismatch)?;
    Ok(Claim {
        transport: Transport::Grpc,
        hotkey,
        scheme: Scheme::Sr25519,
        signed: signed_text(&nonce_text, &hotkey, receiver, session).into_bytes(),
        signature,
        nonce: Nonce::Monotonic { key: format!("{hotkey}:{session}"), value },
        timeout: grpc_timeout(metadata).map(|t| t.min(limits.max_timeout)),
        version: Some(version),
    })
}

/// Makes the metadata that bittensor 5.3 sends: `sender` asks `receiver`.
///
/// `nonce` must grow with every request of one `session`, and not be the time of day: bittensor 5 takes the nanoseconds since
/// the machine was started. `session` should be a UUID of version 1 or 7, which say when they were made: a server
/// that has to forget old sessions ([`NonceStore`](crate::NonceStore)) may take others for old ones.
///
/// # Panics
/// Never: all parts are ASCII where `session` is; another `session` is left out.
#[must_use]
pub fn sign(sender: &Keypair, receiver: &Hotkey, nonce: i128, session: &str) -> HeaderMap {
    let hotkey = sender.hotkey();
    let text = signed_text(&nonce.to_string(), &hotkey, receiver, session);
    let signature = keys::format_signature(&sender.sign(text.as_bytes()));
    let mut metadata = HeaderMap::with_capacity(3);
    metadata.insert(AUTH_HEADER, HeaderValue::from_static("Bittensor"));
    metadata.insert(VERSION_HEADER, HeaderValue::from(CLIENT_VERSION));
    if let Ok(value) = HeaderValue::try_from(format!("{nonce}.{hotkey}.{signature}.{session}")) {
        metadata.insert(SIGNATURE_HEADER, value);
    }
    metadata
}

fn signed_text(nonce: &str, sender: &Hotkey, receiver: &Hotkey, session: &str) -> String {
    format!("{nonce}.{sender}.{receiver}.{session}")
}

/// Reads an integer of any size: its text as Python would print it (which is what gets signed) and its value, kept
/// within 128 bits. A session that counts beyond them has only itself to blame: it gets no further.
fn parse_nonce(text: &str) -> Option<(String, i128)> {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    if digits.is_empty() || digits.len() > MAX_NONCE_LEN || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Some(("0".to_owned(), 0));
    }
    let text = format!("{sign}{digits}");
    let value = text.parse().unwrap_or(if sign.is_empty() { i128::MAX } else { i128::MIN });
    Some((text, value))
}

/// Reads gRPC's own `grpc-timeout` header. A broken one counts as missing.
fn grpc_timeout(metadata: &HeaderMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// Makes the status of a request whose claim was not believed, in the reference server's words.
#[must_use]
pub fn refusal(error: &AuthError) -> Status {
    let code = match error {
        AuthError::NonceStoreFull | AuthError::TooManyFailures => status::grpc_code(error.category()),
        _ => Code::Unauthenticated,
    };
    let details = match error {
        AuthError::Missing(_) => "Request signature missing".to_owned(),
        AuthError::Malformed { .. } => AuthError::UnknownSignatureFormat.to_string(),
        other => other.to_string(),
    };
    Status::new(code, details)
}

/// How long the client waits by its message, at most [`Limits::max_timeout`].
///
/// `None` means that no time is left: the field is 0 or absent (the reference answers such a request with a timeout at
/// once), negative, or no number. Answer with [`timed_out`].
///
/// ```
/// # use std::time::Duration;
/// # use idiolect_protocol::{Limits, grpc};
/// let limits = Limits::default();
/// assert_eq!(grpc::timeout(12.0, &limits), Some(Duration::from_secs(12)));
/// assert_eq!(grpc::timeout(f32::INFINITY, &limits), Some(limits.max_timeout));
/// assert_eq!(grpc::timeout(0.0, &limits), None);
/// assert_eq!(grpc::timeout(-1.0, &limits), None);
/// assert_eq!(grpc::timeout(f32::NAN, &limits), None);
/// ```
#[must_use]
pub fn timeout(seconds: f32, limits: &Limits) -> Option<Duration> {
    Some(headers::saturating_seconds(f64::from(seconds)).min(limits.max_timeout)).filter(|t| !t.is_zero())
}

/// A message of the wire: one JSON object a turn. Other fields are ignored.
#[derive(Serialize, Deserialize)]
struct WireMessage<R, T> {
    role: R,
    content: T,
}

/// Reads the `messages` of a request: JSON texts `{"role": …, "content": …}`.
///
/// # Errors
/// [`PromptError`]; [`prompt_failure`] makes the reply. A text with lone surrogates (`"\ud800"` alone) is
/// [`PromptError::NotAMessage`], although Python would take it.
pub fn prompt(messages: &[String]) -> Result<Prompt, PromptError> {
    if messages.len() > Prompt::MAX_MESSAGES {
        return Err(PromptError::TooMany { n_messages: messages.len(), max: Prompt::MAX_MESSAGES });
    }
    let messages = messages.iter().enumerate().map(|(index, text)| {
        // serde would read a list of two texts as well.
        let is_object = text.trim_start().starts_with('{');
        let message: WireMessage<String, String> =
            is_object.then(|| serde_json::from_str(text).ok()).flatten().ok_or(PromptError::NotAMessage { index })?;
        Ok(Message::new(message.role.parse()?, message.content))
    });
    Prompt::new(messages.collect::<Result<_, PromptError>>()?)
}

/// Writes a prompt as the `messages` of a request, in Python's spelling.
#[must_use]
pub fn wire_messages(prompt: &Prompt) -> Vec<String> {
    let text = |m: &Message| python_json::to_string(&WireMessage::<Role, &str> { role: m.role, content: &m.content });
    // Two texts always serialise; an empty entry would be refused by the peer.
    prompt.messages().iter().map(|m| text(m).unwrap_or_default()).collect()
}

/// The three kinds of reply: all can carry a failure instead of content.
pub trait Outcome: Sized {
    /// Makes the reply of a request that failed.
    fn failed(code: ReturnCode, message: String) -> Self;

    /// Returns the code and the message.
    fn outcome(&self) -> (ReturnCode, &str);
}

macro_rules! impl_outcome {
    ($($reply:ty),*) => {$(
        impl Outcome for $reply {
            fn failed(code: ReturnCode, message: String) -> Self {
                Self { return_code: code.into(), return_message: message, ..Self::default() }
            }

            fn outcome(&self) -> (ReturnCode, &str) {
                (self.return_code(), &self.return_message)
            }
        }
    )*};
}

impl_outcome!(ForwardTextPromptingResponse, MultiForwardTextPromptingResponse, BackwardTextPromptingResponse);

/// Makes the reply of `Forward`.
pub fn forward_reply(completion: impl Into<String>) -> ForwardTextPromptingResponse {
    ForwardTextPromptingResponse {
        response: completion.into(),
        ..Outcome::failed(ReturnCode::Success, SUCCESS.to_owned())
    }
}

/// Makes the reply of `MultiForward`: completions, best first.
#[must_use]
pub fn multi_forward_reply(completions: Vec<String>) -> MultiForwardTextPromptingResponse {
    MultiForwardTextPromptingResponse {
        multi_completions: completions,
        ..Outcome::failed(ReturnCode::Success, SUCCESS.to_owned())
    }
}

/// Makes the reply of `Backward`.
#[must_use]
pub fn backward_reply() -> BackwardTextPromptingResponse {
    Outcome::failed(ReturnCode::Success, SUCCESS.to_owned())
}

/// Makes the reply of a request that failed after its caller was verified.
///
/// As in the reference, failures of the application (not welcome, too often, timeout, a fault of ours) are replies with
/// a return code at gRPC status OK. A request that cannot be read, or that found no room, gets a gRPC status.
///
/// # Errors
/// The gRPC status, where the failure is one of the transport.
pub fn failure<R: Outcome>(category: Category, message: impl Into<String>) -> Result<Response<R>, Status> {
    use Category as C;
    let message = message.into();
    match category {
        C::Forbidden | C::RateLimited | C::Timeout | C::Internal => {
            Ok(Response::new(R::failed(return_code(category), message)))
        }
        _ => Err(Status::new(status::grpc_code(category), message)),
    }
}

/// Makes the reply of a request whose messages are no prompt: nothing to answer is a reply, anything else a status.
///
/// # Errors
/// `INVALID_ARGUMENT` (the reference: `UNKNOWN` with the text of its exception).
pub fn prompt_failure<R: Outcome>(error: &PromptError) -> Result<Response<R>, Status> {
    match error {
        PromptError::Empty => Ok(Response::new(R::failed(ReturnCode::EmptyRequest, error.to_string()))),
        _ => failure(Category::Malformed, error.to_string()),
    }
}

/// Makes the reply of a request whose time ran out, in the reference server's words; `seconds` is the message's field.
#[must_use]
pub fn timed_out<R: Outcome>(seconds: f32) -> Response<R> {
    Response::new(R::failed(ReturnCode::Timeout, format!("GRPC request timeout after: {seconds:?}s")))
}

/// Returns the return code of a category.
#[must_use]
pub fn return_code(category: Category) -> ReturnCode {
    ReturnCode::try_from(status::return_code(category)).unwrap_or(ReturnCode::UnknownException)
}

/// Returns the category of a return code, `None` for success.
#[must_use]
pub fn category(code: pb::ReturnCode) -> Option<Category> {
    use ReturnCode as R;
    Some(match code {
        R::Success => return None,
        R::Timeout | R::NucleusTimeout => Category::Timeout,
        R::Backoff => Category::RateLimited,
        R::Unavailable | R::NotServingNucleus | R::BadEndpoint => Category::Unavailable,
        R::NotImplemented => Category::NotFound,
        R::EmptyRequest
        | R::InvalidRequest
        | R::RequestSerializationException
        | R::RequestDeserializationException
        | R::RequestIncompatibleVersion => Category::Malformed,
        R::RequestShapeException => Category::TooLarge,
        R::NucleusFull => Category::Overloaded,
        R::SenderUnknown | R::Blacklisted => Category::Forbidden,
        R::Unauthenticated => Category::Unauthenticated,
        R::NoReturn
        | R::EmptyResponse
        | R::InvalidResponse
        | R::ResponseShapeException
        | R::ResponseSerializationException
        | R::ResponseDeserializationException
        | R::ResponseIncompatibleVersion
        | R::UnknownException => Category::Internal,
    })
}

#[cfg(test)]
mod tests;
