//! What candidates are worth, and who becomes an elite.

use super::{Candidate, Evolution, Who};
use crate::evolve::Reject;
use crate::evolve::archive::{Length, Niche, Opening};
use crate::evolve::fitness::{pass, worth};
use crate::evolve::random::{Random, bootstrap};
use crate::lint;

/// Share of a bootstrap's means above 0 from which on a challenger counts as better.
const SURE: f64 = 0.9;

impl Evolution<'_> {
    pub(super) fn admit(&mut self, candidate: usize) {
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
    pub(in crate::evolve) fn fitness(&self, candidate: usize, prompt: usize, without: &[usize]) -> f64 {
        let others = self.archive.of_task(self.prompts[prompt].task);
        self.worth(
            Who::Candidate(candidate),
            prompt,
            others.iter().filter(|c| **c != candidate && !without.contains(c)),
        )
    }

    pub(in crate::evolve) fn worth<'c>(&self, who: Who, prompt: usize, others: impl Iterator<Item = &'c usize>) -> f64 {
        let found = self.outcomes.get(&(who, prompt)).zip(self.outcomes.get(&(Who::Rival, prompt)));
        let Some(((own, rival), usual)) = found.zip(self.usual.get(&self.prompts[prompt].task)) else { return 0.0 };
        let others = others.filter_map(|c| Some(&self.outcomes.get(&(Who::Candidate(*c), prompt))?.embedding));
        worth(own, *usual) * pass(self.config.gate, &own.embedding, &rival.embedding, others)
    }

    pub(in crate::evolve) fn mean(&self, candidate: usize, prompts: &[usize]) -> f64 {
        prompts.iter().map(|&p| self.fitness(candidate, p, &[])).sum::<f64>() / prompts.len().max(1) as f64
    }
}
