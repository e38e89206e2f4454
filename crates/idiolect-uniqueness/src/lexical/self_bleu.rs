//! Self-BLEU: BLEU-4 of each text against all others, averaged.
//!
//! Zhu et al., "Texygen: a benchmarking platform for text generation models" (2018, arXiv 1802.01886). BLEU is that of
//! Papineni et al. (2002): the brevity penalty by the reference of nearest length, times the geometric mean of the clipped
//! precisions p₁ to p₄, where a precision with no match has the numerator 0.1 (method 1 of Chen and Cherry, "A systematic
//! comparison of smoothing techniques for sentence-level BLEU", 2014; NLTK's `method1`). Higher means less diverse.
//!
//! The cost is linear in the total length of the texts, not quadratic in their number: of each n-gram only the two highest
//! counts are kept.

use std::collections::HashMap;

use super::words::Vocabulary;

const ORDERS: std::ops::RangeInclusive<usize> = 1..=4;

/// The numerator of a precision without a match.
const EPSILON: f64 = 0.1;

/// Returns the mean of [`bleu_against_rest`], in [0, 1], or `None` of fewer than two texts.
#[must_use]
pub fn self_bleu<T: AsRef<str>>(texts: &[T]) -> Option<f64> {
    let scores = bleu_against_rest(texts);
    (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
}

/// Returns the BLEU-4 of each text with all others as its references. Empty for fewer than two texts. A text without
/// words, or without a word that any other has, has 0.
#[must_use]
pub fn bleu_against_rest<T: AsRef<str>>(texts: &[T]) -> Vec<f64> {
    if texts.len() < 2 {
        return Vec::new();
    }
    let texts = Vocabulary::default().ids_of_all(texts);
    let matches = ORDERS.map(|n| clipped_matches(&texts, n)).collect::<Vec<_>>();
    let mut lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    lengths.sort_unstable();
    let score = |(i, text): (usize, &Vec<u32>)| {
        if matches[0][i] == 0 {
            return 0.0;
        }
        let log_precision = |n: usize| {
            let matched = matches[n - 1][i] as f64;
            let all = (text.len() + 1).saturating_sub(n).max(1) as f64;
            (if matched == 0.0 { EPSILON } else { matched } / all).ln()
        };
        let mean = ORDERS.map(log_precision).sum::<f64>() / 4.0;
        brevity_penalty(text.len(), nearest_other_length(&lengths, text.len())) * mean.exp()
    };
    texts.iter().enumerate().map(score).collect()
}

/// Returns for each text how many of its n-grams match, each at most as often as the other text that has it most.
fn clipped_matches(texts: &[Vec<u32>], n: usize) -> Vec<u64> {
    let counts: Vec<HashMap<&[u32], u64>> = texts.iter().map(|text| counts(text, n)).collect();
    let mut highest: HashMap<&[u32], Highest> = HashMap::new();
    for (owner, counts) in counts.iter().enumerate() {
        for (&gram, &count) in counts {
            highest.entry(gram).or_default().see(owner, count);
        }
    }
    let matched = |(i, counts): (usize, &HashMap<&[u32], u64>)| {
        counts.iter().map(|(gram, &count)| count.min(highest[gram].of_others(i))).sum()
    };
    counts.iter().enumerate().map(matched).collect()
}

fn counts(text: &[u32], n: usize) -> HashMap<&[u32], u64> {
    let mut counts = HashMap::new();
    for gram in text.windows(n) {
        *counts.entry(gram).or_default() += 1;
    }
    counts
}

/// The highest count of an n-gram in a text, which text that is, and the highest in any other.
#[derive(Default)]
struct Highest {
    count: u64,
    owner: usize,
    second: u64,
}

impl Highest {
    fn see(&mut self, owner: usize, count: u64) {
        if count > self.count {
            *self = Self { count, owner, second: self.count };
        } else {
            self.second = self.second.max(count);
        }
    }

    const fn of_others(&self, owner: usize) -> u64 {
        if self.owner == owner { self.second } else { self.count }
    }
}

/// Returns the length nearest to `length` in a sorted list, less one that is equal to it; the shorter of equally near ones.
fn nearest_other_length(sorted: &[usize], length: usize) -> usize {
    let (first, end) = (sorted.partition_point(|&l| l < length), sorted.partition_point(|&l| l <= length));
    if end - first > 1 {
        return length;
    }
    let shorter = first.checked_sub(1).map(|i| sorted[i]);
    let longer = sorted.get(end).copied();
    match (shorter, longer) {
        (Some(shorter), Some(longer)) if longer - length < length - shorter => longer,
        (Some(shorter), _) => shorter,
        (None, longer) => longer.unwrap_or(length),
    }
}

fn brevity_penalty(length: usize, reference: usize) -> f64 {
    if length > reference { 1.0 } else { (1.0 - reference as f64 / length as f64).exp() }
}
