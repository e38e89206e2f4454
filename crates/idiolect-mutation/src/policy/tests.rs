use std::collections::HashSet;
use std::fs;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::{Amount, Library, Mode, Operator, Place, Task};

mod weights;

fn config(kind: PolicyKind) -> PolicyConfig {
    let recipe = vec!["register.academic".to_owned()];
    PolicyConfig { kind, recipe, propensity_draws: 16, ..PolicyConfig::default() }
}

fn learner(kind: PolicyKind, seed: u64) -> Learner {
    Learner::in_memory(config(kind), Seed::from(seed)).unwrap()
}

fn context(task: Task) -> Context {
    Context::new("grpc", task.as_str(), "5F").with("words", 0.4)
}

fn draw(learner: &Learner, library: &Library, task: Task, k: usize, request: u64) -> Vec<Draw> {
    let context = context(task);
    learner.draw(library, &Wish { context: &context, task, mode: &Mode::mutate(), amount: Amount::Usual, k, request })
}

/// Learns `n` requests; operators of the slot `angle` are good, others bad.
fn teach(learner: &Learner, library: &Library, n: u64) {
    for request in 0..n {
        let task = Task::ALL[request as usize % 3];
        let draws = draw(learner, library, task, 4, request);
        let good = |draw: &Draw| draw.recipe.operators.iter().any(|operator| operator.slot == "angle");
        let scored: Vec<_> =
            draws.iter().map(|draw| Scored { draw, reward: if good(draw) { 0.9 } else { 0.1 } }).collect();
        learner.update(&context(task), &scored).unwrap();
    }
}

fn share_of_angles(learner: &Learner, library: &Library) -> f64 {
    let draws: Vec<Draw> = (1000..1060).flat_map(|i| draw(learner, library, Task::Answer, 3, i).split_off(1)).collect();
    let n = draws.iter().filter(|draw| draw.recipe.operators[0].slot == "angle").count();
    n as f64 / draws.len() as f64
}

#[test]
fn policies_that_learn_prefer_what_was_good() {
    let names = ["angle.x", "angle.y", "b.x", "b.y", "c.x", "c.y", "d.x", "e.x"];
    let library = library_of(&names.map(|name| (name, 1)));
    for kind in PolicyKind::ALL.into_iter().filter(|kind| *kind != PolicyKind::Fixed) {
        let learner = learner(kind, 5);
        let before = share_of_angles(&learner, &library);
        teach(&learner, &library, 200);
        let after = share_of_angles(&learner, &library);
        match kind {
            PolicyKind::Thompson | PolicyKind::Linear => assert!(after > 0.9, "{kind} {before} {after}"),
            PolicyKind::Exp3 => assert!(after > before + 0.1, "{kind} {before} {after}"),
            PolicyKind::Uniform | PolicyKind::Fixed => assert!((after - before).abs() < 1e-9),
        }
    }
}

