//! Small symmetric systems of equations.

/// The lower triangle of a matrix L with L·Lᵀ equal to a given one.
#[derive(Clone, Debug)]
pub(crate) struct Cholesky {
    n: usize,
    lower: Vec<f64>,
}

impl Cholesky {
    /// Decomposes a symmetric matrix, given row by row; `None` unless it is positive definite.
    pub(crate) fn new(matrix: &[f64], n: usize) -> Option<Self> {
        let mut lower = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                let dot: f64 = (0..j).map(|k| lower[i * n + k] * lower[j * n + k]).sum();
                let rest = matrix[i * n + j] - dot;
                if i == j {
                    if !(rest > 0.0 && rest.is_finite()) {
                        return None;
                    }
                    lower[i * n + i] = rest.sqrt();
                } else {
                    lower[i * n + j] = rest / lower[j * n + j];
                }
            }
        }
        Some(Self { n, lower })
    }

    /// Solves for the vector whose product with the matrix is `b`.
    pub(crate) fn solve(&self, b: &[f64]) -> Vec<f64> {
        let n = self.n;
        let mut y = b.to_vec();
        for i in 0..n {
            let dot: f64 = (0..i).map(|k| self.lower[i * n + k] * y[k]).sum();
            y[i] = (y[i] - dot) / self.lower[i * n + i];
        }
        self.solve_transposed(&mut y);
        y
    }

    /// Replaces `y` with the solution x of Lᵀ·x = y. Of standard normal numbers it makes some with the inverse of the matrix
    /// for covariance.
    pub(crate) fn solve_transposed(&self, y: &mut [f64]) {
        let n = self.n;
        for i in (0..n).rev() {
            y[i] /= self.lower[i * n + i];
            let value = y[i];
            for (y, lower) in y[..i].iter_mut().zip(&self.lower[i * n..]) {
                *y -= lower * value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_solved() {
        let matrix = [4.0, 2.0, 0.4, 2.0, 5.0, 1.0, 0.4, 1.0, 3.0];
        let x = Cholesky::new(&matrix, 3).unwrap().solve(&[1.0, -2.0, 0.5]);
        for (row, expected) in matrix.chunks(3).zip([1.0, -2.0, 0.5]) {
            let product: f64 = row.iter().zip(&x).map(|(a, b)| a * b).sum();
            assert!((product - expected).abs() < 1e-12);
        }
        assert!(Cholesky::new(&[1.0, 2.0, 2.0, 1.0], 2).is_none());
        assert!(Cholesky::new(&[f64::NAN], 1).is_none());
    }
}
