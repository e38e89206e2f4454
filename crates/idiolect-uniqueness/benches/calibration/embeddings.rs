//! Distances between replies, with embeddings that are kept from run to run where a folder is named.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use idiolect_backend::{Embedder as _, Embedding};
use idiolect_backend_candle::SentenceEncoder;
use idiolect_uniqueness::lexical::fnv1a;
use idiolect_uniqueness::report::pairwise_distances;

use super::Failure;

/// Returns the distances between all replies to each prompt, times `scale`.
pub(crate) fn distances(
    encoder: &str,
    scale: f32,
    prompts: &[Vec<(String, String)>],
    folder: Option<&Path>,
) -> Result<Vec<Vec<Vec<f32>>>, Failure> {
    let model = SentenceEncoder::load(&idiolect_models::testing::model(encoder)?.dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A hash of the text, and its embedding; the last one may be cut off.
    let row = 8 + 4 * model.dimensions();
    let file = folder.map(|folder| folder.join(format!("{encoder}.bin")));
    let mut known: HashMap<u64, Embedding> = HashMap::new();
    if let Some(file) = file.as_deref().filter(|file| file.exists()) {
        let bytes = std::fs::read(file)?;
        for row in bytes.chunks_exact(row) {
            let (hash, values) = row.split_at(8);
            let values = values.chunks_exact(4).map(|v| f32::from_le_bytes([v[0], v[1], v[2], v[3]]));
            known.insert(u64::from_le_bytes(hash.try_into()?), values.collect());
        }
        let whole = bytes.len() / row * row;
        OpenOptions::new().write(true).open(file)?.set_len(whole as u64)?;
    }
    let mut of_prompt = |replies: &Vec<(String, String)>| -> Result<_, Failure> {
        let key = |text: &str| fnv1a(text.bytes());
        let unknown: Vec<String> =
            replies.iter().map(|(_, text)| text.clone()).filter(|text| !known.contains_key(&key(text))).collect();
        for some in unknown.chunks(16) {
            let embeddings = runtime.block_on(model.embed(some))?;
            let mut bytes = Vec::with_capacity(some.len() * row);
            for (text, embedding) in some.iter().zip(embeddings) {
                if known.contains_key(&key(text)) {
                    continue;
                }
                bytes.extend(key(text).to_le_bytes());
                bytes.extend(embedding.iter().flat_map(|v| v.to_le_bytes()));
                known.insert(key(text), embedding);
            }
            if let Some(file) = &file {
                OpenOptions::new().create(true).append(true).open(file)?.write_all(&bytes)?;
            }
        }
        let embeddings: Vec<Embedding> = replies.iter().map(|(_, text)| known[&key(text)].clone()).collect();
        let mut distances = pairwise_distances(&embeddings);
        distances.iter_mut().flatten().for_each(|distance| *distance *= scale);
        Ok(distances)
    };
    prompts.iter().map(&mut of_prompt).collect()
}
