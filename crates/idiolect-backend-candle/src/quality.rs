//! Tests of what matters in the end: the probabilities of real text, on real models.

use std::path::Path;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_gemma3;
use idiolect_backend::{Backend, Message};
use idiolect_kernels::Format;

use crate::device::{DeviceChoice, OpenDevice};
use crate::engine::Tensors;
use crate::testing;
use crate::{CandleBackend, CandleConfig};

/// How far log-probabilities may be apart, in the mean.
const APART: f64 = 0.05;
/// How far perplexity may be off, as a part of it.
const PERPLEXITY: f64 = 0.01;

/// Runs a model on candle's tensors: with candle's own products of quantised weights, or of exact ones.
fn on_tensors(path: &Path, quantize: Option<Format>) -> CandleBackend {
    let device = OpenDevice::open(DeviceChoice::Cpu).unwrap();
    let config = CandleConfig { quantize, ..CandleConfig::default() };
    CandleBackend::load_with(path, config, |weights, config| Tensors::load(weights, config.n_threads(), &device))
        .unwrap()
}

fn on_kernels(path: &Path) -> CandleBackend {
    CandleBackend::load(path, CandleConfig::default()).unwrap()
}

/// Some passages of this project's own documentation.
fn passages(n: usize) -> Vec<String> {
    let text = std::fs::read_to_string(testing::data("prose.txt")).unwrap();
    let paragraphs: Vec<&str> = text.split("\n\n").collect();
    paragraphs.chunks(paragraphs.len().div_ceil(n)).map(|paragraphs| paragraphs.join("\n\n")).collect()
}

/// Returns the log-probability of every token of the passages.
fn score(backend: &CandleBackend, passages: &[String]) -> Vec<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let question = [Message::user("Write a passage.")];
    let tokens =
        passages.iter().flat_map(|passage| runtime.block_on(backend.score(&question, passage)).unwrap().tokens);
    tokens.map(|token| f64::from(token.logprob)).collect()
}

/// Compares what two engines think of the same tokens.
#[expect(clippy::print_stdout, reason = "figures for whoever asks the test to show them")]
fn compare(what: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    let n = got.len() as f64;
    let apart = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).sum::<f64>() / n;
    let perplexity = |logprobs: &[f64]| (-logprobs.iter().sum::<f64>() / n).exp();
    let (ours, theirs) = (perplexity(got), perplexity(expected));
    println!("{what}: {n} tokens, {apart:.4} apart, perplexity {ours:.3} against {theirs:.3}");
    assert!(apart < APART, "{what}: log-probabilities are {apart} apart");
    assert!((ours / theirs - 1.0).abs() < PERPLEXITY, "{what}: perplexity {ours} against {theirs}");
}

/// Says whether tests may take minutes.
#[expect(clippy::print_stdout, reason = "says why it skips")]
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
    compare("SmolLM2 against exact products", &got, &score(&on_tensors(&path, Some(Format::F32)), &passages));
}

#[test]
fn real_text_is_as_likely_as_with_candles_own_products() {
    if thorough("SmolLM2 with candle's own products") {
        let (path, passages) = (testing::smollm2(), passages(6));
        let got = score(&on_kernels(&path), &passages);
        compare("SmolLM2 against candle", &got, &score(&on_tensors(&path, None), &passages));
    }
}

#[test]
fn gemma_finds_real_text_as_likely_as_with_exact_products() {
    if thorough("Gemma 3 with exact products") {
        let files = idiolect_models::testing::model("gemma3-270m").unwrap();
        let (path, passages) = (files.weights().unwrap(), passages(6));
        let exact = score(&on_tensors(path, Some(Format::F32)), &passages);
        assert!(exact.len() > 2000, "{} tokens", exact.len());
        compare("Gemma 3 on tensors", &score(&on_tensors(path, None), &passages), &exact);
        compare("Gemma 3", &score(&on_kernels(path), &passages), &exact);
    }
}

#[test]
fn gemma_computes_what_candles_own_model_computes() {
    if !thorough("Gemma 3 on candle's own model") {
        return;
    }
    let files = idiolect_models::testing::model("gemma3-270m").unwrap();
    let path = files.weights().unwrap();
    let mut file = std::fs::File::open(path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut candle = quantized_gemma3::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let (ours, kernels) = (on_tensors(path, None), on_kernels(path));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let question = [Message::user("Write about the sea.")];
    let text = "The sea covers most of the planet. It is deep, salty and full of life.";
    let scored = runtime.block_on(ours.score(&question, text)).unwrap();
    let of_kernels = runtime.block_on(kernels.score(&question, text)).unwrap();
    let rows = scored.rows.unwrap();

    // The prompt's tokens are what the same template and vocabulary make of it.
    let weights = crate::weights::Weights::open(path, 4096, None).unwrap();
    let tokenizer = crate::tokenizer::Tokenizer::of(&weights).unwrap();
    let template = crate::template::Template::of(&weights, &tokenizer).unwrap();
    let rendered = template.render(&question, &tokenizer).unwrap();
    let mut tokens = tokenizer.encode_prompt(&rendered.text, rendered.mark).unwrap();
    let mut at = 0;
    for (i, row) in rows.iter().enumerate() {
        let x = Tensor::new(&tokens[at..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits: Vec<f32> = candle.forward(&x, at).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        at = tokens.len();
        let largest = logits.iter().fold(0f32, |most, logit| most.max(logit.abs()));
        let off = logits.iter().zip(row).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off < 0.01 * largest, "token {i}: off by {off} of {largest}");
        tokens.push(scored.token_ids[i]);
    }
    let apart: f32 =
        scored.tokens.iter().zip(&of_kernels.tokens).map(|(a, b)| (a.logprob - b.logprob).abs()).sum::<f32>();
    assert!(apart / (rows.len() as f32) < 0.1, "the kernels are {apart} apart over {} tokens", rows.len());
}
