//! What holds for this engine alone; what holds for every engine is in `engine/checks.rs`.

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use idiolect_kernels::Format;

use super::run::FIRST_ROOM;
use super::*;
use crate::engine::checks::{Model, Session, check_near, cosine, device, prompt, reference, reference_of};
use crate::engine::{Settings, Transformer};
use crate::testing::family::{FAMILIES, Family};
use crate::testing::{self, TinyGguf, VOCABULARY};

/// Of the logits' size: what candle's own models may be off, which run the same kernels in another order.
const NEAR_CANDLE: f32 = 1e-3;
/// Of the logits' size: what the processor's own kernels may be off, which round activations another way.
const NEAR_KERNELS: f32 = 0.05;
/// Of the logits' size: what another batch may change.
const NEAR_ITSELF: f32 = 1e-4;

const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// The processor stands in for other devices; short chunks show their seams.
fn load(tiny: &TinyGguf) -> Result<Model<Tensors>, LoadError> {
    let (_dir, path) = tiny.write();
    load_from(&path, None)
}

fn load_from(path: &std::path::Path, format: Option<Format>) -> Result<Model<Tensors>, LoadError> {
    let mut weights = Weights::open(path, 4096, format)?;
    Tensors::load(&mut weights, &TensorSettings::for_tests(), &device()).map(Model::new)
}

fn kernels(tiny: &TinyGguf) -> Model<Transformer> {
    let (_dir, path) = tiny.write();
    kernels_from(&path)
}

fn kernels_from(path: &std::path::Path) -> Model<Transformer> {
    let mut weights = Weights::open(path, 4096, None).unwrap();
    Model::new(Transformer::load(&mut weights, &Settings::for_tests()).unwrap())
}

fn row<'a>(session: &'a Session<'_, Tensors>, row: usize) -> &'a [f32] {
    &session.logits()[row * VOCABULARY..(row + 1) * VOCABULARY]
}

#[test]
fn logits_are_those_of_candles_own_models() {
    for architecture in ARCHITECTURES {
        let mut tiny = TinyGguf::model(architecture);
        // Otherwise candle's qwen3 rounds its rotations to sixteen bits.
        tiny.set("general.dtype", Value::U32(0));
        let model = load(&tiny).unwrap();
        let then = [5, 6, 7];
        let expected = reference(architecture, &tiny, &prompt(), &then);
        let mut session = model.start(&prompt(), 1, 3).unwrap();
        check_near(session.logits(), &expected[0], NEAR_CANDLE, architecture);
        for (token, expected) in then.iter().zip(&expected[1..]) {
            session.step(&[(0, *token)]).unwrap();
            check_near(session.logits(), expected, NEAR_CANDLE, architecture);
        }
    }
}

#[test]
fn logits_are_near_those_of_the_processors_own_kernels() {
    for architecture in ARCHITECTURES {
        let tiny = TinyGguf::model(architecture);
        let (model, kernels) = (load(&tiny).unwrap(), kernels(&tiny));
        let mut session = model.start(&prompt(), 3, 8).unwrap();
        let mut expected = kernels.start(&prompt(), 3, 8).unwrap();
        check_near(session.logits(), expected.logits(), NEAR_KERNELS, architecture);
        for step in 0..8 {
            let batch: Vec<(usize, u32)> = (0..3).map(|slot| (slot, 70 * slot as u32 + step)).collect();
            session.step(&batch).unwrap();
            expected.step(&batch).unwrap();
            check_near(session.logits(), expected.logits(), NEAR_KERNELS, architecture);
        }
    }
}

#[test]
fn heads_that_turn_in_part_are_those_of_the_kernels() {
    for architecture in ARCHITECTURES {
        let mut tiny = TinyGguf::model(architecture);
        let whole = load(&tiny).unwrap().start(&prompt(), 1, 1).unwrap().logits().to_vec();
        tiny.set(&format!("{architecture}.rope.dimension_count"), Value::U32(8));
        let model = load(&tiny).unwrap();
        let session = model.start(&prompt(), 1, 1).unwrap();
        let kernels = kernels(&tiny);
        let expected = kernels.start(&prompt(), 1, 1).unwrap();
        check_near(session.logits(), expected.logits(), NEAR_KERNELS, architecture);
        assert!(cosine(session.logits(), &whole) < 0.99, "{architecture}: it makes a difference");
    }
}

