//! The policies that can be judged, and the chances with which they draw.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use super::super::pick::{Scores as _, single};
use super::super::random::Seed;
use super::super::record::{Played, Record, ScoredRecord, name_of};
use super::super::state::{Model, State};
use super::super::thompson::Beliefs;
use super::super::{PolicyConfig, PolicyKind};
use super::model::RewardModel;
use super::{Asked, Context, Recipes, ReplayConfig, recipe_of};

/// A policy that is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// The one that was logged.
    Logged,
    /// Nothing is ever changed.
    NoOp,
    /// Each recipe that was logged for the task as often as any other.
    Uniform,
    /// Always the same operators.
    Fixed(Vec<String>),
    /// The recipe of which the ridge model expects most.
    Greedy,
    /// One that learns of the log's first part.
    Learnt(PolicyKind),
}

impl Target {
    /// Those that are judged where none is named.
    pub const USUAL: [Self; 7] = [
        Self::Logged,
        Self::NoOp,
        Self::Uniform,
        Self::Greedy,
        Self::Learnt(PolicyKind::Thompson),
        Self::Learnt(PolicyKind::Linear),
        Self::Learnt(PolicyKind::Exp3),
    ];
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Logged => f.write_str("logged"),
            Self::NoOp => f.write_str("no-op"),
            Self::Uniform => f.write_str("uniform"),
            Self::Fixed(names) => write!(f, "fixed:{}", names.join("+")),
            Self::Greedy => f.write_str("greedy"),
            Self::Learnt(kind) => kind.fmt(f),
        }
    }
}

/// No policy has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is {0:?}, expected logged, no-op, uniform, greedy, thompson, linear, exp3 or fixed:OPERATOR[+OPERATOR]")]
pub struct UnknownTarget(String);

impl FromStr for Target {
    type Err = UnknownTarget;

    fn from_str(text: &str) -> Result<Self, UnknownTarget> {
        let unknown = || UnknownTarget(text.to_owned());
        if let Some(recipe) = text.strip_prefix("fixed:") {
            let operators = recipe_of(recipe).map_err(|_| unknown())?;
            return Ok(Self::Fixed(operators.into_iter().map(|(name, _)| name).collect()));
        }
        match text {
            "logged" => Ok(Self::Logged),
            "no-op" => Ok(Self::NoOp),
            "uniform" => Ok(Self::Uniform),
            "greedy" => Ok(Self::Greedy),
            _ => text.parse().ok().filter(|kind: &PolicyKind| kind.learns()).map(Self::Learnt).ok_or_else(unknown),
        }
    }
}

/// The chances of recipes; those that are left out have none.
type Drawn = Vec<(usize, f64)>;

/// Finds with what chance a policy draws each recipe, k = 1.
pub(super) struct Chances<'a> {
    target: &'a Target,
    recipes: &'a Recipes,
    model: &'a RewardModel,
    config: &'a ReplayConfig,
    policy: PolicyConfig,
    /// What was learnt, where the policy learns.
    state: Option<State>,
    /// By task, the recipes that were logged for it.
    by_task: BTreeMap<String, BTreeSet<usize>>,
    /// The number of the recipe that is always drawn; of one that was never logged, the number after the last.
    fixed: usize,
    /// What was found before, by context.
    known: BTreeMap<String, Drawn>,
}

