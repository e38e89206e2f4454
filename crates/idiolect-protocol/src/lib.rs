//! Bittensor text-prompting on the wire, for servers and clients, in every generation of client.
//!
//! Requests become a [`Claim`] (what the head says, unproved), [`Verifier::verify`] makes a [`Caller`] of it, and the
//! body becomes a [`Prompt`].

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
