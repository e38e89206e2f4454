#![no_main]
//! Headers of GGUF files, and all that is read out of them.

use std::io::Cursor;

use idiolect_models::gguf::GgufHeader;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(header) = GgufHeader::parse(Cursor::new(data)) else { return };
    let summary = header.summary();
    assert_eq!(summary.architecture.as_deref(), header.architecture());
    let _ = (header.chat_template(), header.context_length(), header.n_params(), header.quantisation());
    let _ = (header.params_by_type(), header.missing_bytes());
});
