//! The same model from every kind of file.

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value as Gguf;
use candle_core::{DType, Device};
use serde_json::json;

use super::role::Names;
use super::*;
use crate::engine::{Activation, Pairs};
use crate::testing::family::{CONTEXT, FAMILIES, Family};

fn open(path: &Path) -> Result<Weights, LoadError> {
    Weights::open(path, 4096, None)
}

/// Reads a role as `f32`.
fn values(weights: &mut Weights, role: Role) -> Vec<f32> {
    if role.shape(weights.params()).0 == 1 {
        return weights.vector(role).unwrap();
    }
    let form = weights.form(role).unwrap();
    let mut bytes = Vec::new();
    weights
        .bands(role, &mut |first, band| {
            assert_eq!(first * form.layout.bytes, bytes.len());
            bytes.extend_from_slice(band);
            Ok(())
        })
        .unwrap();
    assert_eq!(bytes.len(), form.rows * form.layout.bytes);
    let mut values = vec![0.0; form.rows * form.layout.cols];
    form.layout.decode(&bytes, &mut values).unwrap();
    values
}

/// Undoes what Llama's GGUF files do to the rows of queries and keys.
fn halves(values: &[f32], head: usize, cols: usize) -> Vec<f32> {
    values
        .chunks_exact(head * cols)
        .flat_map(|rows| {
            let row = |row: usize| rows[row * cols..(row + 1) * cols].to_vec();
            (0..head / 2).map(|i| row(2 * i)).chain((0..head / 2).map(|i| row(2 * i + 1))).flatten().collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn files_of_both_kinds_hold_the_same_model() {
    for name in FAMILIES {
        let family = Family::new(name);
        let folder = family.folder(DType::F32);
        let mut hub = open(folder.path()).unwrap();
        let (_dir, path) = family.gguf(GgmlDType::F32).write();
        let mut gguf = open(&path).unwrap();
        assert_eq!(hub.architecture().unwrap(), gguf.architecture().unwrap());

        let (mut from_hub, from_gguf) = (hub.params().clone(), gguf.params().clone());
        assert_eq!(from_hub.pairs, Pairs::Halves);
        from_hub.pairs = from_gguf.pairs;
        for (a, b) in from_hub.ropes.iter().zip(&from_gguf.ropes) {
            for (a, b) in a.frequencies.iter().zip(&b.frequencies) {
                assert!((a - b).abs() < 1e-6 * b, "{name}: {a} for {b}");
            }
        }
        from_hub.ropes.clone_from(&from_gguf.ropes);
        assert_eq!(format!("{from_hub:?}"), format!("{from_gguf:?}"), "{name}");

        let neighbours = from_gguf.pairs == Pairs::Neighbours;
        for role in Names::roles(&from_gguf).collect::<Vec<_>>() {
            let (a, mut b) = (values(&mut hub, role), values(&mut gguf, role));
            if neighbours && matches!(role, Role::Layer(_, Part::Query | Part::Key)) {
                b = halves(&b, from_gguf.head_width, from_gguf.width);
            }
            assert_eq!(a, b, "{name}: {role:?}");
        }
    }
}

#[test]
fn families_differ_in_their_parameters() {
    let params = |name| open(Family::new(name).folder(DType::F32).path()).unwrap().params().clone();
    let windows = |name| params(name).layers.iter().map(|layer| layer.window).collect::<Vec<_>>();
    assert_eq!(windows("llama"), [None; 3]);
    assert_eq!(windows("mistral"), [Some(20); 3]);
    assert_eq!(windows("qwen2"), [None; 3], "not in use");
    assert_eq!(windows("gemma3")[4..], [Some(20), None, Some(20), Some(20)]);
    let gemma = params("gemma3");
    assert_eq!(gemma.layers.iter().map(|layer| layer.rope).collect::<Vec<_>>(), [1, 1, 1, 1, 1, 0, 1, 1]);
    assert_eq!((gemma.embedding_scale, gemma.activation), (8.0, Activation::GeluTanh));
    assert!(gemma.post_norms && gemma.qk_norm && gemma.tied && !gemma.qkv_bias);
    let gemma = params("gemma2");
    assert_eq!((gemma.attention_softcap, gemma.logit_softcap), (Some(2.0), Some(5.0)));
    assert_eq!(params("phi3").ropes[0].frequencies.len(), 6, "pairs of twelve elements out of sixteen");
    assert!(params("qwen2").qkv_bias && !params("llama").tied);
}

#[test]
fn configurations_of_published_models_are_understood() {
    let params = |name: &'static str, change: serde_json::Value| {
        let mut family = Family::new(name);
        for (key, value) in change.as_object().unwrap() {
            family.config[key] = value.clone();
        }
        let dir = family.folder(DType::F32);
        open(dir.path()).map(|weights| weights.params().clone())
    };
    // Newer files put all about rotation in one object, with one for each kind of layer.
    let rope = json!({"rope_theta": null, "rope_local_base_freq": null, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}});
    let gemma = params("gemma3", rope).unwrap();
    assert!((gemma.ropes[0].frequencies[1] - 1e6f32.powf(-1.0 / 16.0) / 8.0).abs() < 1e-7);
    assert!((gemma.ropes[1].frequencies[1] - 5000f32.powf(-1.0 / 16.0)).abs() < 1e-6);
    let flat = json!({"rope_theta": null, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}});
    assert_eq!(params("qwen3", flat).unwrap().ropes[0].frequencies[1], 1e6f32.powf(-1.0 / 16.0));
    // Gemma 2 and 3 of 27 billion parameters.
    let scaled = params("gemma2", json!({"query_pre_attn_scalar": 144})).unwrap();
    assert!((scaled.query_scale - 1.0 / 12.0).abs() < 1e-7);
    // Every second layer of Gemma 2 has a window.
    let windows = params("gemma2", json!({"sliding_window": 64})).unwrap().layers;
    assert_eq!(windows.iter().map(|layer| layer.window).collect::<Vec<_>>(), [Some(64), None, Some(64)]);
    let types = json!({"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 32});
    let windows = params("qwen3", types).unwrap().layers;
    assert_eq!(windows.iter().map(|layer| layer.window).collect::<Vec<_>>(), [None, Some(32), None]);
    let upper = json!({"use_sliding_window": true, "max_window_layers": 2});
    let windows = params("qwen2", upper).unwrap().layers;
    assert_eq!(windows.iter().map(|layer| layer.window).collect::<Vec<_>>(), [None, None, Some(20)]);
    let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}});
    assert!(params("qwen2", yarn).unwrap().ropes[0].magnitude > 1.1);
    // Without a factor of its own, Phi-3 evens out scores by how much it was stretched.
    let long = Family::new("phi3-long").config["rope_scaling"].clone();
    let mut long = json!({"rope_scaling": long});
    long["rope_scaling"].as_object_mut().unwrap().remove("attention_factor");
    let expected = (1.0 + 2f32.ln() / 64f32.ln()).sqrt();
    assert!((params("phi3-long", long).unwrap().ropes[0].magnitude - expected).abs() < 1e-6);

    let refused = |name, change| params(name, change).unwrap_err().to_string();
    assert!(
        refused("llama", json!({"model_type": "mamba"})).contains("model type \"mamba\" is not supported; supported")
    );
    assert!(refused("llama", json!({"model_type": null})).contains("\"model_type\" is missing"));
    assert!(refused("llama", json!({"quantization_config": {"bits": 4}})).contains("quantization_config"));
    assert!(refused("llama", json!({"rope_scaling": {"rope_type": "dynamic"}})).contains("\"dynamic\""));
    assert!(refused("llama", json!({"hidden_act": "relu"})).contains("\"relu\""));
    assert!(refused("llama", json!({"num_attention_heads": 0})).contains("no model"));
    assert!(refused("llama", json!({"num_attention_heads": "four"})).contains("is not a size"));
    assert!(refused("llama", json!({"hidden_size": null})).contains("\"hidden_size\" is missing"));
    assert!(refused("llama", json!({"hidden_size": 32})).contains("expected"));
    assert!(refused("qwen3", json!({"layer_types": ["full_attention"]})).contains("layer_types"));
    assert!(refused("phi3-long", json!({"partial_rotary_factor": 0.5})).contains("a list of 4 numbers"));
    assert!(refused("llama", json!({"max_position_embeddings": 3})).contains("too short"));
}

