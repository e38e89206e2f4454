//! From configuration to backends and encoder: with `candle.rs`, the one place where engines are named.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use idiolect_arena::{RecordedBackend, RecordedSpec};
use idiolect_backend::{
    Backend, Echo, EchoConfig, Embedder, FileLedger, Limit, LimitConfig, Member, Pool, PoolConfig, Prices, SpendingCap,
    SpendingConfig, Strategy, Timeout, TimeoutConfig,
};
use idiolect_models::{Progress, Resolver, Spec};
use idiolect_validator::{DpoModel, Profile, RewardModel};

#[cfg(feature = "candle")]
use crate::candle;
use crate::config::{BackendConfig, BackendKind, Config, EncoderKind, PoolStrategy, QualityModel, UniquenessSection};
use crate::models;

/// The concrete backends behind their pool, and the encoder.
#[derive(Clone, Debug)]
pub struct Engines {
    /// All backends as one.
    pub pool: Arc<Pool>,
    /// The sentence encoder, unless it is off.
    pub encoder: Option<Arc<dyn Embedder>>,
    /// The models by the names that configuration gives them, in the order of the backends.
    pub models: Vec<String>,
    /// What says how good candidates are, with its model's name; `None` where it is off.
    pub quality: Option<(Arc<dyn RewardModel>, String)>,
}

/// What loading needs besides the configuration.
pub struct Loader<'a> {
    /// Finds model files.
    pub resolver: &'a Resolver,
    /// Hears of fetches.
    pub progress: &'a dyn Progress,
}

impl fmt::Debug for Loader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("resolver", &self.resolver).finish_non_exhaustive()
    }
}

