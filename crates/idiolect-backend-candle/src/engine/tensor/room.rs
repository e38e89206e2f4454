//! Who gets what of the memory: prompts share what is there, and what nobody uses makes room for what somebody needs.

use super::batch::{self, Batch};
use super::kept::{FEWEST, common};
use super::memory::{Memory, Path, SegmentId};
use super::{EngineError, Seq, Tensors};

/// Segments that a prompt may consist of; what would take more is copied into one.
const MOST_SEGMENTS: usize = 3;

impl Tensors {
    /// Finds the prompt, kept or at work, that begins like some tokens for the longest, and shares that.
    pub(super) fn find(&mut self, tokens: &[u32]) -> Path {
        let at_work = self.runs.iter().flatten().filter(|run| !run.spoiled);
        let at_work = at_work.map(|run| (common(&run.prompt[..run.computed], tokens), run)).max_by_key(|(len, _)| *len);
        let kept = self.kept.find(tokens);
        match (at_work, kept) {
            (at_work, Some((place, len))) if len >= FEWEST && at_work.is_none_or(|(other, _)| other < len) => {
                self.kept.share(place, len, &mut self.memory)
            }
            (Some((len, run)), _) if len >= FEWEST => run.path.shared(len, &mut self.memory),
            _ => Path::default(),
        }
    }

    /// Sees to it that there is room for more tokens: what has left goes first, then what is kept, then what is held of
    /// segments beyond what is used of them.
    fn make_room(&mut self, tokens: usize) -> Result<(), EngineError> {
        let Self { memory, kept, runs, .. } = self;
        if memory.fits(tokens) {
            return Ok(());
        }
        for run in runs.iter_mut().flatten() {
            // Where there is no memory to do that, nothing is given back, and that run is as it was.
            if let Err(error) = run.compact(memory) {
                tracing::debug!(%error, "memory could not be given back");
            }
        }
        while !memory.fits(tokens) && kept.give_up_one(memory) {}
        if !memory.fits(tokens) {
            let used = |id| runs.iter().flatten().map(|run| run.path.used(id)).max().unwrap_or(0);
            if let Err(error) = memory.shrink_all(used) {
                tracing::debug!(%error, "memory could not be given back");
            }
        }
        if memory.fits(tokens) { Ok(()) } else { Err(EngineError::Misuse("the memory for keys and values is full")) }
    }

    /// Takes memory for some tokens of a prompt.
    fn segment(&mut self, tokens: usize) -> Result<SegmentId, EngineError> {
        self.make_room(tokens)?;
        let layers = match self.memory.form.prompt(tokens) {
            // The device has less than was allowed: what is kept is given up for what is asked.
            Err(_) if !self.kept.is_empty() => {
                while self.kept.give_up_one(&mut self.memory) {}
                self.memory.form.prompt(tokens)?
            }
            layers => layers?,
        };
        Ok(self.memory.add(layers, tokens))
    }

    /// Finds a place for what the run at `place` does not share. Returns how much it shares.
    pub(super) fn settle(&mut self, place: usize) -> Result<usize, EngineError> {
        let (len, found, parts) = {
            let run = batch::run(&self.runs, place)?;
            (run.prompt.len(), run.path.len(), run.path.parts().len())
        };
        let copies = parts >= MOST_SEGMENTS;
        let own = if copies { len } else { len - found };
        let mut found = found;
        let mut outcome = self.segment(own);
        if outcome.is_err() && found > 0 {
            // There may be no room for both what is shared and the rest.
            if let Some(run) = &mut self.runs[place] {
                run.path.release(&mut self.memory);
            }
            (found, outcome) = (0, self.segment(len));
        }
        let id = outcome?;
        let Self { memory, runs, .. } = self;
        let Some(run) = &mut runs[place] else { return Err(EngineError::Misuse("there is no such run")) };
        if copies && found > 0 {
            let copied = copy(memory, &run.path, id, found);
            run.path.release(memory);
            run.path.push(id, len);
            copied?;
        } else {
            run.path.push(id, len - found);
        }
        run.computed = found;
        Ok(found)
    }

    /// Ends the run at a place; what it computed of its prompt is kept.
    pub(super) fn end(&mut self, place: usize) {
        let Some(run) = self.runs.get_mut(place).and_then(Option::take) else { return };
        if let Some((prompt, path)) = run.end(&mut self.memory) {
            self.kept.add(prompt, path, &mut self.memory);
        }
    }

    /// Makes sure of memory for the continuations of a batch, and leaves only those that are in it.
    pub(super) fn prepare(&mut self, batch: &Batch) -> Result<(), EngineError> {
        for group in &batch.groups {
            let Some(seqs) = &group.seqs else { continue };
            let outcome = self.prepare_run(group.place, seqs);
            outcome.map_err(|error| error.of(seqs.first().copied()))?;
        }
        Ok(())
    }

    fn prepare_run(&mut self, place: usize, seqs: &[Seq]) -> Result<(), EngineError> {
        let Self { memory, runs, .. } = self;
        let Some(run) = &mut runs[place] else { return Ok(()) };
        run.keep(seqs, memory)?;
        let growth = run.growth();
        if growth == 0 {
            return Ok(());
        }
        self.make_room(growth)?;
        let Self { memory, runs, kept, .. } = self;
        let Some(run) = &mut runs[place] else { return Ok(()) };
        match run.grow(memory) {
            Err(_) if !kept.is_empty() => {
                while kept.give_up_one(memory) {}
                run.grow(memory)
            }
            outcome => outcome,
        }
    }
}

/// Copies the first `len` positions of a path into a segment.
fn copy(memory: &Memory, path: &Path, to: SegmentId, len: usize) -> Result<(), EngineError> {
    for layer in 0..memory.form.layers {
        let (to, mut at) = (memory.layer(to, layer)?, 0);
        for pair in path.layer(memory, layer, len)? {
            to.store(at, &pair.keys.contiguous()?, &pair.values.contiguous()?)?;
            at += pair.len()?;
        }
    }
    Ok(())
}
