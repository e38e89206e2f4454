//! Models as the Hugging Face hub has them: safetensors files with a `config.json` beside them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::role::{Names, Scheme};
use crate::engine::{
    Activation, LayerParams, Pairs, Params, Rope, RopeSpec, SUPPORTED, Scaling, Size, inverse_root, root,
};
use crate::error::LoadError;
use crate::safetensors::{SafeTensors, Stored};

/// Largest JSON file that is read; vocabularies take some ten megabytes.
const MAX_JSON: u64 = 256 << 20;

/// The model types that are read, with the GGUF architecture that each is.
const TYPES: [(&str, &str); 9] = [
    ("llama", "llama"),
    ("mistral", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("phi3", "phi3"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3"),
    ("gemma3_text", "gemma3"),
];

/// What may stand before `embed_tokens` and `layers`, in models with and without eyes.
const PREFIXES: [&str; 4] = ["model.", "language_model.model.", "model.language_model.", ""];

/// An open folder.
pub(super) struct Hub {
    dir: PathBuf,
    config: Config,
    files: Vec<SafeTensors>,
}

/// Reads a JSON file; `None` where it is not there.
pub(crate) fn json(path: &Path) -> Result<Option<Value>, LoadError> {
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(LoadError::io(path, e)),
        Ok(about) if about.len() > MAX_JSON => {
            return Err(LoadError::damaged(path, format!("it has {} bytes, expected at most {MAX_JSON}", about.len())));
        }
        Ok(_) => {}
    }
    let text = std::fs::read(path).map_err(|e| LoadError::io(path, e))?;
    serde_json::from_slice(&text).map(Some).map_err(|e| LoadError::damaged(path, e))
}

impl Hub {
    /// Opens a folder, or the folder that a safetensors file lies in.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let alone = path.is_file();
        let dir = if alone { path.parent().unwrap_or(Path::new(".")) } else { path };
        let config = Config::read(&dir.join("config.json"))?;
        let mut files = Vec::new();
        for path in if alone && !is_shard(path) { vec![path.to_owned()] } else { weight_files(dir)? } {
            files.push(SafeTensors::open(&path)?);
        }
        Ok(Self { dir: dir.to_owned(), config, files })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the architecture by its GGUF name.
    pub(super) fn architecture(&self) -> Result<&'static str, LoadError> {
        self.config.architecture()
    }

    /// Returns the names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(SafeTensors::names)
    }

    fn has(&self, tensor: &str) -> bool {
        self.names().any(|name| name == tensor)
    }

    /// Returns the number of the file that holds a tensor, with the tensor's form and place in it.
    pub(super) fn stored(&self, tensor: &str) -> Result<(usize, Stored), LoadError> {
        for (index, file) in self.files.iter().enumerate() {
            if file.names().any(|name| name == tensor) {
                return Ok((index, file.stored(tensor)?));
            }
        }
        Err(LoadError::damaged(&self.dir, format!("tensor {tensor:?} is missing")))
    }

    pub(super) fn read(&mut self, file: usize, begin: u64, bytes: &mut [u8]) -> Result<(), LoadError> {
        match self.files.get_mut(file) {
            Some(file) => file.read(begin, bytes),
            None => Err(LoadError::damaged(&self.dir, "a tensor lies in no file")),
        }
    }

    pub(super) fn path(&self, file: usize) -> &Path {
        self.files.get(file).map_or(&self.dir, SafeTensors::path)
    }

    /// Finds out how tensors are named.
    pub(super) fn scheme(&self) -> Result<Names, LoadError> {
        let there = |prefix: &&str| self.has(&format!("{prefix}embed_tokens.weight"));
        let Some(prefix) = PREFIXES.into_iter().find(|prefix| there(prefix)) else {
            return Err(LoadError::damaged(&self.dir, "tensor \"model.embed_tokens.weight\" is missing"));
        };
        let layer = |name: &str| self.has(&format!("{prefix}layers.0.{name}"));
        let sandwich = layer("pre_feedforward_layernorm.weight");
        Ok(Names {
            scheme: Scheme::Hub { prefix: prefix.to_owned(), sandwich },
            joint_qkv: layer("self_attn.qkv_proj.weight"),
            joint_gate_up: layer("mlp.gate_up_proj.weight"),
        })
    }

    /// Reads and checks the parameters. The context is cut to `most`.
    pub(super) fn params(&self, names: &Names, most: usize) -> Result<Params, LoadError> {
        let Scheme::Hub { prefix, .. } = &names.scheme else {
            return Err(LoadError::damaged(&self.dir, "its tensors have no names"));
        };
        let embeddings = format!("{prefix}embed_tokens.weight");
        let width = self.config.required_size("hidden_size")?;
        let vocabulary = match self.stored(&embeddings)?.1.dimensions[..] {
            [rows, cols] if cols == width => rows,
            ref other => {
                let reason = format!("tensor {embeddings:?} is {other:?}, expected [vocabulary, {width}]");
                return Err(LoadError::damaged(&self.dir, reason));
            }
        };
        let layer = |name: &str| self.has(&format!("{prefix}layers.0.self_attn.{name}"));
        let mut params = self.config.params(vocabulary, most)?;
        params.qkv_bias = layer("q_proj.bias") || layer("qkv_proj.bias") || params.qkv_bias;
        params.qk_norm = layer("q_norm.weight") || params.qk_norm;
        let head = format!("{}lm_head.weight", prefix.strip_suffix("model.").unwrap_or(""));
        params.tied = match self.config.flag("tie_word_embeddings")? {
            Some(tied) => tied,
            None => self.config.architecture()?.starts_with("gemma") || !self.has(&head),
        };
        Ok(params)
    }
}

