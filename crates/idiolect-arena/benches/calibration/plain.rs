//! What one's own plain answer says of rivals: replies of a model under another instruction, beside its plain one.

use idiolect_uniqueness::chance::Calibration;

use super::cases::{Setting, nearest, shuffle};
use super::fit::{FOLDS, cloglog};
use super::tables::{brier, mean};

/// Numbers of rivals that are revealed.
const SEEN: [usize; 4] = [0, 1, 4, 12];
/// Where the logarithm of the distance by the bound is cut off.
const RANGE: [f64; 2] = [-1.2, 1.4];

struct Pair {
    prompt: usize,
    x: f64,
    n_unseen: usize,
    masked: bool,
    /// Predicted without the plain answer, with it as a rival that is seen, and as the calibration has it.
    without: f32,
    as_rival: f32,
    recorded: f32,
}

/// Prints Brier scores without the plain answer and with it, and what a fit to its distance gives.
pub(crate) fn report(calibration: &Calibration, setting: &Setting<'_>, prompts: &[Vec<(String, String)>]) {
    let draw = |n_seen, also_plain| pairs(calibration, setting, prompts, n_seen, also_plain);
    let (apart, among) = (draw(0, false), draw(0, true));
    for also_plain in [false, true] {
        println!("\nRivals that give the plain answer themselves: {}\n", if also_plain { "one" } else { "none" });
        println!("| seen | cases | masked | Brier without | as a rival | as recorded | fitted to none | to both |");
        println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
        for n_seen in SEEN {
            let pairs = draw(n_seen, also_plain);
            let score = |p: &dyn Fn(&Pair) -> f32| brier(pairs.iter().map(|pair| (p(pair), pair.masked)));
            let fits = if n_seen == 0 {
                let of_both = folds(apart.iter().chain(&among), calibration);
                let of_none = folds(apart.iter(), calibration);
                format!(
                    "{:.3} | {:.3} | {:.3}",
                    score(&|pair| pair.recorded),
                    score(&|pair| chance(pair, of_none[pair.prompt % FOLDS], calibration)),
                    score(&|pair| chance(pair, of_both[pair.prompt % FOLDS], calibration))
                )
            } else {
                " | | ".to_owned()
            };
            println!(
                "| {n_seen} | {} | {:.3} | {:.3} | {:.3} | {fits} |",
                pairs.len(),
                mean(pairs.iter().map(|pair| f32::from(u8::from(pair.masked)))),
                score(&|pair| pair.without),
                score(&|pair| pair.as_rival),
            );
        }
    }
    println!(
        "\nplain: {:.5?}; of rivals none of whom gives it {:.5?}",
        fit(apart.iter().chain(&among), calibration),
        fit(apart.iter(), calibration)
    );
}

fn pairs(
    calibration: &Calibration,
    setting: &Setting<'_>,
    prompts: &[Vec<(String, String)>],
    n_seen: usize,
    also_plain: bool,
) -> Vec<Pair> {
    let mut random = 1;
    let mut pairs = Vec::new();
    for (prompt, replies) in prompts.iter().enumerate() {
        let (distances, truth) = (&setting.distances[prompt], &setting.truth[prompt]);
        for (varied, (name, _)) in replies.iter().enumerate() {
            let is_plain = |plain: &str| name.strip_prefix(plain).is_some_and(|rest| rest.starts_with('_'));
            let Some(plain) = replies.iter().position(|(other, _)| is_plain(other)) else { continue };
            // The same model under further instructions is nobody's rival.
            let is_other = |j: &usize| !replies[*j].0.starts_with(replies[plain].0.as_str());
            let mut others: Vec<usize> = (0..replies.len()).filter(is_other).collect();
            shuffle(&mut others, &mut random);
            let to_plain = distances[varied][plain];
            let seen = nearest(&distances[varied], &others[..n_seen]);
            if also_plain {
                others.push(plain);
            }
            let n_unseen = others.len() - n_seen;
            let bound = setting.bound;
            let without = calibration.masked(seen, bound, n_seen, n_unseen).p;
            let nearer = seen.map_or(to_plain, |d| d.min(to_plain));
            let left = n_unseen - usize::from(also_plain);
            pairs.push(Pair {
                prompt,
                x: (f64::from(to_plain.max(f32::MIN_POSITIVE)) / f64::from(bound)).ln().clamp(RANGE[0], RANGE[1]),
                n_unseen,
                masked: nearest(&truth[varied], &others).is_none_or(|d| d <= bound),
                without,
                as_rival: calibration.masked(Some(nearer), bound, n_seen + 1, left).p,
                recorded: calibration.masked_beside_plain(to_plain, bound, n_unseen).map_or(without, |chance| chance.p),
            });
        }
    }
    pairs
}

/// Returns what the chance is besides the number of rivals, and how it falls with the distance.
fn fit<'a>(pairs: impl Iterator<Item = &'a Pair> + Clone, calibration: &Calibration) -> [f64; 2] {
    let rows: Vec<([f64; 2], bool)> = pairs.clone().map(|pair| ([1.0, pair.x], pair.masked)).collect();
    let of_rivals = pairs.map(|pair| calibration.unseen[1] * (pair.n_unseen as f64).ln_1p()).sum::<f64>();
    let [level, slope] = cloglog(&rows);
    [level - of_rivals / rows.len() as f64, slope]
}

fn folds<'a>(pairs: impl Iterator<Item = &'a Pair> + Clone, calibration: &Calibration) -> [[f64; 2]; FOLDS] {
    std::array::from_fn(|fold| fit(pairs.clone().filter(|pair| pair.prompt % FOLDS != fold), calibration))
}

fn chance(pair: &Pair, [level, slope]: [f64; 2], calibration: &Calibration) -> f32 {
    let log_rate = level + slope * pair.x + calibration.unseen[1] * (pair.n_unseen as f64).ln_1p();
    #[expect(clippy::cast_possible_truncation, reason = "a probability")]
    let p = -(-log_rate.exp()).exp_m1() as f32;
    p
}
