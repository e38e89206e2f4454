//! The binary as a process: exit codes, messages, ready file, signals.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The miner with an environment of its own, the echo backend and a free port, which flags may change.
fn miner(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect-miner"));
    command.env_clear().env("HOME", dir).current_dir(dir);
    command.env("IDIOLECT_BACKEND", "echo").env("IDIOLECT_UNIQUENESS_ENCODER", "off");
    command.env("IDIOLECT_CANDIDATES_COUNT", "4").env("IDIOLECT_MUTATION_RECIPES", "2");
    command.env("IDIOLECT_AXON_PORT", "0").env("IDIOLECT_METRICS_ADDR", "off");
    command.arg("--data-dir").arg(dir.join("data"));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Expects an exit code and a message on standard error that holds each of `words`, in one line that starts with `error: `.
fn fails(output: &Output, code: i32, words: &[&str]) {
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    for word in words {
        assert!(errors.contains(word), "{errors}\nlacks {word:?}");
    }
}

#[test]
fn once_asks_itself_and_ends_with_zero() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = || miner(dir.path()).args(["--once", "--ready-file", "ready.json"]).output().expect("it runs");
    let output = run();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", text(&output.stderr));
    for words in [
        "made now",
        "loopback only",
        "over gRPC: 200 Success",
        "over HTTP: 200 Success",
        "candidate 3",
        "<- sent",
        "quality",
    ] {
        assert!(said.contains(words), "{said}\nlacks {words:?}");
    }
    let ready: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("ready.json")).expect("a ready file")).expect("JSON");
    let hotkey = ready["hotkey"].as_str().expect("a hotkey");
    assert!(ready["axon"].as_str().is_some_and(|a| a.starts_with("127.0.0.1:")), "{ready}");
    assert_eq!(ready["models"], serde_json::json!(["echo"]));
    assert!(said.contains(hotkey));
    let again = text(&run().stdout);
    assert!(again.contains(hotkey) && !again.contains("made now"), "the key is made once: {again}");
}

/// A running miner that is killed when a test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    let (_open, pause) = std::sync::mpsc::channel::<()>();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited too long for {what}");
        let _ = pause.recv_timeout(Duration::from_millis(10));
    }
}

