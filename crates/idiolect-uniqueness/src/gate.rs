//! The validators' diversity gate: from distances to rewards, as each version computes them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use idiolect_backend::Embedding;
use serde::{Deserialize, Serialize};

use crate::vectors::{Vectors, distance, normalised};

/// A curve from distance to reward: 1 / (1 + exp(-(slope · d - offset))).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sigmoid {
    /// Steepness.
    pub slope: f64,
    /// The exponent at distance 0, negated.
    pub offset: f64,
}

impl Sigmoid {
    /// Returns the reward at a distance.
    #[must_use]
    pub fn at(self, distance: f32) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "a value in [0, 1]")]
        let reward = (1.0 / (1.0 + (self.offset - self.slope * f64::from(distance)).exp())) as f32;
        reward
    }

    /// Returns the distance at which the curve has this reward; infinite at or beyond 0 and 1.
    #[must_use]
    pub fn distance_at(self, reward: f32) -> f32 {
        let r = f64::from(reward);
        if r <= 0.0 {
            return f32::NEG_INFINITY;
        }
        if r >= 1.0 {
            return f32::INFINITY;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a distance")]
        let distance = ((self.offset + (r / (1.0 - r)).ln()) / self.slope) as f32;
        distance
    }
}

/// What becomes of the product of batch and historic reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GateMode {
    /// It multiplies the reward as it is.
    Product,
    /// It multiplies the reward by 1 above the bound and by 0 otherwise: more distance earns nothing.
    Mask,
}

/// One validator version's arithmetic of the gate, as data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateProfile {
    /// The version's name.
    pub name: Cow<'static, str>,
    /// Reward of the distance to the nearest other reply of the batch.
    pub batch: Sigmoid,
    /// Which of the other replies of the batch it is the distance to: 1 is the nearest.
    #[serde(default = "nearest")]
    pub batch_rank: usize,
    /// Reward of the distance to the second-nearest reply in the validator's history.
    pub historic: Sigmoid,
    /// Which reply of the history it is the distance to: 2 is the second-nearest.
    #[serde(default = "second_nearest")]
    pub history_rank: usize,
    /// How many of the oldest kept replies are never compared with.
    pub history_skip: usize,
    /// How many replies are kept.
    pub history_keep: usize,
    /// What becomes of the product.
    pub mode: GateMode,
    /// The bound of [`GateMode::Mask`]; with [`GateMode::Product`] only what counts as "passed" in reports.
    pub pass_above: f32,
}

const fn nearest() -> usize {
    1
}

const fn second_nearest() -> usize {
    2
}

const BATCH: Sigmoid = Sigmoid { slope: 40.0, offset: 4.0 };
const HISTORIC: Sigmoid = Sigmoid { slope: 1000.0, offset: 50.0 };

impl GateProfile {
    /// opentensor/validators 1.2: the product itself multiplies the reward.
    pub const OPENVALIDATORS_1_2: Self = Self {
        name: Cow::Borrowed("openvalidators-1.2"),
        batch: BATCH,
        batch_rank: nearest(),
        historic: HISTORIC,
        history_rank: second_nearest(),
        history_skip: 500,
        history_keep: 15_500,
        mode: GateMode::Product,
        pass_above: 0.2,
    };

    /// opentensor/text-prompting 2.1: all or nothing at 0.2, that is, at a distance of 0.0653.
    pub const TEXT_PROMPTING_2_1: Self =
        Self { name: Cow::Borrowed("text-prompting-2.1"), mode: GateMode::Mask, ..Self::OPENVALIDATORS_1_2 };

    /// Returns the profiles that are built in.
    #[must_use]
    pub const fn built_in() -> [Self; 2] {
        [Self::OPENVALIDATORS_1_2, Self::TEXT_PROMPTING_2_1]
    }

    /// Returns the product of the two rewards; without a historic reward the batch reward alone.
    #[must_use]
    pub fn product(&self, batch: f32, historic: Option<f32>) -> f32 {
        batch * historic.unwrap_or(1.0)
    }

    /// Returns the factor in [0, 1] that the reply's reward is multiplied by.
    #[must_use]
    pub fn factor(&self, batch: f32, historic: Option<f32>) -> f32 {
        let product = self.product(batch, historic);
        match self.mode {
            GateMode::Product => product,
            GateMode::Mask => f32::from(u8::from(product > self.pass_above)),
        }
    }

    /// Says whether the mask takes the whole reward: never under a profile without one.
    #[must_use]
    pub fn is_masked(&self, batch: f32, historic: Option<f32>) -> bool {
        self.mode == GateMode::Mask && self.factor(batch, historic) == 0.0
    }

    /// Returns the batch reward of each reply that came in with the others. Of a single reply, or where there are fewer
    /// others than the rank, it is the reward of distance 0 (text-prompting 2.1 does that; openvalidators 1.2 fails).
    #[must_use]
    pub fn batch_rewards(&self, embeddings: &[Embedding]) -> Vec<f32> {
        ranked_distances(embeddings, self.batch_rank).into_iter().map(|d| self.batch.at(d)).collect()
    }
}

impl Default for GateProfile {
    fn default() -> Self {
        Self::TEXT_PROMPTING_2_1
    }
}

/// No built-in profile has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown gate profile {0:?}, expected openvalidators-1.2 or text-prompting-2.1")]
pub struct UnknownProfile(String);

impl FromStr for GateProfile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, UnknownProfile> {
        Self::built_in().into_iter().find(|profile| profile.name == name).ok_or_else(|| UnknownProfile(name.to_owned()))
    }
}

