//! What can go wrong.

use std::io;
use std::path::{Path, PathBuf};

use crate::SpecError;

/// Why a model could not be resolved, listed, checked or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The text names no model.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No alias of this name exists.
    #[error("unknown model {name:?}: known names are {known}; a file is written with a slash, as ./{name}")]
    UnknownAlias {
        /// The name asked for.
        name: String,
        /// The names that exist, comma-separated.
        known: String,
    },
    /// A path names nothing.
    #[error("model file {path} does not exist", path = path.display())]
    Missing {
        /// The path.
        path: PathBuf,
    },
    /// A folder, repository or wheel holds no model, or several.
    #[error("{place}: {problem}")]
    NoModel {
        /// Where it was looked for.
        place: String,
        /// What was found instead and what to name.
        problem: String,
    },
    /// A file arrived whole but is not the expected one. Nothing of it is kept.
    #[error("{file} from {origin} has sha256 {found}, expected {expected}; it was discarded")]
    HashMismatch {
        /// The file or wheel.
        file: String,
        /// Where it came from.
        origin: String,
        /// The hash that was expected, lowercase hex.
        expected: String,
        /// The hash it has, lowercase hex.
        found: String,
    },
    /// The disk cannot hold the files.
    #[error("disk full: {path} needs {needed} more bytes, {free} are free; free some space or choose another models folder", path = path.display())]
    DiskFull {
        /// Bytes still needed.
        needed: u64,
        /// Bytes free for us now.
        free: u64,
        /// The folder that was to hold them.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as in "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A server gave no usable answer.
    #[error("{url}: {problem}")]
    Fetch {
        /// The address without credentials and query.
        url: String,
        /// What happened.
        problem: String,
        /// Whether a later attempt may work.
        retryable: bool,
    },
    /// An archive cannot be read or lacks the file.
    #[error("{archive}: {problem}")]
    Archive {
        /// The archive.
        archive: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The network is needed but switched off.
    #[error("{origin} is not on this machine and offline mode is on")]
    Offline {
        /// The source that would have been asked.
        origin: String,
    },
    /// This build has no client for the source.
    #[error("{origin}: this build has no model hub client (cargo feature `hub`)")]
    NoHub {
        /// The source.
        origin: String,
    },
    /// No source worked out.
    #[error("model {model}: no source worked: {}", list(failures))]
    AllSources {
        /// The model's name.
        model: String,
        /// Each source and its error, in the order tried.
        failures: Vec<(String, Self)>,
    },
}

impl ModelError {
    /// Whether trying again later, unchanged, may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Fetch { retryable, .. } => *retryable,
            Self::AllSources { failures, .. } => failures.iter().any(|(_, error)| error.is_retryable()),
            _ => false,
        }
    }

    /// Whether a file that arrived was not the expected one.
    pub fn is_hash_mismatch(&self) -> bool {
        match self {
            Self::HashMismatch { .. } => true,
            Self::AllSources { failures, .. } => failures.iter().any(|(_, error)| error.is_hash_mismatch()),
            _ => false,
        }
    }

    /// Whether another source cannot help, because this machine is the problem.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::DiskFull { .. } | Self::Io { .. })
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Like [`Self::io`] for writes: a full disk becomes [`ModelError::DiskFull`].
    pub(crate) fn write(path: &Path, needed: u64) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                let folder = path.parent().unwrap_or(&path).to_owned();
                let free = crate::disk::free_bytes(&folder).unwrap_or(0);
                Self::DiskFull { needed, free, path: folder }
            }
            _ => Self::Io { action: "write", path, source },
        }
    }
}

fn list(failures: &[(String, ModelError)]) -> String {
    let texts: Vec<String> = failures.iter().map(|(source, error)| format!("[{source}] {error}")).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_used_up_quota_are_told_from_other_failures() {
        let full = |cause: io::Error| {
            let error = ModelError::write(Path::new("/no-such-folder/file"), 7)(cause);
            matches!(error, ModelError::DiskFull { needed: 7, path, .. } if path == Path::new("/no-such-folder"))
        };
        assert!(full(io::ErrorKind::StorageFull.into()));
        assert!(full(io::ErrorKind::QuotaExceeded.into()));
        #[cfg(target_os = "linux")]
        for (name, code) in [("ENOSPC", 28), ("EDQUOT", 122)] {
            assert!(full(io::Error::from_raw_os_error(code)), "{name}");
        }
        assert!(!full(io::ErrorKind::PermissionDenied.into()));
    }
}
