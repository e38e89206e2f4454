//! The seam between serving and computing: what the worker needs of a model.
//!
//! An engine turns tokens into logits. It knows nothing of text, sampling, requests or deadlines, so that another
//! set of kernels can take its place.

#[cfg(test)]
mod checks;
mod llama;
mod params;
mod rope;
mod tensor;

use crate::error::LoadError;

pub(crate) use llama::Llama;
pub(crate) use params::{Activation, LayerParams, Pairs, Params, SUPPORTED, Size, inverse_root, root};
pub(crate) use rope::{RopeSpec, Scaling};
pub(crate) use tensor::Tensors;

/// Why the engine stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The caller said not to go on.
    #[error("interrupted")]
    Interrupted,
    /// The weights or the activations ran over.
    #[error("the model computed a value that is no number")]
    NotFinite,
    /// The device refused, or ran out of memory.
    #[error("the device failed: {0}")]
    Device(String),
    /// More tokens than the sequence was given room for, or a token that the vocabulary does not have.
    #[error("{0}")]
    Misuse(&'static str),
}

/// A model that computes logits.
pub(crate) trait Engine: std::fmt::Debug + Send + Sync + 'static {
    /// Length of a row of logits.
    fn vocabulary(&self) -> usize;

    /// Tokens that a sequence may have.
    fn context(&self) -> usize;

    /// Bytes that the keys and values of one token take.
    fn kv_bytes_per_token(&self) -> u64;

    /// Runs `work` where the engine's threads are, so that the calls below and the caller's own loops use them.
    fn within(&self, work: &mut (dyn FnMut() + Send));

    /// Computes a prompt for `slots` continuations of at most `room` tokens each. Asks `go_on` every fraction of a second.
    fn start(
        &self,
        prompt: &[u32],
        slots: usize,
        room: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Box<dyn Session + '_>, EngineError>;

    /// Computes a text, and gives the logits after each token from position `from` on.
    fn rows(
        &self,
        tokens: &[u32],
        from: usize,
        go_on: &mut dyn FnMut() -> bool,
        sink: &mut dyn FnMut(&[f32]),
    ) -> Result<(), EngineError>;
}

/// A prompt with its growing continuations.
pub(crate) trait Session {
    /// Returns the newest logits: after [`Engine::start`] one row, which all slots share; after [`step`](Self::step) one
    /// row for each entry of the batch.
    fn logits(&self) -> &[f32];

    /// Appends one token to each of the given slots. The others have ended: an engine may refuse them from here on.
    fn step(&mut self, batch: &[(usize, u32)]) -> Result<(), EngineError>;
}

/// Starts the threads of an engine.
fn pool(threads: usize) -> Result<rayon::ThreadPool, LoadError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("engine-{i}"))
        .build()
        .map_err(|e| LoadError::Thread(std::io::Error::other(e)))
}
