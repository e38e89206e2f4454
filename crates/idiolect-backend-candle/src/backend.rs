//! The backend: a handle on the engine's thread.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use idiolect_backend::{
    Backend, Candidate, Capabilities, Completion, CompletionStream, Error, Event, FinishReason, Health, Request, Score,
    ScoreRequest, ScoreSupport,
};
use idiolect_kernels::Tier;
use idiolect_sampling::Chain;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc, oneshot};

use crate::clock::Clock;
use crate::config::CandleConfig;
use crate::device::{DeviceChoice, OpenDevice};
use crate::engine::{Engine, Settings, TensorSettings, Tensors, Transformer};
use crate::error::{LoadError, guard};
use crate::intake::{Answer, Intake, Job, Queue};
use crate::measure::measure;
use crate::prompt::{Prompter, count};
use crate::sampling::Texts;
use crate::speed::{Meter, Speed};
use crate::template::Template;
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use crate::worker::Worker;

/// Threads that make tokens of requests.
const INTAKES: usize = 4;

/// Tokens that the memory for keys and values must be enough for.
const MIN_KV_TOKENS: usize = 16;

/// A local GGUF model.
///
/// One thread owns the engine, with a bounded queue in front: a full queue is [`Error::Overloaded`]. The candidates of all
/// requests grow side by side, one token a step for each; those of one request share its prompt, and prompts that begin
/// alike share that. Requests join and leave at every step, and whose deadline is nearest comes first. What one candidate
/// says does not depend on the others.
///
/// Deadlines: a request is given as many candidates as can be expected to end in time, going by the
/// [speed](Self::speed) measured so far (at first when the model was loaded), but two at least, and memory for the tokens that there is time for rather than for
/// all that it asks for. While they grow, more is set aside where there turns out to be time for more, and the worst are given
/// up where that lets the others end; at the deadline, all are. What is given up is part of the answer, with
/// [`FinishReason::Deadline`].
///
/// Dropping a future or stream stops the work within one step. The handle is cheap to share behind `Arc`; when the last
/// one goes, the threads end and the memory is free.
#[derive(Debug)]
pub struct CandleBackend {
    name: String,
    capabilities: Capabilities,
    max_candidates: usize,
    jobs: mpsc::Sender<Job>,
    /// Places in the queue.
    places: Arc<Semaphore>,
    meter: Arc<Mutex<Meter>>,
}

impl CandleBackend {
    /// Loads a GGUF file and starts the engine's thread. Blocks while it reads, for a second or so a gigabyte.
    ///
    /// # Errors
    /// [`LoadError`] when the file cannot be read, is damaged, or holds a model that this crate does not run.
    pub fn load(path: &Path, config: CandleConfig) -> Result<Self, LoadError> {
        config.validate()?;
        guard(path, || {
            if config.device == DeviceChoice::Cpu {
                return Self::load_with(path, config, |weights, config| {
                    let settings = Settings {
                        threads: config.n_threads(),
                        tier: Tier::detect(),
                        kv_type: config.kv_type.for_kernels()?,
                        max_kv_bytes: config.max_kv_bytes,
                        max_kept_bytes: config.kept_bytes(),
                    };
                    Transformer::load(weights, &settings)
                });
            }
            let device = OpenDevice::open(config.device)?;
            Self::load_with(path, config, |weights, config| {
                Tensors::load(weights, &TensorSettings::new(config)?, &device)
            })
        })
    }

    pub(crate) fn load_with<E: Engine>(
        path: &Path,
        config: CandleConfig,
        load: impl FnOnce(&mut Weights, &CandleConfig) -> Result<E, LoadError>,
    ) -> Result<Self, LoadError> {
        let mut weights = Weights::open(path, config.context_tokens, config.quantize)?;
        // The small parts first: most errors show there.
        let tokenizer = Tokenizer::of(&weights)?;
        let template = Template::of(&weights, &tokenizer)?;
        let named = match weights.gguf() {
            Some(gguf) => gguf.text("general.name")?.filter(|name| !name.is_empty()).map(str::to_owned),
            None => None,
        };
        let file_stem = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let model = config.model.clone().or(named).unwrap_or(file_stem);
        let family = weights.architecture()?;
        let engine = load(&mut weights, &config)?;
        drop(weights);
        if tokenizer.len() > engine.vocabulary() {
            let reason = format!("it has {} tokens and logits for {}", tokenizer.len(), engine.vocabulary());
            return Err(LoadError::damaged(path, reason));
        }
        // Rows beyond the vocabulary are padding.
        let padding = count(tokenizer.len())..count(engine.vocabulary());
        let banned = tokenizer.unspeakable().into_iter().chain(padding).collect();
        let prompter = Prompter { tokenizer, template, context: engine.context() };
        Self::start(engine, prompter, banned, Names { model, family }, config, Clock::System)
    }

