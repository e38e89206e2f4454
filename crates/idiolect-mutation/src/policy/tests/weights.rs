//! Operators' weights, and the slots that are preferred where much is varied.

use std::collections::BTreeMap;

use super::*;

const POLICIES: [PolicyKind; 4] = [PolicyKind::Thompson, PolicyKind::Linear, PolicyKind::Exp3, PolicyKind::Uniform];

/// `angle` is a preferred slot. Each slot has one operator, so that weights alone tell them apart.
fn library(prefer_factor: f64) -> Library {
    let operator = |slot: &str, weight: f64| {
        format!(
            "[[operator]]\nname = \"{slot}.x\"\nslot = \"{slot}\"\nplace = \"append\"\ntext = \"{slot}\"\nweight = {weight}\n"
        )
    };
    let operators = [("angle", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0), ("heavy", 4.0), ("light", 0.25)];
    let text = operators.map(|(slot, weight)| operator(slot, weight)).concat();
    let text = format!("{text}[collision]\nprefer = [\"angle\"]\nprefer_factor = {prefer_factor}\n");
    Library::parse(&text, "x.toml").unwrap()
}

fn one(kind: PolicyKind) -> Learner {
    let config = PolicyConfig { second: 0.0, noop_floor: 0.0, propensity_draws: 1, ..config(kind) };
    Learner::in_memory(config, Seed::from(9)).unwrap()
}

/// Returns how often each operator leads a recipe, of `n` draws of the no-op and one more.
fn shares(learner: &Learner, library: &Library, amount: Amount, n: u64) -> BTreeMap<String, f64> {
    let mut shares = BTreeMap::new();
    let context = context(Task::Answer);
    for request in 0..n {
        let wish = Wish { context: &context, task: Task::Answer, mode: &Mode::mutate(), amount, k: 2, request };
        let draws = learner.draw(library, &wish);
        let slot = draws[1].recipe.operators[0].slot.clone();
        *shares.entry(slot).or_default() += 1.0 / n as f64;
    }
    shares
}

#[test]
fn without_knowledge_operators_are_drawn_by_their_weights() {
    let library = library(3.0);
    for kind in POLICIES {
        let shares =
            shares(&one(kind), &library, Amount::Usual, if kind == PolicyKind::Linear { 2_000 } else { 5_000 });
        let (plain, sum) = ((shares["b"] + shares["c"] + shares["d"] + shares["angle"]) / 4.0, 8.25);
        // Copies of the linear policy share what is believed of all requests.
        let near = |share: f64, weight: f64| (share / (weight / sum) - 1.0).abs() < 0.2;
        assert!(near(plain, 1.0), "{kind} {shares:?}");
        assert!(near(shares["heavy"], 4.0), "{kind} {shares:?}");
        assert!(near(shares["light"], 0.25), "{kind} {shares:?}");
    }
}

#[test]
fn preferred_slots_are_drawn_more_often_where_much_is_varied() {
    for kind in POLICIES {
        for factor in [3.0, 1_000.0] {
            let library = library(factor);
            // The linear policy takes the most time for each copy.
            let n = match (kind, factor > 3.0) {
                (PolicyKind::Linear, true) => 100,
                (PolicyKind::Linear, false) => 800,
                _ => 4_000,
            };
            let [usual, most] = [Amount::Usual, Amount::Most].map(|amount| shares(&one(kind), &library, amount, n));
            let odds = most["angle"] / most.get("b").copied().unwrap_or(1e-4) / (usual["angle"] / usual["b"]);
            let is_near = if factor > 3.0 { odds > 30.0 } else { (2.3..3.9).contains(&odds) };
            assert!(is_near, "{kind} {factor} {odds} {usual:?} {most:?}");
        }
    }
}

#[test]
fn what_was_learnt_outweighs_what_is_preferred() {
    let library = library(3.0);
    for kind in [PolicyKind::Thompson, PolicyKind::Linear] {
        let learner = one(kind);
        for request in 0..300 {
            let draws = draw(&learner, &library, Task::Answer, 4, request);
            let good = |draw: &Draw| draw.recipe.operators.iter().any(|operator| operator.slot == "b");
            let scored: Vec<_> =
                draws.iter().map(|draw| Scored { draw, reward: if good(draw) { 0.9 } else { 0.1 } }).collect();
            learner.update(&context(Task::Answer), &scored).unwrap();
        }
        let shares = shares(&learner, &library, Amount::Most, 500);
        assert!(shares["b"] > 0.9, "{kind} {shares:?}");
    }
}

#[test]
fn propensities_are_those_of_the_weighted_draws() {
    let library = library(3.0);
    for kind in POLICIES {
        // A draw of the linear policy takes the most time, so it has fewer, and less exact ones.
        let (n, propensity_draws, tolerance) =
            if kind == PolicyKind::Linear { (250, 50, 0.1) } else { (600, 200, 0.06) };
        for k in [1, 3] {
            let config = PolicyConfig { propensity_draws, ..config(kind) };
            let learner = Learner::in_memory(config, Seed::from(4)).unwrap();
            let context = context(Task::Answer);
            let mut found: BTreeMap<String, (f64, f64)> = BTreeMap::new();
            for request in 0..n {
                let (task, mode) = (Task::Answer, &Mode::mutate());
                let wish = Wish { context: &context, task, mode, amount: Amount::Most, k, request };
                for draw in learner.draw(&library, &wish) {
                    let (share, sum) = found.entry(draw.recipe.to_string()).or_default();
                    *share += 1.0;
                    *sum += draw.propensity;
                }
            }
            // An estimate counts the draw itself, so what is rare seems a little more likely.
            for (recipe, (n_drawn, sum)) in found.into_iter().filter(|(_, (n, _))| *n >= 30.0) {
                let (share, propensity) = (n_drawn / n as f64, sum / n_drawn);
                assert!((share - propensity).abs() < tolerance, "{kind} {k} {recipe}: {share} {propensity}");
            }
        }
    }
}
