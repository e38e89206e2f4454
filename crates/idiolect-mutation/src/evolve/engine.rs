//! The loop.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;
use idiolect_backend::{Backend, FinishReason, Request, Sampling};

use super::archive::{Archive, Length, Niche, Opening};
use super::fitness::{Usual, feedback, pass, worth};
use super::journal::Said;
use super::propose::{self, Shown};
use super::random::{Random, bootstrap, hash};
use super::screen::Screen;
use super::{Evaluator, EvolveConfig, EvolveError, Journal, Outcome, Reject, Trial, TrialPrompt, clauses};
use crate::{Library, Mode, Operator, Place, Recipe, Task, lint};

/// Times that the backend is asked for one text, before texts are put together without it.
const ATTEMPTS: usize = 2;
/// Share of proposals that two elites are joined for.
const CROSSED: f64 = 0.3;
/// Elites that a question shows.
const SHOWN: usize = 4;
/// Texts put together that the encoder is asked about, for one proposal.
const TRIES: usize = 6;
/// Share of a bootstrap's means above 0 from which on a challenger counts as better.
const SURE: f64 = 0.9;

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
        check(&config)?;
        let (train, held) = split(&config, &prompts)?;
        let mut setup = names;
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
            setup.insert(name.to_owned(), value);
        }
        journal.begin(setup)?;
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
            let is_plain =
                !operator.is_sampling_only() && operator.place != Place::Rewrite && operator.requires.is_empty();
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

    async fn is_near(&mut self, text: &str) -> Result<bool, EvolveError> {
        let embedding = self.embedding(text).await?;
        Ok(self.screen.is_near(&embedding))
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

    fn admit(&mut self, candidate: usize) {
        if self.is_planted(candidate) {
            self.reject(Reject::Planted);
            return;
        }
        let niche = self.niche(candidate);
        let is_better = self.archive.elite(&niche).is_none_or(|incumbent| {
            let prompts = &self.train[&niche.task];
            let both = [candidate, incumbent];
            let differences: Vec<f64> = prompts
                .iter()
                .map(|&p| self.fitness(candidate, p, &both) - self.fitness(incumbent, p, &both))
                .collect();
            let names = both.map(|c| self.candidates[c].operator.name.as_str());
            let means = bootstrap(&differences, &mut Random::new(self.config.seed, &["better", names[0], names[1]]));
            means.iter().filter(|mean| **mean > 0.0).count() as f64 >= SURE * means.len().max(1) as f64
        });
        if is_better {
            self.archive.put(niche, candidate);
        }
    }

    /// Says whether replies share a run of words that neither prompts nor plain replies have.
    fn is_planted(&self, candidate: usize) -> bool {
        let Candidate { operator, task, .. } = &self.candidates[candidate];
        let row = |who, name: Option<&str>| {
            let operators: Vec<String> = name.into_iter().map(str::to_owned).collect();
            let row = move |&p: &usize| {
                let (prompt, text) = (self.prompts[p].text.clone(), self.outcomes.get(&(who, p))?.text.clone());
                Some(lint::Row { operators: operators.clone(), prompt, text })
            };
            self.train[task].iter().filter_map(row)
        };
        let own = row(Who::Candidate(candidate), Some(&operator.name));
        let rows: Vec<lint::Row> = own.chain(row(Who::Plain, None)).chain(row(Who::Rival, None)).collect();
        let sharing = lint::sharing(&rows);
        sharing
            .iter()
            .any(|s| s.operator.is_some() && s.n_sharing >= 3 && s.share >= 0.3 && s.elsewhere < 0.5 * s.share)
    }

    fn niche(&self, candidate: usize) -> Niche {
        let Candidate { operator, task, .. } = &self.candidates[candidate];
        let of = |who| self.train[task].iter().filter_map(move |&p| Some(self.outcomes.get(&(who, p))?.text.as_str()));
        let words = |who| of(who).map(|text| text.split_whitespace().count()).sum();
        let who = Who::Candidate(candidate);
        Niche {
            task: *task,
            slot: operator.slot.clone(),
            length: Length::of(words(who), words(Who::Plain)),
            opening: Opening::of_all(of(who)),
        }
    }

    /// Returns what a candidate's reply is worth beside the rival's and those of the elites, `without` some.
    pub(super) fn fitness(&self, candidate: usize, prompt: usize, without: &[usize]) -> f64 {
        let others = self.archive.of_task(self.prompts[prompt].task);
        self.worth(
            Who::Candidate(candidate),
            prompt,
            others.iter().filter(|c| **c != candidate && !without.contains(c)),
        )
    }

    pub(super) fn worth<'c>(&self, who: Who, prompt: usize, others: impl Iterator<Item = &'c usize>) -> f64 {
        let found = self.outcomes.get(&(who, prompt)).zip(self.outcomes.get(&(Who::Rival, prompt)));
        let Some(((own, rival), usual)) = found.zip(self.usual.get(&self.prompts[prompt].task)) else { return 0.0 };
        let others = others.filter_map(|c| Some(&self.outcomes.get(&(Who::Candidate(*c), prompt))?.embedding));
        worth(own, *usual) * pass(self.config.gate, &own.embedding, &rival.embedding, others)
    }

    pub(super) fn mean(&self, candidate: usize, prompts: &[usize]) -> f64 {
        prompts.iter().map(|&p| self.fitness(candidate, p, &[])).sum::<f64>() / prompts.len().max(1) as f64
    }

    fn reject(&mut self, why: Reject) {
        *self.tally.rejected.entry(why).or_default() += 1;
    }

    /// Draws a parent: who is best on some prompt, the more often the more prompts those are.
    fn parent(&self, task: Task, random: &mut Random) -> Option<usize> {
        let elites = self.archive.of_task(task);
        let mut wins: BTreeMap<usize, usize> = BTreeMap::new();
        for &prompt in &self.train[&task] {
            let scored: Vec<(usize, f64)> = elites.iter().map(|&c| (c, self.fitness(c, prompt, &[]))).collect();
            let best = scored.iter().map(|(_, fitness)| *fitness).fold(0.0, f64::max);
            for (candidate, _) in scored.iter().filter(|(_, fitness)| best > 0.0 && *fitness >= best) {
                *wins.entry(*candidate).or_default() += 1;
            }
        }
        let front: Vec<usize> = wins.into_iter().flat_map(|(c, n)| std::iter::repeat_n(c, n)).collect();
        if !front.is_empty() {
            return Some(front[random.below(front.len())]);
        }
        let all: Vec<usize> = (0..self.candidates.len()).filter(|&c| self.candidates[c].task == task).collect();
        (!all.is_empty()).then(|| all[random.below(all.len())])
    }

    fn shown(&self, candidate: usize) -> Shown {
        let Candidate { task, text, .. } = &self.candidates[candidate];
        Shown { text: text.clone(), fitness: self.mean(candidate, &self.train[task]) }
    }

    async fn propose(&mut self, generation: usize, nth: usize) -> Result<(), EvolveError> {
        let tasks: Vec<Task> = self.train.keys().copied().collect();
        let task = tasks[((generation - 1) * self.config.proposals + nth) % tasks.len()];
        let place = format!("{generation}/{nth}");
        let mut random = Random::new(self.config.seed, &["parents", &place]);
        let Some(parent) = self.parent(task, &mut random) else { return Ok(()) };
        let mut elites = self.archive.of_task(task);
        elites.retain(|&c| c != parent);
        let is_crossed = random.unit() < CROSSED;
        let other = (is_crossed && !elites.is_empty()).then(|| elites[random.below(elites.len())]);
        let slot = self.candidates[parent].operator.slot.clone();
        // Of the same slot first, the best of them last, as OPRO has it.
        elites.sort_by_key(|&c| self.candidates[c].operator.slot != slot);
        elites.truncate(SHOWN);
        let mut shown: Vec<Shown> = elites.into_iter().map(|c| self.shown(c)).collect();
        shown.sort_by(|a, b| a.fitness.total_cmp(&b.fitness));
        let (first, second) = (self.shown(parent), other.map(|c| self.shown(c)));
        let replies: Vec<(&Outcome, &Outcome)> = self.train[&task]
            .iter()
            .filter_map(|&p| self.outcomes.get(&(Who::Candidate(parent), p)).zip(self.outcomes.get(&(Who::Rival, p))))
            .collect();
        let found = feedback(self.config.gate, &replies);
        let question = propose::question(task, &slot, &first, &found, second.as_ref(), &shown);
        let mut made = None;
        for attempt in 0..ATTEMPTS {
            let said = self.ask(&question, &format!("{place}/{attempt}")).await?;
            let cleaned = propose::clean(&said.text, said.ended);
            match cleaned.and_then(|text| self.screened(&slot, parent, task, text)) {
                Ok(operator) if self.is_near(&operator.text).await? => self.reject(Reject::NearDuplicate),
                Ok(operator) => {
                    made = Some((operator, if other.is_some() { Origin::Joined } else { Origin::Proposed }));
                    break;
                }
                Err(why) => self.reject(why),
            }
        }
        if made.is_none() {
            let texts =
                clauses::texts(&slot, &first.text, second.as_ref().map(|second| second.text.as_str()), &mut random);
            let usable = texts.into_iter().filter_map(|text| self.screened(&slot, parent, task, text).ok());
            for operator in usable.take(TRIES).collect::<Vec<_>>() {
                if !self.is_near(&operator.text).await? {
                    made = Some((operator, Origin::Clauses));
                    break;
                }
            }
        }
        let Some((operator, origin)) = made else { return Ok(()) };
        self.tally.proposed += 1;
        self.tally.from_clauses += usize::from(origin == Origin::Clauses);
        let embedding = self.embedding(&operator.text).await?;
        self.screen.add_embedding(embedding);
        self.screen.add_text(&operator.text);
        let parents =
            [Some(parent), other].into_iter().flatten().map(|c| self.candidates[c].operator.name.clone()).collect();
        let text = operator.text.clone();
        self.candidates.push(Candidate { operator, task, origin, parents, generation, text });
        Ok(())
    }

    fn screened(&self, slot: &str, parent: usize, task: Task, text: String) -> Result<Operator, Reject> {
        self.screen.operator(self.library, slot, self.candidates[parent].operator.place, task, &text)
    }

    async fn ask(&mut self, question: &[idiolect_backend::Message], place: &str) -> Result<Said, EvolveError> {
        let contents: Vec<&str> = question.iter().map(|message| message.content.as_str()).collect();
        let key = format!("{place} {:016x}", hash(&contents));
        self.tally.asked += 1;
        let said = match self.journal.said(&key) {
            Some(said) => said.clone(),
            None => {
                let seed = Random::new(self.config.seed, &["proposal", place]).next();
                let sampling = Sampling {
                    max_tokens: 64,
                    temperature: Some(0.9),
                    seed: self.proposer.capabilities().seed.then_some(seed),
                    ..Sampling::default()
                };
                let request = Request { sampling, ..Request::new(question.to_vec()) };
                let failed = |source| EvolveError::Backend { what: "no proposal".to_owned(), source };
                let completion = self.proposer.complete(request).await.map_err(failed)?;
                let usage = completion.usage;
                let first = completion.candidates.first();
                let said = Said {
                    text: first.map_or_else(String::new, |candidate| candidate.text.clone()),
                    ended: first.is_some_and(|candidate| candidate.finish_reason == FinishReason::Stop),
                    tokens: u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
                };
                self.journal.keep_said(key, said.clone())?;
                said
            }
        };
        self.tally.tokens += said.tokens;
        Ok(said)
    }
}