impl Loader<'_> {
    /// Loads every backend and the encoder, side by side.
    ///
    /// # Errors
    /// When a model cannot be found, fetched or loaded, a key is missing, or the backends do not make a pool.
    pub async fn load(&self, config: &Config) -> anyhow::Result<Engines> {
        let judge = judge(config);
        // A backend that has the model already computes for both.
        let sharing = |spec: &Spec| {
            config.backends.iter().position(|b| {
                b.kind == BackendKind::Candle && model_name(b).parse::<Spec>().is_ok_and(|model| model == *spec)
            })
        };
        let shared = judge.as_ref().and_then(|judge| sharing(&judge.spec));
        let backends = config.backends.iter().map(|backend| async move {
            let engine = self.engine(backend, config.candidates.count).await;
            engine.with_context(|| format!("backend {}", backend.name))
        });
        let own = self.judge_engine(judge.as_ref().filter(|_| shared.is_none()));
        let (engines, encoder, own) =
            tokio::try_join!(futures_util::future::try_join_all(backends), self.encoder(config), own)?;
        let engine = own.or_else(|| engines.get(shared?).cloned());
        let quality = dpo_model(config, judge, engine)?;
        let members = config.backends.iter().zip(engines).map(|(backend, engine)| member(config, backend, engine));
        let models = config.backends.iter().map(model_name).collect();
        let pool = Pool::new(pool_config(config), members.collect()).context("the backends do not make a pool")?;
        Ok(Engines { pool: Arc::new(pool), encoder, models, quality })
    }

    /// Loads the model that says how good candidates are, and nothing else, and returns it with its name; `None` where there is to be none.
    ///
    /// # Errors
    /// When it was asked for by name and cannot be found, fetched or loaded.
    pub async fn quality(&self, config: &Config) -> anyhow::Result<Option<(Arc<dyn RewardModel>, String)>> {
        let judge = judge(config);
        let engine = self.judge_engine(judge.as_ref()).await?;
        dpo_model(config, judge, engine)
    }

    /// Loads the model that says how good candidates are. Where it was not asked for by name, it may be missing.
    async fn judge_engine(&self, judge: Option<&Judge>) -> anyhow::Result<Option<Arc<dyn Backend>>> {
        let Some(Judge { spec, is_wanted }) = judge else { return Ok(None) };
        let model = Some(spec.to_string());
        let backend =
            BackendConfig { name: "quality".to_owned(), model, ..BackendConfig::of_kind(BackendKind::Candle) };
        match self.candle(&backend).await {
            Err(error) if !is_wanted => {
                tracing::warn!(
                    error = format!("{error:#}"), model = %spec,
                    "the model that says how good candidates are is not there; see uniqueness.quality_model"
                );
                Ok(None)
            }
            loaded => loaded.map(Some).with_context(|| format!("uniqueness.quality_model {spec}")),
        }
    }

    async fn engine(&self, backend: &BackendConfig, candidates: usize) -> anyhow::Result<Arc<dyn Backend>> {
        match backend.kind {
            BackendKind::Echo => {
                let model = model_name(backend);
                let config = EchoConfig {
                    name: backend.name.clone(),
                    model,
                    context_tokens: backend.context_tokens,
                    ..EchoConfig::default()
                };
                let timeout = TimeoutConfig { max: Some(backend.timeout), ..TimeoutConfig::default() };
                Ok(Arc::new(Timeout::new(Arc::new(Echo::with_config(config)), timeout)))
            }
            BackendKind::Candle => self.candle(backend).await,
            BackendKind::OpenAi => self.openai(backend, candidates),
            BackendKind::Recorded => recorded(backend).await,
        }
    }

    #[cfg(feature = "candle")]
    async fn candle(&self, backend: &BackendConfig) -> anyhow::Result<Arc<dyn Backend>> {
        use idiolect_backend_candle::CandleBackend;

        let spec: Spec = model_name(backend).parse()?;
        let files = self.resolver.resolve(&spec, self.progress).await?;
        models::read_ahead(&files).await;
        let weights = files.weights().with_context(|| format!("model {spec} has no file of weights"))?.to_path_buf();
        let mut config = candle::settings(backend);
        config.model = Some(model_name(backend));
        config.device = backend.device.parse()?;
        let began = std::time::Instant::now();
        let loaded = blocking(move || CandleBackend::load(&weights, config)).await?;
        let loaded = match loaded {
            // Most errors name the file, which a path gives away already.
            Err(error) if error.to_string().contains(&spec.to_string()) => return Err(error.into()),
            loaded => loaded.with_context(|| format!("model {spec}"))?,
        };
        tracing::info!(backend = backend.name, model = %spec, load_ms = elapsed_ms(began), "model is loaded");
        Ok(Arc::new(loaded))
    }

    #[cfg(not(feature = "candle"))]
    async fn candle(&self, backend: &BackendConfig) -> anyhow::Result<Arc<dyn Backend>> {
        anyhow::bail!("this build has no candle, which backend {} needs; build with --features candle", backend.name)
    }

    #[cfg(feature = "openai")]
    fn openai(&self, backend: &BackendConfig, candidates: usize) -> anyhow::Result<Arc<dyn Backend>> {
        use idiolect_backend_openai::{Flavour, KeySource, OpenAiBackend, OpenAiConfig};

        let mut config = OpenAiConfig::new(model_name(backend));
        config.name.clone_from(&backend.name);
        config.flavour = backend.flavour.as_str().parse::<Flavour>()?;
        config.context_tokens = backend.context_tokens;
        if backend.prompt_price > 0.0 || backend.completion_price > 0.0 {
            config.prices = Some(Prices::per_million_dollars(backend.prompt_price, backend.completion_price));
        }
        let server = &mut config.server;
        server.key = match (&backend.key_env, &backend.key_file) {
            (Some(name), _) => KeySource::Env(name.clone()),
            (None, Some(path)) => KeySource::File(path.clone()),
            // The key for OpenAI is nobody else's business.
            (None, None) if backend.base_url.is_none() => KeySource::Env("OPENAI_API_KEY".to_owned()),
            (None, None) => KeySource::None,
        };
        if let Some(url) = &backend.base_url {
            server.base_url.clone_from(url);
        }
        server.timeouts.whole = backend.timeout;
        server.timeouts.first_byte = server.timeouts.first_byte.min(backend.timeout);
        server.retries.num_retries = backend.max_retries;
        server.max_parallel_requests = backend.max_parallel_requests.unwrap_or(backend.max_concurrent.max(candidates));
        Ok(Arc::new(OpenAiBackend::new(config)?))
    }

    #[cfg(not(feature = "openai"))]
    fn openai(&self, backend: &BackendConfig, _: usize) -> anyhow::Result<Arc<dyn Backend>> {
        anyhow::bail!("this build has no openai, which backend {} needs; build with --features openai", backend.name)
    }

    /// Loads the encoder alone; `None` where the configuration has it off.
    ///
    /// # Errors
    /// When it cannot be found, fetched or loaded.
    pub async fn encoder(&self, config: &Config) -> anyhow::Result<Option<Arc<dyn Embedder>>> {
        let alias = match config.uniqueness.encoder {
            EncoderKind::Off => return Ok(None),
            EncoderKind::OpenAi => return served_encoder(&config.uniqueness).map(Some),
            kind => kind.as_str(),
        };
        let files = self.resolver.resolve(&alias.parse::<Spec>()?, self.progress).await?;
        models::read_ahead(&files).await;
        let began = std::time::Instant::now();
        let encoder = load_encoder(alias, &files.dir, &config.uniqueness.device).await?;
        tracing::info!(encoder = alias, load_ms = elapsed_ms(began), "encoder is loaded");
        Ok(Some(encoder))
    }
}

