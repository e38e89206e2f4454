//! Why a model could not be loaded.

use std::path::{Path, PathBuf};

use crate::device::DeviceChoice;

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not what it should be: another format, cut short, or with values that make no sense.
    #[error("{} is damaged or of another format: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is sound, and holds something that this crate does not run.
    #[error("{}: {what} is not supported; supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it holds, with its name: `architecture "mamba"`.
        what: String,
        /// What would work.
        supported: String,
    },
    /// The device is not there, is out of memory, or cannot compute this model.
    #[error("cannot use device {device}: {reason}")]
    Device {
        /// The device.
        device: DeviceChoice,
        /// What it said.
        reason: String,
    },
    /// This build has no code for the device.
    #[error("this build cannot use device {device}; build with the feature {feature:?}")]
    DeviceNotBuilt {
        /// The device.
        device: DeviceChoice,
        /// The feature of this crate that would add the code.
        feature: &'static str,
    },
    /// The configuration makes no sense.
    #[error("{0}")]
    Config(String),
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

impl LoadError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.to_string() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>, supported: impl Into<String>) -> Self {
        Self::Unsupported { path: path.to_owned(), what: what.into(), supported: supported.into() }
    }
}

/// Errors of candle may carry a backtrace below the message.
pub(crate) fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or("it does not say why").to_owned()
}

/// Runs a loader whose libraries may panic on hostile files, and turns a panic into [`LoadError::Damaged`].
pub(crate) fn guard<T>(path: &Path, load: impl FnOnce() -> Result<T, LoadError>) -> Result<T, LoadError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(load))
        .unwrap_or_else(|_| Err(LoadError::damaged(path, "its contents contradict each other")))
}
