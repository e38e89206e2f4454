//! Fetches one file over HTTP: ranged, resumable, hashed on the way.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, RANGE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use crate::config::NetworkConfig;
use crate::progress::{Event, Progress};
use crate::{ModelError, disk};

/// Longest `Retry-After` that is waited for; beyond it the next source is asked.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3);

/// An HTTP client with the timeouts of a [`NetworkConfig`].
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    client: Client,
    network: NetworkConfig,
}

/// One file to fetch.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) url: Url,
    pub(crate) token: Option<&'a SecretString>,
    /// What the user reads while it comes.
    pub(crate) label: &'a str,
    pub(crate) sha256: Option<&'a str>,
    pub(crate) bytes: Option<u64>,
    /// Where the complete, checked file goes; `.part` and `.etag` are appended meanwhile.
    pub(crate) target: PathBuf,
    /// Bytes needed on the same disk after the transfer, as for unpacking.
    pub(crate) room_after: u64,
    /// Whether another source is asked when this one does not deliver: then less time is spent on it.
    pub(crate) has_alternative: bool,
}

/// How long one fetch waits for a server, over all its attempts.
struct Patience {
    /// When the wait began: at the start, or with the last byte.
    since: Instant,
    /// Whether any answer came.
    answered: bool,
    /// Longest wait without a byte; none where there is no other source.
    limit: Option<Duration>,
    /// The limit from the first byte on: long enough to resume once.
    later: Option<Duration>,
}

impl Patience {
    fn new(network: &NetworkConfig, has_alternative: bool) -> Self {
        let only = |limit| has_alternative.then_some(limit);
        Self {
            since: Instant::now(),
            answered: false,
            limit: only(network.failover_timeout),
            later: only(network.stall_timeout.saturating_add(network.answer_timeout).max(network.failover_timeout)),
        }
    }

    fn left(&self) -> Duration {
        self.limit.map_or(Duration::MAX, |limit| limit.saturating_sub(self.since.elapsed()))
    }

    fn note_byte(&mut self) {
        self.since = Instant::now();
        self.limit = self.later;
    }

    /// Leaves out time that this machine needed, not the server.
    fn leave_out(&mut self, own: Duration) {
        self.since += own;
    }
}

/// How one attempt ended, when it did not succeed.
enum Setback {
    /// The source will not deliver.
    Final(ModelError),
    /// Another attempt may do better.
    Transient { error: ModelError, brought: u64, wait: Option<Duration> },
    /// The partial file does not fit what the server has.
    StartOver(ModelError),
}

impl Fetcher {
    pub(crate) fn new(network: &NetworkConfig) -> Result<Self, ModelError> {
        let mut builder = Client::builder()
            .connect_timeout(network.connect_timeout)
            .user_agent(concat!("idiolect-models/", env!("CARGO_PKG_VERSION")));
        if !network.use_proxies {
            builder = builder.no_proxy();
        }
        let mut authorities = Vec::new();
        for path in &network.ca_files {
            let pem = std::fs::read(path).map_err(ModelError::io("read certificate authorities from", path))?;
            let bundle = reqwest::Certificate::from_pem_bundle(&pem).map_err(std::io::Error::other);
            authorities.extend(bundle.map_err(ModelError::io("read certificate authorities from", path))?);
        }
        if !authorities.is_empty() {
            builder = builder.tls_certs_merge(authorities);
        }
        let client = builder.build().map_err(|error| ModelError::Fetch {
            url: "https client".into(),
            problem: format!("cannot be set up: {}", root_cause(&error)),
            retryable: false,
        })?;
        Ok(Self { client, network: network.clone() })
    }

