//! From a `[[backends]]` entry to the engine's own settings.

use idiolect_backend_candle::{BadSetting, CandleConfig, Format, KvType};

use crate::config::{BackendConfig, KvFormat, WeightFormat};

/// Makes the engine's settings, all but the model. A device that has no name as it should is left as it was.
pub(crate) fn settings(backend: &BackendConfig) -> CandleConfig {
    let mut config = CandleConfig::default();
    config.name.clone_from(&backend.name);
    config.device = backend.device.parse().unwrap_or(config.device);
    config.threads = backend.threads;
    if let Some(context) = backend.context_tokens {
        config.context_tokens = usize::try_from(context).unwrap_or(usize::MAX);
    }
    config.quantize = backend.quantize.map(format);
    config.kv_type = backend.kv_type.map_or(config.kv_type, kv_type);
    config.max_kv_bytes = backend.max_kv_bytes.map_or(config.max_kv_bytes, |bytes| bytes.0);
    config.max_kept_bytes = backend.max_kept_bytes.map(|bytes| bytes.0);
    config.max_batch = backend.max_batch.unwrap_or(config.max_batch);
    config.queue = backend.queue.unwrap_or(config.queue);
    config.preset = backend.preset.unwrap_or(config.preset);
    config
}

/// Returns what the engine would refuse to load with, whatever the model is.
pub(crate) fn bad_settings(backend: &BackendConfig) -> Vec<BadSetting> {
    settings(backend).bad_settings()
}

const fn kv_type(kept: KvFormat) -> KvType {
    match kept {
        KvFormat::F32 => KvType::F32,
        KvFormat::F16 => KvType::F16,
        KvFormat::Bf16 => KvType::Bf16,
        KvFormat::Q8_0 => KvType::Q8,
    }
}

const fn format(stored: WeightFormat) -> Format {
    match stored {
        WeightFormat::F32 => Format::F32,
        WeightFormat::F16 => Format::F16,
        WeightFormat::Bf16 => Format::Bf16,
        WeightFormat::Q4_0 => Format::Q4_0,
        WeightFormat::Q4_1 => Format::Q4_1,
        WeightFormat::Q5_0 => Format::Q5_0,
        WeightFormat::Q5_1 => Format::Q5_1,
        WeightFormat::Q8_0 => Format::Q8_0,
        WeightFormat::Q4K => Format::Q4K,
        WeightFormat::Q5K => Format::Q5K,
        WeightFormat::Q6K => Format::Q6K,
    }
}
