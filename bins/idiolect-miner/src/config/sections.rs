//! The typed configuration.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use idiolect_backend::Sampling;
use idiolect_protocol::Hotkey;
use serde_json::Value;

use idiolect_models::{Spec, SpecError};

use super::backend::{BackendConfig, ServerFlavour};
use super::shared_history::SharedHistory;
use super::value::{Bytes, Raw, Setting, words};

/// Where the miner learns who is registered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Nowhere: loopback only.
    #[default]
    None,
    /// A metagraph snapshot.
    File(PathBuf),
    /// A chain: its name or websocket address.
    Chain(String),
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Chain(name) => f.write_str(name),
        }
    }
}

impl Setting for Network {
    const TYPE: &'static str = "`none` or `file:PATH`";

    fn read(raw: &Raw) -> Result<Self, String> {
        let text = String::read(raw)?;
        match text.as_str() {
            "none" => Ok(Self::None),
            "local" | "test" | "finney" | "archive" => Ok(Self::Chain(text)),
            _ if text.starts_with("ws://") || text.starts_with("wss://") => Ok(Self::Chain(text)),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
                _ => Err(format!("is {text:?}, expected none or file:PATH")),
            },
        }
    }

    fn show(&self) -> Value {
        Value::from(self.to_string())
    }
}

/// Which model says how good candidates are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum QualityModel {
    /// The default one, where candidates are compared at all and it can be loaded.
    #[default]
    Auto,
    /// None.
    Off,
    /// This one.
    Model(Spec),
}

impl fmt::Display for QualityModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::Model(spec) => fmt::Display::fmt(spec, f),
        }
    }
}

impl Setting for QualityModel {
    const TYPE: &'static str = "`auto`, `off` or SPEC of a model";

    fn read(raw: &Raw) -> Result<Self, String> {
        let text = String::read(raw)?;
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => text.parse().map(Self::Model).map_err(|error: SpecError| format!("is {text:?}: {error}")),
        }
    }

    fn show(&self) -> Value {
        Value::from(self.to_string())
    }
}

/// Who is always served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Everybody who proves a key.
    Any,
    /// This key.
    Hotkey(Hotkey),
}

impl Setting for Allowed {
    const TYPE: &'static str = "hotkey or `any`";

    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Word(text) | Raw::Text(text) if text == "any" => Ok(Self::Any),
            _ => Hotkey::read(raw).map(Self::Hotkey),
        }
    }

    fn show(&self) -> Value {
        match self {
            Self::Any => Value::from("any"),
            Self::Hotkey(key) => key.show(),
        }
    }
}

words! {
    /// The shape of log lines.
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

words! {
    /// Who is served while the metagraph is too old to decide by.
    pub enum Expired {
        /// The allow list.
        AllowList = "allow-list",
        /// Everybody whom the old figures let in.
        UseAnyway = "use-anyway",
        /// Nobody.
        RefuseAll = "refuse-all",
    }
}

words! {
    /// Which backend is asked first.
    pub enum PoolStrategy {
        /// The first of the list.
        Fallback = "fallback",
        /// Each in turn, by weight.
        RoundRobin = "round-robin",
        /// The one with the least to do.
        LeastBusy = "least-busy",
        /// All of them, each with a share of the candidates.
        Spread = "spread",
    }
}

words! {
    /// How recipes are drawn.
    pub enum RecipePolicy {
        /// Discounted Thompson sampling.
        Thompson = "thompson",
        /// Linear Thompson sampling.
        Linear = "linear",
        /// Exponential weights.
        Exp3 = "exp3",
        /// By the operators' weights.
        Uniform = "uniform",
    }
}

words! {
    /// What is kept of prompts.
    pub enum PromptRecord {
        /// Their text.
        All = "all",
        /// A hash.
        Hash = "hash",
        /// Nothing.
        None = "none",
    }
}

words! {
    /// The sentence encoder.
    pub enum EncoderKind {
        /// all-MiniLM-L6-v2: small and quick.
        MiniLm = "minilm",
        /// all-mpnet-base-v2: the validators' own.
        Mpnet = "mpnet",
        /// Any other, on an OpenAI-shaped server.
        OpenAi = "openai",
        /// None: candidates are told apart by their words alone.
        Off = "off",
    }
}

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The preset whose values stand in for those not given.
    pub preset: Option<String>,
    /// Where the miner learns who is registered.
    pub network: Network,
    /// The subnet's number.
    pub netuid: Option<u16>,
    /// Where store and keys live.
    pub data_dir: PathBuf,
    /// Names or kinds of the backends in use; empty is all of the file's `[[backends]]`, or candle.
    pub backend: Vec<String>,
    /// The SPEC that replaces the first backend's.
    pub model: Option<String>,
    /// A LoRA adapter, which this build refuses.
    pub adapter: Option<PathBuf>,
    /// The listener.
    pub axon: AxonSection,
    /// The key.
    pub wallet: WalletSection,
    /// Who may ask.
    pub policy: PolicySection,
    /// Which clients are served.
    pub transports: TransportsSection,
    /// How several backends share the work.
    pub pool: PoolSection,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// How many candidates are drawn.
    pub candidates: CandidatesSection,
    /// How prompts are varied.
    pub mutation: MutationSection,
    /// How replies are kept apart.
    pub uniqueness: UniquenessSection,
    /// Time, storage and retention of one reply.
    pub pipeline: PipelineSection,
    /// Where models come from.
    pub models: ModelsSection,
    /// The metrics server.
    pub metrics: MetricsSection,
    /// Logging.
    pub log: LogSection,
    /// The backends that the file describes.
    pub backends: Vec<BackendConfig>,
}

