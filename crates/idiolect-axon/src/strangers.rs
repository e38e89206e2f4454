//! What strangers at one address may do: so many requests at a time, and so many failures.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use idiolect_protocol::Hotkey;

use crate::policy::Rate;

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

/// Failed proofs, and proofs of unknown keys that policy turns away (but for asking too often), by address.
///
/// A key that the miner knows has a count of its own at each address: whoever shares one with an attacker is not shut
/// out by what that attacker does under other names. All names at an address together have [`NAMES`] times as much, since
/// the keys that the miner knows are public. Success costs nothing.
///
/// # Who proved a key
/// A known key has a place at each of the last [`ADDRESSES`] addresses where it proved itself, and nobody can bring it there,
/// or away from there, without that key. There only the failures under its own name count, whatever happens under other
/// names or elsewhere. So a validator that calls from where it called before is shut out by nothing but failures under its
/// own name from its own address; and an address can take the work of what its places and all other names may fail, no more.
///
/// # When there is no room
/// The tables hold [`MAX_SOURCES`] each. Only an attack fails from more addresses within a second, and each forgery costs the
/// check of a signature. So all addresses without a place share two counts, one for unknown keys and one for names that
/// the miner knows. While one is over its limit, addresses without a place are not listened to under those names, honest
/// or not: to tell would take the very check that is to be saved. Who proved a key there does not take part in it. One that
/// moves, or calls for the first time, waits for the attack's end, and so does every validator until then if the miner
/// starts anew during one: what was proved is not kept on disk.
#[derive(Debug)]
pub(crate) struct Failures {
    limit: Option<Limit>,
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    /// What one failure takes, as time.
    interval: Duration,
    /// How much of that may lie ahead.
    burst: Duration,
}

/// When the last failure of each will be forgotten.
#[derive(Debug, Default)]
struct Counts {
    by_source: HashMap<Source, Instant>,
    /// Of all names at an address; behind by [`NAMES`] times.
    by_address: HashMap<IpAddr, Instant>,
    /// Of all unknown keys at addresses for which there was no room.
    others: Option<Instant>,
    /// Of all known names at addresses for which there was no room; behind by [`NAMES`] times.
    known_others: Option<Instant>,
    /// Where known keys proved themselves, the last first.
    proved_at: HashMap<Hotkey, Vec<Place>>,
    /// When it was last looked whom to forget.
    cleaned: Option<Instant>,
}

/// An address where a known key proved itself.
#[derive(Clone, Copy, Debug)]
struct Place {
    address: IpAddr,
    /// When the last failure under the key's name from there will be forgotten.
    clear_at: Option<Instant>,
}

/// An address, and the key it claims where that is a known one.
pub(crate) type Source = (IpAddr, Option<Hotkey>);

/// How many times the rate may come at once.
const BURST: u32 = 10;

/// The longest time that a rate may be of.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// How many times the failures of one name an address may have under all names.
const NAMES: u32 = 4;

/// Sources that are remembered at one time. Beyond, more addresses share their counts.
const MAX_SOURCES: usize = 8192;

/// How many addresses of a key are remembered: validators call from one, or from a few.
const ADDRESSES: usize = 3;

/// How often it is looked whom to forget, where there is no room.
const CLEAN_EVERY: Duration = Duration::from_secs(1);

impl Failures {
    pub(crate) fn new(rate: Option<Rate>) -> Self {
        let limit = rate.map(|Rate { requests, per }| {
            let per = per.min(LONGEST);
            Limit { interval: per / requests.get(), burst: per * BURST }
        });
        Self { limit, counts: Mutex::default() }
    }

