//! A validator's own loop against live miners: summary, question, answer, question, answer, and so on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use idiolect_validator::task::{TaskKind, openvalidators, text_prompting};
use idiolect_validator::{Reply, StepError, StepReport, StepTask, Validator};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::Serialize;

use crate::statistics::{below, quantile};
use crate::texts::{Text, criteria};

mod event;
mod miner;
#[cfg(test)]
mod tests;

pub use event::{Clock, state_row, step_row};
pub use miner::{Asked, EchoMiner, Miner, PanelMiner};

/// How rounds go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundRules {
    /// Miners that are asked in a step, at least 1; with fewer miners all of them.
    pub batch: usize,
    /// How long a miner has.
    pub timeout: Duration,
    /// Questions, and answers, after the summary; `None` for what the profile's validators do: 4 in version 1.2, 3 in 2.1.
    pub followups: Option<usize>,
    /// What texts, criteria and miners are drawn by.
    pub seed: u64,
}

impl Default for RoundRules {
    fn default() -> Self {
        Self { batch: 50, timeout: Duration::from_secs(10), followups: None, seed: 0 }
    }
}

/// Rounds that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoundsError {
    /// Nobody to ask.
    #[error("there are no miners")]
    NoMiners,
    /// More than uids.
    #[error("{0} miners, expected at most 65535")]
    TooMany(usize),
    /// Nothing to ask about.
    #[error("there are no texts")]
    NoTexts,
    /// Batches of nobody.
    #[error("a batch of 0 miners, expected at least 1")]
    Batch,
    /// Without a reward model there is no best reply, which the next prompt quotes.
    #[error("no reward model, expected one that the profile {0} weighs")]
    NoRewards(String),
    /// The arithmetic failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// One step as it was.
#[derive(Clone, Debug, PartialEq)]
pub struct StepDone {
    /// `augment`, `followup0` and so on.
    pub name: String,
    /// What was asked.
    pub task: StepTask,
    /// Who was asked.
    pub uids: Vec<usize>,
    /// What each of them did.
    pub asked: Vec<Asked>,
    /// What the validator made of it.
    pub report: StepReport,
    /// The reply that the next prompts quote; the first of the highest reward, even where that is 0.
    pub best: String,
    /// How long all of it took.
    pub took: Duration,
}

/// What one miner did so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MinerRecord {
    /// Its name.
    pub name: String,
    /// Its hotkey, or name.
    pub hotkey: String,
    /// Its uid.
    pub uid: usize,
    /// Steps it was asked in.
    pub asked: usize,
    /// Of these, calls that failed, those that took too long among them.
    pub failed: usize,
    /// Calls that took too long.
    pub timed_out: usize,
    /// Replies that the diversity mask took.
    pub masked: usize,
    /// Sum of what it earned.
    pub rewards: f64,
    /// Sum of its places in its steps.
    pub places: f64,
    /// How long each reply took, in seconds.
    #[serde(skip)]
    pub times: Vec<f64>,
}

impl MinerRecord {
    fn mean(&self, sum: f64) -> f64 {
        if self.asked == 0 { 0.0 } else { sum / self.asked as f64 }
    }

    /// Returns what it earned in the mean of its steps.
    #[must_use]
    pub fn mean_reward(&self) -> f64 {
        self.mean(self.rewards)
    }

    /// Returns its mean place in its steps; 0 where it was never asked.
    #[must_use]
    pub fn place_mean(&self) -> f64 {
        self.mean(self.places)
    }

    /// Returns the share of its calls that the diversity mask took.
    #[must_use]
    pub fn masked_share(&self) -> f64 {
        self.mean(self.masked as f64)
    }

    /// Returns a quantile of the times that its replies took, in seconds; 0 without any.
    #[must_use]
    pub fn time(&self, at: f64) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        if times.is_empty() { 0.0 } else { quantile(&times, at) }
    }
}

/// A validator that asks live miners as validators of its profile do, and computes what they would have.
///
/// A round is a text and what is asked about it: first a summary; then, `followups` times, a question about the best summary, and an answer to the best
/// question. In version 1.2 the best questions and answers join the context. All miners of a step are asked at once.
#[derive(Debug)]
pub struct TestValidator {
    validator: Validator,
    miners: Vec<Arc<dyn Miner>>,
    records: Vec<MinerRecord>,
    texts: Vec<Text>,
    rules: RoundRules,
    random: ChaCha8Rng,
    /// Texts of this turn that are still to come.
    waiting: Vec<usize>,
    is_1_2: bool,
}

