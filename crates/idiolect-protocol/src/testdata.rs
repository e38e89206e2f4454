//! Recorded facts that tests read.

use serde_json::Value;

/// Reads a file of recorded vectors.
pub(crate) fn vectors(name: &str) -> Value {
    let path = format!("{}/../../tests/data/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|err| panic!("{path}: {err}"));
    serde_json::from_str(&text).unwrap_or_else(|err| panic!("{path}: {err}"))
}

/// A clock that stands still.
#[derive(Debug)]
pub(crate) struct FixedClock(i128);

impl FixedClock {
    /// Makes a clock that shows `now_ns` nanoseconds since 1970.
    pub(crate) const fn at_ns(now_ns: i128) -> Self {
        Self(now_ns)
    }
}

impl crate::Clock for FixedClock {
    fn now_ns(&self) -> i128 {
        self.0
    }
}
