//! What each tensor of a model is for, and what files call it.

use crate::engine::Params;

/// A tensor's place in the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// One row for each token.
    Embeddings,
    /// From the last hidden state to logits; not there where embeddings serve ([`Params::tied`]).
    Output,
    OutputNorm,
    Layer(usize, Part),
}

/// A tensor's place in a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    AttentionNorm,
    Query,
    Key,
    Value,
    /// Biases are there as [`Params::qkv_bias`] says.
    QueryBias,
    KeyBias,
    ValueBias,
    /// As [`Params::qk_norm`] says.
    QueryNorm,
    KeyNorm,
    AttentionOutput,
    /// As [`Params::post_norms`] says.
    PostAttentionNorm,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
    /// As [`Params::post_norms`] says.
    PostFeedForwardNorm,
}

impl Role {
    /// Returns rows and columns; vectors are one row.
    pub(super) const fn shape(self, p: &Params) -> (usize, usize) {
        match self {
            Self::Embeddings | Self::Output => (p.vocabulary, p.width),
            Self::OutputNorm => (1, p.width),
            Self::Layer(_, part) => match part {
                Part::AttentionNorm | Part::PostAttentionNorm | Part::FeedForwardNorm | Part::PostFeedForwardNorm => {
                    (1, p.width)
                }
                Part::Query => (p.q_width(), p.width),
                Part::Key | Part::Value => (p.kv_width(), p.width),
                Part::QueryBias => (1, p.q_width()),
                Part::KeyBias | Part::ValueBias => (1, p.kv_width()),
                Part::QueryNorm | Part::KeyNorm => (1, p.head_width),
                Part::AttentionOutput => (p.width, p.q_width()),
                Part::Gate | Part::Up => (p.feed_forward, p.width),
                Part::Down => (p.width, p.feed_forward),
            },
        }
    }

    /// Says whether it is multiplied with, rather than added or scaled by.
    pub(super) const fn is_norm(self) -> bool {
        matches!(
            self,
            Self::OutputNorm
                | Self::Layer(
                    _,
                    Part::AttentionNorm
                        | Part::QueryNorm
                        | Part::KeyNorm
                        | Part::PostAttentionNorm
                        | Part::FeedForwardNorm
                        | Part::PostFeedForwardNorm
                )
        )
    }
}

/// Where a role's values are: some rows of a tensor, which may hold other roles' too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) tensor: String,
    /// Its first row.
    pub(super) first: usize,
    /// Rows of the whole tensor.
    pub(super) of: usize,
}

/// How a file names and joins its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) scheme: Scheme,
    /// Queries, keys and values in one tensor.
    pub(super) joint_qkv: bool,
    /// Gate and up in one tensor.
    pub(super) joint_gate_up: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Gguf,
    /// With what stands before `embed_tokens` and `layers`, and whether there are norms after attention and feed-forward.
    Hub {
        prefix: String,
        sandwich: bool,
    },
}

impl Names {
    /// Returns the place of a role.
    pub(super) fn place(&self, role: Role, p: &Params) -> Place {
        let (rows, cols) = role.shape(p);
        let (q, kv, ff) = (p.q_width(), p.kv_width(), p.feed_forward);
        let alone = |tensor: String| {
            let of = if rows == 1 { cols } else { rows };
            Place { tensor, first: 0, of }
        };
        let Role::Layer(index, part) = role else {
            return alone(self.outer(role));
        };
        let (joint, first, of) = match part {
            Part::Query if self.joint_qkv => ("qkv.weight", 0, q + 2 * kv),
            Part::Key if self.joint_qkv => ("qkv.weight", q, q + 2 * kv),
            Part::Value if self.joint_qkv => ("qkv.weight", q + kv, q + 2 * kv),
            Part::QueryBias if self.joint_qkv => ("qkv.bias", 0, q + 2 * kv),
            Part::KeyBias if self.joint_qkv => ("qkv.bias", q, q + 2 * kv),
            Part::ValueBias if self.joint_qkv => ("qkv.bias", q + kv, q + 2 * kv),
            Part::Gate if self.joint_gate_up => ("gate_up", 0, 2 * ff),
            Part::Up if self.joint_gate_up => ("gate_up", ff, 2 * ff),
            _ => return alone(self.inner(index, part)),
        };
        let tensor = match (&self.scheme, joint) {
            (Scheme::Gguf, "gate_up") => format!("blk.{index}.ffn_up.weight"),
            (Scheme::Gguf, joint) => format!("blk.{index}.attn_{joint}"),
            (Scheme::Hub { prefix, .. }, "gate_up") => format!("{prefix}layers.{index}.mlp.gate_up_proj.weight"),
            (Scheme::Hub { prefix, .. }, joint) => {
                format!("{prefix}layers.{index}.self_attn.{}", joint.replace("qkv", "qkv_proj"))
            }
        };
        Place { tensor, first, of }
    }

