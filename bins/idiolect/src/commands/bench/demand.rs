//! What a model asks of the machine, read off the descriptions of its tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use idiolect_kernels::Format;
use idiolect_miner::config::{KvFormat, WeightFormat};
use idiolect_models::gguf::GgufHeader;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Largest header of a safetensors file that is read.
const MAX_HEADER: u64 = 64 << 20;

/// What the model asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Demand {
    /// Bytes of the matrices, in the formats they are kept in, that each step reads.
    pub(crate) weight_bytes: f64,
    /// Products of weights for each token.
    pub(crate) macs: f64,
    /// Those of them that only tokens whose logits are wanted need.
    pub(crate) output_macs: f64,
    /// Bytes of keys and values a token.
    pub(crate) kv_bytes: f64,
    /// Products of attention, for each token and token before it.
    pub(crate) attention_macs: f64,
}

impl Demand {
    /// Reads it off a GGUF file, or off a folder of safetensors that the file lies in.
    ///
    /// # Errors
    /// What the files do not say.
    pub(crate) fn read(path: &Path, quantize: Option<WeightFormat>, kv: KvFormat) -> anyhow::Result<Self> {
        let is_folder = path.is_dir() || path.extension().is_some_and(|extension| extension == "safetensors");
        let model = if is_folder { Model::of_folder(path)? } else { Model::of_gguf(&GgufHeader::read(path)?)? };
        model.demand(quantize, kv)
    }
}

/// What a matrix is for, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Embedding,
    Output,
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Matrix {
    role: Role,
    rows: f64,
    cols: usize,
    bytes: f64,
}

#[derive(Clone, Debug)]
struct Model {
    matrices: Vec<Matrix>,
    layers: f64,
    heads: f64,
    kv_heads: f64,
    /// Widths of a head's key and value.
    key: f64,
    value: f64,
}

impl Model {
    fn of_gguf(header: &GgufHeader) -> anyhow::Result<Self> {
        let mut matrices = Vec::new();
        for tensor in &header.tensors {
            let [cols, rows] = tensor.dimensions[..] else { continue };
            if !tensor.name.ends_with(".weight") {
                continue;
            }
            let role = match tensor.name.as_str() {
                "token_embd.weight" => Role::Embedding,
                "output.weight" => Role::Output,
                _ => Role::Other,
            };
            let bytes = tensor.n_bytes().with_context(|| format!("tensor {} is of an unknown type", tensor.name))?;
            matrices.push(Matrix { role, rows: rows as f64, cols: usize::try_from(cols)?, bytes: bytes as f64 });
        }
        let size = |key: &str| header.of_architecture(key).map(|n| n as f64);
        let needed = |key: &str| size(key).with_context(|| format!("the file does not say its {key}"));
        let heads = needed("attention.head_count")?;
        let usual = needed("embedding_length")? / heads;
        Ok(Self {
            matrices,
            layers: needed("block_count")?,
            heads,
            kv_heads: size("attention.head_count_kv").unwrap_or(heads),
            key: size("attention.key_length").unwrap_or(usual),
            value: size("attention.value_length").unwrap_or(usual),
        })
    }

