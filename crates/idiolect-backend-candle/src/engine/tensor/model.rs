//! The weights on the device, and what is computed of all rows together.

use candle_core::{D, Device, Tensor};
use candle_nn::ops::{rms_norm, silu};

use super::product::{Joint, Product};
use super::rotation::{Rotation, Rotations};
use super::{EngineError, Outcome};
use crate::device::OpenDevice;
use crate::engine::params::{Activation, Params};
use crate::error::LoadError;
use crate::weights::{Part, Role, Weights};

/// A model on a device.
pub(super) struct Model {
    pub(super) params: Params,
    pub(super) device: Device,
    rotations: Rotations,
    embeddings: Product,
    /// `None` where the embeddings serve as output, too.
    output: Option<Product>,
    norm: Tensor,
    layers: Vec<Layer>,
}

struct Layer {
    attention_norm: Tensor,
    /// Queries, keys and values, one below the other.
    qkv: Joint,
    qkv_bias: Option<Tensor>,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    attention_output: Product,
    post_attention_norm: Option<Tensor>,
    feed_forward_norm: Tensor,
    /// Gate and up, one below the other.
    gate_up: Joint,
    down: Product,
    post_feed_forward_norm: Option<Tensor>,
}

/// Queries, keys and values of some rows, `[row, head, element]`.
pub(super) struct Heads {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

impl Heads {
    /// Returns those of some rows.
    pub(super) fn narrow(&self, first: usize, n: usize) -> Outcome<Self> {
        let narrow = |heads: &Tensor| heads.narrow(0, first, n);
        Ok(Self { q: narrow(&self.q)?, k: narrow(&self.k)?, v: narrow(&self.v)? })
    }
}

/// What a pass gives.
pub(super) struct States {
    /// For each row the sum of the squares of what it was before the last layer: no number shows in it.
    pub(super) sums: Tensor,
    /// The rows that went through the last layer; `None` where there was none.
    pub(super) last: Option<Tensor>,
}

/// Reads tensors onto a device.
struct Loader<'a> {
    weights: &'a mut Weights,
    device: &'a OpenDevice,
}

impl Loader<'_> {
    fn product(&mut self, role: Role) -> Result<Product, LoadError> {
        Product::load(self.weights, role, self.device)
    }

    fn joint(&mut self, roles: &[Role]) -> Result<Joint, LoadError> {
        Joint::load(self.weights, roles, self.device)
    }

    fn vector(&mut self, roles: &[Role]) -> Result<Tensor, LoadError> {
        let mut values = Vec::new();
        for role in roles {
            values.extend(self.weights.vector(*role)?);
        }
        let len = values.len();
        Tensor::from_vec(values, len, self.device.handle()).map_err(|e| self.device.error(&e))
    }

    fn vector_if(&mut self, there: bool, roles: &[Role]) -> Result<Option<Tensor>, LoadError> {
        there.then(|| self.vector(roles)).transpose()
    }

    fn layer(&mut self, p: &Params, index: usize) -> Result<Layer, LoadError> {
        let role = |part: Part| Role::Layer(index, part);
        Ok(Layer {
            attention_norm: self.vector(&[role(Part::AttentionNorm)])?,
            qkv: self.joint(&[Part::Query, Part::Key, Part::Value].map(role))?,
            qkv_bias: self.vector_if(p.qkv_bias, &[Part::QueryBias, Part::KeyBias, Part::ValueBias].map(role))?,
            q_norm: self.vector_if(p.qk_norm, &[role(Part::QueryNorm)])?,
            k_norm: self.vector_if(p.qk_norm, &[role(Part::KeyNorm)])?,
            attention_output: self.product(role(Part::AttentionOutput))?,
            post_attention_norm: self.vector_if(p.post_norms, &[role(Part::PostAttentionNorm)])?,
            feed_forward_norm: self.vector(&[role(Part::FeedForwardNorm)])?,
            gate_up: self.joint(&[Part::Gate, Part::Up].map(role))?,
            down: self.product(role(Part::Down))?,
            post_feed_forward_norm: self.vector_if(p.post_norms, &[role(Part::PostFeedForwardNorm)])?,
        })
    }
}

impl Model {
    /// Loads all weights onto a device.
    pub(super) fn load(weights: &mut Weights, device: &OpenDevice) -> Result<Self, LoadError> {
        let params = weights.params().clone();
        let rotations = Rotations::new(&params, device.handle()).map_err(|e| device.error(&e))?;
        let mut loader = Loader { weights, device };
        Ok(Self {
            rotations,
            embeddings: loader.product(Role::Embeddings)?,
            output: (!params.tied).then(|| loader.product(Role::Output)).transpose()?,
            norm: loader.vector(&[Role::OutputNorm])?,
            layers: (0..params.layers.len()).map(|i| loader.layer(&params, i)).collect::<Result<_, _>>()?,
            device: device.handle().clone(),
            params,
        })
    }