fn check(config: &EvolveConfig) -> Result<(), EvolveError> {
    let bad = |name, found: String, expected| Err(EvolveError::Setting { name, found, expected });
    for (name, value) in
        [("mini_batch", config.mini_batch), ("starters", config.starters), ("concurrency", config.concurrency)]
    {
        if !(1..=1000).contains(&value) {
            return bad(name, value.to_string(), "1 to 1000");
        }
    }
    for (name, value) in [("generations", config.generations), ("proposals", config.proposals)] {
        if value > 1000 {
            return bad(name, value.to_string(), "0 to 1000");
        }
    }
    if !(0.0..=0.9).contains(&config.hold_out) {
        return bad("hold_out", config.hold_out.to_string(), "0 to 0.9");
    }
    Ok(())
}

type ByTask = BTreeMap<Task, Vec<usize>>;

/// Divides each task's prompts into those to learn from and those to judge by.
fn split(config: &EvolveConfig, prompts: &[TrialPrompt]) -> Result<(ByTask, ByTask), EvolveError> {
    let mut ids = BTreeSet::new();
    let (mut train, mut held) = (ByTask::new(), ByTask::new());
    for (i, prompt) in prompts.iter().enumerate() {
        if !ids.insert(prompt.id.as_str()) {
            return Err(EvolveError::Twice { id: prompt.id.clone() });
        }
        train.entry(prompt.task).or_default().push(i);
    }
    if train.is_empty() {
        return Err(EvolveError::FewPrompts { task: Task::Unknown, n: 0 });
    }
    for (task, all) in &mut train {
        if all.len() < 3 {
            return Err(EvolveError::FewPrompts { task: *task, n: all.len() });
        }
        let mut order = all.clone();
        Random::new(config.seed, &["hold out", task.as_str()]).shuffle(&mut order);
        let n_held = ((all.len() as f64 * config.hold_out).round() as usize).min(all.len() - 2);
        let mut kept: Vec<usize> = order.drain(..n_held).collect();
        kept.sort_unstable();
        order.sort_unstable();
        *all = order;
        held.insert(*task, kept);
    }
    Ok((train, held))
}
