//! Why a request was refused, and what the peer is told of it.

use std::time::Duration;

/// Category of everything that can go wrong with a request; [`status`](crate::status) maps it to HTTP and gRPC codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Category {
    /// The request's head or body cannot be understood.
    Malformed,
    /// The request is larger than allowed.
    TooLarge,
    /// The caller did not prove its key.
    Unauthenticated,
    /// The caller proved its key and is not welcome.
    Forbidden,
    /// The caller asks too often.
    RateLimited,
    /// No such synapse, path or method.
    NotFound,
    /// The signed hash and the body differ.
    BodyMismatch,
    /// No room now.
    Overloaded,
    /// Stopping, or the model is not there.
    Unavailable,
    /// Time ran out.
    Timeout,
    /// A fault of ours.
    Internal,
}

/// Why a claim was not believed.
///
/// The text of each variant is what the reference servers say, short and without anything of the request in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// A header is missing; holds its name.
    #[error("Missing {0}")]
    Missing(&'static str),
    /// A header cannot be read: its name and what was expected.
    #[error("Malformed {name}: expected {expected}")]
    Malformed {
        /// The header or field.
        name: &'static str,
        /// What was expected.
        expected: &'static str,
    },
    /// The client's version is too old or not supported.
    #[error("Incorrect Version")]
    IncorrectVersion,
    /// The gRPC signature header has another shape.
    #[error("Unknown signature format")]
    UnknownSignatureFormat,
    /// The request is signed for somebody else.
    #[error("Wrong receiver")]
    WrongReceiver,
    /// The clock reading is too old.
    #[error("Nonce is too old: acceptable delta is {acceptable:?} but request was {:?} old", whole_ms(*.age))]
    TooOld {
        /// How old it may be.
        acceptable: Duration,
        /// How old it is.
        age: Duration,
    },
    /// The clock reading lies too far ahead.
    #[error("Nonce is too far in the future")]
    TooFarAhead,
    /// The same nonce was seen before, or a counter did not grow.
    #[error("Nonce is too small")]
    Replayed,
    /// A gRPC nonce is the time of day: see [`Limits::grpc_clock_nonces`](crate::Limits::grpc_clock_nonces).
    #[error("Nonce is a clock reading")]
    ClockNonce,
    /// The store of nonces is full of ones that still count.
    #[error("Too many sessions")]
    NonceStoreFull,
    /// The signature does not fit key and text.
    #[error("Signature mismatch")]
    SignatureMismatch,
    /// So many claims from there failed that no more are looked at now.
    #[error("Too many failed verifications")]
    TooManyFailures,
    /// A client of this generation is not served here.
    #[error("{0} clients are not served here")]
    TransportOff(&'static str),
}

impl AuthError {
    /// Returns the category.
    #[must_use]
    pub const fn category(&self) -> Category {
        match self {
            Self::NonceStoreFull => Category::Overloaded,
            Self::TooManyFailures => Category::RateLimited,
            Self::Malformed { .. } => Category::Malformed,
            _ => Category::Unauthenticated,
        }
    }
}

/// Rounds up, so that what is over a limit still looks so.
fn whole_ms(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_milliseconds() {
        let age = Duration::from_nanos(30_000_825_799);
        let error = AuthError::TooOld { acceptable: Duration::from_secs(30), age };
        assert_eq!(error.to_string(), "Nonce is too old: acceptable delta is 30s but request was 30.001s old");
    }
}
