//! `idiolect mutate eval --backend` as a process, with the default model and encoder: what there is of it, and that it goes on.

mod support;

use std::fs;

use serde_json::{Value, json};

use support::{gives, refuses, says};

/// Time enough for a busy machine, and few tokens.
const QUICK: [&str; 8] =
    ["--timeout", "200", "--pipeline.cap", "200", "--candidates", "2", "--sampling.max_tokens", "8"];

fn draws(state: &str, source: &str) -> Vec<Value> {
    let lines = state.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let drawn = lines.filter_map(|mut line| Some(line.get_mut("drawn")?.take()));
    let mut drawn: Vec<Value> = drawn.filter(|drawn| drawn["source"] == source).collect();
    drawn.sort_by_key(|drawn| drawn["p"].to_string());
    drawn
}

#[test]
fn a_live_experiment_has_all_arms_and_goes_on_where_it_was_cut() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    let prompts = says(folder, &["prompts", "--seed", "4", "-n", "2", "--out", "prompts.jsonl"]);
    assert_eq!(prompts, "");
    let prompts = fs::read_to_string(folder.join("prompts.jsonl")).expect("prompts");
    assert_eq!(says(folder, &["prompts", "--seed", "4", "-n", "2"]), prompts);

    let model =
        ["eval", "--backend", idiolect_models::DEFAULT_MODEL, "--prompts", "prompts.jsonl", "--seed", "4", "--json"];
    let files = ["--rivals", "rivals.jsonl", "--state", "state.jsonl", "--embeddings", "embeddings", "--requests", "2"];
    let args = [&model[..], &files, &QUICK].concat();
    let found = gives(folder, &args);
    let names: Vec<&Value> = found["arms"].as_array().expect("arms").iter().map(|arm| &arm["arm"]).collect();
    assert_eq!(names, ["plain", "best-of-k", "best-of-k-dpo", "random", "pipeline", "oracle"]);
    assert_eq!((&found["n_prompts"], &found["n_rivals"], &found["setup"]["k"]), (&json!(2), &json!(20.0), &json!(2)));
    assert_eq!(found["missing"], json!(["reciprocate", "blacklist", "relevance.bert", "nsfw"]));
    let reward = |found: &Value, arm: usize| found["arms"][arm]["reward"]["value"].as_f64().expect("a number");
    for arm in 0..names.len() {
        assert!((0.0..=1.0).contains(&reward(&found, arm)), "{found}");
    }
    assert!((4..=5).all(|arm| reward(&found, 5) >= reward(&found, arm)), "the oracle knows best: {found}");
    assert_eq!((&found["requests"]["n"], &found["requests"]["misses"]), (&json!(2), &json!(0)));
    assert_eq!(found["comparisons"].as_array().map(Vec::len), Some(7));

    // Nothing is drawn again, and nothing changes.
    let (rivals, state) = (
        fs::read(folder.join("rivals.jsonl")).expect("rivals"),
        fs::read(folder.join("state.jsonl")).expect("a state"),
    );
    assert_eq!(gives(folder, &args), found);
    assert_eq!(fs::read(folder.join("state.jsonl")).expect("a state"), state);

    // Cut within the fourth draw: what stood before it stays byte for byte, and the rest is drawn as it was.
    let whole = String::from_utf8(state).expect("UTF-8");
    let ends: Vec<usize> = whole.match_indices('\n').map(|(at, _)| at + 1).collect();
    fs::write(folder.join("state.jsonl"), &whole[..ends[3] + 30]).expect("written");
    let resumed = gives(folder, &args);
    let state = fs::read_to_string(folder.join("state.jsonl")).expect("a state");
    assert_eq!(state[..ends[3]], whole[..ends[3]]);
    assert_eq!(fs::read(folder.join("rivals.jsonl")).expect("rivals"), rivals);
    for source in ["plain", "best-of-k"] {
        let texts =
            |state: &str| draws(state, source).iter().map(|drawn| drawn["candidates"].clone()).collect::<Vec<_>>();
        assert_eq!(texts(&state), texts(&whole));
        assert_eq!(texts(&state).len(), 2);
    }
    for (again, before) in draws(&state, "pipeline").iter().zip(draws(&whole, "pipeline")) {
        for i in 0..2 {
            assert_eq!(again["candidates"][i]["recipe"], before["candidates"][i]["recipe"]);
            assert_eq!(again["candidates"][i]["t"], before["candidates"][i]["t"]);
        }
    }
    assert_eq!(resumed["arms"][0]["reward"], found["arms"][0]["reward"]);

    // A table for readers; another seed's state is none of ours.
    let table = args.iter().copied().filter(|arg| *arg != "--json").collect::<Vec<_>>();
    let table = says(folder, &table);
    assert!(table.contains("pipeline over best-of-k") && table.contains("2 prompts, 20 rivals each"), "{table}");
    let some = gives(folder, &[&args[..], &["--arms", "plain,selector"]].concat());
    let names: Vec<&Value> = some["arms"].as_array().expect("arms").iter().map(|arm| &arm["arm"]).collect();
    assert_eq!(names, ["plain", "best-of-k", "best-of-k-dpo", "pipeline"]);
    let comparisons = some["comparisons"].as_array().expect("comparisons");
    assert!(!comparisons.is_empty() && comparisons.iter().all(|c| c["over"] != "random" && c["arm"] != "random"));
    let other: Vec<&str> = args.iter().map(|arg| if *arg == "4" { "5" } else { *arg }).collect();
    refuses(folder, &other, 1, "seed is 4 there, expected 5");
}

