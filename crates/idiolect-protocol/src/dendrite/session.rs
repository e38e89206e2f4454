//! Session identifiers, one for each request that is on its way.
//!
//! Reference servers remember one nonce a session and take only higher ones, so two requests of one session that
//! overtake each other on the way cost one of them its answer. A session of its own for each request would avoid that,
//! and fill the servers' tables; a session for each request *at a time* avoids both.
//!
//! The identifiers say when they were made, as Bittensor's do, but not on which machine: a server that has to forget old
//! sessions can tell new ones from replays ([`NonceStore`](crate::NonceStore)).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

/// Identifiers that no request uses now.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    free: Arc<Mutex<Vec<Uuid>>>,
}

impl Sessions {
    /// Takes an identifier that nobody uses until it is dropped.
    pub(super) fn take(&self) -> Session {
        let id = self.lock().pop().unwrap_or_else(Uuid::now_v7);
        Session { id, home: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Uuid>> {
        // A list of identifiers is whole after any panic.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An identifier in use.
pub(super) struct Session {
    id: Uuid,
    home: Sessions,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.home.lock().push(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_used_again_but_never_twice_at_once() {
        let sessions = Sessions::default();
        let (first, second) = (sessions.take(), sessions.take());
        assert_ne!(first.id, second.id);
        let id = first.id;
        drop(first);
        assert_eq!(sessions.take().id, id);
        drop(second);
        assert_eq!(sessions.lock().len(), 2);
    }
}
