//! How long a draw takes by each policy, and how often a plain one, whose propensities are not estimated, fits into it:
//! `cargo bench -p idiolect-mutation --bench draws -- 300` for 300 draws each.
#![allow(clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use idiolect_mutation::policy::{Context, Learner, PolicyConfig, PolicyKind, Scored, Seed, Wish};
use idiolect_mutation::{Amount, Library, Mode, Task};

/// Requests that a policy has learnt of before it is timed.
const TAUGHT: u64 = 300;

fn main() {
    // Without a number, as when all targets are tested, a few draws show that it runs.
    let n = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(3);
    let library = Library::built_in();
    println!("| policy | k | amount | median | 95 % | times a plain draw |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for kind in [PolicyKind::Thompson, PolicyKind::Linear, PolicyKind::Exp3, PolicyKind::Uniform] {
        let default = PolicyConfig { kind, ..PolicyConfig::default() };
        let plain = PolicyConfig { propensity_draws: 1, ..default.clone() };
        let [learner, plain] = [default, plain].map(|config| taught(config, &library));
        for k in [2, 4, 8] {
            for amount in [Amount::Usual, Amount::Most] {
                let (median, most) = times(&learner, &library, k, amount, n);
                let (alone, _) = times(&plain, &library, k, amount, n);
                println!("| {kind} | {k} | {amount:?} | {median:.2} ms | {most:.2} ms | {:.0} |", median / alone);
            }
        }
    }
}

fn taught(config: PolicyConfig, library: &Library) -> Learner {
    let cheap = PolicyConfig { propensity_draws: 1, ..config.clone() };
    let dir = tempfile::tempdir().expect("a folder");
    let teacher = Learner::open(cheap, Seed::from(1), dir.path()).expect("a state");
    for request in 0..TAUGHT {
        let context = context();
        let draws = draw(&teacher, library, 4, Amount::Usual, request);
        let reward = |i: usize| ((request as usize * 7 + i * 3) % 10) as f64 / 10.0;
        let scored: Vec<Scored<'_>> =
            draws.iter().enumerate().map(|(i, draw)| Scored { draw, reward: reward(i) }).collect();
        teacher.update(&context, &scored).expect("learnt");
    }
    drop(teacher);
    Learner::open(config, Seed::from(1), dir.path()).expect("a state")
}

fn context() -> Context {
    Context::new("grpc", "answer", "5F").with("risk", 0.6)
}

fn draw(
    learner: &Learner,
    library: &Library,
    k: usize,
    amount: Amount,
    request: u64,
) -> Vec<idiolect_mutation::policy::Draw> {
    let wish = Wish { context: &context(), task: Task::Answer, mode: &Mode::mutate(), amount, k, request };
    learner.draw(library, &wish)
}

/// Returns the median and the 95th percentile of a draw's time in milliseconds.
fn times(learner: &Learner, library: &Library, k: usize, amount: Amount, n: usize) -> (f64, f64) {
    let mut times: Vec<f64> = (0..n.max(1))
        .map(|request| {
            let began = Instant::now();
            black_box(draw(learner, library, k, amount, 10_000 + request as u64));
            began.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[(times.len() * 95 / 100).min(times.len() - 1)])
}