#[test]
fn a_record_stands_in_for_a_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    says(folder, &["prompts", "--seed", "4", "-n", "2", "--out", "prompts.jsonl"]);
    let prompts = fs::read_to_string(folder.join("prompts.jsonl")).expect("prompts");
    let mut replies = Vec::new();
    for prompt in prompts.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")) {
        for (model, text) in [("a", "One way to see it."), ("b", "Quite another way."), ("c", "The third way out.")] {
            replies.push(json!({"p": prompt["p"], "m": model, "t": text}).to_string());
        }
    }
    fs::write(folder.join("replies.jsonl"), replies.join("\n")).expect("written");
    let record = "recorded:replies.jsonl?prompts=prompts.jsonl&models=a,b";
    let args = ["eval", "--backend", record, "--prompts", "prompts.jsonl", "--state", "state.jsonl", "--json"];
    let found = gives(folder, &[&args[..], &QUICK].concat());
    assert_eq!((&found["n_prompts"], &found["setup"]["models"]), (&json!(2), &json!([record])));
    let state = fs::read_to_string(folder.join("state.jsonl")).expect("a state");
    for source in ["plain", "best-of-k", "pipeline"] {
        let of_source = draws(&state, source);
        assert_eq!(of_source.len(), 2);
        for drawn in of_source {
            let mut texts: Vec<&str> =
                drawn["candidates"].as_array().expect("a list").iter().filter_map(|one| one["t"].as_str()).collect();
            texts.sort_unstable();
            assert!(texts.iter().all(|text| text.starts_with("One way") || text.starts_with("Quite")), "{texts:?}");
            texts.dedup();
            assert_eq!(texts.len(), if source == "plain" { 1 } else { 2 }, "{source}: {texts:?}");
        }
    }
    refuses(
        folder,
        &["eval", "--backend", "recorded:x?y"],
        64,
        "--backend: option \"y\" of a record, expected prompts=FILE",
    );
}

#[test]
fn what_makes_no_live_experiment_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    fs::write(folder.join("bad.jsonl"), "{\"p\": \"a\", \"prompt\": \"Why is that?\"}\n").expect("written");
    let with = |args: &[&'static str]| [&["eval", "--backend", "echo"], args].concat();
    refuses(folder, &with(&["--encoder", "off"]), 64, "uniqueness.encoder is off");
    refuses(folder, &with(&["--own", "a"]), 64, "--own");
    refuses(
        folder,
        &with(&["--prompts", "bad.jsonl"]),
        1,
        "the prompt a: the prompt fits no template of the validators",
    );
    refuses(folder, &with(&["--prompts", "none.jsonl"]), 1, "none.jsonl cannot be used");
    refuses(folder, &with(&["--n-prompts", "0"]), 64, "n-prompts");
    refuses(folder, &["eval", "--backend", "openai"], 64, "no such backend in the configuration");
    refuses(folder, &["eval", "--backend", "hub:"], 64, "--backend");
    let paid =
        "[[backends]]\nkind = \"openai\"\nname = \"paid\"\nmodel = \"m\"\nprompt_price = 1.0\nspending_cap = 1.0\n";
    fs::write(folder.join("miner.toml"), paid).expect("written");
    refuses(folder, &["eval", "--backend", "paid", "--config", "miner.toml"], 64, "backend paid has a spending_cap");
    refuses(folder, &["eval"], 64, "--replies");
}
