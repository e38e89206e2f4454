//! What a pool remembers of its members.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::member::{Member, MemberSnapshot};
use super::{Failed, PoolConfig, is_final};
use crate::held::Watch;
use crate::rate::RateWindow;
use crate::{Backend, Backoff, Error, ErrorKind, Event};

/// Members and their state, shared with the streams under way.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) members: Vec<Member>,
    in_flight: Vec<AtomicUsize>,
    states: Mutex<Vec<State>>,
    allowed_fails: u32,
    cooldown: Backoff,
}

/// What changes about one member.
#[derive(Debug)]
pub(super) struct State {
    requests_total: u64,
    failures_total: u64,
    consecutive_failures: u32,
    cooldown: Option<Cooldown>,
    last_error: Option<ErrorKind>,
    window: Option<RateWindow>,
    /// Smooth weighted round robin: grows by the weight each turn, falls when chosen.
    pub(super) turn: i64,
}

/// A time in which a member is left alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cooldown {
    pub(super) until: Instant,
    /// The other side asked for it: no last resort.
    pub(super) is_strict: bool,
}

impl State {
    pub(super) fn cooldown(&self, now: Instant) -> Option<Cooldown> {
        self.cooldown.filter(|cooldown| cooldown.until > now)
    }

    pub(super) const fn requests_total(&self) -> u64 {
        self.requests_total
    }
}

impl Shared {
    pub(super) fn new(config: &PoolConfig, members: Vec<Member>) -> Self {
        let state = |member: &Member| State {
            requests_total: 0,
            failures_total: 0,
            consecutive_failures: 0,
            cooldown: None,
            last_error: None,
            window: member.rpm.map(RateWindow::new),
            turn: 0,
        };
        Self {
            in_flight: members.iter().map(|_| AtomicUsize::new(0)).collect(),
            states: Mutex::new(members.iter().map(state).collect()),
            members,
            allowed_fails: config.allowed_fails,
            cooldown: config.cooldown,
        }
    }

    pub(super) fn states(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn name(&self, index: usize) -> &str {
        &self.members[index].name
    }

    pub(super) fn in_flight(&self, index: usize) -> usize {
        self.in_flight[index].load(Ordering::Relaxed)
    }

    /// Takes a place at a member, or says how long until one may be free, where that is known.
    pub(super) fn enter(self: &Arc<Self>, index: usize) -> Result<Attempt, Option<Duration>> {
        let mut states = self.states();
        // Places are only taken under the lock, so this cannot race with another request.
        if self.members[index].max_parallel_requests.is_some_and(|max| self.in_flight(index) >= max) {
            return Err(None);
        }
        let state = &mut states[index];
        if let Some(window) = &mut state.window {
            window.admit(Instant::now()).map_err(Some)?;
        }
        state.requests_total += 1;
        self.in_flight[index].fetch_add(1, Ordering::Relaxed);
        Ok(Attempt { shared: Arc::clone(self), index })
    }

    pub(super) fn snapshot(&self) -> Vec<MemberSnapshot> {
        let now = Instant::now();
        let states = self.states();
        let snapshot = |(index, state): (usize, &State)| MemberSnapshot {
            name: self.members[index].name.clone(),
            model: self.members[index].backend.capabilities().model.clone(),
            in_flight: self.in_flight(index),
            requests_total: state.requests_total,
            failures_total: state.failures_total,
            consecutive_failures: state.consecutive_failures,
            cooldown: state.cooldown(now).map(|cooldown| cooldown.until - now),
            last_error: state.last_error,
        };
        states.iter().enumerate().map(snapshot).collect()
    }

    /// Returns the members that don't cool down.
    pub(super) fn awake(&self) -> Vec<(String, Arc<dyn Backend>)> {
        let now = Instant::now();
        let states = self.states();
        (self.members.iter().zip(states.iter()))
            .filter(|(_, state)| state.cooldown(now).is_none())
            .map(|(member, _)| (member.name.clone(), Arc::clone(&member.backend)))
            .collect()
    }

    fn note_failure(&self, index: usize, error: &Error) {
        let mut states = self.states();
        let state = &mut states[index];
        state.last_error = Some(error.kind());
        let named = match error {
            Error::Overloaded { retry_after, .. } => *retry_after,
            Error::Unauthorized { .. } => Some(self.cooldown.max),
            _ if !counts(error) => return,
            _ => None,
        };
        state.failures_total += 1;
        state.consecutive_failures = state.consecutive_failures.saturating_add(1);
        let beyond = state.consecutive_failures.checked_sub(self.allowed_fails.saturating_add(1));
        let delay = match (named, beyond) {
            // Nobody may keep a member out of work for longer than the operator allows.
            (Some(named), _) => named.min(self.cooldown.max),
            (None, Some(n_before)) => self.cooldown.delay(n_before, state.requests_total ^ ((index as u64) << 48)),
            (None, None) => return,
        };
        state.cooldown = Some(Cooldown { until: Instant::now() + delay, is_strict: named.is_some() });
    }

    fn note_success(&self, index: usize) {
        let mut states = self.states();
        states[index].consecutive_failures = 0;
        states[index].cooldown = None;
    }
}

/// Says whether an error tells against the member rather than the request.
fn counts(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::InvalidRequest | ErrorKind::Unsupported | ErrorKind::DeadlineExceeded | ErrorKind::LimitReached => {
            false
        }
        ErrorKind::Overloaded
        | ErrorKind::Unavailable
        | ErrorKind::Unauthorized
        | ErrorKind::Protocol
        | ErrorKind::Internal => true,
    }
}

/// One request at one member; its place is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Attempt {
    shared: Arc<Shared>,
    index: usize,
}

impl Attempt {
    pub(super) const fn index(&self) -> usize {
        self.index
    }

    pub(super) fn backend(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.shared.members[self.index].backend)
    }

    pub(super) fn name(&self) -> &str {
        self.shared.name(self.index)
    }

    pub(super) fn succeeded(&mut self) {
        self.shared.note_success(self.index);
    }

    pub(super) fn failed(&mut self, error: Error) -> Failed {
        self.shared.note_failure(self.index, &error);
        Failed { is_final: is_final(&error), error }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.shared.in_flight[self.index].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watch for Attempt {
    fn item(&mut self, item: &mut Result<Event, Error>) {
        match item {
            Ok(Event::Done { backend, .. }) => {
                self.shared.name(self.index).clone_into(backend);
                self.shared.note_success(self.index);
            }
            Ok(_) => {}
            Err(error) => self.shared.note_failure(self.index, error),
        }
    }
}
