//! Putting the miner together, serving, and stopping.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use idiolect_axon::metagraph::{MetagraphFile, MetagraphView, Stage, StageAges};
use idiolect_axon::nonces::NoncePersister;
use idiolect_axon::policy::StandardPolicy;
use idiolect_axon::{Axon, AxonError};
use idiolect_backend::{Backend as _, Health as BackendHealth, Pool};
use idiolect_models::Progress;
use idiolect_pipeline::{Parts, Pipeline};
use idiolect_protocol::{Hotkey, Keypair, SystemClock, Verifier};
use idiolect_uniqueness::store;
use serde_json::{Value, json};
use sqlx::SqlitePool;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use crate::backends::{Engines, Loader};
use crate::capped::Capped;
use crate::config::{Config, Network};
use crate::identity::{self, Identity};
use crate::metrics_server::{Health, MetricsServer};
use crate::{history, metrics_server, models, settings, telemetry};

/// How often a metagraph snapshot is looked at.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(30);
/// The store's file in the data directory.
const STORE_FILE: &str = "idiolect.sqlite";

/// What makes replies: everything but the network.
#[derive(Debug)]
pub struct Core {
    /// Makes the replies.
    pub pipeline: Arc<Pipeline>,
    /// The backends and the encoder.
    pub engines: Engines,
    store: SqlitePool,
}

impl Core {
    /// Opens the store, loads the models and puts the pipeline together.
    ///
    /// # Errors
    /// What could not be opened, fetched or loaded, and what to do about it.
    pub async fn load(
        config: &Config,
        env: &BTreeMap<String, String>,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let library_file = settings::library_file(config)?;
        let library = settings::library(config)?;
        let pipeline_config = settings::pipeline(config)?;
        let store = open_store(&config.data_dir).await?;
        let resolver = models::resolver(&config.models, env)?;
        let shared_history = match &config.uniqueness.shared_history {
            Some(place) => Some(history::open(place).await?),
            None => None,
        };
        let engines = Loader { resolver: &resolver, progress }.load(config).await?;
        let panels = match (&config.uniqueness.panel, &engines.encoder) {
            (Some(path), Some(encoder)) => Some(Arc::new(history::panels(path, &**encoder).await?)),
            _ => None,
        };
        let distinctiveness = match (&config.uniqueness.distinctiveness, &engines.encoder) {
            (Some(path), Some(_)) => Some(Arc::new(history::distinctiveness(path)?)),
            _ => None,
        };
        let paraphraser = settings::paraphraser(config, &library, &engines.pool);
        let parts = Parts {
            embedder: engines.encoder.clone(),
            shared_history,
            panels,
            distinctiveness,
            library: Arc::new(library),
            library_file,
            learner: settings::learner(config)?,
            store: Some(store.clone()),
            paraphraser,
            reward: engines.quality.as_ref().map(|(model, _)| Arc::clone(model)),
            ..Parts::new(engines.pool.clone())
        };
        let pipeline = Pipeline::start(pipeline_config, parts).await.context("the pipeline cannot start")?;
        Ok(Self { pipeline: Arc::new(pipeline), engines, store })
    }

    /// Writes down what is not on record yet and closes the store.
    pub async fn close(self) {
        self.pipeline.flush().await;
        self.store.close().await;
    }
}

/// Opens the store of a data directory, making it where there is none.
///
/// # Errors
/// When directory or file cannot be used.
pub async fn open_store(data_dir: &Path) -> anyhow::Result<SqlitePool> {
    let hint = || format!("the data directory {} cannot be used; choose another with --data-dir", data_dir.display());
    store::open(&store_path(data_dir)).await.with_context(hint)
}

/// Returns the store's file.
#[must_use]
pub fn store_path(data_dir: &Path) -> PathBuf {
    data_dir.join(STORE_FILE)
}

/// A miner that serves.
#[derive(Debug)]
pub struct Miner {
    core: Core,
    identity: Identity,
    address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    status: Arc<Status>,
    stop: watch::Sender<bool>,
    axon: JoinHandle<Result<(), AxonError>>,
    nonces: JoinHandle<anyhow::Result<()>>,
    background: Background,
}

