//! How often n-grams were seen: some six hundred of them in each completion, so looking them up is what counting costs.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;

use hashbrown::HashTable;

/// Counts by n-gram. The tokens of all completions lie in one list, and an n-gram is a part of it.
#[derive(Default)]
pub(super) struct NgramCounts {
    tokens: Vec<u32>,
    table: HashTable<Entry>,
    seed: Seed,
    /// How many completions were counted so far, those that are forgotten included.
    n_completions: u32,
}

struct Entry {
    /// Kept, so that the table grows without a look at the tokens.
    hash: u64,
    start: usize,
    /// The completion that had it first, counted from 0.
    completion: u32,
    /// Where in that completion.
    position: u16,
    n: u16,
    /// How often it was seen.
    count: u32,
    /// How often it may have been seen before.
    before: u32,
}

/// An n-gram's place among all in the order in which validators count them: completion by completion, of each the shortest
/// first, and these from the start of the text on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u32, u16, u16);

/// What is known of an n-gram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counted<'a> {
    pub(super) ngram: &'a [u32],
    /// How often it was seen.
    pub(super) count: u32,
    /// How often it may have been seen before.
    pub(super) before: u32,
    /// When it was counted first.
    pub(super) place: Place,
}

/// Another number in each run: nobody can prepare texts whose n-grams get in each other's way.
struct Seed(u64);

impl Default for Seed {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0_u64))
    }
}

/// Returns the hash of an n-gram that is a token longer.
fn longer(hash: u64, token: u32) -> u64 {
    let product = u128::from(hash ^ u64::from(token)) * 0x9e37_79b9_7f4a_7c15;
    #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
    let (low, high) = (product as u64, (product >> 64) as u64);
    low ^ high
}

impl NgramCounts {
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Counts all n-grams of a completion, of these lengths from 1 on. New ones may have been seen `before` times already.
    pub(super) fn add(&mut self, tokens: &[u32], lengths: RangeInclusive<usize>, before: u32) {
        let Self { tokens: all, table, seed, n_completions } = self;
        let completion = *n_completions;
        *n_completions = completion.saturating_add(1);
        let offset = all.len();
        all.extend_from_slice(tokens);
        for first in 0..tokens.len() {
            let mut hash = seed.0;
            for (i, &token) in tokens[first..].iter().enumerate().take(*lengths.end()) {
                hash = longer(hash, token);
                let n = i + 1;
                if n < *lengths.start() {
                    continue;
                }
                let ngram = &tokens[first..first + n];
                let is_same = |entry: &Entry| entry.hash == hash && part(all, entry) == ngram;
                let new = || Entry {
                    hash,
                    start: offset + first,
                    completion,
                    position: small(first),
                    n: small(n),
                    count: 0,
                    before,
                };
                let mut entry = table.entry(hash, is_same, |entry| entry.hash).or_insert_with(new);
                let count = &mut entry.get_mut().count;
                *count = count.saturating_add(1);
            }
        }
    }

    /// Puts an n-gram in, in place of what was counted of it. A new one comes after all that are there.
    pub(super) fn put(&mut self, ngram: &[u32], count: u32, before: u32) {
        let hash = ngram.iter().fold(self.seed.0, |hash, &token| longer(hash, token));
        let Self { tokens, table, n_completions, .. } = self;
        if let Some(entry) = table.find_mut(hash, |entry| entry.hash == hash && part(tokens, entry) == ngram) {
            (entry.count, entry.before) = (count, before);
            return;
        }
        let completion = *n_completions;
        *n_completions = completion.saturating_add(1);
        let entry = Entry { hash, start: tokens.len(), completion, position: 0, n: small(ngram.len()), count, before };
        tokens.extend_from_slice(ngram);
        table.insert_unique(hash, entry, |entry| entry.hash);
    }

    /// Forgets the n-grams at whose counts `keep` is false, and the completions that they were in.
    pub(super) fn retain(&mut self, keep: impl Fn(u32, u32) -> bool) {
        self.table.retain(|entry| keep(entry.count, entry.before));
        let mut tokens = Vec::with_capacity(self.table.iter().map(|entry| usize::from(entry.n)).sum());
        for entry in self.table.iter_mut() {
            let start = tokens.len();
            tokens.extend_from_slice(part(&self.tokens, entry));
            entry.start = start;
        }
        self.tokens = tokens;
    }

    /// Halves all counts, rounded up.
    pub(super) fn halve(&mut self) {
        for entry in self.table.iter_mut() {
            (entry.count, entry.before) = (entry.count.div_ceil(2), entry.before.div_ceil(2));
        }
    }

    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.tokens.clear();
        self.n_completions = 0;
    }

    /// Returns the n-grams, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Counted<'_>> {
        self.table.iter().map(|entry| Counted {
            ngram: part(&self.tokens, entry),
            count: entry.count,
            before: entry.before,
            place: Place(entry.completion, entry.n, entry.position),
        })
    }
}

fn part<'a>(tokens: &'a [u32], entry: &Entry) -> &'a [u32] {
    tokens.get(entry.start..).and_then(|rest| rest.get(..usize::from(entry.n))).unwrap_or_default()
}

/// A profile counts n-grams of up to 64 tokens. Places beyond the largest number are as good as equal.
fn small(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

impl fmt::Debug for NgramCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NgramCounts").field("n_ngrams", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// In the order of the n-grams' first counting, as Python's dictionaries keep it.
    type Plain = Vec<(Vec<u32>, u32, u32)>;

    fn contents(counts: &NgramCounts) -> Plain {
        let mut counted: Vec<Counted<'_>> = counts.iter().collect();
        counted.sort_unstable_by_key(|counted| counted.place);
        counted.into_iter().map(|c| (c.ngram.to_vec(), c.count, c.before)).collect()
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_plain_map(
            completions in proptest::collection::vec(proptest::collection::vec(0_u32..4, 0..12), 0..20),
            n_min in 1_usize..4,
            more in 0_usize..4,
        ) {
            let (mut counts, mut plain) = (NgramCounts::default(), Plain::new());
            for (step, tokens) in completions.iter().enumerate() {
                let before = u32::from(small(step / 5));
                counts.add(tokens, n_min..=n_min + more, before);
                for ngram in (n_min..=n_min + more).flat_map(|n| tokens.windows(n)) {
                    match plain.iter_mut().find(|(known, ..)| known == ngram) {
                        Some((_, count, _)) => *count += 1,
                        None => plain.push((ngram.to_vec(), 1, before)),
                    }
                }
                if step % 7 == 6 {
                    counts.retain(|count, before| count + before > 3);
                    plain.retain(|(_, count, before)| *count + *before > 3);
                }
                if step % 11 == 10 {
                    counts.halve();
                    plain.iter_mut().for_each(|(_, c, b)| (*c, *b) = (c.div_ceil(2), b.div_ceil(2)));
                }
                prop_assert_eq!(contents(&counts), plain.clone());
                prop_assert_eq!(counts.len(), plain.len());
            }
            let mut copy = NgramCounts::default();
            for _ in 0..2 {
                plain.iter().for_each(|(ngram, count, before)| copy.put(ngram, *count, *before));
            }
            prop_assert_eq!(contents(&copy), plain);
            copy.clear();
            prop_assert_eq!(copy.len(), 0);
        }
    }
}
