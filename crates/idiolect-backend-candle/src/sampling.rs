//! Drawing tokens from logits.
//!
//! The order of filters is temperature, top-k, top-p, min-p, as most servers have it. Nothing here sorts the whole
//! vocabulary: the likeliest tokens are collected by a threshold that is lowered until they are enough.

use std::collections::{HashMap, HashSet};

use idiolect_backend::Sampling;

use crate::math;

/// Temperature where a request leaves the choice to us.
const TEMPERATURE: f32 = 0.7;
/// Top-p where a request leaves the choice to us.
const TOP_P: f32 = 0.95;

/// The logits are no numbers.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the model computed logits that are no numbers")]
pub(crate) struct NotFinite;

/// A sequence of random numbers that is the same on every machine and in every version (SplitMix64).
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    /// Makes the stream of one candidate.
    const fn new(seed: u64, candidate: u64) -> Self {
        let mut stream = Self(seed ^ candidate.wrapping_mul(0xd134_2543_de82_ef95));
        // Neighbouring seeds must not give neighbouring streams.
        let first = stream.next();
        Self(first ^ candidate.rotate_left(32))
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number in [0, 1).
    fn fraction(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
        let mantissa = (self.next() >> 11) as f64;
        mantissa / (1u64 << 53) as f64
    }
}

/// A token that was drawn.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: u32,
    /// Log-probability under the model, before every penalty and filter.
    pub(crate) logprob: f32,
    /// The likeliest tokens under the model, best first, when asked for.
    pub(crate) top: Vec<(u32, f32)>,
}

/// Draws the tokens of one candidate.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    top_logprobs: Option<usize>,
    random: Random,
    /// Tokens of the prompt, for the repetition penalty; empty when that is off.
    prompt: HashSet<u32>,
    /// How often each token was drawn.
    drawn: HashMap<u32, u32>,
    logits: Vec<f32>,
    kept: Vec<(f32, u32)>,
}

impl Sampler {
    /// Makes the sampler of candidate `index`. `seed` is the request's, or a fresh one.
    pub(crate) fn new(sampling: &Sampling, seed: u64, index: usize, prompt: &[u32]) -> Self {
        let repetition_penalty = sampling.repetition_penalty.unwrap_or(1.0);
        Self {
            temperature: sampling.temperature.unwrap_or(TEMPERATURE),
            top_k: sampling.top_k.unwrap_or(0) as usize,
            top_p: sampling.top_p.unwrap_or(TOP_P),
            min_p: sampling.min_p.unwrap_or(0.0),
            repetition_penalty,
            frequency_penalty: sampling.frequency_penalty.unwrap_or(0.0),
            presence_penalty: sampling.presence_penalty.unwrap_or(0.0),
            top_logprobs: sampling.logprobs.map(usize::from),
            random: Random::new(seed, index as u64),
            prompt: if repetition_penalty == 1.0 { HashSet::new() } else { prompt.iter().copied().collect() },
            drawn: HashMap::new(),
            logits: Vec::new(),
            kept: Vec::new(),
        }
    }

    /// Says whether the request asked for log-probabilities.
    pub(crate) const fn wants_logprobs(&self) -> bool {
        self.top_logprobs.is_some()
    }

