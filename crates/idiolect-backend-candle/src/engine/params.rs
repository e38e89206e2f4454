//! The hyper-parameters of llama-shaped models.

use super::EngineError;
use crate::error::LoadError;
use crate::loader::Gguf;

/// Architectures that [`Params::read`] accepts, by their GGUF name.
const SUPPORTED: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pairs {
    /// Neighbours: (0, 1), (2, 3), …
    Neighbours,
    /// Each element of the first half with its twin of the second.
    Halves,
}

/// The shape of a model.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) vocabulary: usize,
    pub(crate) context: usize,
    pub(crate) width: usize,
    pub(crate) feed_forward: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_width: usize,
    pub(crate) epsilon: f32,
    pub(crate) pairs: Pairs,
    /// One angular step for each rotated pair.
    pub(crate) frequencies: Vec<f32>,
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
        let bad = |gguf: &Gguf, reason: String| Err(LoadError::damaged(gguf.path(), reason));

        if gguf.integer(&key("expert_count"))?.unwrap_or(0) > 0 {
            return Err(LoadError::unsupported(gguf.path(), "a mixture of experts", "dense models"));
        }
        let width = gguf.size(&key("embedding_length"))?;
        let heads = gguf.size(&key("attention.head_count"))?;
        let kv_heads = match gguf.integer(&key("attention.head_count_kv"))? {
            Some(n) => usize::try_from(n).unwrap_or(0),
            None => heads,
        };
        let layers = gguf.size(&key("block_count"))?;
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || width == 0 || layers == 0 || layers > 1024 {
            return bad(
                gguf,
                format!("{layers} layers of width {width} with {heads} heads and {kv_heads} key heads make no model"),
            );
        }
        let head_width = match gguf.integer(&key("attention.key_length"))? {
            Some(n) => usize::try_from(n).unwrap_or(0),
            None => width / heads,
        };
        let value_width = gguf.integer(&key("attention.value_length"))?.unwrap_or(head_width as u64);
        let rotated = match gguf.integer(&key("rope.dimension_count"))? {
            Some(n) => usize::try_from(n).unwrap_or(0),
            None => head_width,
        };
        if head_width == 0 || head_width > 1 << 16 || heads > 1 << 16 || value_width != head_width as u64 {
            return bad(gguf, format!("heads with keys of {head_width} and values of {value_width} make no model"));
        }
        if rotated == 0 || rotated > head_width || rotated % 2 != 0 {
            return bad(gguf, format!("{rotated} of {head_width} elements of a head cannot be rotated"));
        }
        let feed_forward = gguf.size(&key("feed_forward_length"))?;
        let trained = gguf.size(&key("context_length"))?;
        let window = gguf.integer(&key("attention.sliding_window"))?.filter(|n| *n > 0);
        let window = window.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
        let context = trained.min(most).min(window);
        if context < 16 {
            return bad(gguf, format!("a context of {context} tokens is too short to be of use"));
        }
        let epsilon = gguf.float(&key("attention.layer_norm_rms_epsilon"))?;
        let epsilon = gguf.required("attention.layer_norm_rms_epsilon", epsilon)?;
        let vocabulary = match *gguf.dimensions("token_embd.weight")? {
            [rows, cols] if cols == width => rows,
            ref other => {
                return bad(gguf, format!("tensor \"token_embd.weight\" is {other:?}, expected [vocabulary, {width}]"));
            }
        };
        let frequencies = frequencies(gguf, &architecture, rotated)?;
        let pairs = if architecture == "llama" { Pairs::Neighbours } else { Pairs::Halves };
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
            pairs,
            frequencies,
        })
    }

    /// Values of one key, or of one value, over all key heads.
    pub(crate) const fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }

    /// What scores are multiplied with: one over the square root of a head's width.
    pub(crate) fn attention_scale(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a head has a few hundred elements")]
        let width = self.head_width as f64;
        1.0 / width.sqrt()
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

    /// Bytes that the keys and values of one token take over all layers, as `f32`.
    pub(crate) const fn kv_bytes_per_token(&self) -> u64 {
        (self.layers as u64) * (self.kv_width() as u64) * 2 * size_of::<f32>() as u64
    }

    /// Values of one query over all heads.
    pub(crate) const fn q_width(&self) -> usize {
        self.heads * self.head_width
    }
}

fn frequencies(gguf: &mut Gguf, architecture: &str, rotated: usize) -> Result<Vec<f32>, LoadError> {
    let base = gguf.float(&format!("{architecture}.rope.freq_base"))?.unwrap_or(10_000.0);
    let key = format!("{architecture}.rope.scaling.type");
    let scale = match gguf.text(&key)?.unwrap_or("none") {
        "none" => 1.0,
        "linear" => {
            let factor = gguf.float(&format!("{architecture}.rope.scaling.factor"))?.unwrap_or(1.0);
            if factor > 0.0 { 1.0 / factor } else { 1.0 }
        }
        other => {
            let what = format!("position scaling {other:?}");
            return Err(LoadError::unsupported(gguf.path(), what, "none, linear"));
        }
    };
    // Llama 3.1 and later slow some frequencies down by factors of their own.
    let half = rotated / 2;
    let factors = if gguf.has("rope_freqs.weight") { gguf.vector("rope_freqs.weight", half)? } else { vec![1.0; half] };
    #[expect(clippy::cast_precision_loss, reason = "a head has a few hundred elements")]
    let exponent = |i: usize| 2.0 * i as f32 / rotated as f32;
    let frequencies: Vec<f32> =
        factors.iter().enumerate().map(|(i, factor)| scale / (base.powf(exponent(i)) * factor)).collect();
    if frequencies.iter().all(|f| f.is_finite()) {
        Ok(frequencies)
    } else {
        Err(LoadError::damaged(gguf.path(), "the frequencies of its position encoding are no numbers"))
    }
}