fn is_shard(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().contains("-of-"))
}

/// Returns the weight files of a folder: as the index says, else `model.safetensors`, else the only one.
fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let index = dir.join("model.safetensors.index.json");
    if let Some(value) = json(&index)? {
        let map = value.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| LoadError::damaged(&index, "it has no \"weight_map\""))?;
        let mut names = Vec::new();
        for file in map.values() {
            let name = file.as_str().filter(|name| Path::new(name).components().count() == 1 && !name.contains(".."));
            let name = name.ok_or_else(|| LoadError::damaged(&index, format!("{file} is no file's name")))?;
            names.push(dir.join(name));
        }
        names.sort();
        names.dedup();
        return Ok(names);
    }
    let plain = dir.join("model.safetensors");
    if plain.is_file() {
        return Ok(vec![plain]);
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(|e| LoadError::io(dir, e))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    found.sort();
    if found.len() == 1 || (!found.is_empty() && found.iter().all(|path| is_shard(path))) {
        return Ok(found);
    }
    Err(LoadError::damaged(dir, "it holds no model.safetensors"))
}

/// What `config.json` says of the language model.
#[derive(Debug)]
struct Config {
    path: PathBuf,
    values: Value,
}

impl Config {
    fn read(path: &Path) -> Result<Self, LoadError> {
        let values = json(path)?.ok_or_else(|| LoadError::io(path, std::io::ErrorKind::NotFound.into()))?;
        // Models that see describe their language part apart.
        let values = match values.get("text_config") {
            Some(text @ Value::Object(_)) => text.clone(),
            _ => values,
        };
        Ok(Self { path: path.to_owned(), values })
    }

