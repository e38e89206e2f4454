//! Whole-system scenarios, and the servers that they need

#[cfg(target_os = "linux")]
pub mod postgres;
