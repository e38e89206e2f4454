//! Models that say what they are told to.
#![allow(dead_code, reason = "no test needs all of them")]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use idiolect_backend::{
    Backend, Capabilities, Completion, CompletionStream, Embedder, Embedding, Error, Health, Moments, OwnLogits,
    Request, Score, ScoreRequest, ScoreSupport, TokenLogprob,
};
use idiolect_backend_candle::SentenceEncoder;
use idiolect_validator::RewardModel;
use idiolect_validator::mask::WordPiece;
use serde_json::Value;

/// Reads a recording.
pub(crate) fn recorded(name: &str) -> Value {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/vectors/scoring");
    serde_json::from_str(&std::fs::read_to_string(format!("{dir}/{name}.json")).unwrap()).unwrap()
}

pub(crate) fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

pub(crate) fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
}

/// Checks figures against those expected.
#[track_caller]
pub(crate) fn near(name: &str, ours: &[f64], theirs: &[f64]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-4, "{name}: off by {worst:.1e}: {ours:?}, expected {theirs:?}");
}

pub(crate) fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// all-MiniLM-L6-v2 and its tokenizer.
pub(crate) fn minilm() -> (Arc<SentenceEncoder>, WordPiece) {
    let dir = idiolect_models::testing::model("minilm").expect("the default encoder").dir;
    let encoder = Arc::new(SentenceEncoder::load(&dir).expect("it loads"));
    (encoder, WordPiece::from_file(dir.join("tokenizer.json")).expect("it loads"))
}

/// Scores given beforehand, a list for each step.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) name: &'static str,
    pub(crate) next: Mutex<VecDeque<Vec<f32>>>,
}

impl Told {
    pub(crate) fn new(name: &'static str, steps: impl IntoIterator<Item = Vec<f32>>) -> Arc<Self> {
        Arc::new(Self { name, next: Mutex::new(steps.into_iter().collect()) })
    }
}

#[async_trait]
impl RewardModel for Told {
    fn name(&self) -> &str {
        self.name
    }

    async fn scores(&self, _: &str, _: &[String]) -> Result<Vec<f32>, Error> {
        self.next.lock().unwrap().pop_front().ok_or_else(|| broken("told"))
    }
}

pub(crate) fn broken(name: &str) -> Error {
    Error::Protocol { backend: name.to_owned(), reason: "it is broken".to_owned() }
}

/// A score made of the texts' lengths.
#[derive(Debug)]
pub(crate) struct Lengths(pub(crate) &'static str);

#[async_trait]
impl RewardModel for Lengths {
    fn name(&self) -> &str {
        self.0
    }

    async fn scores(&self, prompt: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        let score = |reply: &String| (reply.len() as f32 * 0.37 + prompt.len() as f32 * 0.013).sin();
        Ok(replies.iter().map(score).collect())
    }
}

/// An encoder that was told each text's embedding.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) dimensions: usize,
    pub(crate) embeddings: HashMap<String, Embedding>,
}

#[async_trait]
impl Embedder for Table {
    fn name(&self) -> &str {
        "table"
    }

    fn dimensions(&self) -> usize {
        self.dimensions
    }

    fn max_tokens(&self) -> usize {
        512
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        texts.iter().map(|text| self.embeddings.get(text).cloned().ok_or_else(|| broken("table"))).collect()
    }
}

/// An encoder that counts words in 48 classes; a text without words has no direction.
#[derive(Debug)]
pub(crate) struct Words;

#[async_trait]
impl Embedder for Words {
    fn name(&self) -> &str {
        "words"
    }

    fn dimensions(&self) -> usize {
        48
    }

    fn max_tokens(&self) -> usize {
        512
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        let class = |word: &str| word.bytes().fold(7_usize, |hash, byte| (hash * 31 + usize::from(byte)) % 10_007) % 48;
        let embed = |text: &String| {
            let mut sums = vec![0.0_f32; 48];
            let words = text.to_lowercase();
            words.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).for_each(|w| sums[class(w)] += 1.0);
            let norm = sums.iter().map(|s| s * s).sum::<f32>().sqrt();
            if norm > 0.0 {
                sums.iter_mut().for_each(|s| *s /= norm);
            }
            sums
        };
        Ok(texts.iter().map(embed).collect())
    }
}

/// A backend whose rows of logits follow the formula of the recorded `dpo` cases; tokens are characters.
#[derive(Debug)]
pub(crate) struct Rows {
    capabilities: Capabilities,
    /// Puts a value that is no number into each row.
    pub(crate) is_broken: bool,
    /// Tokens of prompt and reply.
    context: usize,
}

impl Rows {
    pub(crate) fn new(is_broken: bool) -> Self {
        Self::with_context(is_broken, 1 << 20)
    }

    pub(crate) fn with_context(is_broken: bool, context: usize) -> Self {
        let mut capabilities = Capabilities::new("rows");
        capabilities.score = ScoreSupport::Rows;
        Self { capabilities, is_broken, context }
    }

    fn unsupported() -> Error {
        Error::Unsupported { backend: "rows".to_owned(), what: "completing".to_owned() }
    }
}

#[async_trait]
impl Backend for Rows {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, _: Request) -> Result<Completion, Error> {
        Err(Self::unsupported())
    }

    async fn stream(&self, _: Request) -> Result<CompletionStream, Error> {
        Err(Self::unsupported())
    }

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        request.validate()?;
        let before = request.plain.expect("a plain text");
        let n = before.chars().count();
        let all = before.chars().chain(request.completion.chars()).map(|c| (c as u32 * 7) % 24);
        let mut all: Vec<u32> = all.collect();
        if n >= self.context || (all.len() > self.context && !request.cut) {
            let (prompt_tokens, context_tokens) = (all.len() as u32, self.context as u32);
            return Err(Error::ContextTooLong { prompt_tokens, context_tokens });
        }
        all.truncate(self.context);
        let row = |t: usize| -> Vec<f32> {
            let t = t as f64 + 1.0;
            let logit = |v: u32| (3.0 * (0.37 * t * (f64::from(v) + 1.0) + 0.11 * f64::from(v)).sin()) as f32;
            let mut row: Vec<f32> = (0..24).map(logit).collect();
            if self.is_broken {
                row[3] = f32::NAN;
            }
            row
        };
        let mut prompt_logits = Moments::default();
        (0..n - 1).for_each(|t| prompt_logits.add(&row(t)));
        let rows: Vec<Vec<f32>> = (n - 1..all.len() - 1).map(row).collect();
        let token_ids = all.split_off(n);
        let logprob = |row: &[f32], token: u32| {
            let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            (f64::from(row[token as usize]) - total.ln()) as f32
        };
        let with_rows = token_ids.iter().zip(&rows);
        let tokens = with_rows.map(|(&token, row)| TokenLogprob {
            token: token.to_string(),
            logprob: logprob(row, token),
            top: Vec::new(),
        });
        let tokens = tokens.collect();
        let own_logits = request.own_logits.then(|| OwnLogits::of_rows(&token_ids, &rows));
        let prompt_logits = request.prompt_logits.then_some(prompt_logits);
        Ok(Score { tokens, token_ids, rows: request.rows.then_some(rows), own_logits, prompt_logits })
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}
