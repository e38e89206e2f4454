//! Writes GGUF files to measure with: a Llama-shaped model of random weights, or another file's weights in another format.
//!
//! `cargo run --release -p idiolect-backend-candle --example random_model -- llama-1b OUT.gguf [TOKENIZER.gguf]`
//! `cargo run --release -p idiolect-backend-candle --example random_model -- encode IN.gguf Q4_0 OUT.gguf`
//!
//! The first has the shape of Llama 3.2 1B and the formats that `Q4_K_M` means; speed does not depend on what the weights
//! are. Its tokens are those of the file named last, or bytes, filled up to the number that the shape has. The second
//! encodes the matrices of all layers anew (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, F16 or F32) and keeps the rest.

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a program that makes files to measure with")]

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const WIDTH: usize = 2048;
const FEED_FORWARD: usize = 8192;
const LAYERS: usize = 16;
const HEADS: usize = 32;
const KV_HEADS: usize = 8;
const VOCABULARY: usize = 128_256;

/// Random values to cut tensors from.
const POOL: usize = 1 << 20;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["llama-1b", out] => llama(Path::new(out), None),
        ["llama-1b", out, tokenizer] => llama(Path::new(out), Some(Path::new(tokenizer))),
        ["encode", input, format, out] => encode(Path::new(input), format, Path::new(out)),
        _ => Err("usage: random_model llama-1b OUT.gguf [TOKENIZER.gguf] | encode IN.gguf FORMAT OUT.gguf".into()),
    }
}

fn parse(format: &str) -> Outcome<(GgmlDType, u32)> {
    Ok(match format.to_ascii_uppercase().as_str() {
        "F32" => (GgmlDType::F32, 0),
        "F16" => (GgmlDType::F16, 1),
        "Q4_0" => (GgmlDType::Q4_0, 2),
        "Q4_1" => (GgmlDType::Q4_1, 3),
        "Q8_0" => (GgmlDType::Q8_0, 7),
        "Q5_0" => (GgmlDType::Q5_0, 8),
        "Q5_1" => (GgmlDType::Q5_1, 9),
        "Q4_K" => (GgmlDType::Q4K, 14),
        "Q5_K" => (GgmlDType::Q5K, 16),
        "Q6_K" => (GgmlDType::Q6K, 18),
        other => return Err(format!("format {other:?} is not known").into()),
    })
}

fn write(path: &Path, metadata: &[(String, Value)], tensors: &[(String, QTensor)]) -> Outcome<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    gguf_file::write(&mut file, &metadata, &tensors)?;
    file.into_inner()?.sync_all()?;
    println!("{}: {} tensors, {} bytes", path.display(), tensors.len(), std::fs::metadata(path)?.len());
    Ok(())
}

fn encode(input: &Path, format: &str, out: &Path) -> Outcome<()> {
    let (dtype, file_type) = parse(format)?;
    let mut file = File::open(input)?;
    let content = Content::read(&mut file)?;
    let mut names: Vec<(&String, u64)> = content.tensor_infos.iter().map(|(name, info)| (name, info.offset)).collect();
    names.sort_by_key(|(_, offset)| *offset);
    let mut tensors = Vec::new();
    for (name, _) in names {
        let tensor = content.tensor(&mut file, name, &Device::Cpu)?;
        let matrix = name.starts_with("blk.") && tensor.shape().rank() == 2;
        let fits = tensor.shape().dims().last().is_some_and(|cols| cols.is_multiple_of(dtype.block_size()));
        let tensor = if matrix && fits && tensor.dtype() != dtype {
            QTensor::quantize(&tensor.dequantize(&Device::Cpu)?, dtype)?
        } else {
            tensor
        };
        tensors.push((name.clone(), tensor));
    }
    let mut metadata: Vec<(String, Value)> = content.metadata.into_iter().collect();
    metadata.retain(|(key, _)| key != "general.file_type");
    metadata.push(("general.file_type".to_owned(), Value::U32(file_type)));
    metadata.sort_by(|(a, _), (b, _)| a.cmp(b));
    write(out, &metadata, &tensors)
}

