//! Tests of what matters in the end: the probabilities of real text, on real models.

#![expect(clippy::print_stdout, reason = "figures for whoever asks a test to show them, and why one skips")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::gemma3;
use idiolect_backend::{Backend, Message, ScoreRequest};
use idiolect_kernels::Format;

use crate::engine::checks::{Model, device, reference_of};
use crate::engine::{Settings, TensorSettings, Tensors, Transformer};
use crate::math;
use crate::testing;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use crate::{CandleBackend, CandleConfig, KvType};

/// How far log-probabilities may be from those of exact products, in the mean: what rounding activations to eight bits
/// does to a small model.
const NEAR: f64 = 0.05;
/// How far ours may be from those of candle's own products of the same weights, in the mean: as both err, each in its own way,
/// that is more than either errs. Measured were 0.065 to 0.076 (SmolLM2 and Gemma 3, 400 to 2,200 tokens).
const BETWEEN: f64 = 0.085;
/// How far perplexity may be off, as a part of it.
const PERPLEXITY: f64 = 0.01;
/// How far logits of a real model may be from candle's own where both compute with exact products: the same sums in another
/// order. The most that was seen is 5e-5, of logits of up to 23.
const EXACT: f32 = 2e-4;
/// Of greedy texts, how many tokens must be candle's first choice, too, in percent: 238 of 240 were with the file as published, 231 in Q4_0.
const ALIKE: usize = 95;
/// How far the log-probability of the best token may be from candle's where it is, at most.
const BEST: f32 = 0.5;
/// How far that of the second best may be: 0.64 was seen.
const SECOND: f32 = 0.75;
/// By how much the other of two tokens may be the likelier one at most where they are not, in nats, by either engine's own
/// account: 0.43 was seen with the file as published, 0.31 in Q4_0.
const NEAR_TIE: [f32; 2] = [0.45, 0.35];

/// Runs a model on candle's tensors: with candle's own products of quantised weights, or of exact ones.
fn on_tensors(path: &Path, quantize: Option<Format>) -> CandleBackend {
    let device = device();
    let config = CandleConfig { quantize, kv_type: KvType::F32, ..CandleConfig::default() };
    let load =
        |weights: &mut Weights, config: &CandleConfig| Tensors::load(weights, &TensorSettings::new(config)?, &device);
    CandleBackend::load_with(path, config, load).unwrap()
}

fn on_kernels(path: &Path) -> CandleBackend {
    CandleBackend::load(path, CandleConfig::default()).unwrap()
}

/// Plain prose in some passages.
fn passages(n: usize) -> Vec<String> {
    let text = std::fs::read_to_string(testing::data("prose.txt")).unwrap();
    let paragraphs: Vec<&str> = text.split("\n\n").collect();
    paragraphs.chunks(paragraphs.len().div_ceil(n)).map(|paragraphs| paragraphs.join("\n\n")).collect()
}

/// Returns the log-probability of every token of the passages.
fn score(backend: &CandleBackend, passages: &[String]) -> Vec<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let question = [Message::user("Write a passage.")];
    let tokens = passages.iter().flat_map(|passage| {
        runtime.block_on(backend.score(ScoreRequest::new(question.clone(), passage))).unwrap().tokens
    });
    tokens.map(|token| f64::from(token.logprob)).collect()
}

fn perplexity(logprobs: &[f64]) -> f64 {
    (-logprobs.iter().sum::<f64>() / logprobs.len() as f64).exp()
}

/// Returns how far log-probabilities of the same tokens are apart, in the mean.
fn apart(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    got.iter().zip(expected).map(|(a, b)| (a - b).abs()).sum::<f64>() / got.len() as f64
}

