#![no_main]
//! JSON values, their Python text, and addresses.

use idiolect_protocol::Hotkey;
use idiolect_protocol::body_hash::{PyText, PyValue, UnicodeTable, body_hash, verify_body_hash};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(hotkey) = Hotkey::from_ss58(text) {
        assert_eq!(hotkey.to_string(), text);
    }
    let Ok(value) = PyValue::from_json(text) else { return };
    for table in UnicodeTable::all() {
        let mut out = String::new();
        value.write_str(&mut out, table);
    }
    let hash = body_hash(&[&value]);
    assert!(verify_body_hash(&hash, &[&value]));
});
