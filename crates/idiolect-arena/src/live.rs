//! What comes of asking a model now: draws of the arms of an experiment, kept as they come.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use idiolect_backend::{Backend, Message, Request, Sampling};
use idiolect_uniqueness::lexical::fnv1a;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::{Deserialize, Serialize};

use crate::lines::{Lines, LinesError};
use crate::statistics::below;
use crate::texts::ArenaPrompt;

mod report;
mod reward;

pub use report::{Arm, ArmReport, Comparison, Latency, Ratio, Report, report};
pub use reward::{Outcome, RewardError, Scored, Scorer, criteria, penalties};

/// Who made the replies of a draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The plain prompt, one sample.
    Plain,
    /// The plain prompt, as many samples as the pipeline draws candidates.
    BestOfK,
    /// The pipeline, as the miner has it.
    Pipeline,
    /// The pipeline, asked for the time that it takes.
    Timed,
}

/// A reply that was or could have been sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrawnReply {
    /// Its text.
    #[serde(rename = "t")]
    pub text: String,
    /// Mean log-probability a token under the model that wrote it, where known.
    pub logprob: Option<f32>,
    /// Tokens.
    pub n_tokens: u32,
    /// The recipe that it came of, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
}

/// What was drawn for a prompt, a line of the state's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drawn {
    /// The prompt's id.
    #[serde(rename = "p")]
    pub prompt: String,
    /// Who made it.
    pub source: Source,
    /// Which of the candidates was sent; `None` where nothing was.
    pub sent: Option<usize>,
    /// What there was to choose from. Of [`Source::Timed`] nothing is kept.
    pub candidates: Vec<DrawnReply>,
    /// Milliseconds from the question to the reply.
    pub latency_ms: f64,
    /// Whether there was no reply by the deadline.
    pub missed: bool,
    /// Why there was no reply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a state is of: draws of another run do not go with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// What the draws start from.
    pub seed: u64,
    /// Candidates.
    pub k: usize,
    /// Seconds that a reply may take.
    pub timeout_s: f64,
    /// Models of the backends.
    pub models: Vec<String>,
    /// The encoder.
    pub encoder: String,
    /// The validators' arithmetic.
    pub profile: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Setup(Setup),
    Drawn(Drawn),
    Dpo(Dpo),
}

/// What a reward model said of a reply, by the hashes of both texts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Dpo {
    pub(crate) base: u64,
    pub(crate) reply: u64,
    pub(crate) score: f32,
}

/// Why a state cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The file cannot be used.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// It is of another run.
    #[error(
        "the state is of another run: {name} is {found} there, expected {expected}; name another file, or run as that one did"
    )]
    Other {
        /// Which setting.
        name: &'static str,
        /// What it was.
        found: String,
        /// What it is.
        expected: String,
    },
    /// It has draws and does not say of what.
    #[error("the file has draws before it says what they are of; expected a state of this command")]
    NoSetup,
}

/// What is known of a run so far: a file that grows by a line for each draw. Without a file it is forgotten.
#[derive(Debug)]
pub struct State {
    file: Option<Lines>,
    drawn: HashMap<(String, Source), Drawn>,
    pub(crate) dpo: HashMap<(u64, u64), f32>,
}

impl State {
    /// Opens a state, or begins one where there is no file yet.
    ///
    /// # Errors
    /// Any [`StateError`].
    pub fn open(path: Option<&Path>, setup: &Setup) -> Result<Self, StateError> {
        let (mut drawn, mut dpo) = (HashMap::new(), HashMap::new());
        let Some(path) = path else { return Ok(Self { file: None, drawn, dpo }) };
        let (mut file, lines) = Lines::open::<Line>(path)?;
        if lines.is_empty() {
            file.add(&[Line::Setup(setup.clone())])?;
        }
        for (nth, line) in lines.into_iter().enumerate() {
            match line {
                Line::Setup(found) => found.same_as(setup)?,
                _ if nth == 0 => return Err(StateError::NoSetup),
                Line::Drawn(found) => {
                    drawn.insert((found.prompt.clone(), found.source), found);
                }
                Line::Dpo(Dpo { base, reply, score }) => {
                    dpo.insert((base, reply), score);
                }
            }
        }
        Ok(Self { file: Some(file), drawn, dpo })
    }

    /// Returns what was drawn for a prompt.
    #[must_use]
    pub fn drawn(&self, prompt: &str, source: Source) -> Option<&Drawn> {
        self.drawn.get(&(prompt.to_owned(), source))
    }

    /// Returns all draws of a source, in no order.
    pub fn all(&self, source: Source) -> impl Iterator<Item = &Drawn> {
        self.drawn.values().filter(move |drawn| drawn.source == source)
    }

