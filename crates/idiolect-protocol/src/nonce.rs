//! The bounded store of nonces that were used.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{AuthError, Nonce};

/// Used values that a session remembers one by one; anything at or below the lowest of them counts as used.
const MAX_VALUES_PER_SESSION: usize = 256;
/// A key may take up one part in this many of the store.
const KEY_SHARE: usize = 4;
/// Strangers may take up one part in this many of the store.
const STRANGER_SHARE: usize = 2;
/// How near below the last value a new one may not lie to any used one, in nanoseconds.
const NEIGHBOURHOOD: i128 = 16;
const NS_PER_S: i128 = 1_000_000_000;
/// The key of the record that holds [`Inner::refuse_before`] over a restart.
const REFUSE_BEFORE_KEY: &str = "*";
/// A limit that lies further ahead than this was set by a clock that was wrong, and does not count.
const MAX_CLOCK_STEP: i128 = 600 * NS_PER_S;

/// Remembers used nonces, within bounds. A full store refuses newcomers; it never forgets a live entry.
///
/// # What counts as used
/// Nonces belong to a session, the nonce's `key`. A session keeps its last 256 values one by one and a floor below
/// them: a value is new if it lies above the floor and is none of them. So calls of one client that overtake each other
/// pass, in any order, up to 256 of them, while no value ever passes twice. (Reference servers take growing values only
/// and refuse such calls.) One more rule is theirs: a value below the last one and within 16 ns of a used one is
/// refused, since no client signs twice in that time.
///
/// # Bounds
/// Windowed sessions are forgotten once every value in them is too old for the window; from then on everything that
/// old is refused, even if the clock is set back (by less than ten minutes). Counters never grow old, so their sessions stay. A session that
/// already exists is always served: when there is no room it forgets its lowest value and raises its floor instead.
/// New sessions are refused with [`AuthError::NonceStoreFull`] when the store is full, when one key (the text before
/// the first `:`) holds a quarter of it, and, for callers that the miner does not know, when it is half full.
///
/// # Restarts
/// [`take_unsaved`](Self::take_unsaved) gives what must be written to disk, [`restore`](Self::restore) reads it.
pub struct NonceStore {
    max_entries: usize,
    inner: Mutex<Inner>,
}

/// A used nonce in the form that is kept on disk.
///
/// `key` and `value` together are unique. Of a counter only the highest value matters; older records of the same key may
/// be overwritten or removed. Records whose `expires_ns` has passed may be removed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NonceRecord {
    /// The session.
    pub key: String,
    /// The value, in a form that [`NonceStore::restore`] reads.
    pub value: String,
    /// When the record loses its meaning, in nanoseconds since 1970; `None` for a counter, which never does.
    pub expires_ns: Option<i128>,
}

/// How a nonce is kept besides what it says itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keeping {
    /// The widest window that any claim may have: a nonce must be remembered for as long as *another* claim with it,
    /// with other unsigned parts, could pass the look at the clock.
    pub(crate) horizon: Duration,
    /// Whether the caller is somebody the miner knows.
    pub(crate) is_known: bool,
}

#[derive(Default)]
struct Inner {
    windowed: HashMap<Arc<str>, Session>,
    counters: HashMap<Arc<str>, Session>,
    /// Entries by key (the text before the first `:`).
    owners: HashMap<Box<str>, usize>,
    n_entries: usize,
    /// Windowed sessions by the second in which to look at them next. Each session stands in one bucket.
    buckets: BTreeMap<i128, Vec<Arc<str>>>,
    /// Windowed values before this are refused: what was known of them is forgotten, or was lost in a crash.
    refuse_before: Option<i128>,
    is_refuse_before_unsaved: bool,
    horizon: i128,
    unsaved: Vec<(Kind, Arc<str>)>,
    returned: Vec<NonceRecord>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Windowed,
    Counter,
}

/// A value's order (clock reading or counter), then what else makes it unique (mostly nothing).
type Value = (i128, Box<str>);

