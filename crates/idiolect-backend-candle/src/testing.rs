//! What the unit tests share: the real model, and tiny ones with random weights.

pub(crate) mod family;
#[path = "../tests/kept/mod.rs"]
pub(crate) mod kept;
pub(crate) mod script;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use crate::loader::Gguf;

/// Returns the path of a data file of this crate's tests.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// Returns the default model's file, fetched once per machine.
pub(crate) fn smollm2() -> PathBuf {
    let files = idiolect_models::testing::model("smollm2-135m").expect("the default model");
    files.weights().expect("a weights file").to_owned()
}

/// Measures what this thread computes: the time that it has a core, where the system tells, whatever else the machine has
/// to do.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    began: Instant,
    nanos: Option<u64>,
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self { began: Instant::now(), nanos: Self::nanos() }
    }

    fn nanos() -> Option<u64> {
        std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split_whitespace().next()?.parse().ok()
    }

    pub(crate) fn elapsed(&self) -> Duration {
        let busy = Self::nanos().zip(self.nanos).map(|(now, then)| Duration::from_nanos(now.saturating_sub(then)));
        busy.unwrap_or_else(|| self.began.elapsed())
    }
}

/// A GGUF file to be written.
pub(crate) struct TinyGguf {
    pub(crate) metadata: Vec<(String, Value)>,
    pub(crate) tensors: Vec<(String, QTensor)>,
    state: u64,
}

/// Shape of [`TinyGguf::model`].
pub(crate) const WIDTH: usize = 64;
pub(crate) const VOCABULARY: usize = 300;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const FEED_FORWARD: usize = 96;
const LAYERS: usize = 2;

impl TinyGguf {
    pub(crate) fn new() -> Self {
        Self { metadata: Vec::new(), tensors: Vec::new(), state: 42 }
    }

    /// A model of random weights with a byte-level vocabulary: 256 bytes, `<|im_start|>`, `<|im_end|>`, and padding.
    pub(crate) fn model(architecture: &str) -> Self {
        let mut tiny = Self::new();
        tiny.set("general.architecture", Value::String(architecture.to_owned()));
        let sizes = [
            ("block_count", LAYERS),
            ("context_length", 128),
            ("embedding_length", WIDTH),
            ("feed_forward_length", FEED_FORWARD),
            ("attention.head_count", HEADS),
            ("attention.head_count_kv", KV_HEADS),
            ("attention.key_length", WIDTH / HEADS),
            ("attention.value_length", WIDTH / HEADS),
            ("rope.dimension_count", WIDTH / HEADS),
        ];
        for (key, size) in sizes {
            tiny.set(&format!("{architecture}.{key}"), Value::U32(size.try_into().unwrap()));
        }
        tiny.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
        tiny.set(&format!("{architecture}.rope.freq_base"), Value::F32(10_000.0));
        tiny.byte_vocabulary();

        tiny.matrix("token_embd.weight", VOCABULARY, WIDTH);
        tiny.vector("output_norm.weight", WIDTH, 1.0);
        for i in 0..LAYERS {
            let name = |part: &str| format!("blk.{i}.{part}");
            let kv = WIDTH / HEADS * KV_HEADS;
            for (part, rows, cols) in [
                ("attn_q", WIDTH, WIDTH),
                ("attn_k", kv, WIDTH),
                ("attn_v", kv, WIDTH),
                ("attn_output", WIDTH, WIDTH),
                ("ffn_gate", FEED_FORWARD, WIDTH),
                ("ffn_up", FEED_FORWARD, WIDTH),
                ("ffn_down", WIDTH, FEED_FORWARD),
            ] {
                tiny.matrix(&name(&format!("{part}.weight")), rows, cols);
            }
            tiny.vector(&name("attn_norm.weight"), WIDTH, 1.0);
            tiny.vector(&name("ffn_norm.weight"), WIDTH, 1.0);
            if architecture == "qwen2" {
                for (part, len) in [("attn_q", WIDTH), ("attn_k", kv), ("attn_v", kv)] {
                    tiny.vector(&name(&format!("{part}.bias")), len, 0.0);
                }
            }
            if architecture == "qwen3" {
                tiny.vector(&name("attn_q_norm.weight"), WIDTH / HEADS, 1.0);
                tiny.vector(&name("attn_k_norm.weight"), WIDTH / HEADS, 1.0);
            }
        }
        tiny
    }

    pub(crate) fn byte_vocabulary(&mut self) {
        let mut pieces: Vec<String> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().map(String::from).collect();
        pieces.sort_unstable();
        let mut kinds = vec![1; pieces.len()];
        for control in ["<|im_start|>", "<|im_end|>"] {
            pieces.push(control.to_owned());
            kinds.push(3);
        }
        self.set("tokenizer.ggml.model", Value::String("gpt2".to_owned()));
        self.set("tokenizer.ggml.pre", Value::String("smollm".to_owned()));
        self.set("tokenizer.ggml.eos_token_id", Value::U32(257));
        self.set("tokenizer.ggml.tokens", Value::Array(pieces.into_iter().map(Value::String).collect()));
        self.set("tokenizer.ggml.token_type", Value::Array(kinds.into_iter().map(Value::I32).collect()));
        self.set("tokenizer.ggml.merges", Value::Array(vec![Value::String("h e".to_owned())]));
        // The merge needs its result.
        if let Some((_, Value::Array(tokens))) = self.metadata.iter_mut().find(|(k, _)| k == "tokenizer.ggml.tokens") {
            tokens.push(Value::String("he".to_owned()));
        }
        if let Some((_, Value::Array(kinds))) = self.metadata.iter_mut().find(|(k, _)| k == "tokenizer.ggml.token_type")
        {
            kinds.push(Value::I32(1));
        }
    }

    /// Sets a metadata entry, replacing an older one.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.to_owned(), value));
    }

    /// Removes a metadata entry.
    pub(crate) fn unset(&mut self, key: &str) {
        self.metadata.retain(|(k, _)| k != key);
    }

    fn noise(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) {
        let scale = if name.starts_with("token") { 1.0 } else { 3.0 / (cols as f32).sqrt() };
        let values: Vec<f32> = (0..rows * cols).map(|_| self.noise() * scale).collect();
        self.tensor(name, values, &[rows, cols], GgmlDType::Q8_0);
    }

    fn vector(&mut self, name: &str, len: usize, middle: f32) {
        let values: Vec<f32> = (0..len).map(|_| middle + 0.3 * self.noise()).collect();
        self.tensor(name, values, &[len], GgmlDType::F32);
    }

    /// Adds a tensor, replacing an older one of that name.
    pub(crate) fn tensor(&mut self, name: &str, values: Vec<f32>, shape: &[usize], dtype: GgmlDType) {
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        self.tensors.retain(|(n, _)| n != name);
        self.tensors.push((name.to_owned(), QTensor::quantize(&tensor, dtype).unwrap()));
    }

    /// Returns the file's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let metadata: Vec<(&str, &Value)> = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<(&str, &QTensor)> = self.tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        gguf_file::write(&mut bytes, &metadata, &tensors).unwrap();
        bytes.into_inner()
    }

    /// Writes the file into a fresh directory.
    pub(crate) fn write(&self) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        (dir, path)
    }

    /// Writes the file and opens it.
    pub(crate) fn open(&self) -> (tempfile::TempDir, Gguf) {
        let (dir, path) = self.write();
        let gguf = Gguf::open(&path).unwrap();
        (dir, gguf)
    }
}
