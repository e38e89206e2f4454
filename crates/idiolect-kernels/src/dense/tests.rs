//! Every instruction set of this processor against plain sums in `f64`, and against each other.

use proptest::prelude::*;

use super::attention::attend_for;
use super::lanes::{Lanes, Width, Work, dispatch, exp, gelu};
use super::{Epilogue, LayerNorm, PackedF32, PositionBias, Rows};
use crate::Team;

/// Values from -1 to 1.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(n).collect()
}

fn rows(width: usize, values: &[f32]) -> Rows {
    let mut rows = Rows::new(width);
    rows.reset(values.len() / width);
    for (i, row) in values.chunks_exact(width).enumerate() {
        rows.row_mut(i).copy_from_slice(row);
    }
    rows
}

/// By its power series, where that is precise; beyond, it is 1 to the twelfth place.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut power, mut sum) = (x, 0.0);
    for n in 0..200 {
        let n = f64::from(n);
        sum += power / (2.0 * n + 1.0);
        power *= -x * x / (n + 1.0);
    }
    2.0 / std::f64::consts::PI.sqrt() * sum
}

fn exact_gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

struct Map<'a>(&'a mut [f32; 16], bool);

impl Work for Map<'_> {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "what is not inlined is not compiled for the wider instructions")]
    #[expect(unsafe_code, reason = "see the trait")]
    unsafe fn run<V: Lanes>(self) {
        for chunk in self.0.chunks_exact_mut(V::LANES) {
            // SAFETY: a chunk is one vector; the rest is the caller's promise.
            unsafe {
                let x = V::load(chunk.as_ptr());
                let y = if self.1 { gelu(x) } else { exp(x) };
                y.store(chunk.as_mut_ptr());
            }
        }
    }
}

#[expect(unsafe_code, reason = "runs instructions that were detected")]
fn map(width: Width, values: [f32; 16], is_gelu: bool) -> [f32; 16] {
    let mut out = values;
    // SAFETY: only widths that this processor runs are asked for.
    unsafe { dispatch(width, Map(&mut out, is_gelu)) };
    out
}

#[test]
fn functions_are_accurate() {
    for width in Width::runnable() {
        for i in 0..2000 {
            let at = |lane: usize| (i * 16 + lane) as f32 / 32000.0;
            let values: [f32; 16] = std::array::from_fn(|lane| at(lane) * 174.0 - 87.0);
            for (x, y) in values.iter().zip(map(width, values, false)) {
                let exact = f64::from(*x).exp();
                assert!((f64::from(y) - exact).abs() <= 3e-7 * exact, "{width:?} exp({x}) = {y}");
            }
            let values: [f32; 16] = std::array::from_fn(|lane| at(lane) * 16.0 - 8.0);
            for (x, y) in values.iter().zip(map(width, values, true)) {
                let exact = exact_gelu(f64::from(*x));
                let error = (f64::from(y) - exact).abs();
                assert!(error <= 3e-7 * f64::from(x.abs()) + 1e-9, "{width:?} gelu({x}) = {y}, off by {error}");
            }
        }
        let ends = map(width, std::array::from_fn(|i| [0.0, -0.0, 1e30, -1e4][i % 4]), true);
        assert!(
            ends[0] == 0.0 && ends[1] == 0.0 && (ends[2] / 1e30 - 1.0).abs() < 1e-6 && ends[3].abs() < 3e-3,
            "{ends:?}"
        );
        let ends = map(width, std::array::from_fn(|i| [0.0, f32::MIN, -100.0, 88.0][i % 4]), false);
        assert!(ends[0] == 1.0 && ends[1] < 2e-38 && ends[2] < 2e-38 && ends[3] > 1e38, "{ends:?}");
    }
}

/// Compares a product with sums in `f64`.
fn check_product(width: Width, threads: usize, [n, out, cols]: [usize; 3]) {
    let team = Team::new(threads).unwrap();
    let (weights, bias, values) = (noise(out * cols, 1), noise(out, 2), noise(n * cols, 3));
    let layer = PackedF32::pack_for(width, out, cols, &weights, &bias);
    assert_eq!((layer.rows(), layer.cols()), (out, cols));
    for epilogue in [Epilogue::Store, Epilogue::Add, Epilogue::Gelu] {
        let mut product = rows(out, &vec![0.25; n * out]);
        layer.multiply(&team, &rows(cols, &values), &mut product, epilogue);
        for j in 0..n {
            for r in 0..out {
                let pairs = weights[r * cols..(r + 1) * cols].iter().zip(&values[j * cols..(j + 1) * cols]);
                let terms: Vec<f64> = pairs.map(|(w, x)| f64::from(*w) * f64::from(*x)).collect();
                let sum = terms.iter().sum::<f64>() + f64::from(bias[r]);
                let exact = match epilogue {
                    Epilogue::Store => sum,
                    Epilogue::Add => sum + 0.25,
                    Epilogue::Gelu => exact_gelu(sum),
                };
                let magnitude = terms.iter().map(|term| term.abs()).sum::<f64>() + 1.0;
                let error = (f64::from(product.row(j)[r]) - exact).abs();
                assert!(
                    error < 1e-6 * magnitude,
                    "{width:?} {n} x {out} x {cols} {epilogue:?} [{j}][{r}]: {error} off"
                );
            }
        }
    }
}

