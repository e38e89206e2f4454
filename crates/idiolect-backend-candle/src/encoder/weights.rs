//! Reading safetensors files one tensor at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
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
pub(super) struct Weights {
    path: PathBuf,
    reader: BufReader<File>,
    data: u64,
    entries: HashMap<String, Entry>,
}

impl Weights {
    /// Opens a file and reads its header.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|e| LoadError::io(path, e))?;
        let size = file.metadata().map_err(|e| LoadError::io(path, e))?.len();
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut length = [0; 8];
        reader
            .read_exact(&mut length)
            .map_err(|_| LoadError::damaged(path, "it is too short for a safetensors file"))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER.min(size.saturating_sub(8)) {
            return Err(LoadError::damaged(path, format!("its header claims {length} bytes")));
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_HEADER")]
        let mut header = vec![0; length as usize];
        reader.read_exact(&mut header).map_err(|e| LoadError::io(path, e))?;
        let mut raw: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&header).map_err(|e| LoadError::damaged(path, format!("its header: {e}")))?;
        raw.remove("__metadata__");
        let entries: HashMap<String, Entry> = serde_json::from_value(serde_json::Value::Object(raw))
            .map_err(|e| LoadError::damaged(path, format!("its header: {e}")))?;
        let data = 8 + length;
        if let Some((name, _)) = entries.iter().find(|(_, entry)| entry.data_offsets.1 > size - data) {
            return Err(LoadError::damaged(path, format!("tensor {name:?} goes beyond the end of the file")));
        }
        Ok(Self { path: path.to_owned(), reader, data, entries })
    }

    /// Says whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Reads a tensor of the given shape as `f32`.
    pub(super) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let damaged = |reason: String| LoadError::damaged(&self.path, format!("tensor {name:?} {reason}"));
        let entry = self.entries.get(name).ok_or_else(|| damaged("is missing".to_owned()))?;
        if entry.shape != shape {
            return Err(damaged(format!("is {:?}, expected {shape:?}", entry.shape)));
        }
        let width = match entry.dtype.as_str() {
            "F32" => 4,
            "F16" | "BF16" => 2,
            other => return Err(LoadError::unsupported(&self.path, format!("tensor type {other}"), "F32, F16, BF16")),
        };
        let (begin, end) = entry.data_offsets;
        let len = shape.iter().try_fold(width, |len: usize, n| len.checked_mul(*n));
        if len.is_none_or(|len| end.checked_sub(begin) != Some(len as u64)) {
            return Err(damaged(format!("has {begin}..{end} as place of {shape:?} values")));
        }
        let mut bytes = vec![0; len.unwrap_or(0)];
        let read =
            self.reader.seek(SeekFrom::Start(self.data + begin)).and_then(|_| self.reader.read_exact(&mut bytes));
        read.map_err(|e| LoadError::io(&self.path, e))?;
        let values: Vec<f32> = match entry.dtype.as_str() {
            "F32" => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            "F16" => bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            _ => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        };
        if values.iter().any(|v| !v.is_finite()) {
            return Err(damaged("holds a value that is no number".to_owned()));
        }
        Ok(values)
    }
}
