//! Small models with random weights: the kernels and the tensors against plain sums in `f64`.

use std::collections::BTreeMap;
use std::path::Path;

use idiolect_kernels::Team;

use super::weights::{Shape, Weights};
use super::{Fault, kernels, tensors};
use crate::engine::checks::device;
use crate::error::LoadError;

const WIDTH: usize = 24;
const INNER: usize = 40;
const HEADS: usize = 3;
const VOCABULARY: usize = 50;
const POSITIONS: usize = 66;

/// A model as its file has it: by name, dimensions and values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

struct Random(u64);

impl Random {
    /// Returns a value from -1 to 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

struct Kind {
    model_type: &'static str,
    extra: &'static str,
    qkv: [&'static str; 3],
    attended: &'static str,
    attention_norm: &'static str,
}

const BERT: Kind = Kind {
    model_type: "bert",
    extra: r#""type_vocab_size": 2"#,
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    attended: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
};

const MPNET: Kind = Kind {
    model_type: "mpnet",
    extra: r#""relative_attention_num_buckets": 16"#,
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attended: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
};

fn config(kind: &Kind) -> String {
    format!(
        r#"{{"model_type": "{}", "vocab_size": {VOCABULARY}, "hidden_size": {WIDTH}, "num_hidden_layers": 2,
            "num_attention_heads": {HEADS}, "intermediate_size": {INNER}, "hidden_act": "gelu",
            "max_position_embeddings": {POSITIONS}, "layer_norm_eps": 1e-5, {}}}"#,
        kind.model_type, kind.extra
    )
}

fn tensors(kind: &Kind) -> Tensors {
    let mut random = Random(kind.model_type.len() as u64);
    let mut tensors = Tensors::new();
    let mut put = |name: String, dimensions: &[usize], scale: f32, shift: f32| {
        let n: usize = dimensions.iter().product();
        let values = (0..n).map(|_| random.next() * scale + shift).collect();
        tensors.insert(name, (dimensions.to_vec(), values));
    };
    put("embeddings.word_embeddings.weight".into(), &[VOCABULARY, WIDTH], 1.0, 0.0);
    put("embeddings.position_embeddings.weight".into(), &[POSITIONS, WIDTH], 0.5, 0.0);
    if kind.model_type == "bert" {
        put("embeddings.token_type_embeddings.weight".into(), &[2, WIDTH], 0.5, 0.0);
    } else {
        put("encoder.relative_attention_bias.weight".into(), &[16, HEADS], 2.0, 0.0);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for i in 0..2 {
        let name = |part: &str| format!("encoder.layer.{i}.{part}");
        norms.extend([name(kind.attention_norm), name("output.LayerNorm")]);
        let square = kind.qkv.iter().chain([&kind.attended]).map(|part| (name(part), WIDTH, WIDTH));
        let rest = [(name("intermediate.dense"), INNER, WIDTH), (name("output.dense"), WIDTH, INNER)];
        for (name, rows, cols) in square.chain(rest) {
            put(format!("{name}.weight"), &[rows, cols], 0.4, 0.0);
            put(format!("{name}.bias"), &[rows], 0.2, 0.0);
        }
    }
    for name in norms {
        put(format!("{name}.weight"), &[WIDTH], 0.2, 1.0);
        put(format!("{name}.bias"), &[WIDTH], 0.2, 0.0);
    }
    tensors
}

fn write(dir: &Path, kind: &Kind, prefix: &str, tensors: &Tensors) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (dimensions, values)) in tensors {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let entry = serde_json::json!({"dtype": "F32", "shape": dimensions, "data_offsets": [begin, data.len()]});
        header.insert(format!("{prefix}{name}"), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes(), &header[..], &data[..]].concat();
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
    std::fs::write(dir.join("config.json"), config(kind)).unwrap();
}

/// The model in double precision, one value at a time.
struct Reference<'a> {
    kind: &'a Kind,
    tensors: &'a Tensors,
}