impl<'a> Chances<'a> {
    pub(super) fn new(
        target: &'a Target,
        requests: &[Asked<'_>],
        learnt: &[Asked<'_>],
        recipes: &'a Recipes,
        model: &'a RewardModel,
        config: &'a ReplayConfig,
    ) -> Self {
        let mut by_task: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for asked in requests {
            by_task.entry(task_of(asked.context)).or_default().extend(asked.rows.iter().map(|logged| logged.recipe));
        }
        let name = match target {
            Target::Fixed(names) => name_of(names.iter().map(String::as_str)),
            _ => "no-op".to_owned(),
        };
        let fixed = recipes.names.iter().position(|other| *other == name).unwrap_or(recipes.names.len());
        let kind = if let Target::Learnt(kind) = target { *kind } else { PolicyKind::Uniform };
        let policy = PolicyConfig { kind, recipe: Vec::new(), ..config.policy.clone() };
        let state = kind.learns().then(|| {
            let mut state = State::new(kind);
            for asked in learnt {
                let n = by_task.get(&task_of(asked.context)).map_or(1, BTreeSet::len);
                state.update(&policy, &record(asked, recipes, n));
            }
            state
        });
        Self { target, recipes, model, config, policy, state, by_task, fixed, known: BTreeMap::new() }
    }

    /// Returns the chances in a context; `None` for the policy that was logged.
    pub(super) fn of(&mut self, context: &Context) -> Option<&Drawn> {
        if *self.target == Target::Logged {
            return None;
        }
        let key = match &self.state {
            Some(State { model: Model::Linear(_), .. }) => format!("{:?}", context.all_features()),
            None if *self.target == Target::Greedy => format!("{:?}", context.all_features()),
            _ => context.path().join("\u{1f}"),
        };
        if !self.known.contains_key(&key) {
            let chances = self.find(context);
            self.known.insert(key.clone(), chances);
        }
        self.known.get(&key)
    }

    fn find(&self, context: &Context) -> Drawn {
        let possible: Vec<usize> = self.by_task.get(&task_of(context)).into_iter().flatten().copied().collect();
        match self.target {
            Target::NoOp | Target::Fixed(_) if self.fixed < self.recipes.all.len() => vec![(self.fixed, 1.0)],
            Target::Logged | Target::NoOp | Target::Fixed(_) => Vec::new(),
            Target::Uniform => possible.iter().map(|&recipe| (recipe, 1.0 / possible.len() as f64)).collect(),
            Target::Greedy => {
                let reward = |recipe: usize| self.model.reward(context, &self.recipes.all[recipe]);
                let best = possible.iter().copied().max_by(|&a, &b| reward(a).total_cmp(&reward(b)).then(b.cmp(&a)));
                best.map(|recipe| (recipe, 1.0)).into_iter().collect()
            }
            Target::Learnt(_) => self.learnt(context, &possible),
        }
    }

    /// Returns the chances of the learnt policy: a recipe's score is the mean of its operators'. Operators' weights are not in the
    /// log, so all count as one.
    fn learnt(&self, context: &Context, possible: &[usize]) -> Drawn {
        let Some(state) = &self.state else { return Vec::new() };
        let names: BTreeSet<(&str, u32)> =
            possible.iter().flat_map(|&recipe| arms(&self.recipes.all[recipe])).collect();
        let names: Vec<(&str, u32)> = names.into_iter().collect();
        let operators = |recipe: usize| -> Vec<usize> {
            let place = |arm| names.iter().position(|name| *name == arm);
            arms(&self.recipes.all[recipe]).filter_map(place).collect()
        };
        let arms_of: Vec<Vec<usize>> = possible.iter().map(|&recipe| operators(recipe)).collect();
        let mean = |scores: &[f64]| -> Vec<f64> {
            let of = |arms: &Vec<usize>| arms.iter().map(|&i| scores[i]).sum::<f64>() / arms.len().max(1) as f64;
            arms_of.iter().map(of).collect()
        };
        let mut shares = match &state.model {
            Model::Exp3(exp3) => mean(&exp3.chances(&self.policy, context, names.iter().copied())),
            Model::Thompson(thompson) => {
                let path = context.path();
                let belief = |&(name, version): &(&str, u32)| thompson.posterior(&self.policy, &path, name, version);
                let beliefs = Beliefs(names.iter().map(belief).collect());
                self.by_best(possible.len(), |random| {
                    let mut scores = vec![0.0; names.len()];
                    beliefs.sample(random, &vec![1; names.len()], &mut scores);
                    mean(&scores)
                })
            }
            Model::Linear(linear) => {
                let slotted = |&recipe: &usize| {
                    self.recipes.all[recipe].iter().map(|(name, _)| (name.as_str(), slot_of(name))).collect()
                };
                let belief = linear.belief(&self.policy, context, possible.iter().map(slotted));
                self.by_best(possible.len(), |random| {
                    let mut scores = vec![0.0; possible.len()];
                    belief.sample(random, &vec![1; possible.len()], &mut scores);
                    scores
                })
            }
            Model::Still => vec![1.0; possible.len()],
        };
        let no_op = possible.iter().position(|&recipe| self.recipes.all[recipe].is_empty());
        match no_op {
            // The one with a floor has to be the last.
            Some(place) => {
                let last = shares.len() - 1;
                shares.swap(place, last);
                shares = single(&shares, self.policy.noop_floor);
                shares.swap(place, last);
            }
            None => shares = single(&shares, 0.0),
        }
        possible.iter().copied().zip(shares).collect()
    }

    /// Returns how often each of `n` was the best of the scores that are drawn.
    fn by_best(&self, n: usize, mut draw: impl FnMut(&mut super::Random) -> Vec<f64>) -> Vec<f64> {
        let mut random = Seed::from(self.config.seed).random(0, 2);
        let mut n_best = vec![0.0; n];
        for _ in 0..self.policy.propensity_draws {
            let scores = draw(&mut random);
            let best = (0..n).max_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)));
            if let Some(best) = best {
                n_best[best] += 1.0;
            }
        }
        n_best
    }
}

fn task_of(context: &Context) -> String {
    context.path().into_iter().nth(1).unwrap_or_default()
}

/// Returns a recipe's arms; the no-op's has no name.
fn arms(recipe: &[(String, u32)]) -> impl Iterator<Item = (&str, u32)> {
    let no_op = recipe.is_empty().then_some(("", 0));
    recipe.iter().map(|(name, version)| (name.as_str(), *version)).chain(no_op)
}

/// Returns the slot that an operator's name tells; logs have no other.
fn slot_of(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn record(asked: &Asked<'_>, recipes: &Recipes, n_recipes: usize) -> Record {
    let played = |(name, version): &(String, u32)| Played {
        name: name.clone(),
        version: *version,
        slot: slot_of(name).to_owned(),
    };
    let scored = asked.rows.iter().map(|logged| ScoredRecord {
        operators: recipes.all[logged.recipe].iter().map(played).collect(),
        propensity: logged.row.propensity,
        reward: logged.row.reward,
        n_arms: u32::try_from(n_recipes).unwrap_or(u32::MAX),
    });
    Record { context: asked.context.clone(), scored: scored.collect(), again: false }
}
