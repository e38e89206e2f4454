//! A recorder that keeps counters, and of each histogram the last value and how many there were.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// Keeps what was recorded, by name and labels, in this order: "name label label".
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    counters: Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>,
    histograms: Arc<Mutex<HashMap<String, Arc<Values>>>>,
}

#[derive(Debug, Default)]
struct Values(Mutex<(usize, Option<f64>)>);

impl HistogramFn for Values {
    fn record(&self, value: f64) {
        let mut values = self.0.lock().unwrap();
        *values = (values.0 + 1, Some(value));
    }
}

fn name(key: &Key) -> String {
    std::iter::once(key.name()).chain(key.labels().map(metrics::Label::value)).collect::<Vec<_>>().join(" ")
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(Arc::clone(self.counters.lock().unwrap().entry(name(key)).or_default()))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::clone(self.histograms.lock().unwrap().entry(name(key)).or_default()))
    }
}

impl Kept {
    /// Returns what a counter is at.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.counters.lock().unwrap().get(name).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Returns the last value of a histogram.
    pub(crate) fn last(&self, name: &str) -> Option<f64> {
        self.histograms.lock().unwrap().get(name).and_then(|values| values.0.lock().unwrap().1)
    }

    /// Returns how many steps a backend took.
    pub(crate) fn steps(&self, backend: &str) -> usize {
        let histograms = self.histograms.lock().unwrap();
        let of = |kind: &str| histograms.get(&format!("idiolect_candle_step_seconds {backend} {kind}"));
        ["decode", "prefill", "mixed"].into_iter().filter_map(of).map(|values| values.0.lock().unwrap().0).sum()
    }
}
