//! One chat request under way, for one or several candidates.

use std::collections::VecDeque;
use std::time::Duration;

use async_openai::traits::RequestOptionsBuilder;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use idiolect_backend::{Error, Event, FinishReason, TokenLogprob};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use crate::fault::Fault;
use crate::stop::StopFilter;
use crate::transport::{EVENT_STREAM, JSON, Server, accept};
use crate::wire::{Chunk, WireUsage};

/// How long the usage may follow after the last candidate's end.
const USAGE_PATIENCE: Duration = Duration::from_millis(500);

/// What happens in a lane. Its last item is `Ended`.
#[derive(Debug)]
pub(crate) enum LaneEvent {
    /// Part of the answer: a `Delta` or `Finished`.
    Answer(Event),
    /// A candidate that will not be finished, and why. Text of it may have gone before.
    Lost { candidate: usize, error: Error },
    /// The server drew fewer candidates than it was asked for: these are not begun.
    Missing(Vec<usize>),
    /// Nothing more comes.
    Ended { usage: Option<WireUsage>, model: Option<String> },
}

/// What a lane asks for.
#[derive(Clone, Debug)]
pub(crate) struct LaneRequest {
    pub(crate) body: Value,
    pub(crate) is_streamed: bool,
    /// The first candidate, and how many.
    pub(crate) first: usize,
    pub(crate) n: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) max_tokens: u32,
    /// Alternatives for each token; `None` drops log-probabilities that a server gives unasked.
    pub(crate) n_top: Option<u8>,
    pub(crate) deadline: Option<Instant>,
}

/// Runs a lane. Dropping the stream ends the request.
pub(crate) fn lane(server: Server, request: LaneRequest) -> BoxStream<'static, LaneEvent> {
    let parts = (0..request.n).map(|_| Part::new(&request.stop)).collect();
    let lane =
        Lane { server, request, parts, source: Source::Unopened, queue: VecDeque::new(), usage: None, model: None };
    stream::unfold(lane, |mut lane| async move {
        let event = lane.next().await?;
        Some((event, lane))
    })
    .boxed()
}

type Chunks = BoxStream<'static, Result<Chunk, Fault>>;

enum Source {
    Unopened,
    Open { chunks: Chunks, _place: Option<OwnedSemaphorePermit> },
    Over,
}

struct Lane {
    server: Server,
    request: LaneRequest,
    parts: Vec<Part>,
    source: Source,
    queue: VecDeque<LaneEvent>,
    usage: Option<WireUsage>,
    model: Option<String>,
}

/// One candidate so far.
struct Part {
    stop: StopFilter,
    is_seen: bool,
    reason: Option<FinishReason>,
    /// Its end was passed on.
    is_told: bool,
    n_deltas: u32,
    n_logprobs: u32,
    logprob_sum: f64,
}

impl Part {
    fn new(stop: &[String]) -> Self {
        Self {
            stop: StopFilter::new(stop),
            is_seen: false,
            reason: None,
            is_told: false,
            n_deltas: 0,
            n_logprobs: 0,
            logprob_sum: 0.0,
        }
    }
}

