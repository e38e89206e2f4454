//! The texts of a model's tokens.

use std::fmt;
use std::ops::Range;

/// The bytes behind each token of a model, which stages that look at text need: banned phrases, the breakers of DRY,
/// constraints. Made once for a model and shared.
///
/// ```
/// use idiolect_sampling::Vocabulary;
///
/// let vocabulary = Vocabulary::new(["a", "ab", "b", ""], &[3]);
/// assert_eq!(vocabulary.len(), 4);
/// assert_eq!(vocabulary.bytes(1), b"ab");
/// assert_eq!(vocabulary.ends(), [3]);
/// ```
pub struct Vocabulary {
    bytes: Vec<u8>,
    /// Where each token begins in `bytes`, and the end of the last.
    begins: Vec<u32>,
    /// Token ids in the order of their bytes.
    sorted: Vec<u32>,
    /// Tokens that end the output.
    ends: Vec<u32>,
    #[cfg(feature = "constrained")]
    pub(crate) grammars: std::sync::OnceLock<Result<crate::constrained::Grammars, String>>,
}

impl Vocabulary {
    /// Makes a vocabulary of the tokens' bytes, in the order of their ids, and the ids of those that end the output.
    /// Tokens that stand for no text have none.
    ///
    /// # Panics
    /// If there are more than 2^32 bytes.
    pub fn new<B: AsRef<[u8]>>(tokens: impl IntoIterator<Item = B>, ends: &[u32]) -> Self {
        let mut bytes = Vec::new();
        let mut begins = vec![0];
        for token in tokens {
            bytes.extend_from_slice(token.as_ref());
            begins.push(u32::try_from(bytes.len()).expect("no vocabulary has 4 GiB of text"));
        }
        let n = u32::try_from(begins.len() - 1).expect("as many as there are begins");
        let mut vocabulary = Self {
            bytes,
            begins,
            sorted: Vec::new(),
            ends: ends.iter().copied().filter(|end| *end < n).collect(),
            #[cfg(feature = "constrained")]
            grammars: std::sync::OnceLock::new(),
        };
        let mut sorted: Vec<u32> = (0..n).collect();
        sorted.sort_unstable_by(|a, b| vocabulary.bytes(*a).cmp(vocabulary.bytes(*b)).then(a.cmp(b)));
        vocabulary.sorted = sorted;
        vocabulary
    }

    /// Returns the number of tokens.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.begins.len() - 1
    }

    /// Says whether there is no token.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns a token's bytes; none for an id that there isn't.
    #[must_use]
    pub fn bytes(&self, token: u32) -> &[u8] {
        let at = token as usize;
        match (self.begins.get(at), self.begins.get(at + 1)) {
            (Some(begin), Some(end)) => &self.bytes[*begin as usize..*end as usize],
            _ => &[],
        }
    }

    /// Returns the tokens that end the output.
    #[must_use]
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Returns the tokens that hold a text, in the order of their ids.
    pub(crate) fn holding(&self, text: &[u8]) -> impl Iterator<Item = u32> {
        let n = u32::try_from(self.len()).unwrap_or(u32::MAX);
        (0..n).filter(move |token| self.bytes(*token).windows(text.len()).any(|window| window == text))
    }

    /// Returns where in [`in_order`](Self::in_order) the tokens are that begin with a text.
    pub(crate) fn beginning_with(&self, text: &[u8]) -> Range<usize> {
        let begin = self.sorted.partition_point(|token| self.bytes(*token) < text);
        let n = self.sorted[begin..].partition_point(|token| self.bytes(*token).starts_with(text));
        begin..begin + n
    }

    /// Returns tokens by their place in the order of their bytes.
    pub(crate) fn in_order(&self, range: Range<usize>) -> &[u32] {
        &self.sorted[range]
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vocabulary({} tokens)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_by_their_text() {
        let vocabulary = Vocabulary::new(["b", "ab", "abc", "", "a", "xab", "b"], &[]);
        let mut found = vocabulary.in_order(vocabulary.beginning_with(b"ab")).to_vec();
        found.sort_unstable();
        assert_eq!(found, [1, 2]);
        assert_eq!(vocabulary.in_order(vocabulary.beginning_with(b"b")), [0, 6]);
        assert!(vocabulary.beginning_with(b"q").is_empty());
        assert_eq!(vocabulary.holding(b"ab").collect::<Vec<_>>(), [1, 2, 5]);
        assert_eq!(vocabulary.bytes(99), b"");
    }
}
