//! How requests share the engine: tests with one that takes known times and writes down its steps.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::{join, join_all};
use idiolect_backend::{Backend, Error, Event, FinishReason, Message, Request, ScoreRequest};

use super::CandleBackend;
use crate::config::CandleConfig;
use crate::testing::script::{Script, Step};

fn paced(step: u64, candidate: u64, prompt_token: u64) -> Arc<Script> {
    Arc::new(Script::paced(step, candidate, prompt_token))
}

fn backend(script: &Arc<Script>, change: impl FnOnce(&mut CandleConfig)) -> CandleBackend {
    script.start(change)
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
    let watch = paced(3000, 0, 0);
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
    let watch = paced(20_000, 0, 0);
    let backend = backend(&watch, |_| ());
    for _ in 0..8 {
        // With their second tokens all three end, while nobody listens any more.
        let mut stream = backend.stream(request("x", 3, 2)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop(stream);
    }
    backend.complete(request("x", 1, 2)).await.unwrap();
    assert_eq!(watch.n_sequences(), 0, "sequences that nobody has");
}

#[tokio::test]
async fn scores_share_steps_and_take_their_part_of_the_memory() {
    let watch = paced(3000, 0, 0);
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
    assert_eq!(watch.n_sequences(), 0);
}

#[tokio::test]
async fn a_long_prompt_holds_up_nobody_for_long() {
    let watch = paced(1000, 0, 500);
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
    let watch = paced(2000, 0, 0);
    // Room for one of these at a time.
    let backend = backend(&watch, |config| config.max_kv_bytes = 500_000);
    let prompt = backend.complete(request("x", 1, 1)).await.unwrap().usage.prompt_tokens;
    let max_tokens = (500 - prompt) / 2;
    let ask = request("x", 2, max_tokens);
    // Once this comes, the first one is let in.
    let mut running = backend.stream(ask.clone()).await.unwrap();
    let late = due(ask.clone(), 30);
    let began = Instant::now();
    let first = async {
        let mut n_ended = 0;
        while let Some(event) = running.next().await {
            n_ended += usize::from(matches!(event.unwrap(), Event::Finished { .. }));
        }
        (n_ended, began.elapsed())
    };
    let others = join(backend.complete(ask), async { (backend.complete(late).await, began.elapsed()) });
    let ((n_ended, first_took), (second, (late, late_took))) = join(first, others).await;
    assert_eq!((n_ended, second.unwrap().candidates.len()), (2, 2));
    assert!(matches!(late, Err(Error::DeadlineExceeded)), "{late:?}");
    assert!(late_took < first_took, "{late_took:?}, {first_took:?}");
    assert_eq!(watch.most_candidates(), 2);
    let error = backend.complete(request("x", 2, max_tokens + 1)).await.unwrap_err();
    assert!(error.to_string().contains("500000 are allowed"), "{error}");
}

#[tokio::test]
async fn the_nearest_deadline_comes_first() {
    // The one that runs takes so long for each step that all others have come before its last.
    let watch = paced(400_000, 0, 0);
    let backend = backend(&watch, |config| config.max_batch = 1);
    let order = Mutex::new(Vec::new());
    let ask = async |name: &'static str, request: Request| {
        backend.complete(request).await.unwrap();
        order.lock().unwrap().push(name);
    };
    let running = backend.stream(request("x", 1, 2)).await.unwrap();
    let running = async {
        running.count().await;
        order.lock().unwrap().push("running");
    };
    let rest = async {
        let quicker = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            watch.step.store(1000, Ordering::Relaxed);
        };
        let others = join_all([
            Box::pin(ask("whenever", request("x", 1, 5))) as std::pin::Pin<Box<dyn Future<Output = ()>>>,
            Box::pin(ask("in time", due(request("x", 1, 5), 20_000))),
            Box::pin(ask("soon", due(request("x", 1, 5), 10_000))),
        ]);
        join(others, quicker).await
    };
    join(running, rest).await;
    assert_eq!(*order.lock().unwrap(), ["running", "soon", "in time", "whenever"]);
}

