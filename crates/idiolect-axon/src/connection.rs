//! One connection: which protocol it speaks, serving it, and ending it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::admission::{Admission, InFlight};
use crate::axon::network;
use crate::body::ReplyBody;
use crate::config::AxonConfig;
use crate::grpc::{self, GrpcServices};
use crate::http::HttpFront;
use crate::metrics as meters;
use crate::watch::{ActiveRequest, TooSlow, Watch, WatchedStream};

/// The first bytes of an HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a connection that was asked to end may take to do so.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long a connection whose place was needed may take to end.
const LEAVING: Duration = Duration::from_secs(1);

/// Why such a connection is closed, in metrics.
const DISPLACED: &str = "displaced";

/// What serves the requests of every connection.
pub(crate) struct Services {
    pub(crate) admission: Arc<Admission>,
    pub(crate) grpc: GrpcServices,
    pub(crate) http: HttpFront,
}

/// Serves a connection until it ends, its peer is too slow, or the axon stops and its last answer is out.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    watch: Arc<Watch>,
    services: Arc<Services>,
    mut stopping: watch::Receiver<bool>,
) {
    let config = services.admission.config.clone();
    let sniffed = tokio::select! {
        sniffed = tokio::time::timeout(config.header_timeout, sniff(stream)) => sniffed,
        _ = stopping.wait_for(|stopping| *stopping) => return,
        () = watch.dismissed() => return meters::connection_cut(DISPLACED),
    };
    let (stream, sniffed, is_http2) = match sniffed {
        Ok(Some(sniffed)) => sniffed,
        Ok(None) => return,
        Err(_elapsed) => return meters::connection_cut(TooSlow::Head.as_str()),
    };
    if is_http2 {
        watch.set_http2();
    }
    let io = TokioIo::new(WatchedStream { stream, sniffed, watch: watch.clone() });
    let service = ConnectionService { services, watch: watch.clone(), peer };
    if is_http2 {
        let connection = http2_builder(&config).serve_connection(io, service);
        drive(pin!(connection), http2::Connection::graceful_shutdown, &watch, &config, stopping).await;
    } else {
        let connection = http1_builder(&config).serve_connection(io, service);
        drive(pin!(connection), http1::Connection::graceful_shutdown, &watch, &config, stopping).await;
    }
}

/// Reads as much as it takes to tell HTTP/2 from HTTP/1; `None` when the peer is gone.
async fn sniff(mut stream: TcpStream) -> Option<(TcpStream, Bytes, bool)> {
    let mut read = Vec::with_capacity(1024);
    while read.len() < PREFACE.len() && PREFACE.starts_with(&read) {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
    let is_http2 = read.starts_with(PREFACE);
    Some((stream, read.into(), is_http2))
}

fn http1_builder(config: &AxonConfig) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // The watch tells idle peers from slow ones; this is the outer bound of both.
        .header_read_timeout(config.idle_timeout + config.header_timeout)
        .max_buf_size(config.max_header_bytes.max(64 << 10))
        .max_header_size(config.max_header_bytes)
        .half_close(false);
    if config.max_headers != HYPER_MAX_HEADERS {
        builder.max_headers(config.max_headers);
    }
    builder
}

/// With another number hyper allocates for every request.
const HYPER_MAX_HEADERS: usize = 100;

fn http2_builder(config: &AxonConfig) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.max_streams)
        .max_header_list_size(u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(64)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20)
        .max_send_buf_size(256 << 10)
        .keep_alive_interval(config.idle_timeout / 2)
        .keep_alive_timeout(config.write_timeout);
    builder
}

