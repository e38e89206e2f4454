//! What was learnt, in the form in which a selector can use it.

use idiolect_backend::Embedding;
use idiolect_uniqueness::distinctiveness::{Distinctiveness, DistinctivenessError};
use idiolect_uniqueness::{Candidate, Panel, Population, Selector, SelectorConfig};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::{Lesson, Lessons, N_FOLDS, N_NEAR, mean, shuffle};
use crate::statistics::below;

/// Sets of models that stand for ours, at each prompt.
const N_SETS: usize = 60;
/// How many models a set has at least and at most.
const SIZES: [usize; 2] = [2, 5];
/// How many rivals are seen, in turn.
const N_SEEN: [usize; 5] = [0, 0, 1, 2, 10];
/// How strongly the slope is drawn to 0, beside one case of spread 1: it matters only where there are few, or no case speaks against it.
const SLOPE_PENALTY: f64 = 10.0;
/// Fisher's scoring has converged long before.
const MOST_STEPS: usize = 50;

/// What the record teaches a selector of its own replies, each by other prompts only.
#[derive(Debug)]
pub struct Taught {
    /// Of each reply, by its place in the record.
    values: Vec<Option<f64>>,
    /// By the fold left out.
    slopes: Vec<f64>,
    /// Of the chances to be masked, as they are and with what was learnt.
    brier: [f64; 2],
    masked: [f64; 3],
    n_cases: usize,
    n_choices: usize,
}

/// Why nothing can be taught.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TeachError {
    /// The selector has no chances that what is learnt could change.
    #[error(
        "nothing is known of how likely the gate is to mask with the encoder {0}: expected all-mpnet-base-v2 or all-MiniLM-L6-v2"
    )]
    Encoder(String),
    /// There are too few prompts or models to learn from.
    #[error(
        "{n_cases} choices among {n_prompts} prompts tell of the gate, expected at least {}: more prompts, or more models",
        LEAST
    )]
    TooLittle {
        /// Prompts on record.
        n_prompts: usize,
        /// Candidates of which it is not certain what becomes of them.
        n_cases: usize,
    },
    /// What was learnt cannot be used.
    #[error(transparent)]
    Unusable(#[from] DistinctivenessError),
}

/// Fewer cases than this say nothing.
const LEAST: usize = 200;

/// One candidate of a choice.
struct Case {
    fold: usize,
    /// Which choice, counted from 0.
    choice: usize,
    /// The candidate by its place in the record, and all of the choice.
    reply: usize,
    set: Vec<usize>,
    /// ln Λ, as the selector thinks of it with what is seen.
    log_rate: f64,
    masked: bool,
}

impl Taught {
    /// Returns how far a reply, by its place in the record, is said to be from everybody's, times the slope, by the prompts of other folds.
    #[must_use]
    pub fn of(&self, reply: usize) -> Option<f64> {
        self.values.get(reply).copied().flatten()
    }

    /// Returns the Brier scores of the selector's chances to be masked, over choices among sets of models with up to ten rivals
    /// seen: without what was learnt, and with what other folds taught. Lower is better.
    #[must_use]
    pub const fn brier(&self) -> [f64; 2] {
        self.brier
    }

    /// Returns the share of choices that the gate masks: in the mean of the candidates, where the least chance to be masked is taken, and
    /// where it is taken with what other folds taught. Among candidates of which it is not certain.
    #[must_use]
    pub const fn masked(&self) -> [f64; 3] {
        self.masked
    }

    /// Returns how many choices those shares are of.
    #[must_use]
    pub const fn n_choices(&self) -> usize {
        self.n_choices
    }

    /// Returns how many candidates the Brier scores are of: the ones of which it is not certain what becomes of them.
    #[must_use]
    pub const fn n_cases(&self) -> usize {
        self.n_cases
    }

    /// Returns the slopes, by the fold left out.
    #[must_use]
    pub fn slopes(&self) -> &[f64] {
        &self.slopes
    }
}

