//! `btauth/1`: the signed headers of bittensor 11, for any HTTP request.
//!
//! ```
//! use std::sync::Arc;
//!
//! use idiolect_protocol::{Keypair, Limits, NonceStore, SystemClock, Verifier, btauth};
//!
//! let (validator, miner) = (Keypair::from_uri("//Bob")?, Keypair::from_uri("//Alice")?);
//! let limits = Limits::default();
//! let verifier = Verifier::new(miner.hotkey(), limits.clone(), Arc::new(SystemClock), Arc::new(NonceStore::new(1000)));
//!
//! // The client's side.
//! let request = btauth::SignedParts { method: "POST", target: "/v1/chat/completions", body: b"{}" };
//! let headers = btauth::sign(&validator, Some(&miner.hotkey()), request, verifier.clock().now_ns());
//!
//! // The server's side.
//! let caller = verifier.verify(btauth::claim(&headers, request, &miner.hotkey(), &limits)?)?;
//! assert_eq!(*caller.hotkey(), validator.hotkey());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use crate::{AuthError, Claim, Hotkey, Keypair, Limits, Nonce, Scheme, Transport, headers, keys};

/// The only version there is.
pub const VERSION: &str = "1";

/// Header: version of the scheme.
pub const VERSION_HEADER: &str = "x-bittensor-version";
/// Header: who signed.
pub const HOTKEY_HEADER: &str = "x-bittensor-hotkey";
/// Header: for whom; absent where the request is for anybody.
pub const RECEIVER_HEADER: &str = "x-bittensor-receiver";
/// Header: nanoseconds since 1970.
pub const NONCE_HEADER: &str = "x-bittensor-nonce";
/// Header: the signature scheme, where it is not sr25519.
pub const CRYPTO_HEADER: &str = "x-bittensor-crypto";
/// Header: the signature.
pub const SIGNATURE_HEADER: &str = "x-bittensor-signature";

/// What of a request the signature covers.
#[derive(Clone, Copy, Debug)]
pub struct SignedParts<'r> {
    /// The method, in any letter case.
    pub method: &'r str,
    /// Path and query exactly as sent.
    pub target: &'r str,
    /// The raw body.
    pub body: &'r [u8],
}

impl SignedParts<'_> {
    fn signed_text(&self, scheme: &str, nonce: &str, sender: &Hotkey, receiver: Option<&Hotkey>) -> String {
        let receiver = receiver.map_or_else(|| "-".to_owned(), ToString::to_string);
        let (method, body) = (self.method.to_uppercase(), hex::encode(Sha256::digest(self.body)));
        ["btauth/1", scheme, &method, self.target, &body, nonce, &sender.to_string(), &receiver].join("\n")
    }
}

/// Says whether a request carries btauth's headers, right or wrong.
#[must_use]
pub fn is_btauth(headers: &HeaderMap) -> bool {
    headers.contains_key(SIGNATURE_HEADER) || headers.contains_key(VERSION_HEADER)
}

/// Reads who claims to call.
///
/// # Errors
/// [`AuthError`]: first the shape of every header, then the receiver. A request for anybody counts only where
/// [`Limits::btauth_unbound`] says so.
pub fn claim(
    headers: &HeaderMap,
    request: SignedParts<'_>,
    receiver: &Hotkey,
    limits: &Limits,
) -> Result<Claim, AuthError> {
    if !limits.btauth {
        return Err(AuthError::TransportOff("btauth/1"));
    }
    if headers::required(headers, VERSION_HEADER)? != VERSION {
        return Err(AuthError::Malformed { name: VERSION_HEADER, expected: VERSION });
    }
    let address = |name, text: &str| {
        text.parse::<Hotkey>().map_err(|_| AuthError::Malformed { name, expected: "an ss58 address with prefix 42" })
    };
    let hotkey = address(HOTKEY_HEADER, headers::required(headers, HOTKEY_HEADER)?)?;
    let nonce = headers::required(headers, NONCE_HEADER)?;
    let at_ns =
        parse_nonce(nonce).ok_or(AuthError::Malformed { name: NONCE_HEADER, expected: "nanoseconds since 1970" })?;
    let scheme_name = headers::optional(headers, CRYPTO_HEADER)?.unwrap_or("sr25519");
    let scheme = match scheme_name {
        "sr25519" => Scheme::Sr25519,
        "ed25519" => Scheme::Ed25519,
        _ => return Err(AuthError::Malformed { name: CRYPTO_HEADER, expected: "sr25519 or ed25519" }),
    };
    let signature = parse_signature(headers::required(headers, SIGNATURE_HEADER)?)
        .ok_or(AuthError::Malformed { name: SIGNATURE_HEADER, expected: "128 hexadecimal digits" })?;
    let signed_for =
        headers::optional(headers, RECEIVER_HEADER)?.map(|text| address(RECEIVER_HEADER, text)).transpose()?;
    match &signed_for {
        Some(signed_for) if signed_for == receiver => {}
        None if limits.btauth_unbound => {}
        _ => return Err(AuthError::WrongReceiver),
    }
    Ok(Claim {
        transport: Transport::Btauth,
        hotkey,
        scheme,
        signed: request.signed_text(scheme_name, nonce, &hotkey, signed_for.as_ref()).into_bytes(),
        signature,
        nonce: Nonce::Windowed {
            key: format!("{hotkey}:btauth"),
            value: nonce.to_owned(),
            at_ns,
            max_age: limits.btauth_max_age,
            max_ahead: limits.btauth_max_ahead,
        },
        timeout: None,
        version: None,
    })
}

/// Makes the headers of a request: `sender` asks `receiver`, or anybody where there is none.
///
/// No two requests of one sender may have the same `now_ns`.
#[must_use]
pub fn sign(sender: &Keypair, receiver: Option<&Hotkey>, request: SignedParts<'_>, now_ns: i128) -> HeaderMap {
    let (hotkey, nonce) = (sender.hotkey(), now_ns.to_string());
    let signature = sender.sign(request.signed_text("sr25519", &nonce, &hotkey, receiver).as_bytes());
    let mut headers = HeaderMap::with_capacity(5);
    let mut insert = |name: &'static str, value: String| {
        // Digits and base58: always a header value.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    insert(VERSION_HEADER, VERSION.to_owned());
    insert(HOTKEY_HEADER, hotkey.to_string());
    insert(NONCE_HEADER, nonce);
    insert(SIGNATURE_HEADER, keys::format_signature(&signature));
    if let Some(receiver) = receiver {
        insert(RECEIVER_HEADER, receiver.to_string());
    }
    headers
}

/// Reads nanoseconds in the one spelling that Python prints, since the text is part of the nonce's identity.
fn parse_nonce(text: &str) -> Option<i128> {
    let is_canonical =
        text.len() <= 30 && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    is_canonical.then(|| text.parse().ok()).flatten()
}

/// Reads a signature with or without `0x`.
fn parse_signature(text: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    hex::decode_to_slice(text.strip_prefix("0x").unwrap_or(text), &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests;
