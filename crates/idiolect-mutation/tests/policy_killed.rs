//! A process that learns is killed at many moments, and its successor knows all that it said it knew.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use idiolect_mutation::policy::{Context, Learner, PolicyConfig, PolicyKind, Scored, Seed, Wish};
use idiolect_mutation::{Amount, Library, Mode, Operator, Place, Task};

/// Where the child keeps what it learns; unset in every other process.
const DIR: &str = "IDIOLECT_TEST_LEARNT";
const KIND: &str = "IDIOLECT_TEST_POLICY";

fn config(kind: PolicyKind) -> PolicyConfig {
    // Snapshots are frequent, so that some kills hit one.
    PolicyConfig { kind, propensity_draws: 16, snapshot_every: 3, ..PolicyConfig::default() }
}

/// Learns the record that comes after `n` others. It is the same in every process.
fn learn(learner: &Learner, n: u64) {
    let operators = ["a.x", "b.x", "c.x"].map(|name| Operator::new(name, &name[..1], Place::Append, "Text."));
    let library = Library::new(operators.to_vec()).unwrap();
    let context = Context::new("grpc", "answer", format!("validator {}", n % 5)).with("words", n as f64 / 1e4);
    let wish =
        Wish { context: &context, task: Task::Answer, mode: &Mode::mutate(), amount: Amount::Usual, k: 3, request: n };
    let draws = learner.draw(&library, &wish);
    let reward = |i: usize| ((n * 7 + i as u64 * 3) % 11) as f64 / 11.0;
    let scored: Vec<_> = draws.iter().enumerate().map(|(i, draw)| Scored { draw, reward: reward(i) }).collect();
    learner.update(&context, &scored).unwrap();
}

#[test]
fn child() {
    let (Ok(dir), Ok(kind)) = (std::env::var(DIR), std::env::var(KIND)) else { return };
    let learner = Learner::open(config(kind.parse().unwrap()), Seed::from(1), Path::new(&dir)).unwrap();
    // The parent kills us long before; the bound is for a parent that died.
    for n in learner.n_updates()..100_000 {
        learn(&learner, n);
        // In one piece, so that no number is cut in two.
        std::io::stderr().write_all(format!("learnt {}\n", n + 1).as_bytes()).unwrap();
    }
}

#[test]
fn nothing_that_was_said_to_be_learnt_is_lost() {
    for kind in [PolicyKind::Thompson, PolicyKind::Linear, PolicyKind::Exp3] {
        let dir = tempfile::tempdir().unwrap();
        let expected = Learner::in_memory(config(kind), Seed::from(1)).unwrap();
        for round in 0..8_u64 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["child", "--exact", "--nocapture", "--test-threads=1"])
                .env(DIR, dir.path())
                .env(KIND, kind.as_str())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
            let read = |line: String| line.strip_prefix("learnt ").and_then(|n| n.parse::<u64>().ok());
            // The more rounds, the later in its work; where in a record is left to chance.
            let before_kill = lines.by_ref().filter_map(read).take(1 + (round * 5 % 13) as usize).last();
            child.kill().unwrap();
            child.wait().unwrap();
            // A last line may be cut off with its process, which makes it say less than is so.
            let said = lines.filter_map(read).last().or(before_kill).expect("the child learns");
            let learner = Learner::open(config(kind), Seed::from(1), dir.path()).unwrap();
            let n = learner.n_updates();
            assert!(n == said || n == said + 1, "{kind}: {said} were said to be learnt, {n} are known");
            for n in expected.n_updates()..n {
                learn(&expected, n);
            }
            assert_eq!(learner.to_json(), expected.to_json(), "{kind}");
        }
    }
}
