//! `idiolect score` as a process, with the real encoder and the default model.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use idiolect_validator::task::{Criterion, TaskKind, openvalidators, text_prompting};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder with a prompt and replies, where the tool runs with the environment of the tests.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a folder"));
        let task = text_prompting::Task {
            kind: TaskKind::Answer,
            base_text: "### SUMMARY CONTEXT:\nLeaves make sugar out of light.\n### QUESTION 0:\nWhat do leaves make?"
                .to_owned(),
            criteria: vec![Criterion::NoLists],
        };
        place.write("prompt.txt", task.compose().as_bytes());
        let replies = [
            json!({ "uid": 5, "hotkey": "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "text": "Leaves make sugar out of light.", "process_time": 1.25 }),
            json!({ "uid": 7, "text": "- Leaves turn the light of the sun, and water, into sugar." }),
            json!({ "uid": 2, "completion": "Summary: they make sugar." }),
            json!({ "uid": 3, "status_code": "408" }),
            json!({ "uid": 9, "text": "The capital of Texas is Austin." }),
        ];
        place.write("replies.jsonl", replies.map(|reply| reply.to_string()).join("\n").as_bytes());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).expect("written");
    }

    fn score(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
        command.arg("score").args(args).current_dir(self.0.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it runs");
        // What is refused before anything is read breaks the pipe.
        drop(child.stdin.take().expect("a pipe").write_all(input));
        child.wait_with_output().expect("it ends")
    }

    #[track_caller]
    fn says(&self, args: &[&str]) -> String {
        let output = self.score(&plain(args), b"");
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    #[track_caller]
    fn rows(&self, args: &[&str], input: &[u8]) -> Vec<Value> {
        let output = self.score(&plain(&[args, &["--json"]].concat()), input);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[track_caller]
    fn fails(&self, args: &[&str], code: i32, words: &[&str]) {
        let output = self.score(&plain(args), b"");
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
        for word in words {
            assert!(errors.contains(word), "{args:?}: {errors}\nlacks {word:?}");
        }
        assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    }
}

/// Without a language model where none is named: it takes a while to load, and few tests are about its reward.
fn plain<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let off: &[&str] = if args.contains(&"--model") { &[] } else { &["--model", "off"] };
    [args, off].concat()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const PLAIN: [&str; 3] = ["--prompt", "prompt.txt", "replies.jsonl"];

#[track_caller]
fn near(found: &Value, expected: f64) {
    assert!(found.as_f64().is_some_and(|found| (found - expected).abs() < 1e-4), "{found} instead of {expected}");
}

fn column(rows: &[Value], name: &str) -> Vec<f64> {
    rows.iter().map(|row| row[name].as_f64().unwrap_or_else(|| panic!("no {name} in {row}"))).collect()
}

#[test]
fn a_step_of_version_2_1() {
    let place = Place::new();
    place.write("bad.txt", b"austin\n\n");
    let args = [&PLAIN[..], &["--model", idiolect_models::DEFAULT_MODEL, "--nsfw-words", "bad.txt"]].concat();
    let rows = place.rows(&args, b"");
    assert_eq!(column(&rows, "uid"), [5.0, 7.0, 2.0, 3.0, 9.0]);
    assert_eq!(rows[0]["profile"], "text-prompting-2.1");
    assert_eq!(rows[0]["task"], "answer");
    assert_eq!(rows[0]["process_time"], 1.25);
    // A failed call is nothing in the raw log and 0 in what counts.
    assert_eq!((&rows[3]["succeeded"], &rows[3]["dpo_reward_model"]), (&json!(false), &Value::Null));
    assert_eq!((&rows[3]["dpo_reward_model_normalized"], &rows[3]["rewards"]), (&json!(0.0), &json!(0.0)));
    // The answer is in the prompt word by word.
    assert_eq!(column(&rows, "blacklist_filter_normalized"), [0.0, 1.0, 1.0, 0.0, 1.0]);
    assert_eq!(column(&rows, "nsfw_filter_normalized"), [1.0, 1.0, 1.0, 0.0, 0.0]);
    assert_eq!(column(&rows, "keyword_match_penalty_applied")[..3], [1.0, 1.0, 0.0]);
    near(&rows[1]["task_validation_penalty_applied"], 0.75);
    assert_eq!(rows[4]["relevance_filter"], 0.0);
    // Without rlhf, which weighs nothing here, and reciprocate, all weight is dpo's.
    assert_eq!(rows[1]["missing"], json!(["reciprocate", "relevance.bert"]));
    let reward = |row: &Value| {
        let factors = [
            "dpo_reward_model_normalized",
            "blacklist_filter_normalized",
            "relevance_filter_normalized",
            "diversity_reward_model_normalized",
            "nsfw_filter_normalized",
            "task_validation_penalty_applied",
            "sentence_match_penalty_applied",
            "keyword_match_penalty_applied",
        ];
        factors.iter().map(|name| row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"))).product::<f64>()
    };
    for row in &rows {
        near(&row["rewards"], reward(row));
        near(&row["moving_average"], 0.05 * reward(row));
        near(&row["weight"], reward(row) / rows.iter().map(reward).sum::<f64>());
    }
    assert!(rows[1]["rewards"].as_f64() > Some(0.0) && rows[1]["best"] == true, "{}", rows[1]);
    let left_out = place.rows(&[&args[..], &["--missing", "leave-out"]].concat(), b"");
    near(&left_out[1]["rewards"], 0.6 * reward(&rows[1]));

    let said = place.says(&args);
    let head = said.lines().next().expect("a line");
    let expected = "uid  hotkey    time s  dpo raw  dpo  blacklist  relevance  diversity raw  diversity  nsfw  task_validation  content_match  keyword_match  reward  average  weight";
    assert_eq!(head.split_whitespace().collect::<Vec<_>>(), expected.split_whitespace().collect::<Vec<_>>());
    for words in [
        "5GrwvaEF ",
        "missing: reciprocate (weight 0.4)",
        "weights: dpo 1",
        "no historic reward: 0 earlier",
        "--encoder mpnet",
    ] {
        assert!(said.contains(words), "{said}\nlacks {words}");
    }
}

#[test]
fn a_step_of_version_1_2() {
    let place = Place::new();
    let task =
        openvalidators::Task::Answer { context: "A summary.".to_owned(), question: "What do leaves make?".to_owned() };
    // Editors end files with a line break.
    place.write("prompt.txt", format!("{}\n", task.compose()).as_bytes());
    let args = [&PLAIN[..], &["--profile", "openvalidators-1.2"]].concat();
    let rows = place.rows(&args, b"");
    assert_eq!(column(&rows, "task_validator_filter_normalized"), [1.0, 1.0, 0.0, 0.0, 1.0]);
    assert_eq!(column(&rows, "blacklist_filter_normalized")[..3], [1.0; 3]);
    let product = column(&rows, "diversity_reward_model_normalized");
    assert!(product[1] > 0.0 && product[1] < 1.0, "{product:?}");
    assert!(rows[0].get("task_validation_penalty_raw").is_none());
    // No model of a reward: no reward.
    assert_eq!((&rows[0]["rewards"], &rows[0]["best"]), (&Value::Null, &json!(false)));
    assert!(place.says(&args).contains("no rewards: there is no reward model"));
}

#[test]
fn without_an_encoder_there_are_the_factors_that_need_none() {
    let place = Place::new();
    let off = [&PLAIN[..], &["--encoder", "off"]].concat();
    let rows = place.rows(&[&off[..], &["--nsfw-words", "off"]].concat(), b"");
    assert!(rows[0].get("diversity_reward_model").is_none() && rows[0].get("blacklist_filter").is_none());
    assert!(rows[0].get("nsfw_filter").is_none());
    let missing = ["dpo", "reciprocate", "blacklist", "relevance.bert", "relevance.mpnet", "diversity", "nsfw"];
    assert_eq!(rows[0]["missing"], json!(missing));
    near(&rows[1]["task_validation_penalty_applied"], 0.75);
    // A small list of words is there by itself.
    let rows = place.rows(&off, b"");
    assert_eq!(column(&rows, "nsfw_filter_normalized"), [1.0, 1.0, 1.0, 0.0, 1.0]);
    assert_eq!(rows[0]["missing"], json!(missing[..6]));
    let rude = ["--encoder", "off", "--prompt", "prompt.txt", "-"];
    let rows = place.rows(&rude, b"\"Leaves make sugar.\"\n\"Shitty question.\"\n");
    assert_eq!(column(&rows, "nsfw_filter_normalized"), [1.0, 0.0]);
    place.fails(&[&off[..], &["--nsfw-words", "none.txt"]].concat(), 1, &["cannot read none.txt"]);
    place.fails(
        &[&PLAIN[..], &["--encoder", "off", "--missing", "refuse"]].concat(),
        1,
        &["nothing to compute dpo, reciprocate"],
    );
}

#[test]
fn the_default_model_gives_a_reward() {
    let place = Place::new();
    let args = [&PLAIN[..], &["--encoder", "off", "--json"]].concat();
    let output = place.score(&args, b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let named = place.score(&[&args[..], &["--model", idiolect_models::DEFAULT_MODEL]].concat(), b"");
    assert_eq!(text(&output.stdout), text(&named.stdout));
    let row: Value = serde_json::from_str(text(&output.stdout).lines().next().expect("a row")).expect("JSON");
    assert!(row["dpo_reward_model"].as_f64() < Some(0.0) && row["rewards"].is_number(), "{row}");
    // Where the profile does not weigh it, nothing is loaded for it.
    place.write("mine.toml", b"extends = \"text-prompting-2.1\"\n[rewards]\ndpo = 0\nreciprocate = 1\n");
    let output = place.score(&[&args[..], &["--profile", "mine.toml"]].concat(), b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let row: Value = serde_json::from_str(text(&output.stdout).lines().next().expect("a row")).expect("JSON");
    assert!(row.get("dpo_reward_model").is_none() && row["rewards"].is_null(), "{row}");
}

#[test]
fn a_new_round_forgets_the_best_of_the_last() {
    let place = Place::new();
    place.write("p.txt", b"A prompt.");
    let reward = format!("rlhf={}", classifier("deberta"));
    let step = |task: &str, replies: [&str; 2]| {
        let args = ["--prompt", "p.txt", "--task", task, "--profile", "openvalidators-1.2", "--encoder", "off"];
        let more = ["--reward", &reward, "--state", "state.json", "-"];
        let rows = place
            .rows(&[&args[..], &more].concat(), replies.map(|reply| json!(reply).to_string()).join("\n").as_bytes());
        let best = usize::from(rows[1]["best"] == true);
        (column(&rows, "blacklist_filter"), replies[best].to_owned())
    };
    let saved =
        || -> Value { serde_json::from_slice(&fs::read(place.path("state.json")).expect("saved")).expect("JSON") };
    let (_, question) = step("followup", ["Why?", "When does it rain?"]);
    let (_, answer) = step("answer", ["Because.", "It rains in winter."]);
    assert_eq!(saved()["best"].as_array().map(Vec::len), Some(2));
    assert_eq!(step("followup", [&question, &answer]).0, [0.0, 0.0]);
    step("augment", ["A summary.", "Another one."]);
    assert_eq!((&saved()["best"], &saved()["asked"]), (&json!([]), &Value::Null));
    assert_eq!(step("followup", [&question, &answer]).0, [1.0, 1.0]);
}

#[test]
fn state_and_history_carry_over() {
    let place = Place::new();
    let args = [&PLAIN[..], &["--state", "state.json"]].concat();
    place.rows(&args, b"");
    let first: Value = serde_json::from_slice(&fs::read(place.path("state.json")).expect("saved")).expect("JSON");
    assert_eq!((&first["n_steps"], &first["ngrams"]["n_completions"]), (&json!(1), &json!(3)));
    let said = place.says(&args);
    assert!(said.contains("text-prompting-2.1, answer, step 2"), "{said}");
    place.fails(
        &[&args[..], &["--profile", "openvalidators-1.2"]].concat(),
        1,
        &["state.json is of the profile", "text-prompting-2.1"],
    );
    place.write("state.json", b"{\"version\": 2,");
    place.fails(&args, 1, &["state state.json is damaged", "EOF"]);

    // Earlier copies of a reply, of which two count, after those that the profile skips.
    place.write("mine.toml", b"extends = \"openvalidators-1.2\"\nname = \"mine\"\n[gate]\nhistory_skip = 1\n");
    let copy = json!({ "text": "- Leaves turn the light of the sun, and water, into sugar." }).to_string();
    place.write("earlier.jsonl", ["\"Something else.\"", &copy, "\"Between.\"", &copy].join("\n").as_bytes());
    let rows = place.rows(&[&PLAIN[..], &["--profile", "mine.toml", "--history", "earlier.jsonl"]].concat(), b"");
    let historic = |i: usize| rows[i]["diversity_reward_model_historic"].as_f64();
    assert!(historic(1) < Some(1e-3) && historic(4) > Some(0.99), "{:?} {:?}", historic(1), historic(4));
}

/// A tiny classifier with random weights.
fn classifier(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/classifiers").join(name);
    folder.to_str().expect("a plain path").to_owned()
}

#[test]
fn reward_models_fill_their_columns() {
    let place = Place::new();
    let [deberta, gptj] = ["deberta", "gptj"].map(classifier);
    let [rlhf, reciprocate] = [format!("rlhf={deberta}"), format!("reciprocate={gptj}")];
    let expected = |folder: &str| -> Value {
        serde_json::from_slice(&fs::read(format!("{folder}/expected.json")).expect("it is there")).expect("JSON")
    };
    let (of_deberta, of_gptj) = (expected(&deberta), expected(&gptj));
    for i in [0, 2] {
        let case = &of_deberta["cases"][i];
        place.write("p.txt", case["prompt"].as_str().expect("text").as_bytes());
        let lines = format!("{}\n\"light\"\n", case["reply"]);
        let args =
            ["--profile", "openvalidators-1.2", "--prompt", "p.txt", "--task", "answer", "--encoder", "off", "-"];
        let rows = place.rows(&[&args[..], &["--reward", &rlhf, "--reward", &reciprocate]].concat(), lines.as_bytes());
        near(&rows[0]["rlhf_reward_model"], case["logits"][0].as_f64().expect("a number"));
        near(&rows[0]["reciprocate_reward_model"], of_gptj["cases"][i]["logits"][0].as_f64().expect("a number"));
        // Two of two scores: one above the mean, one below, weighed 4 to 3 without dpo.
        let normalised = |row: &Value, name: &str| row[format!("{name}_reward_model_normalized")].as_f64();
        let sum = |row: &Value| Some((4.0 * normalised(row, "rlhf")? + 3.0 * normalised(row, "reciprocate")?) / 7.0);
        near(&rows[1]["rewards"], sum(&rows[1]).expect("both are there"));
        assert!(!rows[0]["missing"].as_array().expect("a list").contains(&json!("rlhf")), "{}", rows[0]);
    }
    let args = [&PLAIN[..], &["--encoder", "off"]].concat();
    let head = place.says(&[&args[..], &["--reward", &reciprocate]].concat());
    assert!(head.lines().next().expect("a line").contains("reciprocate raw"), "{head}");
    assert!(head.contains("weights: reciprocate 1"), "{head}");

    let refused = |given: &[&str], code: i32, words: &[&str]| {
        let given = given.iter().flat_map(|given| ["--reward", given]);
        place.fails(&args.iter().copied().chain(given).collect::<Vec<_>>(), code, words);
    };
    refused(&["reciprocate"], 64, &["--reward reciprocate: expected NAME=MODEL"]);
    refused(
        &["openassistant=x"],
        64,
        &["text-prompting-2.1 has no reward model \"openassistant\", expected reciprocate"],
    );
    refused(&[&rlhf], 64, &["text-prompting-2.1 gives rlhf no weight, expected reciprocate"]);
    refused(&["dpo=x"], 64, &["--model names"]);
    refused(&[&reciprocate, &reciprocate], 64, &["reciprocate is named twice"]);
    refused(&["reciprocate=./none"], 1, &["none"]);
    let folder = place.path("other");
    fs::create_dir(&folder).expect("a folder");
    for name in ["model.safetensors", "tokenizer.json"] {
        fs::copy(format!("{gptj}/{name}"), folder.join(name)).expect("copied");
    }
    let config: Value = serde_json::from_slice(&fs::read(format!("{gptj}/config.json")).expect("read")).expect("JSON");
    let with = |key: &str, value: Value, words: &[&str]| {
        let mut config = config.clone();
        config[key] = value;
        fs::write(folder.join("config.json"), config.to_string()).expect("written");
        refused(&["reciprocate=./other"], 1, words);
    };
    with("model_type", json!("llama"), &["reward model reciprocate=./other", "\"llama\"", "deberta-v2 and gptj"]);
    with("n_embd", json!(30), &["reward model reciprocate=./other"]);
    with("id2label", json!({}), &["with 0 labels"]);
    with("id2label", json!({ "0": "bad", "1": "good" }), &["reward model reciprocate=./other"]);
    fs::write(folder.join("model.safetensors"), b"nothing").expect("written");
    with("n_layer", json!(2), &["model.safetensors"]);
    let dpo = ["--profile", "mine.toml", "--model", idiolect_models::DEFAULT_MODEL];
    place.write("mine.toml", b"extends = \"text-prompting-2.1\"\n[rewards]\ndpo = 0\nreciprocate = 1\n");
    place.fails(&[&args[..], &dpo].concat(), 64, &["text-prompting-2.1 gives dpo no weight"]);
}

#[test]
fn runs_with_a_state_see_the_replies_of_earlier_ones() {
    let place = Place::new();
    // Diversity alone, with a history that counts from the third reply on.
    place.write(
        "mine.toml",
        b"extends = \"openvalidators-1.2\"\nname = \"mine\"\nmasks = [\"diversity\"]\n[gate]\nhistory_skip = 1\n",
    );
    let step = |replies: &[&str], state: &str| {
        let lines: Vec<String> = replies.iter().map(|reply| json!(reply).to_string()).collect();
        let args = ["--prompt", "prompt.txt", "--profile", "mine.toml", "--state", state, "-"];
        let rows = place.rows(&args, lines.join("\n").as_bytes());
        rows.iter().map(|row| row["diversity_reward_model_historic"].as_f64()).collect::<Vec<_>>()
    };
    let leaf = "Leaves turn the light of the sun into sugar.";
    assert_eq!(step(&["Something else.", leaf], "a.json"), [None, None]);
    // One earlier copy is free, two are not.
    assert_eq!(step(&["Austin is in Texas."], "a.json"), [None]);
    let third = step(&["The sea is deep.", leaf], "a.json");
    assert!(third[1] > Some(0.99), "{third:?}");
    let fourth = step(&[leaf], "a.json");
    assert!(fourth[0] < Some(1e-3), "{fourth:?}");
    let state: Value = serde_json::from_slice(&fs::read(place.path("a.json")).expect("saved")).expect("JSON");
    assert_eq!((&state["n_steps"], &state["history"]["dimensions"]), (&json!(4), &json!(384)));

    place.write("earlier.jsonl", b"\"Something else.\"");
    let args = ["--prompt", "prompt.txt", "--profile", "mine.toml", "--state", "a.json", "replies.jsonl"];
    let twice = [&args[..], &["--history", "earlier.jsonl"]].concat();
    place.fails(&twice, 1, &["--history is for a state without earlier replies, and a.json has 6"]);
    // Nothing of another encoder, and nothing lost without one.
    place.rows(&[&args[..], &["--encoder", "off"]].concat(), b"");
    let after: Value = serde_json::from_slice(&fs::read(place.path("a.json")).expect("saved")).expect("JSON");
    assert_eq!((&after["n_steps"], &after["history"]), (&json!(5), &state["history"]));
    let mut foreign = after;
    foreign["history"]["encoder"] = json!("all-mpnet-base-v2");
    place.write("a.json", foreign.to_string().as_bytes());
    place.fails(&args, 1, &["state a.json has a history by all-mpnet-base-v2 of 384 dimensions", "of 384 dimensions"]);
}

#[test]
fn odd_input_is_refused_with_what_is_wrong() {
    let place = Place::new();
    let with = |name: &str, bytes: &[u8]| {
        place.write(name, bytes);
        name.to_owned()
    };
    let off = ["--encoder", "off", "--prompt", "prompt.txt"];
    let replies = |name: &str, words: &[&str]| place.fails(&[&off[..], &[name]].concat(), 1, words);
    replies(&with("a.jsonl", b"\"x\"\n{\n"), &["a.jsonl", "line 2 is no JSON"]);
    replies(&with("a.jsonl", b"\"x\"\n\"\xff\"\n"), &["a.jsonl", "line 2 is no UTF-8 at byte 2"]);
    replies(
        &with("a.jsonl", b"{\"uid\": 1, \"text\": \"x\"}\n{\"uid\": 1, \"text\": \"y\"}"),
        &["line 2 has the uid 1 of line 1"],
    );
    replies("none.jsonl", &["none.jsonl", "No such file"]);

    let plain = ["--encoder", "off", "replies.jsonl"];
    let prompt =
        |name: &str, code: i32, words: &[&str]| place.fails(&[&plain[..], &["--prompt", name]].concat(), code, words);
    prompt(&with("p.txt", b"Why is the sky blue?\n"), 64, &["--task", "augment, followup or answer"]);
    prompt(&with("p.txt", b"\xff\xfe"), 1, &["p.txt is no UTF-8 at byte 1"]);
    prompt(&with("p.txt", b" \n"), 1, &["p.txt is empty"]);
    prompt("none.txt", 1, &["cannot read the prompt none.txt"]);
    let told = [&plain[..], &["--prompt", "prompt.txt", "--task", "augment"]].concat();
    place.fails(&told, 64, &["a task of kind answer, expected augment"]);
    place.fails(&[&PLAIN[..], &["--task", "poem"]].concat(), 64, &["poem", "augment, followup, answer"]);

    let profile = |name: &str, code: i32, words: &[&str]| {
        place.fails(&[&plain[..], &["--prompt", "prompt.txt", "--profile", name]].concat(), code, words)
    };
    profile("sn1", 64, &["unknown profile \"sn1\"", "text-prompting-2.1"]);
    profile("none.toml", 1, &["none.toml", "No such file"]);
    let base = "extends = \"text-prompting-2.1\"\n";
    profile(
        &with("p.toml", format!("{base}[gate]\npass_over = 1\n").as_bytes()),
        1,
        &["p.toml: line 3: gate.pass_over: unknown field"],
    );
    profile(
        &with("p.toml", format!("{base}[rewards]\ndpo = 0.5\n").as_bytes()),
        1,
        &["line 2: rewards: the weights add up to 0.9, expected 1"],
    );
    profile(&with("p.toml", b"\xff"), 1, &["p.toml: line 1: no UTF-8"]);
    place.fails(
        &[&PLAIN[..], &["--encoder", "off", "--history", "replies.jsonl"]].concat(),
        64,
        &["--history counts for nothing"],
    );
    place.fails(
        &[&PLAIN[..], &["--encoder", "off", "--vocabulary", "prompt.txt"]].concat(),
        1,
        &["cannot use the tokenizer prompt.txt"],
    );
    place.fails(&[&PLAIN[..], &["--model", "no-such-model"]].concat(), 1, &["no-such-model"]);
    place.fails(&["replies.jsonl"], 64, &["--prompt"]);
}

#[test]
fn few_long_and_equal_replies() {
    let place = Place::new();
    let args = ["--prompt", "prompt.txt", "-"];
    assert!(place.rows(&args, b"").is_empty());
    assert!(place.says(&args).contains("uid"));
    let diversity = |rows: &[Value]| column(rows, "diversity_reward_model");
    let one = place.rows(&args, b"\"One reply alone.\"\n");
    near(&one[0]["diversity_reward_model"], 0.017_986);
    assert_eq!(one[0]["uid"], 0);
    let same = place.rows(&args, &b"\"The same.\"\n".repeat(3));
    assert!(diversity(&same).iter().all(|reward| (reward - 0.017_986).abs() < 1e-4), "{same:?}");
    let long = json!("Leaves make sugar. ".repeat(5_264)).to_string();
    assert!(long.len() > 100_000);
    let rows = place.rows(&args, format!("{long}\n\"\"\n\"Leaves make sugar.\"\n").as_bytes());
    assert_eq!(rows.len(), 3);
    // Nothing is in every text.
    assert_eq!(rows[1]["blacklist_filter"], 0.0);
    assert!(rows.iter().all(|row| row["diversity_reward_model"].is_number()));
}

#[test]
fn odd_replies_have_a_reward_of_the_language_model() {
    let place = Place::new();
    for profile in ["openvalidators-1.2", "text-prompting-2.1"] {
        let args = ["--prompt", "prompt.txt", "--profile", profile, "--encoder", "off", "-"];
        let args = [&args[..], &["--model", idiolect_models::DEFAULT_MODEL]].concat();
        assert!(place.rows(&args, b"").is_empty());
        let one = place.rows(&args, b"\"Leaves make sugar out of light.\"");
        // Of one score alone there is no variance: as good as can be said.
        assert!(one[0]["dpo_reward_model"].as_f64() > Some(-11.0), "{one:?}");
        assert_eq!(one[0]["dpo_reward_model_normalized"], 0.5);
        let repeated = "Leaves make sugar out of light. ".repeat(60);
        let replies = ["", " \n", "\0", "Leaves make sugar.", "Leaves make sugar.", &repeated, "🌿🌿🌿🌿🌿🌿 \u{202e}"];
        let lines: String = replies.iter().map(|reply| format!("{}\n", json!(reply))).collect();
        let rows = place.rows(&args, lines.as_bytes());
        let dpo = column(&rows, "dpo_reward_model");
        // What says nothing gets the lowest unseen.
        assert_eq!(dpo[..3], [-11.0; 3]);
        assert!((dpo[3] - dpo[4]).abs() < 1e-4 && dpo[3] > -11.0, "{dpo:?}");
        assert!(dpo.iter().all(|reward| reward.is_finite()), "{dpo:?}");
        assert!(rows.iter().all(|row| row["rewards"].is_number()), "{rows:?}");
    }
}
