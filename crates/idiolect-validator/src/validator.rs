use std::sync::Arc;

use idiolect_backend::{Embedder, Embedding};
use idiolect_uniqueness::GateHistory;

use crate::mask::{
    Blacklist, NgramBlacklist, NsfwClassifier, WordPiece, bert_scores, embed, mpnet_scores, nsfw_mask, odd_count,
    reaches, task_validator,
};
use crate::penalty::{applied, content_match, keyword_match};
use crate::profile::{Mask, Penalties, RewardText};
use crate::python;
use crate::report::{Cell, Factor, FactorKind, LogColumn, MissingFactor, StepReport};
use crate::stack::{Column, Missing, Stack, StepError};
use crate::state::Unused;
use crate::task::{TaskKind, text_prompting};
use crate::{MovingAverage, Profile, Reply, RewardModel, StepTask};

/// Threads that search the history at once, at most: they share the memory's bandwidth.
const MOST_THREADS: usize = 4;

/// Products of two numbers that take some milliseconds.
const WORTH_A_THREAD: usize = 1 << 26;

/// The BERT part of the relevance mask.
#[derive(Clone, Debug)]
pub struct BertPart {
    /// Mean-pooled bert-base-uncased in the original. The bound fits no other model: the root mean square difference
    /// depends on the number of dimensions and on how alike the model finds any two texts.
    pub encoder: Arc<dyn Embedder>,
    /// Cuts texts into the encoder's windows.
    pub windows: WordPiece,
}

/// The models that a validator has. Whichever is not there leaves its factors out, as [`Missing`] says.
#[derive(Clone, Debug, Default)]
pub struct Models {
    /// The reward models.
    pub rewards: Vec<Arc<dyn RewardModel>>,
    /// all-mpnet-base-v2 in the original: for diversity, and for a part of relevance.
    pub encoder: Option<Arc<dyn Embedder>>,
    /// For the other part of relevance.
    pub bert: Option<BertPart>,
    /// For the nsfw mask.
    pub nsfw: Option<Arc<dyn NsfwClassifier>>,
    /// The vocabulary of the n-gram blacklist, bert-base-cased's in the original.
    pub ngrams: Option<WordPiece>,
}

/// A validator of a [`Profile`]: it computes step after step what a real one logs, and remembers what a real one remembers.
///
/// The arithmetic of each factor, and what it was compared with, is said where it lies: [`mask`](crate::mask),
/// [`penalty`](crate::penalty), [`dpo`](crate::dpo), [`Stack`], [`idiolect_uniqueness::gate`]. Combined they are equal to
/// the recording `step_v1.json`.
///
/// ```
/// use idiolect_validator::{Missing, Models, Profile, Reply, StepTask, Validator};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut validator = Validator::new(Profile::openvalidators_1_2(), Models::default(), Missing::LeaveOut)?;
/// let task = StepTask::read("Why is the sky blue?", Some(idiolect_validator::task::TaskKind::Answer))?;
/// let replies = [Reply::new(3, "Air scatters blue light most."), Reply::new(7, "Question: why not?")];
/// let report = validator.step(&task, &replies).await?;
///
/// // Without models there are the masks that need none, and no reward is made up.
/// assert_eq!(report.factor("task_validator").unwrap().applied, [1.0, 0.0]);
/// assert_eq!(report.rewards, None);
/// assert!(report.missing.iter().any(|missing| missing.name == "rlhf" && missing.weight == Some(0.4)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Validator {
    pub(crate) profile: Profile,
    models: Models,
    missing: Missing,
    absent: Vec<MissingFactor>,
    pub(crate) stack: Stack,
    pub(crate) blacklist: Blacklist,
    /// The best question of the round, which joins the blacklist once it is answered.
    pub(crate) asked: Option<String>,
    pub(crate) ngrams: Option<NgramBlacklist>,
    pub(crate) history: Option<GateHistory>,
    pub(crate) average: MovingAverage,
    pub(crate) n_steps: u64,
    pub(crate) unused: Unused,
}

/// What the models say of the replies that came.
struct Opinions {
    scores: Vec<Column>,
    /// The base text's embedding before those of the replies.
    embeddings: Option<(Embedding, Vec<Embedding>)>,
    bert: Option<Vec<f32>>,
    nsfw: Option<Vec<f32>>,
}

