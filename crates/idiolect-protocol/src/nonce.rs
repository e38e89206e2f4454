//! The bounded store of nonces that were used.

mod key;
mod session;
mod table;

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use self::key::SessionKey;
use self::session::{Kind, tagged};
use self::table::{Place, Room, Table};
use crate::{AuthError, Nonce};

/// Used values that a session remembers one by one; anything at or below the lowest of them counts as used.
const MAX_VALUES_PER_SESSION: usize = 256;
/// A key may take up one part in this many of the store.
const KEY_SHARE: usize = 4;
/// Strangers may take up one part in this many of the store.
const STRANGER_SHARE: usize = 2;
/// Where the store is full, a key that holds one part in this many of it is the first to lose old sessions.
const GREEDY_SHARE: usize = 64;
/// How near below the last value a new one may not lie to any used one, in nanoseconds.
const NEIGHBOURHOOD: u128 = 16;
const NS_PER_S: i128 = 1_000_000_000;
/// How long after its last value a counter remembers more than that one. Values are remembered one by one for calls that
/// overtake each other; no client waits this long for an answer, so no call arrives this late.
const REST: i128 = 300 * NS_PER_S;
/// How far ahead of our clock a new counter may say that it began: clocks are wrong by time zones, not by more.
const AHEAD: i128 = 24 * 3600 * NS_PER_S;
/// How often room may be looked for in a full store, which means a look at all of it.
const SHED_EVERY: i128 = NS_PER_S;
/// The key of the record that holds [`Table::refuse_before`] over a restart.
const REFUSE_BEFORE_KEY: &str = "*";
/// The key of the record that holds the limit under which every unknown counter is refused.
const SESSION_LIMIT_KEY: &str = "*sessions";
/// A limit that lies further ahead than this was set by a clock that was wrong, and does not count.
const MAX_CLOCK_STEP: i128 = 600 * NS_PER_S;

/// Remembers used nonces, within bounds. What it forgets it refuses from then on.
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
/// old is refused, even if the clock is set back (by less than ten minutes). Counters never grow old. One that has not been used for
/// five minutes is kept as one number, and everything up to it is refused for good. A session that
/// already exists is always served: when there is no room it forgets its lowest value and raises its floor instead.
///
/// New sessions are refused with [`AuthError::NonceStoreFull`] when the store is full, when one key (the text before
/// the first `:`) holds a quarter of it, and, for callers that the miner does not know, when it is half full. A caller
/// that it knows is not shut out for good by counters that nobody uses any more: the older half of those that
/// rest is forgotten (of the caller's own, where it has its quarter; else of the key that holds most; where none holds
/// much, of everybody's), and every unknown session that began no later than the last of them is refused with
/// [`AuthError::Replayed`] from then on. When a session began stands in its name, which the caller signs: Bittensor's
/// are UUIDs of version 1. Names without a time count as older than any. So a client that opens a session now is
/// served, a recorded request of a forgotten session is not, and a client that comes back after its session was
/// forgotten has to open another.
///
/// # Memory
/// A resting counter takes 41 bytes in a hash table, 47 to 94 with the table's empty places: a store of a million of them 90
/// MiB at most. A session in use takes 200 to 350 bytes with its first value, and 16 to 32 for each further one (21 with
/// 256 of them). `cargo run --release -p idiolect-protocol --example nonce_memory` measures it.
///
/// # Restarts
/// [`take_unsaved`](Self::take_unsaved) gives what must be written to disk, [`restore`](Self::restore) reads it.
pub struct NonceStore {
    max_entries: usize,
    table: Mutex<Table>,
}

/// A used nonce in the form that is kept on disk.
///
/// `key` and `value` together are unique. Of a counter only the highest value matters; older records of the same key may
/// be overwritten or removed. Records whose `expires_ns` has passed may be removed, and those of
/// [`NonceStore::take_forgotten`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NonceRecord {
    /// The session, as 48 hexadecimal digits, or the name of a limit, which ends in or begins with `*`. [`NonceStore::restore`] also
    /// reads the session's own name.
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

impl NonceStore {
    /// Makes an empty store for `max_entries` values and sessions.
    #[must_use]
    pub fn new(max_entries: usize) -> Self {
        Self { max_entries, table: Mutex::default() }
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
        let mut table = Table::default();
        for record in records {
            table.restore(&record);
        }
        table.refuse_before(refuse_windowed_before_ns);
        Self { max_entries, table: Mutex::new(table) }
    }

    /// Stores a nonce that was never used before, and remembers it for at least its own window.
    ///
    /// # Errors
    /// [`AuthError::Replayed`], [`AuthError::NonceStoreFull`], and [`AuthError::TooFarAhead`] for a counter whose
    /// session says that it began more than a day ahead of `now_ns`.
    pub fn check_and_store(&self, nonce: &Nonce, now_ns: i128) -> Result<(), AuthError> {
        self.check_and_keep(nonce, now_ns, Keeping { horizon: Duration::ZERO, is_known: true })
    }

    pub(crate) fn check_and_keep(&self, nonce: &Nonce, now_ns: i128, keeping: Keeping) -> Result<(), AuthError> {
        let max_entries = match keeping.is_known {
            true => self.max_entries,
            false => self.max_entries / STRANGER_SHARE,
        };
        let room = Room { max_entries, is_known: keeping.is_known };
        match nonce {
            Nonce::Windowed { key, value, at_ns, max_age, .. } => {
                let is_plain = value.parse() == Ok(*at_ns);
                let (kind, value) = match is_plain {
                    true => (Kind::Clock, *at_ns),
                    false => (Kind::Tagged, tagged(*at_ns, tag(value))),
                };
                let place = Place { key: SessionKey::new(key), kind };
                let mut table = self.lock();
                table.expire(now_ns);
                table.horizon = table.horizon.max(as_ns(keeping.horizon.max(*max_age)));
                if table.is_before_start(*at_ns, now_ns) {
                    return Err(AuthError::Replayed);
                }
                table.insert_windowed(place, value, now_ns, room)
            }
            Nonce::Monotonic { key, value } => {
                let key = SessionKey::new(key);
                let mut table = self.lock();
                table.expire(now_ns);
                table.insert_counter(key, *value, now_ns, room)
            }
        }
    }

    /// Takes what was stored since the last call and must be written to disk: one record a clock reading, the highest
    /// value of a counter. The records of one session come one after the other.
    #[must_use]
    pub fn take_unsaved(&self) -> Vec<NonceRecord> {
        self.lock().take_unsaved()
    }

    /// Takes records back that could not be written; the next [`take_unsaved`](Self::take_unsaved) gives them again.
    pub fn return_unsaved(&self, records: Vec<NonceRecord>) {
        self.lock().returned.extend(records);
    }

    /// Takes the keys of counters that were forgotten, whose records may be removed from disk.
    ///
    /// Call it only after everything that [`take_unsaved`](Self::take_unsaved) gave has been written: among it are the
    /// limits that refuse these sessions. Records that are never removed do no harm; their sessions come back with the next
    /// [`restore`](Self::restore) and take up room.
    #[must_use]
    pub fn take_forgotten(&self) -> Vec<String> {
        let removable = std::mem::take(&mut self.lock().removable);
        removable.into_iter().map(SessionKey::to_text).collect()
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

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Nothing in there panics half-way through a change.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Makes a number of what sets two nonces of one clock reading apart. Should two texts ever give the same, the second is refused.
fn tag(text: &str) -> u64 {
    Sha256::digest(text.as_bytes()).iter().take(8).fold(0, |tag, byte| tag << 8 | u64::from(*byte))
}

fn as_ns(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests;
