//! The contract of a sentence encoder.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::Error;

/// A sentence's place in the encoder's space, l2-normalised. All zeros for a text without tokens.
pub type Embedding = Vec<f32>;

/// A sentence encoder.
///
/// # Contract
/// One embedding for each text, in order, each of [`dimensions`](Self::dimensions) values and unit length. A text's
/// embedding does not depend on the other texts of the call beyond rounding (1e-5). Texts longer than
/// [`max_tokens`](Self::max_tokens) are cut there. Dropping the future stops the work.
#[async_trait]
pub trait Embedder: Debug + Send + Sync + 'static {
    /// Returns the encoder's name; embeddings of different names must never be compared.
    fn name(&self) -> &str;

    /// Returns how many values an embedding has.
    fn dimensions(&self) -> usize;

    /// Returns how many tokens of a text count, special tokens included.
    fn max_tokens(&self) -> usize;

    /// Encodes texts.
    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error>;
}
