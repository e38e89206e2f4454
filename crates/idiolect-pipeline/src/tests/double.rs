//! A backend and an encoder that do as they are told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use idiolect_backend::{
    Backend, Capabilities, Completion, CompletionStream, Embedder, Embedding, Error, Event, FinishReason, HashEmbedder,
    Health, Request, Score, ScoreRequest, TokenLogprob, Usage, collect,
};
use idiolect_protocol::{Prompt, Role};
use tokio::time::Instant;

use crate::{Ask, Parts, Pipeline, PipelineConfig};

/// What one candidate says, and when.
#[derive(Clone, Debug)]
pub(super) struct Says {
    pub(super) pieces: Vec<(Duration, String)>,
    pub(super) finish: FinishReason,
    pub(super) mean_logprob: Option<f32>,
}

/// Says this at once.
pub(super) fn says(text: &str) -> Says {
    Says { pieces: vec![(Duration::ZERO, text.to_owned())], finish: FinishReason::Stop, mean_logprob: None }
}

/// Says a word of this each `ms` milliseconds.
pub(super) fn says_slowly(text: &str, ms: u64) -> Says {
    let words = text.split_inclusive(' ').map(|word| (Duration::from_millis(ms), word.to_owned()));
    Says { pieces: words.collect(), ..says("") }
}

/// A backend whose candidates say what a list says, in turn.
#[derive(Debug)]
pub(super) struct Scripted {
    capabilities: Capabilities,
    says: Vec<Says>,
    next: AtomicUsize,
    usage: Usage,
    requests: Mutex<Vec<Request>>,
    in_flight: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Scripted {
    pub(super) fn new(says: Vec<Says>) -> Self {
        let mut capabilities = Capabilities::new("scripted");
        capabilities.seed = true;
        capabilities.logprobs = true;
        Self {
            capabilities,
            says,
            next: AtomicUsize::new(0),
            usage: Usage::default(),
            requests: Mutex::default(),
            in_flight: Arc::default(),
        }
    }

    pub(super) fn with_usage(mut self, usage: Usage) -> Self {
        self.usage = usage;
        self
    }

    pub(super) fn without_seeds(mut self) -> Self {
        self.capabilities.seed = false;
        self
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    fn events(&self, request: &Request) -> VecDeque<(Instant, Event)> {
        let now = Instant::now();
        let mut events = Vec::new();
        for candidate in 0..request.n {
            let says = &self.says[self.next.fetch_add(1, Ordering::SeqCst) % self.says.len()];
            let mut at = now;
            for (wait, text) in &says.pieces {
                at += *wait;
                let token = |word: &str| TokenLogprob { token: word.to_owned(), logprob: -0.5, top: Vec::new() };
                let words = text.split_inclusive(' ').map(token);
                let logprobs = request.sampling.logprobs.map(|_| words.collect()).unwrap_or_default();
                events.push((at, Event::Delta { candidate, text: text.clone(), logprobs }));
            }
            let n_tokens = u32::try_from(says.pieces.len()).unwrap();
            let (reason, mean_logprob) = (says.finish, says.mean_logprob);
            events.push((at, Event::Finished { candidate, reason, n_tokens, mean_logprob }));
        }
        events.sort_by_key(|(at, _)| *at);
        let end = events.last().map_or(now, |(at, _)| *at);
        let done = Event::Done { usage: self.usage, model: "scripted-1".to_owned(), backend: "scripted".to_owned() };
        events.push((end, done));
        events.into()
    }
}

#[async_trait]
impl Backend for Scripted {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        collect(self.stream(request).await?).await
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        request.validate()?;
        let events = self.events(&request);
        self.requests.lock().unwrap().push(request);
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let running = Running(Arc::clone(&self.in_flight));
        Ok(Box::pin(stream::unfold((events, running), |(mut events, running)| async move {
            let (at, event) = events.pop_front()?;
            if at > Instant::now() {
                tokio::time::sleep_until(at).await;
            }
            Some((Ok(event), (events, running)))
        })))
    }

    async fn score(&self, _: ScoreRequest) -> Result<Score, Error> {
        Err(Error::Unsupported { backend: "scripted".to_owned(), what: "scoring".to_owned() })
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

/// An encoder that takes its time.
#[derive(Debug)]
pub(super) struct Slow {
    pub(super) inner: HashEmbedder,
    pub(super) wait: Duration,
}

#[async_trait]
impl Embedder for Slow {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn dimensions(&self) -> usize {
        self.inner.dimensions()
    }

    fn max_tokens(&self) -> usize {
        self.inner.max_tokens()
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        tokio::time::sleep(self.wait).await;
        self.inner.embed(texts).await
    }
}

pub(super) const SKY: &str =
    "Air scatters short waves of light far more than long ones, so blue comes from everywhere.";
pub(super) const SKY_AGAIN: &str =
    "Air scatters short waves of light far more than long ones, so blue comes from everywhere. Truly.";
pub(super) const OTHER: &str =
    "Look up at noon: what reaches you has bounced among molecules that favour small wavelengths.";

pub(super) fn parts(backend: impl Backend) -> Parts {
    Parts { embedder: Some(Arc::new(HashEmbedder::new(256))), ..Parts::new(Arc::new(backend)) }
}

pub(super) fn config(candidates: usize) -> PipelineConfig {
    PipelineConfig { candidates, seed: Some(1), ..PipelineConfig::default() }
}

pub(super) async fn start(candidates: usize, parts: Parts) -> Pipeline {
    Pipeline::start(config(candidates), parts).await.unwrap()
}

pub(super) fn prompt(text: &str) -> Prompt {
    Prompt::new(vec![idiolect_protocol::Message::new(Role::User, text)]).unwrap()
}

pub(super) fn ask() -> Ask {
    Ask::new(prompt("Why is the sky blue?"))
}