    /// Computes rows through all layers: tokens at positions, of any number of runs.
    ///
    /// `attend` puts keys and values where they belong, and returns what the queries take from them, `[row, head x
    /// element]`; for the last layer only of the rows that are `last`, in order.
    pub(super) fn forward(
        &self,
        tokens: &[u32],
        positions: &[u32],
        last: &[u32],
        attend: impl Fn(usize, &Heads) -> Result<Option<Tensor>, EngineError>,
    ) -> Result<States, EngineError> {
        let p = &self.params;
        let mut hidden = self.embeddings.rows(&Tensor::new(tokens, &self.device)?)?;
        if p.embedding_scale != 1.0 {
            hidden = (hidden * f64::from(p.embedding_scale))?;
        }
        let rotations = self.rotations.of(&Tensor::new(positions, &self.device)?)?;
        let mut sums = None;
        for (index, layer) in self.layers.iter().enumerate() {
            let is_last = index + 1 == self.layers.len();
            if is_last {
                sums = Some(squares(&hidden)?);
            }
            let input = rms_norm(&hidden, &layer.attention_norm, p.epsilon)?;
            let heads = self.heads(layer, &input, &rotations[p.layers[index].rope])?;
            let attended = attend(index, &heads)?;
            if is_last && last.len() < tokens.len() {
                if last.is_empty() {
                    // Keys and values are all that was wanted.
                    break;
                }
                hidden = hidden.index_select(&Tensor::new(last, &self.device)?, 0)?;
            }
            let attended = attended.ok_or(EngineError::Misuse("there is nothing to attend to"))?;
            hidden = self.feed_forward(layer, &hidden, &attended)?;
        }
        let sums = sums.ok_or(EngineError::Misuse("the model has no layers"))?;
        Ok(States { sums, last: (!last.is_empty()).then_some(hidden) })
    }

    /// Makes queries, keys and values of rows.
    fn heads(&self, layer: &Layer, input: &Tensor, rotation: &Rotation) -> Outcome<Heads> {
        let p = &self.params;
        let rows = input.dim(0)?;
        let mut qkv = layer.qkv.forward(input)?;
        if let Some(bias) = &layer.qkv_bias {
            qkv = qkv.broadcast_add(bias)?;
        }
        let heads = |first: usize, n: usize| {
            let of = qkv.narrow(D::Minus1, first * p.head_width, n * p.head_width)?;
            of.contiguous()?.reshape((rows, n, p.head_width))
        };
        let normed = |first: usize, n: usize, norm: &Option<Tensor>| match norm {
            Some(norm) => rms_norm(&heads(first, n)?, norm, p.epsilon),
            None => heads(first, n),
        };
        let turning = if layer.q_norm.is_some() || layer.k_norm.is_some() {
            Tensor::cat(&[normed(0, p.heads, &layer.q_norm)?, normed(p.heads, p.kv_heads, &layer.k_norm)?], 1)?
        } else {
            heads(0, p.heads + p.kv_heads)?
        };
        let turned = self.rotations.turn(&turning, rotation)?;
        Ok(Heads {
            q: (turned.narrow(1, 0, p.heads)? * f64::from(p.query_scale))?,
            k: turned.narrow(1, p.heads, p.kv_heads)?,
            v: heads(p.heads + p.kv_heads, p.kv_heads)?,
        })
    }

    /// Adds to the stream what was attended to, and what the network makes of it.
    fn feed_forward(&self, layer: &Layer, hidden: &Tensor, attended: &Tensor) -> Outcome<Tensor> {
        let p = &self.params;
        let normed = |rows: Tensor, norm: &Option<Tensor>| match norm {
            Some(norm) => rms_norm(&rows, norm, p.epsilon),
            None => Ok(rows),
        };
        let attended = layer.attention_output.forward(attended)?;
        let hidden = (hidden + normed(attended, &layer.post_attention_norm)?)?;
        let input = rms_norm(&hidden, &layer.feed_forward_norm, p.epsilon)?;
        let gate_up = layer.gate_up.forward(&input)?;
        let half = |first: usize| gate_up.narrow(D::Minus1, first, p.feed_forward);
        let gate = match p.activation {
            Activation::Silu => silu(&half(0)?)?,
            Activation::GeluTanh => half(0)?.gelu()?,
        };
        let wide = layer.down.forward(&(gate * half(p.feed_forward)?)?)?;
        hidden + normed(wide, &layer.post_feed_forward_norm)?
    }

    /// Computes the logits of rows that went through the last layer, and for each row the sum of its squares.
    pub(super) fn project(&self, hidden: &Tensor) -> Outcome<(Vec<f32>, Vec<f32>)> {
        let normed = rms_norm(hidden, &self.norm, self.params.epsilon)?;
        let mut logits = self.output.as_ref().unwrap_or(&self.embeddings).forward(&normed)?;
        if let Some(cap) = self.params.logit_softcap {
            logits = ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        Ok((logits.flatten_all()?.to_vec1()?, squares(hidden)?.to_vec1()?))
    }
}

/// Returns for each row the sum of its squares. Products may swallow what is no number, the residual stream does not.
fn squares(rows: &Tensor) -> Outcome<Tensor> {
    rows.sqr()?.sum(D::Minus1)
}
