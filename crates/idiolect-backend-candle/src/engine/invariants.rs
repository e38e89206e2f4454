//! What holds for every engine: each of these tests runs on all of them.

use std::collections::HashMap;

use candle_core::quantized::GgmlDType;

use super::checks::{Model, check_near, device, prompt};
use super::{Engine, EngineError, Feed, Portion, Seq, Settings, TensorSettings, Tensors, Transformer, Wants};
use crate::testing::{TinyGguf, VOCABULARY, WIDTH};
use crate::weights::Weights;

/// An engine under test.
trait Kind {
    type Engine: Engine;

    /// Of the logits' size: what another batch may change.
    const NEAR: f32;

    /// Loads a model with bounds in bytes.
    fn load(tiny: &TinyGguf, max_kv_bytes: u64, max_kept_bytes: u64) -> Self::Engine;

    /// As [`load`](Self::load), with plenty of memory.
    fn ample(tiny: &TinyGguf) -> Self::Engine {
        Self::load(tiny, 1 << 30, 1 << 20)
    }

    /// As [`load`](Self::load), with bounds in portions.
    fn tight(tiny: &TinyGguf, portions: u64, kept: u64) -> Self::Engine {
        let bytes = Self::ample(tiny).portion().bytes;
        Self::load(tiny, portions * bytes, kept * bytes)
    }

    fn check(got: &[f32], expected: &[f32], what: &str) {
        if Self::NEAR == 0.0 {
            assert_eq!(got, expected, "{what}");
        } else {
            check_near(got, expected, Self::NEAR, what);
        }
    }
}

struct OnKernels;

struct OnTensors;

impl Kind for OnKernels {
    type Engine = Transformer;
    const NEAR: f32 = 0.0;

    fn load(tiny: &TinyGguf, max_kv_bytes: u64, max_kept_bytes: u64) -> Transformer {
        let (_dir, path) = tiny.write();
        let settings = Settings { max_kv_bytes, max_kept_bytes, ..Settings::for_tests() };
        Transformer::load(&mut Weights::open(&path, 4096, None).unwrap(), &settings).unwrap()
    }
}

impl Kind for OnTensors {
    type Engine = Tensors;
    const NEAR: f32 = 1e-3;

    fn load(tiny: &TinyGguf, max_kv_bytes: u64, max_kept_bytes: u64) -> Tensors {
        let (_dir, path) = tiny.write();
        let settings = TensorSettings { max_kv_bytes, max_kept_bytes, ..TensorSettings::for_tests() };
        Tensors::load(&mut Weights::open(&path, 4096, None).unwrap(), &settings, &device()).unwrap()
    }
}

macro_rules! on_every_engine {
    ($($name:ident,)*) => {
        mod kernels {
            $(#[test] fn $name() { super::$name::<super::OnKernels>() })*
        }
        mod tensors {
            $(#[test] fn $name() { super::$name::<super::OnTensors>() })*
        }
    };
}

on_every_engine![
    forks_share_their_prompt,
    what_is_released_is_free,
    runs_grow_together_as_each_would_alone,
    rows_come_in_the_order_of_the_feeds,
    prompts_share_what_they_begin_with,
    prompts_at_work_are_shared,
    nothing_is_kept_where_nothing_may_be,
    misuse_is_an_error_and_harms_nobody,
    errors_and_resets_leak_nothing,
    what_is_no_number_shows_in_its_own_rows_only,
    whoever_reserved_memory_finds_it,
];

fn tiny() -> TinyGguf {
    // Exact products: how a row is rounded for quantised ones may turn on its last bit.
    let mut tiny = TinyGguf::model("qwen3");
    let names: Vec<String> = tiny.tensors.iter().map(|(name, _)| name.clone()).collect();
    for name in names {
        let (_, tensor) = tiny.tensors.iter().find(|(of, _)| *of == name).unwrap();
        let shape = tensor.shape().dims().to_vec();
        let values = tensor.dequantize(&candle_core::Device::Cpu).unwrap().flatten_all().unwrap();
        tiny.tensor(&name, values.to_vec1().unwrap(), &shape, GgmlDType::F32);
    }
    tiny
}

/// The portions that candidates of `room` tokens after a prompt can come to need.
fn reserve(portion: Portion, prompt: usize, room: usize, n: usize) -> u64 {
    let (shared, rest) = (prompt / portion.tokens, prompt % portion.tokens);
    (shared + n * (rest + room).div_ceil(portion.tokens)) as u64
}

fn feed<'a>(seq: Seq, tokens: &'a [u32], wants: Wants) -> Feed<'a> {
    Feed { seq, tokens, wants }
}

