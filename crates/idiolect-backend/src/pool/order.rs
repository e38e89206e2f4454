//! Which members a request is given to, in which order.

use std::cmp::Reverse;
use std::sync::Arc;

use tokio::time::Instant;

use super::state::{Shared, State};
use super::{PoolConfig, Strategy};
use crate::{Error, Request, random};

/// A member, and the model to ask it for where that is not the request's own.
type Choice = (usize, Option<String>);

/// Members that serve one model, and the model to ask them for.
type Group = (Option<String>, Vec<usize>);

impl Shared {
    /// Returns the members to ask, first choice first.
    pub(super) fn order(self: &Arc<Self>, config: &PoolConfig, request: &Request) -> Result<Vec<Choice>, Error> {
        let now = Instant::now();
        let mut states = self.states();
        let mut order: Vec<Choice> = Vec::new();
        let mut resort: Vec<(Instant, Choice)> = Vec::new();
        for (model, mut group) in self.groups(config, request)? {
            group.retain(|index| order.iter().chain(resort.iter().map(|(_, choice)| choice)).all(|(i, _)| i != index));
            let mut awake = Vec::new();
            for index in group {
                match states[index].cooldown(now) {
                    None => awake.push(index),
                    Some(cooldown) if config.last_resort && !cooldown.is_strict => {
                        resort.push((cooldown.until, (index, model.clone())));
                    }
                    Some(_) => {}
                }
            }
            self.sort(config.strategy, request, &mut states, &mut awake);
            order.extend(awake.into_iter().map(|index| (index, model.clone())));
        }
        resort.sort_by_key(|(until, _)| *until);
        order.extend(resort.into_iter().map(|(_, choice)| choice));
        Ok(order)
    }

    /// Returns the members of the request's model, then those of each fallback of it.
    fn groups(&self, config: &PoolConfig, request: &Request) -> Result<Vec<Group>, Error> {
        let all = || (0..self.members.len()).collect::<Vec<_>>();
        let Some(model) = &request.model else { return Ok(vec![(None, all())]) };
        let serving = |name: &str| all().into_iter().filter(|i| self.members[*i].serves(name)).collect::<Vec<_>>();
        let mut own = serving(model);
        if own.is_empty() {
            own = all().into_iter().filter(|i| self.members[*i].models.is_empty()).collect();
        }
        let mut groups = vec![(None, own)];
        for other in config.fallbacks.get(model).into_iter().flatten() {
            groups.push((Some(other.clone()), serving(other)));
        }
        if groups.iter().all(|(_, group)| group.is_empty()) {
            return Err(Error::Unsupported { backend: config.name.clone(), what: format!("model {model:?}") });
        }
        Ok(groups)
    }

    fn sort(&self, strategy: Strategy, request: &Request, states: &mut [State], group: &mut [usize]) {
        let weight = |index: usize| u64::from(self.members[index].weight);
        match (strategy, request.sampling.seed) {
            (Strategy::Fallback, _) => {}
            (_, Some(seed)) if !group.is_empty() => {
                let first = random::mix(seed) % group.len() as u64;
                group.rotate_left(first as usize);
            }
            (Strategy::RoundRobin, _) => {
                let total: i64 = group.iter().map(|index| i64::from(self.members[*index].weight)).sum();
                for index in group.iter() {
                    states[*index].turn += i64::from(self.members[*index].weight);
                }
                group.sort_by_key(|index| Reverse(states[*index].turn));
                if let Some(chosen) = group.first() {
                    states[*chosen].turn -= total;
                }
            }
            // Compared as fractions of the weight: a / x < b / y is a * y < b * x.
            (Strategy::LeastBusy, _) => group.sort_by(|a, b| {
                let busy = |index: usize, other: usize| self.in_flight(index) as u64 * weight(other);
                let had = |index: usize, other: usize| states[index].requests_total().saturating_mul(weight(other));
                busy(*a, *b).cmp(&busy(*b, *a)).then_with(|| had(*a, *b).cmp(&had(*b, *a)))
            }),
        }
        // A stable sort: those that can do all of what was asked keep their order among themselves.
        group.sort_by_key(|index| {
            let can = self.members[*index].backend.capabilities();
            let lacks_logprobs = request.sampling.logprobs.is_some() && !can.logprobs;
            let lacks_seed = request.sampling.seed.is_some() && !can.seed;
            let lacks_stages = can.check_stages("", &request.sampling).is_err();
            u8::from(lacks_logprobs) + u8::from(lacks_seed) + 3 * u8::from(lacks_stages)
        });
        if let Some(preferred) = &request.prefer {
            group.sort_by_key(|index| self.members[*index].name != *preferred);
        }
    }
}