#[test]
fn same_seed_state_and_request_give_the_same_recipes_on_any_number_of_threads() {
    let library = Library::built_in();
    for kind in PolicyKind::ALL {
        let learner = learner(kind, 6);
        teach(&learner, &library, 10);
        let all = |n_threads: u64| -> Vec<Vec<Draw>> {
            let mut drawn: Vec<(u64, Vec<Draw>)> = std::thread::scope(|scope| {
                let (learner, library) = (&learner, &library);
                let work = move |thread: u64| {
                    let requests = (0..12).filter(|request| request % n_threads == thread);
                    requests.map(|i| (i, draw(learner, library, Task::Answer, 4, i))).collect::<Vec<_>>()
                };
                let threads: Vec<_> = (0..n_threads).map(|thread| scope.spawn(move || work(thread))).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            drawn.sort_by_key(|(request, _)| *request);
            drawn.into_iter().map(|(_, draws)| draws).collect()
        };
        let one = all(1);
        assert_eq!(one, all(2));
        assert_eq!(one, all(8));
        let other = self::learner(kind, 7);
        teach(&other, &library, 10);
        let others: Vec<_> = (0..12).map(|i| draw(&other, &library, Task::Answer, 4, i)).collect();
        assert_eq!(others == one, kind == PolicyKind::Fixed, "{kind}: seeds are private");
    }
}

#[test]
fn passthrough_and_empty_libraries_change_nothing() {
    for kind in PolicyKind::ALL {
        let learner = learner(kind, 1);
        let wish = |mode| {
            let context = Context::default();
            learner.draw(
                &Library::built_in(),
                &Wish { context: &context, task: Task::Answer, mode, amount: Amount::Usual, k: 5, request: 1 },
            )
        };
        let draws = [wish(&Mode::Passthrough), draw(&learner, &Library::default(), Task::Answer, 5, 1)];
        for draws in draws {
            assert!(draws.len() == 1 && draws[0].recipe.is_no_op() && draws[0].propensity == 1.0, "{kind}");
        }
    }
}

#[test]
fn a_fixed_recipe_is_checked_and_drawn() {
    let library = Library::built_in();
    let fixed = |names: &[&str]| {
        let recipe = names.iter().map(|name| (*name).to_owned()).collect();
        Learner::in_memory(PolicyConfig { recipe, ..config(PolicyKind::Fixed) }, Seed::from(1)).unwrap()
    };
    let learner = fixed(&["register.academic"]);
    learner.check(&library).unwrap();
    let one = draw(&learner, &library, Task::Answer, 1, 1);
    assert!(one.len() == 1 && one[0].recipe.operators[0].name == "register.academic" && one[0].propensity == 1.0);
    let two = draw(&learner, &library, Task::Answer, 4, 1);
    assert!(two.len() == 2 && two[0].recipe.is_no_op() && two[1].recipe == one[0].recipe);
    let learner = fixed(&["no.such"]);
    assert_eq!(
        learner.check(&library).unwrap_err().to_string(),
        "recipe has \"no.such\", expected operators of the library"
    );
    assert!(draw(&learner, &library, Task::Answer, 1, 1)[0].recipe.is_no_op(), "a library may change");
    let error = fixed(&["register.academic", "register.academic"]).check(&library).unwrap_err().to_string();
    assert!(error.contains("exclude each other"), "{error}");
}

#[test]
fn odd_values_are_errors_and_change_nothing() {
    let library = Library::built_in();
    for kind in PolicyKind::ALL {
        let learner = learner(kind, 1);
        teach(&learner, &library, 5);
        let before = learner.to_json();
        let draws = draw(&learner, &library, Task::Answer, 3, 9);
        for reward in [f64::NAN, -0.1, 1.1, f64::INFINITY, f64::NEG_INFINITY] {
            let scored: Vec<_> =
                draws.iter().zip([0.5, 0.5, reward]).map(|(draw, reward)| Scored { draw, reward }).collect();
            if scored.len() < 3 {
                continue;
            }
            let error = learner.update(&context(Task::Answer), &scored).unwrap_err();
            assert!(error.to_string().contains(&format!("is {reward}, expected 0 to 1")), "{error}");
        }
        for propensity in [0.0, -1.0, 1.5, f64::NAN] {
            let draw = Draw { propensity, ..draws[0].clone() };
            let error = learner.update(&context(Task::Answer), &[Scored { draw: &draw, reward: 0.5 }]).unwrap_err();
            assert!(error.to_string().starts_with("propensity of no-op is "), "{error}");
        }
        let odd = context(Task::Answer).with("words", f64::NAN);
        assert!(learner.update(&odd, &[Scored { draw: &draws[0], reward: 0.5 }]).is_err());
        assert_eq!(learner.to_json(), before);
    }
}

#[test]
fn settings_that_cannot_work_are_all_named() {
    let config =
        PolicyConfig { kind: PolicyKind::Fixed, discount: 1.5, noop_floor: f64::NAN, ..PolicyConfig::default() };
    let error = Learner::in_memory(config, Seed::from(1)).unwrap_err().to_string();
    for said in ["discount is 1.5, expected", "noop_floor is NaN, expected 0 to 0.9", "recipe is empty"] {
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(
        "ucb".parse::<PolicyKind>().unwrap_err(),
        "is \"ucb\", expected thompson, linear, exp3, uniform or fixed"
    );
}

fn library_of(operators: &[(&str, u32)]) -> Library {
    let operator = |&(name, version): &(&str, u32)| {
        let slot = name.split('.').next().unwrap();
        Operator { version, ..Operator::new(name, slot, Place::Append, format!("Text of {name}.")) }
    };
    Library::new(operators.iter().map(operator).collect()).unwrap()
}

#[test]
fn a_new_version_begins_with_half_of_what_the_old_one_learnt() {
    let library = library_of(&[("a.x", 1), ("b.x", 1)]);
    let learner = learner(PolicyKind::Thompson, 1);
    for request in 0..60 {
        let draws = draw(&learner, &library, Task::Answer, 3, request);
        let scored: Vec<_> = draws.iter().map(|draw| Scored { draw, reward: 0.9 }).collect();
        learner.update(&context(Task::Answer), &scored).unwrap();
    }
    let root = Context::default();
    let of = |library: &Library| learner.posterior(&root, Some(&library.operators()[0])).unwrap();
    let (old, new) = (of(&library), of(&library_of(&[("a.x", 2), ("b.x", 1)])));
    assert!(((new.alpha - 1.0) * 2.0 - (old.alpha - 1.0)).abs() < 1e-9, "{old:?} {new:?}");
    assert!(((new.beta - 1.0) * 2.0 - (old.beta - 1.0)).abs() < 1e-9, "{old:?} {new:?}");
    assert!(new.deviation() > old.deviation());
}

#[test]
fn operators_that_are_gone_are_kept_and_not_drawn() {
    let both = library_of(&[("a.x", 1), ("b.x", 1)]);
    for kind in [PolicyKind::Thompson, PolicyKind::Linear, PolicyKind::Exp3] {
        let learner = learner(kind, 1);
        teach(&learner, &both, 20);
        let draws = draw(&learner, &library_of(&[("b.x", 1)]), Task::Answer, 5, 99);
        assert_eq!(draws.len(), 2, "{kind}: the no-op and b.x");
        assert_eq!(draws[1].recipe.to_string(), "b.x@1");
        assert!(learner.to_json().contains("a.x"), "{kind}");
    }
}

#[test]
fn narrow_contexts_follow_wide_ones_until_they_know_better() {
    let library = library_of(&[("a.x", 1), ("b.x", 1)]);
    let learner = learner(PolicyKind::Thompson, 1);
    let mean = |context: &Context| learner.posterior(context, Some(&library.operators()[0])).unwrap().mean();
    let (one, two) = (Context::new("grpc", "answer", "one"), Context::new("grpc", "answer", "two"));
    let teach = |context: &Context, reward: f64, n| {
        for request in 0..n {
            let wish =
                Wish { context, task: Task::Answer, mode: &Mode::mutate(), amount: Amount::Usual, k: 3, request };
            let draws = learner.draw(&library, &wish);
            let scored: Vec<_> = draws.iter().map(|draw| Scored { draw, reward }).collect();
            learner.update(context, &scored).unwrap();
        }
    };
    teach(&one, 0.9, 100);
    assert!(mean(&two) > 0.75, "{}", mean(&two));
    teach(&two, 0.1, 100);
    assert!(mean(&two) < 0.4 && mean(&one) > 0.6, "{} {}", mean(&two), mean(&one));
}

#[test]
fn contexts_are_bounded_and_the_oldest_merge_into_their_parents() {
    let library = library_of(&[("a.x", 1), ("b.x", 1)]);
    for kind in [PolicyKind::Thompson, PolicyKind::Exp3] {
        let learner = Learner::in_memory(PolicyConfig { max_contexts: 12, ..config(kind) }, Seed::from(1)).unwrap();
        for request in 0..60 {
            let context = Context::new("grpc", "answer", format!("validator {request}"));
            let wish = Wish {
                context: &context,
                task: Task::Answer,
                mode: &Mode::mutate(),
                amount: Amount::Usual,
                k: 3,
                request,
            };
            let draws = learner.draw(&library, &wish);
            let scored: Vec<_> = draws.iter().map(|draw| Scored { draw, reward: 0.9 }).collect();
            learner.update(&context, &scored).unwrap();
            assert!(learner.n_contexts() <= 12);
        }
        let json = learner.to_json();
        assert!(json.contains("validator 59") && !json.contains("validator 40"));
        if let Some(posterior) = learner.posterior(&Context::new("grpc", "answer", "validator 0"), None) {
            assert!(posterior.mean() > 0.7, "what it taught is with its parents");
        }
    }
}

#[test]
fn state_comes_back_as_it_was() {
    let library = Library::built_in();
    for kind in [PolicyKind::Thompson, PolicyKind::Linear, PolicyKind::Exp3] {
        let dir = tempfile::tempdir().unwrap();
        let open = || Learner::open(PolicyConfig { snapshot_every: 7, ..config(kind) }, Seed::from(1), dir.path());
        let in_memory = learner(kind, 1);
        teach(&in_memory, &library, 17);
        let kept = open().unwrap();
        assert!(matches!(open(), Err(PolicyError::InUse { .. })), "one process a folder");
        teach(&kept, &library, 17);
        assert_eq!(kept.to_json(), in_memory.to_json());
        drop(kept);
        let again = open().unwrap();
        assert_eq!((again.n_updates(), again.to_json()), (17, in_memory.to_json()));
        for request in 0..5 {
            let draws = |learner| draw(learner, &library, Task::Answer, 4, request);
            assert_eq!(draws(&again), draws(&in_memory));
        }
    }
}

#[test]
fn what_is_said_again_of_a_request_makes_nothing_fade_and_is_kept() {
    let library = library_of(&[("a.x", 1), ("b.x", 1)]);
    let reward = |recipe: &str, request: u64| {
        let is_good = (recipe == "no-op") == request.is_multiple_of(2);
        if is_good { 0.75 } else { 0.25 }
    };
    for kind in [PolicyKind::Thompson, PolicyKind::Linear, PolicyKind::Exp3] {
        let dir = tempfile::tempdir().unwrap();
        let config = PolicyConfig { discount: 0.5, snapshot_every: 1000, ..config(kind) };
        let open = || Learner::open(config.clone(), Seed::from(1), dir.path()).unwrap();
        let (learner, faded) = (open(), Learner::in_memory(config.clone(), Seed::from(1)).unwrap());
        let mut draws = Vec::new();
        for request in 0..6 {
            draws = draw(&learner, &library, Task::Answer, 2, request);
            let scored: Vec<_> =
                draws.iter().map(|draw| Scored { draw, reward: reward(&draw.recipe.to_string(), request) }).collect();
            learner.update(&context(Task::Answer), &scored).unwrap();
            faded.update(&context(Task::Answer), &scored).unwrap();
        }
        let amount = || {
            let Posterior { alpha, beta } = learner.posterior(&Context::default(), None)?;
            Some(alpha + beta - 2.0)
        };
        let before = amount();
        assert_eq!(learner.to_json(), faded.to_json());
        let no_op = draws.iter().find(|draw| draw.recipe.is_no_op()).unwrap();
        let said = [Scored { draw: no_op, reward: 0.5 }];
        learner.update_again(&context(Task::Answer), &said).unwrap();
        faded.update(&context(Task::Answer), &said).unwrap();
        if let (Some(before), Some(after)) = (before, amount()) {
            assert!((after - before - 1.0).abs() < 1e-9, "{before} {after}");
        }
        assert_ne!(learner.to_json(), faded.to_json(), "{kind}");
        assert_eq!(learner.n_updates(), 7);
        let state = learner.to_json();
        drop(learner);
        assert_eq!(open().to_json(), state, "{kind}: it is read back from the journal");
    }
}

#[test]
fn a_record_that_was_not_finished_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::built_in();
    let open = || Learner::open(config(PolicyKind::Thompson), Seed::from(1), dir.path()).unwrap();
    teach(&open(), &library, 5);
    let path = dir.path().join("thompson.journal");
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|&b| b == b'\n').unwrap() + 1;
    for len in [last + 1, last + 20, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(open().n_updates(), 4);
        assert_eq!(fs::read(&path).unwrap(), &whole[..last]);
    }
}

#[test]
fn a_snapshot_that_came_before_its_journal_was_emptied_counts_once() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::built_in();
    let open = || {
        let config = PolicyConfig { snapshot_every: 6, ..config(PolicyKind::Thompson) };
        Learner::open(config, Seed::from(1), dir.path()).unwrap()
    };
    let learner = open();
    teach(&learner, &library, 5);
    let journal = fs::read(dir.path().join("thompson.journal")).unwrap();
    teach(&learner, &library, 1);
    let expected = learner.to_json();
    drop(learner);
    assert_eq!(fs::read(dir.path().join("thompson.journal")).unwrap(), b"");
    fs::write(dir.path().join("thompson.journal"), journal).unwrap();
    let learner = open();
    assert_eq!((learner.n_updates(), learner.to_json()), (6, expected));
}

