use std::sync::Arc;

use idiolect_backend::{Embedder, Embedding, Error};

use super::WordPiece;
use crate::profile::RelevanceBounds;

/// The relevance mask of both versions (`reward/relevance.py`): a BERT part and an mpnet part.
///
/// Equal to the recordings `relevance.json` (both parts with MiniLM in place of the two encoders) and
/// `relevance_mpnet.json`.
#[derive(Clone, Debug)]
pub struct Relevance {
    /// Mean-pooled bert-base-uncased in the original.
    pub bert: Arc<dyn Embedder>,
    /// Cuts texts into the BERT encoder's windows.
    pub windows: WordPiece,
    /// all-mpnet-base-v2 in the original.
    pub mpnet: Arc<dyn Embedder>,
    /// The bounds of both parts.
    pub bounds: RelevanceBounds,
}

/// What the mask was computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RelevanceScore {
    /// Minus the root mean square of the difference of the two texts' embeddings.
    pub bert: f32,
    /// Absolute cosine of the two texts' embeddings; 0 where one has no direction.
    pub mpnet: f32,
    /// 1 where both reach their bounds, else 0; 0 also where a score is no number.
    pub mask: f32,
}

impl Relevance {
    /// Scores replies to one prompt.
    ///
    /// # Errors
    /// What the encoders return, and [`Error::Protocol`] where embeddings of one encoder differ in length.
    pub async fn scores(&self, prompt: &str, replies: &[String]) -> Result<Vec<RelevanceScore>, Error> {
        if replies.is_empty() {
            return Ok(Vec::new());
        }
        let mut texts = vec![prompt.to_owned()];
        texts.extend_from_slice(replies);
        let short = self.mpnet.embed(&texts).await?;
        let long = windowed(&*self.bert, &self.windows, &texts).await?;
        if short.len() != texts.len() {
            return Err(odd(self.mpnet.name(), "not one embedding for each text"));
        }
        let mut scores = Vec::with_capacity(replies.len());
        for i in 1..texts.len() {
            let bert = negative_rmse(&long[0], &long[i]).ok_or_else(|| odd(self.bert.name(), "lengths differ"))?;
            let mpnet = cosine(&short[0], &short[i]).ok_or_else(|| odd(self.mpnet.name(), "lengths differ"))?.abs();
            let passed = bert >= self.bounds.bert && mpnet >= self.bounds.mpnet;
            scores.push(RelevanceScore { bert, mpnet, mask: f32::from(u8::from(passed)) });
        }
        Ok(scores)
    }
}

/// Embeds texts window by window; the mean of the windows is not normalised again.
pub(crate) async fn windowed(
    bert: &dyn Embedder,
    tokenizer: &WordPiece,
    texts: &[String],
) -> Result<Vec<Embedding>, Error> {
    let windows: Vec<Vec<String>> = texts.iter().map(|text| tokenizer.windows(text, bert.max_tokens())).collect();
    let flat: Vec<String> = windows.iter().flatten().cloned().collect();
    let mut embeddings = bert.embed(&flat).await?.into_iter();
    let mut means = Vec::with_capacity(texts.len());
    for of_text in &windows {
        let parts: Vec<Embedding> = embeddings.by_ref().take(of_text.len()).collect();
        if parts.len() != of_text.len() {
            return Err(odd(bert.name(), "not one embedding for each text"));
        }
        means.push(mean(&parts).ok_or_else(|| odd(bert.name(), "lengths differ"))?);
    }
    Ok(means)
}

fn odd(encoder: &str, reason: &str) -> Error {
    Error::Protocol { backend: encoder.to_owned(), reason: reason.to_owned() }
}

fn mean(parts: &[Embedding]) -> Option<Embedding> {
    let mut sum = parts.first()?.clone();
    for part in &parts[1..] {
        if part.len() != sum.len() {
            return None;
        }
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
    let n = parts.len() as f32;
    sum.iter_mut().for_each(|s| *s /= n);
    Some(sum)
}

pub(crate) fn negative_rmse(a: &[f32], b: &[f32]) -> Option<f32> {
    if a.len() != b.len() || a.is_empty() {
        return None;
    }
    let squares: f32 = a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum();
    Some(-(squares / a.len() as f32).sqrt())
}

pub(crate) fn cosine(a: &[f32], b: &[f32]) -> Option<f32> {
    if a.len() != b.len() {
        return None;
    }
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    Some(if norms == 0.0 { 0.0 } else { dot(a, b) / norms })
}
