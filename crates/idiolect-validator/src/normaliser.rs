use serde::{Deserialize, Serialize};

/// Running mean and variance of one reward model's scores, and the normal distribution function over them
/// (`reward/reward.py` of both versions). Equal to the recording `normalise.json`.
///
/// A batch enters the statistics before it is normalised. A first batch of one score has no variance: from then on only
/// the mean is taken off, as in the original.
#[derive(Clone, Debug, PartialEq)]
pub struct Normaliser {
    mean: f64,
    variance: f64,
    count: usize,
    count_limit: usize,
}

impl Normaliser {
    /// Makes statistics over nothing yet. The count, and so the inertia, stops growing at `count_limit`.
    #[must_use]
    pub const fn new(count_limit: usize) -> Self {
        Self { mean: 0.0, variance: 0.0, count: 0, count_limit }
    }

    /// Returns the mean so far.
    #[must_use]
    pub const fn mean(&self) -> f64 {
        self.mean
    }

    /// Returns the variance so far; not a number after a batch of one score.
    #[must_use]
    pub const fn variance(&self) -> f64 {
        self.variance
    }

    /// Returns how many scores count.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn saved(&self) -> SavedNormaliser {
        let variance = Some(self.variance).filter(|variance| !variance.is_nan());
        SavedNormaliser { mean: self.mean, variance, count: self.count }
    }

    /// Takes saved statistics; the limit of the count stays its own.
    pub(crate) fn restore(&mut self, saved: &SavedNormaliser) -> Result<(), String> {
        if !saved.mean.is_finite() {
            return Err(format!("mean is {}, expected a finite number", saved.mean));
        }
        if let Some(variance) = saved.variance
            && !(variance.is_finite() && variance >= 0.0)
        {
            return Err(format!("variance is {variance}, expected a number not below 0"));
        }
        self.mean = saved.mean;
        self.variance = saved.variance.unwrap_or(f64::NAN);
        self.count = saved.count.min(self.count_limit);
        Ok(())
    }

    /// Takes a batch in and returns it normalised to [0, 1]. Scores that are not finite are no part of the statistics and
    /// become 0.
    pub fn normalise(&mut self, scores: &[f32]) -> Vec<f32> {
        let finite: Vec<f64> = scores.iter().filter(|s| s.is_finite()).map(|&s| f64::from(s)).collect();
        self.take_in(&finite);
        scores.iter().map(|&score| self.at(score)).collect()
    }

    fn take_in(&mut self, batch: &[f64]) {
        if batch.is_empty() {
            return;
        }
        let n = batch.len() as f64;
        let mean = batch.iter().sum::<f64>() / n;
        // 0 / 0 for a batch of one: not a number, as in the original.
        let variance = batch.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let count = self.count as f64;
        let (new, old) = (n / (count + n), count / (count + n));
        let moved = mean - self.mean;
        self.mean = new * mean + old * self.mean;
        self.variance = new * variance + old * self.variance + new * old * moved * moved;
        self.count = self.count_limit.min(self.count + batch.len());
    }

    fn at(&self, score: f32) -> f32 {
        if !score.is_finite() {
            return 0.0;
        }
        let centred = f64::from(score) - self.mean;
        let scaled = if self.variance > 0.0 { centred / self.variance.sqrt() } else { centred };
        #[expect(clippy::cast_possible_truncation, reason = "a value in [0, 1]")]
        let normalised = (0.5 * (1.0 + libm::erf(scaled / std::f64::consts::SQRT_2))) as f32;
        normalised
    }
}

/// A [`Normaliser`]'s statistics on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedNormaliser {
    mean: f64,
    /// `None`: not a number.
    variance: Option<f64>,
    count: usize,
}
