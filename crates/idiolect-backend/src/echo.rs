//! A tiny deterministic backend and encoder: no model, no cost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use tokio::time::Instant;

use crate::{
    Backend, Candidate, Capabilities, Completion, CompletionStream, Embedder, Embedding, Error, Event, FinishReason,
    Health, Request, Score, ScoreRequest, ScoreSupport, StageKind, TokenLogprob, TopLogprob, Usage, collect, random,
};

/// What an [`Echo`] is called and how fast it speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EchoConfig {
    /// The backend's name.
    pub name: String,
    /// The model's name.
    pub model: String,
    /// How long each token takes; at zero nothing waits and no timer is used.
    pub delay_per_token: Duration,
    /// Most tokens of prompt and candidate together; `None` is no limit.
    pub context_tokens: Option<u32>,
}

impl Default for EchoConfig {
    fn default() -> Self {
        Self { name: "echo".into(), model: "echo".into(), delay_per_token: Duration::ZERO, context_tokens: None }
    }
}

/// A backend that says the last message again, one word a token: for protocol benchmarks and tests.
///
/// Candidate 0 without a seed is the message itself. Every other candidate has its words in another order and ends in
/// a tag, both derived from the seed (0 when there is none) and the candidate's number, so that candidates differ and
/// a seed can be seen to work. A stream brings a token at a time, or where tokens take no time each candidate in one
/// piece. Log-probabilities are made up, but always the same for the same word, and
/// [`score`](Backend::score) agrees with them. A candidate that is shorter than `min_tokens` says its words again.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idiolect_backend::Error> {
/// use idiolect_backend::{Backend, Echo, Message, Request};
///
/// let mut request = Request::new(vec![Message::user("one two three")]);
/// request.n = 2;
/// let answer = Echo::new().complete(request).await?;
/// assert_eq!(answer.candidates[0].text, "one two three");
/// assert_ne!(answer.candidates[1].text, answer.candidates[0].text);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Echo {
    config: EchoConfig,
    capabilities: Capabilities,
    in_flight: Arc<AtomicUsize>,
}

impl Default for Echo {
    fn default() -> Self {
        Self::with_config(EchoConfig::default())
    }
}

impl Echo {
    /// Makes one that answers at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes one that takes this long for each token.
    #[must_use]
    pub fn with_delay(delay_per_token: Duration) -> Self {
        Self::with_config(EchoConfig { delay_per_token, ..EchoConfig::default() })
    }

    /// Makes one with other names or limits.
    #[must_use]
    pub fn with_config(config: EchoConfig) -> Self {
        let capabilities = Capabilities {
            model: config.model.clone(),
            context_tokens: config.context_tokens,
            seed: true,
            logprobs: true,
            batched_candidates: true,
            score: ScoreSupport::Tokens,
            min_tokens: true,
            // Nothing is drawn, so that every chain draws the same; but a shape is more than it can promise.
            stages: StageKind::ALL.into_iter().filter(|kind| *kind != StageKind::Constraint).collect(),
            paid: false,
            family: Some("echo".to_owned()),
        };
        Self { config, capabilities, in_flight: Arc::default() }
    }