impl Validator {
    /// Makes a validator that has seen nothing.
    ///
    /// # Errors
    /// [`StepError::Missing`] where `missing` refuses a profile that needs more than `models` has.
    pub fn new(profile: Profile, models: Models, missing: Missing) -> Result<Self, StepError> {
        let absent = absent(&profile, &models);
        if missing == Missing::Refuse && !absent.is_empty() {
            return Err(StepError::Missing { names: absent.into_iter().map(|factor| factor.name).collect() });
        }
        let ngrams = profile.ngram_blacklist.clone().zip(models.ngrams.clone());
        Ok(Self {
            stack: Stack::new(&profile),
            blacklist: Blacklist::default(),
            asked: None,
            ngrams: ngrams.map(|(rules, tokenizer)| NgramBlacklist::new(rules, tokenizer)),
            history: models.encoder.as_ref().map(|encoder| GateHistory::new(&profile.gate, encoder.dimensions())),
            average: MovingAverage::new(0, profile.alpha),
            n_steps: 0,
            unused: Unused::default(),
            profile,
            models,
            missing,
            absent,
        })
    }

    /// Returns its profile.
    #[must_use]
    pub const fn profile(&self) -> &Profile {
        &self.profile
    }

    /// Returns the factors that it leaves out.
    #[must_use]
    pub fn missing(&self) -> &[MissingFactor] {
        &self.absent
    }

    /// Returns the moving average of all miners.
    #[must_use]
    pub const fn average(&self) -> &MovingAverage {
        &self.average
    }

    /// Returns the statistics of the reward models.
    #[must_use]
    pub const fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Returns the replies that diversity compares with; `None` without an encoder.
    #[must_use]
    pub const fn history(&self) -> Option<&GateHistory> {
        self.history.as_ref()
    }

    pub(crate) fn encoder(&self) -> Option<&dyn Embedder> {
        self.models.encoder.as_deref()
    }

    /// Returns how many steps it has computed, those of earlier runs included.
    #[must_use]
    pub const fn n_steps(&self) -> u64 {
        self.n_steps
    }

    /// Takes earlier replies in for diversity to compare with, oldest first; embeddings by the same encoder. Without an
    /// encoder they are of no use.
    pub fn remember(&mut self, embeddings: &[Embedding]) {
        if let Some(history) = &mut self.history {
            history.push_batch(embeddings);
        }
    }

    /// Begins a round: version 1.2 forgets the best questions and answers of the last one. [`step`](Self::step) does so before
    /// it scores summaries, which are what a round of the validators begins with.
    pub fn begin_round(&mut self) {
        self.blacklist.reset();
        self.asked = None;
    }

    /// Computes a step and takes it in: statistics, counts, history and moving average are those after it. A step that asks
    /// for summaries begins a round.
    ///
    /// What is not asked of models is computed where this is polled: some milliseconds for 50 replies and a full history.
    ///
    /// # Errors
    /// [`StepError::Model`] where a model or encoder fails; nothing was taken in then.
    pub async fn step(&mut self, task: &StepTask, replies: &[Reply]) -> Result<StepReport, StepError> {
        let texts: Vec<String> = replies.iter().map(|reply| self.cut(task.kind, &reply.text)).collect();
        let succeeded: Vec<bool> = replies.iter().map(|reply| reply.succeeded).collect();
        let came: Vec<String> = texts
            .iter()
            .zip(&succeeded)
            .filter(|(_, ok)| **ok)
            .map(|(text, _)| python::strip(text).to_owned())
            .collect();
        let opinions = self.ask_models(task, &came).await?;

        if task.kind == TaskKind::Augment {
            self.begin_round();
        }
        if let Some(ngrams) = &mut self.ngrams {
            ngrams.add(replies.iter().map(|reply| reply.text.as_str()).filter(|text| !text.is_empty()));
        }
        let spread = Spread(&succeeded);
        let mut factors = Vec::new();
        for mask in self.profile.masks.clone() {
            factors.extend(self.mask(mask, task, &came, &opinions, spread));
        }
        if let Some((history, (_, embeddings))) = self.history.as_mut().zip(opinions.embeddings.as_ref()) {
            history.push_batch(embeddings);
        }
        if let Some(penalties) = &self.profile.penalties {
            factors.extend(penalise(penalties, task, &texts));
        }

        let rewards = self.reward(&succeeded, &opinions.scores, &factors)?;
        let mut all = match &rewards {
            Some(rewards) => score_factors(&opinions.scores, rewards, spread),
            None => Vec::new(),
        };
        all.append(&mut factors);
        let rewards = rewards.map(|rewards| rewards.rewards);
        self.average.grow(replies.iter().map(|reply| usize::from(reply.uid) + 1).max().unwrap_or(0));
        let best = rewards.as_ref().and_then(|rewards| first_of_highest(rewards));
        if let Some(rewards) = &rewards {
            let pairs: Vec<(usize, f32)> =
                replies.iter().map(|r| usize::from(r.uid)).zip(rewards.iter().copied()).collect();
            // There is room for every uid by now.
            let _ = self.average.update(&pairs);
        }
        if let Some(best) = best {
            self.end_round_trip(task.kind, python::strip(&texts[best]));
        }
        self.n_steps += 1;
        let (averages, weights) = (self.average.scores(), self.average.weights());
        Ok(StepReport {
            kind: task.kind,
            factors: all,
            missing: self.absent.clone(),
            rewards,
            moving_average: replies.iter().map(|reply| averages[usize::from(reply.uid)]).collect(),
            weights: replies.iter().map(|reply| weights[usize::from(reply.uid)]).collect(),
            best,
        })
    }

