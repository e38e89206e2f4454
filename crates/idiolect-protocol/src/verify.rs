//! From a [`Claim`] to a [`Caller`]: window, signature, nonce, in this order.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::nonce::Keeping;
use crate::{AuthError, Caller, Claim, Hotkey, Nonce, NonceStore, Transport, keys};

/// Where the verifier reads the time; tests put recorded times here.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Returns nanoseconds since 1970.
    fn now_ns(&self) -> i128;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ns(&self) -> i128 {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i128::try_from(since.as_nanos()).unwrap_or(i128::MAX),
            Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap_or(i128::MAX),
        }
    }
}

/// What a verifier accepts at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A client's stated timeout counts up to this much, however much it claims. Default 60 s.
    ///
    /// The timeout is not signed; it sets the deadline of the answer.
    pub max_timeout: Duration,
    /// How much of a client's stated timeout widens the window of acceptable clock readings (HTTP). Default 20 s.
    ///
    /// The timeout is not signed, so somebody who replays a request could raise it: this must stay small.
    pub http_window_timeout: Duration,
    /// How far ahead of our clock a reading may lie (HTTP and Epistula). Default 60 s.
    pub max_ahead: Duration,
    /// What is added to the client's timeout to give the window (HTTP). Default 4 s, as in bittensor.
    pub http_slack: Duration,
    /// How old an Epistula timestamp may be. Default 8 s.
    pub epistula_max_age: Duration,
    /// How old a btauth nonce may be. Default 10 s.
    pub btauth_max_age: Duration,
    /// How far ahead a btauth nonce may lie. Default 2 s.
    pub btauth_max_ahead: Duration,
    /// Serve bittensor 6.0 to 7.1, whose nonces have no relation to the time of day. Default off.
    pub legacy_http: bool,
    /// Serve bittensor 5.x over gRPC. Default on.
    pub grpc: bool,
    /// Take gRPC nonces that are readings of the clock on the wall (1999 to 2262 in nanoseconds). Default off.
    ///
    /// bittensor 5 counts from when the machine was started. The servers of later versions sign, for anybody who asks, their
    /// own time followed by two addresses of the asker's choice and their session: the very text that a gRPC request of
    /// theirs to any miner would be signed with (seen with 6.9.4, 7.4.0 and 10.5.0, which sign before they check anything
    /// and return the signature with the refusal). Whoever takes such nonces takes everybody for a validator that serves an axon too.
    pub grpc_clock_nonces: bool,
    /// Serve bittensor 6 to 10 over HTTP. Default on.
    pub http: bool,
    /// Serve Epistula. Default on.
    pub epistula: bool,
    /// Serve bittensor 11 (btauth/1). Default on.
    pub btauth: bool,
    /// Accept btauth requests that name no receiver. Default off.
    pub btauth_unbound: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_timeout: Duration::from_secs(60),
            http_window_timeout: Duration::from_secs(20),
            max_ahead: Duration::from_secs(60),
            http_slack: Duration::from_secs(4),
            epistula_max_age: Duration::from_secs(8),
            btauth_max_age: Duration::from_secs(10),
            btauth_max_ahead: Duration::from_secs(2),
            legacy_http: false,
            grpc: true,
            grpc_clock_nonces: false,
            http: true,
            epistula: true,
            btauth: true,
            btauth_unbound: false,
        }
    }
}

impl Limits {
    /// Returns how old a clock reading may be at most, whatever transport, and whatever a client says of its timeout.
    #[must_use]
    pub fn widest_window(&self) -> Duration {
        self.http_slack.saturating_add(self.http_window_timeout).max(self.epistula_max_age).max(self.btauth_max_age)
    }
}

impl Limits {
    /// Refuses transports that are switched off.
    const fn check_served(&self, transport: Transport) -> Result<(), AuthError> {
        match transport {
            Transport::Grpc if !self.grpc => Err(AuthError::TransportOff("bittensor 5")),
            Transport::Http if !self.http => Err(AuthError::TransportOff("bittensor 6 to 10")),
            Transport::Epistula if !self.epistula => Err(AuthError::TransportOff("Epistula")),
            Transport::Btauth if !self.btauth => Err(AuthError::TransportOff("bittensor 11")),
            _ => Ok(()),
        }
    }
}

/// Turns claims into callers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verifier {
    receiver: Hotkey,
    limits: Limits,
    clock: Arc<dyn Clock>,
    nonces: Arc<NonceStore>,
}

impl Verifier {
    /// Makes a verifier for requests addressed to `receiver`.
    pub fn new(receiver: Hotkey, limits: Limits, clock: Arc<dyn Clock>, nonces: Arc<NonceStore>) -> Self {
        Self { receiver, limits, clock, nonces }
    }

    /// Returns the key that requests must be signed for.
    #[must_use]
    pub const fn receiver(&self) -> &Hotkey {
        &self.receiver
    }

    /// Returns the limits.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Returns the clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Proves a claim: the cheap look at the clock first, then the signature, and the nonce is stored only after both.
    ///
    /// # Errors
    /// [`AuthError`] with the first check that failed. A refused claim leaves no trace in the nonce store.
    pub fn verify(&self, claim: Claim) -> Result<Caller, AuthError> {
        self.verify_as(claim, |_| true)
    }

