#![no_main]
//! Epistula's headers, and what a request dictates.

use idiolect_protocol::openai::ChatRequest;
use idiolect_protocol::{Limits, epistula};
use idiolect_protocol_fuzz::{RECEIVER, headers};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let names = [
        epistula::SIGNED_FOR_HEADER,
        epistula::SIGNED_BY_HEADER,
        epistula::TIMESTAMP_HEADER,
        epistula::UUID_HEADER,
        epistula::SIGNATURE_HEADER,
        epistula::TIMEOUT_HEADER,
        "task",
    ];
    let (headers, body) = headers(&names, data);
    let _ = epistula::claim(&headers, body, &RECEIVER, &Limits::default());
    if let Ok(request) = ChatRequest::from_json(body) {
        let _ = epistula::dictated(&headers, &request);
    }
});
