//! The backend: a handle on the engine's thread.

use std::path::Path;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use idiolect_backend::{
    Backend, Candidate, Capabilities, Completion, CompletionStream, Error, Event, FinishReason, Health, Message,
    Request, Score, ScoreSupport,
};
use tokio::sync::{mpsc, oneshot};

use crate::config::CandleConfig;
use crate::engine::{Engine, Llama};
use crate::error::{LoadError, guard};
use crate::loader::Gguf;
use crate::prompt::{Prompter, count};
use crate::template::Template;
use crate::tokenizer::Tokenizer;
use crate::worker::{Job, Worker};

/// A local GGUF model.
///
/// One thread owns the engine, with a bounded queue in front: a full queue is [`Error::Overloaded`]. All candidates of
/// a request are drawn in one batch that shares the prompt. Dropping a future or stream stops the work within one
/// step. The handle is cheap to share behind `Arc`; when the last one goes, the thread ends and the memory is free.
#[derive(Debug)]
pub struct CandleBackend {
    name: String,
    capabilities: Capabilities,
    max_candidates: usize,
    jobs: mpsc::Sender<Job>,
}

impl CandleBackend {
    /// Loads a GGUF file and starts the engine's thread. Blocks while it reads, for a second or so a gigabyte.
    ///
    /// # Errors
    /// [`LoadError`] when the file cannot be read, is damaged, or holds a model that this crate does not run.
    pub fn load(path: &Path, config: CandleConfig) -> Result<Self, LoadError> {
        config.validate()?;
        guard(path, || Self::load_unguarded(path, config))
    }

    fn load_unguarded(path: &Path, config: CandleConfig) -> Result<Self, LoadError> {
        let mut gguf = Gguf::open(path)?;
        // The small parts first: most errors show there.
        let tokenizer = Tokenizer::read(&gguf)?;
        let template = Template::read(&gguf, &tokenizer)?;
        let named = gguf.text("general.name")?.filter(|name| !name.is_empty()).map(str::to_owned);
        let file_stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let model = config.model.clone().or(named).unwrap_or(file_stem);
        let engine = Llama::load(&mut gguf, config.context_tokens, config.n_threads())?;
        drop(gguf);
        if tokenizer.len() > engine.vocabulary() {
            let reason = format!("it has {} tokens and logits for {}", tokenizer.len(), engine.vocabulary());
            return Err(LoadError::damaged(path, reason));
        }
        let family = engine.params().architecture.clone();
        // Rows beyond the vocabulary are padding.
        let padding = count(tokenizer.len())..count(engine.vocabulary());
        let banned = tokenizer.unspeakable().into_iter().chain(padding).collect();
        let prompter = Prompter { tokenizer, template, context: engine.context() };
        Self::start(engine, prompter, banned, model, family, config)
    }

    fn start(
        engine: impl Engine,
        prompter: Prompter,
        banned: Vec<u32>,
        model: String,
        family: String,
        config: CandleConfig,
    ) -> Result<Self, LoadError> {
        let mut capabilities = Capabilities::new(&model);
        capabilities.context_tokens = Some(count(engine.context()));
        capabilities.seed = true;
        capabilities.logprobs = true;
        capabilities.batched_candidates = true;
        capabilities.score = ScoreSupport::Rows;
        capabilities.family = Some(family);
        let (jobs, queue) = mpsc::channel(config.queue);
        let worker = Worker { engine, prompter, name: config.name.clone(), model, banned };
        std::thread::Builder::new()
            .name(format!("{}-worker", config.name))
            .spawn(move || worker.run(queue))
            .map_err(LoadError::Thread)?;
        Ok(Self { name: config.name, capabilities, max_candidates: config.max_candidates, jobs })
    }

    fn submit(&self, job: Job) -> Result<(), Error> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded { backend: self.name.clone(), retry_after: None },
            mpsc::error::TrySendError::Closed(_) => self.gone(),
        })
    }

    fn gone(&self) -> Error {
        Error::Unavailable { backend: self.name.clone(), reason: "its engine stopped".to_owned() }
    }

    /// Checks a request, queues it, and waits until its prompt is computed.
    async fn begin(&self, request: Request) -> Result<mpsc::Receiver<Result<Event, Error>>, Error> {
        request.validate()?;
        if request.n > self.max_candidates {
            let (n, most) = (request.n, self.max_candidates);
            return Err(Error::InvalidRequest(format!("n is {n}, expected at most {most}")));
        }
        let (started, begun) = oneshot::channel();
        // Room for every event that the request can cause, so that the engine never waits for a slow reader.
        let context = self.capabilities.context_tokens.unwrap_or(u32::MAX);
        let most_tokens = request.sampling.max_tokens.min(context) as usize;
        let (events, received) = mpsc::channel(request.n * (most_tokens + 3) + 1);
        self.submit(Job::Generate { request: Box::new(request), started, events })?;
        // A worker that panics drops its end without a word.
        begun.await.unwrap_or_else(|_| Err(self.gone()))?;
        Ok(received)
    }
}

#[async_trait]
impl Backend for CandleBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        let (n, with_logprobs) = (request.n, request.sampling.logprobs.is_some());
        let mut events = self.begin(request).await?;
        let mut candidates: Vec<Candidate> = (0..n)
            .map(|index| Candidate {
                index,
                text: String::new(),
                finish_reason: FinishReason::Deadline,
                n_tokens: 0,
                logprobs: with_logprobs.then(Vec::new),
                mean_logprob: None,
            })
            .collect();
        while let Some(event) = events.recv().await {
            match event? {
                Event::Delta { candidate, text, logprobs } => {
                    let candidate = &mut candidates[candidate];
                    candidate.text.push_str(&text);
                    if let Some(all) = &mut candidate.logprobs {
                        all.extend(logprobs);
                    }
                }
                Event::Finished { candidate, reason, n_tokens, mean_logprob } => {
                    let candidate = &mut candidates[candidate];
                    candidate.finish_reason = reason;
                    candidate.n_tokens = n_tokens;
                    candidate.mean_logprob = mean_logprob;
                }
                Event::Done { usage, model, backend } => return Ok(Completion { candidates, usage, model, backend }),
            }
        }
        Err(self.gone())
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        let events = self.begin(request).await?;
        let gone = self.gone();
        // A panic of the worker would otherwise end the stream without its last item.
        let state = (events, Some(gone));
        let stream = stream::unfold(state, |(mut events, mut gone)| async move {
            gone.as_ref()?;
            let item = match events.recv().await {
                Some(item) => item,
                None => Err(gone.take()?),
            };
            if matches!(item, Ok(Event::Done { .. }) | Err(_)) {
                gone = None;
            }
            Some((item, (events, gone)))
        });
        Ok(stream.boxed())
    }

    async fn score(&self, messages: &[Message], completion: &str) -> Result<Score, Error> {
        Request::new(messages.to_vec()).validate()?;
        let (reply, score) = oneshot::channel();
        self.submit(Job::Score { messages: messages.to_vec(), completion: completion.to_owned(), reply })?;
        score.await.unwrap_or_else(|_| Err(self.gone()))
    }

    async fn health(&self) -> Health {
        if self.jobs.is_closed() { Health::Unavailable("its engine stopped".to_owned()) } else { Health::Ready }
    }
}
