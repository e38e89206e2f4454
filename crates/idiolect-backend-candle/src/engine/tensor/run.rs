//! A prompt with its growing continuations.

use candle_core::Tensor;

use super::attention::{Masks, Sight};
use super::kept::FEWEST;
use super::memory::{Memory, Pair, Path};
use super::model::Heads;
use crate::engine::params::Params;
use crate::engine::{EngineError, Seq};

/// Positions that continuations get memory for at first; it doubles when they are full.
pub(super) const FIRST_ROOM: usize = 32;

fn too_many(_: std::num::TryFromIntError) -> EngineError {
    EngineError::Misuse("there are too many sequences")
}

/// A prompt with its growing continuations.
pub(super) struct Run {
    pub(super) prompt: Vec<u32>,
    /// Where its keys and values lie; the last segment is its own.
    pub(super) path: Path,
    /// Tokens of the prompt that were computed.
    pub(super) computed: usize,
    /// Whether a value of the prompt is no number.
    pub(super) spoiled: bool,
    /// The sequences that grow, in the order of the rows of `own`; `None` for one that has left.
    active: Vec<Option<Seq>>,
    /// What continuations have for themselves, for each layer.
    own: Vec<Own>,
    own_len: usize,
    own_capacity: usize,
    room: usize,
}

/// What continuations have for themselves in one layer.
struct Own {
    /// `[key head, continuation, position, element]`.
    pair: Pair,
    /// Whose these are, in order. After an attempt to give memory back for which there was none, layers may differ.
    rows: Vec<Option<Seq>>,
}

impl Run {
    pub(super) fn new(prompt: &[u32], path: Path, room: usize, seq: Seq) -> Self {
        Self {
            prompt: prompt.to_vec(),
            computed: path.len(),
            path,
            spoiled: false,
            active: vec![Some(seq)],
            own: Vec::new(),
            own_len: 0,
            own_capacity: 0,
            room,
        }
    }

    /// Says whether part of the prompt is still to be computed.
    pub(super) const fn is_in_prompt(&self) -> bool {
        self.computed < self.prompt.len()
    }

    /// Returns the position of the next token.
    pub(super) const fn position(&self) -> usize {
        self.computed + self.own_len
    }

    /// Says whether a sequence can grow by one more token.
    pub(super) fn can_grow(&self, seq: Seq) -> Result<(), EngineError> {
        if !self.active.contains(&Some(seq)) {
            return Err(EngineError::Misuse("there is no such sequence, or it missed a step"));
        }
        if self.own_len == self.room {
            return Err(EngineError::Misuse("a continuation is longer than its room"));
        }
        Ok(())
    }

    /// Lets continuations become longer.
    pub(super) fn allow(&mut self, room: usize) {
        self.room = self.room.max(room);
    }

    /// Adds a continuation.
    pub(super) fn join(&mut self, seq: Seq) -> Result<(), EngineError> {
        if self.is_in_prompt() {
            return Err(EngineError::Misuse("a prompt cannot be forked before it is computed"));
        }
        if self.own_len > 0 {
            return Err(EngineError::Misuse("a continuation cannot be forked"));
        }
        self.active.push(Some(seq));
        Ok(())
    }

    /// Takes a sequence out; its memory goes with the next step of the others, or when it is needed.
    pub(super) fn leave(&mut self, seq: Seq) {
        if self.own.is_empty() {
            self.active.retain(|active| *active != Some(seq));
        } else {
            self.active.iter_mut().filter(|active| **active == Some(seq)).for_each(|active| *active = None);
        }
    }

    /// Returns a sequence of it, to name it by.
    pub(super) fn any_seq(&self) -> Option<Seq> {
        self.active.iter().flatten().next().copied()
    }

    /// Leaves only the given sequences, in the given order. After an error all that were there are there still, and the
    /// attempt may be repeated.
    pub(super) fn keep(&mut self, seqs: &[Seq], memory: &mut Memory) -> Result<(), EngineError> {
        if seqs.iter().map(|seq| Some(*seq)).eq(self.active.iter().copied()) {
            return Ok(());
        }
        let wanted: Vec<Option<Seq>> = seqs.iter().copied().map(Some).collect();
        if wanted.iter().any(|seq| !self.active.contains(seq)) {
            return Err(EngineError::Misuse("there is no such sequence, or it missed a step"));
        }
        for Own { pair, rows } in self.own.iter_mut().filter(|own| own.rows != wanted) {
            let place = |seq: &Option<Seq>| rows.iter().position(|row| row == seq).map(u32::try_from);
            let places: Vec<u32> = wanted.iter().filter_map(place).collect::<Result<_, _>>().map_err(too_many)?;
            let places = Tensor::new(places, &memory.form.device)?;
            let select = |tensor: &Tensor| tensor.index_select(&places, 1);
            *pair = memory.form.make(|| Ok(Pair { keys: select(&pair.keys)?, values: select(&pair.values)? }))?;
            rows.clone_from(&wanted);
        }
        if !self.own.is_empty() {
            memory.give((self.active.len() - wanted.len()) * self.own_capacity);
        }
        self.active = wanted;
        Ok(())
    }

