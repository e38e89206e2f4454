//! What the machine allows: its limits, and which of them binds.

use std::time::Duration;

use idiolect_kernels::{Tier, limits};
use serde::Serialize;

use super::demand::Demand;

/// How long each figure is measured, three times.
const TIME: Duration = Duration::from_millis(150);
/// Size of the last cache where the system does not tell.
const USUAL_CACHE: usize = 16 << 20;
/// Most memory that the bandwidth is measured with.
const MEMORY: usize = 512 << 20;

/// A figure with one thread and with all.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) one_thread: f64,
    pub(crate) all_threads: f64,
}

impl Figure {
    fn of(threads: usize, unit: f64, measure: impl Fn(usize) -> f64) -> Self {
        let one_thread = round(measure(1) / unit);
        let all_threads = if threads > 1 { round(measure(threads) / unit) } else { one_thread };
        Self { one_thread, all_threads }
    }

    /// More threads than cores, or a busy core, may make all threads slower than one.
    fn most(self) -> f64 {
        self.one_thread.max(self.all_threads)
    }
}

/// What the machine can do.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) threads: usize,
    pub(crate) tier: &'static str,
    /// Size of the last cache.
    pub(crate) cache_mb: f64,
    /// Reading memory.
    pub(crate) memory_gb_s: Figure,
    /// Reading the last cache.
    pub(crate) cache_gb_s: Figure,
    /// Multiplying and adding bytes, a thousand million times a second.
    pub(crate) int8_gmac_s: Figure,
    /// The same with `f32`.
    pub(crate) f32_gmac_s: Figure,
}

impl Machine {
    pub(crate) fn measure(threads: usize) -> Self {
        let (tier, cache) = (Tier::detect(), cache_bytes());
        let memory = (cache * 8).clamp(128 << 20, MEMORY);
        Self {
            threads,
            tier: tier.name(),
            cache_mb: round(cache as f64 / 1e6),
            memory_gb_s: Figure::of(threads, 1e9, |n| limits::read_bytes_per_s(memory, n, TIME)),
            // Half of it: others use it, too.
            cache_gb_s: Figure::of(threads, 1e9, |n| limits::read_bytes_per_s(cache / 2, n, TIME)),
            int8_gmac_s: Figure::of(threads, 1e9, |n| limits::int8_macs_per_s(tier, n, TIME)),
            f32_gmac_s: Figure::of(threads, 1e9, |n| limits::f32_macs_per_s(tier, n, TIME)),
        }
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Returns the size of the last cache of the first core.
fn cache_bytes() -> usize {
    let read = |i: usize| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size")).ok()?;
        let text = text.trim();
        let (digits, scale) = match text.strip_suffix('K') {
            Some(digits) => (digits, 1 << 10),
            None => (text.strip_suffix('M')?, 1 << 20),
        };
        Some(digits.parse::<usize>().ok()? * scale)
    };
    (0..8).filter_map(read).max().filter(|bytes| *bytes > 0).unwrap_or(USUAL_CACHE)
}

/// The share of a limit that was reached, and of which.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Share {
    /// Measured rate by the limit's, 1 is the limit.
    pub(crate) share: f64,
    /// `memory`, `cache` or `compute`.
    pub(crate) binds: &'static str,
}

/// The shares of one row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Shares {
    pub(crate) prefill: Share,
    pub(crate) decode: Share,
    pub(crate) best_of_n: Share,
}

/// What one row's work was, and how fast it went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) n: f64,
    pub(crate) prompt_tokens: f64,
    pub(crate) new_tokens: f64,
    pub(crate) prefill_tok_s: f64,
    pub(crate) decode_tok_s: f64,
    pub(crate) best_of_n_tok_s: f64,
}

