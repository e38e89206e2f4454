//! Discounted linear Thompson sampling over operators and features.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::arms::{Arms, hash};
use super::context::Context;
use super::matrix::Cholesky;
use super::pick::Scores;
use super::random::Random;
use super::record::{Played, Record};
use super::{PolicyConfig, exact};

/// The columns: one for all requests, one for the no-op, some for operators (each its own while there are any, then shared by
/// the names' hashes), the rest for what slots make of features, shared by hashes.
const COLUMNS: usize = 64;
const OPERATORS: std::ops::Range<usize> = 2..42;
const CROSSED: std::ops::Range<usize> = 42..COLUMNS;
/// What is known before anything is, in rewards of each column.
const RIDGE: f64 = 1.0;
/// Rewards are told from this, which is what is expected of what is not known.
const MIDDLE: f64 = 0.5;
/// Larger sums are no miner's.
const BOUND: f64 = 1e9;

/// An operator's column.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Column {
    place: usize,
    version: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Linear {
    operators: BTreeMap<String, Column>,
    /// The sum of the features' products without the ridge, row by row.
    #[serde(with = "exact::list")]
    products: Vec<f64>,
    /// The sum of the features times their rewards.
    #[serde(with = "exact::list")]
    rewards: Vec<f64>,
}

impl Default for Linear {
    fn default() -> Self {
        let (products, rewards) = (vec![0.0; COLUMNS * COLUMNS], vec![0.0; COLUMNS]);
        Self { operators: BTreeMap::new(), products, rewards }
    }
}

/// Features that are not 0.
type Row = Vec<(usize, f64)>;

impl Linear {
    fn place_of(&self, name: &str) -> usize {
        let shared = || OPERATORS.start + (hash(name) % OPERATORS.len() as u64) as usize;
        self.operators.get(name).map_or_else(shared, |column| column.place)
    }

