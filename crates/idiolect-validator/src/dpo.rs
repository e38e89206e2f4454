//! The `dpo` reward: a reply's mean log-probability under a base model, with repetition taken off
//! (`reward/dpo.py` of both versions). Equal to the recording `dpo.json`.

use idiolect_backend::{Moments, OwnLogits};
use serde::Deserialize;

use crate::python;

/// The figures of the `dpo` reward.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoRules {
    /// What fails gets, and what is blank or short: about the log-probability of a token drawn blindly.
    pub lowest: f32,
    /// Replies of up to so many characters are short.
    pub short_characters: usize,
    /// What becomes of repetition.
    pub repetition: Repetition,
}

/// How repetition changes the logits, before the softmax.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(tag = "rule", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Repetition {
    /// As they are.
    Ignored,
    /// Version 1.2: logits of tokens already in the reply are divided (if negative: multiplied) by this factor, once for
    /// each time.
    Scaled {
        /// The factor; validators use 1.2.
        factor: f64,
        /// From how many places on a token counts; validators use 2, so that the newest token never counts.
        lag: usize,
    },
    /// Version 2.1: tokens that would repeat an n-gram after the reply's last n - 1 tokens get the mean of all logits less
    /// some standard deviations, at every position.
    NoRepeatNgram {
        /// The n-gram's length; validators use 5.
        n: usize,
        /// How many standard deviations; validators use 10.
        deviations: f64,
    },
}

impl DpoRules {
    /// Says whether a reply is so short that it gets the lowest reward unseen: blank, or of few characters.
    #[must_use]
    pub fn too_short(&self, reply: &str) -> bool {
        python::strip(reply).is_empty() || reply.chars().count() <= self.short_characters
    }

    /// Returns a reply's reward: the mean log-probability of its tokens, each drawn from its row of logits.
    ///
    /// `before` are the moments of the rows before those, from which the prompt's tokens but the first were drawn. They count
    /// in the mean and deviation of [`Repetition::NoRepeatNgram`] only: see [`wants_prompt`](Self::wants_prompt). The lowest
    /// where there are no tokens, rows do not fit them, or the result is not finite.
    #[must_use]
    pub fn reward(&self, tokens: &[u32], rows: &[Vec<f32>], before: Moments) -> f32 {
        self.reward_of_own(tokens, &OwnLogits::of_rows(tokens, rows), before)
    }

    /// As [`reward`](Self::reward), by what counts of the rows: that of its own tokens, which alone the rules change.
    #[must_use]
    pub fn reward_of_own(&self, tokens: &[u32], own: &OwnLogits, before: Moments) -> f32 {
        mean(tokens, own, before, self.repetition).filter(|mean| mean.is_finite()).unwrap_or(self.lowest)
    }

    /// Returns a reply's reward where its [rows do not count](Self::wants_rows): the mean of its tokens' log-probabilities.
    /// The lowest where there are none, or the result is not finite.
    #[must_use]
    pub fn reward_of_logprobs(&self, logprobs: impl IntoIterator<Item = f32>) -> f32 {
        let (mut sum, mut n) = (0.0_f64, 0_u32);
        for logprob in logprobs {
            sum += f64::from(logprob);
            n += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a mean of log-probabilities")]
        let mean = (sum / f64::from(n)) as f32;
        if mean.is_finite() { mean } else { self.lowest }
    }

    /// Says whether more counts of a reply's logits than the log-probabilities of its tokens: with
    /// [`Repetition::NoRepeatNgram`] only where its last n - 1 tokens stood in it before.
    #[must_use]
    pub fn wants_rows(&self, tokens: &[u32]) -> bool {
        match self.repetition {
            Repetition::Ignored => false,
            Repetition::Scaled { .. } => true,
            Repetition::NoRepeatNgram { n, .. } => !banned(tokens, n).is_empty(),
        }
    }

    /// Says whether the logits before the reply count, where its rows do.
    #[must_use]
    pub const fn wants_prompt(&self) -> bool {
        matches!(self.repetition, Repetition::NoRepeatNgram { .. })
    }
}

fn mean(tokens: &[u32], own: &OwnLogits, before: Moments, repetition: Repetition) -> Option<f32> {
    if tokens.is_empty() || own.n_rows() != tokens.len() {
        return None;
    }
    let place = |token: &u32| own.tokens().binary_search(token).ok();
    let places: Vec<usize> = tokens.iter().map(place).collect::<Option<_>>()?;
    let ban = match repetition {
        Repetition::NoRepeatNgram { n, deviations } => {
            // What is banned stood in the reply.
            let banned: Vec<usize> = banned(tokens, n).iter().filter_map(place).collect();
            if banned.is_empty() { None } else { Some((banned, floor(own, before, deviations))) }
        }
        Repetition::Ignored | Repetition::Scaled { .. } => None,
    };
    let mut seen = vec![0; own.tokens().len()];
    let mut sum = 0.0;
    for (j, ((row, others), &place)) in own.rows().zip(&places).enumerate() {
        let mut logits: Vec<f64> = row.iter().map(|&logit| f64::from(logit)).collect();
        if let Repetition::Scaled { factor, lag } = repetition
            && j >= lag
        {
            seen[places[j - lag]] += 1;
            scale(&mut logits, &seen, factor);
        }
        if let Some((banned, floor)) = &ban {
            banned.iter().for_each(|&place| logits[place] = *floor);
        }
        sum += logits[place] - log_sum_exp(&logits, others);
    }
    #[expect(clippy::cast_possible_truncation, reason = "a mean of log-probabilities")]
    let mean = (sum / tokens.len() as f64) as f32;
    Some(mean)
}

/// Scales each logit once for each time that its token was seen.
fn scale(logits: &mut [f64], seen: &[i32], factor: f64) {
    for (logit, &count) in logits.iter_mut().zip(seen).filter(|(_, count)| **count > 0) {
        let power = factor.powi(count);
        *logit = if *logit < 0.0 { *logit * power } else { *logit / power };
    }
}

/// Returns the tokens that followed an earlier copy of the last n - 1 tokens.
fn banned(tokens: &[u32], n: usize) -> Vec<u32> {
    if n == 0 || tokens.len() + 1 < n {
        return Vec::new();
    }
    let last = &tokens[tokens.len() + 1 - n..];
    tokens.windows(n).filter(|ngram| &ngram[..n - 1] == last).map(|ngram| ngram[n - 1]).collect()
}

/// The mean of all logits less some (unbiased) standard deviations.
fn floor(own: &OwnLogits, before: Moments, deviations: f64) -> f64 {
    let mut all = before;
    all.merge(own.moments());
    all.mean() - deviations * all.variance().sqrt()
}

/// The logarithm of the sum of the exponentials of these, and of the others that already is one.
fn log_sum_exp(logits: &[f64], others: f64) -> f64 {
    let max = logits.iter().copied().fold(others, f64::max);
    max + (logits.iter().map(|l| (l - max).exp()).sum::<f64>() + (others - max).exp()).ln()
}