    /// Returns the answer to a GET whose body is small, with its final address.
    pub(crate) async fn get_text(
        &self,
        url: Url,
        accept: &str,
        limit: usize,
    ) -> Result<(Url, HeaderMap, String), ModelError> {
        let shown = public_url(&url);
        let fail = |problem: String| ModelError::Fetch { url: shown.clone(), problem, retryable: true };
        let request = self.client.get(url.clone()).header(reqwest::header::ACCEPT, accept);
        let response = self.answer(request.send(), &url, Duration::MAX).await?;
        if !response.status().is_success() {
            return Err(refusal(&url, &response));
        }
        let (final_url, headers) = (response.url().clone(), response.headers().clone());
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        loop {
            let chunk = tokio::time::timeout(self.network.answer_timeout, chunks.next());
            match chunk.await {
                Err(_) => return Err(fail("the answer stalled".into())),
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(fail(root_cause(&error))),
                Ok(Some(Ok(chunk))) if body.len() + chunk.len() > limit => {
                    return Err(fail(format!("the answer is longer than {limit} bytes")));
                }
                Ok(Some(Ok(chunk))) => body.extend_from_slice(&chunk),
            }
        }
        Ok((final_url, headers, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Fetches `job` into its target and returns its SHA-256, lowercase hex.
    ///
    /// An interrupted transfer leaves its partial file, and the next call continues it: with a known hash or an ETag, else from
    /// the start. A file with the wrong hash is removed.
    pub(crate) async fn fetch(&self, job: &Job<'_>, progress: &dyn Progress) -> Result<String, ModelError> {
        let partial = Partial::new(&job.target);
        if let Some(folder) = job.target.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(ModelError::write(&job.target, 0))?;
        }
        let mut patience = Patience::new(&self.network, job.has_alternative);
        let mut fruitless = 0;
        let mut started_over = false;
        loop {
            let setback = match self.attempt(job, &partial, &mut patience, progress).await {
                Ok(hash) => return Ok(hash),
                Err(setback) => setback,
            };
            match setback {
                Setback::Final(error) => return Err(error),
                Setback::StartOver(error) if started_over => return Err(error),
                Setback::StartOver(_) => {
                    started_over = true;
                    partial.remove().await;
                }
                Setback::Transient { error, brought, wait } => {
                    fruitless = if brought > 0 { 0 } else { fruitless + 1 };
                    if fruitless >= self.network.attempts.max(1) {
                        return Err(error);
                    }
                    let backoff = self.network.backoff.saturating_mul(1 << fruitless.min(6));
                    let wait = wait.unwrap_or(backoff);
                    if patience.left() <= wait {
                        return Err(error);
                    }
                    tracing::debug!(%error, brought, "transfer interrupted; continuing it");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn attempt(
        &self,
        job: &Job<'_>,
        partial: &Partial,
        patience: &mut Patience,
        progress: &dyn Progress,
    ) -> Result<String, Setback> {
        let opening = Instant::now();
        let (have, etag) = partial.resumable(job).await;
        let mut transfer = Transfer::open(job, partial, have).await.map_err(Setback::Final)?;
        patience.leave_out(opening.elapsed());
        if have > 0 && job.bytes == Some(have) {
            return transfer.finish(job, partial, have, true, progress).await;
        }
        let mut request = self.client.get(job.url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(token) = job.token {
            request = request.bearer_auth(token.expose_secret());
        }
        if have > 0 {
            request = request.header(RANGE, format!("bytes={have}-"));
            if let Some(etag) = &etag {
                request = request.header(IF_RANGE, etag);
            }
        }
        // A server that cannot be reached at all is not asked twice: the next source may answer at once. One that answered
        // before is, and so is the only one that can continue what an earlier fetch began.
        let contact = self.answer(request.send(), &job.url, patience.left()).await;
        let response = match contact {
            Ok(response) => response,
            Err(error) if have > 0 && (patience.answered || !job.has_alternative) => {
                return Err(Setback::Transient { error, brought: 0, wait: None });
            }
            Err(error) => return Err(Setback::Final(error)),
        };
        patience.answered = true;
        let resumed = match check_status(job, &response, have)? {
            Answer::Whole => false,
            Answer::Rest => true,
            Answer::NothingLeft => return transfer.finish(job, partial, have, true, progress).await,
        };
        if !resumed {
            transfer.restart(partial).await.map_err(Setback::Final)?;
        }
        let total = response.content_length().map(|rest| rest + transfer.done).or(job.bytes);
        if let (Some(expected), Some(total)) = (job.bytes, total)
            && expected != total
        {
            let problem = format!("the file has {total} bytes, expected {expected}");
            return Err(Setback::Final(ModelError::Fetch { url: public_url(&job.url), problem, retryable: false }));
        }
        let room = total.unwrap_or(0).saturating_sub(transfer.done).saturating_add(job.room_after);
        disk::check_room(partial.folder(), room).map_err(Setback::Final)?;
        partial.remember(strong_etag(response.headers())).await;
        progress.event(Event::Started { file: job.label, total, resumed_from: transfer.done });
        let before = transfer.done;
        if let Err(error) = self.copy(job, response, &mut transfer, total, patience, progress).await {
            let brought = transfer.done - before;
            return Err(match error {
                error if error.is_local() => Setback::Final(error),
                error => Setback::Transient { error, brought, wait: None },
            });
        }
        transfer.finish(job, partial, before, resumed, progress).await
    }

    async fn copy(
        &self,
        job: &Job<'_>,
        response: Response,
        transfer: &mut Transfer,
        total: Option<u64>,
        patience: &mut Patience,
        progress: &dyn Progress,
    ) -> Result<(), ModelError> {
        let fail = |problem: String| ModelError::Fetch { url: public_url(&job.url), problem, retryable: true };
        let mut chunks = response.bytes_stream();
        let ended = loop {
            let limit = self.network.stall_timeout.min(patience.left());
            match tokio::time::timeout(limit, chunks.next()).await {
                Err(_) => break Err(fail(format!("no byte for {limit:.1?} after {} bytes", transfer.done))),
                Ok(None) => break Ok(()),
                Ok(Some(Err(error))) => {
                    break Err(fail(format!(
                        "the transfer broke after {} bytes: {}",
                        transfer.done,
                        root_cause(&error)
                    )));
                }
                Ok(Some(Ok(chunk))) => {
                    transfer.write(&chunk, total).await?;
                    patience.note_byte();
                    progress.event(Event::Advanced { file: job.label, done: transfer.done, total });
                }
            }
        };
        transfer.flush(total).await?;
        ended?;
        match total {
            Some(total) if total != transfer.done => {
                Err(fail(format!("the transfer ended after {} of {total} bytes", transfer.done)))
            }
            _ => Ok(()),
        }
    }

    /// Waits for the head of an answer, within the limits of the configuration.
    async fn answer(
        &self,
        sent: impl Future<Output = Result<Response, reqwest::Error>>,
        url: &Url,
        left: Duration,
    ) -> Result<Response, ModelError> {
        let fail = |problem: String| ModelError::Fetch { url: public_url(url), problem, retryable: true };
        let limit = self.network.answer_timeout.min(left);
        match tokio::time::timeout(limit, sent).await {
            Err(_) => Err(fail(format!("no answer within {limit:.1?}"))),
            Ok(Err(error)) if error.is_timeout() => {
                Err(fail(format!("no connection within {:?}", self.network.connect_timeout)))
            }
            Ok(Err(error)) => Err(fail(root_cause(&error))),
            Ok(Ok(response)) => Ok(response),
        }
    }
}

enum Answer {
    Whole,
    Rest,
    NothingLeft,
}

fn check_status(job: &Job<'_>, response: &Response, have: u64) -> Result<Answer, Setback> {
    let status = response.status();
    if status == StatusCode::PARTIAL_CONTENT {
        return match content_range_start(response.headers()) {
            Some(start) if start == have => Ok(Answer::Rest),
            _ => Err(Setback::StartOver(refusal(&job.url, response))),
        };
    }
    if status.is_success() {
        return Ok(Answer::Whole);
    }
    if status == StatusCode::RANGE_NOT_SATISFIABLE {
        let size = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok()?.strip_prefix("bytes */")?.parse().ok());
        return if size == Some(have) && have > 0 {
            Ok(Answer::NothingLeft)
        } else {
            Err(Setback::StartOver(refusal(&job.url, response)))
        };
    }
    let error = refusal(&job.url, response);
    let busy = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
    let wait = retry_after(response.headers());
    if !busy || wait.is_some_and(|wait| wait > LONGEST_RETRY_AFTER) {
        return Err(Setback::Final(error));
    }
    Err(Setback::Transient { error, brought: 0, wait })
}

/// The partial file of a transfer and the ETag it belongs to.
struct Partial {
    data: PathBuf,
    etag: PathBuf,
}

impl Partial {
    fn new(target: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = target.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { data: with(".part"), etag: with(".etag") }
    }

    fn folder(&self) -> &Path {
        self.data.parent().unwrap_or(&self.data)
    }

    /// Returns how many bytes can be kept, and the ETag to insist on.
    async fn resumable(&self, job: &Job<'_>) -> (u64, Option<String>) {
        let have = tokio::fs::metadata(&self.data).await.map_or(0, |meta| meta.len());
        let etag = tokio::fs::read_to_string(&self.etag).await.ok().filter(|etag| !etag.is_empty());
        let fits = job.bytes.is_none_or(|bytes| have <= bytes);
        if fits && (job.sha256.is_some() || etag.is_some()) { (have, etag) } else { (0, None) }
    }

    async fn remember(&self, etag: Option<&str>) {
        let written = match etag {
            Some(etag) => tokio::fs::write(&self.etag, etag).await,
            None => tokio::fs::remove_file(&self.etag).await,
        };
        if let Err(error) = written
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "the ETag cannot be kept");
        }
    }

    async fn remove(&self) {
        for path in [&self.data, &self.etag] {
            if let Err(error) = tokio::fs::remove_file(path).await
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::debug!(path = %path.display(), %error, "a partial file cannot be removed");
            }
        }
    }
}

/// An open partial file with the running hash of its content.
struct Transfer {
    file: tokio::fs::File,
    path: PathBuf,
    hasher: Sha256,
    done: u64,
}

impl Transfer {
    async fn open(job: &Job<'_>, partial: &Partial, have: u64) -> Result<Self, ModelError> {
        let path = partial.data.clone();
        let hasher = if have > 0 { hash_prefix(path.clone(), have).await? } else { Sha256::new() };
        let mut options = tokio::fs::OpenOptions::new();
        options.create(true).append(true);
        let file = options.open(&path).await.map_err(ModelError::write(&path, job.bytes.unwrap_or(0)))?;
        let transfer = Self { file, path, hasher, done: have };
        transfer.file.set_len(have).await.map_err(ModelError::write(&transfer.path, job.bytes.unwrap_or(0)))?;
        Ok(transfer)
    }

    async fn restart(&mut self, partial: &Partial) -> Result<(), ModelError> {
        self.file.set_len(0).await.map_err(ModelError::write(&partial.data, 0))?;
        self.hasher = Sha256::new();
        self.done = 0;
        Ok(())
    }

    async fn write(&mut self, chunk: &[u8], total: Option<u64>) -> Result<(), ModelError> {
        let missing = total.unwrap_or(0).saturating_sub(self.done);
        self.file.write_all(chunk).await.map_err(ModelError::write(&self.path, missing))?;
        self.hasher.update(chunk);
        self.done += chunk.len() as u64;
        Ok(())
    }

    async fn flush(&mut self, total: Option<u64>) -> Result<(), ModelError> {
        let missing = total.unwrap_or(0).saturating_sub(self.done);
        self.file.flush().await.map_err(ModelError::write(&self.path, missing))
    }

    /// Checks the hash and moves the file to its target.
    async fn finish(
        self,
        job: &Job<'_>,
        partial: &Partial,
        before: u64,
        resumed: bool,
        progress: &dyn Progress,
    ) -> Result<String, Setback> {
        let found = hex::encode(self.hasher.finalize());
        if let Some(expected) = job.sha256
            && expected != found
        {
            partial.remove().await;
            let origin = public_url(&job.url);
            let error =
                ModelError::HashMismatch { file: job.label.to_owned(), origin, expected: expected.to_owned(), found };
            // The beginning may stem from another version of the file: fetch it whole once.
            return Err(if resumed && before > 0 { Setback::StartOver(error) } else { Setback::Final(error) });
        }
        let settled = async {
            self.file.sync_all().await?;
            drop(self.file);
            tokio::fs::rename(&self.path, &job.target).await
        };
        settled.await.map_err(ModelError::write(&job.target, 0)).map_err(Setback::Final)?;
        partial.remove().await;
        progress.event(Event::Finished { file: job.label, bytes: self.done });
        Ok(found)
    }
}

async fn hash_prefix(path: PathBuf, length: u64) -> Result<Sha256, ModelError> {
    let shown = path.clone();
    let hashing = tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let mut file = std::fs::File::open(path)?.take(length);
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hasher),
                n => hasher.update(&buffer[..n]),
            }
        }
    });
    hashing.await.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(ModelError::io("read", &shown))
}