#[test]
fn damaged_files_are_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::built_in();
    let open = |kind| Learner::open(PolicyConfig { snapshot_every: 3, ..config(kind) }, Seed::from(1), dir.path());
    for kind in [PolicyKind::Thompson, PolicyKind::Linear, PolicyKind::Exp3] {
        teach(&open(kind).unwrap(), &library, 4);
        let snapshot = dir.path().join(format!("{kind}.json"));
        let journal = dir.path().join(format!("{kind}.journal"));
        let (good, good_journal) = (fs::read_to_string(&snapshot).unwrap(), fs::read_to_string(&journal).unwrap());
        let other = fs::read_to_string(dir.path().join("thompson.json")).unwrap();
        let mut cases = vec![
            (&snapshot, String::new(), "EOF"),
            (&snapshot, good[..good.len() / 2].to_owned(), "EOF"),
            (&snapshot, good.replacen("\"format\":1", "\"format\":9", 1), "its format is 9, expected 1"),
            (&snapshot, good.replacen("\"n_updates\":3", "\"n_updates\":2", 1), "line 1: it is record 4, expected 3"),
            (&journal, format!("{}x\n", good_journal), "line 2: "),
            (&journal, good_journal.replacen("\"reward\":\"0.1\"", "\"reward\":\"7\"", 1), "line 1: reward of "),
            (&journal, good_journal.replacen("\"reward\":\"0.1\"", "\"reward\":\"NaN\"", 1), "line 1: "),
        ];
        if kind != PolicyKind::Thompson {
            cases.push((&snapshot, other, "it is of another policy"));
        }
        for (path, text, said) in cases {
            fs::write(path, text).unwrap();
            let error = open(kind).unwrap_err().to_string();
            assert!(
                error.contains(" is damaged: ") && error.contains(said) && error.contains("away"),
                "{kind}: {error}"
            );
            let file = if error.contains("damaged: line ") { &journal } else { &snapshot };
            assert!(error.contains(&file.display().to_string()), "{error}");
            fs::write(&snapshot, &good).unwrap();
            fs::write(&journal, &good_journal).unwrap();
        }
        open(kind).unwrap();
    }
    let thompson = dir.path().join("thompson.json");
    let good = fs::read_to_string(&thompson).unwrap();
    let begin = good.find("\"gained\":\"").unwrap() + 10;
    for number in ["-1", "1e300", "NaN"] {
        fs::write(
            &thompson,
            format!("{}{number}\"{}", &good[..begin], &good[good[begin..].find('"').unwrap() + begin + 1..]),
        )
        .unwrap();
        let error = open(PolicyKind::Thompson).unwrap_err().to_string();
        assert!(error.contains("thompson.json is damaged"), "{error}");
    }
}

