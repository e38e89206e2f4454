//! Tiny models of every family, each as GGUF, as a folder of safetensors, and as candle's own implementation.

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Gguf;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma, gemma2, gemma3, llama, mistral, phi3, qwen2, qwen3};
use serde_json::{Value, json};

use super::TinyGguf;

/// Tokens of the vocabulary; fewer have a text.
pub(crate) const VOCABULARY: usize = 300;
pub(crate) const CONTEXT: usize = 128;
/// Width of a model, and that between its layers' last two matrices.
type Size = (usize, usize);
const SMALL: Size = (64, 96);
/// Rows that fill the blocks of every format.
const WIDE: Size = (256, 256);
/// Positions that a layer with a window sees.
const WINDOW: usize = 20;

/// Every family, by the name of its fixture.
pub(crate) const FAMILIES: [&str; 10] =
    ["llama", "llama3", "mistral", "qwen2", "qwen3", "phi3", "phi3-long", "gemma", "gemma2", "gemma3"];

/// A model of random weights in the hub's terms.
pub(crate) struct Family {
    pub(crate) name: &'static str,
    /// `config.json`.
    pub(crate) config: Value,
    /// By the hub's names, in `f32`.
    pub(crate) tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn values(&mut self, len: usize, middle: f32, spread: f32) -> Vec<f32> {
        (0..len).map(|_| middle + spread * self.next()).collect()
    }
}

impl Family {
    pub(crate) fn new(name: &'static str) -> Self {
        Self::sized(name, SMALL)
    }

    /// A larger one, whose matrices can be encoded in every format.
    pub(crate) fn wide(name: &'static str) -> Self {
        Self::sized(name, WIDE)
    }

    fn sized(name: &'static str, (width, feed_forward): Size) -> Self {
        let config = config(name, (width, feed_forward));
        let size = |key: &str| config[key].as_u64().unwrap() as usize;
        let (layers, heads, kv_heads) =
            (size("num_hidden_layers"), size("num_attention_heads"), size("num_key_value_heads"));
        let head = config["head_dim"].as_u64().map_or(width / heads, |n| n as usize);
        let (q, kv) = (heads * head, kv_heads * head);
        let gemma = name.starts_with("gemma");
        let mut noise = Noise(name.bytes().map(u64::from).sum());
        let mut tensors = Vec::new();
        let mut matrix = |name: String, rows: usize, cols: usize, spread: f32| {
            tensors.push((name, vec![rows, cols], noise.values(rows * cols, 0.0, spread)));
        };
        let spread = |cols: usize| 2.0 / (cols as f32).sqrt();
        let embedding_spread = if gemma { 0.25 } else { 1.0 };
        matrix("model.embed_tokens.weight".to_owned(), VOCABULARY, width, embedding_spread);
        if config["tie_word_embeddings"] == false {
            matrix("lm_head.weight".to_owned(), VOCABULARY, width, 0.5);
        }
        for index in 0..layers {
            let mut part = |part: &str, rows: usize, cols: usize| {
                matrix(format!("model.layers.{index}.{part}.weight"), rows, cols, spread(cols));
            };
            if name.starts_with("phi3") {
                part("self_attn.qkv_proj", q + 2 * kv, width);
                part("mlp.gate_up_proj", 2 * feed_forward, width);
            } else {
                part("self_attn.q_proj", q, width);
                part("self_attn.k_proj", kv, width);
                part("self_attn.v_proj", kv, width);
                part("mlp.gate_proj", feed_forward, width);
                part("mlp.up_proj", feed_forward, width);
            }
            part("self_attn.o_proj", width, q);
            part("mlp.down_proj", width, feed_forward);
        }
        let middle = if gemma { 0.0 } else { 1.0 };
        let mut vector = |name: String, len: usize, middle: f32| {
            tensors.push((name, vec![len], noise.values(len, middle, 0.3)));
        };
        vector("model.norm.weight".to_owned(), width, middle);
        for index in 0..layers {
            let name_of = |part: &str| format!("model.layers.{index}.{part}");
            vector(name_of("input_layernorm.weight"), width, middle);
            vector(name_of("post_attention_layernorm.weight"), width, middle);
            if matches!(name, "gemma2" | "gemma3") {
                vector(name_of("pre_feedforward_layernorm.weight"), width, middle);
                vector(name_of("post_feedforward_layernorm.weight"), width, middle);
            }
            if matches!(name, "qwen3" | "gemma3") {
                vector(name_of("self_attn.q_norm.weight"), head, middle);
                vector(name_of("self_attn.k_norm.weight"), head, middle);
            }
            if name == "qwen2" {
                vector(name_of("self_attn.q_proj.bias"), q, 0.0);
                vector(name_of("self_attn.k_proj.bias"), kv, 0.0);
                vector(name_of("self_attn.v_proj.bias"), kv, 0.0);
            }
        }
        Self { name, config, tensors }
    }

