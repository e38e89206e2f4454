#![no_main]
//! Heads and bodies of HTTP synapses.

use bytes::Bytes;
use idiolect_protocol::Limits;
use idiolect_protocol::http_synapse::{SynapseBody, Synapses, read_head};
use idiolect_protocol_fuzz::{RECEIVER, headers};

const NAMES: [&str; 11] = [
    "bt_header_dendrite_hotkey",
    "bt_header_dendrite_nonce",
    "bt_header_dendrite_uuid",
    "bt_header_dendrite_signature",
    "bt_header_dendrite_version",
    "computed_body_hash",
    "timeout",
    "bt_header_input_obj_roles",
    "bt_header_input_obj_messages",
    "bt_header_input_obj_task_availabilities",
    "bt_header_input_obj_llm_model_availabilities",
];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let synapses = Synapses::default();
    let limits = Limits { legacy_http: true, ..Limits::default() };
    let (headers, body) = headers(&NAMES, data);
    for path in ["/Synapse", "/Prompting", "/StreamPromptingSynapse", "/AvailabilitySynapse"] {
        let Some(synapse) = synapses.find(path) else { continue };
        let Ok(head) = read_head(&headers, synapse, &RECEIVER, &limits) else { continue };
        if let Ok(body) = SynapseBody::parse(synapse, &head.body_hash, Bytes::copy_from_slice(body)) {
            let _ = body.prompt();
            let _ = body.availability();
        }
    }
});
