//! Epistula v2: the signed headers that macrocosm's validators (2.13 and later) put on OpenAI-shaped requests.
//!
//! ```
//! use std::sync::Arc;
//!
//! use idiolect_protocol::{Keypair, Limits, NonceStore, SystemClock, Verifier, epistula};
//!
//! let (validator, miner) = (Keypair::from_uri("//Bob")?, Keypair::from_uri("//Alice")?);
//! let limits = Limits::default();
//! let verifier = Verifier::new(miner.hotkey(), limits.clone(), Arc::new(SystemClock), Arc::new(NonceStore::new(1000)));
//!
//! // The client's side.
//! let body = br#"{"messages": [{"role": "user", "content": "hi"}], "stream": true}"#;
//! let now_ms = u64::try_from(verifier.clock().now_ns() / 1_000_000)?;
//! let headers = epistula::sign(&validator, &miner.hotkey(), body, now_ms, &uuid::Uuid::new_v4());
//!
//! // The server's side.
//! let caller = verifier.verify(epistula::claim(&headers, body, &miner.hotkey(), &limits)?)?;
//! assert_eq!(*caller.hotkey(), validator.hotkey());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::openai::{ChatRequest, SamplingParameters};
use crate::{AuthError, Claim, Hotkey, Keypair, Limits, Nonce, Scheme, Transport, headers, keys};

/// The only version there is; the reference does not look at it and neither does [`claim`].
pub const VERSION: &str = "2";
/// The task whose answer is compared with a model's, token by token.
pub const INFERENCE_TASK: &str = "InferenceTask";

/// Header: version of the scheme.
pub const VERSION_HEADER: &str = "epistula-version";
/// Header: when it was signed, in milliseconds since 1970.
pub const TIMESTAMP_HEADER: &str = "epistula-timestamp";
/// Header: identifier of the request.
pub const UUID_HEADER: &str = "epistula-uuid";
/// Header: who signed.
pub const SIGNED_BY_HEADER: &str = "epistula-signed-by";
/// Header: for whom.
pub const SIGNED_FOR_HEADER: &str = "epistula-signed-for";
/// Header: signature over body, identifier, time and receiver.
pub const SIGNATURE_HEADER: &str = "epistula-request-signature";
/// Headers: signatures over three neighbouring points of time and the receiver.
pub const SECRET_SIGNATURE_HEADERS: [&str; 3] =
    ["epistula-secret-signature-0", "epistula-secret-signature-1", "epistula-secret-signature-2"];
/// Header: how many seconds the client waits. Not signed.
pub const TIMEOUT_HEADER: &str = "x-client-timeout";

/// Says whether a request carries Epistula's headers, right or wrong.
#[must_use]
pub fn is_epistula(headers: &HeaderMap) -> bool {
    headers.contains_key(SIGNATURE_HEADER) || headers.contains_key(SIGNED_BY_HEADER)
}

/// Reads who claims to call. `body` is the raw body, as it came.
///
/// Unlike the reference, a request counts once, and one from further ahead than [`Limits::max_ahead`] does not count.
///
/// # Errors
/// [`AuthError`]; the receiver is checked first, as in the reference.
pub fn claim(headers: &HeaderMap, body: &[u8], receiver: &Hotkey, limits: &Limits) -> Result<Claim, AuthError> {
    if !limits.epistula {
        return Err(AuthError::TransportOff("Epistula"));
    }
    let signed_for = headers::required(headers, SIGNED_FOR_HEADER)?;
    if signed_for.parse::<Hotkey>().ok().as_ref() != Some(receiver) {
        return Err(AuthError::WrongReceiver);
    }
    let hotkey: Hotkey = headers::required(headers, SIGNED_BY_HEADER)?
        .parse()
        .map_err(|_| AuthError::Malformed { name: SIGNED_BY_HEADER, expected: "an ss58 address with prefix 42" })?;
    let timestamp = headers::required(headers, TIMESTAMP_HEADER)?;
    let timestamp_ms = parse_timestamp(timestamp)
        .ok_or(AuthError::Malformed { name: TIMESTAMP_HEADER, expected: "milliseconds since 1970" })?;
    let uuid = headers::required(headers, UUID_HEADER)?;
    if !headers::is_session_id(uuid) {
        return Err(AuthError::Malformed { name: UUID_HEADER, expected: "a uuid" });
    }
    let signature = keys::parse_signature(headers::required(headers, SIGNATURE_HEADER)?)
        .ok_or(AuthError::Malformed { name: SIGNATURE_HEADER, expected: "0x and 128 hexadecimal digits" })?;
    let timeout = headers::optional(headers, TIMEOUT_HEADER)?
        .map(|text| {
            headers::parse_seconds(text)
                .ok_or(AuthError::Malformed { name: TIMEOUT_HEADER, expected: "seconds above 0" })
        })
        .transpose()?;
    Ok(Claim {
        transport: Transport::Epistula,
        hotkey,
        scheme: Scheme::Sr25519,
        signed: signed_text(body, uuid, timestamp, receiver).into_bytes(),
        signature,
        nonce: Nonce::Windowed {
            key: format!("{hotkey}:epistula"),
            value: uuid.to_owned(),
            at_ns: i128::from(timestamp_ms) * 1_000_000,
            max_age: limits.epistula_max_age,
            max_ahead: limits.max_ahead,
        },
        timeout: timeout.map(|t| t.min(limits.max_timeout)),
        version: None,
    })
}