    /// The architecture by its GGUF name.
    pub(crate) fn architecture(&self) -> &'static str {
        match self.name {
            "llama3" | "mistral" => "llama",
            "phi3-long" => "phi3",
            other => other,
        }
    }

    fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }

    fn head_width(&self) -> usize {
        self.config["head_dim"]
            .as_u64()
            .map_or(self.size("hidden_size") / self.size("num_attention_heads"), |n| n as usize)
    }

    /// Writes a folder as the hub has it, in several files for some families. Numbers are rounded to `dtype`.
    pub(crate) fn folder(&self, dtype: DType) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, value: &Value| std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        write("config.json", &self.config);
        write("tokenizer.json", &tokenizer());
        write("tokenizer_config.json", &json!({"eos_token": "<|im_end|>"}));
        let tensors: Vec<(String, Tensor)> = self
            .tensors
            .iter()
            .map(|(name, shape, values)| {
                let tensor = Tensor::from_vec(values.clone(), shape.clone(), &Device::Cpu).unwrap();
                (name.clone(), tensor.to_dtype(dtype).unwrap())
            })
            .collect();
        let save = |tensors: &[(String, Tensor)], path: &Path| {
            candle_core::safetensors::save(&tensors.iter().cloned().collect::<HashMap<_, _>>(), path).unwrap();
        };
        if self.name == "qwen2" || self.name == "gemma3" {
            let (first, second) = tensors.split_at(tensors.len() / 2);
            let mut map = serde_json::Map::new();
            for (number, part) in [(1, first), (2, second)] {
                let file = format!("model-0000{number}-of-00002.safetensors");
                save(part, &dir.path().join(&file));
                map.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
            }
            write("model.safetensors.index.json", &json!({"weight_map": map}));
        } else {
            save(&tensors, &dir.path().join("model.safetensors"));
        }
        dir
    }

    /// The same model as GGUF, with matrices in a format.
    pub(crate) fn gguf(&self, format: GgmlDType) -> TinyGguf {
        let architecture = self.architecture();
        let mut tiny = TinyGguf::new();
        let head = self.head_width();
        tiny.set("general.architecture", Gguf::String(architecture.to_owned()));
        for (key, value) in [
            ("block_count", self.size("num_hidden_layers")),
            ("context_length", CONTEXT),
            ("embedding_length", self.size("hidden_size")),
            ("feed_forward_length", self.size("intermediate_size")),
            ("attention.head_count", self.size("num_attention_heads")),
            ("attention.head_count_kv", self.size("num_key_value_heads")),
            ("attention.key_length", head),
            ("attention.value_length", head),
        ] {
            tiny.set(&format!("{architecture}.{key}"), Gguf::U32(value as u32));
        }
        if architecture != "gemma3" {
            tiny.set(&format!("{architecture}.rope.dimension_count"), Gguf::U32(self.rotated() as u32));
        }
        for (key, name) in [
            ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
            ("rope.freq_base", "rope_theta"),
            ("attn_logit_softcapping", "attn_logit_softcapping"),
            ("final_logit_softcapping", "final_logit_softcapping"),
        ] {
            if let Some(value) = self.config[name].as_f64() {
                tiny.set(&format!("{architecture}.{key}"), Gguf::F32(value as f32));
            }
        }
        let used = self.config["use_sliding_window"] != false;
        if let Some(window) = self.config["sliding_window"].as_u64().filter(|_| used) {
            tiny.set(&format!("{architecture}.attention.sliding_window"), Gguf::U32(window as u32));
        }
        tiny.byte_vocabulary();
        self.positions(&mut tiny);
        for (name, shape, values) in &self.tensors {
            let (name, mut values) = (gguf_name(name, self.name), values.clone());
            if self.is_permuted(&name) {
                values = neighbours(&values, head, shape[1]);
            }
            if architecture.starts_with("gemma") && name.contains("norm") {
                values.iter_mut().for_each(|value| *value += 1.0);
            }
            let format = if shape.len() == 2 { format } else { GgmlDType::F32 };
            tiny.tensor(&name, values, shape, format);
        }
        tiny
    }

    /// The same model with the numbers that a file has of its matrices once they are encoded.
    pub(crate) fn as_encoded(&self, tiny: &TinyGguf) -> Self {
        let encoded = |(name, shape, values): &(String, Vec<usize>, Vec<f32>)| {
            let in_file = gguf_name(name, self.name);
            let values = if shape.len() == 2 {
                let (_, tensor) = tiny.tensors.iter().find(|(name, _)| *name == in_file).unwrap();
                let values = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                if self.is_permuted(&in_file) { halves(&values, self.head_width(), shape[1]) } else { values }
            } else {
                values.clone()
            };
            (name.clone(), shape.clone(), values)
        };
        Self { name: self.name, config: self.config.clone(), tensors: self.tensors.iter().map(encoded).collect() }
    }

    /// Says whether the rows of a matrix are in another order in a GGUF file.
    fn is_permuted(&self, in_file: &str) -> bool {
        self.architecture() == "llama" && (in_file.contains("attn_q.") || in_file.contains("attn_k."))
    }

    fn rotated(&self) -> usize {
        let partial = self.config["partial_rotary_factor"].as_f64().unwrap_or(1.0);
        (self.head_width() as f64 * partial) as usize
    }

    /// Writes what stretches positions.
    fn positions(&self, tiny: &mut TinyGguf) {
        let scaling = &self.config["rope_scaling"];
        let list = |key: &str| -> Vec<f32> {
            scaling[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
        };
        let half = self.rotated() / 2;
        match scaling["rope_type"].as_str() {
            Some("llama3") => {
                let get = |key: &str| scaling[key].as_f64().unwrap() as f32;
                let (factor, low, high) = (get("factor"), get("low_freq_factor"), get("high_freq_factor"));
                let original = get("original_max_position_embeddings");
                let factors = (0..half).map(|i| {
                    let base = self.config["rope_theta"].as_f64().unwrap() as f32;
                    let frequency = base.powf(-2.0 * i as f32 / self.rotated() as f32);
                    let length = std::f32::consts::TAU / frequency;
                    if length < original / high {
                        1.0
                    } else if length > original / low {
                        factor
                    } else {
                        let smooth = (original / length - low) / (high - low);
                        1.0 / ((1.0 - smooth) / factor + smooth)
                    }
                });
                tiny.tensor("rope_freqs.weight", factors.collect(), &[half], GgmlDType::F32);
            }
            Some("longrope") => {
                let original = self.size("original_max_position_embeddings");
                tiny.set("phi3.rope.scaling.original_context_length", Gguf::U32(original as u32));
                tiny.set("phi3.rope.scaling.attn_factor", Gguf::F32(1.0));
                tiny.tensor("rope_factors_long.weight", list("long_factor"), &[half], GgmlDType::F32);
                tiny.tensor("rope_factors_short.weight", list("short_factor"), &[half], GgmlDType::F32);
            }
            _ => {}
        }
    }

    /// Computes the logits after a whole text with candle's own implementation.
    ///
    /// It sees one position more through a window than the models were trained with, and multiplies with the factors of
    /// long contexts where it should divide: it is told so.
    pub(crate) fn reference(&self, tokens: &[u32]) -> Vec<f32> {
        let cpu = Device::Cpu;
        let tensors = self.tensors.iter().map(|(name, shape, values)| {
            (name.clone(), Tensor::from_vec(values.clone(), shape.clone(), &cpu).unwrap())
        });
        let vb = VarBuilder::from_tensors(tensors.collect(), DType::F32, &cpu);
        let mut config = self.config.clone();
        if let Some(window) = config["sliding_window"].as_u64() {
            // One of its models uses the window even where it is told not to.
            let used = config["use_sliding_window"] != false;
            config["sliding_window"] = json!(if used { window - 1 } else { 2 * CONTEXT as u64 });
        }
        for list in ["long_factor", "short_factor"] {
            if let Some(factors) = config["rope_scaling"].get_mut(list).and_then(Value::as_array_mut) {
                factors.iter_mut().for_each(|factor| *factor = json!(1.0 / factor.as_f64().unwrap()));
            }
        }
        if self.name == "phi3-long" {
            config["rope_scaling"]["type"] = json!("longrope");
            // By position, rather than once for all.
            config["original_max_position_embeddings"] = json!(1);
        }
        let x = Tensor::new(tokens, &cpu).unwrap().unsqueeze(0).unwrap();
        fn read<T: serde::de::DeserializeOwned>(config: Value) -> T {
            serde_json::from_value(config).unwrap()
        }
        let logits = match self.name {
            "llama" | "llama3" => {
                let config = read::<llama::LlamaConfig>(config).into_config(false);
                let mut cache = llama::Cache::new(true, DType::F32, &config, &cpu).unwrap();
                llama::Llama::load(vb, &config).unwrap().forward(&x, 0, &mut cache)
            }
            "mistral" => mistral::Model::new(&read(config), vb).unwrap().forward(&x, 0),
            "qwen2" => qwen2::ModelForCausalLM::new(&read(config), vb).unwrap().forward(&x, 0),
            "qwen3" => qwen3::ModelForCausalLM::new(&read(config), vb).unwrap().forward(&x, 0),
            "phi3" | "phi3-long" => phi3::Model::new(&read(config), vb).unwrap().forward(&x, 0),
            "gemma" => gemma::Model::new(false, &read(config), vb).unwrap().forward(&x, 0),
            "gemma2" => gemma2::Model::new(false, &read(config), vb).unwrap().forward(&x, 0),
            _ => gemma3::Model::new(false, &read(config), vb).unwrap().forward(&x, 0),
        };
        logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }
}

