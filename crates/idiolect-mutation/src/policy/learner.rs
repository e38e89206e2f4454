//! A policy at work.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Amount, Library, Mode, Operator, Recipe, Task};

use super::arms::Arms;
use super::context::Context;
use super::journal::Journal;
use super::pick::{Pick, Wanted, by_chances, by_scores};
use super::random::{Random, Seed};
use super::record::{Draw, Record, Scored};
use super::state::{Model, State};
use super::thompson::Posterior;
use super::{PolicyConfig, PolicyError, PolicyKind};

/// What recipes are wanted for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// What rewards may depend on.
    pub context: &'a Context,
    /// The task.
    pub task: Task,
    /// What the route allows.
    pub mode: &'a Mode,
    /// How much is varied: at [`Amount::Most`] preferred slots weigh more. It does not lower `k`.
    pub amount: Amount,
    /// How many recipes, the no-op included.
    pub k: usize,
    /// The request's number; each has its own random numbers.
    pub request: u64,
}

/// Draws recipes by a policy, and learns of what they brought.
///
/// What is drawn depends on the library, the seed, what was learnt so far and the request's number; threads change nothing.
/// An operator of twice the weight is drawn twice as often where nothing was learnt of either; the more was learnt, the less
/// weights count. For k = 1 it is one recipe, which may be the no-op. For more, the first is the no-op and the others are different recipes;
/// all of them should be scored and learnt of. A draw takes the time of some hundred draws where its propensities have to be
/// estimated, a millisecond or a few.
#[derive(Debug)]
pub struct Learner {
    config: PolicyConfig,
    seed: Seed,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    journal: Option<Journal>,
}

impl Learner {
    /// Makes a policy that forgets when it is dropped.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming every setting that cannot work.
    pub fn in_memory(config: PolicyConfig, seed: Seed) -> Result<Self, PolicyError> {
        config.check()?;
        let state = State::new(config.kind);
        Ok(Self { config, seed, inner: Mutex::new(Inner { state, journal: None }) })
    }

    /// Opens a policy that keeps what it learns in two files of a folder, named after the policy. Each policy has its own, so
    /// changing to another one and back loses nothing.
    ///
    /// Every record is with the system before [`update`](Self::update) returns: killing the process at any moment loses at most
    /// the one that is being written. A power cut may cost those since the last snapshot.
    ///
    /// # Errors
    /// [`PolicyError`] for settings that cannot work, and for files that cannot be read, are damaged or in use.
    pub fn open(config: PolicyConfig, seed: Seed, dir: &Path) -> Result<Self, PolicyError> {
        config.check()?;
        if !config.kind.learns() {
            return Self::in_memory(config, seed);
        }
        let (journal, state) = Journal::open(dir, &config)?;
        tracing::debug!(policy = %config.kind, n_updates = state.n_updates, "learnt state read");
        Ok(Self { config, seed, inner: Mutex::new(Inner { state, journal: Some(journal) }) })
    }

    /// Returns the settings.
    #[must_use]
    pub const fn config(&self) -> &PolicyConfig {
        &self.config
    }

    /// Returns how many requests were learnt of.
    #[must_use]
    pub fn n_updates(&self) -> u64 {
        self.lock().state.n_updates
    }

    /// Returns how many contexts are told apart.
    #[must_use]
    pub fn n_contexts(&self) -> usize {
        self.lock().state.n_contexts()
    }

    /// Draws recipes with their propensities, in the order in which they should be tried. There are fewer than `k` where the
    /// library has no more, and only the no-op in passthrough.
    #[must_use]
    pub fn draw(&self, library: &Library, wish: &Wish<'_>) -> Vec<Draw> {
        let arms = Arms::new(library, wish, &mut self.seed.random(wish.request, 1));
        let n_arms = u32::try_from(arms.len()).unwrap_or(u32::MAX);
        let draw = |(recipe, propensity): (Recipe, f64)| Draw { recipe, propensity, n_arms };
        let no_op = || draw((Recipe::no_op(), 1.0));
        if arms.is_empty() || wish.k == 0 {
            return vec![no_op()];
        }
        if self.config.kind == PolicyKind::Fixed {
            let fixed = self.fixed(library, wish).map(|recipe| draw((recipe, 1.0)));
            return (wish.k > 1 || fixed.is_none()).then(no_op).into_iter().chain(fixed).collect();
        }
        let picks = self.pick(&arms, wish, &mut self.seed.random(wish.request, 0));
        let draws = picks.into_iter().filter_map(|pick| Some(draw((arms.recipe(&pick.arms)?, pick.propensity))));
        let draws: Vec<Draw> = draws.collect();
        if draws.is_empty() { vec![no_op()] } else { draws }
    }