#[test]
fn folders_that_are_not_whole_are_refused() {
    let family = Family::new("qwen2");
    let without = |name: &str| {
        let dir = family.folder(DType::F32);
        std::fs::remove_file(dir.path().join(name)).unwrap();
        open(dir.path()).unwrap_err().to_string()
    };
    assert!(without("config.json").contains("config.json"));
    assert!(without("model-00002-of-00002.safetensors").contains("model-00002"));
    let dir = family.folder(DType::F32);
    let write = |text: &str| std::fs::write(dir.path().join("model.safetensors.index.json"), text).unwrap();
    write(r#"{"weight_map": {"a": "../../etc/passwd"}}"#);
    assert!(open(dir.path()).unwrap_err().to_string().contains("no file's name"));
    write("{}");
    assert!(open(dir.path()).unwrap_err().to_string().contains("weight_map"));
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    open(dir.path()).unwrap();
    // Naming one shard means all.
    open(&dir.path().join("model-00001-of-00002.safetensors")).unwrap();
    std::fs::remove_file(dir.path().join("model-00001-of-00002.safetensors")).unwrap();
    assert!(open(dir.path()).unwrap_err().to_string().contains("embed_tokens"));
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join("config.json"), "{}").unwrap();
    assert!(open(empty.path()).unwrap_err().to_string().contains("holds no model.safetensors"));
}