fn refusal(url: &Url, response: &Response) -> ModelError {
    let status = response.status();
    let problem = match status.canonical_reason() {
        Some(reason) => format!("HTTP {} {reason}", status.as_u16()),
        None => format!("HTTP {}", status.as_u16()),
    };
    let retryable = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
    ModelError::Fetch { url: public_url(url), problem, retryable }
}

fn content_range_start(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn strong_etag(headers: &HeaderMap) -> Option<&str> {
    headers.get(ETAG)?.to_str().ok().filter(|etag| etag.starts_with('"'))
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The address without user name, password, query and fragment: those may hold credentials.
pub(crate) fn public_url(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // These fail for addresses that cannot have a user at all.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// The innermost cause: what reqwest says itself repeats the whole address.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_that_fills_up_in_the_middle_is_named() {
        let path = PathBuf::from("/dev/full");
        let file = tokio::fs::OpenOptions::new().write(true).open(&path).await.unwrap();
        let mut transfer = Transfer { file, path, hasher: Sha256::new(), done: 0 };
        let written = transfer.write(&[7; 10], Some(100)).await;
        let error = match written {
            Ok(()) => transfer.flush(Some(100)).await.unwrap_err(),
            Err(error) => error,
        };
        let ModelError::DiskFull { needed, path, .. } = error else { panic!("{error}") };
        assert!((90..=100).contains(&needed) && path == Path::new("/dev"), "{needed} {}", path.display());
    }
}
