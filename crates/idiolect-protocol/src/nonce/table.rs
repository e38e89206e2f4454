//! What the store holds, and how it forgets.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use super::key::{OwnerKey, SessionKey};
use super::session::{Kind, Session, Unsaved, tagged};
use super::{
    AHEAD, GREEDY_SHARE, KEY_SHARE, MAX_CLOCK_STEP, NS_PER_S, NonceRecord, REFUSE_BEFORE_KEY, REST, SESSION_LIMIT_KEY,
    SHED_EVERY,
};
use crate::AuthError;

/// A session and what its values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) key: SessionKey,
    pub(super) kind: Kind,
}

/// The floor of a counter that rests, as bytes: an `i128` would make each entry a third larger.
#[derive(Clone, Copy)]
struct Rested([u8; 16]);

impl Rested {
    const fn new(floor: i128) -> Self {
        Self(floor.to_ne_bytes())
    }

    const fn floor(self) -> i128 {
        i128::from_ne_bytes(self.0)
    }
}

/// What a resting counter takes in the table, besides a byte of the table's own.
const _: () = assert!(size_of::<(SessionKey, Rested)>() == 40);

#[derive(Default)]
struct Owner {
    n_entries: usize,
    /// Unknown counters that began up to here are refused: they may be ones that were forgotten.
    limit: Option<i64>,
}

/// Who asks for room, and how much there is.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) max_entries: usize,
    pub(super) is_known: bool,
}

#[derive(Default)]
pub(super) struct Table {
    active: HashMap<Place, Session>,
    /// Counters that have not been used for a while.
    rested: HashMap<SessionKey, Rested>,
    owners: HashMap<OwnerKey, Owner>,
    pub(super) n_entries: usize,
    /// Active sessions by the second in which to look at them next. Each stands in one bucket.
    buckets: BTreeMap<i128, Vec<Place>>,
    /// Windowed values before this are refused: what was known of them is forgotten, or was lost in a crash.
    pub(super) refuse_before: Option<i128>,
    /// As [`Owner::limit`], for everybody.
    limit: Option<i64>,
    pub(super) horizon: i128,
    pub(super) shed_at: Option<i128>,
    unsaved: Vec<(Place, i128)>,
    is_refuse_before_unsaved: bool,
    is_limit_unsaved: bool,
    unsaved_limits: HashSet<OwnerKey>,
    /// Counters that were forgotten, whose limits were not taken for saving yet, and those whose were.
    forgotten: Vec<SessionKey>,
    pub(super) removable: Vec<SessionKey>,
    pub(super) returned: Vec<NonceRecord>,
}

impl Table {
    pub(super) fn refuse_before(&mut self, before: Option<i128>) {
        self.refuse_before = self.refuse_before.max(before);
        self.is_refuse_before_unsaved = self.refuse_before.is_some();
    }

    /// Says whether windowed values of that time are refused as a whole.
    pub(super) fn is_before_start(&self, at_ns: i128, now: i128) -> bool {
        let latest = now.saturating_add(MAX_CLOCK_STEP);
        self.refuse_before.is_some_and(|before| at_ns < before && before <= latest)
    }

    pub(super) fn insert_windowed(
        &mut self,
        place: Place,
        value: i128,
        now: i128,
        room: Room,
    ) -> Result<(), AuthError> {
        let keep_until = place.kind.order(value).saturating_add(self.horizon);
        self.insert(place, value, keep_until, now, room)?;
        let before = now.saturating_sub(self.horizon);
        let Some(session) = self.active.get_mut(&place) else { return Ok(()) };
        let n_before = session.n_entries();
        session.prune(place.kind, before);
        let n_after = session.n_entries();
        self.count(place.key.owner, n_before, n_after);
        Ok(())
    }

