use super::*;
use crate::policy::PolicyKind;

const RECIPES: [&str; 4] = ["no-op", "angle.causes@1", "register.plain@2", "angle.order@1+register.plain@2"];

/// What a recipe brings in truth.
fn truth(recipe: usize, task: &str) -> f64 {
    let [plain, causes, register, both] = if task == "answer" { [0.3, 0.8, 0.5, 0.6] } else { [0.5, 0.2, 0.7, 0.4] };
    [plain, causes, register, both][recipe]
}

/// A log of an uneven policy, one draw a request.
fn log(n: usize, seed: u64) -> Vec<Row> {
    let mut random = Seed::from(seed).random(0, 0);
    let chances = [0.4, 0.1, 0.3, 0.2];
    let row = |i: usize| {
        let task = if random.unit() < 0.5 { "answer" } else { "followup" };
        let unit = random.unit();
        let mut sum = 0.0;
        let recipe = chances.iter().position(|p| {
            sum += p;
            unit < sum
        });
        let recipe = recipe.unwrap_or(3);
        let reward = f64::from(u8::from(random.unit() < truth(recipe, task)));
        let context = Context::new("grpc", task, "5F");
        Row {
            request: Some(i.to_string()),
            context,
            recipe: RECIPES[recipe].to_owned(),
            propensity: chances[recipe],
            reward,
        }
    };
    (0..n).map(row).collect()
}

fn judge(target: &str, rows: &[Row]) -> Estimate {
    replay(rows, &[target.parse().unwrap()], &ReplayConfig { n_resamples: 200, ..ReplayConfig::default() })
        .unwrap()
        .remove(0)
}

#[test]
fn known_policies_are_judged_rightly() {
    let rows = log(4000, 1);
    let mean = |recipe| (truth(recipe, "answer") + truth(recipe, "followup")) / 2.0;
    for (target, expected) in [
        ("no-op", mean(0)),
        ("fixed:angle.causes", mean(1)),
        ("fixed:register.plain+angle.order", mean(3)),
        ("uniform", (0..4).map(mean).sum::<f64>() / 4.0),
        ("logged", 0.4 * mean(0) + 0.1 * mean(1) + 0.3 * mean(2) + 0.2 * mean(3)),
        ("greedy", (0.8 + 0.7) / 2.0),
    ] {
        let estimate = judge(target, &rows);
        for interval in [estimate.snips.unwrap(), estimate.doubly_robust] {
            assert!((interval.value - expected).abs() < 0.07, "{target}: {interval:?}, expected {expected}");
            assert!(interval.low <= interval.value && interval.value <= interval.high);
            assert!(interval.high - interval.low < 0.3 && interval.high > interval.low);
        }
        assert!(estimate.effective_sample_size > 50.0 && estimate.effective_sample_size <= 2000.0 + 1e-6);
    }
}

#[test]
fn what_is_learnt_is_better_than_what_was_logged() {
    let rows = log(3000, 2);
    let logged = judge("logged", &rows).doubly_robust;
    for kind in [PolicyKind::Thompson, PolicyKind::Linear] {
        let learnt = judge(kind.as_str(), &rows).doubly_robust;
        assert!(learnt.low > logged.high, "{kind}: {learnt:?} {logged:?}");
    }
    let exp3 = judge("exp3", &rows).doubly_robust;
    assert!(exp3.value > logged.value, "{exp3:?} {logged:?}");
}

#[test]
fn several_draws_of_a_request_count_together() {
    // Each request has the no-op, which is always there, and one other recipe of two.
    let rows: Vec<Row> = (0..400)
        .flat_map(|i| {
            let (recipe, reward) = if i % 2 == 0 { ("a.x@1", 0.8) } else { ("b.x@1", 0.4) };
            let row = |recipe: &str, propensity, reward| Row {
                request: Some(i.to_string()),
                context: Context::default(),
                recipe: recipe.to_owned(),
                propensity,
                reward,
            };
            [row("no-op", 1.0, 0.2), row(recipe, 0.5, reward)]
        })
        .collect();
    for (target, expected) in [("no-op", 0.2), ("fixed:a.x", 0.8), ("fixed:b.x", 0.4)] {
        let estimate = judge(target, &rows);
        assert_eq!((estimate.n_requests, estimate.n_rows), (200, 400));
        assert!((estimate.snips.unwrap().value - expected).abs() < 1e-9);
        assert!((estimate.doubly_robust.value - expected).abs() < 0.02, "{target} {:?}", estimate.doubly_robust);
    }
}

#[test]
fn rare_draws_are_clipped_and_unknown_ones_told() {
    let mut rows = log(400, 3);
    rows.iter_mut().filter(|row| row.recipe == "angle.causes@1").for_each(|row| row.propensity = 0.001);
    let estimate = judge("fixed:angle.causes", &rows);
    assert!(estimate.clipped > 0.0 && estimate.snips.unwrap().value <= 1.0);
    let estimate = judge("fixed:never.seen", &rows);
    assert_eq!((estimate.snips, estimate.effective_sample_size), (None, 0.0));
    let same = || replay(&rows, &Target::USUAL, &ReplayConfig::default()).unwrap();
    assert_eq!(same(), same());
}

#[test]
fn logs_are_read_with_all_that_is_wrong() {
    let good = serde_json::to_string(&log(1, 1)[0]).unwrap();
    assert_eq!(read(format!("{good}\n\n{good}").as_bytes(), "log.jsonl").unwrap(), [log(1, 1), log(1, 1)].concat());
    let text = [
        "{\"recipe\": \"no-op\", \"propensity\": 1.4, \"reward\": 0.1}",
        "{\"recipe\": \"no-op\", \"propensity\": 0.4, \"reward\": -1}",
        "{\"recipe\": \"a@b\", \"propensity\": 0.4, \"reward\": 0}",
        "{\"recipe\": \"no-op\", \"reward\": 0}",
        "x",
        &good,
    ]
    .join("\n");
    let error = read(text.as_bytes(), "log.jsonl").unwrap_err().to_string();
    for said in [
        "log.jsonl:1: propensity is 1.4, expected above 0 and at most 1",
        "log.jsonl:2: reward is -1, expected 0 to 1",
        "log.jsonl:3: recipe is \"a@b\", expected no-op or operators",
        "log.jsonl:4: missing field `propensity`",
        "log.jsonl:5: ",
    ] {
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(error.lines().count(), 5);
    assert!(matches!(read(&b"\xff\n"[..], "x"), Err(ReplayError::Read { .. })));
    for n in [0, 1] {
        let error = replay(&log(n, 1), &Target::USUAL, &ReplayConfig::default()).unwrap_err();
        assert_eq!(error.to_string(), format!("the log has {n} requests, expected at least 2"));
    }
}

#[test]
fn targets_have_names() {
    for target in Target::USUAL.into_iter().chain([Target::Fixed(vec!["a.x".to_owned(), "b.x".to_owned()])]) {
        assert_eq!(target.to_string().parse(), Ok(target));
    }
    for bad in ["", "fixed", "fixed:", "ucb", "fixed:a@x"] {
        assert!(bad.parse::<Target>().is_err(), "{bad}");
    }
}