    /// Gives back the memory of those that left.
    pub(super) fn compact(&mut self, memory: &mut Memory) -> Result<(), EngineError> {
        let seqs: Vec<Seq> = self.active.iter().flatten().copied().collect();
        self.keep(&seqs, memory)
    }

    /// Returns the tokens for which memory has to be found before the next step.
    pub(super) fn growth(&self) -> usize {
        self.active.len() * (self.next_capacity() - self.own_capacity)
    }

    fn next_capacity(&self) -> usize {
        if self.own_len < self.own_capacity {
            self.own_capacity
        } else {
            (2 * self.own_capacity).max(FIRST_ROOM).min(self.room)
        }
    }

    /// Makes sure of memory for one more position of each continuation, which was found to be there.
    pub(super) fn grow(&mut self, memory: &mut Memory) -> Result<(), EngineError> {
        let (n, capacity, growth) = (self.active.len(), self.next_capacity(), self.growth());
        if growth == 0 {
            return Ok(());
        }
        if self.own.is_empty() {
            let own = || Ok(Own { pair: memory.form.continuations(n, capacity)?, rows: self.active.clone() });
            self.own = (0..memory.form.layers).map(|_| own()).collect::<Result<_, EngineError>>()?;
        } else {
            for Own { pair, .. } in &mut self.own {
                // After an attempt for which there was no memory, some are larger already.
                if pair.len()? < capacity {
                    let larger = memory.form.continuations(n, capacity)?;
                    larger.store(0, &pair.keys, &pair.values)?;
                    *pair = larger;
                }
            }
        }
        memory.take(growth);
        self.own_capacity = capacity;
        Ok(())
    }

    /// Notes that all continuations have one more token.
    pub(super) const fn stepped(&mut self) {
        self.own_len += 1;
    }

    /// Puts the keys and values of the next rows where they belong, and returns what these rows attend to.
    pub(super) fn store<'a>(
        &self,
        memory: &Memory,
        params: &Params,
        layer: usize,
        heads: &Heads,
        masks: &'a Masks,
    ) -> Result<Sight<'a>, EngineError> {
        let by_head = |rows: &Tensor| rows.transpose(0, 1)?.to_dtype(memory.form.dtype)?.contiguous();
        let (keys, values) = (by_head(&heads.k)?, by_head(&heads.v)?);
        let window = params.layers[layer].window;
        if self.is_in_prompt() {
            let seen = self.computed + heads.k.dim(0)?;
            if let Some((id, _)) = self.path.parts().last() {
                memory.layer(*id, layer)?.store(self.computed - self.path.before_last(), &keys, &values)?;
            }
            return Ok(Sight { shared: self.path.layer(memory, layer, seen)?, own: None, masks, window });
        }
        let Own { pair: own, .. } = self.own.get(layer).ok_or(EngineError::Misuse("a continuation has no memory"))?;
        own.store(self.own_len, &keys.unsqueeze(2)?, &values.unsqueeze(2)?)?;
        let shared = self.path.layer(memory, layer, self.computed)?;
        Ok(Sight { shared, own: Some(own.first(self.own_len + 1)?), masks, window })
    }

    /// Ends the run: returns its prompt and where that lies, if it is of use to others.
    pub(super) fn end(mut self, memory: &mut Memory) -> Option<(Vec<u32>, Path)> {
        memory.give(self.active.len() * self.own_capacity);
        if self.spoiled || self.computed < FEWEST {
            self.path.release(memory);
            return None;
        }
        if self.is_in_prompt() {
            if self.computed <= self.path.before_last() {
                // Of its own segment nothing was computed: what is there is kept as part of others.
                self.path.release(memory);
                return None;
            }
            self.path.truncate(self.computed);
        }
        Some((self.prompt, self.path))
    }
}
