use std::time::Duration;

use http::HeaderMap;

use super::SynapseSpec;
use crate::caller::FIRST_CLOCK_NONCE;
use crate::headers::{is_session_id, optional, parse_seconds, required};
use crate::{AuthError, Claim, Hotkey, Limits, Nonce, Scheme, Transport, keys};

/// The timeout of a client that does not say one, as bittensor has it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(12);
/// From this version on (7.2.0) nonces are clock readings.
const FIRST_CLOCK_VERSION: i64 = 7_002_000;
/// How the generation with counters is called in messages.
const LEGACY: &str = "bittensor 6.0 to 7.1";
/// How the generation with clock readings is called in messages.
const MODERN: &str = "bittensor 7.2 to 10";
/// What Python prints for a header that is missing, also in the text that is signed.
const NONE: &str = "None";

/// The hash that the client signed, as its header says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyHash(Option<String>);

impl BodyHash {
    /// Returns the header's text; `None` where it is missing, which fits no body.
    #[must_use]
    pub fn as_deref(&self) -> Option<&str> {
        self.0.as_deref()
    }

    #[cfg(test)]
    pub(super) fn for_tests(hash: Option<&str>) -> Self {
        Self(hash.map(str::to_owned))
    }
}

/// What a request's head says.
#[derive(Clone, Debug)]
pub struct SynapseHead {
    /// Who claims to call.
    pub claim: Claim,
    /// The signed hash of the body, to be given to [`SynapseBody::parse`](super::SynapseBody::parse).
    pub body_hash: BodyHash,
}

/// Reads a request's head.
///
/// Whether a nonce is a clock reading or a counter is told by its size, because the version that the client gives is
/// not signed: somebody who replays a request cannot pass a clock reading off as a counter. (bittensor 6.10.0 sends
/// clock readings under an old version; they are treated as such.)
///
/// # Errors
/// [`AuthError`]; [`AuthError::TransportOff`] for clock readings where [`Limits::http`] is off, and for counters where
/// [`Limits::legacy_http`] is.
pub fn read_head(
    headers: &HeaderMap,
    synapse: &SynapseSpec,
    receiver: &Hotkey,
    limits: &Limits,
) -> Result<SynapseHead, AuthError> {
    if !synapse.required_headers.iter().all(|name| headers.contains_key(name)) {
        return Err(AuthError::Malformed {
            name: "bt_header_input_obj",
            expected: "a header of this kind for each required field",
        });
    }
    let timeout = optional(headers, "timeout")?
        .map(|text| {
            parse_seconds(text).ok_or(AuthError::Malformed { name: "timeout", expected: "a number of seconds above 0" })
        })
        .transpose()?;
    let version = optional(headers, "bt_header_dendrite_version")?
        .map(|text| text.parse::<i64>())
        .transpose()
        .map_err(|_| AuthError::Malformed { name: "bt_header_dendrite_version", expected: "an integer" })?;
    let nonce = optional(headers, "bt_header_dendrite_nonce")?
        .ok_or(AuthError::Missing("Nonce"))?
        .parse::<i128>()
        .map_err(|_| AuthError::Malformed { name: "bt_header_dendrite_nonce", expected: "an integer" })?;
    let sender = required(headers, "bt_header_dendrite_hotkey").map_err(|err| renamed(err, "Hotkey"))?;
    let hotkey: Hotkey = sender.parse().map_err(|_| AuthError::SignatureMismatch)?;
    let signature = required(headers, "bt_header_dendrite_signature").map_err(|err| renamed(err, "Signature"))?;
    let signature = keys::parse_signature(signature).ok_or(AuthError::SignatureMismatch)?;
    let session = optional(headers, "bt_header_dendrite_uuid")?.unwrap_or(NONE);
    if !is_session_id(session) {
        return Err(AuthError::Malformed { name: "bt_header_dendrite_uuid", expected: "a UUID" });
    }
    let hash = optional(headers, "computed_body_hash")?;
    // With no dot in session and hash, the signed text can be taken apart in one way only.
    if hash.is_some_and(|hash| hash.contains('.')) {
        return Err(AuthError::SignatureMismatch);
    }

    let signed = format!("{nonce}.{sender}.{receiver}.{session}.{}", hash.unwrap_or(NONE)).into_bytes();
    let key = format!("{sender}:{session}");
    let is_clock = nonce >= FIRST_CLOCK_NONCE || version.is_some_and(|version| version >= FIRST_CLOCK_VERSION);
    let nonce = if is_clock && !limits.http {
        return Err(AuthError::TransportOff(MODERN));
    } else if is_clock {
        let widening = timeout.unwrap_or(DEFAULT_TIMEOUT).min(limits.http_window_timeout);
        Nonce::Windowed {
            key,
            value: nonce.to_string(),
            at_ns: nonce,
            max_age: limits.http_slack.saturating_add(widening),
            max_ahead: limits.max_ahead,
        }
    } else if limits.legacy_http {
        Nonce::Monotonic { key, value: nonce }
    } else {
        return Err(AuthError::TransportOff(LEGACY));
    };
    let claim = Claim {
        transport: Transport::Http,
        hotkey,
        scheme: Scheme::Sr25519,
        signed,
        signature,
        nonce,
        timeout: timeout.map(|timeout| timeout.min(limits.max_timeout)),
        version,
    };
    Ok(SynapseHead { claim, body_hash: BodyHash(hash.map(str::to_owned)) })
}