    /// Says whether the source failed too often to be listened to now.
    pub(crate) fn is_over(&self, source: &Source, now: Instant) -> bool {
        let Some(Limit { burst, .. }) = self.limit else { return false };
        let counts = lock(&self.counts);
        let limit = now + burst;
        let is_late = |clear_at: Option<&Instant>| clear_at.is_some_and(|clear_at| *clear_at > limit);
        if let Some(place) = counts.place(source) {
            return is_late(place.clear_at.as_ref());
        }
        let own = counts.by_source.get(source).or(match source.1 {
            None if counts.by_source.len() >= MAX_SOURCES => counts.others.as_ref(),
            _ => None,
        });
        let of_address = counts.by_address.get(&source.0).or(match source.1 {
            Some(_) if counts.by_address.len() >= MAX_SOURCES => counts.known_others.as_ref(),
            _ => None,
        });
        is_late(own) || is_late(of_address)
    }

    /// Notes that a source proved its key.
    pub(crate) fn note_proof(&self, source: &Source) {
        let (address, Some(key)) = *source else { return };
        if self.limit.is_none() {
            return;
        }
        let Counts { proved_at, by_source, .. } = &mut *lock(&self.counts);
        // No subnet has so many keys; some of those that it once had may go.
        if proved_at.len() >= MAX_SOURCES
            && !proved_at.contains_key(&key)
            && let Some(any) = proved_at.keys().next().copied()
        {
            proved_at.remove(&any);
        }
        let places = proved_at.entry(key).or_default();
        let known = places.iter().position(|place| place.address == address).map(|at| places.remove(at));
        // Neither a proof here nor one elsewhere wipes out the failures before.
        places.insert(0, known.unwrap_or_else(|| Place { address, clear_at: by_source.remove(source) }));
        if places.len() > ADDRESSES
            && let Some(Place { address, clear_at: Some(clear_at) }) = places.pop()
            && let Some(count) = room(by_source, (address, Some(key)), clear_at)
        {
            *count = clear_at;
        }
    }

    /// Counts a failure, as so many.
    pub(crate) fn count(&self, source: Source, n: u32, now: Instant) {
        let Some(Limit { interval, .. }) = self.limit.filter(|_| n > 0) else { return };
        let mut counts = lock(&self.counts);
        if counts.by_source.len().max(counts.by_address.len()) >= MAX_SOURCES {
            counts.clean(now);
        }
        let later = |clear_at: Instant, interval: Duration| clear_at.max(now) + interval.saturating_mul(n);
        if let Some(place) = counts.place_mut(&source) {
            place.clear_at = Some(later(place.clear_at.unwrap_or(now), interval));
            return;
        }
        match room(&mut counts.by_address, source.0, now) {
            Some(clear_at) => *clear_at = later(*clear_at, interval / NAMES),
            None if source.1.is_some() => {
                counts.known_others = Some(later(counts.known_others.unwrap_or(now), interval / NAMES));
            }
            None => {}
        }
        match room(&mut counts.by_source, source, now) {
            Some(clear_at) => *clear_at = later(*clear_at, interval),
            None if source.1.is_none() => counts.others = Some(later(counts.others.unwrap_or(now), interval)),
            None => {}
        }
    }
}

impl Counts {
    /// Returns the source's place, where its key proved itself there.
    fn place(&self, (address, key): &Source) -> Option<&Place> {
        self.proved_at.get(key.as_ref()?)?.iter().find(|place| place.address == *address)
    }

    fn place_mut(&mut self, (address, key): &Source) -> Option<&mut Place> {
        self.proved_at.get_mut(key.as_ref()?)?.iter_mut().find(|place| place.address == *address)
    }

    /// Forgets those whose failures are long ago, at most once in a while: it looks at all of them.
    fn clean(&mut self, now: Instant) {
        if self.cleaned.is_some_and(|cleaned| now < cleaned + CLEAN_EVERY) {
            return;
        }
        self.cleaned = Some(now);
        self.by_source.retain(|_, clear_at| *clear_at > now);
        self.by_address.retain(|_, clear_at| *clear_at > now);
    }
}

