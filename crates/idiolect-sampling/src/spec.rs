//! Chains of stages, and the presets that name an order.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::stage::{FrequencyPresence, MinP, Repetition, Scope, Temperature, TopK, TopP};
use crate::{Stage, StageKind};

/// An order of stages with defaults, as a well-known engine has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// llama.cpp: truncation first, temperature last, so that heat only reshuffles what passed.
    #[default]
    LlamaCpp,
    /// vLLM: temperature first, then min-p, top-k, top-p.
    Vllm,
    /// mistral.rs: DRY and penalties by count before the one by factor, then temperature, top-k, top-p, min-p.
    MistralRs,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 3] = [Self::LlamaCpp, Self::Vllm, Self::MistralRs];

    /// Returns the name that configurations and records use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LlamaCpp => "llamacpp",
            Self::Vllm => "vllm",
            Self::MistralRs => "mistralrs",
        }
    }

    /// Returns where every kind of stage stands. Stages that the engine itself does not have stand where they do least
    /// harm.
    #[must_use]
    pub const fn order(self) -> &'static [StageKind; 15] {
        use StageKind::{
            Ban, Constraint, Dry, FrequencyPresence, Greedy, LogitBias, MinP, Mirostat, Repetition, Temperature, TopK,
            TopNSigma, TopP, Typical, Xtc,
        };
        match self {
            Self::LlamaCpp => &[
                LogitBias,
                Ban,
                Constraint,
                Repetition,
                FrequencyPresence,
                Dry,
                TopNSigma,
                TopK,
                Typical,
                TopP,
                MinP,
                Xtc,
                Temperature,
                Mirostat,
                Greedy,
            ],
            Self::Vllm => &[
                Constraint,
                Ban,
                LogitBias,
                Repetition,
                FrequencyPresence,
                Dry,
                Temperature,
                TopNSigma,
                Typical,
                MinP,
                TopK,
                TopP,
                Xtc,
                Mirostat,
                Greedy,
            ],
            Self::MistralRs => &[
                Dry,
                FrequencyPresence,
                Repetition,
                LogitBias,
                Ban,
                Constraint,
                Temperature,
                TopNSigma,
                Typical,
                TopK,
                TopP,
                MinP,
                Xtc,
                Mirostat,
                Greedy,
            ],
        }
    }

    /// Returns the stages that the engine runs when it is told nothing, in order; stages that are off are left out.
    #[must_use]
    pub fn stages(self) -> Vec<Stage> {
        match self {
            Self::LlamaCpp => vec![
                Stage::TopK(TopK { k: 40 }),
                Stage::TopP(TopP { p: 0.95 }),
                Stage::MinP(MinP { p: 0.05, exclusive: false }),
                Stage::Temperature(Temperature { temperature: 0.8, ..Temperature::default() }),
            ],
            Self::Vllm | Self::MistralRs => vec![Stage::Temperature(Temperature::default())],
        }
    }

    /// Returns a repetition penalty with the window and scope of the engine.
    #[must_use]
    pub fn repetition(self, penalty: f32) -> Stage {
        let last_n = (self == Self::LlamaCpp).then_some(64);
        Stage::Repetition(Repetition { penalty, last_n, scope: Scope::All })
    }

    /// Returns penalties by count with the window and scope of the engine.
    #[must_use]
    pub fn frequency_presence(self, frequency: f32, presence: f32) -> Stage {
        let (last_n, scope) = match self {
            Self::LlamaCpp => (Some(64), Scope::All),
            Self::Vllm | Self::MistralRs => (None, Scope::Output),
        };
        Stage::FrequencyPresence(FrequencyPresence { frequency, presence, last_n, scope })
    }

    /// Returns min-p with the border of the engine.
    #[must_use]
    pub fn min_p(self, p: f32) -> Stage {
        Stage::MinP(MinP { p, exclusive: self == Self::MistralRs })
    }

    /// Puts a stage where it belongs, in place of one of its kind.
    pub fn place(self, stages: &mut Vec<Stage>, stage: Stage) {
        let kind = stage.kind();
        if let Some(same) = stages.iter_mut().find(|s| s.kind() == kind) {
            *same = stage;
            return;
        }
        let rank = |kind| self.order().iter().position(|k| *k == kind);
        let at = stages.iter().position(|s| rank(s.kind()) > rank(kind)).unwrap_or(stages.len());
        stages.insert(at, stage);
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Preset {
    type Err = String;

    /// Parses a preset by name.
    ///
    /// # Errors
    /// A text that names the presets.
    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|preset| preset.as_str() == name)
            .ok_or_else(|| format!("unknown preset {name:?}, expected llamacpp, vllm or mistralrs"))
    }
}

