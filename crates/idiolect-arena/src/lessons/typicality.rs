//! How far a reply is from everybody's, by what other prompts teach.

use std::collections::HashMap;

use idiolect_backend::Embedding;
use idiolect_uniqueness::distinctiveness::{N_COUNTED, counted};
use idiolect_uniqueness::vectors::normalised;

use super::linear::Normal;
use super::{Asked, Lesson, N_FOLDS, logarithm, mean};
use crate::replies::Replies;

/// Nearer than this a reply's neighbour says no more of how typical it is.
const TYPICAL: f64 = 0.02;
/// Penalties on the weights of embeddings, whose values are small, and of what is counted, which has unit spread.
const PENALTY_EMBEDDING: f64 = 5.0;
const PENALTY_STYLE: f64 = 30.0;

/// What all of the record teaches.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) counted: Vec<f64>,
    pub(super) embedding: Vec<f64>,
}

/// Returns the weights of what is counted and of embeddings, by all of the record, and the predictions of typicality by the fold left out:
/// higher is farther from everybody.
pub(super) fn predict(
    replies: &Replies,
    embeddings: &[Embedding],
    asked: &HashMap<String, Asked>,
    lessons: &[Lesson<'_>],
) -> (Weights, Vec<Vec<f64>>) {
    let n_values = embeddings.first().map_or(0, Vec::len);
    let n = N_COUNTED + n_values;
    let counted: Vec<[f64; N_COUNTED]> = replies
        .all()
        .iter()
        .zip(embeddings)
        .map(|(reply, embedding)| counted(&reply.text, embedding, asked.get(&reply.prompt).map(Asked::prompt)))
        .collect();
    let scale = scales(&counted, lessons);
    let row = |reply: usize| -> Vec<f64> {
        let styles = counted[reply].iter().zip(&scale).map(|(figure, scale)| figure * scale);
        let unit = normalised(&embeddings[reply]).unwrap_or_else(|| vec![0.0; n_values]);
        styles.chain(unit.into_iter().map(f64::from)).collect()
    };
    let mut folds = vec![Normal::new(n); N_FOLDS];
    for lesson in lessons {
        let usable: Vec<usize> =
            (0..lesson.replies.len()).filter(|&i| embeddings[lesson.replies[i]].len() == n_values).collect();
        let rows: Vec<Vec<f64>> = usable.iter().map(|&i| row(lesson.replies[i])).collect();
        let targets: Vec<f64> = usable.iter().map(|&i| nearest_other(lesson, i)).collect();
        let centre: Vec<f64> = (0..n).map(|k| mean(&rows.iter().map(|row| row[k]).collect::<Vec<_>>())).collect();
        let middle = mean(&targets);
        for (row, target) in rows.iter().zip(targets) {
            let centred: Vec<f64> = row.iter().zip(&centre).map(|(value, centre)| value - centre).collect();
            folds[lesson.fold].add(&centred, target - middle);
        }
    }
    let mut penalties = vec![PENALTY_STYLE; N_COUNTED];
    penalties.resize(n, PENALTY_EMBEDDING);
    let without = |left_out: &[usize]| {
        let mut equations = Normal::new(n);
        for (_, of_fold) in folds.iter().enumerate().filter(|(fold, _)| !left_out.contains(fold)) {
            equations.add_all(1.0, of_fold);
        }
        equations.solve(&penalties).unwrap_or_else(|| vec![0.0; n])
    };
    let mut predicted = vec![vec![0.0; replies.all().len()]; N_FOLDS];
    for a in 0..N_FOLDS {
        for b in 0..=a {
            let weights = without(&[a, b]);
            for (left_out, of_fold) in [(a, b), (b, a)] {
                for &reply in lessons.iter().filter(|lesson| lesson.fold == of_fold).flat_map(|lesson| &lesson.replies)
                {
                    if embeddings[reply].len() == n_values {
                        predicted[left_out][reply] = row(reply).iter().zip(&weights).map(|(x, w)| x * w).sum();
                    }
                }
            }
        }
    }
    let mut weights = without(&[]);
    let of_embedding = weights.split_off(N_COUNTED);
    let of_counted = weights.iter().zip(&scale).map(|(weight, scale)| weight * scale).collect();
    (Weights { counted: of_counted, embedding: of_embedding }, predicted)
}

/// Returns one over the spread of each figure around the mean of its prompt.
#[expect(clippy::cast_precision_loss, reason = "a count of replies")]
fn scales(counted: &[[f64; N_COUNTED]], lessons: &[Lesson<'_>]) -> [f64; N_COUNTED] {
    let mut squares = [0.0; N_COUNTED];
    for lesson in lessons {
        for (k, square) in squares.iter_mut().enumerate() {
            let values: Vec<f64> = lesson.replies.iter().map(|&reply| counted[reply][k]).collect();
            let middle = mean(&values);
            *square += values.iter().map(|value| (value - middle).powi(2)).sum::<f64>();
        }
    }
    squares.map(|square| 1.0 / (square / counted.len().max(1) as f64).sqrt().max(1e-6))
}

/// Returns the logarithm of the distance to the nearest of all others.
fn nearest_other(lesson: &Lesson<'_>, index: usize) -> f64 {
    let others = lesson.distances[index].iter().enumerate().filter(|(other, _)| *other != index);
    others.map(|(_, &distance)| logarithm(distance)).fold(0.0, f64::min).max(TYPICAL.ln())
}
