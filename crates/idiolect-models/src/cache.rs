//! The folder of fetched models.
//!
//! `NAME/SHA256/` holds the files of one model and `entry.json`, where `SHA256` is the hash of the weights. `NAME/partial/` holds
//! what an unfinished fetch left, `NAME/lock` is held while a process fetches. A folder appears under its final name only when
//! every file in it has been checked.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::progress::{Event, Progress};
use crate::{ModelError, ModelFiles};

const ENTRY: &str = "entry.json";

/// What `entry.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// The spec as the user wrote it: finds models whose hash is not known beforehand.
    pub(crate) spec: String,
    pub(crate) source: String,
    pub(crate) fetched_unix: u64,
    /// The weights come first.
    pub(crate) files: Vec<EntryFile>,
}

/// A file and the stamp that saves hashing it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryFile {
    pub(crate) name: String,
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
    pub(crate) modified_ns: u64,
}

/// One model in the cache, as `models list` shows it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CachedModel {
    /// The alias, or a name made from the spec.
    pub name: String,
    /// The spec it was asked for with.
    pub spec: String,
    /// The source it came from.
    pub source: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Lowercase hex SHA-256 of the weights.
    pub sha256: String,
    /// Bytes of all files together.
    pub bytes: u64,
    /// When it was fetched, seconds since 1970.
    pub fetched_unix: u64,
    /// Name and size of each file.
    pub files: BTreeMap<String, u64>,
}

/// The outcome of checking one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FileCheck {
    /// The file.
    pub path: PathBuf,
    /// The hash it must have.
    pub expected: String,
    /// The hash it has; `None` when it cannot be read.
    pub found: Option<String>,
}

impl FileCheck {
    /// Whether the file is what it should be.
    pub fn is_ok(&self) -> bool {
        self.found.as_ref() == Some(&self.expected)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// What a look-up wants to find.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// Exactly these files, by name and hash; the first is the weights.
    Hashes(Vec<(String, String)>),
    /// Whatever was fetched for this spec.
    Spec(String),
}

/// The outcome of a look-up.
#[derive(Debug)]
pub(crate) enum Found {
    Whole(ModelFiles),
    /// This file is not what it was.
    Corrupt(PathBuf),
    Nothing,
}

impl Cache {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(crate) fn partial_dir(&self, name: &str) -> PathBuf {
        self.root.join(name).join("partial")
    }

