//! Reading GGUF files: metadata with checks, and the places of tensors. candle reads the container.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::{GgmlDType, gguf_file};

use crate::error::{LoadError, first_line};
use crate::header::unknown_format;
use crate::safetensors::Stored;
use crate::weights::RowLayout;

/// An open GGUF file.
pub(crate) struct Gguf {
    path: PathBuf,
    content: Content,
    reader: BufReader<File>,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gguf({})", self.path.display())
    }
}

impl Gguf {
    /// Opens a file and reads its header.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path).map_err(|e| LoadError::io(path, e))?;
        if file.metadata().map_err(|e| LoadError::io(path, e))?.is_dir() {
            return Err(LoadError::io(path, std::io::ErrorKind::IsADirectory.into()));
        }
        let mut reader = BufReader::with_capacity(1 << 20, file);
        let mut magic = [0; 4];
        reader.read_exact(&mut magic).map_err(|_| LoadError::damaged(path, "it is too short for a GGUF file"))?;
        if magic != *b"GGUF" {
            return Err(LoadError::damaged(path, "it does not begin with the letters GGUF"));
        }
        reader.rewind().map_err(|e| LoadError::io(path, e))?;
        let content = Content::read(&mut reader).map_err(|e| match unknown_format(path) {
            Some((tensor, format)) => {
                let supported = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";
                LoadError::unsupported(path, format!("tensor {tensor:?} in {format}"), supported)
            }
            None => LoadError::damaged(path, first_line(&e)),
        })?;
        Ok(Self { path: path.to_owned(), content, reader })
    }

    /// Returns the file's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn metadata(&self) -> &HashMap<String, Value> {
        &self.content.metadata
    }

    fn wrong(&self, key: &str, expected: &str) -> LoadError {
        LoadError::damaged(&self.path, format!("metadata {key:?} is not {expected}"))
    }

    /// Fails for a key that must be there and is not.
    pub(crate) fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, LoadError> {
        value.ok_or_else(|| LoadError::damaged(&self.path, format!("metadata {key:?} is missing")))
    }

    /// Returns a whole number of any width.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<u64>, LoadError> {
        let Some(value) = self.metadata().get(key) else { return Ok(None) };
        integer(value).map(Some).ok_or_else(|| self.wrong(key, "a whole number"))
    }

    /// Returns a number that must be there, as a size.
    pub(crate) fn size(&self, key: &str) -> Result<usize, LoadError> {
        let value = self.integer(key)?;
        usize::try_from(self.required(key, value)?).map_err(|_| self.wrong(key, "a size"))
    }

    /// Returns a number.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.metadata().get(key) {
            None => Ok(None),
            Some(Value::F32(v)) if v.is_finite() => Ok(Some(*v)),
            #[expect(clippy::cast_possible_truncation, reason = "hyper-parameters are used as f32")]
            Some(Value::F64(v)) if v.is_finite() => Ok(Some(*v as f32)),
            Some(_) => Err(self.wrong(key, "a finite number")),
        }
    }

    /// Returns a number, be it written as a whole one or not.
    #[expect(clippy::cast_precision_loss, reason = "hyper-parameters are used as f32")]
    pub(crate) fn float_or_integer(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.metadata().get(key).and_then(integer) {
            Some(n) => Ok(Some(n as f32)),
            None => self.float(key),
        }
    }

    /// Returns a text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        match self.metadata().get(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// Returns a truth value.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        match self.metadata().get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    fn list<'a, T>(
        &'a self,
        key: &str,
        of: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, LoadError> {
        match self.metadata().get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => {
                values.iter().map(read).collect::<Option<_>>().map(Some).ok_or_else(|| self.wrong(key, of))
            }
            Some(_) => Err(self.wrong(key, of)),
        }
    }

    /// Returns a list of texts.
    pub(crate) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, LoadError> {
        self.list(key, "a list of texts", |v| match v {
            Value::String(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// Returns a list of numbers.
    pub(crate) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, LoadError> {
        self.list(key, "a list of numbers", |v| match v {
            Value::F32(v) if !v.is_nan() => Some(*v),
            _ => None,
        })
    }

    /// Returns a list of truth values.
    pub(crate) fn flags(&self, key: &str) -> Result<Option<Vec<bool>>, LoadError> {
        self.list(key, "a list of truth values", |v| match v {
            Value::Bool(v) => Some(*v),
            _ => None,
        })
    }

    /// Returns a list of whole numbers.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<u64>>, LoadError> {
        self.list(key, "a list of whole numbers", integer)
    }

    /// Says whether the file has a tensor of this name.
    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.content.tensor_infos.contains_key(tensor)
    }

    /// Returns a tensor's dimensions, outermost first.
    pub(crate) fn dimensions(&self, tensor: &str) -> Result<&[usize], LoadError> {
        Ok(self.info(tensor)?.shape.dims())
    }

    fn info(&self, tensor: &str) -> Result<&gguf_file::TensorInfo, LoadError> {
        let info = self.content.tensor_infos.get(tensor);
        info.ok_or_else(|| LoadError::damaged(&self.path, format!("tensor {tensor:?} is missing")))
    }

    /// Reads a tensor of `len` numbers.
    pub(crate) fn vector(&mut self, tensor: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let Stored { format, dimensions, begin } = self.stored(tensor)?;
        if dimensions != [len] {
            let reason = format!("tensor {tensor:?} is {dimensions:?}, expected [{len}]");
            return Err(LoadError::damaged(&self.path, reason));
        }
        let layout = RowLayout::new(format, len).ok_or_else(|| self.misaligned(tensor, len, format))?;
        let mut bytes = vec![0; layout.bytes];
        self.read_at(begin, &mut bytes)?;
        let mut values = vec![0.0; len];
        layout.decode(&bytes, &mut values).map_err(|e| LoadError::damaged(&self.path, format!("{tensor:?}: {e}")))?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(LoadError::damaged(&self.path, format!("tensor {tensor:?} holds a value that is no number")));
        }
        Ok(values)
    }

    /// Checks that a tensor's bytes are in the file, before memory is taken for them.
    fn check_extent(&self, tensor: &str) -> Result<(), LoadError> {
        let info = self.info(tensor)?;
        let (dtype, cols) = (info.ggml_dtype, info.shape.dims().last().copied().unwrap_or(0));
        let layout = RowLayout::new(dtype, cols).ok_or_else(|| self.misaligned(tensor, cols, dtype))?;
        let rows = match info.shape.dims() {
            [rows, ..] if info.shape.rank() > 1 => *rows,
            _ => 1,
        };
        let size = self.reader.get_ref().metadata().map_err(|e| LoadError::io(&self.path, e))?.len();
        let end = (rows as u64)
            .checked_mul(layout.bytes as u64)
            .and_then(|len| len.checked_add(info.offset))
            .and_then(|end| end.checked_add(self.content.tensor_data_offset));
        if end.is_none_or(|end| end > size) {
            return Err(LoadError::damaged(&self.path, format!("tensor {tensor:?} goes beyond the end of the file")));
        }
        Ok(())
    }

    /// Returns a tensor's form and place; all its bytes are in the file.
    pub(crate) fn stored(&self, tensor: &str) -> Result<Stored, LoadError> {
        self.check_extent(tensor)?;
        let info = self.info(tensor)?;
        let begin = self.content.tensor_data_offset.saturating_add(info.offset);
        Ok(Stored { format: info.ggml_dtype, dimensions: info.shape.dims().to_vec(), begin })
    }

    /// Returns the names of all tensors.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &str> {
        self.content.tensor_infos.keys().map(String::as_str)
    }

    /// Reads bytes of the file.
    pub(crate) fn read_at(&mut self, begin: u64, bytes: &mut [u8]) -> Result<(), LoadError> {
        let read = self.reader.seek(SeekFrom::Start(begin)).and_then(|_| self.reader.read_exact(bytes));
        read.map_err(|e| LoadError::io(&self.path, e))
    }

    fn misaligned(&self, tensor: &str, cols: usize, dtype: GgmlDType) -> LoadError {
        LoadError::damaged(
            &self.path,
            format!("tensor {tensor:?} has rows of {cols} values, which {dtype:?} cannot hold"),
        )
    }
}

