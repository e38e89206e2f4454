//! Who is answered, and who first.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use idiolect_protocol::{Caller, Category, Hotkey};

use crate::metagraph::{MetagraphView, Neuron, Stage};
use crate::queue::Priority;

/// What a policy may look at besides the caller.
#[derive(Clone, Copy, Debug)]
pub struct PolicyContext<'a> {
    /// The synapse or route that is called.
    pub synapse: &'a str,
}

/// What a policy says of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// It is answered, in this order.
    Allow {
        /// Rank in the queue.
        priority: Priority,
    },
    /// It is not answered.
    Deny(Denial),
}

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    /// Decides the status code: [`Category::Forbidden`] or [`Category::RateLimited`] as a rule.
    pub category: Category,
    /// A few words for the peer. They must not tell what stands on a list.
    pub reason: Cow<'static, str>,
    /// Which rule refused, for metrics and logs: a short constant word.
    pub rule: &'static str,
    /// When it makes sense to ask again.
    pub retry_after: Option<Duration>,
}

/// Decides on verified callers.
///
/// # Contract
/// `decide` is called for every verified request, from many threads, and must not block. It sees proved keys only, so it
/// may keep state by key. Unverified requests never reach it.
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// Says whether this caller is answered now.
    fn decide(&self, caller: &Caller, context: &PolicyContext<'_>) -> Decision;

    /// Says whether this is the key of somebody the miner knows, say from the metagraph. Unknown keys may take up no
    /// more than a part of the room for nonces, and their failures count against their address, being denied among them
    /// (but for asking too often).
    /// Asked before the decision.
    fn knows(&self, hotkey: &Hotkey) -> bool;
}

/// What happens to callers when the metagraph is too old to decide by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OnExpired {
    /// The allow list is served, nobody else. The default.
    #[default]
    AllowList,
    /// The old figures still decide.
    UseAnyway,
    /// Nobody is served but our own key.
    RefuseAll,
}

/// How often one key may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many requests, at once or spread…
    pub requests: NonZeroU32,
    /// … in this time.
    pub per: Duration,
}

impl Rate {
    /// Nothing of a time of zero: that is no limit.
    fn quota(self) -> Option<Quota> {
        let shortest = Duration::from_nanos(u64::from(!self.per.is_zero()));
        let each = (self.per / self.requests.get()).max(shortest);
        Some(Quota::with_period(each)?.allow_burst(self.requests))
    }
}

/// The rules of [`StandardPolicy`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Keys that are always answered, first of all, whatever the metagraph says and without a rate.
    pub allow: HashSet<Hotkey>,
    /// Anybody who proves a key may ask. The deny list and the rate still hold, and rank is still by stake.
    pub allow_any: bool,
    /// Keys that are never answered; beats every other rule.
    pub deny: HashSet<Hotkey>,
    /// Answer keys that are not registered on the subnet, as far as the other rules let them.
    pub allow_unregistered: bool,
    /// Answer validators only.
    pub require_validator_permit: bool,
    /// Least total stake in RAO (alpha plus weighted root stake, `stake_rao` of the metagraph).
    pub min_stake_rao: u64,
    /// Answer only callers that announce an axon of their own.
    pub require_axon: bool,
    /// How often one key may ask; `None` is without limit.
    pub rate: Option<Rate>,
    /// The rank of callers without a known stake, as if they had so much stake in RAO.
    pub default_priority_rao: u64,
    /// What happens when the metagraph is too old.
    pub on_expired: OnExpired,
}

/// Allow and deny lists, registration, permit, stake, axon and rate; rank by stake.
///
/// The rules are asked in this order, and the first that refuses decides: deny list, own key and allow list (which end
/// the questions), age of the metagraph, registration, validator permit, stake, axon, rate.
///
/// Without a metagraph nobody has stake or permit: only the allow list, our own key and, where
/// [`Rules::allow_any`] is set, everybody else are answered.
pub struct StandardPolicy {
    own: Hotkey,
    rules: Rules,
    metagraph: Option<Arc<dyn MetagraphView>>,
    rate: Option<DefaultKeyedRateLimiter<RateKey>>,
    /// Picks strangers' counts: by numbers that nobody outside knows, so that no key can be made to share a certain one.
    strangers: RandomState,
}

impl fmt::Debug for StandardPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StandardPolicy").field("rules", &self.rules).field("metagraph", &self.metagraph).finish()
    }
}

