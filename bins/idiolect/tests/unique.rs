//! `idiolect unique` as a process, with the real encoder.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

/// The tool with the environment of the tests, where models are found.
fn unique(args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    command.arg("unique").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    // What is refused before anything is read breaks the pipe.
    drop(child.stdin.take().expect("a pipe").write_all(input));
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn says(args: &[&str], input: &[u8]) -> String {
    let output = unique(args, input);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn rows(args: &[&str], input: &[u8]) -> Vec<Value> {
    says(args, input).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[track_caller]
fn fails(args: &[&str], input: &[u8], code: i32, words: &[&str]) {
    let output = unique(args, input);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    for word in words {
        assert!(errors.contains(word), "{args:?}: {errors}\nlacks {word:?}");
    }
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

fn lines(texts: &[&str]) -> Vec<u8> {
    texts.iter().fold(Vec::new(), |mut lines, text| {
        lines.extend(json!({ "text": text }).to_string().bytes().chain([b'\n']));
        lines
    })
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

fn near(found: &Value, expected: &Value, name: &str) {
    let values = found.as_f64().zip(expected.as_f64());
    assert!(values.is_some_and(|(a, b)| (a - b).abs() < 1e-4), "{name}: {found} instead of {expected}");
}

/// Replies whose distances and rewards validators' own code computed.
#[test]
fn figures_are_those_of_the_validators() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/vectors/scoring/diversity.json");
    let recorded: Value = serde_json::from_slice(&fs::read(recorded).expect("vectors")).expect("JSON");
    let (cases, mut n_masked) = (recorded["cases"].as_array().expect("cases"), 0);
    assert!(cases.len() > 8);
    for case in cases {
        let (name, texts) = (case["name"].as_str().expect("a name"), case["texts"].as_array().expect("texts"));
        let texts: Vec<&str> = texts.iter().map(|text| text.as_str().expect("a text")).collect();
        let rows = rows(&["-", "--json", "--profile", "text-prompting-2.1"], &lines(&texts));
        assert_eq!(rows.len(), texts.len(), "{name}");
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(row["id"], (i + 1).to_string(), "{name}");
            near(&row["batch_reward"], &case["batch_reward_v2"][i], name);
            assert_eq!(row["historic_reward"], Value::Null);
            assert_eq!(row["reward"], row["batch_reward"]);
            let masked = case["batch_reward_v2"][i].as_f64() <= Some(0.2);
            assert_eq!(row["masked"], masked, "{name}");
            n_masked += u32::from(masked);
        }
    }
    assert!(n_masked > 5, "{n_masked}");
}

#[test]
fn rivals_history_profile_and_picture() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str, bytes: &[u8]| {
        let file = dir.path().join(name);
        fs::write(&file, bytes).expect("a file");
        file
    };
    let own = file(
        "own.jsonl",
        b"{\"id\": \"sky\", \"text\": \"The sky is blue because air scatters blue light.\"}\n\"Ask a painter.\"\n",
    );
    let rivals = file("rivals.jsonl", &lines(&["The sky is blue since blue light is scattered by the air."]));
    let map = dir.path().join("map.svg");
    let alone = rows(&[path(&own), "--json"], b"");
    assert_eq!((&alone[0]["nearest"], &alone[0]["masked"]), (&json!("2"), &json!(false)));
    let args = [path(&own), "--json", "--rivals", path(&rivals), "--plot", path(&map)];
    let beside = rows(&args, b"");
    assert_eq!(beside.len(), 2);
    assert_eq!((&beside[0]["nearest"], &beside[0]["masked"]), (&json!("1"), &json!(true)));
    assert!(fs::read_to_string(&map).expect("a picture").contains(">\nsky\n<"));

    // A profile of our own: a history that counts from its second reply on.
    let profile = file("own.toml", b"extends = \"text-prompting-2.1\"\nname = \"own\"\n[gate]\nhistory_skip = 0\n");
    let earlier = file(
        "earlier.jsonl",
        &lines(&[
            "The sky is blue because air scatters blue light.",
            "The sky is blue because the air scatters blue light.",
        ]),
    );
    let args = [path(&own), "--json", "--against", path(&earlier)];
    assert_eq!(rows(&args, b"")[0]["historic_reward"], Value::Null);
    let with_history = rows(&[&args[..], &["--profile", path(&profile)]].concat(), b"");
    assert!(with_history[0]["historic_reward"].as_f64() < Some(1e-3) && with_history[0]["masked"] == true);
    assert!(with_history[1]["historic_reward"].as_f64() > Some(0.99) && with_history[1]["masked"] == false);

    let table = says(&[path(&own), "--against", path(&earlier), "--encoder", "minilm"], b"");
    for words in
        ["nearest", "text-prompting-2.1: 0 of 2 masked", "Vendi", "2 earlier replies", "from 502 on", "--encoder mpnet"]
    {
        assert!(table.contains(words), "{table}\nlacks {words:?}");
    }
    let product = says(&[path(&own), "--profile", "openvalidators-1.2"], b"");
    assert!(product.contains("openvalidators-1.2: 2 replies"), "{product}");
}

#[test]
fn odd_replies_have_figures() {
    let long = "a hundred thousand characters ".repeat(3400);
    let odd = rows(&["-", "--json"], &lines(&["", "", "same", "same", &long]));
    for row in &odd[..4] {
        assert_eq!((&row["masked"], row["distance"].as_f64().map(|d| d < 1e-5)), (&json!(true), Some(true)), "{row}");
    }
    assert_eq!(odd[4]["masked"], false, "{}", odd[4]);
    let one = says(&["-"], &lines(&["alone"]));
    assert!(one.contains("one reply alone") && one.contains("1 of 1 masked"), "{one}");
}

#[test]
fn what_cannot_be_read_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let bad = dir.path().join("profile.toml");
    fs::write(&bad, "mode = \"mask\"\n").expect("a file");
    fails(&["-"], b"", 1, &["there are no replies in standard input"]);
    fails(&["-"], b"\"a\"\n{\"id\": 3}\n", 1, &["standard input", "line 2 has no text"]);
    fails(&["-"], b"\"\xff\"", 1, &["line 1 is no UTF-8 at byte 2"]);
    fails(&["none.jsonl"], b"", 1, &["none.jsonl"]);
    fails(&["-", "--against", "none.jsonl"], b"\"a\"", 1, &["none.jsonl"]);
    fails(&["-", "--profile", "v3"], b"\"a\"", 64, &["--profile", "\"v3\"", "openvalidators-1.2", "or a file"]);
    fails(&["-", "--profile", path(&bad)], b"\"a\"", 1, &["profile.toml", "mode"]);
    for (text, words) in [
        ("[gate]\npass_over = 1\n", "line 3: gate.pass_over: unknown field"),
        ("[rewards]\ndpo = 0.5\n", "line 2: rewards: the weights add up to 0.9, expected 1"),
        ("[gate]\npass_above = nan\n", "line 3: gate.pass_above is NaN, expected a finite number"),
    ] {
        fs::write(&bad, format!("extends = \"text-prompting-2.1\"\n{text}")).expect("a file");
        fails(&["-", "--profile", path(&bad)], b"\"a\"", 1, &["profile.toml", words]);
    }
    fs::write(&bad, b"\xff").expect("a file");
    fails(&["-", "--profile", path(&bad)], b"\"a\"", 1, &["profile.toml: line 1: no UTF-8"]);
    for other in ["--against", "--rivals"] {
        fs::write(&bad, b"\"a\"\n\"\xff\"").expect("a file");
        fails(&["-", other, path(&bad)], b"\"a\"", 1, &["profile.toml", "line 2 is no UTF-8 at byte 2"]);
    }
    fails(&["-", "--plot", "map.jpg"], b"\"a\"", 64, &["map.jpg", ".png or .svg"]);
    fails(&["-", "--plot", path(&dir.path().join("none/map.png"))], b"\"a\"", 1, &["map.png"]);
    fails(&["-", "--encoder", "off"], b"\"a\"", 64, &["minilm, mpnet or openai"]);
    fails(&["-", "--encoder", "gpt"], b"\"a\"", 64, &["gpt"]);
}
