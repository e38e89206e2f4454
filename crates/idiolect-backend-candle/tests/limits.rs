//! How much is computed for an answer, and how soon work ends that nobody wants any more.
//!
//! Steps are counted, and the time that this process has a core; so it does not matter what else the machine has to do. The
//! tests have a process of their own, and take turns in it.

#![expect(clippy::print_stdout, reason = "figures for whoever asks a test to show them")]

mod default_model;
mod kept;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{StreamExt, future};
use idiolect_backend::testkit::Conformance;
use idiolect_backend::{Backend, Embedder, Error, ErrorKind, FinishReason};
use idiolect_backend_candle::{EncoderConfig, SentenceEncoder};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use self::default_model::{load, request};
use self::kept::Kept;

/// Waits until no other test runs, and returns what is recorded.
async fn turn() -> (MutexGuard<'static, ()>, Kept) {
    static TURNS: Mutex<()> = Mutex::const_new(());
    static KEPT: OnceLock<Kept> = OnceLock::new();
    let turn = TURNS.lock().await;
    let kept = KEPT.get_or_init(|| {
        let kept = Kept::default();
        metrics::set_global_recorder(kept.clone()).unwrap();
        kept
    });
    (turn, kept.clone())
}

/// Returns how long threads of this process had a core so far, all of them together.
fn busy() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

/// Returns how long all threads of this process together had to wait for a core so far, where the system tells: limits of
/// the wall's time are longer by that.
fn waited() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanos = threads.filter_map(|thread| {
        let times = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        times.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let (_turn, kept) = turn().await;
    let backend = load(|config| (config.queue, config.name) = (64, "contract".to_owned()));
    let conformance = || {
        let backend = Arc::clone(&backend);
        Conformance::new(move || Arc::clone(&backend) as Arc<dyn Backend>)
    };
    conformance().slack(Duration::from_secs(10)).run().await;
    // A step that has begun is computed to its end.
    let steps = move || Duration::from_secs(kept.steps("contract") as u64);
    conformance().clock(steps).slack(Duration::from_secs(1)).run().await;
}

#[tokio::test]
async fn a_near_deadline_gives_what_there_is() {
    let (_turn, kept) = turn().await;
    let backend = load(|config| (config.context_tokens, config.name) = (4096, "near".to_owned()));
    let mut ask = request("Tell me a very long story about the sea.");
    // More than any machine computes in that time.
    (ask.n, ask.sampling.max_tokens, ask.sampling.min_tokens) = (8, 3500, Some(3500));
    ask.sampling.temperature = Some(1.5);
    let deadline = Instant::now() + Duration::from_millis(2500);
    ask.deadline = Some(deadline.into_std());
    let at_deadline = async {
        tokio::time::sleep_until(deadline).await;
        kept.steps("near")
    };
    let before = waited();
    let (completion, at_deadline) = future::join(backend.complete(ask), at_deadline).await;
    assert!(Instant::now() < deadline + Duration::from_millis(500) + waited().saturating_sub(before));
    let candidates = completion.unwrap().candidates;
    assert!(kept.steps("near") <= at_deadline + 1, "steps after the deadline: {at_deadline} before");
    assert!(candidates.iter().all(|c| c.finish_reason == FinishReason::Deadline), "{candidates:?}");
    assert!(candidates.len() >= 2 && candidates.iter().any(|c| !c.text.is_empty()), "{candidates:?}");
}

#[tokio::test]
async fn dropping_stops_the_work() {
    let (_turn, kept) = turn().await;
    let backend = load(|config| config.name = "dropped".to_owned());
    let mut long = request("Tell me a very long story.");
    (long.n, long.sampling.max_tokens) = (8, 400);
    for _ in 0..5 {
        let mut stream = backend.stream(long.clone()).await.unwrap();
        stream.next().await.unwrap().unwrap();
    }
    let pending = tokio::time::timeout(Duration::from_millis(300), backend.complete(long.clone()));
    assert!(pending.await.is_err());
    // Six abandoned requests would take 400 steps and more; this one takes one for its prompt, and one a token after the first.
    let (before, began, waited_before) = (kept.steps("dropped"), Instant::now(), waited());
    let tokens = backend.complete(request("Hi")).await.unwrap().usage.completion_tokens as usize;
    let steps = kept.steps("dropped") - before;
    assert!(steps <= tokens + 3, "{steps} steps for {tokens} tokens");
    let waited = waited().saturating_sub(waited_before);
    assert!(began.elapsed() < Duration::from_secs(20) + waited, "{:?}", began.elapsed());
}

#[tokio::test]
async fn what_cannot_be_trimmed_is_refused_soon() {
    let (_turn, _) = turn().await;
    let backend = load(|_| ());
    let (before, began, waited_before) = (busy(), Instant::now(), waited());
    let error = backend.complete(request(&"word ".repeat((1 << 20) / 5))).await.unwrap_err();
    assert!(matches!(error, Error::ContextTooLong { .. }), "{error}");
    let took = busy() - before;
    println!("refused after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(began.elapsed() < Duration::from_secs(20) + waited().saturating_sub(waited_before));
}

/// The figure that the miner needs: a prompt of 100 tokens, 4 candidates of 64, well inside ten seconds. 0.5 s were measured.
#[tokio::test]
async fn best_of_four_takes_well_under_ten_seconds() {
    let (_turn, _) = turn().await;
    let backend = load(|_| ());
    let mut ask = request(&"Tell me a long story about a lighthouse. ".repeat(8));
    (ask.n, ask.sampling.max_tokens, ask.sampling.min_tokens) = (4, 64, Some(64));
    ask.sampling.temperature = Some(1.0);
    let (before, began, waited_before) = (busy(), Instant::now(), waited());
    let completion = backend.complete(ask).await.unwrap();
    let (took, elapsed, waited) = (busy() - before, began.elapsed(), waited().saturating_sub(waited_before));
    assert!(completion.usage.prompt_tokens >= 100, "{:?}", completion.usage);
    assert_eq!(completion.candidates.len(), 4);
    for candidate in &completion.candidates {
        assert_eq!((candidate.n_tokens, candidate.finish_reason), (64, FinishReason::Length), "{:?}", candidate.text);
    }
    println!("best of four after {took:?}");
    assert!(took < Duration::from_millis(2500), "{took:?}");
    assert!(elapsed < Duration::from_secs(5) + waited, "{elapsed:?}, of which {waited:?} for a core");
}

#[tokio::test]
async fn texts_that_nobody_waits_for_are_not_encoded() {
    let (_turn, _) = turn().await;
    let files = idiolect_models::testing::model("minilm").expect("the default encoder");
    let mut config = EncoderConfig::default();
    config.queue = 1;
    let encoder = SentenceEncoder::load_with(&files.dir, config).unwrap();
    let texts = vec!["a long text of many words ".repeat(100); 8];
    let before = busy();
    encoder.embed(&texts).await.unwrap();
    let whole = busy() - before;
    let before = busy();
    drop(tokio::time::timeout(Duration::from_millis(1), encoder.embed(&texts)).await);
    // The dropped call may still wait in the queue, where its thread has not had a core yet.
    let still_there = async {
        loop {
            match encoder.embed(&["still there".to_owned()]).await {
                Err(error) if error.kind() == ErrorKind::Overloaded => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                answer => break answer,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(100), still_there).await.expect("the queue empties").unwrap();
    let took = busy() - before;
    println!("all texts {whole:?}, dropped {took:?}");
    assert!(took < whole / 5, "{took:?}, where all of it takes {whole:?}");
}