#[derive(Default)]
struct Session {
    /// Values up to here count as used.
    floor: Option<i128>,
    /// Used values above the floor, and whether they wait for being saved.
    used: BTreeMap<Value, bool>,
    keep_until: i128,
    /// Whether the session stands in `Inner::unsaved`.
    is_listed: bool,
    /// A value was dropped below the floor before it was saved.
    is_floor_unsaved: bool,
}

impl NonceStore {
    /// Makes an empty store for `max_entries` values and sessions.
    #[must_use]
    pub fn new(max_entries: usize) -> Self {
        Self { max_entries, inner: Mutex::default() }
    }

    /// Makes a store of what an earlier one gave to [`take_unsaved`](Self::take_unsaved), in any order.
    ///
    /// All records are taken, even more than `max_entries`. After an unclean stop the last records are missing: give
    /// the time of the start (or later) as `refuse_windowed_before_ns`, and clock readings before it are refused. What
    /// stays open then are the lost readings of clients whose clocks are ahead by more than the stop was long.
    #[must_use]
    pub fn restore(
        max_entries: usize,
        records: impl IntoIterator<Item = NonceRecord>,
        refuse_windowed_before_ns: Option<i128>,
    ) -> Self {
        let mut inner = Inner { refuse_before: refuse_windowed_before_ns, ..Inner::default() };
        for record in records {
            inner.restore(record);
        }
        inner.is_refuse_before_unsaved = inner.refuse_before.is_some();
        Self { max_entries, inner: Mutex::new(inner) }
    }

    /// Stores a nonce that was never used before, and remembers it for at least its own window.
    ///
    /// # Errors
    /// [`AuthError::Replayed`], [`AuthError::NonceStoreFull`].
    pub fn check_and_store(&self, nonce: &Nonce, now_ns: i128) -> Result<(), AuthError> {
        self.check_and_keep(nonce, now_ns, Keeping { horizon: Duration::ZERO, is_known: true })
    }

    pub(crate) fn check_and_keep(&self, nonce: &Nonce, now_ns: i128, keeping: Keeping) -> Result<(), AuthError> {
        let max_entries = match keeping.is_known {
            true => self.max_entries,
            false => self.max_entries / STRANGER_SHARE,
        };
        let mut inner = self.lock();
        inner.expire(now_ns);
        match nonce {
            Nonce::Windowed { key, value, at_ns, max_age, .. } => {
                let horizon = as_ns(keeping.horizon.max(*max_age)).max(inner.horizon);
                inner.horizon = horizon;
                let latest = now_ns.saturating_add(MAX_CLOCK_STEP);
                if inner.refuse_before.is_some_and(|before| *at_ns < before && before <= latest) {
                    return Err(AuthError::Replayed);
                }
                let is_plain = value.parse() == Ok(*at_ns);
                let id = if is_plain { "" } else { value.as_str() };
                inner.insert(Kind::Windowed, key, (*at_ns, id.into()), at_ns.saturating_add(horizon), max_entries)?;
                inner.prune(key, now_ns.saturating_sub(horizon));
                Ok(())
            }
            Nonce::Monotonic { key, value } => {
                inner.insert(Kind::Counter, key, (*value, Box::default()), i128::MAX, max_entries)
            }
        }
    }

    /// Takes what was stored since the last call and must be written to disk: one record a clock reading, the highest
    /// value of a counter.
    #[must_use]
    pub fn take_unsaved(&self) -> Vec<NonceRecord> {
        self.lock().take_unsaved()
    }

    /// Takes records back that could not be written; the next [`take_unsaved`](Self::take_unsaved) gives them again.
    pub fn return_unsaved(&self, records: Vec<NonceRecord>) {
        self.lock().returned.extend(records);
    }

