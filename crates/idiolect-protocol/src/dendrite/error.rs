//! Why a question got no answer.

use std::time::Duration;

use http::StatusCode;

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DendriteError {
    /// The address is not `HOST:PORT`.
    #[error("{address:?} is not HOST:PORT")]
    BadAddress {
        /// What was given.
        address: String,
    },
    /// The options make no request.
    #[error("cannot ask that: {reason}")]
    BadRequest {
        /// What is wrong.
        reason: String,
    },
    /// No connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// The miner's address.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The connection broke.
    #[error("the connection to {address} broke")]
    Broken {
        /// The miner's address.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Time ran out, here or, by its own word, at the miner.
    #[error("no answer within {after:?}")]
    Timeout {
        /// How long was waited.
        after: Duration,
    },
    /// The miner refused.
    #[error("refused with {status}: {message}")]
    Refused {
        /// The HTTP status, or the one nearest to the gRPC status or return code.
        code: StatusCode,
        /// The status in the transport's own words: `403 Forbidden`, `UNAUTHENTICATED`, `Blacklisted`.
        status: String,
        /// What the miner says to it.
        message: String,
    },
    /// The answer is larger than allowed.
    #[error("the answer has more than {max_bytes} bytes")]
    TooLarge {
        /// The limit.
        max_bytes: usize,
    },
    /// The answer makes no sense.
    #[error("bad answer: {reason}")]
    BadAnswer {
        /// What is wrong.
        reason: String,
    },
}

impl DendriteError {
    pub(super) fn bad_answer(reason: impl Into<String>) -> Self {
        Self::BadAnswer { reason: reason.into() }
    }

    /// Returns the status code as bittensor's own client reports it: 503 for no connection, 408 for a timeout, 422 for
    /// an answer that makes no sense, the miner's own otherwise.
    #[must_use]
    pub const fn status_code(&self) -> StatusCode {
        match self {
            Self::BadAddress { .. } | Self::BadRequest { .. } => StatusCode::BAD_REQUEST,
            Self::Connect { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Timeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::Refused { code, .. } => *code,
            Self::TooLarge { .. } | Self::BadAnswer { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }
}
