//! Embeddings over the network.

use async_openai::traits::RequestOptionsBuilder;
use async_trait::async_trait;
use idiolect_backend::{Embedder, Embedding, Error};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::config::{Flavour, ServerConfig};
use crate::fault::Fault;
use crate::transport::{JSON, Server, accept};

/// A sentence encoder on an OpenAI-shaped server.
#[derive(Clone, Debug)]
pub struct OpenAiEmbedderConfig {
    /// The model that is asked; the encoder's name, too.
    pub model: String,
    /// How many values its embeddings have.
    pub dimensions: usize,
    /// Asks for that many, of models that can shorten their embeddings.
    pub send_dimensions: bool,
    /// How many tokens of a text count. vLLM is told to cut there; for others a text is cut at four times as many
    /// characters, which is about the same for English.
    pub max_tokens: usize,
    /// Most texts in one request.
    pub batch_size: usize,
    /// What kind of server it is.
    pub flavour: Flavour,
    /// Where it is.
    pub server: ServerConfig,
}

impl OpenAiEmbedderConfig {
    /// Asks this model, with everything else at its default: 512 tokens, 32 texts a request.
    pub fn new(model: impl Into<String>, dimensions: usize) -> Self {
        Self {
            model: model.into(),
            dimensions,
            send_dimensions: false,
            max_tokens: 512,
            batch_size: 32,
            flavour: Flavour::default(),
            server: ServerConfig::default(),
        }
    }
}

/// Asks `POST /embeddings`. Embeddings are normalised here, whatever the server does; texts without any character but
/// white space are not sent, and are all zeros.
#[derive(Debug)]
pub struct OpenAiEmbedder {
    config: OpenAiEmbedderConfig,
    server: Server,
}

impl OpenAiEmbedder {
    /// Makes an encoder and reads its key. Nothing is sent yet.
    ///
    /// # Errors
    /// As [`OpenAiBackend::new`](crate::OpenAiBackend::new), and for 0 dimensions.
    pub fn new(config: OpenAiEmbedderConfig) -> Result<Self, Error> {
        if config.dimensions == 0 || config.max_tokens == 0 {
            return Err(Error::InvalidRequest("dimensions and max_tokens of an encoder are at least 1".to_owned()));
        }
        let server = Server::new(&config.model, &config.server)?;
        Ok(Self { config, server })
    }

    async fn batch(&self, texts: &[&str]) -> Result<Vec<Embedding>, Fault> {
        let mut body = json!({ "model": self.config.model, "input": texts, "encoding_format": "float" });
        if self.config.send_dimensions {
            body["dimensions"] = json!(self.config.dimensions);
        }
        if self.config.flavour == Flavour::Vllm {
            body["truncate_prompt_tokens"] = json!(self.config.max_tokens);
        }
        let limit = self.server.config.timeouts.whole;
        let _place = self.server.place().await;
        let once = || async {
            let asking = async {
                let embeddings = self.server.client.embeddings().headers(accept(JSON));
                embeddings.create_byot::<_, Value>(&body).await.map_err(Fault::of)
            };
            timeout(limit, asking).await.unwrap_or(Err(Fault::Silent(limit)))
        };
        let answer = self.server.retry(None, once).await?;
        self.read(answer, texts.len())
    }

    fn read(&self, answer: Value, n: usize) -> Result<Vec<Embedding>, Fault> {
        let mut rows: Vec<Row> = serde_json::from_value::<Answer>(answer)
            .map_err(|_| Fault::Malformed("an answer of another shape than embeddings have".to_owned()))?
            .data;
        if rows.iter().all(|row| row.index.is_some()) {
            rows.sort_by_key(|row| row.index);
        }
        if rows.len() != n {
            return Err(Fault::Malformed(format!("{} embeddings for {n} texts", rows.len())));
        }
        if rows.iter().enumerate().any(|(i, row)| row.index.is_some_and(|index| index != i)) {
            return Err(Fault::Malformed("embeddings of other texts than were sent".to_owned()));
        }
        rows.into_iter().map(|row| self.normalised(row.embedding)).collect()
    }

    fn normalised(&self, mut embedding: Embedding) -> Result<Embedding, Fault> {
        let expected = self.config.dimensions;
        if embedding.len() != expected {
            return Err(Fault::Malformed(format!("{} dimensions, expected {expected}", embedding.len())));
        }
        let length = embedding.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if !length.is_finite() || length == 0.0 {
            return Err(Fault::Malformed("an embedding without direction".to_owned()));
        }
        embedding.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
        Ok(embedding)
    }
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    index: Option<usize>,
    embedding: Embedding,
}

fn cut(text: &str, max_chars: usize) -> &str {
    text.char_indices().nth(max_chars).map_or(text, |(end, _)| &text[..end])
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Embedder for OpenAiEmbedder {
    fn name(&self) -> &str {
        &self.config.model
    }

    fn dimensions(&self) -> usize {
        self.config.dimensions
    }

    fn max_tokens(&self) -> usize {
        self.config.max_tokens
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        let max_chars = match self.config.flavour {
            Flavour::Vllm => usize::MAX,
            _ => self.config.max_tokens.saturating_mul(4),
        };
        let mut embeddings = vec![vec![0.0; self.config.dimensions]; texts.len()];
        let full: Vec<usize> = (0..texts.len()).filter(|i| !texts[*i].trim().is_empty()).collect();
        for places in full.chunks(self.config.batch_size.max(1)) {
            let batch: Vec<&str> = places.iter().map(|i| cut(&texts[*i], max_chars)).collect();
            let rows = self.batch(&batch).await.map_err(|fault| fault.into_error(&self.config.model))?;
            for (place, row) in places.iter().zip(rows) {
                embeddings[*place] = row;
            }
        }
        Ok(embeddings)
    }
}
