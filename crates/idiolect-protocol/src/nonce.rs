//! The bounded store of nonces that were used.

use crate::{AuthError, Nonce};

/// Remembers used nonces, within bounds. A full store refuses newcomers; it never forgets a live entry.
#[derive(Debug, Default)]
pub struct NonceStore {}

impl NonceStore {
    /// Stores a nonce that was never used before.
    ///
    /// # Errors
    /// [`AuthError::Replayed`], [`AuthError::NonceStoreFull`].
    pub fn check_and_store(&self, _nonce: &Nonce, _now_ns: i128) -> Result<(), AuthError> {
        Err(AuthError::NonceStoreFull)
    }
}
