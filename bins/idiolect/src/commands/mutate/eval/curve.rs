//! How much of the gap is closed, by how many rivals are seen and by how many of ours there are to choose from.

use idiolect_arena::statistics::{Interval, Resamples, subsets};
use idiolect_arena::{Choice, Experiment};
use idiolect_miner::progress::Counter;
use serde::Serialize;

use super::report::{gap, mean, resamples, with};
use crate::output;

/// What a curve is to be of.
#[derive(Debug)]
pub(super) struct Wish {
    /// Rivals that are seen.
    pub(super) visible: Vec<usize>,
    /// Draws of those, a prompt.
    pub(super) n_panels: usize,
    /// Most sets of so many of ours.
    pub(super) n_subsets: usize,
    pub(super) seed: u64,
    pub(super) choices: Vec<Choice>,
}

/// A point of the curve: figures are means over sets of `k` of ours.
#[derive(Debug, Serialize)]
pub(super) struct Point {
    k: usize,
    visible: usize,
    n_subsets: usize,
    arms: Vec<PointArm>,
}

#[derive(Debug, Serialize)]
struct PointArm {
    choice: &'static str,
    masked: Interval,
    gap_closed: Option<Interval>,
}

/// Computes the points. Prompts and rivals are those of all of ours throughout: who is not in a set is nobody's.
pub(super) fn of(experiment: &Experiment<'_>, own: &[String], wish: &Wish) -> anyhow::Result<Vec<Point>> {
    let sizes = 2..=own.len();
    let sets: Vec<Vec<Vec<usize>>> = sizes.map(|k| subsets(own.len(), k, wish.n_subsets, wish.seed)).collect();
    let n_all = sets.iter().map(Vec::len).sum::<usize>() * wish.visible.len();
    let resamples = resamples(experiment.prompts().len(), wish.seed);
    let bar = Counter::new("curve");
    let (mut points, mut n_done) = (Vec::new(), 0);
    for sets in &sets {
        for &visible in &wish.visible {
            let mut masked: Vec<(Choice, Vec<f64>)> = Choice::ALL.map(|choice| (choice, Vec::new())).into();
            for set in sets {
                bar.at(n_done, n_all);
                n_done += 1;
                let some: Vec<String> = set.iter().map(|&i| own[i].clone()).collect();
                let experiment = experiment.narrowed(&some)?;
                for (choice, sums) in &mut masked {
                    // Without these two there is no gap.
                    if !wish.choices.contains(choice) && !matches!(choice, Choice::Random | Choice::Oracle) {
                        continue;
                    }
                    let outcome = experiment.run_with(*choice, visible, wish.n_panels, wish.seed);
                    let shares = outcome.by_prompt(|pick| Some(pick.masked));
                    sums.resize(shares.len(), 0.0);
                    for (sum, share) in sums.iter_mut().zip(shares) {
                        *sum += share / sets.len() as f64;
                    }
                }
            }
            let k = sets.first().map_or(0, Vec::len);
            points.push(Point { k, visible, n_subsets: sets.len(), arms: arms(&masked, wish, &resamples) });
        }
    }
    bar.close();
    Ok(points)
}

fn arms(masked: &[(Choice, Vec<f64>)], wish: &Wish, resamples: &Resamples) -> Vec<PointArm> {
    let of = |wanted: Choice| {
        let found = masked.iter().find(|(choice, _)| *choice == wanted);
        found.map_or(&[][..], |(_, shares)| shares.as_slice())
    };
    let (random, oracle) = (of(Choice::Random), of(Choice::Oracle));
    let is_shown = |(choice, shares): &&(Choice, Vec<f64>)| !shares.is_empty() && wish.choices.contains(choice);
    let arm = |(choice, shares): &(Choice, Vec<f64>)| {
        let is_real = !matches!(choice, Choice::First | Choice::Random | Choice::Oracle);
        PointArm {
            choice: choice.as_str(),
            masked: mean(shares, resamples),
            gap_closed: if is_real { gap(random, shares, oracle, resamples) } else { None },
        }
    };
    masked.iter().filter(is_shown).map(arm).collect()
}

/// Writes a table for each choice that has a gap: a row for each k, a column for each number that is seen.
pub(super) fn print(points: &[Point]) -> anyhow::Result<()> {
    let choices: Vec<&str> =
        points.first().map(|point| point.arms.iter().map(|arm| arm.choice).collect()).unwrap_or_default();
    for choice in choices {
        let arm = |point: &Point| point.arms.iter().find(|arm| arm.choice == choice).and_then(|arm| arm.gap_closed);
        if points.iter().all(|point| arm(point).is_none()) {
            continue;
        }
        let mut head = vec!["k".to_owned(), "sets".to_owned()];
        let mut rows: Vec<Vec<String>> = Vec::new();
        for of_k in points.chunk_by(|a, b| a.k == b.k) {
            head.truncate(2);
            head.extend(of_k.iter().map(|point| format!("{} seen", point.visible)));
            let sets = of_k.first().map_or(0, |point| point.n_subsets);
            let mut row = vec![of_k.first().map_or(0, |point| point.k).to_string(), sets.to_string()];
            row.extend(of_k.iter().map(|point| arm(point).map_or_else(String::new, with)));
            rows.push(row);
        }
        output::say(format!("{choice}: gap closed, by how many of ours there are (k) and how many rivals are seen"))?;
        output::columns(&head.iter().map(String::as_str).collect::<Vec<_>>(), &rows)?;
        output::say(String::new())?;
    }
    Ok(())
}
