#![no_main]
//! Snapshots of a metagraph: what is read can be written, and is read the same again.

use idiolect_axon::metagraph::Metagraph;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(metagraph) = Metagraph::from_json(text) else { return };
    let again = serde_json::to_string(&metagraph).expect("what was read can be written");
    assert_eq!(Metagraph::from_json(&again).expect("what was written can be read"), metagraph);
});
