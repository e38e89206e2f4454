//! Learnt state on disk: a snapshot, and a journal of what came after it.
//!
//! A record is learnt once its line is in the journal. A process that is killed in the middle of a line loses that record and
//! no other: the next one cuts the line off. From time to time the state is written whole under another name, which then
//! replaces the snapshot, and the journal begins anew; lines that the snapshot already has are told by their numbers.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::Record;
use super::state::{FORMAT, State};
use super::{PolicyConfig, PolicyError};

/// A line of the journal.
#[derive(Serialize, Deserialize)]
struct Line<R> {
    n: u64,
    record: R,
}

/// The files of one policy, open for one process.
#[derive(Debug)]
pub(crate) struct Journal {
    snapshot: PathBuf,
    path: PathBuf,
    file: File,
    /// Its length, up to the end of the last whole line.
    len: u64,
    n_lines: u64,
}

impl Journal {
    /// Opens the files in a folder, which is made where there is none, and reads the state.
    pub(crate) fn open(dir: &Path, config: &PolicyConfig) -> Result<(Self, State), PolicyError> {
        fs::create_dir_all(dir).map_err(|source| PolicyError::Io { action: "create", path: dir.to_owned(), source })?;
        let snapshot = dir.join(format!("{}.json", config.kind));
        let path = dir.join(format!("{}.journal", config.kind));
        let io = |action| {
            let path = path.clone();
            move |source| PolicyError::Io { action, path, source }
        };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path).map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PolicyError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(io("lock")(source)),
        }
        let mut state = read_snapshot(&snapshot, config)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("read"))?;
        let (n_lines, len) = replay(&bytes, &path, &mut state, config)?;
        if len < bytes.len() as u64 {
            tracing::warn!(path = %path.display(), n_bytes = bytes.len() as u64 - len, "cut off a record that was not finished");
            file.set_len(len).map_err(io("cut"))?;
        }
        file.seek(SeekFrom::Start(len)).map_err(io("read"))?;
        Ok((Self { snapshot, path, file, len, n_lines }, state))
    }

    /// Adds the record that is the `n`th to be learnt. On an error there is nothing of it in the journal.
    pub(crate) fn append(&mut self, n: u64, record: &Record) -> Result<(), PolicyError> {
        let mut line = serde_json::to_vec(&Line { n, record }).map_err(|error| self.io("write", error.into()))?;
        line.push(b'\n');
        if let Err(source) = self.file.write_all(&line) {
            // Half a line would be taken for damage once another follows it.
            let _ = self.file.set_len(self.len).and_then(|()| self.file.seek(SeekFrom::Start(self.len)));
            return Err(self.io("write", source));
        }
        self.len += line.len() as u64;
        self.n_lines += 1;
        Ok(())
    }

    pub(crate) fn n_lines(&self) -> u64 {
        self.n_lines
    }

    /// Replaces the snapshot, and empties the journal.
    pub(crate) fn write_snapshot(&mut self, state: &State) -> Result<(), PolicyError> {
        let temporary = self.snapshot.with_extension("json.new");
        let text = serde_json::to_vec(state).map_err(|error| self.io("write", error.into()))?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let written = options.open(&temporary).and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        });
        let replaced = written.and_then(|()| fs::rename(&temporary, &self.snapshot));
        replaced.map_err(|source| PolicyError::Io { action: "write", path: self.snapshot.clone(), source })?;
        // The name has to last, too, before the journal goes; folders cannot be synchronised everywhere.
        if let Some(dir) = self.snapshot.parent() {
            let _ = File::open(dir).and_then(|dir| dir.sync_all());
        }
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|source| self.io("cut", source))?;
        (self.len, self.n_lines) = (0, 0);
        Ok(())
    }

    fn io(&self, action: &'static str, source: io::Error) -> PolicyError {
        PolicyError::Io { action, path: self.path.clone(), source }
    }
}

fn read_snapshot(path: &Path, config: &PolicyConfig) -> Result<State, PolicyError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::new(config.kind)),
        Err(source) => return Err(PolicyError::Io { action: "read", path: path.to_owned(), source }),
    };
    let damaged = |problem: String| PolicyError::Damaged {
        path: path.to_owned(),
        problem,
        remedy: "restore it from a copy, or move it and the .journal beside it away to learn anew".to_owned(),
    };
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if format != FORMAT {
        return Err(damaged(format!("its format is {format}, expected {FORMAT}")));
    }
    let state: State = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    state.check(config.kind).map_err(damaged)?;
    Ok(state)
}

/// Learns again what the journal has; returns its whole lines' number and length.
fn replay(bytes: &[u8], path: &Path, state: &mut State, config: &PolicyConfig) -> Result<(u64, u64), PolicyError> {
    let len = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |i| i + 1);
    let mut n_lines = 0;
    for line in bytes[..len].split_inclusive(|&byte| byte == b'\n') {
        n_lines += 1;
        let damaged = |problem: String| PolicyError::Damaged {
            path: path.to_owned(),
            problem: format!("line {n_lines}: {problem}"),
            remedy: format!("cut it off before line {n_lines} to keep what is above, or move it away"),
        };
        let Line { n, record } =
            serde_json::from_slice::<Line<Record>>(line).map_err(|error| damaged(error.to_string()))?;
        record.check().map_err(|error| damaged(error.to_string()))?;
        // A process may have been killed after the snapshot was written and before the journal was emptied.
        if n <= state.n_updates {
            continue;
        }
        if n != state.n_updates + 1 {
            return Err(damaged(format!("it is record {n}, expected {}", state.n_updates + 1)));
        }
        state.update(config, &record);
    }
    Ok((n_lines, len as u64))
}