    pub(crate) fn start(
        engine: impl Engine,
        prompter: Prompter,
        banned: Vec<u32>,
        names: Names,
        config: CandleConfig,
        clock: Clock,
    ) -> Result<Self, LoadError> {
        let mut capabilities = Capabilities::new(&names.model);
        capabilities.context_tokens = Some(count(engine.context()));
        capabilities.seed = true;
        capabilities.logprobs = true;
        capabilities.batched_candidates = true;
        capabilities.score = ScoreSupport::Rows;
        capabilities.min_tokens = true;
        capabilities.stages = Chain::available();
        capabilities.family = Some(names.family);
        let (intake, worker) = assemble(engine, prompter, banned, names.model, &config, clock.clone())?;
        let meter = Arc::clone(&worker.meter);
        let (jobs, queue) = mpsc::channel(config.queue);
        let (ready, arrivals) = mpsc::channel(config.queue);
        let spawn = |what: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(format!("{}-{what}", config.name));
            thread.spawn(work).map(drop).map_err(LoadError::Thread)
        };
        let (intake, queue) = (Arc::new(intake), Arc::new(Mutex::new(Queue::new(queue, clock))));
        for _ in 0..INTAKES {
            let (intake, queue, ready) = (Arc::clone(&intake), Arc::clone(&queue), ready.clone());
            spawn("intake", Box::new(move || intake.run(&queue, &ready)))?;
        }
        drop(ready);
        spawn("worker", Box::new(move || worker.run(arrivals)))?;
        let places = Arc::new(Semaphore::new(config.queue.min(Semaphore::MAX_PERMITS)));
        Ok(Self { name: config.name, capabilities, max_candidates: config.max_candidates, jobs, places, meter })
    }

    /// Returns how fast prompts and candidates were computed of late.
    #[must_use]
    pub fn speed(&self) -> Speed {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner).speed()
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|error| match error {
            TryAcquireError::NoPermits => Error::Overloaded { backend: self.name.clone(), retry_after: None },
            TryAcquireError::Closed => self.gone(),
        })
    }

    fn submit(&self, job: Job) -> Result<(), Error> {
        // Who has a place finds room in the channel.
        self.jobs.try_send(job).map_err(|_| self.gone())
    }

    fn gone(&self) -> Error {
        Error::Unavailable { backend: self.name.clone(), reason: "its engine stopped".to_owned() }
    }

    /// Checks a request, queues it, and waits until its prompt is computed.
    async fn begin(&self, request: Request) -> Result<mpsc::Receiver<Result<Event, Error>>, Error> {
        request.validate()?;
        self.capabilities.check_stages(&self.name, &request.sampling)?;
        if request.n > self.max_candidates {
            let (n, most) = (request.n, self.max_candidates);
            return Err(Error::InvalidRequest(format!("n is {n}, expected at most {most}")));
        }
        let (started, begun) = oneshot::channel();
        let context = self.capabilities.context_tokens.unwrap_or(u32::MAX);
        let (events, received) = mpsc::channel(most_events(&request, context));
        let (place, answer) = (self.place()?, Answer { started: Some(started), events });
        self.submit(Job::Generate { request: Box::new(request), answer, place })?;
        // A worker that panics drops its end without a word.
        begun.await.unwrap_or_else(|_| Err(self.gone()))?;
        Ok(received)
    }
}

/// What a model is called.
pub(crate) struct Names {
    pub(crate) model: String,
    /// Its architecture.
    pub(crate) family: String,
}

/// Makes what prepares requests and what answers them.
pub(crate) fn assemble<E: Engine>(
    mut engine: E,
    prompter: Prompter,
    banned: Vec<u32>,
    model: String,
    config: &CandleConfig,
    clock: Clock,
) -> Result<(Intake, Worker<E>), LoadError> {
    let portion = engine.portion();
    let tokens = MIN_KV_TOKENS.next_multiple_of(portion.tokens);
    let least = (tokens / portion.tokens) as u64 * portion.bytes;
    if config.max_kv_bytes < least {
        let allowed = config.max_kv_bytes;
        let reason = format!("max_kv_bytes is {allowed}, this model takes {least} for {tokens} tokens");
        return Err(LoadError::Config(reason));
    }
    let portions = config.max_kv_bytes / portion.bytes.max(1);
    let meter = Arc::new(Mutex::new(measure(&mut engine, portions, &clock)));
    let prompter = Arc::new(prompter);
    let intake = Intake {
        prompter: Arc::clone(&prompter),
        portion,
        max_kv_bytes: config.max_kv_bytes,
        max_batch: config.max_batch,
        vocabulary: engine.vocabulary(),
        preset: config.preset,
        texts: Texts::default(),
        meter: Arc::clone(&meter),
        clock: clock.clone(),
    };
    let worker = Worker {
        engine,
        prompter,
        name: config.name.clone(),
        model,
        banned,
        portions,
        max_batch: config.max_batch,
        meter,
        clock,
    };
    Ok((intake, worker))
}

