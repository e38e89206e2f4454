//! What validators would have given for a reply among those of the rivals.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use idiolect_backend::{Embedder, Embedding, Error};
use idiolect_uniqueness::lexical::fnv1a;
use idiolect_validator::task::{TaskKind, text_prompting};
use idiolect_validator::{
    Factor, FactorKind, Missing, Models, Profile, Reply, RewardModel, StepError, StepReport, StepTask, Validator,
};
use serde::Serialize;

use super::{Dpo, State, StateError};
use crate::cache::{CacheError, EmbeddingCache};

/// Replies that a reward model is asked about at once.
const AT_A_TIME: usize = 8;
/// The validators' name of the penalty for broken criteria.
const CRITERIA: &str = "task_validation";

/// A prompt with what was answered to it.
#[derive(Clone, Debug)]
pub struct Scored {
    /// The prompt's id.
    pub prompt: String,
    /// What it asks for.
    pub task: StepTask,
    /// The rivals' replies.
    pub rivals: Vec<String>,
    /// Replies of ours, of which each is scored for itself, alone beside the rivals.
    pub own: Vec<String>,
}

/// What became of a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// The reward, in [0, 1].
    pub reward: f64,
    /// The mean log-probability of its tokens as a continuation of the base text; `None` where nothing was sent.
    pub logprob: Option<f64>,
    /// Where that stands among all that the validator has seen so far, in [0, 1].
    pub quality: f64,
    /// What the criteria take, in [0, 0.6].
    pub criteria: f64,
    /// What labels of other tasks take, 0 or 1.
    pub keyword: f64,
    /// What stock openings take, in [0, 0.2].
    pub content: f64,
    /// Whether it was too far from the base text.
    pub irrelevant: bool,
    /// Whether the gate masked it.
    pub masked: bool,
}

/// Why there are no rewards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RewardError {
    /// Embeddings are not to be had.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// What was computed cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// The reward model failed.
    #[error("replies to prompt {prompt} cannot be scored")]
    Model {
        /// Which prompt.
        prompt: String,
        /// Why.
        source: Error,
    },
    /// The arithmetic failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Computes rewards of replies as a validator does that asks us and the rivals: penalties, relevance (its mpnet part), gate, and
/// the mean log-probability under a small model in place of the validators' own, which counts for all of the reward models' weight.
/// Neither phrases nor indecency are looked for.
#[derive(Debug)]
pub struct Scorer {
    profile: Profile,
    encoder: Arc<dyn Embedder>,
    model: Arc<dyn RewardModel>,
    known: Arc<Known>,
}

/// Embeddings and scores that are computed, of the texts as the validator asks for them.
#[derive(Debug)]
struct Known {
    encoder: (String, usize, usize),
    embeddings: HashMap<String, Embedding>,
    dpo: HashMap<(u64, u64), f32>,
    name: String,
    lowest: Option<f32>,
}

