//! How likely the gate is to mask a reply, given the few rivals that can be seen.
//!
//! With d the distance to the nearest of m rivals that are seen, u the number of those that are not, d₀ the distance from
//! which on the gate lets pass, and x = ln(d / d₀):
//!
//! P = 1 - exp(-Λ), ln Λ = c₀ + c₁ x + c₂ x² + c₃ ln(1 + u) + c₄ ln(1 + m) + c₅ x ln(1 + m),
//!
//! the complementary log-log model, which is that of a nearest rival hidden among u: Λ is the expected number of unseen
//! rivals that are too near. With no rival seen, ln Λ = b₀ + b₁ ln(1 + u).
//!
//! The coefficients were fitted to replies of 40 models to each of 50 prompts, whole populations of 5 to 40 with some of them
//! revealed, masked or not by the distances of all-mpnet-base-v2. Prompts differ more than replies: ranges are
//! wide enough that in nine of ten prompts that had no part in the fit the share of replies that was masked lies in them
//! (docs/benchmarks.md has the tables, and those of prompts of another sort).

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
    /// Standard deviation of ln Λ from prompt to prompt, where none is seen.
    pub unseen_spread: f64,
    /// Whether the encoder is the validators' own: a rival that is too near is certain then, and so is the answer when
    /// all are seen.
    pub exact: bool,
}

/// Of a normal distribution, nine tenths lie within so many standard deviations.
const NINE_TENTHS: f64 = 1.645;

impl Calibration {
    /// For all-mpnet-base-v2, the validators' encoder.
    pub const MPNET: Self = Self {
        seen: [-0.495, -1.9035, 0.3501, 0.6583, -0.6593, -0.6029],
        range: [0.0, 1.4],
        spread: 1.0,
        unseen: [-1.6367, 0.3883],
        unseen_spread: 1.4,
        exact: true,
    };
    /// For all-MiniLM-L6-v2 in place of it.
    pub const MINILM: Self = Self {
        seen: [-0.1423, -0.6852, -0.453, 0.2575, -0.2621, -0.6238],
        range: [-1.2, 1.4],
        spread: 1.1,
        unseen: [-1.6457, 0.3897],
        unseen_spread: 1.5,
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
            return chance(self.unseen[0] + self.unseen[1] * unseen, self.unseen_spread);
        };
        if self.exact && distance <= bound {
            return Chance::ALWAYS;
        }
        if self.exact && n_unseen == 0 {
            return Chance::NEVER;
        }
        let x = (f64::from(distance.max(f32::MIN_POSITIVE)) / f64::from(bound)).ln();
        let x = x.clamp(self.range[0], self.range[1]);
        let seen = (n_seen as f64).ln_1p();
        let terms = [1.0, x, x * x, unseen, seen, x * seen];
        chance(terms.iter().zip(self.seen).map(|(term, c)| term * c).sum(), self.spread)
    }
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
                let chance = calibration.masked(Some(d), bound, seen, unseen);
                prop_assert!([chance.p, chance.low, chance.high].iter().all(|p| (0.0..=1.0).contains(p)), "{chance:?}");
            }
        }
    }
}
