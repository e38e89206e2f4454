//! Finding, fetching, checking and reading model files