#[cfg(unix)]
#[test]
fn signals_stop_it_with_zero() {
    for signal in ["TERM", "INT"] {
        let dir = tempfile::tempdir().expect("a folder");
        let ready = dir.path().join("ready.json");
        let mut command = miner(dir.path());
        command
            .arg("--ready-file")
            .arg(&ready)
            .args(["--log-format", "json"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut running = Running(command.spawn().expect("it starts"));
        wait("the ready file", || ready.exists());
        let sent =
            Command::new("kill").arg(format!("-{signal}")).arg(running.0.id().to_string()).status().expect("kill");
        assert!(sent.success());
        let mut status = None;
        wait("the end", || {
            status = running.0.try_wait().expect("a status");
            status.is_some()
        });
        let mut logs = String::new();
        running.0.stderr.take().expect("piped").read_to_string(&mut logs).expect("text");
        assert_eq!(status.and_then(|s| s.code()), Some(0), "{logs}");
        for line in logs.lines() {
            serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }
}

#[test]
fn usage_errors_are_64() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = |args: &[&str]| miner(dir.path()).args(args).arg("--once").output().expect("it runs");
    fails(&run(&["--axon.prot", "1"]), 64, &["--axon.prot", "axon.port"]);
    fails(
        &run(&["--candidates", "many"]),
        64,
        &["flag --candidates: candidates.count is \"many\", expected whole number"],
    );
    fails(&run(&["--network", "finney"]), 64, &["network is finney", "cannot reach a chain", "file:PATH"]);
    fails(&run(&["--preset", "sn1-apex"]), 64, &["information only", "apex submit"]);
    fails(&run(&["--preset", "classic-sn1", "--network", "finney"]), 64, &["historic"]);
    fails(&run(&["--axon.ip", "0.0.0.0"]), 64, &["loopback"]);
    fails(&run(&["--encoder", "bert"]), 64, &["bert", "minilm or mpnet or openai or off"]);
    fails(&run(&["--uniqueness.device", "gpu"]), 64, &["uniqueness.device is gpu, expected cpu, cuda"]);
    fails(&run(&["--backend", "candle", "--model", "hub:nobody"]), 64, &["hub:ORG/REPO"]);
    fails(&run(&["--hotkey-uri", "//Alice", "--wallet.name", "w"]), 64, &["expected one of"]);
    std::fs::write(dir.path().join("gate.toml"), "extends = \"text-prompting-2.1\"\n[gate]\npass_over = 0.5\n")
        .expect("written");
    fails(
        &run(&["--uniqueness.profile", "gate.toml"]),
        64,
        &["flag --uniqueness.profile: uniqueness.profile: profile gate.toml: line 3: gate.pass_over: unknown field"],
    );
}

#[test]
fn quantities_below_zero_are_refused_by_the_name_of_their_setting() {
    let dir = tempfile::tempdir().expect("a folder");
    let refuses = |flag: &str, value: &str, words: &[&str]| {
        let output = miner(dir.path()).args([flag, value, "--once"]).output().expect("it runs");
        fails(&output, 64, words);
        let errors = text(&output.stderr);
        assert!(errors.starts_with(&format!("error: flag {flag}: ")) && !errors.contains("unexpected"), "{errors}");
    };
    for (flag, key) in [
        ("--axon.max_client_timeout", "axon.max_client_timeout"),
        ("--axon.body_timeout", "axon.body_timeout"),
        ("--pipeline.margin", "pipeline.margin"),
    ] {
        for value in ["-5s", "-0.5", "-1h", "-s", "--", "-inf"] {
            refuses(flag, value, &[&format!("{key} is \"{value}\", expected a duration such as 10s, 250ms")]);
        }
    }
    for value in ["-1MiB", "-1"] {
        refuses("--axon.max_body", value, &[&format!("axon.max_body is \"{value}\", expected a size such as 64KiB")]);
    }
    refuses("--candidates", "-1", &["candidates.count is -1, expected"]);
    refuses("--candidates", "-1x", &["candidates.count is \"-1x\", expected whole number"]);
    refuses("--sampling.temperature", "-1e", &["sampling.temperature is \"-1e\", expected number"]);
    // A flag that lost its value does not swallow the next one in silence.
    refuses("--pipeline.cap", "--once", &["pipeline.cap is \"--once\", expected a duration"]);
    // Texts are still told from flags.
    let output = miner(dir.path()).args(["--wallet.name", "--once"]).output().expect("it runs");
    fails(&output, 64, &["--wallet.name"]);
}

#[test]
fn a_bad_file_is_reported_whole_with_lines() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("miner.toml"), "netuid = true\n[axon]\nprot = 1\nmax_body = \"lots\"\n")
        .expect("written");
    let output = miner(dir.path()).args(["--config", "miner.toml"]).output().expect("it runs");
    fails(
        &output,
        64,
        &[
            "3 values are wrong",
            "miner.toml:1: netuid is true",
            "miner.toml:3: unknown key axon.prot, did you mean axon.port?",
            "miner.toml:4: axon.max_body",
        ],
    );
    std::fs::write(dir.path().join("miner.toml"), "[axon\n").expect("written");
    fails(&miner(dir.path()).args(["--config", "miner.toml"]).output().expect("it runs"), 64, &["miner.toml:1: "]);
    std::fs::write(dir.path().join("miner.toml"), b"netuid = 1\n# \xff\n").expect("written");
    let output = miner(dir.path()).args(["--config", "miner.toml"]).output().expect("it runs");
    fails(&output, 64, &["miner.toml:2: this is no UTF-8 text"]);
    fails(&miner(dir.path()).args(["--config", "nowhere.toml"]).output().expect("it runs"), 64, &["nowhere.toml"]);
}

#[test]
fn failures_are_one_line_and_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let run = |args: &[&str]| miner(dir.path()).args(args).arg("--once").output().expect("it runs");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let occupied = run(&["--axon.port", &port]);
    fails(&occupied, 1, &["error: cannot listen on 127.0.0.1", "another program uses this port", "axon.port"]);
    assert_eq!(text(&occupied.stderr).lines().count(), 1, "{}", text(&occupied.stderr));

    let wallet = dir.path().join("wallets/w/hotkeys");
    std::fs::create_dir_all(&wallet).expect("made");
    std::fs::write(wallet.join("h"), "$NACL of old").expect("written");
    let path = dir.path().join("wallets").display().to_string();
    fails(&run(&["--wallet.name", "w", "--wallet.hotkey", "h", "--wallet.path", &path]), 1, &["wallets/w/hotkeys/h"]);
    fails(
        &run(&["--wallet.name", "w", "--wallet.hotkey", "x", "--wallet.path", &path]),
        1,
        &["wallets/w/hotkeys/x", "--wallet.hotkey"],
    );
    fails(&run(&["--hotkey-uri", "no secret at all"]), 1, &["hotkey-uri"]);
    fails(&run(&["--network", "file:nowhere.json", "--hotkey-uri", "//Alice"]), 1, &["nowhere.json"]);
    fails(&run(&["--ready-file", "no/such/folder/ready.json"]), 1, &["no/such/folder/ready.json"]);
}

#[test]
fn help_and_version_are_no_failure() {
    let dir = tempfile::tempdir().expect("a folder");
    for (flag, words) in [("-h", "--network"), ("--help", "--sampling.min_p"), ("--version", env!("CARGO_PKG_VERSION"))]
    {
        let output = miner(dir.path()).arg(flag).output().expect("it runs");
        assert!(output.status.success());
        assert!(text(&output.stdout).contains(words), "{flag}: {}", text(&output.stdout));
    }
    let short = text(&miner(dir.path()).arg("-h").output().expect("it runs").stdout);
    assert!(!short.contains("min_p"), "-h is the short list");
}