    /// Returns how many values and sessions are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().n_entries
    }

    /// Says whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many values and sessions may be held.
    #[must_use]
    pub const fn max_entries(&self) -> usize {
        self.max_entries
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for NonceStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NonceStore")
            .field("max_entries", &self.max_entries)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn insert(
        &mut self,
        kind: Kind,
        key: &str,
        value: Value,
        keep_until: i128,
        max_entries: usize,
    ) -> Result<(), AuthError> {
        let sessions = match kind {
            Kind::Windowed => &mut self.windowed,
            Kind::Counter => &mut self.counters,
        };
        let n_owned = self.owners.get(owner(key)).copied().unwrap_or(0);
        let has_room = self.n_entries < max_entries && n_owned < (max_entries / KEY_SHARE).max(1);
        if let Some(session) = sessions.get_mut(key) {
            let n_before = session.n_entries();
            session.insert(value, has_room)?;
            session.keep_until = session.keep_until.max(keep_until);
            let n_after = session.n_entries();
            let was_listed = std::mem::replace(&mut session.is_listed, true);
            if let Some((key, _)) = sessions.get_key_value(key).filter(|_| !was_listed) {
                self.unsaved.push((kind, Arc::clone(key)));
            }
            self.count(key, n_before, n_after);
            return Ok(());
        }
        if !has_room {
            return Err(AuthError::NonceStoreFull);
        }
        let key: Arc<str> = key.into();
        let session =
            Session { used: BTreeMap::from([(value, true)]), keep_until, is_listed: true, ..Session::default() };
        sessions.insert(Arc::clone(&key), session);
        self.count(&key, 0, 1);
        if kind == Kind::Windowed {
            self.watch(Arc::clone(&key), keep_until);
        }
        self.unsaved.push((kind, key));
        Ok(())
    }

    /// Keeps the totals right after a session of `key` went from `n_before` to `n_after` entries.
    fn count(&mut self, key: &str, n_before: usize, n_after: usize) {
        if n_before == n_after {
            return;
        }
        self.n_entries = self.n_entries + n_after - n_before;
        match self.owners.get_mut(owner(key)) {
            Some(n) => {
                *n = *n + n_after - n_before;
                if *n == 0 {
                    self.owners.remove(owner(key));
                }
            }
            None => {
                self.owners.insert(owner(key).into(), n_after);
            }
        }
    }

    /// Drops a session's values before `before`, which no window reaches any more.
    fn prune(&mut self, key: &str, before: i128) {
        let Some(session) = self.windowed.get_mut(key) else { return };
        let n_before = session.n_entries();
        while session.used.len() > 1 && session.used.first_key_value().is_some_and(|((at, _), _)| *at < before) {
            session.drop_lowest();
        }
        let n_after = session.n_entries();
        self.count(key, n_before, n_after);
    }

    fn watch(&mut self, key: Arc<str>, until: i128) {
        self.buckets.entry(until.div_euclid(NS_PER_S).saturating_add(1)).or_default().push(key);
    }

    /// Forgets windowed sessions that are too old as a whole.
    fn expire(&mut self, now: i128) {
        while let Some(bucket) = self.buckets.first_entry() {
            if bucket.key().saturating_mul(NS_PER_S) > now {
                break;
            }
            for key in bucket.remove() {
                let Some(session) = self.windowed.get(&key) else { continue };
                let last = session.last().unwrap_or(i128::MIN);
                let keep_until = session.keep_until.max(last.saturating_add(self.horizon));
                if keep_until >= now {
                    self.watch(key, keep_until);
                    continue;
                }
                let n_before = session.n_entries();
                self.windowed.remove(&key);
                self.count(&key, n_before, 0);
                self.refuse_before = self.refuse_before.max(Some(last.saturating_add(1)));
                self.is_refuse_before_unsaved = true;
            }
        }
    }

    fn take_unsaved(&mut self) -> Vec<NonceRecord> {
        let mut records = std::mem::take(&mut self.returned);
        if std::mem::take(&mut self.is_refuse_before_unsaved)
            && let Some(before) = self.refuse_before
        {
            // Like a counter it only grows, and one record of it is enough.
            records.push(NonceRecord { key: REFUSE_BEFORE_KEY.into(), value: before.to_string(), expires_ns: None });
        }
        for (kind, key) in std::mem::take(&mut self.unsaved) {
            let session = match kind {
                Kind::Windowed => self.windowed.get_mut(&key),
                Kind::Counter => self.counters.get_mut(&key),
            };
            // A session that is gone needs no record any more.
            let Some(session) = session else { continue };
            session.is_listed = false;
            match kind {
                Kind::Windowed => session.take_unsaved(&key, &mut records),
                Kind::Counter => {
                    let value = session.last().unwrap_or(i128::MIN).to_string();
                    records.push(NonceRecord { key: key.as_ref().into(), value, expires_ns: None });
                }
            }
        }
        records
    }

    fn restore(&mut self, record: NonceRecord) {
        if record.key == REFUSE_BEFORE_KEY {
            self.refuse_before = self.refuse_before.max(record.value.parse().ok());
            return;
        }
        let key: Arc<str> = record.key.into();
        let Some(expires_ns) = record.expires_ns else {
            let Ok(value) = record.value.parse::<i128>() else { return };
            let session = self.counters.entry(Arc::clone(&key)).or_default();
            let is_new = session.floor.is_none();
            session.floor = session.floor.max(Some(value));
            self.count(&key, usize::from(!is_new), 1);
            return;
        };
        let (floor, value) = match record.value.strip_prefix("<=") {
            Some(floor) => (floor.parse().ok(), None),
            None => {
                let (at, id) = record.value.split_once(' ').unwrap_or((&record.value, ""));
                (None, at.parse().ok().map(|at: i128| (at, id.into())))
            }
        };
        if floor.is_none() && value.is_none() {
            return;
        }
        let is_new = !self.windowed.contains_key(&key);
        let session = self.windowed.entry(Arc::clone(&key)).or_default();
        let n_before = if is_new { 0 } else { session.n_entries() };
        session.floor = session.floor.max(floor);
        session.used.extend(value.map(|value| (value, false)));
        session.keep_until = session.keep_until.max(expires_ns);
        let n_after = session.n_entries();
        self.count(&key, n_before, n_after);
        if is_new {
            self.watch(key, expires_ns);
        }
    }
}

