//! Formats of weights, as GGUF files hold them.

use std::fmt;

use half::{bf16, f16};

/// Values that share a scale, in every quantised format: K-quants scale these as parts of their larger blocks.
pub(crate) const BLOCK: usize = 32;

/// [`BLOCK`]s in a block of a K-quant.
pub(crate) const SUPER: usize = 8;

/// How the numbers of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of [`F32`](Self::F32).
    Bf16,
    /// Four bits and a scale for 32.
    Q4_0,
    /// Four bits, a scale and a minimum for 32.
    Q4_1,
    /// Five bits and a scale for 32.
    Q5_0,
    /// Five bits, a scale and a minimum for 32.
    Q5_1,
    /// Eight bits and a scale for 32.
    Q8_0,
    /// Four bits, with six-bit scales and minima for each 32 of 256.
    Q4K,
    /// Five bits, with six-bit scales and minima for each 32 of 256.
    Q5K,
    /// Six bits, with eight-bit scales for each 16 of 256.
    Q6K,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Returns how many values a block of a file has. The columns of a matrix are a multiple of it, and of 32.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => BLOCK,
            Self::Q4K | Self::Q5K | Self::Q6K => BLOCK * SUPER,
        }
    }

    /// Returns how many bytes a block of a file takes.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4K => 4 + 12 + 128,
            Self::Q5K => 4 + 12 + 32 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// Returns the bytes of a row of `cols` values.
    #[must_use]
    pub const fn row_bytes(self, cols: usize) -> usize {
        cols / self.block_len() * self.block_bytes()
    }

    /// Says whether the format is one of quantised blocks rather than of floating point numbers.
    #[must_use]
    pub const fn is_quantised(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        })
    }
}

/// Reads the half precision number at `at`.
#[inline]
pub(crate) fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Reads the bfloat number at `at`.
#[inline]
pub(crate) fn bfloat_at(bytes: &[u8], at: usize) -> f32 {
    bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Reads the single precision number at `at`.
#[inline]
pub(crate) fn single_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Splits the twelve bytes of six-bit numbers in a K-quant into the scale and the minimum of one of its eight parts.
#[inline]
pub(crate) const fn scale_and_min(bytes: &[u8; 12], part: usize) -> (u8, u8) {
    if part < 4 {
        (bytes[part] & 63, bytes[part + 4] & 63)
    } else {
        let low = bytes[part + 4];
        ((low & 15) | ((bytes[part - 4] >> 6) << 4), (low >> 4) | ((bytes[part] >> 6) << 4))
    }
}
