//! The used values of a session that is in use.

use std::collections::VecDeque;

use super::{MAX_VALUES_PER_SESSION, NEIGHBOURHOOD};
use crate::AuthError;

/// What a session's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Clock readings.
    Clock,
    /// Clock readings with a hash of what else makes them unique, as one number: [`tagged`].
    Tagged,
    /// Counters.
    Counter,
}

impl Kind {
    /// Returns the part of a value that values are ordered by.
    pub(super) const fn order(self, value: i128) -> i128 {
        match self {
            Self::Tagged => value >> 64,
            Self::Clock | Self::Counter => value,
        }
    }
}

/// Makes one value of a clock reading and a tag. Readings beyond the year 2262 count as that year's.
pub(super) const fn tagged(order: i128, tag: u64) -> i128 {
    let order = if order > i64::MAX as i128 {
        i64::MAX as i128
    } else if order < i64::MIN as i128 {
        i64::MIN as i128
    } else {
        order
    };
    order << 64 | tag as i128
}

#[derive(Debug)]
pub(super) struct Session {
    /// Values of an order up to here count as used.
    pub(super) floor: Option<i128>,
    /// Used values above the floor, in order.
    used: VecDeque<i128>,
    /// Until when the session stays as it is, in nanoseconds since 1970.
    pub(super) keep_until: i128,
    /// Whether the session stands in the list of those to be saved, which a counter does once.
    pub(super) is_listed: bool,
    /// Whether the floor is on disk, as far as it must be.
    is_floor_saved: bool,
}

impl Session {
    pub(super) fn new(floor: Option<i128>, keep_until: i128) -> Self {
        Self { floor, used: VecDeque::with_capacity(1), keep_until, is_listed: false, is_floor_saved: false }
    }

    /// A session counts even when it holds a floor only.
    pub(super) fn n_entries(&self) -> usize {
        self.used.len().max(1)
    }

    /// Returns the highest order.
    pub(super) fn last(&self, kind: Kind) -> Option<i128> {
        self.used.back().map(|value| kind.order(*value)).max(self.floor)
    }

    pub(super) fn insert(&mut self, kind: Kind, value: i128, has_room: bool) -> Result<(), AuthError> {
        let at = self.used.partition_point(|used| *used < value);
        let is_used = self.used.get(at) == Some(&value);
        if is_used || self.is_below_floor(kind, value) || self.is_beside(kind, value, at) {
            return Err(AuthError::Replayed);
        }
        self.used.insert(at, value);
        if self.used.len() > MAX_VALUES_PER_SESSION || (!has_room && self.used.len() > 1) {
            self.drop_lowest(kind);
        }
        Ok(())
    }

    fn is_below_floor(&self, kind: Kind, value: i128) -> bool {
        self.floor.is_some_and(|floor| kind.order(value) <= floor)
    }

    /// Says whether a value that would stand at `at` is lower than the last one and next to a used one.
    fn is_beside(&self, kind: Kind, value: i128, at: usize) -> bool {
        if kind == Kind::Tagged || self.last(kind).is_none_or(|last| value >= last) {
            return false;
        }
        let is_near = |used: Option<&i128>| used.is_some_and(|used| used.abs_diff(value) <= NEIGHBOURHOOD);
        is_near(self.used.get(at)) || at.checked_sub(1).is_some_and(|below| is_near(self.used.get(below)))
    }

    /// Drops values of orders before `before`, but for the last.
    pub(super) fn prune(&mut self, kind: Kind, before: i128) {
        while self.used.len() > 1 && self.used.front().is_some_and(|value| kind.order(*value) < before) {
            self.drop_lowest(kind);
        }
    }

    fn drop_lowest(&mut self, kind: Kind) {
        if let Some(value) = self.used.pop_front() {
            self.floor = self.floor.max(Some(kind.order(value)));
            self.is_floor_saved = false;
        }
    }

    /// Takes a value that an earlier store accepted.
    pub(super) fn restore(&mut self, value: i128) {
        if let Err(at) = self.used.binary_search(&value) {
            self.used.insert(at, value);
        }
    }

    /// Says what of an accepted value must be saved.
    pub(super) fn unsaved(&mut self, kind: Kind, value: i128) -> Unsaved {
        match self.floor.filter(|_| self.is_below_floor(kind, value)) {
            None => Unsaved::Value,
            Some(_) if std::mem::replace(&mut self.is_floor_saved, true) => Unsaved::Nothing,
            Some(floor) => Unsaved::Floor(floor),
        }
    }
}

/// What must be saved of a value that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsaved {
    /// The value itself.
    Value,
    /// The floor, under which the value has fallen.
    Floor(i128),
    /// The floor has been saved already.
    Nothing,
}
