//! Figures of arms that are paired by prompt.

use serde::Serialize;

use super::{Drawn, Outcome};
use crate::statistics::{Interval, bootstrap, holm, sign_flip};

/// Draws of bootstrap and permutation tests.
const N_DRAWS: usize = 10_000;

/// An arm: what became of its replies to the prompts, in their order.
#[derive(Clone, Debug)]
pub struct Arm<'a> {
    name: &'static str,
    outcomes: Vec<Outcome>,
    drawn: Vec<&'a Drawn>,
    is_own: bool,
}

impl<'a> Arm<'a> {
    /// Makes an arm of its outcomes, and the draws that its tokens are of; `is_own` says whether it drew them itself, so that their
    /// times are its own, too.
    #[must_use]
    pub fn new(name: &'static str, outcomes: Vec<Outcome>, drawn: Vec<&'a Drawn>, is_own: bool) -> Self {
        Self { name, outcomes, drawn, is_own }
    }

    fn figures(&self, of: fn(&Outcome) -> f64) -> Vec<f64> {
        self.outcomes.iter().map(of).collect()
    }
}

/// Times of requests, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Requests.
    pub n: usize,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// 95 % of them took no longer.
    pub p95_ms: f64,
    /// Those without a reply by the deadline.
    pub misses: usize,
    /// Their share.
    pub miss_rate: f64,
    /// The upper end of its one-sided interval of 95 % (Clopper and Pearson).
    pub miss_rate_below: f64,
}

/// What came of an arm.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ArmReport {
    /// Its name.
    pub arm: &'static str,
    /// The mean reward.
    pub reward: Interval,
    /// The mean of what criteria take.
    pub criteria: Interval,
    /// The mean of what labels of other tasks take.
    pub keyword: f64,
    /// The mean of what stock openings take.
    pub content: f64,
    /// The mean of the normalised log-probability.
    pub quality: f64,
    /// The mean log-probability of the replies that came.
    pub logprob: f64,
    /// The share that was irrelevant.
    pub irrelevant: f64,
    /// The share that the gate masked.
    pub masked: f64,
    /// Tokens drawn for a prompt, in the mean.
    pub tokens: f64,
    /// Times; `None` of arms that only choose otherwise among what another one drew.
    pub latency: Option<Latency>,
}

/// A ratio with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// Of the rewards.
    pub reward: Interval,
    /// Of what criteria take.
    pub criteria: Interval,
}

/// One arm beside another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The arm.
    pub arm: &'static str,
    /// The one that it is compared with.
    pub over: &'static str,
    /// The mean difference of the rewards.
    pub difference: Interval,
    /// The ratios of the means.
    pub ratio: Ratio,
    /// Of a paired permutation test of the rewards, adjusted by Holm's rule for all comparisons.
    pub p: f64,
}

/// What came of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Prompts.
    pub n_prompts: usize,
    /// The arms.
    pub arms: Vec<ArmReport>,
    /// Each arm but the oracle beside the plain one, and the pipeline beside each of the others.
    pub comparisons: Vec<Comparison>,
}

/// Puts a report together of arms, of which the first is the plain one.
#[must_use]
pub fn report(arms: &[Arm<'_>], seed: u64) -> Report {
    let n_prompts = arms.first().map_or(0, |arm| arm.outcomes.len());
    let of_arm = |arm: &Arm<'_>| {
        let of = |figure| mean(&arm.figures(figure));
        let interval = |figure| {
            let values = arm.figures(figure);
            bootstrap(n_prompts, N_DRAWS, seed, &|chosen| mean_of(&values, chosen))
        };
        let tokens = |drawn: &&Drawn| drawn.candidates.iter().map(|c| f64::from(c.n_tokens)).sum::<f64>();
        ArmReport {
            arm: arm.name,
            reward: interval(|outcome| outcome.reward),
            criteria: interval(|outcome| outcome.criteria),
            keyword: of(|outcome| outcome.keyword),
            content: of(|outcome| outcome.content),
            quality: of(|outcome| outcome.quality),
            logprob: mean(&arm.outcomes.iter().filter_map(|outcome| outcome.logprob).collect::<Vec<_>>()),
            irrelevant: of(|outcome| f64::from(u8::from(outcome.irrelevant))),
            masked: of(|outcome| f64::from(u8::from(outcome.masked))),
            tokens: mean(&arm.drawn.iter().map(tokens).collect::<Vec<_>>()),
            latency: arm.is_own.then(|| Latency::of(&arm.drawn)),
        }
    };
    let real = |i: &usize| arms[*i].name != "oracle";
    let mut pairs: Vec<(usize, usize)> = (1..arms.len()).filter(real).map(|i| (i, 0)).collect();
    if let Some(pipeline) = arms.iter().position(|arm| arm.name == "pipeline") {
        pairs.extend((1..arms.len()).filter(|i| *i != pipeline && real(i)).map(|i| (pipeline, i)));
    }
    let mut comparisons: Vec<Comparison> = pairs.iter().map(|&(a, b)| compare(&arms[a], &arms[b], seed)).collect();
    let adjusted = holm(&comparisons.iter().map(|comparison| comparison.p).collect::<Vec<_>>());
    comparisons.iter_mut().zip(adjusted).for_each(|(comparison, p)| comparison.p = p);
    Report { n_prompts, arms: arms.iter().map(of_arm).collect(), comparisons }
}

