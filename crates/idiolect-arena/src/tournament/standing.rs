//! How everybody stands.

use serde::Serialize;

use crate::statistics::{Interval, Resamples, quantile};

/// Draws that intervals rest on.
const N_DRAWS: usize = 1000;

/// One reply of a batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Member {
    /// Whose.
    pub name: String,
    /// To the nearest other reply of the batch, 0 to 1.
    pub distance: f32,
    /// The reward of that distance, 0 to 1.
    pub batch_reward: f32,
    /// Whether it is a call that failed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    /// Whether it is too far from what was asked, which takes all.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub irrelevant: bool,
    /// Whether it is no more than the profile's bound, below which a mask takes all; never of a call that failed.
    pub masked: bool,
    /// What it earns if it passes, 0 to 1; `None` where nobody said.
    pub quality: Option<f32>,
    /// What penalties take off that, 0 to 1; `None` for a prompt without.
    pub penalties: Option<f64>,
    /// What a judge found, 0 to 1; it earns nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<f32>,
    /// What it earns, 0 to 1.
    pub reward: f64,
    /// Its place by that, 1 being the best; those that earn the same share theirs.
    pub place: f64,
}

/// One batch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Which, from 0.
    pub step: usize,
    /// The prompt's id.
    pub prompt: String,
    /// Who took part beside the population.
    pub contestant: Option<String>,
    /// Everybody's replies.
    pub members: Vec<Member>,
}

/// How a contestant, or a model of the population, stands at the end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// Who.
    pub name: String,
    /// Whether it is a contestant.
    pub contestant: bool,
    /// Steps it took part in.
    pub steps: usize,
    /// Share of them that failed.
    pub failed_share: f64,
    /// Share of them that were too far from what was asked.
    pub irrelevant_share: f64,
    /// Share of them that the gate masked.
    pub masked_share: f64,
    /// Mean reward of the distance to the nearest other reply.
    pub mean_batch_reward: f64,
    /// Mean reward.
    pub mean_reward: f64,
    /// Mean place in its batches.
    pub place_mean: f64,
    /// One place in twenty was better than this.
    pub place_p05: f64,
    /// One place in twenty was worse than this.
    pub place_p95: f64,
    /// Its share of the weights after the last step, by the validators' moving average.
    pub weight_share: f64,
    /// Mean quality, where it is known.
    pub mean_quality: Option<f64>,
    /// Mean of what penalties took, over the prompts that have any.
    pub mean_penalties: Option<f64>,
    /// Mean label of a judge, over the replies that have one.
    pub mean_label: Option<f64>,
    /// The shares and means with intervals of 95 % from a bootstrap over prompts.
    pub intervals: Intervals,
}

/// Intervals by a bootstrap over prompts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Intervals {
    /// Of the masked share.
    pub masked_share: Interval,
    /// Of the mean reward.
    pub mean_reward: Interval,
    /// Of the mean place.
    pub place_mean: Interval,
}

/// What one of them did so far.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// By prompt: steps, masked, rewards, places.
    sums: Vec<[f64; 4]>,
    places: Vec<f64>,
    n_failed: usize,
    n_irrelevant: usize,
    batch_rewards: f64,
    quality: Mean,
    penalties: Mean,
    label: Mean,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    n: usize,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        self.sum += value.unwrap_or(0.0);
        self.n += usize::from(value.is_some());
    }

    fn value(self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }
}

impl Tally {
    pub(super) fn new(n_prompts: usize) -> Self {
        let none = Mean::default();
        Self {
            sums: vec![[0.0; 4]; n_prompts],
            places: Vec::new(),
            n_failed: 0,
            n_irrelevant: 0,
            batch_rewards: 0.0,
            quality: none,
            penalties: none,
            label: none,
        }
    }

    pub(super) const fn n_steps(&self) -> usize {
        self.places.len()
    }

    pub(super) fn add(&mut self, prompt: usize, member: &Member) {
        let values = [1.0, f64::from(u8::from(member.masked)), member.reward, member.place];
        for (sum, value) in self.sums[prompt].iter_mut().zip(values) {
            *sum += value;
        }
        self.places.push(member.place);
        self.n_failed += usize::from(member.failed);
        self.n_irrelevant += usize::from(member.irrelevant);
        self.batch_rewards += f64::from(member.batch_reward);
        self.quality.add(member.quality.map(f64::from));
        self.penalties.add(member.penalties);
        self.label.add(member.label.map(f64::from));
    }

    pub(super) fn standing(&self, name: &str, contestant: bool, weight_share: f64, seed: u64) -> Standing {
        let played: Vec<&[f64; 4]> = self.sums.iter().filter(|sums| sums[0] > 0.0).collect();
        let column = |nth: usize| played.iter().map(|sums| sums[nth]).collect::<Vec<f64>>();
        let resamples = Resamples::new(played.len(), N_DRAWS, seed);
        let n = column(0);
        let per_step = |nth: usize| resamples.of_means(&[&column(nth), &n], &|means| means[0] / means[1]);
        let intervals = Intervals { masked_share: per_step(1), mean_reward: per_step(2), place_mean: per_step(3) };
        let mut places = self.places.clone();
        places.sort_by(f64::total_cmp);
        Standing {
            name: name.to_owned(),
            contestant,
            steps: self.places.len(),
            failed_share: self.n_failed as f64 / self.places.len().max(1) as f64,
            irrelevant_share: self.n_irrelevant as f64 / self.places.len().max(1) as f64,
            masked_share: intervals.masked_share.value,
            mean_batch_reward: self.batch_rewards / self.places.len().max(1) as f64,
            mean_reward: intervals.mean_reward.value,
            place_mean: intervals.place_mean.value,
            place_p05: quantile(&places, 0.05),
            place_p95: quantile(&places, 0.95),
            weight_share,
            mean_quality: self.quality.value(),
            mean_penalties: self.penalties.value(),
            mean_label: self.label.value(),
            intervals,
        }
    }
}
