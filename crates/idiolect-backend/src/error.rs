//! Why a backend could not answer.

use std::time::Duration;

/// Coarse category of an [`Error`], for metrics and status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request can never work.
    InvalidRequest,
    /// This backend cannot do that.
    Unsupported,
    /// Not enough room now.
    Overloaded,
    /// Not reachable or not working now.
    Unavailable,
    /// Time ran out with nothing to show.
    DeadlineExceeded,
    /// A limit on spending or rate was reached.
    LimitReached,
    /// The credentials were refused.
    Unauthorized,
    /// The other side spoke nonsense.
    Protocol,
    /// A fault of our own.
    Internal,
}

/// Why a backend could not answer. Messages never hold keys or prompts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request breaks a rule; trying again is no use.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// The prompt cannot be made to fit.
    #[error("prompt has {prompt_tokens} tokens, context length is {context_tokens}")]
    ContextTooLong {
        /// Tokens of the prompt after everything that may be cut was cut; estimated where it is so long that not all of it
        /// was tokenised.
        prompt_tokens: u32,
        /// The context's length.
        context_tokens: u32,
    },
    /// This backend cannot do what was asked.
    #[error("{backend} does not support {what}")]
    Unsupported {
        /// The backend's name.
        backend: String,
        /// What was asked of it.
        what: String,
    },
    /// The queue is full.
    #[error("{backend} is overloaded")]
    Overloaded {
        /// The backend's name.
        backend: String,
        /// When the other side said to come back.
        retry_after: Option<Duration>,
    },
    /// The backend cannot be reached or is down.
    #[error("{backend} is unavailable: {reason}")]
    Unavailable {
        /// The backend's name.
        backend: String,
        /// Why, in a few words.
        reason: String,
    },
    /// The request was sent and nothing came back, or the connection broke before an answer: it may have been worked on,
    /// and billed, all the same.
    #[error("{backend} did not answer: {reason}")]
    Unanswered {
        /// The backend's name.
        backend: String,
        /// Why, in a few words.
        reason: String,
    },
    /// The deadline passed before any text was there.
    #[error("deadline exceeded before any text was generated")]
    DeadlineExceeded,
    /// A spending or rate limit of the operator's was reached.
    #[error("limit reached: {0}")]
    LimitReached(String),
    /// Credentials are missing or were refused.
    #[error("{backend} refused the credentials")]
    Unauthorized {
        /// The backend's name.
        backend: String,
    },
    /// The answer could not be understood.
    #[error("{backend} sent an answer that could not be read: {reason}")]
    Protocol {
        /// The backend's name.
        backend: String,
        /// What was wrong with it.
        reason: String,
    },
    /// Something broke here.
    #[error("{context}")]
    Internal {
        /// What was being done.
        context: String,
        /// What broke.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Error {
    /// Makes an internal error out of whatever broke.
    pub fn internal(context: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Internal { context: context.into(), source: Some(source.into()) }
    }

    /// Returns the category.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidRequest(_) | Self::ContextTooLong { .. } => ErrorKind::InvalidRequest,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Overloaded { .. } => ErrorKind::Overloaded,
            Self::Unavailable { .. } | Self::Unanswered { .. } => ErrorKind::Unavailable,
            Self::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Self::LimitReached(_) => ErrorKind::LimitReached,
            Self::Unauthorized { .. } => ErrorKind::Unauthorized,
            Self::Protocol { .. } => ErrorKind::Protocol,
            Self::Internal { .. } => ErrorKind::Internal,
        }
    }

    /// Says whether the same request may succeed later, or elsewhere.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::Overloaded | ErrorKind::Unavailable | ErrorKind::Protocol | ErrorKind::Internal
        )
    }
}
