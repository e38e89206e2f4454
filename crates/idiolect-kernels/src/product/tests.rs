//! Every tier against the portable one, and that against plain arithmetic.

use proptest::prelude::*;

use crate::{Activations, Format, Matrix, Team, Tier};

/// Returns the tiers to test: what the processor has, and AVX-VNNI in the encoding of AVX-512 where it only has that.
fn tiers() -> Vec<Tier> {
    let mut tiers = Tier::available();
    if tiers.contains(&Tier::Avx512Vnni) && !tiers.contains(&Tier::AvxVnni) {
        tiers.push(Tier::AvxVnni);
    }
    tiers
}

fn pack(format: Format, rows: usize, cols: usize, bytes: &[u8], tier: Tier) -> Matrix {
    Matrix::pack(format, rows, cols, bytes, Tier::Portable).unwrap().with_tier(tier)
}

/// A generator of bytes; the quality of the numbers does not matter.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn value(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }
}

/// What the bytes and scales of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Weights {
    Random,
    AllMost,
    AllLeast,
    ZeroScales,
    Subnormal,
    Extreme,
    Mixed,
}

const WEIGHTS: [Weights; 7] = [
    Weights::Random,
    Weights::AllMost,
    Weights::AllLeast,
    Weights::ZeroScales,
    Weights::Subnormal,
    Weights::Extreme,
    Weights::Mixed,
];

fn weights(format: Format, n_values: usize, kind: Weights, noise: &mut Noise) -> Vec<u8> {
    let size = format.block_bytes();
    let mut bytes = vec![0u8; n_values / format.block_len() * size];
    for (index, block) in bytes.chunks_exact_mut(size).enumerate() {
        let kind = if kind == Weights::Mixed { WEIGHTS[index % 6] } else { kind };
        for byte in block.iter_mut() {
            *byte = match kind {
                Weights::AllMost => 255,
                Weights::AllLeast => 0,
                _ => noise.next() as u8,
            };
        }
        if format == Format::Q8_0 && matches!(kind, Weights::AllMost | Weights::AllLeast) {
            block.fill(if kind == Weights::AllMost { 127 } else { 128 });
        }
        let mut scale = |at: usize| {
            let value = match kind {
                Weights::Random | Weights::Mixed => noise.value() * 0.1,
                Weights::AllMost | Weights::AllLeast => 1.0,
                Weights::ZeroScales => 0.0,
                Weights::Subnormal => 1e-7 * noise.value(),
                Weights::Extreme => 65504.0 * noise.value().signum(),
            };
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        };
        match format {
            Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => scale(0),
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => {
                scale(0);
                scale(2);
            }
            Format::Q6K => scale(208),
            Format::F16 => scale(0),
            Format::F32 => block.copy_from_slice(&noise.value().to_le_bytes()),
            Format::Bf16 => block.copy_from_slice(&half::bf16::from_f32(noise.value()).to_le_bytes()),
        }
    }
    bytes
}

