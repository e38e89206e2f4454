//! Keys: public keys as values, SS58 text, signatures.

use std::fmt;

use crate::Scheme;

/// A public key of 32 bytes. Two spellings of one address are one key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hotkey([u8; 32]);

impl Hotkey {
    /// Makes a key of its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Hotkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hotkey({})", hex::encode(self.0))
    }
}

/// Why a text is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an ss58 address with prefix 42")]
pub struct HotkeyError;

/// Says whether `signature` is `key`'s over `message`.
pub(crate) fn verify(scheme: Scheme, key: &Hotkey, message: &[u8], signature: &[u8; 64]) -> bool {
    let Scheme::Sr25519 = scheme else { return false };
    let Ok(public) = schnorrkel::PublicKey::from_bytes(&key.0) else { return false };
    let Ok(signature) = schnorrkel::Signature::from_bytes(signature) else { return false };
    public.verify_simple(b"substrate", message, &signature).is_ok()
}
