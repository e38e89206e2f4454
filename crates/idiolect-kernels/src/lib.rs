//! CPU kernels for language models and encoders.

mod team;

pub use team::Team;
