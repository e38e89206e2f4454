//! Whether what validators logged is what their arithmetic gives: their rewards computed anew.

use std::collections::BTreeMap;

use idiolect_backend::Embedder;
use idiolect_dataset::{Entry, Generation, State, Step};
use idiolect_uniqueness::vectors::distance;
use idiolect_validator::mask::task_validator;
use idiolect_validator::penalty::{applied, content_match, keyword_match};
use idiolect_validator::task::{TaskKind, text_prompting};
use idiolect_validator::{Mask, MovingAverage, Normaliser, Penalties, Profile, StepTask};
use serde::Serialize;

use crate::cache::{CacheError, EmbeddingCache};
use crate::round::{RoundBlacklist, has_succeeded};

#[cfg(test)]
mod tests;

/// What a figure was computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Other figures of the same row.
    Row,
    /// Figures of this row and those before it, in the same run.
    Run,
    /// The texts of the row, and of those before it.
    Texts,
}

/// How far a recorded figure is from what it was computed to be.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    /// The profile that it was computed by.
    pub profile: String,
    /// The figure: a column's name, or what it is.
    pub figure: String,
    /// What it was computed from.
    pub basis: Basis,
    /// How many were compared.
    pub n: u64,
    /// How many are further off than the tolerance.
    pub n_off: u64,
    /// The largest difference.
    pub largest: f64,
    /// Where that is: the run and its row, and which call or uid.
    pub at: Option<String>,
}

/// What could not be computed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unchecked {
    /// The profile that it would have been computed by.
    pub profile: String,
    /// The figure.
    pub figure: String,
    /// How many steps have it.
    pub n_steps: u64,
    /// Why not.
    pub reason: &'static str,
}

/// Computes what validators logged anew, an [`Entry`] at a time, in the order in which they were logged.
///
/// - `rewards`: the weighed, normalised scores times all masks and applied penalties of the row.
/// - `diversity_reward_model_normalized`, `*_penalty_adjusted`, `*_penalty_applied`: from the raw figure of the row.
/// - `*_reward_model_normalized` of a model that is weighed: from the raw scores, by the running statistics of the run or of this step alone, whichever is nearer;
///   where neither is, the statistics began before the run, and the figure is among the [unchecked](Self::unchecked).
/// - `neuron_weights` of a state row: the moving average from the state row before it on.
/// - masks and penalties that need the texts alone; with an encoder the distance in the batch and relevance, too.
/// - `best`: the stripped completion of the highest reward (1 where it is another).
///
/// # Examples
/// ```
/// use idiolect_arena::verify::Verifier;
/// use idiolect_dataset::History;
///
/// let log = r#"{"task_type": "summarization", "name": "augment", "prompt": "So?", "completions": ["Yes.", "No."], "rewards": [0.3, 0.5],
///     "dpo_reward_model_normalized": [0.5, 0.5], "reciprocate_reward_model_normalized": [0.0, 0.5]}"#.replace('\n', " ");
/// let mut verifier = Verifier::new(1e-4);
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// for entry in History::of_json_lines("log", log.as_bytes()) {
///     verifier.take(&entry.unwrap()).await.unwrap();
/// }
/// # });
/// let checks = verifier.checks();
/// let rewards = checks.iter().find(|check| check.figure == "rewards").unwrap();
/// assert!(rewards.n == 2 && rewards.largest < 1e-6);
/// ```
#[derive(Debug)]
pub struct Verifier {
    tolerance: f64,
    profiles: BTreeMap<Generation, Profile>,
    encoder: Option<(std::sync::Arc<dyn Embedder>, EmbeddingCache)>,
    runs: BTreeMap<Option<String>, Run>,
    checks: BTreeMap<(String, Basis, String), Check>,
    unchecked: BTreeMap<(String, String, &'static str), u64>,
}

/// What is remembered of a run.
#[derive(Debug, Default)]
struct Run {
    blacklist: RoundBlacklist,
    normalisers: BTreeMap<String, Normaliser>,
    average: Option<MovingAverage>,
    generation: Option<Generation>,
}

/// No statistics are known that would give it.
const EARLIER: &str = "the model's mean and variance began before the first row";
const EMPTY: &str = "the row has none";
const NO_FACTORS: &str = "version 1.0 logs no factors";
const MODELS: &str = "its model is not here";
const NO_TASK: &str = "the prompt fits no template of the validators";

impl Verifier {
    /// Makes one that has seen nothing. Differences beyond `tolerance` are counted.
    #[must_use]
    pub fn new(tolerance: f64) -> Self {
        let profiles = [
            (Generation::OpenValidators1_0, Profile::openvalidators_1_2()),
            (Generation::OpenValidators1_2, Profile::openvalidators_1_2()),
            (Generation::TextPrompting2, Profile::text_prompting_2_1()),
        ];
        Self {
            tolerance,
            profiles: profiles.into(),
            encoder: None,
            runs: BTreeMap::new(),
            checks: BTreeMap::new(),
            unchecked: BTreeMap::new(),
        }
    }

