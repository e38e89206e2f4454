//! The one table from [`Category`] to what each transport says of it.

use http::StatusCode;
use tonic::Code;

use crate::Category;

/// A row of the table.
struct Row {
    http: StatusCode,
    grpc: Code,
    return_code: i32,
}

const fn row(category: Category) -> Row {
    use Category as C;
    let (http, grpc, return_code) = match category {
        C::Malformed => (StatusCode::BAD_REQUEST, Code::InvalidArgument, return_code::INVALID_REQUEST),
        C::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, return_code::REQUEST_SHAPE_EXCEPTION),
        C::Unauthenticated => (StatusCode::UNAUTHORIZED, Code::Unauthenticated, return_code::UNAUTHENTICATED),
        C::Forbidden => (StatusCode::FORBIDDEN, Code::PermissionDenied, return_code::BLACKLISTED),
        C::RateLimited => (StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted, return_code::BACKOFF),
        C::NotFound => (StatusCode::NOT_FOUND, Code::Unimplemented, return_code::NOT_IMPLEMENTED),
        C::BodyMismatch => (StatusCode::UNAUTHORIZED, Code::Unauthenticated, return_code::UNAUTHENTICATED),
        C::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, Code::ResourceExhausted, return_code::NUCLEUS_FULL),
        C::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, return_code::UNAVAILABLE),
        C::Timeout => (StatusCode::REQUEST_TIMEOUT, Code::DeadlineExceeded, return_code::TIMEOUT),
        C::Internal => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, return_code::UNKNOWN_EXCEPTION),
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

/// Returns the number of the `ReturnCode` that a reply of bittensor's gRPC era carries for a failure of the application.
///
/// That era answers OK at the gRPC level and puts such failures into the message; see [`return_code`](mod@return_code).
#[must_use]
pub const fn return_code(category: Category) -> i32 {
    row(category).return_code
}

/// Numbers of bittensor's `ReturnCode` that are used here.
pub mod return_code {
    /// All went well.
    pub const SUCCESS: i32 = 1;
    /// Time ran out.
    pub const TIMEOUT: i32 = 2;
    /// The caller asks too often.
    pub const BACKOFF: i32 = 3;
    /// Not able to answer now.
    pub const UNAVAILABLE: i32 = 4;
    /// No such method.
    pub const NOT_IMPLEMENTED: i32 = 5;
    /// The request cannot be understood.
    pub const INVALID_REQUEST: i32 = 9;
    /// The request has wrong dimensions.
    pub const REQUEST_SHAPE_EXCEPTION: i32 = 10;
    /// No room now.
    pub const NUCLEUS_FULL: i32 = 18;
    /// Anything else.
    pub const UNKNOWN_EXCEPTION: i32 = 22;
    /// The caller did not prove its key.
    pub const UNAUTHENTICATED: i32 = 23;
    /// The caller is not welcome.
    pub const BLACKLISTED: i32 = 25;
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
