//! The hyper-parameters of llama-shaped models, as plain data.
//!
//! Every family differs from Llama in a few of these values; nothing in an engine asks for a family by name.

use super::EngineError;
use super::rope::{Rope, RopeSpec, Scaling};
use crate::error::LoadError;
use crate::loader::Gguf;

/// Architectures that [`Params::read`] accepts, by their GGUF name.
pub(crate) const SUPPORTED: [&str; 7] = ["llama", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3"];

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairs {
    /// Neighbours: (0, 1), (2, 3), …
    Neighbours,
    /// Each element of the first half of the rotated ones with its twin of the second.
    Halves,
}

/// What bends the gate of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// The approximation of GELU by a hyperbolic tangent.
    GeluTanh,
}

/// What layers may differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerParams {
    /// How many positions a query sees, its own included; `None` for all. Always less than the context.
    pub(crate) window: Option<usize>,
    /// Which of [`Params::ropes`] turns queries and keys.
    pub(crate) rope: usize,
}

/// The shape of a model.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
    pub(crate) width: usize,
    pub(crate) feed_forward: usize,
    pub(crate) layers: Vec<LayerParams>,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
    pub(crate) epsilon: f32,
    pub(crate) pairs: Pairs,
    /// The rotations that layers choose from. All turn equally many elements of a head; the rest stays as it is.
    pub(crate) ropes: Vec<Rope>,
    /// What scores are multiplied with before anything else happens to them.
    pub(crate) query_scale: f32,
    /// `c` of `c * tanh(score / c)`, applied before the mask.
    pub(crate) attention_softcap: Option<f32>,
    /// The same for logits.
    pub(crate) logit_softcap: Option<f32>,
    /// What embeddings are multiplied with on their way in (not where they serve as output).
    pub(crate) embedding_scale: f32,
    pub(crate) activation: Activation,
    /// Whether queries, keys and values have biases.
    pub(crate) qkv_bias: bool,
    /// Whether each head of queries and keys is normalised, before it is turned.
    pub(crate) qk_norm: bool,
    /// Whether the outputs of attention and feed-forward are normalised before they are added to the stream.
    pub(crate) post_norms: bool,
    /// Whether the embeddings serve as output, too.
    pub(crate) tied: bool,
}

impl Params {
    /// Reads and checks the parameters. The context is cut to `most`.
    pub(crate) fn read(gguf: &mut Gguf, most: usize) -> Result<Self, LoadError> {
        let architecture = gguf.text("general.architecture")?;
        let architecture = gguf.required("general.architecture", architecture)?.to_owned();
        if !SUPPORTED.contains(&architecture.as_str()) {
            let what = format!("architecture {architecture:?}");
            return Err(LoadError::unsupported(gguf.path(), what, SUPPORTED.join(", ")));
        }
        let key = |name: &str| format!("{architecture}.{name}");
        let gemma = architecture.starts_with("gemma");

        if gguf.integer(&key("expert_count"))?.unwrap_or(0) > 0 {
            return Err(LoadError::unsupported(gguf.path(), "a mixture of experts", "dense models"));
        }
        let size = size(gguf, &key)?;
        let Size { width, heads, kv_heads, n_layers, head_width, .. } = size;
        let feed_forward = gguf.size(&key("feed_forward_length"))?;
        let context = gguf.size(&key("context_length"))?.min(most);
        if context < 16 {
            let reason = format!("a context of {context} tokens is too short to be of use");
            return Err(LoadError::damaged(gguf.path(), reason));
        }
        let epsilon = gguf.float(&key("attention.layer_norm_rms_epsilon"))?;
        let epsilon = gguf.required("attention.layer_norm_rms_epsilon", epsilon)?;
        let vocabulary = match *gguf.dimensions("token_embd.weight")? {
            [rows, cols] if cols == width => rows,
            ref other => {
                let reason = format!("tensor \"token_embd.weight\" is {other:?}, expected [vocabulary, {width}]");
                return Err(LoadError::damaged(gguf.path(), reason));
            }
        };

        let (layers, ropes) = layers(gguf, &architecture, &size, context)?;

        // The largest models of these families were trained with another scale; nothing in the file says so.
        let by_width = matches!((architecture.as_str(), n_layers), ("gemma2", 46) | ("gemma3", 62));
        let divisor = if by_width { width / heads } else { head_width };
        let query_scale = match gguf.float(&key("attention.scale"))?.filter(|scale| *scale > 0.0) {
            Some(scale) => scale,
            None => inverse_root(divisor),
        };
        let softcap = |name: &str| Ok::<_, LoadError>(gguf.float(&key(name))?.filter(|cap| *cap > 0.0));
        let (attention_softcap, logit_softcap) =
            (softcap("attn_logit_softcapping")?, softcap("final_logit_softcapping")?);
        Ok(Self {
            vocabulary,
            context,
            width,
            feed_forward,
            layers,
            heads,
            kv_heads,
            head_width,
            epsilon,
            pairs: if architecture == "llama" { Pairs::Neighbours } else { Pairs::Halves },
            ropes,
            query_scale,
            attention_softcap,
            logit_softcap,
            embedding_scale: if gemma { root(width) } else { 1.0 },
            activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
            qkv_bias: architecture == "qwen2" || gguf.has("blk.0.attn_q.bias") || gguf.has("blk.0.attn_qkv.bias"),
            qk_norm: matches!(architecture.as_str(), "qwen3" | "gemma3") || gguf.has("blk.0.attn_q_norm.weight"),
            post_norms: matches!(architecture.as_str(), "gemma2" | "gemma3"),
            tied: !gguf.has("output.weight"),
        })
    }

