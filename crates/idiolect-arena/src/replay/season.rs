//! A run of many steps, drawn many times over.

use idiolect_validator::{MovingAverage, Profile};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde::Serialize;

use super::{Coverage, Played, Rival, Run};
use crate::statistics::{Interval, Resamples, below, quantile};

/// Fewer rivals that both models know say nothing of how these go together.
const LEAST_TO_COMPARE: usize = 5;
/// The share of a step's rivals, nearest by the local model, whose recorded scores ours may get, and how many at least.
const NEAREST_SHARE: f64 = 0.2;
const LEAST_NEAREST: usize = 5;
/// Draws of the interval of the correlation.
const N_DRAWS: usize = 1000;

/// How a run is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paths {
    /// How often, at least 20.
    pub n: usize,
    /// The chance that the validator asks our miner in a step, above 0 and up to 1; `None` for the share of miners that the record asks in a step.
    pub asked: Option<f64>,
    /// What the draws start from.
    pub seed: u64,
    /// How many moments of the run are reported, at least 1.
    pub moments: usize,
}

impl Default for Paths {
    fn default() -> Self {
        Self { n: 200, asked: None, seed: 0, moments: 50 }
    }
}

/// Paths that cannot be drawn.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PathsError {
    /// Too few for intervals.
    #[error("{0} paths, expected at least 20")]
    TooFew(usize),
    /// No chance.
    #[error("a chance of {0} to be asked, expected more than 0, up to 1")]
    Asked(f64),
    /// No moment.
    #[error("0 moments, expected at least 1")]
    Moments,
}

/// How the local model's scores go with the recorded ones, within steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Correlation {
    /// Spearman's rank correlation, the mean over steps, with an interval of 95 % by a bootstrap over steps.
    pub spearman: Interval,
    /// How many steps it is over.
    pub n_steps: usize,
    /// Whether it is surely above 0, so that it is used.
    pub used: bool,
}

/// A moment of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Moment {
    /// Steps so far.
    pub step: usize,
    /// The row in the run, where the log has it.
    pub row: Option<u64>,
    /// Our moving average.
    pub average: Interval,
    /// Its place among all miners' that the log has, 1 being the highest.
    pub place: Interval,
    /// Our share of the weights.
    pub weight_share: Interval,
}

/// What became of our miner in a run. Intervals are of 95 %, over draws of what is imputed, of the steps, and of the steps it is asked in.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunReport {
    /// The run.
    pub run: String,
    /// The arithmetic.
    pub profile: String,
    /// Steps that our miner has an answer to, or failed in.
    pub steps: usize,
    /// Steps of the log that it was not asked in.
    pub steps_without: usize,
    /// Miners in a step, the mean.
    pub mean_rivals: f64,
    /// Share of calls that failed.
    pub failed_share: f64,
    /// Share of calls that the diversity mask takes.
    pub masked_share: Interval,
    /// Share that is too far from what was asked.
    pub irrelevant_share: f64,
    /// Share that has a label of another task, or repeats what the blacklist has.
    pub blacklisted_share: f64,
    /// What penalties take in the mean.
    pub mean_penalties: f64,
    /// Rivals that lose all by our reply, in a step, the mean.
    pub mean_pushed: f64,
    /// Our reward in a step.
    pub mean_reward: Interval,
    /// The rivals' reward in a step, as recorded but for those that we push out.
    pub mean_reward_of_rivals: f64,
    /// Our place in a step, 1 being the best; those that earn the same share theirs.
    pub place_mean: Interval,
    /// One place in twenty was better than this.
    pub place_p05: f64,
    /// One place in twenty was worse than this.
    pub place_p95: f64,
    /// The chance to be asked in a step that the paths were drawn with.
    pub asked: f64,
    /// Miners that the log has.
    pub n_miners: usize,
    /// Our share of the weights at the end.
    pub weight_share: Interval,
    /// Our place by the moving average at the end.
    pub final_place: Interval,
    /// How a local model goes with the recorded ones; `None` without one.
    pub correlation: Option<Correlation>,
    /// What was computed, and what was not.
    pub coverage: Coverage,
    /// The run from moment to moment.
    pub moments: Vec<Moment>,
}

/// One draw of the run.
struct Path {
    random: ChaCha8Rng,
    average: f64,
    rewards: Weighed,
    places: Weighed,
}

#[derive(Clone, Copy, Default)]
struct Weighed {
    sum: f64,
    weight: f64,
}

impl Weighed {
    fn add(&mut self, value: f64, weight: f64) {
        self.sum += value * weight;
        self.weight += weight;
    }

    fn mean(self) -> f64 {
        if self.weight > 0.0 { self.sum / self.weight } else { f64::NAN }
    }
}

