//! Checking sr25519 signatures, faster for keys that have proved themselves before.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use curve25519_dalek::constants::RISTRETTO_BASEPOINT_POINT;
use curve25519_dalek::ristretto::CompressedRistretto;
use curve25519_dalek::scalar::Scalar;
use schnorrkel::PublicKey;
use schnorrkel::context::{SigningContext, SigningTranscript as _};

use multiples::Multiples;

mod multiples;

/// The hash state after the context `substrate`, from which every sr25519 transcript starts.
pub(crate) static SUBSTRATE: LazyLock<SigningContext> = LazyLock::new(|| schnorrkel::signing_context(b"substrate"));

/// More keys than a subnet has validators.
const MAX_KEYS: usize = 1024;
/// A key that has proved itself so often gets a table of its multiples. To make one takes as long as to check some
/// twenty signatures, so keys made on the spot gain nothing by forcing it.
const PROOFS_FOR_TABLE: u32 = 64;
/// Most tables, of 215 KiB each.
const MAX_TABLES: usize = 128;
/// Bits of a digit in the tables of keys.
const KEY_DIGIT: u32 = 6;

/// Multiples of the point that all keys are multiples of, 640 KiB.
static BASE: LazyLock<Multiples> = LazyLock::new(|| Multiples::new(RISTRETTO_BASEPOINT_POINT, 8));

/// Says whether `signature` is `key`'s over `message`.
pub(crate) fn verify(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    // The neutral element is a valid point (and the chain's default account) for which anybody can sign.
    if *key == [0; 32] {
        return false;
    }
    let known = known_keys().keys.get(key).map(|known| (known.public, known.table.clone()));
    if let Some((_, Some(table))) = &known {
        return verify_with_table(key, table, message, signature);
    }
    let public = known.map(|(public, _)| public).or_else(|| PublicKey::from_bytes(key).ok());
    let Some(public) = public else { return false };
    let Ok(signature) = schnorrkel::Signature::from_bytes(signature) else { return false };
    let is_valid = public.verify(SUBSTRATE.bytes(message), &signature).is_ok();
    if is_valid {
        let is_table_due = known_keys().count_proof(*key, public);
        if is_table_due {
            // Not under the lock: it takes a moment.
            let table = Arc::new(Multiples::new(*public.as_point(), KEY_DIGIT));
            known_keys().set_table(key, table);
        }
    }
    is_valid
}

/// As [`PublicKey::verify`], with a table of the key's multiples in place of the key: the same transcript, the same
/// equation `R = s B - k A`, without its 256 doublings. How long it takes depends on the signature, which is no secret.
fn verify_with_table(key: &[u8; 32], table: &Multiples, message: &[u8], signature: &[u8; 64]) -> bool {
    let (mut r, mut s) = ([0; 32], [0; 32]);
    r.copy_from_slice(&signature[..32]);
    s.copy_from_slice(&signature[32..]);
    // The mark of signatures of this kind.
    if s[31] & 0x80 == 0 {
        return false;
    }
    s[31] &= 0x7f;
    let Some(s) = Option::<Scalar>::from(Scalar::from_canonical_bytes(s)) else { return false };
    let r = CompressedRistretto(r);
    let mut transcript = SUBSTRATE.bytes(message);
    transcript.proto_name(b"Schnorr-sig");
    transcript.commit_point(b"sign:pk", &CompressedRistretto(*key));
    transcript.commit_point(b"sign:R", &r);
    let k: Scalar = transcript.challenge_scalar(b"sign:c");
    table.add_product(BASE.product(&s), &-k).compress() == r
}

/// Keys that lately proved themselves.
#[derive(Default)]
struct KnownKeys {
    keys: HashMap<[u8; 32], KnownKey>,
    n_tables: usize,
}

struct KnownKey {
    /// The point on the curve: to find it takes a tenth of a verification.
    public: PublicKey,
    n_proofs: u32,
    table: Option<Arc<Multiples>>,
}

impl KnownKeys {
    /// Counts a proof of a key without a table, and says whether it should get one.
    fn count_proof(&mut self, key: [u8; 32], public: PublicKey) -> bool {
        if self.keys.len() >= MAX_KEYS && !self.keys.contains_key(&key) {
            // Strangers make room for strangers: keys with a table stay.
            self.keys.retain(|_, known| known.table.is_some());
        }
        let known = self.keys.entry(key).or_insert(KnownKey { public, n_proofs: 0, table: None });
        known.n_proofs = known.n_proofs.saturating_add(1);
        // Of several that come together, one makes the table.
        known.n_proofs == PROOFS_FOR_TABLE
    }

