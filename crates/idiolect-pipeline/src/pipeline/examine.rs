//! What is found out about candidates: what they break, where they lie, how good they are.

use std::collections::HashSet;
use std::sync::Arc;

use idiolect_backend::{Embedding, FinishReason};
use idiolect_mutation::FlagKind;
use idiolect_mutation::guard::{self, Flag, Rules};
use idiolect_uniqueness::distinctiveness::Prompt;
use idiolect_uniqueness::quality::{self, Quality, Reward};
use idiolect_uniqueness::vectors::dot;
use idiolect_uniqueness::{Distinctiveness, Panel};
use tokio::time::Instant;

use super::{Pipeline, Plan, finish, last_asked};
use crate::ask::Job;
use crate::generate::{Draft, Generated};
use crate::metrics;

/// The encoder of the validators' relevance mask: its bound says nothing of another one's cosines.
const RELEVANCE_ENCODER: &str = "all-mpnet-base-v2";

/// What a text that its operator forbids is taken to lose: as much as by a criterion that is not met.
const FORBIDDEN_LOSES: f32 = 0.25;
/// What an irrelevant reply is taken to lose: all, but for the choice among several of them.
const IRRELEVANT: f32 = 0.98;

/// What was found out about the candidates.
pub(crate) struct Examined {
    pub(super) qualities: Vec<Quality>,
    pub(super) flags: Vec<Vec<Flag>>,
    pub(crate) embeddings: Option<Vec<Embedding>>,
    pub(super) quoted: Option<Arc<Panel>>,
    /// What other prompts taught of replies like each.
    pub(super) distinctiveness: Vec<Option<f64>>,
}

/// Which texts candidates are compared with, beside each other.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Beside<'a> {
    /// What they must be near to, and how near.
    relevance: Option<(&'a str, f32)>,
    learnt: Option<&'a Distinctiveness>,
    /// Whether what was asked is another text than that.
    is_apart: bool,
}

