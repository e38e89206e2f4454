//! A world of rewards that change, and policies that live in it.
//!
//! A reply passes the gate when its cosine to the nearest rival is below the threshold. Each operator takes the reply away from
//! the rivals by so much, in some tasks more than in others, and costs so much quality. Strong operators take it further and
//! cost more, so which one is best depends on the threshold. Rivals herd: the more an operator was in use lately by everyone,
//! the less it takes away; how much it is in use drifts. Half way through, the rules change: the threshold falls from 0.9347 to
//! 0.90, and rivals come to use the operator that was best until then.

use std::ops::Range;

use idiolect_mutation::policy::{Context, Learner, PolicyConfig, PolicyKind, Scored, Seed, Wish};
use idiolect_mutation::{Amount, Library, Mode, Operator, Place, Task};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Requests of a run.
pub(crate) const REQUESTS: usize = 2000;
/// The request at which the rules change.
pub(crate) const CHANGE: usize = 1000;
/// Requests over which a reward is averaged to see whether a policy has recovered.
pub(crate) const WINDOW: usize = 100;
/// Requests before the change that tell how good a policy was.
const BEFORE: usize = 300;
/// Requests until rivals have the operator that was best.
const FASHION: usize = 40;
/// A policy has recovered when it has again this share of its skill.
const RECOVERED: f64 = 0.9;

const SLOTS: [&str; 6] = ["angle", "register", "persona", "audience", "length", "lexis"];
const PER_SLOT: usize = 4;
const TASKS: [Task; 3] = [Task::Augment, Task::Followup, Task::Answer];
const VALIDATORS: [&str; 2] = ["first", "second"];
/// How far cosines are spread around their mean.
const SPREAD: f64 = 0.025;

/// An arm of the world: the no-op first, then the operators.
type Arm = usize;

/// What the world does to replies.
#[derive(Debug)]
pub(crate) struct World {
    library: Library,
    /// How far each arm takes a reply away from the rivals, by task.
    away: Vec<[f64; 3]>,
    /// The quality that each arm leaves, by task.
    quality: Vec<[f64; 3]>,
    /// How much of its distance each arm loses to herding, by request.
    herded: Vec<Vec<f64>>,
    /// Who asks, by request.
    asked: Vec<(usize, usize)>,
    /// The arm that was best until the change, and that everyone uses after it.
    fashion: Arm,
    seed: u64,
}

fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

fn normal(random: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| unit(random)).sum::<f64>() - 6.0
}

/// The chance that a normal number is below `z`, to three digits.
fn below(z: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-1.5976 * z - 0.070_56 * z * z * z))
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut operators = Vec::new();
        let (mut away, mut quality) = (vec![[0.0; 3]], vec![[0.85; 3]]);
        for slot in SLOTS {
            for i in 0..PER_SLOT {
                operators.push(Operator::new(format!("{slot}.{i}"), slot, Place::Append, format!("Do {i} of {slot}.")));
                let strength = unit(&mut random);
                let of_task = |random: &mut ChaCha8Rng| 0.11 * (strength + 0.25 * (unit(random) - 0.5)).clamp(0.0, 1.0);
                away.push([0; 3].map(|_| of_task(&mut random)));
                let kept = |random: &mut ChaCha8Rng| {
                    (0.9 - 0.3 * strength * strength - 0.25 * unit(random) * unit(random)).clamp(0.05, 0.95)
                };
                quality.push([0; 3].map(|_| kept(&mut random)));
            }
        }
        let library = Library::new(operators).expect("the operators differ in name");
        let n_arms = away.len();
        // Use comes and goes slowly, each operator's on its own.
        let mut use_of = vec![0.2; n_arms];
        let mut herded = Vec::with_capacity(REQUESTS);
        for _ in 0..REQUESTS {
            for share in use_of.iter_mut().skip(1) {
                *share = (*share + 0.004 * (0.2 - *share) + 0.012 * normal(&mut random)).clamp(0.0, 0.7);
            }
            use_of[0] = 0.0;
            herded.push(use_of.clone());
        }
        let asked = (0..REQUESTS).map(|_| {
            let task = (unit(&mut random) * 3.0) as usize;
            (task, (unit(&mut random) * 2.0) as usize)
        });
        let asked = asked.collect();
        let mut world = Self { library, away, quality, herded, asked, fashion: 0, seed };
        world.fashion = world.best_fixed(0..CHANGE);
        for (request, shares) in world.herded.iter_mut().enumerate().skip(CHANGE) {
            // It takes the others a few dozen requests to see what works.
            let adopted = (request - CHANGE) as f64 / FASHION as f64;
            shares[world.fashion] = shares[world.fashion].max(adopted.min(0.95));
        }
        world
    }

    fn n_arms(&self) -> usize {
        self.away.len()
    }

    /// Returns the mean reward of some operators together; none is the no-op.
    fn reward(&self, request: usize, operators: &[Arm]) -> f64 {
        let (task, validator) = self.asked[request];
        let threshold = if request < CHANGE { 0.9347 } else { 0.90 };
        let rivals = [0.945, 0.925, 0.935][task] + [0.0, 0.008][validator];
        let arms = if operators.is_empty() { &[0][..] } else { operators };
        let away: f64 = arms.iter().map(|&arm| self.away[arm][task] * (1.0 - self.herded[request][arm])).sum();
        let quality = arms.iter().map(|&arm| self.quality[arm][task] / 0.9).product::<f64>() * 0.9;
        quality * below((threshold - (rivals - away)) / SPREAD)
    }

    /// Returns the arm that is best on the mean of some requests.
    fn best_fixed(&self, requests: Range<usize>) -> Arm {
        let sum = |arm: Arm| requests.clone().map(|request| self.reward(request, &single(arm))).sum::<f64>();
        (0..self.n_arms()).max_by(|&a, &b| sum(a).total_cmp(&sum(b))).unwrap_or(0)
    }

    /// Returns what the best single arm brings.
    fn best(&self, request: usize) -> f64 {
        (0..self.n_arms()).map(|arm| self.reward(request, &single(arm))).fold(0.0, f64::max)
    }

    fn name(&self, arm: Arm) -> String {
        self.library.operators()[arm - 1].name.clone()
    }
}

