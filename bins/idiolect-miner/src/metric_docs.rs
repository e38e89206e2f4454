//! What every metric means, taken from the descriptions that the crates register.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// One metric.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MetricDoc {
    /// Its name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What it counts in, where the crate says so.
    pub unit: &'static str,
    /// What it means, its labels included.
    pub meaning: String,
}

/// Returns every metric that this miner can report, by name.
#[must_use]
pub fn described() -> Vec<MetricDoc> {
    let collector = Collector::default();
    metrics::with_local_recorder(&collector, crate::telemetry::describe);
    let mut docs = collector.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    docs.sort();
    docs.dedup();
    docs
}

/// Writes the table of all metrics as Markdown, for docs/metrics.md.
#[must_use]
pub fn table() -> String {
    let mut out = String::from("| Metric | Type | Unit | Meaning and labels |\n| --- | --- | --- | --- |\n");
    for doc in described() {
        let _ = writeln!(out, "| `{}` | {} | {} | {} |", doc.name, doc.kind, doc.unit, doc.meaning);
    }
    out
}

/// Keeps descriptions and records nothing.
#[derive(Debug, Default)]
struct Collector(Mutex<Vec<MetricDoc>>);

impl Collector {
    fn push(&self, kind: &'static str, name: &KeyName, unit: Option<Unit>, meaning: &SharedString) {
        let unit = unit.map_or("", |unit| unit.as_str());
        let doc = MetricDoc { name: name.as_str().to_owned(), kind, unit, meaning: meaning.to_string() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(doc);
    }
}

impl Recorder for Collector {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.push("counter", &key, unit, &description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.push("gauge", &key, unit, &description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.push("histogram", &key, unit, &description);
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}
