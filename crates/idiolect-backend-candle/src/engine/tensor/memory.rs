//! The memory for keys and values: tensors of prompts, that runs and the prefix cache hold together, and a count of it all.
//!
//! Counted are tokens, as each takes the same bytes.

use candle_core::{D, DType, Device, Tensor};

use super::Outcome;
use crate::engine::EngineError;
use crate::engine::params::Params;

/// Keys and values of one layer; the dimension before the last counts positions.
#[derive(Clone)]
pub(super) struct Pair {
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
}

impl Pair {
    /// Makes room.
    pub(super) fn zeros(shape: &[usize], dtype: DType, device: &Device) -> Outcome<Self> {
        let zeros = || Tensor::zeros(shape, dtype, device);
        Ok(Self { keys: zeros()?, values: zeros()? })
    }

    pub(super) fn dtype(&self) -> DType {
        self.keys.dtype()
    }

    /// Returns how many positions there are.
    pub(super) fn len(&self) -> Outcome<usize> {
        self.keys.dim(D::Minus2)
    }

    /// Puts keys and values at a position.
    pub(super) fn store(&self, position: usize, keys: &Tensor, values: &Tensor) -> Outcome<()> {
        self.keys.slice_set(keys, D::Minus2, position)?;
        self.values.slice_set(values, D::Minus2, position)
    }

    /// Returns the first `len` positions, without a copy.
    pub(super) fn first(&self, len: usize) -> Outcome<Self> {
        let first = |tensor: &Tensor| tensor.narrow(D::Minus2, 0, len);
        Ok(Self { keys: first(&self.keys)?, values: first(&self.values)? })
    }

    /// Returns a copy of what `n` continuations have for themselves.
    pub(super) fn of(&self, first: usize, n: usize) -> Outcome<Self> {
        let of = |tensor: &Tensor| tensor.narrow(1, first, n)?.contiguous();
        Ok(Self { keys: of(&self.keys)?, values: of(&self.values)? })
    }

    /// Returns a copy of the first `len` positions, which keeps no more memory than they take.
    pub(super) fn copied(&self, len: usize) -> Outcome<Self> {
        let first = self.first(len)?;
        Ok(Self { keys: first.keys.force_contiguous()?, values: first.values.force_contiguous()? })
    }
}

/// What a layer's keys and values are.
#[derive(Clone)]
pub(super) struct Form {
    pub(super) layers: usize,
    pub(super) kv_heads: usize,
    pub(super) head_width: usize,
    pub(super) dtype: DType,
    pub(super) device: Device,
    #[cfg(test)]
    pub(super) scarcity: Scarcity,
}

/// A device that has no more memory after so many tensors, as tests need it.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub(super) struct Scarcity(std::sync::Arc<std::sync::Mutex<Option<usize>>>);

#[cfg(test)]
impl Scarcity {
    /// Lets so many more tensors be made; any number where that is `None`.
    pub(super) fn after(&self, tensors: Option<usize>) {
        *self.0.lock().unwrap() = tensors;
    }

