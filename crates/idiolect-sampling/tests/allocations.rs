//! A warm sampler draws without asking for memory.

#![cfg(feature = "sampler")]
#![expect(unsafe_code, reason = "an allocator that counts, to see that nothing is asked of it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use idiolect_sampling::{
    Ban, Chain, Dry, LogitBias, Mirostat, MirostatVersion, Preset, Sampler, Scope, Stage, Stream, Temperature, TopK,
    TopNSigma, TopP, Typical, Vocabulary, Xtc,
};

/// The system's allocator; counts what each thread asks for.
struct Counting;

thread_local! {
    static N: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    N.with(|n| n.set(n.get() + 1));
}

// SAFETY: everything is the system's allocator's; a counter without a destructor allocates nothing itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const VOCABULARY: usize = 5000;

/// Rows that fall off as a model's logits do, with other tokens in front in each.
fn rows() -> Vec<Vec<f32>> {
    let mut state = 1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..16).map(|_| (0..VOCABULARY).map(|_| -2.5 * (random() + 1e-4).ln() + random()).collect()).collect()
}

/// Draws until warm and returns how often memory was asked for in as many draws more.
fn allocations(stages: &[Stage], n_top: usize) -> usize {
    let rows = rows();
    let texts = (0..VOCABULARY).map(|token| format!(" {token:x}"));
    let vocabulary = Arc::new(Vocabulary::new(texts, &[0]));
    let chain = Arc::new(Chain::new(stages, Some(&vocabulary)).unwrap());
    let prompt: Vec<u32> = (0..300).map(|i| i * 7 % 83).collect();
    // Mirostat takes this long to find how much it leaves.
    let (warm, draws) = (20 * rows.len(), 600);
    let mut sampler = Sampler::new(&chain, Stream { seed: 3, request: 0, candidate: 1 }, &prompt)
        .with_min_tokens(20, &[0])
        .with_top_logprobs(n_top)
        .with_room(warm + draws);
    let mut draw = |i: usize| sampler.draw(&rows[i % rows.len()], &[1, 2]).unwrap();
    for i in 0..warm {
        std::hint::black_box(draw(i).token);
    }
    let before = N.get();
    for i in 0..draws {
        std::hint::black_box(draw(i).token);
    }
    N.get() - before
}

fn heat(temperature: f32) -> Stage {
    Stage::Temperature(Temperature { temperature, ..Temperature::default() })
}

/// All of a preset's stages that a request may ask for at once.
fn full(preset: Preset) -> Vec<Stage> {
    let mut stages = preset.stages();
    for stage in [
        Stage::LogitBias(LogitBias { bias: [(5, 1.0), (9, -100.0)].into() }),
        Stage::Ban(Ban { tokens: vec![11], phrases: vec![" 1f 2".into(), " 3".into()] }),
        preset.repetition(1.1),
        preset.frequency_presence(0.2, 0.1),
        Stage::Dry(Dry { multiplier: 0.8, scope: Scope::All, ..Dry::default() }),
        Stage::TopNSigma(TopNSigma { n: 3.0 }),
        Stage::TopK(TopK { k: 200 }),
        Stage::Typical(Typical { p: 0.98 }),
        Stage::TopP(TopP { p: 0.95 }),
        preset.min_p(0.01),
        Stage::Xtc(Xtc { probability: 0.3, threshold: 0.1 }),
        heat(0.9),
    ] {
        preset.place(&mut stages, stage);
    }
    stages
}

#[test]
fn greedy_draws_allocate_nothing() {
    assert_eq!(allocations(&[heat(0.0)], 0), 0);
    assert_eq!(allocations(&[Preset::LlamaCpp.repetition(1.1), Stage::Greedy {}], 0), 0);
    assert_eq!(allocations(&[heat(0.0)], 5), 0, "with alternatives");
}

#[test]
fn truncations_allocate_nothing() {
    assert_eq!(allocations(&[heat(0.8), Stage::TopP(TopP { p: 0.95 })], 0), 0);
    assert_eq!(allocations(&[Stage::TopP(TopP { p: 0.95 }), heat(0.8)], 5), 0);
    assert_eq!(allocations(&[Stage::TopK(TopK { k: 40 }), heat(1.0)], 0), 0);
    assert_eq!(allocations(&[Stage::Typical(Typical { p: 0.9 })], 0), 0);
    let range = Temperature { temperature: 1.0, range: 0.5, ..Temperature::default() };
    assert_eq!(allocations(&[Stage::Temperature(range)], 0), 0);
    for version in [MirostatVersion::V1, MirostatVersion::V2] {
        assert_eq!(allocations(&[Stage::Mirostat(Mirostat { version, ..Mirostat::default() })], 0), 0, "{version:?}");
    }
}

#[test]
fn presets_with_penalties_allocate_nothing() {
    for preset in Preset::ALL {
        assert_eq!(allocations(&preset.stages(), 0), 0, "{preset:?} as it is");
        assert_eq!(allocations(&full(preset), 3), 0, "{preset:?} with everything");
    }
}
