//! What can go wrong in one exchange, and what it means.

use std::time::Duration;

use async_openai::error::OpenAIError;
use idiolect_backend::Error;

/// Why one exchange failed. Holds nothing that the server said in its own words: those may quote the prompt or the key.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Fault {
    /// A status other than 2xx.
    #[error("status {status}{}", .code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default())]
    Status {
        status: u16,
        /// The server's error code or type, where it looks like an identifier.
        code: Option<String>,
        retry_after: Option<Duration>,
        /// Tokens of the prompt and of the context, where the server told.
        too_long: Option<(u32, u32)>,
    },
    /// No connection, so the request was not sent.
    #[error("{0}")]
    Unreached(String),
    /// The connection broke, and the request may have been sent.
    #[error("{0}")]
    Broken(String),
    /// Nothing came in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Silent(Duration),
    /// What came could not be read.
    #[error("{0}")]
    Malformed(String),
}

impl Fault {
    /// Says whether the same request may go better in a moment.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Status { code: Some(code), .. } if is_out_of_money(code) => false,
            Self::Status { status, .. } => matches!(status, 408 | 409 | 425 | 429 | 500..=599),
            Self::Unreached(_) | Self::Broken(_) | Self::Silent(_) => true,
            Self::Malformed(_) => false,
        }
    }

    pub(crate) const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Says whether the server may have refused the request for its `n`.
    pub(crate) const fn may_refuse_n(&self) -> bool {
        matches!(self, Self::Status { status: 400 | 422 | 500 | 501, too_long: None, .. })
    }

    /// Reads the kind of failure that the HTTP client reports, leaving out addresses.
    pub(crate) fn of_client(error: &reqwest::Error) -> Self {
        if error.is_builder() || error.is_redirect() {
            return Self::Malformed("the request could not be built".to_owned());
        }
        let cause = innermost_io(error).map(|io| format!(": {}", io.kind())).unwrap_or_default();
        let what = match (error.is_connect(), error.is_timeout()) {
            (true, true) => "no connection in time",
            (true, false) => "no connection",
            (false, true) => "the connection timed out",
            (false, false) => "the connection broke",
        };
        let shown = format!("{what}{cause}");
        if error.is_connect() { Self::Unreached(shown) } else { Self::Broken(shown) }
    }

    pub(crate) fn of(error: OpenAIError) -> Self {
        match error {
            OpenAIError::Boxed(boxed) => match boxed.downcast::<Self>() {
                Ok(fault) => *fault,
                Err(_) => Self::Unreached("the request could not be sent".to_owned()),
            },
            OpenAIError::Reqwest(error) => Self::of_client(&error),
            OpenAIError::StreamError(_) => Self::Broken("the stream broke".to_owned()),
            OpenAIError::ApiError(error) => {
                Self::Status { status: error.status_code.as_u16(), code: None, retry_after: None, too_long: None }
            }
            OpenAIError::InvalidArgument(_) => Self::Malformed("the request could not be built".to_owned()),
            OpenAIError::JSONDeserialize(..) | OpenAIError::FileSaveError(_) | OpenAIError::FileReadError(_) => {
                Self::Malformed("the answer is not what was asked for".to_owned())
            }
        }
    }

    /// Turns the failure into the error of the contract.
    pub(crate) fn into_error(self, backend: &str) -> Error {
        let backend = backend.to_owned();
        let shown = self.to_string();
        match self {
            Self::Status { too_long: Some((prompt_tokens, context_tokens)), .. } => {
                Error::ContextTooLong { prompt_tokens, context_tokens }
            }
            Self::Status { status, code, retry_after, .. } => match status {
                401 | 403 => Error::Unauthorized { backend },
                402 => Error::LimitReached(format!("{backend} wants payment, {shown}")),
                429 if code.as_deref().is_some_and(is_out_of_money) => {
                    Error::LimitReached(format!("{backend} has no credit left, {shown}"))
                }
                429 | 503 | 529 => Error::Overloaded { backend, retry_after },
                300..=399 => Error::Unavailable { backend, reason: format!("{shown}: base URL points elsewhere") },
                404 => Error::Unavailable { backend, reason: format!("{shown}: no such model, or a wrong base URL") },
                408 | 409 | 425 | 500.. => Error::Unavailable { backend, reason: shown },
                _ => Error::Unsupported { backend, what: format!("the request, {shown}") },
            },
            Self::Unreached(_) => Error::Unavailable { backend, reason: shown },
            Self::Broken(_) | Self::Silent(_) => Error::Unanswered { backend, reason: shown },
            Self::Malformed(reason) => Error::Protocol { backend, reason },
        }
    }
}

impl From<Fault> for OpenAIError {
    fn from(fault: Fault) -> Self {
        Self::Boxed(Box::new(fault))
    }
}

fn is_out_of_money(code: &str) -> bool {
    matches!(code, "insufficient_quota" | "billing_hard_limit_reached" | "billing_not_active")
}

fn innermost_io(error: &dyn std::error::Error) -> Option<&std::io::Error> {
    let mut found = None;
    let mut next = error.source();
    while let Some(error) = next {
        found = error.downcast_ref::<std::io::Error>().or(found);
        next = error.source();
    }
    found
}
