//! The asking side: a client that speaks every generation of the protocol as the real clients do.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use idiolect_protocol::dendrite::{Dendrite, QueryOptions, Target, Via};
//! use idiolect_protocol::{Keypair, Message, Prompt, Role};
//!
//! let dendrite = Dendrite::new(Keypair::from_uri("//Bob")?);
//! let miner = Target::new("127.0.0.1:8091", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY".parse()?)?;
//! let prompt = Prompt::new(vec![Message::new(Role::User, "What is the capital of France?")])?;
//! let reply = dendrite.query(&miner, Via::Http, &prompt, &QueryOptions::default()).await?;
//! println!("{} ({:?})", reply.text, reply.elapsed);
//! # Ok(())
//! # }
//! ```
//!
//! Load generators build requests ahead of time and send them by other means: see [`Dendrite::signed_request`].

mod chat;
mod error;
mod rpc;
mod send;
mod session;
mod synapse;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderMap, Request};
use tonic::transport::Channel;

pub use error::DendriteError;

use crate::openai::{AvailabilityReply, TokenLogprob};
use crate::{Clock, Hotkey, Keypair, Prompt, SystemClock};

/// How a question travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// bittensor 5: gRPC `Forward`.
    Grpc,
    /// bittensor 7.2 to 10: an HTTP synapse.
    Http,
    /// The same with a streamed reply.
    Stream,
    /// macrocosm's validators: streamed chat completion with Epistula headers.
    Epistula,
    /// bittensor 11: chat completion with btauth headers.
    Btauth,
}

impl Via {
    /// All ways.
    pub const ALL: [Self; 5] = [Self::Grpc, Self::Http, Self::Stream, Self::Epistula, Self::Btauth];

    /// Returns the name used on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Stream => "stream",
            Self::Epistula => "epistula",
            Self::Btauth => "btauth",
        }
    }
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text names no [`Via`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown way {0:?}, expected grpc, http, stream, epistula or btauth")]
pub struct ViaError(String);

impl FromStr for Via {
    type Err = ViaError;

    fn from_str(name: &str) -> Result<Self, ViaError> {
        Self::ALL
            .into_iter()
            .find(|via| via.as_str().eq_ignore_ascii_case(name))
            .ok_or_else(|| ViaError(name.chars().take(32).collect()))
    }
}

/// A miner: where it listens, and the key that requests are signed for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    authority: Authority,
    port: u16,
    hotkey: Hotkey,
}

impl Target {
    /// Makes a target of `HOST:PORT` (`[::1]:8091` for IPv6) and a key.
    ///
    /// # Errors
    /// [`DendriteError::BadAddress`].
    pub fn new(address: &str, hotkey: Hotkey) -> Result<Self, DendriteError> {
        let bad_address = || DendriteError::BadAddress { address: address.chars().take(256).collect() };
        let authority: Authority = address.parse().map_err(|_| bad_address())?;
        let port = authority.port_u16().ok_or_else(bad_address)?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(bad_address());
        }
        Ok(Self { authority, port, hotkey })
    }

    /// Returns `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        self.authority.as_str()
    }

    /// Returns the host alone.
    #[must_use]
    pub fn host(&self) -> &str {
        self.authority.host()
    }

    /// Returns the port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the key.
    #[must_use]
    pub const fn hotkey(&self) -> &Hotkey {
        &self.hotkey
    }
}

impl From<(std::net::SocketAddr, Hotkey)> for Target {
    fn from((address, hotkey): (std::net::SocketAddr, Hotkey)) -> Self {
        // The text of a socket address is an authority.
        let authority =
            Authority::try_from(address.to_string()).unwrap_or_else(|_| Authority::from_static("0.0.0.0:0"));
        Self { authority, port: address.port(), hotkey }
    }
}

