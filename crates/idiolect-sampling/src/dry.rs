//! Penalties on prolonging a repetition.

use crate::Dry;
use crate::Vocabulary;

/// The DRY stage, ready for a vocabulary.
#[derive(Debug)]
pub(crate) struct DryRule {
    multiplier: f32,
    base: f32,
    allowed: u32,
    /// The greatest power that stays finite.
    max_exponent: u32,
    /// One bit a token.
    breakers: Vec<u64>,
}

/// Space to work in, kept from token to token.
#[derive(Clone, Debug, Default)]
pub(crate) struct DryScratch {
    lengths: Vec<u32>,
    matches: Vec<(u32, u32)>,
}

impl DryScratch {
    /// Makes room for a history of `n` tokens.
    pub(crate) fn reserve(&mut self, n: usize) {
        self.lengths.reserve(n);
        self.matches.reserve(n);
    }
}

impl DryRule {
    pub(crate) fn new(dry: &Dry, vocabulary: &Vocabulary) -> Self {
        let mut breakers = vec![0u64; vocabulary.len().div_ceil(64)];
        for text in &dry.breakers {
            for token in vocabulary.holding(text.as_bytes()) {
                breakers[token as usize / 64] |= 1 << (token % 64);
            }
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 88 / 1e-6")]
        let max_exponent = if dry.base > 1.000_001 { (f32::MAX.ln() / dry.base.ln()) as u32 } else { u32::MAX };
        Self { multiplier: dry.multiplier, base: dry.base, allowed: dry.allowed_length, max_exponent, breakers }
    }

    fn breaks(&self, token: u32) -> bool {
        self.breakers.get(token as usize / 64).is_some_and(|bits| bits >> (token % 64) & 1 == 1)
    }

    /// Calls `penalise` with each token that would prolong a repetition, and by how much its logit falls.
    pub(crate) fn each(&self, said: &[u32], scratch: &mut DryScratch, mut penalise: impl FnMut(u32, f32)) {
        let DryScratch { lengths, matches } = scratch;
        let n = said.len();
        // How far back a repetition may reach from the end.
        let reach = said.iter().rev().position(|token| self.breaks(*token)).unwrap_or(n);
        if reach < self.allowed as usize {
            return;
        }
        // lengths[i]: how many tokens before place n - i agree with those before the end. The Z function, backwards.
        let back = |i: usize| said[n - 1 - i];
        lengths.clear();
        lengths.resize(n, 0);
        matches.clear();
        let (mut left, mut right) = (0, 0);
        for i in 1..n {
            let mut length = if i < right { (lengths[i - left] as usize).min(right - i) } else { 0 };
            while i + length < n && back(length) == back(i + length) {
                length += 1;
            }
            if i + length > right {
                (left, right) = (i, i + length);
            }
            lengths[i] = u32::try_from(length).unwrap_or(u32::MAX);
            let length = length.min(reach);
            // The token that followed the earlier occurrence is the one that would prolong the repetition.
            let next = back(i - 1);
            if length >= self.allowed as usize && !self.breaks(next) {
                matches.push((next, u32::try_from(length).unwrap_or(u32::MAX)));
            }
        }
        matches.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        matches.dedup_by_key(|entry| entry.0);
        for (token, length) in &*matches {
            penalise(*token, self.penalty(*length));
        }
    }

    /// Returns what is taken off for a repetition of this length.
    fn penalty(&self, length: u32) -> f32 {
        let exponent = (length - self.allowed).min(self.max_exponent);
        let power = self.base.powi(i32::try_from(exponent).unwrap_or(i32::MAX));
        (self.multiplier * power).min(f32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn penalties(dry: &Dry, vocabulary: &Vocabulary, said: &[u32]) -> Vec<(u32, f32)> {
        let mut list = Vec::new();
        DryRule::new(dry, vocabulary).each(said, &mut DryScratch::default(), |token, by| list.push((token, by)));
        list
    }

    fn letters() -> Vocabulary {
        Vocabulary::new(["a", "b", "c", "d", "e", ":", " x:", "\n"], &[])
    }

    fn dry() -> Dry {
        Dry { multiplier: 1.0, base: 2.0, allowed_length: 2, ..Dry::default() }
    }

    #[test]
    fn longer_repetitions_cost_more() {
        let check = |said: &[u32], expected: &[(u32, f32)]| {
            assert_eq!(penalties(&dry(), &letters(), said), expected, "{said:?}");
        };
        check(&[], &[]);
        check(&[0, 1, 2], &[]);
        // "ab c ab": c would make it three.
        check(&[0, 1, 2, 0, 1], &[(2, 1.0)]);
        check(&[3, 0, 1, 2, 3, 0, 1], &[(2, 2.0)]);
        // Two continuations, each by its own longest match.
        check(&[3, 0, 1, 2, 0, 1, 4, 3, 0, 1], &[(2, 2.0), (4, 1.0)]);
        check(&[0, 0, 0], &[(0, 1.0)]);
        check(&[0, 0, 0, 0], &[(0, 2.0)]);
    }

    #[test]
    fn breakers_cut_repetitions_and_are_spared() {
        // The match reaches back to the colon only, whichever token holds it.
        assert_eq!(penalties(&dry(), &letters(), &[3, 5, 0, 1, 2, 3, 5, 0, 1]), [(2, 1.0)]);
        assert_eq!(penalties(&dry(), &letters(), &[0, 1, 6, 0, 6, 0]), []);
        assert_eq!(penalties(&dry(), &letters(), &[0, 1, 5, 2, 0, 1]), [], "the colon may follow again");
        assert_eq!(penalties(&dry(), &letters(), &[0, 1, 2, 0, 1, 7]), [], "a line just ended");
    }

    #[test]
    fn penalties_stay_finite() {
        let said = vec![0u32; 3000];
        let list = penalties(&Dry { multiplier: 100.0, base: 8.0, ..dry() }, &letters(), &said);
        assert_eq!(list.len(), 1);
        assert!(list[0].1.is_finite());
    }

    proptest! {
        #[test]
        fn the_longest_match_counts(said in prop::collection::vec(0u32..7, 0..60), allowed in 1u32..5) {
            let dry = Dry { allowed_length: allowed, ..dry() };
            let breaks = |token: u32| token >= 5;
            let mut longest = BTreeMap::<u32, u32>::new();
            for end in 0..said.len() {
                // Does what stands before `end` agree with what stands before the end of all?
                let length = (1..=end)
                    .take_while(|back| said[end - back] == said[said.len() - back] && !breaks(said[end - back]))
                    .count() as u32;
                if length >= allowed && !breaks(said[end]) {
                    let entry = longest.entry(said[end]).or_default();
                    *entry = (*entry).max(length);
                }
            }
            let expected: Vec<(u32, f32)> =
                longest.into_iter().map(|(token, length)| (token, 2f32.powi((length - allowed) as i32))).collect();
            prop_assert_eq!(penalties(&dry, &letters(), &said), expected);
        }
    }
}