    /// Returns how many answers are being made right now; it falls when one is dropped.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn plan(&self, request: &Request) -> Result<Plan, Error> {
        request.validate()?;
        self.capabilities.check_stages(&self.config.name, &request.sampling)?;
        if request.deadline.is_some_and(|deadline| deadline <= Instant::now().into_std()) {
            return Err(Error::DeadlineExceeded);
        }
        let prompt_tokens = request.messages.iter().fold(0, |sum: u32, m| sum.saturating_add(count(&m.content)));
        let room = self.room(prompt_tokens)?.min(request.sampling.max_tokens);
        let last = request.messages.iter().rev().map(|m| m.content.trim()).find(|text| !text.is_empty());
        let last = last.unwrap_or_default();
        let candidates = (0..request.n).map(|index| planned(last, index, room, request)).collect();
        Ok(Plan { candidates, prompt_tokens })
    }

    fn room(&self, prompt_tokens: u32) -> Result<u32, Error> {
        let Some(context_tokens) = self.config.context_tokens else { return Ok(u32::MAX) };
        match context_tokens.checked_sub(prompt_tokens) {
            None | Some(0) => Err(Error::ContextTooLong { prompt_tokens, context_tokens }),
            Some(room) => Ok(room),
        }
    }

    fn speak(&self, request: &Request, plan: Plan) -> CompletionStream {
        let speech = Speech {
            unfinished: vec![true; plan.candidates.len()],
            said: vec![0; plan.candidates.len()],
            plan,
            step: 0,
            next: Instant::now(),
            delay: self.config.delay_per_token,
            deadline: request.deadline.map(Instant::from_std),
            queue: VecDeque::new(),
            over: false,
            logprobs: request.sampling.logprobs,
            model: self.config.model.clone(),
            backend: self.config.name.clone(),
            _in_flight: InFlight::new(&self.in_flight),
        };
        Box::pin(stream::unfold(speech, |mut speech| async move {
            let item = speech.next().await?;
            Some((item, speech))
        }))
    }
}

/// Counts one answer for as long as it lives.
#[derive(Debug)]
struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Everything that will be said, known beforehand.
#[derive(Debug)]
struct Plan {
    candidates: Vec<Planned>,
    prompt_tokens: u32,
}

#[derive(Debug)]
struct Planned {
    text: String,
    reason: FinishReason,
}

impl Plan {
    fn into_completion(self, config: &EchoConfig, logprobs: Option<u8>) -> Completion {
        let candidates: Vec<_> = (self.candidates.into_iter().enumerate())
            .map(|(index, planned)| Candidate {
                index,
                n_tokens: count(&planned.text),
                logprobs: logprobs.map(|n| tokens(&planned.text).map(|token| likelihood(token, n)).collect()),
                mean_logprob: mean(&planned.text),
                text: planned.text,
                finish_reason: planned.reason,
            })
            .collect();
        let completion_tokens = candidates.iter().fold(0_u32, |sum, c| sum.saturating_add(c.n_tokens));
        let usage = Usage { prompt_tokens: self.prompt_tokens, completion_tokens, ..Usage::default() };
        Completion { candidates, usage, model: config.model.clone(), backend: config.name.clone() }
    }
}

/// A plan being said, all candidates side by side.
#[derive(Debug)]
struct Speech {
    plan: Plan,
    unfinished: Vec<bool>,
    /// How many bytes of each candidate were said.
    said: Vec<usize>,
    /// How many tokens of each candidate were said, of those that have so many.
    step: usize,
    next: Instant,
    delay: Duration,
    deadline: Option<Instant>,
    queue: VecDeque<Event>,
    over: bool,
    logprobs: Option<u8>,
    model: String,
    backend: String,
    _in_flight: InFlight,
}

