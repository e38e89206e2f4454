use super::*;
use crate::testkit::{FaultyBackend, Step};
use crate::{BackendExt, Echo, Message, ScoreSupport, collect};

fn faulty(name: &str, script: impl IntoIterator<Item = Step>) -> Arc<FaultyBackend> {
    Arc::new(FaultyBackend::new(name, script))
}

fn pool(config: PoolConfig, backends: &[&Arc<FaultyBackend>]) -> Pool {
    let member = |b: &&Arc<FaultyBackend>| Member::new(b.capabilities().model.clone(), Arc::clone(*b) as _);
    Pool::new(config, backends.iter().map(member).collect()).unwrap()
}

fn request(model: Option<&str>) -> Request {
    Request { model: model.map(str::to_owned), ..Request::new(vec![Message::user("hello")]) }
}

fn exact(strategy: Strategy) -> PoolConfig {
    let cooldown = Backoff { first: Duration::from_secs(10), max: Duration::from_secs(60), jitter: 0.0 };
    PoolConfig { strategy, allowed_fails: 0, cooldown, ..PoolConfig::default() }
}

async fn answered_by(pool: &Pool, model: Option<&str>) -> String {
    pool.complete(request(model)).await.unwrap().backend
}

#[tokio::test(start_paused = true)]
async fn falls_back_and_lets_the_failing_member_cool_down() {
    let (a, b) = (faulty("a", [Step::Fail(ErrorKind::Unavailable)]), faulty("b", []));
    let pool = pool(exact(Strategy::Fallback), &[&a, &b]);
    assert_eq!(answered_by(&pool, None).await, "b");
    let sick = &pool.members()[0];
    assert_eq!((sick.cooldown, sick.last_error), (Some(Duration::from_secs(10)), Some(ErrorKind::Unavailable)));
    assert_eq!(answered_by(&pool, None).await, "b");
    assert_eq!(a.n_requests(), 1);
    tokio::time::advance(Duration::from_secs(10)).await;
    assert_eq!(answered_by(&pool, None).await, "a");
    let well = &pool.members()[0];
    assert_eq!((well.cooldown, well.consecutive_failures, well.failures_total), (None, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn cooldown_doubles_up_to_its_end_and_allows_some_failures() {
    let a = Arc::new(FaultyBackend::always("a", Step::Fail(ErrorKind::Internal)));
    let pool = pool(PoolConfig { allowed_fails: 2, ..exact(Strategy::Fallback) }, &[&a]);
    let mut seen = Vec::new();
    for _ in 0..7 {
        pool.ask("x").await.unwrap_err();
        seen.push(pool.members()[0].cooldown.map(|c| c.as_secs()));
    }
    assert_eq!(seen, [None, None, Some(10), Some(20), Some(40), Some(60), Some(60)]);
}

#[tokio::test(start_paused = true)]
async fn streams_fall_back_before_the_first_text_only() {
    let breaks = |text: &str| Step::Break(text.to_owned(), ErrorKind::Overloaded);
    let (a, b) = (faulty("a", [breaks(""), breaks("so far")]), faulty("b", []));
    let pool = pool(PoolConfig { allowed_fails: 9, ..exact(Strategy::Fallback) }, &[&a, &b]);
    let c = pool.stream_and_collect(request(None)).await.unwrap();
    assert_eq!((c.backend.as_str(), c.candidates[0].text.as_str()), ("b", "ok"));

    let mut stream = pool.stream(request(None)).await.unwrap();
    assert!(matches!(stream.next().await, Some(Ok(Event::Delta { .. }))));
    stream.next().await.unwrap().unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::Overloaded);
    assert!(stream.next().await.is_none());
    assert_eq!(pool.members()[0].failures_total, 2);
    assert_eq!(pool.members()[0].in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_silent_member_is_left_for_the_next() {
    let (a, b) = (Arc::new(FaultyBackend::always("a", Step::Hang)), faulty("b", []));
    let config = PoolConfig { first_byte_timeout: Some(Duration::from_secs(2)), ..exact(Strategy::Fallback) };
    let pool = pool(config, &[&a, &b]);
    let start = Instant::now();
    assert_eq!(answered_by(&pool, None).await, "b");
    assert_eq!((start.elapsed(), a.in_flight()), (Duration::from_secs(2), 0));
    assert_eq!(pool.stream_and_collect(request(None)).await.unwrap().backend, "b");
    assert_eq!(start.elapsed(), Duration::from_secs(2), "the silent member cools down");
}

#[tokio::test(start_paused = true)]
async fn a_silent_member_costs_half_of_the_time_at_most() {
    let hang = || Arc::new(FaultyBackend::always("a", Step::Hang));
    let slow = |name, seconds| faulty(name, [Step::say(name).after(Duration::from_secs(seconds))]);
    for (members, expected, after) in [
        ([hang(), slow("b", 1), slow("c", 0)], Some("b"), 60),
        ([slow("a", 6), slow("b", 4), slow("c", 4)], Some("a"), 60),
        ([slow("a", 8), slow("b", 1), slow("c", 0)], Some("b"), 60),
        ([hang(), hang(), slow("c", 1)], Some("c"), 85),
        ([hang(), faulty("b", [Step::Fail(ErrorKind::Unavailable)]), slow("c", 1)], Some("c"), 60),
        ([hang(), faulty("b", [Step::Fail(ErrorKind::InvalidRequest)]), slow("c", 1)], None, 50),
    ] {
        let config = PoolConfig { num_retries: Some(2), ..exact(Strategy::Fallback) };
        let members: Vec<Member> =
            members.iter().zip(["a", "b", "c"]).map(|(m, name)| Member::new(name, Arc::clone(m) as _)).collect();
        let pool = Pool::new(config, members).unwrap();
        let start = Instant::now();
        let deadline = Some((start + Duration::from_secs(10)).into_std());
        let answer = pool.stream_and_collect(Request { deadline, ..request(None) }).await;
        let tenths = (start.elapsed() + Duration::from_millis(50)).as_millis() / 100;
        assert_eq!((answer.ok().map(|a| a.backend).as_deref(), tenths), (expected, after));
        assert!(pool.members().iter().all(|member| member.in_flight == 0));
        assert_eq!((pool.members()[0].failures_total, pool.members()[0].cooldown), (0, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_in_a_hurry_cannot_put_members_to_sleep() {
    let a = Arc::new(Echo::with_delay(Duration::from_secs(1)));
    let pool = Pool::new(exact(Strategy::Fallback), vec![Member::new("a", a)]).unwrap();
    for _ in 0..5 {
        let error = pool.complete_within(Duration::from_millis(1), request(None)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    }
    assert_eq!((pool.members()[0].cooldown, pool.members()[0].failures_total), (None, 0));
    assert_eq!(pool.ask("hello").await.unwrap(), "hello");
}

#[tokio::test(start_paused = true)]
async fn bad_requests_are_final_and_cost_nobody() {
    let (a, b) = (faulty("a", [Step::Fail(ErrorKind::InvalidRequest)]), faulty("b", []));
    let pool = pool(exact(Strategy::Fallback), &[&a, &b]);
    assert_eq!(pool.ask("x").await.unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert_eq!((b.n_requests(), pool.members()[0].failures_total), (0, 0));
    let invalid = Request { n: 0, ..request(None) };
    pool.complete(invalid).await.unwrap_err();
    assert_eq!(a.n_requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_time_named_by_the_other_side_is_kept() {
    let a = faulty("a", [Step::RetryAfter(Duration::from_secs(30))]);
    let pool = pool(exact(Strategy::Fallback), &[&a]);
    assert_eq!(pool.ask("x").await.unwrap_err().kind(), ErrorKind::Overloaded);
    assert_eq!(pool.ask("x").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(pool.health().await, Health::Unavailable("every member is cooling down after failures".to_owned()));
    assert_eq!(a.n_requests(), 1);
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(pool.ask("x").await.unwrap(), "ok");
    assert_eq!(pool.health().await, Health::Ready);
}

#[tokio::test(start_paused = true)]
async fn cooling_members_are_a_last_resort() {
    let (a, b) = (faulty("a", [Step::Fail(ErrorKind::Internal)]), faulty("b", [Step::Fail(ErrorKind::Internal)]));
    let careful = pool(PoolConfig { last_resort: false, ..exact(Strategy::Fallback) }, &[&a, &b]);
    careful.ask("x").await.unwrap_err();
    assert_eq!(careful.ask("x").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!((a.n_requests(), b.n_requests()), (1, 1));

    let (a, b) = (faulty("a", [Step::Fail(ErrorKind::Internal)]), faulty("b", [Step::Fail(ErrorKind::Internal)]));
    let keen = pool(exact(Strategy::Fallback), &[&a, &b]);
    keen.ask("x").await.unwrap_err();
    assert_eq!(answered_by(&keen, None).await, "a");
}

#[tokio::test(start_paused = true)]
async fn retries_are_as_many_as_said() {
    let all = ["a", "b", "c"].map(|name| Arc::new(FaultyBackend::always(name, Step::Fail(ErrorKind::Protocol))));
    let config = PoolConfig { num_retries: Some(0), allowed_fails: 99, ..exact(Strategy::Fallback) };
    let none = pool(config.clone(), &[&all[0], &all[1], &all[2]]);
    none.ask("x").await.unwrap_err();
    assert_eq!(all.each_ref().map(|b| b.n_requests()), [1, 0, 0]);
    let one = pool(PoolConfig { num_retries: Some(1), ..config }, &[&all[0], &all[1], &all[2]]);
    one.ask("x").await.unwrap_err();
    assert_eq!(all.each_ref().map(|b| b.n_requests()), [2, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn round_robin_follows_the_weights() {
    let member = |name: &str, weight| Member::new(name, Arc::new(Echo::new())).weight(weight);
    let members = vec![member("a", 5), member("b", 1), member("c", 2)];
    let pool = Pool::new(exact(Strategy::RoundRobin), members).unwrap();
    let mut order = String::new();
    for _ in 0..16 {
        order.push_str(&answered_by(&pool, None).await);
    }
    assert_eq!(order, "acaabaca".repeat(2));
}

#[tokio::test(start_paused = true)]
async fn least_busy_counts_what_is_in_flight() {
    let member =
        |name: &str, weight| Member::new(name, Arc::new(Echo::with_delay(Duration::from_secs(1)))).weight(weight);
    let pool = Pool::new(exact(Strategy::LeastBusy), vec![member("a", 1), member("b", 2)]).unwrap();
    let mut streams = Vec::new();
    for _ in 0..6 {
        let mut stream = pool.stream(request(None)).await.unwrap();
        stream.next().await.unwrap().unwrap();
        streams.push(stream);
    }
    let in_flight: Vec<_> = pool.members().iter().map(|m| m.in_flight).collect();
    assert_eq!(in_flight, [2, 4]);
    drop(streams);
    assert!(pool.members().iter().all(|m| m.in_flight == 0));
}

#[tokio::test(start_paused = true)]
async fn limits_pass_a_member_over() {
    let slow = Member::new("slow", Arc::new(Echo::with_delay(Duration::from_secs(1)))).max_parallel_requests(1);
    let rare = Member::new("rare", Arc::new(Echo::new())).rpm(1);
    let pool = Pool::new(exact(Strategy::Fallback), vec![slow, rare]).unwrap();
    let stream = pool.stream(request(None)).await.unwrap();
    assert_eq!(answered_by(&pool, None).await, "rare");
    let error = pool.ask("x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert_eq!(collect(stream).await.unwrap().backend, "slow");
    assert_eq!(answered_by(&pool, None).await, "slow");
}

#[tokio::test(start_paused = true)]
async fn the_model_picks_the_members() {
    let member = |name: &str, models: &[&str]| Member::new(name, faulty(name, []) as _).models(models.iter().copied());
    let fallbacks = BTreeMap::from([("big".to_owned(), vec!["small".to_owned()])]);
    let strict = vec![member("a", &["small"]), member("b", &["big", "huge"])];
    let pool = Pool::new(PoolConfig { fallbacks: fallbacks.clone(), ..exact(Strategy::Fallback) }, strict).unwrap();
    assert_eq!(answered_by(&pool, Some("huge")).await, "b");
    assert_eq!(answered_by(&pool, None).await, "a");
    let error = pool.complete(request(Some("other"))).await.unwrap_err();
    assert_eq!(error.to_string(), "pool does not support model \"other\"");

    let loose = vec![member("named", &["big"]), member("any", &[])];
    let pool = Pool::new(exact(Strategy::Fallback), loose).unwrap();
    assert_eq!(answered_by(&pool, Some("other")).await, "any");
    assert_eq!(answered_by(&pool, Some("any")).await, "any");
    assert_eq!(answered_by(&pool, Some("big")).await, "named");
}

#[tokio::test(start_paused = true)]
async fn the_preferred_member_is_asked_first_and_the_others_when_it_fails() {
    let (a, b) = (faulty("a", []), faulty("b", [Step::say("b"), Step::Fail(ErrorKind::Unavailable), Step::say("b")]));
    let pool = pool(PoolConfig::default(), &[&a, &b]);
    let asked = async |prefer: &str| {
        let request = Request { prefer: Some(prefer.to_owned()), ..request(None) };
        pool.complete(request).await.unwrap().backend
    };
    assert_eq!(asked("b").await, "b");
    assert_eq!(asked("b").await, "a");
    assert_eq!(asked("a").await, "a");
    assert_eq!(asked("nobody").await, "a");
}

#[tokio::test(start_paused = true)]
async fn a_fallback_model_is_asked_by_its_own_name() {
    let (big, small) = (faulty("big", [Step::Fail(ErrorKind::Unavailable)]), faulty("small", []));
    let fallbacks = BTreeMap::from([("big".to_owned(), vec!["small".to_owned()])]);
    let pool = pool(PoolConfig { fallbacks, ..exact(Strategy::Fallback) }, &[&big, &small]);
    assert_eq!(answered_by(&pool, Some("big")).await, "small");
    assert_eq!(big.requests()[0].model.as_deref(), Some("big"));
    assert_eq!(small.requests()[0].model.as_deref(), Some("small"));
}

#[tokio::test(start_paused = true)]
async fn a_prompt_too_long_for_one_may_fit_another() {
    let small = crate::EchoConfig { context_tokens: Some(1), ..crate::EchoConfig::default() };
    let members =
        vec![Member::new("small", Arc::new(Echo::with_config(small))), Member::new("large", Arc::new(Echo::new()))];
    let pool = Pool::new(exact(Strategy::Fallback), members).unwrap();
    assert_eq!(pool.ask("more than one word").await.unwrap(), "more than one word");
    assert_eq!(pool.members()[0].failures_total, 0);
}

#[tokio::test(start_paused = true)]
async fn capabilities_are_what_all_can_do() {
    let able = Capabilities {
        context_tokens: Some(4096),
        seed: true,
        logprobs: true,
        batched_candidates: true,
        score: ScoreSupport::Rows,
        min_tokens: true,
        stages: vec![crate::StageKind::TopK, crate::StageKind::Xtc],
        family: Some("llama".to_owned()),
        ..Capabilities::new("a")
    };
    let plain = Capabilities { paid: true, family: Some("llama".to_owned()), ..Capabilities::new("b") };
    let backend = |c: &Capabilities| Arc::new(FaultyBackend::new("x", []).with_capabilities(c.clone()));
    let members = vec![Member::new("a", backend(&able) as _), Member::new("b", backend(&plain) as _)];
    let joint = Pool::new(exact(Strategy::Fallback), members).unwrap();
    let family = Some("llama".to_owned());
    assert_eq!(joint.capabilities(), &Capabilities { paid: true, family, ..Capabilities::new("a") });

    let twins = vec![Member::new("a", backend(&able) as _), Member::new("b", backend(&able) as _)];
    assert_eq!(Pool::new(exact(Strategy::Fallback), twins).unwrap().capabilities(), &able);
    // Who can give log-probabilities is asked first when they are wanted.
    let members = vec![Member::new("b", backend(&plain) as _), Member::new("a", backend(&able) as _)];
    let pool = Pool::new(exact(Strategy::Fallback), members).unwrap();
    let mut wanted = request(None);
    wanted.sampling.logprobs = Some(0);
    assert_eq!(pool.complete(wanted).await.unwrap().backend, "a");
}

#[test]
fn names_everything_that_is_wrong() {
    let member = || Member::new("a", faulty("a", []) as _);
    let fallbacks = BTreeMap::from([("a".to_owned(), vec!["z".to_owned()])]);
    let config = PoolConfig { fallbacks, ..PoolConfig::default() };
    let error = Pool::new(config, vec![member(), member().weight(0)]).unwrap_err().to_string();
    for part in ["two members named \"a\"", "weight of member \"a\" is 0", "fallback of \"a\" to \"z\""] {
        assert!(error.contains(part), "{error}");
    }
    Pool::new(PoolConfig::default(), Vec::new()).unwrap_err();
}

#[test]
fn strategies_have_names() {
    for (strategy, name) in Strategy::ALL {
        assert_eq!((strategy.to_string().as_str(), name.parse::<Strategy>().unwrap()), (name, strategy));
        assert_eq!(serde_json::to_value(strategy).unwrap(), name);
    }
    "simple-shuffle".parse::<Strategy>().unwrap_err();
}
