//! Reads the header of a GGUF file: metadata and tensor descriptions, never the weights.
//!
//! The file may be hostile: every length is checked against what is left of the file before it is believed, large arrays are skipped
//! and only counted, and nothing panics.
//!
//! ```
//! # let mut file = b"GGUF".to_vec();
//! # file.extend(3u32.to_le_bytes());
//! # file.extend(0u64.to_le_bytes());
//! # file.extend(1u64.to_le_bytes());
//! # let mut string = |file: &mut Vec<u8>, text: &str| { file.extend((text.len() as u64).to_le_bytes()); file.extend(text.as_bytes()); };
//! # string(&mut file, "general.architecture");
//! # file.extend(8u32.to_le_bytes());
//! # string(&mut file, "llama");
//! use idiolect_models::gguf::GgufHeader;
//!
//! let header = GgufHeader::parse(std::io::Cursor::new(&file))?;
//! assert_eq!(header.architecture(), Some("llama"));
//! # Ok::<(), idiolect_models::gguf::GgufError>(())
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;

/// Longest text that is kept; chat templates are the longest that occur, with some ten kilobytes.
const MAX_STRING: u64 = 16 << 20;
/// Longest array whose items are kept.
const MAX_KEPT_ITEMS: u64 = 64;
/// Arrays of arrays are allowed by the format and used by no one.
const MAX_DEPTH: u32 = 4;
const MAX_METADATA: u64 = 1 << 16;
const MAX_TENSORS: u64 = 1 << 18;
const MAX_DIMENSIONS: u32 = 8;

/// Why a file's header could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// It does not start as a GGUF file does.
    #[error("not a GGUF file: it starts with {found:02x?}")]
    NotGguf {
        /// The first bytes.
        found: [u8; 4],
    },
    /// A version, or byte order, that is not supported.
    #[error("GGUF version {version} is not supported, only 2 and 3")]
    Version {
        /// The version that the file states.
        version: u32,
    },
    /// A value that no real file has.
    #[error("broken GGUF header at byte {at}: {problem}")]
    Broken {
        /// Offset in the file.
        at: u64,
        /// What is wrong.
        problem: String,
    },
    /// The file cannot be read, or ends too early.
    #[error("cannot read the GGUF header: {0}")]
    Io(#[from] io::Error),
}

/// One metadata value.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Value {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Either float type.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text; bytes that are no UTF-8 are replaced.
    Text(String),
    /// An array, with its items if they are few.
    Array {
        /// How many items it has.
        len: u64,
        /// The items, empty where there are more than 64.
        items: Vec<Self>,
    },
}

impl Value {
    /// The value as a non-negative integer.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A tensor's description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its shape, fastest dimension first.
    pub dimensions: Vec<u64>,
    /// The number of its type.
    pub kind: u32,
    /// Where its data starts, from the start of the data section.
    pub offset: u64,
}

impl TensorInfo {
    /// How many numbers it holds; saturates.
    pub fn n_elements(&self) -> u64 {
        self.dimensions.iter().fold(1, |product, n| product.saturating_mul(*n))
    }

    /// The name of its type, as in `Q4_1`.
    pub fn kind_name(&self) -> Option<&'static str> {
        tensor_type(self.kind).map(|(name, ..)| name)
    }

    /// Bytes of its data; `None` for types that this version does not know.
    pub fn n_bytes(&self) -> Option<u64> {
        let (_, per_block, bytes) = tensor_type(self.kind)?;
        Some(self.n_elements().div_ceil(per_block).saturating_mul(bytes))
    }
}

/// What a GGUF file says of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GgufHeader {
    /// The format's version, 2 or 3.
    pub version: u32,
    /// All metadata.
    pub metadata: BTreeMap<String, Value>,
    /// All tensors, in file order.
    pub tensors: Vec<TensorInfo>,
    /// Where the data section starts.
    pub data_offset: u64,
    /// The size of the file.
    pub file_bytes: u64,
}

/// The facts that people ask for first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GgufSummary {
    /// As in `llama`.
    pub architecture: Option<String>,
    /// The model's own name.
    pub name: Option<String>,
    /// The licence that the file states.
    pub licence: Option<String>,
    /// Tokens that fit at most.
    pub context_length: Option<u64>,
    /// Layers.
    pub n_layers: Option<u64>,
    /// Width of a layer.
    pub embedding_length: Option<u64>,
    /// Size of the vocabulary.
    pub n_vocab: Option<u64>,
    /// The tokenizer's kind, as in `gpt2`.
    pub tokenizer: Option<String>,
    /// Parameters of all tensors.
    pub n_params: u64,
    /// What the file calls its quantisation, else the type that most parameters have.
    pub quantisation: Option<String>,
    /// Parameters by type.
    pub params_by_type: BTreeMap<String, u64>,
    /// Whether a chat template is there, so whether it is a chat model.
    pub has_chat_template: bool,
    /// The size of the file.
    pub file_bytes: u64,
    /// Bytes that the tensors need beyond the end of the file: more than 0 means it was cut off.
    pub missing_bytes: u64,
}

