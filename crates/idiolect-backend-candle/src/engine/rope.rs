//! The angular steps of rotary position embeddings, with the ways of stretching them to longer contexts.

/// What a model's file says of its rotation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RopeSpec {
    /// The base of the geometric series.
    pub(crate) base: f32,
    /// Elements of a head that are rotated; even.
    pub(crate) rotated: usize,
    pub(crate) scaling: Scaling,
}

/// How the series is stretched.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scaling {
    None,
    /// All positions are divided by the factor.
    Linear(f32),
    /// Each frequency is divided by its own factor, and sines and cosines are multiplied with `magnitude` (Phi-3's
    /// `longrope`; GGUF's `rope_freqs.weight` with a magnitude of 1).
    Factors {
        factors: Vec<f32>,
        magnitude: f32,
    },
    /// Llama 3.1's: long waves are stretched by `factor`, short ones are not, those between partly.
    Llama3 {
        factor: f32,
        low: f32,
        high: f32,
        original: f32,
    },
    /// YaRN (<https://arxiv.org/abs/2309.00071>).
    Yarn {
        factor: f32,
        original: f32,
        fast: f32,
        slow: f32,
        /// `None` for the paper's own, `0.1 ln(factor) + 1`.
        magnitude: Option<f32>,
    },
}

/// A rotation, ready to use.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    /// One angular step for each rotated pair.
    pub(crate) frequencies: Vec<f32>,
    /// What sines and cosines are multiplied with: 1 for all but stretched models.
    pub(crate) magnitude: f32,
}

impl RopeSpec {
    /// Computes the steps; `None` where they are no finite numbers.
    pub(crate) fn rope(&self) -> Option<Rope> {
        let half = self.rotated / 2;
        #[expect(clippy::cast_precision_loss, reason = "a head has a few hundred elements")]
        let width = self.rotated as f32;
        #[expect(clippy::cast_precision_loss, reason = "a head has a few hundred elements")]
        let plain = |i: usize| 1.0 / self.base.powf(2.0 * i as f32 / width);
        let (frequencies, magnitude): (Vec<f32>, f32) = match &self.scaling {
            Scaling::None => ((0..half).map(plain).collect(), 1.0),
            Scaling::Linear(factor) => ((0..half).map(|i| plain(i) / factor).collect(), 1.0),
            Scaling::Factors { factors, magnitude } => {
                if factors.len() != half {
                    return None;
                }
                (factors.iter().enumerate().map(|(i, factor)| plain(i) / factor).collect(), *magnitude)
            }
            Scaling::Llama3 { factor, low, high, original } => {
                let stretch = |frequency: f32| {
                    let waves = original * frequency / std::f32::consts::TAU;
                    if waves > *high {
                        frequency
                    } else if waves < *low {
                        frequency / factor
                    } else {
                        let smooth = (waves - low) / (high - low);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                ((0..half).map(plain).map(stretch).collect(), 1.0)
            }
            Scaling::Yarn { factor, original, fast, slow, magnitude } => {
                // The pair that turns `turns` times over the original context.
                let pair =
                    |turns: f32| width * (original / (turns * std::f32::consts::TAU)).ln() / (2.0 * self.base.ln());
                let first = pair(*fast).floor().max(0.0);
                let last = pair(*slow).ceil().min(width - 1.0);
                let stretch = |i: usize| {
                    #[expect(clippy::cast_precision_loss, reason = "a head has a few hundred elements")]
                    let ramp = ((i as f32 - first) / (last - first).max(0.001)).clamp(0.0, 1.0);
                    plain(i) / factor * ramp + plain(i) * (1.0 - ramp)
                };
                let magnitude = magnitude.unwrap_or_else(|| yarn_magnitude(*factor));
                ((0..half).map(stretch).collect(), magnitude)
            }
        };
        let sound = magnitude.is_finite() && magnitude > 0.0 && frequencies.iter().all(|f| f.is_finite());
        sound.then_some(Rope { frequencies, magnitude })
    }
}

/// How YaRN evens out the scores of a context stretched by `factor`.
pub(super) fn yarn_magnitude(factor: f32) -> f32 {
    if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 }
}

impl Rope {
    /// Returns sine and cosine of each pair at a position.
    pub(crate) fn rotation(&self, position: usize) -> impl Iterator<Item = (f32, f32)> + '_ {
        #[expect(clippy::cast_precision_loss, reason = "positions are far below 2^24")]
        let position = position as f32;
        self.frequencies.iter().map(move |frequency| {
            let (sin, cos) = (position * frequency).sin_cos();
            (sin * self.magnitude, cos * self.magnitude)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: Scaling) -> Option<Rope> {
        RopeSpec { base: 10_000.0, rotated: 8, scaling }.rope()
    }

    fn near(got: &[f32], expected: &[f32]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{got} for {expected}");
        }
    }

