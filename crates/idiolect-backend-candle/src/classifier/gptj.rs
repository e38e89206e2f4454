//! GPT-J with a head that classifies: Wang and Komatsuzaki, "GPT-J-6B" (2021), as transformers'
//! `GPTJForSequenceClassification` computes it.
//!
//! Attention and feed-forward read the same normed input side by side; positions are rotations of the first `rotary_dim`
//! values of queries and keys, taken as pairs of neighbours. The head reads the last token that is no padding.

use candle_core::{D, DType, Device, Result, Tensor, bail};
use candle_nn::{LayerNorm, Linear, Module as _, VarBuilder, layer_norm, linear, linear_no_bias};
use serde::Deserialize;

/// What `config.json` says of the model's shape.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    vocab_size: usize,
    pub(super) n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    rotary_dim: Option<usize>,
    n_inner: Option<usize>,
    layer_norm_epsilon: f64,
    pad_token_id: Option<u32>,
    activation_function: String,
}

struct Layer {
    norm: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    attended: Linear,
    up: Linear,
    down: Linear,
}

pub(super) struct GptJ {
    words: candle_nn::Embedding,
    layers: Vec<Layer>,
    norm: LayerNorm,
    head: Linear,
    config: Config,
}

impl GptJ {
    pub(super) fn load(weights: &VarBuilder<'_>, config: Config, n_labels: usize) -> Result<Self> {
        let Config { n_embd, n_head, n_positions, .. } = config;
        let rotated = config.rotary_dim.unwrap_or(n_embd / n_head.max(1));
        if n_head == 0
            || !n_embd.is_multiple_of(n_head)
            || !rotated.is_multiple_of(2)
            || rotated > n_embd / n_head
            || n_positions == 0
        {
            bail!(
                "{n_embd} values in {n_head} heads, {rotated} of each rotated, {n_positions} positions do not make a model"
            );
        }
        if config.activation_function != "gelu_new" {
            bail!("activation_function is {:?}, expected gelu_new", config.activation_function);
        }
        let inner = config.n_inner.unwrap_or(4 * n_embd);
        let body = weights.pp("transformer");
        let layer = |i: usize| {
            let weights = body.pp(format!("h.{i}"));
            let (attention, mlp) = (weights.pp("attn"), weights.pp("mlp"));
            let square = |name: &str| linear_no_bias(n_embd, n_embd, attention.pp(name));
            Ok(Layer {
                norm: layer_norm(n_embd, config.layer_norm_epsilon, weights.pp("ln_1"))?,
                query: square("q_proj")?,
                key: square("k_proj")?,
                value: square("v_proj")?,
                attended: square("out_proj")?,
                up: linear(n_embd, inner, mlp.pp("fc_in"))?,
                down: linear(inner, n_embd, mlp.pp("fc_out"))?,
            })
        };
        Ok(Self {
            words: candle_nn::embedding(config.vocab_size, n_embd, body.pp("wte"))?,
            layers: (0..config.n_layer).map(layer).collect::<Result<_>>()?,
            norm: layer_norm(n_embd, config.layer_norm_epsilon, body.pp("ln_f"))?,
            head: linear_no_bias(n_embd, n_labels, weights.pp("score"))?,
            config,
        })
    }

    /// Returns the logits of a text's tokens, at least one.
    pub(super) fn logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let (cos, sin) = self.rotations(ids.len())?;
        let mut hidden = self.words.forward(&Tensor::new(ids, &Device::Cpu)?)?;
        for layer in &self.layers {
            let normed = layer.norm.forward(&hidden)?;
            let attended = self.attend(layer, &normed, &cos, &sin)?;
            let fed = layer.down.forward(&layer.up.forward(&normed)?.gelu()?)?;
            hidden = ((hidden + attended)? + fed)?;
        }
        let n_read = self.config.pad_token_id.map_or(ids.len(), |pad| ids.iter().filter(|id| **id != pad).count());
        let last = self.norm.forward(&hidden.narrow(0, n_read.max(1) - 1, 1)?)?;
        self.head.forward(&last)?.flatten_all()?.to_vec1()
    }

    fn attend(&self, layer: &Layer, normed: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        let (n, width) = normed.dims2()?;
        let size = width / self.config.n_head;
        // (heads, tokens, values).
        let heads = |linear: &Linear| {
            linear.forward(normed)?.reshape((n, self.config.n_head, size))?.transpose(0, 1)?.contiguous()
        };
        let (query, key) = (rotate(&heads(&layer.query)?, cos, sin)?, rotate(&heads(&layer.key)?, cos, sin)?);
        let scores = (query.matmul(&key.t()?)? / (size as f64).sqrt())?;
        let scores = scores.broadcast_add(&later(n)?)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let mixed = weights.matmul(&heads(&layer.value)?)?.transpose(0, 1)?.contiguous()?.reshape((n, width))?;
        layer.attended.forward(&mixed)
    }

    /// Returns cosines and sines, (tokens, pairs).
    fn rotations(&self, n: usize) -> Result<(Tensor, Tensor)> {
        let rotated = self.config.rotary_dim.unwrap_or(self.config.n_embd / self.config.n_head);
        let frequency = |pair: usize| 10_000_f64.powf(-2.0 * pair as f64 / rotated as f64);
        #[expect(clippy::cast_possible_truncation, reason = "transformers computes these in 32 bits")]
        let angles: Vec<f32> =
            (0..n).flat_map(|at| (0..rotated / 2).map(move |pair| (at as f64 * frequency(pair)) as f32)).collect();
        let angles = Tensor::from_vec(angles, (n, rotated / 2), &Device::Cpu)?;
        Ok((angles.cos()?, angles.sin()?))
    }
}

/// Rotates pairs of neighbours among the first values of each head: (a, b) becomes (a cos - b sin, b cos + a sin).
fn rotate(heads: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (n_heads, n, size) = heads.dims3()?;
    let n_pairs = cos.dim(1)?;
    if n_pairs == 0 {
        return Ok(heads.clone());
    }
    let pairs = heads.narrow(2, 0, 2 * n_pairs)?.reshape((n_heads, n, n_pairs, 2))?;
    let (a, b) = (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?);
    let first = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
    let second = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
    let rotated = Tensor::stack(&[first, second], D::Minus1)?.reshape((n_heads, n, 2 * n_pairs))?;
    if 2 * n_pairs == size {
        return Ok(rotated);
    }
    Tensor::cat(&[rotated, heads.narrow(2, 2 * n_pairs, size - 2 * n_pairs)?], 2)
}

/// Returns what hides later tokens from earlier ones, (tokens, tokens).
fn later(n: usize) -> Result<Tensor> {
    let hidden = (0..n).flat_map(|at| (0..n).map(move |of| if of > at { f32::NEG_INFINITY } else { 0.0 }));
    Tensor::from_iter(hidden, &Device::Cpu)?.reshape((n, n))?.to_dtype(DType::F32)
}
