//! Requests that were let in.

use std::time::{Duration, Instant};

use idiolect_backend::{Error, Moments, OwnLogits, Usage};

use crate::assembly::Assembly;
use crate::candidate::Candidate;
use crate::cost::Cost;
use crate::engine::{Engine, Seq};
use crate::forecast::Wish;
use crate::intake::{Generate, Scoring};
use crate::sampling::DrawError;

/// A request that was let in.
pub(super) struct Run {
    pub(super) what: What,
    pub(super) rank: Rank,
}

/// Whose turn is first: by deadline, and by number where those are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    pub(super) due: Instant,
    pub(super) number: u64,
}

pub(super) enum What {
    Generate(Box<Growth>),
    Score(Box<Judgement>),
}

/// A request for candidates at work.
pub(super) struct Growth {
    pub(super) job: Generate,
    /// The first of the candidates that are drawn now.
    pub(super) first: usize,
    /// Candidates that are drawn now.
    pub(super) n: usize,
    /// Candidates that are drawn when these have ended: more than may grow side by side were asked for.
    pub(super) later: usize,
    /// Tokens of each that memory is set aside for.
    pub(super) length: usize,
    pub(super) cost: Cost,
    pub(super) prompt: Progress,
    pub(super) growing: Vec<Candidate>,
    pub(super) usage: Usage,
    pub(super) any_text: bool,
    /// How long its last step took.
    pub(super) last_step: Option<Duration>,
}

/// How far a prompt was computed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Progress {
    Waits,
    Computes { seq: Seq, done: usize, found: usize },
    Done,
}

/// A request for log-probabilities at work.
pub(super) struct Judgement {
    pub(super) job: Scoring,
    pub(super) progress: Progress,
    /// Rows of logits, where they are wanted.
    pub(super) rows: Vec<Vec<f32>>,
    /// What counts of them for the text's own tokens, where it is wanted.
    pub(super) own: Option<OwnLogits>,
    /// Of the tokens that were computed.
    pub(super) logprobs: Vec<f32>,
    /// Of the logits before the text, where they are wanted.
    pub(super) before: Moments,
    /// Rows of logits that came so far.
    pub(super) n_rows: usize,
}

/// Why a request ended without an answer.
pub(super) enum Failure {
    /// Nobody waits for it any more.
    Abandoned,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<DrawError> for Failure {
    fn from(error: DrawError) -> Self {
        Self::Error(match error {
            DrawError::NotFinite => Error::internal("the engine failed", error),
            // Bans and constraints that leave nothing are the request's own.
            other => Error::InvalidRequest(other.to_string()),
        })
    }
}

impl Run {
    pub(super) fn is_wanted(&self) -> bool {
        match &self.what {
            What::Generate(growth) => growth.job.answer.is_wanted(),
            What::Score(judgement) => !judgement.job.reply.is_closed(),
        }
    }

