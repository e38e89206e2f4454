//! Why there is no pipeline, and how a backend's errors look to a peer.

use idiolect_axon::HandlerError;
use idiolect_backend::{Error, ErrorKind};
use idiolect_protocol::Category;
use idiolect_uniqueness::StoreError;

/// Why a pipeline cannot be made, or its records not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// Settings that cannot work: all of them are named.
    #[error("{0}")]
    Config(String),
    /// The store cannot be used.
    #[error("the store of replies failed")]
    Store(#[from] StoreError),
    /// There is no record of this reply.
    #[error("no reply {0:?} is on record")]
    NotFound(String),
    /// A record cannot be read.
    #[error("the record of reply {id} cannot be read")]
    Damaged {
        /// The reply's id.
        id: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Turns a backend's error into what the peer is told. The cause goes along for the log.
pub(crate) fn to_handler_error(error: Error) -> HandlerError {
    let (category, message) = match (&error, error.kind()) {
        (Error::ContextTooLong { prompt_tokens, context_tokens }, _) => {
            (Category::TooLarge, format!("prompt has {prompt_tokens} tokens, context length is {context_tokens}"))
        }
        (Error::InvalidRequest(reason), _) => (Category::Malformed, reason.clone()),
        (_, ErrorKind::InvalidRequest) => (Category::Malformed, "invalid request".to_owned()),
        (_, ErrorKind::Overloaded) => (Category::Overloaded, "overloaded".to_owned()),
        (_, ErrorKind::DeadlineExceeded) => (Category::Timeout, "out of time".to_owned()),
        (_, ErrorKind::Internal) => (Category::Internal, "internal error".to_owned()),
        // What a peer cannot do anything about: the model is not there, whatever the reason.
        _ => (Category::Unavailable, "the model is not available".to_owned()),
    };
    HandlerError::new(category, message).with_source(error)
}

/// Says how much an error tells: of several, the one with the highest rank is passed on.
pub(crate) const fn rank(error: &Error) -> u8 {
    match error.kind() {
        // The same for every recipe, and the caller's own doing.
        ErrorKind::InvalidRequest => 5,
        ErrorKind::Overloaded => 4,
        ErrorKind::Unavailable | ErrorKind::LimitReached | ErrorKind::Unauthorized | ErrorKind::Unsupported => 3,
        ErrorKind::Protocol | ErrorKind::Internal => 2,
        ErrorKind::DeadlineExceeded => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_learn_the_category_and_no_internals() {
        let backend = || "http://10.0.0.7:8000".to_owned();
        for (error, category) in [
            (Error::InvalidRequest("n is 0".into()), Category::Malformed),
            (Error::ContextTooLong { prompt_tokens: 9, context_tokens: 8 }, Category::TooLarge),
            (Error::Unsupported { backend: backend(), what: "logprobs".into() }, Category::Unavailable),
            (Error::Overloaded { backend: backend(), retry_after: None }, Category::Overloaded),
            (Error::Unavailable { backend: backend(), reason: "refused".into() }, Category::Unavailable),
            (Error::DeadlineExceeded, Category::Timeout),
            (Error::LimitReached("5 USD a day".into()), Category::Unavailable),
            (Error::Unauthorized { backend: backend() }, Category::Unavailable),
            (Error::Protocol { backend: backend(), reason: "no JSON".into() }, Category::Unavailable),
            (Error::internal("matmul", "boom"), Category::Internal),
        ] {
            let shown = to_handler_error(error);
            assert_eq!(shown.category, category);
            assert!(!shown.message.contains("10.0.0.7") && !shown.message.contains("USD"), "{}", shown.message);
            assert!(shown.source.is_some());
        }
    }
}
