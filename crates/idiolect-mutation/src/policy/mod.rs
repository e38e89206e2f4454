//! Which recipes are drawn, and how that is learnt.
//!
//! A [`Learner`] draws recipes by a policy and is told what each of them brought. Every draw comes with its propensity, so that
//! other policies can be judged by what was logged of this one ([`replay`](mod@replay)).
//!
//! ```
//! use idiolect_mutation::policy::{Context, Learner, PolicyConfig, Scored, Seed, Wish};
//! use idiolect_mutation::{Amount, Library, Mode, Task};
//!
//! let library = Library::built_in();
//! let learner = Learner::in_memory(PolicyConfig::default(), Seed::from(7))?;
//! let context = Context::new("grpc", "answer", "");
//! let wish = Wish { context: &context, task: Task::Answer, mode: &Mode::mutate(), amount: Amount::Usual, k: 3, request: 1 };
//! let draws = learner.draw(&library, &wish);
//! assert!(draws[0].recipe.is_no_op());
//! assert!(draws[1].propensity > 0.0 && draws[1].propensity <= 1.0);
//!
//! let scored: Vec<Scored<'_>> = draws.iter().zip([0.2, 0.9, 0.4]).map(|(draw, reward)| Scored { draw, reward }).collect();
//! learner.update(&context, &scored)?;
//! assert_eq!(learner.n_updates(), 1);
//! # Ok::<(), idiolect_mutation::policy::PolicyError>(())
//! ```
//!
//! When an operator's version changes, the new one begins with what was learnt of the old one, counted half.

mod arms;
mod context;
mod error;
mod exact;
mod exp3;
mod journal;
mod learner;
mod linear;
mod matrix;
mod pick;
mod random;
mod record;
pub mod replay;
mod state;
mod thompson;
mod tree;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use context::Context;
pub use error::PolicyError;
pub use learner::{Learner, Wish};
pub use random::Seed;
pub use record::{Draw, Scored};
pub use thompson::Posterior;

/// How recipes are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PolicyKind {
    /// Discounted Thompson sampling for each operator, shrunk from protocol to task to validator: the usual choice.
    #[default]
    Thompson,
    /// Linear Thompson sampling over operators and features: for many samples and features that matter.
    Linear,
    /// Exponential weights with mixing: for rewards that others work against, at the cost of slower learning.
    Exp3,
    /// Operators by their weights; nothing is learnt.
    Uniform,
    /// One recipe that is named.
    Fixed,
}

impl PolicyKind {
    /// All policies.
    pub const ALL: [Self; 5] = [Self::Thompson, Self::Linear, Self::Exp3, Self::Uniform, Self::Fixed];

    /// Returns the name used in files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Thompson => "thompson",
            Self::Linear => "linear",
            Self::Exp3 => "exp3",
            Self::Uniform => "uniform",
            Self::Fixed => "fixed",
        }
    }

    /// Says whether rewards change what is drawn.
    #[must_use]
    pub const fn learns(self) -> bool {
        !matches!(self, Self::Uniform | Self::Fixed)
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PolicyKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let expected = || format!("is {name:?}, expected thompson, linear, exp3, uniform or fixed");
        Self::ALL.into_iter().find(|kind| kind.as_str() == name).ok_or_else(expected)
    }
}

/// A policy's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// Which policy.
    pub kind: PolicyKind,
    /// What is left of everything learnt after one more request, above 0 and at most 1: 0.995 remembers about 200 requests.
    pub discount: f64,
    /// The least chance that a request with k = 1 goes unchanged, 0 to 0.9. With more candidates the no-op always is one.
    pub noop_floor: f64,
    /// How many rewards the wider context's mean is worth in the narrower one, above 0 (thompson).
    pub shrinkage: f64,
    /// The chance that a recipe gets one operator more, again and again up to the library's most, 0 to 0.9 (thompson, linear).
    pub second: f64,
    /// How much is drawn evenly, above 0 and at most 1 (exp3).
    pub mixing: f64,
    /// What each arm gets of all weight with each request, 0 to 0.1: about one over the requests between changes (exp3).
    pub share: f64,
    /// How wide is drawn around what is expected, 0 to 10 (linear).
    pub exploration: f64,
    /// The operators' names of the one recipe (fixed).
    pub recipe: Vec<String>,
    /// How many draws propensities are estimated by, 1 to 65536 (thompson, linear).
    pub propensity_draws: u32,
    /// Most contexts that are told apart; those that were not used for longest are merged into their parents.
    pub max_contexts: usize,
    /// Records between two snapshots of the state on disk, at least 1.
    pub snapshot_every: u64,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            kind: PolicyKind::default(),
            discount: 0.995,
            noop_floor: 0.10,
            shrinkage: 20.0,
            second: 0.25,
            mixing: 0.1,
            share: 0.001,
            exploration: 0.25,
            recipe: Vec::new(),
            propensity_draws: 256,
            max_contexts: 256,
            snapshot_every: 256,
        }
    }
}

impl PolicyConfig {
    /// Says whether the settings can work.
    ///
    /// # Errors
    /// [`PolicyError::Config`] naming every one that cannot.
    pub fn check(&self) -> Result<(), PolicyError> {
        let mut problems = Vec::new();
        let mut check = |name: &str, value: f64, is_good: bool, expected: &str| {
            if !is_good {
                problems.push(format!("{name} is {value}, expected {expected}"));
            }
        };
        let positive = |value: f64, most: f64| value > 0.0 && value <= most;
        check("discount", self.discount, positive(self.discount, 1.0), "above 0 and at most 1");
        check("noop_floor", self.noop_floor, (0.0..=0.9).contains(&self.noop_floor), "0 to 0.9");
        check("shrinkage", self.shrinkage, positive(self.shrinkage, 1e6), "above 0 and at most 1000000");
        check("second", self.second, (0.0..=0.9).contains(&self.second), "0 to 0.9");
        check("mixing", self.mixing, positive(self.mixing, 1.0), "above 0 and at most 1");
        check("share", self.share, (0.0..=0.1).contains(&self.share), "0 to 0.1");
        check("exploration", self.exploration, (0.0..=10.0).contains(&self.exploration), "0 to 10");
        let n = self.propensity_draws;
        check("propensity_draws", f64::from(n), (1..=65_536).contains(&n), "1 to 65536");
        let n = self.max_contexts;
        check("max_contexts", n as f64, (1..=65_536).contains(&n), "1 to 65536");
        check("snapshot_every", self.snapshot_every as f64, self.snapshot_every >= 1, "at least 1");
        if self.kind == PolicyKind::Fixed && self.recipe.is_empty() {
            problems.push("recipe is empty, expected the names of its operators".to_owned());
        }
        if problems.is_empty() { Ok(()) } else { Err(PolicyError::Config(problems)) }
    }
}

#[cfg(test)]
mod tests;
