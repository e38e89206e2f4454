//! The Idiolect miner, as a library: configuration, assembly, self-query, metrics server.
//!
//! The binary is a thin shell around [`run`]; the operator's tool shares configuration and assembly.
//!
//! ```
//! use idiolect_miner::config::{Sources, load};
//!
//! let file = "[candidates]\ncount = 8\n".to_owned();
//! let sources = Sources { file: Some(("miner.toml".into(), file)), ..Sources::default() };
//! let loaded = load(&sources)?;
//! assert_eq!(loaded.config.candidates.count, 8);
//! assert_eq!(loaded.origin("candidates.count").to_string(), "miner.toml:2");
//! # Ok::<(), idiolect_miner::config::ConfigError>(())
//! ```

pub mod app;
pub mod backends;
#[cfg(feature = "candle")]
mod candle;
mod capped;
pub mod cli;
pub mod config;
pub mod history;
pub mod identity;
pub mod metric_docs;
pub mod metrics_server;
pub mod models;
pub mod progress;
pub mod ready;
mod run;
pub mod selfquery;
mod settings;
pub mod signals;
pub mod telemetry;

pub use run::run;
