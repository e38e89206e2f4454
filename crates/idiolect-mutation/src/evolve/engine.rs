//! The loop.

mod breed;
mod elect;
mod setup;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;
use idiolect_backend::Backend;

use super::archive::Archive;
use super::fitness::Usual;
use super::random::{Random, hash};
use super::screen::Screen;
use super::{Evaluator, EvolveConfig, EvolveError, Journal, Outcome, Reject, Trial, TrialPrompt};
use crate::{Library, Mode, Operator, Place, Recipe, Task};

/// Times that the backend is asked for one text, before texts are put together without it.
const ATTEMPTS: usize = 2;

/// Where a candidate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Library,
    Proposed,
    Joined,
    Clauses,
}

impl Origin {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Library => "library",
            Self::Proposed => "proposed",
            Self::Joined => "joined",
            Self::Clauses => "clauses",
        }
    }
}

/// An operator that is tried on the prompts of one task.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) operator: Operator,
    pub(super) task: Task,
    pub(super) origin: Origin,
    pub(super) parents: Vec<String>,
    pub(super) generation: usize,
    pub(super) text: String,
}

/// Whose reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    /// The prompt as it is, with the seed that candidates have, too.
    Plain,
    /// The prompt as it is, with another seed: what a miner with the same model would send.
    Rival,
    Candidate(usize),
}

/// What was done so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) replies: usize,
    pub(super) tokens: u64,
    pub(super) asked: usize,
    pub(super) proposed: usize,
    pub(super) from_clauses: usize,
    pub(super) rejected: BTreeMap<Reject, usize>,
}

/// A run: candidates, their replies, and the elites among them.
#[derive(Debug)]
pub struct Evolution<'a> {
    pub(super) config: EvolveConfig,
    pub(super) library: &'a Library,
    evaluator: &'a dyn Evaluator,
    proposer: &'a dyn Backend,
    journal: Journal,
    pub(super) prompts: Vec<TrialPrompt>,
    pub(super) train: BTreeMap<Task, Vec<usize>>,
    pub(super) held: BTreeMap<Task, Vec<usize>>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) outcomes: BTreeMap<(Who, usize), Outcome>,
    pub(super) usual: BTreeMap<Task, Usual>,
    pub(super) archive: Archive,
    pub(super) start: Archive,
    pub(super) generations: usize,
    pub(super) is_done: bool,
    pub(super) tally: Tally,
    screen: Screen,
}

impl<'a> Evolution<'a> {
    /// Puts a run together. `names` are further settings that the answers depend on, such as models: a journal of other ones is refused.
    ///
    /// # Errors
    /// Any [`EvolveError`] but those of backends.
    pub fn new(
        config: EvolveConfig,
        library: &'a Library,
        prompts: Vec<TrialPrompt>,
        evaluator: &'a dyn Evaluator,
        proposer: &'a dyn Backend,
        mut journal: Journal,
        names: BTreeMap<String, String>,
    ) -> Result<Self, EvolveError> {
        setup::check(&config)?;
        let (train, held) = setup::split(&config, &prompts)?;
        let mut named = names;
        let texts = |parts: Vec<&str>| format!("{:016x}", hash(&parts));
        let operators = format!("{:?}", library.operators());
        for (name, value) in [
            ("seed", config.seed.to_string()),
            ("proposals", config.proposals.to_string()),
            ("starters", config.starters.to_string()),
            ("mini_batch", config.mini_batch.to_string()),
            ("hold_out", config.hold_out.to_string()),
            ("gate", config.gate.distance.to_string()),
            ("library", texts(vec![&operators])),
            (
                "prompts",
                texts(prompts.iter().flat_map(|p| [p.id.as_str(), p.text.as_str(), p.task.as_str()]).collect()),
            ),
        ] {
            named.insert(name.to_owned(), value);
        }
        journal.begin(named)?;
        let mut evolution = Self {
            config,
            library,
            evaluator,
            proposer,
            journal,
            prompts,
            train,
            held,
            candidates: Vec::new(),
            outcomes: BTreeMap::new(),
            usual: BTreeMap::new(),
            archive: Archive::default(),
            start: Archive::default(),
            generations: 0,
            is_done: false,
            tally: Tally::default(),
            screen: Screen::default(),
        };
        for task in evolution.train.keys().copied().collect::<Vec<_>>() {
            evolution.add_starters(task)?;
        }
        Ok(evolution)
    }

