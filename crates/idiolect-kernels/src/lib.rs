//! CPU kernels for language models and encoders.

pub mod scan;
mod activations;
mod bytes;
mod dense;
mod format;
mod matrix;
mod product;
mod team;
mod tier;
mod tile;

pub use activations::Activations;
pub use dense::{Epilogue, LayerNorm, PackedF32, PositionBias, Rows, attend_within_texts};
pub use format::Format;
pub use matrix::{Matrix, PackError, Packer};
pub use team::Team;
pub use tier::{Tier, UnknownTier};
