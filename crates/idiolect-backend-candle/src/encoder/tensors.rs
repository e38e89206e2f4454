//! Encoders on candle's tensors, for cards.
//!
//! Texts of about one length are padded to the longest of their batch, and what is padded is masked.

use candle_core::{D, Device, Result, Tensor};

use super::weights::{self, Shape, Weights};
use super::{Fault, pool};
use crate::device::OpenDevice;
use crate::error::LoadError;

/// Tokens of a batch, padding included.
const BATCH: usize = 1 << 14;

/// Added to the scores of padding. Far below any score, and not so low that two of them overflow.
const MASKED: f32 = -1e9;

struct Linear {
    /// Transposed.
    weight: Tensor,
    bias: Tensor,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

struct Layer {
    qkv: Linear,
    attended: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    output_norm: Norm,
}

/// A loaded model.
pub(super) struct Model {
    shape: Shape,
    device: Device,
    words: Tensor,
    positions: Tensor,
    norm: Norm,
    /// Biases of attention by head and bucket.
    bias: Option<Tensor>,
    layers: Vec<Layer>,
}

impl Linear {
    fn new(linear: weights::Linear, device: &Device) -> Result<Self> {
        let weight = Tensor::from_vec(linear.weight, (linear.rows, linear.cols), device)?.t()?.contiguous()?;
        Ok(Self { weight, bias: Tensor::from_vec(linear.bias, linear.rows, device)? })
    }

    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        // The rows of all texts in one product.
        let (shape, flat) = (rows.dims(), rows.flatten_to(D::Minus2)?);
        let product = flat.matmul(&self.weight)?.broadcast_add(&self.bias)?;
        product.reshape([&shape[..shape.len() - 1], &[self.bias.dim(0)?]].concat())
    }
}

impl Norm {
    fn new(norm: weights::Norm, epsilon: f32, device: &Device) -> Result<Self> {
        let n = norm.weight.len();
        let weight = Tensor::from_vec(norm.weight, n, device)?;
        Ok(Self { weight, bias: Tensor::from_vec(norm.bias, n, device)?, epsilon })
    }

    fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        candle_nn::ops::layer_norm(&rows.contiguous()?, &self.weight, &self.bias, self.epsilon)
    }
}

impl Model {
    /// Loads all weights onto a device.
    pub(super) fn load(
        weights: &mut Weights,
        shape: Shape,
        device: &OpenDevice,
    ) -> std::result::Result<Self, LoadError> {
        let on = device.handle();
        let failed = |error: candle_core::Error| device.error(&error);
        let norm = |norm| Norm::new(norm, shape.epsilon, on).map_err(failed);
        let linear = |linear| Linear::new(linear, on).map_err(failed);
        let Shape { vocabulary, width, positions, heads, .. } = shape;
        let words = Tensor::from_vec(weights.words()?, (vocabulary, width), on).map_err(failed)?;
        let positions = Tensor::from_vec(weights.positions()?, (positions, width), on).map_err(failed)?;
        let bias = weights.position_bias()?.map(|table| {
            let buckets = table.len() / heads;
            Tensor::from_vec(table, (buckets, heads), on).and_then(|table| table.t()?.contiguous())
        });
        let bias = bias.transpose().map_err(failed)?;
        let embedding_norm = norm(weights.norm()?)?;
        let layers = (0..shape.layers)
            .map(|i| {
                let layer = weights.layer(i)?;
                Ok(Layer {
                    qkv: linear(layer.qkv)?,
                    attended: linear(layer.attended)?,
                    attention_norm: norm(layer.attention_norm)?,
                    up: linear(layer.up)?,
                    down: linear(layer.down)?,
                    output_norm: norm(layer.output_norm)?,
                })
            })
            .collect::<std::result::Result<_, LoadError>>()?;
        let model = Self { device: on.clone(), words, positions, norm: embedding_norm, bias, layers, shape };
        // What the device cannot do is found out now, and not by the first request.
        model.batch(&[&[0, 0, 0], &[0]]).map_err(|fault| match fault {
            Fault::Device(error) => device.error(&error),
            fault => device.fault(fault.to_string()),
        })?;
        Ok(model)
    }

    /// Returns the number of values of an embedding.
    pub(super) const fn dimensions(&self) -> usize {
        self.shape.width
    }