/// Computes a prompt from where it is not known yet.
fn begin(engine: &mut impl Engine, text: &[u32], room: usize) -> Result<(Seq, usize), EngineError> {
    let (seq, found) = engine.begin(text, text.len() - 1, room)?;
    engine.forward(&[feed(seq, &text[found..], Wants::Last)])?;
    Ok((seq, found))
}

/// Appends a token to each sequence.
fn step(engine: &mut impl Engine, seqs: &[Seq], tokens: &[u32]) -> Result<Vec<Vec<f32>>, EngineError> {
    let each = seqs.iter().zip(tokens);
    let feeds: Vec<Feed<'_>> = each.map(|(seq, token)| feed(*seq, std::slice::from_ref(token), Wants::Last)).collect();
    engine.forward(&feeds)?;
    Ok(rows(engine))
}

fn rows(engine: &impl Engine) -> Vec<Vec<f32>> {
    engine.logits().chunks_exact(VOCABULARY).map(<[f32]>::to_vec).collect()
}

/// Logits after whole texts, each computed on its own by an engine that keeps nothing.
struct Expected<K: Kind> {
    model: Model<K::Engine>,
    known: HashMap<Vec<u32>, Vec<f32>>,
}

impl<K: Kind> Expected<K> {
    fn new(tiny: &TinyGguf) -> Self {
        Self { model: Model::new(K::load(tiny, 1 << 30, 0)), known: HashMap::new() }
    }

    fn of(&mut self, text: &[u32]) -> &[f32] {
        let Self { model, known } = self;
        known.entry(text.to_vec()).or_insert_with(|| model.start(text, 1, 0).unwrap().logits().to_vec())
    }
}

fn forks_share_their_prompt<K: Kind>() {
    let (tiny, text) = (tiny(), prompt());
    let mut expected = Expected::<K>::new(&tiny);
    let n = 8;
    let most = reserve(K::ample(&tiny).portion(), text.len(), 20, n);
    let mut engine = K::tight(&tiny, most, 0);
    let (first, _) = begin(&mut engine, &text, 20).unwrap();
    let mut seqs = vec![first];
    seqs.extend((1..n).map(|_| engine.fork(first).unwrap()));
    let mut texts = vec![text; n];
    for round in 0..20 {
        let tokens: Vec<u32> = (0..n as u32).map(|i| (i * 29 + round * 7) % 256).collect();
        let rows = step(&mut engine, &seqs, &tokens).unwrap();
        texts.iter_mut().zip(&tokens).for_each(|(text, token)| text.push(*token));
        if round % 9 == 0 {
            for (row, text) in rows.iter().zip(&texts) {
                K::check(row, expected.of(text), "a fork");
            }
        }
    }
}

fn what_is_released_is_free<K: Kind>() {
    let tiny = tiny();
    let most = reserve(K::ample(&tiny).portion(), 70, 16, 3);
    let mut engine = K::tight(&tiny, most, most / 2);
    for round in 0..20u32 {
        let text: Vec<u32> = (0..70).map(|i| (i * 37 + round) % 256).collect();
        let (first, _) = begin(&mut engine, &text, 16).unwrap();
        let seqs = [first, engine.fork(first).unwrap(), engine.fork(first).unwrap()];
        for token in 0..16 {
            // One leaves early, so that the others might have its room.
            let growing = if token < 5 { &seqs[..] } else { &seqs[1..] };
            step(&mut engine, growing, &vec![token; growing.len()]).unwrap();
            if token == 4 {
                engine.release(first);
            }
        }
        assert!(begin(&mut engine, &vec![9; 70], 16).is_err(), "no room for another");
        seqs[1..].iter().for_each(|seq| engine.release(*seq));
    }
    assert!(engine.kept_tokens() > 0);
}

