//! Settings of the backend and the encoder.

use std::fmt;
use std::num::NonZeroUsize;

use idiolect_kernels::Format;
use idiolect_sampling::Preset;

use crate::device::DeviceChoice;
use crate::error::LoadError;
use crate::kv_type::KvType;

/// Bytes of prompts that are kept where nothing is configured, and there are so many.
const USUAL_KEPT_BYTES: u64 = 128 << 20;

/// How a [`CandleBackend`](crate::CandleBackend) serves its model.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CandleConfig {
    /// The backend's name in answers and errors. Default `candle`.
    pub name: String,
    /// The model's name in answers. `None`, the default, takes the name that the file carries, else the file's own.
    pub model: Option<String>,
    /// Where the model computes. Default [`DeviceChoice::Cpu`].
    pub device: DeviceChoice,
    /// The format that every weight matrix is encoded in anew when the model is loaded; `None`, the default, keeps the
    /// file's own. Matrices whose rows do not fill its blocks get [`Format::Q8_0`], and so do embeddings and output in place
    /// of a format with fewer bits.
    ///
    /// For files of 16- or 32-bit numbers `Q8_0` halves or quarters the memory at next to no loss. The other way,
    /// [`Format::F32`] computes with exact products, to compare with.
    pub quantize: Option<Format>,
    /// Threads that compute; `None`, the default, takes one for each core that the process may use. At most 1024.
    pub threads: Option<NonZeroUsize>,
    /// Most tokens that prompt and candidate may have together, where the model allows more. Default 4096, 16 to 16,777,216.
    ///
    /// Memory grows with use, not with this: see [`max_kv_bytes`](Self::max_kv_bytes).
    pub context_tokens: usize,
    /// How keys and values are kept. Default [`KvType::F16`]; [`KvType::Q8`] is for the processor, [`KvType::Bf16`] for cards.
    pub kv_type: KvType,
    /// Most memory that the keys and values of all requests together may take, in bytes. Default 1 GiB.
    ///
    /// A request takes its share for each token of the prompt, and the same for each token of each candidate: 23 KB with
    /// a 135M-parameter model in half precision, 64 to 256 KB with one of 8 billion. One that might take more than this,
    /// were all its candidates to run to their full length, or as far as its deadline lets them at the speed measured, is
    /// refused as invalid before any of it is allocated; one that fits, but not beside those that run, waits for them.
    ///
    /// What is computed on the way comes on top of it. On cards, where that is largest, scores of attention are computed in
    /// pieces, which take 384 MiB at most (256 MiB in 32 bits, and copies in the type of keys and values), or what one row of a
    /// context takes where that is more.
    pub max_kv_bytes: u64,
    /// Most of that memory that may hold what prompts began with, for later prompts that begin alike, in bytes; 0 keeps
    /// nothing. `None`, the default, takes 128 MiB, or all of that memory where it is less. It is given up whenever a request
    /// needs it.
    pub max_kept_bytes: Option<u64>,
    /// Requests that may wait for their turn; more are refused as overloaded. Default 16, 1 to 65,536.
    pub queue: usize,
    /// Candidates, of all requests together, that may grow side by side. Default 64, 1 to 65,536.
    ///
    /// It bounds what is computed at once, not what may be asked for, which is [`max_candidates`](Self::max_candidates): of a
    /// request for more candidates than this so many are grown at a time, one lot after the other; nobody is let in between two lots.
    pub max_batch: usize,
    /// Most candidates of one request; more are refused as invalid. Default 64, 1 to 65,536.
    pub max_candidates: usize,
    /// The order of sampling stages for requests without a chain of their own. Default [`Preset::LlamaCpp`]: truncation
    /// first, temperature last. The preset's own defaults play no part: temperature 0.7 and top-p 0.95 stand in for what a
    /// request leaves open.
    pub preset: Preset,
}

