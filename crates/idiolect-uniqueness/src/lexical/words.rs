//! Texts as words, and words as numbers.

use std::collections::HashMap;

/// Returns the words of a text in lower case: its longest runs of letters and digits of any script.
///
/// For ASCII these are the tokens of the Python package `rouge-score`. Scripts that set no space between words give one
/// word for each stretch between punctuation; n-grams of characters fit them better.
pub fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// Numbers for words, equal for equal ones.
#[derive(Debug, Default)]
pub(super) struct Vocabulary(HashMap<String, u32>);

impl Vocabulary {
    /// Returns the numbers of a text's words, in their order.
    pub(super) fn ids(&mut self, text: &str) -> Vec<u32> {
        words(text)
            .map(|word| {
                let next = u32::try_from(self.0.len()).expect("fewer different words than bytes of memory");
                *self.0.entry(word).or_insert(next)
            })
            .collect()
    }

    /// Returns the numbers of each text's words.
    pub(super) fn ids_of_all<T: AsRef<str>>(&mut self, texts: &[T]) -> Vec<Vec<u32>> {
        texts.iter().map(|text| self.ids(text.as_ref())).collect()
    }
}

/// Returns all runs of `n` tokens, in order; of fewer tokens than that, all of them as one run. No tokens have none.
/// An `n` of 0 counts as 1.
pub(super) fn grams<T>(tokens: &[T], n: usize) -> impl ExactSizeIterator<Item = &[T]> {
    tokens.windows(n.clamp(1, tokens.len().max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        assert_eq!(words(text).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        check("", &[]);
        check(" ... \n", &[]);
        check("It's 3.5 km; naïve!", &["it", "s", "3", "5", "km", "naïve"]);
        check("snake_case", &["snake", "case"]);
        check("Ça va? ΟΔΟΣ", &["ça", "va", "οδος"]);
    }

    #[test]
    fn short_texts_are_one_gram() {
        assert_eq!(grams(&[1, 2, 3], 2).collect::<Vec<_>>(), [&[1, 2], &[2, 3]]);
        assert_eq!(grams(&[1, 2], 5).collect::<Vec<_>>(), [&[1, 2]]);
        assert_eq!(grams(&[1, 2], 0).len(), 2);
        assert_eq!(grams::<u8>(&[], 3).len(), 0);
    }
}