fn runs_grow_together_as_each_would_alone<K: Kind>() {
    let tiny = tiny();
    let mut expected = Expected::<K>::new(&tiny);
    let mut engine = K::load(&tiny, 1 << 30, 0);
    // Prompts of different lengths, in stretches of different lengths, beside continuations of those that are done.
    let mut texts: Vec<Vec<u32>> = (0..5).map(|i| (0..30 + 9 * i).map(|j| (i * 71 + j * 37) % 256).collect()).collect();
    let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    let mut seqs: Vec<Vec<Seq>> = texts.iter().map(|text| vec![engine.begin(text, 0, 9).unwrap().0]).collect();
    let mut done = vec![0; texts.len()];
    let mut grown: Vec<Vec<Vec<u32>>> = vec![Vec::new(); texts.len()];
    for round in 0..24 {
        let mut work: Vec<(usize, usize, Seq, Vec<u32>, Wants)> = Vec::new();
        for i in 0..texts.len() {
            if done[i] < lengths[i] {
                let n = [1, 7, 16, 1, 33][(i + round) % 5].min(lengths[i] - done[i]);
                let wants = if done[i] + n == lengths[i] { Wants::Last } else { Wants::Nothing };
                if (i + round) % 3 != 0 {
                    work.push((i, 0, seqs[i][0], texts[i][done[i]..done[i] + n].to_vec(), wants));
                    done[i] += n;
                }
            } else {
                if seqs[i].len() == 1 {
                    let fork = engine.fork(seqs[i][0]).unwrap();
                    seqs[i].push(fork);
                    grown[i] = vec![texts[i].clone(); 2];
                }
                for (which, seq) in seqs[i].iter().enumerate() {
                    if grown[i][which].len() < lengths[i] + 9 {
                        let token = ((i * 13 + which * 101 + round * 17) % 256) as u32;
                        grown[i][which].push(token);
                        work.push((i, which, *seq, vec![token], Wants::Last));
                    }
                }
            }
        }
        let feeds: Vec<Feed<'_>> = work.iter().map(|(_, _, seq, tokens, wants)| feed(*seq, tokens, *wants)).collect();
        engine.forward(&feeds).unwrap();
        let mut rows = engine.logits().chunks_exact(VOCABULARY);
        for (i, which, _, _, _) in work.iter().filter(|(.., wants)| *wants == Wants::Last) {
            let text = if grown[*i].is_empty() { &texts[*i] } else { &grown[*i][*which] };
            K::check(rows.next().unwrap(), expected.of(text), "a row beside others");
        }
        assert!(rows.next().is_none());
    }
    assert!(grown.iter_mut().zip(&lengths).all(|(grown, len)| grown.iter().all(|text| text.len() > len + 3)));
    texts.clear();
}

fn rows_come_in_the_order_of_the_feeds<K: Kind>() {
    let tiny = tiny();
    let mut expected = Expected::<K>::new(&tiny);
    let mut engine = K::load(&tiny, 1 << 30, 0);
    let (a, b, c) = (prompt(), vec![3; 20], vec![7; 33]);
    let (first, _) = begin(&mut engine, &a, 4).unwrap();
    let second = engine.fork(first).unwrap();
    let (third, _) = engine.begin(&b, 0, 0).unwrap();
    let (fourth, _) = engine.begin(&c, 0, 0).unwrap();
    engine
        .forward(&[
            feed(second, &[5], Wants::Last),
            feed(third, &b[..18], Wants::Nothing),
            feed(fourth, &c[..30], Wants::Last),
            feed(first, &[6], Wants::Last),
        ])
        .unwrap();
    let got = rows(&engine);
    let after = |text: &[u32], token: u32| [text, &[token]].concat();
    for (row, text) in got.iter().zip([after(&a, 5), c[..30].to_vec(), after(&a, 6)]) {
        K::check(row, expected.of(&text), "a row");
    }
    assert_eq!(got.len(), 3);
    engine
        .forward(&[
            feed(fourth, &c[30..], Wants::All),
            feed(first, &[8], Wants::Nothing),
            feed(third, &b[18..], Wants::All),
            feed(second, &[9], Wants::Last),
        ])
        .unwrap();
    let got = rows(&engine);
    let texts = [c[..31].to_vec(), c[..32].to_vec(), c[..].to_vec(), b[..19].to_vec(), b[..].to_vec()];
    for (row, text) in got.iter().zip(texts.into_iter().chain([[&a[..], &[5, 9]].concat()])) {
        K::check(row, expected.of(&text), "a row of a stretch");
    }
    assert_eq!(got.len(), 6);
    engine.forward(&[feed(first, &[1], Wants::Nothing), feed(second, &[1], Wants::Nothing)]).unwrap();
    assert!(engine.logits().is_empty());
    engine.forward(&[]).unwrap();
    assert!(engine.logits().is_empty());
}

