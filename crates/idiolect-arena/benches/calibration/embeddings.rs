//! Distances between replies.

use std::path::Path;

use idiolect_arena::{EmbeddingCache, Replies};
use idiolect_backend_candle::SentenceEncoder;
use idiolect_uniqueness::report::pairwise_distances;

use super::Failure;

/// Returns the distances between all replies to each prompt, times `scale`.
pub(crate) fn distances(
    encoder: &str,
    scale: f32,
    replies: &Replies,
    folder: Option<&Path>,
) -> Result<Vec<Vec<Vec<f32>>>, Failure> {
    let model = SentenceEncoder::load(&idiolect_models::testing::model(encoder)?.dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut cache = EmbeddingCache::open(folder, &model)?;
    let texts: Vec<&str> = replies.all().iter().map(|reply| reply.text.as_str()).collect();
    let embeddings = runtime.block_on(cache.embed(&model, &texts, &mut |_, _| {}))?;
    let of_prompt = |indices: Vec<usize>| {
        let embeddings: Vec<_> = indices.into_iter().map(|index| embeddings[index].clone()).collect();
        let mut distances = pairwise_distances(&embeddings);
        distances.iter_mut().flatten().for_each(|distance| *distance *= scale);
        distances
    };
    Ok(replies.by_prompt().into_values().map(of_prompt).collect())
}
