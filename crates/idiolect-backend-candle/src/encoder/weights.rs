//! A sentence encoder's files: configuration, and weights by what they do.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::LoadError;
use crate::safetensors::SafeTensors;
use crate::weights::RowLayout;

/// Bytes that are read at a time.
const STRETCH: usize = 1 << 18;

/// The kind of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Position embeddings from 0 on, and token types, of which the first is used.
    Bert,
    /// Position embeddings that leave [`PAD`] out, and biases of attention by distance, shared by all layers.
    Mpnet,
}

/// The padding token of every MPNet. Where a text spells it out, it gets the position of the same number, and is not
/// counted.
pub(super) const PAD: u32 = 1;

/// Distance from which on MPNet's biases are the same.
const FARTHEST: f32 = 128.0;

/// A `config.json`.
#[derive(Deserialize)]
struct ConfigFile {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    layer_norm_eps: f32,
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default)]
    relative_attention_num_buckets: usize,
    position_embedding_type: Option<String>,
}

/// A model's sizes.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) family: Family,
    pub(super) vocabulary: usize,
    pub(super) width: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) inner: usize,
    /// Rows of the table of positions.
    pub(super) positions: usize,
    /// Token types (BERT) or buckets of distances (MPNet).
    kinds: usize,
    pub(super) epsilon: f32,
}

impl Shape {
    /// Reads and checks a `config.json`.
    pub(super) fn read(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|e| LoadError::io(path, e))?;
        let file: ConfigFile = serde_json::from_str(&text).map_err(|e| LoadError::damaged(path, e))?;
        let (family, kinds) = match file.model_type.as_str() {
            "bert" => (Family::Bert, file.type_vocab_size),
            "mpnet" => (Family::Mpnet, file.relative_attention_num_buckets),
            other => return Err(LoadError::unsupported(path, format!("model type {other:?}"), "bert, mpnet")),
        };
        if file.hidden_act != "gelu" {
            return Err(LoadError::unsupported(path, format!("activation {:?}", file.hidden_act), "gelu"));
        }
        if let Some(kind) = file.position_embedding_type.filter(|kind| kind != "absolute") {
            return Err(LoadError::unsupported(path, format!("position embeddings {kind:?}"), "absolute"));
        }
        let shape = Self {
            family,
            vocabulary: file.vocab_size,
            width: file.hidden_size,
            layers: file.num_hidden_layers,
            heads: file.num_attention_heads,
            inner: file.intermediate_size,
            positions: file.max_position_embeddings,
            kinds,
            epsilon: file.layer_norm_eps,
        };
        let Self { width, heads, .. } = shape;
        let is_sound = heads > 0
            && width > 0
            && width.is_multiple_of(heads)
            && shape.layers <= 256
            && shape.max_tokens() >= 3
            && shape.epsilon.is_finite()
            && shape.epsilon >= 0.0
            && (family == Family::Bert || kinds >= 4)
            && kinds > 0;
        if is_sound { Ok(shape) } else { Err(LoadError::damaged(path, "its sizes make no model")) }
    }

    /// Returns how long a text may be.
    pub(super) const fn max_tokens(&self) -> usize {
        match self.family {
            Family::Bert => self.positions,
            Family::Mpnet => self.positions.saturating_sub(PAD as usize + 1),
        }
    }

    /// Returns the width of a head.
    pub(super) const fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// Returns the rows of a text's tokens in the table of positions.
    pub(super) fn positions<'a>(&self, text: &'a [u32]) -> impl Iterator<Item = usize> + use<'a> {
        let family = self.family;
        text.iter().enumerate().scan(0, move |pads, (i, token)| {
            Some(match family {
                Family::Bert => i,
                Family::Mpnet if *token == PAD => {
                    *pads += 1;
                    PAD as usize
                }
                Family::Mpnet => PAD as usize + 1 + i - *pads,
            })
        })
    }

    /// Returns the bucket of a distance, the key's position less the query's.
    #[expect(clippy::cast_precision_loss, reason = "distances and buckets are small")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounds a small positive number down")]
    pub(super) fn bucket(&self, distance: isize) -> usize {
        // Half of the buckets is for keys that follow. Half of each half is for one distance each, and the rest grow
        // evenly in the logarithm.
        let half = self.kinds / 2;
        let side = if distance > 0 { half } else { 0 };
        let (distance, exact) = (distance.unsigned_abs(), half / 2);
        let within = if distance < exact {
            distance
        } else {
            let share = (distance as f32 / exact as f32).ln() / (FARTHEST / exact as f32).ln();
            (exact + (share * (half - exact) as f32) as usize).min(half - 1)
        };
        side + within
    }
}

