//! A ridge model of rewards.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::super::matrix::Cholesky;
use super::{Asked, Context, Recipes};

/// Most features; the most frequent are taken.
const MOST_FEATURES: usize = 256;
/// The penalty of large coefficients.
const RIDGE: f64 = 1.0;

/// Rewards as a sum over operators, contexts, features, and operators for tasks.
#[derive(Debug)]
pub(super) struct RewardModel {
    columns: HashMap<String, usize>,
    coefficients: Vec<f64>,
    mean: f64,
}

impl RewardModel {
    pub(super) fn fit(requests: &[Asked<'_>], recipes: &Recipes) -> Self {
        let rows = || requests.iter().flat_map(|asked| asked.rows.iter().map(move |logged| (asked.context, logged)));
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (context, logged) in rows() {
            for (name, _) in features(context, &recipes.all[logged.recipe]) {
                *counts.entry(name).or_default() += 1;
            }
        }
        let mut names: Vec<(String, usize)> = counts.into_iter().collect();
        names.sort_by_key(|(_, n)| Reverse(*n));
        names.truncate(MOST_FEATURES);
        let columns: HashMap<String, usize> = names.into_iter().enumerate().map(|(i, (name, _))| (name, i)).collect();
        let n = columns.len();
        let n_rows = rows().count().max(1) as f64;
        let mean = rows().map(|(_, logged)| logged.row.reward).sum::<f64>() / n_rows;
        let (mut matrix, mut sums) = (vec![0.0; n * n], vec![0.0; n]);
        (0..n).for_each(|i| matrix[i * n + i] = RIDGE);
        for (context, logged) in rows() {
            let features = features(context, &recipes.all[logged.recipe]).into_iter();
            let row: Vec<(usize, f64)> = features.filter_map(|(name, x)| Some((*columns.get(&name)?, x))).collect();
            for &(i, x) in &row {
                sums[i] += x * (logged.row.reward - mean);
                row.iter().for_each(|&(j, y)| matrix[i * n + j] += x * y);
            }
        }
        let coefficients = Cholesky::new(&matrix, n).map_or_else(|| vec![0.0; n], |cholesky| cholesky.solve(&sums));
        Self { columns, coefficients, mean }
    }

    /// Returns the reward that is expected, 0 to 1.
    pub(super) fn reward(&self, context: &Context, recipe: &[(String, u32)]) -> f64 {
        let features = features(context, recipe).into_iter();
        let terms = features.filter_map(|(name, x)| Some(x * self.coefficients[*self.columns.get(&name)?]));
        (self.mean + terms.sum::<f64>()).clamp(0.0, 1.0)
    }
}

fn features(context: &Context, recipe: &[(String, u32)]) -> Vec<(String, f64)> {
    let mut features = context.all_features();
    let task = context.path().into_iter().nth(1).unwrap_or_default();
    let names = recipe.iter().map(|(name, _)| name.as_str()).chain(recipe.is_empty().then_some("no-op"));
    for name in names {
        features.push((format!("recipe has {name}"), 1.0));
        features.push((format!("recipe has {name} for {task}"), 1.0));
    }
    features
}
