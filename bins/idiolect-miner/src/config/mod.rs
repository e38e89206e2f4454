//! Configuration: one table of settings, read from flags, environment, file and preset.
//!
//! [`load`] merges the layers and reports every bad value at once; [`Loaded::origin`] tells where a value came from.

mod backend;
mod check;
mod file;
mod key;
mod keys;
mod layers;
mod preset;
mod reference;
mod sections;
mod shared_history;
pub(crate) mod value;

pub use backend::{BACKEND_KEYS, BackendConfig, BackendKind, KvFormat, ServerFlavour, WeightFormat};
pub use key::{Key, plain};
pub use keys::{KEYS, sections};
pub use layers::{ConfigError, Loaded, Origin, Problem, Sources, load, unknown_variables};
pub use preset::{PRESETS, Preset, PresetKind, preset};
pub use reference::{reference, template};
pub use sections::{
    Allowed, AxonSection, CandidatesSection, Config, EncoderKind, Expired, LogFormat, LogSection, MetricsSection,
    ModelsSection, MutationSection, Network, PipelineSection, PolicySection, PoolSection, PoolStrategy, PromptRecord,
    QualityModel, RecipePolicy, TransportsSection, UniquenessSection, WalletSection,
};
pub use shared_history::{DatabaseUrl, SharedHistory};
pub use value::{Bytes, parse_duration};

#[cfg(test)]
mod tests;
