//! `/metrics` and `/healthz` on an address of their own.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Connections at one time: scrapers are few.
const MAX_CONNECTIONS: usize = 32;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one connection may last, however it behaves.
const MAX_LIFE: Duration = Duration::from_secs(600);

/// Answers how the miner is: whether it is well, and the figures behind that.
#[async_trait::async_trait]
pub trait Health: fmt::Debug + Send + Sync + 'static {
    /// Returns whether requests can be answered now, and what `/healthz` shows.
    async fn health(&self) -> (bool, Value);
}

/// The metrics server, bound but not yet running.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    state: Arc<State>,
}

struct State {
    metrics: PrometheusHandle,
    health: Arc<dyn Health>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("health", &self.health).finish_non_exhaustive()
    }
}

fn taken(addr: SocketAddr) -> String {
    format!("cannot listen on {addr} for metrics; choose another address with --metrics.addr, or --metrics.addr off")
}

/// Refuses an address that cannot be listened on, before anything is fetched for it.
pub(crate) fn check_free(addr: SocketAddr) -> anyhow::Result<()> {
    std::net::TcpListener::bind(addr).map(drop).with_context(|| taken(addr))
}

impl MetricsServer {
    /// Takes the address.
    ///
    /// # Errors
    /// When it is taken or not ours.
    pub async fn bind(addr: SocketAddr, metrics: PrometheusHandle, health: Arc<dyn Health>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(addr).await.with_context(|| taken(addr))?;
        Ok(Self { listener, state: Arc::new(State { metrics, health }) })
    }

    /// Returns the address that it listens on.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for ever. Spawn it and abort it at the end.
    pub async fn run(self) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "metrics server cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let state = Arc::clone(&self.state);
            connections.spawn(async move {
                serve(stream, state).await;
                drop(slot);
            });
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(&request, &state).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(MAX_LIFE, connection).await;
}

async fn answer(request: &Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n");
    }
    match request.uri().path() {
        "/metrics" => reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", state.metrics.render()),
        "/healthz" => {
            let (well, body) = state.health.health().await;
            let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            reply(status, "application/json", format!("{body}\n"))
        }
        _ => reply(StatusCode::NOT_FOUND, "text/plain", "/metrics and /healthz are here\n"),
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
