//! `idiolect arena run` as a process, with the real encoder and the real reward model.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use idiolect_validator::task::{ContentMatch, Criterion, TaskKind, text_prompting};
use serde_json::{Value, json};

fn arena(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    command
        .env("XDG_CONFIG_HOME", folder)
        .args(["arena", "run"])
        .args(args)
        .current_dir(folder)
        .output()
        .expect("it runs")
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

const QUESTIONS: [(&str, &str); 3] = [
    ("Why is the sky blue?", "The sky is blue because air scatters short wavelengths of sunlight more than long ones."),
    ("Why do leaves fall?", "Leaves fall in autumn because trees seal them off to save water when days get short."),
    (
        "Why does bread rise?",
        "Bread rises because yeast eats sugar and gives off carbon dioxide, which the dough traps.",
    ),
];

/// Four models that say nearly the same, one that talks of its own garden, and us.
fn write(folder: &Path) {
    let (mut population, mut prompts, mut ours) = (String::new(), String::new(), String::new());
    for (nth, (question, usual)) in QUESTIONS.into_iter().enumerate() {
        let task = text_prompting::Task {
            kind: TaskKind::Answer,
            base_text: question.to_owned(),
            criteria: vec![Criterion::Words {
                place: ContentMatch::Includes,
                negated: true,
                words: vec!["garden".to_owned()],
            }],
        };
        let prompt = if nth == 0 { task.compose() } else { question.to_owned() };
        writeln!(prompts, "{}", json!({"id": nth, "prompt": prompt})).expect("memory");
        for model in ["m1", "m2", "m3", "m4"] {
            let text = format!("{usual} {}", ["", "Indeed.", "That is all.", "So it is."][model.len() + nth - 2]);
            writeln!(population, "{}", json!({"p": nth, "m": model, "t": text, "q": 0.5})).expect("memory");
        }
        let garden = format!(
            "My garden taught me {nth} things, and patience is the one that my neighbour, who paints boats, envies most."
        );
        writeln!(population, "{}", json!({"p": nth, "m": "gardener", "t": garden})).expect("memory");
        writeln!(ours, "{}", json!({"p": nth, "m": "ours", "t": format!("A riddle: who counts clouds on day {nth} and sells umbrellas to fish? Nobody knows.")})).expect("memory");
        writeln!(ours, "{}", json!({"p": nth, "m": "copycat", "t": usual})).expect("memory");
    }
    let population_at = folder.join("population");
    fs::create_dir_all(&population_at).expect("a folder");
    fs::write(population_at.join("replies.jsonl"), population).expect("a file");
    fs::write(population_at.join("prompts.jsonl"), prompts).expect("a file");
    fs::write(folder.join("ours.jsonl"), ours).expect("a file");
}

const COMMON: [&str; 8] =
    ["--population", "population", "--encoder", "minilm", "--embeddings", "kept", "--uniqueness.quality_model", "off"];

#[test]
fn who_says_what_everybody_says_is_masked_and_comes_last() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write(folder);
    let args = [&COMMON[..], &["--contestant", "ours.jsonl", "--steps", "6", "--json"]].concat();
    let found = gives(folder, &[&args[..], &["--verbose"]].concat());
    assert_eq!(
        (found["n_models"].as_u64(), found["n_prompts"].as_u64(), found["quality"].as_str()),
        (Some(5), Some(3), None)
    );
    let standings = found["standings"].as_array().expect("standings");
    let names: Vec<&str> = standings.iter().map(|s| s["name"].as_str().expect("a name")).collect();
    assert_eq!(names[..3], ["copycat", "ours", "gardener"], "contestants first, then the best of the population");
    let of = |name: &str, figure: &str| {
        let standing = standings.iter().find(|s| s["name"] == name).expect("it stands");
        standing[figure].as_f64().unwrap_or_else(|| panic!("no {figure} in {standing}"))
    };
    assert_eq!((of("ours", "masked_share"), of("copycat", "masked_share"), of("m1", "masked_share")), (0.0, 1.0, 1.0));
    // With us the gardener passes, too, but one prompt in three has a criterion that it breaks.
    assert!(of("ours", "place_mean") < 1.5 && of("copycat", "place_mean") > 3.0);
    assert!(
        of("gardener", "mean_penalties") > 0.1
            && of("gardener", "mean_reward") < 1.0
            && of("ours", "mean_reward") == 1.0
    );
    assert!((of("gardener", "weight_share") - 1.0).abs() < 1e-6, "nobody else of the population earns anything");
    assert!((of("m1", "mean_label") - 0.5).abs() < 1e-6 && of("ours", "place_p05") <= of("ours", "place_p95"));
    let steps = found["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 18, "the population alone, and with each contestant");
    assert_eq!(steps[1]["contestant"], "copycat");
    let places: f64 =
        steps[2]["members"].as_array().expect("members").iter().map(|m| m["place"].as_f64().expect("a place")).sum();
    assert_eq!(places, 21.0, "six members");
    assert!(found["standings"][0]["intervals"]["place_mean"]["low"].is_f64());

    assert_eq!(gives(folder, &args)["standings"], found["standings"], "the same again, from what was kept");
    let cloned = gives(folder, &[&args[..], &["--clones", "1"]].concat());
    assert_eq!(cloned["standings"][1]["masked_share"].as_f64(), Some(1.0), "a copy masks");
    let table = says(folder, &[&COMMON[..], &["--contestant", "ours.jsonl"]].concat());
    assert!(table.starts_with("3 steps with batches of 50 from 5 models, 3 prompts, text-prompting-2.1, all-MiniLM-L6-v2, quality 1 for all"), "{table}");
    assert!(table.contains("> ours  ") && table.contains("  gardener"), "{table}");
}

#[test]
fn quality_is_the_reward_models_word() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write(folder);
    let found =
        gives(folder, &["--population", "population", "--encoder", "minilm", "--contestant", "ours.jsonl", "--json"]);
    assert_eq!(found["quality"], "smollm2-135m");
    let quality = |name: &str| {
        let all = found["standings"].as_array().expect("standings");
        all.iter().find(|s| s["name"] == name).and_then(|s| s["mean_quality"].as_f64()).expect("a quality")
    };
    assert!(quality("copycat") > quality("ours") + 0.2, "everyday words are likelier than riddles");
}