#[tokio::test]
async fn fewer_candidates_are_begun_where_all_would_not_end_in_time() {
    let watch = paced(1000, 4000, 0);
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
    // Steps so long that a machine with other work to do is not late by much of one.
    let watch = paced(0, 16_000, 0);
    let backend = backend(&watch, |_| ());
    for n in [2, 4] {
        backend.complete(request("x", n, 6)).await.unwrap();
    }
    // Quick at first, then four times as slow: two of them can still make it.
    watch.candidate.store(4000, Ordering::Relaxed);
    for _ in 0..3 {
        backend.complete(request("x", 4, 16)).await.unwrap();
    }
    // Of 24 steps twenty are slow: four candidates would take 1280 ms for them, two 640.
    let mut stream = backend.stream(due(request("x", 4, 24), 1180)).await.unwrap();
    let mut ended = Vec::new();
    let mut n_deltas = 0;
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            Event::Delta { .. } => {
                n_deltas += 1;
                if n_deltas == 16 {
                    watch.candidate.store(16_000, Ordering::Relaxed);
                }
            }
            Event::Finished { reason, n_tokens, .. } => ended.push((reason, n_tokens)),
            Event::Done { .. } => {}
        }
    }
    assert_eq!(ended.len(), 4);
    let given_up = ended.iter().filter(|(reason, n)| *reason == FinishReason::Deadline && *n < 24).count();
    let whole = ended.iter().filter(|(reason, _)| *reason == FinishReason::Length).count();
    assert!(given_up >= 1 && whole >= 2, "{ended:?}");
}

/// What a request that asks for everything is given while it has this long, where a step takes ten milliseconds.
fn everything(n: usize, millis: u64) -> Request {
    due(request("x", n, 4000), millis)
}

#[tokio::test]
async fn memory_is_set_aside_for_what_there_is_time_for() {
    let script = paced(10_000, 0, 100);
    let backend = backend(&script, |config| config.max_kv_bytes = 500_000);
    let error = backend.complete(everything(2, 400)).await.unwrap_err();
    assert!(error.to_string().contains("500000 are allowed"), "before any speed is known: {error}");
    backend.complete(request("x", 2, 10)).await.unwrap();
    // Forty tokens each, half as many again and 32: two of these fit, and another.
    let answers = join_all((0..2).map(|_| backend.complete(everything(2, 400)))).await;
    for answer in answers {
        let candidates = answer.unwrap().candidates;
        assert!(candidates.iter().all(|candidate| candidate.n_tokens >= 20), "{candidates:?}");
        assert!(candidates.iter().all(|candidate| candidate.finish_reason == FinishReason::Deadline));
    }
    assert_eq!(script.most_candidates(), 4, "side by side");
    let error = backend.complete(everything(2, 60_000)).await.unwrap_err();
    assert!(error.to_string().contains("500000 are allowed"), "time for more than the memory holds: {error}");
    assert!(backend.complete(request("x", 2, 4000)).await.is_err(), "and so without a deadline");
}

#[tokio::test]
async fn who_turns_out_to_be_faster_is_given_more() {
    let script = paced(40_000, 0, 0);
    let backend = backend(&script, |_| ());
    backend.complete(request("x", 2, 10)).await.unwrap();
    script.step.store(1000, Ordering::Relaxed);
    // Fifty tokens were expected, and memory set aside for 107.
    let began = Instant::now();
    let answer = backend.complete(everything(2, 2000)).await.unwrap();
    assert!(began.elapsed() < Duration::from_millis(2500));
    let lengths: Vec<u32> = answer.candidates.iter().map(|candidate| candidate.n_tokens).collect();
    assert!(lengths.len() == 2 && lengths.iter().all(|n| *n > 150), "{lengths:?}");
    assert_eq!(script.n_sequences(), 0);
}

