//! How sessions are told apart, in 24 bytes each.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// 100 ns steps between the beginning of the Gregorian calendar, where UUIDs count from, and 1970.
const GREGORIAN_TICKS: u64 = 0x01b2_1dd2_1381_4000;
const TEXT_LEN: usize = 48;

/// A signer, by the first 64 bits of a hash of its address.
///
/// Two signers of one hash would share their room, and refuse each other's sessions at worst.
pub(super) type OwnerKey = u64;

/// A session of a signer: the UUID's own bits, or a hash of a session's name that is no UUID.
///
/// Names that give the same bits share their used values, so a clash can refuse a request and never lets one pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SessionKey {
    pub(super) owner: OwnerKey,
    high: u64,
    low: u64,
}

impl SessionKey {
    /// Reads `signer:session`.
    pub(super) fn new(text: &str) -> Self {
        let (owner, session) = text.split_once(':').unwrap_or((text, ""));
        let uuid = Some(session).filter(|text| text.len() == 36).and_then(|text| Uuid::try_parse(text).ok());
        let (high, low) = match uuid {
            Some(uuid) => uuid.as_u64_pair(),
            None => {
                let (high, low) = hash(session);
                // Of a variant that has no time in it.
                (high, low | 0b11 << 62)
            }
        };
        Self { owner: hash(owner).0, high, low }
    }

    /// Reads what [`to_text`](Self::to_text) made, or the `signer:session` that earlier versions kept.
    pub(super) fn from_record(text: &str) -> Self {
        let part = |range| text.get(range).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let is_short = text.len() == TEXT_LEN && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (part(0..16), part(16..32), part(32..48)) {
            (Some(owner), Some(high), Some(low)) if is_short => Self { owner, high, low },
            _ => Self::new(text),
        }
    }

    pub(super) fn to_text(self) -> String {
        format!("{:016x}{:016x}{:016x}", self.owner, self.high, self.low)
    }

    /// Returns when the session says that it began, in nanoseconds since 1970: UUIDs of version 1, which Bittensor
    /// makes, and of version 7 hold that, and it is signed with each request. 0 where there is no telling.
    pub(super) fn created_ns(self) -> i64 {
        if self.low >> 62 != 0b10 {
            return 0;
        }
        let ns = match self.high >> 12 & 0xf {
            1 => {
                let ticks = self.high >> 32 | (self.high >> 16 & 0xffff) << 32 | (self.high & 0xfff) << 48;
                ticks.saturating_sub(GREGORIAN_TICKS).saturating_mul(100)
            }
            7 => (self.high >> 16).saturating_mul(1_000_000),
            _ => 0,
        };
        i64::try_from(ns).unwrap_or(i64::MAX)
    }
}

fn hash(text: &str) -> (u64, u64) {
    let digest = Sha256::digest(text.as_bytes());
    let word = |at: usize| digest.iter().skip(at).take(8).fold(0, |word, byte| word << 8 | u64::from(*byte));
    (word(0), word(8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_uuid_is_read() {
        let check =
            |uuid: &str, expected| assert_eq!(SessionKey::new(&format!("a:{uuid}")).created_ns(), expected, "{uuid}");
        // RFC 9562, appendix A: both say 2022-02-22 19:22:22 UTC.
        check("C232AB00-9414-11EC-B3C8-9F6BDECED846", 1_645_557_742_000_000_000);
        check("017F22E2-79B0-7CC3-98C4-DC0C0C07398F", 1_645_557_742_000_000_000);
        check("919108f7-52d1-4320-9bac-f847db4148a8", 0);
        check("ffffffff-ffff-1fff-bfff-ffffffffffff", i64::MAX);
        check("00000000-0000-1000-8000-000000000000", 0);
        check("epistula", 0);
        check("", 0);
    }

    #[test]
    fn sessions_and_signers_stay_apart_and_records_bring_them_back() {
        let texts = ["a:1", "a:2", "b:1", "a", "a:", "b:c232ab00-9414-11ec-b3c8-9f6bdeced846"];
        let keys = texts.map(SessionKey::new);
        for (i, key) in keys.iter().enumerate() {
            assert_eq!(SessionKey::from_record(&key.to_text()), *key);
            assert_eq!(SessionKey::from_record(texts[i]), *key);
            assert!(keys[..i].iter().all(|other| other != key) || texts[i] == "a:");
        }
        assert_eq!(keys[0].owner, keys[1].owner);
        assert_ne!(keys[0].owner, keys[2].owner);
    }
}