    fn cut(&self, kind: TaskKind, text: &str) -> String {
        match self.profile.followup_words {
            Some(n_words) if kind == TaskKind::Followup => text_prompting::cut_followup(text, n_words),
            _ => text.to_owned(),
        }
    }

    /// Version 1.2 blacklists the best question and answer once both are there.
    fn end_round_trip(&mut self, kind: TaskKind, best: &str) {
        match kind {
            TaskKind::Augment => {}
            TaskKind::Followup => self.asked = Some(best.to_owned()),
            TaskKind::Answer => {
                self.blacklist.add_best(best);
                if let Some(question) = self.asked.take() {
                    self.blacklist.add_best(question);
                }
            }
        }
    }

    async fn ask_models(&self, task: &StepTask, came: &[String]) -> Result<Opinions, StepError> {
        let failed = |factor: &str| {
            let factor = factor.to_owned();
            move |source| StepError::Model { factor, source }
        };
        let has = |mask| self.profile.masks.contains(&mask);
        let text = match self.profile.reward_text {
            RewardText::Prompt => &task.prompt,
            RewardText::BaseText => &task.base_text,
        };
        let mut scores = Vec::new();
        for (name, _) in self.profile.weighed() {
            let Some(model) = self.models.rewards.iter().find(|model| model.name() == name) else { continue };
            let values =
                if came.is_empty() { Vec::new() } else { model.scores(text, came).await.map_err(failed(name))? };
            if values.len() != came.len() {
                return Err(failed(name)(odd_count(name, values.len(), came.len())));
            }
            scores.push(Column::new(name.clone(), values));
        }
        let is_compared = has(Mask::Diversity) || has(Mask::Relevance);
        let embeddings = match &self.models.encoder {
            Some(encoder) if is_compared => {
                Some(embed(&**encoder, &task.base_text, came).await.map_err(failed("diversity"))?)
            }
            _ => None,
        };
        let bert = match &self.models.bert {
            Some(bert) if has(Mask::Relevance) => {
                let scores = bert_scores(&*bert.encoder, &bert.windows, &task.base_text, came).await;
                Some(scores.map_err(failed("relevance"))?)
            }
            _ => None,
        };
        let nsfw = match &self.models.nsfw {
            Some(model) if has(Mask::Nsfw) => {
                let scores =
                    if came.is_empty() { Vec::new() } else { model.scores(came).await.map_err(failed("nsfw"))? };
                if scores.len() != came.len() {
                    return Err(failed("nsfw")(odd_count("nsfw", scores.len(), came.len())));
                }
                Some(scores)
            }
            _ => None,
        };
        Ok(Opinions { scores, embeddings, bert, nsfw })
    }

    fn mask(
        &mut self,
        mask: Mask,
        task: &StepTask,
        came: &[String],
        opinions: &Opinions,
        spread: Spread<'_>,
    ) -> Option<Factor> {
        let plain = |values: Vec<f32>, details| spread.factor(mask, &values, &values, details);
        match mask {
            Mask::Blacklist => self.blacklisted(task, came, spread),
            Mask::TaskValidator => {
                Some(plain(came.iter().map(|reply| task_validator(task.kind, reply)).collect(), vec![]))
            }
            Mask::Relevance => self.relevance(opinions, spread),
            Mask::Diversity => self.diversity(opinions, spread),
            Mask::Nsfw => {
                let scores = opinions.nsfw.as_ref()?;
                let values = scores.iter().map(|&score| nsfw_mask(score, self.profile.nsfw_bound)).collect();
                Some(plain(values, vec![spread.column("nsfw_filter_score", scores)]))
            }
        }
    }