#[test]
fn parts_that_nothing_uses_are_refused() {
    let mut family = Family::new("llama");
    family.tensors.push(("model.layers.0.mlp.experts.0.gate.weight".to_owned(), vec![1, 1], vec![0.0]));
    let error = open(family.folder(DType::F32).path()).unwrap_err().to_string();
    assert!(error.contains("tensor \"model.layers.0.mlp.experts.0.gate.weight\" is not supported"), "{error}");
    let mut tiny = Family::new("llama").gguf(GgmlDType::F32);
    tiny.tensor("blk.1.attn_sub_norm.weight", vec![1.0; 64], &[64], GgmlDType::F32);
    let error = open(&tiny.write().1).unwrap_err().to_string();
    assert!(error.contains("attn_sub_norm"), "{error}");
}

#[test]
fn half_precision_is_given_as_it_is_stored() {
    let family = Family::new("llama");
    for (dtype, format) in [(DType::F16, GgmlDType::F16), (DType::BF16, GgmlDType::BF16)] {
        let dir = family.folder(dtype);
        let mut weights = open(dir.path()).unwrap();
        assert_eq!(weights.form(Role::Embeddings).unwrap().layout.format, format);
        let got = values(&mut weights, Role::Embeddings);
        let stored = candle_core::safetensors::load(dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
        let stored = stored["model.embed_tokens.weight"].to_dtype(DType::F32).unwrap();
        assert_eq!(got, stored.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
}

#[test]
fn matrices_may_be_encoded_anew() {
    let family = Family::new("phi3");
    let dir = family.folder(DType::F32);
    let role = Role::Layer(1, Part::Up);
    let exact = values(&mut open(dir.path()).unwrap(), role);
    for (wanted, got, tolerance) in [
        (Format::Q8_0, GgmlDType::Q8_0, 0.002),
        (Format::Q4_0, GgmlDType::Q4_0, 0.04),
        // Rows of 64 do not fill its blocks.
        (Format::Q4K, GgmlDType::Q8_0, 0.002),
    ] {
        let mut weights = Weights::open(dir.path(), CONTEXT, Some(wanted)).unwrap();
        assert_eq!(weights.form(role).unwrap().layout.format, got);
        let coarse = values(&mut weights, role);
        assert!(coarse.iter().zip(&exact).all(|(a, b)| (a - b).abs() < tolerance), "{wanted:?}");
        assert_ne!(coarse, exact);
        assert_eq!(weights.vector(Role::OutputNorm).unwrap().len(), 64);
        assert_eq!(weights.form(Role::Output).unwrap().layout.format, GgmlDType::Q8_0);
    }
}

#[test]
fn formats_that_the_kernels_lack_become_eight_bit() {
    let mut tiny = Family::new("llama").gguf(GgmlDType::F32);
    tiny.set("llama.feed_forward_length", Gguf::U32(256));
    for index in 0..3 {
        let up: Vec<f32> = (0..256 * 64).map(|i| ((i * 31 % 97) as f32 - 48.0) / 400.0).collect();
        for part in ["ffn_gate", "ffn_up"] {
            tiny.tensor(&format!("blk.{index}.{part}.weight"), up.clone(), &[256, 64], GgmlDType::F32);
        }
        tiny.tensor(&format!("blk.{index}.ffn_down.weight"), up, &[64, 256], GgmlDType::Q3K);
    }
    let (_dir, path) = tiny.write();
    let mut weights = open(&path).unwrap();
    let role = Role::Layer(2, Part::Down);
    assert_eq!(weights.form(role).unwrap().layout.format, GgmlDType::Q8_0);
    let got = values(&mut weights, role);
    let stored = &tiny.tensors.iter().find(|(name, _)| name == "blk.2.ffn_down.weight").unwrap().1;
    let stored = stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(got.iter().zip(&stored).all(|(a, b)| (a - b).abs() < 0.001));
}
