//! Checking sr25519 signatures, faster for keys that have proved themselves before.
//!
//! A key that often proves itself gets a table of its multiples, which halves the time of a check. Only proofs whose nonce
//! was accepted, too, are counted ([`Proof::count`]): what is replayed earns nothing. A table is made by a thread beside,
//! one at a time; until it is there the key is checked as ever. Where there is no room, the key goes that rested longest.

use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;

use curve25519_dalek::constants::RISTRETTO_BASEPOINT_POINT;
use curve25519_dalek::ristretto::CompressedRistretto;
use curve25519_dalek::scalar::Scalar;
use schnorrkel::PublicKey;
use schnorrkel::context::{SigningContext, SigningTranscript as _};

use multiples::Multiples;
use recent::Recent;

mod multiples;
mod recent;

/// The hash state after the context `substrate`, from which every sr25519 transcript starts.
pub(crate) static SUBSTRATE: LazyLock<SigningContext> = LazyLock::new(|| schnorrkel::signing_context(b"substrate"));

/// Most keys whose proofs are counted: more than a subnet has validators.
const MAX_COUNTED: usize = 1024;
/// A key that has proved itself so often gets a table of its multiples. To make one takes as long as to check some
/// twenty signatures, so keys made on the spot gain nothing by forcing it.
const PROOFS_FOR_TABLE: u32 = 64;
/// Most tables, of 215 KiB each.
const MAX_TABLES: usize = 128;
/// Bits of a digit in the tables of keys.
const KEY_DIGIT: u32 = 6;

/// Multiples of the point that all keys are multiples of, 640 KiB.
static BASE: LazyLock<Multiples> = LazyLock::new(|| Multiples::new(RISTRETTO_BASEPOINT_POINT, 8));

/// The keys of this process.
static KEYS: LazyLock<Arc<KnownKeys>> = LazyLock::new(Arc::default);