    /// When its answer stops being of use.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.what {
            What::Generate(growth) => growth.job.request.deadline,
            What::Score(_) => None,
        }
    }

    /// Portions of memory that are set aside for it.
    pub(super) fn reserved(&self) -> u64 {
        match &self.what {
            What::Generate(growth) => growth.cost.of(self.n_places()),
            What::Score(judgement) => judgement.job.cost.of(1),
        }
    }

    pub(super) fn n_growing(&self) -> usize {
        match &self.what {
            What::Generate(growth) => growth.growing.len(),
            What::Score(_) => 0,
        }
    }

    /// How many candidates it has, or will have when its prompt is computed.
    pub(super) fn n_to_grow(&self) -> usize {
        match &self.what {
            What::Generate(growth) if !matches!(growth.prompt, Progress::Done) => growth.n,
            _ => self.n_growing(),
        }
    }

    /// How many places of the batch it takes. Candidates that ended keep theirs for those that come after them.
    pub(super) fn n_places(&self) -> usize {
        match &self.what {
            What::Generate(growth) if growth.later > 0 => growth.n,
            What::Generate(_) => self.n_to_grow(),
            What::Score(_) => 1,
        }
    }

    /// Returns the tokens to be computed before anything can be drawn or judged, and how far that is.
    pub(super) fn prompt(&self) -> Option<(&[u32], Progress)> {
        match &self.what {
            What::Generate(growth) if matches!(growth.prompt, Progress::Done) => None,
            What::Generate(growth) => Some((&growth.job.prompt, growth.prompt)),
            What::Score(judgement) => Some((&judgement.job.tokens, judgement.progress)),
        }
    }

    pub(super) fn prompt_left(&self) -> usize {
        self.prompt().map_or(0, |(tokens, progress)| match progress {
            Progress::Waits => tokens.len(),
            Progress::Computes { done, .. } => tokens.len() - done,
            Progress::Done => 0,
        })
    }

    pub(super) fn progress(&self) -> Progress {
        match &self.what {
            What::Generate(growth) => growth.prompt,
            What::Score(judgement) => judgement.progress,
        }
    }

    pub(super) fn progress_mut(&mut self) -> &mut Progress {
        match &mut self.what {
            What::Generate(growth) => &mut growth.prompt,
            What::Score(judgement) => &mut judgement.progress,
        }
    }

    /// Gives its sequences back.
    pub(super) fn release(&mut self, engine: &mut impl Engine) {
        if let Progress::Computes { seq, .. } = self.progress() {
            engine.release(seq);
        }
        if let What::Generate(growth) = &mut self.what {
            // Before the first draw is settled, all candidates have the same.
            let mut seqs: Vec<Seq> = growth.growing.iter().map(|candidate| candidate.seq).collect();
            seqs.sort_unstable();
            seqs.dedup();
            seqs.into_iter().for_each(|seq| engine.release(seq));
        }
    }
}

impl Growth {
    /// Begins the candidates, all on the sequence of their prompt.
    pub(super) fn begin(&mut self, seq: Seq, row: usize, drop_space: bool) {
        let sampling = &self.job.request.sampling;
        let seed = sampling.seed.unwrap_or_else(rand::random);
        let candidate = |index| {
            let sampler = self.job.plan.sampler(seed, index, &self.job.prompt);
            let mut candidate = Candidate::new(index, seq, sampler, Assembly::new(&sampling.stop, drop_space));
            candidate.row = row;
            candidate
        };
        self.growing = (self.first..self.first + self.n).map(candidate).collect();
    }

    /// Tokens that each candidate has. They grow together.
    pub(super) fn drawn(&self) -> usize {
        self.growing.first().map_or(0, |candidate| candidate.tokens().len())
    }

    /// Says whether there is memory for the next step of its candidates.
    pub(super) fn may_grow(&self) -> bool {
        self.drawn() <= self.length
    }

    pub(super) fn wish(&self, now: Instant) -> Wish {
        self.job.wish(self.growing.len(), now)
    }

    /// Takes out the worst candidates, and leaves as many as are said to be kept.
    pub(super) fn take_worst(&mut self, kept: usize) -> Vec<Candidate> {
        let mut worth: Vec<(f64, usize)> = self.growing.iter().map(|c| (c.worth(), c.index)).collect();
        worth.sort_by(|a, b| b.0.total_cmp(&a.0));
        let worst: Vec<usize> = worth[kept.min(worth.len())..].iter().map(|(_, index)| *index).collect();
        let (worst, growing) = self.growing.drain(..).partition(|c: &Candidate| worst.contains(&c.index));
        self.growing = growing;
        worst
    }
}

impl Judgement {
    /// Takes in the next rows of logits.
    pub(super) fn take<'a>(&mut self, rows: impl Iterator<Item = &'a [f32]>) {
        for row in rows {
            let at = self.job.first_wanted() + self.n_rows;
            self.n_rows += 1;
            if at + 1 < self.job.begin {
                self.before.add(row);
                continue;
            }
            let logit = self.job.ids.get(self.logprobs.len()).and_then(|id| row.get(*id as usize));
            self.logprobs.push(logit.map_or(f32::NAN, |logit| logit - crate::math::log_sum_exp(row)));
            if let Some(own) = &mut self.own {
                own.add(row, |logits| crate::math::log_sum_exp(logits).into());
            }
            if self.job.rows {
                self.rows.push(row.to_vec());
            }
        }
    }
}
