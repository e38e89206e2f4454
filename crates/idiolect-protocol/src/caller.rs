//! Who is calling: what a request claims, and what is left once the claim was proved.

use std::fmt;
use std::time::Duration;

use crate::Hotkey;

/// Counters stay far below, clock readings lie above: 30 years of nanoseconds (no machine runs that long), or 1999.
pub(crate) const FIRST_CLOCK_NONCE: i128 = 30 * 365 * 24 * 3600 * 1_000_000_000;

/// The generation of client that a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// bittensor 5.0 to 5.3: gRPC `TextPrompting`.
    Grpc,
    /// bittensor 6.0 to 10: HTTP synapses.
    Http,
    /// macrocosm prompting 2.13 and later: OpenAI-shaped HTTP with Epistula v2 headers.
    Epistula,
    /// bittensor 11: any HTTP with `btauth/1` headers.
    Btauth,
}

impl Transport {
    /// Returns the name used in logs, metrics and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Epistula => "epistula",
            Self::Btauth => "btauth",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The signature scheme of a [`Claim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Schnorr signatures on Ristretto with the context `substrate`.
    Sr25519,
    /// Ed25519; only btauth/1 allows it.
    Ed25519,
}

/// The value that makes a request unrepeatable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nonce {
    /// A clock reading: refused outside a window of time, and within it when seen before.
    Windowed {
        /// Signer and, where the transport has one, session: the space in which `value` is unique.
        key: String,
        /// The nonce as signed, so that two requests at one clock reading but with other ids stay apart.
        value: String,
        /// The clock reading in nanoseconds since 1970.
        at_ns: i128,
        /// How far back the window reaches.
        max_age: Duration,
        /// How far ahead of our clock the reading may lie.
        max_ahead: Duration,
    },
    /// A counter with no relation to the time of day (bittensor 5.x, 6.0 to 7.1): refused unless above the key's last value.
    Monotonic {
        /// `hotkey:uuid`.
        key: String,
        /// The counter.
        value: i128,
    },
}

/// What a request says of itself, before anything of it is believed.
///
/// Each transport has a function that reads a claim out of a request's head. [`Verifier::verify`](crate::Verifier::verify)
/// turns it into a [`Caller`].
#[derive(Clone, PartialEq, Eq)]
pub struct Claim {
    /// Where it came in.
    pub transport: Transport,
    /// The key it claims to hold.
    pub hotkey: Hotkey,
    /// The scheme of the signature.
    pub scheme: Scheme,
    /// The bytes that the signature must cover, composed by us from the request with our own key as receiver.
    pub signed: Vec<u8>,
    /// The signature.
    pub signature: [u8; 64],
    /// What makes it unrepeatable.
    pub nonce: Nonce,
    /// How long the client waits, when it says so; already capped by [`Limits::max_timeout`](crate::Limits::max_timeout).
    pub timeout: Option<Duration>,
    /// The client's version number, when it says so. Not covered by any signature.
    pub version: Option<i64>,
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claim")
            .field("transport", &self.transport)
            .field("hotkey", &self.hotkey)
            .field("scheme", &self.scheme)
            .field("nonce", &self.nonce)
            .field("timeout", &self.timeout)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// A peer that proved to hold `hotkey` with this very request.
///
/// Only [`Verifier::verify`](crate::Verifier::verify) makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub(crate) transport: Transport,
    pub(crate) hotkey: Hotkey,
    pub(crate) timeout: Option<Duration>,
    pub(crate) version: Option<i64>,
}

impl Caller {
    /// Returns the transport the request came in by.
    #[must_use]
    pub const fn transport(&self) -> Transport {
        self.transport
    }

    /// Returns the proved key.
    #[must_use]
    pub const fn hotkey(&self) -> &Hotkey {
        &self.hotkey
    }

    /// Returns how long the client waits, when it said so, capped.
    #[must_use]
    pub const fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// Returns the version the client says it has; not signed, so good for statistics only.
    #[must_use]
    pub const fn version(&self) -> Option<i64> {
        self.version
    }
}
