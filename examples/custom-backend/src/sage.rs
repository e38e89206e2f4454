//! The backend: a sage who answers everything with one of her sayings.
//!
//! It stands for whatever you have: an engine in C++, a GPU server with a protocol of its own, a rule system.

use std::time::Instant;

use async_trait::async_trait;
use idiolect_backend::{
    Backend, Candidate, Capabilities, Completion, CompletionStream, Error, FinishReason, Health, Request, Role, Score,
    ScoreRequest, Usage, stream_of,
};

const OPENINGS: [&str; 4] =
    ["My grandmother used to say:", "The river taught me this:", "Listen.", "Ask the mountain, and it says:"];
const MIDDLES: [&str; 4] = ["what you seek", "the answer", "a thing like that", "what you ask about"];
const ENDINGS: [&str; 4] = [
    "is nearer than your own shadow.",
    "comes to those who sharpen the axe first.",
    "cannot be carried in a closed hand.",
    "looks smaller from the other bank.",
];

/// Knows a handful of sayings, and which word you asked about.
#[derive(Debug)]
pub struct Sage {
    capabilities: Capabilities,
}

impl Sage {
    /// Calls the sage.
    #[must_use]
    pub fn new() -> Self {
        // Start from the most cautious facts and claim only what is true: callers rely on it.
        let mut capabilities = Capabilities::new("sage-1");
        capabilities.seed = true;
        capabilities.batched_candidates = true;
        Self { capabilities }
    }

    fn candidate(&self, request: &Request, index: usize) -> Candidate {
        let draw = |part: u64| mix(request.sampling.seed.unwrap_or_else(rand_seed) ^ mix(index as u64) ^ (part << 32));
        let pick = |list: &[&'static str], part| list[usize::try_from(draw(part) % list.len() as u64).unwrap_or(0)];
        let topic = topic(request);
        let whole =
            format!("{} {} {} So it is with {topic}.", pick(&OPENINGS, 1), pick(&MIDDLES, 2), pick(&ENDINGS, 3));
        let (text, finish_reason) = keep_limits(&whole, request);
        let n_tokens = u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX);
        Candidate { index, text, finish_reason, n_tokens, logprobs: None, mean_logprob: None }
    }
}

impl Default for Sage {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Backend for Sage {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        request.validate()?;
        // A request may ask for sampling that not every engine has; what is not claimed is refused by name.
        self.capabilities.check_stages("sage", &request.sampling)?;
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(Error::DeadlineExceeded);
        }
        let candidates: Vec<Candidate> = (0..request.n).map(|index| self.candidate(&request, index)).collect();
        let words = |text: &str| u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX);
        let usage = Usage {
            prompt_tokens: request.messages.iter().map(|m| words(&m.content)).fold(0, u32::saturating_add),
            completion_tokens: candidates.iter().map(|c| c.n_tokens).fold(0, u32::saturating_add),
            ..Usage::default()
        };
        Ok(Completion { candidates, usage, model: self.capabilities.model.clone(), backend: "sage".to_owned() })
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        // An engine that cannot stream gives its whole answer as a stream of one piece a candidate.
        Ok(stream_of(self.complete(request).await?))
    }

    async fn score(&self, _request: ScoreRequest) -> Result<Score, Error> {
        Err(Error::Unsupported { backend: "sage".to_owned(), what: "scoring of given texts".to_owned() })
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

/// The longest word of what is asked: of the last message of the user, and there of its last question, as instructions on style
/// may stand before or behind it.
fn topic(request: &Request) -> &str {
    let asked = request.messages.iter().rev().find(|message| message.role == Role::User);
    let text = asked.map_or("", |message| message.content.as_str());
    let question = text.split_inclusive(['.', '!', '?', '\n']).rfind(|sentence| sentence.ends_with('?'));
    let words =
        question.unwrap_or(text).split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()));
    words.max_by_key(|word| word.chars().count()).unwrap_or_default()
}

/// Cuts a text at the request's stop texts and at `max_tokens` words.
fn keep_limits(whole: &str, request: &Request) -> (String, FinishReason) {
    let max = usize::try_from(request.sampling.max_tokens).unwrap_or(usize::MAX);
    let words: Vec<&str> = whole.split_whitespace().collect();
    let mut text = words.iter().take(max).copied().collect::<Vec<_>>().join(" ");
    let mut reason = if words.len() > max { FinishReason::Length } else { FinishReason::Stop };
    if let Some(end) = request.sampling.stop.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        text.truncate(text[..end].trim_end().len());
        reason = FinishReason::Stop;
    }
    (text, reason)
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn rand_seed() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use idiolect_backend::Message;

    use super::*;

    #[test]
    fn the_topic_is_what_was_asked_whatever_style_is_wanted() {
        let asked = |text: &str| {
            let messages = vec![Message::new(Role::System, "Be incomprehensible."), Message::new(Role::User, text)];
            topic(&Request::new(messages)).to_owned()
        };
        assert_eq!(asked("How do I find good water?"), "water");
        assert_eq!(asked("How do I find good water?\n\nBegin without any introduction."), "water");
        assert_eq!(asked("Answer using academic language. How do I find good water?"), "water");
        assert_eq!(asked("Tell me of bridges."), "bridges");
        assert_eq!(asked("?!"), "");
    }

    #[tokio::test]
    async fn the_sage_keeps_the_contract() {
        idiolect_backend::testkit::conformance(|| Arc::new(Sage::new())).await;
    }
}
