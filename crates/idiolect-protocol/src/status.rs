//! The one table from [`Category`] to what each transport says of it.

use http::StatusCode;
use tonic::Code;

use crate::Category;
use crate::pb::ReturnCode;

/// A row of the table.
struct Row {
    http: StatusCode,
    grpc: Code,
    return_code: ReturnCode,
}

const fn row(category: Category) -> Row {
    use Category as C;
    let (http, grpc, return_code) = match category {
        C::Malformed => (StatusCode::BAD_REQUEST, Code::InvalidArgument, ReturnCode::InvalidRequest),
        C::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, ReturnCode::RequestShapeException),
        C::Unauthenticated => (StatusCode::UNAUTHORIZED, Code::Unauthenticated, ReturnCode::Unauthenticated),
        C::Forbidden => (StatusCode::FORBIDDEN, Code::PermissionDenied, ReturnCode::Blacklisted),
        C::RateLimited => (StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, ReturnCode::Backoff),
        C::NotFound => (StatusCode::NOT_FOUND, Code::Unimplemented, ReturnCode::NotImplemented),
        C::BodyMismatch => (StatusCode::UNAUTHORIZED, Code::Unauthenticated, ReturnCode::Unauthenticated),
        C::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, Code::ResourceExhausted, ReturnCode::NucleusFull),
        C::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, ReturnCode::Unavailable),
        C::Timeout => (StatusCode::REQUEST_TIMEOUT, Code::DeadlineExceeded, ReturnCode::Timeout),
        C::Internal => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, ReturnCode::UnknownException),
    };
    Row { http, grpc, return_code }
}

/// Returns the HTTP status.
///
/// `Timeout` is 408, as the reference axon of bittensor 7.2 and later answers.
#[must_use]
pub const fn http_status(category: Category) -> StatusCode {
    row(category).http
}

/// Returns the gRPC status code.
#[must_use]
pub const fn grpc_code(category: Category) -> Code {
    row(category).grpc
}

/// Returns the number of the [`ReturnCode`] that a reply of bittensor's gRPC era carries for a failure of the application.
///
/// That era answers OK at the gRPC level and puts such failures into the message.
#[must_use]
pub const fn return_code(category: Category) -> i32 {
    row(category).return_code as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_category_has_an_error_everywhere() {
        use Category as C;
        let all = [
            C::Malformed,
            C::TooLarge,
            C::Unauthenticated,
            C::Forbidden,
            C::RateLimited,
            C::NotFound,
            C::BodyMismatch,
            C::Overloaded,
            C::Unavailable,
            C::Timeout,
            C::Internal,
        ];
        for category in all {
            let status = http_status(category);
            assert!(status.is_client_error() || status.is_server_error(), "{category:?}");
            assert_ne!(grpc_code(category), Code::Ok, "{category:?}");
            assert!((2..=25).contains(&return_code(category)), "{category:?}");
        }
    }

    #[test]
    fn codes_that_clients_know_stay() {
        assert_eq!(http_status(Category::Unauthenticated), 401);
        assert_eq!(http_status(Category::Forbidden), 403);
        assert_eq!(http_status(Category::NotFound), 404);
        assert_eq!(http_status(Category::Timeout), 408);
        assert_eq!(grpc_code(Category::Unauthenticated), Code::Unauthenticated);
        assert_eq!(return_code(Category::Forbidden), 25);
        assert_eq!(return_code(Category::Timeout), 2);
    }
}