fn single(arm: Arm) -> Vec<Arm> {
    if arm == 0 { Vec::new() } else { vec![arm] }
}

/// How a policy fared.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The mean reward of each request's recipes; with more than one, without the no-op, which all have.
    pub(crate) mean: Vec<f64>,
    /// The reward of the best of them, which a perfect selector would take.
    pub(crate) best_of: Vec<f64>,
    /// What the best arm would have had.
    pub(crate) possible: Vec<f64>,
}

impl Run {
    /// Returns what was missed of the best arm of each request, summed up.
    pub(crate) fn regret(&self) -> f64 {
        self.possible.iter().zip(&self.mean).map(|(best, reward)| best - reward).sum()
    }
}

/// Returns the mean of all runs over some requests.
pub(crate) fn mean_of(runs: &[Run], of: fn(&Run) -> &[f64], requests: Range<usize>) -> f64 {
    let sum = |run: &Run| of(run)[requests.clone()].iter().sum::<f64>();
    runs.iter().map(sum).sum::<f64>() / (runs.len() * requests.len()) as f64
}

/// Returns how far a policy is on the way from uniform draws (0) to the best arm of each request (1), over some requests.
pub(crate) fn skill(runs: &[Run], uniform: &[Run], requests: Range<usize>) -> f64 {
    let mean = |runs, of| mean_of(runs, of, requests.clone());
    let floor = mean(uniform, |run| &run.mean);
    (mean(runs, |run| &run.mean) - floor) / (mean(runs, |run| &run.possible) - floor)
}

/// Returns how many requests after the change a policy has again nearly the skill that it had before: from there on the next
/// [`WINDOW`] have it. `None` if never, or if there was too little to have again.
pub(crate) fn recovery(runs: &[Run], uniform: &[Run]) -> Option<usize> {
    let before = skill(runs, uniform, CHANGE - BEFORE..CHANGE);
    // Rivals need some requests to follow the fashion; until then nothing is to recover from.
    let mut begins = CHANGE + FASHION..=REQUESTS - WINDOW;
    let is_back = |&begin: &usize| skill(runs, uniform, begin..begin + WINDOW) >= RECOVERED * before;
    begins.find(is_back).filter(|_| before >= LEAST_SKILL).map(|begin| begin - CHANGE)
}

/// With less skill there is nothing to recover.
const LEAST_SKILL: f64 = 0.1;

/// The policies that are compared.
pub(crate) const POLICIES: [&str; 5] = ["thompson", "linear", "exp3", "uniform", "fixed"];

/// Runs a policy through a world. `fixed` is the recipe that was best in the first half, known from the beginning.
pub(crate) fn run(world: &World, policy: &str, k: usize) -> Run {
    let kind: PolicyKind = policy.parse().expect("one of the policies");
    let recipe = vec![world.name(world.fashion.max(1))];
    // Only the log wants propensities that are well estimated.
    let config = PolicyConfig { kind, recipe, propensity_draws: 1, ..PolicyConfig::default() };
    let learner = Learner::in_memory(config, Seed::from(world.seed)).expect("the settings are good");
    let mut random = ChaCha8Rng::seed_from_u64(world.seed ^ 0xfeed);
    let (mut mean, mut best_of) = (Vec::with_capacity(REQUESTS), Vec::with_capacity(REQUESTS));
    for request in 0..REQUESTS {
        let (task, validator) = world.asked[request];
        let task = TASKS[task];
        let context = Context::new("grpc", task.as_str(), VALIDATORS[validator]);
        let wish =
            Wish { context: &context, task, mode: &Mode::mutate(), amount: Amount::Usual, k, request: request as u64 };
        let draws = learner.draw(&world.library, &wish);
        let arm = |name: &str| world.library.operators().iter().position(|o| o.name == name).map_or(0, |i| i + 1);
        let expected: Vec<f64> = draws
            .iter()
            .map(|draw| {
                let arms: Vec<Arm> = draw.recipe.operators.iter().map(|operator| arm(&operator.name)).collect();
                world.reward(request, &arms)
            })
            .collect();
        // What is seen of them is noisy: a reply passes the gate or not, and its quality is estimated.
        let scored: Vec<Scored<'_>> = draws
            .iter()
            .zip(&expected)
            .map(|(draw, &expected)| {
                let passes = unit(&mut random) < (expected / 0.8).min(1.0);
                let reward = if passes { (0.8 + 0.1 * normal(&mut random)).clamp(0.0, 1.0) } else { 0.0 };
                Scored { draw, reward }
            })
            .collect();
        learner.update(&context, &scored).expect("rewards are within bounds");
        let counted = if k == 1 { &expected[..] } else { &expected[1..] };
        mean.push(counted.iter().sum::<f64>() / counted.len() as f64);
        best_of.push(expected.iter().copied().fold(0.0, f64::max));
    }
    let possible = (0..REQUESTS).map(|request| world.best(request)).collect();
    Run { mean, best_of, possible }
}