    fn of_folder(path: &Path) -> anyhow::Result<Self> {
        let dir = if path.is_dir() { path } else { path.parent().unwrap_or_else(|| Path::new(".")) };
        let config = json(&dir.join("config.json"))?;
        let config = config.get("text_config").unwrap_or(&config);
        let size = |key: &str| config.get(key).and_then(Value::as_f64);
        let needed = |key: &str| size(key).with_context(|| format!("config.json does not say its {key}"));
        let is_tied = config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false);
        let mut matrices = Vec::new();
        for file in weight_files(dir, path)? {
            for (name, tensor) in header(&file)? {
                let [rows, cols] = tensor.shape[..] else { continue };
                let role = match name.as_str() {
                    name if !name.ends_with(".weight") => continue,
                    "lm_head.weight" if is_tied => continue,
                    "lm_head.weight" => Role::Output,
                    name if name.ends_with("embed_tokens.weight") => Role::Embedding,
                    _ => Role::Other,
                };
                let (begin, end) = tensor.data_offsets;
                let bytes = end.checked_sub(begin).with_context(|| format!("tensor {name} ends before it begins"))?;
                matrices.push(Matrix { role, rows: rows as f64, cols: usize::try_from(cols)?, bytes: bytes as f64 });
            }
        }
        let heads = needed("num_attention_heads")?;
        let width = size("head_dim").map_or_else(|| needed("hidden_size").map(|all| all / heads), Ok)?;
        Ok(Self {
            matrices,
            layers: needed("num_hidden_layers")?,
            heads,
            kv_heads: size("num_key_value_heads").unwrap_or(heads),
            key: width,
            value: width,
        })
    }

    fn demand(&self, quantize: Option<WeightFormat>, kv: KvFormat) -> anyhow::Result<Demand> {
        let has_output = self.matrices.iter().any(|matrix| matrix.role == Role::Output);
        // Of an embedding that is not the output layer as well, a step reads one row.
        let is_read = |matrix: &&Matrix| !(has_output && matrix.role == Role::Embedding);
        let (mut weight_bytes, mut macs, mut output_macs) = (0.0, 0.0, 0.0);
        for matrix in self.matrices.iter().filter(is_read) {
            let n = matrix.rows * matrix.cols as f64;
            weight_bytes += quantize.map_or(matrix.bytes, |format| matrix.encoded(format));
            macs += n;
            if matrix.role != Role::Other {
                output_macs += n;
            }
        }
        let per_value = match kv {
            KvFormat::F32 => 4.0,
            KvFormat::Q8_0 => 34.0 / 32.0,
            // The formats of sixteen bits.
            _ => 2.0,
        };
        let demand = Demand {
            weight_bytes,
            macs,
            output_macs,
            kv_bytes: self.layers * self.kv_heads * (self.key + self.value) * per_value,
            attention_macs: self.layers * self.heads * (self.key + self.value),
        };
        ensure!(macs > 0.0, "it has no matrices");
        ensure!(demand.kv_bytes.is_finite() && demand.attention_macs.is_finite(), "it has no heads");
        Ok(demand)
    }
}

impl Matrix {
    /// Returns its bytes once it is encoded anew. As the engine does it, embeddings and output keep eight bits at least, and
    /// so do rows that do not fill a format's blocks.
    fn encoded(self, format: WeightFormat) -> f64 {
        let format = Format::ALL
            .into_iter()
            .find(|known| known.to_string().eq_ignore_ascii_case(format.as_str()))
            .unwrap_or(Format::Q8_0);
        let is_coarse = format.is_quantised() && format != Format::Q8_0;
        let fits = self.cols.is_multiple_of(format.block_len());
        let format = if is_coarse && self.role != Role::Other || !fits { Format::Q8_0 } else { format };
        self.rows * format.row_bytes(self.cols) as f64
    }
}

#[derive(Deserialize)]
struct Tensor {
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads the descriptions of a safetensors file's tensors.
fn header(path: &Path) -> anyhow::Result<BTreeMap<String, Tensor>> {
    let damaged = || format!("{} is damaged", path.display());
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut length = [0; 8];
    file.read_exact(&mut length).with_context(damaged)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        bail!("{} has a header of {length} bytes, expected at most {MAX_HEADER}", path.display());
    }
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text).with_context(damaged)?;
    let mut tensors: serde_json::Map<String, Value> = serde_json::from_slice(&text).with_context(damaged)?;
    tensors.remove("__metadata__");
    serde_json::from_value(Value::Object(tensors)).with_context(damaged)
}

