//! Every family of models, on every engine, against candle's own implementation of the family.

#![expect(clippy::print_stdout, reason = "figures for whoever asks a test to show them")]

use std::path::Path;

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use idiolect_backend::{Backend, Message, Request};
use idiolect_kernels::{Format, KvType, Tier};

use super::checks::{Model, check_near, device};
use super::{Engine, Settings, TensorSettings, Tensors, Transformer};
use crate::testing::family::{FAMILIES, Family, VOCABULARY};
use crate::weights::Weights;
use crate::{CandleBackend, CandleConfig};

/// What the same sums in another order may be off, of logits of up to about 15. The most that was seen is 2e-5.
const EXACT: f32 = 1e-4;

/// Lengths of texts whose logits are compared: around the window of twenty and the seams of stretches.
const LENGTHS: [usize; 9] = [1, 2, 19, 20, 21, 33, 64, 65, 90];

fn text() -> Vec<u32> {
    (0..90).map(|i| (i * 37 + 11) % 256).collect()
}

fn on_tensors(path: &Path, quantize: Option<Format>) -> Model<Tensors> {
    let mut weights = Weights::open(path, 4096, quantize).unwrap();
    Model::new(Tensors::load(&mut weights, &TensorSettings::for_tests(), &device()).unwrap())
}

fn on_kernels(path: &Path, settings: &Settings) -> Model<Transformer> {
    let mut weights = Weights::open(path, 4096, None).unwrap();
    Model::new(Transformer::load(&mut weights, settings).unwrap())
}

/// Returns the logits after each of [`LENGTHS`], as candle's own implementation has them.
fn expected(family: &Family) -> Vec<Vec<f32>> {
    LENGTHS.iter().map(|len| family.reference(&text()[..*len])).collect()
}

/// Checks logits computed at a stretch, and those of a text that grew token by token beside another.
fn check<E: Engine>(model: &Model<E>, expected: &[Vec<f32>], what: &str) {
    let text = text();
    let near = |got: &[f32], at: usize, how: &str| {
        let largest = expected[at].iter().fold(0f32, |most, logit| most.max(logit.abs()));
        let off = got.iter().zip(&expected[at]).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(off <= EXACT, "{what}, {how} {}: off by {off} of {largest}", LENGTHS[at]);
    };
    let rows = model.rows(&text, 0).unwrap();
    for (at, len) in LENGTHS.into_iter().enumerate() {
        near(&rows[len - 1], at, "at a stretch");
    }
    let mut session = model.start(&text[..2], 2, 88).unwrap();
    for (at, token) in text.iter().enumerate().skip(2) {
        session.step(&[(0, 255 - *token), (1, *token)]).unwrap();
        if let Some(at) = LENGTHS.iter().position(|len| *len == at + 1) {
            near(&session.logits()[VOCABULARY..], at, "token by token");
        }
    }
}

#[test]
fn on_tensors_they_compute_what_candles_own_models_compute() {
    for name in FAMILIES {
        let family = Family::new(name);
        let expected = expected(&family);
        let (_dir, path) = family.gguf(GgmlDType::F32).write();
        check(&on_tensors(&path, None), &expected, &format!("{name} as GGUF"));
        let folder = family.folder(DType::F32);
        check(&on_tensors(folder.path(), None), &expected, &format!("{name} as safetensors"));
    }
}

#[test]
fn on_kernels_they_compute_what_candles_own_models_compute() {
    for name in FAMILIES {
        let family = Family::new(name);
        let expected = expected(&family);
        let (_dir, path) = family.gguf(GgmlDType::F32).write();
        for tier in Tier::available() {
            let settings = Settings { tier, ..Settings::for_tests() };
            check(&on_kernels(&path, &settings), &expected, &format!("{name} as GGUF, {tier}"));
        }
        let folder = family.folder(DType::F32);
        check(&on_kernels(folder.path(), &Settings::for_tests()), &expected, &format!("{name} as safetensors"));
    }
}

#[test]
fn quantised_they_are_near_exact_products_of_the_same_weights() {
    for name in FAMILIES {
        let family = Family::new(name);
        for (format, kv_type, tolerance) in [
            (GgmlDType::Q8_0, KvType::F32, 0.03),
            (GgmlDType::Q8_0, KvType::F16, 0.03),
            (GgmlDType::Q8_0, KvType::Q8, 0.05),
            (GgmlDType::Q4_0, KvType::F16, 0.03),
            (GgmlDType::F16, KvType::F16, 0.005),
            (GgmlDType::BF16, KvType::F16, 0.005),
        ] {
            let (_dir, path) = family.gguf(format).write();
            let expected = on_tensors(&path, Some(Format::F32)).rows(&text(), 0).unwrap();
            let settings = Settings { kv_type, ..Settings::for_tests() };
            let got = on_kernels(&path, &settings).rows(&text(), 0).unwrap();
            check_near(&got.concat(), &expected.concat(), tolerance, &format!("{name} in {format:?}, {kv_type:?}"));
        }
    }
}

