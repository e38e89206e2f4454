//! How requests share the engine: tests with one that takes known times and writes down its steps.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::{join, join_all};
use idiolect_backend::{Backend, Error, Event, FinishReason, Message, Request, ScoreRequest};
use idiolect_kernels::Team;

use super::CandleBackend;
use crate::config::CandleConfig;
use crate::engine::{Engine, EngineError, Feed, Portion, Seq, Wants};
use crate::prompt::Prompter;
use crate::template::Template;
use crate::testing::TinyGguf;
use crate::tokenizer::Tokenizer;

const VOCABULARY: usize = 259;

/// What an engine was given in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Step {
    candidates: usize,
    prompt_tokens: usize,
}

/// Microseconds that things take, and what was done.
#[derive(Debug, Default)]
struct Watch {
    step: AtomicU64,
    candidate: AtomicU64,
    prompt_token: AtomicU64,
    /// Sequences that were begun and not released.
    sequences: AtomicUsize,
    steps: Mutex<Vec<Step>>,
}

impl Watch {
    fn new(step: u64, candidate: u64, prompt_token: u64) -> Arc<Self> {
        let watch = Self::default();
        watch.step.store(step, Ordering::Relaxed);
        watch.candidate.store(candidate, Ordering::Relaxed);
        watch.prompt_token.store(prompt_token, Ordering::Relaxed);
        Arc::new(watch)
    }

    fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }

    fn most_candidates(&self) -> usize {
        self.steps().iter().map(|step| step.candidates).max().unwrap_or(0)
    }
}

/// Draws any byte, and takes its time.
#[derive(Debug)]
struct Paced {
    watch: Arc<Watch>,
    team: Team,
    held: Vec<bool>,
    logits: Vec<f32>,
}

impl Engine for Paced {
    fn vocabulary(&self) -> usize {
        VOCABULARY
    }

    fn context(&self) -> usize {
        4096
    }

    fn portion(&self) -> Portion {
        Portion { tokens: 1, bytes: 1000 }
    }

    fn team(&self) -> &Team {
        &self.team
    }

    fn begin(&mut self, _prompt: &[u32], _known: usize, _room: usize) -> Result<(Seq, usize), EngineError> {
        self.held.push(true);
        self.watch.sequences.fetch_add(1, Ordering::Relaxed);
        Ok((Seq(u32::try_from(self.held.len() - 1).unwrap()), 0))
    }

    fn fork(&mut self, _seq: Seq) -> Result<Seq, EngineError> {
        Ok(self.begin(&[], 0, 0)?.0)
    }

    fn release(&mut self, seq: Seq) {
        assert!(std::mem::take(&mut self.held[seq.0 as usize]), "a sequence is released once");
        self.watch.sequences.fetch_sub(1, Ordering::Relaxed);
    }

    #[expect(clippy::disallowed_methods, reason = "the engine's own thread is meant to take its time")]
    fn forward(&mut self, feeds: &[Feed<'_>]) -> Result<(), EngineError> {
        let candidates = feeds.iter().filter(|feed| feed.tokens.len() == 1).count();
        let prompt_tokens = feeds.iter().map(|feed| feed.tokens.len()).filter(|n| *n > 1).sum();
        let cost = |of: &AtomicU64, n: usize| of.load(Ordering::Relaxed) * n as u64;
        let watch = &self.watch;
        let micros =
            cost(&watch.step, 1) + cost(&watch.candidate, candidates) + cost(&watch.prompt_token, prompt_tokens);
        std::thread::sleep(Duration::from_micros(micros));
        watch.steps.lock().unwrap().push(Step { candidates, prompt_tokens });
        let rows = |feed: &Feed<'_>| match feed.wants {
            Wants::Nothing => 0,
            Wants::Last => 1,
            Wants::All => feed.tokens.len(),
        };
        let rows: usize = feeds.iter().map(rows).sum();
        self.logits.clear();
        self.logits.resize(rows * VOCABULARY, -50.0);
        // Two letters, so that texts differ, and the end of none.
        for row in self.logits.chunks_exact_mut(VOCABULARY) {
            row[60..64].copy_from_slice(&[1.0, 0.5, 0.0, -0.5]);
        }
        Ok(())
    }

    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn reset(&mut self) {
        self.held.clear();
    }
}

