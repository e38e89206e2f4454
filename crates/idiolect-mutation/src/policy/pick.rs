//! From scores or chances to distinct recipes with their propensities.

use super::arms::Arms;
use super::random::Random;

/// A recipe as numbers of arms; none for the no-op.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pick {
    pub(crate) arms: Vec<usize>,
    /// The chance that the request's draw has it.
    pub(crate) propensity: f64,
}

impl Pick {
    pub(crate) fn no_op(propensity: f64) -> Self {
        Self { arms: Vec::new(), propensity }
    }
}

/// Draws how good each arm may be.
pub(crate) trait Scores {
    /// Writes a score for each arm, and one for the no-op after them. That of an arm is the best of as many draws as it has
    /// copies, and of one where it has none.
    fn sample(&self, random: &mut Random, copies: &[u32], scores: &mut [f64]);
}

/// How many recipes are wanted, and of what kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) k: usize,
    pub(crate) noop_floor: f64,
    pub(crate) second: f64,
    pub(crate) n_estimates: u32,
}

/// Draws by scores: the no-op and the recipes of the k - 1 best arms; for k = 1, the best of all, or the no-op by its floor.
///
/// A recipe's propensity is estimated by drawing again and again. The draw itself counts as one, so it never is 0.
pub(crate) fn by_scores(arms: &Arms<'_>, scores: &impl Scores, wanted: Wanted, random: &mut Random) -> Vec<Pick> {
    let Wanted { k, noop_floor, n_estimates, .. } = wanted;
    let mut draw = Draw::new(arms, wanted);
    let is_floored = k == 1 && random.unit() < noop_floor;
    let mut drawn = draw.draw(scores, random);
    if is_floored {
        drawn = vec![Vec::new()];
    }
    let mut n_hits = vec![0_u32; drawn.len()];
    for _ in 0..n_estimates {
        let again = draw.draw(scores, random);
        for (n, recipe) in n_hits.iter_mut().zip(&drawn) {
            *n += u32::from(again.contains(recipe));
        }
    }
    let pick = |(recipe, n): (Vec<usize>, u32)| {
        let share = f64::from(n + u32::from(!is_floored)) / f64::from(n_estimates + 1);
        let propensity = match (k, recipe.is_empty()) {
            (1, true) => noop_floor + (1.0 - noop_floor) * share,
            (1, false) => (1.0 - noop_floor) * share,
            (_, true) => 1.0,
            (_, false) => share,
        };
        Pick { arms: recipe, propensity }
    };
    drawn.into_iter().zip(n_hits).map(pick).collect()
}

/// Most copies of an arm: each costs a draw.
const MOST_COPIES: f64 = 16.0;

struct Draw<'a, 'b> {
    arms: &'b Arms<'a>,
    wanted: Wanted,
    /// How many copies each arm has in the mean, the no-op's last.
    shares: Vec<f64>,
    copies: Vec<u32>,
    scores: Vec<f64>,
    order: Vec<usize>,
}

impl<'a, 'b> Draw<'a, 'b> {
    fn new(arms: &'b Arms<'a>, wanted: Wanted) -> Self {
        let weights = || (0..arms.len()).map(|i| arms.weight(i));
        let heaviest = weights().fold(f64::MIN_POSITIVE, f64::max);
        let scale = heaviest.clamp(1.0, MOST_COPIES) / heaviest;
        let shares: Vec<f64> = weights().map(|weight| weight * scale).chain([1.0]).collect();
        let n = shares.len();
        Self { arms, wanted, shares, copies: vec![1; n], scores: vec![0.0; n], order: Vec::new() }
    }

    /// Draws once. Each recipe's arms are in ascending order.
    ///
    /// An arm of twice the weight has two copies, which are drawn apart: where all are believed to be equal, it leads twice as
    /// often. The more is known of an arm, the nearer together are its copies' scores, and the less weights count. An arm without
    /// a copy in this draw comes after those that have one.
    fn draw(&mut self, by: &impl Scores, random: &mut Random) -> Vec<Vec<usize>> {
        let n_arms = self.arms.len();
        for (copies, share) in self.copies.iter_mut().zip(&self.shares) {
            let (whole, rest) = (share.trunc(), share.fract());
            *copies = whole as u32 + u32::from(rest > 0.0 && random.unit() < rest);
        }
        by.sample(random, &self.copies, &mut self.scores);
        let (scores, copies) = (&self.scores, &self.copies);
        let better = |&a: &usize, &b: &usize| {
            let is_out = |i: usize| copies[i] == 0;
            is_out(a).cmp(&is_out(b)).then(scores[b].total_cmp(&scores[a])).then(a.cmp(&b))
        };
        self.order.clear();
        self.order.extend(0..n_arms);
        self.order.sort_unstable_by(better);
        let mut recipes = Vec::with_capacity(self.wanted.k);
        if self.wanted.k != 1 {
            recipes.push(Vec::new());
        }
        for (place, &lead) in self.order.iter().enumerate() {
            if recipes.len() >= self.wanted.k {
                break;
            }
            if self.wanted.k == 1 && (copies[lead] == 0 || scores[n_arms] >= scores[lead]) {
                break;
            }
            if !self.arms.fits(&[], lead) {
                continue;
            }
            let mut recipe = vec![lead];
            // What comes later in the order is added only, so no two leads make the same recipe.
            let mut rest = self.order[place + 1..].iter();
            while random.unit() < self.wanted.second {
                match rest.by_ref().find(|&&next| self.arms.fits(&recipe, next)) {
                    Some(&next) => recipe.push(next),
                    None => break,
                }
            }
            recipe.sort_unstable();
            recipes.push(recipe);
        }
        if recipes.is_empty() {
            recipes.push(Vec::new());
        }
        recipes
    }
}