impl Machine {
    /// Compares rates with what the machine would allow.
    ///
    /// A step takes as long as reading what it needs, or as multiplying it, whichever is longer: weights with the byte
    /// dot product, attention in `f32`.
    pub(crate) fn shares(&self, demand: &Demand, rates: &Rates) -> Shares {
        let Rates { n, prompt_tokens, new_tokens, .. } = *rates;
        let prefill = self.limit(
            demand.weight_bytes,
            prompt_tokens * (demand.macs - demand.output_macs) + demand.output_macs,
            prompt_tokens * prompt_tokens / 2.0 * demand.attention_macs,
        );
        // Each candidate's own tokens are half there on average; the prompt's are shared, and read once.
        let own = new_tokens / 2.0;
        let step = self.limit(
            demand.weight_bytes + demand.kv_bytes * (prompt_tokens + n * own),
            n * demand.macs,
            n * (prompt_tokens + own) * demand.attention_macs,
        );
        let n_steps = (new_tokens - 1.0).max(0.0);
        let whole = prefill.0 + n_steps * step.0;
        let share = |measured: f64, limit: f64, binds| {
            let share = if limit > 0.0 { (measured / limit * 1000.0).round() / 1000.0 } else { 0.0 };
            Share { share, binds }
        };
        Shares {
            prefill: share(rates.prefill_tok_s, prompt_tokens / prefill.0, prefill.1),
            decode: share(rates.decode_tok_s, n / step.0, step.1),
            best_of_n: share(
                rates.best_of_n_tok_s,
                n * new_tokens / whole,
                if prefill.0 > n_steps * step.0 { prefill.1 } else { step.1 },
            ),
        }
    }

    /// Returns the least seconds that reading and multiplying so much takes, and what takes them.
    fn limit(&self, bytes: f64, int8_macs: f64, f32_macs: f64) -> (f64, &'static str) {
        // What fits the cache stays there from step to step.
        let (bandwidth, place) = if bytes < self.cache_mb * 1e6 {
            (self.cache_gb_s.most(), "cache")
        } else {
            (self.memory_gb_s.most(), "memory")
        };
        let reading = bytes / (bandwidth * 1e9);
        let multiplying = int8_macs / (self.int8_gmac_s.most() * 1e9) + f32_macs / (self.f32_gmac_s.most() * 1e9);
        if reading > multiplying { (reading, place) } else { (multiplying, "compute") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(value: f64) -> Figure {
        Figure { one_thread: value / 2.0, all_threads: value }
    }

    fn machine() -> Machine {
        Machine {
            threads: 2,
            tier: "portable",
            cache_mb: 32.0,
            memory_gb_s: figure(50.0),
            cache_gb_s: figure(100.0),
            int8_gmac_s: figure(500.0),
            f32_gmac_s: figure(100.0),
        }
    }

    #[test]
    fn one_candidate_is_bound_by_memory_and_many_by_arithmetic() {
        let demand = Demand { weight_bytes: 75e6, macs: 134e6, output_macs: 28e6, kv_bytes: 0.0, attention_macs: 0.0 };
        let rates = |n: f64, decode_tok_s: f64| Rates {
            n,
            prompt_tokens: 512.0,
            new_tokens: 33.0,
            prefill_tok_s: 1000.0,
            decode_tok_s,
            best_of_n_tok_s: 100.0,
        };
        // 75 MB at 50 GB/s are 1.5 ms a step.
        let one = machine().shares(&demand, &rates(1.0, 333.333)).decode;
        assert_eq!(one, Share { share: 0.5, binds: "memory" });
        // 16 x 134 M products at 500 G/s are 4.288 ms a step.
        let many = machine().shares(&demand, &rates(16.0, 16.0 / 4.288e-3)).decode;
        assert_eq!(many, Share { share: 1.0, binds: "compute" });
        let prefill = machine().shares(&demand, &rates(1.0, 1.0)).prefill;
        assert_eq!(prefill.binds, "compute");
        assert!((0.2..0.25).contains(&prefill.share), "{prefill:?}");
        let small = Demand { weight_bytes: 10e6, macs: 1e6, ..demand };
        assert_eq!(machine().shares(&small, &rates(1.0, 1.0)).decode.binds, "cache");
    }

    #[test]
    fn the_machine_has_figures() {
        let machine = Machine::measure(1);
        for figure in [machine.memory_gb_s, machine.cache_gb_s, machine.int8_gmac_s, machine.f32_gmac_s] {
            assert!(figure.one_thread > 0.0 && figure.one_thread == figure.all_threads, "{machine:?}");
        }
        assert!(machine.cache_mb > 0.0);
    }
}