/// Finds the files of weights: as the index says, else the file that was named, else `model.safetensors`.
fn weight_files(dir: &Path, named: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let index = dir.join("model.safetensors.index.json");
    if index.exists() {
        let index = json(&index)?;
        let places = index.get("weight_map").and_then(Value::as_object).context("the index has no weight_map")?;
        let names: BTreeSet<&str> = places.values().filter_map(Value::as_str).collect();
        return Ok(names.into_iter().map(|name| dir.join(name)).collect());
    }
    let file = if named.is_dir() { dir.join("model.safetensors") } else { named.to_path_buf() };
    Ok(vec![file])
}

fn json(path: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Writes a file of tensors without their bytes, which nobody reads here.
    fn write(dir: &Path, name: &str, tensors: &[(&str, &[u64])]) {
        let described = tensors.iter().map(|(name, shape)| {
            let bytes = shape.iter().product::<u64>() * 2;
            ((*name).to_owned(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [0, bytes] }))
        });
        let text = Value::Object(described.collect()).to_string();
        let file = [&u64::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
        std::fs::write(dir.join(name), file).unwrap();
    }

    fn config(dir: &Path, is_tied: bool) {
        let config = json!({
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "tie_word_embeddings": is_tied,
        });
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    }

    #[test]
    fn a_folder_of_safetensors_is_described() {
        let dir = tempfile::tempdir().unwrap();
        config(dir.path(), false);
        let file = dir.path().join("model.safetensors");
        write(
            dir.path(),
            "model.safetensors",
            &[
                ("model.embed_tokens.weight", &[1000, 64]),
                ("lm_head.weight", &[1000, 64]),
                ("model.layers.0.mlp.up_proj.weight", &[128, 64]),
                ("model.norm.weight", &[64]),
            ],
        );
        let read = |quantize, kv| Demand::read(&file, quantize, kv).unwrap();
        let expected = Demand {
            weight_bytes: 2.0 * (64_000.0 + 8192.0),
            macs: 64_000.0 + 8192.0,
            output_macs: 64_000.0,
            kv_bytes: 2.0 * 2.0 * 32.0 * 2.0,
            attention_macs: 2.0 * 4.0 * 32.0,
        };
        assert_eq!(read(None, KvFormat::F16), expected);
        assert_eq!(Demand::read(dir.path(), None, KvFormat::F16).unwrap(), expected);
        // The output layer keeps eight bits.
        let coarse = read(Some(WeightFormat::Q4_0), KvFormat::F32);
        assert_eq!(coarse.weight_bytes, 64_000.0 / 32.0 * 34.0 + 8192.0 / 32.0 * 18.0);
        assert_eq!(coarse.kv_bytes, 2.0 * expected.kv_bytes);
        // Rows of 64 do not fill blocks of 256.
        assert_eq!(read(Some(WeightFormat::Q4K), KvFormat::F16).weight_bytes, 72_192.0 / 32.0 * 34.0);

        config(dir.path(), true);
        assert_eq!(read(None, KvFormat::F16), expected, "the embedding stands for the output layer");
    }

    #[test]
    fn all_parts_of_a_model_count() {
        let dir = tempfile::tempdir().unwrap();
        config(dir.path(), true);
        write(dir.path(), "a.safetensors", &[("model.embed_tokens.weight", &[1000, 64])]);
        write(dir.path(), "b.safetensors", &[("model.layers.0.mlp.up_proj.weight", &[128, 64])]);
        let index = json!({ "weight_map": { "x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors" } });
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let demand = Demand::read(&dir.path().join("a.safetensors"), None, KvFormat::F16).unwrap();
        assert_eq!((demand.macs, demand.output_macs), (72_192.0, 64_000.0));
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = || format!("{:#}", Demand::read(dir.path(), None, KvFormat::F16).unwrap_err());
        assert!(error().contains("config.json"), "{}", error());
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        assert!(error().contains("model.safetensors"), "{}", error());
        std::fs::write(dir.path().join("model.safetensors"), [255; 12]).unwrap();
        assert!(error().contains("a header of"), "{}", error());
        write(dir.path(), "model.safetensors", &[]);
        assert!(error().contains("num_attention_heads"), "{}", error());
    }
}
