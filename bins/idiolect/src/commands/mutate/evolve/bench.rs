//! Replies of a model that is asked now, by the arithmetic of `idiolect_validator`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use idiolect_backend::{Backend, Embedder, Embedding, Error, Message, Request, Sampling};
use idiolect_mutation::evolve::{Evaluator, Outcome, Trial};
use idiolect_mutation::guard::Rules;
use idiolect_validator::task::Criterion;
use idiolect_validator::{Profile, RewardModel};

/// Times that a request is made again which a backend could not take.
const RETRIES: usize = 3;

/// Asks a model, and judges what it says.
#[derive(Debug)]
pub(super) struct Bench {
    backend: Arc<dyn Backend>,
    sampling: Sampling,
    encoder: Arc<dyn Embedder>,
    quality: Option<Arc<dyn RewardModel>>,
    profile: Arc<Profile>,
    /// Of the texts that prompts are about.
    base: Mutex<HashMap<String, Embedding>>,
}

impl Bench {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        sampling: Sampling,
        encoder: Arc<dyn Embedder>,
        quality: Option<Arc<dyn RewardModel>>,
        profile: Profile,
    ) -> Self {
        Self { backend, sampling, encoder, quality, profile: Arc::new(profile), base: Mutex::default() }
    }

    async fn one(&self, text: &str) -> Result<Embedding, Error> {
        Ok(self.encoder.embed(&[text.to_owned()]).await?.pop().unwrap_or_default())
    }

    async fn relevance(&self, base: &str, reply: &Embedding) -> Result<f32, Error> {
        let known = self.base.lock().unwrap_or_else(PoisonError::into_inner).get(base).cloned();
        let known = match known {
            Some(known) => known,
            None => {
                let made = self.one(base).await?;
                self.base.lock().unwrap_or_else(PoisonError::into_inner).insert(base.to_owned(), made.clone());
                made
            }
        };
        Ok(known.iter().zip(reply).map(|(a, b)| a * b).sum::<f32>().abs())
    }
}

#[async_trait]
impl Evaluator for Bench {
    async fn evaluate(&self, trial: Trial<'_>) -> Result<Outcome, Error> {
        let mut sampling = self.sampling.clone();
        trial.recipe.apply_sampling(&mut sampling);
        sampling.seed = self.backend.capabilities().seed.then_some(trial.seed);
        let messages = trial.recipe.apply(&[Message::user(trial.prompt.text.as_str())]);
        let request = Request { sampling, ..Request::new(messages) };
        let mut tried = 0;
        let completion = loop {
            match self.backend.complete(request.clone()).await {
                Err(error) if error.is_retryable() && tried < RETRIES => {
                    tried += 1;
                    tokio::time::sleep(std::time::Duration::from_secs(1 << tried)).await;
                }
                answer => break answer?,
            }
        };
        let usage = completion.usage;
        let text = completion.candidates.first().map_or("", |candidate| candidate.text.trim()).to_owned();

        let rules = Rules::new(Arc::clone(&self.profile), trial.prompt.task, &trial.prompt.text);
        let seen = rules.scored(&text).trim().to_owned();
        let embedding = self.one(&seen).await?;
        let limit = rules.least_relevance();
        let relevance = match limit {
            Some(_) => Some(self.relevance(rules.base_text(), &embedding).await?),
            None => None,
        };
        let logprob = match &self.quality {
            Some(model) => {
                model.scores(rules.judged_text(), std::slice::from_ref(&seen)).await?.first().copied().map(f64::from)
            }
            None => completion.candidates.first().and_then(|candidate| candidate.mean_logprob).map(f64::from),
        };
        let length_error = rules.criteria().iter().find_map(|criterion| match criterion {
            Criterion::Length { target, unit } => Some(unit.count(&seen) as f64 / f64::from((*target).max(1)) - 1.0),
            _ => None,
        });
        Ok(Outcome {
            relevant: relevance.zip(limit).is_none_or(|(relevance, limit)| relevance >= limit),
            flags: rules.check(&text),
            logprob: logprob.filter(|logprob| logprob.is_finite()),
            tokens: u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
            text,
            relevance,
            length_error,
            embedding,
        })
    }

    async fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Error> {
        self.encoder.embed(texts).await
    }
}

/// Answers nothing: for runs that are only estimated.
#[derive(Debug)]
pub(super) struct Nobody;

#[async_trait]
impl Evaluator for Nobody {
    async fn evaluate(&self, _: Trial<'_>) -> Result<Outcome, Error> {
        Err(nothing())
    }

    async fn embed(&self, _: &[String]) -> Result<Vec<Embedding>, Error> {
        Err(nothing())
    }
}

fn nothing() -> Error {
    Error::Unsupported { backend: "dry run".to_owned(), what: "replies".to_owned() }
}
