//! Two miners on the same prompts, in the same batches: what the second has over the first.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::statistics::{Interval, Resamples, quantile};
use crate::tournament::StepRecord;

/// Draws of the bootstrap.
const N_DRAWS: usize = 2000;
/// Whoever is ahead in this share of the draws is better.
const SURE: f64 = 0.95;

/// What asking a miner once took, and what it expected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Effort {
    /// From the question to the reply, in milliseconds.
    pub latency_ms: Option<f64>,
    /// Tokens read and generated for it, whatever was sent.
    pub tokens: Option<f64>,
    /// What that cost, in US dollars.
    pub cost_usd: Option<f64>,
    /// The chance to be masked that the miner saw for what it sent, 0 to 1.
    pub predicted_masked: Option<f64>,
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

/// A figure of both.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// What it is, with its unit.
    pub figure: &'static str,
    /// The first's.
    pub a: f64,
    /// The second's.
    pub b: f64,
    /// The second's less the first's, with an interval of 95 % by a bootstrap over prompts.
    pub difference: Interval,
    /// Whose is better; `None` where the interval has 0 in it.
    pub better: Option<Side>,
    /// Prompts that both have it of.
    pub n_prompts: usize,
}

/// How two miners compare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The first's name.
    pub a: String,
    /// The second's name.
    pub b: String,
    /// Prompts that both were asked.
    pub n_prompts: usize,
    /// All figures.
    pub differences: Vec<Difference>,
    /// Quantiles of the latency in milliseconds, at 0.5 and 0.95, of the first and of the second.
    pub latency_ms: Option<[[f64; 2]; 2]>,
    /// Who is better by the mean place, where that is 95 % sure.
    pub better: Option<Side>,
    /// The share of draws in which the second's mean place is the better one, draws without a difference counted by half.
    pub b_ahead: f64,
    /// In words.
    pub verdict: String,
}

/// Two that cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WhatIfError {
    /// Too few prompts for intervals.
    #[error("{0} prompts that both were asked, expected at least 2")]
    TooFew(usize),
    /// One has nothing on record.
    #[error("{0} took part in no step")]
    Missing(String),
}

/// What one of them did at one prompt, over the steps that asked it.
#[derive(Clone, Copy, Debug, Default)]
struct AtPrompt {
    n: f64,
    sums: [f64; 7],
}

type OfEffort = fn(&Effort) -> Option<f64>;

/// The figures that steps have, and whether less of each is better.
const OF_STEPS: [(&str, bool); 7] = [
    ("place in the batch", true),
    ("reward", false),
    ("masked share", true),
    ("batch reward", false),
    ("penalties", true),
    ("irrelevant share", true),
    ("failed share", true),
];

