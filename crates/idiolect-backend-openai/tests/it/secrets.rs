use std::io::Write;
use std::sync::{Arc, Mutex};

use idiolect_backend::{Backend, BackendExt, Message, Request};
use idiolect_backend_openai::{Flavour, KeySource, OpenAiBackend};

use crate::server::{Act, Loopback, piece};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const KEY: &str = "sk-very-secret-key";
const PROMPT: &str = "confidential-prompt";
const ANSWER: &str = "confidential-answer";

/// Every fault, with everything in the log that any crate below has to say.
#[tokio::test]
async fn keys_prompts_and_answers_are_in_no_log_error_or_debug_output() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);

    let quoting = format!(r#"{{"error":{{"message":"bad key {KEY} for {PROMPT}","code":"{KEY}","type":"{KEY}"}}}}"#);
    let detail = format!(r#"{{"detail":[{{"input":"{PROMPT}","msg":"{KEY}"}}]}}"#);
    let broken = format!(r#"{{"choices":[{{"message":{{"content":"{ANSWER}"#);
    let odd = format!(r#"{{"choices":"{ANSWER}"}}"#);
    let script = || {
        vec![
            Act::status(401, "", &quoting),
            Act::status(422, "", &detail),
            Act::status(400, "", &format!("not json: {PROMPT}")),
            Act::status(500, "", &quoting),
            Act::status(500, "", &quoting),
            Act::status(500, "", &quoting),
            Act::body("application/json", &broken),
            Act::body("application/json", &odd),
            Act::body("text/html", format!("<p>{KEY} {PROMPT}</p>")),
            Act::body(KEY, "x"),
            Act::events(&[&piece(ANSWER), &broken]),
            Act::events(&[&piece(ANSWER), &odd]),
            Act::events(&[&quoting]),
            Act::events(&[&piece(ANSWER)]),
            Act::Reset,
        ]
    };
    let mut shown = String::new();
    for is_streamed in [false, true] {
        let server = Loopback::start(script()).await;
        let mut config = server.config(Flavour::OpenAi);
        config.server.key = KeySource::Value(KEY.to_owned().into());
        let backend = OpenAiBackend::new(config.clone()).unwrap();
        shown += &format!("{config:?} {backend:?} {:?}", backend.health().await);
        for _ in 0..14 {
            let request = Request::new(vec![Message::user(PROMPT)]);
            shown += &format!("{request:?}");
            let result = match is_streamed {
                true => backend.stream_and_collect(request).await,
                false => backend.complete(request).await,
            };
            if let Err(error) = result {
                shown += &format!("{error} {error:?}\n");
            }
        }
    }
    drop(guard);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("request is tried again"), "the log was captured");
    for (place, text) in [("log", &log), ("errors and debug output", &shown)] {
        for secret in [KEY, PROMPT, ANSWER] {
            assert!(!text.contains(secret), "{secret} in the {place}");
        }
    }
}
