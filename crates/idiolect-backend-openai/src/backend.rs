//! The backend.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_openai::traits::RequestOptionsBuilder;
use async_trait::async_trait;
use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{StreamExt, stream};
use idiolect_backend::{
    Backend, Capabilities, Collector, Completion, CompletionStream, Error, Event, FinishReason, Health, Message,
    Prices, Request, Score, ScoreRequest, ScoreSupport, TokenLogprob, Usage, end_at,
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::chain;
use crate::config::{Candidates, Flavour, OpenAiConfig};
use crate::fault::Fault;
use crate::health::HealthCheck;
use crate::lane::{LaneEvent, LaneRequest, chunk, lane};
use crate::transport::{JSON, Server, accept};
use crate::wire::{Chunk, chat_body, logprob, messages};

/// A model on an OpenAI-shaped server.
///
/// Requests with a deadline or for several candidates at once, and streams, are asked for as server-sent events, so that
/// there is always something to show; others as whole answers. What breaks off before its first text is tried again
/// ([`RetryConfig`]). Later than that the other candidates go on: a whole answer without the one that broke, a stream
/// with it, ended as [`FinishReason::Deadline`]. Where none is left that came to its end, it fails.
///
/// [`RetryConfig`]: crate::RetryConfig
#[derive(Debug)]
pub struct OpenAiBackend {
    shared: Arc<Shared>,
    capabilities: Capabilities,
    health: HealthCheck,
}

#[derive(Debug)]
struct Shared {
    config: OpenAiConfig,
    server: Server,
    /// The server was seen to leave `n` out of account.
    ignores_n: AtomicBool,
}

impl OpenAiBackend {
    /// Makes a backend and reads its key. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for an address, key or header that cannot be used, [`Error::Internal`] when TLS cannot
    /// be set up, as on a machine without certificates.
    pub fn new(config: OpenAiConfig) -> Result<Self, Error> {
        let server = Server::new(&config.name, &config.server)?;
        let mut capabilities = Capabilities::new(config.model.clone());
        capabilities.context_tokens = config.context_tokens;
        capabilities.seed = config.seed;
        capabilities.logprobs = config.gives_logprobs();
        capabilities.batched_candidates = match config.candidates {
            Candidates::AtOnce => true,
            Candidates::OneByOne => false,
            Candidates::Auto => matches!(config.flavour, Flavour::OpenAi | Flavour::Vllm),
        };
        capabilities.score = if config.flavour == Flavour::Vllm { ScoreSupport::Tokens } else { ScoreSupport::None };
        capabilities.min_tokens = config.flavour == Flavour::Vllm;
        capabilities.stages = config.flavour.stages();
        capabilities.paid = config.prices.is_some();
        capabilities.family = config.family.clone();
        let health = HealthCheck::new(server.clone());
        let shared = Arc::new(Shared { config, server, ignores_n: AtomicBool::new(false) });
        Ok(Self { shared, capabilities, health })
    }

    /// Returns what tokens cost, for a [`SpendingCap`](idiolect_backend::SpendingCap).
    #[must_use]
    pub fn prices(&self) -> Option<Prices> {
        self.shared.config.prices
    }

    fn answer(&self, request: Request, is_streamed: bool) -> Answer {
        let mut answer = Answer {
            shared: Arc::clone(&self.shared),
            request,
            is_streamed,
            lanes: SelectAll::new(),
            queue: VecDeque::new(),
            has_text: Vec::new(),
            n_pieces: Vec::new(),
            lost: Vec::new(),
            n_finished: 0,
            n_tokens: 0,
            usage: Some(Usage::default()),
            model: None,
            error: None,
            is_over: false,
        };
        answer.has_text.resize(answer.request.n, false);
        answer.n_pieces.resize(answer.request.n, 0);
        answer.start();
        answer
    }
}

/// All lanes of one request, merged.
struct Answer {
    shared: Arc<Shared>,
    request: Request,
    is_streamed: bool,
    lanes: SelectAll<BoxStream<'static, LaneEvent>>,
    queue: VecDeque<AnswerEvent>,
    has_text: Vec<bool>,
    /// Pieces of text, a candidate.
    n_pieces: Vec<u32>,
    /// Candidates of a stream that broke after some text.
    lost: Vec<(usize, Error)>,
    n_finished: usize,
    n_tokens: u32,
    /// What the lanes cost together; `None` once one did not tell.
    usage: Option<Usage>,
    model: Option<String>,
    error: Option<Error>,
    is_over: bool,
}

enum AnswerEvent {
    Event(Event),
    /// A candidate that had some text and will not be finished.
    Lost {
        candidate: usize,
        error: Error,
    },
    /// The end of it all, with nothing to show.
    Failed(Error),
}

impl Answer {
    fn start(&mut self) {
        let n = self.request.n;
        let config = &self.shared.config;
        let at_once = match config.candidates {
            Candidates::AtOnce => true,
            Candidates::OneByOne => false,
            Candidates::Auto => {
                config.flavour.draws_candidates_at_once() && !self.shared.ignores_n.load(Ordering::Relaxed)
            }
        };
        if at_once {
            self.add_lane(0, n);
        } else {
            (0..n).for_each(|candidate| self.add_lane(candidate, 1));
        }
    }

    fn add_lane(&mut self, first: usize, n: usize) {
        let (config, request) = (&self.shared.config, &self.request);
        // Only the pieces of a stream tell how many tokens each of several candidates has.
        let is_streamed = self.is_streamed || n > 1;
        let seed = request.sampling.seed.map(|seed| seed.wrapping_add(first as u64));
        let lane_request = LaneRequest {
            body: chat_body(config, request, n, is_streamed, seed),
            is_streamed,
            first,
            n,
            stop: request.sampling.stop.clone(),
            max_tokens: request.sampling.max_tokens,
            n_top: request.sampling.logprobs.filter(|_| config.gives_logprobs()),
            deadline: request.deadline.map(Instant::from_std),
        };
        self.lanes.push(lane(self.shared.server.clone(), lane_request));
    }

    async fn next(&mut self) -> Option<AnswerEvent> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            match self.lanes.next().await {
                Some(event) => self.take(event),
                None => self.end(),
            }
        }
    }

    fn take(&mut self, event: LaneEvent) {
        match event {
            LaneEvent::Answer(event) => {
                match &event {
                    Event::Delta { candidate, text, .. } => {
                        self.has_text[*candidate] |= !text.is_empty();
                        self.n_pieces[*candidate] = self.n_pieces[*candidate].saturating_add(1);
                    }
                    Event::Finished { n_tokens, .. } => {
                        self.n_finished += 1;
                        self.n_tokens = self.n_tokens.saturating_add(*n_tokens);
                    }
                    Event::Done { .. } => {}
                }
                self.queue.push_back(AnswerEvent::Event(event));
            }
            LaneEvent::Lost { candidate, error } if self.has_text[candidate] => {
                self.usage = None;
                self.queue.push_back(AnswerEvent::Lost { candidate, error });
            }
            LaneEvent::Lost { error, .. } => self.error = self.error.take().or(Some(error)),
            LaneEvent::Missing(candidates) if self.shared.config.candidates == Candidates::Auto => {
                if !self.shared.ignores_n.swap(true, Ordering::Relaxed) {
                    let backend = &self.shared.server.name;
                    tracing::info!(%backend, "server draws one candidate a request, asking for one at a time from now on");
                }
                candidates.into_iter().for_each(|candidate| self.add_lane(candidate, 1));
            }
            LaneEvent::Missing(_) => {}
            LaneEvent::Ended { usage, model } => {
                self.model = self.model.take().or(model);
                self.usage = self.usage.zip(usage).map(|(sum, usage)| Usage {
                    prompt_tokens: sum.prompt_tokens.saturating_add(usage.prompt_tokens),
                    completion_tokens: sum.completion_tokens.saturating_add(usage.completion_tokens),
                    trimmed_tokens: 0,
                    cached_tokens: sum.cached_tokens.saturating_add(usage.prompt_tokens_details.cached_tokens),
                });
            }
        }
    }

    fn end(&mut self) {
        self.is_over = true;
        let backend = self.shared.config.name.clone();
        if self.n_finished == 0 {
            let nothing = || Error::Protocol { backend, reason: "an answer without choices".to_owned() };
            let error = self.error.take().unwrap_or_else(nothing);
            self.queue.push_back(AnswerEvent::Failed(error));
            return;
        }
        let mut usage = self.usage.unwrap_or_default();
        // Some servers count the first candidate only.
        usage.completion_tokens = usage.completion_tokens.max(self.n_tokens);
        let model = self.model.take().unwrap_or_else(|| self.shared.config.model.clone());
        self.queue.push_back(AnswerEvent::Event(Event::Done { usage, model, backend }));
    }

    /// Joins what comes until the deadline; candidates that break are left out.
    async fn collect(mut self) -> Result<Completion, Error> {
        let deadline = self.request.deadline.map(Instant::from_std);
        let mut collector = Collector::new().expecting(self.request.n);
        let mut lost = None;
        loop {
            let event = match deadline {
                None => self.next().await,
                Some(deadline) => match tokio::time::timeout_at(deadline, self.next()).await {
                    Ok(event) => event,
                    Err(_) => return self.cut(collector),
                },
            };
            match event {
                Some(AnswerEvent::Event(event)) => collector.push(event)?,
                Some(AnswerEvent::Lost { candidate, error }) => {
                    collector.discard(candidate);
                    lost = lost.or(Some(error));
                }
                Some(AnswerEvent::Failed(error)) => return Err(lost.unwrap_or(error)),
                None => return collector.finish(),
            }
        }
    }

    fn cut(self, collector: Collector) -> Result<Completion, Error> {
        let mut completion = collector.cut().ok_or(Error::DeadlineExceeded)?;
        completion.model = self.model.unwrap_or_else(|| self.shared.config.model.clone());
        completion.backend = self.shared.config.name.clone();
        Ok(completion)
    }

    /// Returns the next item of a stream. A candidate that broke is ended as cut once the others have ended; only when none
    /// has, the stream fails.
    async fn next_of_stream(&mut self) -> Option<Result<Event, Error>> {
        loop {
            match self.next().await? {
                AnswerEvent::Event(done @ Event::Done { .. }) if !self.lost.is_empty() => {
                    self.queue.push_front(AnswerEvent::Event(done));
                    for (candidate, _) in std::mem::take(&mut self.lost) {
                        let (reason, n_tokens) = (FinishReason::Deadline, self.n_pieces[candidate]);
                        let cut = Event::Finished { candidate, reason, n_tokens, mean_logprob: None };
                        self.queue.push_front(AnswerEvent::Event(cut));
                    }
                }
                AnswerEvent::Event(event) => return Some(Ok(event)),
                AnswerEvent::Lost { candidate, error } => self.lost.push((candidate, error)),
                AnswerEvent::Failed(error) => {
                    return Some(Err(self.lost.drain(..).next().map_or(error, |(_, error)| error)));
                }
            }
        }
    }

    /// Passes what comes on, once the first of it is there.
    async fn into_stream(mut self) -> Result<CompletionStream, Error> {
        let first = self.next_of_stream().await.ok_or(Error::DeadlineExceeded)??;
        let rest = stream::unfold(Some(self), |answer| async move {
            let mut answer = answer?;
            let item = answer.next_of_stream().await?;
            let is_over = item.is_err();
            Some((item, (!is_over).then_some(answer)))
        });
        Ok(stream::once(async { Ok(first) }).chain(rest).boxed())
    }
}

