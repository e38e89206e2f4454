//! CPU kernels for language models and encoders.

pub mod limits;
pub mod scan;
mod activations;
mod attention;
mod bytes;
mod dense;
mod encode;
mod format;
mod lanes;
mod matrix;
mod product;
mod rows;
mod team;
mod tier;
mod tile;

pub use activations::Activations;
pub use attention::{BLOCK_TOKENS, KvCache, KvShape, KvType, Rotation, Span, Turn, View, Write};
pub use dense::{Epilogue, LayerNorm, PackedF32, PositionBias, Rows, attend_within_texts};
pub use format::Format;
pub use matrix::{Matrix, PackError, Packer};
pub use rows::{Delta, Gate, add_and_normalise, gated, soft_cap};
pub use team::Team;
pub use tier::{Tier, UnknownTier};
