//! Chat completions, with Epistula's or btauth's headers.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::send::{Incomplete, send};
use super::{Dendrite, DendriteError, DendriteReply, QueryOptions, Target, Via, next_nonce};
use crate::body_hash::{PyText, PyValue, UnicodeTable};
use crate::openai::sse::{Event, SseParser};
use crate::openai::{CHAT_PATH, Chunk, Completion, EVENT_STREAM};
use crate::{Prompt, btauth, epistula};

impl Dendrite {
    pub(super) fn chat_request(
        &self,
        target: &Target,
        via: Via,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<Request<Bytes>, DendriteError> {
        let bad_request = |reason: String| DendriteError::BadRequest { reason };
        let fields = chat_body(prompt, options, via == Via::Epistula || options.stream);
        let body = serde_json::to_vec(&fields).map_err(|error| bad_request(error.to_string()))?;
        let now_ns = next_nonce();
        let signed = if via == Via::Epistula {
            let now_ms = u64::try_from(now_ns / 1_000_000).unwrap_or_default();
            let mut headers = epistula::sign(&self.keypair, target.hotkey(), &body, now_ms, &Uuid::new_v4());
            let timeout = format!("{:?}", options.timeout.as_secs_f64());
            headers.extend(HeaderValue::try_from(timeout).map(|value| (Some(TIMEOUT), value)));
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer Apex"));
            headers.extend(repeated_fields(&fields));
            headers
        } else {
            let parts = btauth::SignedParts { method: "POST", target: CHAT_PATH, body: &body };
            btauth::sign(&self.keypair, Some(target.hotkey()), parts, now_ns.into())
        };
        let mut request = Request::post(format!("http://{}{CHAT_PATH}", target.address()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Bytes::from(body))
            .map_err(|error| bad_request(error.to_string()))?;
        request.headers_mut().extend(signed);
        Ok(request)
    }

    pub(super) async fn ask_chat(
        &self,
        target: &Target,
        via: Via,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<DendriteReply, DendriteError> {
        let request = self.chat_request(target, via, prompt, options)?;
        let reply = send(&self.http, target, request, options.max_reply_bytes).await?;
        match reply.status {
            StatusCode::OK if reply.is_content_type(EVENT_STREAM) => read_events(reply, options.max_reply_bytes).await,
            StatusCode::OK => read_completion(reply).await,
            code => Err(reply.refusal(code, None).await),
        }
    }
}

const TIMEOUT: HeaderName = HeaderName::from_static(epistula::TIMEOUT_HEADER);

fn chat_body(prompt: &Prompt, options: &QueryOptions, is_streamed: bool) -> Map<String, Value> {
    let messages = prompt.messages().iter().map(|m| json!({"role": m.role.as_str(), "content": m.content}));
    let mut body = Map::new();
    let mut insert = |name: &str, value: Value| body.insert(name.to_owned(), value);
    insert("messages", messages.collect());
    insert("model", json!(options.model));
    insert("stream", json!(is_streamed));
    if let Some(seed) = options.seed {
        insert("seed", json!(seed));
    }
    if let Some(task) = &options.task {
        insert("task", json!(task));
    }
    if let Some(parameters) = &options.sampling_parameters {
        insert("sampling_parameters", Value::Object(parameters.clone()));
    }
    if let Some(n) = options.logprobs {
        insert("logprobs", json!(true));
        insert("top_logprobs", json!(n));
    }
    body
}

/// macrocosm's validators repeat the body's own fields as headers, in Python's `str()`. What is no header value is left
/// out: the body has it.
fn repeated_fields(body: &Map<String, Value>) -> impl Iterator<Item = (Option<HeaderName>, HeaderValue)> + '_ {
    const REPEATED: [&str; 3] = ["task", "seed", "sampling_parameters"];
    REPEATED.into_iter().filter_map(|name| {
        let json = body.get(name)?.to_string();
        let mut text = String::new();
        PyValue::from_json(&json).ok()?.write_str(&mut text, UnicodeTable::Python311);
        Some((Some(HeaderName::from_static(name)), HeaderValue::try_from(text).ok()?))
    })
}

async fn read_completion(mut reply: Incomplete) -> Result<DendriteReply, DendriteError> {
    let body = reply.json().await?;
    let completion: Completion =
        serde_json::from_value(body).map_err(|_| DendriteError::bad_answer("not a chat completion"))?;
    let choice = completion.choices.into_iter().next().ok_or_else(|| DendriteError::bad_answer("no choices"))?;
    Ok(DendriteReply {
        text: choice.message.content.ok_or_else(|| DendriteError::bad_answer("no content"))?,
        status_code: 200,
        status_message: "Success".to_owned(),
        elapsed: reply.elapsed(),
        first_byte: reply.first_byte(),
        n_pieces: 1,
        headers: reply.headers,
        model: Some(completion.model).filter(|model| !model.is_empty()),
        finish_reason: choice.finish_reason,
        logprobs: choice.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default(),
    })
}

/// What the events of a stream add up to.
#[derive(Default)]
struct Joined {
    text: String,
    n_pieces: usize,
    model: Option<String>,
    finish_reason: Option<String>,
    logprobs: Vec<crate::openai::TokenLogprob>,
    is_done: bool,
}

impl Joined {
    fn take(&mut self, event: Event) -> Result<(), DendriteError> {
        let Event::Data(data) = event else {
            self.is_done = true;
            return Ok(());
        };
        let json: Value = serde_json::from_str(&data).map_err(|_| DendriteError::bad_answer("an event is not JSON"))?;
        if let Some(message) = json.pointer("/error/message").and_then(Value::as_str) {
            return Err(DendriteError::bad_answer(format!("the stream broke off: {}", super::send::shorten(message))));
        }
        let chunk: Chunk =
            serde_json::from_value(json).map_err(|_| DendriteError::bad_answer("an event is no chunk"))?;
        self.model = self.model.take().or(Some(chunk.model).filter(|model| !model.is_empty()));
        for choice in chunk.choices.into_iter().filter(|choice| choice.index == 0) {
            if let Some(text) = choice.delta.content {
                self.text.push_str(&text);
                self.n_pieces += 1;
            }
            self.logprobs.extend(choice.logprobs.and_then(|logprobs| logprobs.content).unwrap_or_default());
            self.finish_reason = self.finish_reason.take().or(choice.finish_reason);
        }
        Ok(())
    }
}

async fn read_events(mut reply: Incomplete, max_bytes: usize) -> Result<DendriteReply, DendriteError> {
    let bad_stream = |error: crate::openai::sse::SseError| DendriteError::bad_answer(error.to_string());
    let mut parser = SseParser::new(max_bytes);
    let mut joined = Joined::default();
    while let Some(bytes) = reply.next().await? {
        for event in parser.push(&bytes).map_err(bad_stream)? {
            joined.take(event)?;
        }
    }
    if let Some(event) = parser.finish().map_err(bad_stream)? {
        joined.take(event)?;
    }
    // A stream that just stops is half an answer at best.
    if !joined.is_done && joined.finish_reason.is_none() {
        return Err(DendriteError::bad_answer("the stream ends without a finish reason"));
    }
    Ok(DendriteReply {
        text: joined.text,
        status_code: 200,
        status_message: "Success".to_owned(),
        elapsed: reply.elapsed(),
        first_byte: reply.first_byte(),
        n_pieces: joined.n_pieces,
        headers: reply.headers,
        model: joined.model,
        finish_reason: joined.finish_reason,
        logprobs: joined.logprobs,
    })
}
