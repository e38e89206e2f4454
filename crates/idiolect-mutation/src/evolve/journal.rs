//! Every answer of a run, a line each, on disk before it is used.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use idiolect_backend::Embedding;
use serde::{Deserialize, Serialize};

use super::Outcome;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file cannot be read or written.
    #[error("{path} cannot be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process writes to it.
    #[error("{path} is in use by another run; wait for it, or name another folder")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A line is none of a journal's.
    #[error("{path}, line {line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// It is of another run.
    #[error(
        "the state is of another run: {name} is {found} there, expected {expected}; name another folder, or run as that one did"
    )]
    Other {
        /// Which setting.
        name: String,
        /// What it was.
        found: String,
        /// What it is.
        expected: String,
    },
}

/// What a backend answered when it was asked for a text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Said {
    pub(super) text: String,
    /// Whether it came to its own end.
    pub(super) ended: bool,
    pub(super) tokens: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Setup(BTreeMap<String, String>),
    Reply(String, Outcome),
    Said(String, Said),
    Embedding(String, Bits),
}

#[derive(Serialize, Deserialize)]
struct Bits(#[serde(with = "bits")] Embedding);

/// What was answered so far: a file that grows by a line for each answer, each on disk before the next is asked for. Without a file it is
/// forgotten with the value.
#[derive(Debug, Default)]
pub struct Journal {
    file: Option<(PathBuf, File)>,
    setup: Option<BTreeMap<String, String>>,
    replies: HashMap<String, Outcome>,
    said: HashMap<String, Said>,
    embeddings: HashMap<String, Embedding>,
}

impl Journal {
    /// Makes one that is kept in memory only.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Opens `journal.jsonl` in a folder, making both where there is none. A last line that a run which broke off left unfinished is cut off. The
    /// file is locked until the value is dropped.
    ///
    /// # Errors
    /// [`JournalError`] but [`JournalError::Other`].
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join("journal.jsonl");
        let failed = |source| JournalError::Io { path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let file = OpenOptions::new().create(true).read(true).append(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse { path: path.clone() }),
            // Where a file system has no locks, it goes without.
            Err(TryLockError::Error(_)) | Ok(()) => {}
        }
        let bytes = std::fs::read(&path).map_err(failed)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut journal = Self::default();
        for (i, text) in bytes[..whole].split(|byte| *byte == b'\n').enumerate().filter(|(_, text)| !text.is_empty()) {
            let line = serde_json::from_slice(text).map_err(|error| JournalError::Line {
                path: path.clone(),
                line: i + 1,
                problem: error.to_string(),
            })?;
            journal.take(line);
        }
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(failed)?;
        }
        journal.file = Some((path, file));
        Ok(journal)
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Setup(setup) => self.setup = Some(setup),
            Line::Reply(key, outcome) => drop(self.replies.insert(key, outcome)),
            Line::Said(key, said) => drop(self.said.insert(key, said)),
            Line::Embedding(key, Bits(embedding)) => drop(self.embeddings.insert(key, embedding)),
        }
    }

    /// Says how many replies it has.
    #[must_use]
    pub fn n_replies(&self) -> usize {
        self.replies.len()
    }

    /// Begins a run, or checks that it is the one that was begun.
    pub(super) fn begin(&mut self, setup: BTreeMap<String, String>) -> Result<(), JournalError> {
        let Some(found) = &self.setup else { return self.add(Line::Setup(setup)) };
        let names = found.keys().chain(setup.keys());
        let shown = |value: Option<&String>| value.map_or_else(|| "not named".to_owned(), Clone::clone);
        match names.into_iter().find(|name| found.get(*name) != setup.get(*name)) {
            None => Ok(()),
            Some(name) => Err(JournalError::Other {
                name: name.clone(),
                found: shown(found.get(name)),
                expected: shown(setup.get(name)),
            }),
        }
    }

    pub(super) fn reply(&self, key: &str) -> Option<&Outcome> {
        self.replies.get(key)
    }

    pub(super) fn said(&self, key: &str) -> Option<&Said> {
        self.said.get(key)
    }

    pub(super) fn embedding(&self, text: &str) -> Option<&Embedding> {
        self.embeddings.get(text)
    }

    pub(super) fn keep_reply(&mut self, key: String, outcome: Outcome) -> Result<(), JournalError> {
        self.add(Line::Reply(key, outcome))
    }

    pub(super) fn keep_said(&mut self, key: String, said: Said) -> Result<(), JournalError> {
        self.add(Line::Said(key, said))
    }

    pub(super) fn keep_embedding(&mut self, text: String, embedding: Embedding) -> Result<(), JournalError> {
        self.add(Line::Embedding(text, Bits(embedding)))
    }

    fn add(&mut self, line: Line) -> Result<(), JournalError> {
        let path = self.file.as_ref().map_or_else(|| PathBuf::from("the journal"), |(path, _)| path.clone());
        let failed = |source| JournalError::Io { path: path.clone(), source };
        let mut text = serde_json::to_vec(&line).map_err(|error| failed(error.into()))?;
        // What a later run would read is what this one uses: numbers may lose their last bit on the way.
        let read = serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
        if let Some((_, file)) = &mut self.file {
            text.push(b'\n');
            file.write_all(&text).and_then(|()| file.sync_data()).map_err(failed)?;
        }
        self.take(read);
        Ok(())
    }
}

/// Embeddings as the hexadecimal digits of their bits: what comes back is what was kept, to the last bit.
pub(super) mod bits {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::ptr_arg, reason = "serde gives what the field is")]
    pub(crate) fn serialize<S: Serializer>(values: &Vec<f32>, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = values.iter().map(|value| format!("{:08x}", value.to_bits())).collect();
        serializer.serialize_str(&digits)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        let digits = String::deserialize(deserializer)?;
        let value = |at: usize| {
            let bits = digits.get(at..at + 8).and_then(|digits| u32::from_str_radix(digits, 16).ok());
            bits.map(f32::from_bits).ok_or_else(|| {
                D::Error::custom(format!("an embedding has {} digits, expected 8 a value, hexadecimal", digits.len()))
            })
        };
        (0..digits.len()).step_by(8).map(value).collect()
    }
}