/// What to ask besides the prompt. A field that a way of asking knows nothing of is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryOptions {
    /// How long to wait for the whole reply. Default 12 s, as in bittensor.
    pub timeout: Duration,
    /// The HTTP synapse. Default `Prompting`, or `StreamPrompting` for [`Via::Stream`].
    pub synapse: Option<String>,
    /// The model.
    pub model: Option<String>,
    /// The seed.
    pub seed: Option<u64>,
    /// The task's name, such as `InferenceTask`.
    pub task: Option<String>,
    /// The `sampling_parameters` object of Epistula.
    pub sampling_parameters: Option<serde_json::Map<String, serde_json::Value>>,
    /// Log-probabilities, with this many alternatives a token.
    pub logprobs: Option<u8>,
    /// Ask for a streamed reply over [`Via::Btauth`]. Epistula's are always streamed.
    pub stream: bool,
    /// Longest reply that is read, in bytes. Default 4 MiB.
    pub max_reply_bytes: usize,
}

impl Default for QueryOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(12),
            synapse: None,
            model: None,
            seed: None,
            task: None,
            sampling_parameters: None,
            logprobs: None,
            stream: false,
            max_reply_bytes: 4 << 20,
        }
    }
}

/// A reply that holds what was asked for.
#[derive(Clone)]
#[non_exhaustive]
pub struct DendriteReply {
    /// The completion.
    pub text: String,
    /// The status that the miner gave: 200.
    pub status_code: u16,
    /// What it said to it, mostly `Success`.
    pub status_message: String,
    /// Time from sending to the end of the reply.
    pub elapsed: Duration,
    /// Time from sending to the first byte of the body.
    pub first_byte: Duration,
    /// Pieces that a streamed reply came in; 1 otherwise.
    pub n_pieces: usize,
    /// The reply's headers, or its metadata.
    pub headers: HeaderMap,
    /// The model that says it spoke.
    pub model: Option<String>,
    /// Why the text ends, where the reply says so.
    pub finish_reason: Option<String>,
    /// Log-probabilities of the text's tokens, where they came with it.
    pub logprobs: Vec<TokenLogprob>,
}

/// Completions stay out of logs.
impl fmt::Debug for DendriteReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DendriteReply")
            .field("text_bytes", &self.text.len())
            .field("status_code", &self.status_code)
            .field("status_message", &self.status_message)
            .field("elapsed", &self.elapsed)
            .field("first_byte", &self.first_byte)
            .field("n_pieces", &self.n_pieces)
            .finish_non_exhaustive()
    }
}

/// A client with a key of its own. Clones share connections and session.
#[derive(Clone)]
pub struct Dendrite {
    keypair: Keypair,
    sessions: session::Sessions,
    http: send::HttpClient,
    channels: Arc<Mutex<HashMap<Authority, Channel>>>,
}

impl fmt::Debug for Dendrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dendrite").field("keypair", &self.keypair).finish_non_exhaustive()
    }
}

impl Dendrite {
    /// Makes a client that signs with `keypair`. Connections are kept and used again.
    #[must_use]
    pub fn new(keypair: Keypair) -> Self {
        Self { keypair, sessions: session::Sessions::default(), http: send::client(), channels: Arc::default() }
    }

    /// Returns the key that requests are signed with.
    #[must_use]
    pub const fn hotkey(&self) -> Hotkey {
        self.keypair.hotkey()
    }

    /// Asks a miner to continue a conversation.
    ///
    /// # Errors
    /// [`DendriteError`]: no connection, no answer in time, a refusal with its status, or an answer that makes no sense.
    ///
    /// # Cancellation
    /// Dropping the future closes or resets the request.
    pub async fn query(
        &self,
        target: &Target,
        via: Via,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<DendriteReply, DendriteError> {
        let within = options.timeout;
        let answer = async {
            match via {
                Via::Grpc => self.grpc_forward(target, prompt, options).await,
                Via::Http | Via::Stream => self.ask_synapse(target, via, prompt, options).await,
                Via::Epistula | Via::Btauth => self.ask_chat(target, via, prompt, options).await,
            }
        };
        in_time(within, answer).await
    }

    /// Asks whether a miner is there at all (the HTTP synapse `Synapse`), and returns how long it took.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn ping(&self, target: &Target, timeout: Duration) -> Result<Duration, DendriteError> {
        in_time(timeout, self.ask_ping(target, timeout)).await
    }

