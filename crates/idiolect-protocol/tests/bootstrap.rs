//! The committed code under `src/generated/` is what `proto/bittensor.proto` gives today.
//!
//! Building the crate therefore needs no code generation, and an edit of the contract that forgets the code fails here.
//! `IDIOLECT_REGENERATE=1 cargo test -p idiolect-protocol --test bootstrap` writes the files anew.

use std::fs;
use std::path::Path;

use prost::Message;

/// Messages with prompts or completions in them; their `Debug` is written by hand and shows none.
const WITHOUT_DEBUG: [&str; 6] = [
    ".ForwardTextPromptingRequest",
    ".ForwardTextPromptingResponse",
    ".MultiForwardTextPromptingRequest",
    ".MultiForwardTextPromptingResponse",
    ".BackwardTextPromptingRequest",
    ".BackwardTextPromptingResponse",
];

fn generate(proto_dir: &Path, out_dir: &Path) {
    let mut descriptors = protox::compile(["bittensor.proto"], [proto_dir]).unwrap_or_else(|error| panic!("{error:?}"));
    let mut config = tonic_prost_build::Config::new();
    config.default_package_filename("bittensor");
    tonic_prost_build::configure()
        .out_dir(out_dir)
        .emit_rerun_if_changed(false)
        .skip_debug(WITHOUT_DEBUG)
        .compile_fds_with_config(descriptors.clone(), config)
        .expect("code generation");
    // Reflection needs no comments and no positions.
    for file in &mut descriptors.file {
        file.source_code_info = None;
    }
    fs::write(out_dir.join("bittensor.bin"), descriptors.encode_to_vec()).expect("write descriptors");
}

#[test]
fn generated_code_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let proto_dir = root.join("../../proto");
    let committed = root.join("src/generated");
    if std::env::var_os("IDIOLECT_REGENERATE").is_some() {
        generate(&proto_dir, &committed);
        return;
    }
    let fresh = tempfile::tempdir().expect("temporary folder");
    generate(&proto_dir, fresh.path());
    for name in ["bittensor.rs", "bittensor.bin"] {
        let expected = fs::read(fresh.path().join(name)).expect("generated file");
        let found = fs::read(committed.join(name)).unwrap_or_default();
        assert!(
            expected == found,
            "src/generated/{name} is stale: run IDIOLECT_REGENERATE=1 cargo test -p idiolect-protocol --test bootstrap"
        );
    }
}
