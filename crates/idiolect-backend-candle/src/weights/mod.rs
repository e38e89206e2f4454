//! A model's tensors by what they are for, wherever they come from: GGUF files and folders of safetensors.
//!
//! Matrices are given a band of rows at a time, so that packing them needs little more memory than the result.

mod codec;
mod hub;
mod role;
#[cfg(test)]
mod tests;

use std::path::Path;

use candle_core::quantized::GgmlDType;
use idiolect_kernels::{Format, Matrix, Packer, Tier};

use self::hub::Hub;
use self::role::{Names, Place, Scheme};
use crate::engine::Params;
use crate::error::LoadError;
use crate::loader::Gguf;
use crate::safetensors::Stored;

pub(crate) use self::codec::RowLayout;
pub(crate) use self::hub::json;
pub(crate) use self::role::{Part, Role};

/// Bytes of a band.
const BAND_BYTES: usize = 4 << 20;

/// Rows of a band are a multiple of this, but for the last band.
pub(crate) const BAND_ROWS: usize = 64;

/// Formats that the kernels take as they are.
const TAKEN: [GgmlDType; 11] = [
    GgmlDType::F32,
    GgmlDType::F16,
    GgmlDType::BF16,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

/// Takes a band of rows: the number of its first, and bytes.
type Take<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<(), LoadError>;

/// An open model.
pub(crate) struct Weights {
    source: Source,
    names: Names,
    params: Params,
    /// The format that every matrix is encoded in anew, where its rows fill whole blocks.
    quantize: Option<GgmlDType>,
}

enum Source {
    Gguf(Box<Gguf>),
    Hub(Box<Hub>),
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Weights({})", self.path().display())
    }
}

/// How a matrix is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) layout: RowLayout,
    pub(crate) rows: usize,
}

/// A matrix that was read.
pub(crate) struct Encoded {
    pub(crate) layout: RowLayout,
    pub(crate) rows: usize,
    pub(crate) bytes: Vec<u8>,
}

impl Source {
    /// Returns the file that holds a tensor, by number, and the tensor's form and place.
    fn stored(&self, tensor: &str) -> Result<(usize, Stored), LoadError> {
        match self {
            Self::Gguf(gguf) => Ok((0, gguf.stored(tensor)?)),
            Self::Hub(hub) => hub.stored(tensor),
        }
    }

    fn read(&mut self, file: usize, begin: u64, bytes: &mut [u8]) -> Result<(), LoadError> {
        match self {
            Self::Gguf(gguf) => gguf.read_at(begin, bytes),
            Self::Hub(hub) => hub.read(file, begin, bytes),
        }
    }

    fn path(&self, file: usize) -> &Path {
        match self {
            Self::Gguf(gguf) => gguf.path(),
            Self::Hub(hub) => hub.path(file),
        }
    }
}

/// Returns the kernels' name of a format that they take.
const fn kernel_format(format: GgmlDType) -> Format {
    match format {
        GgmlDType::F32 => Format::F32,
        GgmlDType::F16 => Format::F16,
        GgmlDType::BF16 => Format::Bf16,
        GgmlDType::Q4_0 => Format::Q4_0,
        GgmlDType::Q4_1 => Format::Q4_1,
        GgmlDType::Q5_0 => Format::Q5_0,
        GgmlDType::Q5_1 => Format::Q5_1,
        GgmlDType::Q4K => Format::Q4K,
        GgmlDType::Q5K => Format::Q5K,
        GgmlDType::Q6K => Format::Q6K,
        GgmlDType::Q8_0 | GgmlDType::Q8_1 | GgmlDType::Q2K | GgmlDType::Q3K | GgmlDType::Q8K => Format::Q8_0,
    }
}

/// Returns candle's name of a format.
fn candle_format(path: &Path, format: Format) -> Result<GgmlDType, LoadError> {
    let known = TAKEN.into_iter().find(|known| kernel_format(*known) == format);
    known.ok_or_else(|| LoadError::unsupported(path, format!("encoding weights as {format}"), "F32, F16, Q8_0, Q4_0 …"))
}

/// A stretch of rows in a file.
struct Rows {
    place: Place,
    file: usize,
    layout: RowLayout,
    rows: usize,
    begin: u64,
}

impl Weights {
    /// Opens a GGUF file, a folder of safetensors with its `config.json`, or one safetensors file in such a folder, and
    /// checks its parameters. `context` is the longest sequence wanted. With `quantize` all matrices are encoded anew.
    pub(crate) fn open(path: &Path, context: usize, quantize: Option<Format>) -> Result<Self, LoadError> {
        let quantize = quantize.map(|format| candle_format(path, format)).transpose()?;
        let hub = path.is_dir() || path.extension().is_some_and(|extension| extension == "safetensors");
        let (source, names, params) = if hub {
            let hub = Hub::open(path)?;
            let names = hub.scheme()?;
            let params = hub.params(&names, context)?;
            (Source::Hub(Box::new(hub)), names, params)
        } else {
            let mut gguf = Gguf::open(path)?;
            let params = Params::read(&mut gguf, context)?;
            let names = Names {
                scheme: Scheme::Gguf,
                joint_qkv: gguf.has("blk.0.attn_qkv.weight"),
                joint_gate_up: !gguf.has("blk.0.ffn_gate.weight") && gguf.has("blk.0.ffn_up.weight"),
            };
            (Source::Gguf(Box::new(gguf)), names, params)
        };
        let weights = Self { source, names, params, quantize };
        weights.check_names()?;
        Ok(weights)
    }

