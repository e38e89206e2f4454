//! Lexical measures: how alike texts are by their words and characters, without an encoder.
//!
//! | file | measure | of |
//! | --- | --- | --- |
//! | [`jaccard`] | shared n-grams of all n-grams | two texts |
//! | [`minhash`] | an estimate of that from signatures of fixed size | two signatures |
//! | [`simhash`] | equal bits of two fingerprints | two fingerprints |
//! | [`rouge_l`] | longest common subsequence of words | two texts |
//! | [`ncd`] | what compressing two texts together saves | two texts |
//! | [`self_bleu`] | BLEU-4 of each text against the rest | many texts |
//! | [`distinct`] | different n-grams of all n-grams | many texts |
//! | [`compression`] | length before compression by length after it | many texts |
//! | [`vendi`] | effective number of different texts | many texts |
//! | [`openings`] | texts that begin alike | many texts |
//! | [`shared_ngrams`] | texts with a long run of words in common | many texts |
//!
//! Words are those of [`words`](words()). Every measure of two texts has a value for any two texts; measures of many
//! texts are `None` where there is nothing to measure, as each says. Nothing panics on a text, and all work is linear in
//! the length of texts, except for [`rouge_l`], which says what it costs.
//!
//! ```
//! use idiolect_uniqueness::lexical::{jaccard, rouge_l, self_bleu};
//!
//! let (a, b) = ("Leaves make sugar out of light.", "Sugar is what leaves make of light.");
//! assert_eq!(jaccard::words(a, b, 1), 5.0 / 8.0);
//! assert_eq!(rouge_l::rouge_l(a, b).recall, 4.0 / 7.0);
//! assert_eq!(self_bleu::self_bleu(&[a]), None);
//! ```

pub mod compression;
pub mod distinct;
pub mod jaccard;
pub mod minhash;
pub mod ncd;
pub mod openings;
pub mod rouge_l;
pub mod self_bleu;
pub mod shared_ngrams;
pub mod simhash;
pub mod vendi;

mod eigenvalues;
mod hash;
mod words;

pub use hash::fnv1a;
pub use words::words;

#[cfg(test)]
mod tests;