impl TestValidator {
    /// Makes a validator that has asked nobody yet. Miners' uids are their places in the list.
    ///
    /// # Errors
    /// [`RoundsError`] for rounds that cannot be.
    pub fn new(
        validator: Validator,
        miners: Vec<Arc<dyn Miner>>,
        texts: Vec<Text>,
        rules: RoundRules,
    ) -> Result<Self, RoundsError> {
        if miners.is_empty() {
            return Err(RoundsError::NoMiners);
        }
        if miners.len() > usize::from(u16::MAX) {
            return Err(RoundsError::TooMany(miners.len()));
        }
        if texts.is_empty() {
            return Err(RoundsError::NoTexts);
        }
        if rules.batch == 0 {
            return Err(RoundsError::Batch);
        }
        let profile = validator.profile();
        let n_weighed = profile.rewards.values().filter(|weight| **weight != 0.0).count();
        if validator.missing().iter().filter(|missing| missing.weight.is_some()).count() == n_weighed {
            return Err(RoundsError::NoRewards(profile.name.clone()));
        }
        // Version 2.1 is the one that cuts questions and has penalties.
        let is_1_2 = profile.penalties.is_none();
        let record = |(uid, miner): (usize, &Arc<dyn Miner>)| MinerRecord {
            name: miner.name().to_owned(),
            hotkey: miner.hotkey(),
            uid,
            ..MinerRecord::default()
        };
        Ok(Self {
            records: miners.iter().enumerate().map(record).collect(),
            validator,
            miners,
            texts,
            rules,
            random: ChaCha8Rng::seed_from_u64(rules.seed),
            waiting: Vec::new(),
            is_1_2,
        })
    }

    /// Returns what each miner did so far, by uid.
    #[must_use]
    pub fn records(&self) -> &[MinerRecord] {
        &self.records
    }

    /// Returns the arithmetic, with the moving averages.
    #[must_use]
    pub const fn validator(&self) -> &Validator {
        &self.validator
    }

    /// Returns how many questions a round has.
    #[must_use]
    pub fn followups(&self) -> usize {
        self.rules.followups.unwrap_or(if self.is_1_2 { 4 } else { 3 })
    }

    /// Plays a round; `each` is told of every step once it is computed.
    ///
    /// # Errors
    /// [`RoundsError::Step`] where a model fails. The steps before count.
    ///
    /// # Cancellation
    /// Dropping the future ends the round; the step that was under way counts for nothing.
    pub async fn round(&mut self, each: &mut (dyn FnMut(&Self, &StepDone) + Send)) -> Result<(), RoundsError> {
        let text = self.next_text();
        let summary = {
            let prompt = if self.is_1_2 {
                let sentences = 4 + u32::try_from(below(&mut self.random, 5)).unwrap_or(0);
                openvalidators::Task::Augment { text, sentences }.compose()
            } else {
                self.compose(TaskKind::Augment, text)
            };
            self.step("augment", &prompt, each).await?
        };
        let mut context = summary.clone();
        for nth in 0..self.followups() {
            let prompt = if self.is_1_2 {
                openvalidators::Task::Followup { context: context.clone(), first: nth == 0 }.compose()
            } else {
                self.compose(TaskKind::Followup, format!("### SUMMARY CONTEXT:\n{summary}"))
            };
            let question = self.step(&format!("followup{nth}"), &prompt, each).await?;
            let prompt = if self.is_1_2 {
                let (context, question) = (context.clone(), question.clone());
                openvalidators::Task::Answer { context, question }.compose()
            } else {
                let base = format!("### SUMMARY CONTEXT:\n{summary}\n### QUESTION {nth}:\n{question}");
                self.compose(TaskKind::Answer, base)
            };
            let answer = self.step(&format!("answer{nth}"), &prompt, each).await?;
            let heading = if nth == 0 { "\nPrevious Question \nQuestion:" } else { "\nQuestion:" };
            context.push_str(&format!("{heading}{question}\nAnswer:{answer}"));
        }
        Ok(())
    }

