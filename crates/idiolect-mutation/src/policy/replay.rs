//! Judging policies by what was logged.
