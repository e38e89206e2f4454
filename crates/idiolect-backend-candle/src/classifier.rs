//! Classifiers of whole texts: reward models of the shapes that validators use.

mod gptj;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::debertav2::{Config as DebertaConfig, DebertaV2SeqClassificationModel};
use idiolect_backend::{Classifier, ClassifierInput, Error};
use serde::Deserialize;
use tokenizers::Tokenizer;
use tokio::sync::{mpsc, oneshot};

use self::gptj::GptJ;
use crate::encoder::load_tokenizer;
use crate::error::{LoadError, first_line, guard};

/// What is read of an input whose model has no bound of its own. Attention takes memory in its square.
const MAX_TOKENS: usize = 4096;

/// Calls that may wait.
const QUEUE: usize = 16;

/// A sequence classifier of the shape of DeBERTa-v2 or v3 (`deberta-v2`), or of GPT-J (`gptj`), as transformers'
/// `…ForSequenceClassification` has it: validators' reward models `rlhf` and `reciprocate` are of these shapes, with one label.
///
/// On the processor, in 32 bits, one input at a time, so nothing is padded. One thread owns the model. GPT-J reads as
/// many tokens of an input as it has positions, and DeBERTa 4096 where its positions are relative alone.
#[derive(Debug)]
pub struct SequenceClassifier {
    name: String,
    n_labels: usize,
    jobs: mpsc::Sender<Job>,
}

struct Job {
    inputs: Vec<ClassifierInput>,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>, Error>>,
}

/// What every `config.json` has.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    #[serde(default)]
    id2label: Option<HashMap<String, String>>,
}

enum Model {
    Deberta(Box<DebertaV2SeqClassificationModel>),
    GptJ(GptJ),
}

impl SequenceClassifier {
    /// Loads `config.json`, `tokenizer.json` and all `.safetensors` files of a directory. Blocks.
    ///
    /// # Errors
    /// [`LoadError`] when a file is missing, damaged, or of a model of another shape.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        guard(dir, || Self::load_unguarded(dir))
    }

    fn load_unguarded(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|e| LoadError::io(&path, e))?;
        let config: Config = serde_json::from_str(&text).map_err(|e| LoadError::damaged(&path, e))?;
        let n_labels = config.id2label.as_ref().map_or(1, HashMap::len);
        let supported = matches!(config.model_type.as_str(), "deberta-v2" | "gptj");
        if !supported || n_labels == 0 {
            let what = format!("classifier {:?} with {n_labels} labels", config.model_type);
            return Err(LoadError::unsupported(&path, what, "deberta-v2 and gptj with one label or more"));
        }
        let weights = weights(dir)?;
        let damaged = |error: candle_core::Error| LoadError::damaged(dir, first_line(&error));
        let (model, max_tokens) = if config.model_type == "deberta-v2" {
            let mut shape: DebertaConfig = serde_json::from_str(&text).map_err(|e| LoadError::damaged(&path, e))?;
            // Ours is the number of labels above.
            let labels = (0..n_labels).filter_map(|i| Some((u32::try_from(i).ok()?, i.to_string()))).collect();
            shape.id2label = Some(labels);
            let max_tokens = if shape.position_biased_input {
                shape.max_position_embeddings
            } else {
                // Positions are relative alone, so there may be more than the model's own number, which stays that of
                // the buckets of distances.
                if shape.max_relative_positions < 1 {
                    shape.max_relative_positions = isize::try_from(shape.max_position_embeddings).unwrap_or(isize::MAX);
                }
                shape.max_position_embeddings = shape.max_position_embeddings.max(MAX_TOKENS);
                MAX_TOKENS
            };
            let model = DebertaV2SeqClassificationModel::load(weights.set_prefix("deberta"), &shape, None);
            (Model::Deberta(Box::new(model.map_err(damaged)?)), max_tokens)
        } else {
            let shape: gptj::Config = serde_json::from_str(&text).map_err(|e| LoadError::damaged(&path, e))?;
            let max_tokens = shape.n_positions;
            (Model::GptJ(GptJ::load(&weights, shape, n_labels).map_err(damaged)?), max_tokens)
        };
        let tokenizer = load_tokenizer(&dir.join("tokenizer.json"), max_tokens)?;
        let name = dir.file_name().map_or_else(|| config.model_type, |name| name.to_string_lossy().into_owned());
        let (jobs, queue) = mpsc::channel(QUEUE);
        let worker = Worker { name: name.clone(), model, tokenizer };
        std::thread::Builder::new()
            .name("classifier".to_owned())
            .spawn(move || worker.run(queue))
            .map_err(LoadError::Thread)?;
        Ok(Self { name, n_labels, jobs })
    }
}