/// Checks whether `signature` is `key`'s over `message`.
pub(crate) fn verify(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Option<Proof> {
    KEYS.verify(key, message, signature)
}

/// A right signature, not counted yet.
#[derive(Debug)]
pub(crate) struct Proof {
    key: [u8; 32],
    /// The point on the curve, of a key that was checked without a table.
    public: Option<PublicKey>,
}

impl Proof {
    /// Counts it for its key. To be called when all else about the request is in order, too.
    pub(crate) fn count(self) {
        if let Some(due) = KEYS.count(self) {
            // Where no thread can be had, the table is due again with the next proof.
            let _ = thread::Builder::new().name("key-table".to_owned()).spawn(|| due.make());
        }
    }
}

/// Returns how many proofs of a key without a table were counted.
#[cfg(test)]
pub(crate) fn n_counted(key: &[u8; 32]) -> u32 {
    KEYS.state().counted.peek(key).map_or(0, |counted| counted.n_proofs)
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
struct KnownKeys(Mutex<State>);

struct State {
    counted: Recent<Counted>,
    tables: Recent<Arc<Multiples>>,
    /// Somebody makes a table.
    is_making: bool,
}

/// A key without a table.
struct Counted {
    /// The point on the curve: to find it takes a tenth of a verification.
    public: PublicKey,
    n_proofs: u32,
}

impl Default for State {
    fn default() -> Self {
        Self { counted: Recent::new(MAX_COUNTED), tables: Recent::new(MAX_TABLES), is_making: false }
    }
}

impl KnownKeys {
    fn verify(&self, key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> Option<Proof> {
        // The neutral element is a valid point (and the chain's default account) for which anybody can sign.
        if *key == [0; 32] {
            return None;
        }
        let (table, public) = {
            let state = self.state();
            let table = state.tables.peek(key).cloned();
            let public = if table.is_some() { None } else { state.counted.peek(key).map(|counted| counted.public) };
            (table, public)
        };
        if let Some(table) = table {
            return verify_with_table(key, &table, message, signature).then_some(Proof { key: *key, public: None });
        }
        let public = public.or_else(|| PublicKey::from_bytes(key).ok())?;
        let signature = schnorrkel::Signature::from_bytes(signature).ok()?;
        let is_valid = public.verify(SUBSTRATE.bytes(message), &signature).is_ok();
        is_valid.then_some(Proof { key: *key, public: Some(public) })
    }

    /// Counts a proof, and returns what is to be done where the key should have a table.
    fn count(self: &Arc<Self>, proof: Proof) -> Option<DueTable> {
        let Proof { key, public } = proof;
        let mut state = self.state();
        // It may also have got its table, or lost it, since it was checked.
        if state.tables.get(&key).is_some() {
            return None;
        }
        let public = public?;
        let counted = state.counted.get_or_insert_with(&key, || Counted { public, n_proofs: 0 });
        counted.n_proofs = counted.n_proofs.saturating_add(1);
        if counted.n_proofs < PROOFS_FOR_TABLE || std::mem::replace(&mut state.is_making, true) {
            return None;
        }
        Some(DueTable { keys: Arc::clone(self), key, public })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A table to be made; while this lives, no other one is.
struct DueTable {
    keys: Arc<KnownKeys>,
    key: [u8; 32],
    public: PublicKey,
}

impl DueTable {
    /// Makes the table, which takes a moment.
    fn make(self) {
        let table = Arc::new(Multiples::new(*self.public.as_point(), KEY_DIGIT));
        let mut state = self.keys.state();
        state.counted.remove(&self.key);
        state.tables.insert(&self.key, table);
    }
}

impl Drop for DueTable {
    fn drop(&mut self) {
        self.keys.state().is_making = false;
    }
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

    /// Signs and checks as often as given, and counts; returns what fell due.
    fn prove(keys: &Arc<KnownKeys>, pair: &Keypair, n: u32) -> Option<DueTable> {
        let key = *pair.hotkey().as_bytes();
        let mut due = None;
        for nth in 0..n {
            let message = nth.to_le_bytes();
            let proof = keys.verify(&key, &message, &pair.sign(&message)).expect("a right signature");
            due = keys.count(proof).or(due);
        }
        due
    }

    fn has_table(keys: &KnownKeys, pair: &Keypair) -> bool {
        keys.state().tables.peek(pair.hotkey().as_bytes()).is_some()
    }

    fn pair(name: u32) -> Keypair {
        let mut seed = [9; 32];
        seed[..4].copy_from_slice(&name.to_le_bytes());
        Keypair::from_seed(&seed).unwrap()
    }

    #[test]
    fn a_key_that_proves_itself_often_gets_a_table_and_is_checked_no_less() {
        let keys = Arc::<KnownKeys>::default();
        let pair = pair(0);
        let key = *pair.hotkey().as_bytes();
        let mut due = None;
        for nth in 0..3 * PROOFS_FOR_TABLE {
            let message = nth.to_le_bytes();
            let mut signature = pair.sign(&message);
            let proof = keys.verify(&key, &message, &signature).expect("right");
            assert!(keys.verify(&key, b"other", &signature).is_none());
            signature[3] ^= 1;
            assert!(keys.verify(&key, &message, &signature).is_none());
            // While the table is on its way, none other falls due, and checking goes on.
            let fell_due = keys.count(proof);
            assert_eq!(fell_due.is_some(), nth + 1 == PROOFS_FOR_TABLE, "{nth}");
            due = due.or(fell_due);
            if nth == 2 * PROOFS_FOR_TABLE {
                due.take().expect("due for long").make();
            }
            assert_eq!(has_table(&keys, &pair), nth >= 2 * PROOFS_FOR_TABLE, "{nth}");
        }
        assert_eq!(keys.state().counted.len(), 0, "a key with a table needs no count");
    }

    #[test]
    fn proofs_that_are_not_counted_earn_no_table() {
        let keys = Arc::<KnownKeys>::default();
        let pair = pair(1);
        let signature = pair.sign(b"again and again");
        for _ in 0..2 * PROOFS_FOR_TABLE {
            assert!(keys.verify(pair.hotkey().as_bytes(), b"again and again", &signature).is_some());
        }
        let state = keys.state();
        assert_eq!((state.counted.len(), state.tables.len()), (0, 0));
    }

    #[test]
    fn one_table_is_made_at_a_time() {
        let keys = Arc::<KnownKeys>::default();
        let (first, second) = (pair(2), pair(3));
        let due = prove(&keys, &first, PROOFS_FOR_TABLE).expect("due");
        assert!(prove(&keys, &second, 2 * PROOFS_FOR_TABLE).is_none(), "the first is being made");
        // The thread could not be started: the next proof asks again, whoever comes first.
        drop(due);
        assert!(!has_table(&keys, &first));
        prove(&keys, &second, 1).expect("due at once").make();
        prove(&keys, &first, 1).expect("due again").make();
        assert!(has_table(&keys, &first) && has_table(&keys, &second));
    }

    #[test]
    fn when_full_the_one_goes_that_rested_longest() {
        let keys = Arc::<KnownKeys>::default();
        let most = u32::try_from(MAX_TABLES).unwrap();
        let public = PublicKey::from_bytes(pair(0).hotkey().as_bytes()).unwrap();
        let shared = Arc::new(table(&public.to_bytes()));
        let stranger = |nth: u32| {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&nth.to_le_bytes());
            key
        };
        for nth in 1..most {
            keys.state().tables.insert(&stranger(nth), Arc::clone(&shared));
        }
        let pair = pair(4);
        prove(&keys, &pair, PROOFS_FOR_TABLE).expect("due").make();
        // One more than there is room for: one is forgotten, which did not prove itself since.
        keys.count(Proof { key: stranger(1), public: None });
        keys.state().tables.insert(&stranger(most), Arc::clone(&shared));
        let has = |nth| keys.state().tables.peek(&stranger(nth)).is_some();
        assert!(has_table(&keys, &pair) && has(1) && !has(2) && has(3) && has(most));
        assert_eq!(keys.state().tables.len(), MAX_TABLES);
    }

    #[test]
    fn a_flood_of_new_keys_costs_the_regular_ones_nothing() {
        let keys = Arc::<KnownKeys>::default();
        let (regular, resting) = (pair(5), pair(6));
        let public = PublicKey::from_bytes(regular.hotkey().as_bytes()).unwrap();
        assert!(prove(&keys, &resting, 1).is_none());
        for nth in 0..5000_u32 {
            let mut key = [7; 32];
            key[..4].copy_from_slice(&nth.to_le_bytes());
            assert!(keys.count(Proof { key, public: Some(public) }).is_none());
            assert!(keys.state().counted.len() <= MAX_COUNTED);
            if nth % 500 == 0 {
                assert!(prove(&keys, &regular, 5).is_none());
            }
        }
        assert_eq!(keys.state().counted.len(), MAX_COUNTED);
        assert!(keys.state().counted.peek(resting.hotkey().as_bytes()).is_none(), "the rarest caller is forgotten");
        assert!(prove(&keys, &regular, PROOFS_FOR_TABLE - 50).is_some(), "all of its proofs were kept");
    }

    #[test]
    fn a_table_is_made_beside_and_not_by_the_caller() {
        // The keys of the process: a key of this test alone, and a while, since other tests' tables may be in front.
        let pair = Keypair::from_uri("//a key of this test alone").unwrap();
        let key = *pair.hotkey().as_bytes();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let mut nth = 0_u32;
        while KEYS.state().tables.peek(&key).is_none() {
            assert!(std::time::Instant::now() < until, "no table after {nth} proofs");
            nth += 1;
            let message = nth.to_le_bytes();
            verify(&key, &message, &pair.sign(&message)).expect("right").count();
        }
        assert!(nth >= PROOFS_FOR_TABLE);
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