pub(super) fn season(
    name: &str,
    run: &Run,
    profile: &Profile,
    coverage: Coverage,
    paths: &Paths,
) -> Result<RunReport, PathsError> {
    if paths.n < 20 {
        return Err(PathsError::TooFew(paths.n));
    }
    if paths.moments == 0 {
        return Err(PathsError::Moments);
    }
    if let Some(asked) = paths.asked.filter(|asked| !(*asked > 0.0 && *asked <= 1.0)) {
        return Err(PathsError::Asked(asked));
    }
    let correlation = correlation(&run.steps, paths.seed);
    let use_local = correlation.is_some_and(|correlation| correlation.used);
    let of_state = run.begun_at.as_ref().map_or(0, |(_, weights)| weights.len());
    let uids = run.steps.iter().flat_map(|step| &step.rivals).filter_map(|rival| rival.uid);
    let n_uids = uids.map(|uid| uid as usize + 1).max().unwrap_or(0).max(of_state);
    let mean_rivals = mean(run.steps.iter().map(|step| step.rivals.len() as f64));
    let asked = paths.asked.unwrap_or_else(|| (mean_rivals / n_uids.max(1) as f64).clamp(1e-6, 1.0));

    let mut average = MovingAverage::new(n_uids, profile.alpha);
    let stream = |nth: usize| {
        let mut random = ChaCha8Rng::seed_from_u64(paths.seed);
        random.set_stream(nth as u64);
        Path { random, average: 0.0, rewards: Weighed::default(), places: Weighed::default() }
    };
    let mut drawn: Vec<Path> = (0..paths.n).map(stream).collect();
    let mut places: Vec<f64> = Vec::new();
    let mut moments = Vec::new();
    let mut earlier: Vec<f32> = Vec::new();
    for (nth, step) in run.steps.iter().enumerate() {
        if let Some((at, weights)) = &run.begun_at
            && *at == nth
            && let Some(begun) = MovingAverage::begun_at(weights.clone(), profile.alpha)
        {
            average = begun;
            average.grow(n_uids);
        }
        let pool = pool(step, use_local, &earlier);
        let mut rewards: Vec<f32> = step.rivals.iter().map(|rival| rival.reward).collect();
        rewards.sort_by(|a, b| b.total_cmp(a));
        for path in &mut drawn {
            let quality = if pool.is_empty() { 0.0 } else { f64::from(pool[below(&mut path.random, pool.len())]) };
            let reward = (quality * f64::from(step.own.kept)).max(0.0);
            let place = place_among(&rewards, reward);
            let weight = poisson(&mut path.random);
            path.rewards.add(reward, weight);
            path.places.add(place, weight);
            let is_asked = (f64::from(path.random.next_u32()) + 0.5) / 4_294_967_296.0 < asked;
            if is_asked {
                path.average = profile.alpha * reward + (1.0 - profile.alpha) * path.average;
            }
            places.push(place);
        }
        let paid = step.rivals.iter().filter_map(|rival| Some((rival.uid? as usize, rival.reward)));
        // There is room for every uid.
        let _ = average.update(&paid.collect::<Vec<_>>());
        earlier = step.rivals.iter().map(|rival| rival.quality).filter(|quality| quality.is_finite()).collect();
        let is_moment = (nth + 1) * paths.moments / run.steps.len() > nth * paths.moments / run.steps.len();
        if is_moment || nth + 1 == run.steps.len() {
            moments.push(moment(nth + 1, step.row, &drawn, &average));
        }
    }
    places.sort_by(f64::total_cmp);
    let n = run.steps.len();
    let share = |is: &dyn Fn(&Played) -> bool| mean(run.steps.iter().map(|step| f64::from(u8::from(is(step)))));
    let masked: Vec<f64> = run.steps.iter().map(|step| f64::from(u8::from(step.own.is_masked))).collect();
    let last = moments.last().copied();
    let nothing = Interval { value: 0.0, low: 0.0, high: 0.0 };
    Ok(RunReport {
        run: name.to_owned(),
        profile: profile.name.clone(),
        steps: n,
        steps_without: run.n_unanswerable,
        mean_rivals,
        failed_share: share(&|step| !step.own.answered),
        masked_share: if n == 0 {
            nothing
        } else {
            Resamples::new(n, N_DRAWS.min(20_000_000 / n.max(1)).max(20), paths.seed)
                .of_means(&[&masked], &|means| means[0])
        },
        irrelevant_share: share(&|step| step.own.is_irrelevant),
        blacklisted_share: share(&|step| step.own.is_blacklisted),
        mean_penalties: mean(
            run.steps.iter().filter(|step| step.own.answered).map(|step| f64::from(step.own.penalties)),
        ),
        mean_pushed: mean(run.steps.iter().map(|step| f64::from(step.own.n_pushed))),
        mean_reward: over(&drawn, |path| path.rewards.mean()),
        mean_reward_of_rivals: mean(
            run.steps.iter().flat_map(|step| step.rivals.iter().map(|rival| f64::from(rival.reward))),
        ),
        place_mean: over(&drawn, |path| path.places.mean()),
        place_p05: quantile(&places, 0.05),
        place_p95: quantile(&places, 0.95),
        asked,
        n_miners: n_uids,
        weight_share: last.map_or(nothing, |moment| moment.weight_share),
        final_place: last.map_or(nothing, |moment| moment.place),
        correlation,
        coverage,
        moments,
    })
}

