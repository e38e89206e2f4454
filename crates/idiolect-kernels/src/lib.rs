//! What a language model or a sentence encoder computes on a CPU, on whatever instructions it has.
//!
//! A [`Matrix`] of weights is packed once from the blocks of a GGUF file, in place of them and in the same number of
//! bytes. [`Activations`] are quantised for it, and [`Matrix::multiply`] shares the product among the threads of a
//! [`Team`]. Sixteen rows of weights are worked on side by side, with up to eight rows of activations for every look at
//! the weights: several sequences that are continued together cost hardly more than one.
//!
//! ```
//! use idiolect_kernels::{Activations, Format, Matrix, Team, Tier};
//!
//! // Blocks of Q8_0: a scale in half precision, here 1.0, and 32 bytes.
//! let blocks: Vec<u8> = (0..64).flat_map(|row| [0x00, 0x3c].into_iter().chain([row; 32])).collect();
//! let matrix = Matrix::pack(Format::Q8_0, 64, 32, &blocks, Tier::detect())?;
//!
//! let team = Team::new(2)?;
//! let mut activations = Activations::default();
//! activations.encode_for(&matrix, &team, &[127.0; 2 * 32]);
//! let mut product = vec![0.0; 2 * 64];
//! matrix.multiply(&team, &activations, &mut product);
//! assert_eq!(product[64 + 3], 3.0 * 127.0 * 32.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Tiers
//!
//! | [`Tier`] | instructions | weight rows in a register |
//! | --- | --- | --- |
//! | `Avx512Vnni` | AVX-512 F, BW, VL and VNNI | 16 |
//! | `AvxVnni` | AVX-VNNI, FMA, F16C | 8 |
//! | `Avx2` | AVX2, FMA, F16C | 8 |
//! | `NeonDot` | `FEAT_DotProd` | 4 |
//! | `Portable` | none in particular | |
//!
//! All tiers of one machine give the same bits, whatever the size of the batch and the number of threads: the integers
//! are exact, and the sums of their multiples are made block after block. The exception is the portable tier on x86-64
//! without fused multiplications and additions, whose sums are rounded twice as often.
//!
//! The tests compare every tier that the testing machine has with the portable one, bit by bit, on random and on extreme
//! blocks. On a processor with AVX-512 that is `Avx512Vnni`, `Avx2`, and `AvxVnni` by the AVX-512 spelling of its
//! instructions; their VEX spelling has been compiled and never run. `NeonDot` has been run in an emulator,
//! with all tests, and never on an ARM processor.
//!
//! # Rounding
//!
//! Weights are taken as they are in the file. Activations become signed bytes with a scale for each 32 of them, so every
//! value is off by at most 1/254 of the largest of its block; where it matters most, what is left over becomes bytes once
//! more ([`Activations::encode_finely_for`]). For weights in floating point they stay in single precision.

mod activations;
mod attention;
mod bytes;
mod dense;
mod encode;
mod format;
mod lanes;
pub mod limits;
mod matrix;
mod product;
mod rows;
pub mod scan;
mod team;
mod tier;
mod tile;

pub use activations::Activations;
pub use attention::{BLOCK_TOKENS, KvCache, KvShape, KvType, Rotation, Span, Turn, View, Write};
pub use dense::{
    ByteLine, Epilogue, LayerNorm, PackedF32, PositionBias, Rows, attend_within_texts, byte_products, dot, dot_products,
};
pub use format::Format;
pub use matrix::{Matrix, PackError, Packer};
pub use rows::{Delta, Gate, add_and_normalise, gated, soft_cap};
pub use team::Team;
pub use tier::{Tier, UnknownTier};