#[test]
fn the_default_model_computes_what_candle_and_the_kernels_compute() {
    let path = testing::smollm2();
    let model = load_from(&path, None).unwrap();
    let kernels = kernels_from(&path);
    let tokens = [1, 4093, 198, 504, 3575, 282, 4649, 314];
    let then = [7042, 30];
    let expected = reference_of("llama", std::fs::File::open(&path).unwrap(), &tokens, &then);
    let mut session = model.start(&tokens, 2, 2).unwrap();
    let mut of_kernels = kernels.start(&tokens, 2, 2).unwrap();
    let check = |ours: &[f32], of_kernels: &[f32], expected: &[f32]| {
        check_near(ours, expected, NEAR_CANDLE, "candle");
        let cosine = cosine(ours, of_kernels);
        // Each rounds activations in its own way, and each is about 0.0015 away from what exact products give.
        assert!(cosine > 0.99, "cosine of {cosine} with the kernels");
    };
    check(session.logits(), of_kernels.logits(), &expected[0]);
    for (token, expected) in then.into_iter().zip(&expected[1..]) {
        session.step(&[(0, 30), (1, token)]).unwrap();
        of_kernels.step(&[(0, 30), (1, token)]).unwrap();
        let second = expected.len()..2 * expected.len();
        check(&session.logits()[second.clone()], &of_kernels.logits()[second], expected);
    }
}

#[test]
fn a_continuation_does_not_depend_on_its_batch() {
    for architecture in ARCHITECTURES {
        let model = load(&TinyGguf::model(architecture)).unwrap();
        let texts: [[u32; 3]; 5] = std::array::from_fn(|i| [1, 2, 3].map(|j| (i as u32 + 1) * 10 + j));
        let mut together = model.start(&prompt(), 5, 3).unwrap();
        let mut rows = Vec::new();
        for step in 0..3 {
            let batch: Vec<(usize, u32)> = texts.iter().enumerate().map(|(slot, text)| (slot, text[step])).collect();
            together.step(&batch).unwrap();
            rows.push(together.logits().to_vec());
        }
        for (slot, text) in texts.iter().enumerate() {
            let mut alone = model.start(&prompt(), 1, 3).unwrap();
            for (token, rows) in text.iter().zip(&rows) {
                alone.step(&[(0, *token)]).unwrap();
                let own = &rows[slot * VOCABULARY..(slot + 1) * VOCABULARY];
                check_near(alone.logits(), own, NEAR_ITSELF, architecture);
            }
        }
    }
}

#[test]
fn slots_may_leave_and_change_places() {
    let model = load(&TinyGguf::model("llama")).unwrap();
    let mut session = model.start(&prompt(), 4, 4).unwrap();
    session.step(&[(0, 1), (1, 2), (2, 3), (3, 7)]).unwrap();
    session.step(&[(3, 8), (0, 9), (2, 4)]).unwrap();
    session.step(&[(2, 6), (3, 5)]).unwrap();
    let last = session.logits().to_vec();
    for (place, text) in [(0, [3, 4, 6]), (1, [7, 8, 5])] {
        let mut alone = model.start(&prompt(), 1, 4).unwrap();
        for token in text {
            alone.step(&[(0, token)]).unwrap();
        }
        check_near(&last[place * VOCABULARY..][..VOCABULARY], alone.logits(), NEAR_ITSELF, "a slot that stayed");
    }
    assert!(matches!(session.step(&[(0, 1)]), Err(EngineError::Misuse(_))), "it left");
    session.step(&[(3, 5)]).unwrap();
}

#[test]
fn slots_may_leave_before_the_first_step() {
    let model = load(&TinyGguf::model("llama")).unwrap();
    let mut session = model.start(&prompt(), 3, 4).unwrap();
    session.step(&[(2, 5)]).unwrap();
    let mut alone = model.start(&prompt(), 1, 4).unwrap();
    alone.step(&[(0, 5)]).unwrap();
    check_near(session.logits(), alone.logits(), NEAR_ITSELF, "the one that stayed");
}

#[test]
fn continuations_grow_beyond_their_first_memory() {
    let model = load(&TinyGguf::model("llama")).unwrap();
    let text: Vec<u32> = (0..2 * FIRST_ROOM as u32 + 3).map(|i| i * 31 % 256).collect();
    let mut session = model.start(&[1, 2], 2, text.len()).unwrap();
    for token in &text {
        session.step(&[(0, *token), (1, 255 - token)]).unwrap();
    }
    let whole = [&[1, 2], &text[..]].concat();
    let expected = model.start(&whole, 1, 0).unwrap();
    check_near(row(&session, 0), expected.logits(), NEAR_ITSELF, "a long continuation");
    assert!(session.step(&[(0, 1)]).is_err(), "no more than its room");
}

