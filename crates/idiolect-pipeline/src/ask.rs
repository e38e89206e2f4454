//! Questions of our own, and the work that a call comes down to.

use std::time::Duration;

use idiolect_axon::{Call, Dictated, Reply};
use idiolect_backend::Message;
use idiolect_protocol::{Prompt, Role};
use tokio::time::Instant;

use crate::Provenance;

/// A question of our own, without a network: what `idiolect ask` sends through the pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// The conversation.
    pub prompt: Prompt,
    /// How long it may take.
    pub timeout: Duration,
    /// How many different completions are wanted, at least 1.
    pub n_completions: usize,
    /// The task's name.
    pub task: Option<String>,
    /// The model, where backends hold several.
    pub model: Option<String>,
    /// Passthrough with this sampling.
    pub dictated: Option<Dictated>,
    /// Log-probabilities, with this many alternatives a token.
    pub logprobs: Option<u8>,
}

impl Ask {
    /// Makes a question with ten seconds for one completion.
    #[must_use]
    pub const fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            timeout: Duration::from_secs(10),
            n_completions: 1,
            task: None,
            model: None,
            dictated: None,
            logprobs: None,
        }
    }
}

/// A reply and how it came to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The reply.
    pub reply: Reply,
    /// How it came to be, whole, whatever is kept of it.
    pub provenance: Provenance,
}

/// The work that a call or a question comes down to.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Empty for our own questions.
    pub(crate) caller: String,
    pub(crate) transport: &'static str,
    pub(crate) synapse: String,
    pub(crate) messages: Vec<Message>,
    pub(crate) deadline: Instant,
    pub(crate) n_completions: usize,
    pub(crate) task: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) dictated: Option<Dictated>,
    pub(crate) logprobs: Option<u8>,
}

/// All turns, in order, all roles.
fn to_messages(prompt: Prompt) -> Vec<Message> {
    let turns = prompt.into_messages().into_iter();
    turns
        .map(|turn| match turn.role {
            Role::System => Message::system(turn.content),
            Role::User => Message::user(turn.content),
            Role::Assistant => Message::assistant(turn.content),
        })
        .collect()
}

impl From<Call> for Job {
    fn from(call: Call) -> Self {
        Self {
            caller: call.caller.hotkey().to_string(),
            transport: call.caller.transport().as_str(),
            synapse: call.synapse,
            messages: to_messages(call.prompt),
            deadline: Instant::from_std(call.deadline),
            n_completions: call.n_completions,
            task: call.task,
            model: call.model,
            dictated: call.dictated,
            logprobs: call.logprobs,
        }
    }
}

impl From<Ask> for Job {
    fn from(ask: Ask) -> Self {
        // A day is for ever here, and keeps the addition from overflowing.
        let timeout = ask.timeout.min(Duration::from_secs(24 * 3600));
        Self {
            caller: String::new(),
            transport: "local",
            synapse: "ask".to_owned(),
            messages: to_messages(ask.prompt),
            deadline: Instant::now() + timeout,
            n_completions: ask.n_completions,
            task: ask.task,
            model: ask.model,
            dictated: ask.dictated,
            logprobs: ask.logprobs,
        }
    }
}
