//! What our own other candidates say of rivals: sets of models as ours, beside all the rest.

use idiolect_uniqueness::chance::Calibration;

use super::cases::{Setting, nearest, shuffle};
use super::fit::{FOLDS, cloglog_beside};
use super::tables::brier;

/// Numbers of rivals that are revealed.
const SEEN: [usize; 6] = [0, 1, 2, 5, 10, 20];
/// Sets of models.
const N_SETS: usize = 60;
/// Of six sets, so many are drawn from the nearest of their first model, as variants of one model are.
const N_NEAR_SETS: usize = 4;
const N_NEAR: usize = 8;
/// Distances below this are equally near.
const NEAREST: f32 = 0.001;

struct Candidate {
    prompt: usize,
    /// The logarithm of the rate by the recorded model.
    recorded: f64,
    /// By how much it is further from the others than those are.
    further: f64,
    masked: bool,
    /// What the recorded model makes of all of it.
    chance: f32,
}

/// Prints the slope of the logarithm of the rate by how much further a candidate is, and Brier scores without and with it.
pub(crate) fn report(calibration: &Calibration, setting: &Setting<'_>, prompts: &[Vec<(String, String)>]) {
    let names = |prompt: usize| prompts[prompt].iter().map(|(name, _)| name);
    // Models are told by their places.
    let usable: Vec<usize> = (0..prompts.len()).filter(|&prompt| names(prompt).eq(names(0))).collect();
    let sets = sets(setting, &usable);
    println!("\n{} prompts, {} sets of ours\n", usable.len(), sets.len());
    println!("| seen | candidates | slope | recorded | Brier, a level alone | and the slope | as recorded |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for n_seen in SEEN {
        let drawn = candidates(calibration, setting, &usable, &sets, n_seen);
        let fit = |with_slope: f64, left_out: Option<usize>| -> [f64; 2] {
            let others = drawn.iter().filter(|c| left_out != Some(c.prompt % FOLDS));
            let rows: Vec<_> = others.map(|c| ([1.0, with_slope * c.further], c.recorded, c.masked)).collect();
            cloglog_beside(&rows)
        };
        let of_folds = |with_slope: f64| {
            let fits: [[f64; 2]; FOLDS] = std::array::from_fn(|fold| fit(with_slope, Some(fold)));
            let chance = |c: &Candidate| {
                let [level, slope] = fits[c.prompt % FOLDS];
                let log_rate = c.recorded + level + slope * with_slope * c.further;
                #[expect(clippy::cast_possible_truncation, reason = "a probability")]
                let p = -(-log_rate.exp()).exp_m1() as f32;
                (p, c.masked)
            };
            brier(drawn.iter().map(chance))
        };
        println!(
            "| {n_seen} | {} | {:.2} | {:.2} | {:.4} | {:.4} | {:.4} |",
            drawn.len(),
            -fit(1.0, None)[1],
            calibration.siblings[0] + calibration.siblings[1] / (1.0 + n_seen as f64),
            of_folds(0.0),
            of_folds(1.0),
            brier(drawn.iter().map(|c| (c.chance, c.masked))),
        );
    }
}

/// Returns sets of two to five models by their places.
fn sets(setting: &Setting<'_>, usable: &[usize]) -> Vec<Vec<usize>> {
    let n = usable.first().map_or(0, |&prompt| setting.distances[prompt].len());
    let between = |a: usize, b: usize| usable.iter().map(|&p| logarithm(setting.distances[p][a][b])).sum::<f64>();
    let mut random = 1;
    let mut sets = Vec::new();
    for nth in 0..N_SETS {
        let mut pool: Vec<usize> = (0..n).collect();
        shuffle(&mut pool, &mut random);
        if nth % 6 < N_NEAR_SETS && n > N_NEAR {
            let first = pool[0];
            let mut others: Vec<(f64, usize)> = pool[1..].iter().map(|&model| (between(first, model), model)).collect();
            others.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut near: Vec<usize> = others[..N_NEAR].iter().map(|&(_, model)| model).collect();
            shuffle(&mut near, &mut random);
            pool = [first].into_iter().chain(near).collect();
        }
        pool.truncate(2 + nth % 4);
        if pool.len() > 1 {
            sets.push(pool);
        }
    }
    sets
}

fn candidates(
    calibration: &Calibration,
    setting: &Setting<'_>,
    usable: &[usize],
    sets: &[Vec<usize>],
    n_seen: usize,
) -> Vec<Candidate> {
    let mut random = 1;
    let mut candidates = Vec::new();
    for &prompt in usable {
        let (distances, truth) = (&setting.distances[prompt], &setting.truth[prompt]);
        for ours in sets {
            let mut others: Vec<usize> = (0..distances.len()).filter(|j| !ours.contains(j)).collect();
            if others.len() <= n_seen {
                continue;
            }
            shuffle(&mut others, &mut random);
            let means: Vec<f64> = ours
                .iter()
                .map(|&i| {
                    let siblings = ours.iter().filter(|&&j| j != i);
                    siblings.map(|&j| logarithm(distances[i][j])).sum::<f64>() / (ours.len() - 1) as f64
                })
                .collect();
            let mean = means.iter().sum::<f64>() / means.len() as f64;
            for (&i, own) in ours.iter().zip(&means) {
                let n_unseen = others.len() - n_seen;
                let seen = nearest(&distances[i], &others[..n_seen]);
                let before = calibration.masked(seen, setting.bound, n_seen, n_unseen);
                if before.p >= 1.0 {
                    continue;
                }
                let further = own - mean;
                candidates.push(Candidate {
                    prompt,
                    recorded: (-(-f64::from(before.p)).ln_1p()).ln(),
                    further,
                    masked: nearest(&truth[i], &others).is_none_or(|d| d <= setting.bound),
                    chance: calibration.beside_siblings(before, further, n_seen).p,
                });
            }
        }
    }
    candidates
}

fn logarithm(distance: f32) -> f64 {
    f64::from(distance.max(NEAREST)).ln()
}
