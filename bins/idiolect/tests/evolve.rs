//! `idiolect mutate evolve` as a process, with the default model and encoder: that it ends, keeps what was answered, goes on, and says what is wrong.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use support::{command, gives, refuses, says};

/// Writes four prompts for questions, as validators compose them.
fn write_prompts(folder: &Path) {
    let all = says(folder, &["prompts", "--seed", "4", "-n", "12"]);
    let lines: Vec<&str> = all.lines().filter(|line| line.contains("\"task\":\"followup\"")).collect();
    assert_eq!(lines.len(), 4);
    fs::write(folder.join("prompts.jsonl"), lines.join("\n")).expect("written");
}

/// Presses Ctrl-C as soon as there is one more answer: it ends well, with what whole rounds gave.
#[cfg(unix)]
#[expect(clippy::disallowed_methods, reason = "this thread is the test's own")]
fn interrupts(folder: &Path, args: &[&str], journal: &Path) {
    let n_lines = || fs::read(journal).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count());
    let before = n_lines();
    let child = command(folder, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("it runs");
    while n_lines() <= before && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("a signal is sent");
    assert!(sent.success());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&found["stopped"], &found["is_done"]), (&json!(true), &json!(false)), "{found}");
    assert_eq!(found["generations"], 0);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "this thread is the test's own")]
fn operators_are_evolved_with_the_default_model_and_a_killed_run_goes_on() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write_prompts(folder);
    let args =
        [
            &[
                "evolve",
                "--model",
                idiolect_models::DEFAULT_MODEL,
                "--prompts",
                "prompts.jsonl",
                "--seed",
                "4",
                "--json",
            ][..],
            &[
                "--starters",
                "2",
                "--proposals",
                "2",
                "--generations",
                "1",
                "--mini-batch",
                "1",
                "--sampling.max_tokens",
                "8",
            ],
        ]
        .concat();
    let with = |more: &[&'static str]| [&args[..], more].concat();
    let found = gives(folder, &with(&["--state", "state", "--out", "out.toml"]));
    assert_eq!((&found["is_done"], &found["stopped"], &found["generations"]), (&json!(true), &json!(false), &json!(1)));
    assert_eq!((&found["n_proposed"], &found["lint"]), (&json!(2), &json!([])), "{found}");
    for elite in found["elites"].as_array().expect("elites") {
        let fitness = elite["fitness"].as_f64().expect("a number");
        assert!((0.0..=1.0).contains(&fitness) && elite["niche"]["task"] == "followup", "{elite}");
    }
    let library = fs::read(folder.join("out.toml")).expect("a library");
    assert!(says(folder, &["lint", "out.toml"]).contains("nothing found"));

    // Killed as soon as it has some replies: what it kept is a part of the whole, and with the rest it ends as the other did.
    let whole = fs::read(folder.join("state/journal.jsonl")).expect("a journal");
    let mut killed = command(folder, &with(&["--state", "killed", "--concurrency", "1"]));
    let mut child = killed.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    let journal = folder.join("killed/journal.jsonl");
    let is_begun = || fs::read_to_string(&journal).is_ok_and(|text| text.contains("{\"reply\":"));
    while !is_begun() && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    drop(child.kill());
    child.wait().expect("it ends");
    let kept = fs::read(&journal).expect("a journal");
    assert!(whole.starts_with(&kept[..kept.iter().rposition(|byte| *byte == b'\n').expect("a line") + 1]));
    #[cfg(unix)]
    interrupts(folder, &with(&["--state", "killed", "--concurrency", "1"]), &journal);
    assert_eq!(gives(folder, &with(&["--state", "killed", "--out", "again.toml"])), found);
    assert_eq!(fs::read(&journal).expect("a journal"), whole);
    assert_eq!(fs::read(folder.join("again.toml")).expect("a library"), library);

    // No time at all: nothing but what whole rounds gave, and a word on how to go on. Another seed's state is none of ours.
    let table: Vec<&str> =
        with(&["--state", "late", "--minutes", "0"]).into_iter().filter(|arg| *arg != "--json").collect();
    let table = says(folder, &table);
    assert!(table.contains("0 generations") && table.contains("start it again with the same --state"), "{table}");
    let args = with(&["--state", "state"]);
    let other: Vec<&str> = args.iter().map(|arg| if *arg == "4" { "5" } else { *arg }).collect();
    refuses(folder, &other, 1, "seed is 4 there, expected 5");
}

#[test]
fn what_it_would_take_is_estimated_and_what_is_wrong_is_said() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    let estimate = gives(folder, &["evolve", "--dry-run", "--json"]);
    assert_eq!((&estimate["prompts"], &estimate["proposals"]), (&json!(30), &json!(48)));
    let fewer = gives(folder, &["evolve", "--dry-run", "--json", "--generations", "1"]);
    let replies = |estimate: &Value| estimate["replies"].as_u64().expect("a number");
    assert!(0 < replies(&fewer) && replies(&fewer) < replies(&estimate));
    fs::write(folder.join("plain.txt"), "Why is the sky blue?\n\nHow do tides work?\nWho built the first bridge?\n")
        .expect("written");
    let plain = gives(folder, &["evolve", "--dry-run", "--json", "--prompts", "plain.txt"]);
    assert_eq!(plain["prompts"], 3);

    fs::write(folder.join("few.txt"), "Why is the sky blue?\n").expect("written");
    fs::write(folder.join("bad.jsonl"), "{\"id\": \"a\", \"promt\": \"Why?\"}\n").expect("written");
    fs::write(folder.join("task.jsonl"), "{\"id\": \"a\", \"prompt\": \"Why?\", \"task\": \"poem\"}\n")
        .expect("written");
    fs::write(folder.join("none.txt"), "\n").expect("written");
    let with = |args: &[&'static str]| [&["evolve", "--dry-run"], args].concat();
    refuses(folder, &with(&["--prompts", "few.txt"]), 1, "prompts of the task unknown: 1, expected at least 3");
    refuses(folder, &with(&["--prompts", "bad.jsonl"]), 1, "bad.jsonl, line 1");
    refuses(folder, &with(&["--prompts", "task.jsonl"]), 1, "unknown task \"poem\", expected augment");
    refuses(folder, &with(&["--prompts", "none.txt"]), 1, "none.txt has no prompts");
    refuses(folder, &with(&["--hold-out", "0.95"]), 1, "hold_out is 0.95, expected 0 to 0.9");
    refuses(folder, &with(&["--encoder", "off"]), 64, "uniqueness.encoder is off");
    refuses(folder, &with(&["--model", "hub:"]), 64, "--model");
    refuses(folder, &with(&["--minutes=-1"]), 64, "--minutes is out of range");
    refuses(folder, &with(&["--mini-batch", "0"]), 64, "mini-batch");
}
