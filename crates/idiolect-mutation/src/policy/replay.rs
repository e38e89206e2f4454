//! Judging policies by what was logged of another one.
//!
//! The log's first part teaches: policies that learn, and a ridge model of rewards. The rest is what they are judged on, each
//! as if it had drawn one recipe a request, in two ways: by the rewards that were logged, weighted by how much likelier the
//! judged policy would have drawn them (self-normalised inverse propensities), and by the model's rewards, corrected by
//! the logged ones (doubly robust; Dudík et al. 2011). Intervals are bootstrapped over requests.
//!
//! ```
//! use idiolect_mutation::policy::replay::{ReplayConfig, Row, Target, replay};
//!
//! let log: Vec<Row> = (0..200)
//!     .map(|i| {
//!         let (recipe, reward) = if i % 2 == 0 { ("no-op", 0.4) } else { ("angle.causes@1", 0.7) };
//!         serde_json::from_value(serde_json::json!({
//!             "context": {"protocol": "grpc", "task": "answer"}, "recipe": recipe, "propensity": 0.5, "reward": reward,
//!         }))
//!     })
//!     .collect::<Result<_, _>>()?;
//! let estimates = replay(&log, &[Target::Logged, "fixed:angle.causes".parse()?], &ReplayConfig::default())?;
//! assert!((estimates[0].doubly_robust.value - 0.55).abs() < 1e-9);
//! assert!((estimates[1].doubly_robust.value - 0.7).abs() < 0.02);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod model;
mod target;

use std::collections::BTreeSet;
use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};

use super::random::{Random, Seed};
use super::record::{Draw, name_of};
use super::{Context, PolicyConfig};

use model::RewardModel;
use target::Chances;
pub use target::{Target, UnknownTarget};

/// No logged reward counts for more than this many.
const MOST_WEIGHT: f64 = 10.0;
/// Most problems of a log that are told.
const MOST_PROBLEMS: usize = 10;

/// A line of a log: one recipe that was drawn, with what it brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The request's id: rows of one request belong together. Without it each row is a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// What was known of the request.
    #[serde(default)]
    pub context: Context,
    /// The recipe's name, with or without versions: `no-op`, `angle.causes@1+register.plain@2`.
    pub recipe: String,
    /// The chance that it had to be drawn, above 0 and at most 1.
    pub propensity: f64,
    /// What it brought, 0 to 1.
    pub reward: f64,
}

impl Row {
    /// Makes the row of a draw.
    pub fn new(request: impl Into<String>, context: &Context, draw: &Draw, reward: f64) -> Self {
        let (context, recipe) = (context.clone(), draw.recipe.to_string());
        Self { request: Some(request.into()), context, recipe, propensity: draw.propensity, reward }
    }

    fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.reward) {
            return Err(format!("reward is {}, expected 0 to 1", self.reward));
        }
        if !(self.propensity > 0.0 && self.propensity <= 1.0) {
            return Err(format!("propensity is {}, expected above 0 and at most 1", self.propensity));
        }
        recipe_of(&self.recipe)?;
        self.context.check().map_err(|error| error.to_string())
    }
}

/// Reads a recipe's name: its operators with their versions, by name. Those without have version 1.
fn recipe_of(text: &str) -> Result<Vec<(String, u32)>, String> {
    if text == "no-op" {
        return Ok(Vec::new());
    }
    let operator = |part: &str| {
        let (name, version) = match part.split_once('@') {
            Some((name, version)) => (name, version.parse().ok()?),
            None => (part, 1),
        };
        (!name.is_empty()).then(|| (name.to_owned(), version))
    };
    let operators: Option<BTreeSet<(String, u32)>> = text.split('+').map(operator).collect();
    let expected =
        || format!("recipe is {text:?}, expected no-op or operators such as angle.causes@1+register.plain@2");
    operators.map(|operators| operators.into_iter().collect()).ok_or_else(expected)
}

/// Why a log cannot be replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It cannot be read.
    #[error("cannot read {name}")]
    Read {
        /// The log's name.
        name: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It holds bad lines: the first of them are named.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// There is too little to learn and to judge by.
    #[error("the log has {0} requests, expected at least 2")]
    TooShort(usize),
    /// A setting that cannot work.
    #[error("{0}")]
    Config(String),
}