    /// Returns the elites so far.
    #[must_use]
    pub const fn archive(&self) -> &Archive {
        &self.archive
    }

    /// Estimates the replies and proposals of the whole run, at most.
    #[must_use]
    pub fn estimate(&self) -> (usize, usize) {
        let mut replies = 0;
        let n_tasks = self.train.len().max(1);
        let bred = (self.config.generations * self.config.proposals).div_ceil(n_tasks);
        let each = self.config.proposals.div_ceil(n_tasks);
        for (task, train) in &self.train {
            let held = self.held.get(task).map_or(0, Vec::len);
            let starters = self.candidates.iter().filter(|c| c.origin == Origin::Library && c.task == *task).count();
            let (cost, survivors) = self.halving(starters, train.len());
            replies += 2 * (train.len() + held) + cost + survivors * held;
            if each > 0 {
                let (cost, survivors) = self.halving(each, train.len());
                replies += cost * bred.div_ceil(each) + survivors * bred.div_ceil(each) * held;
            }
        }
        (replies, self.config.generations * self.config.proposals * ATTEMPTS)
    }

    /// Returns how many replies candidates of a task cost, and how many get them all.
    fn halving(&self, mut n: usize, of: usize) -> (usize, usize) {
        let (mut cost, mut seen) = (0, 0);
        for size in self.sizes(of) {
            cost += n * (size - seen);
            seen = size;
            if size < of {
                n = n.div_ceil(2);
            }
        }
        (cost, n)
    }

    fn sizes(&self, of: usize) -> Vec<usize> {
        let doubled = std::iter::successors(Some(self.config.mini_batch), |size| size.checked_mul(2));
        doubled.take_while(|size| *size < of).chain([of]).collect()
    }

    /// Goes through all generations, or until the budget is spent. `progress` is told how many replies are there, and of how many, at most.
    ///
    /// # Cancellation
    /// When the future is dropped, [`archive`](Self::archive) is that of the last whole generation, and what was answered is in the journal.
    ///
    /// # Errors
    /// [`EvolveError::Backend`] and [`EvolveError::Journal`]; the same holds then.
    pub async fn run(&mut self, progress: &mut (dyn FnMut(usize, usize) + Send)) -> Result<(), EvolveError> {
        self.learn_texts().await?;
        let all: Vec<usize> = self.train.values().flatten().copied().collect();
        let jobs = all.iter().flat_map(|&p| [(Who::Plain, p), (Who::Rival, p)]).collect();
        self.replies(jobs, progress).await?;
        for (task, prompts) in &self.train {
            let logprobs: Vec<f64> = prompts
                .iter()
                .filter_map(|&p| self.outcomes.get(&(Who::Plain, p))?.logprob)
                .filter(|x| x.is_finite())
                .collect();
            self.usual.insert(*task, Usual::of(&logprobs));
        }
        let starters: Vec<usize> = (0..self.candidates.len()).collect();
        self.try_out(&starters, progress).await?;
        self.start = self.archive.clone();
        for generation in 1..=self.config.generations {
            if self.config.max_tokens.is_some_and(|max| self.tally.tokens >= max) {
                break;
            }
            let first = self.candidates.len();
            // Texts that are known only since a generation that was not finished are forgotten with it.
            for nth in 0..self.config.proposals {
                self.propose(generation, nth).await?;
            }
            let bred: Vec<usize> = (first..self.candidates.len()).collect();
            self.try_out(&bred, progress).await?;
            self.generations = generation;
        }
        self.is_done = true;
        Ok(())
    }

