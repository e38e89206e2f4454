//! BERT: texts of any lengths in one pass, without padding.
//!
//! The tokens of all texts lie one after the other in one matrix; only attention looks at texts apart. candle does the
//! matrix products; what lies between them is done here, fused, on the encoder's own threads.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::Deserialize;

use super::weights::Weights;
use crate::error::LoadError;
use crate::kernels::{Wide, wide};
use crate::math;

/// Values of a `config.json` that matter.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Config {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) intermediate_size: usize,
    pub(super) hidden_act: String,
    pub(super) max_position_embeddings: usize,
    pub(super) type_vocab_size: usize,
    pub(super) layer_norm_eps: f32,
    pub(super) model_type: String,
}

/// A linear layer; the weight is kept transposed for row-major products.
struct Linear {
    weight: Tensor,
    bias: Vec<f32>,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

struct Layer {
    /// Query, key and value side by side.
    qkv: Linear,
    attention_output: Linear,
    attention_norm: Norm,
    intermediate: Linear,
    output: Linear,
    output_norm: Norm,
}

/// A loaded model.
pub(super) struct Bert {
    config: Config,
    words: Vec<f32>,
    /// Position embeddings, with the one token type that is used already added.
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Norm {
    fn load(weights: &mut Weights, name: &str, width: usize, epsilon: f32) -> Result<Self, LoadError> {
        Ok(Self {
            weight: weights.tensor(&format!("{name}.weight"), &[width])?,
            bias: weights.tensor(&format!("{name}.bias"), &[width])?,
            epsilon,
        })
    }

    fn apply(&self, row: &mut [f32]) {
        #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
        let n = row.len() as f32;
        let mean = row.iter().sum::<f32>() / n;
        for value in row.iter_mut() {
            *value -= mean;
        }
        let scale = 1.0 / (math::dot(row, row) / n + self.epsilon).sqrt();
        for ((value, weight), bias) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
            *value = *value * scale * weight + bias;
        }
    }
}

impl Linear {
    fn load(weights: &mut Weights, names: &[String], out: usize, width: usize) -> Result<Self, LoadError> {
        let mut weight = Vec::with_capacity(names.len() * out * width);
        let mut bias = Vec::with_capacity(names.len() * out);
        for name in names {
            weight.extend(weights.tensor(&format!("{name}.weight"), &[out, width])?);
            bias.extend(weights.tensor(&format!("{name}.bias"), &[out])?);
        }
        let weight = Tensor::from_vec(weight, (bias.len(), width), &Device::Cpu).and_then(|weight| weight.t());
        let weight = weight.map_err(|e| LoadError::Config(format!("a weight of the encoder: {e}")))?;
        Ok(Self { weight, bias })
    }

    fn apply(&self, rows: Vec<f32>, width: usize) -> candle_core::Result<Vec<f32>> {
        let n = rows.len() / width;
        let product = Tensor::from_vec(rows, (n, width), &Device::Cpu)?.matmul(&self.weight)?;
        let mut product = product.flatten_all()?.to_vec1::<f32>()?;
        product.par_chunks_exact_mut(self.bias.len()).for_each(|row| math::add_scaled(row, 1.0, &self.bias));
        Ok(product)
    }
}

impl Bert {
    /// Loads all weights.
    pub(super) fn load(weights: &mut Weights, config: Config) -> Result<Self, LoadError> {
        let Config { hidden_size: width, layer_norm_eps: epsilon, .. } = config;
        let prefix = if weights.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        let embeddings = format!("{prefix}embeddings.");
        let words = weights.tensor(&format!("{embeddings}word_embeddings.weight"), &[config.vocab_size, width])?;
        let mut positions = weights
            .tensor(&format!("{embeddings}position_embeddings.weight"), &[config.max_position_embeddings, width])?;
        let types =
            weights.tensor(&format!("{embeddings}token_type_embeddings.weight"), &[config.type_vocab_size, width])?;
        for position in positions.chunks_exact_mut(width) {
            math::add_scaled(position, 1.0, &types[..width]);
        }
        let norm = Norm::load(weights, &format!("{embeddings}LayerNorm"), width, epsilon)?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| {
                let name = |part: &str| format!("{prefix}encoder.layer.{i}.{part}");
                let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
                let inner = config.intermediate_size;
                Ok(Layer {
                    qkv: Linear::load(weights, &qkv, width, width)?,
                    attention_output: Linear::load(weights, &[name("attention.output.dense")], width, width)?,
                    attention_norm: Norm::load(weights, &name("attention.output.LayerNorm"), width, epsilon)?,
                    intermediate: Linear::load(weights, &[name("intermediate.dense")], inner, width)?,
                    output: Linear::load(weights, &[name("output.dense")], width, inner)?,
                    output_norm: Norm::load(weights, &name("output.LayerNorm"), width, epsilon)?,
                })
            })
            .collect::<Result<_, LoadError>>()?;
        Ok(Self { config, words, positions, norm, layers })
    }

    /// Returns the mean of each text's final states, of unit length. No text may be empty or longer than the model.
    pub(super) fn embed(&self, texts: &[&[u32]]) -> candle_core::Result<Vec<Vec<f32>>> {
        let width = self.config.hidden_size;
        let mut hidden = self.embeddings(texts)?;
        for layer in &self.layers {
            hidden = self.layer(layer, hidden, texts)?;
        }
        let mut rest = hidden.as_slice();
        let mut pooled = Vec::with_capacity(texts.len());
        for text in texts {
            let (own, after) = rest.split_at(text.len() * width);
            rest = after;
            let mut sum = vec![0f32; width];
            for row in own.chunks_exact(width) {
                math::add_scaled(&mut sum, 1.0, row);
            }
            // The mean and the sum differ by a factor that the normalisation takes out.
            let length = math::dot(&sum, &sum).sqrt();
            if !length.is_finite() || length == 0.0 {
                candle_core::bail!("the encoder computed a value that is no number")
            }
            sum.iter_mut().for_each(|value| *value /= length);
            pooled.push(sum);
        }
        Ok(pooled)
    }