/// The listener.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct AxonSection {
    pub ip: IpAddr,
    pub port: u16,
    pub external_ip: Option<IpAddr>,
    pub external_port: Option<u16>,
    pub max_body: Bytes,
    pub max_head: Bytes,
    pub head_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    pub write_timeout: Duration,
    pub max_connections: usize,
    pub max_connections_per_ip: usize,
    pub max_requests: usize,
    pub max_strangers_per_ip: usize,
    pub max_failures: u32,
    pub max_workers: usize,
    pub max_queue: usize,
    pub max_client_timeout: Duration,
    pub default_client_timeout: Duration,
    pub reflection: bool,
    pub drain_timeout: Duration,
    pub nonce_capacity: usize,
}

/// The key that requests are addressed to and replies are signed with.
#[derive(Clone, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct WalletSection {
    pub name: Option<String>,
    pub hotkey: Option<String>,
    pub path: Option<PathBuf>,
    pub hotkey_uri: Option<String>,
}

impl fmt::Debug for WalletSection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalletSection")
            .field("name", &self.name)
            .field("hotkey", &self.hotkey)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Who may ask.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct PolicySection {
    pub allow: Vec<Allowed>,
    pub deny: Vec<Hotkey>,
    pub allow_non_registered: bool,
    pub require_permit: bool,
    pub min_stake: f64,
    pub require_axon: bool,
    pub rate: u32,
    pub rate_period: Duration,
    pub on_expired: Expired,
}

/// Which generations of client are served.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
#[expect(clippy::struct_excessive_bools, reason = "six independent switches")]
pub struct TransportsSection {
    pub grpc: bool,
    pub grpc_clock_nonces: bool,
    pub http: bool,
    pub legacy_http: bool,
    pub epistula: bool,
    pub btauth: bool,
}

/// How several backends share the work.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct PoolSection {
    pub strategy: PoolStrategy,
    pub first_byte_timeout: Option<Duration>,
}

/// How many candidates are drawn.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct CandidatesSection {
    pub count: usize,
}

/// How prompts are varied.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct MutationSection {
    pub enabled: bool,
    pub operators: Option<PathBuf>,
    pub recipes: usize,
    pub policy: RecipePolicy,
    pub seed: Option<u64>,
    pub paraphrase_tokens: u64,
}

/// How replies are kept apart.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct UniquenessSection {
    pub profile: String,
    pub encoder: EncoderKind,
    pub device: String,
    pub encoder_model: Option<String>,
    pub encoder_dimensions: Option<usize>,
    pub encoder_send_dimensions: bool,
    pub encoder_url: Option<String>,
    pub encoder_flavour: ServerFlavour,
    pub encoder_key_env: Option<String>,
    pub encoder_timeout: Duration,
    pub quality_model: QualityModel,
    pub margin: f32,
    pub rivals: usize,
    pub panel: Option<PathBuf>,
    /// What other prompts taught of which replies rivals mask.
    pub distinctiveness: Option<PathBuf>,
    pub history: usize,
    pub shared_history: Option<SharedHistory>,
}