impl GgufHeader {
    /// Reads the header of a file.
    ///
    /// # Errors
    ///
    /// It cannot be opened, or holds no sound header.
    pub fn read(path: &Path) -> Result<Self, GgufError> {
        Self::parse(BufReader::with_capacity(1 << 16, File::open(path)?))
    }

    /// Reads a header from the start of `source`.
    ///
    /// # Errors
    ///
    /// It holds no sound header.
    pub fn parse(mut source: impl Read + Seek) -> Result<Self, GgufError> {
        let file_bytes = source.seek(SeekFrom::End(0))?;
        source.seek(SeekFrom::Start(0))?;
        let mut input = Input { source, at: 0, end: file_bytes };
        let magic = input.bytes::<4>()?;
        if &magic != b"GGUF" {
            return Err(GgufError::NotGguf { found: magic });
        }
        let version = input.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(GgufError::Version { version });
        }
        let n_tensors = input.count("tensors", MAX_TENSORS)?;
        let n_metadata = input.count("metadata entries", MAX_METADATA)?;
        let mut metadata = BTreeMap::new();
        for _ in 0..n_metadata {
            let key = input.string()?;
            let kind = input.u32()?;
            let value = input.value(kind, 0)?;
            metadata.insert(key, value);
        }
        let mut tensors = Vec::new();
        for _ in 0..n_tensors {
            tensors.push(input.tensor()?);
        }
        let alignment = metadata.get("general.alignment").and_then(Value::as_u64).unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(input.broken(format!("alignment {alignment}")));
        }
        let data_offset = input.at.next_multiple_of(alignment);
        Ok(Self { version, metadata, tensors, data_offset, file_bytes })
    }

    /// The model's architecture, as in `llama`.
    pub fn architecture(&self) -> Option<&str> {
        self.text("general.architecture")
    }

    /// The chat template, if there is one.
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
    }

    /// Tokens that fit at most.
    pub fn context_length(&self) -> Option<u64> {
        self.of_architecture("context_length")
    }

    /// A metadata value whose key starts with the architecture's name, as in `llama.block_count`.
    pub fn of_architecture(&self, key: &str) -> Option<u64> {
        self.metadata.get(&format!("{}.{key}", self.architecture()?))?.as_u64()
    }

    /// Parameters of all tensors; saturates.
    pub fn n_params(&self) -> u64 {
        self.tensors.iter().map(TensorInfo::n_elements).fold(0, u64::saturating_add)
    }

    /// Parameters by type name.
    pub fn params_by_type(&self) -> BTreeMap<String, u64> {
        let mut by_type = BTreeMap::new();
        for tensor in &self.tensors {
            let name = tensor.kind_name().map_or_else(|| format!("type {}", tensor.kind), str::to_owned);
            let sum: &mut u64 = by_type.entry(name).or_default();
            *sum = sum.saturating_add(tensor.n_elements());
        }
        by_type
    }

    /// The quantisation: what the file calls itself (as in `Q4_K_M`), else the type that most parameters have.
    pub fn quantisation(&self) -> Option<String> {
        let stated = self.metadata.get("general.file_type").and_then(Value::as_u64).and_then(file_type);
        let most = || self.params_by_type().into_iter().max_by_key(|(_, n)| *n).map(|(name, _)| name);
        stated.map(str::to_owned).or_else(most)
    }

    /// Bytes that the tensors need beyond the end of the file.
    pub fn missing_bytes(&self) -> u64 {
        let end = |tensor: &TensorInfo| {
            self.data_offset.saturating_add(tensor.offset).saturating_add(tensor.n_bytes().unwrap_or(0))
        };
        self.tensors.iter().map(end).max().unwrap_or(0).saturating_sub(self.file_bytes)
    }

    /// The facts that people ask for first.
    pub fn summary(&self) -> GgufSummary {
        let n_vocab = match self.metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Array { len, .. }) => Some(*len),
            _ => self.of_architecture("vocab_size"),
        };
        GgufSummary {
            architecture: self.architecture().map(str::to_owned),
            name: self.text("general.name").map(str::to_owned),
            licence: self.text("general.license").map(str::to_owned),
            context_length: self.context_length(),
            n_layers: self.of_architecture("block_count"),
            embedding_length: self.of_architecture("embedding_length"),
            n_vocab,
            tokenizer: self.text("tokenizer.ggml.model").map(str::to_owned),
            n_params: self.n_params(),
            quantisation: self.quantisation(),
            params_by_type: self.params_by_type(),
            has_chat_template: self.chat_template().is_some(),
            file_bytes: self.file_bytes,
            missing_bytes: self.missing_bytes(),
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.metadata.get(key)?.as_str()
    }
}

/// A reader that knows how much is left.
struct Input<R> {
    source: R,
    at: u64,
    end: u64,
}

