//! Which of several is better, by weights that are learnt from pairs (Bradley and Terry 1952).

use super::linear::Normal;

/// How strongly the weights are drawn to 0, beside one pair that counts in full.
const PENALTY: f64 = 16.0;
/// Newton's method has converged long before.
const MOST_STEPS: usize = 30;

/// Weights of figures in units of their own spread.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ranking {
    scale: Vec<f64>,
    weights: Vec<f64>,
}

/// Candidates for one prompt, each with its figures and whether it is a good one.
pub(super) type Group = Vec<(Vec<f64>, bool)>;

impl Ranking {
    /// Fits weights w so that 1 / (1 + exp(-w·(a - b))) is the chance that a is the good one of a good one and a bad one. Each group
    /// counts the same; those that are all good or all bad say nothing.
    pub(super) fn fit(groups: &[Group], n: usize) -> Self {
        let rows = || groups.iter().flatten().map(|(figures, _)| figures);
        let scale: Vec<f64> = (0..n).map(|i| 1.0 / spread(rows().map(|row| row[i])).max(1e-6)).collect();
        let mut pairs: Vec<(Vec<f64>, f64)> = Vec::new();
        for group in groups {
            let of = |wanted: bool| group.iter().filter(move |(_, good)| *good == wanted).map(|(figures, _)| figures);
            let weight = 1.0 / (of(true).count() * of(false).count()).max(1) as f64;
            for (good, bad) in of(true).flat_map(|good| of(false).map(move |bad| (good, bad))) {
                let difference = (0..n).map(|i| (good[i] - bad[i]) * scale[i]).collect();
                pairs.push((difference, weight));
            }
        }
        let mut weights = vec![0.0; n];
        for _ in 0..MOST_STEPS {
            // Iteratively reweighted least squares.
            let mut equations = Normal::new(n);
            for (difference, weight) in &pairs {
                let at: f64 = difference.iter().zip(&weights).map(|(x, w)| x * w).sum();
                let p = 1.0 / (1.0 + (-at).exp());
                let curvature = (weight * p * (1.0 - p)).max(1e-9);
                let root = curvature.sqrt();
                let row: Vec<f64> = difference.iter().map(|x| x * root).collect();
                equations.add(&row, root * (at + weight * (1.0 - p) / curvature));
            }
            let Some(next) = equations.solve(&vec![PENALTY; n]) else { break };
            let moved = next.iter().zip(&weights).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            weights = next;
            if moved < 1e-9 {
                break;
            }
        }
        Self { scale, weights }
    }

    /// Returns a number that is higher the better a candidate is beside others for the same prompt.
    pub(super) fn score(&self, figures: &[f64]) -> f64 {
        figures.iter().zip(&self.scale).zip(&self.weights).map(|((x, scale), w)| x * scale * w).sum()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count of rows")]
fn spread(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let n = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / n;
    (values.map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Good is what has more of the first figure; the second is noise.
    fn groups() -> Vec<Group> {
        let noise = |i: u32| f64::from(i * 7919 % 13) / 13.0;
        let one = |i: u32| (0..4).map(|j| (vec![f64::from(j) * 2.0, noise(i * 4 + j)], j >= 2)).collect();
        (0..200).map(one).collect()
    }

    #[test]
    fn what_tells_good_from_bad_is_weighed() {
        let ranking = Ranking::fit(&groups(), 2);
        assert!(ranking.weights[0] > 1.0 && ranking.weights[1].abs() < 0.1 * ranking.weights[0], "{ranking:?}");
        assert!(ranking.score(&[6.0, 0.0]) > ranking.score(&[0.0, 1.0]));
    }

    #[test]
    fn nothing_learnt_ranks_all_alike() {
        let all_good: Group = vec![(vec![1.0], true), (vec![2.0], true)];
        let ranking = Ranking::fit(&[all_good], 1);
        assert_eq!((ranking.score(&[1.0]), ranking.score(&[9.0])), (0.0, 0.0));
        assert_eq!(Ranking::fit(&[], 2).score(&[1.0, 2.0]), 0.0);
    }
}