    /// Returns each text's embedding, or nothing when `go_on` says no. No text may be empty.
    pub(super) fn embed(
        &self,
        texts: &[&[u32]],
        go_on: &dyn Fn() -> bool,
    ) -> std::result::Result<Option<Vec<Vec<f32>>>, Fault> {
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| texts[*i].len());
        let mut embeddings = vec![Vec::new(); texts.len()];
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            if !go_on() {
                return Ok(None);
            }
            // The last one taken is the longest: all are padded to it.
            let fitting = rest.iter().enumerate().take_while(|(n, i)| (n + 1) * texts[**i].len() <= BATCH).count();
            let (batch, after) = rest.split_at(fitting.max(1));
            rest = after;
            let inputs: Vec<&[u32]> = batch.iter().map(|i| texts[*i]).collect();
            for (i, embedding) in batch.iter().zip(self.batch(&inputs)?) {
                embeddings[*i] = embedding;
            }
        }
        Ok(Some(embeddings))
    }

    fn batch(&self, texts: &[&[u32]]) -> std::result::Result<Vec<Vec<f32>>, Fault> {
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        if longest > self.shape.max_tokens() {
            return Err(Fault::TooLong(longest));
        }
        let mut tokens = Vec::with_capacity(texts.len() * longest);
        let mut positions = Vec::with_capacity(texts.len() * longest);
        let mut mask = Vec::with_capacity(texts.len() * longest);
        for text in texts {
            if let Some(token) = text.iter().find(|token| **token as usize >= self.shape.vocabulary) {
                return Err(Fault::UnknownToken(*token));
            }
            tokens.extend_from_slice(text);
            positions.extend(self.shape.positions(text).map(|position| u32::try_from(position).unwrap_or(0)));
            mask.resize(mask.len() + text.len(), 0f32);
            tokens.resize(mask.len() + longest - text.len(), 0);
            positions.resize(tokens.len(), 0);
            mask.resize(tokens.len(), MASKED);
        }
        let hidden = self.forward(&tokens, &positions, mask, texts.len(), longest)?;
        // Of each text the sum of its states, and nothing else, leaves the device.
        let counts = |text: &&[u32]| (0..longest).map(|i| if i < text.len() { 1f32 } else { 0.0 }).collect::<Vec<_>>();
        let counts =
            Tensor::from_vec(texts.iter().flat_map(counts).collect(), (texts.len(), 1, longest), &self.device)?;
        let sums = counts.matmul(&hidden)?.squeeze(1)?.to_vec2::<f32>()?;
        sums.iter().map(|sum| pool(std::iter::once(sum.as_slice()), self.shape.width)).collect()
    }

    /// Computes the last layer's states of a batch.
    fn forward(&self, tokens: &[u32], positions: &[u32], mask: Vec<f32>, n: usize, len: usize) -> Result<Tensor> {
        let Shape { width, heads, .. } = self.shape;
        let words = self.words.index_select(&Tensor::new(tokens, &self.device)?, 0)?;
        let positions = self.positions.index_select(&Tensor::new(positions, &self.device)?, 0)?;
        let mut hidden = self.norm.apply(&(words + positions)?.reshape((n, len, width))?)?;
        let mut mask = Tensor::from_vec(mask, (n, 1, 1, len), &self.device)?;
        if let Some(bias) = &self.bias {
            mask = mask.broadcast_add(&self.position_bias(bias, len)?)?;
        }
        for layer in &self.layers {
            // Query, key or value; text; head; token; element.
            let qkv = layer.qkv.apply(&hidden)?.reshape((n, len, 3, heads, width / heads))?;
            let part = |which: usize| qkv.narrow(2, which, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
            let scores = part(0)?.matmul(&part(1)?.t()?)?.broadcast_add(&mask)?;
            let weights = candle_nn::ops::softmax_last_dim(&scores.contiguous()?)?;
            let attended = weights.matmul(&part(2)?)?.transpose(1, 2)?.contiguous()?.reshape((n, len, width))?;
            hidden = layer.attention_norm.apply(&(layer.attended.apply(&attended)? + hidden)?)?;
            let inner = layer.up.apply(&hidden)?.gelu_erf()?;
            hidden = layer.output_norm.apply(&(layer.down.apply(&inner)? + hidden)?)?;
        }
        hidden.reshape((n, len, width))
    }

    /// Returns the biases of all pairs of tokens, for one text: `[1, heads, len, len]`.
    fn position_bias(&self, bias: &Tensor, len: usize) -> Result<Tensor> {
        let bucket = |query: usize, key: usize| {
            let bucket = self.shape.bucket(key.cast_signed() - query.cast_signed());
            u32::try_from(bucket).unwrap_or(0)
        };
        let buckets: Vec<u32> = (0..len * len).map(|pair| bucket(pair / len, pair % len)).collect();
        let table = bias.index_select(&Tensor::new(buckets, &self.device)?, D::Minus1)?;
        table.reshape((1, self.shape.heads, len, len))
    }
}
