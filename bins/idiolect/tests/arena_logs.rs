//! `idiolect arena verify`, `prompts`, `replay` and `serve-validator` as processes, over published logs and over real sockets.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use idiolect_miner::app::Miner;
use idiolect_miner::config::{Sources, load};
use idiolect_models::NoProgress;
use serde_json::{Value, json};

fn arena(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    command.env("XDG_CONFIG_HOME", folder).arg("arena").args(args).current_dir(folder).output().expect("it runs")
}

#[track_caller]
fn says(folder: &Path, args: &[&str]) -> String {
    let output = arena(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
fn gives(folder: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&says(folder, args)).expect("JSON")
}

#[track_caller]
fn refuses(folder: &Path, args: &[&str], code: i32, expected: &str) {
    let output = arena(folder, args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && said.contains(expected), "{args:?}: {:?} {said}", output.status);
}

fn log(name: &str) -> String {
    let folder = "../../crates/idiolect-dataset/tests/data/openvalidators";
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder).join(name).display().to_string()
}

/// In the sample these follow other rules than validators'.
const MADE_UP: &str = "blacklist_filter,diversity_reward_model,task_validation_penalty_raw";

#[test]
fn published_rewards_are_what_the_arithmetic_gives() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (log("history_v1.2.0.jsonl.zst"), log("history_text_prompting_2.1.jsonl.zst"));
    let report = gives(dir.path(), &["verify", &old, &new, "--except", MADE_UP, "--json"]);
    assert_eq!(report["off"], json!([]));
    assert_eq!((report["files"][0]["steps"].as_u64(), report["files"][1]["states"].as_u64()), (Some(36), Some(9)));
    let checks = report["checks"].as_array().unwrap();
    for figure in ["rewards", "neuron_weights", "dpo_reward_model_normalized"] {
        let of: Vec<&Value> = checks.iter().filter(|check| check["figure"] == figure).collect();
        assert_eq!(of.len(), 2, "{figure}: one of each version");
        assert!(of.iter().all(|check| check["largest"].as_f64().unwrap() < 1e-4), "{of:?}");
    }
    let table = says(dir.path(), &["verify", &log("history_v1.0.jsonl.zst")]);
    assert!(table.contains("best") && table.contains("version 1.0 logs no factors"), "{table}");
    refuses(
        dir.path(),
        &["verify", &new],
        1,
        "2 of 16 figures are off by more than 0.0001, diversity_reward_model first",
    );
    refuses(dir.path(), &["verify", &old, "--except", "luck"], 64, "no figure is called luck, expected one of best, ");
    refuses(dir.path(), &["verify", &old, "--tolerance", "2"], 64, "expected a number from 0 to less than 1");
    refuses(dir.path(), &["verify", "nothing.jsonl"], 1, "cannot read nothing.jsonl");
    fs::write(dir.path().join("other.jsonl"), "{\"loss\": 1}\n").unwrap();
    refuses(dir.path(), &["verify", "other.jsonl"], 1, "nothing was compared");
}

#[test]
fn a_published_run_is_replayed_with_our_replies() {
    let dir = tempfile::tempdir().unwrap();
    let path = log("history_text_prompting_2.1.jsonl.zst");
    let prompts = says(dir.path(), &["prompts", &path]);
    let (mut ours, mut n) = (String::new(), 0);
    for line in prompts.lines() {
        let asked: Value = serde_json::from_str(line).unwrap();
        let topic: Vec<&str> = asked["prompt"].as_str().unwrap().split_whitespace().skip(18).take(9).collect();
        let own = format!("What strikes a careful reader is how {} hang together", topic.join(" "));
        ours += &(json!({"p": asked["id"], "m": "ours", "t": own}).to_string() + "\n");
        ours += &(json!({"p": asked["id"], "m": "silent", "t": ""}).to_string() + "\n");
        n += 1;
    }
    assert_eq!(n, 84);
    fs::write(dir.path().join("ours.jsonl"), &ours).unwrap();
    let args = ["replay", &path, "--contestant", "ours.jsonl", "--run", "syn21ccc", "--uniqueness.encoder", "minilm"];
    let args = [&args[..], &["--uniqueness.quality_model", "off", "--embeddings", "kept", "--paths", "100"]].concat();
    let json = [&args[..], &["--json"]].concat();
    let report = gives(dir.path(), &json);
    let of = |name: &str| {
        let all = report["contestants"].as_array().unwrap();
        let one = all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"));
        assert_eq!(one["runs"].as_array().unwrap().len(), 1);
        one["runs"][0].clone()
    };
    let (ours, silent) = (of("ours"), of("silent"));
    assert_eq!((ours["steps"].as_u64(), ours["n_miners"].as_u64()), (Some(56), Some(64)));
    let figure = |run: &Value, name: &str| run[name]["value"].as_f64().unwrap();
    assert!(figure(&ours, "mean_reward") > 0.1 && figure(&silent, "mean_reward") == 0.0);
    assert!(figure(&ours, "weight_share") > figure(&silent, "weight_share"));
    assert_eq!(silent["failed_share"], 1.0);
    assert_eq!(ours["coverage"]["imputed"], json!(["dpo (0.6)", "reciprocate (0.4)"]));
    assert_eq!(ours["moments"].as_array().unwrap().len(), 50);
    // Another run, whose embeddings are kept, says the same.
    assert_eq!(gives(dir.path(), &json), report);
    let table = says(dir.path(), &args);
    assert!(table.contains("taken to pass: blacklist, relevance.mpnet, relevance.bert, nsfw"), "{table}");

    fs::write(dir.path().join("others.jsonl"), "{\"p\": \"elsewhere/3\", \"m\": \"x\", \"t\": \"So.\"}\n").unwrap();
    let other = [
        "replay",
        &path,
        "--contestant",
        "others.jsonl",
        "--uniqueness.encoder",
        "minilm",
        "--uniqueness.quality_model",
        "off",
    ];
    refuses(dir.path(), &other, 1, "x answers no step of these logs");
    refuses(
        dir.path(),
        &[&args[..], &["--asked", "1.5"]].concat(),
        64,
        "--asked is 1.5, expected more than 0, up to 1",
    );
    refuses(
        dir.path(),
        &["replay", &path, "--contestant", "ours.jsonl", "--uniqueness.encoder", "off"],
        64,
        "the gate needs an encoder",
    );
}