#[test]
fn a_configuration_is_asked_once_and_its_replies_are_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write(folder);
    let config = "[[backends]]\nname = \"e\"\nkind = \"echo\"\n[uniqueness]\nencoder = \"off\"\n";
    fs::write(folder.join("parrot.toml"), config).expect("a file");
    let args = [&COMMON[..], &["--contestant", "parrot.toml", "--clones", "1", "--json"]].concat();
    let found = gives(folder, &args);
    let first = &found["standings"][0];
    assert_eq!(
        (first["name"].as_str(), first["steps"].as_u64(), first["failed_share"].as_f64()),
        (Some("parrot"), Some(3), Some(0.0))
    );
    let kept = || {
        let files = fs::read_dir(folder.join("kept")).expect("a folder").map(|file| file.expect("a file").path());
        files.filter(|path| path.to_string_lossy().ends_with(".replies.jsonl")).collect::<Vec<PathBuf>>()
    };
    let [file] = &kept()[..] else { panic!("{:?}", kept()) };
    let lines = fs::read_to_string(file).expect("replies");
    let models: Vec<String> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["m"].to_string()).collect();
    assert_eq!(models, ["\"parrot\"", "\"parrot\"", "\"parrot\"", "\"parrot#1\"", "\"parrot#1\"", "\"parrot#1\""]);

    // A run that broke off goes on: only what is missing is asked.
    let cut: String =
        lines.lines().take(2).map(|line| format!("{}\n", line.replace("\"t\":\"", "\"t\":\"Kept: "))).collect();
    fs::write(file, &cut).expect("written");
    assert_eq!(gives(folder, &args)["n_prompts"].as_u64(), Some(3));
    let resumed = fs::read_to_string(file).expect("replies");
    assert!(resumed.starts_with(&cut) && resumed.lines().count() == 6, "{resumed}");
    // Another configuration is another miner.
    fs::write(folder.join("parrot.toml"), format!("{config}profile = \"openvalidators-1.2\"\n")).expect("a file");
    gives(folder, &args);
    assert_eq!(kept().len(), 2);

    refuses(
        folder,
        &["--population", "population/replies.jsonl", "--contestant", "parrot.toml"],
        64,
        "expected --prompts",
    );
    fs::write(folder.join("wrong.toml"), "no_such = 1\n").expect("a file");
    refuses(folder, &[&COMMON[..], &["--contestant", "wrong.toml"]].concat(), 64, "no_such");
}

