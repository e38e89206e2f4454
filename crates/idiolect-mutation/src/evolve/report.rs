//! What came of a run.

use std::collections::BTreeMap;

use serde::Serialize;

use super::engine::{Candidate, Evolution, Origin, Who};
use super::random::{Random, bootstrap};
use super::{EvolveError, Niche, Reject};
use crate::{Library, Operator};

/// A difference, with the interval of 95 % that a bootstrap over prompts gives it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Gain {
    /// The mean.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Prompts.
    pub n: usize,
}

/// An elite.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EliteReport {
    /// Its niche.
    pub niche: Niche,
    /// The operator's name.
    pub operator: String,
    /// Its text, a template where it is the library's.
    pub text: String,
    /// `library`, `proposed`, `joined` or `clauses`.
    pub origin: &'static str,
    /// The operators that it was made from.
    pub parents: Vec<String>,
    /// The generation that it was made in.
    pub generation: usize,
    /// Its mean fitness on the prompts learnt from.
    pub fitness: f64,
    /// What it gains on those over the plain reply. It was chosen by them, so this flatters.
    pub gain: Gain,
    /// The same on prompts that were kept back; `None` where it was not asked them.
    pub held_out: Option<Gain>,
}

/// Elites of the library's operators and of all, on the prompts that were kept back: mean rewards beside the rival alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The plain reply's.
    pub plain: f64,
    /// The mean of the elites before the first proposal.
    pub start: f64,
    /// The mean of the elites at the end.
    pub elites: f64,
    /// What the mean elite gained.
    pub gain: Gain,
    /// What that of each task gained which was best on the prompts learnt from.
    pub gain_of_best: Gain,
}

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Whether all generations are done, or the budget is spent.
    pub is_done: bool,
    /// Generations that are done.
    pub generations: usize,
    /// Replies.
    pub n_replies: usize,
    /// Tokens, of prompts too.
    pub n_tokens: u64,
    /// Times that the backend was asked for a text.
    pub n_asked: usize,
    /// Texts that were tried.
    pub n_proposed: usize,
    /// Those of them that were put together without the backend.
    pub n_from_clauses: usize,
    /// Texts of the backend that were refused, and operators that plant a phrase, by reason.
    pub rejected: BTreeMap<Reject, usize>,
    /// The elites, by niche.
    pub elites: Vec<EliteReport>,
    /// Beginning and end; `None` where no prompts were kept back or they were not asked.
    pub held_out: Option<Compared>,
}

