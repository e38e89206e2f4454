//! Reading single header values, strictly: a header that comes twice or is no text proves nothing.

use std::time::Duration;

use http::HeaderMap;

use crate::AuthError;

/// Longest session identifier that is taken; real ones are UUIDs of 36 characters.
const MAX_SESSION_ID_LEN: usize = 64;

/// Returns the one value of a header as visible ASCII, or `None` where the header is missing.
pub(crate) fn optional<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h str>, AuthError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(AuthError::Malformed { name, expected: "one value" });
    }
    value.to_str().map(Some).map_err(|_| AuthError::Malformed { name, expected: "ASCII text" })
}

/// Returns the one value of a header that must be there and hold something.
pub(crate) fn required<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<&'h str, AuthError> {
    optional(headers, name)?.filter(|value| !value.is_empty()).ok_or(AuthError::Missing(name))
}

/// Says whether `id` can serve as part of a nonce's key: it is stored, so it must be short, and it stands between dots
/// or colons.
pub(crate) fn is_session_id(id: &str) -> bool {
    (1..=MAX_SESSION_ID_LEN).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Reads seconds as Python prints a float or an int; only finite values above 0 count.
pub(crate) fn parse_seconds(text: &str) -> Option<Duration> {
    text.trim().parse::<f64>().ok().filter(|s| *s > 0.0 && s.is_finite()).map(saturating_seconds)
}

/// Makes a duration of seconds, the longest one where they exceed it. `NaN` and negative values give zero.
pub(crate) fn saturating_seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_header_counts_once_and_as_text() {
        let mut headers = HeaderMap::new();
        assert_eq!(optional(&headers, "x"), Ok(None));
        assert_eq!(required(&headers, "x"), Err(AuthError::Missing("x")));
        headers.insert("x", HeaderValue::from_static(""));
        assert_eq!(required(&headers, "x"), Err(AuthError::Missing("x")));
        headers.insert("x", HeaderValue::from_static("a"));
        assert_eq!(required(&headers, "x"), Ok("a"));
        headers.append("x", HeaderValue::from_static("a"));
        assert_eq!(required(&headers, "x"), Err(AuthError::Malformed { name: "x", expected: "one value" }));
        headers.insert("x", HeaderValue::from_bytes(b"\xff").unwrap());
        assert_eq!(required(&headers, "x"), Err(AuthError::Malformed { name: "x", expected: "ASCII text" }));
    }

    #[test]
    fn seconds_are_finite_and_positive() {
        let check = |text: &str, expected: Option<f64>| {
            assert_eq!(parse_seconds(text), expected.map(Duration::from_secs_f64), "{text:?}");
        };
        check("12.0", Some(12.0));
        check("12", Some(12.0));
        check("1e-3", Some(0.001));
        for text in ["", "x", "0", "0.0", "-1", "nan", "inf", "-inf", "12s"] {
            check(text, None);
        }
        assert_eq!(parse_seconds("1e300"), Some(Duration::MAX));
    }
}