fn is_past(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| deadline <= Instant::now())
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Backend for OpenAiBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        request.validate()?;
        chain::fields(self.shared.config.flavour, &self.shared.config.name, &request.sampling)?;
        let deadline = request.deadline.map(Instant::from_std);
        if is_past(deadline) {
            return Err(Error::DeadlineExceeded);
        }
        self.answer(request, deadline.is_some()).collect().await
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        request.validate()?;
        chain::fields(self.shared.config.flavour, &self.shared.config.name, &request.sampling)?;
        let deadline = request.deadline.map(Instant::from_std);
        if is_past(deadline) {
            return Err(Error::DeadlineExceeded);
        }
        let opening = self.answer(request, true).into_stream();
        let Some(deadline) = deadline else { return opening.await };
        let stream = tokio::time::timeout_at(deadline, opening).await.map_err(|_| Error::DeadlineExceeded)??;
        Ok(end_at(stream, deadline, &self.shared.config.model, &self.shared.config.name))
    }

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        let config = &self.shared.config;
        request.check_support(&config.name, &self.capabilities)?;
        request.validate()?;
        self.shared.score(&request.messages, &request.completion).await.map_err(|fault| fault.into_error(&config.name))
    }

    async fn health(&self) -> Health {
        self.health.check().await
    }
}