fn product(matrix: &Matrix, team: &Team, values: &[f32]) -> Vec<f32> {
    let mut activations = Activations::default();
    activations.encode_finely_for(matrix, team, values);
    let mut out = vec![f32::NAN; activations.n() * matrix.rows()];
    matrix.multiply(team, &activations, &mut out);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn values(n: usize, noise: &mut Noise) -> Vec<f32> {
    (0..n)
        .map(|i| match i / 32 % 5 {
            0 => noise.value(),
            1 => noise.value().signum() * 3.0,
            2 => 0.0,
            3 => noise.value() * 1e-3,
            _ => noise.value() * 100.0,
        })
        .collect()
}

/// Compares all tiers, bit for bit.
fn check(format: Format, rows: usize, cols: usize, n: usize, kind: Weights, seed: u64) {
    let mut noise = Noise(seed);
    let bytes = weights(format, rows * cols, kind, &mut noise);
    let values = values(n * cols, &mut noise);
    let team = Team::new(2).unwrap();
    let of = |tier| product(&pack(format, rows, cols, &bytes, tier), &team, &values);
    let portable = of(Tier::Portable);
    for tier in tiers() {
        let got = of(tier);
        let differing = got.iter().zip(&portable).position(|(a, b)| a.to_bits() != b.to_bits());
        if let Some(at) = differing {
            panic!("{format} {rows}x{cols} n={n} {kind:?} {tier}: [{at}] is {}, expected {}", got[at], portable[at]);
        }
    }
}

#[test]
fn tiers_compute_the_same_bits_on_awkward_blocks() {
    for format in Format::ALL {
        for kind in WEIGHTS {
            for (rows, cols, n) in [(16, 256, 1), (37, 512, 3), (1, 768, 8), (48, 256, 9), (20, 256, 27)] {
                check(format, rows, cols, n, kind, 7);
            }
        }
    }
}

#[test]
fn tiers_compute_the_same_bits_at_every_batch_size() {
    for format in Format::ALL {
        for n in 1..=34 {
            check(format, 33, 256, n, Weights::Random, n as u64);
        }
    }
}

#[test]
fn tiers_compute_the_same_bits_for_any_number_of_blocks() {
    for format in Format::ALL.into_iter().filter(|format| format.block_len() <= 32) {
        for cols in [32, 64, 96, 576, 640, 896, 960] {
            check(format, 18, cols, 5, Weights::Random, cols as u64);
            check(format, 18, cols, 24, Weights::Random, cols as u64);
        }
    }
}

#[test]
fn products_are_those_of_the_decoded_weights() {
    let team = Team::new(1).unwrap();
    for format in Format::ALL {
        let (rows, cols, n) = (19, 512, 4);
        let mut noise = Noise(3);
        let bytes = weights(format, rows * cols, Weights::Random, &mut noise);
        let values: Vec<f32> = (0..n * cols).map(|_| noise.value()).collect();
        for tier in tiers() {
            let matrix = pack(format, rows, cols, &bytes, tier);
            let out = product(&matrix, &team, &values);
            let mut decoded = vec![0.0; cols];
            for r in 0..rows {
                matrix.decode_row(r, &mut decoded);
                for j in 0..n {
                    let pairs = || decoded.iter().zip(&values[j * cols..]).map(|(w, v)| (f64::from(*w), f64::from(*v)));
                    let exact: f64 = pairs().map(|(w, v)| w * v).sum();
                    // Each activation is off by half a step of at most 1/127 at most, with either sign.
                    let size: f64 = pairs().map(|(w, _)| w * w).sum::<f64>().sqrt();
                    let tolerance = if format.is_quantised() { size * 5.0 * 0.5 / 127.0 } else { size * 1e-5 };
                    let got = f64::from(out[j * rows + r]);
                    assert!((got - exact).abs() <= tolerance, "{format} {tier}: {got} against {exact} +- {tolerance}");
                }
            }
        }
    }
}

#[test]
fn what_rounding_takes_from_blocks_that_stand_out_is_given_back() {
    let team = Team::new(1).unwrap();
    for format in Format::ALL.into_iter().filter(|format| format.is_quantised()) {
        let (rows, cols, n) = (21, 768, 11);
        let mut noise = Noise(5);
        let bytes = weights(format, rows * cols, Weights::Random, &mut noise);
        // One column of most rows is far from the others, and of some rows another one, too.
        let values: Vec<f32> = (0..n * cols)
            .map(|i| match (i / cols, i % cols) {
                (0..9, 300) => 90.0,
                (5.., 77) => -60.0,
                _ => noise.value(),
            })
            .collect();
        for tier in tiers() {
            let matrix = pack(format, rows, cols, &bytes, tier);
            let mut activations = Activations::default();
            activations.encode_for(&matrix, &team, &values);
            let mut plain = vec![f32::NAN; n * rows];
            matrix.multiply(&team, &activations, &mut plain);
            let fine = product(&matrix, &team, &values);
            let mut decoded = vec![0.0; cols];
            let (mut of_plain, mut of_fine) = (0.0, 0.0);
            for r in 0..rows {
                matrix.decode_row(r, &mut decoded);
                for j in 0..n {
                    let row = &values[j * cols..][..cols];
                    let exact: f64 = decoded.iter().zip(row).map(|(w, v)| f64::from(*w) * f64::from(*v)).sum();
                    of_plain += (f64::from(plain[j * rows + r]) - exact).powi(2);
                    of_fine += (f64::from(fine[j * rows + r]) - exact).powi(2);
                }
            }
            assert!(of_fine < of_plain / 50.0, "{format} {tier}: {of_fine} against {of_plain}");
        }
    }
}

#[test]
fn extreme_bytes_are_exact() {
    let team = Team::new(1).unwrap();
    // With one value in all blocks, activations are encoded without an error.
    for (format, byte, weight) in [(Format::Q8_0, 0x80, -128.0), (Format::Q8_0, 0x7f, 127.0), (Format::Q4_0, 0xff, 7.0)]
    {
        for sign in [1.0, -1.0] {
            let mut bytes = vec![byte; 16 * format.block_bytes()];
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                block[..2].copy_from_slice(&half::f16::from_f32(1.0).to_le_bytes());
            }
            for tier in tiers() {
                let matrix = pack(format, 16, 32, &bytes, tier);
                let out = product(&matrix, &team, &[sign * 127.0; 32]);
                assert_eq!(out, [sign * 127.0 * weight * 32.0; 16], "{format} {tier}");
            }
        }
    }
}

