//! Draws of recipes whose replies were sent, and for which validators may still say a reward.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use idiolect_mutation::policy::{Context, Draw};

use crate::hash::CompletionHash;

/// Replies that are remembered, the last ones: rewards come within a minute or never.
const MOST: usize = 1000;

/// The last replies' draws, each until its reward comes.
#[derive(Debug, Default)]
pub(crate) struct Awaited(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    draws: HashMap<CompletionHash, (Context, Draw)>,
    order: VecDeque<CompletionHash>,
}

impl Awaited {
    /// Remembers what a reply was drawn by. The same text sent to the same caller again counts as the later one.
    pub(crate) fn sent(&self, reply: CompletionHash, context: &Context, draw: &Draw) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.draws.insert(reply, (context.clone(), draw.clone())).is_none() {
            waiting.order.push_back(reply);
        }
        while waiting.order.len() > MOST {
            if let Some(oldest) = waiting.order.pop_front() {
                waiting.draws.remove(&oldest);
            }
        }
    }

    /// Returns what a reply was drawn by, once.
    pub(crate) fn take(&self, reply: &CompletionHash) -> Option<(Context, Draw)> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = waiting.draws.remove(reply)?;
        waiting.order.retain(|other| other != reply);
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use idiolect_mutation::Recipe;

    use super::*;

    fn draw(propensity: f64) -> Draw {
        Draw { recipe: Recipe::no_op(), propensity, n_arms: 1 }
    }

    #[test]
    fn each_is_taken_once_and_the_oldest_are_forgotten() {
        let (awaited, context) = (Awaited::default(), Context::new("grpc", "answer", "validator"));
        let hash = |i: usize| {
            let mut hash = CompletionHash::default();
            hash[..8].copy_from_slice(&(i as u64).to_le_bytes());
            hash
        };
        for i in 0..=MOST {
            awaited.sent(hash(i), &context, &draw(0.5));
        }
        assert_eq!(awaited.take(&hash(0)), None);
        awaited.sent(hash(1), &context, &draw(0.25));
        assert_eq!(awaited.take(&hash(1)), Some((context, draw(0.25))));
        assert_eq!(awaited.take(&hash(1)), None);
        let waiting = awaited.0.lock().unwrap();
        assert_eq!((waiting.order.len(), waiting.draws.len()), (MOST - 1, MOST - 1));
    }
}