    fn set_table(&mut self, key: &[u8; 32], table: Arc<Multiples>) {
        if self.n_tables >= MAX_TABLES {
            // Whoever still calls will have one again before long.
            self.keys.retain(|known, _| known == key);
            self.n_tables = 0;
        }
        if let Some(known) = self.keys.get_mut(key) {
            self.n_tables += usize::from(known.table.replace(table).is_none());
        }
    }
}

fn known_keys() -> MutexGuard<'static, KnownKeys> {
    static KNOWN: LazyLock<Mutex<KnownKeys>> = LazyLock::new(Mutex::default);
    // Nothing panics half-way through a change.
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Keypair;

    fn table(key: &[u8; 32]) -> Multiples {
        Multiples::new(*PublicKey::from_bytes(key).unwrap().as_point(), KEY_DIGIT)
    }

    fn reference(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
        let Ok(signature) = schnorrkel::Signature::from_bytes(signature) else { return false };
        PublicKey::from_bytes(key).unwrap().verify(SUBSTRATE.bytes(message), &signature).is_ok()
    }

    #[test]
    fn recorded_signatures_verify_with_a_table_as_without() {
        let vectors = crate::testdata::vectors("crypto.json");
        let mut n_valid = 0;
        for case in vectors["signatures"].as_array().unwrap() {
            let pair = Keypair::from_uri(case["signer"].as_str().unwrap()).unwrap();
            let key = *pair.hotkey().as_bytes();
            let message = case["message_utf8"].as_str().unwrap().as_bytes();
            let mut signature = [0; 64];
            if hex::decode_to_slice(case["signature"].as_str().unwrap(), &mut signature).is_err() {
                continue;
            }
            let is_valid = verify_with_table(&key, &table(&key), message, &signature);
            assert_eq!(is_valid, case["valid"] == true, "{}", case["note"]);
            n_valid += usize::from(is_valid);
        }
        assert!(n_valid > 0);
    }

    #[test]
    fn a_key_that_proves_itself_often_gets_a_table_and_is_checked_no_less() {
        let pair = Keypair::from_uri("//a key of this test alone").unwrap();
        let key = *pair.hotkey().as_bytes();
        let has_table = || known_keys().keys.get(&key).is_some_and(|known| known.table.is_some());
        for nth in 0..2 * PROOFS_FOR_TABLE {
            assert_eq!(has_table(), nth >= PROOFS_FOR_TABLE, "{nth}");
            let message = nth.to_le_bytes();
            let mut signature = pair.sign(&message);
            assert!(verify(&key, &message, &signature));
            assert!(!verify(&key, b"other", &signature));
            signature[3] ^= 1;
            assert!(!verify(&key, &message, &signature));
        }
    }

    #[test]
    fn there_are_only_so_many_keys_and_tables() {
        let public = PublicKey::from_bytes(Keypair::from_uri("//Alice").unwrap().hotkey().as_bytes()).unwrap();
        let shared = Arc::new(table(&public.to_bytes()));
        let mut known = KnownKeys::default();
        for nth in 0..5000_u32 {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&nth.to_le_bytes());
            known.count_proof(key, public);
            known.set_table(&key, Arc::clone(&shared));
            assert!(known.keys.len() <= MAX_KEYS && known.n_tables <= MAX_TABLES);
            assert_eq!(known.n_tables, known.keys.values().filter(|key| key.table.is_some()).count());
        }
    }

    proptest::proptest! {
        #[test]
        fn a_table_changes_no_verdict(seed: [u8; 32], message: Vec<u8>, byte in 0_usize..64, flip: u8) {
            let pair = Keypair::from_seed(&seed).unwrap();
            let key = *pair.hotkey().as_bytes();
            let table = table(&key);
            let mut signature = pair.sign(&message);
            proptest::prop_assert!(verify_with_table(&key, &table, &message, &signature));
            signature[byte] ^= flip;
            let expected = reference(&key, &message, &signature);
            proptest::prop_assert_eq!(verify_with_table(&key, &table, &message, &signature), expected);
        }

        #[test]
        fn no_signature_is_canonical_twice(seed: [u8; 32], message: Vec<u8>) {
            let pair = Keypair::from_seed(&seed).unwrap();
            let key = *pair.hotkey().as_bytes();
            let mut signature = pair.sign(&message);
            // The order of the group, little-endian, added to s: the same scalar in another spelling.
            const ORDER: [u8; 32] = [
                0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
            ];
            let mut carry = 0;
            for (digit, of_order) in signature[32..].iter_mut().zip(ORDER) {
                let sum = u16::from(*digit) + u16::from(of_order) + carry;
                (*digit, carry) = (sum as u8, sum >> 8);
            }
            proptest::prop_assert!(!verify_with_table(&key, &table(&key), &message, &signature));
            proptest::prop_assert!(!reference(&key, &message, &signature));
        }
    }
}
