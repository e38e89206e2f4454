//! What a step computes.

use std::time::Duration;

use idiolect_backend::Error;

use super::run::{Progress, Run, What};
use super::{Desk, Worker};
use crate::engine::{Engine, EngineError, Feed, Seq, Wants};

/// Prompt tokens of a step before it is known how fast they are.
const FIRST_CHUNK: usize = 64;
/// Most prompt tokens of a step.
const MOST_CHUNK: usize = 512;
/// Stretches of prompts end where a multiple of this does, so that blocks are filled at once.
const CHUNK_UNIT: usize = 16;
/// Rows of logits that scoring asks for in one step.
const SCORE_CHUNK: usize = 32;
/// About how long a stretch of prompt may hold up candidates that grow.
const BESIDE: Duration = Duration::from_millis(80);
/// About how long it may take where nobody grows: other requests arrive meanwhile.
const ALONE: Duration = Duration::from_millis(250);

/// What a step computes for one run.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    /// Tokens of a prompt or of a text to be scored, up to `end`.
    Stretch { run: usize, seq: Seq, begin: usize, end: usize, wants: Wants },
    /// The last token of a candidate.
    Token { run: usize, candidate: usize },
}

/// What a step computes.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) parts: Vec<Part>,
    pub(super) prompt_tokens: usize,
    pub(super) candidates: usize,
    /// Rows of logits for texts to be scored.
    pub(super) score_rows: usize,
}

