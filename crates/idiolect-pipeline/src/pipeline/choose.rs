//! The choice among candidates, and what is learnt of it.

use std::collections::HashSet;
use std::sync::Arc;

use idiolect_mutation::policy::{Draw, Learner, PolicyError, Scored};
use idiolect_uniqueness::{Candidate, Neighbour, Population, Selection};
use tokio::time::{Instant, timeout_at};

use super::{Examined, Pipeline, Plan, finish};
use crate::generate::{Draft, Generated};
use crate::hash::{self, CompletionHash};
use crate::metrics;

/// Searching more earlier replies than this is moved off the executor.
const SEARCH_INLINE: usize = 256;

/// Which candidates are best, and why.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(super) selection: Option<Selection>,
    pub(crate) ranking: Vec<usize>,
    pub(super) reason: &'static str,
    pub(super) n_history: usize,
}

impl Pipeline {
    /// Chooses, beside all that is known of earlier replies by now and can be compared with in time.
    pub(crate) async fn choose(
        &self,
        looked_at: &Examined,
        plan: &Plan,
        drafts: &[Draft],
        prompt_hash: &str,
        deadline: Instant,
    ) -> Choice {
        if plan.mode.is_passthrough() {
            let ranking = (0..drafts.len()).collect();
            return Choice { selection: None, ranking, reason: "passthrough", n_history: 0 };
        }
        let n_history = self.history.as_ref().map_or(0, |history| history.len());
        let selection = self.select(drafts, looked_at, plan, prompt_hash, deadline).await;
        let (ranking, reason) = (selection.ranking.clone(), selection.reason.as_str());
        Choice { selection: Some(selection), ranking, reason, n_history }
    }

    /// Counts the choice that counts, notes what there was no time for, and returns what the sent reply is nearest to.
    pub(super) fn count_choice(
        &self,
        choice: &Choice,
        plan: &Plan,
        generated: &mut Generated,
        is_embedded: bool,
        sent: usize,
    ) -> Option<&'static str> {
        metrics::selection(choice.reason);
        let selection = choice.selection.as_ref()?;
        if selection.n_unsearched > 0 {
            metrics::search_cut();
            let (n, n_candidates) = (selection.n_unsearched, selection.scores.len());
            let note = format!("no time to compare {n} of {n_candidates} candidates with earlier replies");
            generated.notes.push(note);
        }
        let score = selection.scores.get(sent).filter(|_| is_embedded)?;
        metrics::gate(score.distance, score.predicted);
        let source = match score.nearest.as_ref()? {
            Neighbour::Sibling(i) => {
                let (own, other) = (generated.drafts.get(sent)?, generated.drafts.get(*i)?);
                let is_no_op = plan.requests.get(other.recipe).is_some_and(|r| r.recipe.operators.is_empty());
                match (own.model == other.model, is_no_op) {
                    (false, _) => "sibling_model",
                    (true, true) => "no_op",
                    (true, false) => "sibling",
                }
            }
            Neighbour::Panel(_) => "panel",
            Neighbour::Quoted(_) => "quoted",
            _ => "history",
        };
        metrics::nearest(source);
        Some(source)
    }

    async fn select(
        &self,
        drafts: &[Draft],
        looked_at: &Examined,
        plan: &Plan,
        prompt_hash: &str,
        deadline: Instant,
    ) -> Selection {
        let Examined { qualities, embeddings, quoted, distinctiveness, .. } = looked_at;
        let known: Vec<(String, f32)> =
            drafts.iter().zip(qualities).map(|(draft, quality)| (draft.model.clone(), quality.score)).collect();
        let (embeddings, quoted, learnt) = (embeddings.clone(), quoted.clone(), distinctiveness.clone());
        let (selector, history, panels) = (Arc::clone(&self.selector), self.history.clone(), self.panels.clone());
        let is_plain = |draft: &Draft| plan.requests.get(draft.recipe).is_some_and(|r| r.recipe.is_no_op());
        let plain: Vec<usize> =
            drafts.iter().enumerate().filter(|(_, draft)| is_plain(draft)).map(|(index, _)| index).collect();
        let n_rivals = self.config.rivals;
        let asked = panels.as_ref().map(|_| plan.asked.clone()).unwrap_or_default();
        let encoder = self.embedder.as_ref().map_or(String::new(), |embedder| embedder.name().to_owned());
        let prompt_hash = prompt_hash.to_owned();
        let n_rows =
            history.as_ref().map_or(0, |h| h.len()) + panels.as_ref().map_or(0, |panels| panels.elsewhere().len());
        let search = move |until: std::time::Instant| {
            let embedding = |i: usize| embeddings.as_ref().and_then(|e| e.get(i)).map(Vec::as_slice);
            let with_place = known.iter().enumerate();
            let candidates: Vec<Candidate<'_>> = with_place
                .map(|(i, (source, quality))| Candidate {
                    embedding: embedding(i),
                    quality: *quality,
                    source,
                    distinctiveness: learnt.get(i).copied().flatten(),
                })
                .collect();
            let mut population = Population::new(&encoder).with_rivals(n_rivals).with_plain(&plain);
            // All were made for this encoder: `start` checks it.
            if let Some(with) = history.as_deref().and_then(|h| population.with_history(h, &prompt_hash).ok()) {
                population = with;
            }
            if let Some(panels) = panels.as_deref() {
                let to_prompt = panels.to_prompt(&asked).and_then(|panel| population.with_panel(panel).ok());
                population = to_prompt.unwrap_or(population);
                population = population.with_elsewhere(panels.elsewhere()).unwrap_or(population);
            }
            if let Some(with) = quoted.as_deref().and_then(|panel| population.with_quoted(panel).ok()) {
                population = with;
            }
            selector.select_until(&candidates, &population, until)
        };
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        // The search stops by itself; where it finds no thread to begin on, it is not waited for.
        let (enough, too_late) = (left.saturating_sub(finish(left) / 2), left.saturating_sub(finish(left) / 4));
        let until = std::time::Instant::now() + enough;
        let selection = if n_rows <= SEARCH_INLINE {
            search(until)
        } else {
            let search = Arc::new(search);
            let elsewhere = Arc::clone(&search);
            match timeout_at(now + too_late, tokio::task::spawn_blocking(move || elsewhere(until))).await {
                Ok(Ok(selection)) => selection,
                Ok(Err(error)) => {
                    tracing::error!(%error, "the choice failed; the first candidate is sent");
                    None
                }
                Err(_) => {
                    tracing::warn!("no thread was free to search earlier replies in time");
                    search(std::time::Instant::now())
                }
            }
        };
        selection.unwrap_or_else(|| Selection {
            chosen: 0,
            ranking: (0..qualities.len()).collect(),
            scores: Vec::new(),
            reason: idiolect_uniqueness::Reason::OnlyCandidate,
            n_unsearched: 0,
            vendi: None,
        })
    }

    /// Tells the policy what each recipe brought: the mean, over its candidates, of quality times the chance not to be masked.
    pub(super) fn learn(&self, plan: &Plan, drafts: &[Draft], looked_at: &Examined, choice: &Choice) {
        let Some(learner) = &self.learner else { return };
        // Without embeddings nothing is known of the gate.
        let Some(selection) = choice.selection.as_ref().filter(|_| looked_at.embeddings.is_some()) else { return };
        let mut brought: Vec<(Draw, Vec<f64>)> = Vec::new();
        for (draft, score) in drafts.iter().zip(&selection.scores) {
            let Some(draw) = plan.requests.get(draft.recipe).and_then(|planned| planned.draw.as_ref()) else {
                continue;
            };
            let passes = score.masked.map_or(score.predicted, |masked| 1.0 - masked.p);
            let reward = f64::from(score.quality * passes).clamp(0.0, 1.0);
            match brought.iter_mut().find(|(other, _)| other.recipe == draw.recipe) {
                Some((_, rewards)) => rewards.push(reward),
                None => brought.push((draw.clone(), vec![reward])),
            }
        }
        if brought.is_empty() {
            return;
        }
        let context = plan.context.clone();
        teach(learner, move |learner| {
            let mean = |rewards: &[f64]| rewards.iter().sum::<f64>() / rewards.len() as f64;
            let scored = brought.iter().map(|(draw, rewards)| Scored { draw, reward: mean(rewards) });
            learner.update(&context, &scored.collect::<Vec<_>>())
        });
    }
}

