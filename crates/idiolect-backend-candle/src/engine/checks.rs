//! What the tests of the engines compare with.

use std::io::{Read, Seek};

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Tensor};
use candle_transformers::models::{quantized_llama, quantized_qwen2, quantized_qwen3};

use crate::math;
use crate::testing::TinyGguf;

/// Never interrupts.
pub(super) fn go() -> impl FnMut() -> bool {
    || true
}

/// A prompt longer than two prefill chunks.
pub(super) fn prompt() -> Vec<u32> {
    (0..70).map(|i| (i * 37 + 11) % 256).collect()
}

type Forward = Box<dyn FnMut(&Tensor, usize) -> candle_core::Result<Tensor>>;

/// Runs candle's own implementation over the prompt and then token after token; returns the logits each time.
pub(super) fn reference(architecture: &str, tiny: &TinyGguf, prompt: &[u32], then: &[u32]) -> Vec<Vec<f32>> {
    reference_of(architecture, std::io::Cursor::new(tiny.bytes()), prompt, then)
}

/// As [`reference`], of any file.
pub(super) fn reference_of(
    architecture: &str,
    mut bytes: impl Read + Seek,
    prompt: &[u32],
    then: &[u32],
) -> Vec<Vec<f32>> {
    let content = Content::read(&mut bytes).unwrap();
    let cpu = Device::Cpu;
    let mut forward: Forward = match architecture {
        "llama" => {
            let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut bytes, &cpu).unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
        "qwen2" => {
            let mut model = quantized_qwen2::ModelWeights::from_gguf(content, &mut bytes, &cpu).unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
        _ => {
            let mut model = quantized_qwen3::ModelWeights::from_gguf(content, &mut bytes, &cpu).unwrap();
            Box::new(move |x, at| model.forward(x, at))
        }
    };
    let mut inputs = vec![prompt.to_vec()];
    inputs.extend(then.iter().map(|token| vec![*token]));
    let mut at = 0;
    inputs
        .into_iter()
        .map(|tokens| {
            let n = tokens.len();
            let x = Tensor::from_vec(tokens, (1, n), &cpu).unwrap();
            let logits = forward(&x, at).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            at += n;
            logits
        })
        .collect()
}

/// Compares by root mean squares: random weights magnify what rounding does to single logits.
pub(super) fn check_near(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len());
    let difference: Vec<f32> = got.iter().zip(expected).map(|(a, b)| a - b).collect();
    let off = (math::dot(&difference, &difference) / math::dot(expected, expected)).sqrt();
    assert!(off < tolerance, "{what}: off by {off} of the logits' size");
}

/// Returns the cosine of the angle between two rows of logits.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    math::dot(a, b) / (math::dot(a, a).sqrt() * math::dot(b, b).sqrt())
}