impl Speech {
    async fn next(&mut self) -> Option<Result<Event, Error>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(Ok(event));
            }
            if self.over {
                return None;
            }
            if !self.wait().await {
                if self.step == 0 {
                    self.over = true;
                    return Some(Err(Error::DeadlineExceeded));
                }
                self.end(FinishReason::Deadline);
            } else {
                self.say();
            }
        }
    }

    /// Waits for the next token's time; false when the deadline comes first.
    async fn wait(&mut self) -> bool {
        if self.delay.is_zero() {
            return true;
        }
        self.next += self.delay;
        if let Some(deadline) = self.deadline
            && deadline < self.next
        {
            tokio::time::sleep_until(deadline).await;
            return false;
        }
        tokio::time::sleep_until(self.next).await;
        true
    }

    /// Says one token of each candidate, or all of them where tokens take no time.
    fn say(&mut self) {
        let at_once = if self.delay.is_zero() { usize::MAX } else { 1 };
        self.step = self.step.saturating_add(at_once);
        for candidate in 0..self.plan.candidates.len() {
            if !self.unfinished[candidate] {
                continue;
            }
            let planned = &self.plan.candidates[candidate];
            let rest = &planned.text[self.said[candidate]..];
            let length: usize = tokens(rest).take(at_once).map(str::len).sum();
            if length > 0 {
                let text = &rest[..length];
                self.said[candidate] += length;
                let likelihoods = |n| tokens(text).map(|token| likelihood(token, n)).collect();
                let logprobs = self.logprobs.map(likelihoods).unwrap_or_default();
                self.queue.push_back(Event::Delta { candidate, text: text.to_owned(), logprobs });
            }
            if tokens(&rest[length..]).next().is_none() {
                let (reason, n_tokens) = (planned.reason, count(&planned.text));
                let mean_logprob = mean(&planned.text);
                self.queue.push_back(Event::Finished { candidate, reason, n_tokens, mean_logprob });
                self.unfinished[candidate] = false;
            }
        }
        if !self.unfinished.contains(&true) {
            self.end(FinishReason::Stop);
        }
    }

    /// Ends what is unfinished for this reason, and the stream.
    fn end(&mut self, reason: FinishReason) {
        let step = u32::try_from(self.step).unwrap_or(u32::MAX);
        for candidate in 0..self.unfinished.len() {
            if std::mem::take(&mut self.unfinished[candidate]) {
                let said = tokens(&self.plan.candidates[candidate].text).take(self.step);
                let mean_logprob = mean_of(said.map(logprob));
                self.queue.push_back(Event::Finished { candidate, reason, n_tokens: step, mean_logprob });
            }
        }
        let said = self.plan.candidates.iter().map(|planned| count(&planned.text).min(step));
        let completion_tokens = said.fold(0, u32::saturating_add);
        let usage = Usage { prompt_tokens: self.plan.prompt_tokens, completion_tokens, ..Usage::default() };
        let (model, backend) = (std::mem::take(&mut self.model), std::mem::take(&mut self.backend));
        self.queue.push_back(Event::Done { usage, model, backend });
        self.over = true;
    }
}

/// Splits a text into words, each with the white space before it.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let word = rest.find(|c: char| !c.is_whitespace())?;
        let length = rest[word..].find(char::is_whitespace).map_or(rest.len(), |end| word + end);
        let (token, tail) = rest.split_at(length);
        rest = tail;
        Some(token)
    })
}

fn count(text: &str) -> u32 {
    u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX)
}

fn planned(last: &str, index: usize, room: u32, request: &Request) -> Planned {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    let plain = index == 0 && request.sampling.seed.is_none();
    let mut n_tokens = 0;
    let mut text = String::new();
    if plain {
        for token in tokens(last).take(room.saturating_add(1)) {
            n_tokens += 1;
            if n_tokens <= room {
                text.push_str(token);
            }
        }
    } else {
        let draw = random::mix(random::mix(request.sampling.seed.unwrap_or(0)) ^ index as u64);
        let words: Vec<&str> = last.split_whitespace().collect();
        let tag = format!("#{:08x}", draw >> 32);
        let turned = (0..words.len()).map(|i| words[(i + draw as usize % words.len()) % words.len()]);
        for word in std::iter::once(tag.as_str()).chain(turned).take(room.saturating_add(1)) {
            n_tokens += 1;
            if n_tokens <= room {
                text.push_str(if n_tokens > 1 { " " } else { "" });
                text.push_str(word);
            }
        }
    }
    // What says nothing more says its words again until it is long enough.
    let least = usize::try_from(request.sampling.min_tokens.unwrap_or(0)).unwrap_or(room).min(room);
    let mut again = last.split_whitespace().cycle();
    while n_tokens < least {
        let Some(word) = again.next() else { break };
        text.push_str(if n_tokens > 0 { " " } else { "" });
        text.push_str(word);
        n_tokens += 1;
    }
    let is_exact = least == room && n_tokens == room;
    let mut reason = if n_tokens > room || is_exact { FinishReason::Length } else { FinishReason::Stop };
    if let Some(end) = request.sampling.stop.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        // What is left of a word would be no token: white space at the end goes with the stop text.
        text.truncate(text[..end].trim_end().len());
        reason = FinishReason::Stop;
    }
    Planned { text, reason }
}