/// What our reply may have got: recorded scores of rivals in the same step, where there are none of those in the step before.
fn pool(step: &Played, use_local: bool, earlier: &[f32]) -> Vec<f32> {
    let mut known: Vec<&Rival> = step.rivals.iter().filter(|rival| rival.quality.is_finite()).collect();
    if known.is_empty() {
        return earlier.to_vec();
    }
    if use_local && step.own.local.is_finite() {
        let both: Vec<&Rival> = known.iter().copied().filter(|rival| rival.local.is_finite()).collect();
        if both.len() > LEAST_NEAREST {
            known = both;
            let from = |rival: &Rival| (rival.local - step.own.local).abs();
            known.sort_by(|a, b| from(a).total_cmp(&from(b)));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a step's miners")]
            let n = ((known.len() as f64 * NEAREST_SHARE).ceil() as usize).max(LEAST_NEAREST);
            known.truncate(n);
        }
    }
    known.iter().map(|rival| rival.quality).collect()
}

/// The place of a reward among others, which are sorted from the highest on; those that earn the same share theirs.
fn place_among(sorted: &[f32], reward: f64) -> f64 {
    let n_better = sorted.partition_point(|&other| f64::from(other) > reward);
    let n_same = sorted[n_better..].partition_point(|&other| f64::from(other) >= reward);
    n_better as f64 + n_same as f64 / 2.0 + 1.0
}

fn moment(step: usize, row: Option<u64>, drawn: &[Path], average: &MovingAverage) -> Moment {
    let mut sorted: Vec<f64> = average.scores().to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let all: f64 = sorted.iter().map(|score| score.abs()).sum();
    let place = |path: &Path| {
        let n_better = sorted.partition_point(|&other| other > path.average);
        let n_same = sorted[n_better..].partition_point(|&other| other >= path.average);
        n_better as f64 + n_same as f64 / 2.0 + 1.0
    };
    let share = |path: &Path| {
        let all = all + path.average;
        if all > 0.0 { path.average / all } else { 0.0 }
    };
    Moment {
        step,
        row,
        average: over(drawn, |path| path.average),
        place: over(drawn, place),
        weight_share: over(drawn, share),
    }
}

fn over(drawn: &[Path], figure: impl Fn(&Path) -> f64) -> Interval {
    let mut values: Vec<f64> = drawn.iter().map(figure).filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let value = mean(values.iter().copied());
    if values.is_empty() {
        return Interval { value: 0.0, low: 0.0, high: 0.0 };
    }
    Interval { value, low: quantile(&values, 0.025), high: quantile(&values, 0.975) }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0_usize), |(sum, n), value| (sum + value, n + 1));
    if n == 0 { 0.0 } else { sum / n as f64 }
}

/// A draw of a Poisson distribution of mean 1: how often a step is in a bootstrap of many (Oza and Russell 2001).
fn poisson(random: &mut ChaCha8Rng) -> f64 {
    let at = (f64::from(random.next_u32()) + 0.5) / 4_294_967_296.0;
    let (mut n, mut chance) = (0_u32, std::f64::consts::E.recip());
    let mut sum = chance;
    while at > sum && n < 12 {
        n += 1;
        chance /= f64::from(n);
        sum += chance;
    }
    f64::from(n)
}

fn correlation(steps: &[Played], seed: u64) -> Option<Correlation> {
    let of = |step: &Played| {
        let both = step.rivals.iter().filter(|rival| rival.local.is_finite() && rival.quality.is_finite());
        let (a, b): (Vec<f64>, Vec<f64>) = both.map(|rival| (f64::from(rival.local), f64::from(rival.quality))).unzip();
        (a.len() >= LEAST_TO_COMPARE).then(|| spearman(&a, &b)).flatten()
    };
    let each: Vec<f64> = steps.iter().filter_map(of).collect();
    if each.is_empty() {
        return None;
    }
    let draws = N_DRAWS.min(20_000_000 / each.len()).max(20);
    let spearman = Resamples::new(each.len(), draws, seed).of_means(&[&each], &|means| means[0]);
    // One or two steps have an interval without meaning.
    let used = each.len() >= LEAST_TO_COMPARE && spearman.low > 0.0;
    Some(Correlation { spearman, n_steps: each.len(), used })
}

/// Returns Spearman's rank correlation; `None` where all values of one are the same.
pub(crate) fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    let (mean_a, mean_b) = (mean(a.iter().copied()), mean(b.iter().copied()));
    let (mut both, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(&b) {
        both += (a - mean_a) * (b - mean_b);
        of_a += (a - mean_a) * (a - mean_a);
        of_b += (b - mean_b) * (b - mean_b);
    }
    (of_a > 0.0 && of_b > 0.0).then(|| both / (of_a * of_b).sqrt())
}

/// Ranks from 1; those that are the same share theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut from = 0;
    while from < order.len() {
        let same = order[from..].iter().take_while(|&&at| values[at] == values[order[from]]).count().max(1);
        for &at in &order[from..from + same] {
            ranks[at] = from as f64 + (same as f64 + 1.0) / 2.0;
        }
        from += same;
    }
    ranks
}
