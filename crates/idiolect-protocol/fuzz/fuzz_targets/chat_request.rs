#![no_main]
//! Bodies of chat completions and availability questions.

use idiolect_protocol::openai::{AvailabilityRequest, ChatRequest, Completion};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(request) = ChatRequest::from_json(data) {
        assert!(!request.prompt.messages().is_empty());
        let _ = request.dictated_sampling();
    }
    let _ = AvailabilityRequest::from_json(data);
    if let Ok(completion) = serde_json::from_slice::<Completion>(data) {
        let _ = completion.choices.len();
    }
});
