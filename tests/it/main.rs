//! The whole miner in one process: configuration, models, pipeline, axon, store, asked over real sockets.

mod backends;
mod bad_input;
mod drain;
mod networks;
#[cfg(target_os = "linux")]
mod postgres;
mod provenance;
mod real_models;
mod reference_miners;
mod restart;
mod selfquery;
#[cfg(target_os = "linux")]
mod sharing;
mod support;
mod watching;
