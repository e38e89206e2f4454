//! Shared openings: texts that begin with the same words.
//!
//! A plain count, after the validators' n-gram blacklist, which falls on stock phrases, and those on openings first.
//! Customary are 5 words.

use std::collections::HashMap;

use super::words::Vocabulary;

/// Returns the share of texts whose first `n` words are the first of another text as well, in [0, 1]. A text with fewer
/// words opens with all of them; one without words has no opening, and shares none. `None` of no texts. An `n` of 0
/// counts as 1.
#[must_use]
pub fn shared_openings<T: AsRef<str>>(texts: &[T], n: usize) -> Option<f64> {
    if texts.is_empty() {
        return None;
    }
    Some(open_as_another(texts, n).iter().filter(|&&shares| shares).count() as f64 / texts.len() as f64)
}

/// Says of each text whether another one opens with the same `n` words. See [`shared_openings`].
#[must_use]
pub fn open_as_another<T: AsRef<str>>(texts: &[T], n: usize) -> Vec<bool> {
    let texts = Vocabulary::default().ids_of_all(texts);
    let mut counts: HashMap<&[u32], usize> = HashMap::new();
    for opening in texts.iter().map(|ids| opening(ids, n)) {
        *counts.entry(opening).or_default() += 1;
    }
    texts.iter().map(|ids| !ids.is_empty() && counts[opening(ids, n)] > 1).collect()
}

/// Says whether a text opens with the same `n` words as one of the others. See [`shared_openings`].
#[must_use]
pub fn opens_as_any<T: AsRef<str>>(text: &str, others: &[T], n: usize) -> bool {
    let mut vocabulary = Vocabulary::default();
    let ids = vocabulary.ids(text);
    !ids.is_empty() && others.iter().any(|other| opening(&vocabulary.ids(other.as_ref()), n) == opening(&ids, n))
}

fn opening(ids: &[u32], n: usize) -> &[u32] {
    &ids[..n.max(1).min(ids.len())]
}
