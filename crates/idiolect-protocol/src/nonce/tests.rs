use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const S: i128 = NS_PER_S;

fn windowed(key: &str, at_ns: i128) -> Nonce {
    let (max_age, max_ahead) = (Duration::from_secs(16), Duration::from_secs(60));
    Nonce::Windowed { key: key.into(), value: at_ns.to_string(), at_ns, max_age, max_ahead }
}

fn counter(key: &str, value: i128) -> Nonce {
    Nonce::Monotonic { key: key.into(), value }
}

fn is_new(store: &NonceStore, nonce: &Nonce, now: i128) -> bool {
    match store.check_and_store(nonce, now) {
        Ok(()) => true,
        Err(AuthError::Replayed) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn no_value_passes_twice_but_late_calls_pass_once() {
    for nonce in [windowed as fn(&str, i128) -> Nonce, counter] {
        let store = NonceStore::new(1000);
        let check =
            |value: i128, expected: bool| assert_eq!(is_new(&store, &nonce("a:1", value), 0), expected, "{value}");
        check(5_000, true);
        check(5_000, false);
        check(9_000, true);
        check(7_000, true);
        check(7_000, false);
        // Above the last value any step will do; below it, next to a used one is refused as reference servers do.
        check(9_001, true);
        check(6_999, false);
        check(7_001, false);
        check(1, true);
        assert!(is_new(&store, &nonce("a:2", 5_000), 0), "another session");
        assert!(is_new(&store, &nonce("b:1", 5_000), 0), "another key");
    }
}

#[test]
fn huge_and_negative_counters_pass_once() {
    let store = NonceStore::new(1000);
    for value in [i128::MIN, -7, 0, 10_i128.pow(30), i128::MAX] {
        assert!(is_new(&store, &counter("a:1", value), 0), "{value}");
        assert!(!is_new(&store, &counter("a:1", value), 0), "{value}");
    }
}

#[test]
fn values_of_one_clock_reading_with_other_ids_stay_apart() {
    let store = NonceStore::new(1000);
    let nonce = |id: &str| Nonce::Windowed {
        key: "a".into(),
        value: format!("{id}.7"),
        at_ns: 7,
        max_age: Duration::from_secs(8),
        max_ahead: Duration::ZERO,
    };
    assert!(is_new(&store, &nonce("x"), 7));
    assert!(is_new(&store, &nonce("y"), 7));
    assert!(!is_new(&store, &nonce("x"), 7));
    let restored = NonceStore::restore(1000, store.take_unsaved(), None);
    assert!(!is_new(&restored, &nonce("x"), 7));
    assert!(!is_new(&restored, &nonce("y"), 7));
    assert!(is_new(&restored, &nonce("z"), 7));
}

#[test]
fn a_session_keeps_256_values_and_refuses_everything_below() {
    let store = NonceStore::new(10_000);
    for value in 0..1000 {
        assert!(is_new(&store, &counter("a:1", value * 100), 0));
    }
    assert_eq!(store.len(), 256);
    assert!(!is_new(&store, &counter("a:1", 74_250), 0), "below the floor, though never seen");
    assert!(is_new(&store, &counter("a:1", 74_450), 0));
}

#[test]
fn windowed_sessions_are_forgotten_when_too_old_and_never_come_back() {
    let store = NonceStore::new(1000);
    assert!(is_new(&store, &windowed("a:1", 100 * S), 100 * S));
    assert!(is_new(&store, &windowed("b:1", 110 * S), 110 * S));
    assert_eq!(store.len(), 2);
    assert!(is_new(&store, &windowed("c:1", 120 * S), 120 * S));
    assert_eq!(store.len(), 2, "a:1 is too old by now");
    // The clock is set back: the forgotten value is still refused.
    assert!(!is_new(&store, &windowed("a:1", 100 * S), 100 * S));
    assert!(is_new(&store, &windowed("a:1", 101 * S), 101 * S));
}

#[test]
fn old_values_of_a_living_session_make_room() {
    let store = NonceStore::new(1000);
    for i in 0..200 {
        assert!(is_new(&store, &windowed("a:1", i * S), i * S));
    }
    assert!(store.len() <= 18, "{}", store.len());
}

#[test]
fn an_entry_outlives_the_window_that_another_claim_with_it_could_have() {
    let store = NonceStore::new(1000);
    let keeping = Keeping { horizon: Duration::from_secs(64), is_known: true };
    store.check_and_keep(&windowed("a:1", 100 * S), 100 * S, keeping).unwrap();
    // The same request 60 s later with a timeout header that was raised.
    let raised = Nonce::Windowed {
        key: "a:1".into(),
        value: (100 * S).to_string(),
        at_ns: 100 * S,
        max_age: Duration::from_secs(64),
        max_ahead: Duration::ZERO,
    };
    assert_eq!(store.check_and_keep(&raised, 160 * S, keeping), Err(AuthError::Replayed));
}

#[test]
fn a_full_store_refuses_newcomers_and_still_knows_and_serves_everybody_in_it() {
    let store = NonceStore::new(40);
    for i in 0..40 {
        assert!(is_new(&store, &counter(&format!("key{}:{i}", i % 8), 1000), 0));
    }
    assert_eq!(store.check_and_store(&counter("new:1", 5), 0), Err(AuthError::NonceStoreFull));
    for i in 0..40 {
        let key = format!("key{}:{i}", i % 8);
        assert!(!is_new(&store, &counter(&key, 1000), 0));
        assert!(is_new(&store, &counter(&key, 2000), 0));
        assert!(!is_new(&store, &counter(&key, 1000), 0));
        assert!(!is_new(&store, &counter(&key, 2000), 0));
    }
    assert_eq!(store.len(), 40);
}

#[test]
fn one_key_gets_a_quarter_and_strangers_half() {
    let store = NonceStore::new(40);
    let n_taken = (0..40).filter(|i| store.check_and_store(&counter(&format!("greedy:{i}"), 1), 0).is_ok()).count();
    assert_eq!(n_taken, 10);
    let stranger = Keeping { horizon: Duration::ZERO, is_known: false };
    let n_taken =
        (0..40).filter(|i| store.check_and_keep(&counter(&format!("key{i}:1"), 1), 0, stranger).is_ok()).count();
    assert_eq!(n_taken, 10);
    assert!(is_new(&store, &counter("friend:1", 1), 0));
}

#[test]
fn a_clean_restart_remembers_everything() {
    let store = NonceStore::new(1000);
    for i in 5..20 {
        assert!(is_new(&store, &windowed("a:1", i * S), 20 * S));
        assert!(is_new(&store, &counter("b:1", i * 100), 20 * S));
    }
    let records = store.take_unsaved();
    assert_eq!(records.len(), 16);
    assert!(store.take_unsaved().is_empty());
    store.return_unsaved(records.clone());
    assert_eq!(store.take_unsaved(), records);
    let restored = NonceStore::restore(1000, records, None);
    for i in 5..20 {
        assert!(!is_new(&restored, &windowed("a:1", i * S), 20 * S));
        assert!(!is_new(&restored, &counter("b:1", i * 100), 20 * S));
    }
    assert!(is_new(&restored, &windowed("a:1", 20 * S), 20 * S));
    assert!(is_new(&restored, &counter("b:1", 2000), 20 * S));
}

#[test]
fn values_that_left_the_session_before_they_were_saved_stay_refused_after_a_restart() {
    let store = NonceStore::new(10_000);
    for i in 0..1000 {
        assert!(is_new(&store, &windowed("a:1", i * 1_000_000), S));
    }
    let restored = NonceStore::restore(10_000, store.take_unsaved(), None);
    for i in 0..1000 {
        assert!(!is_new(&restored, &windowed("a:1", i * 1_000_000), S));
    }
}

#[test]
fn after_an_unclean_stop_older_clock_readings_are_refused() {
    let restored = NonceStore::restore(1000, [], Some(100 * S));
    assert!(!is_new(&restored, &windowed("a:1", 100 * S - 1), 101 * S));
    assert!(is_new(&restored, &windowed("a:1", 100 * S), 101 * S));
    assert!(is_new(&restored, &counter("a:1", 5), 101 * S), "counters have no date");
    let record = NonceRecord { key: REFUSE_BEFORE_KEY.into(), value: (5000 * S).to_string(), expires_ns: None };
    let restored_wrong = NonceStore::restore(1000, [record], None);
    assert!(is_new(&restored_wrong, &windowed("b:1", 100 * S), 101 * S), "a limit of a wrong clock does not count");
    // A clean restart right after it does not open the gap again.
    let restored = NonceStore::restore(1000, restored.take_unsaved(), None);
    assert!(!is_new(&restored, &windowed("b:1", 100 * S - 1), 101 * S));
}

#[test]
fn broken_records_are_passed_over() {
    let record = |value: &str, expires_ns| NonceRecord { key: "a:1".into(), value: value.into(), expires_ns };
    let records = ["", "x", "<=", "<=x", " 1"].map(|value| [record(value, None), record(value, Some(5))]);
    assert!(NonceStore::restore(10, records.into_iter().flatten(), None).is_empty());
}

/// A session of version 1 that began at so many nanoseconds since 1970; sessions of one time differ by their clock sequence.
fn timed(owner: &str, began_ns: i128, sequence: u16) -> String {
    let ticks = u64::try_from(began_ns / 100).unwrap() + 0x01b2_1dd2_1381_4000;
    let (low, mid, high) = (ticks & 0xffff_ffff, ticks >> 32 & 0xffff, ticks >> 48 & 0xfff);
    format!("{owner}:{low:08x}-{mid:04x}-1{high:03x}-{:04x}-02fc00000001", 0x8000 | sequence & 0x3fff)
}

const MINUTE: i128 = 60 * S;
const DAY: i128 = 24 * 3600 * S;
const NOW: i128 = 1_795_335_808 * S;

#[test]
fn a_counter_that_rests_is_one_value_and_everything_up_to_it_is_used() {
    let store = NonceStore::new(10_000);
    for value in 0..200 {
        assert!(is_new(&store, &counter("a:1", value * 1000), NOW));
    }
    assert_eq!(store.len(), 200);
    assert!(is_new(&store, &counter("a:1", 150_500), NOW + REST), "still in use, so late calls pass");
    assert!(is_new(&store, &counter("b:1", 1), NOW + REST + 2 * MINUTE));
    assert_eq!(store.len(), 202, "it was used less than five minutes ago");
    assert!(is_new(&store, &counter("b:1", 2), NOW + 2 * REST + S));
    assert_eq!(store.len(), 3, "a:1 is its floor now");
    for value in [0, 7, 150_500, 198_500, 199_000] {
        assert!(!is_new(&store, &counter("a:1", value), NOW + 2 * REST + S), "{value}");
    }
    assert!(is_new(&store, &counter("a:1", 201_000), NOW + 2 * REST + S), "it goes on above");
    assert!(is_new(&store, &counter("a:1", 200_000), NOW + 2 * REST + S), "and late calls pass again");
    assert_eq!(store.len(), 4);
}

#[test]
fn a_counter_that_rested_before_it_was_saved_is_saved() {
    let store = NonceStore::new(1000);
    for value in [5_000, 9_000, 7_000] {
        assert!(is_new(&store, &counter("a:1", value), NOW));
    }
    assert!(is_new(&store, &counter("b:1", 1), NOW + 2 * REST));
    let restored = NonceStore::restore(1000, store.take_unsaved(), None);
    for value in [5_000, 7_000, 8_000, 9_000] {
        assert!(!is_new(&restored, &counter("a:1", value), NOW + 2 * REST));
    }
    assert!(is_new(&restored, &counter("a:1", 9_500), NOW + 2 * REST));
}

#[test]
fn a_client_that_opens_sessions_for_ever_is_never_shut_out_and_none_of_them_comes_back() {
    let store = NonceStore::new(4000);
    let mut disk = std::collections::HashMap::new();
    let mut now = NOW;
    let mut sessions: Vec<String> = Vec::new();
    // A load tool: 64 new sessions a round, each used a few times. One session is used all along.
    let faithful = timed("a", NOW - DAY, 0);
    for round in 0..100 {
        now += 6 * MINUTE;
        assert!(is_new(&store, &counter(&faithful, round * 1000), now), "round {round}");
        for n in 0..64 {
            let session = timed("a", now, n);
            for value in [1_000, 3_000, 2_000] {
                assert!(is_new(&store, &counter(&session, value), now), "round {round}, session {n}");
            }
            sessions.push(session);
        }
        assert!(store.len() <= 1000 + 64 * 3, "{}", store.len());
        disk.extend(store.take_unsaved().into_iter().map(|record| (record.key.clone(), record)));
        for key in store.take_forgotten() {
            disk.remove(&key);
        }
    }
    assert!(disk.len() <= store.len() + 2, "{} records of {} sessions", disk.len(), store.len());
    let restored = NonceStore::restore(4000, disk.into_values(), None);
    for store in [&store, &restored] {
        for session in &sessions {
            assert!(!is_new(store, &counter(session, 3_000), now));
        }
        assert!(!is_new(store, &counter(&faithful, 99_000), now));
        assert!(is_new(store, &counter(&faithful, 100_000), now));
        assert!(is_new(store, &counter(&timed("a", now, 999), 1), now + 1));
        assert!(is_new(store, &counter(&timed("b", NOW - 30 * DAY, 1), 1), now + 1), "another key's limit is its own");
    }
}

#[test]
fn whoever_fills_the_store_makes_room_for_others() {
    let store = NonceStore::new(640);
    // Four keys take all they can get, with old and with timeless sessions.
    for n in 0..160 {
        for owner in ["w", "x"] {
            assert!(is_new(&store, &counter(&timed(owner, NOW - DAY, n), 5), NOW));
        }
        for owner in ["y", "z"] {
            assert!(is_new(&store, &counter(&format!("{owner}:{n}"), 5), NOW));
        }
    }
    let honest = |n: u16, at| counter(&timed("honest", at, n), 5);
    assert_eq!(store.check_and_store(&honest(0, NOW), NOW), Err(AuthError::NonceStoreFull), "all are in use");
    let now = NOW + 2 * REST;
    for n in 0..100 {
        assert!(is_new(&store, &honest(n, now), now + S * i128::from(n)), "{n}");
    }
    for n in 0..160 {
        for owner in ["w", "x"] {
            assert!(!is_new(&store, &counter(&timed(owner, NOW - DAY, n), 5), now + 100 * S));
        }
        for owner in ["y", "z"] {
            assert!(!is_new(&store, &counter(&format!("{owner}:{n}"), 5), now + 100 * S));
        }
    }
    for n in 0..100 {
        assert!(!is_new(&store, &honest(n, now), now + 100 * S));
    }
}

#[test]
fn a_flood_of_keys_does_not_shut_new_sessions_out() {
    let store = NonceStore::new(640);
    for n in 0..640 {
        assert!(is_new(&store, &counter(&timed(&format!("key{n}"), NOW - S * i128::from(n), 0), 5), NOW));
    }
    let now = NOW + 2 * REST;
    assert!(is_new(&store, &counter(&timed("honest", now, 0), 5), now));
    assert!(store.len() < 340, "{}", store.len());
    let limit = store.take_unsaved().into_iter().find(|record| record.key == SESSION_LIMIT_KEY).unwrap();
    let forgotten = store.take_forgotten();
    assert_eq!(forgotten.len() + store.len(), 641);
    let restored = NonceStore::restore(640, [limit], None);
    for n in 0..640 {
        let nonce = counter(&timed(&format!("key{n}"), NOW - S * i128::from(n), 0), 5);
        assert!(!is_new(&store, &nonce, now), "{n}");
        // What was forgotten stays refused by the limit alone.
        let is_forgotten =
            forgotten.contains(&SessionKey::new(&timed(&format!("key{n}"), NOW - S * i128::from(n), 0)).to_text());
        assert_eq!(!is_new(&restored, &nonce, now), is_forgotten, "{n}");
    }
}

#[test]
fn strangers_make_nobody_forget() {
    let store = NonceStore::new(40);
    let stranger = Keeping { horizon: Duration::ZERO, is_known: false };
    for n in 0..20 {
        store.check_and_keep(&counter(&timed(&format!("s{n}"), NOW, 0), 1), NOW, stranger).unwrap();
    }
    let now = NOW + 2 * REST;
    let late = counter(&timed("late", now, 0), 1);
    assert_eq!(store.check_and_keep(&late, now, stranger), Err(AuthError::NonceStoreFull));
    assert!(is_new(&store, &late, now), "half of the store is for those who are known");
    assert_eq!(store.len(), 21);
}

#[test]
fn a_session_from_the_future_is_refused_and_never_sets_a_limit() {
    let store = NonceStore::new(40);
    let ahead = counter(&timed("a", NOW + DAY + S, 0), 1);
    assert_eq!(store.check_and_store(&ahead, NOW), Err(AuthError::TooFarAhead));
    for n in 0..10 {
        assert!(is_new(&store, &counter(&timed("a", NOW + DAY, n), 1), NOW));
    }
    let now = NOW + 2 * REST;
    assert_eq!(store.check_and_store(&counter(&timed("a", now, 0), 1), now), Err(AuthError::NonceStoreFull));
    // Once their time has come they can go as all others.
    let now = NOW + 2 * DAY;
    assert!(is_new(&store, &counter(&timed("a", now, 0), 1), now));
}

#[test]
fn looking_for_room_in_vain_is_not_repeated_at_once() {
    let store = NonceStore::new(40);
    for n in 0..10 {
        assert!(is_new(&store, &counter(&format!("a:{n}"), 1), NOW));
    }
    let now = NOW + REST;
    let refused = |at| store.check_and_store(&counter("a:new", 1), at) == Err(AuthError::NonceStoreFull);
    assert!(refused(now));
    assert_eq!(store.lock().shed_at, Some(now));
    assert!(refused(now + SHED_EVERY - 1));
    assert_eq!(store.lock().shed_at, Some(now));
}

#[test]
fn records_of_earlier_versions_are_read() {
    let record = |key: &str, value: &str, expires_ns| NonceRecord { key: key.into(), value: value.into(), expires_ns };
    let records = [
        record("a:1", "500", None),
        record("a:2", "700", Some(NOW + MINUTE)),
        record("a:2", "<=300", Some(NOW + MINUTE)),
        record("a:epistula", &format!("{NOW} 1b4e28ba-2fa1-41d2-883f-0016d3cca427"), Some(NOW + MINUTE)),
    ];
    let store = NonceStore::restore(100, records, None);
    assert!(!is_new(&store, &counter("a:1", 500), NOW));
    assert!(is_new(&store, &counter("a:1", 501), NOW));
    for value in [700, 300, 200] {
        assert!(!is_new(&store, &windowed("a:2", value), NOW));
    }
    let epistula = Nonce::Windowed {
        key: "a:epistula".into(),
        value: "1b4e28ba-2fa1-41d2-883f-0016d3cca427".into(),
        at_ns: NOW,
        max_age: Duration::from_secs(8),
        max_ahead: Duration::ZERO,
    };
    assert!(!is_new(&store, &epistula, NOW));
}

/// One step of a run against the store.
#[derive(Clone, Debug)]
enum Step {
    Windowed { session: u8, age: i128 },
    Counter { session: u8, value: i128 },
    Wait(i128),
    Restart { is_clean: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u8..6, -3_i128..20).prop_map(|(session, age)| Step::Windowed { session, age: age * S }),
        8 => (0_u8..6, 0_i128..40).prop_map(|(session, value)| Step::Counter { session, value: value * 1000 }),
        2 => (-5_i128..30).prop_map(|seconds| Step::Wait(seconds * S)),
        1 => any::<bool>().prop_map(|is_clean| Step::Restart { is_clean }),
    ]
}

proptest! {
    /// No nonce passes twice, whatever the order, the clock, the room and the restarts; the store stays within bounds.
    #[test]
    fn nothing_is_accepted_twice(steps in prop::collection::vec(step(), 1..300), max_entries in 4_usize..40) {
        let mut store = NonceStore::new(max_entries);
        let mut disk: Vec<NonceRecord> = Vec::new();
        let mut used = HashSet::new();
        let mut now = 1000 * S;
        let mut latest = now;
        for step in steps {
            let nonce = match step {
                Step::Windowed { session, age } => windowed(&format!("k{}:{session}", session % 3), now - age),
                Step::Counter { session, value } => counter(&format!("k{}:{session}", session % 3), value),
                Step::Wait(ns) => {
                    now += ns;
                    continue;
                }
                Step::Restart { is_clean } => {
                    // What is not saved of a counter is lost in a crash by design, so counters are saved here as well.
                    let mut unsaved = store.take_unsaved();
                    unsaved.retain(|record| is_clean || record.expires_ns.is_none());
                    disk.extend(unsaved);
                    // The last batch is lost: what lies ahead of the start can come again, so this start is later.
                    let refuse_before = (!is_clean).then_some(latest + 1);
                    store = NonceStore::restore(max_entries, disk.clone(), refuse_before);
                    continue;
                }
            };
            // The verifier looks at the window before it asks the store.
            if let Nonce::Windowed { at_ns, max_age, .. } = &nonce && now - at_ns > as_ns(*max_age) {
                continue;
            }
            let id = match &nonce {
                Nonce::Windowed { key, value, .. } => (true, key.clone(), value.clone()),
                Nonce::Monotonic { key, value } => (false, key.clone(), value.to_string()),
            };
            if store.check_and_store(&nonce, now).is_ok() {
                prop_assert!(used.insert(id), "{nonce:?} passed twice");
                if let Nonce::Windowed { at_ns, .. } = nonce {
                    latest = latest.max(at_ns);
                }
            }
            // A restored store may hold more than its share, but never grows beyond it.
            prop_assert!(store.len() <= max_entries.max(disk.len() + 1));
        }
    }

    #[test]
    fn concurrent_calls_of_one_session_pass_exactly_once(
        mut values in prop::collection::hash_set(0_i128..1_000_000, 1..200).prop_map(|v| v.into_iter().collect::<Vec<_>>())
    ) {
        let store = NonceStore::new(1000);
        values.iter_mut().for_each(|value| *value *= 1000);
        for value in &values {
            prop_assert!(is_new(&store, &counter("a:1", *value), 0));
        }
        for value in &values {
            prop_assert!(!is_new(&store, &counter("a:1", *value), 0));
        }
    }

    /// As above, with counters that rest, a store that is always too small, and sessions that are forgotten.
    #[test]
    fn no_counter_is_accepted_twice_however_much_is_forgotten(
        steps in prop::collection::vec(forgetful_step(), 1..400),
        max_entries in 4_usize..40,
    ) {
        let mut store = NonceStore::new(max_entries);
        let mut disk = std::collections::HashMap::new();
        let (mut now, mut used) = (NOW, HashSet::new());
        for step in steps {
            match step {
                Forgetful::Ask { owner, began_minutes_ago, is_timed, value, is_known } => {
                    let owner = format!("k{owner}");
                    // A few sessions that come again and again, whatever the time.
                    let began = NOW - i128::from(began_minutes_ago) * MINUTE;
                    let session = if is_timed { timed(&owner, began, 0) } else { format!("{owner}:{began_minutes_ago}") };
                    let nonce = counter(&session, i128::from(value) * 1000);
                    let keeping = Keeping { horizon: Duration::ZERO, is_known };
                    if store.check_and_keep(&nonce, now, keeping).is_ok() {
                        prop_assert!(used.insert((session, value)), "{nonce:?} passed twice");
                    }
                }
                Forgetful::Open { owner } => {
                    let session = timed(&format!("k{owner}"), now, 0);
                    if store.check_and_store(&counter(&session, 0), now).is_ok() {
                        prop_assert!(used.insert((session, 0)), "a session passed twice");
                    }
                }
                Forgetful::Wait(seconds) => now += i128::from(seconds) * S,
                Forgetful::Restart => {
                    disk.extend(store.take_unsaved().into_iter().map(|record| (record.key.clone(), record)));
                    for key in store.take_forgotten() {
                        disk.remove(&key);
                    }
                    store = NonceStore::restore(max_entries, disk.values().cloned(), None);
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Forgetful {
    Ask { owner: u8, began_minutes_ago: i16, is_timed: bool, value: u8, is_known: bool },
    Open { owner: u8 },
    Wait(u16),
    Restart,
}

fn forgetful_step() -> impl Strategy<Value = Forgetful> {
    prop_oneof![
        12 => (0_u8..6, -40_i16..40, any::<bool>(), 0_u8..4, prop::bool::weighted(0.9)).prop_map(
            |(owner, began_minutes_ago, is_timed, value, is_known)| Forgetful::Ask {
                owner, began_minutes_ago, is_timed, value, is_known
            }
        ),
        4 => (0_u8..6).prop_map(|owner| Forgetful::Open { owner }),
        4 => (0_u16..900).prop_map(Forgetful::Wait),
        1 => Just(Forgetful::Restart),
    ]
}