impl Evolution<'_> {
    /// Says what came of it so far.
    #[must_use]
    pub fn report(&self) -> Report {
        let elites = self.archive.iter().map(|(niche, candidate)| self.elite(niche, candidate)).collect();
        Report {
            is_done: self.is_done,
            generations: self.generations,
            n_replies: self.tally.replies,
            n_tokens: self.tally.tokens,
            n_asked: self.tally.asked,
            n_proposed: self.tally.proposed,
            n_from_clauses: self.tally.from_clauses,
            rejected: self.tally.rejected.clone(),
            elites,
            held_out: self.compared(),
        }
    }

    fn elite(&self, niche: &Niche, candidate: usize) -> EliteReport {
        let Candidate { operator, origin, parents, generation, .. } = &self.candidates[candidate];
        let others = self.archive.of_task(niche.task);
        let gain = |prompts: &[usize]| {
            let known = prompts.iter().filter(|&&p| self.outcomes.contains_key(&(Who::Candidate(candidate), p)));
            let others = || others.iter().filter(|c| **c != candidate);
            let gains = known
                .map(|&p| self.worth(Who::Candidate(candidate), p, others()) - self.worth(Who::Plain, p, others()));
            self.gain(&gains.collect::<Vec<_>>(), &operator.name)
        };
        let train = &self.train[&niche.task];
        EliteReport {
            niche: niche.clone(),
            operator: operator.name.clone(),
            text: operator.text.clone(),
            origin: origin.as_str(),
            parents: parents.clone(),
            generation: *generation,
            fitness: self.mean(candidate, train),
            gain: gain(train),
            held_out: Some(gain(self.held.get(&niche.task).map_or(&[], Vec::as_slice))).filter(|gain| gain.n > 0),
        }
    }

    fn gain(&self, values: &[f64], what: &str) -> Gain {
        let means = bootstrap(values, &mut Random::new(self.config.seed, &["gain", what]));
        let at = |share: f64| {
            means.get((share * means.len().saturating_sub(1) as f64).round() as usize).copied().unwrap_or(0.0)
        };
        let value = values.iter().sum::<f64>() / values.len().max(1) as f64;
        Gain { value, low: at(0.025), high: at(0.975), n: values.len() }
    }

    fn compared(&self) -> Option<Compared> {
        let (mut plain, mut start, mut elites, mut gains, mut best) = (vec![], vec![], vec![], vec![], vec![]);
        for (task, prompts) in &self.held {
            let (before, after) = (self.start.of_task(*task), self.archive.of_task(*task));
            let is_known = |c: &usize, p: usize| self.outcomes.contains_key(&(Who::Candidate(*c), p));
            let known = prompts.iter().filter(|&&p| before.iter().chain(&after).all(|c| is_known(c, p)));
            if before.is_empty() || after.is_empty() {
                continue;
            }
            let train = &self.train[task];
            let alone = |candidate: usize| {
                let worth = train.iter().map(|&p| self.worth(Who::Candidate(candidate), p, [].iter()));
                worth.sum::<f64>()
            };
            let leader = |of: &[usize]| of.iter().copied().rev().max_by(|&a, &b| alone(a).total_cmp(&alone(b)));
            let leaders = (leader(&before), leader(&after));
            for &p in known {
                let one = |who| self.worth(who, p, [].iter());
                let mean = |of: &[usize]| of.iter().map(|&c| one(Who::Candidate(c))).sum::<f64>() / of.len() as f64;
                plain.push(one(Who::Plain));
                start.push(mean(&before));
                elites.push(mean(&after));
                gains.push(mean(&after) - mean(&before));
                if let (Some(before), Some(after)) = leaders {
                    best.push(one(Who::Candidate(after)) - one(Who::Candidate(before)));
                }
            }
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        (!gains.is_empty()).then(|| Compared {
            plain: mean(&plain),
            start: mean(&start),
            elites: mean(&elites),
            gain: self.gain(&gains, "elites over start"),
            gain_of_best: self.gain(&best, "best over start"),
        })
    }

    /// Returns the library with those new elites as TOML that gained something over plain replies: a free niche is taken by worse ones, too.
    /// `start` is the text of the file that the library was read from, `None` for the built-in one.
    ///
    /// # Errors
    /// [`EvolveError::Library`] when the two do not make a library, as where the file has its operators in an inline array.
    pub fn to_toml(&self, start: Option<&str>) -> Result<String, EvolveError> {
        let mut text = start.map_or_else(|| "include_built_in = true\n".to_owned(), str::to_owned);
        if !text.ends_with('\n') {
            text.push('\n');
        }
        for (niche, candidate) in self.archive.iter() {
            let is_new = self.candidates[candidate].origin != Origin::Library;
            if is_new && self.elite(niche, candidate).gain.value > 0.0 {
                text.push_str(&format!("\n# {niche}\n{}", table(&self.candidates[candidate].operator)));
            }
        }
        Library::parse(&text, "the evolved library")?;
        Ok(text)
    }
}

fn table(operator: &Operator) -> String {
    let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let tasks: Vec<String> = operator.tasks.iter().map(|task| text(task.as_str())).collect();
    format!(
        "[[operator]]\nname = {}\nslot = {}\nplace = {}\ntext = {}\ntasks = [{}]\nmax_tokens = {}\n",
        text(&operator.name),
        text(&operator.slot),
        text(operator.place.as_str()),
        text(&operator.text),
        tasks.join(", "),
        operator.max_tokens
    )
}
