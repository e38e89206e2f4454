//! Small functions over numbers.

use idiolect_kernels::scan;

/// Returns e^x with a relative error below 3e-7; 0 below -87, and saturates above 88.
pub(crate) fn exp(x: f32) -> f32 {
    // e^x = 2^n · e^r with n the nearest integer to x / ln 2 and |r| <= ln 2 / 2; e^r by its Taylor series.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (clamped - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let series =
        1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0))))));
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let result = series * power;
    if x < -87.0 { 0.0 } else { result }
}

/// Returns the dot product.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Sixteen running sums: enough for the compiler to keep four vector registers busy.
    let mut sums = [0f32; 16];
    let (chunks_a, rest_a) = a.as_chunks::<16>();
    let (chunks_b, rest_b) = b.as_chunks::<16>();
    for (a, b) in chunks_a.iter().zip(chunks_b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// Returns the natural logarithm of the sum of exponentials; no finite number when any value is NaN or none is finite.
pub(crate) fn log_sum_exp(values: &[f32]) -> f32 {
    let greatest = scan::block_maxima(values, &mut Vec::new());
    #[expect(clippy::cast_possible_truncation, reason = "a logarithm of a vocabulary-sized sum")]
    let log = scan::sum_exp(values, greatest, 1.0, &mut Vec::new()).ln() as f32;
    greatest + log
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        for i in -8600..8800 {
            let x = i as f32 / 100.0;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 4e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_are_right() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (0..37).map(|i| (i * i) as f32).sum::<f32>());
        assert!((log_sum_exp(&[0.0; 8]) - 8f32.ln()).abs() < 1e-6);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - 1000.693).abs() < 1e-3);
    }
}