#[test]
fn rows_of_a_text_are_those_of_its_steps() {
    let model = load(&TinyGguf::model("qwen3")).unwrap();
    let tokens = prompt();
    for from in [0, 31, 32, 33, 69] {
        let rows = model.rows(&tokens, from).unwrap();
        assert_eq!(rows.len(), tokens.len() - from);
        let start = model.start(&tokens[..=from], 1, tokens.len() - from).unwrap();
        check_near(start.logits(), &rows[0], NEAR_ITSELF, "the first");
        let last = model.start(&tokens, 1, 1).unwrap();
        check_near(last.logits(), rows.last().unwrap(), NEAR_ITSELF, "the last");
    }
}

#[test]
fn weights_of_every_format_are_those_of_candle() {
    let mut tiny = TinyGguf::model("llama");
    let values = |tiny: &TinyGguf, name: &str| {
        let tensor = &tiny.tensors.iter().find(|(n, _)| n == name).unwrap().1;
        tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (up, embeddings) = (values(&tiny, "blk.0.ffn_up.weight"), values(&tiny, "token_embd.weight"));
    use GgmlDType::{BF16, F16, F32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
    // Candle's own models multiply weights of sixteen bits as `f32`; here rows are rounded to their type, which moves what
    // rounding to bytes does to them in the other products.
    let exact = [F32, Q8_0, Q5_1, Q5_0, Q4_1, Q4_0].map(|format| (format, 0.01));
    for (format, tolerance) in exact.into_iter().chain([(F16, 0.03), (BF16, 0.06)]) {
        tiny.tensor("blk.0.ffn_up.weight", up.clone(), &[96, testing::WIDTH], format);
        tiny.tensor("token_embd.weight", embeddings.clone(), &[VOCABULARY, testing::WIDTH], format);
        let expected = reference("llama", &tiny, &prompt(), &[]).remove(0);
        let model = load(&tiny).unwrap();
        let session = model.start(&prompt(), 1, 1).unwrap();
        check_near(session.logits(), &expected, tolerance, &format!("{format:?}"));
    }
}

#[test]
fn misuse_is_an_error() {
    let model = load(&TinyGguf::model("llama")).unwrap();
    assert!(model.start(&[], 1, 1).is_err());
    assert!(model.start(&[999], 1, 1).is_err());
    assert!(model.start(&[1; 128], 1, 1).is_err(), "no room in the context");
    let mut session = model.start(&[1], 2, 1).unwrap();
    assert!(session.step(&[(0, 1), (1, 1), (1, 1)]).is_err(), "twice");
    session.step(&[(0, 1), (1, 1)]).unwrap();
    assert!(session.step(&[(0, 1)]).is_err(), "no room");
}

#[test]
fn overflow_in_the_model_is_an_error() {
    let mut tiny = TinyGguf::model("llama");
    let mut embeddings = vec![0.5; VOCABULARY * testing::WIDTH];
    embeddings[prompt()[7] as usize * testing::WIDTH + 5] = 3e38;
    tiny.tensor("token_embd.weight", embeddings, &[VOCABULARY, testing::WIDTH], GgmlDType::F32);
    let model = load(&tiny).unwrap();
    let mut session = model.start(&prompt(), 2, 1).unwrap();
    assert!(session.logits().iter().all(|logit| logit.is_nan()));
    session.step(&[(0, 1), (1, 2)]).unwrap();
    assert!(session.logits().iter().all(|logit| logit.is_nan()), "all that follows");
}

#[test]
fn damaged_files_are_refused_like_those_of_the_kernels() {
    let mut tiny = TinyGguf::model("llama");
    tiny.tensors.retain(|(name, _)| name != "blk.1.attn_k.weight");
    assert!(load(&tiny).unwrap_err().to_string().contains("\"blk.1.attn_k.weight\" is missing"));
    tiny.tensor("blk.1.attn_k.weight", vec![0.1; 64 * 64], &[64, 64], GgmlDType::Q8_0);
    assert!(load(&tiny).unwrap_err().to_string().contains("is [64, 64], expected [32, 64]"));
    tiny.set("general.architecture", Value::String("mamba".to_owned()));
    assert!(load(&tiny).unwrap_err().to_string().contains("supported: llama, qwen2, qwen3"));
}

fn family(path: &std::path::Path, quantize: Option<Format>, kv_type: DType) -> Model<Tensors> {
    let mut weights = Weights::open(path, 4096, quantize).unwrap();
    let settings = TensorSettings { kv_type, ..TensorSettings::for_tests() };
    Model::new(Tensors::load(&mut weights, &settings, &device()).unwrap())
}

/// Sixteen bits of weights, of what they are multiplied with, and of keys and values: each rounds by at most one part in
/// 2,048 (`f16`) or in 256 (`bf16`), and two layers of random weights magnify it.
#[test]
fn sixteen_bits_are_near_exact_products_of_the_same_weights() {
    let text = prompt();
    for name in FAMILIES {
        for (weights, kv_type, tolerance) in [
            (DType::F32, DType::F16, 0.003),
            (DType::F32, DType::BF16, 0.03),
            (DType::F16, DType::F32, 0.005),
            (DType::F16, DType::F16, 0.005),
            (DType::BF16, DType::F16, 0.04),
            (DType::BF16, DType::BF16, 0.04),
        ] {
            let folder = Family::new(name).folder(weights);
            let expected = family(folder.path(), Some(Format::F32), DType::F32).rows(&text, 0).unwrap();
            let model = family(folder.path(), None, kv_type);
            let what = format!("{name}, weights {weights:?}, keys and values {kv_type:?}");
            check_near(&model.rows(&text, 0).unwrap().concat(), &expected.concat(), tolerance, &what);
            // Token by token, beside another continuation.
            let mut session = model.start(&text[..60], 2, 10).unwrap();
            for (token, expected) in text[60..].iter().zip(&expected[60..]) {
                session.step(&[(0, 255 - token), (1, *token)]).unwrap();
                check_near(&session.logits()[VOCABULARY..], expected, tolerance, &what);
            }
        }
    }
}

#[test]
fn keys_and_values_of_sixteen_bits_take_half_the_memory() {
    let folder = Family::new("llama").folder(DType::F32);
    let bytes = |kv_type: DType| family(folder.path(), None, kv_type).with(|engine| engine.portion().bytes);
    assert_eq!(bytes(DType::F32), 2 * bytes(DType::F16));
    assert_eq!(bytes(DType::BF16), bytes(DType::F16));
}

#[test]
fn conversations_that_grow_are_shared_and_stay_in_few_segments() {
    let tiny = TinyGguf::model("qwen2");
    let (model, fresh) = (load(&tiny).unwrap(), load(&tiny).unwrap());
    let mut text = prompt()[..20].to_vec();
    for turn in 0..8 {
        fresh.with(Engine::reset);
        let session = model.start(&text, 1, 4).unwrap();
        let expected = fresh.start(&text, 1, 0).unwrap().logits().to_vec();
        check_near(session.logits(), &expected, NEAR_KERNELS, &format!("turn {turn}"));
        drop(session);
        let next: Vec<u32> = (0..11).map(|i| (i * 29 + turn * 7) % 256).collect();
        text.extend(next);
        let (found, parts) = model.with(|engine| {
            let (seq, found) = engine.begin(&text, text.len() - 1, 4).unwrap();
            let parts = engine.runs.iter().flatten().map(|run| run.path.parts().len()).max();
            engine.release(seq);
            (found, parts.unwrap())
        });
        assert_eq!(found, text.len() - 11, "turn {turn}: all but what was added");
        assert!(parts <= 3, "turn {turn}: {parts} segments");
    }
}

/// The rows of one session after some steps, beside those of another that takes part in the same ones.
fn tokens(step: u32, slot: usize) -> u32 {
    (step * 31 + 70 * u32::try_from(slot).unwrap()) % 256
}

#[test]
fn memory_that_ends_while_rows_are_taken_out_leaves_a_run_as_it_was() {
    let tiny = TinyGguf::model("llama");
    let batch = |step: u32, slots: &[usize]| -> Vec<(usize, u32)> {
        slots.iter().map(|slot| (*slot, tokens(step, *slot))).collect()
    };
    let undisturbed = load(&tiny).unwrap();
    let mut expected = undisturbed.start(&prompt(), 4, 8).unwrap();
    expected.step(&batch(0, &[0, 1, 2, 3])).unwrap();
    expected.step(&batch(1, &[0, 2, 3])).unwrap();
    expected.step(&batch(2, &[3, 0])).unwrap();
    // It has two layers: the first is done, the other is not.
    for made in [0, 1] {
        let model = load(&tiny).unwrap();
        let scarcity = model.with(|engine| engine.memory.form.scarcity.clone());
        let mut session = model.start(&prompt(), 4, 8).unwrap();
        session.step(&batch(0, &[0, 1, 2, 3])).unwrap();
        scarcity.after(Some(made));
        let error = session.step(&batch(1, &[0, 2, 3])).unwrap_err();
        assert!(matches!(&error, EngineError::Sequence { reason, .. } if reason.contains("as told")), "{error}");
        let taken = model.with(|engine| engine.memory.taken());
        scarcity.after(None);
        session.step(&batch(1, &[0, 2, 3])).unwrap();
        assert!(model.with(|engine| engine.memory.taken()) < taken, "the one that left is counted no more");
        session.step(&batch(2, &[3, 0])).unwrap();
        check_near(session.logits(), expected.logits(), NEAR_ITSELF, "after another attempt");
        drop(session);
        model.with(|engine| {
            while engine.kept.give_up_one(&mut engine.memory) {}
            assert_eq!(engine.memory.taken(), 0);
        });
    }
}

#[test]
fn memory_that_ends_for_one_run_ends_no_other() {
    let tiny = TinyGguf::model("llama");
    let model = load(&tiny).unwrap();
    let mut alone = model.start(&[9, 8, 7], 2, 100).unwrap();
    for step in 0..FIRST_ROOM as u32 + 2 {
        alone.step(&[(0, tokens(step, 0)), (1, tokens(step, 1))]).unwrap();
    }
    let expected = alone.logits().to_vec();
    drop(alone);
    model.with(|engine| {
        let mut begin = |prompt: &[u32]| {
            let (seq, found) = engine.begin(prompt, 0, 100).unwrap();
            engine.forward(&[Feed { seq, tokens: &prompt[found..], wants: Wants::Last }]).unwrap();
            seq
        };
        let (first, other) = (begin(&[9, 8, 7]), begin(&[1, 2]));
        let second = engine.fork(first).unwrap();
        let feed = |seq, token: &'static u32| Feed { seq, tokens: std::slice::from_ref(token), wants: Wants::Last };
        let all: Vec<u32> = (0..100).flat_map(|step| [tokens(step, 0), tokens(step, 1)]).collect();
        let all: &'static [u32] = all.leak();
        let at = |step: usize| [feed(first, &all[2 * step]), feed(second, &all[2 * step + 1])];
        // The other is one step ahead, and its memory is full before that of the first two.
        engine.forward(&[feed(other, &5)]).unwrap();
        for step in 0..FIRST_ROOM - 1 {
            let [a, b] = at(step);
            engine.forward(&[feed(other, &5), a, b]).unwrap();
        }
        let scarcity = engine.memory.form.scarcity.clone();
        let [a, b] = at(FIRST_ROOM - 1);
        for made in [0, 1] {
            scarcity.after(Some(made));
            let error = engine.forward(&[a, feed(other, &5), b]).unwrap_err();
            assert!(matches!(&error, EngineError::Sequence { seq, .. } if *seq == other), "{error}");
        }
        engine.release(other);
        engine.forward(&[a, b]).unwrap();
        scarcity.after(None);
        for step in FIRST_ROOM..FIRST_ROOM + 2 {
            engine.forward(&at(step)).unwrap();
        }
        check_near(engine.logits(), &expected, NEAR_ITSELF, "the others");
        [first, second].into_iter().for_each(|seq| engine.release(seq));
        while engine.kept.give_up_one(&mut engine.memory) {}
        assert_eq!(engine.memory.taken(), 0);
    });
}

#[test]
fn attention_in_pieces_is_attention_at_a_stretch() {
    let folders = FAMILIES.map(|name| (name, Family::new(name).folder(DType::F32)));
    for (name, folder) in folders {
        let whole = family(folder.path(), None, DType::F32);
        let expected = whole.rows(&prompt(), 30).unwrap();
        let mut grown = whole.start(&prompt(), 3, 4).unwrap();
        grown.step(&[(0, 1), (1, 2), (2, 3)]).unwrap();
        // One row at a time, and a few: masks are too large to be kept, and continuations do not fit together.
        for most in [1, 600] {
            let model = family(folder.path(), None, DType::F32);
            model.with(|engine| engine.most_scores = most);
            let rows = model.rows(&prompt(), 30).unwrap();
            check_near(&rows.concat(), &expected.concat(), NEAR_ITSELF, name);
            let mut session = model.start(&prompt(), 3, 4).unwrap();
            session.step(&[(0, 1), (1, 2), (2, 3)]).unwrap();
            check_near(session.logits(), grown.logits(), NEAR_ITSELF, name);
        }
    }
}