fn config(name: &str, (width, feed_forward): Size) -> Value {
    // Of those that say how wide a head is.
    let head = width / 2;
    let mut config = json!({
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
    });
    let more = match name {
        "llama" => json!({"model_type": "llama", "tie_word_embeddings": false, "rope_scaling": null}),
        "llama3" => json!({"model_type": "llama", "rope_theta": 500_000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}}),
        "mistral" => json!({"model_type": "mistral", "tie_word_embeddings": false, "sliding_window": WINDOW}),
        "qwen2" => json!({"model_type": "qwen2", "use_sliding_window": false, "sliding_window": WINDOW,
            "max_window_layers": 3, "rope_theta": 1_000_000.0}),
        "qwen3" => json!({"model_type": "qwen3", "head_dim": head, "attention_bias": false, "sliding_window": null,
            "max_window_layers": 3, "use_sliding_window": false, "tie_word_embeddings": false}),
        "phi3" => json!({"model_type": "phi3", "tie_word_embeddings": false, "partial_rotary_factor": 0.75}),
        "phi3-long" => {
            let half = width / 8;
            let factors = |step: f32| (0..half).map(|i| 1.0 + step * (i * 8 / half) as f32).collect::<Vec<f32>>();
            json!({"model_type": "phi3", "original_max_position_embeddings": 64, "rope_scaling": {
                "rope_type": "longrope", "short_factor": factors(0.25), "long_factor": factors(1.0),
                "attention_factor": 1.0}})
        }
        "gemma" => json!({"model_type": "gemma", "head_dim": head, "attention_bias": false,
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": null, "num_key_value_heads": 1}),
        "gemma2" => {
            json!({"model_type": "gemma2", "head_dim": head, "attention_bias": false, "query_pre_attn_scalar": head,
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "final_logit_softcapping": 5.0,
            "attn_logit_softcapping": 2.0, "sliding_window": null})
        }
        "gemma3" => json!({"model_type": "gemma3_text", "head_dim": head, "attention_bias": false,
            "query_pre_attn_scalar": head, "hidden_activation": "gelu_pytorch_tanh", "final_logit_softcapping": null,
            "attn_logit_softcapping": null, "num_hidden_layers": 8, "num_key_value_heads": 1, "sliding_window": WINDOW,
            "sliding_window_pattern": 6, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0}),
        other => panic!("no family {other}"),
    };
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// The vocabulary of [`TinyGguf::byte_vocabulary`].
fn tokenizer() -> Value {
    let mut pieces: Vec<String> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().map(String::from).collect();
    pieces.sort_unstable();
    let mut vocab: serde_json::Map<String, Value> =
        pieces.into_iter().enumerate().map(|(id, piece)| (piece, json!(id))).collect();
    vocab.insert("he".to_owned(), json!(258));
    let control = |id: usize, text: &str| json!({"id": id, "content": text, "special": true});
    json!({
        "version": "1.0",
        "added_tokens": [control(256, "<|im_start|>"), control(257, "<|im_end|>")],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h e"]},
    })
}

fn gguf_name(name: &str, family: &str) -> String {
    let sandwich = matches!(family, "gemma2" | "gemma3");
    let Some(rest) = name.strip_prefix("model.layers.") else {
        return match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "lm_head.weight" => "output.weight",
            _ => "output_norm.weight",
        }
        .to_owned();
    };
    let (index, part) = rest.split_once('.').unwrap();
    let (part, ending) = part.rsplit_once('.').unwrap();
    let part = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" if sandwich => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.gate_up_proj" | "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => panic!("no name for {other}"),
    };
    format!("blk.{index}.{part}.{ending}")
}

/// Reorders the rows of each head so that those of a rotated pair are neighbours, as Llama's GGUF files have them.
fn neighbours(values: &[f32], head: usize, cols: usize) -> Vec<f32> {
    let mut reordered = Vec::with_capacity(values.len());
    for values in values.chunks_exact(head * cols) {
        for pair in 0..head / 2 {
            for row in [pair, pair + head / 2] {
                reordered.extend_from_slice(&values[row * cols..][..cols]);
            }
        }
    }
    reordered
}

/// The order that [`neighbours`] began with.
fn halves(values: &[f32], head: usize, cols: usize) -> Vec<f32> {
    let mut reordered = Vec::with_capacity(values.len());
    for values in values.chunks_exact(head * cols) {
        for first in [0, 1] {
            for row in (first..head).step_by(2) {
                reordered.extend_from_slice(&values[row * cols..][..cols]);
            }
        }
    }
    reordered
}
