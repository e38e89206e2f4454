//! How likely the gate is to mask a reply, given the few rivals that can be seen.
//!
//! With d the distance to the nearest of m rivals that are seen, u the number of those that are not, d₀ the distance from
//! which on the gate lets pass, and x = ln(d / d₀):
//!
//! P = 1 - exp(-Λ), ln Λ = c₀ + c₁ x + c₂ x² + c₃ ln(1 + u) + c₄ ln(1 + m) + c₅ x ln(1 + m),
//!
//! the complementary log-log model, which is that of a nearest rival hidden among u: Λ is the expected number of unseen
//! rivals that are too near. With no rival seen, ln Λ = b₀ + b₁ ln(1 + u) + b₂ ln(d₀ / 0.0653); where one's own plain answer is there to tell how
//! usual a reply is, ln Λ = a₀ + a₁ x + b₁ ln(1 + u) with x of the distance to that.
//!
//! Our other candidates tell how usual a reply is for its prompt, whatever is seen. With z the mean of ln(d / d₀) over them, less the
//! mean of z over all candidates, ln Λ is (e₀ + e₁ / (1 + m)) z less. Plain answers then tell of the prompt only: x of their distances is the mean
//! of all candidates beside them.
//!
//! The coefficients were fitted to replies of 40 models to each of 50 prompts, whole populations of 5 to 40 with some of them
//! revealed, masked or not by the distances of all-mpnet-base-v2 (`idiolect-arena`'s bench `calibration` fits them). Prompts differ more than
//! replies: ranges are wide enough that in nine of ten prompts that had no part in the fit the share of replies that was masked
//! lies in them (docs/benchmarks.md has the tables, and those of prompts of another sort). What plain answers say was fitted to
//! four variations of two models beside their plain answers, half of the time with a rival that gives the plain answer, too.

use serde::{Deserialize, Serialize};

/// A probability with its range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chance {
    /// The probability, in [0, 1].
    pub p: f32,
    /// The lower end of the range that holds it for nine prompts in ten.
    pub low: f32,
    /// The upper end.
    pub high: f32,
}

impl Chance {
    /// What is certain not to happen, and what is certain.
    const NEVER: Self = Self { p: 0.0, low: 0.0, high: 0.0 };
    const ALWAYS: Self = Self { p: 1.0, low: 1.0, high: 1.0 };

    /// Returns the chance whose ln Λ is so much less.
    pub(crate) fn less(self, by: f64) -> Self {
        let of = |p: f32| {
            let rate = -(-f64::from(p)).ln_1p();
            #[expect(clippy::cast_possible_truncation, reason = "a probability")]
            let less = -(-rate * (-by).exp()).exp_m1() as f32;
            if p > 0.0 && p < 1.0 { less } else { p }
        };
        Self { p: of(self.p), low: of(self.low), high: of(self.high) }
    }
}

/// Returns by how much the mean logarithm of each one's distances to the others is above the mean of all, 0 without others. A row
/// has one candidate's distances to the others, in the validators' scale.
pub(crate) fn further(distances: &[Vec<f32>]) -> Vec<f64> {
    let mean = |row: &Vec<f32>| {
        let sum: f64 = row.iter().map(|&distance| f64::from(distance.max(NEAREST)).ln()).sum();
        sum / row.len().max(1) as f64
    };
    let means: Vec<f64> = distances.iter().map(mean).collect();
    let overall = means.iter().sum::<f64>() / means.len().max(1) as f64;
    means.iter().map(|own| own - overall).collect()
}

/// The fitted model for one encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// c₀ to c₅.
    pub seen: [f64; 6],
    /// Where x is cut off, below and above.
    pub range: [f64; 2],
    /// Standard deviation of ln Λ from prompt to prompt, where rivals are seen.
    pub spread: f64,
    /// b₀ and b₁.
    pub unseen: [f64; 2],
    /// b₂, 0 where nothing is known of other bounds than the profiles' own.
    #[serde(default)]
    pub unseen_bound: f64,
    /// Standard deviation of ln Λ from prompt to prompt, where none is seen.
    pub unseen_spread: f64,
    /// a₀ and a₁; `None` where nothing is known of plain answers.
    #[serde(default)]
    pub plain: Option<[f64; 2]>,
    /// e₀ and e₁, 0 where nothing is known of what our other candidates say.
    #[serde(default)]
    pub siblings: [f64; 2],
    /// Whether the encoder is the validators' own: a rival that is too near is certain then, and so is the answer when
    /// all are seen.
    pub exact: bool,
}

/// The distance from which on the profiles that are built in let pass.
const USUAL_BOUND: f64 = 0.065_342_64;

/// Where x of the distance to a plain answer is cut off.
const PLAIN_RANGE: [f64; 2] = [-1.2, 1.4];