impl Session {
    /// A session counts even when it holds a floor only.
    fn n_entries(&self) -> usize {
        self.used.len().max(1)
    }

    fn last(&self) -> Option<i128> {
        self.used.last_key_value().map(|((order, _), _)| *order).max(self.floor)
    }

    fn insert(&mut self, value: Value, has_room: bool) -> Result<(), AuthError> {
        if self.floor.is_some_and(|floor| value.0 <= floor) || self.used.contains_key(&value) || self.is_beside(&value)
        {
            return Err(AuthError::Replayed);
        }
        self.used.insert(value, true);
        if self.used.len() > MAX_VALUES_PER_SESSION || (!has_room && self.used.len() > 1) {
            self.drop_lowest();
        }
        Ok(())
    }

    /// Says whether a value is lower than the last one and next to a used one.
    fn is_beside(&self, value: &Value) -> bool {
        let (order, id) = value;
        if !id.is_empty() || self.last().is_none_or(|last| *order >= last) {
            return false;
        }
        let low = (order.saturating_sub(NEIGHBOURHOOD), Box::default());
        let high = (order.saturating_add(NEIGHBOURHOOD), Box::default());
        self.used.range(low..=high).any(|((_, id), _)| id.is_empty())
    }

    fn drop_lowest(&mut self) {
        if let Some(((order, _), is_unsaved)) = self.used.pop_first() {
            self.floor = self.floor.max(Some(order));
            self.is_floor_unsaved |= is_unsaved;
        }
    }

    fn take_unsaved(&mut self, key: &str, records: &mut Vec<NonceRecord>) {
        let expires_ns = Some(self.keep_until);
        if std::mem::take(&mut self.is_floor_unsaved)
            && let Some(floor) = self.floor
        {
            records.push(NonceRecord { key: key.into(), value: format!("<={floor}"), expires_ns });
        }
        for ((order, id), is_unsaved) in &mut self.used {
            if std::mem::take(is_unsaved) {
                let value = if id.is_empty() { order.to_string() } else { format!("{order} {id}") };
                records.push(NonceRecord { key: key.into(), value, expires_ns });
            }
        }
    }
}

/// The part of a session's key that names the signer.
fn owner(key: &str) -> &str {
    key.split_once(':').map_or(key, |(owner, _)| owner)
}

fn as_ns(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests;
