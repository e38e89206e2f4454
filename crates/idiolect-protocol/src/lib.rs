//! Bittensor text-prompting on the wire, for servers and clients, in every generation of client.
//!
//! A request's head makes a [`Claim`]: what it says of itself, believed by nobody. [`Verifier::verify`] proves it and
//! gives a [`Caller`]; there is no other way to one. The body becomes a [`Prompt`] through the type of its generation.
//!
//! ```
//! use std::sync::Arc;
//!
//! use idiolect_protocol::{AuthError, Keypair, Limits, NonceStore, SystemClock, Verifier, btauth};
//!
//! // A validator signs a request for a miner ...
//! let (validator, miner) = (Keypair::from_uri("//Bob")?, Keypair::from_uri("//Alice")?);
//! let request = btauth::SignedParts { method: "POST", target: "/v1/chat/completions", body: b"{}" };
//! let now_ns = i128::try_from(std::time::UNIX_EPOCH.elapsed()?.as_nanos())?;
//! let headers = btauth::sign(&validator, Some(&miner.hotkey()), request, now_ns);
//!
//! // ... and the miner learns who calls: once.
//! let (limits, nonces) = (Limits::default(), Arc::new(NonceStore::new(100_000)));
//! let verifier = Verifier::new(miner.hotkey(), limits, Arc::new(SystemClock), nonces);
//! let claim = btauth::claim(&headers, request, verifier.receiver(), verifier.limits())?;
//! let caller = verifier.verify(claim.clone())?;
//! assert_eq!(*caller.hotkey(), validator.hotkey());
//! assert_eq!(verifier.verify(claim), Err(AuthError::Replayed));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | client | server side | transport |
//! | --- | --- | --- |
//! | bittensor 5.0 to 5.3 | [`grpc`], [`pb`] | gRPC |
//! | bittensor 6.0 to 10 | [`http_synapse`], [`body_hash`] | HTTP |
//! | macrocosm prompting 2.13 and later | [`epistula`], [`openai`] | HTTP, SSE |
//! | bittensor 11 | [`btauth`], [`openai`] | HTTP, SSE |
//!
//! [`dendrite`] is the client of all of them, [`status`] the one table of status codes, [`wallet`] reads key files.
//!
//! Everything that decodes a peer's bytes has a fuzz target: see `fuzz/README.md`.
//!
//! Nothing here listens, connects (but for [`dendrite`]) or keeps files (but for [`wallet`]).

pub mod body_hash;
pub mod btauth;
mod caller;
pub mod dendrite;
pub mod epistula;
mod error;
pub mod grpc;
mod headers;
pub mod http_synapse;
mod json_object;
mod keys;
mod nonce;
pub mod openai;
pub mod pb;
mod prompt;
mod python_json;
mod python_repr;
mod sr25519;
pub mod status;
#[cfg(test)]
mod testdata;
mod verify;
pub mod wallet;

pub use caller::{Caller, Claim, Nonce, Scheme, Transport};
pub use error::{AuthError, Category};
pub use keys::{Hotkey, HotkeyError, KeyError, Keypair};
pub use nonce::{NonceRecord, NonceStore};
pub use prompt::{Message, Prompt, PromptError, Role};
pub use verify::{Clock, Limits, SystemClock, Verifier};