/// A miner in this process that repeats what it is asked, and lets everybody in.
async fn miner(folder: &Path) -> Miner {
    let data_dir = folder.display().to_string();
    let values = BTreeMap::from([
        ("backend", "echo"),
        ("uniqueness.encoder", "off"),
        ("axon.port", "0"),
        ("metrics.addr", "off"),
        ("policy.allow", "any"),
        ("data_dir", &data_dir),
    ]);
    let flags = values.into_iter().map(|(k, v)| (k.to_owned(), k.to_owned(), vec![v.to_owned()])).collect();
    let loaded = load(&Sources { flags, ..Sources::default() }).unwrap_or_else(|e| panic!("{e}"));
    Miner::start(&loaded.config, &idiolect_miner::cli::process_env(), &NoProgress)
        .await
        .unwrap_or_else(|e| panic!("{e:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn live_miners_are_asked_scored_and_logged() {
    let dir = tempfile::tempdir().unwrap();
    let miner = miner(&dir.path().join("miner")).await;
    let place = format!("{}/{}", miner.address(), miner.hotkey());
    let (http, grpc) = (format!("over-http=http://{place}"), format!("over-grpc=grpc://{place}"));
    let gone = format!("gone=http://127.0.0.1:9/{}", miner.hotkey());
    let folder = dir.path().to_owned();
    let said = tokio::task::spawn_blocking(move || {
        let args = [
            "serve-validator",
            "--miner",
            &http,
            "--miner",
            &grpc,
            "--miner",
            "in-process=echo",
            "--miner",
            "twin=echo",
            "--miner",
            &gone,
            "--miner",
            "panel:2",
        ];
        let args = [
            &args[..],
            &["--rounds", "1", "--followups", "1", "--timeout", "8", "--log", "events.jsonl", "--state", "state.json"],
        ]
        .concat();
        let args = [&args[..], &["--uniqueness.encoder", "minilm", "--json"]].concat();
        let first = gives(&folder, &args);
        // It goes on where it was.
        let second = gives(&folder, &args);
        let log = gives(&folder, &["verify", "events.jsonl", "--json"]);
        let prompts = says(&folder, &["prompts", "events.jsonl"]);
        refuses(
            &folder,
            &["serve-validator", "--miner", "echo", "--miner", "echo", "--rounds", "1"],
            64,
            "two are called echo",
        );
        refuses(
            &folder,
            &["serve-validator", "--miner", "echo", "--uniqueness.quality_model", "off"],
            64,
            "a round goes on with the best reply",
        );
        (first, second, log, prompts)
    });
    let (first, second, log, prompts) = said.await.unwrap();
    let row = |report: &Value, name: &str| {
        let rows = report["miners"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("{name}: {report}")).clone()
    };
    assert_eq!((first["steps"].as_u64(), second["steps"].as_u64()), (Some(3), Some(6)));
    assert_eq!(first["missing"], json!(["reciprocate", "blacklist", "relevance.bert", "nsfw"]));
    for name in ["over-http", "over-grpc", "in-process"] {
        let row = row(&first, name);
        assert_eq!((row["asked"].as_u64(), row["failed"].as_u64()), (Some(3), Some(0)), "{row}");
    }
    // Who says the same is masked.
    assert_eq!(
        (row(&first, "in-process")["masked_share"].as_f64(), row(&first, "twin")["mean_reward"].as_f64()),
        (Some(1.0), Some(0.0))
    );
    assert_eq!(
        (row(&first, "gone")["failed"].as_u64(), row(&first, "gone")["weight_share"].as_f64()),
        (Some(3), Some(0.0))
    );
    let weights: f64 =
        first["miners"].as_array().unwrap().iter().map(|row| row["weight_share"].as_f64().unwrap()).sum();
    assert!((weights - 1.0).abs() < 1e-6 || weights == 0.0, "{weights}");

    assert_eq!(log["off"], json!([]), "{log}");
    assert_eq!((log["files"][0]["steps"].as_u64(), log["files"][0]["states"].as_u64()), (Some(6), Some(2)));
    let compared: Vec<&str> = log["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["n"].as_u64() > Some(0))
        .filter_map(|check| check["figure"].as_str())
        .collect();
    for figure in ["rewards", "best", "task_validation_penalty_raw", "diversity_reward_model_normalized"] {
        assert!(compared.contains(&figure), "{compared:?}");
    }
    assert_eq!(prompts.lines().count(), 6);
    miner.stop().await.unwrap();
}
