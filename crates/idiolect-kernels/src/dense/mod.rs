//! Dense `f32` layers of sentence encoders: products with packed weights, attention over whole texts, normalisation;
//! and searches among what they give.
//!
//! A row's result does not depend on which other rows are there, how many threads work or how the work is split: every
//! sum is made in the same order. Between processors with different instruction sets the last bits differ.

mod attention;
mod byte_products;
mod dots;
mod gemm;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
mod norm;
mod rows;

pub use attention::{PositionBias, attend_within_texts};
pub use byte_products::{ByteLine, byte_products};
pub use dots::{dot, dot_products};
pub use gemm::{Epilogue, PackedF32};
pub use norm::LayerNorm;
pub use rows::Rows;

#[cfg(test)]
mod tests;
