//! The way to the server and back.
//!
//! async-openai builds the requests and reads the answers; this service underneath it sends them. It exists because
//! async-openai by itself reads answers of any length, writes those it cannot read into the log (an answer, or a prompt
//! that an error quotes), and loses `Retry-After`. So nothing reaches it but bounded answers that it can read: failures
//! become [`Fault`]s here, and streams are checked event by event.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_openai::Client;
use async_openai::config::Config;
use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream;
use idiolect_backend::Error;
use reqwest::Response;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use secrecy::{ExposeSecret, SecretString};

use crate::config::ServerConfig;
use crate::fault::Fault;
use crate::sse::{Item, SseDecoder, is_json};
use crate::wire::WireError;

/// Most bytes of an error's body that are looked at.
const MAX_ERROR_BODY: usize = 64 << 10;

/// How long an error's body may take.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Says which kind of answer is wanted; the transport below holds the server to it.
pub(crate) fn accept(kind: HeaderValue) -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, kind)])
}

/// Makes a client for this server.
pub(crate) fn client(config: &ServerConfig) -> Result<Client<Address>, Error> {
    let address = Address::new(config)?;
    let service = Transport { http: http_client(config)?, max_body_bytes: config.max_body_bytes };
    Ok(Client::build(service.http.clone(), address).with_http_service(service))
}

fn http_client(config: &ServerConfig) -> Result<reqwest::Client, Error> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(config.timeouts.connect)
        // A redirect would turn POST into GET, or carry the prompt to somebody else.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    if let Some(proxy) = &config.proxy {
        let proxy =
            reqwest::Proxy::all(proxy.as_str()).map_err(|_| Error::InvalidRequest("bad proxy address".into()))?;
        builder = builder.proxy(proxy);
    }
    if config.base_url.starts_with("http://") && config.proxy.is_none() {
        // Without TLS there is no need of certificates, which a bare container may not have.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|e| Error::internal("http client cannot be set up", e.without_url()))
}

/// Where to, and with which headers.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    base_url: String,
    headers: HeaderMap,
    /// async-openai wants to see a key; the real one is in the headers only, marked as sensitive.
    no_key: SecretString,
}

impl Address {
    fn new(config: &ServerConfig) -> Result<Self, Error> {
        let base_url = config.base_url.trim_end_matches('/').to_owned();
        let url = reqwest::Url::parse(&base_url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let Some(url) = url else {
            return Err(Error::InvalidRequest("base URL is no http or https address".to_owned()));
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::InvalidRequest("base URL holds credentials, expected them as a key".to_owned()));
        }
        let mut headers = HeaderMap::new();
        if let Some(key) = config.key.read()? {
            let mut value = header_value("key", &format!("Bearer {}", key.expose_secret()))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let named = [("openai-organization", &config.organization), ("openai-project", &config.project)];
        for (name, value) in named {
            if let Some(value) = value {
                headers.insert(HeaderName::from_static(name), header_value(name, value)?);
            }
        }
        for (name, value) in &config.headers {
            let mut value = header_value(name, value)?;
            value.set_sensitive(true);
            let name = HeaderName::try_from(name.as_str())
                .map_err(|_| Error::InvalidRequest(format!("bad header name {name:?}")))?;
            headers.insert(name, value);
        }
        Ok(Self { base_url, headers, no_key: SecretString::from(String::new()) })
    }
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, Error> {
    HeaderValue::try_from(value).map_err(|_| Error::InvalidRequest(format!("bad value of header {name:?}")))
}

impl Config for Address {
    fn headers(&self) -> HeaderMap {
        self.headers.clone()
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base_url)
    }

    fn query(&self) -> Vec<(&str, &str)> {
        Vec::new()
    }

    fn api_base(&self) -> &str {
        &self.base_url
    }

    fn api_key(&self) -> &SecretString {
        &self.no_key
    }
}

/// Sends one request and returns an answer that async-openai can read without fail.
#[derive(Clone, Debug)]
struct Transport {
    http: reqwest::Client,
    max_body_bytes: usize,
}

impl tower::Service<HttpRequestFactory> for Transport {
    type Response = Response;
    type Error = OpenAIError;
    type Future = BoxFuture<'static, Result<Response, OpenAIError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenAIError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, factory: HttpRequestFactory) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.exchange(factory).await })
    }
}

