//! Compares a model with itself in other formats, on a text: how far log-probabilities are apart, and perplexity.
//!
//! `cargo run --release -p idiolect-backend-candle --example quality -- MODEL TEXT [FORMAT ...]`
//!
//! The first line is the model with its weights as exact `f32` numbers, the next as it is in its file, and then encoded in
//! each of the formats named (`Q8_0`, `Q4_0` …). Each passage of the text is scored as the reply to one fixed message.

#![allow(clippy::print_stdout, clippy::cast_precision_loss, reason = "a measuring program")]

use std::path::Path;
use std::time::Instant;

use idiolect_backend::{Backend, Message, ScoreRequest};
use idiolect_backend_candle::{CandleBackend, CandleConfig, Format};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Characters of a passage: some hundred tokens.
const PASSAGE: usize = 1600;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, formats @ ..] = args.as_slice() else {
        return Err("usage: quality MODEL TEXT [FORMAT ...]".into());
    };
    let text = std::fs::read_to_string(text)?;
    let passages = passages(&text);
    let exact = score(Path::new(model), Some(Format::F32), &passages).await?;
    println!("{} tokens in {} passages", exact.len(), passages.len());
    println!("{:8}  perplexity {:8.4}", "F32", perplexity(&exact));
    let formats = formats.iter().map(|name| parse(name).map(Some)).collect::<Outcome<Vec<_>>>()?;
    for format in std::iter::once(None).chain(formats) {
        let began = Instant::now();
        let scored = score(Path::new(model), format, &passages).await?;
        let name = format.map_or_else(|| "file".to_owned(), |format| format.to_string());
        let apart: f64 = exact.iter().zip(&scored).map(|(a, b)| (a - b).abs()).sum::<f64>() / exact.len() as f64;
        println!(
            "{name:8}  perplexity {:8.4} ({:+.2} %), log-probabilities {apart:.4} apart, {:.1} s",
            perplexity(&scored),
            (perplexity(&scored) / perplexity(&exact) - 1.0) * 100.0,
            began.elapsed().as_secs_f64(),
        );
    }
    Ok(())
}

fn parse(name: &str) -> Outcome<Format> {
    let wanted = name.to_ascii_uppercase();
    let found = Format::ALL.into_iter().find(|format| format.to_string() == wanted);
    found.ok_or_else(|| format!("format {name:?} is not known").into())
}

/// Cuts a text into passages at paragraphs.
fn passages(text: &str) -> Vec<String> {
    let mut passages = vec![String::new()];
    for paragraph in text.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty()) {
        match passages.last_mut() {
            Some(last) if last.len() + paragraph.len() <= PASSAGE => {
                if !last.is_empty() {
                    last.push_str("\n\n");
                }
                last.push_str(paragraph);
            }
            _ => passages.push(paragraph.to_owned()),
        }
    }
    passages.retain(|passage| !passage.is_empty());
    passages
}

/// Returns the log-probability of every token.
async fn score(model: &Path, format: Option<Format>, passages: &[String]) -> Outcome<Vec<f64>> {
    let mut config = CandleConfig::default();
    config.quantize = format;
    let backend = CandleBackend::load(model, config)?;
    let mut logprobs = Vec::new();
    for passage in passages {
        let score = backend.score(ScoreRequest::new([Message::user("Write a passage.")], passage)).await?;
        logprobs.extend(score.tokens.iter().map(|token| f64::from(token.logprob)));
    }
    Ok(logprobs)
}

fn perplexity(logprobs: &[f64]) -> f64 {
    (-logprobs.iter().sum::<f64>() / logprobs.len() as f64).exp()
}
