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

/// The small stand-in: a list of words, of which each condemns a text. It knows nothing of meaning; its verdicts are not
/// those of the validators' model.
#[derive(Clone, Debug, Default)]
pub struct WordList {
    words: HashSet<String>,
}

impl WordList {
    /// Makes a classifier of a list of words; case does not count.
    pub fn new<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        Self { words: words.into_iter().map(str::to_lowercase).collect() }
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
