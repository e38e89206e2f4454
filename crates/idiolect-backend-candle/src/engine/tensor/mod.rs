//! Llama-shaped transformers on candle's tensors, for the devices that candle knows.
//!
//! Weights stay on the device in the file's own formats (`product.rs`); the residual stream, norms and softmax are `f32`. The
//! rows of all runs, tokens of prompts and one each of all that grows, are multiplied with the weights together. Only
//! attention is computed run by run: all continuations of a prompt attend to it in one product, and each to its own
//! tokens in another. Nothing is copied between device and processor but tokens and positions on the way in, and logits,
//! with a number for each row that shows whether it is one, on the way out.
//!
//! Keys and values of a prompt lie in segments (`memory.rs`): what it shares with one that is there already, and its own.
//! Prompts outlive their runs, as far as there is room (`kept.rs`). What the continuations of a run own lies in one block per
//! layer, which grows by doubling and shrinks when some of them end (`run.rs`). All of it is counted, and whoever needs room
//! gets it from what is kept, then from what nobody uses any more. So what sequences hold never takes more than their
//! prompts and the room of those that are not released.
//!
//! Unlike with the processor's own kernels, the last bits of a row's numbers may depend on its batch, as the libraries
//! below choose their kernels by size.

mod attention;
mod batch;
mod kept;
mod memory;
mod model;
mod product;
mod rotation;
mod run;
#[cfg(test)]
mod tests;

use candle_core::DType;
use idiolect_kernels::Team;

use self::attention::Masks;
use self::batch::{Batch, Group};
use self::kept::{FEWEST, Kept, common};
use self::memory::{Form, Memory, Path, SegmentId};
use self::model::{Heads, Model, States};
use self::run::Run;
use super::slots::Slots;
use super::{Engine, EngineError, Feed, Portion, Seq, Wants};
use crate::CandleConfig;
use crate::device::OpenDevice;
use crate::error::{LoadError, first_line};
use crate::weights::Weights;

/// Segments that a prompt may consist of; what would take more is copied into one.
const MOST_SEGMENTS: usize = 3;

type Outcome<T> = Result<T, candle_core::Error>;

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(first_line(&error))
    }
}

/// How the engine runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorSettings {
    pub(crate) threads: usize,
    /// How keys and values are kept, and multiplied.
    pub(crate) kv_type: DType,
    /// Most bytes of keys and values.
    pub(crate) max_kv_bytes: u64,
    /// Most of them that are kept for later prompts.
    pub(crate) max_kept_bytes: u64,
}

impl TensorSettings {
    /// Takes the settings that concern this engine.
    pub(crate) fn new(config: &CandleConfig) -> Result<Self, LoadError> {
        Ok(Self {
            threads: config.n_threads(),
            kv_type: config.kv_type.for_tensors()?,
            max_kv_bytes: config.max_kv_bytes,
            max_kept_bytes: config.kept_bytes(),
        })
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { threads: 2, kv_type: DType::F32, max_kv_bytes: 1 << 30, max_kept_bytes: 1 << 20 }
    }
}

/// A loaded model with its sequences.
pub(crate) struct Tensors {
    model: Model,
    /// For the caller's loops.
    team: Team,
    /// For the device, where that is the processor.
    pool: rayon::ThreadPool,
    memory: Memory,
    kept: Kept,
    /// For each sequence the run that it belongs to.
    sequences: Slots<usize>,
    runs: Vec<Option<Run>>,
    logits: Vec<f32>,
}

impl std::fmt::Debug for Tensors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Model { params, device, .. } = &self.model;
        f.debug_struct("Tensors").field("params", params).field("device", device).finish_non_exhaustive()
    }
}

impl Tensors {
    /// Loads all weights onto the device and computes a few tokens to prove that it can.
    pub(crate) fn load(
        weights: &mut Weights,
        settings: &TensorSettings,
        device: &OpenDevice,
    ) -> Result<Self, LoadError> {
        let team = Team::new(settings.threads).map_err(LoadError::Thread)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(settings.threads)
            .thread_name(|i| format!("tensors-{i}"))
            .build()
            .map_err(|e| LoadError::Thread(std::io::Error::other(e)))?;
        let model = Model::load(weights, device)?;
        let form = Form::new(&model.params, settings.kv_type, device.handle());
        let tokens = |bytes: u64| usize::try_from(bytes / form.token_bytes()).unwrap_or(usize::MAX);
        let (most, most_kept) = (tokens(settings.max_kv_bytes), tokens(settings.max_kept_bytes));
        let mut tensors = Self {
            model,
            team,
            pool,
            memory: Memory::new(form, most),
            kept: Kept::new(most_kept.min(most)),
            sequences: Slots::default(),
            runs: Vec::new(),
            logits: Vec::new(),
        };
        // A device may lack a kernel for one of the file's formats, which shows only when it is used; and kernels for many
        // rows are others than those for few.
        let proof = tensors.prove();
        tensors.reset();
        match proof {
            Err(EngineError::Device(reason)) => Err(device.fault(reason)),
            // A model that computes no numbers says so when it is asked something.
            _ => Ok(tensors),
        }
    }

