//! What one pass computes: rows of any number of runs, those of each run together.

use super::run::Run;
use crate::engine::slots::Slots;
use crate::engine::{EngineError, Feed, Seq, Wants};

/// Rows of one run.
pub(super) struct Group {
    pub(super) place: usize,
    pub(super) first: usize,
    pub(super) n: usize,
    /// How many of its rows, the last ones, go through the last layer.
    pub(super) last: usize,
    /// The sequences that these rows are of; `None` for a stretch of the prompt.
    pub(super) seqs: Option<Vec<Seq>>,
}

/// All rows of a pass.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    pub(super) positions: Vec<u32>,
    pub(super) groups: Vec<Group>,
    /// The rows that go through the last layer.
    pub(super) last: Vec<u32>,
    /// The rows of logits that are wanted, in the order of the feeds: their places in `last`.
    pub(super) wanted: Vec<usize>,
}

/// The feeds of one run.
struct Fed {
    place: usize,
    feeds: Vec<usize>,
}

impl Batch {
    /// Checks that all can be computed, and lays out the rows.
    pub(super) fn new(
        feeds: &[Feed<'_>],
        sequences: &Slots<usize>,
        runs: &[Option<Run>],
        vocabulary: usize,
    ) -> Result<Self, EngineError> {
        let mut fed: Vec<Fed> = Vec::new();
        for (i, feed) in feeds.iter().enumerate() {
            let place = *sequences.get(feed.seq)?;
            if feeds[..i].iter().any(|other| other.seq == feed.seq) {
                return Err(EngineError::Misuse("a sequence is twice in a batch"));
            }
            if feed.tokens.is_empty() || feed.tokens.iter().any(|token| *token as usize >= vocabulary) {
                return Err(EngineError::Misuse("a token is beyond the vocabulary, or there is none"));
            }
            let run = run(runs, place)?;
            if run.is_in_prompt() {
                if run.computed + feed.tokens.len() > run.prompt.len() {
                    return Err(EngineError::Misuse("a prompt is longer than was said"));
                }
            } else if feed.tokens.len() != 1 {
                return Err(EngineError::Misuse("a continuation grows by one token at a time"));
            } else {
                run.can_grow(feed.seq)?;
            }
            match fed.iter_mut().find(|fed| fed.place == place) {
                Some(fed) => fed.feeds.push(i),
                None => fed.push(Fed { place, feeds: vec![i] }),
            }
        }
        let mut batch = Self::default();
        let mut wanted = vec![0..0; feeds.len()];
        for Fed { place, feeds: of } in fed {
            batch.add(feeds, place, &of, run(runs, place)?, &mut wanted)?;
        }
        batch.wanted = wanted.into_iter().flatten().collect();
        Ok(batch)
    }

    fn add(
        &mut self,
        feeds: &[Feed<'_>],
        place: usize,
        of: &[usize],
        run: &Run,
        wanted: &mut [std::ops::Range<usize>],
    ) -> Result<(), EngineError> {
        let too_many = |_| EngineError::Misuse("there are too many rows");
        let (first, position) = (self.tokens.len(), run.position());
        for i in of {
            self.tokens.extend_from_slice(feeds[*i].tokens);
        }
        let n = self.tokens.len() - first;
        let in_prompt = run.is_in_prompt();
        for row in 0..n {
            // All continuations of a run are at one position.
            let position = if in_prompt { position + row } else { position };
            self.positions.push(u32::try_from(position).map_err(too_many)?);
        }
        let wants = |i: &usize| feeds[*i].wants;
        let last = match of.first().map(wants) {
            Some(Wants::Last) if in_prompt => 1,
            Some(Wants::All) if in_prompt => n,
            _ if !in_prompt && of.iter().any(|i| wants(i) != Wants::Nothing) => n,
            _ => 0,
        };
        let mut at = self.last.len();
        for i in of.iter().filter(|_| last > 0) {
            let rows = if in_prompt { last } else { 1 };
            if wants(i) != Wants::Nothing {
                wanted[*i] = at..at + rows;
            }
            at += rows;
        }
        for row in first + n - last..first + n {
            self.last.push(u32::try_from(row).map_err(too_many)?);
        }
        let seqs = (!in_prompt).then(|| of.iter().map(|i| feeds[*i].seq).collect());
        self.groups.push(Group { place, first, n, last, seqs });
        Ok(())
    }
}

/// Returns the run at a place.
pub(super) fn run(runs: &[Option<Run>], place: usize) -> Result<&Run, EngineError> {
    runs.get(place).and_then(Option::as_ref).ok_or(EngineError::Misuse("there is no such run"))
}
