//! What strangers at one address may do: so many requests at a time, and so many failures.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use idiolect_protocol::Hotkey;

/// Requests in hand, by address, whose callers have not proved a key that policy lets in.
#[derive(Debug)]
pub(crate) struct Strangers {
    max: usize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

impl Strangers {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, by_address: Mutex::default() }
    }

    /// Counts a request in; `false` where the address has its share already.
    pub(crate) fn enter(&self, address: IpAddr) -> bool {
        let mut by_address = lock(&self.by_address);
        let n = by_address.entry(address).or_default();
        let has_room = *n < self.max;
        *n += usize::from(has_room);
        has_room
    }

    pub(crate) fn leave(&self, address: IpAddr) {
        let mut by_address = lock(&self.by_address);
        if let Some(n) = by_address.get_mut(&address) {
            *n -= 1;
            if *n == 0 {
                by_address.remove(&address);
            }
        }
    }
}

/// Failed proofs, and proofs of unknown keys that policy turns away, by address.
///
/// A key that the miner knows has a count of its own at each address: whoever shares one with an attacker is not shut
/// out by what that attacker does under other names. Success costs nothing.
#[derive(Debug)]
pub(crate) struct Failures {
    /// What one failure takes, as time; `None` is without limit.
    interval: Option<Duration>,
    /// When the last failure will be forgotten.
    clear_at: Mutex<HashMap<Source, Instant>>,
}

/// An address, and the key it claims where that is a known one.
pub(crate) type Source = (IpAddr, Option<Hotkey>);

/// How many seconds of failures may come at once.
const BURST: u32 = 10;

/// Sources that are remembered at one time. Beyond, more sources are not counted until others are forgotten.
const MAX_SOURCES: usize = 8192;

impl Failures {
    pub(crate) fn new(per_second: u32) -> Self {
        let interval = NonZeroU32::new(per_second).map(|n| Duration::from_secs(1) / n.get());
        Self { interval, clear_at: Mutex::default() }
    }

    /// Says whether the source failed too often to be listened to now.
    pub(crate) fn is_over(&self, source: &Source, now: Instant) -> bool {
        self.interval.is_some()
            && lock(&self.clear_at)
                .get(source)
                .is_some_and(|clear_at| *clear_at > now + Duration::from_secs(BURST.into()))
    }

    /// Counts a failure, as so many.
    pub(crate) fn count(&self, source: Source, n: u32, now: Instant) {
        let Some(interval) = self.interval.filter(|_| n > 0) else { return };
        let mut clear_at = lock(&self.clear_at);
        if clear_at.len() >= MAX_SOURCES && !clear_at.contains_key(&source) {
            clear_at.retain(|_, clear_at| *clear_at > now);
            if clear_at.len() >= MAX_SOURCES {
                return;
            }
        }
        let entry = clear_at.entry(source).or_insert(now);
        *entry = (*entry).max(now) + interval * n;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u32, key: Option<u8>) -> Source {
        (IpAddr::from(n.to_be_bytes()), key.map(|byte| Hotkey::from_bytes([byte; 32])))
    }

    #[test]
    fn an_address_has_its_share_and_no_more() {
        let strangers = Strangers::new(2);
        let (one, other) = (source(1, None).0, source(2, None).0);
        assert!(strangers.enter(one) && strangers.enter(one));
        assert!(!strangers.enter(one) && strangers.enter(other));
        strangers.leave(one);
        assert!(strangers.enter(one));
        for address in [one, one, other] {
            strangers.leave(address);
        }
        assert!(lock(&strangers.by_address).is_empty());
    }

    #[test]
    fn failures_add_up_and_are_forgotten() {
        let failures = Failures::new(4);
        let start = Instant::now();
        let attacker = source(1, None);
        for _ in 0..=4 * BURST {
            assert!(!failures.is_over(&attacker, start));
            failures.count(attacker, 1, start);
        }
        assert!(failures.is_over(&attacker, start));
        // A known key at the same address, and other addresses, are listened to.
        assert!(!failures.is_over(&source(1, Some(7)), start));
        assert!(!failures.is_over(&source(2, None), start));
        assert!(!failures.is_over(&attacker, start + Duration::from_millis(250)));
        failures.count(attacker, 1, start + Duration::from_millis(250));
        assert!(failures.is_over(&attacker, start + Duration::from_millis(250)));
        // One that cost as much as all of them.
        failures.count(source(3, None), 4 * BURST + 1, start);
        assert!(failures.is_over(&source(3, None), start));
    }

    #[test]
    fn the_table_is_bounded_and_can_be_switched_off() {
        let (failures, off) = (Failures::new(1), Failures::new(0));
        let now = Instant::now();
        for n in 0..2 * u32::try_from(MAX_SOURCES).unwrap() {
            failures.count(source(n, None), 1, now);
            off.count(source(0, None), u32::MAX, now);
        }
        assert_eq!(lock(&failures.clear_at).len(), MAX_SOURCES);
        assert!(!off.is_over(&source(0, None), now));
        failures.count(source(u32::MAX, None), 1, now + Duration::from_secs(2));
        assert_eq!(lock(&failures.clear_at).len(), 1);
    }
}
