//! A Bittensor axon for any handler: one listener for gRPC and HTTP, four verifiers, policy, queue and drain.

mod handler;

pub use handler::{AvailabilityMap, Call, Dictated, Feedback, Handler, HandlerError, Reply, ReplyLogprob};
