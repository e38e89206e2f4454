use std::sync::Arc;
use std::time::Duration;

use idiolect_backend::testkit::{FaultyBackend, Step};
use idiolect_backend::{
    Backend, Capabilities, Completion, CompletionStream, Error, FinishReason, HashEmbedder, Health, Request, Score,
    ScoreRequest, collect,
};
use idiolect_protocol::Category;
use tokio::time::Instant;

use super::double::{OTHER, SKY, Scripted, Slow, ask, config, parts, prompt, says, says_slowly, start};
use crate::{Ask, Parts, Pipeline, PipelineConfig};

const LONG: &str = "First comes this sentence. Then there is another one. And this one is never going to be whole";

fn in_time(seconds: u64) -> Ask {
    Ask { timeout: Duration::from_secs(seconds), ..ask() }
}

#[tokio::test(start_paused = true)]
async fn what_is_there_at_the_deadline_is_sent_up_to_its_last_sentence() {
    // Eighteen words at 250 ms: cut in the third sentence.
    let pipeline = start(2, parts(Scripted::new(vec![says_slowly(LONG, 250)]))).await;
    let started = Instant::now();
    let answer = pipeline.answer(in_time(4)).await.unwrap();
    assert!(started.elapsed() <= Duration::from_secs(4), "{:?}", started.elapsed());
    assert!(started.elapsed() >= Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(answer.reply.completions, ["First comes this sentence. Then there is another one."]);
    assert_eq!(answer.reply.finish_reason, "length");
    let candidate = &answer.provenance.candidates[0];
    assert_eq!((candidate.finish, candidate.trimmed), (FinishReason::Deadline, true));
    assert!(candidate.score.is_some(), "there was time set aside for scoring");
}

#[tokio::test(start_paused = true)]
async fn whole_candidates_beat_cut_ones() {
    let slow = says_slowly(&"on and on ".repeat(200), 100);
    let pipeline = start(2, parts(Scripted::new(vec![slow, says(OTHER)]))).await;
    let answer = pipeline.answer(in_time(3)).await.unwrap();
    assert_eq!(answer.reply.completions, [OTHER]);
    assert_eq!(answer.provenance.candidates.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_at_the_deadline_is_a_timeout_in_time() {
    for step in [Step::Hang, Step::Stall(String::new()), Step::say(SKY).after(Duration::from_secs(60))] {
        let pipeline = start(2, parts(FaultyBackend::always("f", step))).await;
        let started = Instant::now();
        let error = pipeline.answer(in_time(5)).await.unwrap_err();
        assert_eq!(error.category, Category::Timeout);
        assert!(started.elapsed() <= Duration::from_secs(5), "{:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_recipe_does_not_cost_the_reply() {
    let backend = FaultyBackend::new("f", [Step::say(SKY), Step::Hang]);
    let library = Arc::new(idiolect_mutation::Library::built_in());
    let pipeline = start(2, Parts { library, ..parts(backend) }).await;
    let answer = pipeline.answer(in_time(5)).await.unwrap();
    assert_eq!(answer.reply.completions, [SKY]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_encoder_leaves_the_choice_to_quality_and_is_given_more_time_later() {
    let slow = Slow { inner: HashEmbedder::new(64), wait: Duration::from_millis(1500) };
    let script = vec![says_slowly(LONG, 250), says_slowly(LONG, 250)];
    let parts = Parts { embedder: Some(Arc::new(slow)), ..Parts::new(Arc::new(Scripted::new(script))) };
    let pipeline = start(2, parts).await;
    let (mut encoders, mut chosen_among) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let started = Instant::now();
        let answer = pipeline.answer(in_time(4)).await.unwrap();
        assert!(started.elapsed() <= Duration::from_secs(4), "{:?}", started.elapsed());
        let p = answer.provenance;
        let reason = match (p.candidates.len(), p.encoder.is_none()) {
            (1, _) => "only_candidate",
            (_, true) => "quality_only",
            (_, false) => "none_clears",
        };
        assert_eq!(p.reason, reason);
        chosen_among.push((p.candidates.len(), p.encoder.is_some()));
        assert_eq!(p.encoder.is_none(), p.notes.iter().any(|note| note.contains("no time")));
        encoders.push(p.encoder.is_some());
    }
    assert!(!encoders[0], "the first reserve is too small");
    assert!(encoders[3], "later ones are measured: {encoders:?}");
    assert!(chosen_among.contains(&(2, false)) && chosen_among.contains(&(2, true)), "{chosen_among:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_without_an_embedding_is_compared_with_later() {
    for (wait, n_history) in [(5, 1), (3600, 0)] {
        let slow = Slow { inner: HashEmbedder::new(256), wait: Duration::from_secs(wait) };
        let parts = Parts { embedder: Some(Arc::new(slow)), ..parts(Scripted::new(vec![says(SKY)])) };
        let pipeline = start(2, parts).await;
        let first = pipeline.answer(in_time(1)).await.unwrap().provenance;
        assert_eq!((first.reason.as_str(), first.n_history), ("quality_only", 0));
        pipeline.flush().await;
        let second = pipeline.answer(in_time(1)).await.unwrap().provenance;
        assert_eq!(second.n_history, n_history);
    }
}

#[tokio::test(start_paused = true)]
async fn timeouts_of_any_size_are_kept() {
    let pipeline = start(1, parts(Scripted::new(vec![says(SKY)]))).await;
    for timeout in [Duration::ZERO, Duration::from_millis(4)] {
        let error = pipeline.answer(Ask { timeout, ..ask() }).await.unwrap_err();
        assert_eq!(error.category, Category::Timeout);
    }
    for timeout in [Duration::from_millis(6), Duration::MAX] {
        assert_eq!(pipeline.answer(Ask { timeout, ..ask() }).await.unwrap().reply.completions, [SKY]);
    }
}

#[test]
fn a_search_that_finds_no_thread_does_not_cost_the_reply() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let pipeline = start(2, parts(Scripted::new(vec![says(SKY), says(OTHER)]))).await;
        for i in 0..300 {
            pipeline.answer(Ask::new(prompt(&i.to_string()))).await.unwrap();
        }
        let searched = pipeline.answer(in_time(1)).await.unwrap().provenance;
        assert!(searched.notes.is_empty() && searched.candidates[0].score.as_ref().unwrap().n_compared == 301);

        let (free, busy) = std::sync::mpsc::channel::<()>();
        let hog = tokio::task::spawn_blocking(move || busy.recv());
        let started = Instant::now();
        let p = pipeline.answer(in_time(1)).await.unwrap().provenance;
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(p.notes, ["no time to compare 2 of 2 candidates with earlier replies"]);
        for score in p.candidates.iter().map(|c| c.score.as_ref().unwrap()) {
            assert_eq!((score.n_compared, score.history_distance, score.clears), (1, None, false));
        }
        assert_eq!(p.n_history, 301);
        drop(free);
        assert!(hog.await.unwrap().is_err());
        assert!(pipeline.answer(in_time(1)).await.unwrap().provenance.notes.is_empty(), "it is searched again");
    });
}

#[tokio::test(start_paused = true)]
async fn dropping_a_reply_stops_the_model() {
    let backend = Arc::new(Scripted::new(vec![says_slowly(LONG, 1000)]));
    let pipeline = Pipeline::start(config(4), Parts::new(backend.clone())).await.unwrap();
    let cut = tokio::time::timeout(Duration::from_secs(2), pipeline.answer(in_time(30))).await;
    assert!(cut.is_err());
    assert_eq!((backend.requests().len(), backend.in_flight()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_backend_is_told_to_stop_before_we_do() {
    let backend = Arc::new(Scripted::new(vec![says(SKY)]));
    let parts = Parts { embedder: Some(Arc::new(HashEmbedder::new(64))), ..Parts::new(backend.clone()) };
    let config = PipelineConfig { score_reserve: Duration::from_millis(200), ..config(4) };
    let pipeline = Pipeline::start(config, parts).await.unwrap();
    let started = Instant::now();
    let answer = pipeline.answer(in_time(10)).await.unwrap();
    let told = Instant::from_std(backend.requests()[0].deadline.unwrap()) - started;
    // 10 s less 4 times 200 ms and half of that again, 20 ms, and 40 ms of grace.
    assert_eq!(told, Duration::from_millis(10_000 - 1200 - 20 - 40));
    assert!((answer.provenance.timings.reserve_ms - 1220.0).abs() < 1.0);
}

/// A backend that takes one request at a time, like an engine with a single thread.
#[derive(Debug)]
struct OneByOne {
    inner: Scripted,
    turn: Arc<tokio::sync::Semaphore>,
}

#[async_trait::async_trait]
impl Backend for OneByOne {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        collect(self.stream(request).await?).await
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        let turn = Arc::clone(&self.turn).acquire_owned().await.unwrap();
        let stream = self.inner.stream(request).await?;
        let hold = move |event| {
            let _held = &turn;
            event
        };
        Ok(Box::pin(futures_util::StreamExt::map(stream, hold)))
    }

    async fn score(&self, request: ScoreRequest) -> Result<Score, Error> {
        self.inner.score(request).await
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

#[tokio::test(start_paused = true)]
async fn recipes_share_the_time_of_a_backend_that_takes_them_one_by_one() {
    let long = says_slowly(&"On and on it goes. ".repeat(100), 100);
    let backend = OneByOne { inner: Scripted::new(vec![long]), turn: Arc::new(tokio::sync::Semaphore::new(1)) };
    let library = Arc::new(idiolect_mutation::Library::built_in());
    let pipeline = start(4, Parts { library, ..parts(backend) }).await;
    // The unchanged prompt's own two candidates grow side by side, as far as anybody knows when they are tried.
    for nth in 0..8 {
        let started = Instant::now();
        let p = pipeline.answer(in_time(10)).await.unwrap().provenance;
        assert!(started.elapsed() <= Duration::from_secs(10), "{:?}", started.elapsed());
        let most = if nth == 0 { 1 } else { 2 };
        assert!((1..=most).contains(&p.candidates.len()), "others would be cut, and shorter: {p}");
        assert!(p.candidates.iter().all(|c| c.operators.is_empty() && c.n_tokens > 80), "{p}");
    }
}

#[tokio::test(start_paused = true)]
async fn recipes_of_a_backend_that_is_known_to_take_them_one_by_one_are_told_their_share() {
    // Two seconds for each of three recipes: all six candidates become whole.
    let whole = says_slowly(&"On and on it goes. ".repeat(4), 100);
    let turn = Arc::new(tokio::sync::Semaphore::new(1));
    let backend = Arc::new(OneByOne { inner: Scripted::new(vec![whole]), turn });
    let library = Arc::new(idiolect_mutation::Library::built_in());
    let parts = Parts { library, ..Parts::new(Arc::<OneByOne>::clone(&backend)) };
    let pipeline = Pipeline::start(PipelineConfig { recipes: 3, ..config(6) }, parts).await.unwrap();
    let mut n_before = 0;
    for nth in 0..4 {
        let started = Instant::now();
        let p = pipeline.answer(in_time(10)).await.unwrap().provenance;
        assert_eq!(p.candidates.len(), 6);
        assert!(p.candidates.iter().all(|c| c.n_tokens == 20 && c.finish == FinishReason::Stop), "{p}");
        let requests = backend.inner.requests().split_off(n_before);
        n_before += requests.len();
        let until: Vec<f64> =
            requests.iter().map(|r| (Instant::from_std(r.deadline.unwrap()) - started).as_secs_f64()).collect();
        let shares: Vec<f64> = until.iter().map(|told| told / until[0]).collect();
        // At first one goes ahead, and the others share the eight seconds that are left, of which the first of them may take all.
        let expected: &[f64] = if nth == 0 { &[1.0, 1.0, 0.68, 1.0] } else { &[1.0, 2.0 / 3.0, 1.0] };
        assert_eq!(shares.len(), expected.len());
        let is_near = |(share, expected): (&f64, &f64)| (share - expected).abs() < 0.01;
        assert!(shares.iter().zip(expected).all(is_near), "{nth}: {until:?} {shares:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn recipes_have_all_the_time_of_a_backend_that_takes_them_side_by_side() {
    let long = says_slowly(&"On and on it goes. ".repeat(100), 100);
    let library = Arc::new(idiolect_mutation::Library::built_in());
    let pipeline = start(4, Parts { library, ..parts(Scripted::new(vec![long])) }).await;
    // Alone the first is not whole either, so there is nothing to spoil by others.
    for n_candidates in [1, 4, 4] {
        let p = pipeline.answer(in_time(10)).await.unwrap().provenance;
        assert_eq!(p.candidates.len(), n_candidates);
        assert!(p.candidates.iter().all(|candidate| candidate.n_tokens > 80), "{p}");
    }
}