    /// Values of one key, or of one value, over all key heads.
    pub(crate) const fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }

    /// Checks that a prompt and continuations of at most `room` tokens fit the context.
    pub(crate) fn check_lengths(&self, prompt: usize, room: usize) -> Result<(), EngineError> {
        if prompt == 0 {
            return Err(EngineError::Misuse("the prompt has no tokens"));
        }
        if prompt.saturating_add(room) > self.context {
            return Err(EngineError::Misuse("prompt and continuation are longer than the context"));
        }
        Ok(())
    }

    /// Values of one query over all heads.
    pub(crate) const fn q_width(&self) -> usize {
        self.heads * self.head_width
    }
}

/// The numbers that everything else follows from.
pub(crate) struct Size {
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) n_layers: usize,
    pub(crate) head_width: usize,
    pub(crate) value_width: usize,
    pub(crate) rotated: usize,
}

impl Size {
    /// Says what cannot be.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { width, heads, kv_heads, n_layers, head_width, value_width, rotated } = *self;
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || width == 0 || n_layers == 0 || n_layers > 1024 {
            return Err(format!(
                "{n_layers} layers of width {width} with {heads} heads and {kv_heads} key heads make no model"
            ));
        }
        if head_width == 0 || head_width > 1 << 16 || heads > 1 << 16 || value_width != head_width {
            return Err(format!("heads with keys of {head_width} and values of {value_width} make no model"));
        }
        if rotated == 0 || rotated > head_width || rotated % 2 != 0 {
            return Err(format!("{rotated} of {head_width} elements of a head cannot be rotated"));
        }
        Ok(())
    }
}

/// Returns the square root of a width.
#[expect(clippy::cast_precision_loss, reason = "widths are far below 2^24")]
pub(crate) fn root(width: usize) -> f32 {
    (width as f32).sqrt()
}

/// Returns one over the square root of a width.
pub(crate) fn inverse_root(width: usize) -> f32 {
    1.0 / root(width)
}

fn size(gguf: &mut Gguf, key: &impl Fn(&str) -> String) -> Result<Size, LoadError> {
    let width = gguf.size(&key("embedding_length"))?;
    let heads = gguf.size(&key("attention.head_count"))?;
    let kv_heads = optional_size(gguf, &key("attention.head_count_kv"))?.unwrap_or(heads);
    let n_layers = gguf.size(&key("block_count"))?;
    let head_width = match optional_size(gguf, &key("attention.key_length"))? {
        Some(n) => n,
        None => width.checked_div(heads).unwrap_or(0),
    };
    let value_width = optional_size(gguf, &key("attention.value_length"))?.unwrap_or(head_width);
    let rotated = optional_size(gguf, &key("rope.dimension_count"))?.unwrap_or(head_width);
    let size = Size { width, heads, kv_heads, n_layers, head_width, value_width, rotated };
    size.check().map_err(|reason| LoadError::damaged(gguf.path(), reason))?;
    Ok(size)
}

