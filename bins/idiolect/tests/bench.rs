//! `idiolect bench` as a process, on the default model and beside a server.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// The tool with the environment of the tests, where models are found.
fn bench(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_idiolect")).arg("bench").args(args).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn says(args: &[&str]) -> String {
    let output = bench(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[track_caller]
fn fails(args: &[&str], code: i32, words: &[&str]) {
    let output = bench(args);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
    for word in words {
        assert!(errors.contains(word), "{args:?}: {errors}\nlacks {word:?}");
    }
    if code == 1 {
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}

const SMALL: [&str; 8] = ["--prompt-tokens", "64", "--new-tokens", "4", "--repeat", "1", "--threads", "1"];

#[test]
fn what_makes_no_sense_is_refused() {
    fails(&["-n", "0"], 64, &["1..=64"]);
    fails(&["-n", "1,x"], 64, &["x"]);
    fails(&["-n", "65"], 64, &["65"]);
    fails(&["--prompt-tokens", "5"], 64, &["5"]);
    fails(&["--new-tokens", "1"], 64, &["1"]);
    fails(&["--threads", "0"], 64, &["--threads"]);
    fails(&["--repeat", "0"], 64, &["0"]);
    fails(&["--against-model", "m"], 64, &["--against"]);
    fails(&["--against-flavour", "vllm"], 64, &["--against"]);
    fails(&["--against", "http://127.0.0.1:9/v1", "--against-flavour", "gpt"], 64, &["gpt", "llamacpp"]);
    fails(&["--threads", "5000", "-n", "1"], 1, &["threads is 5000, expected 1 to 1024"]);
    fails(&["--kv-type", "q4_0"], 64, &["q4_0", "f32, f16, bf16, q8_0"]);
    fails(&["--quantize", "int8"], 64, &["int8", "q4_0", "q8_0"]);
    fails(&["--model", "no-such-model"], 1, &["unknown model \"no-such-model\""]);
    fails(&["--against", "no address"], 1, &["--against no address"]);
    fails(&["--device", "abacus", "-n", "1"], 1, &["abacus"]);
    // The default model has a context of 8192 tokens.
    fails(&["--prompt-tokens", "9000", "-n", "1"], 1, &["9000", "8192"]);
}

#[test]
fn rows_and_limits_are_told_as_json() {
    let formats = ["--kv-type", "q8_0", "--quantize", "q8_0"];
    let said = says(&[&SMALL[..], &formats, &["-n", "1,3", "--limits", "--json"]].concat());
    let told: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert_eq!((told["model"].as_str(), told["threads"].as_u64()), (Some("smollm2-135m"), Some(1)));
    assert_eq!((told["kv_type"].as_str(), told["quantize"].as_str()), (Some("q8_0"), Some("q8_0")));
    assert!(told["load_s"].as_f64().is_some_and(|s| s > 0.0 && s < 60.0), "{told}");
    let rows = told["rows"].as_array().expect("rows");
    assert_eq!(rows.iter().map(|row| row["n"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(3)]);
    for row in rows {
        assert!(row["prompt_tokens"].as_u64().is_some_and(|n| n.abs_diff(64) <= 1), "{row}");
        assert_eq!(row["completion_tokens"].as_u64(), row["n"].as_u64().map(|n| 4 * n), "{row}");
        for key in ["prefill_tok_s", "decode_tok_s", "best_of_n_tok_s"] {
            assert!(row[key].as_f64().is_some_and(|rate| rate > 0.0), "{key} in {row}");
        }
        for key in ["sampling_share", "top_p_sampling_share"] {
            assert!(row[key].as_f64().is_some_and(|share| share > 0.0 && share < 0.9), "{key} in {row}");
        }
        if cfg!(target_os = "linux") {
            assert!(row["peak_rss_mb"].as_f64().is_some_and(|mb| mb > 50.0), "{row}");
        }
        let share = &row["share_of_limit"]["decode"];
        assert!(share["share"].as_f64().is_some_and(|s| s > 0.0) && share["binds"].is_string(), "{row}");
    }
    for limit in ["memory_gb_s", "cache_gb_s", "int8_gmac_s", "f32_gmac_s"] {
        assert!(told["limits"][limit]["one_thread"].as_f64().is_some_and(|v| v > 0.0), "{told}");
    }
    assert_eq!((told.get("against"), told["timed_by"].as_str()), (None, Some("engine")));
}

#[test]
fn a_server_does_the_same_work_and_the_ratio_is_told() {
    let url = server();
    let args = [&SMALL[..], &["-n", "2", "--against", &url]].concat();
    let told: Value = serde_json::from_str(&says(&[&args[..], &["--json"]].concat())).expect("JSON");
    assert_eq!(told["limits"], Value::Null);
    let row = &told["against"]["rows"][0];
    // The server counts the first choice only; what counts is what came.
    assert_eq!((row["n"].as_u64(), row["completion_tokens"].as_u64()), (Some(2), Some(8)), "{told}");
    assert!(row["best_of_n_tok_s"].as_f64().is_some_and(|rate| rate > 0.0), "{told}");
    // Both are timed alike.
    assert_eq!(told["timed_by"].as_str(), Some("texts"), "{told}");
    for (key, figure) in [("prefill", "prefill_tok_s"), ("decode", "decode_tok_s"), ("best_of_n", "best_of_n_tok_s")] {
        let ratio = told["rows"][0][figure].as_f64().expect("ours") / row[figure].as_f64().expect("theirs");
        let said = row["ratio"][key].as_f64().expect("a ratio");
        let allowed = if key == "best_of_n" { 0.02 } else { 0.01 * ratio.max(1.0) };
        assert!((said - ratio).abs() < allowed, "{key} {said}, expected {ratio}: {told}");
    }

    let shown = says(&args);
    assert!(
        shown.contains("smollm2-135m on cpu")
            && shown.contains("keys and values in f16")
            && shown.contains("ours by theirs, both timed by when their texts came:")
            && shown.contains(" x"),
        "{shown}"
    );
    let dead = [&SMALL[..], &["-n", "2", "--against", "http://127.0.0.1:9/v1"]].concat();
    fails(&dead, 1, &["http://127.0.0.1:9/v1 did not do its work"]);
}

/// Starts a server that speaks enough of the OpenAI API, and counts tokens as llama.cpp does.
fn server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(&stream));
        }
    });
    url
}

fn answer(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let asked: Value = serde_json::from_slice(&body).ok()?;
    assert_eq!((&asked["ignore_eos"], &asked["cache_prompt"]), (&json!(true), &json!(false)));
    let (n, max) = (asked["n"].as_u64().unwrap_or(1), asked["max_tokens"].as_u64()?);
    let mut events = String::new();
    let mut event = |choices: Value, usage: Value| {
        let chunk = json!({ "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, "usage": usage });
        events.push_str(&format!("data: {chunk}\n\n"));
    };
    for i in 0..n {
        for _ in 0..max {
            event(json!([{ "index": i, "delta": { "content": " word" }, "finish_reason": null }]), Value::Null);
        }
        event(json!([{ "index": i, "delta": {}, "finish_reason": "length" }]), Value::Null);
    }
    event(json!([]), json!({ "prompt_tokens": 64, "completion_tokens": max, "total_tokens": 64 + max }));
    events.push_str("data: [DONE]\n\n");
    // The work takes some time.
    let (_open, never) = std::sync::mpsc::channel::<()>();
    let _ = never.recv_timeout(std::time::Duration::from_millis(50));
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        events.len()
    );
    let mut stream = stream;
    stream.write_all((head + &events).as_bytes()).ok()
}