/// Compares two contestants of one tournament: `steps` are its records, `efforts` what asking each of them took, by prompt.
///
/// Figures are means over prompts, so that prompts that were drawn more often count no more than others.
///
/// # Errors
/// [`WhatIfError`] where there is too little to compare.
pub fn compare(
    [a, b]: [&str; 2],
    steps: &[StepRecord],
    efforts: [&BTreeMap<String, Effort>; 2],
    seed: u64,
) -> Result<Comparison, WhatIfError> {
    let of = |name: &str| -> BTreeMap<&str, AtPrompt> {
        let mut prompts: BTreeMap<&str, AtPrompt> = BTreeMap::new();
        for step in steps.iter().filter(|step| step.contestant.as_deref() == Some(name)) {
            let Some(member) = step.members.iter().find(|member| member.name == name) else { continue };
            let at = prompts.entry(&step.prompt).or_default();
            at.n += 1.0;
            let share = |is: bool| f64::from(u8::from(is));
            let values = [
                member.place,
                member.reward,
                share(member.masked),
                f64::from(member.batch_reward),
                member.penalties.unwrap_or(0.0),
                share(member.irrelevant),
                share(member.failed),
            ];
            at.sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        prompts
    };
    let (of_a, of_b) = (of(a), of(b));
    for (name, prompts) in [(a, &of_a), (b, &of_b)] {
        if prompts.is_empty() {
            return Err(WhatIfError::Missing(name.to_owned()));
        }
    }
    let both: Vec<(&str, &AtPrompt, &AtPrompt)> =
        of_a.iter().filter_map(|(prompt, first)| Some((*prompt, first, of_b.get(prompt)?))).collect();
    if both.len() < 2 {
        return Err(WhatIfError::TooFew(both.len()));
    }
    let has_penalties = steps.iter().any(|step| step.members.iter().any(|member| member.penalties.is_some()));
    let mut differences = Vec::new();
    for (nth, (figure, less_is_better)) in OF_STEPS.into_iter().enumerate() {
        if figure == "penalties" && !has_penalties {
            continue;
        }
        let first: Vec<f64> = both.iter().map(|(_, a, _)| a.sums[nth] / a.n).collect();
        let second: Vec<f64> = both.iter().map(|(_, _, b)| b.sums[nth] / b.n).collect();
        differences.push(difference(figure, less_is_better, &first, &second, seed));
    }
    let effort = |of: OfEffort| -> (Vec<f64>, Vec<f64>) {
        let pair = |(prompt, _, _): &(&str, &AtPrompt, &AtPrompt)| {
            Some((of(efforts[0].get(*prompt)?)?, of(efforts[1].get(*prompt)?)?))
        };
        both.iter().filter_map(pair).unzip()
    };
    let of_effort: [(&str, OfEffort, f64); 3] = [
        ("latency, ms", |effort| effort.latency_ms, 1.0),
        ("tokens a reply", |effort| effort.tokens, 1.0),
        ("USD for 1,000 replies", |effort| effort.cost_usd, 1000.0),
    ];
    let mut latency_ms = None;
    let mut tokens = None;
    for (figure, of, scale) in of_effort {
        let (first, second) = effort(of);
        let scaled = |values: &[f64]| values.iter().map(|value| value * scale).collect::<Vec<f64>>();
        let (first, second) = (scaled(&first), scaled(&second));
        if first.len() < 2 {
            continue;
        }
        let found = difference(figure, true, &first, &second, seed);
        if figure == "tokens a reply" {
            tokens = Some((found.a, found.b));
        }
        if figure == "latency, ms" {
            latency_ms = Some([quantiles(&first), quantiles(&second)]);
        }
        differences.push(found);
    }
    let places = |nth: usize| -> Vec<f64> {
        both.iter().map(|(_, a, b)| if nth == 0 { a.sums[0] / a.n } else { b.sums[0] / b.n }).collect()
    };
    let (first, second) = (places(0), places(1));
    let b_ahead =
        Resamples::new(both.len(), N_DRAWS, seed).share_above(&[&first, &second], &|means| means[0] - means[1]);
    let better = if b_ahead >= SURE {
        Some(Side::B)
    } else if b_ahead <= 1.0 - SURE {
        Some(Side::A)
    } else {
        None
    };
    let verdict = verdict(better, b_ahead, &differences[0], tokens, both.len());
    Ok(Comparison {
        a: a.to_owned(),
        b: b.to_owned(),
        n_prompts: both.len(),
        differences,
        latency_ms,
        better,
        b_ahead,
        verdict,
    })
}

fn quantiles(values: &[f64]) -> [f64; 2] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [quantile(&sorted, 0.5), quantile(&sorted, 0.95)]
}

fn difference(figure: &'static str, less_is_better: bool, first: &[f64], second: &[f64], seed: u64) -> Difference {
    let resamples = Resamples::new(first.len(), N_DRAWS, seed);
    let difference = resamples.of_means(&[first, second], &|means| means[1] - means[0]);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let better = if difference.low > 0.0 {
        Some(if less_is_better { Side::A } else { Side::B })
    } else if difference.high < 0.0 {
        Some(if less_is_better { Side::B } else { Side::A })
    } else {
        None
    };
    Difference { figure, a: mean(first), b: mean(second), difference, better, n_prompts: first.len() }
}

fn verdict(
    better: Option<Side>,
    b_ahead: f64,
    place: &Difference,
    tokens: Option<(f64, f64)>,
    n_prompts: usize,
) -> String {
    // More than 99.9 % is no figure that a bootstrap gives.
    let percent = |share: f64| (share * 100.0).min(99.9);
    let mut said = match better {
        Some(Side::B) => {
            format!("B better: place {:.1} against {:.1}, {} % sure", place.b, place.a, Short(percent(b_ahead)))
        }
        Some(Side::A) => {
            format!("A better: place {:.1} against {:.1}, {} % sure", place.a, place.b, Short(percent(1.0 - b_ahead)))
        }
        None => {
            let (ahead, share) = if b_ahead >= 0.5 { ("B", b_ahead) } else { ("A", 1.0 - b_ahead) };
            let mut said = format!(
                "cannot be told apart: place {:.1} (A) and {:.1} (B), {ahead} ahead with {:.0} %",
                place.a,
                place.b,
                percent(share)
            );
            let half = (place.difference.high - place.difference.low) / 2.0;
            let gap = place.difference.value.abs();
            // Intervals shrink with the root of the number of prompts.
            let needed = (half / gap).powi(2) * n_prompts as f64;
            if gap > 0.0 && needed.is_finite() && needed < 1e6 {
                let _ = write!(
                    said,
                    "; if that is the difference, some {needed:.0} prompts would show it, not {n_prompts}"
                );
            }
            said
        }
    };
    if let Some((a, b)) = tokens.filter(|(a, b)| *a > 0.0 && *b > 0.0) {
        // Of whoever is better; of the second where nobody is.
        let ratio = if better == Some(Side::A) { a / b } else { b / a };
        let _ = write!(said, "; {ratio:.1} x the tokens");
    }
    said
}