/// Compares what an engine thinks of tokens with what exact products give.
fn compare(what: &str, got: &[f64], exact: &[f64]) {
    let (apart, ours, theirs) = (apart(got, exact), perplexity(got), perplexity(exact));
    println!("{what}: {} tokens, {apart:.4} from exact, perplexity {ours:.3} against {theirs:.3}", got.len());
    assert!(apart < NEAR, "{what}: log-probabilities are {apart} apart");
    assert!((ours / theirs - 1.0).abs() < PERPLEXITY, "{what}: perplexity {ours} against {theirs}");
}

/// Checks that the kernels are as near to exact products as candle's own products of the same weights are. Returns how many
/// tokens were compared.
fn check_against_candle(what: &str, path: &Path, passages: &[String]) -> usize {
    let exact = score(&on_tensors(path, Some(Format::F32)), passages);
    assert!(exact.len() > 300, "{} tokens", exact.len());
    let ours = score(&on_kernels(path), passages);
    compare(&format!("{what}, kernels"), &ours, &exact);
    let candle = score(&on_tensors(path, None), passages);
    let (ours_perplexity, candle_perplexity) = (perplexity(&ours), perplexity(&candle));
    println!("{what}, candle: perplexity {candle_perplexity:.3}, ours {ours_perplexity:.3}");
    let between = apart(&ours, &candle);
    println!("{what}: the kernels and candle are {between:.4} apart");
    let (ours, candle) = (apart(&ours, &exact), apart(&candle, &exact));
    println!("{what}: the kernels are {ours:.4} from exact products, candle {candle:.4}");
    assert!(ours <= candle, "{what}: the kernels are {ours} from exact products, candle {candle}");
    assert!(between <= BETWEEN, "{what}: the kernels and candle are {between} apart");
    exact.len()
}

/// Says whether tests may take minutes.
fn thorough(what: &str) -> bool {
    let thorough = std::env::var_os("IDIOLECT_E2E").is_some_and(|value| value == "1");
    if !thorough {
        println!("skipped: {what} takes minutes; IDIOLECT_E2E=1 runs it");
    }
    thorough
}

#[test]
fn real_text_is_as_likely_as_with_exact_products() {
    let (path, passages) = (testing::smollm2(), passages(6));
    let got = score(&on_kernels(&path), &passages);
    assert!(got.len() > 2000, "{} tokens", got.len());
    let exact = score(&on_tensors(&path, Some(Format::F32)), &passages);
    compare("SmolLM2", &got, &exact);
}

#[test]
fn the_default_model_is_as_exact_as_on_candles_own_products() {
    if thorough("SmolLM2 with candle's own products") {
        // Candle multiplies this format without vector instructions, at some ten tokens a second.
        check_against_candle("SmolLM2", &testing::smollm2(), &passages(6)[..1]);
    }
}

/// A file of the same model in another format.
fn encoded(path: &Path, format: GgmlDType) -> tempfile::NamedTempFile {
    let mut file = std::fs::File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let tensor = |name: &String| {
        let tensor = content.tensor(&mut file, name, &Device::Cpu).unwrap();
        if tensor.rank() < 2 || tensor.dtype() == format {
            return tensor;
        }
        QTensor::quantize(&tensor.dequantize(&Device::Cpu).unwrap(), format).unwrap()
    };
    let names: Vec<&String> = content.tensor_infos.keys().collect();
    let tensors: Vec<QTensor> = names.iter().copied().map(tensor).collect();
    let tensors: Vec<(&str, &QTensor)> = names.iter().map(|name| name.as_str()).zip(&tensors).collect();
    let metadata: Vec<(&str, &Value)> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let mut encoded = tempfile::NamedTempFile::new().unwrap();
    gguf_file::write(encoded.as_file_mut(), &metadata, &tensors).unwrap();
    encoded
}

#[test]
fn two_thousand_tokens_are_as_exact_as_on_candles_own_products() {
    if thorough("SmolLM2 in Q4_0 with candle's own products") {
        let file = encoded(&testing::smollm2(), GgmlDType::Q4_0);
        let n_tokens = check_against_candle("SmolLM2 in Q4_0", file.path(), &passages(6));
        assert!(n_tokens > 2000, "{n_tokens} tokens");
    }
}

