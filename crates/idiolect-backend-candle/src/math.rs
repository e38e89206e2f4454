//! Small functions over numbers.

use idiolect_kernels::scan;

/// Returns the dot product.
#[cfg(test)]
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
    fn sums_are_right() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (0..37).map(|i| (i * i) as f32).sum::<f32>());
        assert!((log_sum_exp(&[0.0; 8]) - 8f32.ln()).abs() < 1e-6);
        assert!((log_sum_exp(&[1000.0, 1000.0]) - 1000.693).abs() < 1e-3);
    }
}
