//! Writing a reply to the history before it is sent, so that whoever shares the history knows of it and nothing is lost.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use idiolect_axon::HandlerError;
use idiolect_backend::Embedding;
use idiolect_protocol::Category;
use idiolect_uniqueness::StoredReply;
use tokio::time::{Instant, timeout_at};

use crate::config::StorePrompts;
use crate::generate::Draft;
use crate::metrics;
use crate::pipeline::{Choice, Examined, Pipeline, Plan, distinct};

/// Longest time for reading the history, choosing and claiming, however often others are faster.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the history is left alone after it failed or was too slow.
const REST: Duration = Duration::from_secs(5);
/// Another miner's reply that is younger than this may be to the same question of the same validator.
const SAME_ROUND_MS: i64 = 120_000;
/// With so many claims lost in a row something else is wrong than bad luck.
const MOST_LOST: u32 = 100;

/// Whether the history can be written now.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    rests_until: Mutex<Option<Instant>>,
}

impl Claims {
    fn is_resting(&self) -> bool {
        let until = *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn rest(&self) {
        *self.rests_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + REST);
    }
}

/// What the history needs to know of a reply.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About<'a> {
    pub(crate) id: &'a str,
    pub(crate) caller: &'a str,
    pub(crate) prompt_hash: &'a str,
    pub(crate) time_ms: i64,
    pub(crate) n_completions: usize,
    pub(crate) is_local: bool,
    pub(crate) deadline: Instant,
}

/// A choice, and what became of it in the history.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) choice: Choice,
    pub(crate) sent: Vec<usize>,
    /// It is in the history already.
    pub(crate) is_claimed: bool,
    pub(crate) note: Option<String>,
}

/// What became of one claim.
enum Claim {
    Claimed,
    /// Somebody was faster.
    Lost,
    /// There is nothing to claim, or nowhere.
    Nothing,
    Failed(&'static str),
}

impl Pipeline {
    /// Chooses and claims, and chooses again where somebody else who shares the history was faster, until the claim is made or
    /// the time for it is over; then the reply is sent without.
    pub(crate) async fn settle(
        &self,
        looked_at: &Examined,
        plan: &Plan,
        drafts: &[Draft],
        about: About<'_>,
        until: Instant,
    ) -> Result<Settled, HandlerError> {
        let patience = until.min(Instant::now() + PATIENCE);
        for n_lost in 0.. {
            // The reply keeps its place in the queue: what is read now is what the claim is made on.
            let place = self.read_history(looked_at, patience).await;
            let choice = self.choose(looked_at, plan, drafts, about.prompt_hash, about.deadline).await;
            let free = self.without_others(&choice.ranking, looked_at, about);
            let ranking =
                if free.is_empty() && (about.is_local || drafts.is_empty()) { &choice.ranking } else { &free };
            if ranking.is_empty() {
                metrics::claim("refused");
                let message = "every candidate repeats a reply of another miner of the same history";
                tracing::warn!(id = about.id, "{message}: nothing is sent");
                return Err(HandlerError::new(Category::Unavailable, "the model is not available"));
            }
            let sent = distinct(ranking, drafts, about.n_completions);
            let claim = match place {
                Ok(Some(place)) => self.claim(place, looked_at, drafts, &sent, about, patience).await,
                Ok(None) => Claim::Nothing,
                Err(why) => Claim::Failed(why),
            };
            let why = match claim {
                Claim::Lost if n_lost < MOST_LOST => {
                    metrics::claim("lost");
                    continue;
                }
                Claim::Lost => "contended",
                Claim::Claimed => {
                    metrics::claim("claimed");
                    return Ok(Settled { choice, sent, is_claimed: true, note: None });
                }
                Claim::Nothing => return Ok(Settled { choice, sent, is_claimed: false, note: None }),
                Claim::Failed(why) => why,
            };
            metrics::claim(why);
            let note = Some(format!("sent before it was in the history, which is {why}"));
            return Ok(Settled { choice, sent, is_claimed: false, note });
        }
        // The loop returns.
        Err(HandlerError::new(Category::Internal, "internal error"))
    }