impl Miner {
    /// Starts a miner: when this returns, the axon answers.
    ///
    /// # Errors
    /// What could not be started, and what to do about it.
    pub async fn start(
        config: &Config,
        env: &BTreeMap<String, String>,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let listen = SocketAddr::new(config.axon.ip, config.axon.port);
        check_free(listen)?;
        if let Some(addr) = config.metrics.addr {
            metrics_server::check_free(addr)?;
        }
        let identity = identity::find_or_make(config)?;
        let hotkey = identity.keypair.hotkey();
        let clock = Arc::new(SystemClock);
        let mut background = Background::default();

        let metagraph = match &config.network {
            Network::File(path) => {
                let file = MetagraphFile::open(path, StageAges::default(), clock.clone()).with_context(|| {
                    format!("the metagraph snapshot {} cannot be used; see --network file:PATH", path.display())
                })?;
                let view = file.view();
                check_netuid(config, view.origin().0)?;
                if view.neuron(&hotkey).is_none() {
                    tracing::warn!(%hotkey, "the snapshot does not know this hotkey: nobody will ask for it");
                }
                if view.stage() != Stage::Fresh {
                    let hours = view.origin().2.as_secs() / 3600;
                    tracing::warn!(
                        hours,
                        stage = view.stage().as_str(),
                        "the snapshot is old: write a new one; see docs/operating.md, Networks"
                    );
                }
                background.spawn(file.watch(SNAPSHOT_EVERY));
                Some(Arc::new(view) as Arc<dyn MetagraphView>)
            }
            Network::None => None,
            Network::Chain(name) => bail!("network is {name}, but this build cannot reach a chain"),
        };
        let policy = Arc::new(StandardPolicy::new(hotkey, settings::rules(config), metagraph));

        let core = Core::load(config, env, progress).await?;
        let (nonces, persister) =
            NoncePersister::open(core.store.clone(), &hotkey, config.axon.nonce_capacity, clock.clone())
                .await
                .context("the store of nonces cannot be opened")?;
        let verifier = Verifier::new(hotkey, settings::limits(config), clock, nonces);
        let handler =
            Arc::new(Capped::new(core.pipeline.clone(), config.pipeline.cap.saturating_sub(config.pipeline.margin)));
        let axon = Axon::bind(settings::axon(config), verifier, policy, handler)
            .await?
            .signed_by(Arc::new(identity.keypair.clone()));
        let address = axon.local_addr();

        let status = Arc::new(Status::new(config, &core, hotkey));
        let metrics_address = match config.metrics.addr {
            Some(addr) => {
                let metrics = telemetry::metrics()?;
                let server = MetricsServer::bind(addr, metrics.clone(), status.clone()).await?;
                let bound = server.local_addr().context("the metrics server has no address")?;
                background.spawn(server.run());
                background.spawn(telemetry::upkeep(metrics, core.engines.pool.clone()));
                Some(bound)
            }
            None => None,
        };
        telemetry::started();

        let (stop, _) = watch::channel(false);
        let axon = tokio::spawn(axon.run(stopped(stop.subscribe())));
        let (axon_done, nonces_stop) = watch::channel(false);
        let axon = tokio::spawn(async move {
            let done = axon.await;
            axon_done.send_replace(true);
            done.unwrap_or(Err(AxonError::Config("the axon broke off")))
        });
        let nonces = tokio::spawn(async move {
            persister.run(stopped(nonces_stop)).await.context("the last nonces could not be written")
        });
        status.is_serving.store(true, Ordering::SeqCst);
        telemetry::ready(true);
        Ok(Self { core, identity, address, metrics_address, status, stop, axon, nonces, background })
    }

