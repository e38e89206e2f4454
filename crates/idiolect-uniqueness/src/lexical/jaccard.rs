//! Jaccard similarity of n-gram sets.
//!
//! |A ∩ B| / |A ∪ B|, A and B being the sets of n-grams of the two texts: Broder, "On the resemblance and containment of
//! documents" (1997), where n-grams are called shingles. Customary are 1 to 3 words, or 5 characters.
//!
//! A text shorter than n is one n-gram, all of it. Two texts without any n-gram are equal (1); one without and one with
//! have nothing in common (0). Time and memory grow with n times the length.

use std::collections::HashSet;
use std::hash::Hash;

use super::words::{Vocabulary, grams};

/// Returns the similarity of the two texts' n-grams of words, in [0, 1]. An `n` of 0 counts as 1.
#[must_use]
pub fn words(a: &str, b: &str, n: usize) -> f64 {
    let mut vocabulary = Vocabulary::default();
    jaccard(&vocabulary.ids(a), &vocabulary.ids(b), n)
}

/// Returns the similarity of the two texts' n-grams of characters (Unicode scalar values, as they stand), in [0, 1].
/// An `n` of 0 counts as 1.
#[must_use]
pub fn characters(a: &str, b: &str, n: usize) -> f64 {
    jaccard(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>(), n)
}

pub(super) fn jaccard<T: Eq + Hash>(a: &[T], b: &[T], n: usize) -> f64 {
    let a: HashSet<&[T]> = grams(a, n).collect();
    let b: HashSet<&[T]> = grams(b, n).collect();
    let shared = a.intersection(&b).count();
    let all = a.len() + b.len() - shared;
    if all == 0 { 1.0 } else { shared as f64 / all as f64 }
}