/// An ordered list of stages, as data.
///
/// With a preset, its order and defaults hold, and `stages` replace or add to them wherever the preset puts them.
/// Without one, `stages` are all there is, in the order in which they are listed.
///
/// ```
/// use idiolect_sampling::{ChainSpec, Preset, StageKind};
///
/// // A preset's name alone, or a table.
/// let plain: ChainSpec = serde_json::from_str(r#""vllm""#)?;
/// assert_eq!(plain, ChainSpec::from(Preset::Vllm));
///
/// let chain: ChainSpec = serde_json::from_str(
///     r#"{"preset": "llamacpp", "stages": [{"stage": "xtc", "probability": 0.5}, {"stage": "top_k", "k": 0}]}"#,
/// )?;
/// let kinds: Vec<StageKind> = chain.stages().iter().map(|stage| stage.kind()).collect();
/// assert_eq!(
///     kinds,
///     [StageKind::TopK, StageKind::TopP, StageKind::MinP, StageKind::Xtc, StageKind::Temperature]
/// );
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChainSpec {
    /// The preset whose order and defaults hold.
    pub preset: Option<Preset>,
    /// Stages beside it, or all of them.
    pub stages: Vec<Stage>,
}

/// A chain in a file, when it is no mere name.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table<S> {
    #[serde(default = "no_preset", skip_serializing_if = "Option::is_none")]
    preset: Option<Preset>,
    #[serde(default)]
    stages: S,
}

const fn no_preset() -> Option<Preset> {
    None
}

impl Serialize for ChainSpec {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.preset {
            Some(preset) if self.stages.is_empty() => preset.serialize(to),
            preset => Table { preset, stages: &self.stages }.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for ChainSpec {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = ChainSpec;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a preset (llamacpp, vllm or mistralrs) or a table of preset and stages")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<ChainSpec, E> {
                name.parse::<Preset>().map(ChainSpec::from).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ChainSpec, A::Error> {
                let Table { preset, stages } = Table::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ChainSpec { preset, stages })
            }
        }
        from.deserialize_any(Reader)
    }
}

impl From<Preset> for ChainSpec {
    fn from(preset: Preset) -> Self {
        Self { preset: Some(preset), stages: Vec::new() }
    }
}

impl From<Vec<Stage>> for ChainSpec {
    /// Makes the chain of exactly these stages.
    fn from(stages: Vec<Stage>) -> Self {
        Self { preset: None, stages }
    }
}

impl ChainSpec {
    /// Returns the stages in the order in which they run.
    #[must_use]
    pub fn stages(&self) -> Vec<Stage> {
        self.stages_with(&[])
    }

    /// Returns the stages in the order in which they run, with `settings` laid over the preset's defaults and under the
    /// chain's own stages. Without a preset, `settings` are not used.
    #[must_use]
    pub fn stages_with(&self, settings: &[Stage]) -> Vec<Stage> {
        let Some(preset) = self.preset else { return self.stages.clone() };
        let mut stages = preset.stages();
        for stage in settings.iter().chain(&self.stages) {
            preset.place(&mut stages, stage.clone());
        }
        // What ends a chain stands in for the truncations that the preset would have brought along.
        if let Some(last) = stages.iter().map(Stage::kind).find(|kind| kind.ends_the_chain()) {
            let is_asked_for = |kind| self.stages.iter().any(|stage| stage.kind() == kind);
            stages.retain(|stage| !stage.kind().truncates() || is_asked_for(stage.kind()));
            stages.retain(|stage| !stage.kind().ends_the_chain() || stage.kind() == last);
        }
        stages
    }

    /// Checks every parameter and the order.
    ///
    /// # Errors
    /// [`ChainError`] naming everything that is wrong.
    pub fn validate(&self) -> Result<(), ChainError> {
        check_stages(&self.stages())
    }
}

/// Checks stages and their order.
pub(crate) fn check_stages(stages: &[Stage]) -> Result<(), ChainError> {
    let mut bad = Vec::new();
    if stages.len() > MAX_STAGES {
        bad.push(format!("{} stages, expected at most {MAX_STAGES}", stages.len()));
    }
    for (i, stage) in stages.iter().enumerate() {
        stage.check(&mut bad);
        let kind = stage.kind();
        if let Stage::Constraint(constraint) = stage {
            constraint.shape.check(&mut bad);
        }
        if kind.ends_the_chain()
            && let Some(next) = stages.get(i + 1)
        {
            bad.push(format!("{} comes after {kind}, which ends the chain", next.kind()));
        }
        if kind == StageKind::Mirostat
            && let Some(other) = stages.iter().find(|s| s.kind().truncates() && !s.is_off())
        {
            bad.push(format!("{} stands beside mirostat, which takes its place", other.kind()));
        }
        if matches!(kind, StageKind::Constraint | StageKind::Mirostat)
            && stages[..i].iter().any(|other| other.kind() == kind)
        {
            bad.push(format!("{kind} is there twice, expected once"));
        }
    }
    if bad.is_empty() { Ok(()) } else { Err(ChainError(bad)) }
}