impl<R: Read + Seek> Input<R> {
    fn broken(&self, problem: String) -> GgufError {
        GgufError::Broken { at: self.at, problem }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, GgufError> {
        let n = self.u64()?;
        if n > most { Err(self.broken(format!("{n} {what}"))) } else { Ok(n) }
    }

    /// Checks that `n` more bytes exist.
    fn expect(&self, n: u64, what: &str) -> Result<u64, GgufError> {
        let left = self.end.saturating_sub(self.at);
        if n > left { Err(self.broken(format!("{what} of {n} bytes, {left} are left"))) } else { Ok(n) }
    }

    fn string(&mut self) -> Result<String, GgufError> {
        let n = self.u64()?;
        if n > MAX_STRING {
            return Err(self.broken(format!("a text of {n} bytes")));
        }
        let n = self.expect(n, "a text")?;
        let mut bytes = vec![0; usize::try_from(n).unwrap_or_default()];
        self.source.read_exact(&mut bytes)?;
        self.at += n;
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    fn skip(&mut self, n: u64, what: &str) -> Result<(), GgufError> {
        let n = self.expect(n, what)?;
        let distance = i64::try_from(n).map_err(|_| self.broken(format!("{what} of {n} bytes")))?;
        self.source.seek_relative(distance)?;
        self.at += n;
        Ok(())
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value, GgufError> {
        Ok(match kind {
            0 => Value::Unsigned(self.bytes::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.bytes::<1>()?[0] != 0),
            8 => Value::Text(self.string()?),
            9 => self.array(depth)?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(self.broken(format!("metadata type {other}"))),
        })
    }

    fn array(&mut self, depth: u32) -> Result<Value, GgufError> {
        if depth >= MAX_DEPTH {
            return Err(self.broken("arrays nested too deep".into()));
        }
        let kind = self.u32()?;
        let len = self.u64()?;
        if len <= MAX_KEPT_ITEMS {
            let items = (0..len).map(|_| self.value(kind, depth + 1)).collect::<Result<_, _>>()?;
            return Ok(Value::Array { len, items });
        }
        match kind {
            0 | 1 | 7 => self.skip(len, "an array")?,
            2 | 3 => self.skip(len.saturating_mul(2), "an array")?,
            4..=6 => self.skip(len.saturating_mul(4), "an array")?,
            10..=12 => self.skip(len.saturating_mul(8), "an array")?,
            8 => {
                // Each text takes eight bytes at least.
                self.expect(len.saturating_mul(8), "an array")?;
                for _ in 0..len {
                    let n = self.u64()?;
                    self.skip(n, "a text")?;
                }
            }
            other => return Err(self.broken(format!("an array of {len} items of type {other}"))),
        }
        Ok(Value::Array { len, items: Vec::new() })
    }

    fn tensor(&mut self) -> Result<TensorInfo, GgufError> {
        let name = self.string()?;
        let n_dimensions = self.u32()?;
        if n_dimensions > MAX_DIMENSIONS {
            return Err(self.broken(format!("tensor {name:?} with {n_dimensions} dimensions")));
        }
        let dimensions = (0..n_dimensions).map(|_| self.u64()).collect::<Result<_, _>>()?;
        Ok(TensorInfo { name, dimensions, kind: self.u32()?, offset: self.u64()? })
    }
}

/// Name, elements per block and bytes per block.
fn tensor_type(kind: u32) -> Option<(&'static str, u64, u64)> {
    Some(match kind {
        0 => ("F32", 1, 4),
        1 => ("F16", 1, 2),
        2 => ("Q4_0", 32, 18),
        3 => ("Q4_1", 32, 20),
        6 => ("Q5_0", 32, 22),
        7 => ("Q5_1", 32, 24),
        8 => ("Q8_0", 32, 34),
        9 => ("Q8_1", 32, 36),
        10 => ("Q2_K", 256, 84),
        11 => ("Q3_K", 256, 110),
        12 => ("Q4_K", 256, 144),
        13 => ("Q5_K", 256, 176),
        14 => ("Q6_K", 256, 210),
        15 => ("Q8_K", 256, 292),
        16 => ("IQ2_XXS", 256, 66),
        17 => ("IQ2_XS", 256, 74),
        18 => ("IQ3_XXS", 256, 98),
        19 => ("IQ1_S", 256, 50),
        20 => ("IQ4_NL", 32, 18),
        21 => ("IQ3_S", 256, 110),
        22 => ("IQ2_S", 256, 82),
        23 => ("IQ4_XS", 256, 136),
        24 => ("I8", 1, 1),
        25 => ("I16", 1, 2),
        26 => ("I32", 1, 4),
        27 => ("I64", 1, 8),
        28 => ("F64", 1, 8),
        29 => ("IQ1_M", 256, 56),
        30 => ("BF16", 1, 2),
        34 => ("TQ1_0", 256, 54),
        35 => ("TQ2_0", 256, 66),
        39 => ("MXFP4", 32, 17),
        _ => return None,
    })
}

/// The names that go with `general.file_type`.
fn file_type(number: u64) -> Option<&'static str> {
    Some(match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        _ => return None,
    })
}