/// What the best token of a row is, and by how much its log-probability is above that of another.
fn best(row: &[f32]) -> (u32, impl Fn(u32) -> f32) {
    let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    (u32::try_from(best).unwrap(), move |other: u32| row[best] - row[other as usize])
}

/// Greedy continuations, each token beside that which candle's own implementation would go on with after the same text: where
/// these differ, either finds both about as likely.
#[test]
fn greedy_texts_part_from_candles_at_near_ties_only() {
    if thorough("SmolLM2 on candle's own implementation") {
        check_greedy("as published", &testing::smollm2(), NEAR_TIE[0]);
        check_greedy("in Q4_0", encoded(&testing::smollm2(), GgmlDType::Q4_0).path(), NEAR_TIE[1]);
    }
}

fn check_greedy(what: &str, path: &Path, near_tie: f32) {
    const TOKENS: usize = 48;
    let open = || Weights::open(path, 4096, None).unwrap();
    let tokenizer = Tokenizer::of(&open()).unwrap();
    let kernels = Model::new(Transformer::load(&mut open(), &Settings::for_tests()).unwrap());
    let prompts = [
        "The lighthouse keeper climbed the stairs every evening because",
        "Once upon a time there was a fox who",
        "Water boils at a lower temperature on a mountain, since",
        "The three most important inventions of the nineteenth century were",
        "def fibonacci(n):",
    ];
    let (mut n_same, mut farthest, mut parted) = (0, [0f32; 2], Vec::new());
    for prompt in prompts {
        let prompt = tokenizer.encode(prompt).unwrap();
        // Ours first, then candle is fed the same.
        let mut text = Vec::new();
        let mut rows = Vec::new();
        {
            let mut session = kernels.start(&prompt, 1, TOKENS).unwrap();
            for _ in 0..TOKENS {
                rows.push(session.logits().to_vec());
                text.push(best(session.logits()).0);
                session.step(&[(0, text[text.len() - 1])]).unwrap();
            }
        }
        let file = std::fs::File::open(path).unwrap();
        let theirs = reference_of("llama", file, &prompt, &text[..TOKENS - 1]);
        for (i, (ours, theirs)) in rows.iter().zip(&theirs).enumerate() {
            let normal = |row: &[f32]| {
                let sum = math::log_sum_exp(row);
                row.iter().map(|logit| logit - sum).collect::<Vec<f32>>()
            };
            let (ours, theirs) = (normal(ours), normal(theirs));
            let ((our_best, ahead_of), (their_best, theirs_ahead_of)) = (best(&ours), best(&theirs));
            if our_best != their_best {
                parted.push((i, ahead_of(their_best), theirs_ahead_of(our_best)));
                continue;
            }
            let mut order: Vec<usize> = (0..ours.len()).collect();
            order.select_nth_unstable_by(1, |a, b| ours[*b].total_cmp(&ours[*a]));
            for (most, i) in farthest.iter_mut().zip(order) {
                *most = most.max((ours[i] - theirs[i]).abs());
            }
            n_same += 1;
        }
    }
    println!(
        "greedy, {what}: {n_same} tokens alike, log-probabilities of the two best up to {farthest:.3?} apart; parted: {parted:?}"
    );
    assert!(n_same * 100 >= prompts.len() * TOKENS * ALIKE, "{n_same} tokens alike");
    assert!(
        farthest[0] < BEST && farthest[1] <= SECOND,
        "log-probabilities of the two best tokens are {farthest:?} apart"
    );
    for (i, ours, theirs) in parted {
        assert!(ours.max(theirs) <= near_tie, "parted after {i} tokens, {ours} nats apart by ours, {theirs} by theirs");
    }
}