fn member(config: &Config, backend: &BackendConfig, engine: Arc<dyn Backend>) -> Member {
    let mut wrapped = engine;
    if let Some(dollars) = backend.spending_cap {
        let ledger = FileLedger::new(config.data_dir.join(format!("spending-{}.json", backend.name)));
        let prices = Prices::per_million_dollars(backend.prompt_price, backend.completion_price);
        let spending = SpendingConfig { per_day: micro_dollars(dollars), prices };
        wrapped = Arc::new(SpendingCap::new(wrapped, spending, Arc::new(ledger)));
    }
    // Outside the cap: what waits for its turn reserves no money.
    let limits = LimitConfig { max_concurrent: backend.max_concurrent, ..LimitConfig::default() };
    let wrapped = Arc::new(Limit::new(wrapped, limits));
    Member::new(&backend.name, wrapped).weight(backend.weight).rpm(backend.rpm)
}

/// The model that says how good candidates are.
struct Judge {
    spec: Spec,
    /// Whether the configuration names it.
    is_wanted: bool,
}

fn dpo_model(
    config: &Config,
    judge: Option<Judge>,
    engine: Option<Arc<dyn Backend>>,
) -> anyhow::Result<Option<(Arc<dyn RewardModel>, String)>> {
    let (Some(judge), Some(engine)) = (judge, engine) else { return Ok(None) };
    let rules = Profile::find(&config.uniqueness.profile).context("uniqueness.profile")?.dpo;
    Ok(Some((Arc::new(DpoModel::new(engine, rules)), judge.spec.to_string())))
}

/// Returns which model says how good candidates are, if any.
fn judge(config: &Config) -> Option<Judge> {
    match &config.uniqueness.quality_model {
        QualityModel::Off => None,
        QualityModel::Model(spec) => Some(Judge { spec: spec.clone(), is_wanted: true }),
        QualityModel::Auto => {
            let is_compared = config.uniqueness.encoder != EncoderKind::Off && config.candidates.count > 1;
            let is_real = config.backends.iter().any(|backend| backend.kind != BackendKind::Echo);
            let spec = idiolect_models::DEFAULT_MODEL.parse().ok()?;
            (is_compared && is_real && cfg!(feature = "candle")).then_some(Judge { spec, is_wanted: false })
        }
    }
}