impl<E: Engine> Desk<E> {
    /// Divides the next step: a token for each candidate, and stretches of prompts.
    pub(super) fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        for (index, run) in self.runs.iter().enumerate() {
            if let What::Generate(growth) = &run.what
                && growth.may_grow()
            {
                let tokens = 0..growth.growing.len();
                plan.parts.extend(tokens.map(|candidate| Part::Token { run: index, candidate }));
                plan.candidates += growth.growing.len();
            }
        }
        let mut budget = self.chunk(plan.candidates);
        let mut index = 0;
        while index < self.runs.len() && budget > 0 {
            match self.stretch(index, &plan, budget) {
                Ok(Some(part @ Part::Stretch { begin, end, wants, .. })) => {
                    plan.prompt_tokens += end - begin;
                    plan.score_rows += if wants == Wants::All { end - begin } else { 0 };
                    budget = budget.saturating_sub(end - begin);
                    plan.parts.push(part);
                }
                Ok(_) => {}
                Err(error) => {
                    // It has no part in the plan, but those behind it move up.
                    self.fail(index, Error::internal("the engine failed", error).into());
                    return self.plan();
                }
            }
            index += 1;
        }
        plan
    }

    /// Returns how many tokens of prompts a step may compute.
    fn chunk(&self, candidates: usize) -> usize {
        let mut time = if candidates > 0 { BESIDE } else { ALONE };
        let growing = self.runs.iter().filter(|run| run.n_growing() > 0);
        if let Some(deadline) = growing.filter_map(Run::deadline).min() {
            let left = deadline.saturating_duration_since(self.worker.clock.now());
            let step = self.with_meter(|meter| meter.step(0, candidates));
            time = time.min(left.saturating_sub(step.unwrap_or_default()));
        }
        let tokens = self.with_meter(|meter| meter.prompt_tokens_in(time)).unwrap_or(FIRST_CHUNK);
        (tokens / CHUNK_UNIT * CHUNK_UNIT).clamp(CHUNK_UNIT, MOST_CHUNK)
    }

    /// Returns the next stretch of a run's prompt; `None` where there is none, or where another run of the plan computes
    /// the same tokens, and the engine keeps what comes of it for this one.
    fn stretch(&mut self, index: usize, plan: &Plan, budget: usize) -> Result<Option<Part>, EngineError> {
        let Self { worker: Worker { engine, .. }, runs, .. } = self;
        let others = plan.parts.iter().filter_map(|part| match part {
            Part::Stretch { run, seq, begin, .. } if engine.keeps(*seq) => Some((&runs[*run], *begin)),
            Part::Stretch { .. } | Part::Token { .. } => None,
        });
        let run = &runs[index];
        let Some((tokens, progress)) = run.prompt() else { return Ok(None) };
        if let Progress::Waits = progress {
            let same = |other: &[u32], begin: usize| {
                let end = (begin + CHUNK_UNIT).min(tokens.len());
                other.len() >= end && other[..end] == tokens[..end] && end % CHUNK_UNIT == 0
            };
            for (other, begin) in others {
                if other.prompt().is_some_and(|(other, _)| same(other, begin)) {
                    return Ok(None);
                }
            }
        }
        let run = &mut runs[index];
        let (seq, begin) = match run.progress() {
            Progress::Done => return Ok(None),
            Progress::Computes { seq, done, .. } => (seq, done),
            Progress::Waits => {
                // Tokens whose rows of logits are wanted are computed in any case.
                let (tokens, known, room) = match &run.what {
                    What::Generate(growth) => (&growth.job.prompt[..], growth.job.prompt.len() - 1, growth.length),
                    What::Score(judgement) => (&judgement.job.tokens[..], judgement.job.first_wanted(), 0),
                };
                let (seq, done) = engine.begin(tokens, known, room)?;
                *run.progress_mut() = Progress::Computes { seq, done, found: done };
                (seq, done)
            }
        };
        let (len, first_wanted) = match &run.what {
            What::Generate(growth) => (growth.job.prompt.len(), growth.job.prompt.len()),
            What::Score(judgement) => (judgement.job.tokens.len(), judgement.job.first_wanted()),
        };
        let is_score = matches!(run.what, What::Score(_));
        let (mut end, mut wants) = (len.min(begin + budget), Wants::Nothing);
        if is_score && begin < first_wanted {
            end = end.min(first_wanted);
        } else if is_score {
            let rows = SCORE_CHUNK.saturating_sub(plan.score_rows);
            if rows == 0 {
                return Ok(None);
            }
            (end, wants) = (end.min(begin + rows), Wants::All);
        } else if end == len {
            wants = Wants::Last;
        }
        if end < len && wants == Wants::Nothing && end / CHUNK_UNIT * CHUNK_UNIT > begin && end != first_wanted {
            end = end / CHUNK_UNIT * CHUNK_UNIT;
        }
        Ok(Some(Part::Stretch { run: index, seq, begin, end, wants }))
    }
}

impl Part {
    pub(super) fn feed<'a>(&self, runs: &'a [Run]) -> Option<Feed<'a>> {
        match *self {
            Self::Stretch { run, seq, begin, end, wants } => {
                let (tokens, _) = runs[run].prompt()?;
                Some(Feed { seq, tokens: &tokens[begin..end], wants })
            }
            Self::Token { run, candidate } => {
                let What::Generate(growth) = &runs[run].what else { return None };
                let candidate = &growth.growing[candidate];
                let tokens = std::slice::from_ref(candidate.tokens().last()?);
                Some(Feed { seq: candidate.seq, tokens, wants: Wants::Last })
            }
        }
    }

    const fn run(&self) -> usize {
        match self {
            Self::Stretch { run, .. } | Self::Token { run, .. } => *run,
        }
    }
}

impl Plan {
    /// Returns the run that a sequence of the plan is of.
    pub(super) fn run_of(&self, runs: &[Run], seq: Seq) -> Option<usize> {
        self.parts.iter().find(|part| part.feed(runs).is_some_and(|feed| feed.seq == seq)).map(Part::run)
    }

    /// Returns the runs that have a part, in order.
    pub(super) fn runs(&self) -> Vec<usize> {
        let mut runs: Vec<usize> = self.parts.iter().map(Part::run).collect();
        runs.sort_unstable();
        runs.dedup();
        runs
    }
}
