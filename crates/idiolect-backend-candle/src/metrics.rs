//! The metrics of this crate: one function each, so that names and labels stand in one place.

use std::time::Duration;

use metrics::{SharedString, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::speed::Speed;

const PROMPT_TOKENS: &str = "idiolect_candle_prompt_tokens_total";
const TOKENS: &str = "idiolect_candle_tokens_total";
const STEP_SECONDS: &str = "idiolect_candle_step_seconds";
const DRAW_SECONDS: &str = "idiolect_candle_draw_seconds";
const CANDIDATES: &str = "idiolect_candle_candidates";
const WAITING: &str = "idiolect_candle_waiting_requests";
const RESERVED: &str = "idiolect_candle_kv_reserved_bytes";
const KEPT: &str = "idiolect_candle_kept_prompt_tokens";
const SPEED: &str = "idiolect_candle_tokens_per_second";
const PLANNED: &str = "idiolect_candle_planned_tokens";
const CUT: &str = "idiolect_candle_deadline_cuts_total";

/// Describes every metric to the installed recorder. Called when a backend is loaded; harmless when called again.
pub fn describe() {
    describe_counter!(
        PROMPT_TOKENS,
        "Tokens of prompts, by `backend` and `source` (computed, or kept from an earlier prompt that began alike)"
    );
    describe_counter!(TOKENS, "Tokens generated, by `backend`");
    describe_histogram!(
        STEP_SECONDS,
        Unit::Seconds,
        "Time of a step, by `backend` and `kind` (decode, prefill, mixed)"
    );
    describe_histogram!(
        DRAW_SECONDS,
        Unit::Seconds,
        "Part of a step's time that went into drawing tokens, by `backend` and `kind` (as of the step)"
    );
    describe_gauge!(CANDIDATES, "Candidates that grow side by side, by `backend`");
    describe_gauge!(WAITING, "Requests that wait for memory or for room in the batch, by `backend`");
    describe_gauge!(RESERVED, Unit::Bytes, "Keys and values that running requests may come to need, by `backend`");
    describe_gauge!(KEPT, "Tokens of prompts whose keys and values are kept for later ones, by `backend`");
    describe_gauge!(
        SPEED,
        "Measured speed of late, by `backend`, `kind` (prefill, decode) and `candidates` (for decode: the most that grew side by side, a power of two; 0 for prefill)"
    );
    describe_histogram!(
        PLANNED,
        "Tokens of each candidate that memory was set aside for when a request with a deadline began, by `backend`"
    );
    describe_counter!(
        CUT,
        "Candidates given up for a deadline, by `backend` and `when` (start, before they began; worst, so that better ones end; memory, for want of it where all went faster than expected; end)"
    );
}

/// The metrics of one backend.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    backend: SharedString,
}

impl Metrics {
    pub(crate) fn new(backend: &str) -> Self {
        Self { backend: backend.to_owned().into() }
    }

    /// Counts a prompt's tokens.
    pub(crate) fn prompt(&self, computed: usize, kept: usize) {
        for (source, n) in [("computed", computed), ("kept", kept)] {
            counter!(PROMPT_TOKENS, "backend" => self.backend.clone(), "source" => source).increment(n as u64);
        }
    }

    /// Counts generated tokens.
    pub(crate) fn tokens(&self, n: usize) {
        counter!(TOKENS, "backend" => self.backend.clone()).increment(n as u64);
    }

    /// Takes note of a step, and of how much of its time drawing took.
    pub(crate) fn step(&self, prompt_tokens: usize, candidates: usize, took: Duration, drew: Duration) {
        let kind = match (prompt_tokens, candidates) {
            (0, _) => "decode",
            (_, 0) => "prefill",
            _ => "mixed",
        };
        histogram!(STEP_SECONDS, "backend" => self.backend.clone(), "kind" => kind).record(took);
        histogram!(DRAW_SECONDS, "backend" => self.backend.clone(), "kind" => kind).record(drew);
    }

    /// Says what the engine is busy with.
    #[expect(clippy::cast_precision_loss, reason = "gauges are numbers to look at")]
    pub(crate) fn busy(&self, candidates: usize, waiting: usize, reserved_bytes: u64, kept_tokens: usize) {
        let gauge = |name: &'static str| gauge!(name, "backend" => self.backend.clone());
        gauge(CANDIDATES).set(candidates as f64);
        gauge(WAITING).set(waiting as f64);
        gauge(RESERVED).set(reserved_bytes as f64);
        gauge(KEPT).set(kept_tokens as f64);
    }

    /// Says how fast the engine is.
    pub(crate) fn speed(&self, speed: &Speed) {
        let set = |kind: &'static str, candidates: usize, tokens_per_second: f64| {
            let candidates = candidates.to_string();
            gauge!(SPEED, "backend" => self.backend.clone(), "kind" => kind, "candidates" => candidates)
                .set(tokens_per_second);
        };
        if let Some(prefill) = speed.prefill_tokens_per_second {
            set("prefill", 0, prefill);
        }
        speed.decode.iter().for_each(|of| set("decode", of.candidates, of.tokens_per_second));
    }

    /// Takes note of the length that memory was set aside for.
    #[expect(clippy::cast_precision_loss, reason = "lengths are far below 2^52")]
    pub(crate) fn planned(&self, length: usize) {
        histogram!(PLANNED, "backend" => self.backend.clone()).record(length as f64);
    }

    /// Counts candidates that a deadline ended.
    pub(crate) fn cut(&self, when: &'static str, n: usize) {
        if n > 0 {
            counter!(CUT, "backend" => self.backend.clone(), "when" => when).increment(n as u64);
        }
    }
}