fn prompts_share_what_they_begin_with<K: Kind>() {
    let tiny = tiny();
    let mut expected = Expected::<K>::new(&tiny);
    let mut engine = K::ample(&tiny);
    let (text, mut other) = (prompt(), prompt());
    other[40] += 1;
    let longer = [&text[..], &[1, 2, 3, 4]].concat();
    for (text, least, most) in
        [(&text, 0, 0), (&text, 64, 69), (&other, 32, 40), (&longer, 64, 70), (&text, 64, 69), (&other, 64, 69)]
    {
        let (seq, found) = begin(&mut engine, text, 4).unwrap();
        assert!((least..=most).contains(&found), "{found}, expected {least} to {most}");
        K::check(engine.logits(), expected.of(text), "from what was kept");
        let fork = engine.fork(seq).unwrap();
        let rows = step(&mut engine, &[seq, fork], &[5, 6]).unwrap();
        for (row, token) in rows.iter().zip([5, 6]) {
            K::check(row, expected.of(&[&text[..], &[token]].concat()), "a continuation of what was kept");
        }
        engine.release(seq);
        engine.release(fork);
    }
    let kept = engine.kept_tokens();
    assert!((96..=120).contains(&kept), "{kept} tokens of 74 and 30 more");
    let (seq, found) = engine.begin(&text, 20, 0).unwrap();
    assert!((16..=20).contains(&found), "{found}: no more than is known");
    engine.release(seq);
    let (seq, found) = engine.begin(&text[..10], 9, 0).unwrap();
    assert_eq!(found, 0, "too little to be worth it");
    engine.release(seq);
    engine.reset();
    assert_eq!(engine.kept_tokens(), 0);
    let (_, found) = begin(&mut engine, &text, 4).unwrap();
    assert_eq!(found, 0);
    K::check(engine.logits(), expected.of(&text), "after a reset");
}

fn prompts_at_work_are_shared<K: Kind>() {
    let tiny = tiny();
    let mut expected = Expected::<K>::new(&tiny);
    let mut engine = K::ample(&tiny);
    let text = prompt();
    let mut other = text.clone();
    other[60] += 1;
    let (first, _) = engine.begin(&text, 0, 8).unwrap();
    engine.forward(&[feed(first, &text[..48], Wants::Nothing)]).unwrap();
    let (second, found) = engine.begin(&other, 69, 8).unwrap();
    assert_eq!(found, 48, "what is there of the first");
    engine.forward(&[feed(first, &text[48..], Wants::Last), feed(second, &other[48..], Wants::Last)]).unwrap();
    let got = rows(&engine);
    K::check(&got[0], expected.of(&text), "the first");
    K::check(&got[1], expected.of(&other), "the second");
    let (third, found) = begin(&mut engine, &other, 8).unwrap();
    assert!((64..=69).contains(&found), "{found}");
    K::check(engine.logits(), expected.of(&other), "the third");
    // Whoever shares does not mind who ends.
    engine.release(first);
    engine.release(third);
    let rows = step(&mut engine, &[second], &[77]).unwrap();
    K::check(&rows[0], expected.of(&[&other[..], &[77]].concat()), "the one that stayed");
    // Nor does a prompt that ended before all of it was computed harm those that begin like it.
    let half = [&text[..32], &[9; 40]].concat();
    let (fourth, found) = engine.begin(&half, 71, 8).unwrap();
    assert_eq!(found, 32);
    engine.forward(&[feed(fourth, &half[32..50], Wants::Nothing)]).unwrap();
    engine.release(fourth);
    let (_, found) = begin(&mut engine, &half, 8).unwrap();
    assert!((48..=50).contains(&found), "{found}");
    K::check(engine.logits(), expected.of(&half), "the rest of it");
}

fn nothing_is_kept_where_nothing_may_be<K: Kind>() {
    let mut engine = K::tight(&tiny(), 64, 0);
    let text = vec![5; 20];
    let (seq, _) = begin(&mut engine, &text, 4).unwrap();
    engine.release(seq);
    assert_eq!(engine.kept_tokens(), 0);
    assert_eq!(engine.begin(&text, 19, 4).unwrap().1, 0);
}