    fn next_text(&mut self) -> String {
        if self.waiting.is_empty() {
            self.waiting = (0..self.texts.len()).collect();
        }
        let nth = below(&mut self.random, self.waiting.len());
        self.texts[self.waiting.swap_remove(nth)].text.clone()
    }

    fn compose(&mut self, kind: TaskKind, base_text: String) -> String {
        text_prompting::Task { kind, base_text, criteria: criteria(kind, &mut self.random) }.compose()
    }

    /// Asks, computes, and returns what the next prompts quote.
    async fn step(
        &mut self,
        name: &str,
        prompt: &str,
        each: &mut (dyn FnMut(&Self, &StepDone) + Send),
    ) -> Result<String, RoundsError> {
        let began = Instant::now();
        let kind = TaskKind::of_step(name);
        // A best reply with a template's heading in it may be read otherwise than it was composed; what it is, is known.
        let task =
            StepTask::read(prompt, None).or_else(|_| StepTask::read(prompt, kind)).unwrap_or_else(|_| StepTask {
                kind: kind.unwrap_or(TaskKind::Answer),
                prompt: prompt.to_owned(),
                base_text: prompt.to_owned(),
                criteria: Vec::new(),
            });
        let mut uids: Vec<usize> = (0..self.miners.len()).collect();
        let n = self.rules.batch.min(uids.len());
        for i in 0..n {
            let other = i + below(&mut self.random, uids.len() - i);
            uids.swap(i, other);
        }
        uids.truncate(n);
        let timeout = self.rules.timeout;
        let asked = join_all(uids.iter().map(|&uid| ask(&*self.miners[uid], prompt, timeout))).await;
        let replies: Vec<Reply> = uids
            .iter()
            .zip(&asked)
            .map(|(&uid, asked)| Reply {
                hotkey: Some(self.records[uid].hotkey.clone()),
                succeeded: asked.status == 200,
                process_time: Some(asked.time.as_secs_f64()),
                ..Reply::new(u16::try_from(uid).unwrap_or(u16::MAX), asked.text.clone())
            })
            .collect();
        let report = self.validator.step(&task, &replies).await?;
        let cut = |text: &str| match self.validator.profile().followup_words {
            Some(n_words) if task.kind == TaskKind::Followup => text_prompting::cut_followup(text, n_words),
            _ => text.to_owned(),
        };
        let best = report.best.map(|nth| cut(asked[nth].text.trim()).trim().to_owned()).unwrap_or_default();
        self.note(&uids, &asked, &report);
        let done =
            StepDone { name: name.to_owned(), task, uids, asked, report, best: best.clone(), took: began.elapsed() };
        each(self, &done);
        Ok(best)
    }

    fn note(&mut self, uids: &[usize], asked: &[Asked], report: &StepReport) {
        let gate = &self.validator.profile().gate;
        let rewards = report.rewards.clone().unwrap_or_default();
        let diversity = report.factor("diversity").map(|factor| &factor.raw);
        for (nth, (&uid, asked)) in uids.iter().zip(asked).enumerate() {
            let record = &mut self.records[uid];
            let own = rewards.get(nth).copied().unwrap_or(0.0);
            let n_better = rewards.iter().filter(|other| **other > own).count();
            let n_same = rewards.iter().filter(|other| **other == own).count();
            record.asked += 1;
            record.rewards += f64::from(own);
            record.places += n_better as f64 + (n_same as f64 + 1.0) / 2.0;
            if asked.status == 200 {
                record.times.push(asked.time.as_secs_f64());
                let raw = diversity.and_then(|raw| raw.get(nth).copied().flatten());
                record.masked += usize::from(raw.is_some_and(|raw| raw <= gate.pass_above));
            } else {
                record.failed += 1;
                record.timed_out += usize::from(asked.status == 408);
            }
        }
    }
}

/// Asks a miner; what takes too long failed, whatever the miner says itself.
async fn ask(miner: &dyn Miner, prompt: &str, timeout: Duration) -> Asked {
    let late = || Asked { text: String::new(), status: 408, message: "Timeout".to_owned(), time: timeout };
    match tokio::time::timeout(timeout, miner.ask(prompt, timeout)).await {
        Ok(asked) if asked.time > timeout => late(),
        // A failed call has no text that counts.
        Ok(asked) if asked.status != 200 => Asked { text: String::new(), ..asked },
        Ok(asked) => asked,
        Err(_) => late(),
    }
}