/// Time, storage and retention of one reply.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct PipelineSection {
    pub cap: Duration,
    pub margin: Duration,
    pub max_dictated_tokens: u32,
    pub store_prompts: PromptRecord,
    pub store_replies: bool,
    pub retention: Option<Duration>,
    pub max_replies: Option<u64>,
}

/// Where models come from.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct ModelsSection {
    pub cache_dir: Option<PathBuf>,
    pub offline: bool,
}

/// The metrics server.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct MetricsSection {
    pub addr: Option<SocketAddr>,
    pub public: bool,
}

/// Logging.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is a setting, documented in the table of settings")]
pub struct LogSection {
    pub format: LogFormat,
    pub filter: String,
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: None,
            network: Network::None,
            netuid: None,
            data_dir: PathBuf::new(),
            backend: Vec::new(),
            model: None,
            adapter: None,
            axon: AxonSection {
                ip: LOOPBACK,
                port: 8091,
                external_ip: None,
                external_port: None,
                max_body: Bytes(4 << 20),
                max_head: Bytes(32 << 10),
                head_timeout: Duration::from_secs(10),
                body_timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(75),
                write_timeout: Duration::from_secs(20),
                max_connections: 1024,
                max_connections_per_ip: 256,
                max_requests: 1024,
                max_strangers_per_ip: 256,
                max_failures: 100,
                max_workers: 16,
                max_queue: 128,
                max_client_timeout: Duration::from_secs(60),
                default_client_timeout: Duration::from_secs(10),
                reflection: true,
                drain_timeout: Duration::from_secs(15),
                nonce_capacity: 1_000_000,
            },
            wallet: WalletSection { name: None, hotkey: None, path: None, hotkey_uri: None },
            policy: PolicySection {
                allow: Vec::new(),
                deny: Vec::new(),
                allow_non_registered: false,
                require_permit: true,
                min_stake: 0.0,
                require_axon: false,
                rate: 0,
                rate_period: Duration::from_secs(60),
                on_expired: Expired::AllowList,
            },
            transports: TransportsSection {
                grpc: true,
                grpc_clock_nonces: false,
                http: true,
                legacy_http: false,
                epistula: true,
                btauth: true,
            },
            sampling: Sampling {
                max_tokens: 160,
                temperature: Some(0.5),
                top_p: Some(0.9),
                repetition_penalty: Some(1.05),
                ..Sampling::default()
            },
            pool: PoolSection { strategy: PoolStrategy::Fallback, first_byte_timeout: None },
            candidates: CandidatesSection { count: 4 },
            mutation: MutationSection {
                enabled: true,
                operators: None,
                recipes: 2,
                policy: RecipePolicy::Thompson,
                seed: None,
                paraphrase_tokens: 0,
            },
            uniqueness: UniquenessSection {
                profile: "text-prompting-2.1".to_owned(),
                encoder: EncoderKind::MiniLm,
                device: super::backend::CPU.to_owned(),
                encoder_model: None,
                encoder_dimensions: None,
                encoder_send_dimensions: false,
                encoder_url: None,
                encoder_flavour: ServerFlavour::OpenAi,
                encoder_key_env: None,
                encoder_timeout: Duration::from_secs(30),
                quality_model: QualityModel::Auto,
                margin: 0.0147,
                rivals: 49,
                panel: None,
                distinctiveness: None,
                history: 4096,
                shared_history: None,
            },
            pipeline: PipelineSection {
                cap: Duration::from_secs(10),
                margin: Duration::from_millis(500),
                max_dictated_tokens: 4096,
                store_prompts: PromptRecord::All,
                store_replies: true,
                retention: Some(Duration::from_secs(30 * 86_400)),
                max_replies: Some(200_000),
            },
            models: ModelsSection { cache_dir: None, offline: false },
            metrics: MetricsSection { addr: Some(SocketAddr::new(LOOPBACK, 9091)), public: false },
            log: LogSection { format: LogFormat::Text, filter: "info".to_owned() },
            backends: Vec::new(),
        }
    }
}
