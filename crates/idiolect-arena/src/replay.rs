//! What published runs of validators would have been with one more miner.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use idiolect_backend::Embedder;
use idiolect_dataset::{Entry, Generation, Step};
use idiolect_uniqueness::GateHistory;
use idiolect_uniqueness::vectors::distance;
use idiolect_validator::mask::task_validator;
use idiolect_validator::penalty::{applied, content_match, keyword_match};
use idiolect_validator::task::{TaskKind, text_prompting};
use idiolect_validator::{Mask, Profile, RewardModel, RewardText, StepTask};
use serde::Serialize;

use crate::cache::{CacheError, EmbeddingCache};
use crate::round::{RoundBlacklist, has_succeeded};
use crate::scores::{ScoreCache, ScoreError};

mod season;
#[cfg(test)]
mod tests;

pub use season::{Correlation, Moment, Paths, PathsError, RunReport};

/// Why a run cannot be replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The encoder failed, or what keeps its embeddings.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The reward model failed, or what keeps its scores.
    #[error(transparent)]
    Score(#[from] ScoreError),
}

/// Returns the name of a step in files of prompts and of ready replies: the run and its row, and which of a row's two steps it is
/// where it has two. Where the log does not say, the run is `?`, and the row is the number of the step in the file, from 0.
#[must_use]
pub fn step_id(step: &Step, nth: u64) -> String {
    let run = step.origin.run.as_deref().unwrap_or("?");
    let row = step.origin.row.unwrap_or(nth);
    match step.generation {
        Generation::OpenValidators1_0 => format!("{run}/{row}/{}", step.name),
        _ => format!("{run}/{row}"),
    }
}

/// What a rival had in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rival {
    /// Its place in the subnet.
    pub(crate) uid: Option<u32>,
    /// What it earns with our reply beside its own.
    pub(crate) reward: f32,
    /// What its reward models said, weighed, before masks and penalties; NaN where nobody knows.
    pub(crate) quality: f32,
    /// What the local model says of it; NaN where it was not asked.
    pub(crate) local: f32,
}

/// What is known of ours in a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Own {
    /// Whether there was a reply.
    pub(crate) answered: bool,
    /// What masks and penalties leave of the quality, 0 to 1.
    pub(crate) kept: f32,
    /// What the diversity mask made of it.
    pub(crate) diversity: f32,
    pub(crate) is_masked: bool,
    pub(crate) is_irrelevant: bool,
    /// What penalties take.
    pub(crate) penalties: f32,
    /// Whether a label or a repeated phrase takes all.
    pub(crate) is_blacklisted: bool,
    /// As [`Rival::local`].
    pub(crate) local: f32,
    /// How many rivals are masked because of it.
    pub(crate) n_pushed: u16,
}

/// One step, made ready.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Played {
    pub(crate) rivals: Vec<Rival>,
    pub(crate) own: Own,
    pub(crate) row: Option<u64>,
}

/// What a season is of: the steps of a run, and its first moving averages.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) generation: Option<Generation>,
    pub(crate) steps: Vec<Played>,
    /// How many steps were before the first state row, and its averages.
    pub(crate) begun_at: Option<(usize, Vec<f64>)>,
    pub(crate) n_unanswerable: usize,
    blacklist: RoundBlacklist,
    history: Option<GateHistory>,
}

/// Which factors of a reward were computed for our replies, and which were not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Computed from the texts.
    pub computed: Vec<String>,
    /// Drawn from what the record has of rivals, with their weights.
    pub imputed: Vec<String>,
    /// Neither: our replies are taken to pass.
    pub taken_to_pass: Vec<String>,
}

/// Replays a log with the replies of one more miner in it.
///
/// Rivals keep what was recorded of them; where our reply is nearer to theirs than any other was, the diversity mask counts it, as it would
/// have. Of ours is computed whatever the texts give: the diversity mask (batch and history), the encoder's part of relevance, labels, exact
/// blacklist, penalties. What its reward models would have said nobody knows: [`season`](Self::season) draws it from what they said of rivals.
#[derive(Debug)]
pub struct Replay {
    encoder: Arc<dyn Embedder>,
    embeddings: EmbeddingCache,
    local: Option<(Arc<dyn RewardModel>, ScoreCache)>,
    profiles: BTreeMap<&'static str, Profile>,
    profile: Option<Profile>,
    runs: BTreeMap<String, Run>,
    n_seen: u64,
    /// Embeddings are kept in memory up to this many.
    most_kept: usize,
}

/// The bound of the relevance mask says nothing of another encoder's cosines.
const VALIDATORS_ENCODER: &str = "all-mpnet-base-v2";
const MOST_KEPT: usize = 20_000;

