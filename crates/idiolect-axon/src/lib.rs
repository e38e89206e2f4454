//! The served axon of a Bittensor miner, for any handler: one port for every generation of client.
//!
//! | client | speaks | reaches the handler as |
//! | --- | --- | --- |
//! | bittensor 5 | gRPC `TextPrompting` | [`Handler::forward`], [`Handler::backward`] |
//! | bittensor 6 to 10 | HTTP synapses, plain and streamed | [`Handler::forward`], [`Handler::availability`], [`SynapseHandler`] |
//! | macrocosm 2.13 and later | Epistula on `/v1/chat/completions` | [`Handler::forward`], [`Handler::availability`] |
//! | bittensor 11 | btauth on `/v1/chat/completions` | [`Handler::forward`] |
//!
//! Every request passes the same checks in the same order: size, head, window of time, signature, nonce, [`policy`], hash
//! of the body, a [`queue`] ordered by stake. What is left reaches the [`Handler`] as a [`Call`] with a deadline. Callers
//! that prove no key are told why in a few words and learn nothing else; nothing is ever signed for anybody.
//!
//! # Example
//! A miner that answers every prompt with its length, asked by a client over the wire:
//!
//! ```
//! use std::sync::Arc;
//!
//! use async_trait::async_trait;
//! use idiolect_axon::policy::{Rules, StandardPolicy};
//! use idiolect_axon::{AvailabilityMap, Axon, AxonConfig, Call, Feedback, Handler, HandlerError, Reply};
//! use idiolect_protocol::pb::ForwardTextPromptingRequest;
//! use idiolect_protocol::pb::text_prompting_client::TextPromptingClient;
//! use idiolect_protocol::{Keypair, Limits, NonceStore, SystemClock, Verifier, grpc};
//!
//! #[derive(Debug)]
//! struct Length;
//!
//! #[async_trait]
//! impl Handler for Length {
//!     async fn forward(&self, call: Call) -> Result<Reply, HandlerError> {
//!         let n: usize = call.prompt.messages().iter().map(|message| message.content.len()).sum();
//!         Ok(Reply { completions: vec![format!("{n} bytes")], finish_reason: "stop", ..Reply::default() })
//!     }
//!
//!     async fn backward(&self, _: Feedback) -> Result<(), HandlerError> {
//!         Ok(())
//!     }
//!
//!     async fn availability(&self, _: Vec<String>, _: Vec<String>) -> (AvailabilityMap, AvailabilityMap) {
//!         Default::default()
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (miner, validator) = (Keypair::from_uri("//Alice")?, Keypair::from_uri("//Bob")?);
//! let nonces = Arc::new(NonceStore::new(100_000));
//! let verifier = Verifier::new(miner.hotkey(), Limits::default(), Arc::new(SystemClock), nonces);
//! // No metagraph here: whoever proves a key may ask.
//! let policy = StandardPolicy::new(miner.hotkey(), Rules { allow_any: true, ..Rules::default() }, None);
//! let config = AxonConfig { listen: "127.0.0.1:0".parse()?, ..AxonConfig::default() };
//! let axon = Axon::bind(config, verifier, Arc::new(policy), Arc::new(Length)).await?;
//! let address = axon.local_addr();
//! let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
//! let serving = tokio::spawn(axon.run(async { drop(stopped.await) }));
//!
//! let channel = tonic::transport::Endpoint::try_from(format!("http://{address}"))?.connect().await?;
//! let messages = vec![r#"{"role": "user", "content": "hello"}"#.to_owned()];
//! let mut request =
//!     tonic::Request::new(ForwardTextPromptingRequest { messages, timeout: 12.0, ..Default::default() });
//! let session = "62b764fc-e650-11f1-a3fe-02fc00000001";
//! request.metadata_mut().as_mut().extend(grpc::sign(&validator, &miner.hotkey(), 1, session));
//! let reply = TextPromptingClient::new(channel).forward(request).await?.into_inner();
//! assert_eq!(reply.response, "5 bytes");
//!
//! drop(stop);
//! serving.await??;
//! # Ok(())
//! # }
//! ```
//!
//! # Parts
//! - [`Axon`], [`AxonConfig`]: the listener and its bounds.
//! - [`Handler`]: what a text-prompting miner does; [`SynapseHandler`]: what a miner of another subnet does.
//! - [`policy`]: who is answered, and who first; [`metagraph`]: what is known of the subnet.
//! - [`nonces`]: used nonces on disk, so that a captured request does not work again after a restart.
//! - [`metrics`]: what is counted.
//!
//! # Replies without the headers of a synapse
//! A request whose head cannot be read, or is too large, is answered by hyper before it reaches us: status 400 or 431, no
//! body, and no `bt_header_axon_status_code`. hyper lets nobody shape these replies. None of Bittensor's clients sends such
//! heads; one that did would report a reply that it cannot parse.
//!
//! What it costs is measured by `cargo run --release -p idiolect-axon --example load`.

mod admission;
mod axon;
mod body;
mod chat;
mod config;
mod connection;
mod error;
mod grpc;
mod handler;
mod http;
pub mod metagraph;
pub mod metrics;
pub mod nonces;
mod places;
pub mod policy;
pub mod queue;
mod strangers;
mod synapse;
mod watch;

pub use axon::Axon;
pub use config::AxonConfig;
pub use error::AxonError;
pub use handler::{AvailabilityMap, Call, Dictated, Feedback, Handler, HandlerError, Reply, ReplyLogprob};
pub use synapse::{SynapseAnswer, SynapseCall, SynapseHandler};
