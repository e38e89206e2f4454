//! What the local engine says of its own steps, by way of its metrics: how long they took, and how much of that was drawing.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::anyhow;
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use serde::{Deserialize, Serialize};

/// Time of steps that only grew candidates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Decoding {
    /// Seconds of the steps.
    pub(crate) steps_s: f64,
    /// Seconds of these in which tokens were drawn.
    pub(crate) draws_s: f64,
}

impl Decoding {
    pub(crate) fn since(self, before: Self) -> Self {
        Self { steps_s: self.steps_s - before.steps_s, draws_s: self.draws_s - before.draws_s }
    }
}

/// Adds up the times of the steps that this process's engine takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Steps(Arc<Mutex<Decoding>>);

/// Which of the two a histogram is.
#[derive(Clone, Copy, Debug)]
enum Part {
    Step,
    Draw,
}

#[derive(Debug)]
struct Sum(Steps, Part);

impl HistogramFn for Sum {
    fn record(&self, seconds: f64) {
        let mut decoding = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        match self.1 {
            Part::Step => decoding.steps_s += seconds,
            Part::Draw => decoding.draws_s += seconds,
        }
    }
}

impl Steps {
    /// Listens to all metrics of this process from now on.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let steps = Self::default();
        metrics::set_global_recorder(steps.clone()).map_err(|_| anyhow!("somebody else counts the engine's steps"))?;
        Ok(steps)
    }

    pub(crate) fn so_far(&self) -> Decoding {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recorder for Steps {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let decodes = key.labels().any(|label| label.key() == "kind" && label.value() == "decode");
        let part = match key.name() {
            "idiolect_candle_step_seconds" => Part::Step,
            "idiolect_candle_draw_seconds" => Part::Draw,
            _ => return Histogram::noop(),
        };
        if decodes { Histogram::from_arc(Arc::new(Sum(self.clone(), part))) } else { Histogram::noop() }
    }
}

#[cfg(test)]
mod tests {
    use metrics::{Level, histogram};

    use super::*;

    #[test]
    fn steps_that_grow_candidates_are_added_up() {
        let steps = Steps::default();
        metrics::with_local_recorder(&steps, || {
            for (kind, seconds) in [("decode", 2.0), ("decode", 1.0), ("mixed", 8.0), ("prefill", 16.0)] {
                histogram!("idiolect_candle_step_seconds", "backend" => "a", "kind" => kind).record(seconds);
                histogram!("idiolect_candle_draw_seconds", "backend" => "a", "kind" => kind).record(seconds / 4.0);
                histogram!(level: Level::INFO, "idiolect_axon_request_seconds", "kind" => kind).record(seconds);
            }
        });
        assert_eq!(steps.so_far(), Decoding { steps_s: 3.0, draws_s: 0.75 });
        let before = Decoding { steps_s: 1.0, draws_s: 0.5 };
        assert_eq!(steps.so_far().since(before), Decoding { steps_s: 2.0, draws_s: 0.25 });
    }
}
