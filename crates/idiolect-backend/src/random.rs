//! Small deterministic number makers: nothing here is for secrets.

/// Mixes a number so that neighbours end up far apart (SplitMix64, Steele et al. 2014).
pub(crate) const fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Hashes bytes the same way on every machine and in every version (FNV-1a, then mixed).
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3));
    mix(fnv)
}

/// Turns a mixed number into one in [0, 1).
pub(crate) fn unit(mixed: u64) -> f64 {
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_and_spread() {
        assert_eq!(mix(0), 0xE220_A839_7B1D_CDAF);
        assert_ne!(hash(b"a"), hash(b"b"));
        assert!((0..1000).map(|i| unit(mix(i))).all(|u| (0.0..1.0).contains(&u)));
        let mean = (0..1000).map(|i| unit(mix(i))).sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
    }
}