/// `rows` rows of weights, and a bias for each.
pub(super) struct Linear {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// Weights of a layer normalisation.
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// A layer's weights.
pub(super) struct Layer {
    /// Queries, keys and values side by side. The queries carry the factor of the scores.
    pub(super) qkv: Linear,
    pub(super) attended: Linear,
    pub(super) attention_norm: Norm,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) output_norm: Norm,
}

/// Names of a family's tensors within a layer.
struct Names {
    qkv: [&'static str; 3],
    attended: &'static str,
    attention_norm: &'static str,
}

const BERT: Names = Names {
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    attended: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
};

const MPNET: Names = Names {
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attended: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
};

/// The weights of a model.
pub(super) struct Weights {
    path: PathBuf,
    file: SafeTensors,
    shape: Shape,
    prefix: &'static str,
}

impl Weights {
    /// Opens a `model.safetensors`.
    pub(super) fn open(path: &Path, shape: Shape) -> Result<Self, LoadError> {
        let file = SafeTensors::open(path)?;
        let own = match shape.family {
            Family::Bert => "bert.",
            Family::Mpnet => "mpnet.",
        };
        let prefix = if file.names().any(|name| name.starts_with(own)) { own } else { "" };
        Ok(Self { path: path.to_owned(), file, shape, prefix })
    }

    /// Reads the word embeddings, row after row.
    pub(super) fn words(&mut self) -> Result<Vec<f32>, LoadError> {
        let Shape { vocabulary, width, .. } = self.shape;
        self.tensor("embeddings.word_embeddings.weight", &[vocabulary, width])
    }

    /// Reads the position embeddings, with the token type that is used already added.
    pub(super) fn positions(&mut self) -> Result<Vec<f32>, LoadError> {
        let Shape { positions, width, kinds, family, .. } = self.shape;
        let mut table = self.tensor("embeddings.position_embeddings.weight", &[positions, width])?;
        if family == Family::Bert {
            let types = self.tensor("embeddings.token_type_embeddings.weight", &[kinds, width])?;
            for position in table.chunks_exact_mut(width) {
                position.iter_mut().zip(&types).for_each(|(value, of_type)| *value += of_type);
            }
        }
        Ok(table)
    }

    /// Reads the normalisation of the embeddings.
    pub(super) fn norm(&mut self) -> Result<Norm, LoadError> {
        self.norm_named("embeddings.LayerNorm")
    }

    /// Reads the biases of attention, for each bucket of distances one a head; none for a BERT.
    pub(super) fn position_bias(&mut self) -> Result<Option<Vec<f32>>, LoadError> {
        let Shape { kinds, heads, family, .. } = self.shape;
        match family {
            Family::Bert => Ok(None),
            Family::Mpnet => self.tensor("encoder.relative_attention_bias.weight", &[kinds, heads]).map(Some),
        }
    }

    /// Reads a layer.
    pub(super) fn layer(&mut self, i: usize) -> Result<Layer, LoadError> {
        let Shape { width, inner, .. } = self.shape;
        let names = match self.shape.family {
            Family::Bert => BERT,
            Family::Mpnet => MPNET,
        };
        let name = |part: &str| format!("encoder.layer.{i}.{part}");
        let mut qkv = self.linear(&names.qkv.map(name), width, width)?;
        #[expect(clippy::cast_precision_loss, reason = "a head has a few dozen elements")]
        let scale = 1.0 / (self.shape.head_width() as f32).sqrt();
        qkv.weight[..width * width].iter_mut().chain(&mut qkv.bias[..width]).for_each(|value| *value *= scale);
        Ok(Layer {
            qkv,
            attended: self.linear(&[name(names.attended)], width, width)?,
            attention_norm: self.norm_named(&name(names.attention_norm))?,
            up: self.linear(&[name("intermediate.dense")], inner, width)?,
            down: self.linear(&[name("output.dense")], width, inner)?,
            output_norm: self.norm_named(&name("output.LayerNorm"))?,
        })
    }