#[test]
fn parts_of_several_formats_multiply_like_each_alone() {
    let team = Team::new(2).unwrap();
    let mut noise = Noise(9);
    let cols = 256;
    let formats = [(5, Format::Q4K), (16, Format::F16), (0, Format::Q8_0), (33, Format::Q6K), (7, Format::Q4_1)];
    let parts: Vec<_> = formats
        .map(|(rows, format)| (rows, format, weights(format, rows * cols, Weights::Random, &mut noise)))
        .into_iter()
        .collect();
    let parts: Vec<_> = parts.iter().map(|(rows, format, bytes)| (*rows, *format, bytes.as_slice())).collect();
    for n in [1, 8, 30] {
        let values = values(n * cols, &mut noise);
        for tier in tiers() {
            let whole = Matrix::pack_parts(cols, &parts, Tier::Portable).unwrap().with_tier(tier);
            assert!(whole.is_finite());
            let together = product(&whole, &team, &values);
            let mut first = 0;
            for (rows, format, bytes) in &parts {
                let part = pack(*format, *rows, cols, bytes, tier);
                let alone = product(&part, &team, &values);
                for j in 0..n {
                    let of_whole = &together[j * whole.rows() + first..][..*rows];
                    assert_eq!(bits(of_whole), bits(&alone[j * rows..][..*rows]), "{tier} {format}");
                }
                first += rows;
            }
        }
    }
}

#[test]
fn what_is_no_number_shows() {
    let team = Team::new(1).unwrap();
    for format in Format::ALL {
        let mut noise = Noise(4);
        let bytes = weights(format, 16 * 256, Weights::Random, &mut noise);
        for tier in tiers() {
            let matrix = pack(format, 16, 256, &bytes, tier);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values: Vec<f32> = (0..2 * 256).map(|_| noise.value()).collect();
                values[40] = bad;
                let out = product(&matrix, &team, &values);
                assert!(out[..16].iter().all(|value| !value.is_finite()), "{format} {tier} {bad}");
                assert!(out[16..].iter().all(|value| value.is_finite()), "{format} {tier}: the other row is good");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_row_depends_neither_on_its_batch_nor_on_the_threads(
        format in proptest::sample::select(Format::ALL.to_vec()),
        rows in 1usize..70,
        blocks in 1usize..3,
        n in 1usize..40,
        seed in any::<u64>(),
    ) {
        let cols = blocks * 256;
        let mut noise = Noise(seed);
        let bytes = weights(format, rows * cols, Weights::Random, &mut noise);
        let values = values(n * cols, &mut noise);
        let (one, three) = (Team::new(1).unwrap(), Team::new(3).unwrap());
        for tier in tiers() {
            let matrix = pack(format, rows, cols, &bytes, tier);
            let together = product(&matrix, &three, &values);
            for j in [0, n / 2, n - 1] {
                let alone = product(&matrix, &one, &values[j * cols..(j + 1) * cols]);
                prop_assert_eq!(bits(&alone), bits(&together[j * rows..(j + 1) * rows]), "{} row {}", tier, j);
            }
        }
    }

    #[test]
    fn tiers_compute_the_same_bits_on_random_blocks(
        format in proptest::sample::select(Format::ALL.to_vec()),
        kind in proptest::sample::select(WEIGHTS.to_vec()),
        rows in 1usize..50,
        n in 1usize..20,
        seed in any::<u64>(),
    ) {
        check(format, rows, 256, n, kind, seed);
    }
}
