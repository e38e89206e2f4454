//! A miner that answers with recorded replies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use idiolect_miner::app::Miner;
use idiolect_miner::config::{Sources, load};
use idiolect_models::NoProgress;
use idiolect_protocol::dendrite::{Dendrite, QueryOptions, Target, Via};
use idiolect_protocol::{Keypair, Message, Prompt, Role};
use serde_json::json;

const QUESTION: &str = "What is a lighthouse for?";
const REPLIES: [(&str, &str); 4] = [
    ("a", "It warns ships of rocks and shoals by a light that they can tell from all others."),
    ("b", "Sailors find out by it where they are, since each lighthouse has a rhythm of its own."),
    ("c", "A tower with a lamp: by night it shows where the harbour begins, by day its colours do."),
    ("d", "Once it guided whole fleets; these days it is mostly a place for walks and photographs."),
];

fn record(dir: &Path) -> String {
    let lines = REPLIES.map(|(model, text)| format!("{}\n", json!({"p": 1, "m": model, "t": text})));
    std::fs::write(dir.join("replies.jsonl"), lines.concat()).expect("written");
    let prompt = json!({"id": 1, "prompt": QUESTION});
    std::fs::write(dir.join("prompts.jsonl"), format!("{prompt}\n")).expect("written");
    let file = |name: &str| dir.join(name).display().to_string();
    format!("recorded:{}?prompts={}&models=a,b,c", file("replies.jsonl"), file("prompts.jsonl"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_chooses_among_recorded_replies() {
    let dir = tempfile::tempdir().expect("a folder");
    let (model, data_dir) = (record(dir.path()), dir.path().join("data").display().to_string());
    let values = [
        ("model", model.as_str()),
        ("candidates.count", "3"),
        ("uniqueness.encoder", "minilm"),
        ("uniqueness.quality_model", "off"),
        ("policy.allow", "any"),
        ("axon.port", "0"),
        ("metrics.addr", "off"),
        ("data_dir", data_dir.as_str()),
    ];
    let flags = values.map(|(key, value)| (key.to_owned(), key.to_owned(), vec![value.to_owned()])).to_vec();
    let config = load(&Sources { flags, ..Sources::default() }).expect("settings").config;
    let miner = Miner::start(&config, &BTreeMap::new(), &NoProgress).await.unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(miner.models(), [model]);

    let validator = Dendrite::new(Keypair::generate());
    let target = Target::from((miner.address(), miner.hotkey()));
    let ask = async |question: &str| {
        let prompt = Prompt::new(vec![Message::new(Role::User, question)]).expect("a prompt");
        validator.query(&target, Via::Http, &prompt, &QueryOptions::default()).await
    };
    let ours: BTreeSet<&str> = REPLIES[..3].iter().map(|(_, text)| *text).collect();
    let answer = ask(QUESTION).await.expect("an answer");
    assert!(ours.contains(answer.text.as_str()), "{}", answer.text);
    miner.pipeline().flush().await;
    let record = miner.pipeline().explain("last").await.expect("a record");
    let texts: BTreeSet<&str> = record.candidates.iter().filter_map(|candidate| candidate.text.as_deref()).collect();
    assert_eq!(texts, ours, "three candidates, each another reply");
    assert!(record.candidates.iter().all(|candidate| candidate.backend == "recorded"));
    assert!(record.candidates.iter().any(|one| one.sent && one.text.as_deref() == Some(answer.text.as_str())));
    let first = record.candidates.iter().find(|candidate| candidate.rank == 0).expect("a ranking");
    assert!(first.sent, "the selector ranks them, and the first is sent");

    assert!(ask("What is a windmill for?").await.is_err(), "nothing is on record");
    // What was sent is in the history, so that the next choice falls on another reply.
    let again = ask(QUESTION).await.expect("an answer");
    assert!(ours.contains(again.text.as_str()) && again.text != answer.text, "{}", again.text);
    miner.stop().await.unwrap_or_else(|e| panic!("{e:#}"));
}

#[test]
fn records_that_cannot_be_used_are_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = record(dir.path());
    let fails = |args: &[&str], code: i32, expected: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect-miner"));
        command.env_clear().env("HOME", dir.path()).current_dir(dir.path()).arg("--once").args(args);
        command.args(["--encoder", "off", "--uniqueness.quality_model", "off", "--axon.port", "0"]);
        let output = command.output().expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{errors}");
        assert!(errors.contains(expected), "{errors}\nlacks {expected:?}");
    };
    let option = "model: option \"model=a\" of a record, expected prompts=FILE or models=NAME,NAME";
    fails(&["--model", "recorded:replies.jsonl?model=a"], 64, option);
    fails(&["--backend", "recorded"], 64, "backend recorded needs a model: recorded:REPLIES, with ?prompts=FILE");
    fails(
        &["--backend", "recorded", "--model", "x.jsonl"],
        64,
        "\"x.jsonl\" names no record, expected recorded:REPLIES",
    );
    fails(&["--model", "recorded:nowhere.jsonl"], 1, "backend recorded: cannot use the replies nowhere.jsonl: ");
    fails(&["--model", &format!("{model},e")], 1, "no reply is by e; there are a, b, c, d");
}