impl Beside<'_> {
    /// Returns how many texts there are to embed.
    pub(super) fn n(&self) -> usize {
        usize::from(self.relevance.is_some()) + usize::from(self.is_apart)
    }
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
    pub(super) async fn examine(
        &self,
        job: &Job,
        plan: &Plan,
        rules: Option<&Rules>,
        generated: &mut Generated,
    ) -> Examined {
        let drafts = &generated.drafts;
        let asked = last_asked(&job.messages);
        let check = |draft: &Draft| guard::check(plan.task, asked, &draft.candidate.text);
        let mut flags: Vec<Vec<Flag>> =
            drafts.iter().map(|draft| draft.flags.clone().unwrap_or_else(|| check(draft))).collect();
        for (draft, flags) in drafts.iter().zip(&mut flags) {
            let recipe = plan.requests.get(draft.recipe).map(|planned| &planned.recipe);
            let induced = recipe.map_or_else(Vec::new, |recipe| plan.library.induced(recipe, &draft.candidate.text));
            flags.extend(induced.first().map(|(_, text)| forbidden(text)));
        }
        for flag in flags.iter().flatten() {
            metrics::flag(flag.kind.as_str());
        }
        if plan.mode.is_passthrough() {
            let qualities = quality::estimate(&described(drafts, &flags, None));
            return Examined { qualities, flags, embeddings: None, quoted: None, distinctiveness: Vec::new() };
        }
        // As a validator sees them: it cuts questions.
        let seen = |draft: &Draft| {
            let text = &draft.candidate.text;
            rules.map_or_else(|| text.clone(), |rules| rules.scored(text).into_owned())
        };
        let seen: Vec<String> = drafts.iter().map(seen).collect();
        let judged = rules.map_or(plan.asked.as_str(), Rules::judged_text);
        let beside = if drafts.len() > 1 { self.beside(rules, &plan.asked) } else { Beside::default() };
        let Beside { relevance, learnt, is_apart } = beside;
        let (mut quoted, mut distinctiveness) = (None, Vec::new());
        let others = plan.quoted.iter().map(|(_, text)| text.as_str());
        let others = others.chain(relevance.map(|(base_text, _)| base_text)).chain(is_apart.then_some(judged));
        let embeddings = match self.embed(&seen, others, job.deadline).await {
            Ok(mut embeddings) => {
                let asked = if is_apart { embeddings.pop() } else { embeddings.last().cloned() };
                if let (Some(learnt), Some(asked)) = (learnt, asked) {
                    let prompt = Prompt { text: judged, embedding: &asked };
                    let of = |(text, embedding): (&String, &Embedding)| learnt.of(text, embedding, Some(prompt));
                    distinctiveness = seen.iter().zip(&embeddings).map(of).collect();
                }
                if let Some((_, least)) = relevance
                    && let Some(base) = embeddings.pop()
                {
                    for (flags, embedding) in flags.iter_mut().zip(&embeddings) {
                        let is_relevant = dot(&base, embedding).abs() >= least;
                        flags.extend((!is_relevant).then(irrelevant));
                    }
                }
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
        let rewards = self.judge(judged, &seen, job.deadline, &mut generated.notes).await;
        let qualities = quality::estimate(&described(&generated.drafts, &flags, rewards.as_deref()));
        Examined { qualities, flags, embeddings, quoted, distinctiveness }
    }

    /// Returns what candidates are compared with, for a prompt of which so much was asked.
    pub(super) fn beside<'a>(&'a self, rules: Option<&'a Rules>, asked: &'a str) -> Beside<'a> {
        let (relevance, learnt) = (self.relevance(rules), self.distinctiveness.as_deref());
        let judged = rules.map_or(asked, Rules::judged_text);
        let is_apart = learnt.is_some() && relevance.is_none_or(|(base_text, _)| base_text != judged);
        Beside { relevance, learnt, is_apart }
    }

    /// Returns the text that candidates must be near to, and the least absolute cosine; `None` where that is unknown, or there is another encoder than
    /// the validators'.
    fn relevance<'a>(&self, rules: Option<&'a Rules>) -> Option<(&'a str, f32)> {
        self.embedder.as_ref().filter(|embedder| embedder.name() == RELEVANCE_ENCODER)?;
        Some((rules?.base_text(), rules?.least_relevance()?))
    }

    /// Asks the reward model about candidates that there is a choice among.
    async fn judge(
        &self,
        asked: &str,
        texts: &[String],
        deadline: Instant,
        notes: &mut Vec<String>,
    ) -> Option<Vec<Reward>> {
        let judge = self.judge.as_ref()?;
        if texts.iter().map(|text| text.trim()).collect::<HashSet<_>>().len() < 2 {
            return None;
        }
        let until = deadline - finish(deadline.saturating_duration_since(Instant::now()));
        match judge.rewards(asked, texts, until).await {
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

    /// Returns the embeddings of the candidates, and behind them those of the other texts.
    async fn embed(
        &self,
        candidates: &[String],
        others: impl Iterator<Item = &str> + Send,
        deadline: Instant,
    ) -> Result<Vec<Embedding>, NotEmbedded> {
        let embedder = self.embedder.as_ref().ok_or(NotEmbedded::NoEncoder)?;
        let started = Instant::now();
        let until = deadline - finish(deadline.saturating_duration_since(started));
        let texts: Vec<String> = candidates.iter().cloned().chain(others.map(str::to_owned)).collect();
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
                if embeddings.len() == texts.len() && embeddings.iter().take(candidates.len()).any(is_usable) {
                    return Ok(embeddings);
                }
                tracing::warn!(n_texts = texts.len(), n = embeddings.len(), "the encoder gave nothing of use");
                Err(NotEmbedded::Failed)
            }
        }
    }
}

fn forbidden(text: &str) -> Flag {
    Flag { kind: FlagKind::Forbidden, penalty: FORBIDDEN_LOSES, rule: text.to_owned() }
}

fn irrelevant() -> Flag {
    metrics::flag(FlagKind::Irrelevant.as_str());
    Flag { kind: FlagKind::Irrelevant, penalty: IRRELEVANT, rule: "relevance".to_owned() }
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
