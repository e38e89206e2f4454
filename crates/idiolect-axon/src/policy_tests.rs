//! Every rule alone and against the others, and the serving mistakes of reference miners that must not come back.

use std::collections::HashMap;

use idiolect_protocol::Keypair;

use super::*;
use crate::metagraph::AxonInfo;

#[derive(Debug)]
struct Subnet {
    neurons: HashMap<Hotkey, Neuron>,
    stage: Stage,
}

impl MetagraphView for Subnet {
    fn neuron(&self, hotkey: &Hotkey) -> Option<Neuron> {
        self.neurons.get(hotkey).copied()
    }

    fn stage(&self) -> Stage {
        self.stage
    }
}

fn key(name: &str) -> Hotkey {
    Keypair::from_uri(&format!("//{name}")).unwrap().hotkey()
}

fn neuron(name: &str, stake_rao: u64, validator_permit: bool, serves: bool) -> Neuron {
    let ip = "192.0.2.7".parse().unwrap();
    Neuron {
        uid: 0,
        hotkey: key(name),
        coldkey: None,
        stake_rao,
        alpha_stake: stake_rao,
        tao_stake: 0,
        validator_permit,
        incentive_u16: 0,
        emission_rao: 0,
        last_update: 0,
        axon: serves.then_some(AxonInfo { ip, port: 8091, protocol: 4, version: 0 }),
    }
}

/// A validator with an axon, a validator without one, a miner; nobody else is registered.
fn subnet(stage: Stage) -> Arc<dyn MetagraphView> {
    let neurons = [
        neuron("Validator", 2_000, true, true),
        neuron("Hidden", 1_000, true, false),
        neuron("Miner", 10, false, true),
    ];
    Arc::new(Subnet { neurons: neurons.map(|n| (n.hotkey, n)).into(), stage })
}

fn policy(rules: Rules) -> StandardPolicy {
    StandardPolicy::new(key("Me"), rules, Some(subnet(Stage::Fresh)))
}

fn rule_against(policy: &StandardPolicy, name: &str) -> Option<&'static str> {
    policy.judge(&key(name)).err().map(|denial| denial.rule)
}

fn keys(names: &[&str]) -> HashSet<Hotkey> {
    names.iter().map(|name| key(name)).collect()
}

#[test]
fn registered_callers_are_answered_by_rank_of_stake() {
    let policy = policy(Rules::default());
    assert_eq!(policy.judge(&key("Validator")), Ok(Priority::of_stake(2_000)));
    assert_eq!(policy.judge(&key("Miner")), Ok(Priority::of_stake(10)));
    assert_eq!(rule_against(&policy, "Nobody"), Some("not_registered"));
    assert_eq!(policy.judge(&key("Me")), Ok(Priority::FIRST));
}

#[test]
fn validator_permit_is_not_inverted() {
    // A reference miner refused those with a permit and let the others in.
    let policy = policy(Rules { require_validator_permit: true, ..Rules::default() });
    assert_eq!(rule_against(&policy, "Validator"), None);
    assert_eq!(rule_against(&policy, "Miner"), Some("no_permit"));
}

#[test]
fn deny_list_is_read_even_when_unregistered_callers_are_allowed() {
    // A reference miner returned before it looked at its black list.
    let rules = Rules { allow_unregistered: true, deny: keys(&["Nobody", "Validator"]), ..Rules::default() };
    let policy = policy(rules);
    assert_eq!(rule_against(&policy, "Nobody"), Some("deny_list"));
    assert_eq!(rule_against(&policy, "Validator"), Some("deny_list"));
    assert_eq!(rule_against(&policy, "Stranger"), None);
}

#[test]
fn unregistered_caller_is_refused_and_nothing_fails() {
    // A reference miner looked the caller's place up before it asked whether there is one.
    let rules = [
        Rules::default(),
        Rules { require_validator_permit: true, ..Rules::default() },
        Rules { min_stake_rao: 1, ..Rules::default() },
        Rules { require_axon: true, ..Rules::default() },
    ];
    for rules in rules {
        assert_eq!(rule_against(&policy(rules), "Nobody"), Some("not_registered"));
    }
    let lenient = Rules { allow_unregistered: true, default_priority_rao: 3, ..Rules::default() };
    assert_eq!(policy(lenient.clone()).judge(&key("Nobody")), Ok(Priority::of_stake(3)));
    let strict = Rules { require_validator_permit: true, ..lenient };
    assert_eq!(rule_against(&policy(strict), "Nobody"), Some("no_permit"));
}

#[test]
fn minimum_stake_is_really_read() {
    // A reference miner had the flag and never looked at it.
    let policy = policy(Rules { min_stake_rao: 1_000, ..Rules::default() });
    assert_eq!(rule_against(&policy, "Validator"), None);
    assert_eq!(rule_against(&policy, "Hidden"), None);
    assert_eq!(rule_against(&policy, "Miner"), Some("low_stake"));
}