fn any_kind() -> impl Strategy<Value = PolicyKind> {
    proptest::sample::select(PolicyKind::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, rng_seed: RngSeed::Fixed(3), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn draws_are_distinct_allowed_and_have_propensities(
        kind in any_kind(), seed: u64, request: u64, k in 1_usize..8, n_taught in 0_u64..6,
    ) {
        let library = Library::built_in();
        let learner = learner(kind, seed);
        teach(&learner, &library, n_taught);
        for task in Task::ALL {
            let draws = draw(&learner, &library, task, k, request);
            prop_assert!(!draws.is_empty() && draws.len() <= k);
            if kind != PolicyKind::Fixed {
                prop_assert_eq!(draws.len(), k, "the library has more");
            }
            if k > 1 {
                prop_assert!(draws[0].recipe.is_no_op() && draws[0].propensity == 1.0);
            }
            let names: HashSet<String> = draws.iter().map(|draw| draw.recipe.to_string()).collect();
            prop_assert_eq!(names.len(), draws.len());
            for draw in &draws {
                prop_assert!(draw.propensity > 0.0 && draw.propensity <= 1.0, "{}", draw.propensity);
                let slots: HashSet<&str> = draw.recipe.operators.iter().map(|o| o.slot.as_str()).collect();
                prop_assert_eq!(slots.len(), draw.recipe.operators.len());
                prop_assert!(draw.recipe.operators.len() <= library.max_operators());
            }
        }
    }

    #[test]
    fn posteriors_stay_finite_and_within_bounds(
        rewards in proptest::collection::vec(0.0..=1.0_f64, 1..60), discount in 0.01..=1.0_f64, shrinkage in 0.01..1000.0_f64,
    ) {
        let library = library_of(&[("a.x", 1), ("b.x", 1)]);
        let config = PolicyConfig { discount, shrinkage, ..config(PolicyKind::Thompson) };
        let learner = Learner::in_memory(config, Seed::from(1)).unwrap();
        for (request, &reward) in rewards.iter().enumerate() {
            let draws = draw(&learner, &library, Task::Answer, 2, request as u64);
            let scored: Vec<_> = draws.iter().map(|draw| Scored { draw, reward }).collect();
            learner.update(&context(Task::Answer), &scored).unwrap();
            for operator in [None, Some(&library.operators()[0])] {
                for context in [context(Task::Answer), context(Task::Followup), Context::default()] {
                    let posterior = learner.posterior(&context, operator).unwrap();
                    let most = shrinkage + 1.0 + (rewards.len() as f64).min(1.0 / (1.0 - discount)) + 1e-9;
                    for value in [posterior.alpha, posterior.beta] {
                        prop_assert!(value > 0.0 && value <= most.max(2.0), "{:?}", posterior);
                    }
                    prop_assert!(posterior.mean() > 0.0 && posterior.mean() < 1.0 && posterior.deviation().is_finite());
                }
            }
        }
    }

    #[test]
    fn the_no_op_keeps_its_floor(kind in any_kind(), floor in 0.1..=0.9_f64, seed: u64) {
        if kind == PolicyKind::Fixed {
            return Ok(());
        }
        let library = library_of(&[("a.x", 1), ("b.x", 1)]);
        let learner = Learner::in_memory(PolicyConfig { noop_floor: floor, ..config(kind) }, Seed::from(seed)).unwrap();
        // All but the no-op are good.
        for request in 0..20 {
            let draws = draw(&learner, &library, Task::Answer, 3, request);
            let scored: Vec<_> =
                draws.iter().map(|draw| Scored { draw, reward: if draw.recipe.is_no_op() { 0.0 } else { 1.0 } }).collect();
            learner.update(&context(Task::Answer), &scored).unwrap();
        }
        let n = 120;
        let mut n_no_op = 0;
        for request in 1000..1000 + n {
            let draws = draw(&learner, &library, Task::Answer, 1, request);
            prop_assert_eq!(draws.len(), 1);
            if draws[0].recipe.is_no_op() {
                n_no_op += 1;
                prop_assert!(draws[0].propensity >= floor);
            } else {
                prop_assert!(draws[0].propensity <= 1.0 - floor + 1e-12);
            }
        }
        // Five standard deviations.
        let least = floor - 5.0 * (floor * (1.0 - floor) / n as f64).sqrt();
        prop_assert!(f64::from(n_no_op) / n as f64 > least, "{} of {}", n_no_op, n);
    }
}

#[test]
fn estimated_propensities_are_those_of_the_draws() {
    let library = library_of(&[("a.x", 1), ("b.x", 1), ("c.x", 1), ("d.x", 1)]);
    for kind in [PolicyKind::Thompson, PolicyKind::Linear, PolicyKind::Exp3, PolicyKind::Uniform] {
        let learner =
            Learner::in_memory(PolicyConfig { propensity_draws: 128, ..config(kind) }, Seed::from(4)).unwrap();
        teach(&learner, &library, 10);
        for k in [1, 3] {
            let mut found: std::collections::BTreeMap<String, (f64, f64)> = Default::default();
            let n = 400;
            for request in 0..n {
                for draw in draw(&learner, &library, Task::Answer, k, request) {
                    let entry = found.entry(draw.recipe.to_string()).or_default();
                    entry.0 += 1.0 / n as f64;
                    entry.1 = draw.propensity;
                }
            }
            for (recipe, (share, propensity)) in &found {
                assert!((share - propensity).abs() < 0.2, "{kind} {k} {recipe}: {share} {propensity}");
            }
        }
    }
}
