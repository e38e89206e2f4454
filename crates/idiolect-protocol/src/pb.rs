//! The messages and services of `proto/bittensor.proto`, as prost and tonic make them.
//!
//! Build and read them with the functions of [`grpc`](crate::grpc): nothing in these types is checked.

#![allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic, clippy::use_self)]

use std::fmt;

include!("generated/bittensor.rs");

/// The encoded descriptors of `bittensor.proto`, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/bittensor.bin");

/// Prompts and completions stay out of logs.
impl fmt::Debug for ForwardTextPromptingRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardTextPromptingRequest")
            .field("version", &self.version)
            .field("n_messages", &self.messages.len())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ForwardTextPromptingResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardTextPromptingResponse")
            .field("return_code", &self.return_code())
            .field("return_message", &self.return_message)
            .field("response_bytes", &self.response.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for MultiForwardTextPromptingRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiForwardTextPromptingRequest")
            .field("version", &self.version)
            .field("n_messages", &self.messages.len())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for MultiForwardTextPromptingResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MultiForwardTextPromptingResponse")
            .field("return_code", &self.return_code())
            .field("return_message", &self.return_message)
            .field("n_completions", &self.multi_completions.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BackwardTextPromptingRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackwardTextPromptingRequest")
            .field("version", &self.version)
            .field("rewards", &self.rewards)
            .field("n_messages", &self.messages.len())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BackwardTextPromptingResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackwardTextPromptingResponse")
            .field("return_code", &self.return_code())
            .field("return_message", &self.return_message)
            .finish_non_exhaustive()
    }
}