    /// Returns the model if all its files are there and unchanged. Hashes only those whose stamp does not fit.
    pub(crate) fn look_up(&self, name: &str, wanted: &Wanted) -> Found {
        let dirs = match wanted {
            Wanted::Hashes(files) => files.iter().take(1).map(|(_, hash)| self.root.join(name).join(hash)).collect(),
            Wanted::Spec(_) => subfolders(&self.root.join(name)),
        };
        let mut entries: Vec<(PathBuf, Entry)> =
            dirs.into_iter().filter_map(|dir| Some((dir.clone(), read_entry(&dir)?))).collect();
        entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.fetched_unix));
        let fitting = entries.into_iter().find(|(_, entry)| match wanted {
            Wanted::Hashes(files) => {
                let has = |(name, hash): &(String, String)| {
                    entry.files.iter().any(|file| file.name == *name && file.sha256 == *hash)
                };
                files.iter().all(has)
            }
            Wanted::Spec(spec) => entry.spec == *spec,
        });
        let Some((dir, mut entry)) = fitting else { return Found::Nothing };
        let mut restamped = false;
        for file in &mut entry.files {
            let path = dir.join(&file.name);
            match stamp(&path) {
                Some(stamp) if stamp == (file.bytes, file.modified_ns) => continue,
                Some((bytes, modified_ns))
                    if bytes == file.bytes && hash_file(&path).is_ok_and(|hash| hash == file.sha256) =>
                {
                    file.modified_ns = modified_ns;
                    restamped = true;
                    continue;
                }
                _ => {}
            }
            return Found::Corrupt(path);
        }
        if restamped && let Err(error) = write_entry(&dir, &entry) {
            tracing::debug!(%error, "the stamp cannot be renewed; the next start hashes again");
        }
        Found::Whole(model_files(dir, entry, true))
    }

    /// Waits until no other process fetches this model.
    pub(crate) async fn lock(&self, name: &str, progress: &dyn Progress) -> Result<Lock, ModelError> {
        let folder = self.root.join(name);
        fs::create_dir_all(&folder).map_err(ModelError::write(&folder.join("lock"), 0))?;
        let path = folder.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(ModelError::write(&path, 0))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(ModelError::Io { action: "lock", path, source }),
            }
            if !told {
                progress.event(Event::Waiting { model: name, lock: &path });
                told = true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Makes the files in `staged` (all checked) the cached model. The lock must be held.
    pub(crate) fn install(
        &self,
        name: &str,
        spec: &str,
        source: &str,
        staged: &Path,
        files: &[StagedFile],
    ) -> Result<ModelFiles, ModelError> {
        let mut entry = Entry {
            name: name.to_owned(),
            spec: spec.to_owned(),
            source: source.to_owned(),
            fetched_unix: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            files: Vec::with_capacity(files.len()),
        };
        for file in files {
            let path = staged.join(&file.name);
            let (bytes, modified_ns) = stamp(&path).ok_or_else(|| ModelError::Missing { path: path.clone() })?;
            entry.files.push(EntryFile { name: file.name.clone(), sha256: file.sha256.clone(), bytes, modified_ns });
        }
        for leftover in files.iter().flat_map(|file| [".part", ".etag"].map(|end| format!("{}{end}", file.name))) {
            if !files.iter().any(|file| file.name == leftover) {
                let _ = fs::remove_file(staged.join(leftover));
            }
        }
        write_entry(staged, &entry)?;
        let hash = entry.files.first().map(|file| file.sha256.as_str()).unwrap_or_default();
        let dir = self.root.join(name).join(hash);
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(ModelError::io("replace", &dir))?;
        }
        fs::rename(staged, &dir).map_err(ModelError::io("move into place", &dir))?;
        let partial = self.partial_dir(name);
        if let Err(error) = fs::remove_dir_all(&partial) {
            tracing::debug!(%error, "leftovers of the fetch stay behind");
        }
        Ok(model_files(dir, entry, false))
    }

    pub(crate) fn list(&self) -> Vec<CachedModel> {
        let mut models = Vec::new();
        for folder in subfolders(&self.root) {
            for dir in subfolders(&folder) {
                let Some(entry) = read_entry(&dir) else { continue };
                models.push(CachedModel {
                    name: entry.name,
                    spec: entry.spec,
                    source: entry.source,
                    sha256: entry.files.first().map(|file| file.sha256.clone()).unwrap_or_default(),
                    bytes: entry.files.iter().map(|file| file.bytes).sum(),
                    fetched_unix: entry.fetched_unix,
                    files: entry.files.into_iter().map(|file| (file.name, file.bytes)).collect(),
                    dir,
                });
            }
        }
        models.sort_by(|a, b| (&a.name, &a.sha256).cmp(&(&b.name, &b.sha256)));
        models
    }

    /// Removes all of `name`, leftovers included. Returns the bytes freed.
    pub(crate) fn remove(&self, name: &str) -> Result<u64, ModelError> {
        let folder = self.root.join(name);
        let mut freed = 0;
        for dir in subfolders(&folder) {
            freed += size_of(&dir);
            fs::remove_dir_all(&dir).map_err(ModelError::io("remove", &dir))?;
        }
        Ok(freed)
    }

    /// Hashes every file of `name`.
    pub(crate) fn verify(&self, name: &str, progress: &dyn Progress) -> Vec<FileCheck> {
        let mut checks = Vec::new();
        for dir in subfolders(&self.root.join(name)) {
            let Some(entry) = read_entry(&dir) else { continue };
            for file in entry.files {
                progress.event(Event::Verifying { file: &file.name });
                let path = dir.join(&file.name);
                checks.push(FileCheck { found: hash_file(&path).ok(), expected: file.sha256, path });
            }
        }
        checks
    }
}

/// Held while a model is fetched; released when dropped, by the system too if the process dies.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

/// A checked file in the staging folder.
#[derive(Debug, Clone)]
pub(crate) struct StagedFile {
    pub(crate) name: String,
    pub(crate) sha256: String,
}

fn model_files(dir: PathBuf, entry: Entry, cached: bool) -> ModelFiles {
    ModelFiles {
        name: entry.name,
        source: entry.source,
        sha256: entry.files.first().map(|file| file.sha256.clone()),
        files: entry.files.into_iter().map(|file| (file.name.clone(), dir.join(&file.name))).collect(),
        dir,
        cached,
    }
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut folders: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size =
        |path: PathBuf| if path.is_dir() { size_of(&path) } else { path.metadata().map_or(0, |meta| meta.len()) };
    entries.filter_map(|entry| Some(entry.ok()?.path())).map(size).sum()
}

/// `None` for folders that hold no readable entry, or one that points outside.
fn read_entry(dir: &Path) -> Option<Entry> {
    let entry: Entry = serde_json::from_slice(&fs::read(dir.join(ENTRY)).ok()?).ok()?;
    let inside = |file: &EntryFile| {
        Path::new(&file.name).components().all(|part| matches!(part, std::path::Component::Normal(_)))
    };
    entry.files.iter().all(inside).then_some(entry)
}

fn write_entry(dir: &Path, entry: &Entry) -> Result<(), ModelError> {
    let path = dir.join(ENTRY);
    let new = dir.join(format!("{ENTRY}.{}", std::process::id()));
    let bytes = serde_json::to_vec_pretty(entry).expect("strings and numbers only");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().map_err(ModelError::write(&path, bytes.len() as u64))
}

/// Size and modification time.
pub(crate) fn stamp(path: &Path) -> Option<(u64, u64)> {
    let meta = path.metadata().ok()?;
    let modified = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((meta.len(), u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX)))
}

/// Lowercase hex SHA-256 of a file.
pub(crate) fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}
