//! How predictions agree with what came of the replies.

use idiolect_uniqueness::chance::Chance;

use super::cases::{Case, SEEN};

/// So few replies make no share.
const ENOUGH: usize = 15;

/// Prints tables of whole populations.
pub(crate) fn print(cases: &[Case], chance: impl Fn(&Case) -> Chance) {
    let is_open = |case: &&Case| {
        let Chance { low, high, .. } = chance(case);
        case.whole && low < high
    };
    let open: Vec<&Case> = cases.iter().filter(is_open).collect();
    println!("Replies whose fate is not seen already.\n");
    println!("| seen | masked | predicted | Brier | Brier of the share | prompts held | mean width | cases |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for n_seen in SEEN {
        let of: Vec<&Case> = open.iter().copied().filter(|case| case.n_seen == n_seen).collect();
        let (share, predicted) = (share(&of), mean(of.iter().map(|case| chance(case).p)));
        println!(
            "| {n_seen} | {share:.3} | {predicted:.3} | {:.3} | {:.3} | {} | {} |",
            brier(of.iter().map(|case| (chance(case).p, case.masked))),
            brier(of.iter().map(|case| (share, case.masked))),
            coverage(cases, |n| n == n_seen, &chance).map_or("|".to_owned(), |held| {
                format!("{:.0} of {} | {:.2}", held.share * held.n as f64, held.n, held.width)
            }),
            of.len()
        );
    }
    println!("\n| predicted | masked | cases |\n| --- | --- | --- |");
    for tenth in 0..10_u8 {
        let in_tenth = |case: &&Case| case.n_seen > 0 && (chance(case).p * 10.0).floor().min(9.0) == f32::from(tenth);
        let of: Vec<&Case> = open.iter().copied().filter(in_tenth).collect();
        if !of.is_empty() {
            println!("| {:.2} | {:.2} | {} |", mean(of.iter().map(|case| chance(case).p)), share(&of), of.len());
        }
    }
    println!();
    if let Some(Held { share, n, width }) = coverage(cases, |n_seen| n_seen > 0, &chance) {
        println!(
            "With rivals seen the share of a prompt's replies that is masked lies in the mean range in {share:.3} of {n} cases; mean \
             width {width:.3}."
        );
    }
}

/// How many of the prompts a range holds.
pub(crate) struct Held {
    pub(crate) share: f64,
    pub(crate) n: usize,
    pub(crate) width: f32,
}

/// Returns how often the share of a prompt's replies that is masked lies between the means of the ranges' ends, by prompt and
/// number of rivals that are seen.
pub(crate) fn coverage(
    cases: &[Case],
    counts: impl Fn(usize) -> bool,
    chance: impl Fn(&Case) -> Chance,
) -> Option<Held> {
    let n_prompts = cases.iter().map(|case| case.prompt + 1).max()?;
    let mut groups: Vec<Vec<(&Case, Chance)>> = (0..n_prompts * SEEN.len()).map(|_| Vec::new()).collect();
    for case in cases.iter().filter(|case| case.whole && counts(case.n_seen)) {
        let chance = chance(case);
        let place = SEEN.iter().position(|n| *n == case.n_seen)?;
        // What is certain has no range; of a spread of 0 it is the same.
        if chance.p > 0.0 && chance.p < 1.0 {
            groups[case.prompt * SEEN.len() + place].push((case, chance));
        }
    }
    let enough: Vec<_> = groups.iter().filter(|group| group.len() >= ENOUGH).collect();
    let mut n_held = 0;
    let mut width = 0.0;
    for group in &enough {
        let masked = mean(group.iter().map(|(case, _)| f32::from(u8::from(case.masked))));
        let (low, high) = (mean(group.iter().map(|(_, c)| c.low)), mean(group.iter().map(|(_, c)| c.high)));
        n_held += usize::from((low..=high).contains(&masked));
        width += (high - low) / enough.len() as f32;
    }
    (!enough.is_empty()).then(|| Held { share: n_held as f64 / enough.len() as f64, n: enough.len(), width })
}

pub(crate) fn mean(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let n = values.len().max(1) as f32;
    values.sum::<f32>() / n
}

pub(crate) fn share(cases: &[&Case]) -> f32 {
    mean(cases.iter().map(|case| f32::from(u8::from(case.masked))))
}

pub(crate) fn brier(predicted: impl ExactSizeIterator<Item = (f32, bool)>) -> f32 {
    mean(predicted.map(|(p, masked)| (p - f32::from(u8::from(masked))).powi(2)))
}