fn integer(value: &Value) -> Option<u64> {
    match *value {
        Value::U8(v) => Some(v.into()),
        Value::U16(v) => Some(v.into()),
        Value::U32(v) => Some(v.into()),
        Value::U64(v) => Some(v),
        Value::I8(v) => v.try_into().ok(),
        Value::I16(v) => v.try_into().ok(),
        Value::I32(v) => v.try_into().ok(),
        Value::I64(v) => v.try_into().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TinyGguf;
    use crate::{CandleBackend, CandleConfig};

    fn load(bytes: &[u8]) -> Result<CandleBackend, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broken.gguf");
        std::fs::write(&path, bytes).unwrap();
        CandleBackend::load(&path, CandleConfig::default())
    }

    #[test]
    fn a_sound_file_loads() {
        load(&TinyGguf::model("llama").bytes()).unwrap();
    }

    #[test]
    fn files_that_are_not_there_or_not_gguf_are_refused() {
        let missing = CandleBackend::load(Path::new("/nonexistent/model.gguf"), CandleConfig::default()).unwrap_err();
        assert_eq!(missing.to_string(), "cannot read /nonexistent/model.gguf");
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(CandleBackend::load(dir.path(), CandleConfig::default()), Err(LoadError::Io { .. })));
        assert!(load(b"").unwrap_err().to_string().contains("too short"));
        assert!(load(b"<!DOCTYPE html><html>not found</html>").unwrap_err().to_string().contains("letters GGUF"));
    }

    #[test]
    fn truncated_files_are_refused() {
        let bytes = TinyGguf::model("llama").bytes();
        let step = bytes.len() / 60;
        for len in (0..bytes.len() - 32).step_by(step) {
            assert!(load(&bytes[..len]).is_err(), "{len} of {} bytes", bytes.len());
        }
        let short = load(&bytes[..bytes.len() - 32]).unwrap_err().to_string();
        assert!(short.contains("beyond the end of the file"), "{short}");
    }

    #[test]
    fn garbled_headers_do_no_harm() {
        let bytes = TinyGguf::model("llama").bytes();
        note_panics();
        let mut n_refused = 0;
        let mut state = 1u32;
        for _ in 0..300 {
            let mut garbled = bytes.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // The metadata that matters, and the tensors' descriptions, are in the first and last kilobytes of the header.
                let at = (state >> 8) as usize % 1200;
                garbled[at] = (state >> 24) as u8;
            }
            // Some changes are harmless: it is enough that nothing of ours panics or takes all memory.
            let refused = load(&garbled).err().map(|error| error.to_string());
            let panics = PANICS.take();
            assert!(panics.iter().all(|file| file.contains("candle-core")), "{panics:?}: {refused:?}");
            let is_caught = refused.as_ref().is_some_and(|error| error.contains("contradict each other"));
            assert_eq!(is_caught, !panics.is_empty(), "a panic of another thread: {refused:?}");
            n_refused += usize::from(refused.is_some());
        }
        assert!(n_refused > 100, "{n_refused} of 300 were refused");
    }

    thread_local! {
        /// The sources in which this thread panicked, caught or not.
        static PANICS: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
    }

    /// Notes from now on where a thread panics: what is caught would not be seen otherwise.
    fn note_panics() {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let at = info.location().map_or_else(String::new, ToString::to_string);
                PANICS.with_borrow_mut(|panics| panics.push(at));
                before(info);
            }));
        });
    }

    #[test]
    fn an_alignment_of_zero_is_refused() {
        let mut tiny = TinyGguf::model("llama");
        tiny.set("general.alignment", Value::U32(0));
        assert!(load(&tiny.bytes()).unwrap_err().to_string().contains("contradict"));
    }

    #[test]
    fn bad_settings_are_refused_all_at_once() {
        let config = CandleConfig {
            threads: std::num::NonZeroUsize::new(1025),
            context_tokens: 15,
            queue: 0,
            max_batch: 65_537,
            max_candidates: 0,
            max_kv_bytes: 1000,
            max_kept_bytes: Some(1001),
            ..CandleConfig::default()
        };
        let error = CandleBackend::load(Path::new("x.gguf"), config).unwrap_err().to_string();
        let expected = "threads is 1025, expected 1 to 1024; context_tokens is 15, expected 16 to 16777216; \
            queue is 0, expected 1 to 65536; max_batch is 65537, expected 1 to 65536; \
            max_candidates is 0, expected 1 to 65536; max_kept_bytes is 1001, expected at most max_kv_bytes, which is 1000";
        assert_eq!(error, expected);
        // Whoever gives less memory in all need not say that less of it is kept.
        let small = CandleConfig { max_kv_bytes: 1000, ..CandleConfig::default() };
        assert_eq!((small.bad_settings(), small.kept_bytes()), (Vec::new(), 1000));
    }
}
