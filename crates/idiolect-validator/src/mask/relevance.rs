use std::sync::Arc;

use idiolect_backend::{Embedder, Embedding, Error};
use idiolect_uniqueness::vectors::dot;

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
        let (base, embeddings) = embed(&*self.mpnet, prompt, replies).await?;
        let bert = bert_scores(&*self.bert, &self.windows, prompt, replies).await?;
        let scores = bert.into_iter().zip(mpnet_scores(&base, &embeddings)).map(|(bert, mpnet)| {
            let mask = reaches(bert, self.bounds.bert) * reaches(mpnet, self.bounds.mpnet);
            RelevanceScore { bert, mpnet, mask }
        });
        Ok(scores.collect())
    }
}

/// Returns 1 for a score that reaches its bound and 0 for any other, also for one that is no number.
pub(crate) fn reaches(score: f32, bound: f32) -> f32 {
    f32::from(u8::from(score >= bound))
}

/// Encodes a prompt and the replies to it; no replies, no prompt.
pub(crate) async fn embed(
    encoder: &dyn Embedder,
    prompt: &str,
    replies: &[String],
) -> Result<(Embedding, Vec<Embedding>), Error> {
    if replies.is_empty() {
        return Ok((Vec::new(), Vec::new()));
    }
    let mut embeddings = encoder.embed(&with(prompt, replies)).await?;
    check(encoder, &embeddings, replies.len() + 1)?;
    let replies = embeddings.split_off(1);
    Ok((embeddings.pop().unwrap_or_default(), replies))
}

/// Returns the scores of the BERT part.
pub(crate) async fn bert_scores(
    bert: &dyn Embedder,
    windows: &WordPiece,
    prompt: &str,
    replies: &[String],
) -> Result<Vec<f32>, Error> {
    if replies.is_empty() {
        return Ok(Vec::new());
    }
    let means = windowed(bert, windows, &with(prompt, replies)).await?;
    let (prompt, replies) = means.split_first().ok_or_else(|| odd_count(bert.name(), 0, 1))?;
    Ok(replies.iter().map(|reply| negative_rmse(prompt, reply)).collect())
}

/// Returns the scores of the mpnet part.
pub(crate) fn mpnet_scores(prompt: &[f32], replies: &[Embedding]) -> Vec<f32> {
    replies.iter().map(|reply| cosine(prompt, reply).abs()).collect()
}

fn with(prompt: &str, replies: &[String]) -> Vec<String> {
    std::iter::once(prompt.to_owned()).chain(replies.iter().cloned()).collect()
}

/// Embeds texts window by window; the mean of the windows is not normalised again.
async fn windowed(bert: &dyn Embedder, tokenizer: &WordPiece, texts: &[String]) -> Result<Vec<Embedding>, Error> {
    let windows: Vec<Vec<String>> = texts.iter().map(|text| tokenizer.windows(text, bert.max_tokens())).collect();
    let embeddings = bert.embed(&windows.concat()).await?;
    check(bert, &embeddings, windows.iter().map(Vec::len).sum())?;
    let mut embeddings = embeddings.into_iter();
    Ok(windows.iter().map(|of_text| mean(embeddings.by_ref().take(of_text.len()))).collect())
}

fn check(encoder: &dyn Embedder, embeddings: &[Embedding], expected: usize) -> Result<(), Error> {
    if embeddings.len() != expected {
        return Err(odd_count(encoder.name(), embeddings.len(), expected));
    }
    if let Some(odd) = embeddings.iter().find(|embedding| embedding.len() != encoder.dimensions()) {
        let reason = format!("an embedding has {} values, expected {}", odd.len(), encoder.dimensions());
        return Err(Error::Protocol { backend: encoder.name().to_owned(), reason });
    }
    Ok(())
}

pub(crate) fn odd_count(name: &str, found: usize, expected: usize) -> Error {
    Error::Protocol {
        backend: name.to_owned(),
        reason: format!("{found} answers, expected one for each of {expected} texts"),
    }
}

/// The mean of vectors of one length; nothing of no vectors.
fn mean(mut parts: impl Iterator<Item = Embedding>) -> Embedding {
    let mut sum = parts.next().unwrap_or_default();
    let mut n = 1.0;
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        n += 1.0;
    }
    sum.iter_mut().for_each(|s| *s /= n);
    sum
}

fn negative_rmse(a: &[f32], b: &[f32]) -> f32 {
    let squares: f32 = a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum();
    -(squares / a.len() as f32).sqrt()
}

/// Returns 0 where a vector has no direction.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms == 0.0 { 0.0 } else { dot(a, b) / norms }
}