fn misuse_is_an_error_and_harms_nobody<K: Kind>() {
    let tiny = tiny();
    let mut expected = Expected::<K>::new(&tiny);
    let mut engine = K::ample(&tiny);
    assert!(engine.begin(&[], 0, 1).is_err(), "no tokens");
    assert!(engine.begin(&[1; 128], 0, 1).is_err(), "no room in the context");
    assert!(engine.begin(&[1], 0, usize::MAX).is_err());
    let text = prompt();
    let (seq, _) = begin(&mut engine, &text, 8).unwrap();
    let (other, _) = engine.begin(&[4; 20], 0, 8).unwrap();
    let unknown = Seq(77);
    assert!(engine.fork(unknown).is_err());
    assert!(engine.forward(&[feed(unknown, &[1], Wants::Last)]).is_err());
    assert!(engine.forward(&[feed(seq, &[1], Wants::Last), feed(seq, &[2], Wants::Last)]).is_err(), "twice");
    assert!(engine.forward(&[feed(seq, &[999], Wants::Last)]).is_err(), "beyond the vocabulary");
    assert!(engine.forward(&[feed(other, &[], Wants::Last)]).is_err(), "no token");
    assert!(engine.forward(&[feed(other, &[4, 4, 300], Wants::Last)]).is_err());
    engine.release(unknown);
    engine.release(other);
    engine.release(other);
    assert!(engine.forward(&[feed(other, &[4], Wants::Last)]).is_err(), "released");
    assert!(engine.fork(other).is_err());
    let rows = step(&mut engine, &[seq], &[3]).unwrap();
    K::check(&rows[0], expected.of(&[&text[..], &[3]].concat()), "the one that did nothing wrong");
}

fn errors_and_resets_leak_nothing<K: Kind>() {
    let tiny = tiny();
    let portion = K::ample(&tiny).portion();
    let most = reserve(portion, 64, 16, 2);
    let mut engine = K::tight(&tiny, most, most);
    let all = |engine: &mut K::Engine, token: u32| {
        let text: Vec<u32> = (0..64).map(|i| i + token).collect();
        let (first, _) = begin(engine, &text, 16).unwrap();
        let seqs = [first, engine.fork(first).unwrap()];
        for token in 0..16 {
            step(engine, &seqs, &[token, token + 1]).unwrap();
        }
        seqs
    };
    for round in 0..4 {
        let seqs = all(&mut engine, round);
        for _ in 0..50 {
            let more = engine.begin(&[1; 64], 63, 16);
            if let Ok((seq, _)) = more {
                assert!(engine.forward(&[feed(seq, &[1; 64], Wants::Last)]).is_err(), "all is taken");
                engine.release(seq);
            }
            assert!(engine.forward(&[feed(seqs[0], &[999], Wants::Last), feed(seqs[1], &[1], Wants::Last)]).is_err());
        }
        if round % 2 == 0 {
            seqs.iter().for_each(|seq| engine.release(*seq));
        } else {
            engine.reset();
            assert_eq!(engine.kept_tokens(), 0);
        }
    }
    all(&mut engine, 9);
}

fn what_is_no_number_shows_in_its_own_rows_only<K: Kind>() {
    let mut tiny = tiny();
    // One token of the vocabulary runs over in the first layer.
    let name = "token_embd.weight";
    let values = tiny.tensors.iter().find(|(of, _)| of == name).unwrap().1.dequantize(&candle_core::Device::Cpu);
    let mut values: Vec<f32> = values.unwrap().flatten_all().unwrap().to_vec1().unwrap();
    values[200 * WIDTH..201 * WIDTH].fill(3e38);
    tiny.tensor(name, values, &[VOCABULARY, WIDTH], GgmlDType::F32);
    tiny.tensor("output.weight", vec![0.01; VOCABULARY * WIDTH], &[VOCABULARY, WIDTH], GgmlDType::F32);
    tiny.tensor("output_norm.weight", vec![10.0; WIDTH], &[WIDTH], GgmlDType::F32);
    let mut engine = K::ample(&tiny);
    let (bad, _) = engine.begin(&[1, 2, 200], 0, 4).unwrap();
    let (good, _) = engine.begin(&[1, 2, 3], 0, 4).unwrap();
    let wants = Wants::Last;
    engine.forward(&[feed(bad, &[1, 2, 200], wants), feed(good, &[1, 2, 3], wants)]).unwrap();
    let shows =
        |engine: &K::Engine| rows(engine).iter().map(|row| row.iter().any(|v| !v.is_finite())).collect::<Vec<_>>();
    assert_eq!(shows(&engine), [true, false]);
    step(&mut engine, &[good], &[200]).unwrap();
    assert_eq!(shows(&engine), [true]);
}

/// What a sequence grows by; the text that it has then, if its logits are wanted.
struct Piece {
    seq: Seq,
    tokens: Vec<u32>,
    wants: Wants,
    text: Option<Vec<u32>>,
}

