//! MinHash: an estimate of Jaccard similarity from signatures of fixed size.
//!
//! Of each of k hash functions a signature keeps the least value over a text's n-grams; the share of equal values in two
//! signatures estimates the [Jaccard similarity](super::jaccard) s of the two sets, with a standard deviation of
//! sqrt(s (1 - s) / k), at most 1 / (2 sqrt k). Broder, "On the resemblance and containment of documents" (1997).
//!
//! The hash functions are h ↦ ((a h + b) mod 2⁶¹ - 1) mod 2³², with a below 2³¹ and b below 2⁶¹ from `SplitMix64`, and h
//! the upper half of a mixed FNV-1a hash. Signatures of one seed are the same in every version of this crate and on every
//! machine: they may be stored.

use super::hash::{SplitMix64, hash_words};
use super::words::{grams, words};

const MERSENNE_61: u64 = (1 << 61) - 1;

/// A family of hash functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinHash {
    functions: Vec<(u64, u64)>,
}

/// The least hash values of a text. Only those of one [`MinHash`] can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature(Vec<u32>);

impl MinHash {
    /// Makes `k` hash functions from a seed; 0 counts as 1.
    #[must_use]
    pub fn new(seed: u64, k: usize) -> Self {
        let mut random = SplitMix64(seed);
        let functions =
            (0..k.max(1)).map(|_| ((random.next() >> 33) | 1, (random.next() >> 3) % MERSENNE_61)).collect();
        Self { functions }
    }

    /// Returns the signature of a text's n-grams of words. A text shorter than `n` words is one n-gram; a text without
    /// words has the greatest value everywhere.
    #[must_use]
    pub fn signature(&self, text: &str, n: usize) -> Signature {
        let words: Vec<String> = words(text).collect();
        let mut hashes: Vec<u64> = grams(&words, n).map(|gram| hash_words(gram) >> 32).collect();
        hashes.sort_unstable();
        hashes.dedup();
        let least = |&(a, b): &(u64, u64)| {
            // Below 2⁶³ + 2⁶¹: nothing overflows. The lower half is what is kept.
            hashes.iter().map(|hash| ((a * hash + b) % MERSENNE_61) as u32).min().unwrap_or(u32::MAX)
        };
        Signature(self.functions.iter().map(least).collect())
    }
}

impl Signature {
    /// Returns the least values, one for each hash function.
    #[must_use]
    pub fn values(&self) -> &[u32] {
        &self.0
    }

    /// Returns the estimated Jaccard similarity, in [0, 1]: 1 for two texts without words. `None` for signatures of
    /// different sizes.
    #[must_use]
    pub fn similarity(&self, other: &Self) -> Option<f64> {
        if self.0.len() != other.0.len() {
            return None;
        }
        let equal = self.0.iter().zip(&other.0).filter(|(a, b)| a == b).count();
        Some(equal as f64 / self.0.len() as f64)
    }
}

/// Returns the probability that two texts of the given similarity agree in all values of at least one band, when
/// signatures are cut into `bands` of `rows` values each: 1 - (1 - sʳ)ᵇ.
#[must_use]
pub fn banding_probability(similarity: f64, bands: u32, rows: u32) -> f64 {
    1.0 - (1.0 - similarity.clamp(0.0, 1.0).powf(f64::from(rows))).powf(f64::from(bands))
}
