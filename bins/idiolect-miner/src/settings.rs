//! From the configuration to what each crate wants to know.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use idiolect_axon::AxonConfig;
use idiolect_axon::policy::{OnExpired, Rate, Rules};
use idiolect_backend::{Backend, Pool};
use idiolect_mutation::policy::{Learner, PolicyConfig, PolicyError, PolicyKind, Seed};
use idiolect_mutation::{Library, LibraryFile, ParaphraseConfig, Paraphraser};
use idiolect_pipeline::{PipelineConfig, RecordConfig, StorePrompts};
use idiolect_protocol::Limits;
use idiolect_uniqueness::{Retention, SelectorConfig};
use idiolect_validator::Profile;

use crate::config::{Allowed, Config, Expired, PoolStrategy, PromptRecord, RecipePolicy};

/// RAO in one TAO.
const RAO: f64 = 1e9;

pub(crate) fn axon(config: &Config) -> AxonConfig {
    let axon = &config.axon;
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    AxonConfig {
        listen: SocketAddr::new(axon.ip, axon.port),
        max_body_bytes: size(axon.max_body.0),
        max_header_bytes: size(axon.max_head.0),
        header_timeout: axon.head_timeout,
        body_timeout: axon.body_timeout,
        idle_timeout: axon.idle_timeout,
        write_timeout: axon.write_timeout,
        max_connections: axon.max_connections,
        max_connections_per_ip: axon.max_connections_per_ip,
        max_requests: axon.max_requests,
        max_strangers_per_ip: axon.max_strangers_per_ip,
        max_failures: NonZeroU32::new(axon.max_failures).map(|requests| Rate { requests, per: Duration::from_secs(1) }),
        concurrency: axon.max_workers,
        max_waiting: axon.max_queue,
        margin: config.pipeline.margin,
        default_timeout: axon.default_client_timeout,
        drain: axon.drain_timeout,
        reflection: axon.reflection,
        ..AxonConfig::default()
    }
}

pub(crate) fn limits(config: &Config) -> Limits {
    let transports = &config.transports;
    Limits {
        max_timeout: config.axon.max_client_timeout,
        grpc: transports.grpc,
        grpc_clock_nonces: transports.grpc_clock_nonces,
        http: transports.http,
        legacy_http: transports.legacy_http,
        epistula: transports.epistula,
        btauth: transports.btauth,
        ..Limits::default()
    }
}

pub(crate) fn rules(config: &Config) -> Rules {
    let policy = &config.policy;
    let allowed = policy.allow.iter().filter_map(|allowed| match allowed {
        Allowed::Any => None,
        Allowed::Hotkey(key) => Some(*key),
    });
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked not to be negative; too much saturates"
    )]
    let min_stake_rao = (policy.min_stake * RAO).round() as u64;
    Rules {
        allow: allowed.collect(),
        allow_any: policy.allow.contains(&Allowed::Any),
        deny: policy.deny.iter().copied().collect(),
        allow_unregistered: policy.allow_non_registered,
        require_validator_permit: policy.require_permit,
        min_stake_rao,
        require_axon: policy.require_axon,
        rate: NonZeroU32::new(policy.rate).map(|requests| Rate { requests, per: policy.rate_period }),
        on_expired: match policy.on_expired {
            Expired::AllowList => OnExpired::AllowList,
            Expired::UseAnyway => OnExpired::UseAnyway,
            Expired::RefuseAll => OnExpired::RefuseAll,
        },
        ..Rules::default()
    }
}

/// How often a file of operators is looked at.
const LIBRARY_EVERY: Duration = Duration::from_secs(5);

/// Opens the file of operators, where one is named, and keeps looking at it.
pub(crate) fn library_file(config: &Config) -> anyhow::Result<Option<Arc<LibraryFile>>> {
    let Some(path) = config.mutation.operators.as_ref().filter(|_| config.mutation.enabled) else { return Ok(None) };
    let file = Arc::new(LibraryFile::open(path).context("mutation.operators")?);
    file.watch(LIBRARY_EVERY).context("no thread to watch mutation.operators")?;
    Ok(Some(file))
}

