//! The hash that ties a signed head to its body (bittensor 6.0 and later).
//!
//! It is the SHA3-256 of the hashes of the Python texts of a synapse's hashed fields, all in lowercase hexadecimal. Only
//! `messages` is hashed in the prompting synapses: roles and everything else are **not** protected, and a synapse without
//! hashed fields has one constant hash.
//!
//! Which characters a Python text shows as they are depends on the Unicode tables of the Python that signs, so every table
//! from Python 3.8 (Unicode 12.1) to 3.13 (15.1) is tried. Messages with characters that came later, with Unicode 16 in
//! Python 3.14, have a hash that no table here gives, and are refused as not matching it; all other messages of such a
//! Python are unaffected.
//!
//! ```
//! use idiolect_protocol::body_hash::{body_hash, verify_body_hash};
//!
//! let messages = vec!["it's \u{1fae8}".to_owned()]; // printable since Python 3.12 only
//! let hash = body_hash(&[messages.as_slice()]);
//! assert!(verify_body_hash(&hash, &[messages.as_slice()]));
//! ```

use sha3::{Digest, Sha3_256};

pub use crate::python_repr::{PyText, PyValue, PyValueError, UnicodeTable};

/// The hash of a synapse without hashed fields.
pub const EMPTY_BODY_HASH: &str = "a7ffc6f8bf1ed76651c14756a061d662f580ff4de43b49fa82d80a4b80f8434a";

/// Returns the hash of fields in their order, as Python 3.11 makes it.
#[must_use]
pub fn body_hash<T: PyText + ?Sized>(fields: &[&T]) -> String {
    hex::encode(hash_with(fields, UnicodeTable::Python311).0)
}

/// Says whether `claimed` is the hash of the fields as any known version of Python makes it.
///
/// Which characters Python escapes depends on its version, so on a mismatch the other versions' tables are tried, if the
/// text has anything but ASCII in it.
#[must_use]
pub fn verify_body_hash<T: PyText + ?Sized>(claimed: &str, fields: &[&T]) -> bool {
    let mut expected = [0_u8; 32];
    // Python compares texts, so upper case is no match.
    if claimed.bytes().any(|b| b.is_ascii_uppercase()) || hex::decode_to_slice(claimed, &mut expected).is_err() {
        return false;
    }
    for table in UnicodeTable::all() {
        let (hash, is_table_free) = hash_with(fields, table);
        if hash == expected {
            return true;
        }
        if is_table_free {
            return false;
        }
    }
    false
}

/// Returns the hash, and whether every table gives the same one.
fn hash_with<T: PyText + ?Sized>(fields: &[&T], table: UnicodeTable) -> ([u8; 32], bool) {
    let mut outer = Sha3_256::new();
    let mut text = String::new();
    let mut is_table_free = true;
    for field in fields {
        text.clear();
        field.write_str(&mut text, table);
        // All tables agree on the first 256 characters, which are never written with these escapes.
        is_table_free &= text.is_ascii() && !text.contains("\\u") && !text.contains("\\U");
        let mut digits = [0_u8; 64];
        let hash: [u8; 32] = Sha3_256::digest(text.as_bytes()).into();
        // 32 bytes fill 64 digits exactly.
        let _ = hex::encode_to_slice(hash, &mut digits);
        outer.update(digits);
    }
    (outer.finalize().into(), is_table_free)
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    use super::*;
    use crate::testdata;

    fn value(json: &Value) -> PyValue<'_> {
        // Only for values without large integers.
        let text: &'static str = json.to_string().leak();
        PyValue::from_json(text).unwrap()
    }

    #[test]
    fn recorded_fields_have_their_hash() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vectors/body_hash.json");
        let text = std::fs::read_to_string(path).unwrap();
        let file = crate::json_object::fields(&text).unwrap();
        let (_, single) = file.iter().find(|(key, _)| key == "single").unwrap();
        for case in serde_json::from_str::<Vec<&RawValue>>(single.get()).unwrap() {
            let raw = crate::json_object::fields(case.get()).unwrap();
            let (_, json) = raw.iter().find(|(key, _)| key == "json").unwrap();
            let value = PyValue::from_json(json.get()).unwrap();
            let case: Value = serde_json::from_str(case.get()).unwrap();
            let mut text = String::new();
            value.write_str(&mut text, UnicodeTable::Python311);
            assert_eq!(hex::encode(Sha3_256::digest(text.as_bytes())), case["sha3_256_of_str"]);
            let expected = case["body_hash_if_only_field"].as_str().unwrap();
            assert_eq!(body_hash(&[&value]), expected);
            assert!(verify_body_hash(expected, &[&value]));
        }
    }

    #[test]
    fn recorded_lists_of_fields_have_their_hash() {
        for case in testdata::vectors("body_hash.json")["multi"].as_array().unwrap() {
            let values: Vec<_> = case["fields"].as_array().unwrap().iter().map(|pair| value(&pair[1])).collect();
            assert_eq!(body_hash(&values.iter().collect::<Vec<_>>()), case["body_hash"]);
        }
        assert_eq!(body_hash::<PyValue<'_>>(&[]), EMPTY_BODY_HASH);
    }

    #[test]
    fn every_python_version_is_recognised() {
        let messages = vec!["\u{61d} \u{870} \u{cf3} \u{2ffc} \u{1fae8} caf\u{e9}".to_owned()];
        let hashes: Vec<_> =
            UnicodeTable::all().map(|table| hex::encode(hash_with(&[messages.as_slice()], table).0)).collect();
        for (i, hash) in hashes.iter().enumerate() {
            assert!(verify_body_hash(hash, &[messages.as_slice()]), "{i}");
        }
        assert!(hashes.iter().collect::<std::collections::HashSet<_>>().len() >= 4);
    }

    #[test]
    fn anything_else_is_refused() {
        let messages = [json!(["hi"])];
        let hash = body_hash(&[&value(&messages[0])]);
        let check = |claimed: &str| assert!(!verify_body_hash(claimed, &[&value(&messages[0])]), "{claimed}");
        check("");
        check("None");
        check(EMPTY_BODY_HASH);
        check(&hash.to_uppercase());
        check(&hash[..63]);
        check(&format!("0x{hash}"));
        assert!(!verify_body_hash(&hash, &[&value(&json!(["hi "]))]));
        assert!(!verify_body_hash(&hash, &[&value(&json!(["h\u{1fae8}"]))]));
    }

    proptest::proptest! {
        #[test]
        fn no_claim_makes_the_check_panic(claimed in "\\PC{0,80}", messages in proptest::collection::vec(proptest::prelude::any::<String>(), 0..4)) {
            proptest::prop_assert!(!verify_body_hash(&claimed, &[messages.as_slice()]));
            proptest::prop_assert!(verify_body_hash(&body_hash(&[messages.as_slice()]), &[messages.as_slice()]));
        }
    }
}
