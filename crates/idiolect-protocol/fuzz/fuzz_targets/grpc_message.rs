#![no_main]
//! The messages of bittensor 5, and the JSON texts in them.

use idiolect_protocol::pb::{
    BackwardTextPromptingRequest, ForwardTextPromptingRequest, ForwardTextPromptingResponse,
    MultiForwardTextPromptingRequest,
};
use idiolect_protocol::{Limits, grpc};
use prost::Message;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(request) = ForwardTextPromptingRequest::decode(data) {
        let limits = Limits::default();
        assert!(grpc::timeout(request.timeout, &limits).is_none_or(|t| t <= limits.max_timeout));
        if let Ok(prompt) = grpc::prompt(&request.messages) {
            assert_eq!(grpc::prompt(&grpc::wire_messages(&prompt)), Ok(prompt));
        }
    }
    let _ = MultiForwardTextPromptingRequest::decode(data);
    let _ = BackwardTextPromptingRequest::decode(data);
    let _ = ForwardTextPromptingResponse::decode(data);
    // A text as such, so that the fuzzer gets deep into the JSON.
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = grpc::prompt(&[text.to_owned()]);
    }
});