impl Reference<'_> {
    fn values(&self, name: &str) -> Vec<f64> {
        self.tensors[name].1.iter().copied().map(f64::from).collect()
    }

    fn linear(&self, name: &str, rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (weight, bias) = (self.values(&format!("{name}.weight")), self.values(&format!("{name}.bias")));
        let product = |row: &Vec<f64>, out: usize| {
            let weights = &weight[out * row.len()..(out + 1) * row.len()];
            weights.iter().zip(row).map(|(w, x)| w * x).sum::<f64>() + bias[out]
        };
        rows.iter().map(|row| (0..bias.len()).map(|out| product(row, out)).collect()).collect()
    }

    fn norm(&self, name: &str, rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (weight, bias) = (self.values(&format!("{name}.weight")), self.values(&format!("{name}.bias")));
        let normalise = |row: &Vec<f64>| {
            let mean = row.iter().sum::<f64>() / WIDTH as f64;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WIDTH as f64;
            (0..WIDTH).map(|i| (row[i] - mean) / (variance + 1e-5).sqrt() * weight[i] + bias[i]).collect()
        };
        rows.iter().map(normalise).collect()
    }

    /// The bias of attention by MPNet's rule, with its 16 buckets.
    fn bias(&self, head: usize, query: usize, key: usize) -> f64 {
        if self.kind.model_type == "bert" {
            return 0.0;
        }
        let distance = query.abs_diff(key);
        let bucket = match distance {
            0..4 => distance,
            _ => 7.min(4 + ((distance as f64 / 4.0).ln() / (128.0f64 / 4.0).ln() * 4.0 + 1e-9) as usize),
        };
        let side = if key > query { 8 } else { 0 };
        self.values("encoder.relative_attention_bias.weight")[(side + bucket) * HEADS + head]
    }

    fn embed(&self, text: &[u32]) -> Vec<f64> {
        let is_bert = self.kind.model_type == "bert";
        let (words, positions) =
            (self.values("embeddings.word_embeddings.weight"), self.values("embeddings.position_embeddings.weight"));
        let mut next = if is_bert { 0 } else { 2 };
        let embeddings: Vec<Vec<f64>> = text
            .iter()
            .map(|token| {
                let position = if !is_bert && *token == 1 { 1 } else { next };
                next += usize::from(is_bert || *token != 1);
                let of_type =
                    |i: usize| if is_bert { self.values("embeddings.token_type_embeddings.weight")[i] } else { 0.0 };
                let value =
                    |i: usize| words[*token as usize * WIDTH + i] + positions[position * WIDTH + i] + of_type(i);
                (0..WIDTH).map(value).collect()
            })
            .collect();
        let mut hidden = self.norm("embeddings.LayerNorm", &embeddings);
        for i in 0..2 {
            let name = |part: &str| format!("encoder.layer.{i}.{part}");
            let [queries, keys, values] = self.kind.qkv.map(|part| self.linear(&name(part), &hidden));
            let head_width = WIDTH / HEADS;
            let mut attended = vec![vec![0.0; WIDTH]; text.len()];
            for head in 0..HEADS {
                let columns = head * head_width..(head + 1) * head_width;
                for query in 0..text.len() {
                    let score = |key: usize| {
                        let dot: f64 = columns.clone().map(|i| queries[query][i] * keys[key][i]).sum();
                        (dot / (head_width as f64).sqrt() + self.bias(head, query, key)).exp()
                    };
                    let weights: Vec<f64> = (0..text.len()).map(score).collect();
                    let sum: f64 = weights.iter().sum();
                    for i in columns.clone() {
                        attended[query][i] = (0..text.len()).map(|key| weights[key] / sum * values[key][i]).sum();
                    }
                }
            }
            hidden = self.norm(
                &name(self.kind.attention_norm),
                &add(&self.linear(&name(self.kind.attended), &attended), &hidden),
            );
            let inner = self.linear(&name("intermediate.dense"), &hidden);
            let inner: Vec<Vec<f64>> = inner.iter().map(|row| row.iter().copied().map(gelu).collect()).collect();
            hidden = self.norm(&name("output.LayerNorm"), &add(&self.linear(&name("output.dense"), &inner), &hidden));
        }
        let sums: Vec<f64> = (0..WIDTH).map(|i| hidden.iter().map(|row| row[i]).sum()).collect();
        let length = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
        sums.iter().map(|x| x / length).collect()
    }
}