    fn prove(&mut self) -> Result<(), EngineError> {
        let prompt = [0; 15];
        let (first, _) = self.begin(&prompt, 0, 1)?;
        self.forward(&[Feed { seq: first, tokens: &prompt, wants: Wants::Last }])?;
        let second = self.fork(first)?;
        let feed = |seq| Feed { seq, tokens: &[0], wants: Wants::Last };
        self.forward(&[feed(first), feed(second)])
    }

    /// Finds the prompt, kept or at work, that begins like some tokens for the longest, and shares that.
    fn find(&mut self, tokens: &[u32]) -> Path {
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
            run.compact(memory)?;
        }
        while !memory.fits(tokens) && kept.give_up_one(memory) {}
        if !memory.fits(tokens) {
            memory.shrink_all(|id| runs.iter().flatten().map(|run| run.path.used(id)).max().unwrap_or(0))?;
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
    fn settle(&mut self, place: usize) -> Result<usize, EngineError> {
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
    fn end(&mut self, place: usize) {
        let Some(run) = self.runs.get_mut(place).and_then(Option::take) else { return };
        if let Some((prompt, path)) = run.end(&mut self.memory) {
            self.kept.add(prompt, path, &mut self.memory);
        }
    }

    /// Makes sure of memory for the continuations of a batch, and leaves only those that are in it.
    fn prepare(&mut self, batch: &Batch) -> Result<(), EngineError> {
        for group in &batch.groups {
            let Some(seqs) = &group.seqs else { continue };
            let Self { memory, runs, .. } = self;
            let Some(run) = &mut runs[group.place] else { continue };
            run.keep(seqs, memory)?;
            let growth = run.growth();
            if growth == 0 {
                continue;
            }
            self.make_room(growth)?;
            let Self { memory, runs, kept, .. } = self;
            let Some(run) = &mut runs[group.place] else { continue };
            if let Err(error) = run.grow(memory) {
                if kept.is_empty() {
                    return Err(error);
                }
                while kept.give_up_one(memory) {}
                run.grow(memory)?;
            }
        }
        Ok(())
    }

    /// Computes a batch: what it gives for every row, the logits of the last ones, and their sums of squares.
    fn compute(&self, batch: &Batch) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>), EngineError> {
        let Self { model, memory, runs, .. } = self;
        let params = &model.params;
        let groups: Vec<(&Group, &Run, Masks)> = batch
            .groups
            .iter()
            .map(|group| {
                let run = batch::run(runs, group.place)?;
                let rows = if group.seqs.is_some() { 1 } else { group.n };
                Ok((group, run, Masks::new(params, run.position(), rows, &model.device)?))
            })
            .collect::<Result<_, EngineError>>()?;
        let attend = |layer: usize, heads: &Heads| {
            let is_last = layer + 1 == params.layers.len();
            let mut parts = Vec::with_capacity(groups.len());
            for (group, run, masks) in &groups {
                let heads = heads.narrow(group.first, group.n)?;
                let sight = run.store(memory, params, layer, &heads, masks)?;
                let n = if is_last { group.last } else { group.n };
                if n > 0 {
                    parts.push(sight.attend(params, &heads.q.narrow(0, group.n - n, n)?)?);
                }
            }
            Ok(if parts.is_empty() { None } else { Some(candle_core::Tensor::cat(&parts, 0)?) })
        };
        let States { sums, last } = model.forward(&batch.tokens, &batch.positions, &batch.last, attend)?;
        let (logits, last_sums) = match &last {
            Some(hidden) => model.project(hidden)?,
            None => (Vec::new(), Vec::new()),
        };
        // This also waits until the device is done.
        Ok((sums.to_vec1()?, logits, last_sums))
    }

    /// Takes note of what a batch gave.
    fn advance(&mut self, batch: &Batch, sums: &[f32], logits: &[f32], last_sums: &[f32]) {
        let vocabulary = self.model.params.vocabulary;
        // Whether the rows that went through the last layer are sound.
        let mut sound: Vec<bool> = last_sums.iter().map(|sum| sum.is_finite()).collect();
        let mut at = 0;
        for group in &batch.groups {
            let Some(run) = &mut self.runs[group.place] else { continue };
            let rows = &sums[group.first..group.first + group.n];
            if group.seqs.is_some() {
                run.stepped();
                for (sound, sum) in sound[at..at + group.last].iter_mut().zip(rows) {
                    *sound &= sum.is_finite() && !run.spoiled;
                }
            } else {
                run.computed += group.n;
                run.spoiled |= !rows.iter().all(|sum| sum.is_finite());
                sound[at..at + group.last].iter_mut().for_each(|sound| *sound &= !run.spoiled);
            }
            at += group.last;
        }
        self.logits.reserve(batch.wanted.len() * vocabulary);
        for row in &batch.wanted {
            if sound[*row] {
                self.logits.extend_from_slice(&logits[row * vocabulary..(row + 1) * vocabulary]);
            } else {
                self.logits.resize(self.logits.len() + vocabulary, f32::NAN);
            }
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

impl Engine for Tensors {
    fn vocabulary(&self) -> usize {
        self.model.params.vocabulary
    }

    fn context(&self) -> usize {
        self.model.params.context
    }

    fn portion(&self) -> Portion {
        Portion { tokens: 1, bytes: self.memory.form.token_bytes() }
    }

    fn team(&self) -> &Team {
        &self.team
    }

    fn begin(&mut self, prompt: &[u32], known: usize, room: usize) -> Result<(Seq, usize), EngineError> {
        self.model.params.check_lengths(prompt.len(), room)?;
        let place = self.runs.iter().position(Option::is_none).unwrap_or(self.runs.len());
        let seq = self.sequences.add(place)?;
        if place == self.runs.len() {
            self.runs.push(None);
        }
        // One token at least is left to compute.
        let path = self.find(&prompt[..known.min(prompt.len() - 1)]);
        self.runs[place] = Some(Run::new(prompt, path, room, seq));
        match self.settle(place) {
            Ok(found) => Ok((seq, found)),
            Err(error) => {
                self.sequences.remove(seq);
                if let Some(mut run) = self.runs[place].take() {
                    run.path.release(&mut self.memory);
                }
                Err(error)
            }
        }
    }

    fn fork(&mut self, seq: Seq) -> Result<Seq, EngineError> {
        let place = *self.sequences.get(seq)?;
        let fork = self.sequences.add(place)?;
        let joined = match &mut self.runs[place] {
            Some(run) => run.join(fork),
            None => Err(EngineError::Misuse("there is no such run")),
        };
        if let Err(error) = joined {
            self.sequences.remove(fork);
            return Err(error);
        }
        Ok(fork)
    }

    fn allow(&mut self, seq: Seq, room: usize) -> Result<(), EngineError> {
        let place = *self.sequences.get(seq)?;
        match &mut self.runs[place] {
            Some(run) => {
                run.allow(room);
                Ok(())
            }
            None => Err(EngineError::Misuse("there is no such run")),
        }
    }

    fn release(&mut self, seq: Seq) {
        let Some(place) = self.sequences.remove(seq) else { return };
        if !self.sequences.values().any(|other| *other == place) {
            self.end(place);
        } else if let Some(run) = &mut self.runs[place] {
            run.leave(seq);
        }
    }

    fn forward(&mut self, feeds: &[Feed<'_>]) -> Result<(), EngineError> {
        self.logits.clear();
        let batch = Batch::new(feeds, &self.sequences, &self.runs, self.model.params.vocabulary)?;
        if batch.tokens.is_empty() {
            return Ok(());
        }
        self.prepare(&batch)?;
        let (sums, logits, last_sums) = self.pool.install(|| self.compute(&batch))?;
        self.advance(&batch, &sums, &logits, &last_sums);
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn reset(&mut self) {
        self.sequences.clear();
        self.runs.clear();
        self.kept.clear();
        self.memory.clear();
    }

    fn keeps(&self, seq: Seq) -> bool {
        // What is at work is shared, whether it is kept afterwards or not.
        let run = self.sequences.get(seq).ok().and_then(|place| self.runs[*place].as_ref());
        run.is_some_and(|run| !run.spoiled)
    }

    fn kept_tokens(&self) -> usize {
        self.kept.tokens(&self.memory)
    }
}