impl<'a> Lessons<'a> {
    /// Learns what the selector can use for its choices among the record's own replies: for each prompt by the others.
    ///
    /// # Errors
    /// [`TeachError`] for an encoder without a calibration, and where there is too little to learn from.
    pub fn taught(&self, encoder: &str, seed: u64) -> Result<Taught, TeachError> {
        let cases = self.cases(encoder, seed)?;
        let slope = |fold: usize| fit(cases.iter().filter(|case| case.fold != fold), &self.typicality[fold]);
        let slopes: Vec<f64> = (0..N_FOLDS).map(slope).collect();
        let mut values = vec![None; self.embeddings.len()];
        for lesson in &self.lessons {
            for &reply in &lesson.replies {
                values[reply] = Some(slopes[lesson.fold] * self.typicality[lesson.fold][reply]);
            }
        }
        let value = |reply: &usize| values[*reply].unwrap_or(0.0);
        let error = |case: &Case, less: f64| {
            let p = -(-(case.log_rate - less).exp()).exp_m1();
            (p - f64::from(u8::from(case.masked))).powi(2)
        };
        let less = |case: &Case| value(&case.reply) - mean(&case.set.iter().map(value).collect::<Vec<_>>());
        let brier = [
            mean(&cases.iter().map(|case| error(case, 0.0)).collect::<Vec<_>>()),
            mean(&cases.iter().map(|case| error(case, less(case))).collect::<Vec<_>>()),
        ];
        let choices: Vec<&[Case]> =
            cases.chunk_by(|a, b| a.choice == b.choice).filter(|cases| cases.len() > 1).collect();
        let share = |of: &dyn Fn(&[Case]) -> f64| mean(&choices.iter().map(|cases| of(cases)).collect::<Vec<_>>());
        let is_masked = |case: &Case| f64::from(u8::from(case.masked));
        let least = |cases: &[Case], rate: &dyn Fn(&Case) -> f64| {
            cases.iter().min_by(|a, b| rate(a).total_cmp(&rate(b))).map_or(0.0, is_masked)
        };
        let masked = [
            share(&|cases| mean(&cases.iter().map(is_masked).collect::<Vec<_>>())),
            share(&|cases| least(cases, &|case| case.log_rate)),
            share(&|cases| least(cases, &|case| case.log_rate - less(case))),
        ];
        let (n_cases, n_choices) = (cases.len(), choices.len());
        Ok(Taught { values, slopes, brier, masked, n_cases, n_choices })
    }

    /// Learns from all of the record, for replies that are not on it.
    ///
    /// # Errors
    /// As [`taught`](Self::taught).
    pub fn teach(&self, encoder: &str, seed: u64) -> Result<Distinctiveness, TeachError> {
        let cases = self.cases(encoder, seed)?;
        // Of each reply by a fit in which its own fold had no part.
        let mut typicality = vec![0.0; self.embeddings.len()];
        for lesson in &self.lessons {
            for &reply in &lesson.replies {
                typicality[reply] = self.typicality[lesson.fold][reply];
            }
        }
        let slope = fit(cases.iter(), &typicality);
        let (counted, embedding) = (self.weights.counted.clone(), self.weights.embedding.clone());
        let n_replies = self.lessons.iter().map(|lesson| lesson.replies.len()).sum();
        Ok(Distinctiveness::new(encoder, counted, embedding, slope)?.learnt_from(self.lessons.len(), n_replies))
    }

    /// Lets the selector look at choices among sets of models, with some of the others seen.
    fn cases(&self, encoder: &str, seed: u64) -> Result<Vec<Case>, TeachError> {
        let profile = self.profile.clone();
        let selector = Selector::new(SelectorConfig { profile, ..SelectorConfig::default() });
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut cases = Vec::new();
        let sets = self.sets(&mut random);
        let (mut is_known, mut n_choices) = (false, 0);
        for lesson in &self.lessons {
            for (nth, set) in sets.iter().enumerate() {
                let own: Vec<usize> =
                    set.iter().filter_map(|model| lesson.models.iter().position(|other| other == model)).collect();
                let mut rivals: Vec<usize> = (0..lesson.models.len()).filter(|i| !own.contains(i)).collect();
                let n_seen = N_SEEN[nth % N_SEEN.len()];
                if own.len() < SIZES[0] || rivals.len() <= n_seen {
                    continue;
                }
                shuffle(&mut rivals, &mut random);
                let (seen, hidden) = rivals.split_at(n_seen);
                let Some(chances) = self.chances(&selector, encoder, lesson, &own, seen) else { continue };
                for (&place, chance) in own.iter().zip(chances) {
                    is_known |= chance.is_some();
                    let Some(p) = chance.filter(|p| *p > 0.0 && *p < 1.0) else { continue };
                    cases.push(Case {
                        fold: lesson.fold,
                        choice: n_choices,
                        reply: lesson.replies[place],
                        set: own.iter().map(|&place| lesson.replies[place]).collect(),
                        log_rate: (-(-p).ln_1p()).ln(),
                        masked: self.is_masked(lesson, place, hidden),
                    });
                }
                n_choices += 1;
            }
        }
        if !cases.is_empty() && !is_known || idiolect_uniqueness::chance::Calibration::of_encoder(encoder).is_none() {
            return Err(TeachError::Encoder(encoder.to_owned()));
        }
        if cases.len() < LEAST {
            return Err(TeachError::TooLittle { n_prompts: self.lessons.len(), n_cases: cases.len() });
        }
        Ok(cases)
    }