/// Returns the count of one that has one, or for which there is room.
fn room<K: Eq + Hash>(counts: &mut HashMap<K, Instant>, key: K, now: Instant) -> Option<&mut Instant> {
    let is_full = counts.len() >= MAX_SOURCES;
    match counts.entry(key) {
        Entry::Occupied(entry) => Some(entry.into_mut()),
        Entry::Vacant(_) if is_full => None,
        Entry::Vacant(entry) => Some(entry.insert(now)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn per_second(n: u32) -> Option<Rate> {
        NonZeroU32::new(n).map(|requests| Rate { requests, per: Duration::from_secs(1) })
    }

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
        let failures = Failures::new(per_second(4));
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
    fn an_address_has_only_so_much_under_all_names() {
        let failures = Failures::new(per_second(4));
        let start = Instant::now();
        let mut n_listened_to = 0;
        // As many known names as there are bytes, each below its own limit.
        for _ in 0..BURST {
            for name in 0..=255 {
                let source = source(1, Some(name));
                if !failures.is_over(&source, start) {
                    failures.count(source, 1, start);
                    n_listened_to += 1;
                }
            }
        }
        assert_eq!(n_listened_to, NAMES * 4 * BURST + 1);
        assert!(failures.is_over(&source(1, None), start) && failures.is_over(&source(1, Some(7)), start));
        assert!(!failures.is_over(&source(2, Some(7)), start), "elsewhere the names are listened to");
    }

    #[test]
    fn the_table_is_bounded_and_can_be_switched_off() {
        let (failures, off) = (Failures::new(per_second(1)), Failures::new(None));
        let now = Instant::now();
        let most = u32::try_from(MAX_SOURCES).unwrap();
        for n in 0..2 * most {
            failures.count(source(n, None), 1, now);
            off.count(source(0, None), u32::MAX, now);
        }
        let sizes = |failures: &Failures| {
            let counts = lock(&failures.counts);
            (counts.by_source.len(), counts.by_address.len())
        };
        assert_eq!(sizes(&failures), (MAX_SOURCES, MAX_SOURCES));
        assert!(!off.is_over(&source(0, None), now));
        // Those without a place share one count, and by now that is over; known keys do not take part in it.
        assert!(failures.is_over(&source(2 * most, None), now) && !failures.is_over(&source(0, None), now));
        assert!(!failures.is_over(&source(2 * most, Some(1)), now));
        failures.count(source(u32::MAX, None), 1, now + Duration::from_secs(2));
        assert_eq!(sizes(&failures), (1, 1));
        assert!(!failures.is_over(&source(2 * most, None), now + Duration::from_secs(2)), "there is room again");
    }

    #[test]
    fn known_names_forged_from_ever_new_addresses_share_one_count_that_proved_callers_do_not_take_part_in() {
        let failures = Failures::new(per_second(4));
        let now = Instant::now();
        let most = u32::try_from(MAX_SOURCES).unwrap();
        let (validator, moved) = (source(u32::MAX, Some(1)), source(u32::MAX - 1, Some(1)));
        failures.note_proof(&validator);
        for n in 0..most {
            failures.count(source(n, None), 1, now);
        }
        // Both tables are full. Each forgery comes from another address, under names of the metagraph.
        let mut n_listened_to = 0;
        for n in most..2 * most {
            let forger = source(n, Some((n % 8) as u8));
            if !failures.is_over(&forger, now) {
                failures.count(forger, 1, now);
                n_listened_to += 1;
            }
        }
        assert_eq!(n_listened_to, NAMES * 4 * BURST + 1);
        assert!(!failures.is_over(&validator, now), "it called from there before");
        assert!(failures.is_over(&moved, now), "nobody can tell it from a forger without looking");
        assert!(!failures.is_over(&source(5, Some(1)), now), "an address with a place of its own is judged by itself");
        assert!(!failures.is_over(&source(3 * most, None), now), "unknown keys have a count of their own");
        // Who forges the validator's name where it calls from is still counted there, once there is room.
        let later = now + Duration::from_secs(60);
        failures.count(validator, 4 * BURST * NAMES + 1, later);
        assert!(failures.is_over(&validator, later));
        assert!(!failures.is_over(&moved, later), "the attack is over");
    }

    #[test]
    fn who_proved_a_key_is_not_shut_out_by_other_names_at_its_address() {
        let failures = Failures::new(per_second(4));
        let now = Instant::now();
        let (validator, newcomer) = (source(1, Some(1)), source(1, Some(2)));
        failures.note_proof(&validator);
        for name in 3..=255 {
            failures.count(source(1, Some(name)), 4 * BURST, now);
        }
        failures.count(source(1, None), 1000, now);
        assert!(failures.is_over(&newcomer, now), "its address has had its share");
        assert!(!failures.is_over(&validator, now));
        // Under its own name there is a limit as before, and what failed before the first proof counts.
        failures.count(validator, 4 * BURST + 1, now);
        assert!(failures.is_over(&validator, now));
        let other = source(2, Some(1));
        failures.count(other, 4 * BURST + 1, now);
        failures.note_proof(&other);
        assert!(failures.is_over(&other, now) && !failures.is_over(&other, now + Duration::from_millis(250)));
        for n in 3..=5 {
            failures.note_proof(&source(n, Some(1)));
        }
        assert!(failures.is_over(&other, now), "nor does it help to prove the key elsewhere");
    }

    #[test]
    fn where_keys_proved_themselves_is_remembered_for_so_many() {
        let failures = Failures::new(per_second(4));
        let key = |n: u32| {
            let mut bytes = [3; 32];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            Hotkey::from_bytes(bytes)
        };
        let address = source(1, None).0;
        for n in 0..2 * u32::try_from(MAX_SOURCES).unwrap() {
            failures.note_proof(&(address, Some(key(n))));
            failures.note_proof(&(address, None));
        }
        let last = key(2 * u32::try_from(MAX_SOURCES).unwrap() - 1);
        {
            let counts = lock(&failures.counts);
            assert_eq!(counts.proved_at.len(), MAX_SOURCES);
            assert!(counts.place(&(address, Some(last))).is_some());
        }
        // The last addresses of a key, in the order in which it was there.
        for n in [2, 3, 4, 2, 5] {
            failures.note_proof(&(source(n, None).0, Some(last)));
        }
        let counts = lock(&failures.counts);
        let places: Vec<IpAddr> = counts.proved_at[&last].iter().map(|place| place.address).collect();
        assert_eq!(places, [5, 2, 4].map(|n| source(n, None).0));
    }

    #[test]
    fn a_proved_address_without_room_elsewhere_has_a_count_of_its_own() {
        let failures = Failures::new(per_second(4));
        let now = Instant::now();
        let (first, second) = (source(u32::MAX, Some(1)), source(u32::MAX - 1, Some(1)));
        for place in [first, second] {
            failures.note_proof(&place);
        }
        for n in 0..u32::try_from(MAX_SOURCES).unwrap() {
            failures.count(source(n, None), 1, now);
        }
        // Somebody behind the validator's address forges its name.
        let mut n_listened_to = 0;
        while !failures.is_over(&first, now) {
            failures.count(first, 1, now);
            n_listened_to += 1;
            assert!(n_listened_to < 1000);
        }
        assert_eq!(n_listened_to, 4 * BURST + 1);
        failures.note_proof(&first);
        assert!(failures.is_over(&first, now), "a proof does not wipe out failures");
        assert!(!failures.is_over(&second, now), "the validator's other address is not concerned");
        assert!(!failures.is_over(&source(u32::MAX - 2, Some(2)), now), "nor are others under other names");
        assert!(!failures.is_over(&first, now + Duration::from_millis(250)), "it is forgotten as elsewhere");
    }
}