    /// Has the elites, those of the beginning too, reply to the prompts that were kept back.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn hold_out(&mut self, progress: &mut (dyn FnMut(usize, usize) + Send)) -> Result<(), EvolveError> {
        let mut jobs = BTreeSet::new();
        for (niche, candidate) in self.archive.iter().chain(self.start.iter()) {
            let held = self.held.get(&niche.task).into_iter().flatten();
            jobs.extend(held.flat_map(|&p| [(Who::Plain, p), (Who::Rival, p), (Who::Candidate(candidate), p)]));
        }
        self.replies(jobs.into_iter().collect(), progress).await
    }

    fn add_starters(&mut self, task: Task) -> Result<(), EvolveError> {
        let library = self.library;
        let mut by_slot: BTreeMap<&str, Vec<&Operator>> = BTreeMap::new();
        for operator in library.usable(task, &Mode::mutate()) {
            let is_plain = !operator.is_textless() && operator.place != Place::Rewrite && operator.requires.is_empty();
            if is_plain && library.compose(&[operator], task, 0).is_ok() {
                by_slot.entry(&operator.slot).or_default().push(operator);
            }
        }
        let mut random = Random::new(self.config.seed, &["starters", task.as_str()]);
        let mut slots: Vec<Vec<&Operator>> = by_slot.into_values().collect();
        slots.iter_mut().for_each(|operators| random.shuffle(operators));
        random.shuffle(&mut slots);
        let mut chosen = Vec::new();
        // One of each slot, then a second one, and so on.
        while chosen.len() < self.config.starters && slots.iter().any(|operators| !operators.is_empty()) {
            for operators in &mut slots {
                chosen.extend(operators.pop());
            }
        }
        chosen.truncate(self.config.starters);
        if chosen.is_empty() {
            return Err(EvolveError::NoOperator { task });
        }
        for operator in chosen {
            let text = operator.render(task, 0).unwrap_or_default();
            let operator = operator.clone();
            self.candidates.push(Candidate {
                operator,
                task,
                origin: Origin::Library,
                parents: Vec::new(),
                generation: 0,
                text,
            });
        }
        Ok(())
    }

    /// Makes the library's texts known, so that none comes again.
    async fn learn_texts(&mut self) -> Result<(), EvolveError> {
        let (screen, texts) = Screen::of(self.library);
        self.screen = screen;
        for text in texts {
            let embedding = self.embedding(&text).await?;
            self.screen.add_embedding(embedding);
        }
        Ok(())
    }

    async fn embedding(&mut self, text: &str) -> Result<Vec<f32>, EvolveError> {
        if let Some(known) = self.journal.embedding(text) {
            return Ok(known.clone());
        }
        let what = "the encoder failed on an operator's text";
        let failed = |source| EvolveError::Backend { what: what.to_owned(), source };
        let embedding = self.evaluator.embed(&[text.to_owned()]).await.map_err(failed)?.pop().unwrap_or_default();
        self.journal.keep_embedding(text.to_owned(), embedding.clone())?;
        Ok(embedding)
    }

    /// Has replies made that are not there yet, in this order, some at a time.
    async fn replies(
        &mut self,
        jobs: Vec<(Who, usize)>,
        progress: &mut (dyn FnMut(usize, usize) + Send),
    ) -> Result<(), EvolveError> {
        let mut wanted = Vec::new();
        for (who, prompt) in jobs.into_iter().filter(|job| !self.outcomes.contains_key(job)) {
            let Some(recipe) = self.recipe(who, prompt) else { continue };
            let purpose = if who == Who::Rival { "rival" } else { "reply" };
            let seed = Random::new(self.config.seed, &[purpose, &self.prompts[prompt].id]).next();
            let texts: Vec<String> = recipe.operators.iter().map(|o| format!("{}:{}", o.place, o.text)).collect();
            let key = format!("{}|{seed}|{}|{:?}", self.prompts[prompt].id, texts.join("|"), recipe.sampling);
            wanted.push((who, prompt, recipe, seed, key));
        }
        let expected = self.estimate().0.max(self.tally.replies + wanted.len());
        let missing: Vec<_> = wanted.iter().filter(|(.., key)| self.journal.reply(key).is_none()).collect();
        let evaluator = self.evaluator;
        let mut asked = Vec::with_capacity(missing.len());
        for (_, prompt, recipe, seed, key) in &missing {
            let answer = evaluator.evaluate(Trial { prompt: &self.prompts[*prompt], recipe, seed: *seed });
            asked.push(async move { (*prompt, key.clone(), answer.await) });
        }
        let mut answers = futures_util::stream::iter(asked).buffered(self.config.concurrency);
        let known = wanted.len() - missing.len();
        let mut done = self.tally.replies + known;
        progress(done, expected);
        while let Some((prompt, key, answer)) = answers.next().await {
            let failed = |source| EvolveError::Backend {
                what: format!("no reply to the prompt {}", self.prompts[prompt].id),
                source,
            };
            self.journal.keep_reply(key, answer.map_err(failed)?)?;
            done += 1;
            progress(done, expected);
        }
        drop(answers);
        for (who, prompt, _, _, key) in wanted {
            if let Some(outcome) = self.journal.reply(&key).cloned() {
                self.tally.replies += 1;
                self.tally.tokens += outcome.tokens;
                self.outcomes.insert((who, prompt), outcome);
            }
        }
        Ok(())
    }

    fn recipe(&self, who: Who, prompt: usize) -> Option<Recipe> {
        let Who::Candidate(candidate) = who else { return Some(Recipe::no_op()) };
        let candidate = &self.candidates[candidate];
        let seed =
            Random::new(self.config.seed, &["compose", &candidate.operator.name, &self.prompts[prompt].id]).next();
        self.library.compose(&[&candidate.operator], candidate.task, seed).ok()
    }

    /// Tries candidates on ever more prompts, the better half of each task's going on, and takes in who is better than an elite.
    async fn try_out(
        &mut self,
        candidates: &[usize],
        progress: &mut (dyn FnMut(usize, usize) + Send),
    ) -> Result<(), EvolveError> {
        let tasks: Vec<(Task, Vec<usize>)> =
            self.train.iter().map(|(task, prompts)| (*task, prompts.clone())).collect();
        let mut survivors = Vec::new();
        for (task, mut prompts) in tasks {
            let mut remaining: Vec<usize> =
                candidates.iter().copied().filter(|&c| self.candidates[c].task == task).collect();
            let Some(&first) = remaining.first() else { continue };
            let generation = self.candidates[first].generation.to_string();
            Random::new(self.config.seed, &["prompts", task.as_str(), &generation]).shuffle(&mut prompts);
            for size in self.sizes(prompts.len()) {
                let jobs = remaining.iter().flat_map(|&c| prompts[..size].iter().map(move |&p| (Who::Candidate(c), p)));
                self.replies(jobs.collect(), progress).await?;
                let mean = |&c: &usize| self.mean(c, &prompts[..size]);
                let mut ranked: Vec<(f64, usize)> = remaining.iter().map(|c| (mean(c), *c)).collect();
                ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                if size < prompts.len() {
                    ranked.truncate(ranked.len().div_ceil(2));
                }
                remaining = ranked.into_iter().filter(|(mean, _)| *mean > 0.0).map(|(_, c)| c).collect();
            }
            survivors.extend(remaining);
        }
        // From here on nothing waits: a run that is dropped has a generation's elites, or none of them.
        for candidate in survivors {
            self.admit(candidate);
        }
        Ok(())
    }
}