    fn check(&self) -> Outcome<()> {
        match &mut *self.0.lock().unwrap() {
            Some(0) => Err(candle_core::Error::msg("out of memory, as told")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Form {
    pub(super) fn new(params: &Params, dtype: DType, device: &Device) -> Self {
        let Params { kv_heads, head_width, .. } = *params;
        Self {
            layers: params.layers.len(),
            kv_heads,
            head_width,
            dtype,
            device: device.clone(),
            #[cfg(test)]
            scarcity: Scarcity::default(),
        }
    }

    /// Bytes that a token takes. One more layer than there are: while continuations are copied to where they have more room,
    /// or less, one layer of them is there twice.
    pub(super) fn token_bytes(&self) -> u64 {
        let layer = 2 * self.kv_heads as u64 * self.head_width as u64 * self.dtype.size_in_bytes() as u64;
        (self.layers as u64 + 1) * layer
    }

    /// Makes tensors that keys and values are to stay in.
    pub(super) fn make(&self, pair: impl FnOnce() -> Outcome<Pair>) -> Outcome<Pair> {
        #[cfg(test)]
        self.scarcity.check()?;
        pair()
    }

    /// Makes room for a prompt, for all layers.
    pub(super) fn prompt(&self, tokens: usize) -> Outcome<Vec<Pair>> {
        self.pairs(&[self.kv_heads, tokens, self.head_width])
    }

    /// Makes room for continuations, for one layer.
    pub(super) fn continuations(&self, n: usize, tokens: usize) -> Outcome<Pair> {
        self.make(|| Pair::zeros(&[self.kv_heads, n, tokens, self.head_width], self.dtype, &self.device))
    }

    fn pairs(&self, shape: &[usize]) -> Outcome<Vec<Pair>> {
        (0..self.layers).map(|_| self.make(|| Pair::zeros(shape, self.dtype, &self.device))).collect()
    }
}

/// The number of a segment.
pub(super) type SegmentId = usize;

/// Keys and values of positions of a prompt that follow each other: `[key head, position, element]` for each layer.
struct Segment {
    layers: Vec<Pair>,
    capacity: usize,
    holders: usize,
}

/// All segments, and a count of all memory.
pub(super) struct Memory {
    pub(super) form: Form,
    segments: Vec<Option<Segment>>,
    /// Tokens that there may be.
    most: usize,
    taken: usize,
}

const GONE: EngineError = EngineError::Misuse("there is no such segment of a prompt");

impl Memory {
    pub(super) fn new(form: Form, most: usize) -> Self {
        Self { form, segments: Vec::new(), most, taken: 0 }
    }

    /// Says whether there is room for more tokens.
    pub(super) const fn fits(&self, tokens: usize) -> bool {
        tokens <= self.most.saturating_sub(self.taken)
    }

    #[cfg(test)]
    pub(super) const fn taken(&self) -> usize {
        self.taken
    }

    /// Notes that tokens were taken; not of segments, which note it themselves.
    pub(super) const fn take(&mut self, tokens: usize) {
        self.taken += tokens;
    }

    /// Notes that tokens were given back.
    pub(super) const fn give(&mut self, tokens: usize) {
        self.taken = self.taken.saturating_sub(tokens);
    }

    fn segment(&self, id: SegmentId) -> Result<&Segment, EngineError> {
        self.segments.get(id).and_then(Option::as_ref).ok_or(GONE)
    }

    /// Takes a segment in, for one holder.
    pub(super) fn add(&mut self, layers: Vec<Pair>, capacity: usize) -> SegmentId {
        let segment = Some(Segment { layers, capacity, holders: 1 });
        self.taken += capacity;
        match self.segments.iter().position(Option::is_none) {
            Some(id) => {
                self.segments[id] = segment;
                id
            }
            None => {
                self.segments.push(segment);
                self.segments.len() - 1
            }
        }
    }

    /// Returns a layer of a segment.
    pub(super) fn layer(&self, id: SegmentId, layer: usize) -> Result<&Pair, EngineError> {
        self.segment(id)?.layers.get(layer).ok_or(GONE)
    }

    pub(super) fn capacity(&self, id: SegmentId) -> usize {
        self.segment(id).map_or(0, |segment| segment.capacity)
    }

    /// Says whether a segment has one holder only.
    pub(super) fn is_sole(&self, id: SegmentId) -> bool {
        self.segment(id).is_ok_and(|segment| segment.holders == 1)
    }

    /// Leaves only the first `tokens` of a segment. After an error these are there still, and the attempt may be repeated.
    pub(super) fn shrink(&mut self, id: SegmentId, tokens: usize) -> Result<(), EngineError> {
        let Some(segment) = self.segments.get_mut(id).and_then(Option::as_mut) else { return Err(GONE) };
        if tokens >= segment.capacity {
            return Ok(());
        }
        for pair in &mut segment.layers {
            // After an attempt for which there was no memory, some are shorter already.
            if pair.len()? > tokens {
                *pair = self.form.make(|| pair.copied(tokens))?;
            }
        }
        self.taken = self.taken.saturating_sub(segment.capacity - tokens);
        segment.capacity = tokens;
        Ok(())
    }

    /// Leaves of every segment what is used of it.
    pub(super) fn shrink_all(&mut self, used: impl Fn(SegmentId) -> usize) -> Result<(), EngineError> {
        for id in 0..self.segments.len() {
            let used = used(id);
            if self.segments[id].is_some() && used > 0 {
                self.shrink(id, used)?;
            }
        }
        Ok(())
    }

    fn hold(&mut self, id: SegmentId) {
        if let Some(segment) = self.segments.get_mut(id).and_then(Option::as_mut) {
            segment.holders += 1;
        }
    }

    fn drop_hold(&mut self, id: SegmentId) {
        let Some(place) = self.segments.get_mut(id) else { return };
        if let Some(segment) = place {
            segment.holders -= 1;
            if segment.holders == 0 {
                self.taken = self.taken.saturating_sub(segment.capacity);
                *place = None;
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.taken = 0;
    }
}

/// Where the keys and values of a prompt lie: in segments that follow each other, of each of which so many positions.
///
/// A path holds its segments from [`shared`](Self::shared) or [`push`](Self::push) to [`release`](Self::release).
#[derive(Debug, Default)]
pub(super) struct Path(Vec<(SegmentId, usize)>);

impl Path {
    pub(super) fn parts(&self) -> &[(SegmentId, usize)] {
        &self.0
    }

    /// Returns the positions that there are.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|(_, len)| len).sum()
    }

    /// Returns the positions before the last segment.
    pub(super) fn before_last(&self) -> usize {
        self.len() - self.0.last().map_or(0, |(_, len)| *len)
    }

    /// Returns how much of a segment this uses.
    pub(super) fn used(&self, id: SegmentId) -> usize {
        self.0.iter().filter(|(of, _)| *of == id).map(|(_, len)| *len).max().unwrap_or(0)
    }

    /// Returns the first `len` positions of this; both hold the same segments then.
    pub(super) fn shared(&self, len: usize, memory: &mut Memory) -> Self {
        let (mut parts, mut left) = (Vec::new(), len);
        for (id, len) in &self.0 {
            if left == 0 {
                break;
            }
            memory.hold(*id);
            parts.push((*id, left.min(*len)));
            left -= left.min(*len);
        }
        Self(parts)
    }

    /// Appends a segment, which it holds from now on.
    pub(super) fn push(&mut self, id: SegmentId, len: usize) {
        self.0.push((id, len));
    }

    /// Leaves of the last segment what this uses, where nobody else holds it. Says whether that worked.
    pub(super) fn fit(&self, memory: &mut Memory) -> bool {
        match self.0.last() {
            Some((id, len)) if memory.is_sole(*id) => memory.shrink(*id, *len).is_ok(),
            _ => true,
        }
    }

    /// Leaves only the first `len` positions. Those beyond lie in the last segment.
    pub(super) fn truncate(&mut self, len: usize) {
        let before = self.before_last();
        if let Some((_, last)) = self.0.last_mut() {
            *last = len.saturating_sub(before);
        }
    }

    /// Gives up all segments.
    pub(super) fn release(&mut self, memory: &mut Memory) {
        for (id, _) in self.0.drain(..) {
            memory.drop_hold(id);
        }
    }

    /// Returns the keys and values of the first `len` positions in a layer, segment by segment.
    pub(super) fn layer(&self, memory: &Memory, layer: usize, len: usize) -> Result<Vec<Pair>, EngineError> {
        let (mut pairs, mut left) = (Vec::with_capacity(self.0.len()), len);
        for (id, len) in &self.0 {
            let n = left.min(*len);
            if n > 0 {
                pairs.push(memory.layer(*id, layer)?.first(n)?);
            }
            left -= n;
        }
        Ok(pairs)
    }
}