impl Scorer {
    /// Has all texts embedded and scored that are not yet, and keeps what comes of it: embeddings in a folder where one is named, scores
    /// in the state. `progress` is told what is being done, how much of it, of how much.
    ///
    /// # Errors
    /// Any [`RewardError`] but that of the arithmetic.
    pub async fn prepare(
        profile: Profile,
        encoder: Arc<dyn Embedder>,
        model: Arc<dyn RewardModel>,
        scored: &[Scored],
        folder: Option<&Path>,
        state: &mut State,
        progress: &mut (dyn FnMut(&'static str, usize, usize) + Send),
    ) -> Result<Self, RewardError> {
        let mut texts: Vec<String> = Vec::new();
        for (nth, one) in scored.iter().enumerate() {
            progress("scoring replies", nth, scored.len());
            let replies = one.rivals.iter().chain(&one.own);
            let mut replies: Vec<String> = replies.map(|text| as_seen(&profile, one.task.kind, text)).collect();
            replies.sort_unstable();
            replies.dedup();
            let base = hash(&one.task.base_text);
            let missing: Vec<&String> =
                replies.iter().filter(|reply| !state.dpo.contains_key(&(base, hash(reply)))).collect();
            for some in missing.chunks(AT_A_TIME) {
                let some: Vec<String> = some.iter().map(|&reply| reply.clone()).collect();
                let failed = |source| RewardError::Model { prompt: one.prompt.clone(), source };
                let scores = model.scores(&one.task.base_text, &some).await.map_err(failed)?;
                let dpo = some.iter().zip(scores).map(|(reply, score)| Dpo { base, reply: hash(reply), score });
                state.keep_scores(dpo.collect())?;
            }
            texts.push(one.task.base_text.clone());
            texts.append(&mut replies);
        }
        texts.sort_unstable();
        texts.dedup();
        let mut cache = EmbeddingCache::open(folder, &*encoder)?;
        let all: Vec<&str> = texts.iter().map(String::as_str).collect();
        let embeddings = cache.embed(&*encoder, &all, &mut |done, of| progress("encoding replies", done, of)).await?;
        let known = Known {
            encoder: (encoder.name().to_owned(), encoder.dimensions(), encoder.max_tokens()),
            embeddings: texts.into_iter().zip(embeddings).collect(),
            dpo: state.dpo.clone(),
            name: model.name().to_owned(),
            lowest: model.lowest(),
        };
        Ok(Self { profile, encoder, model, known: Arc::new(known) })
    }

    /// Returns what becomes of our `choose`-th reply to each prompt, one validator seeing all prompts in order, with the rivals' replies to
    /// each: its statistics and its history are those of this run of prompts. `None` is a reply that did not come.
    ///
    /// # Errors
    /// [`RewardError::Step`].
    pub async fn outcomes(
        &self,
        scored: &[Scored],
        choose: &(dyn Fn(usize) -> Option<usize> + Sync),
    ) -> Result<Vec<Outcome>, RewardError> {
        let mut validator = self.validator()?;
        let mut outcomes = Vec::with_capacity(scored.len());
        for (nth, one) in scored.iter().enumerate() {
            let own = choose(nth).and_then(|i| one.own.get(i));
            let mut replies =
                vec![Reply { succeeded: own.is_some(), ..Reply::new(0, own.cloned().unwrap_or_default()) }];
            replies.extend((1..).zip(&one.rivals).map(|(uid, text)| Reply::new(uid, text.as_str())));
            outcomes.push(outcome(&validator.step(&one.task, &replies).await?));
        }
        Ok(outcomes)
    }

    fn validator(&self) -> Result<Validator, StepError> {
        let models = Models {
            rewards: vec![Arc::new(KnownRewards(Arc::clone(&self.known)))],
            encoder: Some(Arc::new(KnownEmbeddings(Arc::clone(&self.known)))),
            ..Models::default()
        };
        Validator::new(self.profile.clone(), models, Missing::Renormalise)
    }

    /// Names the factors of the profile that are left out, since there is nothing here to compute them by.
    ///
    /// # Errors
    /// [`RewardError::Step`].
    pub fn missing(&self) -> Result<Vec<String>, RewardError> {
        Ok(self.validator()?.missing().iter().map(|factor| factor.name.clone()).collect())
    }

    /// Returns the score that the reward model gave for a reply of ours.
    #[must_use]
    pub fn logprob(&self, one: &Scored, own: usize) -> Option<f32> {
        let reply = as_seen(&self.profile, one.task.kind, one.own.get(own)?);
        self.known.dpo.get(&(hash(&one.task.base_text), hash(&reply))).copied()
    }

    /// Names the encoder and the reward model.
    #[must_use]
    pub fn models(&self) -> (&str, &str) {
        (self.encoder.name(), self.model.name())
    }
}

/// Returns a reply as masks and reward models see it.
fn as_seen(profile: &Profile, kind: TaskKind, text: &str) -> String {
    let cut = match profile.followup_words {
        Some(n_words) if kind == TaskKind::Followup => text_prompting::cut_followup(text, n_words),
        _ => text.to_owned(),
    };
    cut.trim().to_owned()
}

fn hash(text: &str) -> u64 {
    fnv1a(text.bytes())
}

/// Returns what the criteria of a task take of each reply, in [0, 0.6] with the validators' own profile: `criteria` of an [`Outcome`]. 0 where
/// the profile has no penalties.
///
/// # Errors
/// [`StepError`] where the profile is none to compute with.
pub async fn criteria(profile: &Profile, task: &StepTask, replies: &[&str]) -> Result<Vec<f64>, StepError> {
    let mut validator = Validator::new(profile.clone(), Models::default(), Missing::Renormalise)?;
    let all: Vec<Reply> = replies.iter().map(|text| Reply::new(0, *text)).collect();
    let report = validator.step(task, &all).await?;
    Ok((0..all.len()).map(|nth| taken(&report, CRITERIA, nth)).collect())
}

/// Returns what all penalties of a task take of each reply, in [0, 1]: criteria, labels of other tasks, stock openings. 0 where the profile has none.
///
/// # Errors
/// As [`criteria`].
pub async fn penalties(profile: &Profile, task: &StepTask, replies: &[&str]) -> Result<Vec<f64>, StepError> {
    let mut validator = Validator::new(profile.clone(), Models::default(), Missing::Renormalise)?;
    let all: Vec<Reply> = replies.iter().map(|text| Reply::new(0, *text)).collect();
    let report = validator.step(task, &all).await?;
    let penalties: Vec<&Factor> = report.factors.iter().filter(|factor| factor.kind == FactorKind::Penalty).collect();
    let left =
        |nth: usize| penalties.iter().filter_map(|p| p.applied.get(nth)).map(|&left| f64::from(left)).product::<f64>();
    Ok((0..all.len()).map(|nth| 1.0 - left(nth)).collect())
}

/// Returns what is left of a reply's reward by one factor.
fn applied(report: &StepReport, factor: &str, nth: usize) -> Option<f64> {
    report.factor(factor).and_then(|factor| factor.applied.get(nth)).map(|&value| f64::from(value))
}

fn taken(report: &StepReport, penalty: &str, nth: usize) -> f64 {
    applied(report, penalty, nth).map_or(0.0, |left| 1.0 - left)
}

fn outcome(report: &StepReport) -> Outcome {
    let applied = |name: &str| applied(report, name, 0);
    let taken = |name: &str| taken(report, name, 0);
    let dpo = report.factor("dpo");
    let logprob = dpo.and_then(|dpo| *dpo.raw.first()?);
    // Penalties of a reply that did not come are those of an empty text; it lost all already.
    let came = logprob.is_some();
    Outcome {
        reward: report.rewards.as_ref().and_then(|rewards| rewards.first()).map_or(0.0, |&reward| f64::from(reward)),
        logprob: logprob.map(f64::from),
        quality: applied("dpo").unwrap_or(0.0),
        criteria: taken(CRITERIA),
        keyword: taken("keyword_match"),
        content: taken("content_match"),
        irrelevant: came && applied("relevance").is_some_and(|mask| mask <= 0.0),
        masked: came && applied("diversity").is_some_and(|mask| mask <= 0.0),
    }
}

#[derive(Debug)]
struct KnownEmbeddings(Arc<Known>);

#[async_trait::async_trait]
impl Embedder for KnownEmbeddings {
    fn name(&self) -> &str {
        &self.0.encoder.0
    }

    fn dimensions(&self) -> usize {
        self.0.encoder.1
    }

    fn max_tokens(&self) -> usize {
        self.0.encoder.2
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        let known = |text: &String| self.0.embeddings.get(text).cloned();
        texts.iter().map(known).collect::<Option<_>>().ok_or_else(|| unknown(&self.0.encoder.0))
    }
}

#[derive(Debug)]
struct KnownRewards(Arc<Known>);

#[async_trait::async_trait]
impl RewardModel for KnownRewards {
    fn name(&self) -> &str {
        &self.0.name
    }

    async fn scores(&self, prompt: &str, replies: &[String]) -> Result<Vec<f32>, Error> {
        let base = hash(prompt);
        let known = |reply: &String| self.0.dpo.get(&(base, hash(reply))).copied();
        replies.iter().map(known).collect::<Option<_>>().ok_or_else(|| unknown(&self.0.name))
    }

    fn lowest(&self) -> Option<f32> {
        self.0.lowest
    }
}

fn unknown(model: &str) -> Error {
    Error::Protocol { backend: model.to_owned(), reason: "a text that was not prepared".to_owned() }
}
