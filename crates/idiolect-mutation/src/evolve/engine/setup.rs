//! What a run may be, and the prompts that are kept back.

use std::collections::{BTreeMap, BTreeSet};

use crate::Task;
use crate::evolve::random::Random;
use crate::evolve::{EvolveConfig, EvolveError, TrialPrompt};

pub(super) fn check(config: &EvolveConfig) -> Result<(), EvolveError> {
    let bad = |name, found: String, expected| Err(EvolveError::Setting { name, found, expected });
    for (name, value) in
        [("mini_batch", config.mini_batch), ("starters", config.starters), ("concurrency", config.concurrency)]
    {
        if !(1..=1000).contains(&value) {
            return bad(name, value.to_string(), "1 to 1000");
        }
    }
    for (name, value) in [("generations", config.generations), ("proposals", config.proposals)] {
        if value > 1000 {
            return bad(name, value.to_string(), "0 to 1000");
        }
    }
    if !(0.0..=0.9).contains(&config.hold_out) {
        return bad("hold_out", config.hold_out.to_string(), "0 to 0.9");
    }
    Ok(())
}

type ByTask = BTreeMap<Task, Vec<usize>>;

/// Divides each task's prompts into those to learn from and those to judge by.
pub(super) fn split(config: &EvolveConfig, prompts: &[TrialPrompt]) -> Result<(ByTask, ByTask), EvolveError> {
    let mut ids = BTreeSet::new();
    let (mut train, mut held) = (ByTask::new(), ByTask::new());
    for (i, prompt) in prompts.iter().enumerate() {
        if !ids.insert(prompt.id.as_str()) {
            return Err(EvolveError::Twice { id: prompt.id.clone() });
        }
        train.entry(prompt.task).or_default().push(i);
    }
    if train.is_empty() {
        return Err(EvolveError::FewPrompts { task: Task::Unknown, n: 0 });
    }
    for (task, all) in &mut train {
        if all.len() < 3 {
            return Err(EvolveError::FewPrompts { task: *task, n: all.len() });
        }
        let mut order = all.clone();
        Random::new(config.seed, &["hold out", task.as_str()]).shuffle(&mut order);
        let n_held = ((all.len() as f64 * config.hold_out).round() as usize).min(all.len() - 2);
        let mut kept: Vec<usize> = order.drain(..n_held).collect();
        kept.sort_unstable();
        order.sort_unstable();
        *all = order;
        held.insert(*task, kept);
    }
    Ok((train, held))
}
