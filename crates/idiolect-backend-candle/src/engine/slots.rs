//! What an engine holds of each sequence, by number.

use super::{EngineError, Seq};

/// Values with numbers that are given out again once a value is gone.
#[derive(Debug)]
pub(super) struct Slots<T>(Vec<Option<T>>);

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Slots<T> {
    /// Takes a value in.
    pub(super) fn add(&mut self, value: T) -> Result<Seq, EngineError> {
        let place = self.0.iter().position(Option::is_none).unwrap_or(self.0.len());
        let seq = Seq(u32::try_from(place).map_err(|_| EngineError::Misuse("there are too many sequences"))?);
        match self.0.get_mut(place) {
            Some(slot) => *slot = Some(value),
            None => self.0.push(Some(value)),
        }
        Ok(seq)
    }

    /// Returns a sequence's value.
    pub(super) fn get(&self, seq: Seq) -> Result<&T, EngineError> {
        self.0.get(seq.0 as usize).and_then(Option::as_ref).ok_or(MISSING)
    }

    /// Returns a sequence's value to be changed.
    pub(super) fn get_mut(&mut self, seq: Seq) -> Result<&mut T, EngineError> {
        self.0.get_mut(seq.0 as usize).and_then(Option::as_mut).ok_or(MISSING)
    }

    /// Gives a sequence's value up.
    pub(super) fn remove(&mut self, seq: Seq) -> Option<T> {
        self.0.get_mut(seq.0 as usize).and_then(Option::take)
    }

    /// Returns the values of all sequences.
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }

    /// Gives up everything.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

const MISSING: EngineError = EngineError::Misuse("there is no such sequence");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_given_out_again() {
        let mut slots = Slots::default();
        let (a, b) = (slots.add('a').unwrap(), slots.add('b').unwrap());
        assert_eq!((slots.get(a).unwrap(), slots.get(b).unwrap()), (&'a', &'b'));
        assert_eq!(slots.remove(a), Some('a'));
        assert_eq!(slots.remove(a), None);
        assert!(slots.get(a).is_err() && slots.get_mut(a).is_err());
        assert_eq!(slots.add('c').unwrap(), a);
        *slots.get_mut(b).unwrap() = 'd';
        assert_eq!(slots.values().collect::<String>(), "cd");
        slots.clear();
        assert!(slots.get(b).is_err());
    }
}