#[test]
fn gemma_finds_real_text_as_likely_as_with_exact_products() {
    if thorough("Gemma 3 with exact products") {
        let files = idiolect_models::testing::model("gemma3-270m").unwrap();
        let (path, passages) = (files.weights().unwrap(), passages(6));
        let exact = score(&on_tensors(path, Some(Format::F32)), &passages);
        assert!(exact.len() > 2000, "{} tokens", exact.len());
        compare("Gemma 3", &score(&on_kernels(path), &passages), &exact);
    }
}

#[test]
fn gemma_is_as_exact_as_on_candles_own_products() {
    if thorough("Gemma 3 with candle's own products") {
        let files = idiolect_models::testing::model("gemma3-270m").unwrap();
        check_against_candle("Gemma 3", files.weights().unwrap(), &passages(6)[..1]);
    }
}

#[test]
fn gemma_computes_what_candles_own_model_computes() {
    if !thorough("Gemma 3 on candle's own model") {
        return;
    }
    let files = idiolect_models::testing::model("gemma3-270m").unwrap();
    let path = files.weights().unwrap();
    // Its model for quantised files takes another activation than the one that Gemma has; that for exact numbers does not.
    let candle = gemma(path);
    let open = || Weights::open(path, 512, Some(Format::F32)).unwrap();
    let tokens = Tokenizer::of(&open()).unwrap().encode_prompt(&passages(6)[0], '\u{fdd0}').unwrap();
    let device = device();
    let on_tensors = Model::new(Tensors::load(&mut open(), &TensorSettings::for_tests(), &device).unwrap())
        .rows(&tokens[..200], 0)
        .unwrap();
    let on_kernels =
        Model::new(Transformer::load(&mut open(), &Settings::for_tests()).unwrap()).rows(&tokens[..200], 0).unwrap();
    for len in [1, 2, 10, 100, 200] {
        let mut candle = candle.clone();
        let x = Tensor::new(&tokens[..len], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let expected: Vec<f32> = candle.forward(&x, 0).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let largest = expected.iter().fold(0f32, |most, logit| most.max(logit.abs()));
        for (what, rows) in [("tensors", &on_tensors), ("kernels", &on_kernels)] {
            let off = expected.iter().zip(&rows[len - 1]).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            println!("Gemma 3 on {what}, exact products, {len} tokens: off by {off} of {largest}");
            assert!(off <= EXACT, "{what}, {len} tokens: off by {off} of {largest}");
        }
    }
}

/// Makes candle's own Gemma 3 of exact numbers from the weights of a GGUF file.
fn gemma(path: &Path) -> gemma3::Model {
    let cpu = Device::Cpu;
    let mut file = std::fs::File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut tensors = HashMap::new();
    for name in content.tensor_infos.keys() {
        let mut tensor = content.tensor(&mut file, name, &cpu).unwrap().dequantize(&cpu).unwrap();
        if name.contains("norm") {
            tensor = (tensor - 1.0).unwrap();
        }
        tensors.insert(hub_name(name), tensor);
    }
    let config = serde_json::json!({
        "attention_bias": false, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640,
        "intermediate_size": 2048, "num_attention_heads": 4, "num_hidden_layers": 18, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "vocab_size": 262_144,
        "final_logit_softcapping": null, "attn_logit_softcapping": null, "query_pre_attn_scalar": 256,
        "sliding_window": 511, "sliding_window_pattern": 6, "max_position_embeddings": 512,
    });
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &cpu);
    gemma3::Model::new(false, &serde_json::from_value(config).unwrap(), vb).unwrap()
}

fn hub_name(name: &str) -> String {
    let Some(rest) = name.strip_prefix("blk.") else {
        return if name == "token_embd.weight" { "model.embed_tokens.weight" } else { "model.norm.weight" }.to_owned();
    };
    let (index, part) = rest.split_once('.').unwrap();
    let part = match part.strip_suffix(".weight").unwrap() {
        "attn_norm" => "input_layernorm",
        "post_attention_norm" => "post_attention_layernorm",
        "ffn_norm" => "pre_feedforward_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("no name for {other}"),
    };
    format!("model.layers.{index}.{part}.weight")
}
