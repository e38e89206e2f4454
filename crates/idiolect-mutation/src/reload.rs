//! A library whose file may change while it is in use.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::{Library, LibraryError};

/// A library's file that is read anew when it changes. While it has errors, what was read before stays in use.
///
/// A change is seen by the time and size of the file, then by its contents. [`poll`](Self::poll) looks once; what
/// [`watch`](Self::watch) starts looks again and again.
///
/// ```
/// use idiolect_mutation::{LibraryFile, Polled};
///
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("operators.toml");
/// std::fs::write(&path, "")?;
/// let file = LibraryFile::open(&path)?;
/// let before = file.current();
///
/// std::fs::write(&path, "include_built_in = true")?;
/// assert!(matches!(file.poll(), Polled::Changed));
/// assert!(before.operators().is_empty(), "who has it keeps it");
/// assert!(!file.current().operators().is_empty());
///
/// std::fs::write(&path, "include_built_in = 3")?;
/// assert!(matches!(file.poll(), Polled::Failed(_)));
/// assert!(!file.current().operators().is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LibraryFile {
    path: PathBuf,
    current: RwLock<Arc<Library>>,
    seen: Mutex<Seen>,
}

/// What a look at the file found.
#[derive(Debug)]
#[non_exhaustive]
pub enum Polled {
    /// It is as it was, or its error is.
    Unchanged,
    /// It changed; the new library is in use.
    Changed,
    /// It changed and is wrong; the old library stays in use. Told, and logged, once for each contents.
    Failed(LibraryError),
}

/// The file as it was seen last.
#[derive(Debug)]
struct Seen {
    stamp: Option<(SystemTime, u64)>,
    contents: Option<u64>,
    /// A change so soon after the last one may have left time and size alone.
    is_fresh: bool,
}

/// File systems tell times apart that are this far from one another.
const TIME_STEP: Duration = Duration::from_secs(2);

impl LibraryFile {
    /// Reads a file for the first time.
    ///
    /// # Errors
    /// [`LibraryError`] where it cannot be read or is wrong.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, LibraryError> {
        let path = path.into();
        let stamp = stamp(&path);
        let (text, contents) = read(&path)?;
        let library = Library::parse(&text, &path.display().to_string())?;
        let seen = Seen { is_fresh: stamp.is_none_or(is_fresh), stamp, contents: Some(contents) };
        Ok(Self { path, current: RwLock::new(Arc::new(library)), seen: Mutex::new(seen) })
    }

    /// Returns the file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the library as it was read last without an error.
    #[must_use]
    pub fn current(&self) -> Arc<Library> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks whether the file changed, and reads it if so.
    pub fn poll(&self) -> Polled {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.path);
        if stamp.is_some() && stamp == seen.stamp && !seen.is_fresh {
            return Polled::Unchanged;
        }
        let n_before = seen.contents;
        seen.is_fresh = stamp.is_none_or(is_fresh);
        seen.stamp = stamp;
        let parsed = match read(&self.path) {
            Ok((_, contents)) if n_before == Some(contents) => return Polled::Unchanged,
            Ok((text, contents)) => {
                seen.contents = Some(contents);
                Library::parse(&text, &self.path.display().to_string())
            }
            Err(_) if n_before.is_none() => return Polled::Unchanged,
            Err(error) => {
                seen.contents = None;
                Err(error)
            }
        };
        match parsed {
            Ok(library) => {
                tracing::info!(path = %self.path.display(), %library, "library read anew");
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(library);
                Polled::Changed
            }
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "library not read anew; the old one stays in use");
                Polled::Failed(error)
            }
        }
    }

    /// Starts a thread that looks every `period`, until nobody has the file any more.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn watch(self: &Arc<Self>, period: Duration) -> std::io::Result<()> {
        let file = Arc::downgrade(self);
        thread::Builder::new().name("library".to_owned()).spawn(move || {
            loop {
                thread::park_timeout(period);
                let Some(file) = file.upgrade() else { break };
                file.poll();
            }
        })?;
        Ok(())
    }
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn is_fresh((modified, _): (SystemTime, u64)) -> bool {
    modified.elapsed().is_ok_and(|age| age < TIME_STEP)
}

fn read(path: &Path) -> Result<(String, u64), LibraryError> {
    let read = |source| LibraryError::Read { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(read)?;
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    Ok((text, hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_and_errors_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operators.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        assert!(matches!(LibraryFile::open(&path), Err(LibraryError::Read { .. })));
        write("max_operators = 0");
        assert!(matches!(LibraryFile::open(&path), Err(LibraryError::Invalid { .. })));
        write("max_operators = 1");
        let file = LibraryFile::open(&path).unwrap();
        assert!(matches!(file.poll(), Polled::Unchanged));
        // Same size, and as good as the same time.
        write("max_operators = 3");
        assert!(matches!(file.poll(), Polled::Changed));
        assert_eq!(file.current().max_operators(), 3);
        write("max_operators = 0");
        assert!(matches!(file.poll(), Polled::Failed(LibraryError::Invalid { .. })));
        assert!(matches!(file.poll(), Polled::Unchanged));
        assert_eq!(file.current().max_operators(), 3);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(file.poll(), Polled::Failed(LibraryError::Read { .. })));
        assert!(matches!(file.poll(), Polled::Unchanged));
        assert_eq!(file.current().max_operators(), 3);
        write("max_operators = 4");
        assert!(matches!(file.poll(), Polled::Changed));
        assert_eq!(file.current().max_operators(), 4);
    }

    #[test]
    fn untouched_files_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operators.toml");
        std::fs::write(&path, "max_operators = 1").unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        let set_time = || std::fs::File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
        set_time();
        let file = LibraryFile::open(&path).unwrap();
        std::fs::write(&path, "max_operators = 2").unwrap();
        set_time();
        assert!(matches!(file.poll(), Polled::Unchanged), "time and size are the same");
        std::fs::write(&path, "max_operators = 2").unwrap();
        assert!(matches!(file.poll(), Polled::Changed));
    }

    #[test]
    fn the_watching_thread_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("operators.toml");
        std::fs::write(&path, "").unwrap();
        let file = Arc::new(LibraryFile::open(&path).unwrap());
        file.watch(Duration::from_secs(3600)).unwrap();
        let weak = Arc::downgrade(&file);
        drop(file);
        assert!(weak.upgrade().is_none());
    }
}