/// Names what is missing as reference servers do.
fn renamed(error: AuthError, name: &'static str) -> AuthError {
    match error {
        AuthError::Missing(_) => AuthError::Missing(name),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::super::Synapses;
    use super::*;
    use crate::Keypair;

    const NOW: i128 = 1_795_335_808_422_349_442;

    /// The headers of a sound request, with some set to other values, added twice (`+`) or removed (`None`).
    fn head(changes: &[(&'static str, Option<&str>)], limits: &Limits) -> Result<SynapseHead, AuthError> {
        let (bob, alice) = (Keypair::from_uri("//Bob").unwrap(), Keypair::from_uri("//Alice").unwrap());
        let mut headers = HeaderMap::new();
        let nonce = NOW.to_string();
        let signed = format!("{nonce}.{}.{}.u-1.abc", bob.hotkey(), alice.hotkey());
        let signature = keys::format_signature(&bob.sign(signed.as_bytes()));
        let sender = bob.hotkey().to_string();
        for (name, value) in [
            ("bt_header_dendrite_nonce", nonce.as_str()),
            ("bt_header_dendrite_hotkey", &sender),
            ("bt_header_dendrite_uuid", "u-1"),
            ("bt_header_dendrite_signature", &signature),
            ("bt_header_dendrite_version", "10005000"),
            ("bt_header_input_obj_roles", "W10="),
            ("bt_header_input_obj_messages", "W10="),
            ("computed_body_hash", "abc"),
            ("timeout", "12.0"),
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        for (name, value) in changes {
            match value {
                Some("+") => drop(headers.append(HeaderName::from_static(name), headers[*name].clone())),
                Some(value) => {
                    drop(headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
                }
                None => drop(headers.remove(*name)),
            }
        }
        read_head(&headers, Synapses::default().find("/Prompting").unwrap(), &alice.hotkey(), limits)
    }

    fn check(name: &'static str, value: Option<&str>, expected: &str) {
        let error = head(&[(name, value)], &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(expected), "{name} {value:?}: {error}");
    }

    #[test]
    fn a_sound_head_is_read() {
        let head = head(&[], &Limits::default()).unwrap();
        assert!(head.claim.hotkey.verify(&head.claim.signed, &head.claim.signature));
        assert_eq!(head.claim.timeout, Some(Duration::from_secs(12)));
        assert_eq!(head.claim.version, Some(10_005_000));
        assert_eq!(head.body_hash.as_deref(), Some("abc"));
        assert!(matches!(head.claim.nonce, Nonce::Windowed { at_ns: NOW, max_age, .. } if max_age.as_secs() == 16));
    }

    #[test]
    fn bad_headers_are_named() {
        check("bt_header_dendrite_nonce", None, "Missing Nonce");
        check("bt_header_dendrite_nonce", Some("abc"), "bt_header_dendrite_nonce");
        check("bt_header_dendrite_nonce", Some(""), "bt_header_dendrite_nonce");
        check("bt_header_dendrite_nonce", Some("1e3"), "bt_header_dendrite_nonce");
        check("bt_header_dendrite_nonce", Some(&"9".repeat(60)), "bt_header_dendrite_nonce");
        check("bt_header_dendrite_hotkey", None, "Missing Hotkey");
        check("bt_header_dendrite_hotkey", Some("x"), "Signature mismatch");
        check("bt_header_dendrite_signature", None, "Missing Signature");
        check("bt_header_dendrite_signature", Some(""), "Missing Signature");
        check("bt_header_dendrite_signature", Some("0x12"), "Signature mismatch");
        check("bt_header_dendrite_uuid", Some("a.b"), "bt_header_dendrite_uuid");
        check("bt_header_dendrite_uuid", Some(&"u".repeat(65)), "bt_header_dendrite_uuid");
        check("computed_body_hash", Some("a.b"), "Signature mismatch");
        check("bt_header_dendrite_version", Some("10.5.0"), "bt_header_dendrite_version");
        for timeout in ["abc", "", "0", "-1", "nan", "inf"] {
            check("timeout", Some(timeout), "timeout");
        }
        check("bt_header_input_obj_roles", None, "required field");
        for twice in [
            "bt_header_dendrite_nonce",
            "bt_header_dendrite_hotkey",
            "bt_header_dendrite_uuid",
            "bt_header_dendrite_signature",
            "bt_header_dendrite_version",
            "computed_body_hash",
            "timeout",
        ] {
            check(twice, Some("+"), "one value");
        }
    }

    #[test]
    fn a_raised_timeout_widens_little_and_is_capped() {
        let head = head(&[("timeout", Some("1e300"))], &Limits::default()).unwrap();
        assert_eq!(head.claim.timeout, Some(Limits::default().max_timeout));
        assert!(matches!(head.claim.nonce, Nonce::Windowed { max_age, .. } if max_age.as_secs() == 24));
    }

    #[test]
    fn the_size_of_a_nonce_tells_clock_from_counter() {
        let off = Limits::default();
        let on = Limits { legacy_http: true, ..Limits::default() };
        let old = ("bt_header_dendrite_version", Some("694"));
        let counter = ("bt_header_dendrite_nonce", Some("2188881312626"));
        assert!(matches!(head(&[old], &on).unwrap().claim.nonce, Nonce::Windowed { .. }));
        assert!(matches!(head(&[old], &off).unwrap().claim.nonce, Nonce::Windowed { .. }));
        assert!(matches!(
            head(&[old, counter], &on).unwrap().claim.nonce,
            Nonce::Monotonic { value: 2188881312626, .. }
        ));
        assert_eq!(head(&[old, counter], &off).unwrap_err(), AuthError::TransportOff(LEGACY));
        let none = Limits { http: false, ..Limits::default() };
        assert_eq!(head(&[], &none).unwrap_err(), AuthError::TransportOff(MODERN));
        // A new client has no counters: this one is far too old.
        assert!(matches!(head(&[counter], &on).unwrap().claim.nonce, Nonce::Windowed { .. }));
        let no_version = ("bt_header_dendrite_version", None);
        assert!(matches!(head(&[no_version, counter], &on).unwrap().claim.nonce, Nonce::Monotonic { .. }));
    }

    #[test]
    fn missing_parts_print_as_none() {
        let head =
            head(&[("bt_header_dendrite_uuid", None), ("computed_body_hash", None)], &Limits::default()).unwrap();
        assert!(head.claim.signed.ends_with(b".None.None"));
        assert_eq!(head.body_hash.as_deref(), None);
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(
            name in proptest::sample::select(vec![
                "timeout", "bt_header_dendrite_nonce", "bt_header_dendrite_hotkey", "bt_header_dendrite_signature",
                "bt_header_dendrite_uuid", "bt_header_dendrite_version", "computed_body_hash",
            ]),
            value in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100),
        ) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(name, value.clone());
                headers.insert("bt_header_input_obj_roles", value.clone());
                headers.insert("bt_header_input_obj_messages", value);
            }
            let synapses = Synapses::default();
            let synapse = synapses.find("/Prompting").unwrap();
            let _ = read_head(&headers, synapse, &Hotkey::from_bytes([7; 32]), &Limits::default());
        }
    }
}