impl Transport {
    async fn exchange(&self, factory: HttpRequestFactory) -> Result<Response, OpenAIError> {
        let request = factory.build().await?;
        let wants_events = request.headers().get(ACCEPT) == Some(&EVENT_STREAM);
        let response = self.http.execute(request).await.map_err(|e| Fault::of_client(&e))?;
        if !response.status().is_success() {
            return Err(status_fault(response).await.into());
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match (wants_events, kind.as_str()) {
            (true, "text/event-stream") => Ok(checked_events(response, self.max_body_bytes)),
            // Some servers don't stream, whatever they are told.
            (true, kind) if is_json_kind(kind) => {
                let body = self.json(response).await?;
                let events = format!("data: {}\n\ndata: [DONE]\n\n", one_line(&body));
                Ok(answer(&EVENT_STREAM, events))
            }
            (false, kind) if is_json_kind(kind) => Ok(answer(&JSON, self.json(response).await?)),
            (_, kind) => Err(Fault::Malformed(format!("an answer of {}", shown_kind(kind))).into()),
        }
    }

    async fn json(&self, response: Response) -> Result<Bytes, Fault> {
        let body = read_bounded(response, self.max_body_bytes).await?;
        let Some(body) = body else {
            return Err(Fault::Malformed(format!("an answer of more than {} bytes", self.max_body_bytes)));
        };
        if is_json(&body) { Ok(body) } else { Err(Fault::Malformed("an answer that is not JSON".to_owned())) }
    }
}

/// Shows a content type if it looks like one.
fn shown_kind(kind: &str) -> String {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b"+.-".contains(&b));
    match kind.split_once('/') {
        Some((family, member)) if kind.len() <= 40 && is_word(family) && is_word(member) => format!("type {kind}"),
        _ => "unknown type".to_owned(),
    }
}

fn is_json_kind(kind: &str) -> bool {
    kind.is_empty() || kind == "application/json" || kind.ends_with("+json")
}

fn one_line(json: &[u8]) -> String {
    // A raw line break can only stand between tokens of JSON, where a space means the same.
    String::from_utf8_lossy(json).replace(['\n', '\r'], " ")
}

fn answer(kind: &HeaderValue, body: impl Into<reqwest::Body>) -> Response {
    let mut response = http::Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    response.into()
}

/// Reads a body up to `max` bytes; `None` when it is longer.
async fn read_bounded(mut response: Response, max: usize) -> Result<Option<Bytes>, Fault> {
    let mut body = BytesMut::new();
    while let Some(piece) = response.chunk().await.map_err(|e| Fault::of_client(&e))? {
        if body.len() + piece.len() > max {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body.freeze()))
}

async fn status_fault(response: Response) -> Fault {
    let status = response.status();
    let retry_after = retry_after(response.headers());
    let body = tokio::time::timeout(ERROR_BODY_TIMEOUT, read_bounded(response, MAX_ERROR_BODY)).await;
    let error = match body {
        Ok(Ok(Some(body))) => WireError::of_body(&body),
        _ => WireError::default(),
    };
    error.into_fault(status.as_u16(), retry_after)
}

