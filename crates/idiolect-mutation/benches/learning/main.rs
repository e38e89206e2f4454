//! How policies fare in a world of rewards that change: `cargo bench -p idiolect-mutation --bench learning -- 10` for ten worlds.
#![allow(clippy::print_stdout, missing_docs)]

mod simulation;

use simulation::{CHANGE, POLICIES, REQUESTS, Run, World, mean_of, recovery, run, skill};

fn main() {
    // Without a number, as when all targets are tested, one world shows that it runs.
    let n_worlds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1);
    let worlds: Vec<World> = (1..=n_worlds).map(World::new).collect();
    println!(
        "| k | policy | reward | best of k | skill before | skill after | regret (least, most) | recovered after |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for k in [1, 4] {
        let runs = |policy: &str| -> Vec<Run> {
            // Each world is its own: threads change nothing but the time.
            std::thread::scope(|scope| {
                let threads: Vec<_> = worlds.iter().map(|world| scope.spawn(move || run(world, policy, k))).collect();
                threads.into_iter().map(|thread| thread.join().expect("a run ends")).collect()
            })
        };
        let uniform = runs("uniform");
        for policy in POLICIES {
            let runs = runs(policy);
            let regrets: Vec<f64> = runs.iter().map(Run::regret).collect();
            let regret = regrets.iter().sum::<f64>() / regrets.len() as f64;
            let (least, most) = regrets.iter().fold((f64::MAX, 0.0_f64), |(low, high), &r| (low.min(r), high.max(r)));
            println!(
                "| {k} | {policy} | {:.3} | {:.3} | {:.2} | {:.2} | {regret:.0} ({least:.0}, {most:.0}) | {} |",
                mean_of(&runs, |run| &run.mean, 0..REQUESTS),
                mean_of(&runs, |run| &run.best_of, 0..REQUESTS),
                skill(&runs, &uniform, CHANGE - 300..CHANGE),
                skill(&runs, &uniform, REQUESTS - 300..REQUESTS),
                recovery(&runs, &uniform).map_or_else(|| "never".to_owned(), |n| n.to_string()),
            );
        }
        println!(
            "| {k} | the best arm of each request | {:.3} | | | | 0 | |",
            mean_of(&uniform, |run| &run.possible, 0..REQUESTS)
        );
    }
}
