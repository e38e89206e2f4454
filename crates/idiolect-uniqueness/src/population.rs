//! What is known of the other miners' replies, whom we never see.

use idiolect_backend::Embedding;

use crate::history::ReplyHistory;
use crate::vectors::{IsOver, NO_LIMIT, OutOfTime, Vectors};

/// Recorded or sibling replies to the same prompt that stand in for the unseen rivals.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    encoder: String,
    labels: Vec<String>,
    vectors: Vectors,
}

impl Panel {
    /// Makes an empty panel for embeddings of one encoder.
    #[must_use]
    pub fn new(encoder: impl Into<String>, dimensions: usize) -> Self {
        Self { encoder: encoder.into(), labels: Vec::new(), vectors: Vectors::new(dimensions) }
    }

    /// Adds a rival's reply, and says whether it could be: an embedding of another size or without a direction is left out.
    pub fn push(&mut self, label: impl Into<String>, embedding: &Embedding) -> bool {
        let taken = self.vectors.push(embedding);
        if taken {
            self.labels.push(label.into());
        }
        taken
    }

    /// Returns the encoder's name.
    #[must_use]
    pub fn encoder(&self) -> &str {
        &self.encoder
    }

    /// Returns how many rivals there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Says whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Returns the nearest rival's label and distance.
    #[must_use]
    pub fn nearest(&self, embedding: &[f32]) -> Option<(&str, f32)> {
        self.search(embedding, 1, NO_LIMIT).ok()?.next()
    }

    /// Returns the nearest `k` rivals, the nearest first; stops as soon as `is_over` says so.
    pub(crate) fn search(
        &self,
        embedding: &[f32],
        k: usize,
        is_over: IsOver<'_>,
    ) -> Result<impl Iterator<Item = (&str, f32)>, OutOfTime> {
        let found = self.vectors.search(embedding, k, |_| true, is_over)?;
        Ok(found.into_iter().filter_map(|(index, distance)| Some((self.labels.get(index)?.as_str(), distance))))
    }
}

/// Embeddings of two encoders were about to be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("embeddings of {found} cannot be compared with those of {expected}")]
pub struct EncoderMismatch {
    /// The candidates' encoder.
    pub expected: String,
    /// The other one.
    pub found: String,
}

/// Everything that candidates for one prompt are compared with, besides each other.
#[derive(Clone, Copy, Debug)]
pub struct Population<'a> {
    pub(crate) encoder: &'a str,
    pub(crate) panel: Option<&'a Panel>,
    pub(crate) elsewhere: Option<&'a Panel>,
    pub(crate) quoted: Option<&'a Panel>,
    pub(crate) history: Option<&'a ReplyHistory>,
    pub(crate) prompt_hash: &'a str,
    pub(crate) n_rivals: usize,
    pub(crate) plain: &'a [usize],
}

/// Validators ask 50 miners at a time.
const N_RIVALS: usize = 49;

impl<'a> Population<'a> {
    /// Makes a population of which nothing is known, in an encoder's space.
    #[must_use]
    pub const fn new(encoder: &'a str) -> Self {
        Self {
            encoder,
            panel: None,
            elsewhere: None,
            quoted: None,
            history: None,
            prompt_hash: "",
            n_rivals: N_RIVALS,
            plain: &[],
        }
    }

    /// Adds rivals' replies to the same prompt.
    ///
    /// # Errors
    /// [`EncoderMismatch`] when they come from another encoder.
    pub fn with_panel(self, panel: &'a Panel) -> Result<Self, EncoderMismatch> {
        self.check(panel.encoder())?;
        Ok(Self { panel: Some(panel), ..self })
    }

    /// Adds rivals' replies to other prompts. They are kept away from, and say nothing of how near rivals are this time.
    ///
    /// # Errors
    /// [`EncoderMismatch`] when they come from another encoder.
    pub fn with_elsewhere(self, panel: &'a Panel) -> Result<Self, EncoderMismatch> {
        self.check(panel.encoder())?;
        Ok(Self { elsewhere: Some(panel), ..self })
    }

    /// Adds the winning replies that the prompt quotes, which others gave to earlier prompts. They count as those of
    /// [`with_elsewhere`](Self::with_elsewhere).
    ///
    /// # Errors
    /// [`EncoderMismatch`] when they come from another encoder.
    pub fn with_quoted(self, panel: &'a Panel) -> Result<Self, EncoderMismatch> {
        self.check(panel.encoder())?;
        Ok(Self { quoted: Some(panel), ..self })
    }

    /// Adds our own earlier replies. Those to the same prompt (equal, non-empty hash) also stand in for rivals with the
    /// same model.
    ///
    /// # Errors
    /// [`EncoderMismatch`] when they come from another encoder.
    pub fn with_history(self, history: &'a ReplyHistory, prompt_hash: &'a str) -> Result<Self, EncoderMismatch> {
        self.check(history.encoder())?;
        Ok(Self { history: Some(history), prompt_hash, ..self })
    }

    /// Sets how many others answer the same prompt, seen or not; 49 unless told, as validators ask 50 miners at a time.
    #[must_use]
    pub const fn with_rivals(self, n_rivals: usize) -> Self {
        Self { n_rivals, ..self }
    }

    /// Says which candidates, by index, are plain answers: made of the prompt as it came, as rivals make theirs. Where no rival is
    /// seen, how near the others of their model are to them tells how much answers to the prompt differ, and so how likely all are to be masked.
    #[must_use]
    pub const fn with_plain(self, plain: &'a [usize]) -> Self {
        Self { plain, ..self }
    }

    /// Returns the encoder's name.
    #[must_use]
    pub const fn encoder(&self) -> &'a str {
        self.encoder
    }

    fn check(&self, found: &str) -> Result<(), EncoderMismatch> {
        if found == self.encoder {
            return Ok(());
        }
        Err(EncoderMismatch { expected: self.encoder.to_owned(), found: found.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoders_are_never_mixed() {
        let panel = Panel::new("mpnet", 2);
        let error = Population::new("minilm").with_panel(&panel).unwrap_err();
        assert_eq!(error.to_string(), "embeddings of mpnet cannot be compared with those of minilm");
        let history = ReplyHistory::in_memory("mpnet", 2, 1);
        assert!(Population::new("minilm").with_history(&history, "").is_err());
        assert!(Population::new("minilm").with_quoted(&panel).is_err());
        assert!(Population::new("minilm").with_elsewhere(&panel).is_err());
        assert!(Population::new("mpnet").with_history(&history, "").unwrap().with_panel(&panel).is_ok());
    }

    #[test]
    fn labels_follow_their_rows() {
        let mut panel = Panel::new("e", 2);
        assert!(panel.push("a", &vec![1.0, 0.0]));
        assert!(!panel.push("bad", &vec![0.0, 0.0]));
        assert!(panel.push("b", &vec![0.0, 1.0]));
        assert_eq!(panel.nearest(&[0.1, 1.0]).unwrap().0, "b");
        assert_eq!(panel.len(), 2);
        assert_eq!(panel.nearest(&[f32::NAN, 0.0]), None);
    }
}
