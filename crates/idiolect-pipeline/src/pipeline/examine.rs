//! What is found out about candidates: what they break, where they lie, how good they are.

use std::collections::HashSet;
use std::sync::Arc;

use idiolect_backend::{Embedding, FinishReason};
use idiolect_mutation::guard::{self, Flag};
use idiolect_uniqueness::Panel;
use idiolect_uniqueness::quality::{self, Quality, Reward};
use tokio::time::Instant;

use super::{Pipeline, Plan, finish, last_asked};
use crate::ask::Job;
use crate::generate::{Draft, Generated};
use crate::metrics;

/// What was found out about the candidates.
pub(crate) struct Examined {
    pub(super) qualities: Vec<Quality>,
    pub(super) flags: Vec<Vec<Flag>>,
    pub(crate) embeddings: Option<Vec<Embedding>>,
    pub(super) quoted: Option<Arc<Panel>>,
}

/// Why candidates have no embeddings.
#[derive(Clone, Copy, Debug)]
enum NotEmbedded {
    NoEncoder,
    NoTime,
    Failed,
}

impl NotEmbedded {
    const fn label(self) -> &'static str {
        match self {
            Self::NoEncoder => "no_encoder",
            Self::NoTime => "no_time",
            Self::Failed => "failed",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NoEncoder => "there is no encoder",
            Self::NoTime => "there was no time",
            Self::Failed => "the encoder failed",
        }
    }
}

impl Pipeline {
    /// Finds out what there is to know of the candidates in the time that is left.
    pub(super) async fn examine(&self, job: &Job, plan: &Plan, generated: &mut Generated) -> Examined {
        let drafts = &generated.drafts;
        let asked = last_asked(&job.messages);
        let check = |draft: &Draft| guard::check(plan.task, asked, &draft.candidate.text);
        let flags: Vec<Vec<Flag>> =
            drafts.iter().map(|draft| draft.flags.clone().unwrap_or_else(|| check(draft))).collect();
        for flag in flags.iter().flatten() {
            metrics::flag(flag.kind.as_str());
        }
        if plan.mode.is_passthrough() {
            let qualities = quality::estimate(&described(drafts, &flags, None));
            return Examined { qualities, flags, embeddings: None, quoted: None };
        }
        let mut quoted = None;
        let embeddings = match self.embed(drafts, &plan.quoted, job.deadline).await {
            Ok(mut embeddings) => {
                quoted = self.panel_of(&plan.quoted, embeddings.split_off(drafts.len()));
                Some(embeddings)
            }
            Err(why) => {
                metrics::unscored(why.label());
                generated.notes.push(format!("chosen without embeddings: {}", why.text()));
                None
            }
        };
        // The gate comes first: it takes all of the reward.
        let rewards = self.judge(drafts, plan, job.deadline, &mut generated.notes).await;
        let qualities = quality::estimate(&described(&generated.drafts, &flags, rewards.as_deref()));
        Examined { qualities, flags, embeddings, quoted }
    }

    /// Asks the reward model about candidates that there is a choice among.
    async fn judge(
        &self,
        drafts: &[Draft],
        plan: &Plan,
        deadline: Instant,
        notes: &mut Vec<String>,
    ) -> Option<Vec<Reward>> {
        let judge = self.judge.as_ref()?;
        let texts: Vec<String> = drafts.iter().map(|draft| draft.candidate.text.clone()).collect();
        if texts.iter().map(|text| text.trim()).collect::<HashSet<_>>().len() < 2 {
            return None;
        }
        let until = deadline - finish(deadline.saturating_duration_since(Instant::now()));
        match judge.rewards(&plan.asked, &texts, until).await {
            Ok(rewards) => Some(rewards),
            Err(why) => {
                metrics::unjudged(why.label());
                notes.push(format!("chosen without rewards by {}: {why}", judge.name()));
                None
            }
        }
    }

    fn panel_of(&self, quoted: &[(String, String)], embeddings: Vec<Embedding>) -> Option<Arc<Panel>> {
        let embedder = self.embedder.as_ref().filter(|_| !quoted.is_empty())?;
        let mut panel = Panel::new(embedder.name(), embedder.dimensions());
        for ((label, _), embedding) in quoted.iter().zip(&embeddings) {
            panel.push(label.as_str(), embedding);
        }
        Some(Arc::new(panel))
    }

    /// Returns the embeddings of the candidates, and behind them those of the winners that the prompt quotes.
    async fn embed(
        &self,
        drafts: &[Draft],
        quoted: &[(String, String)],
        deadline: Instant,
    ) -> Result<Vec<Embedding>, NotEmbedded> {
        let embedder = self.embedder.as_ref().ok_or(NotEmbedded::NoEncoder)?;
        let started = Instant::now();
        let until = deadline - finish(deadline.saturating_duration_since(started));
        let candidates = drafts.iter().map(|draft| draft.candidate.text.clone());
        let texts: Vec<String> = candidates.chain(quoted.iter().map(|(_, text)| text.clone())).collect();
        let result = tokio::time::timeout_at(until, embedder.embed(&texts)).await;
        if result.is_ok() {
            self.reserve.measured(texts.len(), started.elapsed());
        }
        match result {
            Err(_) => {
                self.reserve.given_up(texts.len(), started.elapsed());
                Err(NotEmbedded::NoTime)
            }
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "candidates not embedded");
                Err(NotEmbedded::Failed)
            }
            Ok(Ok(embeddings)) => {
                let n_values = embedder.dimensions();
                let is_usable = |e: &Embedding| e.len() == n_values && e.iter().all(|v| v.is_finite());
                // One text that cannot be placed counts as a repeat; where none can, the encoder is to blame.
                if embeddings.len() == texts.len() && embeddings.iter().take(drafts.len()).any(is_usable) {
                    return Ok(embeddings);
                }
                tracing::warn!(n_texts = texts.len(), n = embeddings.len(), "the encoder gave nothing of use");
                Err(NotEmbedded::Failed)
            }
        }
    }
}

fn described<'a>(drafts: &'a [Draft], flags: &[Vec<Flag>], rewards: Option<&[Reward]>) -> Vec<quality::Draft<'a>> {
    let described = drafts.iter().zip(flags).enumerate().map(|(i, (draft, flags))| quality::Draft {
        text: &draft.candidate.text,
        mean_logprob: draft.candidate.mean_logprob,
        model: &draft.model,
        prompt: draft.recipe,
        complete: draft.candidate.finish_reason == FinishReason::Stop,
        penalty: guard::penalty(flags),
        reward: rewards.and_then(|rewards| rewards.get(i)).copied(),
    });
    described.collect()
}