/// The made-up log-probability of a token.
fn logprob(token: &str) -> f32 {
    -0.05 - (random::hash(token.trim_start().as_bytes()) % 1000) as f32 / 500.0
}

fn likelihood(token: &str, n_top: u8) -> TokenLogprob {
    let logprob = logprob(token);
    let top = (0..n_top)
        .map(|rank| match rank {
            0 => TopLogprob { token: token.to_owned(), logprob },
            rank => TopLogprob { token: format!(" alternative{rank}"), logprob: logprob - f32::from(rank) },
        })
        .collect();
    TokenLogprob { token: token.to_owned(), logprob, top }
}

fn mean(text: &str) -> Option<f32> {
    mean_of(tokens(text).map(logprob))
}

fn mean_of(logprobs: impl Iterator<Item = f32>) -> Option<f32> {
    let (mut sum, mut n) = (0.0, 0_u32);
    for logprob in logprobs {
        sum += f64::from(logprob);
        n += 1;
    }
    (n > 0).then(|| (sum / f64::from(n)) as f32)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Backend for Echo {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        let plan = self.plan(&request)?;
        if self.config.delay_per_token.is_zero() {
            return Ok(plan.into_completion(&self.config, request.sampling.logprobs));
        }
        collect(self.speak(&request, plan)).await
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        let plan = self.plan(&request)?;
        Ok(self.speak(&request, plan))
    }

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        request.validate()?;
        request.check_support(&self.config.name, &self.capabilities)?;
        let completion = &request.completion;
        Ok(Score {
            tokens: tokens(completion).map(|token| likelihood(token, 0)).collect(),
            token_ids: tokens(completion).map(|token| random::hash(token.as_bytes()) as u32).collect(),
            ..Score::default()
        })
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

/// An encoder without a model, for tests: a text's embedding is the sum of its words' hashes, each a place and a sign.
///
/// Equal texts are equal, texts that share words are near, and that is all it knows of meaning.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idiolect_backend::Error> {
/// use idiolect_backend::{Embedder, HashEmbedder};
///
/// let embeddings = HashEmbedder::new(64).embed(&["a b c".into(), "a b d".into(), "x y z".into()]).await?;
/// let cos = |i: usize, j: usize| embeddings[i].iter().zip(&embeddings[j]).map(|(a, b)| a * b).sum::<f32>();
/// assert!(cos(0, 1) > cos(0, 2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct HashEmbedder {
    name: String,
    dimensions: usize,
}

impl HashEmbedder {
    /// Makes one with this many dimensions, at least 1.
    #[must_use]
    pub fn new(dimensions: usize) -> Self {
        let dimensions = dimensions.max(1);
        Self { name: format!("hash-{dimensions}"), dimensions }
    }

    fn encode(&self, text: &str) -> Embedding {
        let mut embedding = vec![0.0_f32; self.dimensions];
        for word in text.split_whitespace().take(self.max_tokens()) {
            let hash = random::hash(word.to_lowercase().as_bytes());
            let place = (hash >> 1) as usize % self.dimensions;
            embedding[place] += if hash & 1 == 0 { 1.0 } else { -1.0 };
        }
        let length = embedding.iter().map(|v| v * v).sum::<f32>().sqrt();
        if length > 0.0 {
            embedding.iter_mut().for_each(|v| *v /= length);
        } else if let Some(word) = text.split_whitespace().next() {
            // Words that cancel each other out must still give a unit vector.
            embedding[random::hash(word.as_bytes()) as usize % self.dimensions] = 1.0;
        }
        embedding
    }
}