/// Draws by chances that are known exactly: the no-op and k - 1 different arms; for k = 1, one of them all. `chances` has one
/// for each arm and the no-op's after them; they need not sum to 1.
pub(crate) fn by_chances(arms: &Arms<'_>, chances: &[f64], wanted: Wanted, random: &mut Random) -> Vec<Pick> {
    let n_arms = arms.len();
    let mut picks = Vec::new();
    let marginals = if wanted.k == 1 {
        single(chances, wanted.noop_floor)
    } else {
        picks.push(Pick::no_op(1.0));
        marginals(&chances[..n_arms], wanted.k - 1)
    };
    for i in draw_by_marginals(&marginals, random) {
        if i == n_arms {
            picks.push(Pick::no_op(marginals[i]));
        } else if arms.fits(&[], i) {
            picks.push(Pick { arms: vec![i], propensity: marginals[i] });
        }
    }
    if picks.is_empty() {
        picks.push(Pick::no_op(wanted.noop_floor.max(f64::MIN_POSITIVE)));
    }
    picks
}

/// Returns the chances of one draw; they sum to 1, and the last is at least the floor.
pub(crate) fn single(chances: &[f64], noop_floor: f64) -> Vec<f64> {
    let sum: f64 = chances.iter().sum();
    let mut single: Vec<f64> = chances.iter().map(|chance| (1.0 - noop_floor) * chance / sum).collect();
    if let Some(no_op) = single.last_mut() {
        *no_op += noop_floor;
    }
    single
}

/// Returns the chances with which `n` different ones are drawn: in proportion to what is given, but none above 1. They sum to
/// `n`, or to how many there are.
pub(crate) fn marginals(chances: &[f64], n: usize) -> Vec<f64> {
    let mut marginals = vec![1.0; chances.len()];
    if n >= chances.len() {
        return marginals;
    }
    let mut is_sure = vec![false; chances.len()];
    loop {
        let n_sure = is_sure.iter().filter(|&&sure| sure).count();
        let open = || (0..chances.len()).filter(|&i| !is_sure[i]);
        let sum: f64 = open().map(|i| chances[i]).sum();
        let left = n.saturating_sub(n_sure) as f64;
        let mut new = Vec::new();
        for i in open() {
            marginals[i] = left * chances[i] / sum;
            if marginals[i] >= 1.0 {
                new.push(i);
            }
        }
        if new.is_empty() {
            return marginals;
        }
        for i in new {
            is_sure[i] = true;
            marginals[i] = 1.0;
        }
    }
}

/// Draws different numbers, each with exactly its chance, as many as the chances sum to: dependent rounding after Gandhi et al.
/// (2006), as EXP3.M uses it (Uchiya et al. 2010).
fn draw_by_marginals(marginals: &[f64], random: &mut Random) -> Vec<usize> {
    const EDGE: f64 = 1e-12;
    let mut p = marginals.to_vec();
    let mut open: Option<usize> = None;
    for i in 0..p.len() {
        if p[i] <= EDGE || p[i] >= 1.0 - EDGE {
            continue;
        }
        let Some(j) = open else {
            open = Some(i);
            continue;
        };
        let up = (1.0 - p[i]).min(p[j]);
        let down = p[i].min(1.0 - p[j]);
        if random.unit() * (up + down) < down {
            p[i] += up;
            p[j] -= up;
        } else {
            p[i] -= down;
            p[j] += down;
        }
        let is_open = |&k: &usize| p[k] > EDGE && p[k] < 1.0 - EDGE;
        open = [i, j].into_iter().find(is_open);
    }
    // What is left is a rounding error away from a whole number, unless the chances do not sum to one.
    if let Some(i) = open {
        p[i] = if random.unit() < p[i] { 1.0 } else { 0.0 };
    }
    (0..p.len()).filter(|&i| p[i] > 0.5).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::*;
    use crate::policy::Seed;

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(3), failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn chances_sum_to_what_they_must(
            chances in proptest::collection::vec(1e-6..1.0_f64, 1..40), n in 1_usize..8, floor in 0.0..0.9_f64, seed: u64,
        ) {
            let one = single(&chances, floor);
            prop_assert!((one.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(one.iter().all(|p| *p > 0.0 && *p <= 1.0 + 1e-12));
            prop_assert!(*one.last().unwrap() >= floor);

            let several = marginals(&chances, n);
            prop_assert!((several.iter().sum::<f64>() - n.min(chances.len()) as f64).abs() < 1e-9);
            prop_assert!(several.iter().all(|p| *p > 0.0 && *p <= 1.0));
            let drawn = draw_by_marginals(&several, &mut Seed::from(seed).random(0, 0));
            prop_assert_eq!(drawn.len(), n.min(chances.len()));
        }
    }

    #[test]
    fn numbers_are_drawn_as_often_as_their_chances_say() {
        let marginals = marginals(&[0.5, 0.2, 0.1, 0.1, 0.05, 0.05], 3);
        let mut random = Seed::from(3).random(0, 0);
        let mut n = [0_u32; 6];
        for _ in 0..20_000 {
            draw_by_marginals(&marginals, &mut random).into_iter().for_each(|i| n[i] += 1);
        }
        for (n, marginal) in n.iter().zip(&marginals) {
            assert!((f64::from(*n) / 20_000.0 - marginal).abs() < 0.02, "{n} {marginal}");
        }
    }
}
