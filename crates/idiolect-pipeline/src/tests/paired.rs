//! Mutated requests beside plain ones: what is in time without recipes is in time with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use idiolect_backend::{
    Backend, Capabilities, Completion, CompletionStream, Error, Event, FinishReason, HashEmbedder, Health, Request,
    Role, Score, ScoreRequest, Usage, collect,
};
use idiolect_mutation::Library;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::double::prompt;
use crate::{Ask, Parts, Pipeline, PipelineConfig};

/// An engine whose tokens take the longer, the more candidates grow at once.
#[derive(Clone, Copy, Debug)]
struct Speed {
    /// Milliseconds until the first token.
    first_ms: u64,
    /// Milliseconds of a token of one candidate alone.
    token_ms: f64,
    /// What each candidate more adds, as a share of `token_ms`: 0 for a service, 1 for an engine that gains nothing by batches.
    slower: f64,
    /// Whether requests wait for each other.
    one_by_one: bool,
    /// Whether text comes token by token, or all at the end.
    streams: bool,
}

#[derive(Debug)]
struct Engine {
    capabilities: Capabilities,
    speed: Speed,
    growing: Arc<AtomicUsize>,
    turns: Arc<Semaphore>,
}

/// A candidate that grows, until it is dropped.
struct Growing(Arc<AtomicUsize>);

impl Growing {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Engine {
    fn new(speed: Speed) -> Self {
        let turns = if speed.one_by_one { 1 } else { 1_000 };
        let capabilities = Capabilities::new("engine");
        Self { capabilities, speed, growing: Arc::default(), turns: Arc::new(Semaphore::new(turns)) }
    }
}

/// The user's text ends with how many words the answer to it has.
fn n_words(request: &Request) -> usize {
    let asked = request.messages.iter().rev().find(|m| m.role == Role::User).unwrap();
    let numbers = asked.content.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    numbers.max().unwrap()
}

struct Run {
    growing: Vec<Growing>,
    n_words: usize,
    said: usize,
    next: Vec<Event>,
    is_over: bool,
    _turn: tokio::sync::OwnedSemaphorePermit,
}

#[async_trait]
impl Backend for Engine {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        collect(self.stream(request).await?).await
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.unwrap();
        let Speed { first_ms, token_ms, slower, streams, .. } = self.speed;
        let n_words = n_words(&request);
        let growing: Vec<Growing> = (0..request.n).map(|_| Growing::new(&self.growing)).collect();
        let count = Arc::clone(&self.growing);
        let run = Run { growing, n_words, said: 0, next: Vec::new(), is_over: false, _turn: turn };
        let stream = stream::unfold(run, move |mut run| {
            let count = Arc::clone(&count);
            async move {
                while run.next.is_empty() && !run.is_over {
                    if run.said == 0 {
                        tokio::time::sleep(Duration::from_millis(first_ms)).await;
                    }
                    let others = count.load(Ordering::SeqCst) as f64 - 1.0;
                    tokio::time::sleep(Duration::from_secs_f64(token_ms * (1.0 + slower * others) / 1e3)).await;
                    run.said += 1;
                    run.is_over = run.said == run.n_words;
                    let n = run.growing.len();
                    if streams || run.is_over {
                        let from = if streams { run.said - 1 } else { 0 };
                        for candidate in 0..n {
                            let text: String = (from..run.said).map(|word| format!("c{candidate}w{word}. ")).collect();
                            run.next.push(Event::Delta { candidate, text, logprobs: Vec::new() });
                        }
                    }
                    if run.is_over {
                        let n_tokens = run.said as u32;
                        for candidate in 0..n {
                            let (reason, mean_logprob) = (FinishReason::Stop, None);
                            run.next.push(Event::Finished { candidate, reason, n_tokens, mean_logprob });
                        }
                        let (model, backend) = ("engine".to_owned(), "engine".to_owned());
                        run.next.push(Event::Done { usage: Usage::default(), model, backend });
                        run.growing.clear();
                    }
                    run.next.reverse();
                }
                run.next.pop().map(|event| (Ok(event), run))
            }
        });
        Ok(Box::pin(stream))
    }