/// Opens what was learnt of recipes.
pub(crate) fn learner(config: &Config) -> anyhow::Result<Option<Arc<Learner>>> {
    // With a seed the same prompts are to get the same recipes, whatever the earlier ones brought.
    let is_repeatable = config.sampling.seed.is_some() || config.mutation.seed.is_some();
    if !config.mutation.enabled || config.mutation.recipes < 2 || is_repeatable {
        return Ok(None);
    }
    let kind = match config.mutation.policy {
        RecipePolicy::Thompson => PolicyKind::Thompson,
        RecipePolicy::Linear => PolicyKind::Linear,
        RecipePolicy::Exp3 => PolicyKind::Exp3,
        RecipePolicy::Uniform => PolicyKind::Uniform,
    };
    let dir = config.data_dir.join("learnt");
    let cannot = || format!("what is learnt of recipes cannot be kept in {}", dir.display());
    std::fs::create_dir_all(&dir).with_context(cannot)?;
    let seed = Seed::read_or_create(&dir.join("seed")).with_context(cannot)?;
    let policy = PolicyConfig { kind, ..PolicyConfig::default() };
    let learner = match Learner::open(policy.clone(), seed.clone(), &dir) {
        // A question asked beside a running miner, or a second miner: it starts anew and forgets.
        Err(PolicyError::InUse { .. }) => {
            tracing::info!("another process learns in this data directory; what this one learns is not kept");
            Learner::in_memory(policy, seed)?
        }
        opened => opened.with_context(cannot)?,
    };
    Ok(Some(Arc::new(learner)))
}

/// Returns what says prompts in other words, where anything may be spent on it.
pub(crate) fn paraphraser(config: &Config, library: &Library, backend: &Arc<Pool>) -> Option<Arc<Paraphraser>> {
    let tokens_per_hour = config.mutation.paraphrase_tokens;
    if !config.mutation.enabled {
        return None;
    }
    if tokens_per_hour == 0 {
        if library.allow_paraphrase() {
            tracing::warn!(
                "mutation.operators allows paraphrases, but mutation.paraphrase_tokens is 0: recipes that want one are left out"
            );
        }
        return None;
    }
    let config = ParaphraseConfig { tokens_per_hour, ..ParaphraseConfig::default() };
    let backend: Arc<dyn Backend> = Arc::<Pool>::clone(backend);
    Some(Arc::new(Paraphraser::new(backend, config)))
}

pub(crate) fn library(config: &Config) -> anyhow::Result<Library> {
    match &config.mutation.operators {
        _ if !config.mutation.enabled => Ok(Library::default()),
        None => Ok(Library::built_in()),
        Some(path) => {
            let library = Library::load(path).context("mutation.operators")?;
            check_backends(config, &library)?;
            Ok(library)
        }
    }
}

/// Operators may choose the backend that answers, by the names that the configuration has.
fn check_backends(config: &Config, library: &Library) -> anyhow::Result<()> {
    let known: Vec<&str> = config.backends.iter().map(|backend| backend.name.as_str()).collect();
    for operator in library.operators() {
        if let Some(chosen) = operator.backend.as_deref().filter(|chosen| !known.contains(chosen)) {
            let (name, known) = (&operator.name, known.join(", "));
            anyhow::bail!(
                "mutation.operators: backend of {name} is {chosen:?}, expected one of the configuration's: {known}"
            );
        }
    }
    Ok(())
}

pub(crate) fn pipeline(config: &Config) -> anyhow::Result<PipelineConfig> {
    let pipeline = &config.pipeline;
    let profile = Profile::find(&config.uniqueness.profile).context("uniqueness.profile")?.gate;
    Ok(PipelineConfig {
        candidates: config.candidates.count,
        recipes: config.mutation.recipes,
        families: match config.pool.strategy {
            PoolStrategy::Spread => config.backends.iter().map(|b| (b.name.clone(), b.weight)).collect(),
            _ => Vec::new(),
        },
        sampling: config.sampling.clone(),
        max_dictated_tokens: pipeline.max_dictated_tokens,
        selector: SelectorConfig { profile, margin: config.uniqueness.margin, ..SelectorConfig::default() },
        history: config.uniqueness.history,
        rivals: config.uniqueness.rivals,
        seed: config.mutation.seed,
        record: RecordConfig {
            store_prompts: match pipeline.store_prompts {
                PromptRecord::All => StorePrompts::All,
                PromptRecord::Hash => StorePrompts::Hash,
                PromptRecord::None => StorePrompts::None,
            },
            store_replies: pipeline.store_replies,
            retention: Retention { max_replies: pipeline.max_replies, max_age: pipeline.retention },
            ..RecordConfig::default()
        },
        ..PipelineConfig::default()
    })
}
