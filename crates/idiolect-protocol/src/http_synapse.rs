//! bittensor 6.0 to 10: synapses over HTTP, as a server sees them.
//!
//! `POST /<Synapse>` carries who calls in headers and what is asked in a JSON body. The signature covers nonce, both
//! keys, a session and the hash of *some* fields of the body ([`body_hash`](crate::body_hash)): of a prompt its
//! messages, but neither roles nor timeout nor version. So [`read_head`] takes nothing of those on trust, and
//! [`SynapseBody::parse`] refuses a body whose hash is not the signed one.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use http::{HeaderMap, HeaderName, HeaderValue};
//! use idiolect_protocol::body_hash::body_hash;
//! use idiolect_protocol::http_synapse::{SynapseBody, SynapseReplier, Synapses, read_head};
//! use idiolect_protocol::{Keypair, Limits, NonceStore, SystemClock, Verifier};
//!
//! let (validator, miner) = (Keypair::from_uri("//Bob")?, Keypair::from_uri("//Alice")?);
//! let limits = Limits::default();
//! let nonces = Arc::new(NonceStore::new(1000));
//! let verifier = Verifier::new(miner.hotkey(), limits.clone(), Arc::new(SystemClock), nonces);
//!
//! // What a client sends.
//! let (nonce, session) = (verifier.clock().now_ns(), "fea3e5be-e64d-11f1-8d31-02fc00000001");
//! let hash = body_hash(&[["Why?".to_owned()].as_slice()]);
//! let signed = format!("{nonce}.{}.{}.{session}.{hash}", validator.hotkey(), miner.hotkey());
//! let signature = format!("0x{}", hex::encode(validator.sign(signed.as_bytes())));
//! let headers: HeaderMap = [
//!     ("bt_header_dendrite_nonce", nonce.to_string()),
//!     ("bt_header_dendrite_hotkey", validator.hotkey().to_string()),
//!     ("bt_header_dendrite_uuid", session.to_owned()),
//!     ("bt_header_dendrite_signature", signature),
//!     ("bt_header_dendrite_version", "10005000".to_owned()),
//!     ("bt_header_input_obj_roles", "W10=".to_owned()),
//!     ("bt_header_input_obj_messages", "W10=".to_owned()),
//!     ("computed_body_hash", hash),
//!     ("timeout", "12.0".to_owned()),
//! ]
//! .into_iter()
//! .map(|(name, value)| Ok((HeaderName::from_static(name), HeaderValue::from_str(&value)?)))
//! .collect::<Result<_, http::Error>>()?;
//!
//! // What a server does with it.
//! let synapses = Synapses::default();
//! let synapse = synapses.find("/Prompting").ok_or("no such synapse")?;
//! let head = read_head(&headers, synapse, &miner.hotkey(), &limits)?;
//! let caller = verifier.verify(head.claim)?;
//! assert_eq!(*caller.hotkey(), validator.hotkey());
//! let body = SynapseBody::parse(synapse, &head.body_hash, r#"{"roles": ["user"], "messages": ["Why?"]}"#.into())?;
//! assert_eq!(body.prompt()?.messages()[0].content, "Why?");
//! let replier = SynapseReplier::new(&miner.hotkey(), None);
//! let reply = replier.completion(&body, "Because.", Duration::from_millis(3));
//! assert_eq!(reply.headers()["bt_header_axon_status_code"], "200");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod body;
mod head;
mod reply;
#[cfg(test)]
mod vector_tests;

use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderName;

pub use body::{SynapseBody, SynapseBodyError};
pub use head::{BodyHash, SynapseHead, read_head};
pub use reply::{SynapseReplier, error_reply, refusal_message, stream_pieces};

/// What a synapse is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SynapseKind {
    /// The built-in ping.
    Ping,
    /// Roles and messages in, a completion out.
    Prompt,
    /// Maps of task and model names in, the same maps with yes and no out.
    Availability,
    /// Anything else.
    Custom,
}

/// A kind of request: its name, which is its path, and the fields that count.
///
/// ```
/// use idiolect_protocol::http_synapse::{SynapseSpec, Synapses};
///
/// let ranking = SynapseSpec::custom("Ranking").hashed(["query", "documents"]).required(["query"]);
/// let synapses = Synapses::default().with(ranking);
/// assert!(synapses.find("/Ranking").is_some());
/// ```
#[derive(Clone, Debug)]
pub struct SynapseSpec {
    name: String,
    kind: SynapseKind,
    hashed: Vec<String>,
    required: Vec<String>,
    required_headers: Vec<HeaderName>,
    is_streaming: bool,
}

impl SynapseSpec {
    fn new(name: impl Into<String>, kind: SynapseKind) -> Self {
        let (name, hashed, required, required_headers) = (name.into(), Vec::new(), Vec::new(), Vec::new());
        Self { name, kind, hashed, required, required_headers, is_streaming: false }
    }

    /// A synapse of one's own, without hashed or required fields.
    pub fn custom(name: impl Into<String>) -> Self {
        Self::new(name, SynapseKind::Custom)
    }

    /// A prompt under another name.
    pub fn prompt(name: impl Into<String>) -> Self {
        Self::new(name, SynapseKind::Prompt).hashed(["messages"]).required(["roles", "messages"])
    }

    /// Sets the fields that the body hash covers, in the order in which the class has them.
    #[must_use]
    pub fn hashed<S: Into<String>>(mut self, fields: impl IntoIterator<Item = S>) -> Self {
        self.hashed = fields.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the fields that must be there; the client announces each in a header.
    #[must_use]
    pub fn required<S: Into<String>>(mut self, fields: impl IntoIterator<Item = S>) -> Self {
        self.required = fields.into_iter().map(Into::into).collect();
        // A field whose name cannot be part of a header's is never announced.
        self.required_headers =
            self.required.iter().filter_map(|field| format!("bt_header_input_obj_{field}").parse().ok()).collect();
        self
    }

    /// Says that the answer is streamed as bare text.
    #[must_use]
    pub fn streaming(mut self) -> Self {
        self.is_streaming = true;
        self
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what it is for.
    #[must_use]
    pub const fn kind(&self) -> SynapseKind {
        self.kind
    }

    /// Says whether the answer is streamed as bare text.
    #[must_use]
    pub const fn is_streaming(&self) -> bool {
        self.is_streaming
    }
}

/// The synapses that are served, by name. Those of every known text-prompting client by default.
#[derive(Clone, Debug)]
pub struct Synapses {
    by_name: HashMap<String, Arc<SynapseSpec>>,
}

impl Default for Synapses {
    fn default() -> Self {
        [
            SynapseSpec::new("Synapse", SynapseKind::Ping),
            SynapseSpec::prompt("Prompting"),
            SynapseSpec::prompt("PromptingSynapse"),
            SynapseSpec::prompt("StreamPrompting").streaming(),
            SynapseSpec::prompt("StreamPromptingSynapse").streaming(),
            SynapseSpec::new("AvailabilitySynapse", SynapseKind::Availability),
        ]
        .into_iter()
        .fold(Self { by_name: HashMap::new() }, Self::with)
    }
}

impl Synapses {
    /// Serves one synapse more, instead of one of the same name.
    #[must_use]
    pub fn with(mut self, spec: SynapseSpec) -> Self {
        self.by_name.insert(spec.name.clone(), Arc::new(spec));
        self
    }

    /// Returns the synapse of a path such as `/Prompting`.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<&Arc<SynapseSpec>> {
        self.by_name.get(path.strip_prefix('/')?)
    }
}