/// Returns how many events a request can cause at most, so that the engine never waits for a slow reader.
pub(crate) fn most_events(request: &Request, context: u32) -> usize {
    let most_tokens = request.sampling.max_tokens.min(context) as usize;
    request.n * (most_tokens + 3) + 1
}

/// Puts the candidates together that a request's events are of; `None` where these end before the last.
pub(crate) async fn collect(
    n: usize,
    with_logprobs: bool,
    events: &mut mpsc::Receiver<Result<Event, Error>>,
) -> Result<Option<Completion>, Error> {
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
    let mut ended = Vec::with_capacity(n);
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
                ended.push(candidate);
                let candidate = &mut candidates[candidate];
                candidate.finish_reason = reason;
                candidate.n_tokens = n_tokens;
                candidate.mean_logprob = mean_logprob;
            }
            Event::Done { usage, model, backend } => {
                // For a deadline, fewer may have begun.
                candidates.retain(|candidate| ended.contains(&candidate.index));
                return Ok(Some(Completion { candidates, usage, model, backend }));
            }
        }
    }
    Ok(None)
}

#[async_trait]
impl Backend for CandleBackend {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        let (n, with_logprobs) = (request.n, request.sampling.logprobs.is_some());
        let mut events = self.begin(request).await?;
        collect(n, with_logprobs, &mut events).await?.ok_or_else(|| self.gone())
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

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        request.validate()?;
        let (reply, score) = oneshot::channel();
        let place = self.place()?;
        self.submit(Job::Score { request, reply, place })?;
        score.await.unwrap_or_else(|_| Err(self.gone()))
    }

    async fn health(&self) -> Health {
        if self.jobs.is_closed() { Health::Unavailable("its engine stopped".to_owned()) } else { Health::Ready }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use candle_core::quantized::gguf_file::Value;
    use idiolect_backend::testkit::Conformance;
    use idiolect_backend::{ErrorKind, Message};

    use crate::testing::TinyGguf;
    use crate::testing::kept::Kept;
    use crate::testing::script::{Fault, Script};

    /// Bytes of keys and values.
    const ALLOWED: u64 = 4_000_000;

    /// A backend that fails as told, a prompt of more than a hundred tokens later.
    fn backend(fault: Fault, after: usize) -> CandleBackend {
        Arc::new(Script::failing(fault, after)).start(|config| config.max_kv_bytes = ALLOWED)
    }

    fn request(faulty: bool) -> Request {
        let mut request = Request::new(vec![Message::user(if faulty { "x".repeat(100) } else { "x".to_owned() })]);
        request.n = 2;
        request.sampling.max_tokens = 6;
        request
    }

    #[tokio::test]
    async fn a_healthy_engine_answers() {
        let backend = backend(Fault::Panic, 0);
        let completion = backend.complete(request(false)).await.unwrap();
        assert_eq!(completion.candidates[1].text, "hehehehehehe");
        assert_eq!(completion.candidates[1].finish_reason, FinishReason::Length);
        assert_eq!((completion.usage.completion_tokens, completion.model.as_str()), (12, "script"));
    }

    #[tokio::test]
    async fn what_needs_too_much_memory_is_refused_with_the_numbers() {
        // The script panics on a fault that it should not come to.
        let backend = backend(Fault::Panic, 0);
        let mut ask = request(false);
        let prompt = backend.complete(ask.clone()).await.unwrap().usage.prompt_tokens;
        (ask.n, ask.sampling.max_tokens) = (8, 500);
        let error = backend.complete(ask.clone()).await.unwrap_err();
        let needed = (u64::from(prompt) + 4000) * 1000;
        assert_eq!(
            error.to_string(),
            format!(
                "invalid request: 8 candidates of 500 tokens after a prompt of {prompt} need {needed} bytes of keys and \
                 values, 4000000 are allowed"
            )
        );
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        ask.sampling.max_tokens = (4000 - prompt) / 8;
        assert_eq!(backend.complete(ask).await.unwrap().candidates.len(), 8);
    }

    #[test]
    fn memory_that_is_enough_for_no_request_is_refused() {
        let (_dir, path) = TinyGguf::model("llama").write();
        let config = CandleConfig { max_kv_bytes: 1000, ..CandleConfig::default() };
        let error = CandleBackend::load(&path, config).unwrap_err();
        assert_eq!(error.to_string(), "max_kv_bytes is 1000, this model takes 4096 for 16 tokens");
    }

    #[tokio::test]
    async fn bad_logits_are_an_error_whenever_they_come() {
        for after in [0, 3] {
            let backend = backend(Fault::NotANumber, after);
            let error = backend.complete(request(true)).await.unwrap_err();
            assert!(matches!(error, Error::Internal { .. }), "{error}");
            let events: Vec<_> = match backend.stream(request(true)).await {
                Ok(stream) => stream.collect().await,
                Err(error) => vec![Err(error)],
            };
            assert!(matches!(events.last(), Some(Err(Error::Internal { .. }))));
            assert_eq!(events.iter().filter(|e| e.is_err()).count(), 1);
            backend.complete(request(false)).await.unwrap();
            let score = backend.score(ScoreRequest::new([Message::user("x".repeat(100))], "he")).await;
            assert_eq!(score.is_err(), after == 0);
        }
    }

    #[tokio::test]
    async fn a_panic_fails_its_request_and_no_other() {
        for after in [0, 3] {
            let backend = backend(Fault::Panic, after);
            let error = backend.complete(request(true)).await.unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
            backend.complete(request(false)).await.unwrap();
            assert_eq!(backend.health().await, Health::Ready);
        }
    }

    #[tokio::test]
    async fn a_deadline_gives_what_is_there_or_an_error() {
        let script = Arc::new(Script::failing(Fault::Slow, 0));
        let backend = script.start(|config| config.max_kv_bytes = ALLOWED);
        let mut ask = request(true);
        ask.sampling.max_tokens = 1000;
        ask.sampling.stop = vec!["heX".to_owned()];
        let deadline = script.now() + Duration::from_millis(400);
        ask.deadline = Some(deadline);
        let completion = backend.complete(ask.clone()).await.unwrap();
        assert!(script.now() <= deadline);
        for candidate in &completion.candidates {
            assert_eq!(candidate.finish_reason, FinishReason::Deadline);
            assert_eq!(candidate.text, "he".repeat(candidate.n_tokens as usize), "held text is not lost");
        }
        ask.deadline = Some(script.now() + Duration::from_millis(5));
        assert!(matches!(backend.complete(ask).await, Err(Error::DeadlineExceeded)));
    }

    #[tokio::test]
    async fn a_slow_reader_does_not_hold_the_engine_up() {
        let backend = backend(Fault::Slow, 0);
        let unread = backend.stream(request(false)).await.unwrap();
        backend.complete(request(false)).await.unwrap();
        assert_eq!(unread.count().await, 2 * 7 + 1);
    }

    /// A backend on candle's tensors, with a model of random weights.
    fn on_tensors() -> CandleBackend {
        let mut tiny = TinyGguf::model("qwen3");
        tiny.set("qwen3.context_length", Value::U32(4096));
        let (_dir, path) = tiny.write();
        let config = CandleConfig { queue: 64, name: "tensors".to_owned(), ..CandleConfig::default() };
        let device = crate::engine::checks::device();
        let load = |weights: &mut Weights, config: &CandleConfig| {
            Tensors::load(weights, &TensorSettings::new(config)?, &device)
        };
        CandleBackend::load_with(&path, config, load).unwrap()
    }

    #[tokio::test]
    async fn the_engine_on_tensors_keeps_the_contract() {
        let kept = Kept::default();
        metrics::set_global_recorder(kept.clone()).unwrap();
        let backend = std::sync::Arc::new(on_tensors());
        let conformance = Conformance::new(move || std::sync::Arc::clone(&backend) as std::sync::Arc<dyn Backend>);
        // A step that has begun is computed to its end, whatever else the machine has to do.
        let steps = move || Duration::from_secs(kept.steps("tensors") as u64);
        conformance.clock(steps).slack(Duration::from_secs(1)).run().await;
    }

    #[test]
    fn devices_that_cannot_be_used_are_named() {
        let (_dir, path) = TinyGguf::model("llama").write();
        let config = CandleConfig { device: DeviceChoice::Cuda(77), ..CandleConfig::default() };
        let error = CandleBackend::load(&path, config).unwrap_err().to_string();
        let expected =
            if cfg!(feature = "cuda") { "cannot use device cuda:77: " } else { "build with the feature \"cuda\"" };
        assert!(error.contains(expected), "{error}");
    }
}
