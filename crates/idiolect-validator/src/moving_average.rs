/// A uid beyond those there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("uid {uid} is not below the number of miners, {n_uids}")]
pub struct UnknownUid {
    /// The uid.
    pub uid: usize,
    /// How many there are.
    pub n_uids: usize,
}

/// A validator's memory of what each miner earned (`forward.py`, `weights.py` of both versions). Equal to the recording
/// `step_v1.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct MovingAverage {
    scores: Vec<f64>,
    alpha: f64,
}

impl MovingAverage {
    /// Makes the memory of `n_uids` miners that earned nothing yet; `alpha` is the newest step's share.
    #[must_use]
    pub fn new(n_uids: usize, alpha: f64) -> Self {
        Self { scores: vec![0.0; n_uids], alpha }
    }

    /// Goes on from averages that were noted, by uid; `None` where one of them is not finite.
    #[must_use]
    pub fn begun_at(scores: Vec<f64>, alpha: f64) -> Option<Self> {
        scores.iter().all(|score| score.is_finite()).then_some(Self { scores, alpha })
    }

    /// Returns each miner's average.
    #[must_use]
    pub fn scores(&self) -> &[f64] {
        &self.scores
    }

    /// Makes room for more miners, who earned nothing yet; never fewer.
    pub fn grow(&mut self, n_uids: usize) {
        if n_uids > self.scores.len() {
            self.scores.resize(n_uids, 0.0);
        }
    }

    /// Takes the averages of an earlier run.
    pub(crate) fn restore(&mut self, scores: Vec<f64>) -> Result<(), String> {
        if let Some((uid, score)) = scores.iter().enumerate().find(|(_, score)| !score.is_finite()) {
            return Err(format!("moving_average.{uid} is {score}, expected a finite number"));
        }
        let n_uids = self.scores.len();
        self.scores = scores;
        self.grow(n_uids);
        Ok(())
    }

    /// Takes in what the asked miners earned in a step; those not asked keep their average. A reward that is not finite
    /// counts as 0. Of a uid that is named twice the last reward counts.
    ///
    /// # Errors
    /// [`UnknownUid`]; nothing has changed then.
    pub fn update(&mut self, rewards: &[(usize, f32)]) -> Result<(), UnknownUid> {
        let n_uids = self.scores.len();
        if let Some(&(uid, _)) = rewards.iter().find(|(uid, _)| *uid >= n_uids) {
            return Err(UnknownUid { uid, n_uids });
        }
        let mut step = self.scores.clone();
        for &(uid, reward) in rewards {
            step[uid] = if reward.is_finite() { f64::from(reward) } else { 0.0 };
        }
        for (score, new) in self.scores.iter_mut().zip(step) {
            *score = self.alpha * new + (1.0 - self.alpha) * *score;
        }
        Ok(())
    }

    /// Returns the weights before the chain's own limits: averages divided by the sum of their absolute values; all 0 while
    /// nobody earned anything.
    #[must_use]
    pub fn weights(&self) -> Vec<f64> {
        let sum: f64 = self.scores.iter().map(|s| s.abs()).sum();
        self.scores.iter().map(|s| if sum > 0.0 { s / sum } else { 0.0 }).collect()
    }
}