    /// Computes distances and relevance, too, which validators do with all-mpnet-base-v2.
    #[must_use]
    pub fn with_encoder(mut self, encoder: std::sync::Arc<dyn Embedder>, cache: EmbeddingCache) -> Self {
        self.encoder = Some((encoder, cache));
        self
    }

    /// Takes in the next entry.
    ///
    /// # Errors
    /// Where the encoder fails, or its file.
    pub async fn take(&mut self, entry: &Entry) -> Result<(), CacheError> {
        match entry {
            Entry::Step(step) => self.step(step).await,
            Entry::State(state) => {
                self.state(state);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Returns how far everything is that was compared, by profile and figure.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        self.checks.values().cloned().collect()
    }

    /// Returns what could not be computed.
    #[must_use]
    pub fn unchecked(&self) -> Vec<Unchecked> {
        let one = |((profile, figure, reason), &n_steps): (&(String, String, &'static str), &u64)| Unchecked {
            profile: profile.clone(),
            figure: figure.clone(),
            n_steps,
            reason,
        };
        self.unchecked.iter().map(one).collect()
    }

    fn compare(&mut self, place: &Place<'_>, figure: &str, basis: Basis, found: &[f64], expected: &[f64]) {
        let key = (place.profile.to_owned(), basis, figure.to_owned());
        let check = self.checks.entry(key).or_insert_with(|| Check {
            profile: place.profile.to_owned(),
            figure: figure.to_owned(),
            basis,
            n: 0,
            n_off: 0,
            largest: 0.0,
            at: None,
        });
        for (nth, (found, expected)) in found.iter().zip(expected).enumerate() {
            if found.is_nan() || expected.is_nan() {
                continue;
            }
            let difference = if found == expected { 0.0 } else { (found - expected).abs() };
            check.n += 1;
            check.n_off += u64::from(difference > self.tolerance);
            if difference > check.largest {
                check.largest = difference;
                check.at = Some(format!("{}, {} {nth}", place.row, place.counts));
            }
        }
    }

    fn pass_over(&mut self, profile: &str, figure: &str, reason: &'static str) {
        *self.unchecked.entry((profile.to_owned(), figure.to_owned(), reason)).or_default() += 1;
    }

    async fn step(&mut self, step: &Step) -> Result<(), CacheError> {
        let Some(profile) = self.profiles.get(&step.generation).cloned() else { return Ok(()) };
        let name = if step.generation == Generation::OpenValidators1_0 {
            step.generation.as_str()
        } else {
            profile.name.as_str()
        };
        let place = Place { profile: name, row: row(step), counts: "reply" };
        self.best(&place, step, &profile);
        let run = self.runs.entry(step.origin.run.clone()).or_default();
        run.generation = Some(step.generation);
        if let Some(average) = &mut run.average {
            let asked = step.calls.iter().filter_map(|call| Some((call.uid? as usize, call.reward?)));
            let n = asked.clone().map(|(uid, _)| uid + 1).max().unwrap_or(0);
            average.grow(n);
            #[expect(clippy::cast_possible_truncation, reason = "rewards are f32 in validators")]
            let rewards: Vec<(usize, f32)> = asked.map(|(uid, reward)| (uid, reward as f32)).collect();
            // There is room for every uid.
            let _ = average.update(&rewards);
        }
        if step.generation == Generation::OpenValidators1_0 {
            self.pass_over(name, "rewards", NO_FACTORS);
            return Ok(());
        }
        if step.columns.is_empty() {
            self.pass_over(name, "every factor", EMPTY);
        } else {
            self.row(&place, step, &profile);
            self.models(&place, step, &profile);
        }
        match StepTask::read(&step.prompt, TaskKind::of_step(&step.name)) {
            Ok(task) => self.texts(&place, step, &profile, &task).await,
            Err(_) => {
                self.pass_over(name, "masks and penalties", NO_TASK);
                Ok(())
            }
        }
    }

    /// What the row's own figures give.
    fn row(&mut self, place: &Place<'_>, step: &Step, profile: &Profile) {
        match product(step, profile) {
            Some(expected) => {
                let found: Vec<f64> = step.calls.iter().map(|call| call.reward.unwrap_or(f64::NAN)).collect();
                self.compare(place, "rewards", Basis::Row, &found, &expected);
            }
            None => self.pass_over(place.profile, "rewards", EMPTY),
        }
        if let (Some(raw), Some(found)) =
            (step.columns.get("diversity_reward_model"), step.columns.get("diversity_reward_model_normalized"))
        {
            #[expect(clippy::cast_possible_truncation, reason = "rewards are f32 in validators")]
            let expected: Vec<f64> = raw.iter().map(|&raw| f64::from(profile.gate.factor(raw as f32, None))).collect();
            self.compare(place, "diversity_reward_model_normalized", Basis::Row, found, &expected);
        }
        if let (Some(batch), Some(historic), Some(found)) = (
            step.columns.get("diversity_reward_model_batch"),
            step.columns.get("diversity_reward_model_historic"),
            step.columns.get("diversity_reward_model"),
        ) {
            let expected: Vec<f64> = batch.iter().zip(historic).map(|(batch, historic)| batch * historic).collect();
            self.compare(place, "diversity_reward_model", Basis::Row, found, &expected);
        }
        let Some(penalties) = &profile.penalties else { return };
        for (name, most) in most(penalties) {
            let column = |suffix: &str| step.columns.get(&format!("{name}_penalty_{suffix}"));
            let Some(raw) = column("raw") else {
                self.pass_over(place.profile, &format!("{name}_penalty_applied"), EMPTY);
                continue;
            };
            if let Some(found) = column("adjusted") {
                let expected: Vec<f64> = raw.iter().map(|&raw| 1.0 - applied(raw, most)).collect();
                self.compare(place, &format!("{name}_penalty_adjusted"), Basis::Row, found, &expected);
            }
            if let Some(found) = column("applied") {
                let expected: Vec<f64> = raw.iter().map(|&raw| applied(raw, most)).collect();
                self.compare(place, &format!("{name}_penalty_applied"), Basis::Row, found, &expected);
            }
        }
    }

    /// What the statistics of reward models give.
    fn models(&mut self, place: &Place<'_>, step: &Step, profile: &Profile) {
        for (model, weight) in &profile.rewards {
            let (raw, found) = (format!("{model}_reward_model"), format!("{model}_reward_model_normalized"));
            let (Some(raw), Some(recorded)) = (step.columns.get(&raw), step.columns.get(&found)) else {
                if *weight != 0.0 {
                    self.pass_over(place.profile, &found, EMPTY);
                }
                continue;
            };
            #[expect(clippy::cast_possible_truncation, reason = "scores are f32 in validators")]
            let succeeded: Vec<(usize, f32)> = (0..step.calls.len())
                .filter(|&nth| has_succeeded(step, nth) && raw[nth].is_finite())
                .map(|nth| (nth, raw[nth] as f32))
                .collect();
            let scores: Vec<f32> = succeeded.iter().map(|&(_, score)| score).collect();
            let fresh = Normaliser::new(profile.normaliser_count_limit);
            let run = self.runs.entry(step.origin.run.clone()).or_default();
            let running = run.normalisers.entry(model.clone()).or_insert_with(|| fresh.clone());
            let candidates = [running.normalise(&scores), fresh.clone().normalise(&scores)];
            let of = |values: &[f32]| {
                let mut expected = vec![0.0; step.calls.len()];
                for (&(nth, _), &value) in succeeded.iter().zip(values) {
                    expected[nth] = f64::from(value);
                }
                expected
            };
            let furthest = |expected: &Vec<f64>| {
                let differences = recorded.iter().zip(expected).map(|(a, b)| (a - b).abs());
                differences.filter(|difference| !difference.is_nan()).fold(0.0, f64::max)
            };
            let nearest = candidates.iter().map(|values| of(values)).min_by(|a, b| furthest(a).total_cmp(&furthest(b)));
            match nearest.filter(|expected| furthest(expected) <= self.tolerance.max(1e-3)) {
                Some(expected) => self.compare(place, &found, Basis::Run, recorded, &expected),
                None => self.pass_over(place.profile, &found, EARLIER),
            }
        }
    }

    /// What the texts give.
    async fn texts(
        &mut self,
        place: &Place<'_>,
        step: &Step,
        profile: &Profile,
        task: &StepTask,
    ) -> Result<(), CacheError> {
        let cut = |text: &str| match profile.followup_words {
            Some(n_words) if task.kind == TaskKind::Followup => text_prompting::cut_followup(text, n_words),
            _ => text.to_owned(),
        };
        let texts: Vec<String> = step.calls.iter().map(|call| cut(&call.completion)).collect();
        let came: Vec<bool> = (0..texts.len()).map(|nth| has_succeeded(step, nth)).collect();
        // Masks see stripped replies, penalties those that came.
        let of = |value: &dyn Fn(&str) -> f64| -> Vec<f64> {
            texts.iter().zip(&came).map(|(text, came)| if *came { value(text) } else { f64::NAN }).collect()
        };
        if profile.masks.contains(&Mask::TaskValidator)
            && let Some(found) = step.columns.get("task_validator_filter")
        {
            let expected = of(&|text| f64::from(task_validator(task.kind, text.trim())));
            self.compare(place, "task_validator_filter", Basis::Texts, found, &expected);
        }
        if let Some(penalties) = &profile.penalties {
            let criteria = |text: &str| penalties.criteria.penalty(task.kind, &task.criteria, text);
            let openings = |text: &str| content_match(text, penalties.openings);
            let labels = |text: &str| keyword_match(task.kind, text);
            for (name, expected) in
                [("task_validation", of(&criteria)), ("sentence_match", of(&openings)), ("keyword_match", of(&labels))]
            {
                let column = format!("{name}_penalty_raw");
                if let Some(found) = step.columns.get(&column) {
                    self.compare(place, &column, Basis::Texts, found, &expected);
                }
            }
        }
        if profile.masks.contains(&Mask::Blacklist)
            && let Some(found) = step.columns.get("blacklist_filter")
        {
            if profile.ngram_blacklist.is_some() {
                self.pass_over(place.profile, "blacklist_filter", MODELS);
            } else {
                let expected = self.blacklisted(step, task, &texts, &came);
                self.compare(place, "blacklist_filter", Basis::Texts, found, &expected);
            }
        }
        for column in ["nsfw_filter", "diversity_reward_model_batch", "relevance_filter_mpnet_score"] {
            if step.columns.contains_key(column) && (column == "nsfw_filter" || self.encoder.is_none()) {
                self.pass_over(place.profile, column, MODELS);
            }
        }
        self.embedded(place, step, profile, task, &texts, &came).await
    }

    fn blacklisted(&mut self, step: &Step, task: &StepTask, texts: &[String], came: &[bool]) -> Vec<f64> {
        let run = self.runs.entry(step.origin.run.clone()).or_default();
        run.blacklist.begin(task);
        let each = texts.iter().zip(came);
        let mask = |text: &str| f64::from(run.blacklist.mask(&task.base_text, text.trim()));
        let expected = each.map(|(text, came)| if *came { mask(text) } else { f64::NAN }).collect();
        run.blacklist.end(step, task);
        expected
    }

    async fn embedded(
        &mut self,
        place: &Place<'_>,
        step: &Step,
        profile: &Profile,
        task: &StepTask,
        texts: &[String],
        came: &[bool],
    ) -> Result<(), CacheError> {
        let Some((encoder, cache)) = &mut self.encoder else { return Ok(()) };
        let base = task.base_text.as_str();
        let own = texts.iter().zip(came).filter(|(_, came)| **came).map(|(text, _)| text.trim());
        let asked: Vec<&str> = std::iter::once(base).chain(own).collect();
        let embeddings = cache.embed(&**encoder, &asked, &mut |_, _| {}).await?;
        let Some((base, own)) = embeddings.split_first() else { return Ok(()) };
        let spread = |values: Vec<f64>| -> Vec<f64> {
            let mut values = values.into_iter();
            came.iter().map(|came| if *came { values.next().unwrap_or(f64::NAN) } else { f64::NAN }).collect()
        };
        let batch = spread(profile.gate.batch_rewards(own).into_iter().map(f64::from).collect());
        let mpnet = spread(own.iter().map(|own| f64::from(1.0 - distance(base, own))).collect());
        for (column, expected) in [("diversity_reward_model_batch", batch), ("relevance_filter_mpnet_score", mpnet)] {
            if let Some(found) = step.columns.get(column) {
                self.compare(place, column, Basis::Texts, found, &expected);
            }
        }
        Ok(())
    }

    fn best(&mut self, place: &Place<'_>, step: &Step, profile: &Profile) {
        let rewards = step.calls.iter().map(|call| call.reward.unwrap_or(f64::NEG_INFINITY));
        let highest = rewards.clone().fold(f64::NEG_INFINITY, f64::max);
        let Some(best) = &step.best else { return };
        let Some(first) = rewards.clone().position(|reward| reward >= highest) else { return };
        if highest == f64::NEG_INFINITY {
            self.pass_over(place.profile, "best", EMPTY);
            return;
        }
        let of = |nth: usize| step.calls[nth].completion.trim();
        let is = |nth: usize| {
            let cut = profile.followup_words.map(|n| text_prompting::cut_followup(of(nth), n));
            best.trim() == of(nth) || cut.is_some_and(|cut| best.trim() == cut.trim())
        };
        // torch.argmax promises nothing about which of equal ones it takes.
        let same = rewards.enumerate().filter(|(_, reward)| *reward >= highest).any(|(nth, _)| is(nth));
        let found = f64::from(u8::from(!(same || is(first))));
        self.compare(place, "best", Basis::Row, &[found], &[0.0]);
    }

    fn state(&mut self, state: &State) {
        let run = self.runs.entry(state.origin.run.clone()).or_default();
        let generation = run.generation.unwrap_or(Generation::TextPrompting2);
        let Some(profile) = self.profiles.get(&generation).cloned() else { return };
        let expected = run.average.take().map(|average| average.scores().to_vec());
        run.average = MovingAverage::begun_at(state.weights.clone(), profile.alpha);
        let place = Place { profile: &profile.name, row: row_of(&state.origin), counts: "uid" };
        match expected {
            Some(expected) => {
                self.compare(&place, "neuron_weights", Basis::Run, &state.weights, &expected);
            }
            None => self.pass_over(&profile.name, "neuron_weights", "the first of its run"),
        }
    }
}

/// Where a figure stands.
struct Place<'a> {
    profile: &'a str,
    row: String,
    /// What it is of.
    counts: &'static str,
}

fn row(step: &Step) -> String {
    row_of(&step.origin)
}

fn row_of(origin: &idiolect_dataset::Origin) -> String {
    let run = origin.run.as_deref().unwrap_or("?");
    origin.row.map_or_else(|| format!("run {run}"), |row| format!("run {run}, row {row}"))
}

/// Penalties by the names that are logged, and the most that each may take.
fn most(penalties: &Penalties) -> [(&'static str, f64); 3] {
    [
        ("task_validation", penalties.task_validation),
        ("sentence_match", penalties.content_match),
        ("keyword_match", penalties.keyword_match),
    ]
}

/// Returns each call's reward by the row's own figures; `None` where no model that is weighed said anything. A model that the validator did without, which
/// logs nothing, adds nothing.
#[must_use]
pub fn product(step: &Step, profile: &Profile) -> Option<Vec<f64>> {
    let mut rewards = vec![0.0; step.calls.len()];
    let mut n_models = 0;
    for (model, weight) in profile.rewards.iter().filter(|(_, weight)| **weight != 0.0) {
        let Some(scores) = step.columns.get(&format!("{model}_reward_model_normalized")) else { continue };
        n_models += 1;
        rewards.iter_mut().zip(scores).for_each(|(sum, score)| *sum += weight * score);
    }
    if n_models == 0 {
        return None;
    }
    for column in factors(step, profile) {
        rewards.iter_mut().zip(column).for_each(|(product, factor)| *product *= factor);
    }
    // What is no number counts as nothing.
    rewards.iter_mut().for_each(|reward| *reward = if reward.is_finite() { *reward } else { 0.0 });
    Some(rewards)
}

/// Returns the columns of masks and penalties that a reward is multiplied by; what the row does not have is left out.
fn factors<'a>(step: &'a Step, profile: &Profile) -> Vec<&'a [f64]> {
    let mut names: Vec<String> = Vec::new();
    for mask in &profile.masks {
        let kind = if *mask == Mask::Diversity { "reward_model" } else { "filter" };
        let name = format!("{}_{kind}", mask.as_str());
        let normalised = format!("{name}_normalized");
        names.push(if step.columns.contains_key(&normalised) { normalised } else { name });
    }
    if let Some(penalties) = &profile.penalties {
        names.extend(most(penalties).iter().map(|(name, _)| format!("{name}_penalty_applied")));
    }
    names.iter().filter_map(|name| step.columns.get(name).map(Vec::as_slice)).collect()
}
