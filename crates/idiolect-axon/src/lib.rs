//! The served axon of a Bittensor miner, for any handler: one port for every generation of client.
//!
//! A request passes the same checks whatever its transport: size, head, window of time, signature, nonce, policy, body
//! hash, a queue ordered by stake. What is left reaches a [`Handler`] as a [`Call`] with a deadline.
mod admission;
mod axon;
mod body;
mod chat;
mod config;
mod connection;
mod error;
mod grpc;
mod handler;
mod http;
pub mod metagraph;
pub mod metrics;
pub mod nonces;
pub mod policy;
pub mod queue;
mod synapse;
mod watch;

pub use axon::Axon;
pub use config::AxonConfig;
pub use error::AxonError;
pub use handler::{AvailabilityMap, Call, Dictated, Feedback, Handler, HandlerError, Reply, ReplyLogprob};
pub use synapse::{SynapseAnswer, SynapseCall, SynapseHandler};
