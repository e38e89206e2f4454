//! So many things by key, those that were used last.

use std::collections::{BTreeMap, HashMap};

/// Values by key. Where there is no room for a new one, the one goes that was not used for longest.
pub(super) struct Recent<V> {
    capacity: usize,
    /// Each with the moment of its last use.
    values: HashMap<[u8; 32], (u64, V)>,
    by_use: BTreeMap<u64, [u8; 32]>,
    /// Counts uses.
    now: u64,
}

impl<V> Recent<V> {
    /// Makes room for `capacity` values, at least one.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), values: HashMap::new(), by_use: BTreeMap::new(), now: 0 }
    }

    /// Looks at a value, which is no use of it.
    pub(super) fn peek(&self, key: &[u8; 32]) -> Option<&V> {
        self.values.get(key).map(|(_, value)| value)
    }

    /// Uses a value.
    pub(super) fn get(&mut self, key: &[u8; 32]) -> Option<&mut V> {
        let (used, value) = self.values.get_mut(key)?;
        self.by_use.remove(used);
        self.now += 1;
        *used = self.now;
        self.by_use.insert(self.now, *key);
        Some(value)
    }

    /// Uses a value, which is made where it is missing.
    pub(super) fn get_or_insert_with(&mut self, key: &[u8; 32], make: impl FnOnce() -> V) -> &mut V {
        if let Some((used, _)) = self.values.get(key) {
            self.by_use.remove(used);
        } else if self.values.len() >= self.capacity
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.values.remove(&oldest);
        }
        self.now += 1;
        self.by_use.insert(self.now, *key);
        let entry = self.values.entry(*key).or_insert_with(|| (0, make()));
        entry.0 = self.now;
        &mut entry.1
    }

    /// Uses a key for this value.
    pub(super) fn insert(&mut self, key: &[u8; 32], value: V) {
        self.remove(key);
        self.get_or_insert_with(key, || value);
    }

    /// Forgets a key.
    pub(super) fn remove(&mut self, key: &[u8; 32]) {
        if let Some((used, _)) = self.values.remove(key) {
            self.by_use.remove(&used);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert_eq!(self.values.len(), self.by_use.len());
        self.values.len()
    }
}
