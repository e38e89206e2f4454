//! The seam between serving and computing: what the worker needs of a model.
//!
//! An engine turns tokens into logits. It knows nothing of text, sampling, requests or deadlines, so that another
//! set of kernels can take its place.

mod blocks;
#[cfg(test)]
pub(crate) mod checks;
#[cfg(test)]
mod families;
#[cfg(test)]
mod invariants;
mod params;
mod rope;
mod slots;
mod tensor;
mod transformer;

use idiolect_kernels::Team;

pub(crate) use params::{Activation, LayerParams, Pairs, Params, SUPPORTED, Size, inverse_root, root};
pub(crate) use rope::{Rope, RopeSpec, Scaling};
pub(crate) use tensor::{TensorSettings, Tensors};
pub(crate) use transformer::{Settings, Transformer};

/// Why the engine stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The device refused, or ran out of memory.
    #[error("the device failed: {0}")]
    Device(String),
    /// More tokens than a sequence may have, or a token that the vocabulary does not have.
    #[error("{0}")]
    Misuse(&'static str),
    /// One sequence cannot grow.
    #[error("{reason}")]
    Sequence { seq: Seq, reason: String },
}

impl EngineError {
    /// Notes which sequence this concerns, if that is known now and was not.
    fn of(self, seq: Option<Seq>) -> Self {
        match (self, seq) {
            (known @ Self::Sequence { .. }, _) => known,
            (other, Some(seq)) => Self::Sequence { seq, reason: other.to_string() },
            (other, None) => other,
        }
    }
}

/// A sequence of an engine, from [`Engine::begin`] or [`Engine::fork`] to [`Engine::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Seq(pub(crate) u32);

/// Which rows of logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    Nothing,
    /// Those after the last token.
    Last,
    /// Those after each token.
    All,
}

/// Tokens that a sequence grows by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feed<'a> {
    pub(crate) seq: Seq,
    pub(crate) tokens: &'a [u32],
    pub(crate) wants: Wants,
}

/// In what portions an engine takes memory for keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portion {
    /// Tokens of a portion.
    pub(crate) tokens: usize,
    /// Bytes of a portion.
    pub(crate) bytes: u64,
}

/// A model that computes logits for any number of sequences at a time.
///
/// Who uses it sees to it that its sequences never hold more memory than the engine was given.
pub(crate) trait Engine: std::fmt::Debug + Send + 'static {
    /// Length of a row of logits.
    fn vocabulary(&self) -> usize;

    /// Tokens that a sequence may have.
    fn context(&self) -> usize;

    /// How memory for keys and values is taken.
    fn portion(&self) -> Portion;

    /// The threads that compute, for the caller's own loops.
    fn team(&self) -> &Team;

    /// Begins a sequence that will grow by `prompt` first; its forks grow by at most `room` tokens each. Returns how many
    /// of the first `known` tokens of the prompt need not be fed, as their keys and values are there.
    fn begin(&mut self, prompt: &[u32], known: usize, room: usize) -> Result<(Seq, usize), EngineError>;

    /// Makes a sequence that holds the same tokens, those of a prompt that was computed and no more. It shares their memory.
    fn fork(&mut self, seq: Seq) -> Result<Seq, EngineError>;

    /// Lets the forks of a sequence's prompt grow by at most `room` tokens each: more than was said when it began.
    fn allow(&mut self, seq: Seq, room: usize) -> Result<(), EngineError>;

    /// Ends a sequence.
    fn release(&mut self, seq: Seq);

    /// Computes tokens of several sequences, each of which is there once. All forks that one sequence has are fed or
    /// released from one call to the next.
    ///
    /// After an error the sequences fed are good for nothing but their release. But where it is that of one sequence
    /// ([`EngineError::Sequence`]), this holds for those of that sequence's prompt alone: nothing was computed of the others,
    /// which may be fed the same again when these are released.
    fn forward(&mut self, feeds: &[Feed<'_>]) -> Result<(), EngineError>;

    /// Returns the rows of logits that the last [`forward`](Self::forward) was asked for, in the order of its feeds.
    /// Rows of which any value is no number hold one that shows it.
    fn logits(&self) -> &[f32];

    /// Forgets all sequences and everything kept, after a panic.
    fn reset(&mut self);

    /// Says whether the engine keeps what it computes of a sequence's prompt, for prompts that begin alike.
    fn keeps(&self, _seq: Seq) -> bool {
        false
    }

    /// How many tokens of prompts the engine keeps beyond their sequences.
    fn kept_tokens(&self) -> usize {
        0
    }
}
