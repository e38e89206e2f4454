//! What the pipeline itself costs a reply: CPU time of the whole process with a model that costs nothing.
//!
//!     cargo bench -p idiolect-pipeline
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use idiolect_backend::{Echo, HashEmbedder};
use idiolect_mutation::Library;
use idiolect_pipeline::{Ask, Parts, Pipeline, PipelineConfig};
use idiolect_protocol::{Message, Prompt, Role};
use idiolect_uniqueness::store;

/// CPU time that a request may cost the server, network and signature included.
const LIMIT: Duration = Duration::from_micros(150);

/// CPU time of this process so far, all threads: fields 14 and 15 of `/proc/self/stat`, in hundredths of a second.
fn cpu_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in brackets, may hold spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks()? + ticks()?) * 10))
}

async fn measure(name: &str, candidates: usize, parts: Parts, n: u32) {
    let config = PipelineConfig { candidates, recipes: candidates.min(2), seed: Some(1), ..PipelineConfig::default() };
    let pipeline = Pipeline::start(config, parts).await.expect("the settings are sound");
    let prompt = Prompt::new(vec![Message::new(Role::User, "Why is the sky blue, and why is it red at night?")]);
    let ask = Ask::new(prompt.expect("there is text"));
    let (began, cpu_before) = (Instant::now(), cpu_time());
    for _ in 0..n {
        pipeline.answer(ask.clone()).await.expect("an echo answers");
    }
    pipeline.flush().await;
    let wall = began.elapsed() / n;
    let cpu = cpu_before.zip(cpu_time()).map(|(before, after)| (after - before) / n);
    let ratio = cpu.map_or(f64::NAN, |cpu| cpu.as_secs_f64() / LIMIT.as_secs_f64());
    println!("{name:<44} {wall:>10.1?} wall {:>10.1?} CPU  {ratio:>5.2} of the limit", cpu.unwrap_or_default());
}

#[tokio::main]
async fn main() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let echo = || Parts::new(Arc::new(Echo::new()));
    let full =
        || Parts { embedder: Some(Arc::new(HashEmbedder::new(384))), library: Arc::new(Library::built_in()), ..echo() };
    measure("1 candidate, nothing else", 1, echo(), 20_000).await;
    measure("4 candidates, operators, encoder, history", 4, full(), 5_000).await;
    for (name, candidates, parts) in [("1 candidate, store", 1, echo()), ("4 candidates, all of it, store", 4, full())]
    {
        let pool = store::open(&dir.path().join(format!("{candidates}.sqlite"))).await.expect("a fresh store");
        measure(name, candidates, Parts { store: Some(pool), ..parts }, 5_000).await;
    }
}