    fn norm_named(&mut self, name: &str) -> Result<Norm, LoadError> {
        let width = self.shape.width;
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        Ok(Norm { weight, bias: self.tensor(&format!("{name}.bias"), &[width])? })
    }

    /// Reads linear layers of `rows` rows each, one below the other.
    fn linear(&mut self, names: &[String], rows: usize, cols: usize) -> Result<Linear, LoadError> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            self.append(&format!("{name}.weight"), &[rows, cols], &mut weight)?;
            self.append(&format!("{name}.bias"), &[rows], &mut bias)?;
        }
        Ok(Linear { rows: names.len() * rows, cols, weight, bias })
    }

    fn tensor(&mut self, name: &str, dimensions: &[usize]) -> Result<Vec<f32>, LoadError> {
        let mut values = Vec::new();
        self.append(name, dimensions, &mut values)?;
        Ok(values)
    }

    /// Reads a tensor of the given form and appends its values.
    fn append(&mut self, name: &str, dimensions: &[usize], values: &mut Vec<f32>) -> Result<(), LoadError> {
        let name = format!("{}{name}", self.prefix);
        let damaged = |reason: String| LoadError::damaged(&self.path, format!("tensor {name:?} {reason}"));
        let stored = self.file.stored(&name)?;
        if stored.dimensions != dimensions {
            return Err(damaged(format!("is {:?}, expected {dimensions:?}", stored.dimensions)));
        }
        // The file holds as many values, so this many fit into memory.
        let n: usize = dimensions.iter().product();
        let first = values.len();
        values.reserve_exact(n);
        let size = stored.format.type_size();
        let mut bytes = vec![0; STRETCH.min(n * size)];
        let mut at = stored.begin;
        while values.len() < first + n {
            let len = bytes.len().min((first + n - values.len()) * size);
            let bytes = &mut bytes[..len];
            self.file.read(at, bytes)?;
            at += len as u64;
            let (from, n) = (values.len(), len / size);
            values.resize(from + n, 0.0);
            let layout = RowLayout::new(stored.format, n).ok_or_else(|| damaged("has no values".to_owned()))?;
            layout.decode(bytes, &mut values[from..]).map_err(|reason| damaged(format!("cannot be read: {reason}")))?;
        }
        if values[first..].iter().any(|value| !value.is_finite()) {
            return Err(LoadError::damaged(&self.path, format!("tensor {name:?} holds a value that is no number")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(family: Family) -> Shape {
        Shape {
            family,
            vocabulary: 10,
            width: 4,
            layers: 1,
            heads: 1,
            inner: 8,
            positions: 514,
            kinds: 32,
            epsilon: 1e-5,
        }
    }

    #[test]
    fn distances_fall_into_growing_buckets_on_either_side() {
        let shape = shape(Family::Mpnet);
        let buckets = [
            (0, 0),
            (-1, 1),
            (-7, 7),
            (-8, 8),
            (-11, 8),
            (-12, 9),
            (-15, 9),
            (-16, 10),
            (-31, 11),
            (-32, 12),
            (-64, 14),
            (-91, 15),
            (-511, 15),
            (1, 17),
            (7, 23),
            (8, 24),
            (511, 31),
        ];
        for (distance, bucket) in buckets {
            assert_eq!(shape.bucket(distance), bucket, "{distance}");
        }
        assert!((1..511).all(|n| shape.bucket(-n) <= shape.bucket(-n - 1)));
    }

    #[test]
    fn padding_in_a_text_takes_no_position() {
        let mpnet: Vec<usize> = shape(Family::Mpnet).positions(&[0, 7, PAD, 8, 2]).collect();
        assert_eq!(mpnet, [2, 3, 1, 4, 5]);
        let bert: Vec<usize> = shape(Family::Bert).positions(&[0, 7, PAD, 8, 2]).collect();
        assert_eq!(bert, [0, 1, 2, 3, 4]);
        assert_eq!((shape(Family::Mpnet).max_tokens(), shape(Family::Bert).max_tokens()), (512, 514));
    }
}