fn compare(arm: &Arm<'_>, over: &Arm<'_>, seed: u64) -> Comparison {
    let ratio = |of| {
        let (own, theirs) = (arm.figures(of), over.figures(of));
        bootstrap(own.len(), N_DRAWS, seed, &|chosen| mean_of(&own, chosen) / mean_of(&theirs, chosen))
    };
    let (own, theirs) = (arm.figures(|outcome| outcome.reward), over.figures(|outcome| outcome.reward));
    let differences: Vec<f64> = own.iter().zip(theirs).map(|(a, b)| a - b).collect();
    Comparison {
        arm: arm.name,
        over: over.name,
        difference: bootstrap(differences.len(), N_DRAWS, seed, &|chosen| mean_of(&differences, chosen)),
        ratio: Ratio { reward: ratio(|outcome| outcome.reward), criteria: ratio(|outcome| outcome.criteria) },
        p: sign_flip(&differences, N_DRAWS, seed),
    }
}

impl Latency {
    /// Returns the figures of some requests.
    #[must_use]
    pub fn of(drawn: &[&Drawn]) -> Self {
        let mut times: Vec<f64> = drawn.iter().map(|drawn| drawn.latency_ms).collect();
        times.sort_by(f64::total_cmp);
        // The least time that so many hundredths took no longer than.
        let at = |percent: usize| match (times.len() * percent).div_ceil(100) {
            0 => f64::NAN,
            nth => times[nth - 1],
        };
        let misses = drawn.iter().filter(|drawn| drawn.missed).count();
        Self {
            n: times.len(),
            p50_ms: at(50),
            p95_ms: at(95),
            misses,
            miss_rate: misses as f64 / times.len() as f64,
            miss_rate_below: upper_bound(misses, times.len()),
        }
    }
}

/// Returns the share under which at most `found` of `n` would be found with a probability of 5 %: found by halving, since the chance
/// falls as the share grows.
fn upper_bound(found: usize, n: usize) -> f64 {
    if found >= n {
        return 1.0;
    }
    let chance = |share: f64| {
        // Terms of the binomial distribution, each from the one before.
        let mut term = (n as f64 * (1.0 - share).ln()).exp();
        let mut sum = term;
        for i in 0..found {
            term *= (n - i) as f64 / (i + 1) as f64 * share / (1.0 - share);
            sum += term;
        }
        sum
    };
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if chance(middle) > 0.05 { low = middle } else { high = middle }
    }
    high
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn mean_of(values: &[f64], chosen: &[usize]) -> f64 {
    chosen.iter().map(|&i| values[i]).sum::<f64>() / chosen.len() as f64
}

#[cfg(test)]
mod tests {
    use super::super::{DrawnReply, Source};
    use super::*;

    fn drawn(latency_ms: f64, missed: bool) -> Drawn {
        let reply = DrawnReply { text: "x".to_owned(), logprob: None, n_tokens: 5, recipe: None };
        let sent = (!missed).then_some(0);
        Drawn {
            prompt: "p".to_owned(),
            source: Source::Plain,
            sent,
            candidates: vec![reply],
            latency_ms,
            missed,
            error: None,
        }
    }

    #[test]
    fn bounds_are_those_of_the_binomial_distribution() {
        // None of 598 is the least number that shows less than 0.5 %.
        assert!(upper_bound(0, 598) < 0.005 && upper_bound(0, 597) > 0.005);
        // By tables: 2 of 50 are at most 12.06 %.
        assert!((upper_bound(2, 50) - 0.1206).abs() < 1e-4, "{}", upper_bound(2, 50));
        assert_eq!(upper_bound(3, 3), 1.0);
        let all: Vec<Drawn> = (1..=100).map(|i| drawn(f64::from(i), i == 100)).collect();
        let latency = Latency::of(&all.iter().collect::<Vec<_>>());
        assert_eq!((latency.p50_ms, latency.p95_ms, latency.misses, latency.miss_rate), (50.0, 95.0, 1, 0.01));
        assert!(Latency::of(&[]).p50_ms.is_nan());
    }

    #[test]
    fn arms_are_compared_by_prompt() {
        let outcome =
            |reward: f64, criteria: f64| Outcome { reward, criteria, logprob: Some(-2.0), ..Outcome::default() };
        let plain: Vec<Outcome> = (0..30).map(|i| outcome(0.2 + 0.01 * f64::from(i), 0.4)).collect();
        let better: Vec<Outcome> = (0..30).map(|i| outcome(0.3 + 0.01 * f64::from(i), 0.1)).collect();
        let (quick, slow) = (drawn(1.0, false), drawn(2.0, false));
        let arms = [
            Arm::new("plain", plain.clone(), vec![&quick], true),
            Arm::new("best-of-k", plain, vec![&slow], true),
            Arm::new("pipeline", better.clone(), vec![&slow], true),
            Arm::new("oracle", better, vec![&slow], false),
        ];
        let report = report(&arms, 1);
        let pairs: Vec<(&str, &str)> = report.comparisons.iter().map(|c| (c.arm, c.over)).collect();
        assert_eq!(pairs, [("best-of-k", "plain"), ("pipeline", "plain"), ("pipeline", "best-of-k")]);
        let over_plain = &report.comparisons[1];
        assert!((over_plain.difference.value - 0.1).abs() < 1e-9 && over_plain.p < 0.01);
        assert!(over_plain.ratio.reward.low > 1.2 && (over_plain.ratio.criteria.value - 0.25).abs() < 1e-9);
        assert_eq!(report.comparisons[0].p, 1.0);
        assert_eq!((report.arms[0].tokens, report.arms[3].latency), (5.0, None));
    }
}