    fn outer(&self, role: Role) -> String {
        match (&self.scheme, role) {
            (Scheme::Gguf, Role::Embeddings) => "token_embd.weight".to_owned(),
            (Scheme::Gguf, Role::Output) => "output.weight".to_owned(),
            (Scheme::Gguf, _) => "output_norm.weight".to_owned(),
            (Scheme::Hub { prefix, .. }, Role::Embeddings) => format!("{prefix}embed_tokens.weight"),
            (Scheme::Hub { prefix, .. }, Role::Output) => {
                format!("{}lm_head.weight", prefix.strip_suffix("model.").unwrap_or(""))
            }
            (Scheme::Hub { prefix, .. }, _) => format!("{prefix}norm.weight"),
        }
    }

    fn inner(&self, index: usize, part: Part) -> String {
        match &self.scheme {
            Scheme::Gguf => {
                let part = match part {
                    Part::AttentionNorm => "attn_norm.weight",
                    Part::Query => "attn_q.weight",
                    Part::Key => "attn_k.weight",
                    Part::Value => "attn_v.weight",
                    Part::QueryBias => "attn_q.bias",
                    Part::KeyBias => "attn_k.bias",
                    Part::ValueBias => "attn_v.bias",
                    Part::QueryNorm => "attn_q_norm.weight",
                    Part::KeyNorm => "attn_k_norm.weight",
                    Part::AttentionOutput => "attn_output.weight",
                    Part::PostAttentionNorm => "post_attention_norm.weight",
                    Part::FeedForwardNorm => "ffn_norm.weight",
                    Part::Gate => "ffn_gate.weight",
                    Part::Up => "ffn_up.weight",
                    Part::Down => "ffn_down.weight",
                    Part::PostFeedForwardNorm => "post_ffw_norm.weight",
                };
                format!("blk.{index}.{part}")
            }
            Scheme::Hub { prefix, sandwich } => {
                let part = match part {
                    Part::AttentionNorm => "input_layernorm.weight",
                    Part::Query => "self_attn.q_proj.weight",
                    Part::Key => "self_attn.k_proj.weight",
                    Part::Value => "self_attn.v_proj.weight",
                    Part::QueryBias => "self_attn.q_proj.bias",
                    Part::KeyBias => "self_attn.k_proj.bias",
                    Part::ValueBias => "self_attn.v_proj.bias",
                    Part::QueryNorm => "self_attn.q_norm.weight",
                    Part::KeyNorm => "self_attn.k_norm.weight",
                    Part::AttentionOutput => "self_attn.o_proj.weight",
                    // Without a norm after attention, this is what the one before the feed-forward is called.
                    Part::FeedForwardNorm if !sandwich => "post_attention_layernorm.weight",
                    Part::PostAttentionNorm => "post_attention_layernorm.weight",
                    Part::FeedForwardNorm => "pre_feedforward_layernorm.weight",
                    Part::Gate => "mlp.gate_proj.weight",
                    Part::Up => "mlp.up_proj.weight",
                    Part::Down => "mlp.down_proj.weight",
                    Part::PostFeedForwardNorm => "post_feedforward_layernorm.weight",
                };
                format!("{prefix}layers.{index}.{part}")
            }
        }
    }

    /// Returns every role that a model has.
    pub(super) fn roles(p: &Params) -> impl Iterator<Item = Role> + '_ {
        let parts = [
            (Part::AttentionNorm, true),
            (Part::Query, true),
            (Part::Key, true),
            (Part::Value, true),
            (Part::QueryBias, p.qkv_bias),
            (Part::KeyBias, p.qkv_bias),
            (Part::ValueBias, p.qkv_bias),
            (Part::QueryNorm, p.qk_norm),
            (Part::KeyNorm, p.qk_norm),
            (Part::AttentionOutput, true),
            (Part::PostAttentionNorm, p.post_norms),
            (Part::FeedForwardNorm, true),
            (Part::Gate, true),
            (Part::Up, true),
            (Part::Down, true),
            (Part::PostFeedForwardNorm, p.post_norms),
        ];
        let layers = (0..p.layers.len()).flat_map(move |index| {
            parts.into_iter().filter(|(_, there)| *there).map(move |(part, _)| Role::Layer(index, part))
        });
        let output = (!p.tied).then_some(Role::Output);
        [Role::Embeddings, Role::OutputNorm].into_iter().chain(output).chain(layers)
    }
}