    fn blacklisted(&mut self, task: &StepTask, came: &[String], spread: Spread<'_>) -> Option<Factor> {
        if self.profile.ngram_blacklist.is_none() {
            let values: Vec<f32> = came.iter().map(|reply| self.blacklist.mask(&task.base_text, reply)).collect();
            return Some(spread.factor(Mask::Blacklist, &values, &values, vec![]));
        }
        let ngrams = self.ngrams.as_mut()?;
        let (mut values, mut phrases, mut figures) = (Vec::new(), Vec::new(), Vec::new());
        for reply in came {
            let is_contained = task.base_text.contains(reply);
            let found = if is_contained { None } else { ngrams.find(reply) };
            values.push(if is_contained || found.is_some() { 0.0 } else { 1.0 });
            #[expect(clippy::cast_possible_truncation, reason = "for the log")]
            let figure = found.as_ref().map(|found| found.significance as f32);
            phrases.push(found.map_or(Cell::Nothing, |found| Cell::Text(found.phrase)));
            figures.push(Cell::from(figure));
        }
        let details = vec![
            spread.cells("blacklist_filter_matched_ngram", phrases),
            spread.cells("blacklist_filter_significance_score", figures),
        ];
        Some(spread.factor(Mask::Blacklist, &values, &values, details))
    }

    fn relevance(&self, opinions: &Opinions, spread: Spread<'_>) -> Option<Factor> {
        let bounds = self.profile.relevance;
        let mpnet = opinions.embeddings.as_ref().map(|(base, embeddings)| mpnet_scores(base, embeddings));
        let parts = [("bert", opinions.bert.clone(), bounds.bert), ("mpnet", mpnet, bounds.mpnet)];
        let (mut values, mut details): (Option<Vec<f32>>, _) = (None, Vec::new());
        for (name, scores, bound) in parts {
            let Some(scores) = scores else { continue };
            let all = values.get_or_insert_with(|| vec![1.0; scores.len()]);
            for (value, score) in all.iter_mut().zip(&scores) {
                *value *= reaches(*score, bound);
            }
            details.push(spread.column(&format!("relevance_filter_{name}_score"), &scores));
        }
        values.map(|values| spread.factor(Mask::Relevance, &values, &values, details))
    }

    fn diversity(&self, opinions: &Opinions, spread: Spread<'_>) -> Option<Factor> {
        let (_, embeddings) = opinions.embeddings.as_ref()?;
        let gate = &self.profile.gate;
        let batch = gate.batch_rewards(embeddings);
        let historic = self.history.as_ref().and_then(|history| historic_rewards(history, embeddings));
        let historic_of = |i: usize| historic.as_ref().map(|historic| historic[i]);
        let product: Vec<f32> = batch.iter().enumerate().map(|(i, &b)| gate.product(b, historic_of(i))).collect();
        let factor: Vec<f32> = batch.iter().enumerate().map(|(i, &b)| gate.factor(b, historic_of(i))).collect();
        let historic = (0..batch.len()).map(|i| Cell::from(historic_of(i))).collect();
        let details = vec![
            spread.column("diversity_reward_model_batch", &batch),
            spread.cells("diversity_reward_model_historic", historic),
        ];
        Some(spread.factor(Mask::Diversity, &product, &factor, details))
    }

    /// Returns `None` where there is no reward model at all.
    fn reward(
        &mut self,
        succeeded: &[bool],
        scores: &[Column],
        factors: &[Factor],
    ) -> Result<Option<crate::StepRewards>, StepError> {
        if scores.is_empty() {
            return Ok(None);
        }
        let spread = Spread(succeeded);
        let scores: Vec<Column> =
            scores.iter().map(|column| Column::new(column.name.clone(), spread.filled(&column.values))).collect();
        let factors: Vec<Column> =
            factors.iter().map(|factor| Column::new(factor.name.clone(), factor.applied.clone())).collect();
        self.stack.step_with(self.missing, succeeded, &scores, &factors).map(Some)
    }
}