impl Lane {
    async fn next(&mut self) -> Option<LaneEvent> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            match &mut self.source {
                Source::Over => return None,
                Source::Unopened => self.open().await,
                Source::Open { chunks, .. } => {
                    let all_ended = self.parts.iter().all(|part| part.reason.is_some());
                    let idle = self.server.config.timeouts.idle;
                    let patience = if all_ended { USAGE_PATIENCE.min(idle) } else { idle };
                    match timeout(patience, chunks.next()).await {
                        Ok(Some(Ok(chunk))) => self.take(chunk),
                        Ok(None) => self.end(),
                        _ if all_ended => self.end(),
                        Ok(Some(Err(fault))) => self.fail(&fault),
                        Err(_) => self.fail(&Fault::Silent(patience)),
                    }
                }
            }
        }
    }

    async fn open(&mut self) {
        let place = self.server.place().await;
        let (server, request) = (self.server.clone(), self.request.clone());
        match self.server.retry(self.request.deadline, || open(&server, &request)).await {
            Ok(chunks) => self.source = Source::Open { chunks, _place: place },
            Err(fault) if self.request.n > 1 && fault.may_refuse_n() => {
                // The request may be fine but for its `n`: one each will tell.
                let missing = (self.request.first..self.request.first + self.request.n).collect();
                self.queue.push_back(LaneEvent::Missing(missing));
                self.over();
            }
            Err(fault) => self.fail(&fault),
        }
    }

    fn take(&mut self, mut chunk: Chunk) {
        self.usage = chunk.usage.or(self.usage);
        if self.model.is_none() {
            self.model = chunk.model.take().filter(|model| !model.is_empty());
        }
        for mut choice in std::mem::take(&mut chunk.choices) {
            let index = choice.index.unwrap_or(0);
            let text = choice.take_text();
            let logprobs = match self.request.n_top {
                Some(n_top) => choice.take_logprobs(n_top),
                None => Vec::new(),
            };
            self.say(index, &text, logprobs, choice.reason());
        }
        if !self.parts.is_empty() && self.parts.iter().all(|part| part.reason.is_some()) && self.usage.is_some() {
            self.end();
        }
    }

    fn say(&mut self, index: usize, text: &str, logprobs: Vec<TokenLogprob>, reason: Option<FinishReason>) {
        // More candidates than were asked for, or more of one that a stop text has ended, are not wanted.
        let Some(part) = self.parts.get_mut(index).filter(|part| part.reason.is_none()) else { return };
        let candidate = self.request.first + index;
        part.is_seen = true;
        let (mut out, is_stopped) = part.stop.push(text);
        if is_stopped {
            part.reason = Some(FinishReason::Stop);
        } else if let Some(reason) = reason {
            out.push_str(&part.stop.flush());
            part.reason = Some(reason);
        }
        part.n_deltas += u32::from(!text.is_empty());
        part.n_logprobs += logprobs.len() as u32;
        part.logprob_sum += logprobs.iter().map(|token| f64::from(token.logprob)).sum::<f64>();
        if !out.is_empty() || !logprobs.is_empty() {
            self.queue.push_back(LaneEvent::Answer(Event::Delta { candidate, text: out, logprobs }));
        }
        // The usage at the lane's end says more of a single candidate; of several, each one's end stands for itself.
        if self.parts.len() > 1 {
            self.tell(index);
        }
        if is_stopped && self.parts.iter().all(|part| part.reason.is_some()) {
            // The server may go on beyond the stop text; that is not worth waiting for.
            self.end();
        }
    }

    /// Passes a candidate's end on, once, and says whether it has ended.
    fn tell(&mut self, index: usize) -> bool {
        let part = &self.parts[index];
        let Some(reason) = part.reason else { return false };
        if !part.is_told {
            let n = part.n_logprobs;
            let mean_logprob = (n > 0).then(|| (part.logprob_sum / f64::from(n)) as f32);
            let (candidate, n_tokens) = (self.request.first + index, self.n_tokens(part));
            let finished = Event::Finished { candidate, reason, n_tokens, mean_logprob };
            self.queue.push_back(LaneEvent::Answer(finished));
            self.parts[index].is_told = true;
        }
        true
    }

    /// Ends the candidates that have ended, and tells which have not.
    fn end(&mut self) {
        let none_seen = self.parts.iter().all(|part| !part.is_seen);
        let mut missing = Vec::new();
        for index in 0..self.parts.len() {
            if self.tell(index) {
                continue;
            }
            let candidate = self.request.first + index;
            let part = &self.parts[index];
            if !part.is_seen && !none_seen {
                missing.push(candidate);
                continue;
            }
            let reason = if part.is_seen { "an answer that ends too early" } else { "an answer without choices" };
            let fault = Fault::Malformed(reason.to_owned());
            self.queue.push_back(LaneEvent::Lost { candidate, error: fault.into_error(&self.server.name) });
        }
        if !missing.is_empty() {
            self.queue.push_back(LaneEvent::Missing(missing));
        }
        self.over();
    }

    fn n_tokens(&self, part: &Part) -> u32 {
        let told = self.usage.filter(|_| self.parts.len() == 1).map(|usage| usage.completion_tokens);
        let n = match (part.n_logprobs, told) {
            (0, Some(told)) if told > 0 => told,
            (0, _) => part.n_deltas,
            (n, _) => n,
        };
        n.min(self.request.max_tokens)
    }

    fn fail(&mut self, fault: &Fault) {
        for index in 0..self.parts.len() {
            // What has ended before the fault is whole.
            if self.parts.len() > 1 && self.tell(index) {
                continue;
            }
            let (candidate, error) = (self.request.first + index, fault.clone().into_error(&self.server.name));
            self.queue.push_back(LaneEvent::Lost { candidate, error });
        }
        self.over();
    }

    fn over(&mut self) {
        self.source = Source::Over;
        self.queue.push_back(LaneEvent::Ended { usage: self.usage, model: self.model.take() });
    }
}

/// Sends the request once and waits for the first piece of the answer.
async fn open(server: &Server, request: &LaneRequest) -> Result<Chunks, Fault> {
    let timeouts = &server.config.timeouts;
    let limit = if request.is_streamed { timeouts.first_byte } else { timeouts.whole };
    let opening = async {
        let mut chunks = if request.is_streamed {
            streamed(server, &request.body).await?
        } else {
            whole(server, &request.body).await?
        };
        let first = match chunks.next().await {
            Some(first) => first?,
            None => return Err(Fault::Malformed("an empty answer".to_owned())),
        };
        Ok(stream::once(async { Ok(first) }).chain(chunks).boxed())
    };
    timeout(limit, opening).await.unwrap_or(Err(Fault::Silent(limit)))
}

async fn streamed(server: &Server, body: &Value) -> Result<Chunks, Fault> {
    let chat = server.client.chat().headers(accept(EVENT_STREAM));
    let events = chat.create_stream_byot::<_, Value>(body).await.map_err(Fault::of)?;
    Ok(events.map(|event| event.map_err(Fault::of).and_then(chunk)).boxed())
}

async fn whole(server: &Server, body: &Value) -> Result<Chunks, Fault> {
    let chat = server.client.chat().headers(accept(JSON));
    let mut answer = chunk(chat.create_byot::<_, Value>(body).await.map_err(Fault::of)?)?;
    for choice in &mut answer.choices {
        // What is whole has ended, even where the server doesn't say why.
        choice.finish_reason.get_or_insert_with(|| "stop".to_owned());
    }
    Ok(stream::once(async { Ok(answer) }).boxed())
}

/// Reads one piece of an answer, and the failure that it may hold.
pub(crate) fn chunk(value: Value) -> Result<Chunk, Fault> {
    let chunk: Chunk = serde_json::from_value(value)
        .map_err(|_| Fault::Malformed("an answer of another shape than chat completions have".to_owned()))?;
    match chunk.fault() {
        Some(fault) => Err(fault),
        None => Ok(chunk),
    }
}