/// Reads which layers have a window, and what turns queries and keys in each of them.
fn layers(
    gguf: &mut Gguf,
    architecture: &str,
    size: &Size,
    context: usize,
) -> Result<(Vec<LayerParams>, Vec<Rope>), LoadError> {
    let key = |name: &str| format!("{architecture}.{name}");
    let base = gguf.float(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let scaling = scaling(gguf, architecture, size.rotated, context)?;
    let mut specs = vec![RopeSpec { base, rotated: size.rotated, scaling }];
    let window = optional_size(gguf, &key("attention.sliding_window"))?.filter(|n| *n > 0 && *n < context);
    let sliding = |index: usize| match architecture {
        "gemma2" => index.is_multiple_of(2),
        "gemma3" => index % 6 != 5,
        _ => true,
    };
    if architecture == "gemma3" {
        // Layers with a window keep the rotation of short contexts.
        let base = match gguf.float(&key("rope.freq_base_swa"))? {
            Some(base) => base,
            None => gguf.float(&key("rope.local_freq_base"))?.unwrap_or(10_000.0),
        };
        specs.push(RopeSpec { base, rotated: size.rotated, scaling: Scaling::None });
    }
    let pattern = pattern(gguf, &key("attention.sliding_window_pattern"), size.n_layers)?;
    let layers = (0..size.n_layers)
        .map(|index| {
            let sliding = pattern.as_ref().map_or_else(|| sliding(index), |pattern| pattern[index]);
            let rope = usize::from(sliding && specs.len() > 1);
            LayerParams { window: window.filter(|_| sliding), rope }
        })
        .collect();
    let ropes = specs.iter().map(RopeSpec::rope).collect::<Option<_>>();
    let ropes = ropes
        .ok_or_else(|| LoadError::damaged(gguf.path(), "the frequencies of its position encoding are no numbers"))?;
    Ok((layers, ropes))
}

fn optional_size(gguf: &Gguf, key: &str) -> Result<Option<usize>, LoadError> {
    Ok(gguf.integer(key)?.map(|n| usize::try_from(n).unwrap_or(0)))
}

/// Reads which layers have a window: a period (the last of each is without), or one flag for each layer.
fn pattern(gguf: &Gguf, key: &str, n_layers: usize) -> Result<Option<Vec<bool>>, LoadError> {
    if let Ok(Some(period)) = gguf.integer(key) {
        let period = usize::try_from(period).unwrap_or(0);
        return Ok((period > 0).then(|| (0..n_layers).map(|index| index % period != period - 1).collect()));
    }
    match gguf.flags(key)? {
        Some(flags) if flags.len() == n_layers => Ok(Some(flags)),
        Some(flags) => {
            let reason = format!("metadata {key:?} has {} entries for {n_layers} layers", flags.len());
            Err(LoadError::damaged(gguf.path(), reason))
        }
        None => Ok(None),
    }
}

fn scaling(gguf: &mut Gguf, architecture: &str, rotated: usize, context: usize) -> Result<Scaling, LoadError> {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let half = rotated / 2;
    // Llama 3.1 and later slow some frequencies down by factors of their own.
    if gguf.has("rope_freqs.weight") {
        return Ok(Scaling::Factors { factors: gguf.vector("rope_freqs.weight", half)?, magnitude: 1.0 });
    }
    let original = gguf.float_or_integer(&key("original_context_length"))?;
    if gguf.has("rope_factors_long.weight") {
        // One set for contexts as in training and one for longer ones. It is chosen once, as keys that were turned by
        // one cannot be used with the other.
        #[expect(clippy::cast_precision_loss, reason = "contexts are far below 2^24")]
        let long = original.is_none_or(|original| context as f32 > original);
        let name = if long { "rope_factors_long.weight" } else { "rope_factors_short.weight" };
        let magnitude = gguf.float(&key("attn_factor"))?.unwrap_or(1.0);
        return Ok(Scaling::Factors { factors: gguf.vector(name, half)?, magnitude });
    }
    let kind = gguf.text(&key("type"))?.unwrap_or("none").to_owned();
    let factor = gguf.float(&key("factor"))?.filter(|factor| *factor > 0.0).unwrap_or(1.0);
    match kind.as_str() {
        "none" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear(factor)),
        "yarn" => {
            let original = gguf.required(&key("original_context_length"), original)?;
            let fast = gguf.float(&key("yarn_beta_fast"))?.unwrap_or(32.0);
            let slow = gguf.float(&key("yarn_beta_slow"))?.unwrap_or(1.0);
            // The file's factor multiplies YaRN's own.
            let own = gguf.float(&key("attn_factor"))?;
            let magnitude = own.map(|own| own * super::rope::yarn_magnitude(factor));
            Ok(Scaling::Yarn { factor, original, fast, slow, magnitude })
        }
        other => {
            let what = format!("position scaling {other:?}");
            Err(LoadError::unsupported(gguf.path(), what, "none, linear, yarn, and factors in the file"))
        }
    }
}
