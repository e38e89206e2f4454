//! What a backend gives back.

use serde::{Deserialize, Serialize};

/// Why a candidate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop text was reached.
    Stop,
    /// `max_tokens` or the context's end was reached.
    Length,
    /// The deadline came first: the text is a true prefix of what would have been said.
    Deadline,
    /// A filter cut the text: one of the server, or bans or a constraint after which no token could follow.
    ContentFilter,
}

/// An alternative that the model weighed at one position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// The token's text.
    pub token: String,
    /// Natural logarithm of its probability, at most 0.
    pub logprob: f32,
}

/// The log-probability of one token of a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's text; lossy where a token is part of a character.
    pub token: String,
    /// Natural logarithm of its probability under the model, before any sampling filter; at most 0.
    pub logprob: f32,
    /// The likeliest alternatives, best first; as many as were asked for.
    pub top: Vec<TopLogprob>,
}

/// One continuation of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Which of the request's `n` this is, from 0.
    pub index: usize,
    /// The text, without any stop text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens generated.
    pub n_tokens: u32,
    /// One entry a token, when the request asked and the backend can.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Mean log-probability a token, where the backend knows it (also without `logprobs`).
    pub mean_logprob: Option<f32>,
}

/// Tokens that a request cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, counted once however many candidates share it, and for each request where a server was
    /// asked more than once. 0 where the backend does not know, as after a deadline.
    pub prompt_tokens: u32,
    /// Tokens generated, summed over candidates.
    pub completion_tokens: u32,
    /// Tokens of the prompt that were left out to make it fit the context; 0 when nothing was cut.
    pub trimmed_tokens: u32,
    /// Tokens of the prompt, among `prompt_tokens`, that need not be computed since an earlier prompt began with them; 0
    /// where the backend does not say.
    #[serde(default)]
    pub cached_tokens: u32,
}

/// The whole answer to a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The candidates by ascending `index`. May be fewer than asked for, never none.
    pub candidates: Vec<Candidate>,
    /// What it cost.
    pub usage: Usage,
    /// The model that spoke.
    pub model: String,
    /// The backend that spoke, by its configured name; of a pool, the member.
    pub backend: String,
}

/// One item of a streamed answer.
///
/// A stream holds any number of `Delta`, for each candidate one `Finished` after its last `Delta`, and ends in exactly
/// one `Done` or one error. Deltas of different candidates may interleave.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// More text of one candidate: whole characters only.
    Delta {
        /// Which candidate.
        candidate: usize,
        /// The text to append; may be empty when only log-probabilities arrived.
        text: String,
        /// Tokens that this text is made of, when the request asked for log-probabilities.
        logprobs: Vec<TokenLogprob>,
    },
    /// One candidate is complete.
    Finished {
        /// Which candidate.
        candidate: usize,
        /// Why it ended.
        reason: FinishReason,
        /// Tokens generated.
        n_tokens: u32,
        /// Mean log-probability a token, where the backend knows it.
        mean_logprob: Option<f32>,
    },
    /// Every candidate is complete. Always the last item.
    Done {
        /// What it cost.
        usage: Usage,
        /// The model that spoke.
        model: String,
        /// The backend that spoke.
        backend: String,
    },
}