impl Shared {
    /// Scores by vLLM's `prompt_logprobs`: those of the whole conversation, less the tokens before the completion.
    async fn score(&self, before: &[Message], completion: &str) -> Result<Score, Fault> {
        if completion.is_empty() {
            return Ok(Score::default());
        }
        let model = &self.config.model;
        let mut whole = before.to_vec();
        whole.push(Message::assistant(completion));
        let prompt = json!({ "model": model, "messages": messages(before), "max_tokens": 1, "stream": false });
        let scored = json!({
            "model": model, "messages": messages(&whole), "max_tokens": 1, "stream": false, "prompt_logprobs": 0,
            "add_generation_prompt": false, "continue_final_message": true,
        });
        let n_prompt = self.ask(prompt).await?.usage.map_or(0, |usage| usage.prompt_tokens as usize);
        let rows = self.ask(scored).await?.prompt_logprobs;
        let rows = rows.filter(|rows| n_prompt > 0 && rows.len() > n_prompt);
        let Some(rows) = rows else {
            return Err(Fault::Malformed("an answer without log-probabilities of the prompt".to_owned()));
        };
        let mut score = Score::default();
        for row in &rows[n_prompt..] {
            let (id, token) = row.as_ref().and_then(|row| row.iter().next()).ok_or_else(unreadable)?;
            let text = token.get("decoded_token").and_then(Value::as_str).unwrap_or_default().to_owned();
            score.token_ids.push(id.parse().map_err(|_| unreadable())?);
            let logprob = logprob(token.get("logprob").and_then(Value::as_f64));
            score.tokens.push(TokenLogprob { token: text, logprob, top: Vec::new() });
        }
        Ok(score)
    }

    async fn ask(&self, body: Value) -> Result<Chunk, Fault> {
        let _place = self.server.place().await;
        let limit = self.server.config.timeouts.whole;
        let once = || async {
            let asking = async {
                let chat = self.server.client.chat().headers(accept(JSON));
                chat.create_byot::<_, Value>(&body).await.map_err(Fault::of).and_then(chunk)
            };
            timeout(limit, asking).await.unwrap_or(Err(Fault::Silent(limit)))
        };
        self.server.retry(None, once).await
    }
}

fn unreadable() -> Fault {
    Fault::Malformed("log-probabilities of the prompt that cannot be read".to_owned())
}