    async fn score(&self, _: ScoreRequest) -> Result<Score, Error> {
        Err(Error::Unsupported { backend: "engine".to_owned(), what: "scoring".to_owned() })
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Missed,
    Cut,
    Whole,
}

/// Answers questions whose answers have these many words, and says what came of each, and among how many candidates.
async fn outcomes(speed: Speed, timeout: Duration, lengths: &[usize], mutated: bool) -> Vec<(Outcome, usize)> {
    let library = if mutated { Library::built_in() } else { Library::new(Vec::new()).unwrap() };
    let parts = Parts {
        library: Arc::new(library),
        embedder: Some(Arc::new(HashEmbedder::new(64))),
        ..Parts::new(Arc::new(Engine::new(speed)))
    };
    let (candidates, recipes) = if mutated { (4, 3) } else { (1, 1) };
    let config = PipelineConfig { candidates, recipes, seed: Some(5), ..PipelineConfig::default() };
    let pipeline = Pipeline::start(config, parts).await.unwrap();
    let mut outcomes = Vec::new();
    for length in lengths {
        let began = Instant::now();
        let asked = prompt(&format!("Why is the sky blue, in how many words: {length}"));
        let answer = pipeline.answer(Ask { timeout, ..Ask::new(asked) }).await;
        assert!(began.elapsed() <= timeout, "{:?}", began.elapsed());
        outcomes.push(match answer {
            Err(error) => {
                assert_eq!(error.category, idiolect_protocol::Category::Timeout);
                (Outcome::Missed, 0)
            }
            Ok(answer) => {
                let candidates = &answer.provenance.candidates;
                // Of the unchanged prompt: another one may be better, though it is shorter.
                let is_whole = candidates.iter().any(|c| c.operators.is_empty() && c.finish == FinishReason::Stop);
                (if is_whole { Outcome::Whole } else { Outcome::Cut }, candidates.len())
            }
        });
    }
    outcomes
}

fn speeds(first: &[u64], tokens: &[f64]) -> Vec<Speed> {
    let mut speeds = Vec::new();
    for &first_ms in first {
        for &token_ms in tokens {
            for slower in [0.0, 0.3, 1.0] {
                for one_by_one in [false, true] {
                    for streams in [true, false] {
                        speeds.push(Speed { first_ms, token_ms, slower, one_by_one, streams });
                    }
                }
            }
        }
    }
    speeds
}

/// What came of questions that were asked of a plain pipeline and of one with recipes.
#[derive(Debug, Default)]
struct Pairs {
    n: usize,
    /// Those that were in time without recipes only.
    missed: Vec<String>,
    /// Those that were whole without recipes only.
    cut: Vec<String>,
}

async fn pairs(speeds: Vec<Speed>, lengths: &[usize]) -> Pairs {
    let mut pairs = Pairs::default();
    for speed in speeds {
        for seconds in [4, 10] {
            let timeout = Duration::from_secs(seconds);
            let plain = outcomes(speed, timeout, lengths, false).await;
            let mutated = outcomes(speed, timeout, lengths, true).await;
            pairs.n += lengths.len();
            for (nth, ((plain, _), (mutated, _))) in plain.into_iter().zip(mutated).enumerate() {
                let pair = || format!("{nth} {plain:?} {mutated:?} {seconds} s {speed:?}");
                if mutated == Outcome::Missed && plain != Outcome::Missed {
                    pairs.missed.push(pair());
                } else if mutated < plain {
                    pairs.cut.push(pair());
                }
            }
        }
    }
    pairs
}

#[tokio::test(start_paused = true)]
async fn what_is_in_time_and_whole_without_recipes_is_so_with_them() {
    let speeds = speeds(&[0, 1_500, 6_000], &[5.0, 30.0, 55.0, 80.0, 95.0, 200.0]);
    let Pairs { n, missed, cut } = pairs(speeds, &[100; 5]).await;
    assert_eq!((n, missed, cut), (2_160, Vec::new(), Vec::new()));
}

/// Nobody knows how long an answer is going to be: of some that are much longer than those before the rest is cut off.
#[tokio::test(start_paused = true)]
async fn answers_of_any_length_are_in_time_and_nearly_all_of_them_whole() {
    let lengths: Vec<usize> = (0..24).map(|i| 40 + i * 37 % 81).collect();
    let Pairs { n, missed, cut } = pairs(speeds(&[0], &[30.0, 55.0, 80.0]), &lengths).await;
    let n_missed_of_streams = missed.iter().filter(|pair| pair.contains("streams: true")).count();
    assert_eq!(n_missed_of_streams, 0, "{missed:?}");
    // What does not stream has nothing to show where it is cut.
    assert!(missed.len() + cut.len() <= n / 200, "of {n}: {missed:?} {cut:?}");
}

#[tokio::test(start_paused = true)]
async fn fast_engines_have_all_candidates_whole() {
    for speed in speeds(&[0], &[5.0]) {
        let outcomes = outcomes(speed, Duration::from_secs(10), &[100, 60, 140, 80], true).await;
        assert_eq!(outcomes, [(Outcome::Whole, 4); 4], "{speed:?}");
    }
}