/// Reads all tensors of a directory.
fn weights(dir: &Path) -> Result<VarBuilder<'static>, LoadError> {
    let entries = std::fs::read_dir(dir).map_err(|e| LoadError::io(dir, e))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<Result<_, _>>().map_err(|e| LoadError::io(dir, e))?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "safetensors"));
    paths.sort();
    if paths.is_empty() {
        let path = dir.join("model.safetensors");
        return Err(LoadError::io(&path, std::io::Error::from(std::io::ErrorKind::NotFound)));
    }
    let mut tensors = HashMap::new();
    for path in paths {
        let bytes = std::fs::read(&path).map_err(|e| LoadError::io(&path, e))?;
        let found = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu);
        tensors.extend(found.map_err(|e| LoadError::damaged(&path, first_line(&e)))?);
    }
    Ok(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu))
}

struct Worker {
    name: String,
    model: Model,
    tokenizer: Tokenizer,
}

impl Worker {
    fn run(&self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(Job { inputs, reply }) = jobs.blocking_recv() {
            let work = || {
                let mut rows = Vec::with_capacity(inputs.len());
                for input in &inputs {
                    // Nobody waits when the future was dropped.
                    if reply.is_closed() {
                        break;
                    }
                    rows.push(self.logits(input)?);
                }
                Ok(rows)
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err(Error::Internal { context: format!("{} panicked", self.name), source: None }));
            drop(reply.send(result));
        }
    }

    fn logits(&self, input: &ClassifierInput) -> Result<Vec<f32>, Error> {
        let encoding = match &input.second {
            None => self.tokenizer.encode_fast(input.text.as_str(), true),
            Some(second) => self.tokenizer.encode_fast((input.text.as_str(), second.as_str()), true),
        };
        let encoding = encoding.map_err(|e| Error::InvalidRequest(format!("a text cannot be tokenised: {e}")))?;
        let ids = encoding.get_ids();
        if ids.is_empty() {
            return Err(Error::InvalidRequest("a text without tokens has no logits".to_owned()));
        }
        self.model.logits(ids).map_err(|error| Error::internal(format!("{} failed", self.name), error))
    }
}

impl Model {
    fn logits(&self, ids: &[u32]) -> candle_core::Result<Vec<f32>> {
        match self {
            Self::Deberta(model) => {
                let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
                model.forward(&ids, None, None)?.flatten_all()?.to_vec1()
            }
            Self::GptJ(model) => model.logits(ids),
        }
    }
}

#[async_trait]
impl Classifier for SequenceClassifier {
    fn name(&self) -> &str {
        &self.name
    }

    fn n_labels(&self) -> usize {
        self.n_labels
    }

    async fn logits(&self, inputs: &[ClassifierInput]) -> Result<Vec<Vec<f32>>, Error> {
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let (reply, rows) = oneshot::channel();
        let gone = || Error::Unavailable { backend: self.name.clone(), reason: "its thread stopped".to_owned() };
        self.jobs.try_send(Job { inputs: inputs.to_vec(), reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded { backend: self.name.clone(), retry_after: None },
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        rows.await.unwrap_or_else(|_| Err(gone()))
    }
}
