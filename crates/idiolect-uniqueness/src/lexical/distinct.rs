//! Distinct-n: how many of all n-grams are different.
//!
//! Different n-grams of words by all n-grams, over all texts together: Li et al., "A diversity-promoting objective
//! function for neural conversation models" (2016, arXiv 1510.03055). (The paper divides by the number of words, which is
//! the same for n = 1 and nearly so for long texts.) It falls with the amount of text: compare sets of like size only.

use std::collections::HashSet;

use super::words::Vocabulary;

/// Returns the share of different n-grams among all, in (0, 1]. Texts shorter than `n` words have none; `None` when no
/// text has any. An `n` of 0 counts as 1.
#[must_use]
pub fn distinct<T: AsRef<str>>(texts: &[T], n: usize) -> Option<f64> {
    let texts = Vocabulary::default().ids_of_all(texts);
    let all = || texts.iter().flat_map(|ids| ids.windows(n.max(1)));
    let count = all().count();
    (count > 0).then(|| all().collect::<HashSet<_>>().len() as f64 / count as f64)
}