impl fmt::Display for GateProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Returns for each embedding the distance to the nearest other one, in [0, 1].
///
/// An embedding without a direction (zero length, a value that is not finite) has distance 0 and is nobody's
/// neighbour. A single embedding has distance 0.
#[must_use]
pub fn batch_distances(embeddings: &[Embedding]) -> Vec<f32> {
    ranked_distances(embeddings, nearest())
}

/// As [`batch_distances`], to the other one of a rank: 1 is the nearest. Where there are not so many the distance is 0.
fn ranked_distances(embeddings: &[Embedding], rank: usize) -> Vec<f32> {
    let units: Vec<Option<Vec<f32>>> = embeddings.iter().map(|e| normalised(e)).collect();
    (0..units.len()).map(|i| ranked(others(i, &units), rank).map_or(0.0, |(_, distance)| distance)).collect()
}

/// Returns the others that an embedding at unit length can be compared with, each with its distance; none where it has no
/// direction itself.
pub(crate) fn others(i: usize, units: &[Option<Vec<f32>>]) -> impl Iterator<Item = (usize, f32)> {
    let unit = units.get(i).and_then(Option::as_deref);
    let others = units.iter().enumerate().filter(move |&(j, _)| j != i);
    others.filter_map(move |(j, other)| {
        let (unit, other) = (unit?, other.as_deref()?);
        (unit.len() == other.len()).then(|| (j, distance(unit, other)))
    })
}

/// Returns which one comes at a rank by distance, and how far it is: 1 is the nearest, of equal ones the first. `None` where
/// there are not so many.
pub(crate) fn ranked<T>(found: impl IntoIterator<Item = (T, f32)>, rank: usize) -> Option<(T, f32)> {
    let mut nearest: Vec<(T, f32)> = Vec::new();
    for (which, distance) in found {
        let at = nearest.partition_point(|(_, kept)| kept.total_cmp(&distance).is_le());
        if at < rank {
            nearest.insert(at, (which, distance));
            nearest.truncate(rank);
        }
    }
    nearest.into_iter().nth(rank.checked_sub(1)?)
}

/// A validator's history of everyone's replies, kept as it keeps it.
#[derive(Clone, Debug)]
pub struct GateHistory {
    vectors: Vectors,
    skip: usize,
    keep: usize,
    rank: usize,
    curve: Sigmoid,
}

/// A vector that should have unit length, and has not.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("embedding {index} has length {length}, expected 1")]
pub struct NotUnit {
    /// Which, from 0.
    pub index: usize,
    /// Its length; not a number where a value is none.
    pub length: f64,
}

impl GateHistory {
    /// Makes an empty history for embeddings of `dimensions` values under a profile's rules.
    #[must_use]
    pub const fn new(profile: &GateProfile, dimensions: usize) -> Self {
        Self {
            vectors: Vectors::new(dimensions),
            skip: profile.history_skip,
            keep: profile.history_keep,
            rank: profile.history_rank,
            curve: profile.historic,
        }
    }

    /// Makes a history of the vectors that [`rows`](Self::rows) of another one gave, one after the other. Beyond the
    /// profile's limit the oldest are left out, and so is what is less than a vector at the end.
    ///
    /// # Errors
    /// [`NotUnit`], of the first such vector.
    pub fn restored(profile: &GateProfile, dimensions: usize, rows: &[f32]) -> Result<Self, NotUnit> {
        let mut history = Self::new(profile, dimensions);
        for (index, row) in rows.chunks_exact(dimensions.max(1)).enumerate() {
            let length = row.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
            if (length - 1.0).abs() > 1e-3 || length.is_nan() {
                return Err(NotUnit { index, length });
            }
            history.vectors.push_unit(row);
        }
        history.forget();
        Ok(history)
    }

    /// Returns what is kept as vectors of unit length, oldest first.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.vectors.rows()
    }

    /// Returns how many replies are kept.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Says whether nothing is kept yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Returns the historic reward of each reply of a batch, or `None` while the history is too short to have a second-nearest.
    ///
    /// The *oldest* `history_skip` kept replies are never compared with. The curve is applied to the second-nearest
    /// distance (or of the profile's own rank), so one earlier near-copy is free. But the rank is never more than there are
    /// replies in the batch: a reply that came alone is held against the nearest (`min(history_reward_bottom_k,
    /// len(similarity))` in `reward/diversity.py` of text-prompting 2.1, where `similarity` has a row for each reply). An
    /// embedding without a direction has distance 0.
    #[must_use]
    pub fn rewards(&self, embeddings: &[Embedding]) -> Option<Vec<f32>> {
        self.rewards_among(embeddings, embeddings.len())
    }

    /// As [`rewards`](Self::rewards), of some of the replies of a batch that has `n_batch` of them.
    #[must_use]
    pub fn rewards_among(&self, embeddings: &[Embedding], n_batch: usize) -> Option<Vec<f32>> {
        if self.len() < self.skip.saturating_add(self.rank) {
            return None;
        }
        let rank = self.rank.min(n_batch);
        let nearest = self.vectors.nearest_of_each(embeddings, rank, self.skip);
        let ranked = |found: &Vec<(usize, f32)>| found.get(rank.wrapping_sub(1)).map_or(0.0, |found| found.1);
        Some(nearest.iter().map(|found| self.curve.at(ranked(found))).collect())
    }

    /// Takes a batch in, less each reply that equals the one right before it in the batch, and forgets the oldest
    /// beyond the limit. Called after [`rewards`](Self::rewards) of the same batch.
    pub fn push_batch(&mut self, embeddings: &[Embedding]) {
        for (i, embedding) in embeddings.iter().enumerate() {
            if i == 0 || *embedding != embeddings[i - 1] {
                self.vectors.push(embedding);
            }
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.vectors.drop_oldest(self.len().saturating_sub(self.keep));
    }
}

#[cfg(test)]
mod tests;