/// A percentage, without decimals that say nothing.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 > 99.0 { write!(f, "{:.1}", self.0) } else { write!(f, "{:.0}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tournament::Member;

    fn step(nth: usize, name: &str, place: f64, reward: f64, masked: bool) -> StepRecord {
        let member = Member {
            name: name.to_owned(),
            distance: 0.1,
            batch_reward: 0.4,
            failed: false,
            irrelevant: false,
            masked,
            quality: None,
            penalties: None,
            label: None,
            reward,
            place,
        };
        StepRecord { step: nth, prompt: format!("p{nth}"), contestant: Some(name.to_owned()), members: vec![member] }
    }

    fn steps(n: usize, of_b: impl Fn(usize) -> f64) -> Vec<StepRecord> {
        let one = |nth: usize| {
            let a = 10.0 + (nth % 5) as f64;
            [step(nth, "plain", a, 0.2, nth.is_multiple_of(2)), step(nth, "full", of_b(nth), 0.4, false)]
        };
        (0..n).flat_map(one).collect()
    }

    fn efforts(n: usize, tokens: f64) -> BTreeMap<String, Effort> {
        let effort = |nth: usize| Effort {
            latency_ms: Some(1000.0 + nth as f64),
            tokens: Some(tokens),
            cost_usd: Some(tokens * 2e-6),
            predicted_masked: None,
        };
        (0..n).map(|nth| (format!("p{nth}"), effort(nth))).collect()
    }

    #[test]
    fn who_is_ahead_everywhere_is_better_for_more_tokens() {
        let steps = steps(20, |nth| 5.0 + (nth % 3) as f64);
        let found = compare(["plain", "full"], &steps, [&efforts(20, 100.0), &efforts(20, 310.0)], 1).unwrap();
        assert_eq!((found.better, found.n_prompts), (Some(Side::B), 20));
        assert!(
            found.verdict.starts_with("B better: place 6.0 against 12.0, 99.9 % sure; 3.1 x the tokens"),
            "{}",
            found.verdict
        );
        let of = |figure: &str| found.differences.iter().find(|d| d.figure == figure).unwrap();
        assert_eq!((of("masked share").a, of("masked share").b), (0.5, 0.0));
        assert_eq!(of("masked share").better, Some(Side::B));
        assert!((of("reward").difference.value - 0.2).abs() < 1e-12 && of("reward").better == Some(Side::B));
        assert!((of("USD for 1,000 replies").b - 0.62).abs() < 1e-9, "{:?}", of("USD for 1,000 replies"));
        assert_eq!(of("tokens a reply").better, Some(Side::A));
        assert_eq!(found.latency_ms.unwrap()[0][0], 1009.5);
        // Nothing has penalties here.
        assert!(found.differences.iter().all(|d| d.figure != "penalties"));
        // The other way round it is the first.
        let found = compare(["full", "plain"], &steps, [&efforts(20, 310.0), &efforts(20, 100.0)], 1).unwrap();
        assert_eq!(found.better, Some(Side::A));
        assert!(
            found.verdict.starts_with("A better: place 6.0 against 12.0")
                && found.verdict.ends_with("3.1 x the tokens"),
            "{}",
            found.verdict
        );
    }

    #[test]
    fn what_chance_may_have_done_is_no_verdict() {
        let steps = steps(20, |nth| if nth.is_multiple_of(2) { 5.0 } else { 18.0 });
        let none = BTreeMap::new();
        let found = compare(["plain", "full"], &steps, [&none, &none], 1).unwrap();
        assert_eq!(found.better, None);
        assert!(
            found.verdict.starts_with("cannot be told apart: place 12.0 (A) and 11.5 (B), B ahead with"),
            "{}",
            found.verdict
        );
        assert!(found.verdict.contains("prompts would show it, not 20"), "{}", found.verdict);
        assert_eq!(found.differences.len(), 6, "nothing of what it took");
        assert_eq!(compare(["plain", "full"], &steps, [&none, &none], 1).unwrap(), found);

        let same = compare(["plain", "plain"], &steps, [&none, &none], 1).unwrap();
        assert_eq!((same.better, same.b_ahead), (None, 0.5));
        assert!(!same.verdict.contains("would show it"), "{}", same.verdict);
    }

    #[test]
    fn too_little_is_said() {
        let none = BTreeMap::new();
        let error =
            |steps: &[StepRecord], names: [&str; 2]| compare(names, steps, [&none, &none], 0).unwrap_err().to_string();
        assert_eq!(error(&steps(1, |_| 1.0), ["plain", "full"]), "1 prompts that both were asked, expected at least 2");
        assert_eq!(error(&steps(3, |_| 1.0), ["plain", "nobody"]), "nobody took part in no step");
    }
}