#[tokio::test]
async fn where_memory_ends_before_time_the_worst_make_way() {
    let script = paced(20_000, 0, 0);
    let backend = backend(&script, |config| config.max_kv_bytes = 450_000);
    let prompt = backend.complete(request("x", 4, 10)).await.unwrap().usage.prompt_tokens as usize;
    script.step.store(500, Ordering::Relaxed);
    let answer = backend.complete(everything(4, 1000)).await.unwrap();
    let lengths: Vec<u32> = answer.candidates.iter().map(|candidate| candidate.n_tokens).collect();
    assert_eq!(lengths.len(), 4, "what is given up is part of the answer");
    assert!(lengths.iter().any(|n| *n as usize > (450 - prompt) / 4), "{lengths:?}");
    assert!(script.most_held() > 400, "{} of 450 tokens were used", script.most_held());
    assert_eq!(script.n_sequences(), 0);
}

#[tokio::test]
async fn who_needs_more_waits_for_others_to_leave() {
    let script = paced(10_000, 0, 0);
    let backend = backend(&script, |config| config.max_kv_bytes = 1_000_000);
    let prompt = backend.complete(request("x", 2, 10)).await.unwrap().usage.prompt_tokens;
    script.step.store(1500, Ordering::Relaxed);
    // Half of the memory, for 150 steps; the other's two candidates are expected to have 60 tokens and have time for more.
    let half = backend.complete(request("x", 2, 250));
    let rest = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        backend.complete(everything(2, 1800)).await
    };
    let (half, rest) = join(half, rest).await;
    assert!(half.unwrap().candidates.iter().all(|candidate| candidate.n_tokens == 250));
    let rest = rest.unwrap().candidates;
    let lengths: Vec<u32> = rest.iter().map(|candidate| candidate.n_tokens).collect();
    assert!(lengths.iter().all(|n| *n > (1000 - 500 - 2 * prompt) / 2), "both went on: {lengths:?}");
    // Their texts are those of candidates that wait for nobody.
    let free = paced(10, 0, 0).start(|_| ());
    let whole = free.complete(everything(2, 60_000)).await.unwrap().candidates;
    for (candidate, whole) in rest.iter().zip(&whole) {
        assert!(whole.text.starts_with(&candidate.text), "{}\n{}", candidate.text, whole.text);
    }
}

#[tokio::test]
async fn whatever_comes_together_ends_in_time_and_within_the_memory() {
    for round in 0..4u64 {
        let script = paced(2000, 300, 50);
        let backend = backend(&script, |config| {
            config.max_kv_bytes = 300_000;
            config.max_batch = 12;
            config.queue = 64;
        });
        backend.complete(request("x", 2, 20)).await.unwrap();
        script.step.store(if round % 2 == 0 { 500 } else { 6000 }, Ordering::Relaxed);
        let ask = async |i: u64| {
            let (n, millis) = (1 + (i + round) as usize % 5, 40 + 67 * ((i * 7 + round) % 6));
            tokio::time::sleep(Duration::from_millis(11 * (i % 4))).await;
            let began = Instant::now();
            let answer = backend.complete(due(request(&"x".repeat(1 + 9 * i as usize), n, 4000), millis)).await;
            assert!(began.elapsed() < Duration::from_millis(millis + 400), "{:?} of {millis} ms", began.elapsed());
            match answer {
                Ok(answer) => assert!(answer.candidates.len() >= n.min(2)),
                // At that speed there may be time for more than the memory holds.
                Err(error) => assert!(matches!(error, Error::DeadlineExceeded | Error::InvalidRequest(_)), "{error}"),
            }
        };
        join_all((0..12).map(ask)).await;
        backend.complete(request("x", 2, 20)).await.unwrap();
        assert_eq!(script.n_sequences(), 0);
    }
}

#[tokio::test]
async fn equal_prompts_wait_for_each_other_only_where_they_are_kept() {
    for (script, together) in [(Script::paced(1000, 0, 100), true), (Script::paced(1000, 0, 100).keeping(), false)] {
        let script = Arc::new(script);
        let backend = backend(&script, |_| ());
        let text = "x".repeat(300);
        let answers = join_all((0..2).map(|_| backend.complete(request(&text, 1, 3)))).await;
        assert!(answers.iter().all(Result::is_ok));
        let shared = script.steps().iter().any(|step| step.prompts == 2);
        assert_eq!(shared, together);
    }
}