fn llama(out: &Path, tokenizer: Option<&Path>) -> Outcome<()> {
    let mut metadata: Vec<(String, Value)> = Vec::new();
    let mut set = |key: &str, value: Value| metadata.push((key.to_owned(), value));
    set("general.architecture", Value::String("llama".to_owned()));
    set("general.name", Value::String("Random 1B".to_owned()));
    set("general.file_type", Value::U32(15));
    set("general.quantization_version", Value::U32(2));
    for (key, value) in [
        ("context_length", 131_072),
        ("embedding_length", WIDTH),
        ("feed_forward_length", FEED_FORWARD),
        ("block_count", LAYERS),
        ("attention.head_count", HEADS),
        ("attention.head_count_kv", KV_HEADS),
        ("attention.key_length", WIDTH / HEADS),
        ("attention.value_length", WIDTH / HEADS),
        ("rope.dimension_count", WIDTH / HEADS),
        ("vocab_size", VOCABULARY),
    ] {
        set(&format!("llama.{key}"), Value::U32(u32::try_from(value)?));
    }
    set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    set("llama.rope.freq_base", Value::F32(500_000.0));
    metadata.extend(vocabulary(tokenizer)?);

    let mut pool = Pool::new()?;
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), pool.matrix(GgmlDType::Q6K, VOCABULARY, WIDTH)?),
        ("output_norm.weight".to_owned(), ones(WIDTH)?),
        ("rope_freqs.weight".to_owned(), ones(WIDTH / HEADS / 2)?),
    ];
    let kv = WIDTH / HEADS * KV_HEADS;
    for index in 0..LAYERS {
        // Which layers get more bits in files that are called Q4_K_M.
        let more = !(LAYERS / 8..7 * LAYERS / 8).contains(&index) || (index - LAYERS / 8) % 3 == 2;
        let better = if more { GgmlDType::Q6K } else { GgmlDType::Q4K };
        for (part, format, rows, cols) in [
            ("attn_q", GgmlDType::Q4K, WIDTH, WIDTH),
            ("attn_k", GgmlDType::Q4K, kv, WIDTH),
            ("attn_v", better, kv, WIDTH),
            ("attn_output", GgmlDType::Q4K, WIDTH, WIDTH),
            ("ffn_gate", GgmlDType::Q4K, FEED_FORWARD, WIDTH),
            ("ffn_up", GgmlDType::Q4K, FEED_FORWARD, WIDTH),
            ("ffn_down", better, WIDTH, FEED_FORWARD),
        ] {
            tensors.push((format!("blk.{index}.{part}.weight"), pool.matrix(format, rows, cols)?));
        }
        for part in ["attn_norm", "ffn_norm"] {
            tensors.push((format!("blk.{index}.{part}.weight"), ones(WIDTH)?));
        }
    }
    write(out, &metadata, &tensors)
}

fn ones(len: usize) -> Outcome<QTensor> {
    Ok(QTensor::quantize(&Tensor::ones(len, candle_core::DType::F32, &Device::Cpu)?, GgmlDType::F32)?)
}

/// Encoded random values, of which tensors are made.
struct Pool {
    q4: Vec<u8>,
    q6: Vec<u8>,
    /// Where the next tensor begins to read, so that tensors differ.
    at: usize,
}

impl Pool {
    fn new() -> Outcome<Self> {
        let mut state = 42u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        // The size of trained weights, more or less: what is computed stays finite.
        let values: Vec<f32> = (0..POOL).map(|_| noise() * 0.04).collect();
        let values = Tensor::from_vec(values, POOL, &Device::Cpu)?;
        let encoded = |format| Ok::<_, candle_core::Error>(QTensor::quantize(&values, format)?.data()?.into_owned());
        Ok(Self { q4: encoded(GgmlDType::Q4K)?, q6: encoded(GgmlDType::Q6K)?, at: 0 })
    }

    fn matrix(&mut self, format: GgmlDType, rows: usize, cols: usize) -> Outcome<QTensor> {
        let pool = if format == GgmlDType::Q4K { &self.q4 } else { &self.q6 };
        let (len, size) = (rows * cols / format.block_size() * format.type_size(), format.type_size());
        let n_blocks = pool.len() / size;
        let begin = self.at % n_blocks * size;
        self.at += 1237;
        let bytes: Vec<u8> = pool[begin..].iter().chain(pool.iter().cycle()).take(len).copied().collect();
        Ok(qtensor_from_ggml(format, &bytes, vec![rows, cols], &Device::Cpu)?)
    }
}

/// Returns the vocabulary of a file, or one of bytes, filled up with words that nobody writes.
fn vocabulary(path: Option<&Path>) -> Outcome<Vec<(String, Value)>> {
    let mut entries: Vec<(String, Value)> = match path {
        Some(path) => {
            let content = Content::read(&mut File::open(path)?)?;
            content.metadata.into_iter().filter(|(key, _)| key.starts_with("tokenizer.")).collect()
        }
        None => bytes(),
    };
    for (key, value) in &mut entries {
        let Value::Array(items) = value else { continue };
        match key.as_str() {
            "tokenizer.ggml.tokens" => {
                let fill = (items.len()..VOCABULARY).map(|id| Value::String(format!("zq{id}")));
                items.extend(fill.collect::<Vec<_>>());
            }
            "tokenizer.ggml.token_type" => items.resize(VOCABULARY, Value::I32(1)),
            "tokenizer.ggml.scores" => items.resize(VOCABULARY, Value::F32(0.0)),
            _ => {}
        }
    }
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(entries)
}

fn bytes() -> Vec<(String, Value)> {
    let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut pieces: Vec<String> = alphabet.into_iter().map(String::from).collect();
    pieces.sort_unstable();
    let mut kinds = vec![Value::I32(1); pieces.len()];
    for control in ["<|im_start|>", "<|im_end|>"] {
        pieces.push(control.to_owned());
        kinds.push(Value::I32(3));
    }
    pieces.push("he".to_owned());
    kinds.push(Value::I32(1));
    [
        ("model", Value::String("gpt2".to_owned())),
        ("pre", Value::String("smollm".to_owned())),
        ("eos_token_id", Value::U32(257)),
        ("tokens", Value::Array(pieces.into_iter().map(Value::String).collect())),
        ("token_type", Value::Array(kinds)),
        ("merges", Value::Array(vec![Value::String("h e".to_owned())])),
    ]
    .into_iter()
    .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value))
    .collect()
}
