//! Reading safetensors files: the header with checks, and tensors a stretch at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use serde::Deserialize;

use crate::error::LoadError;

/// Largest header that is read; real ones are far smaller.
const MAX_HEADER: u64 = 64 << 20;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// An open safetensors file.
pub(crate) struct SafeTensors {
    path: PathBuf,
    file: File,
    /// Where the tensors' bytes begin.
    data: u64,
    entries: HashMap<String, Entry>,
}

impl std::fmt::Debug for SafeTensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SafeTensors({})", self.path.display())
    }
}

/// A tensor's form and place.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) format: GgmlDType,
    pub(crate) dimensions: Vec<usize>,
    /// Where its bytes begin in the file; all of them are there.
    pub(crate) begin: u64,
}

impl SafeTensors {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let mut file = File::open(path).map_err(|e| LoadError::io(path, e))?;
        let size = file.metadata().map_err(|e| LoadError::io(path, e))?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| LoadError::damaged(path, "it is too short for a safetensors file"))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER.min(size.saturating_sub(8)) {
            return Err(LoadError::damaged(path, format!("its header claims {length} bytes")));
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_HEADER")]
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(|e| LoadError::io(path, e))?;
        let broken = |e: serde_json::Error| LoadError::damaged(path, format!("its header: {e}"));
        let mut raw: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&header).map_err(broken)?;
        raw.remove("__metadata__");
        let entries: HashMap<String, Entry> = serde_json::from_value(serde_json::Value::Object(raw)).map_err(broken)?;
        let data = 8 + length;
        if let Some((name, _)) = entries.iter().find(|(_, entry)| entry.data_offsets.1 > size - data) {
            return Err(LoadError::damaged(path, format!("tensor {name:?} goes beyond the end of the file")));
        }
        Ok(Self { path: path.to_owned(), file, data, entries })
    }

    /// Returns the file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the names of all tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Returns a tensor's form and place.
    pub(crate) fn stored(&self, name: &str) -> Result<Stored, LoadError> {
        let damaged = |reason: String| LoadError::damaged(&self.path, format!("tensor {name:?} {reason}"));
        let entry = self.entries.get(name).ok_or_else(|| damaged("is missing".to_owned()))?;
        let format = match entry.dtype.as_str() {
            "F32" => GgmlDType::F32,
            "F16" => GgmlDType::F16,
            "BF16" => GgmlDType::BF16,
            other => {
                let what = format!("tensor {name:?} of type {other}");
                return Err(LoadError::unsupported(&self.path, what, "F32, F16, BF16"));
            }
        };
        let (begin, end) = entry.data_offsets;
        let len = entry.shape.iter().try_fold(format.type_size(), |len: usize, n| len.checked_mul(*n));
        if len.is_none_or(|len| end.checked_sub(begin) != Some(len as u64)) {
            return Err(damaged(format!("has {begin}..{end} as place of {:?} values", entry.shape)));
        }
        Ok(Stored { format, dimensions: entry.shape.clone(), begin: self.data + begin })
    }

    /// Reads bytes of the file.
    pub(crate) fn read(&mut self, begin: u64, bytes: &mut [u8]) -> Result<(), LoadError> {
        let read = self.file.seek(SeekFrom::Start(begin)).and_then(|_| self.file.read_exact(bytes));
        read.map_err(|e| LoadError::io(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn refused(header: &str, data: &[u8]) -> String {
        let (_dir, path) = file(header, data);
        SafeTensors::open(&path).and_then(|file| file.stored("a").map(drop)).unwrap_err().to_string()
    }

    #[test]
    fn tensors_are_found_and_read() {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2,1],"data_offsets":[4,8]}}"#;
        let (_dir, path) = file(header, &[9, 9, 9, 9, 1, 2, 3, 4]);
        let mut file = SafeTensors::open(&path).unwrap();
        let stored = file.stored("a").unwrap();
        assert_eq!((stored.format, &stored.dimensions[..]), (GgmlDType::F16, &[2, 1][..]));
        let mut bytes = [0; 4];
        file.read(stored.begin, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert_eq!(file.names().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn broken_files_are_refused() {
        assert!(refused("{}", &[]).contains("is missing"));
        assert!(refused("{", &[]).contains("header"));
        assert!(
            refused(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 3]).contains("beyond the end")
        );
        assert!(refused(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, &[0; 4]).contains("as place of"));
        assert!(refused(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,0]}}"#, &[0; 4]).contains("as place of"));
        assert!(refused(r#"{"a":{"dtype":"I8","shape":[4],"data_offsets":[0,4]}}"#, &[0; 4]).contains("of type I8"));
        let huge = format!(r#"{{"a":{{"dtype":"F32","shape":[{0},{0}],"data_offsets":[0,4]}}}}"#, u64::MAX);
        assert!(refused(&huge, &[0; 4]).contains("as place of"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
        assert!(SafeTensors::open(&path).unwrap_err().to_string().contains("header claims"));
        std::fs::write(&path, b"abc").unwrap();
        assert!(SafeTensors::open(&path).unwrap_err().to_string().contains("too short"));
    }
}