fn backend(watch: &Arc<Watch>, change: impl FnOnce(&mut CandleConfig)) -> CandleBackend {
    let (_dir, gguf) = TinyGguf::model("llama").open();
    let tokenizer = Tokenizer::read(&gguf).unwrap();
    let template = Template::read(&gguf, &tokenizer).unwrap();
    let prompter = Prompter { tokenizer, template, context: 4096 };
    let engine = Paced { watch: Arc::clone(watch), team: Team::new(1).unwrap(), held: Vec::new(), logits: Vec::new() };
    let mut config = CandleConfig { max_kv_bytes: 100_000_000, ..CandleConfig::default() };
    change(&mut config);
    CandleBackend::start(engine, prompter, Vec::new(), "paced".to_owned(), "paced".to_owned(), config).unwrap()
}

fn request(text: &str, n: usize, max_tokens: u32) -> Request {
    let mut request = Request::new(vec![Message::user(text)]);
    request.n = n;
    request.sampling.max_tokens = max_tokens;
    request.sampling.seed = Some(5);
    request
}

fn due(mut request: Request, millis: u64) -> Request {
    request.deadline = Some(Instant::now() + Duration::from_millis(millis));
    request
}

#[tokio::test]
async fn candidates_of_different_requests_grow_in_the_same_steps() {
    let watch = Watch::new(3000, 0, 0);
    let backend = backend(&watch, |_| ());
    let texts = ["one", "two", "three"];
    let answers = join_all(texts.iter().enumerate().map(|(i, text)| {
        let max_tokens = 20 + 10 * u32::try_from(i).unwrap();
        backend.complete(request(text, i + 1, max_tokens))
    }))
    .await;
    for (i, answer) in answers.into_iter().enumerate() {
        let candidates = answer.unwrap().candidates;
        assert_eq!(candidates.len(), i + 1);
        let lengths: Vec<u32> = candidates.iter().map(|candidate| candidate.n_tokens).collect();
        assert_eq!(lengths, vec![20 + 10 * u32::try_from(i).unwrap(); i + 1]);
    }
    assert_eq!(watch.most_candidates(), 6);
    let steps = watch.steps().len();
    assert!(steps < 60, "{steps} steps for texts of 20, 30 and 40 tokens");
    let speed = backend.speed();
    assert!(speed.decode.iter().any(|of| of.candidates == 8), "{speed:?}");
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_step_leaves_nothing_behind() {
    let watch = Watch::new(20_000, 0, 0);
    let backend = backend(&watch, |_| ());
    for _ in 0..8 {
        // With their second tokens all three end, while nobody listens any more.
        let mut stream = backend.stream(request("x", 3, 2)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop(stream);
    }
    backend.complete(request("x", 1, 2)).await.unwrap();
    assert_eq!(watch.sequences.load(Ordering::Relaxed), 0, "sequences that nobody has");
}

#[tokio::test]
async fn scores_share_steps_and_take_their_part_of_the_memory() {
    let watch = Watch::new(3000, 0, 0);
    let (large, small) = (backend(&watch, |_| ()), backend(&watch, |config| config.max_kv_bytes = 400_000));
    let messages = [Message::user("x")];
    let ask = |n: usize| ScoreRequest::new(messages.clone(), "y".repeat(n));
    let scores = join_all((0..4).map(|i| large.score(if i < 2 { ask(100) } else { ask(100).with_rows() }))).await;
    for (i, score) in scores.into_iter().enumerate() {
        let score = score.unwrap();
        assert_eq!((score.tokens.len(), score.rows.map(|rows| rows.len())), (100, (i >= 2).then_some(100)));
    }
    assert_eq!(large.score(ask(3900).with_rows()).await.unwrap().tokens.len(), 3900);
    // A token takes 1,000 bytes of keys and values, and 1,036 of logits where they are wanted.
    assert_eq!(small.score(ask(100).with_rows()).await.unwrap().tokens.len(), 100);
    assert_eq!(small.score(ask(200)).await.unwrap().tokens.len(), 200);
    let error = small.score(ask(200).with_rows()).await.unwrap_err().to_string();
    assert!(error.contains("207200 of them for rows of 259 logits, 400000 are allowed"), "{error}");
    assert_eq!(watch.sequences.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_long_prompt_holds_up_nobody_for_long() {
    let watch = Watch::new(1000, 0, 500);
    let backend = backend(&watch, |_| ());
    // So that it is known how long prompts take.
    backend.complete(request(&"x".repeat(200), 1, 2)).await.unwrap();
    let mut stream = backend.stream(request("short", 1, 400)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let long = backend.complete(request(&"y".repeat(1500), 1, 2));
    let (_, answer) = join(stream.count(), long).await;
    assert_eq!(answer.unwrap().candidates.len(), 1);
    let mixed: Vec<Step> =
        watch.steps().into_iter().filter(|step| step.candidates > 0 && step.prompt_tokens > 0).collect();
    assert!(mixed.len() >= 5, "{mixed:?}");
    // 80 ms at 0.5 ms a token are 160.
    assert!(mixed.iter().all(|step| step.prompt_tokens <= 192), "{mixed:?}");
}

#[tokio::test]
async fn what_does_not_fit_waits_and_nobody_waits_beyond_the_deadline() {
    let watch = Watch::new(2000, 0, 0);
    // Room for one of these at a time.
    let backend = backend(&watch, |config| config.max_kv_bytes = 500_000);
    let prompt = backend.complete(request("x", 1, 1)).await.unwrap().usage.prompt_tokens;
    let max_tokens = (500 - prompt) / 2;
    let ask = request("x", 2, max_tokens);
    let late = due(request("x", 2, max_tokens), 30);
    let began = Instant::now();
    let first = backend.complete(ask.clone());
    let others = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        join(backend.complete(ask.clone()), async {
            let answer = backend.complete(late).await;
            (answer, began.elapsed())
        })
        .await
    };
    let (first, (second, (late, took))) = join(first, others).await;
    assert_eq!((first.unwrap().candidates.len(), second.unwrap().candidates.len()), (2, 2));
    assert!(matches!(late, Err(Error::DeadlineExceeded)), "{late:?}");
    assert!(took < Duration::from_millis(300), "{took:?}");
    assert_eq!(watch.most_candidates(), 2);
    let error = backend.complete(request("x", 2, max_tokens + 1)).await.unwrap_err();
    assert!(error.to_string().contains("500000 are allowed"), "{error}");
}

#[tokio::test]
async fn the_nearest_deadline_comes_first() {
    let watch = Watch::new(1000, 0, 0);
    let backend = backend(&watch, |config| config.max_batch = 1);
    let order = Mutex::new(Vec::new());
    let ask = async |name: &'static str, request: Request| {
        backend.complete(request).await.unwrap();
        order.lock().unwrap().push(name);
    };
    let running = ask("running", request("x", 1, 60));
    let rest = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        join_all([
            Box::pin(ask("whenever", request("x", 1, 5))) as std::pin::Pin<Box<dyn Future<Output = ()>>>,
            Box::pin(ask("in time", due(request("x", 1, 5), 20_000))),
            Box::pin(ask("soon", due(request("x", 1, 5), 10_000))),
        ])
        .await
    };
    join(running, rest).await;
    assert_eq!(*order.lock().unwrap(), ["running", "soon", "in time", "whenever"]);
}

#[tokio::test]
async fn fewer_candidates_are_begun_where_all_would_not_end_in_time() {
    let watch = Watch::new(1000, 4000, 0);
    let backend = backend(&watch, |_| ());
    for n in [8, 4, 2] {
        backend.complete(request("x", n, 8)).await.unwrap();
    }
    // All eight would take 60 times 33 ms, four 17, two 9.
    let began = Instant::now();
    let answer = backend.complete(due(request("x", 8, 60), 1400)).await.unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_millis(1700), "{took:?}");
    let n = answer.candidates.len();
    assert!((2..8).contains(&n), "{n} candidates");
    assert!(answer.candidates.iter().any(|c| c.finish_reason == FinishReason::Length), "{answer:?}");
    let everything = backend.complete(due(request("x", 8, 10), 5000)).await.unwrap();
    assert_eq!(everything.candidates.len(), 8, "all of them where there is time");
}

#[tokio::test]
async fn the_worst_are_given_up_where_the_others_can_then_end() {
    let watch = Watch::new(0, 4000, 0);
    let backend = backend(&watch, |_| ());
    for n in [2, 4] {
        backend.complete(request("x", n, 16)).await.unwrap();
    }
    // Quick at first, then four times as slow: two of them can still make it.
    watch.candidate.store(1000, Ordering::Relaxed);
    for _ in 0..3 {
        backend.complete(request("x", 4, 16)).await.unwrap();
    }
    let mut stream = backend.stream(due(request("x", 4, 80), 900)).await.unwrap();
    let mut ended = Vec::new();
    let mut n_deltas = 0;
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            Event::Delta { .. } => {
                n_deltas += 1;
                if n_deltas == 60 {
                    watch.candidate.store(4000, Ordering::Relaxed);
                }
            }
            Event::Finished { reason, n_tokens, .. } => ended.push((reason, n_tokens)),
            Event::Done { .. } => {}
        }
    }
    assert_eq!(ended.len(), 4);
    let given_up = ended.iter().filter(|(reason, n)| *reason == FinishReason::Deadline && *n < 80).count();
    let whole = ended.iter().filter(|(reason, _)| *reason == FinishReason::Length).count();
    assert!(given_up >= 1 && whole >= 2, "{ended:?}");
}
