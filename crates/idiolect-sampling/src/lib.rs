//! Drawing tokens from logits: a sampler chain as data, deterministic for each candidate.

#[cfg(feature = "sampler")]
mod candidates;
#[cfg(feature = "sampler")]
mod chain;
#[cfg(feature = "constrained")]
mod constrained;
mod constraint;
#[cfg(feature = "sampler")]
mod cut;
#[cfg(feature = "sampler")]
mod dry;
#[cfg(feature = "sampler")]
mod history;
#[cfg(feature = "sampler")]
mod phrases;
#[cfg(feature = "sampler")]
mod random;
#[cfg(feature = "sampler")]
mod sampler;
mod spec;
mod stage;
#[cfg(all(test, feature = "sampler"))]
mod tests;
#[cfg(feature = "sampler")]
mod vocabulary;

#[cfg(feature = "sampler")]
pub use chain::Chain;
pub use constraint::{Constraint, ConstraintSpec};
#[cfg(feature = "sampler")]
pub use random::Stream;
#[cfg(feature = "sampler")]
pub use sampler::{DrawError, Drawn, Sampler};
pub use spec::{ChainError, ChainSpec, Preset};
pub use stage::{
    Ban, Dry, FrequencyPresence, LogitBias, MinP, Mirostat, MirostatVersion, Repetition, Scope, Stage, StageKind,
    Temperature, TopK, TopNSigma, TopP, Typical, Xtc,
};
#[cfg(feature = "sampler")]
pub use vocabulary::Vocabulary;
