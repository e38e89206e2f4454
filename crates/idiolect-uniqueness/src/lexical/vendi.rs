//! Vendi score: the effective number of different texts in a set.
//!
//! exp(-Σ λ ln λ) over the eigenvalues λ of K / n, K being the n × n matrix of similarities with 1 on its diagonal:
//! Friedman and Dieng, "The Vendi score" (2022, arXiv 2210.02410). It is 1 for equal texts and n for texts that have
//! nothing in common.
//!
//! The eigenvalues take a number of steps that grows with n³: 2 ms for 100 texts, 0.6 s for 1,000.

use idiolect_backend::Embedding;

use super::eigenvalues::symmetric_eigenvalues;
use super::jaccard::jaccard;
use super::words::Vocabulary;
use crate::vectors::{dot, normalised};

/// Returns the score of `n` things, given the similarity of each two (asked for i > j only; that of a thing with itself
/// is 1). `None` of no things, or where a similarity is not finite. Similarities that no inner product gives may have
/// negative eigenvalues, which are left out.
#[must_use]
pub fn vendi_score(n: usize, similarity: impl Fn(usize, usize) -> f64) -> Option<f64> {
    let mut kernel = vec![0.0; n * n];
    let scale = 1.0 / n as f64;
    for i in 0..n {
        kernel[i * n + i] = scale;
        for j in 0..i {
            let value = similarity(i, j) * scale;
            if !value.is_finite() {
                return None;
            }
            kernel[i * n + j] = value;
            kernel[j * n + i] = value;
        }
    }
    let entropy: f64 = symmetric_eigenvalues(kernel, n)
        .into_iter()
        .filter(|&value| value > 0.0)
        .map(|value| -value * value.ln())
        .sum();
    (n > 0).then(|| entropy.exp())
}

/// Returns the score by the cosines of embeddings. Those without a direction (zero length, a value that is not finite) and
/// those of another size than the first that has one are left out; `None` when none is left.
#[must_use]
pub fn vendi_score_of_embeddings(embeddings: &[Embedding]) -> Option<f64> {
    let mut units: Vec<Vec<f32>> = embeddings.iter().filter_map(|embedding| normalised(embedding)).collect();
    let size = units.first()?.len();
    units.retain(|unit| unit.len() == size);
    vendi_score(units.len(), |i, j| f64::from(dot(&units[i], &units[j])))
}

/// Returns the score by the [Jaccard similarity](super::jaccard) of the texts' n-grams of words; `None` of no texts.
#[must_use]
pub fn vendi_score_of_words<T: AsRef<str>>(texts: &[T], n: usize) -> Option<f64> {
    let texts = Vocabulary::default().ids_of_all(texts);
    vendi_score(texts.len(), |i, j| jaccard(&texts[i], &texts[j], n))
}
