#![no_main]
//! btauth's headers.

use idiolect_protocol::{Limits, btauth};
use idiolect_protocol_fuzz::{RECEIVER, headers};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let names = [
        btauth::VERSION_HEADER,
        btauth::HOTKEY_HEADER,
        btauth::NONCE_HEADER,
        btauth::SIGNATURE_HEADER,
        btauth::CRYPTO_HEADER,
        btauth::RECEIVER_HEADER,
    ];
    let (headers, body) = headers(&names, data);
    let request = btauth::SignedParts { method: "POST", target: "/v1/chat/completions", body };
    for btauth_unbound in [false, true] {
        let limits = Limits { btauth_unbound, ..Limits::default() };
        let _ = btauth::claim(&headers, request, &RECEIVER, &limits);
    }
});
