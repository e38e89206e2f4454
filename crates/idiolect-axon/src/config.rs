//! What an axon is told: where to listen and how much to take.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::Duration;

use crate::policy::Rate;

/// Address, bounds and times of an [`Axon`](crate::Axon). Every bound is on: there is no way to wait or buffer without end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AxonConfig {
    /// Where to listen. Default 127.0.0.1:8091.
    pub listen: SocketAddr,
    /// The address that the chain announces, told to verified callers as older servers do. Default none.
    pub external: Option<SocketAddr>,
    /// Largest request body in bytes; more is refused with 413 or `RESOURCE_EXHAUSTED`. Default 4 MiB, gRPC's own default.
    pub max_body_bytes: usize,
    /// Most bytes of request bodies held at one time, over all connections. Default 256 MiB.
    pub max_buffered_bytes: usize,
    /// Largest request head in bytes; more is refused with 431. Default 32 KiB.
    pub max_header_bytes: usize,
    /// Most headers in a request; more is refused with 431. Default 100.
    pub max_headers: usize,
    /// How long a request's head may take from its first byte, and a new connection to send anything. Default 10 s.
    pub header_timeout: Duration,
    /// How long a request's body may take. Default 10 s.
    pub body_timeout: Duration,
    /// How long a connection may rest between requests. Default 75 s, above the keep-alive of common clients.
    pub idle_timeout: Duration,
    /// How long a peer may leave our bytes unread before the connection is closed; it may take three times as long over a
    /// whole answer. Default 20 s.
    pub write_timeout: Duration,
    /// Most connections at one time. Default 1024. For another, one that has asked nothing for a second is closed: of the
    /// address that holds most, the one that has rested longest. Only where there is none the newcomer is told 503.
    pub max_connections: usize,
    /// Most connections at one time from one address. Default 256. As above, among its own.
    pub max_connections_per_ip: usize,
    /// Most requests at one time, verified or not; more are refused with 503. Default 1024.
    pub max_requests: usize,
    /// Most requests at one time from one address whose callers have not proved a key that policy lets in; more are
    /// refused with 503. Proof takes no time worth mentioning, so this stops only those who never get there. Default 256, as many as its connections.
    pub max_strangers_per_ip: usize,
    /// How often one address may fail, ten times as much at once; beyond, its requests are refused with
    /// 429. Failures are failed proofs, and proofs of keys that the policy neither knows nor lets in. Large bodies count more. A
    /// key that the policy knows counts by itself, all such names at an address together four times as much; where one proved
    /// itself, at its last three addresses, nothing but failures under its own name counts against it, so that validators do
    /// not suffer from their neighbours. `None` is without limit, and the time at most a day. Default 100 a second.
    pub max_failures: Option<Rate>,
    /// Most HTTP/2 streams of one connection. Default 128.
    pub max_streams: u32,
    /// Most calls that the handler works on at one time. Default 16.
    pub concurrency: usize,
    /// Most calls that wait for the handler; beyond, the one with the least priority is refused. Default 128.
    pub max_waiting: usize,
    /// What is kept of the client's timeout for the way back. Default 500 ms, and never more than a tenth of the timeout.
    pub margin: Duration,
    /// The timeout of clients that state none. Default 10 s.
    pub default_timeout: Duration,
    /// How long running calls may take to finish once the axon is told to stop. Default 15 s.
    pub drain: Duration,
    /// How many completions a gRPC `MultiForward` is answered with. Default 4.
    pub n_multi_completions: usize,
    /// Serve gRPC reflection, which shows the public contract to anybody. Default on.
    pub reflection: bool,
}

impl Default for AxonConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8091),
            external: None,
            max_body_bytes: 4 << 20,
            max_buffered_bytes: 256 << 20,
            max_header_bytes: 32 << 10,
            max_headers: 100,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(20),
            max_connections: 1024,
            max_connections_per_ip: 256,
            max_requests: 1024,
            max_strangers_per_ip: 256,
            max_failures: NonZeroU32::new(100).map(|requests| Rate { requests, per: Duration::from_secs(1) }),
            max_streams: 128,
            concurrency: 16,
            max_waiting: 128,
            margin: Duration::from_millis(500),
            default_timeout: Duration::from_secs(10),
            drain: Duration::from_secs(15),
            n_multi_completions: 4,
            reflection: true,
        }
    }
}

impl AxonConfig {
    /// Returns the time that a call has in the axon when its client waits `timeout`.
    #[must_use]
    pub fn budget(&self, timeout: Duration) -> Duration {
        timeout.saturating_sub(self.margin.min(timeout / 10))
    }

    /// Says what is wrong with the figures, if anything.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let zero = [
            (self.max_body_bytes, "max_body_bytes must not be 0"),
            (self.max_buffered_bytes, "max_buffered_bytes must not be 0"),
            (self.max_headers, "max_headers must not be 0"),
            (self.max_connections, "max_connections must not be 0"),
            (self.max_connections_per_ip, "max_connections_per_ip must not be 0"),
            (self.max_requests, "max_requests must not be 0"),
            (self.max_strangers_per_ip, "max_strangers_per_ip must not be 0"),
            (self.max_streams as usize, "max_streams must not be 0"),
            (self.concurrency, "concurrency must not be 0"),
            (self.n_multi_completions, "n_multi_completions must not be 0"),
        ];
        if let Some((_, fault)) = zero.into_iter().find(|(value, _)| *value == 0) {
            return Some(fault);
        }
        if self.max_header_bytes < MIN_HEADER_BYTES {
            return Some("max_header_bytes must be at least 8192");
        }
        None
    }
}

/// The least head size that hyper's buffers allow.
const MIN_HEADER_BYTES: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margin_shrinks_with_short_timeouts() {
        let config = AxonConfig::default();
        let budget = |ms| config.budget(Duration::from_millis(ms)).as_millis();
        assert_eq!(budget(12_000), 11_500);
        assert_eq!(budget(5_000), 4_500);
        assert_eq!(budget(1_000), 900);
        assert_eq!(budget(10), 9);
        assert_eq!(budget(0), 0);
    }

    #[test]
    fn faults_are_named() {
        assert_eq!(AxonConfig::default().fault(), None);
        assert_eq!(AxonConfig { concurrency: 0, ..AxonConfig::default() }.fault(), Some("concurrency must not be 0"));
        assert!(AxonConfig { max_header_bytes: 100, ..AxonConfig::default() }.fault().is_some());
    }
}