/// Distances below this, in the validators' scale, are equally near: repeats differ by rounding only.
const NEAREST: f32 = 0.001;

/// Where z is cut off: the candidates that figures were fitted to were no repeats of each other.
const MOST_FURTHER: f64 = 1.4;

/// Of a normal distribution, nine tenths lie within so many standard deviations.
const NINE_TENTHS: f64 = 1.645;

impl Calibration {
    /// For all-mpnet-base-v2, the validators' encoder.
    pub const MPNET: Self = Self {
        seen: [-0.47635, -2.03038, 0.42476, 0.66237, -0.65416, -0.57787],
        range: [0.0, 1.4],
        spread: 1.1,
        unseen: [-1.65227, 0.39349],
        unseen_bound: 1.47192,
        unseen_spread: 1.25,
        plain: Some([-1.18324, -1.04115]),
        siblings: [0.75, 0.9],
        exact: true,
    };
    /// For all-MiniLM-L6-v2 in place of it.
    pub const MINILM: Self = Self {
        seen: [-0.22717, -0.79476, -0.41909, 0.31802, -0.31272, -0.59012],
        range: [-1.2, 1.4],
        spread: 0.95,
        unseen: [-1.65227, 0.39349],
        unseen_bound: 1.47192,
        unseen_spread: 1.25,
        plain: Some([-1.23869, -1.16365]),
        siblings: [0.2, 1.2],
        exact: false,
    };

    /// Returns the calibration of an encoder by its name; `None` for one that there is none for.
    #[must_use]
    pub fn of_encoder(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        if name.contains("minilm") {
            Some(Self::MINILM)
        } else if name.contains("mpnet") {
            Some(Self::MPNET)
        } else {
            None
        }
    }

    /// Returns the chance that a reply is masked whose nearest of `n_seen` rivals is at `distance`, where `n_unseen` more
    /// take part. `bound` is the distance below which the gate masks. Both distances are in the validators' scale, in
    /// [0, 1]: see [`distance_scale`](crate::selector::distance_scale). Without a distance no rival counts as seen.
    ///
    /// # Examples
    /// ```
    /// use idiolect_uniqueness::chance::Calibration;
    ///
    /// let mpnet = Calibration::MPNET;
    /// let near = mpnet.masked(Some(0.08), 0.0653, 10, 39);
    /// let far = mpnet.masked(Some(0.2), 0.0653, 10, 39);
    /// assert!(far.p < near.p && far.low <= far.p && far.p <= far.high);
    /// assert_eq!(mpnet.masked(Some(0.06), 0.0653, 10, 39).p, 1.0);
    /// ```
    #[must_use]
    pub fn masked(&self, distance: Option<f32>, bound: f32, n_seen: usize, n_unseen: usize) -> Chance {
        let distance = distance.filter(|d| !d.is_nan());
        if bound <= 0.0 {
            return Chance::NEVER;
        }
        if bound > 1.0 || bound.is_nan() {
            return Chance::ALWAYS;
        }
        let unseen = (n_unseen as f64).ln_1p();
        let Some(distance) = distance.filter(|_| n_seen > 0) else {
            if n_unseen == 0 {
                return Chance::NEVER;
            }
            let of_bound = self.unseen_bound * (f64::from(bound) / USUAL_BOUND).ln();
            return chance(self.unseen[0] + self.unseen[1] * unseen + of_bound, self.unseen_spread);
        };
        if self.exact && distance <= bound {
            return Chance::ALWAYS;
        }
        if self.exact && n_unseen == 0 {
            return Chance::NEVER;
        }
        let x = log_ratio(distance, bound, self.range);
        let seen = (n_seen as f64).ln_1p();
        let terms = [1.0, x, x * x, unseen, seen, x * seen];
        chance(terms.iter().zip(self.seen).map(|(term, c)| term * c).sum(), self.spread)
    }

    /// Returns what a chance becomes for a candidate that is `further` from our other candidates than those are from each other, in the mean
    /// of the logarithms of distances, where `n_seen` rivals are seen. What is certain stays so.
    ///
    /// # Examples
    /// ```
    /// use idiolect_uniqueness::chance::Calibration;
    ///
    /// let mpnet = Calibration::MPNET;
    /// let blind = mpnet.masked(None, 0.0653, 0, 49);
    /// assert!(mpnet.beside_siblings(blind, 0.5, 0).p < blind.p);
    /// assert!(mpnet.beside_siblings(blind, -0.5, 0).p > mpnet.beside_siblings(blind, -0.5, 10).p);
    /// ```
    #[must_use]
    pub fn beside_siblings(&self, chance: Chance, further: f64, n_seen: usize) -> Chance {
        if further.is_nan() || further == 0.0 {
            return chance;
        }
        let slope = self.siblings[0] + self.siblings[1] / (1.0 + n_seen as f64);
        chance.less(slope * further.clamp(-MOST_FURTHER, MOST_FURTHER))
    }