    /// As [`verify`](Self::verify), and tells the nonce store whether the miner knows the key (say, from the metagraph),
    /// so that strangers with keys made on the spot cannot fill it: they get half of it at most.
    ///
    /// # Errors
    /// As [`verify`](Self::verify).
    pub fn verify_as(&self, claim: Claim, is_known: impl FnOnce(&Hotkey) -> bool) -> Result<Caller, AuthError> {
        self.limits.check_served(claim.transport)?;
        let now_ns = self.clock.now_ns();
        check_window(&claim.nonce, now_ns)?;
        let proof = keys::verify(claim.scheme, &claim.hotkey, &claim.signed, &claim.signature)
            .ok_or(AuthError::SignatureMismatch)?;
        let keeping = Keeping { horizon: self.limits.widest_window(), is_known: is_known(&claim.hotkey) };
        self.nonces.check_and_keep(&claim.nonce, now_ns, keeping)?;
        proof.count();
        Ok(Caller { transport: claim.transport, hotkey: claim.hotkey, timeout: claim.timeout, version: claim.version })
    }
}

/// Refuses clock readings outside their window. Counters pass: only the store can judge them.
fn check_window(nonce: &Nonce, now_ns: i128) -> Result<(), AuthError> {
    let Nonce::Windowed { at_ns, max_age, max_ahead, .. } = nonce else { return Ok(()) };
    let age_ns = now_ns.saturating_sub(*at_ns);
    let as_ns = |d: &Duration| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX);
    if age_ns > as_ns(max_age) {
        let age = Duration::from_nanos(u64::try_from(age_ns).unwrap_or(u64::MAX));
        return Err(AuthError::TooOld { acceptable: *max_age, age });
    }
    if age_ns.saturating_neg() > as_ns(max_ahead) {
        return Err(AuthError::TooFarAhead);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Keypair, Scheme, Transport};

    const S: i128 = 1_000_000_000;

    #[derive(Debug)]
    struct At(i128);
    impl Clock for At {
        fn now_ns(&self) -> i128 {
            self.0
        }
    }

    fn claim(at_ns: i128) -> Claim {
        let alice = Keypair::from_uri("//Alice").unwrap();
        Claim {
            transport: Transport::Http,
            hotkey: alice.hotkey(),
            scheme: Scheme::Sr25519,
            signed: b"text".to_vec(),
            signature: alice.sign(b"text"),
            nonce: Nonce::Windowed {
                key: "a:1".into(),
                value: at_ns.to_string(),
                at_ns,
                max_age: Duration::from_secs(16),
                max_ahead: Duration::from_secs(60),
            },
            timeout: None,
            version: None,
        }
    }

    fn verifier(now_ns: i128) -> (Verifier, Arc<NonceStore>) {
        let nonces = Arc::new(NonceStore::new(100));
        let receiver = Hotkey::from_bytes([1; 32]);
        (Verifier::new(receiver, Limits::default(), Arc::new(At(now_ns)), Arc::clone(&nonces)), nonces)
    }

    #[test]
    fn the_window_has_two_sides() {
        let check = |age_s: i128, is_accepted: bool| {
            let (verifier, _) = verifier(1000 * S);
            assert_eq!(verifier.verify(claim((1000 - age_s) * S)).is_ok(), is_accepted, "{age_s}");
        };
        check(0, true);
        check(16, true);
        check(17, false);
        check(-60, true);
        check(-61, false);
    }

    #[test]
    fn extreme_readings_are_refused_without_overflow() {
        for at in [i128::MIN, i128::MAX] {
            for now in [i128::MIN, 0, i128::MAX] {
                if at != now {
                    assert!(verifier(now).0.verify(claim(at)).is_err());
                }
            }
        }
    }

    #[test]
    fn a_refused_claim_leaves_no_trace() {
        let (verifier, nonces) = verifier(1000 * S);
        let mut forged = claim(1000 * S);
        forged.signed.push(b'!');
        assert_eq!(verifier.verify(forged), Err(AuthError::SignatureMismatch));
        assert!(verifier.verify(claim(S)).is_err());
        assert!(nonces.is_empty());
        assert!(verifier.verify(claim(1000 * S)).is_ok());
        assert_eq!(verifier.verify(claim(1000 * S)), Err(AuthError::Replayed));
    }

    #[test]
    fn only_proofs_with_a_new_nonce_count_towards_a_faster_check() {
        let caller = Keypair::from_uri("//a caller of this test alone").unwrap();
        let n_counted = || crate::sr25519::n_counted(caller.hotkey().as_bytes());
        let signed = |at_ns| Claim { hotkey: caller.hotkey(), signature: caller.sign(b"text"), ..claim(at_ns) };
        let (verifier, _) = verifier(1000 * S);
        assert!(verifier.verify(signed(1000 * S)).is_ok());
        assert_eq!(n_counted(), 1);
        for _ in 0..5 {
            assert_eq!(verifier.verify(signed(1000 * S)), Err(AuthError::Replayed));
            assert!(verifier.verify(signed(S)).is_err(), "too old");
            assert!(verifier.verify(Claim { signed: b"other".to_vec(), ..signed(1000 * S + 1) }).is_err());
        }
        assert_eq!(n_counted(), 1);
        assert!(verifier.verify(signed(1000 * S + 1)).is_ok());
        assert_eq!(n_counted(), 2);
    }

    #[test]
    fn transports_that_are_off_are_not_even_read() {
        let off = Limits { grpc: false, epistula: false, btauth: false, ..Limits::default() };
        let (headers, receiver) = (http::HeaderMap::new(), Hotkey::from_bytes([1; 32]));
        let request = crate::btauth::SignedParts { method: "POST", target: "/", body: b"" };
        let claims = |limits: &Limits| {
            [
                crate::grpc::claim(&headers, &receiver, limits),
                crate::epistula::claim(&headers, b"", &receiver, limits),
                crate::btauth::claim(&headers, request, &receiver, limits),
            ]
        };
        assert!(claims(&off).iter().all(|claim| matches!(claim, Err(AuthError::TransportOff(_)))));
        assert!(claims(&Limits::default()).iter().all(|claim| matches!(claim, Err(AuthError::Missing(_)))));
    }
}
