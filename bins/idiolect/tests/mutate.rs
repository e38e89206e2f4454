//! `idiolect mutate` as a process: lists, checks and previews, all without a model.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn mutate(args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    // The configuration of whoever runs the tests is none of ours.
    command.env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR")).arg("mutate").args(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    drop(child.stdin.take().expect("a pipe").write_all(input.as_bytes()));
    child.wait_with_output().expect("it ends")
}

#[track_caller]
fn says(args: &[&str], input: &str) -> String {
    let output = mutate(args, input);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
fn gives(args: &[&str], input: &str) -> Value {
    serde_json::from_str(&says(args, input)).expect("JSON")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a name in UTF-8")
}

const LIBRARY: &str = r#"
[[operator]]
name = "register.academic"
slot = "register"
place = "append"
text = "Answer using academic language."
sampling = { temperature = [0.7, 0.9] }

[[route]]
transport = ["epistula"]
mode = "passthrough"
"#;

#[test]
fn operators_are_listed() {
    let table = says(&["list", "--task", "followup"], "");
    assert!(table.contains("angle.gap@1") && !table.contains("register.academic"), "{table}");
    let list = gives(&["list", "--json"], "");
    assert!(list["operators"].as_array().expect("a list").len() >= 60);
    assert_eq!(list["max_added_tokens"], 80);
}

#[test]
fn what_would_be_sent_is_shown() {
    let dir = tempfile::tempdir().expect("a folder");
    let library = dir.path().join("operators.toml");
    fs::write(&library, LIBRARY).expect("written");
    let prompt = "What is {{ 7*7 }}?";
    let args = ["preview", "--prompt", "-", "--library", text(&library), "-k", "3", "--seed", "5", "--json"];
    let shown = gives(&args, prompt);
    let recipes = shown["recipes"].as_array().expect("a list");
    assert_eq!(
        (recipes.len(), &recipes[0]["recipe"], &recipes[1]["recipe"]),
        (2, &json!("no-op"), &json!("register.academic@1"))
    );
    assert_eq!(recipes[0]["messages"], json!([{ "role": "user", "content": prompt }]));
    let content = format!("{prompt}\n\nAnswer using academic language.");
    assert_eq!(recipes[1]["messages"], json!([{ "role": "user", "content": content }]));
    let temperature = recipes[1]["sampling"]["temperature"].as_f64().expect("a number");
    assert!((0.699..0.901).contains(&temperature), "{temperature}");
    assert_eq!(shown, gives(&args, prompt), "the same seed, the same recipes");

    let plain = says(&["preview", "--prompt", "-", "--library", text(&library), "--transport", "epistula"], prompt);
    assert!(plain.contains("passthrough") && plain.contains("no-op") && !plain.contains("academic"), "{plain}");
    let messages = r#"[{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]"#;
    let shown = gives(&["preview", "--prompt", "-", "-k", "1", "--json"], messages);
    assert_eq!(shown["recipes"][0]["messages"], serde_json::from_str::<Value>(messages).expect("JSON"));
}

#[test]
fn an_empty_library_changes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let library = dir.path().join("operators.toml");
    fs::write(&library, "").expect("written");
    let shown = gives(&["preview", "--prompt", "-", "--library", text(&library), "-k", "8", "--json"], "Why?\n");
    assert_eq!(shown["recipes"].as_array().expect("a list").len(), 1);
    assert_eq!(shown["recipes"][0]["messages"], json!([{ "role": "user", "content": "Why?" }]));
}

#[test]
fn libraries_are_checked() {
    assert!(says(&["lint"], "").contains("nothing found"));
    let dir = tempfile::tempdir().expect("a folder");
    let library = dir.path().join("operators.toml");
    let name = text(&library);

    fs::write(&library, LIBRARY.replace("append", "middle").replace("slot =", "slat =")).expect("written");
    let output = mutate(&["lint", name], "");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(said.contains(":4: unknown key \"slat\", expected name, slot"), "{said}");
    assert!(said.contains(":5: place is \"middle\", expected system"), "{said}");

    fs::write(&library, LIBRARY.replace("\"register\"", "\"registre\"")).expect("written");
    let output = mutate(&["lint", name, "--json"], "");
    assert_eq!(output.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["findings"][0]["kind"], "slot");
}

#[test]
fn planted_phrases_are_found_in_replies() {
    let dir = tempfile::tempdir().expect("a folder");
    let library = dir.path().join("operators.toml");
    fs::write(&library, LIBRARY).expect("written");
    let rows: String = (0..50)
        .map(|i| {
            let planted = if i % 10 == 0 { "From a scholarly point of view" } else { "" };
            let row = json!({ "operators": ["register.academic"], "prompt": format!("p{i}"), "text": format!("{planted} a{i} b{i} c{i} d{i}") });
            format!("{row}\n")
        })
        .collect();
    let output = mutate(&["lint", text(&library), "--replies", "-", "--json"], &rows);
    assert_eq!(output.status.code(), Some(1));
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["findings"][0]["kind"], "shared_replies");
    assert_eq!((&said["sharing"][0]["n_sharing"], &said["sharing"][0]["share"]), (&json!(5), &json!(0.1)));
    let output = mutate(&["lint", text(&library), "--replies", "-"], "{\"operators\": []}\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("line 1 is no row"));
}
