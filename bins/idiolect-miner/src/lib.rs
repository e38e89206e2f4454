//! The Idiolect miner, as a library: configuration, assembly, self-query, metrics server.
//!
//! The binary is a thin shell around [`run`]; the operator's tool shares configuration and assembly.

pub mod cli;
pub mod config;
pub mod metrics_server;
pub mod ready;
pub mod signals;
pub mod telemetry;
