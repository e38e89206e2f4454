//! How keys and values are kept.

use candle_core::DType;
use idiolect_kernels as kernels;

use crate::device::DeviceChoice;
use crate::error::LoadError;

/// How keys and values are kept.
///
/// Written as `f32`, `f16`, `bf16`, `q8_0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// Single precision.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// Sixteen bits, with the range of single precision. Not on the processor.
    Bf16,
    /// Signed bytes, with a scale for each 32 elements of a head. On the processor only.
    Q8,
}

impl std::fmt::Display for KvType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8_0",
        })
    }
}

impl KvType {
    /// Returns what the processor's kernels call it, or what they have instead.
    const fn of_kernels(self) -> Result<kernels::KvType, &'static str> {
        match self {
            Self::F32 => Ok(kernels::KvType::F32),
            Self::F16 => Ok(kernels::KvType::F16),
            Self::Q8 => Ok(kernels::KvType::Q8),
            Self::Bf16 => Err("f32, f16 or q8_0 on the processor"),
        }
    }

    /// Returns what candle's tensors call it, or what they have instead.
    const fn of_tensors(self) -> Result<DType, &'static str> {
        match self {
            Self::F32 => Ok(DType::F32),
            Self::F16 => Ok(DType::F16),
            Self::Bf16 => Ok(DType::BF16),
            Self::Q8 => Err("f32, f16 or bf16 on a card"),
        }
    }

    /// Returns what would do on a device, where this does not.
    pub(crate) fn instead(self, device: DeviceChoice) -> Option<&'static str> {
        if device == DeviceChoice::Cpu { self.of_kernels().err() } else { self.of_tensors().err() }
    }

    /// Returns what the processor's kernels call it.
    pub(crate) fn for_kernels(self) -> Result<kernels::KvType, LoadError> {
        self.of_kernels().map_err(|expected| self.refused(expected))
    }

    /// Returns what candle's tensors call it.
    pub(crate) fn for_tensors(self) -> Result<DType, LoadError> {
        self.of_tensors().map_err(|expected| self.refused(expected))
    }

    fn refused(self, expected: &str) -> LoadError {
        LoadError::Config(format!("kv_type is {self}, expected {expected}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_refuses_what_it_cannot_do() {
        let told = |outcome: Result<(), LoadError>| outcome.unwrap_err().to_string();
        assert_eq!(told(KvType::Q8.for_tensors().map(drop)), "kv_type is q8_0, expected f32, f16 or bf16 on a card");
        let of_kernels = told(KvType::Bf16.for_kernels().map(drop));
        assert_eq!(of_kernels, "kv_type is bf16, expected f32, f16 or q8_0 on the processor");
        assert!(KvType::Q8.instead(DeviceChoice::Cpu).is_none() && KvType::Q8.instead(DeviceChoice::Cuda(0)).is_some());
        for both in [KvType::F32, KvType::F16] {
            assert!(both.for_tensors().is_ok() && both.for_kernels().is_ok());
        }
    }
}
