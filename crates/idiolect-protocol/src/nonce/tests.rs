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
}
