//! What the local backend counts, with the default model. In a process of its own, as recorders are global.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use idiolect_backend::{Backend, Message, Request};
use idiolect_backend_candle::{CandleBackend, CandleConfig};
use metrics::{Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};

/// Keeps counters, and the last value of each histogram, by name and labels.
#[derive(Clone, Debug, Default)]
struct Kept {
    counters: Arc<Mutex<HashMap<String, Arc<AtomicU64>>>>,
    histograms: Arc<Mutex<HashMap<String, Arc<Last>>>>,
}

#[derive(Debug, Default)]
struct Last(Mutex<Option<f64>>);

impl HistogramFn for Last {
    fn record(&self, value: f64) {
        *self.0.lock().unwrap() = Some(value);
    }
}

fn name(key: &Key) -> String {
    let labels = key.labels().filter(|label| label.key() != "backend").map(metrics::Label::value);
    std::iter::once(key.name()).chain(labels).collect::<Vec<_>>().join(" ")
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
    fn count(&self, name: &str) -> u64 {
        self.counters.lock().unwrap().get(name).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    fn last(&self, name: &str) -> Option<f64> {
        self.histograms.lock().unwrap().get(name).and_then(|last| *last.0.lock().unwrap())
    }
}

#[tokio::test]
async fn prompts_that_were_kept_and_lengths_that_were_planned_are_counted() {
    let kept = Kept::default();
    metrics::set_global_recorder(kept.clone()).unwrap();
    let files = idiolect_models::testing::model("smollm2-135m").expect("the default model");
    let backend = CandleBackend::load(files.weights().expect("a weights file"), CandleConfig::default()).unwrap();

    let mut ask = Request::new(vec![Message::user("Tell me about rivers and the sea. ".repeat(10))]);
    ask.sampling.max_tokens = 12;
    let first = backend.complete(ask.clone()).await.unwrap().usage;
    let second = backend.complete(ask.clone()).await.unwrap().usage;
    assert_eq!((first.cached_tokens, second.prompt_tokens), (0, first.prompt_tokens));
    assert!(second.cached_tokens > second.prompt_tokens / 2, "{second:?}");
    // The hit rate is one by the sum of both.
    let computed = u64::from(2 * first.prompt_tokens - second.cached_tokens);
    assert_eq!(kept.count("idiolect_candle_prompt_tokens_total computed"), computed);
    assert_eq!(kept.count("idiolect_candle_prompt_tokens_total kept"), u64::from(second.cached_tokens));
    let tokens = u64::from(first.completion_tokens + second.completion_tokens);
    // The end of a turn is drawn, but no part of the text.
    assert!((tokens..=tokens + 2).contains(&kept.count("idiolect_candle_tokens_total")));
    assert_eq!(kept.last("idiolect_candle_planned_tokens"), None, "no deadlines so far");

    // Speeds are known: of all the tokens that are asked for, memory is set aside for what there is time for.
    (ask.n, ask.sampling.max_tokens) = (4, 3500);
    let deadline = Instant::now() + Duration::from_secs(3);
    ask.deadline = Some(deadline);
    backend.complete(ask).await.unwrap();
    assert!(Instant::now() < deadline + Duration::from_secs(10));
    let planned = kept.last("idiolect_candle_planned_tokens").expect("a plan");
    assert!((32.0..=3500.0).contains(&planned), "{planned} tokens in three seconds");
}
