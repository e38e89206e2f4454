//! The tool as a process: what each subcommand prints, and how it fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use idiolect_miner::app::Miner;
use idiolect_miner::config::{Sources, load};
use idiolect_models::NoProgress;
use serde_json::Value;

const ECHO: [&str; 4] = ["--backend", "echo", "--encoder", "off"];

/// The tool with an environment of its own.
fn tool(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    command.env_clear().env("HOME", dir).current_dir(dir).args(args);
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    tool(dir, args).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn says(dir: &Path, args: &[&str]) -> String {
    let output = run(dir, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn json(dir: &Path, args: &[&str]) -> Value {
    let said = says(dir, args);
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{args:?}: {e}: {said}"))
}

/// Expects a failure of one line that holds each of `words`.
#[track_caller]
fn fails(dir: &Path, args: &[&str], code: i32, words: &[&str]) {
    let output = run(dir, args);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    for word in words {
        assert!(errors.contains(word), "{args:?}: {errors}\nlacks {word:?}");
    }
    if code == 1 {
        assert_eq!(errors.lines().filter(|l| !l.trim().is_empty()).count(), 1, "{errors}");
    }
}

#[test]
fn ask_shows_every_candidate_and_explain_repeats_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let said = says(dir, &[&["ask", "Why is the sky blue?", "--candidates", "3"][..], &ECHO].concat());
    assert!(said.contains("candidate 2") && said.contains("<- sent") && said.contains("the reply:"), "{said}");
    let only = says(dir, &[&["ask", "Say it again", "--reply-only", "--system", "Be brief."][..], &ECHO].concat());
    assert_eq!(only.lines().count(), 1, "{only}");
    let asked = json(dir, &[&["ask", "Why?", "--json"][..], &ECHO].concat());
    assert!(asked["reply"].as_str().is_some_and(|r| r.contains("Why?")), "{asked}");

    let id = asked["provenance"]["id"].as_str().expect("an id").to_owned();
    assert_eq!(json(dir, &["explain", "last", "--json"])["id"], id.as_str());
    assert!(says(dir, &["explain", &id]).contains("<- sent"));
    assert_eq!(json(dir, &["explain", "--list", "2", "--json"]).as_array().map(Vec::len), Some(2));
    assert!(says(dir, &["explain", "--list"]).contains(&id));
    fails(dir, &["explain", "zzz"], 1, &["no reply \"zzz\" is on record", "--list"]);

    assert_eq!(json(dir, &["erase", "--id", &id, "--json"])["erased"], 1);
    fails(dir, &["explain", &id], 1, &["on record"]);
    assert!(says(dir, &["erase", "--all"]).contains("erased 2 replies"));
    fails(dir, &["explain", "last"], 1, &["no reply is on record yet"]);
    fails(dir, &["erase", "--id", &id[..8]], 1, &["the whole id is needed"]);
    fails(dir, &["erase"], 64, &["--all"]);
    fails(dir, &["ask", "  ", "--backend", "echo", "--encoder", "off"], 1, &["the prompt is empty"]);
    for value in ["-5s", "-5", "--json", "-"] {
        let words = [&format!("invalid value '{value}' for '--timeout"), "duration such as"];
        fails(dir, &["ask", "Why?", "--timeout", value], 64, &words);
        fails(dir, &["probe", "127.0.0.1:9", "--timeout", value], 64, &words);
    }
    fails(
        dir,
        &["ask", "Why?", "--pipeline.margin", "-5s"],
        64,
        &["flag --pipeline.margin: pipeline.margin is \"-5s\""],
    );
    fails(dir, &["probe", "127.0.0.1:9", "--seed", "-5"], 64, &["'-5' for '--seed"]);
    fails(dir, &["probe", "127.0.0.1:9", "--logprobs", "-5"], 64, &["'-5' for '--logprobs"]);
    fails(dir, &["erase", "--older-than", "-5"], 64, &["-5", "--older-than"]);
}

#[test]
fn explain_without_a_miner_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a folder");
    fails(dir.path(), &["explain", "last"], 1, &["there is no store at", "--data-dir"]);
}

#[test]
fn config_shows_checks_and_explains() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let shown = says(dir, &["config", "show", "--origin", "--axon.port", "9000"]);
    assert!(
        shown.lines().any(|l| l.split_whitespace().collect::<Vec<_>>() == ["axon.port", "9000", "flag", "--axon.port"]),
        "{shown}"
    );
    let shown = json(dir, &["config", "show", "--json", "--origin", "--preset", "classic-sn11"]);
    assert_eq!(shown["transports.legacy_http"]["origin"], "preset classic-sn11");
    assert_eq!(shown["transports.legacy_http"]["value"], true);
    assert_eq!(shown["candidates.count"]["origin"], "default");
    assert!(!says(dir, &["config", "show", "--hotkey-uri", "//Hidden"]).contains("Hidden"));

    assert!(says(dir, &["config", "init"]).contains(".config/idiolect/miner.toml"));
    fails(dir, &["config", "init"], 1, &["is there already", "--force"]);
    assert!(says(dir, &["config", "check"]).contains("good"));
    let mistyped = tool(dir, &["config", "check"]).env("IDIOLECT_AXON_PROT", "1").output().expect("it runs");
    assert!(text(&mistyped.stdout).contains("IDIOLECT_AXON_PROT sets nothing"), "{}", text(&mistyped.stdout));
    std::fs::write(dir.join(".config/idiolect/miner.toml"), "netuid = \"x\"\n").expect("written");
    fails(dir, &["config", "check"], 64, &["miner.toml:1: netuid"]);
    assert!(says(dir, &["config", "presets", "sn1-apex"]).contains("apex submit"));
    assert_eq!(json(dir, &["config", "presets", "--json"]).as_array().map(Vec::len), Some(6));
    fails(dir, &["config", "presets", "sn7"], 1, &["classic-sn1"]);
    assert!(says(dir, &["config", "reference"]).contains("`axon.port`"));
}