fn add(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

fn gelu(x: f64) -> f64 {
    // The error function by its power series, which is precise for the small values that come up here.
    let u = x / std::f64::consts::SQRT_2;
    assert!(u.abs() < 4.0);
    let (mut power, mut sum) = (u, 0.0);
    for n in 0..120 {
        sum += power / f64::from(2 * n + 1);
        power *= -u * u / f64::from(n + 1);
    }
    0.5 * x * (1.0 + 2.0 / std::f64::consts::PI.sqrt() * sum)
}

/// Texts of many lengths, some with the token that MPNet pads with.
fn texts() -> Vec<Vec<u32>> {
    let mut random = Random(7);
    let mut text = |len: usize| (0..len).map(|_| (random.next().abs() * 49.0) as u32).collect::<Vec<u32>>();
    let mut texts: Vec<Vec<u32>> = [1, 2, 5, 64, 17, 33, 64, 9, 31, 40].map(&mut text).to_vec();
    texts.push(vec![0, 1, 5, 1, 1, 7, 2]);
    texts
}

fn models(kind: &Kind, prefix: &str) -> (Tensors, kernels::Model, tensors::Model) {
    let dir = tempfile::tempdir().unwrap();
    let parts = tensors(kind);
    write(dir.path(), kind, prefix, &parts);
    let shape = Shape::read(&dir.path().join("config.json")).unwrap();
    let open = || Weights::open(&dir.path().join("model.safetensors"), shape.clone()).unwrap();
    let on_kernels = kernels::Model::load(&mut open(), shape.clone()).unwrap();
    let device = device();
    let on_tensors = tensors::Model::load(&mut open(), shape.clone(), &device).unwrap();
    (parts, on_kernels, on_tensors)
}

fn check(kind: &Kind, prefix: &str) {
    let (parts, on_kernels, on_tensors) = models(kind, prefix);
    let reference = Reference { kind, tensors: &parts };
    let texts = texts();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let by_tensors = on_tensors.embed(&texts, &|| true).unwrap().unwrap();
    for threads in [1, 2, 3] {
        let by_kernels = on_kernels.embed(&texts, &Team::new(threads).unwrap(), &|| true).unwrap().unwrap();
        for (i, text) in texts.iter().enumerate() {
            let expected = reference.embed(text);
            for (engine, got) in [("kernels", &by_kernels[i]), ("tensors", &by_tensors[i])] {
                let off = got.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                assert!(off < 3e-6, "{} {engine} text {i} of {} tokens: {off} off", kind.model_type, text.len());
                assert_eq!(got.len(), WIDTH);
            }
        }
    }
}

#[test]
fn berts_are_those_in_double_precision() {
    check(&BERT, "");
    check(&BERT, "bert.");
}

#[test]
fn mpnets_are_those_in_double_precision() {
    check(&MPNET, "");
    check(&MPNET, "mpnet.");
}

#[test]
fn a_text_does_not_depend_on_its_company_or_on_threads() {
    let (_, model, _) = models(&MPNET, "");
    let texts = texts();
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let together = model.embed(&texts, &Team::new(3).unwrap(), &|| true).unwrap().unwrap();
    for (text, embedding) in texts.iter().zip(together) {
        let alone = model.embed(&[text], &Team::new(1).unwrap(), &|| true).unwrap().unwrap();
        assert_eq!(alone, [embedding]);
    }
}

#[test]
fn work_stops_where_nobody_waits() {
    let (_, on_kernels, on_tensors) = models(&BERT, "");
    let team = Team::new(2).unwrap();
    assert!(on_kernels.embed(&[&[1, 2]], &team, &|| false).unwrap().is_none());
    assert!(on_tensors.embed(&[&[1, 2]], &|| false).unwrap().is_none());
    assert!(on_kernels.embed(&[], &team, &|| true).unwrap().unwrap().is_empty());
}

#[test]
fn tokens_that_the_model_does_not_have_are_refused() {
    let (_, on_kernels, on_tensors) = models(&MPNET, "");
    let team = Team::new(1).unwrap();
    let long = [3; POSITIONS];
    for (text, expected) in [(&[3, VOCABULARY as u32][..], "token 50"), (&long[..], "66 tokens")] {
        let faults = [on_kernels.embed(&[text], &team, &|| true), on_tensors.embed(&[text], &|| true)];
        for fault in faults {
            let fault: Fault = fault.unwrap_err();
            assert!(fault.to_string().contains(expected), "{fault}");
        }
    }
}

#[test]
fn configurations_that_make_no_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let read = |from: &str, to: &str| {
        let sound = config(&MPNET);
        assert!(sound.contains(from));
        std::fs::write(&path, sound.replace(from, to)).unwrap();
        Shape::read(&path).map(drop)
    };
    read("mpnet", "mpnet").unwrap();
    for (from, to) in [
        ("\"hidden_size\": 24", "\"hidden_size\": 25"),
        ("\"hidden_size\": 24", "\"hidden_size\": 0"),
        ("attention_heads\": 3", "attention_heads\": 0"),
        ("embeddings\": 66", "embeddings\": 4"),
        ("buckets\": 16", "buckets\": 2"),
        ("layer_norm_eps\": 1e-5", "layer_norm_eps\": -1"),
        ("hidden_layers\": 2", "hidden_layers\": 100000"),
    ] {
        assert!(matches!(read(from, to), Err(LoadError::Damaged { .. })), "{to}");
    }
    for (from, to) in [("mpnet", "t5"), ("\"gelu\"", "\"relu\"")] {
        assert!(matches!(read(from, to), Err(LoadError::Unsupported { .. })), "{to}");
    }
}
