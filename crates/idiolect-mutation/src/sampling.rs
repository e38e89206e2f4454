//! Sampling settings that operators change.

use std::fmt;

use idiolect_backend::{Error, Preset, Sampling, Stage};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

/// Sampling settings that an operator changes; `None` leaves a setting alone.
///
/// In a library: `sampling = { temperature = 0.9, preset = "llamacpp", stages = [{ stage = "xtc", probability = 0.5 }] }`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOverrides {
    /// See [`Sampling::temperature`].
    pub temperature: Option<f32>,
    /// See [`Sampling::top_k`].
    pub top_k: Option<u32>,
    /// See [`Sampling::top_p`].
    pub top_p: Option<f32>,
    /// See [`Sampling::min_p`].
    pub min_p: Option<f32>,
    /// See [`Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
    /// See [`Sampling::frequency_penalty`].
    pub frequency_penalty: Option<f32>,
    /// See [`Sampling::presence_penalty`].
    pub presence_penalty: Option<f32>,
    /// The preset of [`Sampling::chain`]: its order and its defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// Stages that replace those of their kind in [`Sampling::chain`], or are added where its preset puts them. Where there
    /// is no chain they make one of the preset `llamacpp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
}

impl SamplingOverrides {
    /// Says whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Changes the settings that are given.
    pub fn apply(&self, sampling: &mut Sampling) {
        fn set<T: Copy>(target: &mut Option<T>, value: Option<T>) {
            *target = value.or(*target);
        }
        set(&mut sampling.temperature, self.temperature);
        set(&mut sampling.top_k, self.top_k);
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.repetition_penalty, self.repetition_penalty);
        set(&mut sampling.frequency_penalty, self.frequency_penalty);
        set(&mut sampling.presence_penalty, self.presence_penalty);
        if self.preset.is_some() || !self.stages.is_empty() {
            let chain = sampling.chain.get_or_insert_with(|| Preset::default().into());
            chain.preset = self.preset.or(chain.preset);
            for stage in &self.stages {
                chain.preset.unwrap_or_default().place(&mut chain.stages, stage.clone());
            }
        }
    }

    /// Checks the ranges that [`Sampling`] states.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] naming each bad value.
    pub fn validate(&self) -> Result<(), Error> {
        let mut sampling = Sampling::default();
        self.apply(&mut sampling);
        sampling.validate()
    }

    /// Lays these settings over others.
    pub(crate) fn merge_into(self, target: &mut Self) {
        let preset = self.preset.or(target.preset);
        let mut stages = std::mem::take(&mut target.stages);
        for stage in self.stages {
            preset.unwrap_or_default().place(&mut stages, stage);
        }
        *target = Self {
            temperature: self.temperature.or(target.temperature),
            top_k: self.top_k.or(target.top_k),
            top_p: self.top_p.or(target.top_p),
            min_p: self.min_p.or(target.min_p),
            repetition_penalty: self.repetition_penalty.or(target.repetition_penalty),
            frequency_penalty: self.frequency_penalty.or(target.frequency_penalty),
            presence_penalty: self.presence_penalty.or(target.presence_penalty),
            preset,
            stages,
        };
    }
}

/// A setting's value, or the range from which it is drawn: `0.8` or `[0.7, 0.9]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// Always this.
    Fixed(f32),
    /// Anything from the first, which is drawn, too, up to the second.
    Drawn([f32; 2]),
}

impl Setting {
    /// Returns the lowest and the highest value.
    #[must_use]
    pub const fn bounds(self) -> (f32, f32) {
        match self {
            Self::Fixed(value) => (value, value),
            Self::Drawn([low, high]) => (low, high),
        }
    }

    /// Returns the value at a place of the range, 0 to 1. Drawn values are rounded to thousandths, so that they read well.
    fn at(self, share: f64) -> f32 {
        match self {
            Self::Fixed(value) => value,
            Self::Drawn([low, high]) => {
                let value = f64::from(low) + share * (f64::from(high) - f64::from(low));
                #[expect(clippy::cast_possible_truncation, reason = "settings are f32 wherever they are used")]
                let value = ((value * 1000.0).round() / 1000.0) as f32;
                value.clamp(low.min(high), high.max(low))
            }
        }
    }
}

