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
mod pass;
mod product;
mod room;
mod rotation;
mod run;
#[cfg(test)]
mod tests;

use candle_core::DType;
use idiolect_kernels::Team;

use self::batch::Batch;
use self::kept::Kept;
use self::memory::{Form, Memory};
use self::model::Model;
use self::run::Run;
use super::slots::Slots;
use super::{Engine, EngineError, Feed, Portion, Seq, Wants};
use crate::CandleConfig;
use crate::device::OpenDevice;
use crate::error::{LoadError, first_line};
use crate::weights::Weights;

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
    /// Scores of attention that are computed at once.
    most_scores: usize,
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
            most_scores: attention::SCORES,
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
        let outcome = self.pool.install(|| self.compute(&batch))?;
        self.advance(&batch, &outcome);
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
