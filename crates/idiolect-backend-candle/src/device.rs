//! Where a model computes.

use std::str::FromStr;

use candle_core::Device;

use crate::error::{LoadError, first_line};

/// Where a language model computes.
///
/// Written and read as `cpu`, `cuda:0`, `metal:0`; a name without a number means the first of its kind.
///
/// ```
/// use idiolect_backend_candle::DeviceChoice;
///
/// let device: DeviceChoice = "cuda:1".parse()?;
/// assert_eq!(device, DeviceChoice::Cuda(1));
/// assert_eq!("metal".parse(), Ok(DeviceChoice::Metal(0)));
/// assert_eq!(DeviceChoice::Cuda(0).to_string(), "cuda:0");
/// # Ok::<(), idiolect_backend_candle::ParseDeviceError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The processor, with this crate's own kernels.
    #[default]
    Cpu,
    /// An NVIDIA card, by its number. Needs the feature `cuda`.
    Cuda(usize),
    /// An Apple graphics processor, by its number. Needs the feature `metal`.
    Metal(usize),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal(number) => write!(f, "metal:{number}"),
        }
    }
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("device {0:?} is not known; expected cpu, cuda, cuda:N, metal or metal:N")]
pub struct ParseDeviceError(String);

impl FromStr for DeviceChoice {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, number) = match text.split_once(':') {
            Some((kind, digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => (kind, digits.parse().ok()),
            Some(_) => (text, None),
            None => (text, Some(0)),
        };
        match (kind, number) {
            ("cpu", Some(_)) if text == "cpu" => Ok(Self::Cpu),
            ("cuda", Some(number)) => Ok(Self::Cuda(number)),
            ("metal", Some(number)) => Ok(Self::Metal(number)),
            _ => Err(ParseDeviceError(text.to_owned())),
        }
    }
}

/// A device that was opened.
#[derive(Clone, Debug)]
pub(crate) struct OpenDevice {
    choice: DeviceChoice,
    device: Device,
}

impl OpenDevice {
    pub(crate) fn open(choice: DeviceChoice) -> Result<Self, LoadError> {
        let opened = match choice {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => {
                return Err(LoadError::DeviceNotBuilt { device: choice, feature: "cuda" });
            }
            DeviceChoice::Metal(_) if !cfg!(feature = "metal") => {
                return Err(LoadError::DeviceNotBuilt { device: choice, feature: "metal" });
            }
            DeviceChoice::Cuda(number) => Device::new_cuda(number),
            DeviceChoice::Metal(number) => Device::new_metal(number),
        };
        opened
            .map(|device| Self { choice, device })
            .map_err(|error| LoadError::Device { device: choice, reason: first_line(&error) })
    }

    /// Returns candle's handle.
    pub(crate) const fn handle(&self) -> &Device {
        &self.device
    }

    /// Turns what the device complains of while a model is loaded into an error that names it.
    pub(crate) fn error(&self, error: &candle_core::Error) -> LoadError {
        self.fault(first_line(error))
    }

    /// Makes an error that names the device.
    pub(crate) const fn fault(&self, reason: String) -> LoadError {
        LoadError::Device { device: self.choice, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        let named = [
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:12", DeviceChoice::Cuda(12)),
            ("metal", DeviceChoice::Metal(0)),
            ("metal:1", DeviceChoice::Metal(1)),
        ];
        for (name, device) in named {
            assert_eq!(name.parse(), Ok(device));
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        let wrong =
            ["", "CPU", "cpu:0", "cuda:", "cuda:x", "cuda:+1", "cuda:-1", "cuda:1:2", "gpu", " cuda", "metal:1 "];
        for name in wrong.into_iter().chain(["cuda:99999999999999999999999"]) {
            let error = name.parse::<DeviceChoice>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("device {name:?} is not known; expected cpu")), "{error}");
        }
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_device_that_was_not_built_is_refused_with_its_feature() {
        let error = OpenDevice::open(DeviceChoice::Cuda(1)).unwrap_err();
        assert_eq!(error.to_string(), "this build cannot use device cuda:1; build with the feature \"cuda\"");
    }

    #[test]
    #[cfg(not(feature = "metal"))]
    fn metal_is_refused_alike() {
        let error = OpenDevice::open(DeviceChoice::Metal(0)).unwrap_err();
        assert_eq!(error.to_string(), "this build cannot use device metal:0; build with the feature \"metal\"");
    }
}