    /// Draws the next token. `banned` tokens are never drawn.
    pub(crate) fn draw(&mut self, logits: &[f32], banned: &[u32]) -> Result<Drawn, NotFinite> {
        let log_sum = math::log_sum_exp(logits);
        if !log_sum.is_finite() {
            return Err(NotFinite);
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.penalise();
        for token in banned {
            if let Some(logit) = self.logits.get_mut(*token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        let token = if self.temperature > 0.0 { self.choose()? } else { greatest(&self.logits).ok_or(NotFinite)? };
        *self.drawn.entry(token).or_default() += 1;
        let logprob = |token: u32| (logits[token as usize] - log_sum).min(0.0);
        let top = match self.top_logprobs {
            None | Some(0) => Vec::new(),
            Some(n) => {
                likeliest(logits, n, &mut self.kept);
                self.kept.iter().map(|(_, token)| (*token, logprob(*token))).collect()
            }
        };
        Ok(Drawn { token, logprob: logprob(token), top })
    }

    fn penalise(&mut self) {
        if self.repetition_penalty != 1.0 {
            let fresh = self.drawn.keys().filter(|token| !self.prompt.contains(token));
            for token in self.prompt.iter().chain(fresh) {
                if let Some(logit) = self.logits.get_mut(*token as usize) {
                    let penalty = self.repetition_penalty;
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
            }
        }
        if self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 {
            for (token, times) in &self.drawn {
                #[expect(clippy::cast_precision_loss, reason = "counts are at most the context's length")]
                let times = *times as f32;
                if let Some(logit) = self.logits.get_mut(*token as usize) {
                    *logit -= self.frequency_penalty * times + self.presence_penalty;
                }
            }
        }
    }

    /// Filters and draws at a temperature above 0.
    fn choose(&mut self) -> Result<u32, NotFinite> {
        let inverse = 1.0 / self.temperature;
        for logit in &mut self.logits {
            *logit *= inverse;
        }
        let log_sum = math::log_sum_exp(&self.logits);
        if !log_sum.is_finite() {
            // So low a temperature that the scaled logits overflow leaves nothing but the greatest.
            return greatest(&self.logits).ok_or(NotFinite);
        }
        if self.top_k > 0 && self.top_k < self.logits.len() {
            likeliest(&self.logits, self.top_k, &mut self.kept);
        } else if self.top_p < 1.0 {
            collect_mass(&self.logits, log_sum, self.top_p, &mut self.kept);
        } else {
            let least = if self.min_p > 0.0 { self.least_logit(maximum(&self.logits)) } else { f32::NEG_INFINITY };
            collect_above(&self.logits, least, &mut self.kept);
        }
        let greatest = self.kept.iter().map(|(logit, _)| *logit).fold(f32::NEG_INFINITY, f32::max);
        let least = self.least_logit(greatest);
        let weight = |logit: f32| f64::from(math::exp(logit - greatest));

        // What top-p measures is the distribution that top-k left.
        let total: f64 = if self.top_k > 0 && self.top_k < self.logits.len() {
            self.kept.iter().map(|(logit, _)| weight(*logit)).sum()
        } else {
            f64::from(log_sum - greatest).exp()
        };
        let mut n = self.kept.len();
        if self.top_p < 1.0 {
            let mut mass = 0.0;
            let reached = self.kept.iter().position(|(logit, _)| {
                mass += weight(*logit);
                mass >= f64::from(self.top_p) * total
            });
            n = reached.map_or(n, |last| last + 1);
        }
        let kept = self.kept[..n].iter().filter(|(logit, _)| *logit >= least);
        let mass: f64 = kept.clone().map(|(logit, _)| weight(*logit)).sum();
        let mut left = self.random.fraction() * mass;
        let mut last = None;
        for (logit, token) in kept.filter(|(logit, _)| *logit > f32::NEG_INFINITY) {
            left -= weight(*logit);
            last = Some(*token);
            if left < 0.0 {
                break;
            }
        }
        last.ok_or(NotFinite)
    }

    fn least_logit(&self, greatest: f32) -> f32 {
        if self.min_p > 0.0 { greatest + self.min_p.ln() } else { f32::NEG_INFINITY }
    }
}

fn maximum(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Returns the first token with the greatest logit.
fn greatest(logits: &[f32]) -> Option<u32> {
    let greatest = maximum(logits);
    let at = logits.iter().position(|logit| *logit == greatest && greatest > f32::NEG_INFINITY)?;
    u32::try_from(at).ok()
}

fn collect_above(logits: &[f32], least: f32, kept: &mut Vec<(f32, u32)>) {
    kept.clear();
    kept.extend((0u32..).zip(logits).filter(|(_, logit)| **logit >= least).map(|(token, logit)| (*logit, token)));
}

/// Greater logits first, and of equal ones the lower token.
fn order(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Collects the `k` likeliest tokens, best first.
fn likeliest(logits: &[f32], k: usize, kept: &mut Vec<(f32, u32)>) {
    let greatest = maximum(logits);
    let mut below = 4.0;
    while below < 100.0 {
        collect_above(logits, greatest - below, kept);
        if kept.len() >= k {
            break;
        }
        below *= 2.0;
    }
    if kept.len() < k {
        collect_above(logits, f32::NEG_INFINITY, kept);
    }
    if kept.len() > k {
        kept.select_nth_unstable_by(k, order);
        kept.truncate(k);
    }
    kept.sort_unstable_by(order);
}

/// Collects the likeliest tokens, best first, until they hold at least `share` of all probability.
fn collect_mass(logits: &[f32], log_sum: f32, share: f32, kept: &mut Vec<(f32, u32)>) {
    let greatest = maximum(logits);
    let mut below = 4.0;
    while below < 100.0 {
        collect_above(logits, greatest - below, kept);
        let mass: f64 = kept.iter().map(|(logit, _)| f64::from(math::exp(logit - log_sum))).sum();
        // The margin covers the rounding of the sums, which the caller takes in another order.
        if mass >= f64::from(share) + 1e-5 {
            break;
        }
        below *= 2.0;
    }
    if below >= 100.0 {
        collect_above(logits, f32::NEG_INFINITY, kept);
    }
    kept.sort_unstable_by(order);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampling() -> Sampling {
        Sampling { temperature: Some(1.0), top_p: Some(1.0), ..Sampling::default() }
    }

    fn draws(sampling: &Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, 7, 0, &[]);
        (0..n)
            .map(|_| {
                sampler.drawn.clear();
                sampler.draw(logits, &[]).unwrap().token
            })
            .collect()
    }

    #[test]
    fn greedy_takes_the_first_of_the_greatest() {
        let greedy = Sampling { temperature: Some(0.0), ..Sampling::default() };
        assert_eq!(draws(&greedy, &[0.0, 3.0, 1.0, 3.0], 3), [1, 1, 1]);
    }

    #[test]
    fn the_drawn_frequencies_are_the_probabilities() {
        let logits = [1.0f32, 2.0, 3.0, 0.0];
        let counts = draws(&sampling(), &logits, 40_000).into_iter().fold([0u32; 4], |mut counts, token| {
            counts[token as usize] += 1;
            counts
        });
        let sum: f32 = logits.iter().map(|l| l.exp()).sum();
        for (logit, count) in logits.iter().zip(counts) {
            let expected = logit.exp() / sum;
            assert!((count as f32 / 40_000.0 - expected).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_model() {
        let logits = [1.0f32, 2.0, 3.0, 0.0];
        let sampling = Sampling { logprobs: Some(2), top_k: Some(1), temperature: Some(3.0), ..Sampling::default() };
        let mut sampler = Sampler::new(&sampling, 1, 0, &[]);
        let drawn = sampler.draw(&logits, &[]).unwrap();
        let sum: f32 = logits.iter().map(|l| l.exp()).sum();
        assert_eq!(drawn.token, 2);
        assert!((drawn.logprob - (3f32.exp() / sum).ln()).abs() < 1e-5);
        assert_eq!(drawn.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 1]);
        assert!((drawn.top[1].1 - (2f32.exp() / sum).ln()).abs() < 1e-5);
    }

    #[test]
    fn penalties_work_as_documented() {
        let mut sampler = Sampler::new(
            &Sampling { temperature: Some(0.0), repetition_penalty: Some(2.0), ..Sampling::default() },
            0,
            0,
            &[1, 2],
        );
        // 4 / 2 = 2 and -1 * 2 = -2: token 0, not in the prompt, wins.
        assert_eq!(sampler.draw(&[2.5, 4.0, -1.0], &[]).unwrap().token, 0);
        assert_eq!(sampler.logits, [2.5, 2.0, -2.0]);
        // Now it was drawn, too.
        assert_eq!(sampler.draw(&[2.5, 4.0, -1.0], &[]).unwrap().token, 1);

        let mut sampler = Sampler::new(
            &Sampling {
                temperature: Some(0.0),
                frequency_penalty: Some(0.5),
                presence_penalty: Some(1.0),
                ..Sampling::default()
            },
            0,
            0,
            &[0],
        );
        let logits = [3.0, 2.5];
        assert_eq!(sampler.draw(&logits, &[]).unwrap().token, 0, "the prompt does not count");
        assert_eq!(sampler.draw(&logits, &[]).unwrap().token, 1, "3 - 1.5 < 2.5");
        assert_eq!(sampler.draw(&logits, &[]).unwrap().token, 0, "1.5 > 1");
        assert_eq!(sampler.draw(&logits, &[]).unwrap().token, 0, "3 - 2 = 1 = 2.5 - 1.5, the first wins");
    }

    #[test]
    fn bad_logits_are_an_error() {
        for bad in [f32::NAN, f32::INFINITY] {
            for temperature in [0.0, 1.0] {
                let sampling = Sampling { temperature: Some(temperature), ..Sampling::default() };
                let mut sampler = Sampler::new(&sampling, 0, 0, &[]);
                assert_eq!(sampler.draw(&[0.0, bad, 1.0], &[]), Err(NotFinite));
            }
        }
        let mut sampler = Sampler::new(&sampling(), 0, 0, &[]);
        assert_eq!(sampler.draw(&[f32::NEG_INFINITY; 3], &[]), Err(NotFinite));
        assert_eq!(sampler.draw(&[0.0; 2], &[0, 1]), Err(NotFinite), "everything banned");
        assert_eq!(sampler.draw(&[0.0; 2], &[0, 9]).unwrap().token, 1);
    }

    #[test]
    fn streams_of_candidates_differ() {
        let mut firsts: Vec<u64> = (0..100).map(|i| Random::new(5, i).next()).collect();
        firsts.extend((0..100).map(|seed| Random::new(seed, 0).next()));
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 199, "all but seed 5, candidate 0, which is in both lists");
    }

    /// The same filters by a full sort.
    fn allowed(logits: &[f32], s: &Sampling) -> HashSet<u32> {
        let t = s.temperature.unwrap();
        let mut all: Vec<(f32, u32)> = (0..).zip(logits).map(|(token, logit)| (logit / t, token)).collect();
        all.sort_by(order);
        if let Some(k) = s.top_k.filter(|k| *k > 0) {
            all.truncate(k as usize);
        }
        let weights: Vec<f64> = all.iter().map(|(logit, _)| f64::from(logit - all[0].0).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut mass = 0.0;
        let mut tokens = HashSet::new();
        for ((_, token), weight) in all.iter().zip(&weights) {
            // A hair of slack: the two ways round differently at the very edge.
            if mass < f64::from(s.top_p.unwrap()) * total * (1.0 + 1e-6) + 1e-9
                && *weight >= f64::from(s.min_p.unwrap()) * (1.0 - 1e-5)
            {
                tokens.insert(*token);
            }
            mass += weight;
        }
        tokens
    }

    proptest! {
        #[test]
        fn nothing_is_drawn_beyond_the_filters(
            logits in prop::collection::vec(-30f32..30.0, 2..400),
            temperature in 0.05f32..5.0,
            top_k in 0u32..50,
            top_p in 0.01f32..=1.0,
            min_p in 0f32..0.99,
            seed: u64,
        ) {
            let sampling = Sampling {
                temperature: Some(temperature),
                top_k: Some(top_k),
                top_p: Some(top_p),
                min_p: Some(min_p),
                ..Sampling::default()
            };
            let allowed = allowed(&logits, &sampling);
            for index in 0..20 {
                let drawn = Sampler::new(&sampling, seed, index, &[]).draw(&logits, &[]).unwrap();
                prop_assert!(allowed.contains(&drawn.token));
                prop_assert!(drawn.logprob <= 0.0);
            }
        }

        #[test]
        fn the_same_seed_draws_the_same(logits in prop::collection::vec(-5f32..5.0, 2..200), seed: u64, index in 0usize..64) {
            let sampling = Sampling::default();
            let mut a = Sampler::new(&sampling, seed, index, &[]);
            let mut b = Sampler::new(&sampling, seed, index, &[]);
            for _ in 0..5 {
                prop_assert_eq!(a.draw(&logits, &[]).unwrap(), b.draw(&logits, &[]).unwrap());
            }
        }

        #[test]
        fn partial_selection_equals_a_full_sort(logits in prop::collection::vec(-50f32..50.0, 1..500), k in 1usize..60) {
            let mut kept = Vec::new();
            likeliest(&logits, k, &mut kept);
            let mut all: Vec<(f32, u32)> = (0..).zip(&logits).map(|(token, logit)| (*logit, token)).collect();
            all.sort_by(order);
            all.truncate(k);
            prop_assert_eq!(kept, all);
        }
    }
}