/// Most stages of a chain.
const MAX_STAGES: usize = 64;

/// What is wrong with a chain: everything, one entry each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ChainError(pub Vec<String>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Dry, Mirostat, Xtc};

    #[test]
    fn presets_order_every_stage_once() {
        for preset in Preset::ALL {
            let mut order = *preset.order();
            order.sort_unstable();
            let mut all = StageKind::ALL;
            all.sort_unstable();
            assert_eq!(order, all, "{preset}");
            assert_eq!(preset.as_str().parse(), Ok(preset));
            ChainSpec::from(preset).validate().unwrap();
        }
        assert!("llama".parse::<Preset>().unwrap_err().contains("\"llama\", expected llamacpp"));
    }

    fn kinds(stages: &[Stage]) -> Vec<&'static str> {
        stages.iter().map(|stage| stage.kind().as_str()).collect()
    }

    #[test]
    fn settings_lie_over_the_preset_and_under_the_stages() {
        let mut spec = ChainSpec::from(Preset::LlamaCpp);
        spec.stages = vec![Stage::TopP(TopP { p: 0.5 })];
        let settings = [
            Stage::TopP(TopP { p: 0.7 }),
            Preset::LlamaCpp.repetition(1.1),
            Stage::Temperature(Temperature { temperature: 0.1, ..Temperature::default() }),
        ];
        let stages = spec.stages_with(&settings);
        assert_eq!(kinds(&stages), ["repetition", "top_k", "top_p", "min_p", "temperature"]);
        assert_eq!(stages[2], Stage::TopP(TopP { p: 0.5 }));
        assert_eq!(stages[4], settings[2]);
        spec.preset = None;
        assert_eq!(spec.stages_with(&settings), [Stage::TopP(TopP { p: 0.5 })]);
    }

    #[test]
    fn what_ends_a_chain_replaces_the_presets_truncations() {
        let mut spec = ChainSpec::from(Preset::LlamaCpp);
        spec.stages = vec![Stage::Mirostat(Mirostat::default())];
        assert_eq!(kinds(&spec.stages()), ["temperature", "mirostat"]);
        spec.validate().unwrap();
        spec.stages.push(Stage::TopK(TopK { k: 3 }));
        assert_eq!(spec.validate().unwrap_err().to_string(), "top_k stands beside mirostat, which takes its place");
        spec.stages = vec![Stage::Greedy {}];
        assert_eq!(kinds(&spec.stages()), ["temperature", "greedy"]);
    }

    #[test]
    fn everything_bad_is_named_at_once() {
        let spec = ChainSpec::from(vec![
            Stage::Greedy {},
            Stage::TopP(TopP { p: 1.5 }),
            Stage::Xtc(Xtc { probability: -1.0, threshold: f32::NAN }),
            Stage::Dry(Dry { base: 0.5, allowed_length: 0, breakers: vec![String::new()], ..Dry::default() }),
        ]);
        assert_eq!(
            spec.validate().unwrap_err().0,
            [
                "top_p comes after greedy, which ends the chain",
                "top_p.p is 1.5, expected above 0 and at most 1",
                "xtc.probability is -1, expected 0 to 1",
                "xtc.threshold is NaN, expected 0 to 1",
                "dry.base is 0.5, expected 1 to 8",
                "dry.allowed_length is 0, expected 1 to 1000",
                "dry.breakers holds a text of 0 bytes, expected 1 to 256",
            ]
        );
    }

    #[test]
    fn files_are_read_and_written() {
        let text = "preset = \"mistralrs\"\n\n[[stages]]\nstage = \"logit_bias\"\n\n[stages.bias]\n7 = -100.0\n\n\
                    [[stages]]\nstage = \"constraint\"\n\n[stages.shape]\nregex = \"a+\"\n";
        let spec: ChainSpec = toml::from_str(text).unwrap();
        assert_eq!(kinds(&spec.stages()), ["logit_bias", "constraint", "temperature"]);
        let again: ChainSpec = toml::from_str(&toml::to_string(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<ChainSpec>(&json).unwrap(), spec);
        for preset in Preset::ALL {
            let spec = ChainSpec { preset: Some(preset), stages: preset.stages() };
            assert_eq!(serde_json::from_str::<ChainSpec>(&serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        }
        for bad in [
            r#""llama""#,
            r#"{"preset": "x"}"#,
            r#"{"stages": [{"stage": "top_q"}]}"#,
            r#"{"stages": [{"stage": "top_k", "p": 1}]}"#,
            r#"{"stages": [{"stage": "logit_bias", "bias": {"x": 1}}]}"#,
            r#"{"chain": 1}"#,
        ] {
            assert!(serde_json::from_str::<ChainSpec>(bad).is_err(), "{bad}");
        }
    }
}
