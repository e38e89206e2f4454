//! Eigenvalues of symmetric matrices.
//!
//! Reflections (Householder, 1958) bring the matrix to three diagonals; how many eigenvalues of that lie below a number is
//! the count of negative pivots (Sturm's theorem; Givens, 1954), and halving intervals finds each to the last digits that
//! the matrix's largest allows. Nothing has to converge, and equal eigenvalues are found together.

/// Returns the eigenvalues of a symmetric matrix of `n` rows, ascending. All values must be finite.
pub(super) fn symmetric_eigenvalues(matrix: Vec<f64>, n: usize) -> Vec<f64> {
    if n == 0 {
        return Vec::new();
    }
    Tridiagonal::from_symmetric(matrix, n).eigenvalues()
}

struct Tridiagonal {
    diagonal: Vec<f64>,
    /// Squares of what is beside the diagonal.
    beside: Vec<f64>,
}

impl Tridiagonal {
    /// Reflects each column in turn so that nothing is left of it below the entry under the diagonal.
    fn from_symmetric(mut a: Vec<f64>, n: usize) -> Self {
        let (mut beside, mut v, mut w) = (Vec::with_capacity(n), vec![0.0; n], vec![0.0; n]);
        for k in 0..n.saturating_sub(1) {
            let below = k + 1..n;
            for i in below.clone() {
                v[i] = a[i * n + k];
            }
            let square: f64 = v[below.clone()].iter().map(|x| x * x).sum();
            beside.push(square);
            if v[k + 2..].iter().all(|&x| x == 0.0) {
                continue;
            }
            // v = x + sign(x₁) ‖x‖ e₁, and the matrix A becomes H A H with H = 1 - 2 v vᵗ / vᵗv, that is
            // A - v wᵗ - w vᵗ with w = p - (vᵗp / vᵗv) v and p = 2 A v / vᵗv.
            v[k + 1] += square.sqrt().copysign(v[k + 1]);
            let norm: f64 = v[below.clone()].iter().map(|x| x * x).sum();
            for i in below.clone() {
                w[i] = 2.0 / norm
                    * a[i * n + k + 1..(i + 1) * n].iter().zip(&v[below.clone()]).map(|(a, v)| a * v).sum::<f64>();
            }
            let along = w[below.clone()].iter().zip(&v[below.clone()]).map(|(w, v)| w * v).sum::<f64>() / norm;
            for i in below.clone() {
                w[i] -= along * v[i];
            }
            for i in below.clone() {
                let (vi, wi) = (v[i], w[i]);
                let row = &mut a[i * n + k + 1..(i + 1) * n];
                for ((a, v), w) in row.iter_mut().zip(&v[below.clone()]).zip(&w[below.clone()]) {
                    *a -= vi * w + wi * v;
                }
            }
        }
        Self { diagonal: (0..n).map(|i| a[i * n + i]).collect(), beside }
    }

    /// Returns how many eigenvalues are less than `x`.
    fn below(&self, x: f64) -> usize {
        let mut pivot = 1.0;
        let mut count = 0;
        for (i, diagonal) in self.diagonal.iter().enumerate() {
            let beside = if i == 0 { 0.0 } else { self.beside[i - 1] };
            pivot = diagonal - x - beside / pivot;
            if pivot == 0.0 {
                pivot = -f64::MIN_POSITIVE;
            }
            count += usize::from(pivot < 0.0);
        }
        count
    }

    fn eigenvalues(&self) -> Vec<f64> {
        let n = self.diagonal.len();
        let root = |i: usize| self.beside.get(i).copied().unwrap_or(0.0).sqrt();
        let reach = |i: usize| root(i) + if i > 0 { root(i - 1) } else { 0.0 };
        // Every eigenvalue is within reach of the diagonal (Gershgorin, 1931).
        let largest = (0..n).map(|i| self.diagonal[i].abs() + reach(i)).fold(f64::MIN_POSITIVE, f64::max) * 1.000_001;
        let mut found = Vec::with_capacity(n);
        let mut open = vec![(-largest, largest, 0, n)];
        while let Some((low, high, below_low, below_high)) = open.pop() {
            let middle = low + (high - low) / 2.0;
            if high - low <= 2.0 * f64::EPSILON * largest || middle <= low || middle >= high {
                found.extend(std::iter::repeat_n(middle, below_high - below_low));
                continue;
            }
            let below_middle = self.below(middle).clamp(below_low, below_high);
            for part in [(middle, high, below_middle, below_high), (low, middle, below_low, below_middle)] {
                if part.2 < part.3 {
                    open.push(part);
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(matrix: &[f64], expected: &[f64]) {
        let found = symmetric_eigenvalues(matrix.to_vec(), expected.len());
        assert_eq!(found.len(), expected.len());
        let scale = expected.iter().fold(1.0, |a: f64, b| a.max(b.abs()));
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-13 * scale, "{found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn known_matrices() {
        check(&[], &[]);
        check(&[5.0], &[5.0]);
        check(&[0.0], &[0.0]);
        check(&[2.0, 1.0, 1.0, 2.0], &[1.0, 3.0]);
        check(&[0.0; 9], &[0.0; 3]);
        check(&[1.0; 16], &[0.0, 0.0, 0.0, 4.0]);
        check(&[-3.0, 0.0, 0.0, 0.0, 7.0, 0.0, 0.0, 0.0, 1.0], &[-3.0, 1.0, 7.0]);
        check(&[1e200, 0.0, 0.0, 1e200], &[1e200, 1e200]);
    }

    #[test]
    fn a_chain_has_cosines() {
        let n = 40_usize;
        let chain: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from((at / n).abs_diff(at % n) == 1))).collect();
        let angle = |i: usize| std::f64::consts::PI * (n - i) as f64 / (n + 1) as f64;
        check(&chain, &(0..n).map(|i| 2.0 * angle(i).cos()).collect::<Vec<_>>());
    }
}