/// A request as the worker has it.
struct Request {
    text: Vec<u32>,
    done: usize,
    room: usize,
    seqs: Vec<Seq>,
    grown: Vec<Vec<u32>>,
    n: usize,
}

fn whoever_reserved_memory_finds_it<K: Kind>() {
    let tiny = tiny();
    let mut expected = Expected::<K>::new(&tiny);
    let portion = K::ample(&tiny).portion();
    let most = 320 / portion.tokens as u64 + 8;
    for kept in [0, most / 3, most] {
        let mut engine = K::tight(&tiny, most, kept);
        let mut state = 7 + kept;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut requests: Vec<Request> = Vec::new();
        let mut shared = 0;
        for round in 0..250 {
            // Somebody comes, if there is room for it.
            let len = 1 + random(100);
            let common = random(len + 1);
            let text: Vec<u32> =
                (0..len).map(|i| if i < common { i * 3 % 256 } else { random(4) }).map(|i| i as u32).collect();
            let (room, n) = (1 + random(27), 1 + random(4));
            let needs = |prompt: usize, room: usize, n: usize| reserve(portion, prompt, room, n);
            let reserved: u64 =
                requests.iter().map(|r| needs(r.text.len(), r.room, if r.n > 0 { r.n } else { r.seqs.len() })).sum();
            if reserved + needs(len, room, n) <= most {
                let (seq, found) = engine.begin(&text, len - 1, room).unwrap();
                assert!(found < len);
                shared += found;
                requests.push(Request { text, done: found, room, seqs: vec![seq], grown: Vec::new(), n });
            }
            // All grow by one token, and prompts by a stretch.
            let mut work: Vec<Piece> = Vec::new();
            for request in &mut requests {
                if request.done < request.text.len() {
                    let n = (1 + random(40)).min(request.text.len() - request.done);
                    let tokens = request.text[request.done..request.done + n].to_vec();
                    request.done += n;
                    let is_done = request.done == request.text.len();
                    let wants = if is_done { Wants::Last } else { Wants::Nothing };
                    let text = is_done.then(|| request.text.clone());
                    work.push(Piece { seq: request.seqs[0], tokens, wants, text });
                    continue;
                }
                if request.n > 0 {
                    for _ in 1..std::mem::take(&mut request.n) {
                        request.seqs.push(engine.fork(request.seqs[0]).unwrap());
                    }
                    request.grown = vec![request.text.clone(); request.seqs.len()];
                }
                for (seq, grown) in request.seqs.iter().zip(&mut request.grown) {
                    grown.push(random(256) as u32);
                    let token = vec![grown[grown.len() - 1]];
                    work.push(Piece { seq: *seq, tokens: token, wants: Wants::Last, text: Some(grown.clone()) });
                }
            }
            let feeds: Vec<Feed<'_>> = work.iter().map(|piece| feed(piece.seq, &piece.tokens, piece.wants)).collect();
            engine.forward(&feeds).unwrap();
            let mut got = engine.logits().chunks_exact(VOCABULARY);
            for text in work.iter().filter_map(|piece| piece.text.as_ref()) {
                let row = got.next().unwrap();
                if round % 10 == 0 {
                    K::check(row, expected.of(text), "a row among many");
                }
            }
            // Some end: those that are full, and some of the others; now and then a whole request.
            requests.retain_mut(|request| {
                let is_full = request.grown.first().is_some_and(|text| text.len() == request.text.len() + request.room);
                let gone = is_full || random(40) == 0;
                let mut i = 0;
                while i < request.seqs.len() {
                    if gone || (!request.grown.is_empty() && random(12) == 0) {
                        engine.release(request.seqs.swap_remove(i));
                        if !request.grown.is_empty() {
                            request.grown.swap_remove(i);
                        }
                    } else {
                        i += 1;
                    }
                }
                !request.seqs.is_empty()
            });
            assert!(engine.kept_tokens() as u64 <= kept * portion.tokens as u64);
        }
        assert!(kept == 0 || shared > 0, "prompts that begin alike");
        requests.iter().flat_map(|request| &request.seqs).for_each(|seq| engine.release(*seq));
        // In the end all of it is there for one.
        let room = most as usize * portion.tokens - 16;
        let (seq, _) = begin(&mut engine, &[8; 16], room.min(100)).unwrap();
        engine.release(seq);
    }
}
