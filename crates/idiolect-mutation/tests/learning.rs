//! What is learnt is worth it: in a world of rewards that change, learning beats drawing at random and the best single recipe of
//! the time before the change, and soon finds its way again after it.
//!
//! All random numbers are seeded and computed in software, so the figures are the same everywhere.

#[path = "../benches/learning/simulation.rs"]
mod simulation;

use simulation::{CHANGE, POLICIES, REQUESTS, Run, World, mean_of, recovery, run, skill};

#[test]
fn learning_beats_uniform_and_fixed_and_recovers_from_a_change() {
    let worlds: Vec<World> = (1..=3).map(World::new).collect();
    let runs = |policy: &'static str| -> Vec<Run> {
        assert!(POLICIES.contains(&policy));
        std::thread::scope(|scope| {
            let threads: Vec<_> = worlds.iter().map(|world| scope.spawn(move || run(world, policy, 4))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    };
    let (thompson, uniform, fixed) = (runs("thompson"), runs("uniform"), runs("fixed"));
    for ((thompson, uniform), fixed) in thompson.iter().zip(&uniform).zip(&fixed) {
        assert!(thompson.regret() < 0.8 * uniform.regret(), "{} {}", thompson.regret(), uniform.regret());
        assert!(thompson.regret() < 0.8 * fixed.regret(), "{} {}", thompson.regret(), fixed.regret());
    }
    let best_of = |runs: &[Run]| mean_of(runs, |run| &run.best_of, 0..REQUESTS);
    assert!(best_of(&thompson) > best_of(&uniform) && best_of(&thompson) > best_of(&fixed));
    assert!(skill(&thompson, &uniform, CHANGE - 300..CHANGE) > 0.2);
    assert!(skill(&thompson, &uniform, REQUESTS - 300..REQUESTS) > 0.2);
    let recovered = recovery(&thompson, &uniform);
    assert!(recovered.is_some_and(|n| n <= 300), "{recovered:?}");
    assert_eq!(recovery(&fixed, &uniform), None, "the change is one that matters");
}
