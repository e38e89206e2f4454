//! Exact search of a full history for one reply and for several together, beside what reading it from memory costs.
//!
//!     cargo bench -p idiolect-uniqueness
//!
//! One thread. The reading is a sum of the bytes of the same rows as they are stored; both are the quickest of twenty. Estimates
//! of the rows may stay in the processor's caches from one search to the next, so a search after 256 MiB of other data were
//! read is shown, too. Rows are far from each other, or fifty each near to one of three hundred topics, as replies to a prompt are.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use idiolect_uniqueness::vectors::Vectors;

/// What the validators keep, and what of it they never compare with.
const ROWS: usize = 15_500;
const SKIP: usize = 500;

/// Numbers that look random and are the same each time.
fn row(i: usize, dimensions: usize) -> Vec<f32> {
    (0..dimensions).map(|j| ((i * dimensions + j) as f32 * 0.618_034).fract() - 0.5).collect()
}

/// One of many rows of few topics; those of a topic have a cosine of about 0.75.
fn topical(i: usize, dimensions: usize) -> Vec<f32> {
    let noise = |seed: usize| {
        (0..dimensions).map(move |j| {
            let mixed = ((seed * dimensions + j) as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 40) as f32 / 16_777_216.0 - 0.5
        })
    };
    let row = noise(i).zip(noise(ROWS * 2 + i % 300)).map(|(mine, shared)| mine + 1.7 * shared);
    row.collect()
}

fn time(work: impl FnMut()) -> Duration {
    time_after(|| (), work)
}

fn time_after(mut before: impl FnMut(), mut work: impl FnMut()) -> Duration {
    work();
    (0..20)
        .map(|_| {
            before();
            let began = Instant::now();
            work();
            began.elapsed()
        })
        .min()
        .unwrap_or_default()
}

fn main() {
    type Row = fn(usize, usize) -> Vec<f32>;
    let kinds: [(&str, Row, usize, usize); 4] =
        [("far", row, 384, SKIP), ("far", row, 768, SKIP), ("far", row, 768, 0), ("of 300 topics", topical, 768, SKIP)];
    let other = vec![1_u64; 32 << 20];
    for (kind, row, dimensions, skip) in kinds {
        let mut vectors = Vectors::new(dimensions);
        for i in 0..ROWS {
            vectors.push(&row(i, dimensions));
        }
        let read = time(|| {
            let sum = |row: &[f32]| row.iter().fold(0, |sum: u32, v| sum.wrapping_add(v.to_bits()));
            black_box(vectors.rows().skip(skip).map(sum).fold(0, u32::wrapping_add));
        });
        let bytes = (4 * (ROWS - skip) * dimensions) as f64;
        println!(
            "{} x {dimensions}, {kind}: a reading takes {read:.2?}, {:.1} GB/s",
            ROWS - skip,
            bytes / read.as_secs_f64() / 1e9
        );
        let query = [row(ROWS, dimensions)];
        let evict = || _ = black_box(black_box(&other).iter().fold(0, |sum: u64, v| sum.wrapping_add(*v)));
        let search = time_after(evict, || drop(black_box(vectors.nearest_of_each(black_box(&query), 2, skip))));
        let ratio = search.as_secs_f64() / read.as_secs_f64();
        println!("   1 reply, after other data: {search:7.2?}, {ratio:.2} times a reading");
        for n in [1, 2, 4, 8, 16, 50] {
            let queries: Vec<Vec<f32>> = (0..n).map(|i| row(ROWS + i, dimensions)).collect();
            let search = time(|| drop(black_box(vectors.nearest_of_each(black_box(&queries), 2, skip))));
            let flops = 2.0 * bytes / 4.0 * n as f64 / search.as_secs_f64() / 1e9;
            let ratio = search.as_secs_f64() / read.as_secs_f64();
            println!(
                "  {n:2} replies: {search:7.2?}, {:7.2?} each, {ratio:.2} times a reading, {flops:.1} GFLOP/s",
                search / u32::try_from(n).unwrap_or(1)
            );
        }
    }
}
