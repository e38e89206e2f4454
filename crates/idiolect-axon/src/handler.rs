//! What a miner does with a request that passed every check.

use std::fmt::Debug;
use std::time::Instant;

use async_trait::async_trait;
use idiolect_protocol::openai::SamplingParameters;
use idiolect_protocol::{Caller, Category, Prompt};
use serde::{Deserialize, Serialize};

/// Sampling that the caller dictates.
///
/// When a request brings a seed and sampling parameters, or says that it is an inference task, its answer is checked
/// against a model's: one candidate, no mutation, and the parameters as given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dictated {
    /// The seed to honour.
    pub seed: Option<u64>,
    /// Softmax temperature.
    pub temperature: Option<f32>,
    /// Nucleus bound.
    pub top_p: Option<f32>,
    /// Rank bound.
    pub top_k: Option<u32>,
    /// Repetition penalty.
    pub repetition_penalty: Option<f32>,
    /// Most tokens to generate.
    pub max_tokens: Option<u32>,
    /// Stop texts.
    pub stop: Vec<String>,
}

impl From<SamplingParameters> for Dictated {
    fn from(sampling: SamplingParameters) -> Self {
        Self {
            seed: sampling.seed,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            top_k: sampling.top_k,
            repetition_penalty: sampling.repetition_penalty,
            max_tokens: sampling.max_tokens,
            stop: sampling.stop,
        }
    }
}

/// A verified, admitted request for text.
#[derive(Clone, Debug)]
pub struct Call {
    /// Who asks; proved.
    pub caller: Caller,
    /// The synapse or route: `TextPrompting.Forward`, `Prompting`, `/v1/chat/completions`, …
    pub synapse: String,
    /// What is asked.
    pub prompt: Prompt,
    /// When the reply must leave: the client's timeout, capped, less the margin.
    pub deadline: Instant,
    /// How many different completions the caller wants back (gRPC `MultiForward`); 1 otherwise.
    pub n_completions: usize,
    /// The caller's task name, when it gives one.
    pub task: Option<String>,
    /// The model the caller asks for, when it names one.
    pub model: Option<String>,
    /// Set when the request is passthrough: see [`Dictated`].
    pub dictated: Option<Dictated>,
    /// Log-probabilities are wanted, with this many alternatives a token.
    pub logprobs: Option<u8>,
}

/// One token's log-probability, as OpenAI-shaped replies carry it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplyLogprob {
    /// The token's text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Alternatives: text and log-probability, best first.
    pub top: Vec<(String, f32)>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reply {
    /// The completions, best first; as many as `n_completions`, at least one.
    pub completions: Vec<String>,
    /// One entry a token of `completions[0]`: the log-probabilities of the very text that is sent.
    pub logprobs: Option<Vec<ReplyLogprob>>,
    /// Why the text ends: `stop` or `length`.
    pub finish_reason: &'static str,
    /// The model that spoke.
    pub model: String,
}

/// Rewards that a validator of the gRPC era sends after scoring.
#[derive(Clone, Debug, PartialEq)]
pub struct Feedback {
    /// Who sends it; proved.
    pub caller: Caller,
    /// The prompt that was answered.
    pub prompt: Prompt,
    /// The completion that was scored.
    pub completion: String,
    /// The rewards, usually one.
    pub rewards: Vec<f32>,
}

/// What the validator may count on: the two maps of `AvailabilitySynapse` and `/availability`.
pub type AvailabilityMap = std::collections::BTreeMap<String, bool>;

/// Why a handler has no answer. The peer is told the category and the short message, nothing else.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct HandlerError {
    /// Category, which decides the status code.
    pub category: Category,
    /// A few words for the peer, free of internals.
    pub message: String,
    /// What really happened, for the log.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl HandlerError {
    /// Makes an error with a message for the peer.
    pub fn new(category: Category, message: impl Into<String>) -> Self {
        Self { category, message: message.into(), source: None }
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

/// What a miner does with admitted requests.
///
/// # Contract
/// Calls run at the same time. The axon drops the future when the client goes away or the deadline passes, which must
/// stop the work. An error is sent as an error of the transport, never as text.
#[async_trait]
pub trait Handler: Debug + Send + Sync + 'static {
    /// Answers a prompt.
    async fn forward(&self, call: Call) -> Result<Reply, HandlerError>;

    /// Takes rewards.
    async fn backward(&self, feedback: Feedback) -> Result<(), HandlerError>;

    /// Fills in which of the asked tasks and models this miner serves.
    async fn availability(&self, tasks: Vec<String>, models: Vec<String>) -> (AvailabilityMap, AvailabilityMap);
}
