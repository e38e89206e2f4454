//! The `[[backends]]` entries.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use idiolect_arena::RecordedSpec;
use idiolect_backend::Preset as SamplingPreset;
use idiolect_models::Spec;

use super::key::{Key, key};
use super::value::{Bytes, words};

words! {
    /// What kind of backend an entry describes.
    pub enum BackendKind {
        /// A local GGUF model.
        Candle = "candle",
        /// A server that speaks the OpenAI API.
        OpenAi = "openai",
        /// Repeats the prompt: for tests.
        Echo = "echo",
        /// Answers with recorded replies: for experiments.
        Recorded = "recorded",
    }
}

words! {
    /// What kind of server an `openai` backend is.
    pub enum ServerFlavour {
        /// OpenAI, and whatever is strictly like it.
        OpenAi = "openai",
        /// vLLM.
        Vllm = "vllm",
        /// Text Generation Inference.
        Tgi = "tgi",
        /// Ollama.
        Ollama = "ollama",
        /// The server of llama.cpp.
        LlamaCpp = "llamacpp",
        /// OpenRouter.
        OpenRouter = "openrouter",
    }
}

words! {
    /// How keys and values of a local model are kept.
    pub enum KvFormat {
        /// Single precision.
        F32 = "f32",
        /// Half precision.
        F16 = "f16",
        /// Sixteen bits with the range of single precision; on cards.
        Bf16 = "bf16",
        /// Eight bits and a scale for 32; on the processor.
        Q8_0 = "q8_0",
    }
}

words! {
    /// The format that a local model's weights are encoded in anew.
    pub enum WeightFormat {
        /// Single precision.
        F32 = "f32",
        /// Half precision.
        F16 = "f16",
        /// The upper half of single precision.
        Bf16 = "bf16",
        /// Four bits and a scale for 32.
        Q4_0 = "q4_0",
        /// Four bits, a scale and a minimum for 32.
        Q4_1 = "q4_1",
        /// Five bits and a scale for 32.
        Q5_0 = "q5_0",
        /// Five bits, a scale and a minimum for 32.
        Q5_1 = "q5_1",
        /// Eight bits and a scale for 32.
        Q8_0 = "q8_0",
        /// Four bits, with scales and minima in blocks of 256.
        Q4K = "q4_k",
        /// Five bits, with scales and minima in blocks of 256.
        Q5K = "q5_k",
        /// Six bits, with scales in blocks of 256.
        Q6K = "q6_k",
    }
}

/// The device of models where none is given.
pub(super) const CPU: &str = "cpu";

/// Says whether a text names a device: `cpu`, or a kind of graphics processor with or without a number.
pub(super) fn names_device(text: &str) -> bool {
    let (kind, number) = text.split_once(':').unwrap_or((text, "0"));
    let numbered = number.bytes().all(|b| b.is_ascii_digit()) && number.parse::<usize>().is_ok();
    text == CPU || matches!(kind, "cuda" | "metal") && numbered
}

/// One backend.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct BackendConfig {
    pub name: String,
    pub kind: BackendKind,
    pub model: Option<String>,
    pub weight: u32,
    pub max_concurrent: usize,
    pub rpm: u32,
    pub timeout: Duration,
    pub context_tokens: Option<u32>,
    pub threads: Option<NonZeroUsize>,
    pub device: String,
    pub quantize: Option<WeightFormat>,
    pub kv_type: Option<KvFormat>,
    pub max_kv_bytes: Option<Bytes>,
    pub max_kept_bytes: Option<Bytes>,
    pub max_batch: Option<usize>,
    pub queue: Option<usize>,
    pub preset: Option<SamplingPreset>,
    pub flavour: ServerFlavour,
    pub base_url: Option<String>,
    pub key_env: Option<String>,
    pub key_file: Option<PathBuf>,
    pub max_retries: u32,
    pub max_parallel_requests: Option<usize>,
    pub prompt_price: f64,
    pub completion_price: f64,
    pub spending_cap: Option<f64>,
}