    #[test]
    fn a_geometric_series() {
        let plain = rope(Scaling::None).unwrap();
        near(&plain.frequencies, &[1.0, 0.1, 0.01, 0.001]);
        assert_eq!(plain.magnitude, 1.0);
        let turned: Vec<(f32, f32)> = plain.rotation(3).collect();
        near(&[turned[0].0, turned[0].1, turned[2].0], &[3f32.sin(), 3f32.cos(), 0.03f32.sin()]);
    }

    #[test]
    fn stretched_series() {
        near(&rope(Scaling::Linear(4.0)).unwrap().frequencies, &[0.25, 0.025, 0.0025, 0.00025]);
        let own = rope(Scaling::Factors { factors: vec![1.0, 2.0, 4.0, 8.0], magnitude: 1.5 }).unwrap();
        near(&own.frequencies, &[1.0, 0.05, 0.0025, 0.000_125]);
        near(&[own.rotation(0).next().unwrap().1], &[1.5]);
    }

    #[test]
    fn llama3_leaves_short_waves_and_stretches_long_ones() {
        let base = RopeSpec {
            base: 500_000.0,
            rotated: 128,
            scaling: Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 },
        };
        let plain = RopeSpec { scaling: Scaling::None, ..base.clone() }.rope().unwrap().frequencies;
        let stretched = base.rope().unwrap().frequencies;
        let ratios: Vec<f32> = plain.iter().zip(&stretched).map(|(a, b)| a / b).collect();
        assert_eq!(ratios[0], 1.0);
        near(&ratios[63..], &[8.0]);
        assert!(ratios.is_sorted_by(|a, b| *a <= *b * 1.000_01), "{ratios:?}");
        assert!(ratios.iter().any(|r| *r > 1.1 && *r < 7.9));
    }

    #[test]
    fn yarn_blends_between_its_bounds() {
        let scaling = Scaling::Yarn { factor: 4.0, original: 32768.0, fast: 32.0, slow: 1.0, magnitude: None };
        let spec = RopeSpec { base: 1_000_000.0, rotated: 128, scaling };
        let plain = RopeSpec { scaling: Scaling::None, ..spec.clone() }.rope().unwrap().frequencies;
        let yarn = spec.rope().unwrap();
        near(&[yarn.magnitude], &[0.1 * 4f32.ln() + 1.0]);
        // By hand: the bounds are pairs floor(23.59) and ceil(39.65).
        near(&[yarn.frequencies[23], yarn.frequencies[40]], &[plain[23], plain[40] / 4.0]);
        let ramp = 8.0 / 17.0;
        near(&[yarn.frequencies[31]], &[plain[31] * (ramp / 4.0 + 1.0 - ramp)]);
    }

    #[test]
    fn nonsense_gives_nothing() {
        assert!(RopeSpec { base: 0.0, rotated: 8, scaling: Scaling::None }.rope().is_none());
        assert!(rope(Scaling::Linear(0.0)).is_none());
        assert!(rope(Scaling::Factors { factors: vec![1.0; 3], magnitude: 1.0 }).is_none());
        assert!(rope(Scaling::Factors { factors: vec![0.0; 4], magnitude: 1.0 }).is_none());
        assert!(rope(Scaling::Factors { factors: vec![1.0; 4], magnitude: f32::NAN }).is_none());
    }
}