/// Reads `Retry-After` (seconds) or the `retry-after-ms` that OpenAI sends beside it. Dates are not read: clocks differ.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number(RETRY_AFTER.as_str()))?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A stream of events reduced to those that can be read. What goes wrong on the way becomes an event of its own,
/// `{"idiolect_fault": "..."}`, since async-openai would pass no more than a text on.
fn checked_events(response: Response, max_bytes: usize) -> Response {
    let state = Some((response, SseDecoder::default(), max_bytes));
    let events = stream::unfold(state, |state| async move {
        let (mut response, mut decoder, left) = state?;
        let (items, rest) = match response.chunk().await {
            Ok(Some(piece)) => match left.checked_sub(piece.len()) {
                Some(left) => (decoder.push(&piece), Some(left)),
                None => (vec![Item::Malformed("an answer is too long")], None),
            },
            Ok(None) => (decoder.finish().into_iter().collect(), None),
            Err(_) => (vec![Item::Malformed("connection")], None),
        };
        let is_over = items.iter().any(|item| !matches!(item, Item::Json(_)));
        let text: String = items.into_iter().map(event_text).collect();
        let state = rest.filter(|_| !is_over).map(|left| (response, decoder, left));
        Some((Ok::<_, std::io::Error>(Bytes::from(text)), state))
    });
    answer(&EVENT_STREAM, reqwest::Body::wrap_stream(events))
}

fn event_text(item: Item) -> String {
    match item {
        Item::Json(json) => format!("data: {json}\n\n"),
        Item::Done => "data: [DONE]\n\n".to_owned(),
        Item::Malformed(why) => format!("data: {{\"idiolect_fault\":\"{why}\"}}\n\n"),
    }
}

/// A client for one server, with turns and tries.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) name: Arc<str>,
    pub(crate) client: Client<Address>,
    pub(crate) config: Arc<ServerConfig>,
    places: Arc<tokio::sync::Semaphore>,
}

impl Server {
    pub(crate) fn new(name: &str, config: &ServerConfig) -> Result<Self, Error> {
        let max = config.max_parallel_requests.clamp(1, tokio::sync::Semaphore::MAX_PERMITS);
        Ok(Self {
            name: name.into(),
            client: client(config)?,
            config: Arc::new(config.clone()),
            places: Arc::new(tokio::sync::Semaphore::new(max)),
        })
    }

    /// Waits for a turn.
    pub(crate) async fn place(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        // The semaphore is never closed, so there is always a turn to come.
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    /// Tries until it works, cannot work, or takes too long.
    pub(crate) async fn retry<T, F, Fut>(&self, deadline: Option<tokio::time::Instant>, mut once: F) -> Result<T, Fault>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, Fault>>,
    {
        let retries = &self.config.retries;
        let mut n_tried = 0;
        loop {
            let fault = match once().await {
                Ok(answer) => return Ok(answer),
                Err(fault) => fault,
            };
            if !fault.is_retryable() || n_tried >= retries.num_retries {
                return Err(fault);
            }
            let pause = match fault.retry_after() {
                Some(named) if named > retries.max_retry_after => return Err(fault),
                Some(named) => named,
                None => retries.backoff.delay(n_tried, salt()),
            };
            let next = tokio::time::Instant::now() + pause;
            if deadline.is_some_and(|deadline| next >= deadline) {
                return Err(fault);
            }
            n_tried += 1;
            let pause_ms = pause.as_millis();
            tracing::debug!(backend = %self.name, %fault, n_tried, pause_ms, "request is tried again");
            tokio::time::sleep_until(next).await;
        }
    }
}

/// A number that differs from call to call, to spread retries.
fn salt() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_ways_to_say_when_to_come_back() {
        let read = |name: &'static str, value: &str| {
            retry_after(&HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]))
        };
        assert_eq!(read("retry-after", "2"), Some(Duration::from_secs(2)));
        assert_eq!(read("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(read("retry-after", "-1"), None);
        assert_eq!(read("retry-after", "1e300"), None);
        assert_eq!(read("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), None);
    }

    #[test]
    fn refuses_addresses_that_are_none() {
        for bad in ["", "localhost:1", "ftp://host/v1", "http://", "https://user:secret@host/v1"] {
            let config = ServerConfig { base_url: bad.to_owned(), ..ServerConfig::default() };
            let error = Address::new(&config).unwrap_err().to_string();
            assert!(error.contains("base URL") && !error.contains("secret"), "{bad}: {error}");
        }
        let config = ServerConfig { base_url: "http://host/v1/".to_owned(), ..ServerConfig::default() };
        assert_eq!(Address::new(&config).unwrap().url("/models"), "http://host/v1/models");
    }
}
