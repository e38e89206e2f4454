//! Free space.

use std::path::Path;

use crate::ModelError;

/// Bytes that this user may still write on the file system of `folder` (or of its nearest existing parent).
#[cfg(unix)]
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    let existing = folder.ancestors().find(|path| path.exists())?;
    let stat = rustix::fs::statvfs(existing).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Unknown on this system: a full disk then shows when a write fails.
#[cfg(not(unix))]
pub(crate) fn free_bytes(_folder: &Path) -> Option<u64> {
    None
}

/// Refuses early what cannot fit.
pub(crate) fn check_room(folder: &Path, needed: u64) -> Result<(), ModelError> {
    match free_bytes(folder) {
        Some(free) if free < needed => Err(ModelError::DiskFull { needed, free, path: folder.to_owned() }),
        _ => Ok(()),
    }
}