#[test]
fn callers_without_an_axon_can_be_refused() {
    let policy = policy(Rules { require_axon: true, ..Rules::default() });
    assert_eq!(rule_against(&policy, "Validator"), None);
    assert_eq!(rule_against(&policy, "Hidden"), Some("no_axon"));
}

#[test]
fn allow_list_beats_everything_but_the_deny_list() {
    let rules = Rules {
        allow: keys(&["Nobody", "Both"]),
        deny: keys(&["Both"]),
        require_validator_permit: true,
        min_stake_rao: 1_000_000,
        require_axon: true,
        rate: Some(Rate { requests: NonZeroU32::MIN, per: Duration::from_secs(3600) }),
        ..Rules::default()
    };
    let policy = policy(rules);
    for _ in 0..3 {
        assert_eq!(policy.judge(&key("Nobody")), Ok(Priority::FIRST));
    }
    assert_eq!(rule_against(&policy, "Both"), Some("deny_list"));
}

#[test]
fn one_key_is_refused_in_every_spelling() {
    // Lists kept as text were dodged by another spelling of the same key.
    let same: Hotkey = key("Validator").to_string().parse().unwrap();
    let policy = policy(Rules { deny: HashSet::from([same]), ..Rules::default() });
    assert_eq!(rule_against(&policy, "Validator"), Some("deny_list"));
}

#[test]
fn rate_holds_from_the_first_request_and_per_key() {
    // A reference miner counted from the tenth request on and failed with fewer.
    let rate = Rate { requests: NonZeroU32::new(2).unwrap(), per: Duration::from_secs(3600) };
    let policy = policy(Rules { rate: Some(rate), ..Rules::default() });
    assert_eq!(rule_against(&policy, "Validator"), None);
    assert_eq!(rule_against(&policy, "Validator"), None);
    let denial = policy.judge(&key("Validator")).unwrap_err();
    assert_eq!((denial.rule, denial.category), ("rate", Category::RateLimited));
    let wait = denial.retry_after.unwrap();
    assert!(wait > Duration::from_secs(1700) && wait <= Duration::from_secs(1800), "{wait:?}");
    assert_eq!(rule_against(&policy, "Miner"), None);
}

/// A subnet that changes while it is looked at.
#[derive(Debug)]
struct Changing(std::sync::Mutex<Neuron>);

impl MetagraphView for Changing {
    fn neuron(&self, hotkey: &Hotkey) -> Option<Neuron> {
        Some(*self.0.lock().unwrap()).filter(|neuron| neuron.hotkey == *hotkey)
    }

    fn stage(&self) -> Stage {
        Stage::Fresh
    }
}

#[test]
fn refused_callers_do_not_use_up_their_rate() {
    let rate = Rate { requests: NonZeroU32::new(2).unwrap(), per: Duration::from_secs(3600) };
    let rules = Rules {
        rate: Some(rate),
        min_stake_rao: 100,
        require_validator_permit: true,
        require_axon: true,
        ..Rules::default()
    };
    let subnet = Arc::new(Changing(neuron("Poor", 1, true, true).into()));
    let policy = StandardPolicy::new(key("Me"), rules, Some(subnet.clone()));
    for refused in [
        (neuron("Poor", 1, true, true), "low_stake"),
        (neuron("Poor", 100, false, true), "no_permit"),
        (neuron("Poor", 100, true, false), "no_axon"),
    ] {
        *subnet.0.lock().unwrap() = refused.0;
        for _ in 0..5 {
            assert_eq!(rule_against(&policy, "Poor"), Some(refused.1));
        }
    }
    assert_eq!(rule_against(&policy, "Unregistered"), Some("not_registered"));
    // All that it was refused cost it nothing of what it may ask now, and being over its rate costs nothing either.
    *subnet.0.lock().unwrap() = neuron("Poor", 100, true, true);
    let wait = |policy: &StandardPolicy| policy.judge(&key("Poor")).map(drop).map_err(|d| d.retry_after.unwrap());
    assert_eq!((wait(&policy), wait(&policy)), (Ok(()), Ok(())));
    let first = wait(&policy).unwrap_err();
    for _ in 0..20 {
        assert!(wait(&policy).unwrap_err() <= first);
    }
}

#[test]
fn strangers_share_bounded_counts() {
    let rate = Rate { requests: NonZeroU32::MIN, per: Duration::from_secs(3600) };
    let policy = policy(Rules { rate: Some(rate), allow_any: true, ..Rules::default() });
    for n in 0..40_000u32 {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&n.to_le_bytes());
        let _ = policy.judge(&Hotkey::from_bytes(bytes));
    }
    assert!(policy.rate.as_ref().unwrap().len() <= 8192);
}