/// Reads a log of one JSON object a line; empty lines are none. `name` stands in error messages.
///
/// # Errors
/// [`ReplayError`] when it cannot be read, or naming the lines that are no rows.
pub fn read(log: impl BufRead, name: &str) -> Result<Vec<Row>, ReplayError> {
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    for (i, line) in log.lines().enumerate() {
        let line = line.map_err(|source| ReplayError::Read { name: name.to_owned(), source })?;
        if line.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str::<Row>(&line).map_err(|error| error.to_string());
        match row.and_then(|row| row.check().map(|()| row)) {
            Ok(row) => rows.push(row),
            Err(problem) => problems.push(format!("{name}:{}: {problem}", i + 1)),
        }
        if problems.len() >= MOST_PROBLEMS {
            break;
        }
    }
    if problems.is_empty() { Ok(rows) } else { Err(ReplayError::Invalid(problems)) }
}

/// How a log is replayed.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayConfig {
    /// The share of the requests, the first ones, that teaches; above 0 and below 1.
    pub learn_share: f64,
    /// The settings of the policies that learn; the kind does not count.
    pub policy: PolicyConfig,
    /// The seed of all draws.
    pub seed: u64,
    /// How often requests are drawn anew for intervals.
    pub n_resamples: u32,
}

impl Default for ReplayConfig {
    fn default() -> Self {
        Self { learn_share: 0.5, policy: PolicyConfig::default(), seed: 0, n_resamples: 1000 }
    }
}

/// A value with the interval that holds it 95 times in 100.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The value.
    pub value: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

/// What a policy would have had as a mean reward.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The policy.
    pub policy: String,
    /// Requests that it was judged on.
    pub n_requests: usize,
    /// Logged draws of them.
    pub n_rows: usize,
    /// Draws of the same use, were they the policy's own: few of them make a poor judgement.
    pub effective_sample_size: f64,
    /// The share of draws that would have counted for more than 10.
    pub clipped: f64,
    /// By logged rewards; `None` where none was of a recipe that it would draw.
    pub snips: Option<Interval>,
    /// By the model, corrected by logged rewards.
    pub doubly_robust: Interval,
}

/// One request of the log.
struct Asked<'a> {
    context: &'a Context,
    rows: Vec<Logged<'a>>,
}

struct Logged<'a> {
    row: &'a Row,
    /// The number of its recipe.
    recipe: usize,
}

/// The recipes of a log: those that occur with a task may be drawn for it.
struct Recipes {
    all: Vec<Vec<(String, u32)>>,
    names: Vec<String>,
}

/// What one request adds to an estimate.
#[derive(Clone, Copy, Default)]
struct Part {
    weights: f64,
    rewards: f64,
    robust: f64,
}

/// Judges policies by a log.
///
/// # Errors
/// [`ReplayError`] for rows or settings out of bounds, and where there are fewer than two requests.
pub fn replay(log: &[Row], targets: &[Target], config: &ReplayConfig) -> Result<Vec<Estimate>, ReplayError> {
    if !(config.learn_share > 0.0 && config.learn_share < 1.0) {
        let problem = format!("learn_share is {}, expected above 0 and below 1", config.learn_share);
        return Err(ReplayError::Config(problem));
    }
    config.policy.check().map_err(|error| ReplayError::Config(error.to_string()))?;
    let problems = log.iter().enumerate().filter_map(|(i, row)| Some(format!("row {}: {}", i + 1, row.check().err()?)));
    let problems: Vec<String> = problems.take(MOST_PROBLEMS).collect();
    if !problems.is_empty() {
        return Err(ReplayError::Invalid(problems));
    }
    let (recipes, requests) = by_request(log);
    if requests.len() < 2 {
        return Err(ReplayError::TooShort(requests.len()));
    }
    let n_learn = ((requests.len() as f64 * config.learn_share) as usize).clamp(1, requests.len() - 1);
    let (learnt, judged) = requests.split_at(n_learn);
    let model = RewardModel::fit(learnt, &recipes);
    let estimate = |target| estimate(target, &requests, learnt, judged, &recipes, &model, config);
    Ok(targets.iter().map(estimate).collect())
}