impl Replay {
    /// Makes a replay of nothing yet. Each step is scored by the profile of its generation.
    #[must_use]
    pub fn new(encoder: Arc<dyn Embedder>, embeddings: EmbeddingCache) -> Self {
        let built_in = [Profile::openvalidators_1_2(), Profile::text_prompting_2_1()];
        let named = ["openvalidators-1.2", "text-prompting-2.1"].into_iter().zip(built_in);
        Self {
            encoder,
            embeddings,
            local: None,
            profiles: named.collect(),
            profile: None,
            runs: BTreeMap::new(),
            n_seen: 0,
            most_kept: MOST_KEPT,
        }
    }

    /// Scores every step by this profile.
    #[must_use]
    pub fn with_profile(mut self, profile: Profile) -> Self {
        self.profile = Some(profile);
        self
    }

    /// Asks a reward model that is here about all replies; where what it says goes with what was recorded, ours are given the recorded scores of
    /// those that it finds as good.
    #[must_use]
    pub fn with_local_model(mut self, model: Arc<dyn RewardModel>, scores: ScoreCache) -> Self {
        self.local = Some((model, scores));
        self
    }

    fn profile_of(&self, generation: Generation) -> Option<&Profile> {
        self.profile.as_ref().or_else(|| self.profiles.get(generation.profile()))
    }