/// Makes the headers for `body`: `sender` asks `receiver`.
#[must_use]
pub fn sign(sender: &Keypair, receiver: &Hotkey, body: &[u8], now_ms: u64, uuid: &Uuid) -> HeaderMap {
    let (timestamp, uuid) = (now_ms.to_string(), uuid.to_string());
    let signature = |text: &str| keys::format_signature(&sender.sign(text.as_bytes()));
    let mut headers = HeaderMap::with_capacity(10);
    let mut insert = |name: &'static str, value: String| {
        // Decimal, hexadecimal and base58 digits, dots and dashes: always a header value.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    insert(SIGNATURE_HEADER, signature(&signed_text(body, &uuid, &timestamp, receiver)));
    for (name, text) in SECRET_SIGNATURE_HEADERS.into_iter().zip(secret_texts(now_ms, receiver)) {
        insert(name, signature(&text));
    }
    insert(VERSION_HEADER, VERSION.to_owned());
    insert(TIMESTAMP_HEADER, timestamp);
    insert(UUID_HEADER, uuid);
    insert(SIGNED_BY_HEADER, sender.hotkey().to_string());
    insert(SIGNED_FOR_HEADER, receiver.to_string());
    headers
}

fn signed_text(body: &[u8], uuid: &str, timestamp: &str, receiver: &Hotkey) -> String {
    format!("{}.{uuid}.{timestamp}.{receiver}", hex::encode(Sha256::digest(body)))
}

/// The texts of the three secret signatures: the next full ten seconds as Python prints a float, and its neighbours.
fn secret_texts(now_ms: u64, receiver: &Hotkey) -> [String; 3] {
    let interval = now_ms.div_ceil(10_000).saturating_mul(10_000);
    // Python divides and multiplies floats here, which is exact below 2^53.
    [-1.0, 0.0, 1.0].map(|step| format!("{:?}.{receiver}", interval as f64 + step))
}

/// Reads milliseconds, in decimal digits only, since the text itself is signed.
fn parse_timestamp(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The sampling that a request dictates, when it is one whose answer is compared with a model's.
///
/// Such a request is an [`INFERENCE_TASK`], by header (which the reference miner routes on) or body, or brings a seed
/// together with sampling parameters. Its answer is passed through: one candidate, no mutation, the seed honoured.
/// The parameters are the body's; the `sampling_parameters` *header* is the text of a Python dict and is not read.
#[must_use]
pub fn dictated(headers: &HeaderMap, request: &ChatRequest) -> Option<SamplingParameters> {
    let header_task = headers.get("task").and_then(|value| value.to_str().ok());
    let is_inference = [header_task, request.task.as_deref()].contains(&Some(INFERENCE_TASK));
    let parameters = request.dictated_sampling();
    let is_dictating = request.sampling_parameters.is_some() && parameters.seed.is_some();
    (is_inference || is_dictating).then_some(parameters)
}

#[cfg(test)]
mod tests;