fn by_request(log: &[Row]) -> (Recipes, Vec<Asked<'_>>) {
    let mut recipes = Recipes { all: Vec::new(), names: Vec::new() };
    let mut places = std::collections::HashMap::new();
    let mut requests: Vec<Asked<'_>> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for row in log {
        // The rows were checked.
        let operators = recipe_of(&row.recipe).unwrap_or_default();
        let name = name_of(operators.iter().map(|(name, _)| name.as_str()));
        let recipe = *known.entry(name.clone()).or_insert_with(|| {
            recipes.all.push(operators);
            recipes.names.push(name);
            recipes.all.len() - 1
        });
        let place = match row.request.as_deref() {
            Some(id) => *places.entry(id).or_insert(requests.len()),
            None => requests.len(),
        };
        if place == requests.len() {
            requests.push(Asked { context: &row.context, rows: Vec::new() });
        }
        requests[place].rows.push(Logged { row, recipe });
    }
    (recipes, requests)
}

fn estimate(
    target: &Target,
    requests: &[Asked<'_>],
    learnt: &[Asked<'_>],
    judged: &[Asked<'_>],
    recipes: &Recipes,
    model: &RewardModel,
    config: &ReplayConfig,
) -> Estimate {
    let mut chances = Chances::new(target, requests, learnt, recipes, model, config);
    let mut parts = Vec::with_capacity(judged.len());
    let (mut sum, mut squares, mut n_clipped, mut n_rows) = (0.0, 0.0, 0_usize, 0_usize);
    for asked in judged {
        let mut part = Part::default();
        n_rows += asked.rows.len();
        match chances.of(asked.context) {
            // The policy that logged: its draws count as they are.
            None => {
                for logged in &asked.rows {
                    part.weights += 1.0;
                    part.rewards += logged.row.reward;
                }
                (sum, squares) = (sum + part.weights, squares + part.weights);
                part.robust = part.rewards / part.weights;
            }
            Some(chances) => {
                let of_model = |recipe: usize| model.reward(asked.context, &recipes.all[recipe]);
                part.robust = chances.iter().map(|&(recipe, chance)| chance * of_model(recipe)).sum();
                for logged in &asked.rows {
                    let found = chances.iter().find(|(recipe, _)| *recipe == logged.recipe);
                    let raw = found.map_or(0.0, |(_, chance)| chance / logged.row.propensity);
                    let weight = raw.min(MOST_WEIGHT);
                    n_clipped += usize::from(raw > MOST_WEIGHT);
                    part.weights += weight;
                    part.rewards += weight * logged.row.reward;
                    part.robust += weight * (logged.row.reward - of_model(logged.recipe));
                    (sum, squares) = (sum + weight, squares + weight * weight);
                }
            }
        }
        parts.push(part);
    }
    let (snips, doubly_robust) = intervals(&parts, config);
    Estimate {
        policy: target.to_string(),
        n_requests: judged.len(),
        n_rows,
        effective_sample_size: if squares > 0.0 { sum * sum / squares } else { 0.0 },
        clipped: n_clipped as f64 / n_rows.max(1) as f64,
        snips,
        doubly_robust,
    }
}

fn intervals(parts: &[Part], config: &ReplayConfig) -> (Option<Interval>, Interval) {
    let values = |parts: &mut dyn Iterator<Item = &Part>| {
        let sum = parts.fold(Part::default(), |a, b| Part {
            weights: a.weights + b.weights,
            rewards: a.rewards + b.rewards,
            robust: a.robust + b.robust,
        });
        (sum.rewards / sum.weights, sum.robust)
    };
    let n = parts.len();
    let (snips, robust) = values(&mut parts.iter());
    let mut random: Random = Seed::from(config.seed).random(0, 3);
    let mut drawn: (Vec<f64>, Vec<f64>) = Default::default();
    for _ in 0..config.n_resamples {
        let (snips, robust) = values(&mut (0..n).map(|_| &parts[random.below(n)]));
        // A resample may have no draw that counts.
        drawn.0.extend(snips.is_finite().then_some(snips));
        drawn.1.push(robust / n as f64);
    }
    let snips = snips.is_finite().then(|| interval(snips, drawn.0));
    (snips, interval(robust / n as f64, drawn.1))
}

fn interval(value: f64, mut drawn: Vec<f64>) -> Interval {
    drawn.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| drawn.get((drawn.len() as f64 * share) as usize).or(drawn.last()).copied().unwrap_or(value);
    Interval { value, low: at(0.025), high: at(0.975) }
}

#[cfg(test)]
mod tests;