    /// Takes in the next entry of a log. `reply` says what our miner answered to a step, by [`step_id`]: `None` where it was not asked, an empty text where
    /// it failed. A step that it was not asked in is only remembered.
    ///
    /// # Errors
    /// [`ReplayError`] where a model fails.
    pub async fn take(
        &mut self,
        entry: &Entry,
        reply: &(dyn Fn(&str) -> Option<String> + Send + Sync),
    ) -> Result<(), ReplayError> {
        match entry {
            Entry::Step(step) => {
                let id = step_id(step, self.n_seen);
                self.n_seen += 1;
                let own = reply(&id);
                self.step(step, own.as_deref()).await
            }
            Entry::State(state) => {
                let run = self.runs.entry(state.origin.run.clone().unwrap_or_else(|| "?".to_owned())).or_default();
                if run.begun_at.is_none() && state.weights.iter().all(|weight| weight.is_finite()) {
                    run.begun_at = Some((run.steps.len(), state.weights.clone()));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn step(&mut self, step: &Step, own: Option<&str>) -> Result<(), ReplayError> {
        let Some(profile) = self.profile_of(step.generation).cloned() else { return Ok(()) };
        let name = step.origin.run.clone().unwrap_or_else(|| "?".to_owned());
        let task = StepTask::read(&step.prompt, TaskKind::of_step(&step.name)).ok();
        let cut = |text: &str| {
            let is_question = task.as_ref().is_some_and(|task| task.kind == TaskKind::Followup);
            match profile.followup_words {
                Some(n_words) if is_question => text_prompting::cut_followup(text, n_words).trim().to_owned(),
                _ => text.trim().to_owned(),
            }
        };
        let came: Vec<(usize, String)> = (0..step.calls.len())
            .filter(|&nth| has_succeeded(step, nth))
            .map(|nth| (nth, cut(&step.calls[nth].completion)))
            .collect();
        let own = own.map(cut);
        let answered = own.as_ref().is_some_and(|own| !own.is_empty());
        let base = task.as_ref().map_or(step.prompt.as_str(), |task| task.base_text.as_str());

        let mut texts: Vec<&str> = came.iter().map(|(_, text)| text.as_str()).collect();
        texts.push(base);
        texts.extend(own.as_deref().filter(|_| answered));
        let embeddings = self.embeddings.embed(&*self.encoder, &texts, &mut |_, _| {}).await?;
        self.embeddings.forget_beyond(self.most_kept);
        let n = came.len();
        let of_own = answered.then(|| &embeddings[n + 1]);
        let distances: Option<Vec<f32>> =
            of_own.map(|own| embeddings[..n].iter().map(|rival| distance(rival, own)).collect());

        let mut local = vec![f32::NAN; n + 1];
        if let Some((model, scores)) = &mut self.local
            && own.is_some()
        {
            let against = if profile.reward_text == RewardText::BaseText { base } else { step.prompt.as_str() };
            let replies = came.iter().map(|(_, text)| text.as_str()).chain(own.as_deref().filter(|_| answered));
            let pairs: Vec<(&str, &str)> = replies.map(|reply| (against, reply)).collect();
            let found = scores.scores(&**model, &pairs, &mut |_, _| {}).await?;
            let lowest = model.lowest();
            for (place, score) in local.iter_mut().zip(found) {
                *place = if Some(score) == lowest { f32::NAN } else { score };
            }
        }

        let run = self.runs.entry(name).or_default();
        run.generation = Some(step.generation);
        if let Some(task) = &task {
            run.blacklist.begin(task);
        }
        let history = run.history.get_or_insert_with(|| GateHistory::new(&profile.gate, self.encoder.dimensions()));
        let historic = of_own.and_then(|own| history.rewards_among(std::slice::from_ref(own), n + 1));
        if let Some(own) = &own {
            let scene =
                Scene { step, profile: &profile, task: task.as_ref(), came: &came, distances: distances.as_deref() };
            let relevance = of_own.map(|own| 1.0 - distance(own, &embeddings[n]));
            let bound =
                (self.encoder.name() == VALIDATORS_ENCODER && task.is_some()).then_some(profile.relevance.mpnet);
            let is_irrelevant = match (relevance, bound) {
                (Some(relevance), Some(bound)) => profile.masks.contains(&Mask::Relevance) && relevance < bound,
                _ => false,
            };
            let is_blacklisted = answered && scene.takes_all(own, &run.blacklist);
            let played = scene.played(
                own,
                historic.and_then(|historic| historic.first().copied()),
                is_irrelevant,
                is_blacklisted,
                &local,
            );
            run.steps.push(played);
        } else {
            run.n_unanswerable += 1;
        }
        history.push_batch(&embeddings[..n]);
        if let Some(task) = &task {
            run.blacklist.end(step, task);
        }
        Ok(())
    }

    /// Returns the runs there are, by name.
    #[must_use]
    pub fn runs(&self) -> Vec<&str> {
        self.runs.keys().map(String::as_str).collect()
    }

    /// Says what was computed of our replies by a profile, and what was not.
    #[must_use]
    pub fn coverage(&self, profile: &Profile) -> Coverage {
        let mut coverage = Coverage::default();
        let is_mpnet = self.encoder.name() == VALIDATORS_ENCODER;
        for (model, weight) in profile.rewards.iter().filter(|(_, weight)| **weight != 0.0) {
            coverage.imputed.push(format!("{model} ({weight})"));
        }
        for mask in &profile.masks {
            match mask {
                Mask::Diversity => coverage.computed.push(format!("diversity by {}", self.encoder.name())),
                Mask::TaskValidator => coverage.computed.push("task_validator".to_owned()),
                Mask::Blacklist if profile.ngram_blacklist.is_none() => coverage.computed.push("blacklist".to_owned()),
                Mask::Blacklist => coverage.taken_to_pass.push("blacklist".to_owned()),
                Mask::Relevance => {
                    let of_mpnet = if is_mpnet { &mut coverage.computed } else { &mut coverage.taken_to_pass };
                    of_mpnet.push("relevance.mpnet".to_owned());
                    coverage.taken_to_pass.push("relevance.bert".to_owned());
                }
                Mask::Nsfw => coverage.taken_to_pass.push("nsfw".to_owned()),
            }
        }
        if profile.penalties.is_some() {
            coverage.computed.extend(["task_validation", "content_match", "keyword_match"].map(str::to_owned));
        }
        coverage
    }

    /// Draws what would have become of our miner in a run; `None` where there is no such run.
    ///
    /// # Errors
    /// [`PathsError`] for paths that cannot be drawn.
    pub fn season(&self, run: &str, paths: &Paths) -> Result<Option<RunReport>, PathsError> {
        let Some(played) = self.runs.get(run) else { return Ok(None) };
        let Some(profile) = played.generation.and_then(|generation| self.profile_of(generation)) else {
            return Ok(None);
        };
        season::season(run, played, profile, self.coverage(profile), paths).map(Some)
    }
}

/// What a step has when our reply joins it.
struct Scene<'a> {
    step: &'a Step,
    profile: &'a Profile,
    task: Option<&'a StepTask>,
    /// The calls that succeeded, and their texts as validators cut them.
    came: &'a [(usize, String)],
    /// From our reply to theirs, where there is one.
    distances: Option<&'a [f32]>,
}

impl Scene<'_> {
    /// Whether a label or a repeated phrase takes all of a reply.
    fn takes_all(&self, own: &str, blacklist: &RoundBlacklist) -> bool {
        let has = |mask| self.profile.masks.contains(&mask);
        let labelled = has(Mask::TaskValidator) && self.task.is_some_and(|task| task_validator(task.kind, own) == 0.0);
        let base = self.task.map_or(self.step.prompt.as_str(), |task| task.base_text.as_str());
        let is_exact = self.profile.ngram_blacklist.is_none();
        let repeats =
            has(Mask::Blacklist) && if is_exact { blacklist.mask(base, own) == 0.0 } else { base.contains(own) };
        labelled || repeats
    }

    fn penalties(&self, own: &str) -> f64 {
        let (Some(penalties), Some(task)) = (&self.profile.penalties, self.task) else { return 0.0 };
        let criteria = penalties.criteria.penalty(task.kind, &task.criteria, own);
        let kept = applied(criteria, penalties.task_validation)
            * applied(content_match(own, penalties.openings), penalties.content_match)
            * applied(keyword_match(task.kind, own), penalties.keyword_match);
        1.0 - kept
    }

    fn played(
        &self,
        own: &str,
        historic: Option<f32>,
        is_irrelevant: bool,
        is_blacklisted: bool,
        local: &[f32],
    ) -> Played {
        let gate = &self.profile.gate;
        let answered = !own.is_empty();
        let quality = self.qualities();
        let column = |name: &str| self.step.columns.get(name);
        let (raw, batch, of_history) = (
            column("diversity_reward_model"),
            column("diversity_reward_model_batch"),
            column("diversity_reward_model_historic"),
        );
        let mut n_pushed = 0;
        let mut rivals: Vec<Rival> = Vec::with_capacity(self.step.calls.len());
        let mut nth_came = 0;
        for (nth, call) in self.step.calls.iter().enumerate() {
            let has_come = self.came.get(nth_came).is_some_and(|(at, _)| *at == nth);
            let recorded = call.reward.unwrap_or(0.0);
            let mut reward = recorded;
            let mut of_local = f32::NAN;
            if has_come {
                of_local = local.get(nth_came).copied().unwrap_or(f32::NAN);
                let nearer = self.distances.map(|distances| gate.batch.at(distances[nth_came]));
                nth_came += 1;
                let single = |values: Option<&Vec<f64>>| {
                    #[expect(clippy::cast_possible_truncation, reason = "scores are f32 in validators")]
                    values.map(|values| values[nth] as f32).filter(|value| value.is_finite())
                };
                let history = single(of_history);
                let before = single(batch).map_or_else(
                    || single(raw).map(|raw| gate.factor(raw, None)),
                    |batch| Some(gate.factor(batch, history)),
                );
                let after = nearer.and_then(|nearer| match (single(batch), single(raw)) {
                    (Some(batch), _) => Some(gate.factor(batch.min(nearer), history)),
                    (None, Some(raw)) => Some(gate.factor(raw.min(nearer), None)),
                    (None, None) => None,
                });
                if let (Some(before), Some(after)) = (before, after)
                    && after < before
                {
                    reward *= f64::from(after / before);
                    n_pushed += u16::from(recorded > 0.0 && reward == 0.0);
                }
            }
            #[expect(clippy::cast_possible_truncation, reason = "rewards are f32 in validators")]
            rivals.push(Rival {
                uid: call.uid,
                reward: reward as f32,
                quality: if has_come { quality[nth] as f32 } else { f32::NAN },
                local: of_local,
            });
        }
        let nearest = self.distances.and_then(|distances| {
            let mut sorted = distances.to_vec();
            sorted.sort_by(f32::total_cmp);
            sorted.get(gate.batch_rank.saturating_sub(1)).copied()
        });
        // Alone in its batch nothing is near.
        let own_batch = gate.batch.at(nearest.unwrap_or(if self.came.is_empty() { 1.0 } else { 0.0 }));
        let diversity = gate.factor(own_batch, historic);
        let penalties = if answered { self.penalties(own) } else { 0.0 };
        let kept =
            if !answered || is_irrelevant || is_blacklisted { 0.0 } else { f64::from(diversity) * (1.0 - penalties) };
        #[expect(clippy::cast_possible_truncation, reason = "a share")]
        let own = Own {
            answered,
            kept: kept as f32,
            diversity,
            is_masked: answered && gate.is_masked(own_batch, historic),
            is_irrelevant,
            penalties: penalties as f32,
            is_blacklisted,
            local: if answered { local.get(self.came.len()).copied().unwrap_or(f32::NAN) } else { f32::NAN },
            n_pushed,
        };
        Played { rivals, own, row: self.step.origin.row }
    }

    /// What reward models said of each call, weighed: of rows without their columns the reward, where there is one.
    fn qualities(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.step.calls.len()];
        for (model, weight) in self.profile.rewards.iter().filter(|(_, weight)| **weight != 0.0) {
            let Some(scores) = self.step.columns.get(&format!("{model}_reward_model_normalized")) else {
                let of = |call: &idiolect_dataset::Call| call.reward.filter(|reward| *reward > 0.0).unwrap_or(f64::NAN);
                return self.step.calls.iter().map(of).collect();
            };
            sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += weight * score);
        }
        sums
    }
}

/// Returns our replies by the steps' names, for [`Replay::take`]: whoever was asked nothing did not take part.
pub fn answers(replies: &HashMap<String, String>) -> impl Fn(&str) -> Option<String> + Send + Sync + '_ {
    |id| replies.get(id).cloned()
}