    pub(super) fn insert_counter(
        &mut self,
        key: SessionKey,
        value: i128,
        now: i128,
        room: Room,
    ) -> Result<(), AuthError> {
        let place = Place { key, kind: Kind::Counter };
        let keep_until = now.saturating_add(REST);
        if let Some(floor) = self.rested.get(&key).map(|rested| rested.floor()) {
            if value <= floor {
                return Err(AuthError::Replayed);
            }
            // It is in use again, and stays as many entries as it was.
            self.rested.remove(&key);
            self.active.insert(place, Session::new(Some(floor), keep_until));
            self.watch(place, keep_until);
        } else if !self.active.contains_key(&place) {
            let created = key.created_ns();
            if i128::from(created) > now.max(0).saturating_add(AHEAD) {
                return Err(AuthError::TooFarAhead);
            }
            let limit = self.owners.get(&key.owner).and_then(|owner| owner.limit).max(self.limit);
            if limit.is_some_and(|limit| created <= limit) {
                return Err(AuthError::Replayed);
            }
        }
        self.insert(place, value, keep_until, now, room)
    }

    fn insert(&mut self, place: Place, value: i128, keep_until: i128, now: i128, room: Room) -> Result<(), AuthError> {
        let owner = place.key.owner;
        let has_room = self.has_room(owner, room);
        if let Some(session) = self.active.get_mut(&place) {
            let n_before = session.n_entries();
            session.insert(place.kind, value, has_room)?;
            session.keep_until = session.keep_until.max(keep_until);
            let n_after = session.n_entries();
            // Of a counter the highest value is saved, so it need not be listed twice.
            if place.kind != Kind::Counter || !std::mem::replace(&mut session.is_listed, true) {
                self.unsaved.push((place, value));
            }
            self.count(owner, n_before, n_after);
            return Ok(());
        }
        let has_room = has_room || (room.is_known && self.make_room(owner, now, room));
        if !has_room {
            return Err(AuthError::NonceStoreFull);
        }
        let mut session = Session::new(None, keep_until);
        session.insert(place.kind, value, true)?;
        session.is_listed = true;
        self.active.insert(place, session);
        self.count(owner, 0, 1);
        self.watch(place, keep_until);
        self.unsaved.push((place, value));
        Ok(())
    }

    fn has_room(&self, owner: OwnerKey, room: Room) -> bool {
        self.n_entries < room.max_entries && self.n_owned(owner) < share(room, KEY_SHARE)
    }

    fn n_owned(&self, owner: OwnerKey) -> usize {
        self.owners.get(&owner).map_or(0, |owner| owner.n_entries)
    }

    /// Keeps the totals right after a session of `owner` went from `n_before` to `n_after` entries.
    fn count(&mut self, owner: OwnerKey, n_before: usize, n_after: usize) {
        if n_before == n_after {
            return;
        }
        self.n_entries = self.n_entries + n_after - n_before;
        let entry = self.owners.entry(owner).or_default();
        entry.n_entries = entry.n_entries + n_after - n_before;
        if entry.n_entries == 0 && entry.limit <= self.limit {
            self.owners.remove(&owner);
        }
    }

    fn watch(&mut self, place: Place, until: i128) {
        self.buckets.entry(until.div_euclid(NS_PER_S).saturating_add(1)).or_default().push(place);
    }

    /// Forgets windowed sessions that are too old as a whole, and reduces counters that rest to their floor.
    pub(super) fn expire(&mut self, now: i128) {
        let n_before = self.active.len();
        while let Some(bucket) = self.buckets.first_entry() {
            if bucket.key().saturating_mul(NS_PER_S) > now {
                break;
            }
            for place in bucket.remove() {
                let Some(session) = self.active.get(&place) else { continue };
                let last = session.last(place.kind).unwrap_or(i128::MIN);
                let keep_until = match place.kind {
                    Kind::Counter => session.keep_until,
                    Kind::Clock | Kind::Tagged => session.keep_until.max(last.saturating_add(self.horizon)),
                };
                if keep_until >= now {
                    self.watch(place, keep_until);
                    continue;
                }
                let n_entries = session.n_entries();
                self.active.remove(&place);
                if place.kind == Kind::Counter {
                    self.rested.insert(place.key, Rested::new(last));
                    self.count(place.key.owner, n_entries, 1);
                } else {
                    self.count(place.key.owner, n_entries, 0);
                    self.refuse_before(Some(last.saturating_add(1)));
                }
            }
        }
        if self.active.len() < n_before {
            shrink(&mut self.active);
        }
    }