    /// Returns the file or folder.
    pub(crate) fn path(&self) -> &Path {
        match &self.source {
            Source::Gguf(gguf) => gguf.path(),
            Source::Hub(hub) => hub.dir(),
        }
    }

    /// Returns the shape of the model.
    pub(crate) const fn params(&self) -> &Params {
        &self.params
    }

    /// Returns the architecture, by its GGUF name.
    pub(crate) fn architecture(&self) -> Result<String, LoadError> {
        match &self.source {
            Source::Gguf(gguf) => Ok(gguf.text("general.architecture")?.unwrap_or_default().to_owned()),
            Source::Hub(hub) => hub.architecture().map(str::to_owned),
        }
    }

    /// Returns the GGUF file; `None` for safetensors.
    pub(crate) fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Gguf(gguf) => Some(gguf),
            Source::Hub(_) => None,
        }
    }

    /// Refuses models with parts in their layers that nothing here would use.
    fn check_names(&self) -> Result<(), LoadError> {
        let known: std::collections::HashSet<String> =
            Names::roles(&self.params).map(|role| self.names.place(role, &self.params).tensor).collect();
        let prefix = match &self.names.scheme {
            Scheme::Gguf => "blk.".to_owned(),
            Scheme::Hub { prefix, .. } => format!("{prefix}layers."),
        };
        let names: Vec<&str> = match &self.source {
            Source::Gguf(gguf) => gguf.tensors().collect(),
            Source::Hub(hub) => hub.names().collect(),
        };
        let harmless = |name: &str| name.ends_with(".rotary_emb.inv_freq") || name.ends_with(".rope_freqs.weight");
        let beyond = |name: &&&str| {
            // Files may carry layers for predicting several tokens at once.
            name.strip_prefix(&prefix).is_some_and(|rest| {
                let index = rest.split('.').next().and_then(|index| index.parse::<usize>().ok());
                index.is_none_or(|index| index < self.params.layers.len()) && !known.contains(**name) && !harmless(name)
            })
        };
        match names.iter().filter(beyond).min() {
            Some(name) => {
                let supported = "the tensors of Llama, Qwen 2 and 3, Phi-3 and Gemma 1 to 3";
                Err(LoadError::unsupported(self.path(), format!("tensor {name:?}"), supported))
            }
            None => Ok(()),
        }
    }

    /// Finds a role's rows, and checks that they are what the parameters promise.
    fn rows(&self, role: Role) -> Result<Rows, LoadError> {
        let (rows, cols) = role.shape(&self.params);
        let place = self.names.place(role, &self.params);
        let (file, stored) = self.source.stored(&place.tensor)?;
        let path = self.source.path(file);
        // A vector's values lie in one row; of a joint one they are a part.
        let expected = if rows == 1 { vec![place.of] } else { vec![place.of, cols] };
        if stored.dimensions != expected {
            let reason = format!("tensor {:?} is {:?}, expected {expected:?}", place.tensor, stored.dimensions);
            return Err(LoadError::damaged(path, reason));
        }
        let misaligned = || {
            let format = stored.format;
            let reason = format!("tensor {:?} has rows of {cols} values, which {format:?} cannot hold", place.tensor);
            LoadError::damaged(path, reason)
        };
        let layout = RowLayout::new(stored.format, cols).ok_or_else(misaligned)?;
        let before = if rows == 1 {
            if place.first == 0 { 0 } else { RowLayout::new(stored.format, place.first).ok_or_else(misaligned)?.bytes }
        } else {
            place.first * layout.bytes
        };
        Ok(Rows { file, layout, rows, begin: stored.begin + before as u64, place })
    }

    /// Returns how a matrix will be given.
    pub(crate) fn form(&self, role: Role) -> Result<Form, LoadError> {
        let Rows { place, file, layout: RowLayout { format: stored, cols, .. }, rows, .. } = self.rows(role)?;
        let fitting = |format: GgmlDType| RowLayout::new(format, cols);
        if !cols.is_multiple_of(32) {
            let what = format!("tensor {:?} with rows of {cols} values", place.tensor);
            return Err(LoadError::unsupported(self.source.path(file), what, "rows of a multiple of 32 values"));
        }
        let wanted = match self.quantize {
            Some(_) => self.anew(role, cols).or_else(|| fitting(GgmlDType::Q8_0)),
            None if TAKEN.contains(&stored) => fitting(stored),
            None => fitting(GgmlDType::Q8_0),
        };
        match wanted {
            Some(layout) => Ok(Form { layout, rows }),
            None => {
                let what = format!("tensor {:?} in {stored:?} with rows of {cols} values", place.tensor);
                Err(LoadError::unsupported(self.source.path(file), what, "rows that fill whole blocks"))
            }
        }
    }

    /// Returns the layout that a role's rows are encoded in anew; `None` where they stay, or do not fill its blocks.
    ///
    /// Embeddings and output never get fewer than eight bits: much of what four lose is lost there.
    fn anew(&self, role: Role, cols: usize) -> Option<RowLayout> {
        let coarse = |format: &GgmlDType| {
            matches!(
                format,
                GgmlDType::Q4_0
                    | GgmlDType::Q4_1
                    | GgmlDType::Q5_0
                    | GgmlDType::Q5_1
                    | GgmlDType::Q4K
                    | GgmlDType::Q5K
                    | GgmlDType::Q6K
            )
        };
        let format = match role {
            Role::Embeddings | Role::Output => {
                self.quantize.filter(coarse).map_or(self.quantize, |_| Some(GgmlDType::Q8_0))
            }
            _ => self.quantize,
        };
        RowLayout::new(format?, cols)
    }

    /// Gives the rows of a matrix in order, as [`form`](Self::form) says, in bands of whole rows: first row, bytes.
    pub(crate) fn bands(&mut self, role: Role, take: Take<'_>) -> Result<(), LoadError> {
        let form = self.form(role)?;
        let stored = self.rows(role)?;
        let band = (BAND_BYTES / stored.layout.bytes.max(form.layout.bytes)).max(1).next_multiple_of(BAND_ROWS);
        let (mut bytes, mut encoded) = (Vec::new(), Vec::new());
        for first in (0..form.rows).step_by(band) {
            let rows = band.min(form.rows - first);
            self.read_rows(&stored, first, rows, &mut bytes)?;
            if form.layout == stored.layout {
                take(first, &bytes)?;
                continue;
            }
            let mut values = vec![0.0; rows * form.layout.cols];
            encoded.clear();
            stored
                .layout
                .decode(&bytes, &mut values)
                .and_then(|()| form.layout.encode(values, &mut encoded))
                .map_err(|e| self.broken(&stored, &e))?;
            take(first, &encoded)?;
        }
        Ok(())
    }

    /// Reads matrices and packs them for the processor's kernels, each below the one before.
    pub(crate) fn matrix(&mut self, roles: &[Role], tier: Tier) -> Result<Matrix, LoadError> {
        let (mut parts, mut cols) = (Vec::new(), 0);
        for role in roles {
            let form = self.form(*role)?;
            parts.push((form.rows, kernel_format(form.layout.format)));
            cols = form.layout.cols;
        }
        let failed = |path: &Path, e: idiolect_kernels::PackError| LoadError::damaged(path, e);
        let mut packer = Packer::new(cols, &parts, tier).map_err(|e| failed(self.path(), e))?;
        for role in roles {
            self.bands(*role, &mut |_, bytes| {
                packer.push(bytes);
                Ok(())
            })?;
        }
        packer.finish().map_err(|e| failed(self.path(), e))
    }

    /// Reads a vector.
    pub(crate) fn vector(&mut self, role: Role) -> Result<Vec<f32>, LoadError> {
        let stored = self.rows(role)?;
        let mut bytes = Vec::new();
        self.read_rows(&stored, 0, 1, &mut bytes)?;
        let mut values = vec![0.0; stored.layout.cols];
        stored.layout.decode(&bytes, &mut values).map_err(|e| self.broken(&stored, &e))?;
        // These files have Gemma's norms less one.
        if role.is_norm()
            && let Source::Hub(hub) = &self.source
            && hub.architecture()?.starts_with("gemma")
        {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(values)
    }

    /// Reads a matrix as it is to be kept on a device: in the file's own format, if it is not to be encoded anew.
    pub(crate) fn encoded(&mut self, role: Role) -> Result<Encoded, LoadError> {
        let stored = self.rows(role)?;
        let (rows, cols) = (stored.rows, stored.layout.cols);
        let mut bytes = Vec::new();
        self.read_rows(&stored, 0, rows, &mut bytes)?;
        let mut layout = stored.layout;
        if let Some(wanted) = self.anew(role, cols)
            && wanted != layout
        {
            let mut values = vec![0.0; rows * cols];
            let decoded = layout.decode(&bytes, &mut values);
            bytes.clear();
            decoded.and_then(|()| wanted.encode(values, &mut bytes)).map_err(|e| self.broken(&stored, &e))?;
            layout = wanted;
        }
        Ok(Encoded { layout, rows, bytes })
    }

    fn read_rows(&mut self, stored: &Rows, first: usize, rows: usize, bytes: &mut Vec<u8>) -> Result<(), LoadError> {
        let layout = stored.layout;
        bytes.resize(rows * layout.bytes, 0);
        self.source.read(stored.file, stored.begin + (first * layout.bytes) as u64, bytes)?;
        if layout.is_finite(bytes) { Ok(()) } else { Err(self.broken(stored, "it holds a value that is no number")) }
    }

    fn broken(&self, stored: &Rows, reason: &str) -> LoadError {
        LoadError::damaged(self.source.path(stored.file), format!("tensor {:?}: {reason}", stored.place.tensor))
    }
}