#[test]
fn wallets_are_made_once_and_shown() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let named = ["--wallet.name", "w", "--wallet.hotkey", "h", "--json"];
    let made = json(dir, &[&["wallet", "new"][..], &named].concat());
    assert!(made["file"].as_str().is_some_and(|f| f.ends_with(".bittensor/wallets/w/hotkeys/h")), "{made}");
    assert_eq!(json(dir, &[&["wallet", "show"][..], &named].concat())["hotkey"], made["hotkey"]);
    fails(dir, &["wallet", "new", "--wallet.name", "w", "--wallet.hotkey", "h"], 1, &["already there"]);
    fails(dir, &["wallet", "show"], 1, &["the miner has no key here"]);
    let missing = run(dir, &["wallet", "show", "--wallet.name", "w", "--wallet.hotkey", "nobody"]);
    assert_eq!(text(&missing.stderr).matches("No such file").count(), 1, "{}", text(&missing.stderr));
    let alice = says(dir, &["wallet", "show", "--hotkey-uri", "//Alice"]);
    assert!(alice.starts_with("5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"), "{alice}");
}

#[test]
fn models_are_listed_checked_and_removed() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let listed = json(dir, &["models", "list", "--json"]);
    assert_eq!(listed["models"].as_array().map(Vec::len), Some(0));
    assert!(
        listed["aliases"].as_array().is_some_and(|a| a.iter().any(|alias| alias["name"] == "smollm2-135m")),
        "{listed}"
    );
    assert!(says(dir, &["models", "ls"]).contains("minilm"));
    assert!(says(dir, &["models", "verify"]).contains("no models"));
    fails(dir, &["models", "rm", "smollm2-135m"], 1, &["not in the cache"]);
    fails(dir, &["models", "verify", "smollm2-135m"], 1, &["not in the cache", "models pull"]);
    fails(dir, &["models", "pull", "smollm2-135m", "--models.offline"], 1, &["offline"]);
    fails(dir, &["models", "show", "hub:nobody"], 1, &["hub:ORG/REPO"]);
    fails(dir, &["models", "show", "./nothing.gguf"], 1, &["does not exist"]);
}

#[test]
fn completions_and_manual_pages_are_made() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    for shell in ["bash", "zsh", "fish"] {
        assert!(says(dir, &["completions", shell]).contains("idiolect"));
    }
    assert!(says(dir, &["completions", "bash", "--miner"]).contains("idiolect-miner"));
    assert!(says(dir, &["man"]).starts_with(".ie"));
    says(dir, &["man", "--dir", "man"]);
    assert!(dir.join("man/idiolect-ask.1").exists());
    fails(dir, &["completions", "cobol"], 64, &["bash"]);
}