impl From<f32> for Setting {
    fn from(value: f32) -> Self {
        Self::Fixed(value)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(value) => write!(f, "{value}"),
            Self::Drawn([low, high]) => write!(f, "{low} to {high}"),
        }
    }
}

/// The settings of an operator: those of [`SamplingOverrides`], of which numbers may be ranges that are drawn from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingRanges {
    /// See [`Sampling::temperature`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<Setting>,
    /// See [`Sampling::top_k`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// See [`Sampling::top_p`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<Setting>,
    /// See [`Sampling::min_p`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<Setting>,
    /// See [`Sampling::repetition_penalty`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<Setting>,
    /// See [`Sampling::frequency_penalty`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<Setting>,
    /// See [`Sampling::presence_penalty`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<Setting>,
    /// See [`SamplingOverrides::preset`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// See [`SamplingOverrides::stages`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
}

impl SamplingRanges {
    /// Says whether nothing is changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Draws each setting. The same seed gives the same values.
    #[must_use]
    pub fn draw(&self, seed: u64) -> SamplingOverrides {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        self.at(|| (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64)
    }

    /// Checks both ends of each range.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] naming each bad value.
    pub fn validate(&self) -> Result<(), Error> {
        for (name, setting) in self.settings() {
            if let Some((low, high)) = setting.map(Setting::bounds).filter(|(low, high)| low > high) {
                return Err(Error::InvalidRequest(format!("{name} is {low} to {high}, expected the lower end first")));
            }
        }
        self.at(|| 0.0).validate()?;
        self.at(|| 1.0).validate()
    }

    fn settings(&self) -> [(&'static str, Option<Setting>); 6] {
        [
            ("temperature", self.temperature),
            ("top_p", self.top_p),
            ("min_p", self.min_p),
            ("repetition_penalty", self.repetition_penalty),
            ("frequency_penalty", self.frequency_penalty),
            ("presence_penalty", self.presence_penalty),
        ]
    }

    fn at(&self, mut share: impl FnMut() -> f64) -> SamplingOverrides {
        // Each setting takes its share whether it is there or not: adding one leaves the others as they were.
        let [temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty] =
            self.settings().map(|(_, setting)| {
                let share = share();
                setting.map(|setting| setting.at(share))
            });
        SamplingOverrides {
            temperature,
            top_k: self.top_k,
            top_p,
            min_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            preset: self.preset,
            stages: self.stages.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_change_only_what_they_name() {
        let mut sampling = Sampling { top_p: Some(0.9), temperature: Some(0.5), ..Sampling::default() };
        SamplingOverrides { temperature: Some(0.8), ..Default::default() }.apply(&mut sampling);
        assert_eq!((sampling.temperature, sampling.top_p), (Some(0.8), Some(0.9)));
        assert!(SamplingOverrides { temperature: Some(9.0), ..Default::default() }.validate().is_err());
    }

    #[test]
    fn ranges_are_drawn_from() {
        let ranges = SamplingRanges {
            temperature: Some(Setting::Drawn([0.7, 0.9])),
            min_p: Some(Setting::Fixed(0.05)),
            ..SamplingRanges::default()
        };
        let drawn: Vec<f32> = (0..200).map(|seed| ranges.draw(seed).temperature.unwrap()).collect();
        assert!(drawn.iter().all(|t| (0.7..=0.9).contains(t)));
        assert!(drawn.iter().any(|t| *t < 0.75) && drawn.iter().any(|t| *t > 0.85));
        assert_eq!(ranges.draw(3), ranges.draw(3));
        assert_eq!(ranges.draw(3).min_p, Some(0.05));
        let hotter = SamplingRanges { top_p: Some(Setting::Drawn([0.8, 0.9])), ..ranges.clone() };
        assert_eq!(hotter.draw(3).temperature, ranges.draw(3).temperature);
        for bad in [[0.7, 9.0], [-1.0, 0.7], [0.9, 0.7], [f32::NAN, 0.7]] {
            let ranges = SamplingRanges { temperature: Some(Setting::Drawn(bad)), ..SamplingRanges::default() };
            assert!(ranges.validate().is_err(), "{bad:?}");
        }
    }
}
