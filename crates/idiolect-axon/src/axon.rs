//! The listener: takes connections within bounds, and stops without losing answers.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use idiolect_protocol::http_synapse::SynapseSpec;
use idiolect_protocol::{Keypair, Verifier};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::admission::Admission;
use crate::config::AxonConfig;
use crate::connection::{self, Services};
use crate::error::AxonError;
use crate::grpc::GrpcServices;
use crate::handler::Handler;
use crate::http::HttpFront;
use crate::metrics as meters;
use crate::places::Places;
use crate::policy::Policy;
use crate::synapse::SynapseHandler;
use crate::watch::Watch;

/// A served axon: one port for every generation of client.
///
/// [`bind`](Self::bind) takes the port, [`run`](Self::run) answers until it is told to stop.
pub struct Axon {
    listener: TcpListener,
    address: SocketAddr,
    admission: Arc<Admission>,
    http: HttpFront,
}

impl fmt::Debug for Axon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Axon").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Axon {
    /// Takes the port of `config`. Peers can connect from now on and are answered once [`run`](Self::run) is called.
    ///
    /// # Errors
    /// [`AxonError::Config`], [`AxonError::Bind`].
    pub async fn bind(
        config: AxonConfig,
        verifier: Verifier,
        policy: Arc<dyn Policy>,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, AxonError> {
        if let Some(fault) = config.fault() {
            return Err(AxonError::Config(fault));
        }
        meters::describe();
        let failed = |source| AxonError::Bind { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let admission = Arc::new(Admission::new(config, verifier, policy, handler));
        let http = HttpFront::new(admission.clone());
        Ok(Self { listener, address, admission, http })
    }

    /// Serves a synapse of another subnet besides those of text prompting.
    ///
    /// # Errors
    /// [`AxonError::DuplicateSynapse`].
    pub fn with_synapse(mut self, spec: SynapseSpec, handler: Arc<dyn SynapseHandler>) -> Result<Self, AxonError> {
        self.http.synapses.add(spec, Some(handler))?;
        Ok(self)
    }

    /// Serves prompts under one more name, made with [`SynapseSpec::prompt`].
    ///
    /// # Errors
    /// [`AxonError::DuplicateSynapse`].
    pub fn with_prompt_synapse(mut self, spec: SynapseSpec) -> Result<Self, AxonError> {
        self.http.synapses.add(spec, None)?;
        Ok(self)
    }

    /// Signs replies to HTTP synapses for the caller that proved its key, as servers of bittensor 6 do. No client of
    /// later generations asks for it. The key must be the one that the verifier expects requests to be addressed to.
    #[must_use]
    pub fn signed_by(mut self, key: Arc<Keypair>) -> Self {
        self.http.synapses.sign_with(key);
        self
    }

    /// Returns the address that is listened on, with the real port where the configured one was 0.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` ends. Then no more requests are taken, health says so, and those that run are finished
    /// within [`AxonConfig::drain`]. Dropping the future drops every connection at once.
    ///
    /// # Errors
    /// None at present: peers' faults end with their connection.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), AxonError> {
        let Self { listener, address, admission, http } = self;
        let grpc = GrpcServices::new(admission.clone()).await;
        let services = Arc::new(Services { admission: admission.clone(), grpc, http });
        let (stop, stopping) = watch::channel(false);
        let mut connections = Connections::new(services.clone(), stopping);
        tracing::info!(%address, "axon is serving");
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => connections.take(stream, peer),
                    Err(error) => {
                        // As a rule there are too many open files; waiting lets some be closed.
                        tracing::warn!(%error, "cannot take a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = connections.tasks.join_next(), if !connections.tasks.is_empty() => {}
            }
        }
        drop(listener);
        let began = Instant::now();
        tracing::info!(in_flight = admission.n_unanswered(), "axon is stopping");
        admission.stop();
        services.grpc.set_not_serving().await;
        let _ = stop.send(true);
        connections.drain(&admission, admission.config.drain).await;
        meters::drained(began.elapsed());
        tracing::info!(took = ?began.elapsed(), "axon has stopped");
        Ok(())
    }
}

/// How long connections may take to close once nothing is in flight any more.
const CLOSING: Duration = Duration::from_secs(1);

struct Connections {
    tasks: JoinSet<()>,
    services: Arc<Services>,
    stopping: watch::Receiver<bool>,
    places: Arc<Places>,
    farewells: Arc<Semaphore>,
}

impl Connections {
    fn new(services: Arc<Services>, stopping: watch::Receiver<bool>) -> Self {
        let config = &services.admission.config;
        let places = Arc::new(Places::new(config.max_connections, config.max_connections_per_ip));
        Self { tasks: JoinSet::new(), services, stopping, places, farewells: Arc::new(Semaphore::new(MAX_FAREWELLS)) }
    }

    fn take(&mut self, stream: TcpStream, peer: SocketAddr) {
        let watch = Watch::new();
        let place = match self.places.enter(network(peer.ip()), watch.clone()) {
            Ok(place) => place,
            Err(why) => {
                meters::connection_refused(why);
                if let Ok(permit) = self.farewells.clone().try_acquire_owned() {
                    self.tasks.spawn(async move {
                        let _permit = permit;
                        let _ = tokio::time::timeout(CLOSING, turn_away(stream)).await;
                    });
                }
                return;
            }
        };
        let _ = stream.set_nodelay(true);
        let serving = connection::serve(stream, peer, watch, self.services.clone(), self.stopping.clone());
        self.tasks.spawn(async move {
            let _place = place;
            serving.await;
        });
    }

    /// Waits for the requests in flight, then shortly for the connections.
    async fn drain(mut self, admission: &Admission, grace: Duration) {
        let gone = async { while self.tasks.join_next().await.is_some() {} };
        let idle = async {
            while admission.n_unanswered() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            tokio::time::sleep(CLOSING).await;
        };
        tokio::select! {
            () = gone => return,
            () = idle => {}
            () = tokio::time::sleep(grace) => {}
        }
        if admission.n_unanswered() > 0 {
            tracing::warn!(in_flight = admission.n_unanswered(), "dropping requests that did not finish in time");
        }
        self.tasks.shutdown().await;
    }
}

/// Connections that are told at one time that there is no room.
const MAX_FAREWELLS: usize = 64;

/// Says 503 and waits until the peer has had a chance to read it: closing with unread bytes would tear it away.
async fn turn_away(mut stream: TcpStream) -> std::io::Result<()> {
    const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
        bt_header_axon_status_code: 503\r\nbt_header_axon_status_message: too many connections\r\n\
        content-length: 34\r\nconnection: close\r\n\r\n{\"message\":\"too many connections\"}";
    stream.write_all(ANSWER).await?;
    stream.shutdown().await?;
    let mut sink = [0; 1024];
    let mut left = 64 << 10;
    while left > 0 {
        match stream.read(&mut sink).await? {
            0 => break,
            n => left -= n.min(left),
        }
    }
    Ok(())
}

/// One household has 2^64 addresses of IPv6: they count as one.
pub(crate) fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => std::net::Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)).into(),
        },
    }
}
