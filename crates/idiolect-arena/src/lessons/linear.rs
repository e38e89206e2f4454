//! Least squares with a penalty on the weights.

/// The normal equations of rows that were added: XᵀX, of which the lower triangle is kept, and Xᵀy.
#[derive(Clone, Debug)]
pub(super) struct Normal {
    n: usize,
    gram: Vec<f64>,
    moment: Vec<f64>,
}

impl Normal {
    pub(super) fn new(n: usize) -> Self {
        Self { n, gram: vec![0.0; n * n], moment: vec![0.0; n] }
    }

    /// Adds a row of `n` values and what they are to give.
    pub(super) fn add(&mut self, row: &[f64], target: f64) {
        for (i, &value) in row.iter().enumerate().take(self.n) {
            add_scaled(&mut self.gram[i * self.n..=i * self.n + i], value, &row[..=i]);
        }
        add_scaled(&mut self.moment, target, row);
    }

    /// Adds, or with -1 takes off, what another one has.
    pub(super) fn add_all(&mut self, times: f64, other: &Self) {
        add_scaled(&mut self.gram, times, &other.gram);
        add_scaled(&mut self.moment, times, &other.moment);
    }

    /// Returns the weights w with the least squared error plus Σ penaltyᵢ wᵢ²; `None` where they are not determined.
    pub(super) fn solve(&self, penalties: &[f64]) -> Option<Vec<f64>> {
        let n = self.n;
        let mut matrix = self.gram.clone();
        for (i, penalty) in penalties.iter().enumerate().take(n) {
            matrix[i * n + i] += penalty;
        }
        // Cholesky's decomposition, a column at a time: sums of whole rows, which vector instructions can do.
        let mut column = vec![0.0; n];
        for k in 0..n {
            let pivot = matrix[k * n + k];
            if !(pivot > 0.0 && pivot.is_finite()) {
                return None;
            }
            let root = pivot.sqrt();
            matrix[k * n + k] = root;
            for i in k + 1..n {
                matrix[i * n + k] /= root;
                column[i] = matrix[i * n + k];
            }
            for i in k + 1..n {
                add_scaled(&mut matrix[i * n + k + 1..=i * n + i], -column[i], &column[k + 1..=i]);
            }
        }
        let mut weights = self.moment.clone();
        for i in 0..n {
            let row = &matrix[i * n..i * n + i];
            let known: f64 = row.iter().zip(&weights).map(|(a, b)| a * b).sum();
            weights[i] = (weights[i] - known) / matrix[i * n + i];
        }
        for i in (0..n).rev() {
            weights[i] /= matrix[i * n + i];
            let value = weights[i];
            add_scaled(&mut weights[..i], -value, &matrix[i * n..i * n + i]);
        }
        Some(weights)
    }
}

fn add_scaled(to: &mut [f64], factor: f64, values: &[f64]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += factor * value;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_found_again_and_a_penalty_shrinks_it() {
        let mut equations = Normal::new(2);
        for i in 0..20 {
            let x = f64::from(i) / 10.0;
            equations.add(&[x, 1.0], 3.0 * x - 1.0);
        }
        let free = equations.solve(&[0.0, 0.0]).unwrap();
        assert!((free[0] - 3.0).abs() < 1e-9 && (free[1] + 1.0).abs() < 1e-9, "{free:?}");
        assert!(equations.solve(&[5.0, 0.0]).unwrap()[0] < 2.9);
        assert_eq!(Normal::new(2).solve(&[0.0, 0.0]), None);
    }

    proptest! {
        /// At the minimum the gradient XᵀXw + penalty·w - Xᵀy is 0.
        #[test]
        fn weights_are_the_minimum(rows in proptest::collection::vec(proptest::array::uniform6(-2.0_f64..2.0), 1..30)) {
            let mut equations = Normal::new(5);
            for row in &rows {
                equations.add(&row[..5], row[5]);
            }
            let weights = equations.solve(&[0.5; 5]).unwrap();
            for i in 0..5 {
                let error = |row: &[f64; 6]| row[..5].iter().zip(&weights).map(|(x, w)| x * w).sum::<f64>() - row[5];
                let gradient = rows.iter().map(|row| row[i] * error(row)).sum::<f64>() + 0.5 * weights[i];
                prop_assert!(gradient.abs() < 1e-8, "{gradient}");
            }
        }

        #[test]
        fn what_is_taken_off_was_never_there(rows in proptest::collection::vec(proptest::array::uniform4(-2.0_f64..2.0), 4..20)) {
            let (mut all, mut last, mut rest) = (Normal::new(3), Normal::new(3), Normal::new(3));
            for (i, row) in rows.iter().enumerate() {
                all.add(&row[..3], row[3]);
                if i < 2 { last.add(&row[..3], row[3]) } else { rest.add(&row[..3], row[3]) }
            }
            all.add_all(-1.0, &last);
            for (a, b) in all.solve(&[1.0; 3]).unwrap().iter().zip(rest.solve(&[1.0; 3]).unwrap()) {
                prop_assert!((a - b).abs() < 1e-8, "{a} {b}");
            }
        }
    }
}