/// Makes the encoder that a server has. Nothing is asked of it yet.
#[cfg(feature = "openai")]
fn served_encoder(config: &UniquenessSection) -> anyhow::Result<Arc<dyn Embedder>> {
    use idiolect_backend_openai::{Flavour, KeySource, OpenAiEmbedder, OpenAiEmbedderConfig};

    let model = config
        .encoder_model
        .as_deref()
        .context("uniqueness.encoder is openai, which needs uniqueness.encoder_model")?;
    let dimensions =
        config.encoder_dimensions.context("uniqueness.encoder is openai, which needs uniqueness.encoder_dimensions")?;
    let mut encoder = OpenAiEmbedderConfig::new(model, dimensions);
    encoder.send_dimensions = config.encoder_send_dimensions;
    encoder.flavour = config.encoder_flavour.as_str().parse::<Flavour>()?;
    let server = &mut encoder.server;
    server.key = match (&config.encoder_key_env, &config.encoder_url) {
        (Some(name), _) => KeySource::Env(name.clone()),
        // The key for OpenAI is nobody else's business.
        (None, None) => KeySource::Env("OPENAI_API_KEY".to_owned()),
        (None, Some(_)) => KeySource::None,
    };
    if let Some(url) = &config.encoder_url {
        server.base_url.clone_from(url);
    }
    server.timeouts.whole = config.encoder_timeout;
    Ok(Arc::new(OpenAiEmbedder::new(encoder).with_context(|| format!("encoder {model}"))?))
}

/// Makes the encoder that a server has, which this build cannot.
#[cfg(not(feature = "openai"))]
fn served_encoder(_: &UniquenessSection) -> anyhow::Result<Arc<dyn Embedder>> {
    anyhow::bail!("this build has no openai, which the encoder needs; build with --features openai")
}

/// Loads the encoder in a folder; `alias` is what messages call it.
///
/// # Errors
/// When it cannot be loaded.
#[cfg(feature = "candle")]
pub async fn load_encoder(alias: &str, dir: &Path, device: &str) -> anyhow::Result<Arc<dyn Embedder>> {
    use idiolect_backend_candle::{EncoderConfig, SentenceEncoder};

    let dir = dir.to_path_buf();
    let mut config = EncoderConfig::default();
    config.device = device.parse()?;
    let loaded = blocking(move || SentenceEncoder::load_with(&dir, config)).await?;
    Ok(Arc::new(loaded.with_context(|| format!("encoder {alias}"))?))
}

/// Loads the encoder in a folder, which this build cannot.
///
/// # Errors
/// Always.
#[cfg(not(feature = "candle"))]
pub async fn load_encoder(alias: &str, _: &Path, _: &str) -> anyhow::Result<Arc<dyn Embedder>> {
    anyhow::bail!(
        "this build has no candle, which encoder {alias} needs; choose --encoder off, or build with --features candle"
    )
}

/// Reads the replies of a record.
async fn recorded(backend: &BackendConfig) -> anyhow::Result<Arc<dyn Backend>> {
    let (name, spec) = (backend.name.clone(), model_name(backend).parse::<RecordedSpec>()?);
    Ok(Arc::new(blocking(move || RecordedBackend::open(name, &spec)).await??))
}

/// Runs work that blocks on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("loading broke off")
}

/// Returns the model's name as configuration gives it.
fn model_name(backend: &BackendConfig) -> String {
    backend.model.clone().unwrap_or_else(|| match backend.kind {
        BackendKind::Candle => idiolect_models::DEFAULT_MODEL.to_owned(),
        BackendKind::Echo | BackendKind::OpenAi | BackendKind::Recorded => backend.kind.as_str().to_owned(),
    })
}

fn pool_config(config: &Config) -> PoolConfig {
    let strategy = match config.pool.strategy {
        // Each request names who should answer it.
        PoolStrategy::Fallback | PoolStrategy::Spread => Strategy::Fallback,
        PoolStrategy::RoundRobin => Strategy::RoundRobin,
        PoolStrategy::LeastBusy => Strategy::LeastBusy,
    };
    PoolConfig { strategy, first_byte_timeout: config.pool.first_byte_timeout, ..PoolConfig::default() }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "settings are checked not to be negative; too much saturates"
)]
fn micro_dollars(dollars: f64) -> u64 {
    (dollars * 1e6).round() as u64
}

fn elapsed_ms(since: std::time::Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
