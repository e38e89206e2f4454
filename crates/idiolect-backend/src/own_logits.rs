//! What a text's own tokens had for logits.

use crate::Moments;

/// Of the logits that a text's tokens were drawn from what changes when those of its own tokens do: for each place the logits
/// of all tokens that the text has anywhere, and what the others come to. Whole rows take many times the memory.
///
/// ```
/// use idiolect_backend::OwnLogits;
///
/// let rows = [vec![0.0, 2.0, 0.0], vec![0.0, 0.0, 1.0]];
/// let own = OwnLogits::of_rows(&[1, 2], &rows);
/// assert_eq!((own.tokens(), own.n_rows()), (&[1, 2][..], 2));
/// let (logits, others) = own.rows().next().unwrap();
/// assert_eq!((logits, others), (&[2.0, 0.0][..], 0.0));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct OwnLogits {
    tokens: Vec<u32>,
    logits: Vec<f32>,
    /// The logarithm of the sum of the exponentials of all other logits, for each place.
    others: Vec<f64>,
    moments: Moments,
}

impl OwnLogits {
    /// Begins with no row.
    #[must_use]
    pub fn new(text: &[u32]) -> Self {
        let mut tokens = text.to_vec();
        tokens.sort_unstable();
        tokens.dedup();
        Self { tokens, logits: Vec::new(), others: Vec::new(), moments: Moments::default() }
    }

    /// Takes what counts out of whole rows.
    #[must_use]
    pub fn of_rows(text: &[u32], rows: &[Vec<f32>]) -> Self {
        let mut own = Self::new(text);
        rows.iter().for_each(|row| own.add(row, log_sum_exp));
        own
    }

    /// Adds the row of the next token, by a function for the logarithm of a sum of exponentials. The logit of a token that a row
    /// has no place for is NaN.
    pub fn add(&mut self, row: &[f32], log_sum_exp: impl FnOnce(&[f32]) -> f64) {
        let mut others = row.to_vec();
        for &token in &self.tokens {
            let place = others.get_mut(token as usize);
            self.logits.push(place.map_or(f32::NAN, |logit| std::mem::replace(logit, f32::NEG_INFINITY)));
        }
        let is_all = self.tokens.len() >= row.len();
        self.others.push(if is_all { f64::NEG_INFINITY } else { log_sum_exp(&others) });
        self.moments.add(row);
    }

    /// Returns how many bytes this takes for a text's tokens.
    #[must_use]
    pub fn size_bytes(text: &[u32]) -> u64 {
        let own = Self::new(text).tokens.len() as u64;
        (text.len() as u64).saturating_mul(own * 4 + 8)
    }

    /// Returns the tokens that the text has, each once, in the order of their ids.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns how many rows there are: as many as the text has tokens, when all were added.
    #[must_use]
    pub const fn n_rows(&self) -> usize {
        self.others.len()
    }

    /// Returns for each place the logits of [`tokens`](Self::tokens), and the logarithm of the sum of the exponentials of all
    /// others: negative infinity of none.
    pub fn rows(&self) -> impl Iterator<Item = (&[f32], f64)> {
        let n = self.tokens.len();
        self.others.iter().enumerate().map(move |(row, &others)| (&self.logits[row * n..(row + 1) * n], others))
    }

    /// Returns the moments of all logits of all rows.
    #[must_use]
    pub const fn moments(&self) -> Moments {
        self.moments
    }
}

fn log_sum_exp(values: &[f32]) -> f64 {
    let greatest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = values.iter().map(|value| f64::from(value - greatest).exp()).sum();
    f64::from(greatest) + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_what_is_kept_of_them_say_the_same() {
        let rows: Vec<Vec<f32>> = (0..7_u8)
            .map(|i| (0..50_u8).map(|j| 9.0 * (f32::from(i) * 0.7 + f32::from(j) * 1.3).sin()).collect())
            .collect();
        let text = [9, 3, 3, 49, 0, 9, 7];
        let own = OwnLogits::of_rows(&text, &rows);
        assert_eq!((own.tokens(), own.n_rows()), (&[0, 3, 7, 9, 49][..], 7));
        assert_eq!(OwnLogits::size_bytes(&text), 7 * (5 * 4 + 8));
        for ((logits, others), row) in own.rows().zip(&rows) {
            let expected: Vec<f32> = own.tokens().iter().map(|&token| row[token as usize]).collect();
            assert_eq!(logits, expected);
            let all: f64 = others.exp() + logits.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>();
            assert!((all.ln() - log_sum_exp(row)).abs() < 1e-9);
        }
        let mut moments = Moments::default();
        rows.iter().for_each(|row| moments.add(row));
        assert_eq!(own.moments(), moments);
    }

    #[test]
    fn odd_rows_have_odd_values() {
        let whole = OwnLogits::of_rows(&[0, 1], &[vec![1.0, 2.0]]);
        assert_eq!(whole.rows().next(), Some((&[1.0, 2.0][..], f64::NEG_INFINITY)));
        let beyond = OwnLogits::of_rows(&[0, 5], &[vec![1.0, 2.0, f32::NAN]]);
        let (logits, others) = beyond.rows().next().unwrap();
        assert!(logits[0] == 1.0 && logits[1].is_nan() && others.is_nan());
        assert_eq!(OwnLogits::of_rows(&[], &[]).n_rows(), 0);
    }
}
