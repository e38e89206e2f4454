//! Measures quantised matrix products: billions of multiply-adds a second for each format, shape and batch.
//!
//! `cargo run --release -p idiolect-kernels --example products -- [--tier T] [--threads N] [--formats a,b] [--n 1,8]
//! [--shapes ROWSxCOLS,...] [--ms 200] [--copies 1]`

#![allow(clippy::print_stdout, reason = "a report on the terminal")]

use std::time::{Duration, Instant};

use idiolect_kernels::{Activations, Format, Matrix, Team, Tier};

/// Windows of time in a measurement.
const WINDOWS: u32 = 10;

fn main() {
    let mut tier = Tier::detect();
    let mut threads = 1;
    let mut most_copies = 64;
    let mut formats = vec![Format::Q4_0, Format::Q4_1, Format::Q8_0, Format::Q4K, Format::Q6K, Format::F32];
    let mut batches = vec![1, 4, 8, 16, 512];
    let mut shapes = vec![(576, 576), (1536, 576), (576, 1536), (49152, 576), (2048, 2048), (8192, 2048)];
    let mut time = Duration::from_millis(200);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().expect("every option has a value");
        match name.as_str() {
            "--tier" => tier = value.parse().expect("a tier"),
            "--copies" => most_copies = value.parse().expect("a number"),
            "--threads" => threads = value.parse().expect("a number"),
            "--ms" => time = Duration::from_millis(value.parse().expect("a number")),
            "--n" => batches = value.split(',').map(|n| n.parse().expect("a number")).collect(),
            "--formats" => {
                let named =
                    |name: &str| Format::ALL.into_iter().find(|format| format.to_string().eq_ignore_ascii_case(name));
                formats = value.split(',').map(|name| named(name).expect("a format")).collect();
            }
            "--shapes" => {
                let shape = |shape: &str| {
                    let (rows, cols) = shape.split_once('x').expect("ROWSxCOLS");
                    (rows.parse().expect("a number"), cols.parse().expect("a number"))
                };
                shapes = value.split(',').map(shape).collect();
            }
            _ => panic!("unknown option {name}"),
        }
    }
    let team = Team::new(threads).expect("threads");
    println!("{tier}, {threads} threads; G MAC/s (GB/s of weights)");
    print!("{:>6} {:>12}", "format", "shape");
    for n in &batches {
        print!(" {:>14}", format!("n={n}"));
    }
    println!();
    for format in formats {
        for (rows, cols) in shapes.iter().copied() {
            if cols % format.block_len() != 0 {
                continue;
            }
            print!("{:>6} {:>12}", format.to_string(), format!("{rows}x{cols}"));
            // Enough copies that the weights come from memory, as they do in a model.
            let bytes = weights(format, rows * cols / format.block_len());
            let copies = (96_000_000 / bytes.len()).clamp(1, most_copies);
            let matrices: Vec<Matrix> =
                (0..copies).map(|_| Matrix::pack(format, rows, cols, &bytes, tier).expect("weights")).collect();
            for n in batches.iter().copied() {
                let values: Vec<f32> = (0..n * cols).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
                let mut activations = Activations::default();
                activations.encode_for(&matrices[0], &team, &values);
                let mut out = vec![0.0; n * rows];
                for matrix in &matrices[..copies.min(8)] {
                    matrix.multiply(&team, &activations, &mut out);
                }
                // The best of several windows, since other work on the machine only ever slows one down.
                let mut seconds = f64::INFINITY;
                let mut next = 0;
                for _ in 0..WINDOWS {
                    let mut passes = 0u32;
                    let begin = Instant::now();
                    while begin.elapsed() < time / WINDOWS {
                        matrices[next].multiply(&team, &activations, &mut out);
                        next = (next + 1) % copies;
                        passes += 1;
                    }
                    seconds = seconds.min(begin.elapsed().as_secs_f64() / f64::from(passes));
                }
                let macs = (n * rows * cols) as f64 / seconds / 1e9;
                print!(" {:>14}", format!("{macs:.1} ({:.1})", matrices[0].n_bytes() as f64 / seconds / 1e9));
            }
            println!();
        }
    }
}

/// Makes blocks whose numbers are finite.
fn weights(format: Format, blocks: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut bytes: Vec<u8> = (0..blocks * format.block_bytes())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        let scale = 0x2800u16.to_le_bytes();
        match format {
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => block[..2].copy_from_slice(&scale),
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => {
                block[..2].copy_from_slice(&scale);
                block[2..4].copy_from_slice(&scale);
            }
            Format::Q6K => block[208..].copy_from_slice(&scale),
            _ => block.fill(1),
        }
    }
    bytes
}