impl BackendConfig {
    /// Makes an entry of a kind with its defaults; the kind is also its name.
    #[must_use]
    pub fn of_kind(kind: BackendKind) -> Self {
        Self {
            name: kind.as_str().to_owned(),
            kind,
            model: None,
            weight: 1,
            max_concurrent: match kind {
                BackendKind::Candle => 4,
                BackendKind::OpenAi => 32,
                BackendKind::Echo | BackendKind::Recorded => 1024,
            },
            rpm: 0,
            timeout: Duration::from_secs(30),
            context_tokens: None,
            threads: None,
            device: CPU.to_owned(),
            quantize: None,
            kv_type: None,
            max_kv_bytes: None,
            max_kept_bytes: None,
            max_batch: None,
            queue: None,
            preset: None,
            flavour: ServerFlavour::OpenAi,
            base_url: None,
            key_env: None,
            key_file: None,
            max_retries: 2,
            max_parallel_requests: None,
            prompt_price: 0.0,
            completion_price: 0.0,
            spending_cap: None,
        }
    }

    /// Makes an entry of what a command line names: `candle`, `echo`, a record (`recorded:…`) or a model of the local engine.
    ///
    /// # Errors
    /// What was expected.
    pub fn of_spec(spec: &str) -> Result<Self, String> {
        if let Some(kind) = [BackendKind::Candle, BackendKind::Echo].into_iter().find(|kind| kind.as_str() == spec) {
            return Ok(Self::of_kind(kind));
        }
        let kind = if spec.starts_with(RecordedSpec::PREFIX) {
            spec.parse::<RecordedSpec>().map_err(|problem| problem.to_string())?;
            BackendKind::Recorded
        } else {
            spec.parse::<Spec>().map_err(|problem| problem.to_string())?;
            BackendKind::Candle
        };
        Ok(Self { model: Some(spec.to_owned()), ..Self::of_kind(kind) })
    }
}

impl Default for BackendConfig {
    fn default() -> Self {
        Self::of_kind(BackendKind::Candle)
    }
}

