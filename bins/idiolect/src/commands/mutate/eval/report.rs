//! What came of choices among recorded replies, as table, JSON and picture.

use std::path::Path;

use idiolect_arena::experiment::gap_closed;
use idiolect_arena::statistics::{Interval, Resamples, holm, sign_flip};
use idiolect_arena::{Choice, Outcome};
use serde::Serialize;

use super::curve::{self, Point};
use crate::interval_plot::{IntervalPlot, Row, Rows};
use crate::output;
use crate::picture::Picture as _;

/// Draws of the bootstrap and of the permutation tests.
const N_DRAWS: usize = 10_000;

/// What came of one choice.
#[derive(Debug, Serialize)]
pub(super) struct Arm {
    pub(super) choice: &'static str,
    pub(super) masked: Interval,
    pub(super) gap_closed: Option<Interval>,
    pub(super) distance: f64,
    pub(super) novel: f64,
    pub(super) quality: Option<f64>,
    /// What criteria take, over the prompts that have any, and how much more than of a random choice.
    pub(super) criteria: Option<Interval>,
    pub(super) criteria_over_random: Option<Interval>,
    pub(super) label_gained: Option<f64>,
    pub(super) p: Option<f64>,
}

/// What came of one set of our models.
#[derive(Debug, Serialize)]
pub(super) struct Group {
    pub(super) own: Vec<String>,
    pub(super) n_prompts: usize,
    pub(super) visible: usize,
    /// Of ours to one prompt, in the mean: how many say different things, how far they are from each other, their Vendi score.
    pub(super) distinct: f64,
    pub(super) pairwise: Option<f64>,
    pub(super) vendi: Option<f64>,
    pub(super) arms: Vec<Arm>,
    /// By how many are seen and how many of ours there are, with `--curve`.
    pub(super) curve: Option<Vec<Point>>,
}

pub(super) fn draw(groups: &[Group], path: &Path) -> anyhow::Result<()> {
    let row = |arm: &Arm| {
        let Interval { value, low, high } = arm.masked;
        Row { label: arm.choice.to_owned(), value, low, high }
    };
    let rows = |group: &Group| Rows {
        heading: format!("{}: {} prompts, {} rivals seen", group.own.join(","), group.n_prompts, group.visible),
        rows: group.arms.iter().map(row).collect(),
    };
    let groups: Vec<Rows> = groups.iter().map(rows).collect();
    IntervalPlot { title: "share of replies that the hidden rivals mask", groups: &groups }.save(path)
}

pub(super) fn arms(outcomes: &[(Choice, Outcome)], seed: u64) -> Vec<Arm> {
    let masked = |choice: Choice| -> Vec<f64> {
        let found = outcomes.iter().find(|(other, _)| *other == choice);
        found.map_or_else(Vec::new, |(_, outcome)| outcome.by_prompt(|pick| Some(pick.masked)))
    };
    let criteria = |outcome: &Outcome| outcome.by_prompt(|pick| pick.criteria);
    let of_random = outcomes.iter().find(|(choice, _)| *choice == Choice::Random);
    let random_criteria = of_random.map_or_else(Vec::new, |(_, outcome)| criteria(outcome));
    let (random, oracle) = (masked(Choice::Random), masked(Choice::Oracle));
    // Prompts without criteria do not count for them.
    let (resamples, with_criteria) = (resamples(random.len(), seed), resamples(random_criteria.len(), seed));
    let arm = |(choice, outcome): &(Choice, Outcome)| {
        let own = masked(*choice);
        let differences: Vec<f64> = own.iter().zip(&random).map(|(own, random)| own - random).collect();
        let is_real = !matches!(choice, Choice::First | Choice::Random | Choice::Oracle);
        let criteria = criteria(outcome);
        let over: Vec<f64> = criteria.iter().zip(&random_criteria).map(|(own, random)| own - random).collect();
        Arm {
            choice: choice.as_str(),
            masked: mean(&own, &resamples),
            gap_closed: if is_real { gap(&random, &own, &oracle, &resamples) } else { None },
            distance: outcome.distance(),
            novel: outcome.share_novel(),
            quality: Some(outcome.quality()).filter(|quality| quality.is_finite()),
            criteria: (!criteria.is_empty()).then(|| mean(&criteria, &with_criteria)),
            criteria_over_random: (!over.is_empty()).then(|| mean(&over, &with_criteria)),
            label_gained: Some(outcome.label_gained()).filter(|gained| gained.is_finite()),
            p: is_real.then(|| sign_flip(&differences, N_DRAWS, seed)),
        }
    };
    outcomes.iter().map(arm).collect()
}