#[test]
fn nobody_can_tell_whose_count_a_strangers_key_shares() {
    let policies = [(); 2].map(|()| policy(Rules::default()));
    let keys = (0..64u8).map(|n| {
        let mut bytes = [7; 32];
        bytes[31] = n;
        Hotkey::from_bytes(bytes)
    });
    let counts = |policy: &StandardPolicy| keys.clone().map(|key| policy.rate_key(&key, false)).collect::<Vec<_>>();
    let [one, other] = [counts(&policies[0]), counts(&policies[1])];
    // The same key has the same count in one process, and another one in the next.
    assert_eq!(one, counts(&policies[0]));
    assert_ne!(one, other);
    // Keys that look alike are spread: 64 into 8192 share two or three counts at most, unless somebody chose them.
    assert!(one.iter().collect::<HashSet<_>>().len() > 50);
    // Registered keys have counts of their own.
    assert_eq!(policies[0].rate_key(&key("Miner"), true), RateKey::Neuron(key("Miner")));
}

#[test]
fn whom_the_miner_knows() {
    let rules = Rules { allow: keys(&["Friend", "Both"]), deny: keys(&["Both", "Miner"]), ..Rules::default() };
    let listed = policy(rules.clone());
    for (name, is_known) in
        [("Me", true), ("Friend", true), ("Validator", true), ("Nobody", false), ("Both", false), ("Miner", false)]
    {
        assert_eq!(listed.knows(&key(name)), is_known, "{name}");
    }
    let open = policy(Rules { allow_any: true, ..rules });
    assert!(open.knows(&key("Validator")) && open.knows(&key("Friend")));
    assert!(!open.knows(&key("Nobody")) && !open.knows(&key("Both")), "who is let in is not known for that");
}

#[test]
fn without_a_metagraph_only_the_allow_list_and_our_own_key_are_answered() {
    let rules = Rules { allow: keys(&["Friend"]), allow_unregistered: true, ..Rules::default() };
    let closed = StandardPolicy::new(key("Me"), rules, None);
    assert_eq!(rule_against(&closed, "Me"), None);
    assert_eq!(rule_against(&closed, "Friend"), None);
    assert_eq!(rule_against(&closed, "Validator"), Some("no_metagraph"));

    let any = Rules { allow_any: true, deny: keys(&["Mallory"]), ..Rules::default() };
    let open = StandardPolicy::new(key("Me"), any, None);
    assert_eq!(open.judge(&key("Validator")), Ok(Priority::of_stake(0)));
    assert_eq!(rule_against(&open, "Mallory"), Some("deny_list"));
}

#[test]
fn an_expired_metagraph_is_dealt_with_as_configured() {
    let judge = |on_expired, name: &str| {
        let rules = Rules { allow: keys(&["Friend"]), on_expired, ..Rules::default() };
        let policy = StandardPolicy::new(key("Me"), rules, Some(subnet(Stage::Expired)));
        rule_against(&policy, name)
    };
    let refused = Some("metagraph_expired");
    assert_eq!(judge(OnExpired::AllowList, "Friend"), None);
    assert_eq!(judge(OnExpired::AllowList, "Validator"), refused);
    assert_eq!(judge(OnExpired::UseAnyway, "Validator"), None);
    assert_eq!(judge(OnExpired::UseAnyway, "Nobody"), Some("not_registered"));
    assert_eq!(judge(OnExpired::RefuseAll, "Friend"), refused);
    assert_eq!(judge(OnExpired::RefuseAll, "Validator"), refused);
    assert_eq!(judge(OnExpired::RefuseAll, "Me"), None);
    let degraded = StandardPolicy::new(key("Me"), Rules::default(), Some(subnet(Stage::Degraded)));
    assert_eq!(rule_against(&degraded, "Validator"), None);
}

#[test]
fn reasons_tell_nothing_of_lists() {
    let rules = Rules { deny: keys(&["Nobody"]), allow: keys(&["Friend"]), ..Rules::default() };
    let listed = StandardPolicy::new(key("Me"), rules, None);
    let denied = listed.judge(&key("Nobody")).unwrap_err().reason;
    assert_eq!(denied, listed.judge(&key("Somebody")).unwrap_err().reason);
    assert!(!denied.contains("list"));
}

#[test]
fn reasons_are_whole_sentences_without_places_to_fill_in() {
    // A reference miner told callers of "{stake}".
    let rules = [
        Rules::default(),
        Rules { require_validator_permit: true, ..Rules::default() },
        Rules { min_stake_rao: 1_000, ..Rules::default() },
        Rules { require_axon: true, ..Rules::default() },
        Rules { deny: keys(&["Miner"]), ..Rules::default() },
    ];
    let mut reasons = HashSet::new();
    for rules in rules {
        let policy = policy(rules);
        reasons.extend(
            ["Nobody", "Miner", "Hidden"].iter().filter_map(|name| policy.judge(&key(name)).err()?.reason.into()),
        );
    }
    assert!(reasons.len() >= 4, "{reasons:?}");
    for reason in reasons {
        assert!(!reason.is_empty() && !reason.contains(['{', '}', '%']), "{reason}");
    }
}

#[test]
fn no_rate_is_so_high_that_it_becomes_none() {
    let rate = |requests, per| Rate { requests: NonZeroU32::new(requests).unwrap(), per };
    assert!(rate(u32::MAX, Duration::from_millis(1)).quota().is_some());
    assert!(rate(1, Duration::ZERO).quota().is_none());
}