#[test]
fn products_are_those_in_double_precision() {
    for width in Width::runnable() {
        for sizes in [[1, 1, 1], [2, 33, 7], [12, 32, 384], [13, 96, 64], [30, 100, 1536], [25, 5, 3072]] {
            check_product(width, 1, sizes);
            check_product(width, 3, sizes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn products_of_any_size(n in 0..40usize, out in 1..80usize, cols in 1..200usize, threads in 1..4usize) {
        for width in Width::runnable() {
            check_product(width, threads, [n, out, cols]);
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_company_or_on_threads() {
    let (out, cols, n) = (96, 384, 700);
    let (weights, values) = (noise(out * cols, 4), noise(n * cols, 5));
    for width in Width::runnable() {
        let layer = PackedF32::pack_for(width, out, cols, &weights, &[]);
        let multiply = |threads, values: &[f32]| {
            let mut product = Rows::new(out);
            product.reset(values.len() / cols);
            layer.multiply(&Team::new(threads).unwrap(), &rows(cols, values), &mut product, Epilogue::Gelu);
            product
        };
        let together = multiply(3, &values);
        for j in [0, 1, 11, 12, 345, 699] {
            let alone = multiply(1, &values[j * cols..(j + 1) * cols]);
            assert_eq!(alone.row(0), together.row(j), "{width:?} row {j}");
        }
    }
}

#[test]
fn rows_are_normalised() {
    for width in Width::runnable() {
        for columns in [1, 5, 16, 100, 384, 768] {
            let values: Vec<f32> = noise(70 * columns, 6).iter().map(|v| v * 3.0 + 5.0).collect();
            let (weight, bias) = (noise(columns, 7), noise(columns, 8));
            let mut normalised = rows(columns, &values);
            let layer = LayerNorm::new_for(width, weight.clone(), bias.clone(), 1e-5);
            layer.apply(&Team::new(2).unwrap(), &mut normalised);
            for (j, row) in values.chunks_exact(columns).enumerate() {
                let n = columns as f64;
                let mean = row.iter().copied().map(f64::from).sum::<f64>() / n;
                let variance = row.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n;
                for i in 0..columns {
                    let exact = (f64::from(row[i]) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i])
                        + f64::from(bias[i]);
                    let error = (f64::from(normalised.row(j)[i]) - exact).abs();
                    assert!(error < 1e-4, "{width:?} {columns} [{j}][{i}] is {error} off");
                }
            }
        }
    }
}

/// Compares attention with sums in `f64`.
fn check_attention(width: Width, heads: usize, head_width: usize, lens: &[usize], with_bias: bool) {
    let model = heads * head_width;
    let n: usize = lens.iter().sum();
    let values: Vec<f32> = noise(n * 3 * model, 9).iter().map(|v| v * 2.0).collect();
    let of_distance = |head: usize, distance: isize| (head as f32 + 1.0) * (distance as f32 * 0.37).sin();
    let bias = PositionBias::new(heads, 70, of_distance);
    let mut out = Rows::new(model);
    out.reset(n);
    let team = Team::new(2).unwrap();
    attend_for(width, &team, &rows(3 * model, &values), lens, heads, with_bias.then_some(&bias), &mut out);
    let part = |token: usize, which: usize, head: usize, i: usize| {
        f64::from(values[token * 3 * model + which * model + head * head_width + i])
    };
    let mut begin = 0;
    for len in lens {
        for head in 0..heads {
            for query in 0..*len {
                let score = |key: usize| {
                    let dot: f64 =
                        (0..head_width).map(|i| part(begin + query, 0, head, i) * part(begin + key, 1, head, i)).sum();
                    let bias = of_distance(head, key.cast_signed() - query.cast_signed());
                    dot + if with_bias { f64::from(bias) } else { 0.0 }
                };
                let scores: Vec<f64> = (0..*len).map(score).collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..head_width {
                    let exact: f64 =
                        weights.iter().enumerate().map(|(key, w)| w / sum * part(begin + key, 2, head, i)).sum();
                    let got = f64::from(out.row(begin + query)[head * head_width + i]);
                    let error = (got - exact).abs();
                    assert!(error < 2e-5, "{width:?} {heads} x {head_width} head {head} token {query}: {error} off");
                }
            }
        }
        begin += len;
    }
}

#[test]
fn attention_is_that_in_double_precision() {
    for width in Width::runnable() {
        for (heads, head_width) in [(1, 1), (2, 8), (3, 32), (1, 64), (2, 40)] {
            for with_bias in [false, true] {
                check_attention(width, heads, head_width, &[1, 17, 0, 70, 5, 32], with_bias);
            }
        }
    }
}

#[test]
fn memory_is_kept_until_it_is_given_back() {
    let mut rows = Rows::new(40);
    rows.reset(10);
    rows.row_mut(9).fill(1.0);
    rows.reset(2);
    assert_eq!((rows.n(), rows.row(1).len()), (2, 40));
    rows.shrink_to(1);
    assert_eq!(rows.n(), 1);
    rows.reset(30);
    assert_eq!(rows.row(29), [0.0; 40]);
}