    fn pick(&self, arms: &Arms<'_>, wish: &Wish<'_>, random: &mut Random) -> Vec<Pick> {
        let PolicyConfig { noop_floor, second, propensity_draws: n_estimates, .. } = self.config;
        let wanted = Wanted { k: wish.k, noop_floor, second, n_estimates };
        let inner = self.lock();
        match &inner.state.model {
            Model::Thompson(thompson) => {
                let beliefs = thompson.beliefs(&self.config, wish.context, arms);
                drop(inner);
                by_scores(arms, &beliefs, wanted, random)
            }
            Model::Linear(linear) => {
                let linear = linear.clone();
                drop(inner);
                by_scores(arms, &linear.beliefs(&self.config, wish.context, arms), wanted, random)
            }
            Model::Exp3(exp3) => {
                let chances = exp3.arm_chances(&self.config, wish.context, arms);
                drop(inner);
                by_chances(arms, &chances, wanted, random)
            }
            Model::Still => {
                drop(inner);
                // The no-op is as likely as an operator whose slot is not preferred, whatever the others weigh.
                let mut weights: Vec<f64> = (0..arms.len()).map(|i| arms.weight(i)).collect();
                weights.push((0..arms.len()).map(|i| arms.lead(i).weight).sum::<f64>() / arms.len() as f64);
                by_chances(arms, &weights, wanted, random)
            }
        }
    }

    fn fixed(&self, library: &Library, wish: &Wish<'_>) -> Option<Recipe> {
        let usable = library.usable(wish.task, wish.mode);
        let operator = |name: &String| usable.iter().copied().find(|operator| operator.name == *name);
        // Those that the task or the route does not allow are no fault, nor is a library that changed.
        let operators = self.config.recipe.iter().map(operator).collect::<Option<Vec<&Operator>>>()?;
        let recipe = library.compose(&operators, wish.task, self.seed.random(wish.request, 1).next());
        recipe.inspect_err(|error| tracing::warn!(%error, "recipe left out")).ok()
    }

    /// Says what of the settings does not go with a library.
    ///
    /// # Errors
    /// [`PolicyError::Config`] for a fixed recipe of operators that are not there or do not go together.
    pub fn check(&self, library: &Library) -> Result<(), PolicyError> {
        if self.config.kind != PolicyKind::Fixed {
            return Ok(());
        }
        let mut operators = Vec::new();
        let mut problems = Vec::new();
        for name in &self.config.recipe {
            match library.operators().iter().find(|operator| operator.name == *name) {
                Some(operator) => operators.push(operator),
                None => problems.push(format!("recipe has {name:?}, expected operators of the library")),
            }
        }
        let task = operators.iter().find_map(|operator| operator.tasks.first().copied()).unwrap_or_default();
        if problems.is_empty()
            && let Err(error) = library.compose(&operators, task, 0)
        {
            problems.push(format!("recipe: {error}"));
        }
        if problems.is_empty() { Ok(()) } else { Err(PolicyError::Config(problems)) }
    }

    /// Learns what a request's recipes brought, all of them at once.
    ///
    /// # Errors
    /// [`PolicyError`] for a reward, a propensity or a feature out of bounds, or where it cannot be written down: then nothing
    /// is learnt of any of them.
    pub fn update(&self, context: &Context, scored: &[Scored<'_>]) -> Result<(), PolicyError> {
        self.take_in(Record::new(context, scored)?)
    }

    /// Learns more of a request that [`update`](Self::update) was told of before: what a validator gave for a reply, for one. It is
    /// one more observation, and what was learnt earlier does not fade for it.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn update_again(&self, context: &Context, scored: &[Scored<'_>]) -> Result<(), PolicyError> {
        self.take_in(Record { again: true, ..Record::new(context, scored)? })
    }

    fn take_in(&self, record: Record) -> Result<(), PolicyError> {
        if record.scored.is_empty() || !self.config.kind.learns() {
            return Ok(());
        }
        let mut inner = self.lock();
        let Inner { state, journal } = &mut *inner;
        if let Some(journal) = journal {
            journal.append(state.n_updates + 1, &record)?;
        }
        state.update(&self.config, &record);
        // The record is in the journal: a snapshot that fails is tried again after the next one.
        if let Some(journal) = journal
            && journal.n_lines() >= self.config.snapshot_every
            && let Err(error) = journal.write_snapshot(state)
        {
            tracing::warn!(%error, "no snapshot of the learnt state");
        }
        Ok(())
    }

    /// Returns what Thompson sampling believes of an operator in a context, or of the no-op where none is named; `None` for
    /// other policies.
    #[must_use]
    pub fn posterior(&self, context: &Context, operator: Option<&Operator>) -> Option<Posterior> {
        let inner = self.lock();
        let Model::Thompson(thompson) = &inner.state.model else { return None };
        let (name, version) = operator.map_or(("", 0), |operator| (operator.name.as_str(), operator.version));
        Some(thompson.posterior(&self.config, &context.path(), name, version))
    }

    /// Returns the learnt state as JSON.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.lock().state).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
