//! The complementary log-log model by maximum likelihood.

use idiolect_uniqueness::chance::{Calibration, Chance};

use super::cases::{Case, Setting};
use super::tables::coverage;

/// Parts that the prompts are divided into; each is predicted by a fit to the others.
pub(crate) const FOLDS: usize = 5;
/// So small a pull of all coefficients to 0 only keeps the equations solvable.
const RIDGE: f64 = 1e-2;
/// The share of prompts that ranges are to hold.
const HELD: f64 = 0.9;

/// Returns the coefficients of a calibration with and without a rival in sight.
pub(crate) fn coefficients<'a>(
    cases: impl Iterator<Item = &'a Case> + Clone,
    like: &Calibration,
    bound: f32,
) -> ([f64; 6], [f64; 2]) {
    let seen = cases.clone().filter(|case| !(like.exact && case.is_certain(bound)));
    let seen = seen.filter_map(|case| {
        let x = (f64::from(case.distance?.max(f32::MIN_POSITIVE)) / f64::from(bound)).ln();
        let x = x.clamp(like.range[0], like.range[1]);
        let (unseen, seen) = ((case.n_unseen as f64).ln_1p(), (case.n_seen as f64).ln_1p());
        Some(([1.0, x, x * x, unseen, seen, x * seen], case.masked))
    });
    let unseen = cases.filter(|case| case.n_seen == 0);
    let unseen = unseen.map(|case| ([1.0, (case.n_unseen as f64).ln_1p()], case.masked));
    (cloglog(&seen.collect::<Vec<_>>()), cloglog(&unseen.collect::<Vec<_>>()))
}

/// Returns how the logarithm of the rate grows with that of the bound where no rival is seen, between half and twice the bound.
pub(crate) fn of_bound(setting: &Setting<'_>) -> f64 {
    let mut rows = Vec::new();
    for factor in [0.5_f32, 0.75, 1.0, 1.5, 2.0] {
        let cases = Setting { bound: setting.bound * factor, ..*setting }.cases();
        let unseen = cases.iter().filter(|case| case.n_seen == 0);
        rows.extend(unseen.map(|case| ([1.0, (case.n_unseen as f64).ln_1p(), f64::from(factor).ln()], case.masked)));
    }
    cloglog(&rows)[2]
}

/// Returns the coefficients of P = 1 - exp(-exp(terms · coefficients)), by Fisher's scoring.
pub(crate) fn cloglog<const N: usize>(rows: &[([f64; N], bool)]) -> [f64; N] {
    let rows: Vec<([f64; N], f64, bool)> = rows.iter().map(|&(terms, masked)| (terms, 0.0, masked)).collect();
    let mut begin = [0.0; N];
    begin[0] = -1.0;
    scoring(&rows, begin)
}

/// As [`cloglog`], of P = 1 - exp(-exp(known + terms · coefficients)).
pub(crate) fn cloglog_beside<const N: usize>(rows: &[([f64; N], f64, bool)]) -> [f64; N] {
    scoring(rows, [0.0; N])
}

fn scoring<const N: usize>(rows: &[([f64; N], f64, bool)], mut fitted: [f64; N]) -> [f64; N] {
    for _ in 0..300 {
        let mut gradient = fitted.map(|c| -RIDGE * c);
        let mut information = [[0.0; N]; N];
        for (i, row) in information.iter_mut().enumerate() {
            row[i] = RIDGE;
        }
        for (terms, known, masked) in rows {
            let log_rate: f64 = known + terms.iter().zip(fitted).map(|(term, c)| term * c).sum::<f64>();
            let rate = log_rate.clamp(-12.0, 3.5).exp();
            let p = (-(-rate).exp_m1()).clamp(1e-9, 1.0 - 1e-9);
            let slope = rate * (-rate).exp() + 1e-12;
            let weight = slope * slope / (p * (1.0 - p));
            let residual = (f64::from(u8::from(*masked)) - p) / slope;
            for i in 0..N {
                gradient[i] += weight * residual * terms[i];
                for j in 0..N {
                    information[i][j] += weight * terms[i] * terms[j];
                }
            }
        }
        let step = solve(information, gradient);
        let largest = step.iter().fold(0.0, |largest: f64, s| largest.max(s.abs()));
        for (c, s) in fitted.iter_mut().zip(step) {
            *c += s / largest.max(1.0);
        }
        if largest < 1e-9 {
            break;
        }
    }
    fitted
}

/// Solves a system of equations by elimination, the largest pivot first.
fn solve<const N: usize>(mut matrix: [[f64; N]; N], mut right: [f64; N]) -> [f64; N] {
    for k in 0..N {
        let pivot = (k..N).max_by(|&a, &b| matrix[a][k].abs().total_cmp(&matrix[b][k].abs())).unwrap_or(k);
        matrix.swap(k, pivot);
        right.swap(k, pivot);
        let (row, of_row) = (matrix[k], right[k]);
        for i in k + 1..N {
            let factor = matrix[i][k] / row[k];
            matrix[i].iter_mut().zip(row).for_each(|(value, of_pivot)| *value -= factor * of_pivot);
            right[i] -= factor * of_row;
        }
    }
    for k in (0..N).rev() {
        let known: f64 = (k + 1..N).map(|j| matrix[k][j] * right[j]).sum();
        right[k] = (right[k] - known) / matrix[k][k];
    }
    right
}

/// Fits that each leave out a part of the prompts.
pub(crate) struct Folds(Vec<Calibration>);

impl Folds {
    /// Fits them, with the least spreads whose ranges hold nine tenths of the prompts that were left out.
    pub(crate) fn new(cases: &[Case], like: &Calibration, bound: f32) -> Self {
        let without = |fold: usize| {
            let others = cases.iter().filter(move |case| case.prompt % FOLDS != fold);
            let (seen, unseen) = coefficients(others, like, bound);
            Calibration { seen, unseen, ..like.clone() }
        };
        let mut folds = Self((0..FOLDS).map(without).collect());
        let steps = || (0..=80).map(|step| 0.05 * f64::from(step));
        let mut least = |of_seen: bool| {
            let spread = steps().find(|spread| {
                for fold in &mut folds.0 {
                    *(if of_seen { &mut fold.spread } else { &mut fold.unseen_spread }) = *spread;
                }
                coverage(cases, |n_seen| (n_seen > 0) == of_seen, |case| folds.chance(case, bound))
                    .is_some_and(|held| held.share >= HELD)
            });
            spread.unwrap_or(f64::NAN)
        };
        let spreads = (least(true), least(false));
        for fold in &mut folds.0 {
            (fold.spread, fold.unseen_spread) = spreads;
        }
        folds
    }

    /// Predicts by the fit that the prompt had no part in.
    pub(crate) fn chance(&self, case: &Case, bound: f32) -> Chance {
        case.chance(&self.0[case.prompt % FOLDS], bound)
    }

    pub(crate) fn spread(&self) -> f64 {
        self.0[0].spread
    }

    pub(crate) fn unseen_spread(&self) -> f64 {
        self.0[0].unseen_spread
    }
}