    /// Returns the address that the axon listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns an address under which this machine reaches the axon.
    #[must_use]
    pub fn own_address(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            ip if !ip.is_unspecified() => ip,
            ip if ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
            _ => Ipv6Addr::LOCALHOST.into(),
        };
        SocketAddr::new(ip, self.address.port())
    }

    /// Returns the address of `/metrics` and `/healthz`, unless they are off.
    #[must_use]
    pub const fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Returns the miner's public key.
    #[must_use]
    pub const fn hotkey(&self) -> Hotkey {
        self.identity.keypair.hotkey()
    }

    /// Returns the miner's key and where it comes from.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the miner's key.
    #[must_use]
    pub const fn keypair(&self) -> &Keypair {
        &self.identity.keypair
    }

    /// Returns the models, by the names that configuration gives them.
    #[must_use]
    pub fn models(&self) -> &[String] {
        &self.core.engines.models
    }

    /// Returns what makes the replies.
    #[must_use]
    pub fn pipeline(&self) -> &Arc<Pipeline> {
        &self.core.pipeline
    }

    /// Returns once the axon has ended by itself, which it never should.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        (&mut self.axon).await.context("the axon broke off")??;
        Ok(())
    }

    /// Stops: takes no more requests, finishes those that run, writes down nonces and records.
    ///
    /// # Errors
    /// When the nonces could not be written.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.status.is_serving.store(false, Ordering::SeqCst);
        telemetry::ready(false);
        self.stop.send_replace(true);
        let served = if self.axon.is_finished() { Ok(()) } else { self.ended().await };
        let nonces = self.nonces.await.context("the keeper of nonces broke off");
        drop(self.background);
        self.core.close().await;
        served.and(nonces?)
    }
}

/// Tasks that end with the miner, or with its failure to start.
#[derive(Debug, Default)]
struct Background(Vec<AbortHandle>);

impl Background {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push(tokio::spawn(task).abort_handle());
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // A sender that is gone means that the miner is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Refuses an address that another program has, before anything is fetched for it.
fn check_free(address: SocketAddr) -> Result<(), AxonError> {
    std::net::TcpListener::bind(address).map(drop).map_err(|source| AxonError::Bind { address, source })
}

fn check_netuid(config: &Config, found: u16) -> anyhow::Result<()> {
    match config.netuid {
        Some(netuid) if netuid != found => {
            bail!(
                "netuid is {netuid}, but the metagraph snapshot is of subnet {found}; use the right snapshot or --netuid {found}"
            )
        }
        _ => Ok(()),
    }
}

/// What `/healthz` shows.
#[derive(Debug)]
struct Status {
    is_serving: AtomicBool,
    pool: Arc<Pool>,
    facts: Value,
}

impl Status {
    fn new(config: &Config, core: &Core, hotkey: Hotkey) -> Self {
        let facts = json!({
            "version": env!("CARGO_PKG_VERSION"), "hotkey": hotkey.to_string(), "network": config.network.to_string(),
            "models": core.engines.models, "encoder": config.uniqueness.encoder.as_str(),
            "quality_model": core.engines.quality.as_ref().map(|(_, name)| name),
            "shared_history": config.uniqueness.shared_history.as_ref().map(ToString::to_string),
        });
        Self { is_serving: AtomicBool::new(false), pool: core.engines.pool.clone(), facts }
    }
}

#[async_trait::async_trait]
impl Health for Status {
    async fn health(&self) -> (bool, Value) {
        let is_serving = self.is_serving.load(Ordering::SeqCst);
        let backend = self.pool.health().await;
        let is_well = is_serving && backend == BackendHealth::Ready;
        let members = self.pool.members().into_iter().map(|m| {
            json!({
                "name": m.name, "model": m.model, "in_flight": m.in_flight, "requests": m.requests_total, "failures": m.failures_total,
                "cooling_s": m.cooldown.map(|left| left.as_secs_f64()), "last_error": m.last_error.map(|kind| format!("{kind:?}")),
            })
        });
        let mut body = self.facts.clone();
        body["status"] = json!(if is_well { "ok" } else { "unavailable" });
        body["serving"] = json!(is_serving);
        if let BackendHealth::Unavailable(why) = backend {
            body["why"] = json!(why);
        }
        body["backends"] = json!(members.collect::<Vec<_>>());
        (is_well, body)
    }
}
