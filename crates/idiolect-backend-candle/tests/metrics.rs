//! What the local backend counts, with the default model. In a process of its own, as recorders are global.

mod kept;

use std::time::{Duration, Instant};

use idiolect_backend::{Backend, Message, Request};
use idiolect_backend_candle::{CandleBackend, CandleConfig};

use self::kept::Kept;

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
    assert_eq!(kept.count("idiolect_candle_prompt_tokens_total candle computed"), computed);
    assert_eq!(kept.count("idiolect_candle_prompt_tokens_total candle kept"), u64::from(second.cached_tokens));
    let tokens = u64::from(first.completion_tokens + second.completion_tokens);
    // The end of a turn is drawn, but no part of the text.
    assert!((tokens..=tokens + 2).contains(&kept.count("idiolect_candle_tokens_total candle")));
    let planned = "idiolect_candle_planned_tokens candle";
    assert_eq!(kept.last(planned), None, "no deadlines so far");

    // Speeds are known: of all the tokens that are asked for, memory is set aside for what there is time for.
    let decode = backend.speed().decode;
    let fewest = |candidates: usize| (candidates / 2 + 1) as f64;
    let fastest = decode.iter().map(|of| of.tokens_per_second / fewest(of.candidates)).fold(0.0, f64::max);
    let allowed = Duration::from_secs(3);
    let deadline = Instant::now() + allowed;
    (ask.n, ask.sampling.max_tokens, ask.deadline) = (4, 3500, Some(deadline));
    backend.complete(ask).await.unwrap();
    assert!(Instant::now() < deadline + Duration::from_secs(10));
    let planned = kept.last(planned).expect("a plan");
    // Half as much again as there is time for, and a few more.
    let most = fastest * allowed.as_secs_f64() * 1.5 + 33.0;
    assert!((32.0..=most.min(3500.0)).contains(&planned), "{planned} tokens, expected at most {most}: {decode:?}");
}