/// Runs a connection and ends it in the gentlest way that works.
async fn drive<C: Future>(
    mut connection: Pin<&mut C>,
    end_gracefully: impl Fn(Pin<&mut C>),
    watch: &Watch,
    config: &AxonConfig,
    mut stopping: watch::Receiver<bool>,
) {
    let shortest = config.header_timeout.min(config.idle_timeout).min(config.write_timeout);
    let mut looks = tokio::time::interval((shortest / 4).clamp(Duration::from_millis(5), Duration::from_secs(1)));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_stopping = false;
    let mut ends_by: Option<Instant> = None;
    let mut leaves_at = None;
    loop {
        tokio::select! {
            biased;
            _ = &mut connection => return,
            _ = stopping.wait_for(|stopping| *stopping), if !is_stopping => {
                is_stopping = true;
                end_gracefully(connection.as_mut());
            }
            () = watch.dismissed(), if leaves_at.is_none() => {
                meters::connection_cut(DISPLACED);
                leaves_at = Some(tokio::time::Instant::now() + LEAVING);
                end_gracefully(connection.as_mut());
            }
            // Whoever asked at the last moment is answered.
            () = until(leaves_at), if !watch.is_active() => return,
            _ = looks.tick() => match watch.judge(config) {
                None => {}
                Some(TooSlow::Idle) if ends_by.is_none() => {
                    meters::connection_cut(TooSlow::Idle.as_str());
                    ends_by = Some(Instant::now() + FAREWELL);
                    end_gracefully(connection.as_mut());
                }
                Some(TooSlow::Idle) if ends_by.is_some_and(|by| Instant::now() < by) => {}
                Some(slow) => {
                    meters::connection_cut(slow.as_str());
                    return;
                }
            },
        }
    }
}

/// Waits for a moment, for ever where there is none.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// What a reply keeps alive until its last byte is handed over.
#[derive(Debug)]
pub(crate) struct Held {
    request: ActiveRequest,
    _in_flight: Option<InFlight>,
    report: Report,
}

/// Counts a request once its answer is out.
#[derive(Debug)]
struct Report {
    transport: &'static str,
    outcome: &'static str,
    arrived: Instant,
}

impl Drop for Held {
    fn drop(&mut self) {
        meters::request(self.report.transport, self.report.outcome, self.report.arrived.elapsed());
    }
}

/// An answer and what to count it as.
pub(crate) struct Answered {
    pub(crate) response: Response<ReplyBody<()>>,
    pub(crate) transport: &'static str,
    pub(crate) outcome: &'static str,
}

struct ConnectionService {
    services: Arc<Services>,
    watch: Arc<Watch>,
    peer: SocketAddr,
}

impl hyper::service::Service<Request<Incoming>> for ConnectionService {
    type Response = Response<ReplyBody<Held>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let arrived = Instant::now();
        let active = self.watch.request();
        let services = self.services.clone();
        let address = network(self.peer.ip());
        Box::pin(async move {
            let is_lasting = is_grpc(&request) && grpc::is_lasting(&request);
            let entered = services.admission.enter(address).and_then(|mut in_flight| {
                if is_lasting {
                    in_flight.set_lasting()?;
                }
                Ok(in_flight)
            });
            let answered = match &entered {
                Ok(in_flight) => services.answer(request, in_flight, arrived).await,
                Err(refusal) if is_grpc(&request) => {
                    let (response, outcome) = grpc::refuse_for(refusal);
                    Answered { response: response.map(ReplyBody::grpc), transport: "none", outcome }
                }
                Err(refusal) => Answered {
                    response: crate::http::refuse(refusal),
                    transport: "none",
                    outcome: meters::category_label(refusal.category),
                },
            };
            let report = Report { transport: answered.transport, outcome: answered.outcome, arrived };
            let mut held = Held { request: active, _in_flight: entered.ok(), report };
            if !is_lasting {
                held.request.set_answered();
            }
            Ok(answered.response.map(|body| body.holding(held)))
        })
    }
}

impl Services {
    async fn answer(&self, request: Request<Incoming>, in_flight: &InFlight, arrived: Instant) -> Answered {
        if is_grpc(&request) {
            let (response, outcome) = self.grpc.answer(request, in_flight, arrived).await;
            return Answered { response: response.map(ReplyBody::grpc), transport: "grpc", outcome };
        }
        self.http.answer(request, in_flight, arrived).await
    }
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    request.version() == http::Version::HTTP_2
        && content_type.is_some_and(|value| value.starts_with(b"application/grpc"))
}
