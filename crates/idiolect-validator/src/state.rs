use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use idiolect_uniqueness::GateHistory;
use serde::{Deserialize, Serialize};

use crate::Validator;
use crate::mask::SavedNgrams;
use crate::normaliser::SavedNormaliser;

/// The form of the file. One of another form is refused.
const VERSION: u32 = 2;

/// A state that cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file cannot be read or written.
    #[error("state {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is damaged, or no state at all.
    #[error("state {} is damaged: {reason}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// The file is of another version of this crate.
    #[error("state {} has version {found}, expected {VERSION}", path.display())]
    Version {
        /// Which.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The file was written under another profile, whose figures mean something else.
    #[error("state {} is of the profile {found:?}, expected {expected:?}", path.display())]
    Profile {
        /// Which.
        path: PathBuf,
        /// The profile it was written under.
        found: String,
        /// The profile in use.
        expected: String,
    },
    /// The file's history is of another encoder, with whose embeddings those in use cannot be compared.
    #[error("state {} has a history by {found}, expected one by {expected}, the encoder in use", path.display())]
    Encoder {
        /// Which.
        path: PathBuf,
        /// The encoder of its history, with the number of its dimensions.
        found: String,
        /// The encoder in use.
        expected: String,
    },
}

/// What a state has that a validator without an encoder or tokenizer has no use for, kept for those that have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unused {
    ngrams: Option<SavedNgrams>,
    history: Option<SavedHistory>,
}

/// The embeddings that diversity compares with, on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedHistory {
    encoder: String,
    dimensions: usize,
    /// Vectors of unit length, oldest first: 32-bit numbers, the least significant byte first, in base 64. As text they would
    /// take ten times the room.
    rows: String,
}

impl SavedHistory {
    fn new(encoder: &str, dimensions: usize, history: &GateHistory) -> Self {
        let bytes: Vec<u8> = history.rows().flatten().flat_map(|value| value.to_le_bytes()).collect();
        Self { encoder: encoder.to_owned(), dimensions, rows: BASE64_STANDARD.encode(bytes) }
    }

    fn rows(&self) -> Result<Vec<f32>, String> {
        let bytes = BASE64_STANDARD.decode(&self.rows).map_err(|error| format!("history.rows: {error}"))?;
        let size = self.dimensions.saturating_mul(size_of::<f32>()).max(1);
        if bytes.len() % size != 0 {
            return Err(format!("history.rows has {} bytes, expected embeddings of {size} bytes each", bytes.len()));
        }
        let (values, _) = bytes.as_chunks();
        Ok(values.iter().map(|value| f32::from_le_bytes(*value)).collect())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    profile: String,
    n_steps: u64,
    normalisers: BTreeMap<String, SavedNormaliser>,
    moving_average: Vec<f64>,
    best: Vec<String>,
    asked: Option<String>,
    ngrams: Option<SavedNgrams>,
    history: Option<SavedHistory>,
}

/// Read before all else, since files of other versions have other fields.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Validator {
    /// Saves the statistics, counts, blacklist, moving average, and the embeddings that diversity compares with: up to 63 MB
    /// of 15,500 replies. The file is complete or not there: it is written beside its place and moved.
    ///
    /// # Errors
    /// [`StateError::Io`]; an earlier file is untouched then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), StateError> {
        let path = path.as_ref();
        let mut best: Vec<String> = self.blacklist.best().cloned().collect();
        best.sort_unstable();
        let history = self.encoder().zip(self.history.as_ref());
        let history =
            history.map(|(encoder, history)| SavedHistory::new(encoder.name(), encoder.dimensions(), history));
        let state = State {
            version: VERSION,
            profile: self.profile.name.clone(),
            n_steps: self.n_steps,
            normalisers: self.stack.saved(),
            moving_average: self.average.scores().to_vec(),
            best,
            asked: self.asked.clone(),
            ngrams: self.ngrams.as_ref().map(crate::mask::NgramBlacklist::saved).or_else(|| self.unused.ngrams.clone()),
            history: history.or_else(|| self.unused.history.clone()),
        };
        write(path, &state).map_err(|source| StateError::Io { path: path.to_owned(), source })
    }

    /// Loads what [`save`](Self::save) saved. What this validator has no tokenizer or no encoder for is kept aside, and saved
    /// again as it was.
    ///
    /// # Errors
    /// [`StateError`]; nothing has changed then.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<(), StateError> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| StateError::Io { path: path.to_owned(), source })?;
        let damaged = |reason: String| StateError::Damaged { path: path.to_owned(), reason };
        let version: Version = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if version.version != VERSION {
            return Err(StateError::Version { path: path.to_owned(), found: version.version });
        }
        let mut state: State = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if state.profile != self.profile.name {
            let expected = self.profile.name.clone();
            return Err(StateError::Profile { path: path.to_owned(), found: state.profile, expected });
        }
        let (mut stack, mut average) = (self.stack.clone(), self.average.clone());
        stack.restore(&state.normalisers).map_err(damaged)?;
        average.restore(state.moving_average).map_err(damaged)?;
        let mut history = self.history.clone();
        if let Some((encoder, saved)) = self.encoder().zip(state.history.as_ref()) {
            if (encoder.name(), encoder.dimensions()) != (saved.encoder.as_str(), saved.dimensions) {
                let found = format!("{} of {} dimensions", saved.encoder, saved.dimensions);
                let expected = format!("{} of {} dimensions", encoder.name(), encoder.dimensions());
                return Err(StateError::Encoder { path: path.to_owned(), found, expected });
            }
            let restored = GateHistory::restored(&self.profile.gate, saved.dimensions, &saved.rows().map_err(damaged)?);
            history = Some(restored.map_err(|problem| damaged(format!("history.rows: {problem}")))?);
            state.history = None;
        }
        if let Some(ngrams) = &mut self.ngrams
            && let Some(saved) = state.ngrams.take()
        {
            ngrams.restore(saved).map_err(damaged)?;
        }
        (self.stack, self.average, self.n_steps) = (stack, average, state.n_steps);
        self.history = history;
        self.unused = Unused { ngrams: state.ngrams, history: state.history };
        self.blacklist.reset();
        state.best.into_iter().for_each(|best| self.blacklist.add_best(best));
        self.asked = state.asked;
        Ok(())
    }
}

fn write(path: &Path, state: &State) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it has no file name"))?;
    let mut beside = name.to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(beside);
    let written = (|| {
        let mut file = BufWriter::new(File::create(&beside)?);
        serde_json::to_writer(&mut file, state)?;
        file.flush()?;
        file.get_ref().sync_all()?;
        fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}