    /// Keeps a draw.
    ///
    /// # Errors
    /// [`StateError::Lines`].
    pub fn keep(&mut self, drawn: Drawn) -> Result<(), StateError> {
        if let Some(file) = &mut self.file {
            file.add(&[Line::Drawn(drawn.clone())])?;
        }
        self.drawn.insert((drawn.prompt.clone(), drawn.source), drawn);
        Ok(())
    }

    pub(crate) fn keep_scores(&mut self, scores: Vec<Dpo>) -> Result<(), StateError> {
        self.dpo.extend(scores.iter().map(|dpo| ((dpo.base, dpo.reply), dpo.score)));
        if let Some(file) = &mut self.file {
            file.add(&scores.into_iter().map(Line::Dpo).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

impl Setup {
    fn same_as(&self, expected: &Self) -> Result<(), StateError> {
        let other = |name, found: String, expected: String| Err(StateError::Other { name, found, expected });
        if self.seed != expected.seed {
            return other("seed", self.seed.to_string(), expected.seed.to_string());
        }
        if self.k != expected.k {
            return other("k", self.k.to_string(), expected.k.to_string());
        }
        if (self.timeout_s - expected.timeout_s).abs() > 1e-9 {
            return other("timeout", self.timeout_s.to_string(), expected.timeout_s.to_string());
        }
        if self.models != expected.models {
            return other("model", self.models.join(", "), expected.models.join(", "));
        }
        if self.encoder != expected.encoder {
            return other("encoder", self.encoder.clone(), expected.encoder.clone());
        }
        if self.profile != expected.profile {
            return other("profile", self.profile.clone(), expected.profile.clone());
        }
        Ok(())
    }
}

/// Returns the seed of a prompt's plain samples.
#[must_use]
pub fn prompt_seed(seed: u64, prompt: &str) -> u64 {
    fnv1a(seed.to_le_bytes().into_iter().chain(prompt.bytes()))
}

/// How plain samples are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// Samples.
    pub n: usize,
    /// What draws start from.
    pub seed: u64,
    /// How long a reply may take.
    pub timeout: Duration,
    /// What is kept back of that for the way home.
    pub margin: Duration,
}

/// Draws plain samples of a prompt and chooses the one whose tokens were likeliest to the model that wrote it, of equal ones the
/// first. What a deadline cuts is as the backend left it.
pub async fn plain(
    backend: &dyn Backend,
    sampling: &Sampling,
    prompt: &ArenaPrompt,
    source: Source,
    wish: Plain,
) -> Drawn {
    let sampling = Sampling { seed: Some(prompt_seed(wish.seed, &prompt.id)), ..sampling.clone() };
    let (began, timeout) = (Instant::now(), wish.timeout);
    let request = Request {
        n: wish.n,
        sampling,
        deadline: began.checked_add(timeout.saturating_sub(wish.margin)),
        ..Request::new(vec![Message::user(prompt.prompt.as_str())])
    };
    let answer = tokio::time::timeout(timeout, backend.complete(request)).await;
    let took = began.elapsed();
    let (candidates, error) = match answer {
        Ok(Ok(completion)) => (completion.candidates, None),
        Ok(Err(error)) => (Vec::new(), Some(error.to_string())),
        Err(_) => (Vec::new(), Some("out of time".to_owned())),
    };
    let reply = |candidate: &idiolect_backend::Candidate| DrawnReply {
        text: candidate.text.trim().to_owned(),
        logprob: candidate.mean_logprob.filter(|logprob| logprob.is_finite()),
        n_tokens: candidate.n_tokens,
        recipe: None,
    };
    let candidates: Vec<DrawnReply> = candidates.iter().map(reply).collect();
    let missed = candidates.is_empty() || took > timeout;
    Drawn {
        prompt: prompt.id.clone(),
        source,
        sent: likeliest(&candidates).filter(|_| !missed),
        candidates,
        latency_ms: milliseconds(took),
        missed,
        error,
    }
}

fn likeliest(candidates: &[DrawnReply]) -> Option<usize> {
    let logprob = |i: usize| candidates[i].logprob.unwrap_or(f32::NEG_INFINITY);
    (0..candidates.len()).rev().max_by(|&a, &b| logprob(a).total_cmp(&logprob(b)))
}

/// Returns which of a prompt's `n` candidates chance sends.
#[must_use]
pub fn at_random(seed: u64, prompt: &str, n: usize) -> Option<usize> {
    let mut random = ChaCha8Rng::seed_from_u64(prompt_seed(seed, prompt));
    (n > 0).then(|| below(&mut random, n))
}

/// Returns milliseconds, to the microsecond.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