/// The figures of the recorded population that a checkout may have beside it.
#[test]
fn recorded_diversity_is_recomputed() {
    let Some(arena_at) = std::env::var_os("IDIOLECT_ARENA").map(PathBuf::from) else {
        writeln!(std::io::stderr(), "skipped: IDIOLECT_ARENA names no recorded population").expect("stderr");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    let recorded: Value =
        serde_json::from_str(&fs::read_to_string(arena_at.join("diversity_minilm.json")).expect("figures"))
            .expect("JSON");
    let prompts = recorded["prompts"].as_object().expect("prompts");
    let wanted: Vec<&String> = prompts.keys().take(3).collect();
    let packed = fs::File::open(arena_at.join("replies.jsonl.zst")).expect("replies");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut ruzstd::decoding::StreamingDecoder::new(packed).expect("zstd"), &mut text)
        .expect("text");
    let mut some = String::new();
    for line in text.lines() {
        let reply: Value = serde_json::from_str(line).expect("JSON");
        if wanted.iter().any(|id| reply["p"] == **id) {
            writeln!(some, "{line}").expect("memory");
        }
    }
    fs::write(folder.join("some.jsonl"), some).expect("a file");
    let found = gives(folder, &["--population", "some.jsonl", "--encoder", "minilm", "--json"]);
    let standings = found["standings"].as_array().expect("standings");
    assert_eq!(standings.len(), 40);
    for standing in standings {
        let rows = wanted.iter().flat_map(|id| recorded["prompts"][id.as_str()].as_array().expect("rows"));
        let own: Vec<f64> =
            rows.filter(|row| row[0] == standing["name"]).map(|row| row[4].as_f64().expect("a reward")).collect();
        let mean = own.iter().sum::<f64>() / own.len() as f64;
        let masked = own.iter().filter(|reward| **reward <= 0.2).count() as f64 / own.len() as f64;
        let off = |figure: &str, expected: f64| (standing[figure].as_f64().expect("a figure") - expected).abs();
        assert!(
            off("mean_batch_reward", mean) < 1e-3 && off("masked_share", masked) < 1e-3,
            "{standing}, {mean} {masked}"
        );
    }
}

#[test]
fn what_cannot_be_played_is_refused_before_anything_is_encoded() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    write(folder);
    let of = |more: &[&'static str]| [&["--population", "population"], more].concat();
    refuses(folder, &["--population", "nowhere"], 1, "cannot use nowhere");
    fs::create_dir(folder.join("empty")).expect("a folder");
    refuses(
        folder,
        &["--population", "empty"],
        64,
        "--population: empty has neither replies.jsonl nor replies.jsonl.zst",
    );
    refuses(folder, &of(&["--contestant", "none.jsonl"]), 1, "--contestant none.jsonl");
    refuses(
        folder,
        &of(&["--contestant", "population/replies.jsonl"]),
        64,
        "gardener is in the population, too, expected a name of its own",
    );
    refuses(folder, &of(&["--batch", "1"]), 64, "'1'");
    refuses(folder, &of(&["--batch", "4", "--clones", "3"]), 1, "3 clones in a batch of 4, expected at most 2");
    refuses(folder, &of(&["--encoder", "off"]), 64, "uniqueness.encoder is off");
    refuses(folder, &of(&["--profile", "none"]), 64, "--profile");
    refuses(folder, &of(&["--verbose"]), 64, "--json");
    fs::write(folder.join("ours.jsonl"), "{\"p\": \"elsewhere\", \"m\": \"ours\", \"t\": \"x\"}\n").expect("a file");
    refuses(
        folder,
        &of(&["--contestant", "ours.jsonl"]),
        1,
        "there is no prompt that all of ours and 1 other model answer",
    );
    assert!(!folder.join("kept").exists());
}
