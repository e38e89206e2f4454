//! What every backend must do.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use futures_util::{FutureExt, StreamExt};
use idiolect_sampling::{ChainSpec, Dry, Scope, Stage, TopK, TopNSigma, Xtc};
use tokio::time::Instant;

use crate::{
    Backend, BackendExt, Candidate, Collector, Completion, Error, ErrorKind, Event, FinishReason, Health, Message,
    OwnLogits, Request, Score, ScoreRequest, ScoreSupport,
};

/// Runs the whole suite with its defaults; see [`Conformance`].
///
/// # Panics
/// When the backend breaks its contract.
pub async fn conformance<F>(make: F)
where
    F: Fn() -> Arc<dyn Backend> + Send + Sync + 'static,
{
    Conformance::new(make).run().await;
}

/// The suite, with settings.
///
/// Cases are chosen by [`Capabilities`](crate::Capabilities): what a backend doesn't claim is not asked of it, except
/// that it must say so properly. `make` is called for each case and may return the same backend each time.
///
/// That dropping stops the work is seen in two ways: many more requests are dropped than a queue would hold, and then
/// one more must be answered; and where the backend can tell how many requests it works on
/// ([`in_flight`](Self::in_flight)), that number must come back to zero.
pub struct Conformance {
    make: Box<dyn Fn() -> Arc<dyn Backend> + Send + Sync>,
    in_flight: Option<Box<dyn Fn() -> usize + Send + Sync>>,
    prompt: String,
    max_tokens: u32,
    patience: Duration,
    slack: Duration,
    clock: Option<Box<dyn Fn() -> Duration + Send + Sync>>,
}