impl StandardPolicy {
    /// Makes a policy for the miner that holds `own`.
    pub fn new(own: Hotkey, rules: Rules, metagraph: Option<Arc<dyn MetagraphView>>) -> Self {
        let rate = rules.rate.and_then(Rate::quota).map(RateLimiter::keyed);
        Self { own, rules, metagraph, rate, strangers: RandomState::new() }
    }

    fn judge(&self, key: &Hotkey) -> Result<Priority, Denial> {
        if self.rules.deny.contains(key) {
            return Err(forbidden("deny_list", "not allowed"));
        }
        if *key == self.own {
            return Ok(Priority::FIRST);
        }
        let stage = self.metagraph.as_ref().map(|view| view.stage());
        let expired = stage == Some(Stage::Expired);
        if expired && self.rules.on_expired == OnExpired::RefuseAll {
            return Err(forbidden("metagraph_expired", "not serving now"));
        }
        if self.rules.allow.contains(key) {
            return Ok(Priority::FIRST);
        }
        let neuron = self.metagraph.as_ref().and_then(|view| view.neuron(key));
        if !self.rules.allow_any {
            self.check_metagraph(neuron.as_ref(), expired)?;
        }
        self.check_rate(key, neuron.is_some())?;
        let stake = neuron.map_or(self.rules.default_priority_rao, |neuron| neuron.stake_rao);
        Ok(Priority::of_stake(stake))
    }

    fn check_metagraph(&self, neuron: Option<&Neuron>, expired: bool) -> Result<(), Denial> {
        let rules = &self.rules;
        if self.metagraph.is_none() {
            return Err(forbidden("no_metagraph", "not allowed"));
        }
        if expired && rules.on_expired == OnExpired::AllowList {
            return Err(forbidden("metagraph_expired", "not serving now"));
        }
        if neuron.is_none() && !rules.allow_unregistered {
            return Err(forbidden("not_registered", "hotkey not registered"));
        }
        if rules.require_validator_permit && !neuron.is_some_and(|neuron| neuron.validator_permit) {
            return Err(forbidden("no_permit", "validator permit required"));
        }
        if neuron.map_or(0, |neuron| neuron.stake_rao) < rules.min_stake_rao {
            return Err(forbidden("low_stake", "stake below the minimum"));
        }
        if rules.require_axon && !neuron.is_some_and(Neuron::is_serving) {
            return Err(forbidden("no_axon", "no axon announced"));
        }
        Ok(())
    }

    fn check_rate(&self, key: &Hotkey, is_registered: bool) -> Result<(), Denial> {
        let Some(rate) = &self.rate else { return Ok(()) };
        if rate.len() > MAX_RATE_KEYS {
            rate.retain_recent();
            rate.shrink_to_fit();
        }
        rate.check_key(&self.rate_key(key, is_registered)).map_err(|until| Denial {
            category: Category::RateLimited,
            reason: Cow::Borrowed("too many requests"),
            rule: "rate",
            retry_after: Some(until.wait_time_from(DefaultClock::default().now())),
        })
    }

    fn rate_key(&self, key: &Hotkey, is_registered: bool) -> RateKey {
        if is_registered {
            return RateKey::Neuron(*key);
        }
        RateKey::Stranger((self.strangers.hash_one(key.as_bytes()) % STRANGERS_COUNTS) as u16)
    }
}

impl Policy for StandardPolicy {
    fn decide(&self, caller: &Caller, _context: &PolicyContext<'_>) -> Decision {
        match self.judge(caller.hotkey()) {
            Ok(priority) => Decision::Allow { priority },
            Err(denial) => Decision::Deny(denial),
        }
    }

    // That anybody may ask makes nobody known: keys are made in no time.
    fn knows(&self, hotkey: &Hotkey) -> bool {
        let rules = &self.rules;
        let is_listed = *hotkey == self.own || rules.allow.contains(hotkey);
        let is_registered = || self.metagraph.as_ref().is_some_and(|view| view.neuron(hotkey).is_some());
        !rules.deny.contains(hotkey) && (is_listed || is_registered())
    }
}

fn forbidden(rule: &'static str, reason: &'static str) -> Denial {
    Denial { category: Category::Forbidden, reason: Cow::Borrowed(reason), rule, retry_after: None }
}

/// When the table of rates has more keys than this, those at rest are dropped from it.
const MAX_RATE_KEYS: usize = 16_384;

/// Whose requests are counted together.
///
/// Registered keys are few and each has its own count. Anybody can make any number of other keys, so those share a fixed
/// number of counts: the table cannot be made to grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum RateKey {
    Neuron(Hotkey),
    Stranger(u16),
}

/// How many counts unregistered keys share.
const STRANGERS_COUNTS: u64 = 8192;

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