    /// As [`masked`](Self::masked) where none of `n_unseen` rivals is seen, of a reply at `distance` from the plain answer of the
    /// same model: what is near to that is near to what others say, too. `None` where the calibration has no figures for it, and
    /// for a distance that is not a number.
    #[must_use]
    pub fn masked_beside_plain(&self, distance: f32, bound: f32, n_unseen: usize) -> Option<Chance> {
        let [level, slope] = self.plain.filter(|_| !distance.is_nan())?;
        let is_open = n_unseen > 0 && bound > 0.0 && bound <= 1.0;
        if !is_open {
            return Some(self.masked(None, bound, 0, n_unseen));
        }
        let x = log_ratio(distance, bound, PLAIN_RANGE);
        Some(chance(level + slope * x + self.unseen[1] * (n_unseen as f64).ln_1p(), self.unseen_spread))
    }
}

fn log_ratio(distance: f32, bound: f32, [low, high]: [f64; 2]) -> f64 {
    (f64::from(distance.max(f32::MIN_POSITIVE)) / f64::from(bound)).ln().clamp(low, high)
}

fn chance(log_rate: f64, spread: f64) -> Chance {
    #[expect(clippy::cast_possible_truncation, reason = "a probability")]
    let at = |log_rate: f64| -(-log_rate.exp()).exp_m1() as f32;
    Chance { p: at(log_rate), low: at(log_rate - NINE_TENTHS * spread), high: at(log_rate + NINE_TENTHS * spread) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUND: f32 = 0.065_343;

    fn both() -> [Calibration; 2] {
        [Calibration::MPNET, Calibration::MINILM]
    }

    #[test]
    fn encoders_have_their_own() {
        assert_eq!(Calibration::of_encoder("sentence-transformers/all-mpnet-base-v2"), Some(Calibration::MPNET));
        assert_eq!(Calibration::of_encoder("all-MiniLM-L6-v2"), Some(Calibration::MINILM));
        assert_eq!(Calibration::of_encoder("echo"), None);
    }

    #[test]
    fn what_is_known_is_certain_with_the_validators_encoder_only() {
        let [own, other] = both();
        assert_eq!(own.masked(Some(BOUND), BOUND, 1, 49), Chance::ALWAYS);
        assert_eq!(own.masked(Some(0.07), BOUND, 49, 0), Chance::NEVER);
        let near = other.masked(Some(0.05), BOUND, 20, 29);
        assert!(near.p > 0.6 && near.p < 1.0, "{near:?}");
        let far = other.masked(Some(0.2), BOUND, 49, 0);
        assert!(far.p > 0.0 && far.p < 0.1, "{far:?}");
    }

    /// The same with profiles that let pass above 0.08, 0.5 and 0.8 instead of 0.2.
    #[test]
    fn other_bounds_give_other_shares() {
        for (bound, share) in [(0.0389, 0.31), (0.1, 0.735), (0.1347, 0.84)] {
            for calibration in both() {
                let chance = calibration.masked(None, bound, 0, 39);
                assert!((chance.p - share).abs() < 0.1, "{bound}: {chance:?} instead of {share}");
            }
        }
    }

    #[test]
    fn what_is_near_the_plain_answer_is_near_to_rivals() {
        for calibration in both() {
            let at = |distance, n_unseen| calibration.masked_beside_plain(distance, BOUND, n_unseen).unwrap();
            let unknown = calibration.masked(None, BOUND, 0, 49);
            assert!(at(0.02, 49).p > unknown.p + 0.2 && at(0.3, 49).p < unknown.p - 0.2, "{:?}", at(0.3, 49));
            assert!(at(0.1, 49).p < at(0.08, 49).p && at(0.1, 9).p < at(0.1, 49).p);
            assert_eq!(at(0.0, 49), at(0.01, 49), "cut off");
            assert_eq!(at(0.1, 0), Chance::NEVER);
            assert_eq!(calibration.masked_beside_plain(0.1, 1.5, 3), Some(Chance::ALWAYS));
            assert_eq!(calibration.masked_beside_plain(f32::NAN, BOUND, 3), None);
            assert_eq!(Calibration { plain: None, ..calibration }.masked_beside_plain(0.1, BOUND, 3), None);
        }
    }

    #[test]
    fn candidates_far_from_the_others_are_masked_less_and_the_certain_stay_certain() {
        for calibration in both() {
            let blind = calibration.masked(None, BOUND, 0, 49);
            let at = |further, n_seen| calibration.beside_siblings(blind, further, n_seen);
            assert_eq!(at(f64::NAN, 0), blind);
            assert!((at(0.0, 3).p - blind.p).abs() < 1e-6);
            assert!(at(0.3, 0).p < at(0.3, 1).p && at(0.3, 1).p < at(0.3, 10).p && at(0.3, 10).p < blind.p);
            assert_eq!(at(2.0, 0), at(1e300, 0), "cut off");
            assert_eq!(calibration.beside_siblings(Chance::ALWAYS, 1.0, 0), Chance::ALWAYS);
            assert_eq!(calibration.beside_siblings(Chance::NEVER, -1.0, 0), Chance::NEVER);
            // ln Λ is what moves: by hand for one that is 0.4 further, with two rivals seen.
            let rate = -(1.0 - f64::from(blind.p)).ln();
            let slope = calibration.siblings[0] + calibration.siblings[1] / 3.0;
            let expected = 1.0 - (-rate * (-0.4 * slope).exp()).exp();
            assert!((f64::from(at(0.4, 2).p) - expected).abs() < 1e-6);
        }
        let further = further(&[vec![0.1, 0.4], vec![0.1, 0.2], vec![0.4, 0.2]]);
        let z = [0.1_f64 * 0.4, 0.1 * 0.2, 0.4 * 0.2].map(|product| product.ln() / 2.0);
        for (found, z_i) in further.iter().zip(z) {
            assert!((found - (z_i - z.iter().sum::<f64>() / 3.0)).abs() < 1e-6, "{further:?}");
        }
        assert_eq!(super::further(&[vec![0.3], vec![0.3]]), [0.0, 0.0]);
        assert_eq!(super::further(&[vec![]]), [0.0]);
    }

    #[test]
    fn calibrations_of_earlier_versions_are_read() {
        let mut of_earlier = serde_json::to_value(Calibration::MPNET).unwrap();
        for key in ["plain", "unseen_bound", "siblings"] {
            of_earlier.as_object_mut().unwrap().remove(key).unwrap();
        }
        let read: Calibration = serde_json::from_value(of_earlier).unwrap();
        assert_eq!(read, Calibration { plain: None, unseen_bound: 0.0, siblings: [0.0; 2], ..Calibration::MPNET });
    }

    #[test]
    fn bounds_beyond_all_distances_are_certain() {
        for calibration in both() {
            assert_eq!(calibration.masked(Some(0.5), 0.0, 3, 3), Chance::NEVER);
            assert_eq!(calibration.masked(Some(0.5), f32::NEG_INFINITY, 3, 3), Chance::NEVER);
            assert_eq!(calibration.masked(None, f32::INFINITY, 0, 3), Chance::ALWAYS);
            assert_eq!(calibration.masked(None, BOUND, 0, 0), Chance::NEVER);
        }
    }

    /// Shares of replies that the gate masks among so many models, from the same recordings by the real encoder.
    #[test]
    fn nothing_seen_gives_the_share_of_the_population() {
        for (n_unseen, share) in [(4, 0.30), (9, 0.43), (19, 0.48), (39, 0.55)] {
            for calibration in both() {
                let chance = calibration.masked(None, BOUND, 0, n_unseen);
                assert!((chance.p - share).abs() < 0.1, "{n_unseen}: {chance:?} instead of {share}");
                assert!(chance.low < chance.p - 0.05 && chance.high > chance.p + 0.05, "{chance:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn more_distance_is_better_and_more_rivals_are_worse(
            a in 0.0_f32..=1.0, b in 0.0_f32..=1.0, n_seen in 1_usize..60, n_unseen in 0_usize..60, more in 1_usize..60,
        ) {
            for calibration in both() {
                let at = |d, n_unseen| calibration.masked(Some(d), BOUND, n_seen, n_unseen);
                prop_assert!(at(a.max(b), n_unseen).p <= at(a.min(b), n_unseen).p + 1e-6);
                prop_assert!(at(a, n_unseen + more).p >= at(a, n_unseen).p - 1e-6);
                let chance = at(a, n_unseen);
                prop_assert!(0.0 <= chance.low && chance.low <= chance.p && chance.p <= chance.high && chance.high <= 1.0);
            }
        }

        #[test]
        fn odd_figures_are_defined(d in proptest::num::f32::ANY, bound in proptest::num::f32::ANY, seen: usize, unseen: usize) {
            for calibration in both() {
                let beside_plain = calibration.masked_beside_plain(d, bound, unseen);
                let masked = calibration.masked(Some(d), bound, seen, unseen);
                let moved = calibration.beside_siblings(masked, f64::from(d), seen);
                for chance in [Some(masked), Some(moved), beside_plain].into_iter().flatten() {
                    prop_assert!([chance.p, chance.low, chance.high].iter().all(|p| (0.0..=1.0).contains(p)), "{chance:?}");
                }
            }
        }
    }
}