/// Divides the replies among threads where the search is long enough to be worth it; each reads the whole history.
fn historic_rewards(history: &GateHistory, embeddings: &[Embedding]) -> Option<Vec<f32>> {
    let n_products = history.len() * embeddings.iter().map(Vec::len).sum::<usize>();
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    if n_products < WORTH_A_THREAD || n_threads == 1 {
        return history.rewards(embeddings);
    }
    let n_batch = embeddings.len();
    let shares = embeddings.chunks(embeddings.len().div_ceil(n_threads));
    std::thread::scope(|scope| {
        let searches: Vec<_> = shares.map(|share| scope.spawn(move || history.rewards_among(share, n_batch))).collect();
        let found =
            searches.into_iter().map(|search| search.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        found.collect::<Option<Vec<_>>>().map(|shares| shares.concat())
    })
}

fn absent(profile: &Profile, models: &Models) -> Vec<MissingFactor> {
    let mut absent = Vec::new();
    for (name, weight) in profile.weighed() {
        if !models.rewards.iter().any(|model| model.name() == name) {
            let needs = "a reward model of this name";
            absent.push(MissingFactor { name: name.clone(), weight: Some(weight), needs });
        }
    }
    for mask in &profile.masks {
        let needed: &[(&str, bool, &str)] = match mask {
            Mask::Blacklist => {
                &[("blacklist", profile.ngram_blacklist.is_none() || models.ngrams.is_some(), "a WordPiece tokenizer")]
            }
            Mask::TaskValidator => &[],
            Mask::Relevance => &[
                ("relevance.bert", models.bert.is_some(), "bert-base-uncased"),
                ("relevance.mpnet", models.encoder.is_some(), "a sentence encoder"),
            ],
            Mask::Diversity => &[("diversity", models.encoder.is_some(), "a sentence encoder")],
            Mask::Nsfw => &[("nsfw", models.nsfw.is_some(), "a classifier")],
        };
        for (name, is_there, needs) in needed {
            if !is_there {
                absent.push(MissingFactor { name: (*name).to_owned(), weight: None, needs });
            }
        }
    }
    absent
}

fn penalise(penalties: &Penalties, task: &StepTask, texts: &[String]) -> Vec<Factor> {
    let of = |name: &str, most: f64, raw: &dyn Fn(&str) -> f64| {
        let raw: Vec<f64> = texts.iter().map(|text| raw(text)).collect();
        #[expect(clippy::cast_possible_truncation, reason = "0 to 1, and sums of few of these")]
        let single = |value: f64| value as f32;
        Factor {
            name: name.to_owned(),
            kind: FactorKind::Penalty,
            raw: raw.iter().map(|&raw| Some(single(raw))).collect(),
            applied: raw.iter().map(|&raw| single(applied(raw, most))).collect(),
            details: Vec::new(),
        }
    };
    let criteria = |text: &str| penalties.criteria.penalty(task.kind, &task.criteria, text);
    vec![
        of("task_validation", penalties.task_validation, &criteria),
        of("content_match", penalties.content_match, &|text| content_match(text, penalties.openings)),
        of("keyword_match", penalties.keyword_match, &|text| keyword_match(task.kind, text)),
    ]
}

fn score_factors(scores: &[Column], rewards: &crate::StepRewards, spread: Spread<'_>) -> Vec<Factor> {
    // Both lists follow the profile's weighed models, of which those without scores are in neither.
    let normalised = scores.iter().zip(&rewards.normalised).zip(&rewards.weights);
    let factor = |((raw, normalised), &weight): ((&Column, &Column), &f64)| Factor {
        name: raw.name.clone(),
        kind: FactorKind::RewardModel { weight },
        raw: spread.options(&raw.values),
        applied: normalised.values.clone(),
        details: Vec::new(),
    };
    normalised.map(factor).collect()
}

fn first_of_highest(rewards: &[f32]) -> Option<usize> {
    let highest = rewards.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    rewards.iter().position(|&reward| reward >= highest)
}

/// Which calls succeeded: figures of these stand beside nothing of the others.
#[derive(Clone, Copy)]
struct Spread<'a>(&'a [bool]);

impl Spread<'_> {
    fn cells(self, name: &str, cells: Vec<Cell>) -> LogColumn {
        let mut cells = cells.into_iter();
        let mut next = |ok: &bool| if *ok { cells.next().unwrap_or(Cell::Nothing) } else { Cell::Nothing };
        LogColumn { name: name.to_owned(), cells: self.0.iter().map(&mut next).collect() }
    }

    fn column(self, name: &str, values: &[f32]) -> LogColumn {
        self.cells(name, values.iter().map(|&value| Cell::Number(value)).collect())
    }

    fn options(self, values: &[f32]) -> Vec<Option<f32>> {
        let mut values = values.iter().copied();
        self.0.iter().map(|ok| if *ok { values.next() } else { None }).collect()
    }

    /// Figures with 0 for calls that failed.
    fn filled(self, values: &[f32]) -> Vec<f32> {
        self.options(values).into_iter().map(|value| value.unwrap_or(0.0)).collect()
    }

    fn factor(self, mask: Mask, raw: &[f32], applied: &[f32], details: Vec<LogColumn>) -> Factor {
        Factor {
            name: mask.as_str().to_owned(),
            kind: FactorKind::Mask,
            raw: self.options(raw),
            applied: self.filled(applied),
            details,
        }
    }
}