#[tokio::test]
async fn probe_asks_a_miner_in_every_way() {
    let dir = tempfile::tempdir().expect("a folder");
    let data_dir = dir.path().join("data").display().to_string();
    let values = [
        ("backend", "echo"),
        ("uniqueness.encoder", "off"),
        ("axon.port", "0"),
        ("metrics.addr", "off"),
        ("data_dir", &data_dir),
    ];
    let flags = values.map(|(k, v)| (k.to_owned(), k.to_owned(), vec![v.to_owned()])).to_vec();
    let config = load(&Sources { flags, ..Sources::default() }).expect("settings").config;
    let miner = Miner::start(&config, &BTreeMap::new(), &NoProgress).await.unwrap_or_else(|e| panic!("{e:#}"));
    let (address, hotkey) = (miner.address().to_string(), miner.hotkey().to_string());
    let home = dir.path().to_path_buf();
    tokio::task::spawn_blocking(move || {
        for via in ["grpc", "http", "stream", "epistula", "btauth"] {
            let args = [
                "probe",
                &address,
                "--hotkey",
                &hotkey,
                "--via",
                via,
                "--message",
                "Say these words",
                "--data-dir",
                &data_dir,
                "--json",
            ];
            let reply = json(&home, &args);
            assert_eq!((reply["ok"].as_bool(), reply["status"].as_u64()), (Some(true), Some(200)), "{reply}");
            assert!(reply["completion"].as_str().is_some_and(|c| c.contains("words")), "{reply}");
        }
        let said = says(&home, &["probe", &address, "--hotkey", &hotkey, "--data-dir", &data_dir]);
        assert!(said.contains("status    200 Success") && said.contains("signed by"), "{said}");
        // A stranger is not let in, and is told what to do.
        let ask = |synapse: &'static str| {
            ["probe", &address, "--hotkey", &hotkey, "--data-dir", &data_dir, "--via", "http", "--synapse", synapse]
        };
        let said = says(&home, &ask("Synapse"));
        assert!(said.contains("it is there"), "{said}");
        let said = says(&home, &[&ask("AvailabilitySynapse")[..], &["--task", "InferenceTask"]].concat());
        assert!(said.contains("task InferenceTask: "), "{said}");
        fails(&home, &["probe", &address, "--hotkey", &hotkey], 1, &["did not answer over http", "--blacklist.allow"]);
        let other = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
        fails(&home, &["probe", &address, "--hotkey", other, "--data-dir", &data_dir], 1, &["--hotkey"]);
        fails(&home, &["probe", "127.0.0.1:9", "--hotkey", &hotkey, "--via", "grpc"], 1, &["is it running"]);
        // What another way would heed is not passed over.
        for (args, words) in [
            (
                &["--via", "http", "--seed", "7"][..],
                "--seed counts for nothing with --via http; it is for --via epistula or btauth",
            ),
            (&["--via", "grpc", "--logprobs", "2"], "--logprobs counts for nothing with --via grpc"),
            (
                &["--via", "btauth", "--task", "T"],
                "--task counts for nothing with --via btauth; it is for --via epistula",
            ),
            (&["--via", "stream", "--model", "m"], "--model counts for nothing with --via stream"),
            (&["--via", "epistula", "--synapse", "S"], "--synapse counts for nothing with --via epistula"),
            (
                &["--synapse", "Synapse", "--message", "x"],
                "--message counts for nothing with --via http --synapse Synapse",
            ),
            (
                &["--via", "stream", "--synapse", "Synapse"],
                "--synapse Synapse is not for --via stream, expected --via http",
            ),
        ] {
            fails(&home, &[&["probe", &address, "--hotkey", &hotkey][..], args].concat(), 64, &[words]);
        }
        fails(&home, &["probe", "nowhere", "--hotkey", &hotkey], 1, &["HOST:PORT"]);
        fails(&home, &["probe", &address, "--hotkey", "5nokey"], 64, &["5nokey"]);
        fails(&home, &["probe", &address, "--hotkey", &hotkey, "--via", "pigeon"], 64, &["grpc"]);
    })
    .await
    .expect("no panic");
    miner.stop().await.unwrap_or_else(|e| panic!("{e:#}"));
}
