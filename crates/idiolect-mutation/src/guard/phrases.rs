use std::sync::{Arc, LazyLock};

use serde::Deserialize;

/// Phrases as data: what the guard looks for beyond the validators' own rules, and words that repairs need to know. All are
/// in small letters; text in any letter case is compared with them.
///
/// ```
/// use idiolect_mutation::guard::StockPhrases;
///
/// let phrases = StockPhrases::from_toml(&StockPhrases::BUILT_IN.replace("great question", "good of you to ask"))?;
/// assert!(phrases.preambles.iter().any(|phrase| phrase == "good of you to ask"));
/// # Ok::<(), idiolect_mutation::guard::PhrasesError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StockPhrases {
    /// How assistants open their replies.
    pub preambles: Vec<String>,
    /// Within how many characters from the start these are looked for.
    pub characters: usize,
    /// Labels of texts, each with its colon.
    pub labels: Vec<String>,
    /// Where a model goes on to speak for the asking side.
    pub role_leaks: Vec<String>,
    /// Words whose full stop ends no sentence.
    pub abbreviations: Vec<String>,
    /// What questions begin with.
    pub question_words: Vec<String>,
    /// First words of sentences that lose their capital letter inside one.
    pub sentence_openers: Vec<String>,
}

/// Phrases that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("phrases: {0}")]
pub struct PhrasesError(String);

static BUILT_IN: LazyLock<Arc<StockPhrases>> =
    LazyLock::new(|| Arc::new(StockPhrases::from_toml(StockPhrases::BUILT_IN).expect("the built-in file is valid")));

impl StockPhrases {
    /// The file of the built-in phrases, which also documents the keys.
    pub const BUILT_IN: &'static str = include_str!("stock_phrases.toml");

    /// Returns the built-in phrases.
    ///
    /// # Panics
    /// Never: the file is part of the crate and tested.
    #[must_use]
    pub fn built_in() -> &'static Arc<Self> {
        &BUILT_IN
    }

    /// Reads phrases. Every key must be there, and no other.
    ///
    /// # Errors
    /// [`PhrasesError`] with the key and what is wrong with it.
    pub fn from_toml(text: &str) -> Result<Self, PhrasesError> {
        let mut read: Self = toml::from_str(text).map_err(|error| PhrasesError(error.message().to_owned()))?;
        let Self { preambles, labels, role_leaks, abbreviations, question_words, sentence_openers, .. } = &mut read;
        let lists = [preambles, labels, role_leaks, abbreviations, question_words, sentence_openers];
        for phrase in lists.into_iter().flatten() {
            if phrase.trim().is_empty() {
                return Err(PhrasesError("an empty phrase would be found in every text".to_owned()));
            }
            *phrase = phrase.to_lowercase();
        }
        Ok(read)
    }

    /// Returns the preambles that a text opens with.
    pub(crate) fn preambles_in(&self, text: &str) -> impl Iterator<Item = &str> {
        let head: String = text.chars().take(self.characters).flat_map(char::to_lowercase).collect();
        self.preambles.iter().map(String::as_str).filter(move |phrase| head.contains(phrase))
    }

    /// Returns the label that a text begins with.
    pub(crate) fn label_at_start(&self, text: &str) -> Option<&str> {
        self.labels.iter().map(String::as_str).find(|label| starts_with(text, label))
    }

    /// Returns the name of a label that is somewhere in a text, for reports.
    pub(crate) fn label_in(&self, text: &str) -> &str {
        let lower = text.to_lowercase();
        let mut labels = self.labels.iter().map(String::as_str);
        labels.find(|label| lower.contains(label)).unwrap_or("a mark of the prompt's own")
    }

    /// Returns where a text first speaks for another role, and the mark that says so.
    pub(crate) fn role_leak(&self, text: &str) -> Option<(usize, &str)> {
        // Marks are plain ASCII, so that letter case can be left aside byte by byte.
        let lower = text.to_ascii_lowercase();
        let found = self.role_leaks.iter().filter_map(|mark| Some((lower.find(mark.as_str())?, mark.as_str())));
        found.min_by_key(|(at, _)| *at)
    }

    pub(crate) fn is_abbreviation(&self, word: &str) -> bool {
        self.abbreviations.iter().any(|known| known.eq_ignore_ascii_case(word))
    }

    pub(crate) fn opens_sentence(&self, word: &str) -> bool {
        self.sentence_openers.iter().any(|known| known.eq_ignore_ascii_case(word))
    }
}

/// Compares with a phrase in small letters.
pub(crate) fn starts_with(text: &str, phrase: &str) -> bool {
    let mut lower = text.chars().flat_map(char::to_lowercase);
    phrase.chars().all(|expected| lower.next() == Some(expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_are_data() {
        let phrases = StockPhrases::built_in();
        assert_eq!(phrases.label_at_start("ANSWER: it"), Some("answer:"));
        assert_eq!(phrases.label_at_start("The answer: it"), None);
        assert_eq!(phrases.role_leak("It.\nHUMAN: yes\nUser: no").unwrap(), (3, "\nhuman:"));
        assert_eq!(phrases.preambles_in("Great Question!").count(), 1);
        assert!(StockPhrases::from_toml("characters = 3").unwrap_err().to_string().contains("missing field"));
        let empty = StockPhrases::BUILT_IN.replace("great question", " ");
        assert!(StockPhrases::from_toml(&empty).unwrap_err().to_string().contains("empty phrase"));
    }
}
