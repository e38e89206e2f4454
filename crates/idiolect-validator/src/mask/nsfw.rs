use std::collections::HashSet;
use std::fmt::Debug;

use async_trait::async_trait;
use idiolect_backend::Error;

/// A classifier of hateful or indecent text.
///
/// Validators use facebook/roberta-hate-speech-dynabench-r4-target and take, of all 512-token chunks, the larger of its
/// hate logit and its negated not-hate logit (`reward/nsfw.py`). An implementation returns that figure, or one with the
/// same meaning: the higher, the worse.
#[async_trait]
pub trait NsfwClassifier: Debug + Send + Sync + 'static {
    /// Returns one score for each text, in order.
    async fn scores(&self, texts: &[String]) -> Result<Vec<f32>, Error>;
}

/// Returns 0 for a score above the bound, or one that is no number, and 1 for any other.
#[must_use]
pub fn nsfw_mask(score: f32, bound: f32) -> f32 {
    if score <= bound { 1.0 } else { 0.0 }
}

/// The list of [`WordList::small`].
const SMALL: &str = include_str!("nsfw_words.txt");

/// The small stand-in: a list of words, of which each condemns a text. It knows nothing of meaning; its verdicts are not
/// those of the validators' model. [`Default`] has no words; [`small`](Self::small) has some.
#[derive(Clone, Debug, Default)]
pub struct WordList {
    words: HashSet<String>,
}

impl WordList {
    /// Makes a classifier of a list of words; case does not count.
    pub fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self { words: words.into_iter().map(str::to_lowercase).collect() }
    }

    /// Makes a classifier of a small list of English swear words and insults, which comes with this crate. It finds what is
    /// plainly rude; hate in decent words passes, and so does everything in other languages.
    ///
    /// # Examples
    /// ```
    /// use idiolect_validator::mask::WordList;
    ///
    /// let words = WordList::small();
    /// assert_eq!(words.score("What a shitty question!"), 1.0);
    /// assert_eq!(words.score("Leaves make sugar out of light."), -1.0);
    /// ```
    #[must_use]
    pub fn small() -> Self {
        Self::of_lines(SMALL)
    }

    /// Makes a classifier of a text with a word on each line; blank lines and lines that begin with `#` are passed over.
    #[must_use]
    pub fn of_lines(lines: &str) -> Self {
        Self::new(lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')))
    }

    /// Returns 1 for a text with a listed word, -1 for any other.
    #[must_use]
    pub fn score(&self, text: &str) -> f32 {
        let text = text.to_lowercase();
        let mut words = text.split(|c: char| !c.is_alphanumeric());
        if words.any(|word| self.words.contains(word)) { 1.0 } else { -1.0 }
    }
}

#[async_trait]
impl NsfwClassifier for WordList {
    async fn scores(&self, texts: &[String]) -> Result<Vec<f32>, Error> {
        Ok(texts.iter().map(|text| self.score(text)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_small_list_passes_decent_texts() {
        let words = WordList::small();
        assert!(words.words.len() > 20 && words.words.iter().all(|word| word.chars().all(char::is_alphanumeric)));
        for decent in
            ["", "Scunthorpe is a town.", "A class of assets, in Essex and Sussex.", "The rooster and the hen."]
        {
            assert_eq!(words.score(decent), -1.0, "{decent}");
        }
        assert_eq!(words.score("Oh, FUCK: it rains"), 1.0);
    }

    #[test]
    fn lists_may_have_remarks_and_blank_lines() {
        let words = WordList::of_lines("# Mine.\n\n  Badword \r\nother\n");
        assert_eq!(["a badword", "others", "OTHER!", "mine"].map(|text| words.score(text)), [1.0, -1.0, 1.0, -1.0]);
    }
}