    /// Makes room for a new session of `owner` where that can be done without letting anything pass twice.
    fn make_room(&mut self, owner: OwnerKey, now: i128, room: Room) -> bool {
        let is_too_early = |at: i128| now >= at && now - at < SHED_EVERY;
        if self.shed_at.is_some_and(is_too_early) {
            return false;
        }
        self.shed_at = Some(now);
        if self.n_owned(owner) >= share(room, KEY_SHARE) {
            self.shed(Some(owner), now);
        } else {
            // Whoever fills the store pays for it; where nobody stands out, everybody does.
            let greediest = self.owners.iter().max_by_key(|(_, owner)| owner.n_entries);
            let greedy = greediest.filter(|(_, owner)| owner.n_entries >= share(room, GREEDY_SHARE).max(2));
            let greedy = greedy.map(|(owner, _)| *owner);
            self.shed(greedy, now);
        }
        self.has_room(owner, room)
    }

    /// Forgets the older half of the counters that rest, of one owner or of all, and refuses from now on every unknown
    /// session that began as early as the last of them.
    fn shed(&mut self, owner: Option<OwnerKey>, now: i128) {
        // Sessions from the future stay: the limit must not get there.
        let is_eligible =
            |key: &SessionKey| owner.is_none_or(|owner| owner == key.owner) && i128::from(key.created_ns()) <= now;
        let mut keys: Vec<SessionKey> = self.rested.keys().filter(|key| is_eligible(key)).copied().collect();
        let middle = keys.len() / 2;
        if middle >= keys.len() {
            return;
        }
        keys.select_nth_unstable_by_key(middle, |key| key.created_ns());
        keys.truncate(middle + 1);
        let limit = keys.last().map(|key| key.created_ns());
        match owner {
            Some(owner) => {
                let entry = self.owners.entry(owner).or_default();
                entry.limit = entry.limit.max(limit);
                self.unsaved_limits.insert(owner);
            }
            None => {
                self.limit = self.limit.max(limit);
                self.is_limit_unsaved = true;
            }
        }
        for key in &keys {
            self.rested.remove(key);
            self.count(key.owner, 1, 0);
        }
        shrink(&mut self.rested);
        self.forgotten.append(&mut keys);
    }

    pub(super) fn take_unsaved(&mut self) -> Vec<NonceRecord> {
        let mut records = std::mem::take(&mut self.returned);
        // Limits are like counters: they only grow, and one record of each is enough.
        let mut push_limit = |key: String, value: String| records.push(NonceRecord { key, value, expires_ns: None });
        if std::mem::take(&mut self.is_refuse_before_unsaved)
            && let Some(before) = self.refuse_before
        {
            push_limit(REFUSE_BEFORE_KEY.to_owned(), before.to_string());
        }
        if std::mem::take(&mut self.is_limit_unsaved)
            && let Some(limit) = self.limit
        {
            push_limit(SESSION_LIMIT_KEY.to_owned(), limit.to_string());
        }
        for owner in std::mem::take(&mut self.unsaved_limits) {
            if let Some(limit) = self.owners.get(&owner).and_then(|owner| owner.limit) {
                push_limit(limit_key(owner), limit.to_string());
            }
        }
        self.removable.append(&mut self.forgotten);
        let mut unsaved = std::mem::take(&mut self.unsaved);
        // The values of one session come together.
        unsaved.sort_by_key(|(place, _)| *place);
        for (place, value) in unsaved {
            records.extend(self.record(place, value));
        }
        records
    }

