//! New candidates out of old ones.

use std::collections::BTreeMap;

use idiolect_backend::{FinishReason, Request, Sampling};

use super::{ATTEMPTS, Candidate, Evolution, Origin, Who};
use crate::evolve::fitness::feedback;
use crate::evolve::journal::Said;
use crate::evolve::propose::{self, Shown};
use crate::evolve::random::{Random, hash};
use crate::evolve::{EvolveError, Outcome, Reject, clauses};
use crate::{Operator, Task};

/// Share of proposals that two elites are joined for.
const CROSSED: f64 = 0.3;
/// Elites that a question shows.
const SHOWN: usize = 4;
/// Texts put together that the encoder is asked about, for one proposal.
const TRIES: usize = 6;

impl Evolution<'_> {
    async fn is_near(&mut self, text: &str) -> Result<bool, EvolveError> {
        let embedding = self.embedding(text).await?;
        Ok(self.screen.is_near(&embedding))
    }

    pub(super) fn reject(&mut self, why: Reject) {
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

    pub(super) async fn propose(&mut self, generation: usize, nth: usize) -> Result<(), EvolveError> {
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
