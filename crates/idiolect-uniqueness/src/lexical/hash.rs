//! Hashes that are the same in every version: signatures made with them may be stored.

/// Returns the 64-bit FNV-1a hash of the bytes (Fowler, Noll and Vo), the same on every machine and in every version.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Returns the FNV-1a hash of the bytes, mixed by the last step of `SplitMix64` so that every bit depends on all.
pub(super) fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    mix(fnv1a(bytes))
}

/// Returns the hash of words joined by single spaces.
pub(super) fn hash_words(words: &[String]) -> u64 {
    hash(words.iter().enumerate().flat_map(|(i, word)| (i > 0).then_some(b' ').into_iter().chain(word.bytes())))
}

/// The generator `SplitMix64` (Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub(super) struct SplitMix64(pub(super) u64);

impl SplitMix64 {
    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_its_published_numbers() {
        let mut generator = SplitMix64(1_234_567);
        assert_eq!(generator.next(), 6_457_827_717_110_365_317);
        assert_eq!(generator.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn fnv1a_gives_its_published_hashes() {
        assert_eq!(fnv1a([]), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(*b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(*b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn words_are_joined_by_spaces() {
        assert_eq!(hash_words(&["a".into(), "b".into()]), hash("a b".bytes()));
        assert_ne!(hash_words(&["a".into(), "b".into()]), hash("ab".bytes()));
    }
}
