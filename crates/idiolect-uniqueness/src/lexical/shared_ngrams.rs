//! Shared n-grams: long runs of words that texts have in common, other than by quoting the prompt.
//!
//! Runs of 8 words are customary: they hardly ever agree by chance. Overlap of 8-grams and longer is how Brown et al.,
//! "Language models are few-shot learners" (2020, arXiv 2005.14165, appendix C), look for copies of texts.

use std::collections::{HashMap, HashSet};

use super::words::Vocabulary;

/// Returns the share of texts that have an n-gram of words in common with another text, in [0, 1]; n-grams of the prompt
/// do not count. A text of fewer than `n` words shares none. `None` of no texts. An `n` of 0 counts as 1.
#[must_use]
pub fn share_of_texts<T: AsRef<str>>(texts: &[T], prompt: &str, n: usize) -> Option<f64> {
    if texts.is_empty() {
        return None;
    }
    let shares = shares_against_rest(texts, prompt, n);
    Some(shares.iter().filter(|share| share.is_some_and(|share| share > 0.0)).count() as f64 / texts.len() as f64)
}

/// Returns [`share_of_ngrams`] of each text against all the others, in time linear in their total length.
#[must_use]
pub fn shares_against_rest<T: AsRef<str>>(texts: &[T], prompt: &str, n: usize) -> Vec<Option<f64>> {
    let n = n.max(1);
    let mut vocabulary = Vocabulary::default();
    let prompt = vocabulary.ids(prompt);
    let quoted: HashSet<&[u32]> = prompt.windows(n).collect();
    let texts = vocabulary.ids_of_all(texts);
    let sets: Vec<HashSet<&[u32]>> =
        texts.iter().map(|ids| ids.windows(n).filter(|gram| !quoted.contains(gram)).collect()).collect();
    let mut counts: HashMap<&[u32], usize> = HashMap::new();
    for &gram in sets.iter().flatten() {
        *counts.entry(gram).or_default() += 1;
    }
    let share = |own: &HashSet<&[u32]>| {
        let shared = own.iter().filter(|gram| counts[*gram] > 1).count();
        (!own.is_empty()).then(|| shared as f64 / own.len() as f64)
    };
    sets.iter().map(share).collect()
}

/// Returns the share of a text's different n-grams that occur in any of the others, in [0, 1]; n-grams of the prompt are
/// left out of both. `None` when the text has no n-gram of its own. An `n` of 0 counts as 1.
#[must_use]
pub fn share_of_ngrams<T: AsRef<str>>(text: &str, others: &[T], prompt: &str, n: usize) -> Option<f64> {
    let n = n.max(1);
    let mut vocabulary = Vocabulary::default();
    let (prompt, text) = (vocabulary.ids(prompt), vocabulary.ids(text));
    let quoted: HashSet<&[u32]> = prompt.windows(n).collect();
    let own: HashSet<&[u32]> = text.windows(n).filter(|gram| !quoted.contains(gram)).collect();
    if own.is_empty() {
        return None;
    }
    let mut seen: HashSet<&[u32]> = HashSet::new();
    for other in others {
        let other = vocabulary.ids(other.as_ref());
        seen.extend(other.windows(n).filter_map(|gram| own.get(gram)));
    }
    Some(seen.len() as f64 / own.len() as f64)
}