impl fmt::Debug for Conformance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conformance").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Conformance {
    /// Prepares the suite for what `make` returns.
    pub fn new<F>(make: F) -> Self
    where
        F: Fn() -> Arc<dyn Backend> + Send + Sync + 'static,
    {
        Self {
            make: Box::new(make),
            in_flight: None,
            prompt: "Please name the colours of the rainbow, one after the other.".to_owned(),
            max_tokens: 12,
            patience: Duration::from_secs(60),
            slack: Duration::from_millis(750),
            clock: None,
        }
    }

    /// Watches how many requests the backend works on.
    #[must_use]
    pub fn in_flight(mut self, in_flight: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        self.in_flight = Some(Box::new(in_flight));
        self
    }

    /// Asks something else. The answer should be a few words at least.
    #[must_use]
    pub fn prompt(mut self, prompt: impl Into<String>) -> Self {
        self.prompt = prompt.into();
        self
    }

    /// Sets how many tokens answers may have, 12 if not said; more than 3.
    #[must_use]
    pub const fn max_tokens(mut self, max_tokens: u32) -> Self {
        self.max_tokens = max_tokens;
        self
    }

    /// Sets how long one answer may take, a minute if not said.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets how much later than the deadline an answer may come, 750 ms if not said.
    #[must_use]
    pub const fn slack(mut self, slack: Duration) -> Self {
        self.slack = slack;
        self
    }

    /// Measures by another clock than the wall's what passes between a deadline and its answer: by what was computed, for
    /// instance, so that it does not matter what else the machine has to do.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.clock = Some(Box::new(clock));
        self
    }

    /// Runs every case.
    ///
    /// # Panics
    /// When the backend breaks its contract.
    pub async fn run(&self) {
        self.states_facts().await;
        self.refuses_bad_requests().await;
        self.answers_whole().await;
        self.draws_candidates().await;
        self.streams_in_order().await;
        self.repeats_with_a_seed().await;
        self.ends_at_max_tokens().await;
        self.draws_min_tokens().await;
        self.names_stages_it_lacks().await;
        self.ends_before_a_stop_text().await;
        self.gives_logprobs().await;
        self.keeps_deadlines().await;
        self.stops_when_dropped().await;
        self.answers_side_by_side().await;
        self.minds_the_context().await;
        self.scores().await;
    }

    fn backend(&self) -> Arc<dyn Backend> {
        (self.make)()
    }

    fn request(&self) -> Request {
        let mut request = Request::new(vec![
            Message::system("You answer in plain words."),
            Message::user("Hello! Grüße, 你好 👋"),
            Message::assistant("Hello."),
            Message::user(self.prompt.clone()),
        ]);
        request.sampling.max_tokens = self.max_tokens;
        request.sampling.temperature = Some(0.7);
        request
    }

    fn seeded(&self, backend: &dyn Backend) -> Request {
        let mut request = self.request();
        if backend.capabilities().seed {
            request.sampling.seed = Some(7);
        } else {
            request.sampling.temperature = Some(0.0);
        }
        request
    }

    async fn complete(&self, backend: &dyn Backend, request: &Request) -> Completion {
        let answer = tokio::time::timeout(self.patience, backend.complete(request.clone())).await;
        let completion = answer.expect("an answer in time").expect("an answer");
        check_completion(&completion, request);
        completion
    }

    async fn streamed(&self, backend: &dyn Backend, request: &Request) -> Completion {
        let all = async {
            let mut stream = backend.stream(request.clone()).await.expect("a stream");
            let mut collector = Collector::new().expecting(request.n);
            while let Some(event) = stream.next().await {
                collector.push(event.expect("no error in the stream")).expect("items in order");
            }
            collector.finish().expect("a whole stream")
        };
        let completion = tokio::time::timeout(self.patience, all).await.expect("an answer in time");
        check_completion(&completion, request);
        completion
    }

    async fn states_facts(&self) {
        let backend = self.backend();
        let facts = backend.capabilities().clone();
        assert!(!facts.model.is_empty(), "capabilities name the model");
        assert_eq!(backend.health().await, Health::Ready, "a backend under test is ready");
        self.complete(&*backend, &self.request()).await;
        assert_eq!(backend.capabilities(), &facts, "capabilities don't change");
    }

    async fn refuses_bad_requests(&self) {
        let backend = self.backend();
        type Break = fn(&mut Request);
        let broken: [(&str, Break); 6] = [
            ("n of 0", |r| r.n = 0),
            ("no messages", |r| r.messages.clear()),
            ("only white space", |r| r.messages = vec![Message::user(" \n")]),
            ("max_tokens of 0", |r| r.sampling.max_tokens = 0),
            ("a temperature that is no number", |r| r.sampling.temperature = Some(f32::NAN)),
            ("an empty stop text", |r| r.sampling.stop = vec![String::new()]),
        ];
        for (what, break_it) in broken {
            let mut request = self.request();
            break_it(&mut request);
            let whole = backend.complete(request.clone()).await.map(|_| ());
            check_kind(whole, ErrorKind::InvalidRequest, &format!("complete with {what}"));
            let streamed = backend.stream(request).await.map(|_| ());
            check_kind(streamed, ErrorKind::InvalidRequest, &format!("stream with {what}"));
        }
    }

    async fn answers_whole(&self) {
        let completion = self.complete(&*self.backend(), &self.request()).await;
        assert!(completion.candidates.iter().any(|c| !c.text.trim().is_empty()), "an answer has text");
        assert!(completion.usage.prompt_tokens > 0, "usage counts the prompt");
        assert!(completion.usage.completion_tokens > 0, "usage counts what was generated");
    }

    async fn draws_candidates(&self) {
        let mut request = self.request();
        request.n = 3;
        let completion = self.complete(&*self.backend(), &request).await;
        let indexes: Vec<_> = completion.candidates.iter().map(|c| c.index).collect();
        assert_eq!(indexes, [0, 1, 2], "one candidate for each asked, in order");
    }

    async fn streams_in_order(&self) {
        let mut request = self.request();
        request.n = 2;
        let backend = self.backend();
        let mut stream = backend.stream(request.clone()).await.expect("a stream");
        let mut n_done = 0;
        while let Some(event) = stream.next().await {
            assert_eq!(n_done, 0, "nothing after the last item");
            if let Event::Done { model, backend, .. } = event.expect("no error in the stream") {
                n_done += 1;
                assert!(!model.is_empty() && !backend.is_empty(), "the last item names model and backend");
            }
        }
        assert_eq!(n_done, 1, "exactly one last item");
        drop(stream);
        assert_eq!(self.streamed(&*backend, &request).await.candidates.len(), 2);
    }

    async fn repeats_with_a_seed(&self) {
        let backend = self.backend();
        if !backend.capabilities().seed {
            return;
        }
        let mut request = self.seeded(&*backend);
        request.n = 2;
        let first = self.complete(&*backend, &request).await;
        check_same(&self.complete(&*backend, &request).await, &first, "the same seed again");
        check_same(&self.streamed(&*backend, &request).await, &first, "the same seed streamed");
        check_same(&self.complete(&*self.backend(), &request).await, &first, "the same seed at another instance");
    }

    async fn ends_at_max_tokens(&self) {
        let backend = self.backend();
        let mut request = self.seeded(&*backend);
        request.sampling.max_tokens = 2;
        let completion = self.complete(&*backend, &request).await;
        let candidate = &completion.candidates[0];
        assert!(candidate.n_tokens <= 2, "max_tokens of 2, got {} tokens", candidate.n_tokens);
        if candidate.n_tokens == 2 {
            let reason = candidate.finish_reason;
            assert!(matches!(reason, FinishReason::Length | FinishReason::Stop), "cut by length, got {reason:?}");
        }
    }

    async fn draws_min_tokens(&self) {
        let backend = self.backend();
        if !backend.capabilities().min_tokens {
            return;
        }
        let mut request = self.request();
        (request.n, request.sampling.min_tokens) = (2, Some(self.max_tokens));
        for candidate in self.complete(&*backend, &request).await.candidates {
            assert_eq!(candidate.n_tokens, self.max_tokens, "as many tokens as there must be at least");
            assert_eq!(candidate.finish_reason, FinishReason::Length, "why a candidate of exact length ends");
        }
        request.sampling.min_tokens = Some(self.max_tokens + 1);
        let refused = backend.complete(request).await.map(drop);
        check_kind(refused, ErrorKind::InvalidRequest, "min_tokens above max_tokens");
    }

    async fn names_stages_it_lacks(&self) {
        let backend = self.backend();
        let stages = [
            Stage::Xtc(Xtc { probability: 0.5, threshold: 0.1 }),
            Stage::TopNSigma(TopNSigma { n: 1.0 }),
            Stage::Dry(Dry { multiplier: 0.8, scope: Scope::All, ..Dry::default() }),
            Stage::TopK(TopK { k: 10 }),
        ];
        for stage in stages {
            let kind = stage.kind();
            let mut request = self.request();
            request.sampling.chain = Some(ChainSpec::from(vec![stage]));
            if backend.capabilities().stages.contains(&kind) {
                self.complete(&*backend, &request).await;
                continue;
            }
            match backend.complete(request).await {
                Err(error @ Error::Unsupported { .. }) => {
                    assert!(error.to_string().contains(kind.as_str()), "{error} names the stage {kind}");
                }
                other => panic!("a chain with {kind}, which is not among the capabilities, gives {other:?}"),
            }
        }
    }

    async fn ends_before_a_stop_text(&self) {
        let backend = self.backend();
        let mut request = self.seeded(&*backend);
        let full = self.complete(&*backend, &request).await.candidates.remove(0).text;
        // A stop text that lies across words, so that it comes in pieces.
        let words: Vec<&str> = full.split_whitespace().collect();
        let Some(stop) = words.get(words.len() / 2).map(|word| word.to_string()) else { return };
        request.sampling.stop = vec!["\u{1F9EA} never said".to_owned(), stop.clone()];
        for completion in [self.complete(&*backend, &request).await, self.streamed(&*backend, &request).await] {
            let candidate = &completion.candidates[0];
            assert!(!candidate.text.contains(&stop), "the stop text is not part of the answer");
            if backend.capabilities().seed {
                assert!(full.starts_with(candidate.text.trim_end()), "the text before the stop text stays the same");
                assert_eq!(candidate.finish_reason, FinishReason::Stop, "a stop text reached ends with Stop");
            }
        }
    }

    async fn gives_logprobs(&self) {
        let backend = self.backend();
        if !backend.capabilities().logprobs {
            return;
        }
        let mut request = self.seeded(&*backend);
        for n_top in [0, 2] {
            request.sampling.logprobs = Some(n_top);
            let whole = self.complete(&*backend, &request).await;
            let streamed = self.streamed(&*backend, &request).await;
            for candidate in whole.candidates.iter().chain(&streamed.candidates) {
                check_logprobs(candidate, usize::from(n_top));
            }
            if backend.capabilities().seed {
                check_same(&streamed, &whole, "streamed with log-probabilities");
                let n = |c: &Completion| c.candidates[0].logprobs.as_ref().map(Vec::len);
                assert_eq!(n(&streamed), n(&whole), "as many log-probabilities streamed as whole");
            }
        }
    }

    async fn keeps_deadlines(&self) {
        let backend = self.backend();
        let mut request = self.request();
        request.deadline = Some(Instant::now().into_std());
        let whole = backend.complete(request.clone()).await.map(|_| ());
        check_kind(whole, ErrorKind::DeadlineExceeded, "complete with a deadline that has passed");
        let streamed = backend.stream_and_collect(request.clone()).await.map(|_| ());
        check_kind(streamed, ErrorKind::DeadlineExceeded, "stream with a deadline that has passed");

        request.sampling.max_tokens = 2000;
        replace_last(&mut request, "word ".repeat(300));
        let allowed = Duration::from_millis(120);
        for is_streamed in [false, true] {
            let deadline = Instant::now() + allowed;
            request.deadline = Some(deadline.into_std());
            let now = || self.clock.as_ref().map_or_else(|| deadline.elapsed(), |clock| clock());
            // The wall's clock needs no look at the deadline, which would come late where the thread is held up.
            let is_wall = self.clock.is_none();
            let answer = async {
                let result = if is_streamed {
                    backend.stream_and_collect(request.clone()).await
                } else {
                    backend.complete(request.clone()).await
                };
                (result, Instant::now() > deadline, now())
            };
            let at_deadline = async {
                tokio::time::sleep_until(deadline).await;
                if is_wall { Duration::ZERO } else { now() }
            };
            let ((result, is_late, at_answer), at_deadline) = join(answer, at_deadline).await;
            let late = if is_late { at_answer.saturating_sub(at_deadline) } else { Duration::ZERO };
            assert!(late <= self.slack, "an answer by the deadline of {allowed:?}, came {late:?} after it");
            match result {
                Ok(completion) => check_completion(&completion, &request),
                Err(error) => check_kind(Err(error), ErrorKind::DeadlineExceeded, "a deadline that comes early"),
            }
        }
    }

    async fn stops_when_dropped(&self) {
        let backend = self.backend();
        let mut long = self.request();
        long.sampling.max_tokens = 500;
        for round in 0..24 {
            if round % 2 == 0 {
                let mut whole = backend.complete(long.clone());
                let _ = whole.as_mut().now_or_never();
            } else {
                // A full queue may refuse for a moment, but not for good.
                if let Ok(mut stream) = backend.stream(long.clone()).await {
                    let _ = stream.next().now_or_never();
                }
            }
        }
        let start = Instant::now();
        loop {
            match backend.complete(self.request()).await {
                Ok(_) => break,
                Err(error) => {
                    let waited = start.elapsed();
                    assert!(error.is_retryable() && waited < self.patience, "answers after drops, got {error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        let Some(in_flight) = &self.in_flight else { return };
        while in_flight() > 0 {
            assert!(start.elapsed() < self.patience, "{} requests still in work after their drop", in_flight());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn answers_side_by_side(&self) {
        let backend = self.backend();
        let request = self.seeded(&*backend);
        let alone = self.complete(&*backend, &request).await;
        let together = join_all((0..4).map(|_| backend.complete(request.clone()))).await;
        for result in together {
            match result {
                Ok(completion) if backend.capabilities().seed => check_same(&completion, &alone, "side by side"),
                Ok(completion) => check_completion(&completion, &request),
                Err(error) => check_kind(Err(error), ErrorKind::Overloaded, "requests side by side"),
            }
        }
    }

    async fn minds_the_context(&self) {
        let backend = self.backend();
        let Some(context) = backend.capabilities().context_tokens.filter(|context| *context <= 4096) else { return };
        let mut request = self.request();
        request.sampling.max_tokens = 1;
        replace_last(&mut request, "word ".repeat(context as usize * 2));
        match tokio::time::timeout(self.patience, backend.complete(request)).await.expect("an answer in time") {
            Ok(completion) => {
                assert!(completion.usage.trimmed_tokens > 0, "a prompt beyond the context is cut, and says so");
                let used = completion.usage.prompt_tokens;
                assert!(used < context, "a prompt of {used} tokens in a context of {context}");
            }
            Err(Error::ContextTooLong { prompt_tokens, context_tokens }) => {
                assert!(prompt_tokens >= context_tokens, "{prompt_tokens} tokens would fit {context_tokens}");
            }
            Err(error) => panic!("a prompt beyond the context: expected ContextTooLong, got {error}"),
        }
    }

    async fn scores(&self) {
        let backend = self.backend();
        let plain = ScoreRequest::new(self.request().messages, "Red, orange and yellow.");
        let support = backend.capabilities().score;
        let with_rows = backend.score(plain.clone().with_rows()).await;
        if support < ScoreSupport::Rows {
            check_kind(with_rows.map(|_| ()), ErrorKind::Unsupported, "rows without support for them");
        } else {
            check_rows(&with_rows.expect("a score with rows"));
            self.scores_plain_texts().await;
        }
        let score = backend.score(plain.clone()).await;
        if support == ScoreSupport::None {
            return check_kind(score.map(|_| ()), ErrorKind::Unsupported, "score without support for it");
        }
        let score = score.expect("a score");
        assert!(!score.tokens.is_empty(), "a text has tokens");
        assert_eq!(score.token_ids.len(), score.tokens.len(), "an id for each token");
        assert!(score.tokens.iter().all(|t| t.logprob <= 0.0 && t.logprob.is_finite()), "log-probabilities up to 0");
        assert_eq!((&score.rows, &score.own_logits), (&None, &None), "rows that nobody asked for");
        let again = backend.score(plain).await.expect("a score");
        let means = (score.mean_logprob().unwrap_or(0.0), again.mean_logprob().unwrap_or(0.0));
        assert!((means.0 - means.1).abs() < 1e-3, "the same text scores the same, got {means:?}");
    }
}

impl Conformance {
    async fn scores_plain_texts(&self) {
        let backend = self.backend();
        let text = "Red, orange and yellow are warm colours.";
        let request = ScoreRequest::plain("The colours are these:", text);
        let everything = request.clone().with_rows().with_own_logits().with_prompt_logits();
        let score = backend.score(everything).await.expect("a plain text's score");
        check_rows(&score);
        check_own_logits(&score);
        let own = backend.score(request.clone().with_own_logits()).await.expect("a plain text's score");
        assert_eq!((&own.rows, own.prompt_logits), (&None, None), "what nobody asked for");
        let n_rows = own.own_logits.expect("own logits that were asked for").n_rows();
        assert_eq!(n_rows, score.token_ids.len(), "a row for each token");
        let vocabulary = score.rows.as_ref().and_then(|rows| rows.first()).map_or(0, Vec::len);
        let before = score.prompt_logits.expect("moments that were asked for");
        assert!(
            before.count() > 0 && before.count() % vocabulary as u64 == 0,
            "{} logits before the text",
            before.count()
        );
        assert!(before.mean().is_finite() && before.variance() >= 0.0, "{before:?}");
        let without = backend.score(request).await.expect("a plain text's score");
        assert_eq!((&without.token_ids, without.prompt_logits), (&score.token_ids, None));
        let Some(context) = backend.capabilities().context_tokens.filter(|context| *context <= 4096) else { return };
        let long = ScoreRequest::plain("The colours are these:", " red".repeat(context as usize * 2));
        match backend.score(long.clone()).await {
            Err(Error::ContextTooLong { .. }) => {}
            other => panic!("a text beyond the context: expected ContextTooLong, got {other:?}"),
        }
        let cut = backend.score(long.cut_to_context()).await.expect("as much as the context has room for");
        let n = cut.token_ids.len();
        assert!(n > 0 && n < context as usize, "{n} tokens were left of a text in a context of {context}");
    }
}

fn check_rows(score: &Score) {
    let rows = score.rows.as_ref().expect("rows where they are claimed");
    assert!(!score.tokens.is_empty(), "a text has tokens");
    assert_eq!(rows.len(), score.tokens.len(), "a row for each token");
    for ((row, id), token) in rows.iter().zip(&score.token_ids).zip(&score.tokens) {
        let chosen = row.get(*id as usize).copied().expect("rows as long as the vocabulary");
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - max).exp()).sum();
        let expected = f64::from(chosen - max) - sum.ln();
        let off = (expected - f64::from(token.logprob)).abs();
        assert!(off < 1e-2, "log-softmax of the row is {expected}, the score says {}", token.logprob);
    }
}

/// Holds what is kept of rows to the rows.
fn check_own_logits(score: &Score) {
    let own = score.own_logits.as_ref().expect("own logits that were asked for");
    let rows = score.rows.as_deref().unwrap_or_default();
    let expected = OwnLogits::of_rows(&score.token_ids, rows);
    assert_eq!((own.tokens(), own.n_rows()), (expected.tokens(), rows.len()), "own logits of other tokens");
    for ((ours, others), (expected, all_others)) in own.rows().zip(expected.rows()) {
        let near = ours.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-2);
        assert!(near && (others - all_others).abs() < 1e-2, "own logits are others than those of the rows");
    }
    let (found, expected) = (own.moments(), expected.moments());
    assert_eq!(found.count(), expected.count(), "own logits of so many");
    assert!((found.mean() - expected.mean()).abs() < 1e-2, "{found:?}, {expected:?} of the rows");
}

/// Asks something else at the end: two turns of one speaker in a row are more than some chat templates take.
fn replace_last(request: &mut Request, question: String) {
    request.messages.pop();
    request.messages.push(Message::user(question));
}

fn check_kind(result: Result<(), Error>, expected: ErrorKind, what: &str) {
    match result {
        Ok(()) => panic!("{what}: expected {expected:?}, got an answer"),
        Err(error) => assert_eq!(error.kind(), expected, "{what}: {error}"),
    }
}

fn check_completion(completion: &Completion, request: &Request) {
    assert!(!completion.model.is_empty() && !completion.backend.is_empty(), "an answer names model and backend");
    let candidates = &completion.candidates;
    assert!(!candidates.is_empty() && candidates.len() <= request.n, "1 to {} candidates", request.n);
    assert!(candidates.windows(2).all(|pair| pair[0].index < pair[1].index), "candidates by ascending index");
    for candidate in candidates {
        assert!(candidate.index < request.n, "index {} of {}", candidate.index, request.n);
        let n_tokens = candidate.n_tokens;
        assert!(n_tokens <= request.sampling.max_tokens, "{n_tokens} tokens of {}", request.sampling.max_tokens);
        assert!(candidate.mean_logprob.is_none_or(|mean| mean <= 0.0), "a mean log-probability up to 0");
        for stop in &request.sampling.stop {
            assert!(!candidate.text.contains(stop.as_str()), "no stop text in an answer");
        }
    }
}

fn check_same(got: &Completion, expected: &Completion, what: &str) {
    let parts = |c: &Completion| -> Vec<_> {
        c.candidates.iter().map(|c| (c.index, c.text.clone(), c.finish_reason, c.n_tokens)).collect()
    };
    assert_eq!(parts(got), parts(expected), "{what} gives the same candidates");
}

fn check_logprobs(candidate: &Candidate, n_top: usize) {
    let logprobs = candidate.logprobs.as_ref().expect("log-probabilities where they were asked for");
    assert_eq!(logprobs.len(), candidate.n_tokens as usize, "one log-probability for each token");
    for token in logprobs {
        assert!(token.logprob <= 0.0, "a log-probability up to 0, got {}", token.logprob);
        assert!(token.top.len() <= n_top, "{} alternatives, {n_top} were asked for", token.top.len());
        assert!(token.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob), "alternatives best first");
    }
    if let Some(mean) = candidate.mean_logprob.filter(|_| !logprobs.is_empty()) {
        let expected = logprobs.iter().map(|t| t.logprob).sum::<f32>() / logprobs.len() as f32;
        assert!((mean - expected).abs() < 1e-2, "a mean of {mean}, the tokens say {expected}");
    }
}
