//! Sentence encoders behind the contract of an embedder.

use std::path::Path;

use async_trait::async_trait;
use idiolect_backend::{Embedder, Embedding, Error};
use idiolect_kernels::Team;
use tokenizers::{Tokenizer, TruncationParams};
use tokio::sync::{mpsc, oneshot};

use super::weights::{Family, Shape, Weights};
use super::{Fault, kernels, tensors};
use crate::config::{EncoderConfig, n_threads};
use crate::device::{DeviceChoice, OpenDevice};
use crate::error::{LoadError, guard};

struct Job {
    texts: Vec<String>,
    reply: oneshot::Sender<Result<Vec<Embedding>, Error>>,
}

/// all-MiniLM-L6-v2, all-mpnet-base-v2, or any other sentence encoder of the shape of BERT or MPNet: the mean over all
/// tokens, then unit length.
///
/// One thread owns the model, with a bounded queue in front, and computes together with others. On the processor no text
/// is padded, so a text's embedding does not depend on its company. Surrounding whitespace does not matter. Dropping the
/// future stops the work at the next layer of the model.
#[derive(Debug)]
pub struct SentenceEncoder {
    name: String,
    dimensions: usize,
    max_tokens: usize,
    jobs: mpsc::Sender<Job>,
}

impl SentenceEncoder {
    /// Loads `model.safetensors`, `tokenizer.json` and `config.json` from a directory, with default settings. Blocks.
    ///
    /// # Errors
    /// [`LoadError`] when a file is missing, damaged, or of a model that is neither BERT nor MPNet.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        Self::load_with(dir, EncoderConfig::default())
    }

    /// Loads with settings; see [`load`](Self::load).
    ///
    /// # Errors
    /// As [`load`](Self::load); and when the device cannot be used.
    pub fn load_with(dir: &Path, settings: EncoderConfig) -> Result<Self, LoadError> {
        if settings.max_tokens < 3 || settings.queue == 0 {
            let EncoderConfig { max_tokens, queue, .. } = settings;
            let reason =
                format!("max_tokens is {max_tokens}, expected at least 3; queue is {queue}, expected at least 1");
            return Err(LoadError::Config(reason));
        }
        guard(dir, || Self::load_unguarded(dir, settings))
    }

    fn load_unguarded(dir: &Path, settings: EncoderConfig) -> Result<Self, LoadError> {
        let shape = Shape::read(&dir.join("config.json"))?;
        let max_tokens = settings.max_tokens.min(shape.max_tokens());
        let tokenizer = load_tokenizer(&dir.join("tokenizer.json"), max_tokens)?;
        let dimensions = shape.width;
        let name = settings.name.unwrap_or_else(|| {
            match shape.family {
                Family::Bert => "all-MiniLM-L6-v2",
                Family::Mpnet => "all-mpnet-base-v2",
            }
            .to_owned()
        });
        let mut weights = Weights::open(&dir.join("model.safetensors"), shape.clone())?;
        let engine = match settings.device {
            DeviceChoice::Cpu => Engine::Kernels(kernels::Model::load(&mut weights, shape)?),
            choice => {
                let device = OpenDevice::open(choice)?;
                Engine::Tensors(tensors::Model::load(&mut weights, shape, &device)?)
            }
        };
        drop(weights);
        let team = Team::new(n_threads(settings.threads)).map_err(LoadError::Thread)?;
        let (jobs, queue) = mpsc::channel(settings.queue);
        let worker = Worker { name: name.clone(), engine, tokenizer, team };
        std::thread::Builder::new()
            .name("encoder".to_owned())
            .spawn(move || worker.run(queue))
            .map_err(LoadError::Thread)?;
        Ok(Self { name, dimensions, max_tokens, jobs })
    }
}

/// Loads a tokenizer and replaces the padding and truncation that its file asks for.
pub(crate) fn load_tokenizer(path: &Path, max_tokens: usize) -> Result<Tokenizer, LoadError> {
    let bytes = std::fs::read(path).map_err(|e| LoadError::io(path, e))?;
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| LoadError::damaged(path, e))?;
    tokenizer.with_padding(None);
    let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|e| LoadError::damaged(path, e))?;
    Ok(tokenizer)
}

/// Where a model computes.
enum Engine {
    Kernels(kernels::Model),
    Tensors(tensors::Model),
}

struct Worker {
    name: String,
    engine: Engine,
    tokenizer: Tokenizer,
    team: Team,
}

impl Worker {
    fn run(&self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(Job { texts, reply }) = jobs.blocking_recv() {
            let work = || self.embed(&texts, &|| !reply.is_closed());
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err(Error::Internal { context: format!("{} panicked", self.name), source: None }));
            // Nobody waits when the future was dropped.
            drop(reply.send(result));
        }
    }

    fn embed(&self, texts: &[String], go_on: &(dyn Fn() -> bool + Sync)) -> Result<Vec<Embedding>, Error> {
        let mut encoded: Vec<Result<Vec<u32>, Error>> = texts.iter().map(|_| Ok(Vec::new())).collect();
        self.team.chunks_mut(&mut encoded, 1, |i, encoded| {
            if go_on() {
                encoded[0] = self.encode(&texts[i]);
            }
        });
        let encoded = encoded.into_iter().collect::<Result<Vec<_>, _>>()?;
        // A text without tokens, of a tokenizer without special ones, has no place: all zeros.
        let (numbers, inputs): (Vec<usize>, Vec<&[u32]>) =
            encoded.iter().map(Vec::as_slice).enumerate().filter(|(_, tokens)| !tokens.is_empty()).unzip();
        let outputs = match &self.engine {
            Engine::Kernels(model) => model.embed(&inputs, &self.team, go_on),
            Engine::Tensors(model) => model.embed(&inputs, go_on),
        };
        let failed = |fault: Fault| Error::internal(format!("{} failed", self.name), fault);
        let Some(outputs) = outputs.map_err(failed)? else { return Ok(Vec::new()) };
        let mut embeddings: Vec<Embedding> = vec![Vec::new(); texts.len()];
        for (i, embedding) in numbers.into_iter().zip(outputs) {
            embeddings[i] = embedding;
        }
        let dimensions = self.engine.dimensions();
        embeddings.iter_mut().for_each(|embedding| embedding.resize(dimensions, 0.0));
        Ok(embeddings)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoding = self.tokenizer.encode_fast(text.trim(), true);
        let encoding = encoding.map_err(|e| Error::InvalidRequest(format!("a text cannot be tokenised: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }
}

impl Engine {
    const fn dimensions(&self) -> usize {
        match self {
            Self::Kernels(model) => model.dimensions(),
            Self::Tensors(model) => model.dimensions(),
        }
    }
}

#[async_trait]
impl Embedder for SentenceEncoder {
    fn name(&self) -> &str {
        &self.name
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, embeddings) = oneshot::channel();
        let gone = || Error::Unavailable { backend: self.name.clone(), reason: "its thread stopped".to_owned() };
        self.jobs.try_send(Job { texts: texts.to_vec(), reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded { backend: self.name.clone(), retry_after: None },
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        embeddings.await.unwrap_or_else(|_| Err(gone()))
    }
}
