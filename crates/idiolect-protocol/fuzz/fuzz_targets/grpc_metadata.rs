#![no_main]
//! The signed metadata of bittensor 5.

use idiolect_protocol::{Limits, grpc};
use idiolect_protocol_fuzz::{RECEIVER, headers};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let names = [grpc::VERSION_HEADER, grpc::SIGNATURE_HEADER, "grpc-timeout"];
    let limits = Limits::default();
    let claimed = grpc::claim(&headers(&names, data).0, &RECEIVER, &limits);
    match claimed {
        Ok(claim) => assert!(claim.timeout.is_none_or(|timeout| timeout <= limits.max_timeout)),
        Err(error) => assert!(!grpc::refusal(&error).message().is_empty()),
    }
});