    /// Takes in what others wrote into the history, and returns up to where it is known. Nothing where there is none to write
    /// to.
    async fn read_history(&self, looked_at: &Examined, patience: Instant) -> Result<Option<i64>, &'static str> {
        let Some(history) = self.history.as_ref().filter(|history| history.is_kept()) else { return Ok(None) };
        if looked_at.embeddings.is_none() {
            return Ok(None);
        }
        if self.claims.is_resting() {
            return Err("resting");
        }
        let why = match timeout_at(patience, history.refresh()).await {
            Ok(Ok(place)) => return Ok(Some(place)),
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "history not read; it is left alone for a while"
                );
                "failed"
            }
            Err(_) => {
                tracing::warn!("history not read in time; it is left alone for a while");
                "slow"
            }
        };
        self.claims.rest();
        Err(why)
    }

    async fn claim(
        &self,
        place: i64,
        looked_at: &Examined,
        drafts: &[Draft],
        sent: &[usize],
        about: About<'_>,
        patience: Instant,
    ) -> Claim {
        let (Some(history), Some(embeddings)) = (&self.history, &looked_at.embeddings) else { return Claim::Nothing };
        let replies = self.replies(drafts, embeddings, sent, about, history.encoder());
        if replies.is_empty() {
            return Claim::Nothing;
        }
        match timeout_at(patience, history.claim(place, &replies)).await {
            Ok(Ok(true)) => return Claim::Claimed,
            Ok(Ok(false)) => return Claim::Lost,
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "history not written; it is left alone for a while"
                );
            }
            Err(_) => {
                tracing::warn!("history not written in time; it is left alone for a while");
                self.claims.rest();
                return Claim::Failed("slow");
            }
        }
        self.claims.rest();
        Claim::Failed("failed")
    }

    fn replies(
        &self,
        drafts: &[Draft],
        embeddings: &[Embedding],
        sent: &[usize],
        about: About<'_>,
        encoder: &str,
    ) -> Vec<StoredReply> {
        let config = &self.config().record;
        let is_usable = |e: &Embedding| e.iter().all(|v| v.is_finite()) && e.iter().any(|v| *v != 0.0);
        let mut replies = Vec::with_capacity(sent.len());
        for (part, &index) in (0..).zip(sent) {
            let (Some(draft), Some(embedding)) = (drafts.get(index), embeddings.get(index)) else { continue };
            if !is_usable(embedding) {
                continue;
            }
            replies.push(StoredReply {
                reply_id: about.id.to_owned(),
                part,
                caller: about.caller.to_owned(),
                prompt_hash: match config.store_prompts {
                    StorePrompts::None => String::new(),
                    StorePrompts::All | StorePrompts::Hash => about.prompt_hash.to_owned(),
                },
                encoder: encoder.to_owned(),
                embedding: embedding.clone(),
                text: config.store_replies.then(|| draft.candidate.text.clone()),
                time_ms: about.time_ms,
            });
        }
        replies
    }

    /// Returns the ranking without what another miner of a shared history just sent in answer to the same prompt: one copy
    /// more would have the validators take the reward from both.
    fn without_others(&self, ranking: &[usize], looked_at: &Examined, about: About<'_>) -> Vec<usize> {
        let Some(history) = self.history.as_ref().filter(|_| self.is_shared) else { return ranking.to_vec() };
        let Some(embeddings) = &looked_at.embeddings else { return ranking.to_vec() };
        let since = about.time_ms.saturating_sub(SAME_ROUND_MS);
        let is_free = |&&i: &&usize| {
            embeddings.get(i).is_none_or(|embedding| !history.is_anothers(embedding, about.prompt_hash, since))
        };
        ranking.iter().filter(is_free).copied().collect()
    }
}
