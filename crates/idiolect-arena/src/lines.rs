//! Files of JSON lines that grow while an experiment runs, so that one that broke off goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a file of lines cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinesError {
    /// It cannot be read or written.
    #[error("{path} cannot be used")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line is not what it should be.
    #[error("{path}, line {line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// Reads a file of lines. Blank ones are passed over.
///
/// # Errors
/// Any [`LinesError`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, LinesError> {
    let bytes = std::fs::read(path).map_err(|source| LinesError::Io { path: path.to_owned(), source })?;
    parse(path, &bytes)
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<Vec<T>, LinesError> {
    let lines = (1..).zip(bytes.split(|byte| *byte == b'\n')).filter(|(_, text)| !text.trim_ascii().is_empty());
    let value = |(line, text): (usize, &[u8])| {
        serde_json::from_slice(text).map_err(|error| {
            let problem = error.to_string();
            let problem = problem.split(" at line ").next().unwrap_or_default();
            let problem = format!("{problem} at column {}", error.column());
            LinesError::Line { path: path.to_owned(), line, problem }
        })
    };
    lines.map(value).collect()
}

/// A file that whole lines are added to.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Opens a file, making it where there is none, and returns what it has. A last line that a run which broke off left without its end
    /// is cut off.
    ///
    /// # Errors
    /// Any [`LinesError`].
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>), LinesError> {
        let failed = |source| LinesError::Io { path: path.to_owned(), source };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        let mut bytes = std::fs::read(path).map_err(failed)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let found = parse(path, &bytes[..whole])?;
        if whole < bytes.len() {
            // A file that somebody else wrote, without a line break at its end, is no line that broke off.
            if serde_json::from_slice::<T>(&bytes[whole..]).is_ok() {
                bytes.push(b'\n');
                (&file).write_all(b"\n").map_err(failed)?;
                return Ok((Self { path: path.to_owned(), file }, parse(path, &bytes)?));
            }
            file.set_len(whole as u64).map_err(failed)?;
        }
        Ok((Self { path: path.to_owned(), file }, found))
    }

    /// Adds lines, all of them with one write.
    ///
    /// # Errors
    /// [`LinesError::Io`].
    pub fn add<T: Serialize>(&mut self, values: &[T]) -> Result<(), LinesError> {
        let failed = |source| LinesError::Io { path: self.path.clone(), source };
        let mut text = Vec::new();
        for value in values {
            serde_json::to_writer(&mut text, value).map_err(|error| failed(error.into()))?;
            text.push(b'\n');
        }
        self.file.write_all(&text).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_is_cut_off_and_whole_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        let (mut lines, found) = Lines::open::<Vec<u32>>(&path).unwrap();
        assert!(found.is_empty());
        lines.add(&[vec![1, 2], vec![3]]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole, b"[1,2]\n[3]\n");
        std::fs::write(&path, b"[1,2]\n[3]\n[4,").unwrap();
        let (mut lines, found) = Lines::open::<Vec<u32>>(&path).unwrap();
        assert_eq!(found, [vec![1, 2], vec![3]]);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        lines.add(&[vec![5]]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap().len(), 3);
        std::fs::write(&path, b"[1]\n[2]").unwrap();
        assert_eq!(Lines::open::<Vec<u32>>(&path).unwrap().1, [vec![1], vec![2]]);
        assert_eq!(std::fs::read(&path).unwrap(), b"[1]\n[2]\n");
    }

    #[test]
    fn a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lines.jsonl");
        std::fs::write(&path, b"[1]\n\n{}\n").unwrap();
        let error = Lines::open::<Vec<u32>>(&path).unwrap_err().to_string();
        assert!(error.contains("lines.jsonl, line 3: invalid type: map, expected a sequence"), "{error}");
        assert!(matches!(Lines::open::<u32>(&dir.path().join("no/file")), Err(LinesError::Io { .. })));
    }
}
