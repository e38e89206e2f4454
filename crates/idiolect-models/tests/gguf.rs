//! GGUF headers: made by hand, hostile, and real.

use std::io::Cursor;

use idiolect_models::gguf::{GgufError, GgufHeader, Value};
use proptest::prelude::*;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn head(version: u32, tensors: u64, entries: u64) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(version.to_le_bytes());
    out.extend(tensors.to_le_bytes());
    out.extend(entries.to_le_bytes());
    out
}

fn string_entry(out: &mut Vec<u8>, key: &str, value: &str) {
    text(out, key);
    out.extend(8u32.to_le_bytes());
    text(out, value);
}

fn tensor(out: &mut Vec<u8>, name: &str, dimensions: &[u64], kind: u32, offset: u64) {
    text(out, name);
    out.extend((dimensions.len() as u32).to_le_bytes());
    for n in dimensions {
        out.extend(n.to_le_bytes());
    }
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
}

/// A small but complete file.
fn sample() -> Vec<u8> {
    let mut out = head(3, 2, 6);
    string_entry(&mut out, "general.architecture", "llama");
    string_entry(&mut out, "general.name", "Tiny");
    text(&mut out, "llama.context_length");
    out.extend(4u32.to_le_bytes());
    out.extend(2048u32.to_le_bytes());
    text(&mut out, "tokenizer.ggml.tokens");
    out.extend(9u32.to_le_bytes());
    out.extend(8u32.to_le_bytes());
    out.extend(100u64.to_le_bytes());
    for i in 0..100 {
        text(&mut out, &format!("t{i}"));
    }
    text(&mut out, "some.numbers");
    out.extend(9u32.to_le_bytes());
    out.extend(6u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    out.extend(0.5f32.to_le_bytes());
    out.extend((-1f32).to_le_bytes());
    string_entry(&mut out, "tokenizer.chat_template", "{{ messages }}");
    tensor(&mut out, "a", &[32, 4], 3, 0);
    tensor(&mut out, "b", &[8], 0, 96);
    out.resize(out.len().next_multiple_of(32) + 128, 0);
    out
}

#[test]
fn a_header_is_read_without_its_data() {
    let header = GgufHeader::parse(Cursor::new(sample())).unwrap();
    let summary = header.summary();
    assert_eq!((summary.architecture.as_deref(), summary.name.as_deref()), (Some("llama"), Some("Tiny")));
    assert_eq!((summary.context_length, summary.n_vocab), (Some(2048), Some(100)));
    assert_eq!((summary.n_params, summary.quantisation.as_deref()), (136, Some("Q4_1")));
    assert!(summary.has_chat_template);
    assert_eq!(header.chat_template(), Some("{{ messages }}"));
    let items = vec![Value::Float(0.5), Value::Float(-1.0)];
    assert_eq!(header.metadata["some.numbers"], Value::Array { len: 2, items });
    assert_eq!(header.tensors[1].n_bytes(), Some(32));
    assert_eq!(header.missing_bytes(), 0);
    let mut cut = sample();
    cut.truncate(cut.len() - 10);
    assert_eq!(GgufHeader::parse(Cursor::new(cut)).unwrap().missing_bytes(), 10);
    assert!(serde_json::to_string(&summary).unwrap().contains("\"n_params\":136"));
}

#[test]
fn other_files_are_told_apart() {
    let parse = |bytes: &[u8]| GgufHeader::parse(Cursor::new(bytes.to_vec()));
    assert!(parse(b"PK\x03\x04 zip").unwrap_err().to_string().starts_with("not a GGUF file"));
    assert!(matches!(parse(b"GG"), Err(GgufError::Io(_))));
    assert!(matches!(parse(&head(1, 0, 0)), Err(GgufError::Version { version: 1 })));
    assert!(matches!(parse(&head(3u32.swap_bytes(), 0, 0)), Err(GgufError::Version { .. })));
    assert!(parse(&head(2, 0, 0)).is_ok());
}

#[test]
fn lengths_are_checked_before_they_are_believed() {
    let refused = |bytes: Vec<u8>, why: &str| {
        let error = GgufHeader::parse(Cursor::new(bytes)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(head(3, u64::MAX, 0), "tensors");
    refused(head(3, 0, u64::MAX), "metadata entries");
    let entry = |kind: u32, rest: &[u64]| {
        let mut out = head(3, 0, 1);
        text(&mut out, "k");
        out.extend(kind.to_le_bytes());
        for n in rest {
            out.extend(n.to_le_bytes());
        }
        out
    };
    refused(entry(8, &[u64::MAX]), "a text of");
    refused(entry(8, &[1 << 20]), "are left");
    refused(entry(99, &[]), "metadata type 99");
    for kind in [0u32, 5, 8, 10] {
        let mut out = head(3, 0, 1);
        text(&mut out, "k");
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend(u64::MAX.to_le_bytes());
        refused(out, "an array of");
    }
    let mut nested = head(3, 0, 1);
    text(&mut nested, "k");
    nested.extend(9u32.to_le_bytes());
    for _ in 0..10 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    refused(nested, "nested too deep");
    let mut wide = head(3, 1, 0);
    text(&mut wide, "t");
    wide.extend(1000u32.to_le_bytes());
    refused(wide, "1000 dimensions");
    let mut huge = head(3, 1, 0);
    tensor(&mut huge, "t", &[u64::MAX, u64::MAX], 2, u64::MAX);
    let header = GgufHeader::parse(Cursor::new(huge)).unwrap();
    assert_eq!(header.n_params(), u64::MAX);
    assert!(header.missing_bytes() > 0);
    let mut odd = head(3, 0, 1);
    text(&mut odd, "general.alignment");
    odd.extend(4u32.to_le_bytes());
    odd.extend(0u32.to_le_bytes());
    refused(odd, "alignment 0");
}

#[test]
fn tensor_types_agree_with_the_recorded_table() {
    let table =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/gpu/ggml_types.csv")).unwrap();
    let mut seen = 0;
    for kind in 0..64 {
        let info =
            idiolect_models::gguf::TensorInfo { name: String::new(), dimensions: vec![1 << 20], kind, offset: 0 };
        let Some(name) = info.kind_name() else { continue };
        let Some(row) = table.lines().find(|line| line.split(',').next() == Some(name)) else { continue };
        let fields: Vec<&str> = row.split(',').collect();
        let (elements, bytes): (u64, u64) = (fields[1].parse().unwrap(), fields[2].parse().unwrap());
        assert_eq!(info.n_bytes(), Some((1u64 << 20).div_ceil(elements) * bytes), "{name}");
        seen += 1;
    }
    assert_eq!(seen, table.lines().count() - 1);
}

proptest! {
    #[test]
    fn hostile_headers_never_panic(
        flips in proptest::collection::vec((0usize..2000, any::<u8>()), 0..12), cut in 0usize..2200, tail in any::<[u8; 8]>(),
    ) {
        let mut bytes = sample();
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        bytes.truncate(cut.max(4));
        bytes.extend(tail);
        if let Ok(header) = GgufHeader::parse(Cursor::new(bytes)) {
            header.summary();
        }
    }

    #[test]
    fn random_bytes_after_the_magic_never_panic(rest in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = head(3, 3, 3);
        bytes.extend(rest);
        if let Ok(header) = GgufHeader::parse(Cursor::new(bytes)) {
            header.summary();
        }
    }
}
