//! The all-MiniLM sentence encoders.

use std::path::Path;

use async_trait::async_trait;
use idiolect_backend::{Embedder, Embedding, Error};
use tokenizers::{Tokenizer, TruncationParams};
use tokio::sync::{mpsc, oneshot};

use super::bert::{Bert, Config};
use super::weights::Weights;
use crate::config::{EncoderConfig, n_threads};
use crate::error::{LoadError, guard};

/// Tokens that are encoded in one pass; more stop paying, and cost memory.
const PASS: usize = 1024;

struct Job {
    texts: Vec<String>,
    reply: oneshot::Sender<Result<Vec<Embedding>, Error>>,
}

/// all-MiniLM-L6-v2, or any other BERT sentence encoder of that shape: mean over all tokens, then unit length.
///
/// One thread owns the model, with a bounded queue in front. Texts of a call are encoded shortest first, many in one
/// pass; none is padded, so a text's embedding does not depend on its company. Surrounding whitespace does not matter.
/// Dropping the future stops the work after the pass that runs.
#[derive(Debug)]
pub struct MiniLm {
    name: String,
    dimensions: usize,
    max_tokens: usize,
    jobs: mpsc::Sender<Job>,
}

impl MiniLm {
    /// Loads `model.safetensors`, `tokenizer.json` and `config.json` from a directory, with default settings. Blocks.
    ///
    /// # Errors
    /// [`LoadError`] when a file is missing, damaged, or of a model that is no BERT.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        Self::load_with(dir, EncoderConfig::default())
    }

    /// Loads with settings; see [`load`](Self::load).
    ///
    /// # Errors
    /// As [`load`](Self::load).
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
        let config_path = dir.join("config.json");
        let text = std::fs::read_to_string(&config_path).map_err(|e| LoadError::io(&config_path, e))?;
        let config: Config = serde_json::from_str(&text).map_err(|e| LoadError::damaged(&config_path, e))?;
        check(&config_path, &config)?;
        let max_tokens = settings.max_tokens.min(config.max_position_embeddings);
        let tokenizer = load_tokenizer(&dir.join("tokenizer.json"), max_tokens)?;
        let dimensions = config.hidden_size;
        let mut weights = Weights::open(&dir.join("model.safetensors"))?;
        let bert = Bert::load(&mut weights, config)?;
        drop(weights);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads(settings.threads))
            .thread_name(|i| format!("encoder-{i}"))
            .build()
            .map_err(|e| LoadError::Thread(std::io::Error::other(e)))?;
        let (jobs, queue) = mpsc::channel(settings.queue);
        let worker = Worker { name: settings.name.clone(), bert, tokenizer };
        std::thread::Builder::new()
            .name("encoder-worker".to_owned())
            .spawn(move || worker.run(queue, &pool))
            .map_err(LoadError::Thread)?;
        Ok(Self { name: settings.name, dimensions, max_tokens, jobs })
    }
}

fn check(path: &Path, config: &Config) -> Result<(), LoadError> {
    if config.model_type != "bert" {
        return Err(LoadError::unsupported(path, format!("model type {:?}", config.model_type), "bert"));
    }
    if config.hidden_act != "gelu" {
        return Err(LoadError::unsupported(path, format!("activation {:?}", config.hidden_act), "gelu"));
    }
    let Config { hidden_size, num_attention_heads, type_vocab_size, max_position_embeddings, .. } = *config;
    let fits = num_attention_heads > 0 && hidden_size > 0 && hidden_size.is_multiple_of(num_attention_heads);
    if !fits || type_vocab_size == 0 || max_position_embeddings < 3 || config.num_hidden_layers > 256 {
        return Err(LoadError::damaged(path, "its sizes make no model"));
    }
    Ok(())
}

/// Loads a tokenizer and replaces the padding and truncation that its file asks for.
fn load_tokenizer(path: &Path, max_tokens: usize) -> Result<Tokenizer, LoadError> {
    let bytes = std::fs::read(path).map_err(|e| LoadError::io(path, e))?;
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| LoadError::damaged(path, e))?;
    tokenizer.with_padding(None);
    let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|e| LoadError::damaged(path, e))?;
    Ok(tokenizer)
}

struct Worker {
    name: String,
    bert: Bert,
    tokenizer: Tokenizer,
}

impl Worker {
    fn run(&self, mut jobs: mpsc::Receiver<Job>, pool: &rayon::ThreadPool) {
        while let Some(Job { texts, reply }) = jobs.blocking_recv() {
            let work = || pool.install(|| self.embed(&texts, &|| !reply.is_closed()));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err(Error::Internal { context: format!("{} panicked", self.name), source: None }));
            // Nobody waits when the future was dropped.
            drop(reply.send(result));
        }
    }

    fn embed(&self, texts: &[String], go_on: &(dyn Fn() -> bool + Sync)) -> Result<Vec<Embedding>, Error> {
        let mut encoded = Vec::with_capacity(texts.len());
        for text in texts {
            if !go_on() {
                return Ok(Vec::new());
            }
            let encoding = self.tokenizer.encode_fast(text.trim(), true);
            let encoding = encoding.map_err(|e| Error::InvalidRequest(format!("a text cannot be tokenised: {e}")))?;
            encoded.push(encoding.get_ids().to_vec());
        }
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|i| encoded[*i].len());
        let mut embeddings = vec![Vec::new(); texts.len()];
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            if !go_on() {
                return Ok(Vec::new());
            }
            let mut tokens = 0;
            let fitting = rest.iter().take_while(|i| {
                tokens += encoded[**i].len();
                tokens <= PASS
            });
            let (pass, after) = rest.split_at(fitting.count().max(1));
            rest = after;
            let inputs: Vec<&[u32]> = pass.iter().map(|i| encoded[*i].as_slice()).collect();
            let outputs = self.bert.embed(&inputs);
            let outputs = outputs.map_err(|e| Error::internal(format!("{} failed", self.name), e))?;
            for (i, embedding) in pass.iter().zip(outputs) {
                embeddings[*i] = embedding;
            }
        }
        Ok(embeddings)
    }
}

#[async_trait]
impl Embedder for MiniLm {
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