impl Pipeline {
    /// Remembers which recipes the replies that are sent were drawn by, in case a validator says what they were worth.
    pub(super) fn await_reward(&self, plan: &Plan, drafts: &[Draft], sent: &[usize], caller: &str) {
        if self.learner.is_none() || caller.is_empty() {
            return;
        }
        for draft in sent.iter().filter_map(|&index| drafts.get(index)) {
            if let Some(draw) = plan.requests.get(draft.recipe).and_then(|planned| planned.draw.as_ref()) {
                self.awaited.sent(hash::completion(caller, &draft.candidate.text), &plan.context, draw);
            }
        }
    }

    /// Tells the policy what a validator gave for a reply, once a reply: one more observation of its recipe, beside what we thought of
    /// it ourselves, for which nothing fades. Of several rewards the mean counts, cut off at 0 and 1.
    pub(super) fn learn_reward(&self, reply: &CompletionHash, rewards: &[f32]) {
        let Some(learner) = self.learner.as_ref().filter(|_| !rewards.is_empty()) else { return };
        let Some((context, draw)) = self.awaited.take(reply) else { return };
        let mean = rewards.iter().map(|&reward| f64::from(reward)).sum::<f64>() / rewards.len() as f64;
        let reward = mean.clamp(0.0, 1.0);
        teach(learner, move |learner| learner.update_again(&context, &[Scored { draw: &draw, reward }]));
    }
}

/// Teaches on a thread that nobody waits for: it is written down, too.
fn teach(learner: &Arc<Learner>, lesson: impl FnOnce(&Learner) -> Result<(), PolicyError> + Send + 'static) {
    let learner = Arc::clone(learner);
    tokio::task::spawn_blocking(move || match lesson(&learner) {
        Ok(()) => metrics::learnt("yes"),
        Err(error) => {
            metrics::learnt("failed");
            tracing::warn!(error = &error as &dyn std::error::Error, "not learnt of what the recipes brought");
        }
    });
}

/// Returns the best `n` candidates with different texts; where there are fewer, the best of the rest fill up.
pub(crate) fn distinct(ranking: &[usize], drafts: &[Draft], n: usize) -> Vec<usize> {
    let mut seen = HashSet::new();
    let (first, again): (Vec<usize>, Vec<usize>) =
        ranking.iter().partition(|&&i| seen.insert(drafts[i].candidate.text.trim()));
    first.into_iter().chain(again).take(n.max(1)).collect()
}
