//! The metrics of this crate: one function each, so that names and labels stand in one place.

use std::time::Duration;

use idiolect_protocol::Category;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::metagraph::Stage;

const REQUESTS: &str = "idiolect_axon_requests_total";
const SECONDS: &str = "idiolect_axon_request_seconds";
const IN_FLIGHT: &str = "idiolect_axon_requests_in_flight";
const VERIFY_SECONDS: &str = "idiolect_axon_verify_seconds";
const DENIED: &str = "idiolect_axon_denied_total";
const SHED: &str = "idiolect_axon_shed_total";
const QUEUE_DEPTH: &str = "idiolect_axon_queue_depth";
const QUEUE_SECONDS: &str = "idiolect_axon_queue_wait_seconds";
const CONNECTIONS: &str = "idiolect_axon_connections";
const CONNECTIONS_REFUSED: &str = "idiolect_axon_connections_refused_total";
const CONNECTIONS_CUT: &str = "idiolect_axon_connections_cut_total";
const BUFFERED: &str = "idiolect_axon_buffered_bytes";
const NONCES: &str = "idiolect_axon_nonces";
const NONCES_SAVED: &str = "idiolect_axon_nonces_saved_total";
const NONCE_SAVE_FAILED: &str = "idiolect_axon_nonce_save_failures_total";
const DRAIN_SECONDS: &str = "idiolect_axon_drain_seconds";
const METAGRAPH_AGE: &str = "idiolect_axon_metagraph_age_seconds";
const METAGRAPH_STAGE: &str = "idiolect_axon_metagraph_stage";
const METAGRAPH_FAILED: &str = "idiolect_axon_metagraph_reload_failures_total";

/// Describes every metric to the installed recorder. Called when an axon starts; harmless when called again.
pub fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests by `transport` (grpc, http, epistula, btauth, none) and `outcome` (ok or the category of the error)"
    );
    describe_histogram!(SECONDS, Unit::Seconds, "Time from a request's head to the end of its answer, by `transport`");
    describe_gauge!(IN_FLIGHT, "Requests that are being read, checked, queued or answered");
    describe_histogram!(VERIFY_SECONDS, Unit::Seconds, "Time that the check of a request's signature and nonce took");
    describe_counter!(DENIED, "Verified requests that policy refused, by `rule`");
    describe_counter!(SHED, "Requests refused for want of room, by `where` (requests, queue, body)");
    describe_gauge!(QUEUE_DEPTH, "Calls that wait for the handler");
    describe_histogram!(QUEUE_SECONDS, Unit::Seconds, "Time that calls waited for the handler");
    describe_gauge!(CONNECTIONS, "Open connections");
    describe_counter!(CONNECTIONS_REFUSED, "Connections refused on arrival, by `why` (total, per_ip, draining)");
    describe_counter!(
        CONNECTIONS_CUT,
        "Connections closed on peers that were too slow or whose place was needed, by `why` (head, body, idle, write, displaced)"
    );
    describe_gauge!(BUFFERED, Unit::Bytes, "Bytes of request bodies held now");
    describe_gauge!(NONCES, "Nonces remembered");
    describe_counter!(NONCES_SAVED, "Nonces written to disk");
    describe_counter!(NONCE_SAVE_FAILED, "Failed attempts to write nonces to disk; they are tried again");
    describe_histogram!(DRAIN_SECONDS, Unit::Seconds, "Time that stopping took");
    describe_gauge!(METAGRAPH_AGE, Unit::Seconds, "Age of the metagraph in use");
    describe_gauge!(METAGRAPH_STAGE, "Stage of the metagraph in use: 0 fresh, 1 degraded, 2 expired");
    describe_counter!(
        METAGRAPH_FAILED,
        "Metagraph snapshots that could not be read and left the last good one in place"
    );
}

/// Returns the label of a category.
pub(crate) const fn category_label(category: Category) -> &'static str {
    match category {
        Category::Malformed => "malformed",
        Category::TooLarge => "too_large",
        Category::Unauthenticated => "unauthenticated",
        Category::Forbidden => "forbidden",
        Category::RateLimited => "rate_limited",
        Category::NotFound => "not_found",
        Category::BodyMismatch => "body_mismatch",
        Category::Overloaded => "overloaded",
        Category::Unavailable => "unavailable",
        Category::Timeout => "timeout",
        Category::Internal => "internal",
        _ => "other",
    }
}

pub(crate) fn request(transport: &'static str, outcome: &'static str, took: Duration) {
    counter!(REQUESTS, "transport" => transport, "outcome" => outcome).increment(1);
    histogram!(SECONDS, "transport" => transport).record(took);
}

pub(crate) fn in_flight(n: usize) {
    gauge!(IN_FLIGHT).set(n as f64);
}

pub(crate) fn verified(took: Duration) {
    histogram!(VERIFY_SECONDS).record(took);
}

pub(crate) fn denied(rule: &'static str) {
    counter!(DENIED, "rule" => rule).increment(1);
}

pub(crate) fn shed(place: &'static str) {
    counter!(SHED, "where" => place).increment(1);
}

pub(crate) fn queued(depth: usize, waited: Duration) {
    gauge!(QUEUE_DEPTH).set(depth as f64);
    histogram!(QUEUE_SECONDS).record(waited);
}

pub(crate) fn connections(n: usize) {
    gauge!(CONNECTIONS).set(n as f64);
}

pub(crate) fn connection_refused(why: &'static str) {
    counter!(CONNECTIONS_REFUSED, "why" => why).increment(1);
}

pub(crate) fn connection_cut(why: &'static str) {
    counter!(CONNECTIONS_CUT, "why" => why).increment(1);
}

pub(crate) fn buffered(bytes: usize) {
    gauge!(BUFFERED).set(bytes as f64);
}

pub(crate) fn nonces(n: usize) {
    gauge!(NONCES).set(n as f64);
}

pub(crate) fn nonces_saved(n: usize) {
    counter!(NONCES_SAVED).increment(n as u64);
}

pub(crate) fn nonce_save_failed() {
    counter!(NONCE_SAVE_FAILED).increment(1);
}

pub(crate) fn drained(took: Duration) {
    histogram!(DRAIN_SECONDS).record(took);
}

pub(crate) fn metagraph_age(age: Duration, stage: Stage) {
    gauge!(METAGRAPH_AGE).set(age.as_secs_f64());
    gauge!(METAGRAPH_STAGE).set(f64::from(stage as u8));
}

pub(crate) fn metagraph_reload_failed() {
    counter!(METAGRAPH_FAILED).increment(1);
}
