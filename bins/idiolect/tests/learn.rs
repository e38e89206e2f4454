//! `idiolect mutate learn` as a process, with the real encoder, and what the miner makes of what it writes.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use support::{gives, refuses, says};

const THINGS: [&str; 16] = [
    "bread", "rain", "glass", "paper", "wool", "salt", "honey", "steel", "cheese", "ink", "rope", "soap", "sugar",
    "tea", "coal", "chalk",
];

/// Most models answer in the same few words; three tell a tale, each its own one.
fn write_record(folder: &Path) {
    let (mut replies, mut prompts) = (String::new(), String::new());
    for (nth, thing) in THINGS.into_iter().enumerate() {
        writeln!(prompts, "{}", json!({"id": nth.to_string(), "prompt": format!("Where does {thing} come from?")}))
            .expect("memory");
        for model in 0..12 {
            let text = match model {
                0 => format!(
                    "I once met an old woman who swore that {thing} was a gift of the moon, and she may have been right, for all I know."
                ),
                1 => format!(
                    "Picture a harbour at dawn, where I unloaded {thing} crate by crate with my brothers while the gulls laughed at us."
                ),
                2 => format!(
                    "My grandmother kept {thing} in a locked drawer; I never asked her where she had it from, and now I wish that I had."
                ),
                _ => {
                    format!("{thing} is made from natural raw materials in several steps{}", [".", " ", "!"][model % 3])
                }
            };
            writeln!(replies, "{}", json!({"p": nth.to_string(), "m": format!("m{model}"), "t": text}))
                .expect("memory");
        }
    }
    fs::write(folder.join("replies.jsonl"), replies).expect("a file");
    fs::write(folder.join("prompts.jsonl"), prompts).expect("a file");
}

fn learn<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let of_record =
        ["learn", "--replies", "replies.jsonl", "--prompts", "prompts.jsonl", "--encoder", "minilm", "--gate", "same"];
    [&of_record, args].concat()
}

fn ask(folder: &Path, learnt: &str, encoder: &str) -> Output {
    let args =
        ["ask", "Where does tea come from?", "--backend", "echo", "--candidates", "3", "--json", "--encoder", encoder];
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    command.env("XDG_CONFIG_HOME", folder).current_dir(folder).args(args);
    command.args(["--data-dir", "data", "--uniqueness.distinctiveness", learnt]).output().expect("it runs")
}

#[test]
fn what_is_learnt_counts_in_the_miners_choice() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write_record(folder);
    let told = gives(folder, &learn(&["--out", "learnt.json", "--embeddings", "kept", "--json"]));
    assert_eq!((told["n_prompts"].as_u64(), told["n_replies"].as_u64()), (Some(16), Some(192)));
    let number = |key: &str| told[key].as_f64().unwrap_or_else(|| panic!("no {key} in {told}"));
    assert!(number("slope") > 0.0 && number("brier_with") < number("brier_without"), "{told}");
    assert!(
        number("masked_with") <= number("masked_without") && number("masked_with") < number("masked_random"),
        "{told}"
    );
    let range = [0, 1].map(|end| told["slope_range"][end].as_f64().expect("a slope"));
    assert!(range[0] < number("slope") * 1.2 && number("slope") < range[1] * 1.2, "{told}");
    assert!(range[0] <= range[1] && number("n_candidates") > 200.0, "{told}");

    let first = fs::read_to_string(folder.join("learnt.json")).expect("what was learnt");
    let shown = says(folder, &learn(&["--out", "again.json", "--embeddings", "kept"]));
    assert_eq!(fs::read_to_string(folder.join("again.json")).expect("what was learnt"), first, "the same again");
    for part in [
        "learnt from 192 replies to 16 prompts, by all-MiniLM-L6-v2",
        "slope ",
        "masked of ",
        "Brier score of ",
        "uniqueness.distinctiveness = \"again.json\"",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }

    let answer = ask(folder, "learnt.json", "minilm");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let answer: Value = serde_json::from_slice(&answer.stdout).expect("JSON");
    let candidates = answer["provenance"]["candidates"].as_array().expect("candidates");
    let told: Vec<f64> =
        candidates.iter().map(|c| c["score"]["distinctiveness"].as_f64().expect("what it taught")).collect();
    assert!(told.len() == 3 && told.iter().all(|told| told.abs() <= 3.0), "{told:?}");
    assert!(told.iter().any(|told| *told > 0.1) && told.iter().any(|told| *told < -0.1), "{told:?}");

    // The choice among recorded replies that is like it.
    let args = ["eval", "--replies", "replies.jsonl", "--prompts", "prompts.jsonl", "--own", "m0,m3", "--visible", "0"];
    let of_selector = [
        &args[..],
        &[
            "--encoder",
            "minilm",
            "--arms",
            "selector",
            "--json",
            "--embeddings",
            "kept",
            "--taught",
            "--uniqueness.quality_model",
            "off",
        ],
    ]
    .concat();
    let eval = gives(folder, &of_selector);
    assert_eq!(eval[0]["arms"][0]["masked"]["value"].as_f64(), Some(0.0), "the tale is unlike all others: {eval}");
}

#[test]
fn what_cannot_be_learnt_from_or_used_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write_record(folder);
    refuses(folder, &learn(&["--out", "no/such/learnt.json"]), 64, "--out: there is no folder no/such");
    refuses(folder, &["learn", "--replies", "none.jsonl", "--out", "x"], 1, "cannot use none.jsonl");
    refuses(
        folder,
        &["learn", "--replies", "replies.jsonl", "--out", "x", "--encoder", "off"],
        64,
        "uniqueness.encoder is off",
    );
    let few: String = fs::read_to_string(folder.join("replies.jsonl"))
        .expect("replies")
        .lines()
        .take(12)
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(folder.join("few.jsonl"), few).expect("a file");
    refuses(
        folder,
        &["learn", "--replies", "few.jsonl", "--out", "x", "--encoder", "minilm", "--gate", "same"],
        1,
        "more prompts, or more models",
    );
    assert!(!folder.join("x").exists(), "nothing is written");

    let says = |learnt: &str, encoder: &str, expected: &str| {
        let output = ask(folder, learnt, encoder);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(expected), "{expected} in {said}");
    };
    fs::write(folder.join("other.json"), "{\"version\": 9}").expect("a file");
    says("other.json", "minilm", "uniqueness.distinctiveness: cannot use other.json");
    says("missing.json", "minilm", "missing.json");
    says("other.json", "off", "uniqueness.distinctiveness is other.json, but uniqueness.encoder is off");
}
