//! What requests take of the memory for keys and values.

use crate::engine::Portion;

/// What a request takes of the memory for keys and values, in portions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    /// For what all candidates share.
    pub(crate) shared: u64,
    /// For each candidate.
    pub(crate) each: u64,
}

impl Cost {
    /// Returns the most that candidates of `length` tokens after a prompt can come to need.
    pub(crate) const fn new(portion: Portion, prompt: usize, length: usize) -> Self {
        let (shared, rest) = (prompt / portion.tokens, prompt % portion.tokens);
        Self { shared: shared as u64, each: rest.saturating_add(length).div_ceil(portion.tokens) as u64 }
    }

    /// Adds other bytes that all candidates share.
    pub(crate) const fn and_bytes(self, portion: Portion, bytes: u64) -> Self {
        Self { shared: self.shared.saturating_add(bytes.div_ceil(portion.bytes)), each: self.each }
    }

    /// Returns the portions of `n` candidates.
    pub(crate) const fn of(self, n: usize) -> u64 {
        self.each.saturating_mul(n as u64).saturating_add(self.shared)
    }
}

/// Returns the most tokens that each of `n` candidates can have after a prompt where there are so many portions for all of
/// it.
pub(crate) fn longest(portion: Portion, prompt: usize, n: usize, portions: u64) -> usize {
    let each = portions.saturating_sub((prompt / portion.tokens) as u64) / n.max(1) as u64;
    let tokens = usize::try_from(each).unwrap_or(usize::MAX).saturating_mul(portion.tokens);
    tokens.saturating_sub(prompt % portion.tokens)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn costs_are_whole_portions() {
        let portion = Portion { tokens: 16, bytes: 100 };
        assert_eq!(Cost::new(portion, 32, 16), Cost { shared: 2, each: 1 });
        assert_eq!(Cost::new(portion, 33, 15), Cost { shared: 2, each: 1 });
        assert_eq!(Cost::new(portion, 33, 16), Cost { shared: 2, each: 2 });
        assert_eq!(Cost::new(portion, 33, 16).of(3), 8);
        assert_eq!(Cost::new(Portion { tokens: 1, ..portion }, 33, 16).of(3), 33 + 48);
        assert_eq!(Cost::new(portion, 33, 16).and_bytes(portion, 101), Cost { shared: 4, each: 2 });
        assert_eq!(Cost::new(portion, 1, usize::MAX).of(usize::MAX), u64::MAX);
    }

    proptest! {
        #[test]
        fn the_longest_that_fit_fit(tokens in 1usize..40, prompt in 0usize..300, n in 1usize..20, portions in 0u64..500) {
            let portion = Portion { tokens, bytes: 1 };
            let length = longest(portion, prompt, n, portions);
            if length > 0 {
                prop_assert!(Cost::new(portion, prompt, length).of(n) <= portions);
            }
            prop_assert!(Cost::new(portion, prompt, length + 1).of(n) > portions);
        }
    }
}
