//! Sets of instructions.

use std::fmt;
use std::str::FromStr;

/// The instructions that products are made with, from the plainest to the fastest.
///
/// All tiers of one processor compute the same numbers, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// Plain Rust, for any processor.
    Portable,
    /// AVX2, FMA and F16C: x86-64 from 2013 on.
    Avx2,
    /// The byte dot product of AVX-VNNI on top of [`Avx2`](Self::Avx2).
    AvxVnni,
    /// AVX-512 with its byte dot product.
    Avx512Vnni,
    /// The byte dot product of `AArch64` (`FEAT_DotProd`).
    NeonDot,
}

/// Every tier, the plainest first.
const ALL: [Tier; 5] = [Tier::Portable, Tier::Avx2, Tier::AvxVnni, Tier::Avx512Vnni, Tier::NeonDot];

impl Tier {
    /// Returns the fastest tier of this processor.
    #[must_use]
    pub fn detect() -> Self {
        *Self::available().last().unwrap_or(&Self::Portable)
    }

    /// Returns the tiers that this processor can run, the plainest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        ALL.into_iter().filter(|tier| tier.is_available()).collect()
    }

    /// Says whether this processor can run the tier.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[allow(unreachable_patterns, reason = "which are left depends on the architecture")]
            _ => false,
        }
    }

    /// Returns the name that [`Display`](fmt::Display) writes and [`FromStr`] reads.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512Vnni => "avx512-vnni",
            Self::NeonDot => "neon-dot",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no tier has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown tier {0:?}, expected portable, avx2, avx-vnni, avx512-vnni or neon-dot")]
pub struct UnknownTier(String);

impl FromStr for Tier {
    type Err = UnknownTier;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        ALL.into_iter().find(|tier| tier.name() == name).ok_or_else(|| UnknownTier(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for tier in ALL {
            assert_eq!(tier.to_string().parse(), Ok(tier));
        }
        assert!("sse9".parse::<Tier>().unwrap_err().to_string().contains("\"sse9\""));
    }

    #[test]
    fn the_detected_tier_is_available() {
        assert!(Tier::available().contains(&Tier::Portable));
        assert!(Tier::detect().is_available());
    }
}
