//! Sending over HTTP/1.1 and reading what comes back, within bounds.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;

use super::{DendriteError, Target};

pub(super) type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// How long an idle connection is kept: less than the 5 s after which reference servers close it, since a request that
/// crosses the closing is lost, and cannot be sent twice.
const IDLE: Duration = Duration::from_secs(3);
/// Longest message of a refusal that is passed on, in characters.
const MAX_MESSAGE_LEN: usize = 500;
/// Longest refusal that is read.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

pub(super) fn client() -> HttpClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).build(connector)
}

/// A reply whose head came and whose body is still on its way.
pub(super) struct Incomplete {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Incoming,
    address: String,
    started: Instant,
    first_byte: Option<Duration>,
    n_bytes: usize,
    max_bytes: usize,
}

/// Sends a request and waits for the head of the reply.
pub(super) async fn send(
    client: &HttpClient,
    target: &Target,
    request: Request<Bytes>,
    max_bytes: usize,
) -> Result<Incomplete, DendriteError> {
    let started = Instant::now();
    let response: Response<Incoming> = client.request(request.map(Full::new)).await.map_err(|error| {
        let address = target.address().to_owned();
        if error.is_connect() {
            DendriteError::Connect { address, source: error.into() }
        } else {
            DendriteError::Broken { address, source: error.into() }
        }
    })?;
    let (head, body) = response.into_parts();
    let address = target.address().to_owned();
    let (status, headers) = (head.status, head.headers);
    Ok(Incomplete { status, headers, body, address, started, first_byte: None, n_bytes: 0, max_bytes })
}

impl Incomplete {
    /// Returns the next bytes of the body, whatever arrived, or `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, DendriteError> {
        while let Some(frame) = self.body.frame().await {
            let frame =
                frame.map_err(|error| DendriteError::Broken { address: self.address.clone(), source: error.into() })?;
            // Trailers say nothing here.
            let Ok(bytes) = frame.into_data() else { continue };
            if bytes.is_empty() {
                continue;
            }
            self.first_byte.get_or_insert_with(|| self.started.elapsed());
            self.n_bytes += bytes.len();
            if self.n_bytes > self.max_bytes {
                return Err(DendriteError::TooLarge { max_bytes: self.max_bytes });
            }
            return Ok(Some(bytes));
        }
        Ok(None)
    }

    /// Returns the rest of the body.
    pub(super) async fn rest(&mut self) -> Result<Bytes, DendriteError> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.next().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }

    /// Returns the rest of the body as JSON.
    pub(super) async fn json(&mut self) -> Result<Value, DendriteError> {
        let body = self.rest().await?;
        serde_json::from_slice(&body)
            .map_err(|error| DendriteError::bad_answer(format!("the body is not JSON: {}", Place(&error))))
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns when the first byte of the body came, or now where it has none.
    pub(super) fn first_byte(&self) -> Duration {
        self.first_byte.unwrap_or_else(|| self.elapsed())
    }

    pub(super) fn is_content_type(&self, expected: &str) -> bool {
        self.header(header::CONTENT_TYPE.as_str())
            .and_then(|value| value.get(..expected.len()))
            .is_some_and(|start| start.eq_ignore_ascii_case(expected))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Makes the error of a reply that is a refusal with `code`. `message` comes from the head, where it says one.
    pub(super) async fn refusal(mut self, code: StatusCode, message: Option<String>) -> DendriteError {
        self.max_bytes = self.max_bytes.min(MAX_REFUSAL_BYTES);
        let message = match message {
            Some(message) => message,
            // What cannot be read is no reason to hide the status.
            None => self.rest().await.map(|body| body_message(&body)).unwrap_or_default(),
        };
        DendriteError::Refused { code, status: code.to_string(), message: shorten(&message) }
    }
}

/// Where JSON goes wrong, without any of it.
struct Place<'e>(&'e serde_json::Error);

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}, column {}", self.0.line(), self.0.column())
    }
}

/// Finds the message of an error body in any of the shapes that are about: bittensor's, OpenAI's, FastAPI's, plain text.
fn body_message(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let Ok(json) = serde_json::from_str::<Value>(&text) else { return text.into_owned() };
    let places = ["/message", "/error/message", "/error", "/detail"];
    let found = places.iter().find_map(|place| json.pointer(place)?.as_str()).map(str::to_owned);
    found.unwrap_or_else(|| text.into_owned())
}

pub(super) fn shorten(message: &str) -> String {
    let is_shown = |c: &char| !c.is_control() || *c == '\n';
    message.chars().filter(is_shown).take(MAX_MESSAGE_LEN).collect::<String>().trim().to_owned()
}
