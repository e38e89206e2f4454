//! What commands over recorded replies share.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ArgMatches;
use idiolect_arena::{AskedPrompt, EmbeddingCache};
use idiolect_backend::{Embedder, Embedding};
use idiolect_miner::progress::Counter;

/// Reads what was asked, by `--prompts`; nothing where no file is named.
///
/// # Errors
/// Where the file cannot be read.
pub(crate) fn asked(matches: &ArgMatches) -> anyhow::Result<Vec<AskedPrompt>> {
    let Some(path) = matches.get_one::<PathBuf>("prompts") else { return Ok(Vec::new()) };
    AskedPrompt::open(path).with_context(|| format!("cannot use {}", path.display()))
}

/// Encodes texts, with a progress bar; what a folder has of an earlier run is taken from there.
///
/// # Errors
/// Where the folder cannot be used, or the encoder fails.
pub(crate) async fn embed(
    encoder: &dyn Embedder,
    texts: &[&str],
    folder: Option<&Path>,
) -> anyhow::Result<Vec<Embedding>> {
    let mut cache = EmbeddingCache::open(folder, encoder)?;
    let bar = Counter::new("encoding replies");
    let embeddings = cache.embed(encoder, texts, &mut |done, all| bar.at(done, all)).await;
    bar.close();
    let embeddings = embeddings?;
    if embeddings.len() != texts.len() {
        bail!("{} embeddings for {} texts", embeddings.len(), texts.len());
    }
    Ok(embeddings)
}
