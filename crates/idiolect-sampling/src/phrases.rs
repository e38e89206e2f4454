//! Texts that the output must not hold.

use crate::Vocabulary;

/// One banned phrase, with what it takes to follow it through the output.
#[derive(Debug)]
pub(crate) struct Phrase {
    bytes: Vec<u8>,
    /// For each number of bytes matched, how many still are when the next one differs (Knuth, Morris, Pratt).
    shorter: Vec<u16>,
    /// For each number of bytes matched above 0, the tokens that would complete the phrase.
    completing: Vec<std::ops::Range<usize>>,
    /// The tokens that hold the whole phrase.
    holding: Vec<u32>,
}

impl Phrase {
    /// Makes a phrase of at most 256 bytes.
    pub(crate) fn new(text: &str, vocabulary: &Vocabulary) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut shorter = vec![0u16; bytes.len() + 1];
        let mut matched = 0u16;
        for i in 1..bytes.len() {
            while matched > 0 && bytes[i] != bytes[usize::from(matched)] {
                matched = shorter[usize::from(matched)];
            }
            matched += u16::from(bytes[i] == bytes[usize::from(matched)]);
            shorter[i + 1] = matched;
        }
        let completing = (0..bytes.len()).map(|i| vocabulary.beginning_with(&bytes[i..])).collect();
        let holding = vocabulary.holding(&bytes).collect();
        Self { bytes, shorter, completing, holding }
    }

    /// Calls `ban` with each token that would complete the phrase after `matched` bytes of it.
    pub(crate) fn each_completing(&self, matched: u16, vocabulary: &Vocabulary, mut ban: impl FnMut(u32)) {
        self.holding.iter().for_each(|token| ban(*token));
        let mut matched = matched;
        while matched > 0 {
            let tokens = vocabulary.in_order(self.completing[usize::from(matched)].clone());
            tokens.iter().for_each(|token| ban(*token));
            matched = self.shorter[usize::from(matched)];
        }
    }

    /// Returns how many bytes are matched after some more bytes of output.
    pub(crate) fn follow(&self, matched: u16, output: &[u8]) -> u16 {
        let mut matched = matched;
        for byte in output {
            // A phrase that is complete after all (its last token was forced) starts anew.
            if usize::from(matched) == self.bytes.len() {
                matched = self.shorter[usize::from(matched)];
            }
            while matched > 0 && *byte != self.bytes[usize::from(matched)] {
                matched = self.shorter[usize::from(matched)];
            }
            matched += u16::from(*byte == self.bytes[usize::from(matched)]);
        }
        if usize::from(matched) == self.bytes.len() { self.shorter[usize::from(matched)] } else { matched }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn banned(phrase: &Phrase, matched: u16, vocabulary: &Vocabulary) -> Vec<u32> {
        let mut tokens = Vec::new();
        phrase.each_completing(matched, vocabulary, |token| tokens.push(token));
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    proptest! {
        #[test]
        fn exactly_what_completes_the_phrase_is_banned(
            texts in prop::collection::vec("[ab]{0,4}", 1..30),
            phrase in "[ab]{1,6}",
            output in prop::collection::vec(0usize..30, 0..12),
        ) {
            let vocabulary = Vocabulary::new(&texts, &[]);
            let phrase_bytes = phrase.clone();
            let phrase = Phrase::new(&phrase, &vocabulary);
            let mut matched = 0;
            let mut said = String::new();
            for token in output {
                let expected: Vec<u32> = (0..)
                    .zip(&texts)
                    .filter(|(_, text)| format!("{said}{text}").contains(&phrase_bytes))
                    .map(|(token, _)| token)
                    .collect();
                prop_assert_eq!(banned(&phrase, matched, &vocabulary), expected.clone(), "after {:?}", said);
                let token = token % texts.len();
                if expected.contains(&(token as u32)) {
                    continue;
                }
                said.push_str(&texts[token]);
                matched = phrase.follow(matched, texts[token].as_bytes());
            }
        }
    }
}