impl Default for CandleConfig {
    fn default() -> Self {
        Self {
            name: "candle".to_owned(),
            model: None,
            device: DeviceChoice::Cpu,
            quantize: None,
            threads: None,
            context_tokens: 4096,
            kv_type: KvType::F16,
            max_kv_bytes: 1 << 30,
            max_kept_bytes: None,
            queue: 16,
            max_batch: 64,
            max_candidates: 64,
            preset: Preset::LlamaCpp,
        }
    }
}

impl CandleConfig {
    /// Returns the number of threads to start.
    pub(crate) fn n_threads(&self) -> usize {
        n_threads(self.threads)
    }

    /// Returns how many bytes of prompts may be kept.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.max_kept_bytes.unwrap_or(USUAL_KEPT_BYTES).min(self.max_kv_bytes)
    }

    /// Returns every setting whose value cannot be used, whatever the model is; loading refuses them.
    ///
    /// ```
    /// let mut config = idiolect_backend_candle::CandleConfig::default();
    /// assert!(config.bad_settings().is_empty());
    /// config.queue = 0;
    /// assert_eq!(config.bad_settings()[0].to_string(), "queue is 0, expected 1 to 65536");
    /// ```
    #[must_use]
    pub fn bad_settings(&self) -> Vec<BadSetting> {
        let counts = [
            ("threads", self.threads.map(NonZeroUsize::get), 1..=1024),
            ("context_tokens", Some(self.context_tokens), 16..=1 << 24),
            ("queue", Some(self.queue), 1..=1 << 16),
            ("max_batch", Some(self.max_batch), 1..=1 << 16),
            ("max_candidates", Some(self.max_candidates), 1..=1 << 16),
        ];
        let mut bad = Vec::new();
        for (key, value, range) in counts {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                let expected = format!("{} to {}", range.start(), range.end());
                bad.push(BadSetting { key, value: value.to_string(), expected });
            }
        }
        if let Some(expected) = self.kv_type.instead(self.device) {
            bad.push(BadSetting { key: "kv_type", value: self.kv_type.to_string(), expected: expected.to_owned() });
        }
        if let Some(kept) = self.max_kept_bytes.filter(|kept| *kept > self.max_kv_bytes) {
            let expected = format!("at most max_kv_bytes, which is {}", self.max_kv_bytes);
            bad.push(BadSetting { key: "max_kept_bytes", value: kept.to_string(), expected });
        }
        bad
    }

    pub(crate) fn validate(&self) -> Result<(), LoadError> {
        let bad: Vec<String> = self.bad_settings().iter().map(ToString::to_string).collect();
        if bad.is_empty() { Ok(()) } else { Err(LoadError::Config(bad.join("; "))) }
    }
}

/// A setting of a [`CandleConfig`] whose value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BadSetting {
    /// The setting: the name of its field.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What it may be.
    pub expected: String,
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, expected {}", self.key, self.value, self.expected)
    }
}

/// How a [`SentenceEncoder`](crate::SentenceEncoder) runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncoderConfig {
    /// The encoder's name; embeddings of different names are never compared. `None`, the default, stands for
    /// `all-MiniLM-L6-v2` where the model is a BERT, and for `all-mpnet-base-v2` where it is an MPNet.
    pub name: Option<String>,
    /// Where the model computes. Default [`DeviceChoice::Cpu`].
    pub device: DeviceChoice,
    /// Threads that compute; `None`, the default, takes one for each core that the process may use.
    pub threads: Option<NonZeroUsize>,
    /// Tokens of a text that count, special tokens included, where the model allows more. Default 512.
    pub max_tokens: usize,
    /// Calls that may wait while one runs; more are refused as overloaded. Default 64.
    pub queue: usize,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self { name: None, device: DeviceChoice::Cpu, threads: None, max_tokens: 512, queue: 64 }
    }
}

pub(crate) fn n_threads(wanted: Option<NonZeroUsize>) -> usize {
    wanted.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}