    fn embeddings(&self, texts: &[&[u32]]) -> candle_core::Result<Vec<f32>> {
        let width = self.config.hidden_size;
        let mut hidden = Vec::with_capacity(texts.iter().map(|text| text.len() * width).sum());
        for text in texts {
            if text.len() > self.config.max_position_embeddings {
                candle_core::bail!("a text of {} tokens is too long", text.len())
            }
            for (token, position) in text.iter().zip(self.positions.chunks_exact(width)) {
                let Some(word) = self.words.get(*token as usize * width..(*token as usize + 1) * width) else {
                    candle_core::bail!("token {token} is beyond the vocabulary")
                };
                let begin = hidden.len();
                hidden.extend(word.iter().zip(position).map(|(word, position)| word + position));
                self.norm.apply(&mut hidden[begin..]);
            }
        }
        Ok(hidden)
    }

    fn layer(&self, layer: &Layer, hidden: Vec<f32>, texts: &[&[u32]]) -> candle_core::Result<Vec<f32>> {
        let width = self.config.hidden_size;
        let qkv = layer.qkv.apply(hidden.clone(), width)?;
        let attended = self.attention(&qkv, texts);
        let mut states = layer.attention_output.apply(attended, width)?;
        add_and_normalise(&mut states, &hidden, &layer.attention_norm, width);
        let mut inner = layer.intermediate.apply(states.clone(), width)?;
        inner.par_chunks_mut(4096).for_each(|values| wide(Gelu(values)));
        let mut output = layer.output.apply(inner, self.config.intermediate_size)?;
        add_and_normalise(&mut output, &states, &layer.output_norm, width);
        Ok(output)
    }

    /// Attends within each text. `qkv` has a row of queries, keys and values for each token.
    fn attention(&self, qkv: &[f32], texts: &[&[u32]]) -> Vec<f32> {
        let width = self.config.hidden_size;
        let heads = self.config.num_attention_heads;
        let head_width = width / heads;
        #[expect(clippy::cast_precision_loss, reason = "a head has a few dozen elements")]
        let scale = 1.0 / (head_width as f32).sqrt();
        let begins = texts.iter().scan(0, |begin, text| {
            let this = *begin;
            *begin += text.len();
            Some(this)
        });
        let tasks: Vec<(usize, usize, usize)> =
            begins.zip(texts).flat_map(|(begin, text)| (0..heads).map(move |head| (begin, text.len(), head))).collect();
        let results: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|(begin, len, head)| {
                let part = |which: usize| {
                    let column = which * width + head * head_width;
                    let rows = qkv[begin * 3 * width..(begin + len) * 3 * width].chunks_exact(3 * width);
                    rows.flat_map(|row| row[column..column + head_width].iter().copied()).collect::<Vec<f32>>()
                };
                let (queries, keys, values) = (part(0), part(1), part(2));
                wide(Attend { queries: &queries, keys: &keys, values: &values, width: head_width, scale })
            })
            .collect();
        let mut out = vec![0.0; qkv.len() / 3];
        for ((begin, _, head), result) in tasks.iter().zip(&results) {
            for (i, row) in result.chunks_exact(head_width).enumerate() {
                let at = (begin + i) * width + head * head_width;
                out[at..at + head_width].copy_from_slice(row);
            }
        }
        out
    }
}

/// The exact GELU, in place.
struct Gelu<'a>(&'a mut [f32]);

impl Wide for Gelu<'_> {
    type Output = ();

    #[expect(clippy::inline_always, reason = "Wide asks for it")]
    #[inline(always)]
    fn run(self) {
        for value in self.0 {
            *value = 0.5 * *value * (1.0 + math::erf(*value * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

/// Attends from each query to all keys of one head of one text.
struct Attend<'a> {
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    width: usize,
    scale: f32,
}

impl Wide for Attend<'_> {
    type Output = Vec<f32>;

    #[expect(clippy::inline_always, reason = "Wide asks for it")]
    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let Self { queries, keys, values, width, scale } = self;
        let len = keys.len() / width;
        // Keys with one element of all tokens in a row: scores of many tokens are then computed side by side.
        let mut columns = vec![0f32; keys.len()];
        for (token, key) in keys.chunks_exact(width).enumerate() {
            for (i, value) in key.iter().enumerate() {
                columns[i * len + token] = *value;
            }
        }
        let mut out = vec![0f32; queries.len()];
        let mut scores = vec![0f32; len];
        for (query, out) in queries.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            scores.fill(0.0);
            for (value, column) in query.iter().zip(columns.chunks_exact(len)) {
                math::add_scaled(&mut scores, value * scale, column);
            }
            math::softmax(&mut scores);
            for (score, value) in scores.iter().zip(values.chunks_exact(width)) {
                math::add_scaled(out, *score, value);
            }
        }
        out
    }
}

fn add_and_normalise(states: &mut [f32], residual: &[f32], norm: &Norm, width: usize) {
    states.par_chunks_exact_mut(width).zip(residual.par_chunks_exact(width)).for_each(|(row, residual)| {
        math::add_scaled(row, 1.0, residual);
        norm.apply(row);
    });
}
