//! SimHash: a fingerprint of 64 bits, of which similar texts share most.
//!
//! Every n-gram of words votes with the bits of its hash, as often as it occurs; a bit of the fingerprint is 1 where more
//! than half of the votes are. Charikar, "Similarity estimation techniques from rounding algorithms" (2002). Fingerprints
//! are the same in every version of this crate: they may be stored.

use super::hash::hash_words;
use super::words::{grams, words};

/// Returns the fingerprint of a text's n-grams of words. A text shorter than `n` words is one n-gram; a text without
/// words has the fingerprint 0.
#[must_use]
pub fn fingerprint(text: &str, n: usize) -> u64 {
    let words: Vec<String> = words(text).collect();
    let mut ones = [0_u64; 64];
    let mut votes = 0;
    for gram in grams(&words, n) {
        let hash = hash_words(gram);
        votes += 1;
        for (bit, ones) in ones.iter_mut().enumerate() {
            *ones += hash >> bit & 1;
        }
    }
    ones.iter().enumerate().filter(|&(_, &ones)| 2 * ones > votes).fold(0, |bits, (bit, _)| bits | 1 << bit)
}

/// Returns the share of equal bits, in [0, 1]; unrelated texts are near 0.5.
#[must_use]
pub fn similarity(a: u64, b: u64) -> f64 {
    1.0 - f64::from((a ^ b).count_ones()) / 64.0
}