impl Default for HashEmbedder {
    /// 64 dimensions.
    fn default() -> Self {
        Self::new(64)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Embedder for HashEmbedder {
    fn name(&self) -> &str {
        &self.name
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn max_tokens(&self) -> usize {
        512
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        Ok(texts.iter().map(|text| self.encode(text)).collect())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;
    use crate::Message;

    fn request(text: &str) -> Request {
        Request::new(vec![Message::user(text)])
    }

    #[tokio::test]
    async fn honours_length_stop_and_context() {
        let echo = Echo::new();
        let mut r = request("a b  c d");
        r.sampling.max_tokens = 3;
        let c = &echo.complete(r.clone()).await.unwrap().candidates[0];
        assert_eq!((c.text.as_str(), c.finish_reason, c.n_tokens), ("a b  c", FinishReason::Length, 3));
        r.sampling.stop = vec!["c".to_owned()];
        let c = &echo.complete(r.clone()).await.unwrap().candidates[0];
        assert_eq!((c.text.as_str(), c.finish_reason, c.n_tokens), ("a b", FinishReason::Stop, 2));

        let small = Echo::with_config(EchoConfig { context_tokens: Some(5), ..EchoConfig::default() });
        assert_eq!(small.complete(request("a b c d")).await.unwrap().candidates[0].text, "a");
        let error = small.complete(request("a b c d e")).await.unwrap_err();
        assert!(matches!(error, Error::ContextTooLong { prompt_tokens: 5, context_tokens: 5 }), "{error:?}");
    }

    #[tokio::test]
    async fn score_agrees_with_logprobs() {
        let echo = Echo::new();
        let mut r = request("we agree on this");
        r.sampling.logprobs = Some(2);
        r.sampling.seed = Some(3);
        let c = echo.complete(r.clone()).await.unwrap().candidates.remove(0);
        let score = echo.score(ScoreRequest::new(r.messages, c.text)).await.unwrap();
        let said: Vec<f32> = c.logprobs.unwrap().iter().map(|t| t.logprob).collect();
        assert_eq!(score.tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(), said);
        assert_eq!(score.mean_logprob(), c.mean_logprob);
    }

    #[tokio::test(start_paused = true)]
    async fn stops_at_the_deadline() {
        let echo = Echo::with_delay(Duration::from_millis(100));
        let mut r = request("one two three four five");
        let start = Instant::now();
        r.deadline = Some((start + Duration::from_millis(250)).into_std());
        r.n = 2;
        let c = echo.complete(r.clone()).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_millis(250));
        assert_eq!(c.candidates[0].text, "one two");
        assert!(c.candidates.iter().all(|c| c.finish_reason == FinishReason::Deadline && c.n_tokens == 2));
        assert_eq!(c.usage.completion_tokens, 4);

        r.deadline = Some((Instant::now() + Duration::from_millis(50)).into_std());
        assert!(matches!(echo.complete(r).await.unwrap_err(), Error::DeadlineExceeded));
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_ends_the_work() {
        let echo = Echo::with_delay(Duration::from_secs(1));
        let mut stream = echo.stream(request("a b c")).await.unwrap();
        stream.next().await.unwrap().unwrap();
        assert_eq!(echo.in_flight(), 1);
        drop(stream);
        assert_eq!(echo.in_flight(), 0);
    }

    #[tokio::test]
    async fn no_words_no_direction() {
        let embeddings = HashEmbedder::default().embed(&[String::new(), "a".to_owned()]).await.unwrap();
        assert!(embeddings[0].iter().all(|v| *v == 0.0));
        assert_eq!(embeddings[1].iter().map(|v| v * v).sum::<f32>(), 1.0);
    }
}