/// Draws the prompts that intervals are computed by.
pub(super) fn resamples(n_prompts: usize, seed: u64) -> Resamples {
    Resamples::new(n_prompts, N_DRAWS, seed)
}

/// Returns how much of the gap from a random choice to the oracle's is closed, all by prompt; `None` where there is no gap.
pub(super) fn gap(random: &[f64], own: &[f64], oracle: &[f64], resamples: &Resamples) -> Option<Interval> {
    let gap = resamples.of_means(&[random, own, oracle], &|means| gap_closed(means[0], means[1], means[2]));
    Some(gap).filter(|gap| gap.value.is_finite())
}

/// Returns the mean of a figure by prompt.
pub(super) fn mean(values: &[f64], resamples: &Resamples) -> Interval {
    resamples.of_means(&[values], &|means| means[0])
}

/// Writes a figure with its interval.
pub(super) fn with(interval: Interval) -> String {
    format!("{:.3} ({:.3} to {:.3})", interval.value, interval.low, interval.high)
}

/// Adjusts the p-values of all experiments for there being several.
pub(super) fn adjust(groups: &mut [Group]) {
    let arms: Vec<&mut f64> =
        groups.iter_mut().flat_map(|group| &mut group.arms).filter_map(|arm| arm.p.as_mut()).collect();
    let adjusted = holm(&arms.iter().map(|p| **p).collect::<Vec<_>>());
    for (p, adjusted) in arms.into_iter().zip(adjusted) {
        *p = adjusted;
    }
}

pub(super) fn print(groups: &[Group]) -> anyhow::Result<()> {
    let figure = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
    for group in groups {
        output::say(format!("{}: {} prompts, {} rivals seen", group.own.join(","), group.n_prompts, group.visible))?;
        let of_group = format!("{:.2} of {} distinct", group.distinct, group.own.len());
        let apart = group.pairwise.map_or_else(String::new, |pairwise| format!(", {pairwise:.3} apart"));
        let vendi = group.vendi.map_or_else(String::new, |vendi| format!(", Vendi score {vendi:.3}"));
        output::say(format!("ours: {of_group}{apart}{vendi}"))?;
        let has_criteria = group.arms.iter().any(|arm| arm.criteria.is_some());
        let row = |arm: &Arm| {
            let mut cells = vec![
                arm.choice.to_owned(),
                with(arm.masked),
                arm.gap_closed.map_or_else(String::new, with),
                format!("{:.3}", arm.distance),
                format!("{:.3}", arm.novel),
                figure(arm.quality),
                arm.label_gained.map_or_else(String::new, |gained| format!("{gained:+.3}")),
                arm.p.map_or_else(String::new, |p| format!("{p:.4}")),
            ];
            if has_criteria {
                cells.push(arm.criteria.map_or_else(String::new, with));
            }
            cells
        };
        let rows: Vec<Vec<String>> = group.arms.iter().map(row).collect();
        let mut head = vec!["choice", "masked", "gap", "distance", "novel", "quality", "label", "p"];
        head.extend(has_criteria.then_some("criteria"));
        output::columns(&head, &rows)?;
        output::say(String::new())?;
        if let Some(curve) = &group.curve {
            curve::print(curve)?;
        }
    }
    for choice in [Choice::BestOfK, Choice::Farthest, Choice::Selector, Choice::Learned] {
        let gaps: Vec<f64> = groups
            .iter()
            .filter_map(|group| group.arms.iter().find(|arm| arm.choice == choice.as_str())?.gap_closed)
            .map(|gap| gap.value)
            .collect();
        if gaps.len() > 1 {
            let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
            output::say(format!(
                "{}: {mean:.3} of the gap, in the mean of {} experiments",
                choice.as_str(),
                gaps.len()
            ))?;
        }
    }
    Ok(())
}
