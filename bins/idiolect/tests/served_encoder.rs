//! `idiolect unique` with an encoder on a server: what it asks, and what it makes of bad answers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// A request: its head in lower case, and its body.
type Request = (String, Value);

/// A server that answers each request for embeddings by a function.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    fn start(answer: impl Fn(&Value) -> (u16, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let Some((head, body)) = read(&stream) else { continue };
                let (status, text) = answer(&body);
                kept.lock().expect("requests").push((head, body));
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    text.len()
                );
                // Who asked may have gone away.
                let _ = (&stream).write_all((head + &text).as_bytes());
            }
        });
        Self { url, seen }
    }

    fn requests(&self) -> Vec<Request> {
        self.seen.lock().expect("requests").clone()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.to_ascii_lowercase();
        if line.trim().is_empty() {
            break;
        }
        if let Some(given) = line.strip_prefix("content-length:") {
            length = given.trim().parse().ok()?;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).ok()?))
}

/// Embeddings of three values for each text, the index of the text in them.
fn good(body: &Value) -> (u16, String) {
    let texts = body["input"].as_array().expect("texts");
    let data: Vec<Value> = (0_u32..)
        .zip(texts)
        .map(|(index, text)| {
            let x = if text == "alike" { 0.0 } else { f64::from(index) };
            json!({ "index": index, "embedding": [1.0, x, x * x] })
        })
        .collect();
    (200, json!({ "data": data, "model": "e" }).to_string())
}

fn unique(server: &Server, args: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    command.args(["unique", "-", "--encoder", "openai", "--uniqueness.encoder_model", "e-1"]);
    command.args(["--uniqueness.encoder_dimensions", "3", "--uniqueness.encoder_url", &server.url]).args(args);
    command.env("ENCODER_KEY", "sk-hunter2").env_remove("OPENAI_API_KEY");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    drop(child.stdin.take().expect("a pipe").write_all(input.as_bytes()));
    child.wait_with_output().expect("it ends")
}

fn rows(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn texts_are_sent_in_batches_with_model_and_key() {
    let server = Server::start(good);
    let texts: String = (0..70).map(|i| format!("\"text {i}\"\n")).collect();
    let args = ["--json", "--uniqueness.encoder_key_env", "ENCODER_KEY", "--uniqueness.encoder_send_dimensions"];
    assert_eq!(rows(&unique(&server, &args, &texts)).len(), 70);
    let requests = server.requests();
    let sizes: Vec<usize> = requests.iter().map(|(_, body)| body["input"].as_array().expect("texts").len()).collect();
    assert_eq!(sizes, [32, 32, 6]);
    for (head, body) in &requests {
        assert!(head.starts_with("post /v1/embeddings") && head.contains("authorization: bearer sk-hunter2"), "{head}");
        assert_eq!(
            (&body["model"], &body["dimensions"], &body["encoding_format"]),
            (&json!("e-1"), &json!(3), &json!("float"))
        );
    }

    let plain = Server::start(good);
    let same = rows(&unique(&plain, &["--json"], "\"alike\"\n\"alike\"\n\"other\"\n"));
    assert_eq!(
        (&same[0]["nearest"], &same[0]["masked"], &same[2]["masked"]),
        (&json!("2"), &json!(true), &json!(false))
    );
    let (head, body) = &plain.requests()[0];
    assert!(!head.contains("authorization") && body.get("dimensions").is_none(), "{head} {body}");

    // What says nothing is not sent, and counts as a repeat.
    let odd = rows(&unique(&plain, &["--json"], "\"\"\n\"other\"\n\" \"\n"));
    assert_eq!(odd.iter().map(|row| row["masked"] == true).collect::<Vec<_>>(), [true, true, true]);
}

#[test]
fn bad_answers_are_errors_in_one_line() {
    let row = |embedding: &str| format!(r#"{{"data": [{{"index": 0, "embedding": {embedding}}}]}}"#);
    for (status, body, words) in [
        (200, r#"{"data": []}"#.to_owned(), "0 embeddings for 1 texts"),
        (200, row("[1.0, 2.0]"), "2 dimensions, expected 3"),
        (200, row("[0.0, 0.0, 0.0]"), "without direction"),
        (200, row("[NaN, 0.0, 1.0]"), "could not be read"),
        (200, row("[null, 0.0, 1.0]"), "another shape"),
        (200, row("[1e999, 0.0, 1.0]"), "could not be read"),
        (200, r#"{"data": [{"index": 7, "embedding": [1.0, 0.0, 0.0]}]}"#.to_owned(), "other texts"),
        (200, "<html>".to_owned(), "could not be read"),
        (401, r#"{"error": {"message": "bad key sk-hunter2"}}"#.to_owned(), "refused the credentials"),
    ] {
        let server = Server::start(move |_| (status, body.clone()));
        let output = unique(&server, &["--uniqueness.encoder_key_env", "ENCODER_KEY"], "\"a\"\n");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(words) && errors.contains("e-1"), "{errors}\nlacks {words:?}");
        assert!(errors.trim().lines().count() == 1 && !errors.contains("hunter2"), "{errors}");
    }
}

#[test]
fn too_many_requests_are_asked_again_and_silence_ends() {
    let tries = Mutex::new(0);
    let server = Server::start(move |body| {
        let mut tries = tries.lock().expect("a number");
        *tries += 1;
        if *tries == 1 { (429, r#"{"error": {"message": "slow down"}}"#.to_owned()) } else { good(body) }
    });
    assert_eq!(rows(&unique(&server, &["--json"], "\"a\"\n\"b\"\n")).len(), 2);
    assert_eq!(server.requests().len(), 2);
    let always = Server::start(|_| (429, "{}".to_owned()));
    let output = unique(&always, &[], "\"a\"\n");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), always.requests().len()), (Some(1), 3), "{errors}");

    let hangs = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/v1", hangs.local_addr().expect("an address"));
    let silent = Server { url, seen: Arc::default() };
    let output = unique(&silent, &["--uniqueness.encoder_timeout", "100ms"], "\"a\"\n");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && errors.contains("no answer within 100 ms"), "{errors}");
}

#[test]
fn settings_that_are_missing_are_named() {
    let server = Server::start(good);
    let output = Command::new(env!("CARGO_BIN_EXE_idiolect"))
        .args(["unique", "-", "--encoder", "openai", "--uniqueness.encoder_url", "ftp://x"])
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{errors}");
    for words in ["needs uniqueness.encoder_model", "needs uniqueness.encoder_dimensions", "expected http://"] {
        assert!(errors.contains(words), "{errors}\nlacks {words:?}");
    }
    let output = unique(&server, &["--uniqueness.encoder_key_env", "NO_SUCH_KEY"], "\"a\"\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("environment variable NO_SUCH_KEY"), "{output:?}");
    let output = unique(&server, &["--encoder", "minilm"], "\"a\"\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("is for uniqueness.encoder = openai"), "{output:?}");
}