    /// Makes the record of an accepted value, unless it needs none any more.
    fn record(&mut self, place: Place, value: i128) -> Option<NonceRecord> {
        let Place { key, kind } = place;
        let session = self.active.get_mut(&place);
        if kind == Kind::Counter {
            let last = match session {
                Some(session) => {
                    session.is_listed = false;
                    session.last(kind)?
                }
                None => self.rested.get(&key)?.floor(),
            };
            return Some(NonceRecord { key: key.to_text(), value: last.to_string(), expires_ns: None });
        }
        let session = session?;
        let mark = if kind == Kind::Tagged { TAG } else { "" };
        let value = match session.unsaved(kind, value) {
            Unsaved::Nothing => return None,
            Unsaved::Floor(floor) => format!("<={floor}{mark}"),
            Unsaved::Value if kind == Kind::Tagged => {
                let [.., b0, b1, b2, b3, b4, b5, b6, b7] = value.to_be_bytes();
                format!("{}{TAG}{:016x}", kind.order(value), u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]))
            }
            Unsaved::Value => value.to_string(),
        };
        Some(NonceRecord { key: key.to_text(), value, expires_ns: Some(session.keep_until) })
    }

    pub(super) fn restore(&mut self, record: &NonceRecord) {
        let Some(expires_ns) = record.expires_ns else {
            let Ok(value) = record.value.parse::<i128>() else { return };
            match record.key.as_str() {
                REFUSE_BEFORE_KEY => self.refuse_before = self.refuse_before.max(Some(value)),
                SESSION_LIMIT_KEY => self.limit = self.limit.max(i64::try_from(value).ok()),
                key => match owner_of_limit(key) {
                    Some(owner) => {
                        let entry = self.owners.entry(owner).or_default();
                        entry.limit = entry.limit.max(i64::try_from(value).ok());
                    }
                    None => self.restore_counter(SessionKey::from_record(key), value),
                },
            }
            return;
        };
        let (text, tag) = match record.value.split_once(' ') {
            Some((text, tag)) => (text, Some(tag)),
            None => (record.value.as_str(), None),
        };
        let kind = if tag.is_some() { Kind::Tagged } else { Kind::Clock };
        let floor = text.strip_prefix("<=");
        let Ok(order) = floor.unwrap_or(text).parse::<i128>() else { return };
        let place = Place { key: SessionKey::from_record(&record.key), kind };
        let is_new = !self.active.contains_key(&place);
        let session = self.active.entry(place).or_insert_with(|| Session::new(None, expires_ns));
        let n_before = if is_new { 0 } else { session.n_entries() };
        session.keep_until = session.keep_until.max(expires_ns);
        match (floor, tag) {
            (Some(_), _) => session.floor = session.floor.max(Some(order)),
            (None, None) => session.restore(order),
            (None, Some(tag)) => session.restore(tagged(order, tag_from_record(tag))),
        }
        let n_after = session.n_entries();
        self.count(place.key.owner, n_before, n_after);
        if is_new {
            self.watch(place, expires_ns);
        }
    }

    fn restore_counter(&mut self, key: SessionKey, value: i128) {
        let known = self.rested.insert(key, Rested::new(value));
        match known {
            Some(known) if known.floor() > value => {
                self.rested.insert(key, known);
            }
            Some(_) => {}
            None => self.count(key.owner, 0, 1),
        }
    }
}

/// What stands between a clock reading and its tag in a record.
const TAG: &str = " #";

/// Reads a tag, or makes one of the text that earlier versions kept.
fn tag_from_record(text: &str) -> u64 {
    let digits = text.strip_prefix('#').and_then(|digits| u64::from_str_radix(digits, 16).ok());
    digits.unwrap_or_else(|| super::tag(text))
}

fn limit_key(owner: OwnerKey) -> String {
    format!("{owner:016x}*")
}

fn owner_of_limit(key: &str) -> Option<OwnerKey> {
    let digits = key.strip_suffix('*').filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// One part in `n` of the room, at least one entry.
fn share(room: Room, n: usize) -> usize {
    (room.max_entries / n).max(1)
}

/// Gives memory back once most of a table is empty.
fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if map.capacity() > map.len() * 4 + 1024 {
        map.shrink_to(map.len() * 2);
    }
}
