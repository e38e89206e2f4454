//! Log lines and metrics of the process.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use idiolect_backend::{MemberSnapshot, Pool};
use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSection};

/// Buckets of every histogram of seconds: from a fast check to a slow reply.
const SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0,
    15.0, 30.0,
];
/// Buckets of every histogram of shares and distances.
const RATIOS: &[f64] = &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

/// How often old observations are folded away.
const UPKEEP: Duration = Duration::from_secs(5);

/// Starts logging to standard error.
///
/// # Errors
/// When `filter` has a directive that cannot be read. A logger that is already there stays.
pub fn start_logging(log: &LogSection) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.filter).with_context(|| {
        format!("log.filter is {:?}, expected a level or directives such as info,idiolect_axon=debug", log.filter)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second logger in one process (tests start several miners) is no fault.
    let _ = match log.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(colours).with_target(false).try_init()
        }
    };
    Ok(())
}

const INFO: &str = "idiolect_miner_info";
const READY: &str = "idiolect_miner_ready";
const STARTED: &str = "idiolect_miner_start_time_seconds";
const BACKEND_IN_FLIGHT: &str = "idiolect_miner_backend_requests_in_flight";
const BACKEND_REQUESTS: &str = "idiolect_miner_backend_requests_total";
const BACKEND_FAILURES: &str = "idiolect_miner_backend_failures_total";
const BACKEND_COOLING: &str = "idiolect_miner_backend_cooling";

/// Describes every metric of the miner and of the crates in it to the installed recorder.
pub fn describe() {
    describe_gauge!(INFO, "1; label `version`");
    describe_gauge!(READY, "1 once the axon answers");
    describe_gauge!(STARTED, Unit::Seconds, "When the miner started, in seconds since 1970");
    describe_gauge!(BACKEND_IN_FLIGHT, "Requests that a backend works on, by `backend`");
    describe_counter!(BACKEND_REQUESTS, "Requests that a backend was given, by `backend`");
    describe_counter!(BACKEND_FAILURES, "Requests that a backend failed at and that counted against it, by `backend`");
    describe_gauge!(BACKEND_COOLING, "1 while a backend is left alone after failures, by `backend`");
    idiolect_axon::metrics::describe();
    idiolect_pipeline::metrics::describe();
    #[cfg(feature = "candle")]
    idiolect_backend_candle::metrics::describe();
}

/// Notes that the process started.
pub(crate) fn started() {
    gauge!(INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    gauge!(STARTED).set(now.as_secs_f64());
}

/// Notes whether the axon answers.
pub(crate) fn ready(is_ready: bool) {
    gauge!(READY).set(f64::from(u8::from(is_ready)));
}

/// Notes how the backends are doing.
pub(crate) fn backends(members: &[MemberSnapshot]) {
    for member in members {
        let name = member.name.clone();
        gauge!(BACKEND_IN_FLIGHT, "backend" => name.clone()).set(member.in_flight as f64);
        counter!(BACKEND_REQUESTS, "backend" => name.clone()).absolute(member.requests_total);
        counter!(BACKEND_FAILURES, "backend" => name.clone()).absolute(member.failures_total);
        gauge!(BACKEND_COOLING, "backend" => name).set(f64::from(u8::from(member.cooldown.is_some())));
    }
}

/// Returns the process's metrics, which are recorded from the first call on.
///
/// # Errors
/// When another recorder is in place.
pub fn metrics() -> anyhow::Result<PrometheusHandle> {
    static RECORDER: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    RECORDER.get_or_init(|| install().map_err(|e| format!("{e:#}"))).clone().map_err(anyhow::Error::msg)
}

fn install() -> anyhow::Result<PrometheusHandle> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_ratio".to_owned()), RATIOS)?
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| anyhow::anyhow!("another metrics recorder is in place"))?;
    describe();
    Ok(handle)
}

/// Keeps the metrics' memory small and the backends' figures fresh, for ever. Spawn it and abort it at the end.
pub(crate) async fn upkeep(metrics: PrometheusHandle, pool: Arc<Pool>) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
        backends(&pool.members());
    }
}