    fn row<'a>(&self, operators: impl Iterator<Item = (&'a str, &'a str)>, features: &[(String, f64)]) -> Row {
        let mut row: Row = vec![(0, 1.0)];
        let mut add = |place: usize, value: f64| match row.iter_mut().find(|(other, _)| *other == place) {
            Some((_, sum)) => *sum += value,
            None => row.push((place, value)),
        };
        let cross = |slot: &str, add: &mut dyn FnMut(usize, f64)| {
            for (name, value) in features {
                let hash = hash(&format!("{slot}\u{1f}{name}"));
                // The sign makes what shares a column cancel out rather than add up.
                let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
                add(CROSSED.start + (hash % CROSSED.len() as u64) as usize, sign * value);
            }
        };
        let mut is_no_op = true;
        for (name, slot) in operators {
            is_no_op = false;
            add(self.place_of(name), 1.0);
            cross(slot, &mut add);
        }
        if is_no_op {
            add(1, 1.0);
            cross("", &mut add);
        }
        row
    }

    /// Gives an operator a column, and believes half of what was learnt of another version of it.
    fn prepare(&mut self, operator: &Played) {
        if let Some(column) = self.operators.get_mut(&operator.name) {
            if column.version != operator.version {
                column.version = operator.version;
                let place = column.place;
                self.halve(place);
            }
            return;
        }
        let is_free = |place: &usize| self.operators.values().all(|column| column.place != *place);
        if let Some(place) = OPERATORS.into_iter().find(is_free) {
            self.operators.insert(operator.name.clone(), Column { place, version: operator.version });
        }
    }

    /// Halves the weight of what a column was learnt by; what is expected stays.
    fn halve(&mut self, place: usize) {
        let Some(expected) = self.cholesky().map(|cholesky| cholesky.solve(&self.rewards)) else { return };
        let root_half = std::f64::consts::FRAC_1_SQRT_2;
        for other in 0..COLUMNS {
            self.products[place * COLUMNS + other] *= root_half;
            self.products[other * COLUMNS + place] *= root_half;
        }
        let matrix = self.matrix();
        for (reward, row) in self.rewards.iter_mut().zip(matrix.chunks(COLUMNS)) {
            *reward = row.iter().zip(&expected).map(|(a, b)| a * b).sum();
        }
    }

    pub(crate) fn update(&mut self, config: &PolicyConfig, record: &Record) {
        let discount = if record.again { 1.0 } else { config.discount };
        for sum in self.products.iter_mut().chain(&mut self.rewards) {
            *sum *= discount;
        }
        let features = record.context.all_features();
        for scored in &record.scored {
            scored.operators.iter().for_each(|operator| self.prepare(operator));
            let row = self.row(scored.operators.iter().map(|o| (o.name.as_str(), o.slot.as_str())), &features);
            for &(i, x) in &row {
                self.rewards[i] = (self.rewards[i] + x * (scored.reward - MIDDLE)).clamp(-BOUND, BOUND);
                for &(j, y) in &row {
                    let sum = &mut self.products[i * COLUMNS + j];
                    *sum = (*sum + x * y).clamp(-BOUND, BOUND);
                }
            }
        }
    }

    fn matrix(&self) -> Vec<f64> {
        let mut matrix = self.products.clone();
        for i in 0..COLUMNS {
            matrix[i * COLUMNS + i] += RIDGE;
        }
        matrix
    }

    fn cholesky(&self) -> Option<Cholesky> {
        Cholesky::new(&self.matrix(), COLUMNS)
    }

    /// Returns what scores are drawn from, for recipes of operators with their slots.
    pub(crate) fn belief<'a>(
        &self,
        config: &PolicyConfig,
        context: &Context,
        recipes: impl Iterator<Item = Vec<(&'a str, &'a str)>>,
    ) -> LinearBelief {
        let features = context.all_features();
        let rows = recipes.map(|recipe| self.row(recipe.into_iter(), &features)).collect();
        // What rounding made unsolvable is not known; a file cannot hold it.
        let cholesky = self.cholesky();
        let mean = cholesky.as_ref().map_or_else(|| vec![0.0; COLUMNS], |cholesky| cholesky.solve(&self.rewards));
        LinearBelief { rows, mean, cholesky, exploration: config.exploration }
    }

    pub(crate) fn beliefs(&self, config: &PolicyConfig, context: &Context, arms: &Arms<'_>) -> LinearBelief {
        let lead = |i: usize| vec![(arms.lead(i).name.as_str(), arms.lead(i).slot.as_str())];
        self.belief(config, context, (0..arms.len()).map(lead).chain([Vec::new()]))
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        if self.products.len() != COLUMNS * COLUMNS || self.rewards.len() != COLUMNS {
            let (n, m) = (self.products.len(), self.rewards.len());
            return Err(format!("it has {n} products and {m} rewards, expected {} and {COLUMNS}", COLUMNS * COLUMNS));
        }
        let sums = || self.products.iter().chain(&self.rewards);
        if let Some(sum) = sums().find(|sum| !(-BOUND..=BOUND).contains(*sum)) {
            return Err(format!("a sum is {sum}, expected -1e9 to 1e9"));
        }
        if let Some((name, column)) = self.operators.iter().find(|(_, column)| !OPERATORS.contains(&column.place)) {
            return Err(format!("{name} has column {}, expected {OPERATORS:?}", column.place));
        }
        self.cholesky().map(|_| ()).ok_or_else(|| "its products are not those of any features".to_owned())
    }
}

/// What is believed of all arms of a request, the no-op last.
#[derive(Clone, Debug)]
pub(crate) struct LinearBelief {
    rows: Vec<Row>,
    mean: Vec<f64>,
    cholesky: Option<Cholesky>,
    exploration: f64,
}

impl Scores for LinearBelief {
    fn sample(&self, random: &mut Random, copies: &[u32], scores: &mut [f64]) {
        scores.fill(f64::NEG_INFINITY);
        let most = copies.iter().copied().max().unwrap_or(1).max(1);
        for nth in 0..most {
            let weights = self.weights(random);
            let of_copies = scores.iter_mut().zip(&self.rows).zip(copies);
            for ((score, row), _) in of_copies.filter(|(_, copies)| nth < (**copies).max(1)) {
                *score = score.max(row.iter().map(|&(i, x)| x * weights[i]).sum());
            }
        }
    }
}

impl LinearBelief {
    /// Draws what each column may be worth.
    fn weights(&self, random: &mut Random) -> Vec<f64> {
        let mut weights: Vec<f64> = (0..COLUMNS).map(|_| random.normal()).collect();
        if let Some(cholesky) = &self.cholesky {
            cholesky.solve_transposed(&mut weights);
        }
        for (weight, mean) in weights.iter_mut().zip(&self.mean) {
            *weight = mean + self.exploration * *weight;
        }
        weights
    }
}