    /// Asks which of some tasks and models a miner serves: unsigned at `/availability` for [`Via::Epistula`], by the
    /// HTTP synapse `AvailabilitySynapse` for any other way.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn availability(
        &self,
        target: &Target,
        via: Via,
        tasks: &[String],
        models: &[String],
        timeout: Duration,
    ) -> Result<AvailabilityReply, DendriteError> {
        in_time(timeout, async {
            match via {
                Via::Epistula => self.ask_availability_unsigned(target, tasks, models).await,
                _ => self.ask_availability(target, tasks, models, timeout).await,
            }
        })
        .await
    }

    /// Asks for several completions over gRPC, best first.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn multi_forward(
        &self,
        target: &Target,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<Vec<String>, DendriteError> {
        in_time(options.timeout, self.grpc_multi_forward(target, prompt, options)).await
    }

    /// Tells a miner over gRPC how a completion of its own was scored.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn backward(
        &self,
        target: &Target,
        prompt: &Prompt,
        completion: &str,
        rewards: &[f32],
        timeout: Duration,
    ) -> Result<(), DendriteError> {
        in_time(timeout, self.grpc_backward(target, prompt, completion, rewards, timeout)).await
    }

    /// Asks the standard gRPC health service, which needs no signature; `service` may be empty.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn grpc_health(&self, target: &Target, service: &str, timeout: Duration) -> Result<bool, DendriteError> {
        in_time(timeout, self.ask_health(target, service, timeout)).await
    }

    /// Signs a question now, to be sent later by other means: over HTTP/1.1, or for [`Via::Grpc`] over HTTP/2 (the body
    /// is framed as gRPC has it). The URI is absolute.
    ///
    /// Miners take a request only for a few seconds after it was signed, and once; gRPC ones for as long as no later
    /// request of this client arrived.
    ///
    /// # Errors
    /// [`DendriteError::BadRequest`] for options that make no request.
    pub fn signed_request(
        &self,
        target: &Target,
        via: Via,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<Request<Bytes>, DendriteError> {
        match via {
            Via::Grpc => self.grpc_request(&self.sessions.take(), target, prompt, options),
            Via::Http | Via::Stream => self.synapse_request(&self.sessions.take(), target, via, prompt, options),
            Via::Epistula | Via::Btauth => self.chat_request(target, via, prompt, options),
        }
    }
}

async fn in_time<T>(
    timeout: Duration,
    answer: impl Future<Output = Result<T, DendriteError>>,
) -> Result<T, DendriteError> {
    tokio::time::timeout(timeout, answer).await.unwrap_or(Err(DendriteError::Timeout { after: timeout }))
}

/// Returns the wall clock in nanoseconds, made to grow by at least a microsecond with each call of this process: servers
/// take nonces only as they grow, and some take two close ones for one.
fn next_nonce() -> i64 {
    static LAST: AtomicI64 = AtomicI64::new(0);
    grow(&LAST, i64::try_from(SystemClock.now_ns()).unwrap_or(i64::MAX))
}

/// Returns a counter for gRPC, made as bittensor 5 makes it: nanoseconds of a clock that has nothing to do with the time of
/// day. Each process opens sessions of its own, so it may begin anywhere.
fn next_counter() -> i64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    static LAST: AtomicI64 = AtomicI64::new(0);
    grow(&LAST, i64::try_from(START.elapsed().as_nanos()).unwrap_or(i64::MAX))
}

/// Moves a nonce on to `now`, or by a microsecond where that is not ahead.
fn grow(last: &AtomicI64, now: i64) -> i64 {
    let next = |last: i64| now.max(last.saturating_add(1000));
    match last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last))) {
        Ok(last) | Err(last) => next(last),
    }
}

#[cfg(test)]
mod tests;
