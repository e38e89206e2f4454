use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Validator;
use crate::mask::SavedNgrams;
use crate::normaliser::SavedNormaliser;

/// The form of the file. One of another form is refused.
const VERSION: u32 = 1;

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
}

/// Read before all else, since files of other versions have other fields.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl Validator {
    /// Saves the statistics, counts, blacklist and moving average; not the history of embeddings, which is for a store of
    /// replies to keep. The file is complete or not there: it is written beside its place and moved.
    ///
    /// # Errors
    /// [`StateError::Io`]; an earlier file is untouched then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), StateError> {
        let path = path.as_ref();
        let mut best: Vec<String> = self.blacklist.best().cloned().collect();
        best.sort_unstable();
        let state = State {
            version: VERSION,
            profile: self.profile.name.clone(),
            n_steps: self.n_steps,
            normalisers: self.stack.saved(),
            moving_average: self.average.scores().to_vec(),
            best,
            asked: self.asked.clone(),
            ngrams: self.ngrams.as_ref().map(crate::mask::NgramBlacklist::saved),
        };
        write(path, &state).map_err(|source| StateError::Io { path: path.to_owned(), source })
    }

    /// Loads what [`save`](Self::save) saved. Counts of n-grams are passed over where this validator has no tokenizer.
    ///
    /// # Errors
    /// [`StateError`]; nothing has changed then.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<(), StateError> {
        let path = path.as_ref();
        let open =
            || File::open(path).map(BufReader::new).map_err(|source| StateError::Io { path: path.to_owned(), source });
        let damaged = |reason: String| StateError::Damaged { path: path.to_owned(), reason };
        let version: Version = serde_json::from_reader(open()?).map_err(|error| damaged(error.to_string()))?;
        if version.version != VERSION {
            return Err(StateError::Version { path: path.to_owned(), found: version.version });
        }
        let state: State = serde_json::from_reader(open()?).map_err(|error| damaged(error.to_string()))?;
        if state.profile != self.profile.name {
            let expected = self.profile.name.clone();
            return Err(StateError::Profile { path: path.to_owned(), found: state.profile, expected });
        }
        let (mut stack, mut average) = (self.stack.clone(), self.average.clone());
        stack.restore(&state.normalisers).map_err(damaged)?;
        average.restore(state.moving_average).map_err(damaged)?;
        if let Some((ngrams, saved)) = self.ngrams.as_mut().zip(state.ngrams) {
            ngrams.restore(saved).map_err(damaged)?;
        }
        (self.stack, self.average, self.n_steps) = (stack, average, state.n_steps);
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
