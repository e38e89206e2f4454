//! Embeddings that are kept from run to run.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use idiolect_backend::{Embedder, Embedding, Error};
use idiolect_uniqueness::lexical::fnv1a;

/// Embeddings of one encoder by their texts, in memory and, where a folder is named, in a file there: for each text the 64-bit
/// FNV-1a hash of its bytes and its values, all little-endian.
#[derive(Debug)]
pub struct EmbeddingCache {
    file: Option<(PathBuf, File)>,
    known: HashMap<u64, Embedding>,
}

/// Why there are no embeddings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The file cannot be read or written.
    #[error("{path} cannot be used to keep embeddings")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The encoder failed.
    #[error("the replies cannot be encoded")]
    Encoder(#[from] Error),
}

/// Texts that are encoded together.
const AT_A_TIME: usize = 16;

impl EmbeddingCache {
    /// Opens the cache of an encoder in a folder, making both where they are not there. What a run that broke off left half written
    /// is cut off. Without a folder nothing is kept.
    ///
    /// # Errors
    /// [`CacheError::Io`].
    pub fn open(folder: Option<&Path>, encoder: &dyn Embedder) -> Result<Self, CacheError> {
        let Some(folder) = folder else { return Ok(Self { file: None, known: HashMap::new() }) };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let name: String = encoder.name().chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
        let path = folder.join(format!("{name}.{}.bin", encoder.dimensions()));
        let open = || -> io::Result<Self> {
            std::fs::create_dir_all(folder)?;
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let bytes = std::fs::read(&path)?;
            let row = 8 + 4 * encoder.dimensions();
            let mut known = HashMap::new();
            for row in bytes.chunks_exact(row) {
                let Some((hash, values)) = row.split_first_chunk() else { continue };
                let (values, _) = values.as_chunks();
                known.insert(u64::from_le_bytes(*hash), values.iter().copied().map(f32::from_le_bytes).collect());
            }
            file.set_len((bytes.len() / row * row) as u64)?;
            Ok(Self { file: Some((path.clone(), file)), known })
        };
        open().map_err(|source| CacheError::Io { path: path.clone(), source })
    }

    /// Forgets all once it is more than `most` texts; where they are kept in a file, nothing.
    pub fn forget_beyond(&mut self, most: usize) {
        if self.known.len() > most && self.file.is_none() {
            self.known.clear();
        }
    }

    /// Returns the embeddings of texts, in order. Those that are not known are encoded, and kept as soon as they are there;
    /// `progress` is told how many are done, of how many.
    ///
    /// # Errors
    /// Any [`CacheError`].
    pub async fn embed(
        &mut self,
        encoder: &dyn Embedder,
        texts: &[&str],
        progress: &mut (dyn FnMut(usize, usize) + Send),
    ) -> Result<Vec<Embedding>, CacheError> {
        let hashes: Vec<u64> = texts.iter().map(|text| fnv1a(text.bytes())).collect();
        let mut unknown: Vec<(u64, String)> = Vec::new();
        let mut wanted = std::collections::HashSet::new();
        for (&hash, text) in hashes.iter().zip(texts) {
            if !self.known.contains_key(&hash) && wanted.insert(hash) {
                unknown.push((hash, (*text).to_owned()));
            }
        }
        for (nth, some) in unknown.chunks(AT_A_TIME).enumerate() {
            progress(nth * AT_A_TIME, unknown.len());
            let texts: Vec<String> = some.iter().map(|(_, text)| text.clone()).collect();
            let embeddings = encoder.embed(&texts).await?;
            if embeddings.len() != some.len() || embeddings.iter().any(|e| e.len() != encoder.dimensions()) {
                let reason = format!(
                    "{} embeddings for {} texts, expected as many of {} values",
                    embeddings.len(),
                    some.len(),
                    encoder.dimensions()
                );
                return Err(Error::Protocol { backend: encoder.name().to_owned(), reason }.into());
            }
            let mut bytes = Vec::new();
            for ((hash, _), embedding) in some.iter().zip(embeddings) {
                bytes.extend(hash.to_le_bytes());
                bytes.extend(embedding.iter().flat_map(|value| value.to_le_bytes()));
                self.known.insert(*hash, embedding);
            }
            if let Some((path, file)) = &mut self.file {
                file.write_all(&bytes).map_err(|source| CacheError::Io { path: path.clone(), source })?;
            }
        }
        progress(unknown.len(), unknown.len());
        Ok(hashes.iter().filter_map(|hash| self.known.get(hash).cloned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use idiolect_backend::HashEmbedder;

    use super::*;

    #[derive(Debug)]
    struct Counting {
        inner: HashEmbedder,
        n_texts: AtomicUsize,
    }

    #[async_trait::async_trait]
    impl Embedder for Counting {
        fn name(&self) -> &str {
            "org/counting encoder"
        }

        fn dimensions(&self) -> usize {
            self.inner.dimensions()
        }

        fn max_tokens(&self) -> usize {
            self.inner.max_tokens()
        }

        async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
            self.n_texts.fetch_add(texts.len(), Ordering::SeqCst);
            self.inner.embed(texts).await
        }
    }

    #[tokio::test]
    async fn what_is_known_is_not_encoded_again_and_half_a_row_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let encoder = Counting { inner: HashEmbedder::new(8), n_texts: AtomicUsize::new(0) };
        let texts = ["one", "two", "one", "three"];
        let embed = async |folder: Option<&Path>, texts: &[&str]| {
            let mut cache = EmbeddingCache::open(folder, &encoder).unwrap();
            cache.embed(&encoder, texts, &mut |_, _| {}).await.unwrap()
        };
        let first = embed(Some(dir.path()), &texts).await;
        assert_eq!((first.len(), encoder.n_texts.load(Ordering::SeqCst)), (4, 3));
        assert_eq!(first[0], first[2]);
        let path = dir.path().join("org_counting_encoder.8.bin");
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 3 * 40);
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        assert_eq!(embed(Some(dir.path()), &texts).await, first);
        assert_eq!(encoder.n_texts.load(Ordering::SeqCst), 4);
        assert_eq!(std::fs::read(&path).unwrap().len(), 3 * 40);
        assert_eq!(embed(None, &texts).await, first);
        assert_eq!(encoder.n_texts.load(Ordering::SeqCst), 7);
        std::fs::create_dir(dir.path().join("taken")).unwrap();
        std::fs::write(dir.path().join("taken/file"), "").unwrap();
        let error = EmbeddingCache::open(Some(&dir.path().join("taken/file")), &encoder).unwrap_err().to_string();
        assert!(error.contains("org_counting_encoder.8.bin cannot be used"), "{error}");
    }
}