    /// Draws sets of models: of two in three the others are near to the first, as variants of one model are.
    fn sets(&self, random: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
        let n = self.models.len();
        if n < SIZES[0] {
            return Vec::new();
        }
        let between = self.mean_distances(N_FOLDS);
        let draw = |nth: usize| {
            let size = (SIZES[0] + below(random, SIZES[1] - SIZES[0] + 1)).min(n);
            let mut pool: Vec<usize> = (0..n).collect();
            shuffle(&mut pool, random);
            if !nth.is_multiple_of(3) {
                let first = pool[0];
                pool[1..].sort_by(|&a, &b| between[first][a].total_cmp(&between[first][b]).then(a.cmp(&b)));
                let n_near = N_NEAR.min(n - 1);
                shuffle(&mut pool[1..=n_near], random);
            }
            pool.truncate(size);
            pool
        };
        (0..N_SETS).map(draw).collect()
    }

    /// Returns how likely the selector takes each of ours to be masked, as variants of one model.
    fn chances(
        &self,
        selector: &Selector,
        encoder: &str,
        lesson: &Lesson<'_>,
        own: &[usize],
        seen: &[usize],
    ) -> Option<Vec<Option<f64>>> {
        let embedding = |place: usize| -> &'a Embedding { &self.embeddings[lesson.replies[place]] };
        let candidate = |&place: &usize| Candidate {
            embedding: Some(embedding(place)),
            quality: 0.5,
            source: "ours",
            distinctiveness: None,
        };
        let candidates: Vec<Candidate<'_>> = own.iter().map(candidate).collect();
        let mut panel = Panel::new(encoder, embedding(own[0]).len());
        for &place in seen {
            panel.push(self.models[lesson.models[place]], embedding(place));
        }
        let population = Population::new(encoder).with_rivals(lesson.models.len() - own.len());
        let population = if seen.is_empty() { population } else { population.with_panel(&panel).ok()? };
        let selection = selector.select(&candidates, &population)?;
        Some(selection.scores.iter().map(|score| score.masked.map(|masked| f64::from(masked.p))).collect())
    }
}

/// Fits P = 1 - exp(-exp(ln Λ + a - s t)), with t the typicality less the mean of its choice, by Fisher's scoring, and returns s: 0 where
/// typicality tells the opposite.
fn fit<'a>(cases: impl Iterator<Item = &'a Case>, typicality: &[f64]) -> f64 {
    let of = |case: &Case| {
        let all: Vec<f64> = case.set.iter().map(|&reply| typicality[reply]).collect();
        (case.log_rate, typicality[case.reply] - mean(&all), f64::from(u8::from(case.masked)))
    };
    let rows: Vec<(f64, f64, f64)> = cases.map(of).collect();
    let (mut level, mut slope) = (0.0_f64, 0.0_f64);
    for _ in 0..MOST_STEPS {
        // The information matrix and the gradient.
        let (mut aa, mut at, mut tt) = (1e-6, 0.0, SLOPE_PENALTY);
        let (mut a, mut t) = (0.0, -SLOPE_PENALTY * slope);
        for &(known, typical, masked) in &rows {
            let rate = (known + level - slope * typical).clamp(-12.0, 3.5).exp();
            let p = (-(-rate).exp_m1()).clamp(1e-9, 1.0 - 1e-9);
            let by = rate * (-rate).exp() + 1e-12;
            let (weight, residual) = (by * by / (p * (1.0 - p)), (masked - p) / by);
            aa += weight;
            at -= weight * typical;
            tt += weight * typical * typical;
            a += weight * residual;
            t -= weight * residual * typical;
        }
        let determinant = aa * tt - at * at;
        if determinant.abs() < 1e-12 {
            break;
        }
        let (da, ds) = ((tt * a - at * t) / determinant, (aa * t - at * a) / determinant);
        let largest = da.abs().max(ds.abs());
        (level, slope) = (level + da / largest.max(1.0), slope + ds / largest.max(1.0));
        if largest < 1e-9 {
            break;
        }
    }
    if slope.is_finite() { slope.max(0.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rates that a slope of 0.8 made, with fractions of cases in place of a draw.
    #[test]
    fn the_slope_that_made_the_cases_is_found() {
        let typicality: Vec<f64> = (0..40).map(|i| f64::from(i) / 20.0 - 0.975).collect();
        let (mut cases, mut carried) = (Vec::new(), 0.0);
        for round in 0..200_usize {
            for (reply, typical) in typicality.iter().enumerate() {
                let log_rate = (round % 7) as f64 / 4.0 - 1.0;
                carried += 1.0 - (-(log_rate + 0.3 - 0.8 * typical).exp()).exp();
                let masked = carried >= 1.0;
                carried -= f64::from(u8::from(masked));
                cases.push(Case { fold: 0, choice: round, reply, set: (0..40).collect(), log_rate, masked });
            }
        }
        let found = fit(cases.iter(), &typicality);
        assert!((found - 0.8).abs() < 0.05, "{found}");
        let opposite: Vec<f64> = typicality.iter().map(|t| -t).collect();
        assert_eq!(fit(cases.iter(), &opposite), 0.0);
        assert_eq!(fit([].iter(), &typicality), 0.0);
    }
}
