//! Exact search of a full history, beside what reading it from memory costs.
//!
//!     cargo bench -p idiolect-uniqueness
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use idiolect_uniqueness::vectors::Vectors;

const ROWS: usize = 15_000;

/// Numbers that look random and are the same each time.
fn row(i: usize, dimensions: usize) -> Vec<f32> {
    (0..dimensions).map(|j| ((i * dimensions + j) as f32 * 0.618_034).fract() - 0.5).collect()
}

fn time(mut work: impl FnMut()) -> Duration {
    work();
    (0..20)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed()
        })
        .min()
        .unwrap_or_default()
}

fn main() {
    for dimensions in [384, 768] {
        let mut vectors = Vectors::new(dimensions);
        for i in 0..ROWS {
            vectors.push(&row(i, dimensions));
        }
        let query = row(ROWS, dimensions);
        let search = time(|| drop(black_box(vectors.nearest(black_box(&query), 2, 500))));
        let read = time(|| {
            black_box(vectors.rows().map(|row| row.iter().fold(0, |sum, v| sum ^ v.to_bits())).fold(0, |a, b| a ^ b));
        });
        let flops = 2.0 * (ROWS - 500) as f64 * dimensions as f64 / search.as_secs_f64() / 1e9;
        let ratio = search.as_secs_f64() / read.as_secs_f64();
        println!(
            "{ROWS} x {dimensions}: {search:.2?} a search, {flops:.1} GFLOP/s, {ratio:.2} times a read of the same bytes"
        );
    }
}