/// The settings of one `[[backends]]` entry.
pub static BACKEND_KEYS: &[Key<BackendConfig>] = &[
    key!(BackendConfig: kind, "`candle` (a local GGUF model), `openai` (any server with that API), `echo` (repeats the prompt, for tests) or `recorded` (answers with recorded replies, for experiments)."),
    key!(BackendConfig: name, "How logs, metrics and `backend` call it; the kind where none is given.")
        .expect("letters, digits, - and _", |c| {
            !c.name.is_empty() && c.name.chars().all(|ch| ch.is_ascii_alphanumeric() || matches!(ch, '-' | '_' | '.'))
        }),
    key!(BackendConfig: model, "candle: SPEC of the model, `smollm2-135m` where none is given. openai: the server's name of it, needed. echo: the name that it gives itself. recorded: `recorded:REPLIES`, with `?prompts=FILE`, `?models=NAME,NAME` or both joined by `&` behind it, needed."),
    key!(BackendConfig: weight, "Share of the requests, relative to the other backends, where `pool.strategy` shares them out.")
        .expect("1 to 1000", |c| (1..=1000).contains(&c.weight)),
    key!(BackendConfig: max_concurrent, "Requests it is given at once; further ones go elsewhere or are refused as overloaded.").unit("requests")
        .expect("at least 1", |c| c.max_concurrent >= 1),
    key!(BackendConfig: rpm, "Requests it is given in any sixty seconds; 0 is no limit.").unit("requests"),
    key!(BackendConfig: timeout, "Longest time a request to it may take.").unit("seconds")
        .expect("1ms to 1d", |c| super::keys::up_to_a_day(c.timeout)),
    key!(BackendConfig: context_tokens, "Tokens that prompt and reply may have together. candle: at most what the model allows, 16 to 16777216; 4096 where none is given.").unit("tokens")
        .allows("at least 1"),
    key!(BackendConfig: threads, "candle: threads that compute; all cores where none is given.").unit("threads").allows("1 to 1024"),
    key!(BackendConfig: device, "candle: where the model computes: `cpu`, `cuda`, `cuda:1`, `metal` …; all but `cpu` need a build with the feature of that name.")
        .expect("cpu, cuda, cuda:N, metal or metal:N", |c| names_device(&c.device)),
    key!(BackendConfig: quantize, "candle: format that every weight matrix is encoded in anew when the model is loaded; `none` keeps the file's own. `q8_0` halves the memory of files of 16-bit numbers at next to no loss."),
    key!(BackendConfig: kv_type, "candle: how keys and values are kept; `f16` where none is given. `q8_0`, on the processor only, takes about half of its memory, `f32` twice. `bf16` is for cards."),
    key!(BackendConfig: max_kv_bytes, "candle: most memory that keys and values of all requests together may take. A request that could never fit is refused; one that fits, but not beside those that run, waits. 1 GiB where none is given.").unit("bytes")
        .expect("at least 1MiB", |c| c.max_kv_bytes.is_none_or(|bytes| bytes >= Bytes(1 << 20))),
    key!(BackendConfig: max_kept_bytes, "candle: most of that memory that may keep what prompts began with, for later prompts that begin alike; 0 keeps nothing. 128 MiB, or `max_kv_bytes` if that is less, where none is given.").unit("bytes")
        .allows("at most max_kv_bytes"),
    key!(BackendConfig: max_batch, "candle: candidates, of all requests together, that may grow side by side. It bounds what is computed at once, not what is drawn: a prompt whose share of `candidates.count` is more than this has them drawn in turns, so many at a time. 64 where none is given, as many as a prompt may have.").unit("candidates")
        .allows("1 to 65536"),
    key!(BackendConfig: queue, "candle: requests that may wait for their turn in the engine, beyond those that run; more are refused as overloaded. `max_concurrent` bounds both together. 16 where none is given.").unit("requests")
        .allows("1 to 65536"),
    key!(BackendConfig: preset, "candle: order of the sampling stages where neither `sampling.chain` nor a recipe gives one; `llamacpp` where none is given."),
    key!(BackendConfig: flavour, "openai: what kind of server it is, which decides the fields that a request may have: `openai`, `vllm`, `tgi`, `ollama`, `llamacpp` or `openrouter`."),
    key!(BackendConfig: base_url, "openai: where the API is, with its version, as in `http://127.0.0.1:8000/v1`; OpenAI's own where none is given."),
    key!(BackendConfig: key_env, "openai: environment variable that holds the key. OpenAI itself is given `OPENAI_API_KEY` where neither this nor `key_file` is set; other servers are given no key."),
    key!(BackendConfig: key_file, "openai: file that holds the key."),
    key!(BackendConfig: max_retries, "openai: further tries after 429 and 5xx, with growing pauses.").unit("tries"),
    key!(BackendConfig: max_parallel_requests, "openai: HTTP requests that are sent to it at once; further ones wait. Servers that draw one candidate a request are sent one for each candidate: 1 is right for a server that works one by one. `max_concurrent`, and at least the candidates of one prompt, where none is given.").unit("requests")
        .expect("at least 1", |c| c.max_parallel_requests.is_none_or(|n| n >= 1)),
    key!(BackendConfig: prompt_price, "US dollars for a million tokens of prompt.").unit("USD per million tokens").expect("at least 0", |c| c.prompt_price >= 0.0),
    key!(BackendConfig: completion_price, "US dollars for a million tokens of reply.").unit("USD per million tokens").expect("at least 0", |c| c.completion_price >= 0.0),
    key!(BackendConfig: spending_cap, "Most US dollars a day (UTC); then it answers nothing until midnight.").unit("USD per day")
        .expect("at least 0", |c| c.spending_cap.is_none_or(|v| v >= 0.0)),
];
