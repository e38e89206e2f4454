//! `idiolect mutate replay` as a process.

use std::fs;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn replay(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    command.env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR")).args(["mutate", "replay"]).args(args);
    command.output().expect("it runs")
}

#[test]
fn policies_are_judged_by_a_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("log.jsonl");
    let row = |i: u64| {
        let (recipe, reward) = if i.is_multiple_of(2) { ("no-op", 0.25) } else { ("angle.causes@1", 0.75) };
        let context = json!({ "protocol": "grpc", "task": "answer" });
        json!({ "context": context, "recipe": recipe, "propensity": 0.5, "reward": reward }).to_string()
    };
    fs::write(&path, (0..100).map(row).collect::<Vec<_>>().join("\n")).expect("written");
    let path = path.to_str().expect("a name in UTF-8");

    let output = replay(&[path]);
    let table = String::from_utf8(output.stdout).expect("UTF-8");
    for said in ["of 50 requests, 50 draws", "logged", "no-op", "thompson", "exp3", "0.500 ("] {
        assert!(table.contains(said), "{said}: {table}");
    }

    let output = replay(&[path, "--policy", "fixed:angle.causes", "--policy", "no-op", "--learn", "0.2", "--json"]);
    let estimates: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(estimates[0]["policy"], "fixed:angle.causes");
    assert_eq!(estimates[0]["n_requests"], 80);
    assert_eq!(estimates[0]["snips"]["value"], 0.75);
    assert_eq!(estimates[1]["snips"]["value"], 0.25);

    let refused = |args: &[&str], said: &str| {
        let output = replay(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(said), "{args:?}: {error}");
    };
    refused(&[path, "--policy", "ucb"], "expected logged, no-op, uniform");
    refused(&[path, "--learn", "1"], "learn_share is 1, expected above 0 and below 1");
    refused(&["no/such.jsonl"], "no/such.jsonl cannot be read");
    fs::write(path, "{\"recipe\": \"no-op\", \"propensity\": 2, \"reward\": 0}").expect("written");
    refused(&[path], "log.jsonl:1: propensity is 2, expected above 0 and at most 1");
}
