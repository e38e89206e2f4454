//! What a policy has learnt.

use serde::{Deserialize, Serialize};

use super::exp3::Exp3;
use super::linear::Linear;
use super::record::Record;
use super::thompson::Thompson;
use super::{PolicyConfig, PolicyKind};

/// The version of the files' format.
pub(crate) const FORMAT: u32 = 1;

/// The learnt state, and how many requests it was learnt of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) format: u32,
    pub(crate) n_updates: u64,
    pub(crate) model: Model,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Model {
    Thompson(Thompson),
    Linear(Box<Linear>),
    Exp3(Exp3),
    /// Nothing is learnt.
    Still,
}

impl State {
    pub(crate) fn new(kind: PolicyKind) -> Self {
        let model = match kind {
            PolicyKind::Thompson => Model::Thompson(Thompson::default()),
            PolicyKind::Linear => Model::Linear(Box::default()),
            PolicyKind::Exp3 => Model::Exp3(Exp3::default()),
            PolicyKind::Uniform | PolicyKind::Fixed => Model::Still,
        };
        Self { format: FORMAT, n_updates: 0, model }
    }

    /// Learns of a record, which was checked.
    pub(crate) fn update(&mut self, config: &PolicyConfig, record: &Record) {
        self.n_updates += 1;
        match &mut self.model {
            Model::Thompson(thompson) => thompson.update(config, self.n_updates, record),
            Model::Linear(linear) => linear.update(config, record),
            Model::Exp3(exp3) => exp3.update(config, self.n_updates, record),
            Model::Still => {}
        }
    }

    pub(crate) fn n_contexts(&self) -> usize {
        match &self.model {
            Model::Thompson(thompson) => thompson.tree.len(),
            Model::Exp3(exp3) => exp3.tree.len(),
            Model::Linear(_) | Model::Still => 1,
        }
    }

    pub(crate) fn check(&self, kind: PolicyKind) -> Result<(), String> {
        match (&self.model, kind) {
            (Model::Thompson(thompson), PolicyKind::Thompson) => thompson.tree.check(),
            (Model::Linear(linear), PolicyKind::Linear) => linear.check(),
            (Model::Exp3(exp3), PolicyKind::Exp3) => exp3.tree.check(),
            (Model::Still, PolicyKind::Uniform | PolicyKind::Fixed) => Ok(()),
            _ => Err(format!("it is of another policy, expected {kind}")),
        }
    }
}