/// The formats of weights, and how far logits may be off by each on kernels and on tensors: what is left of sixteen bits (on
/// tensors of the activations, too), and what rounding activations to eight bits does to random weights. The most that was seen
/// is 0.023 on kernels and 0.035 on tensors.
const FORMATS: [(GgmlDType, f32, f32); 10] = [
    (GgmlDType::F16, 0.001, 0.002),
    (GgmlDType::BF16, 0.001, 0.012),
    (GgmlDType::Q8_0, 0.03, 0.045),
    (GgmlDType::Q4_0, 0.03, 0.045),
    (GgmlDType::Q4_1, 0.03, 0.045),
    (GgmlDType::Q5_0, 0.03, 0.045),
    (GgmlDType::Q5_1, 0.03, 0.045),
    (GgmlDType::Q4K, 0.03, 0.045),
    (GgmlDType::Q5K, 0.03, 0.045),
    (GgmlDType::Q6K, 0.03, 0.045),
];

#[test]
fn in_every_format_they_are_near_candles_own_models_of_the_same_weights() {
    let text = &text()[..40];
    for name in FAMILIES {
        let family = Family::wide(name);
        let mut seen = Vec::new();
        for (format, on_kernels_by, on_tensors_by) in FORMATS {
            let tiny = family.gguf(format);
            let exact = family.as_encoded(&tiny);
            let ends = [1, 21, 40];
            let expected = ends.map(|end| exact.reference(&text[..end])).concat();
            let (_dir, path) = tiny.write();
            let rows = [
                on_kernels(&path, &Settings { kv_type: KvType::F16, ..Settings::for_tests() }).rows(text, 0).unwrap(),
                on_tensors(&path, None).rows(text, 0).unwrap(),
            ];
            for ((engine, tolerance), rows) in
                [("kernels", on_kernels_by), ("tensors", on_tensors_by)].into_iter().zip(rows)
            {
                let got = ends.map(|end| rows[end - 1].clone()).concat();
                let off = check_near(&got, &expected, tolerance, &format!("{name} in {format:?} on {engine}"));
                seen.push(format!("{format:?} {off:.4}"));
            }
        }
        println!("{name}: {}", seen.join(", "));
    }
}

#[test]
fn a_folder_of_safetensors_is_served_like_a_file() {
    let family = Family::new("gemma3");
    let (folder, (_dir, file)) = (family.folder(DType::F32), family.gguf(GgmlDType::F32).write());
    let shard = folder.path().join("model-00001-of-00002.safetensors");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let texts = |path: &Path, quantize: Option<Format>| {
        let config = CandleConfig { quantize, ..CandleConfig::default() };
        let backend = CandleBackend::load(path, config).unwrap();
        assert_eq!(backend.capabilities().family.as_deref(), Some("gemma3"));
        let mut request = Request::new(vec![Message::user("he")]);
        (request.n, request.sampling.max_tokens, request.sampling.seed) = (3, 12, Some(7));
        let completion = runtime.block_on(backend.complete(request)).unwrap();
        completion.candidates.into_iter().map(|candidate| candidate.text).collect::<Vec<_>>()
    };
    let of_folder = texts(folder.path(), None);
    assert_eq!(of_folder.len(), 3);
    assert_eq!(texts(&shard, None), of_folder);
    assert_eq!(texts(&file, None), of_folder);
    assert_eq!(texts(folder.path(), Some(Format::Q8_0)).len(), 3);
}

#[test]
fn windows_hide_what_is_far() {
    let logits = |window: Option<u64>| {
        let mut family = Family::new("mistral");
        family.config["sliding_window"] = serde_json::json!(window);
        let folder = family.folder(DType::F32);
        let model = on_kernels(folder.path(), &Settings::for_tests());
        model.rows(&text(), 89).unwrap().remove(0)
    };
    let wide = logits(None);
    let off = |other: Vec<f32>| wide.iter().zip(&other).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(off(logits(Some(20))) > 0.1, "it makes a difference");
    assert_eq!(off(logits(Some(90))), 0.0, "none where all is in sight");
}
