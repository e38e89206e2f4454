//! What can be drawn for one request.

use std::cell::OnceCell;

use crate::compose::with_required;
use crate::operator::added_tokens;
use crate::{Library, Operator, Recipe, Task};

use super::learner::Wish;
use super::random::Random;

/// The operators that may lead a recipe, each with those that it requires.
///
/// Texts are drawn once a request, so what fits into the budget of tokens does not depend on the recipe.
#[derive(Debug)]
pub(crate) struct Arms<'a> {
    library: &'a Library,
    task: Task,
    arms: Vec<Arm<'a>>,
}

#[derive(Debug)]
struct Arm<'a> {
    /// The leading operator first.
    operators: Vec<&'a Operator>,
    seeds: Vec<u64>,
    /// How often it is drawn beside the others where nothing else tells them apart; above 0.
    weight: f64,
    /// How many tokens its texts have; `None` where one of them cannot be made.
    n_tokens: OnceCell<Option<u32>>,
}

impl<'a> Arms<'a> {
    pub(crate) fn new(library: &'a Library, wish: &Wish<'_>, random: &mut Random) -> Self {
        let Wish { task, mode, amount, .. } = *wish;
        let pool = library.usable(task, mode);
        let seed = random.next();
        let seed_of = |name: &str| seed ^ hash(name);
        let mut arms: Vec<Arm<'a>> = Vec::new();
        for &lead in &pool {
            let mut heaviest = |operators: &[&Operator]| {
                let by_weight =
                    |&i: &usize, &j: &usize| operators[i].weight.total_cmp(&operators[j].weight).then(j.cmp(&i));
                (0..operators.len()).max_by(by_weight)
            };
            let Some(operators) = with_required(lead, &[], &pool, library.max_operators(), &mut heaviest) else {
                continue;
            };
            let is_same = |arm: &Arm<'_>| {
                arm.operators.len() == operators.len() && operators.iter().all(|o| arm.operators.contains(o))
            };
            // Operators that require each other make one arm, not two.
            if operators.len() == 1 || !arms.iter().any(is_same) {
                let seeds = operators.iter().map(|o| seed_of(&o.name)).collect();
                let weight = library.collision().weight(lead, amount);
                arms.push(Arm { operators, seeds, weight, n_tokens: OnceCell::new() });
            }
        }
        Self { library, task, arms }
    }

    pub(crate) fn len(&self) -> usize {
        self.arms.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.arms.is_empty()
    }

    pub(crate) fn lead(&self, i: usize) -> &'a Operator {
        self.arms[i].operators[0]
    }

    pub(crate) fn weight(&self, i: usize) -> f64 {
        self.arms[i].weight
    }

    /// Says whether an arm may be added to a recipe of others; with none, whether it makes a recipe.
    pub(crate) fn fits(&self, chosen: &[usize], next: usize) -> bool {
        let arm = &self.arms[next];
        let others = || chosen.iter().flat_map(|&i| &self.arms[i].operators);
        if others().count() + arm.operators.len() > self.library.max_operators() {
            return false;
        }
        if !arm.operators.iter().all(|operator| others().all(|other| operator.goes_with(other))) {
            return false;
        }
        let n_tokens =
            chosen.iter().chain([&next]).map(|&i| self.n_tokens(i)).try_fold(0_u32, |n, m| Some(n.saturating_add(m?)));
        n_tokens.is_some_and(|n| n <= self.library.max_added_tokens())
    }

    fn n_tokens(&self, i: usize) -> Option<u32> {
        let arm = &self.arms[i];
        *arm.n_tokens.get_or_init(|| {
            let mut sum = 0_u32;
            for (operator, &seed) in arm.operators.iter().zip(&arm.seeds) {
                match operator.render(self.task, seed) {
                    Ok(text) => sum = sum.saturating_add(added_tokens(operator.place, &text)),
                    Err(error) => {
                        tracing::warn!(operator = operator.name, %error, "operator left out");
                        return None;
                    }
                }
            }
            Some(sum)
        })
    }

    /// Makes the recipe of some arms; that of none does nothing.
    pub(crate) fn recipe(&self, chosen: &[usize]) -> Option<Recipe> {
        let arms = || chosen.iter().map(|&i| &self.arms[i]);
        let operators: Vec<&Operator> = arms().flat_map(|arm| arm.operators.iter().copied()).collect();
        let mut seeds = arms().flat_map(|arm| arm.seeds.iter().copied());
        let recipe = self.library.compose_with(&operators, self.task, || seeds.next().unwrap_or_default());
        recipe.inspect_err(|error| tracing::warn!(%error, "recipe left out")).ok()
    }
}

/// A hash that is the same in every version and on every machine (FNV-1a, 64 bits).
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