    fn architecture(&self) -> Result<&'static str, LoadError> {
        let kind = self.values.get("model_type").and_then(Value::as_str);
        let kind = kind.ok_or_else(|| LoadError::damaged(&self.path, "\"model_type\" is missing"))?;
        TYPES.iter().find(|(name, _)| *name == kind).map(|(_, architecture)| *architecture).ok_or_else(|| {
            let what = format!("model type {kind:?}");
            LoadError::unsupported(&self.path, what, TYPES.map(|(name, _)| name).join(", "))
        })
    }

    fn wrong(&self, key: &str, expected: &str) -> LoadError {
        LoadError::damaged(&self.path, format!("{key:?} is not {expected}"))
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    fn size(&self, key: &str) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| self.wrong(key, "a size"))
    }

    fn required_size(&self, key: &str) -> Result<usize, LoadError> {
        self.size(key)?.ok_or_else(|| LoadError::damaged(&self.path, format!("{key:?} is missing")))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, LoadError> {
        self.get(key).map(|value| number(value).ok_or_else(|| self.wrong(key, "a finite number"))).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.get(key).map(|value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))).transpose()
    }

    fn params(&self, vocabulary: usize, most: usize) -> Result<Params, LoadError> {
        let architecture = self.architecture()?;
        debug_assert!(SUPPORTED.contains(&architecture));
        let gemma = architecture.starts_with("gemma");
        if self.get("quantization_config").is_some() {
            let supported = "weights in F32, F16 or BF16";
            return Err(LoadError::unsupported(&self.path, "a \"quantization_config\"", supported));
        }
        let size = self.shape(gemma)?;
        let Size { width, heads, kv_heads, head_width, .. } = size;
        let trained = self.size("max_position_embeddings")?.unwrap_or(if gemma { 8192 } else { 2048 });
        let context = trained.min(most);
        if context < 16 {
            let reason = format!("a context of {context} tokens is too short to be of use");
            return Err(LoadError::damaged(&self.path, reason));
        }

        let (layers, ropes) = self.layers(architecture, &size, context, trained)?;
        let activation = self.activation(gemma)?;
        let query_scale = match self.float("query_pre_attn_scalar")?.filter(|n| gemma && *n > 0.0) {
            Some(scalar) => 1.0 / scalar.sqrt(),
            None => inverse_root(head_width),
        };
        let softcap = |key: &str| Ok::<_, LoadError>(self.float(key)?.filter(|cap| *cap > 0.0));
        Ok(Params {
            vocabulary,
            context,
            width,
            feed_forward: self.required_size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_width,
            epsilon: self.float("rms_norm_eps")?.unwrap_or(1e-6),
            pairs: Pairs::Halves,
            ropes,
            query_scale,
            attention_softcap: softcap("attn_logit_softcapping")?,
            logit_softcap: softcap("final_logit_softcapping")?,
            embedding_scale: if gemma { root(width) } else { 1.0 },
            activation,
            qkv_bias: architecture == "qwen2",
            qk_norm: matches!(architecture, "qwen3" | "gemma3"),
            post_norms: matches!(architecture, "gemma2" | "gemma3"),
            tied: false,
        })
    }

    fn shape(&self, gemma: bool) -> Result<Size, LoadError> {
        let width = self.required_size("hidden_size")?;
        let heads = self.required_size("num_attention_heads")?;
        let kv_heads = self.size("num_key_value_heads")?.unwrap_or(heads);
        let n_layers = self.required_size("num_hidden_layers")?;
        let head_width = match self.size("head_dim")? {
            Some(n) => n,
            None if gemma => 256,
            None => width.checked_div(heads).unwrap_or(0),
        };
        let partial = self.float("partial_rotary_factor")?.unwrap_or(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a part of a head's width, checked below"
        )]
        let rotated = (head_width as f32 * partial) as usize;
        let size = Size { width, heads, kv_heads, n_layers, head_width, value_width: head_width, rotated };
        size.check().map_err(|reason| LoadError::damaged(&self.path, reason))?;
        Ok(size)
    }

    /// Returns which layers have a window, and what turns queries and keys in each of them.
    fn layers(
        &self,
        architecture: &str,
        size: &Size,
        context: usize,
        trained: usize,
    ) -> Result<(Vec<LayerParams>, Vec<Rope>), LoadError> {
        let sliding = self.sliding(architecture, size.n_layers)?;
        let window = self.size("sliding_window")?.filter(|n| *n > 0 && *n < context);
        let mut specs = vec![RopeSpec {
            base: self.rope_base("full_attention")?.unwrap_or(if architecture == "gemma3" { 1e6 } else { 1e4 }),
            rotated: size.rotated,
            scaling: self.scaling(size.rotated / 2, context, trained)?,
        }];
        if architecture == "gemma3" {
            let base = match self.float("rope_local_base_freq")? {
                Some(base) => base,
                None => self.rope_base("sliding_attention")?.unwrap_or(1e4),
            };
            specs.push(RopeSpec { base, rotated: size.rotated, scaling: Scaling::None });
        }
        let layers = sliding
            .into_iter()
            .map(|sliding| LayerParams {
                window: window.filter(|_| sliding),
                rope: usize::from(sliding && specs.len() > 1),
            })
            .collect();
        let ropes = specs.iter().map(RopeSpec::rope).collect::<Option<_>>();
        let ropes = ropes
            .ok_or_else(|| LoadError::damaged(&self.path, "the frequencies of its position encoding are no numbers"))?;
        Ok((layers, ropes))
    }

    fn activation(&self, gemma: bool) -> Result<Activation, LoadError> {
        let key = if self.get("hidden_activation").is_some() { "hidden_activation" } else { "hidden_act" };
        match self.get(key).and_then(Value::as_str) {
            // Gemma's first files name the exact GELU, and mean the other.
            None | Some("gelu") if gemma => Ok(Activation::GeluTanh),
            None | Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
            Some(other) => {
                let what = format!("activation {other:?}");
                Err(LoadError::unsupported(&self.path, what, "silu, gelu_pytorch_tanh"))
            }
        }
    }

    /// Returns which layers have a window.
    fn sliding(&self, architecture: &str, n_layers: usize) -> Result<Vec<bool>, LoadError> {
        if let Some(types) = self.get("layer_types") {
            let types = types.as_array().map(Vec::as_slice).unwrap_or_default();
            let sliding: Option<Vec<bool>> = types
                .iter()
                .map(|kind| match kind.as_str() {
                    Some("sliding_attention") => Some(true),
                    Some("full_attention") => Some(false),
                    _ => None,
                })
                .collect();
            return sliding.filter(|sliding| sliding.len() == n_layers).ok_or_else(|| {
                self.wrong("layer_types", "\"full_attention\" or \"sliding_attention\" for each layer")
            });
        }
        let used = self.flag("use_sliding_window")?.unwrap_or(!architecture.starts_with("qwen"));
        // Qwen's first layers see everything.
        let from = if architecture.starts_with("qwen") { self.size("max_window_layers")?.unwrap_or(0) } else { 0 };
        let period = match architecture {
            "gemma2" => None,
            "gemma3" => Some(self.size("sliding_window_pattern")?.filter(|n| *n > 0).unwrap_or(6)),
            _ => None,
        };
        let sliding = |index: usize| match period {
            Some(period) => index % period != period - 1,
            None if architecture == "gemma2" => index.is_multiple_of(2),
            None => index >= from,
        };
        Ok((0..n_layers).map(|index| used && architecture != "gemma" && sliding(index)).collect())
    }

    /// Returns what is said of rotation: newer files have one object, perhaps with one for each kind of layer in it.
    fn rope(&self, kind: &str) -> Option<&Value> {
        let all = self.get("rope_parameters").or_else(|| self.get("rope_scaling"))?;
        match all.get(kind) {
            Some(own) => Some(own),
            None => Some(all),
        }
    }

    fn rope_base(&self, kind: &str) -> Result<Option<f32>, LoadError> {
        if kind == "full_attention"
            && let Some(base) = self.float("rope_theta")?
        {
            return Ok(Some(base));
        }
        let inner = self.get("rope_parameters").and_then(|all| match all.get(kind) {
            Some(own) => own.get("rope_theta"),
            None if kind == "full_attention" => all.get("rope_theta"),
            None => None,
        });
        inner.map(|base| number(base).ok_or_else(|| self.wrong("rope_theta", "a finite number"))).transpose()
    }

    fn scaling(&self, half: usize, context: usize, trained: usize) -> Result<Scaling, LoadError> {
        let Some(rope) = self.rope("full_attention") else { return Ok(Scaling::None) };
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
        let value = |key: &str| rope.get(key).and_then(number);
        let required =
            |key: &str| value(key).ok_or_else(|| LoadError::damaged(&self.path, format!("{key:?} is missing")));
        #[expect(clippy::cast_precision_loss, reason = "contexts are far below 2^24")]
        let (context, trained) = (context as f32, trained as f32);
        match kind {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear(required("factor")?)),
            "llama3" => Ok(Scaling::Llama3 {
                factor: required("factor")?,
                low: required("low_freq_factor")?,
                high: required("high_freq_factor")?,
                original: required("original_max_position_embeddings")?,
            }),
            "yarn" => Ok(Scaling::Yarn {
                factor: required("factor")?,
                original: value("original_max_position_embeddings").unwrap_or(trained),
                fast: value("beta_fast").unwrap_or(32.0),
                slow: value("beta_slow").unwrap_or(1.0),
                magnitude: value("attention_factor"),
            }),
            // "su" is what Phi-3's first files called it.
            "longrope" | "su" => {
                let original = match value("original_max_position_embeddings") {
                    Some(original) => original,
                    None => self.float("original_max_position_embeddings")?.unwrap_or(trained),
                };
                let list = |key: &str| {
                    let values = rope.get(key).and_then(Value::as_array);
                    let values: Option<Vec<f32>> = values.and_then(|values| values.iter().map(number).collect());
                    values
                        .filter(|values| values.len() == half)
                        .ok_or_else(|| self.wrong(key, &format!("a list of {half} numbers")))
                };
                let factors = list(if context > original { "long_factor" } else { "short_factor" })?;
                let stretch = value("factor").unwrap_or(trained / original);
                let own = if stretch > 1.0 { (1.0 + stretch.ln() / original.ln()).sqrt() } else { 1.0 };
                Ok(Scaling::Factors { factors, magnitude: value("attention_factor").unwrap_or(own) })
            }
            other => {
                let what = format!("position scaling {other:?}");
                Err(LoadError::unsupported(&self.path, what, "default, linear, llama3, yarn, longrope"))
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "hyper-parameters are used as f32")]
fn number(value: &Value) -> Option<f32> {
    value.as_f64().map(|n| n as f32).filter(|n| n.is_finite())
}
