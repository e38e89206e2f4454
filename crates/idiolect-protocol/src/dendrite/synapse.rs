//! HTTP synapses, as bittensor 7.2 to 10 ask them.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, header};
use serde_json::{Map, Value, json};

use super::send::{Incomplete, send};
use super::session::Session;
use super::{Dendrite, DendriteError, DendriteReply, QueryOptions, Target, Via, next_nonce};
use crate::body_hash::{EMPTY_BODY_HASH, body_hash};
use crate::openai::{AvailabilityReply, AvailabilityRequest};
use crate::{Prompt, keys, python_json};

/// The version that requests give: bittensor 10.5.0.
const CLIENT_VERSION: u32 = 10_005_000;
/// The real client sends its external address here, for which it asks third parties; the miner sees the connection's.
const OWN_IP: &str = "0.0.0.0";
/// Longest answer to a ping or an availability question.
const MAX_SMALL_REPLY: usize = 256 << 10;
/// The synapse that asks whether a miner is there.
const PING: &str = "Synapse";
/// The synapse that asks what it serves.
const AVAILABILITY: &str = "AvailabilitySynapse";
/// Longest name of a synapse.
const MAX_NAME_LEN: usize = 128;

/// What a synapse brings besides the fields that all have.
struct Fields {
    values: Map<String, Value>,
    /// Names of the fields without a default.
    required: Vec<&'static str>,
    body_hash: String,
}

impl Fields {
    fn none() -> Self {
        Self { values: Map::new(), required: Vec::new(), body_hash: EMPTY_BODY_HASH.to_owned() }
    }

    fn of_prompt(prompt: &Prompt, options: &QueryOptions, is_macrocosm_stream: bool) -> Self {
        let roles: Vec<&str> = prompt.messages().iter().map(|m| m.role.as_str()).collect();
        let messages: Vec<String> = prompt.messages().iter().map(|m| m.content.clone()).collect();
        let mut values = Map::new();
        let mut required = vec!["roles", "messages"];
        values.insert("roles".to_owned(), json!(roles));
        values.insert("messages".to_owned(), json!(messages));
        // macrocosm 2.7 to 2.12 know three fields more.
        if let Some(task) = options.task.as_ref().filter(|_| is_macrocosm_stream) {
            required.insert(0, "task_name");
            values.insert("task_name".to_owned(), json!(task));
            values.insert("target_model".to_owned(), json!(options.model));
            values.insert("seed".to_owned(), json!(options.seed));
        }
        values.insert("completion".to_owned(), json!(""));
        Self { values, required, body_hash: body_hash(&[messages.as_slice()]) }
    }

    fn of_availability(tasks: &[String], models: &[String]) -> Result<Self, DendriteError> {
        let question = AvailabilityRequest::new(tasks.iter().cloned(), models.iter().cloned());
        match serde_json::to_value(question) {
            Ok(Value::Object(values)) => {
                let required = vec!["task_availabilities", "llm_model_availabilities"];
                Ok(Self { values, required, body_hash: EMPTY_BODY_HASH.to_owned() })
            }
            _ => Err(DendriteError::BadRequest { reason: "names that are no JSON".to_owned() }),
        }
    }
}

impl Dendrite {
    pub(super) fn synapse_request(
        &self,
        session: &Session,
        target: &Target,
        via: Via,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<Request<Bytes>, DendriteError> {
        let default_name = if via == Via::Stream { "StreamPrompting" } else { "Prompting" };
        let name = options.synapse.as_deref().unwrap_or(default_name);
        let other = match name {
            PING => Some("ping"),
            AVAILABILITY => Some("availability"),
            _ => None,
        };
        if let Some(other) = other {
            let reason = format!("{name} asks for no reply to a prompt: that is `{other}`");
            return Err(DendriteError::BadRequest { reason });
        }
        let fields = Fields::of_prompt(prompt, options, name == "StreamPromptingSynapse");
        self.synapse(session, target, name, options.timeout, fields)
    }

    /// Makes a signed request with the headers and the body of bittensor 10.5.
    fn synapse(
        &self,
        session: &Session,
        target: &Target,
        name: &str,
        timeout: Duration,
        fields: Fields,
    ) -> Result<Request<Bytes>, DendriteError> {
        let bad_request = |reason: String| DendriteError::BadRequest { reason };
        if !is_synapse_name(name) {
            return Err(bad_request(format!("{name:?} is no name of a synapse")));
        }
        let (own, theirs) = (self.keypair.hotkey().to_string(), target.hotkey().to_string());
        let (nonce, session) = (next_nonce(), session.to_string());
        let signed = format!("{nonce}.{own}.{theirs}.{session}.{}", fields.body_hash);
        let signature = keys::format_signature(&self.keypair.sign(signed.as_bytes()));
        let seconds = timeout.as_secs_f64();
        // The real client puts sizes of Python objects here, which nobody checks.
        let total_size = fields.values.iter().map(|(name, value)| name.len() + value.to_string().len()).sum::<usize>();

        let required: Vec<_> =
            fields.required.iter().filter_map(|field| Some((*field, empty_of(fields.values.get(*field)?)))).collect();
        let mut body = Map::new();
        body.insert("name".to_owned(), json!(name));
        body.insert("timeout".to_owned(), json!(seconds));
        body.insert("total_size".to_owned(), json!(total_size));
        body.insert("header_size".to_owned(), json!(0));
        body.insert(
            "dendrite".to_owned(),
            json!({"status_code": null, "status_message": null, "process_time": null, "ip": OWN_IP, "port": null,
                   "version": CLIENT_VERSION, "nonce": nonce, "uuid": session, "hotkey": own, "signature": signature}),
        );
        body.insert(
            "axon".to_owned(),
            json!({"status_code": null, "status_message": null, "process_time": null, "ip": target.host(),
                   "port": target.port(), "version": null, "nonce": null, "uuid": null, "hotkey": theirs,
                   "signature": null}),
        );
        body.insert("computed_body_hash".to_owned(), json!(""));
        body.extend(fields.values);
        let body = python_json::to_string(&body).map_err(|error| bad_request(error.to_string()))?;

        let mut request = Request::post(format!("http://{}/{name}", target.address()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Bytes::from(body))
            .map_err(|error| bad_request(error.to_string()))?;
        let headers = request.headers_mut();
        let mut insert = |name: &str, value: &str| -> Result<(), DendriteError> {
            let name = name.parse::<HeaderName>().map_err(|error| bad_request(error.to_string()))?;
            headers.insert(name, HeaderValue::from_str(value).map_err(|error| bad_request(error.to_string()))?);
            Ok(())
        };
        insert("name", name)?;
        insert("timeout", &format!("{seconds:?}"))?;
        insert("bt_header_axon_ip", target.host())?;
        insert("bt_header_axon_port", &target.port().to_string())?;
        insert("bt_header_axon_hotkey", &theirs)?;
        insert("bt_header_dendrite_ip", OWN_IP)?;
        insert("bt_header_dendrite_version", &CLIENT_VERSION.to_string())?;
        insert("bt_header_dendrite_nonce", &nonce.to_string())?;
        insert("bt_header_dendrite_uuid", &session)?;
        insert("bt_header_dendrite_hotkey", &own)?;
        insert("bt_header_dendrite_signature", &signature)?;
        for (field, empty) in required {
            insert(&format!("bt_header_input_obj_{field}"), &BASE64.encode(empty))?;
        }
        insert("header_size", "0")?;
        insert("total_size", &total_size.to_string())?;
        insert("computed_body_hash", &fields.body_hash)?;
        Ok(request)
    }

    pub(super) async fn ask_synapse(
        &self,
        target: &Target,
        via: Via,
        prompt: &Prompt,
        options: &QueryOptions,
    ) -> Result<DendriteReply, DendriteError> {
        let session = self.sessions.take();
        let request = self.synapse_request(&session, target, via, prompt, options)?;
        let reply = send(&self.http, target, request, options.max_reply_bytes).await?;
        if via == Via::Stream && reply.status == StatusCode::OK && !reply.is_content_type("application/json") {
            read_stream(reply).await
        } else {
            read_plain(reply).await
        }
    }

    pub(super) fn ping_request(
        &self,
        session: &Session,
        target: &Target,
        timeout: Duration,
    ) -> Result<Request<Bytes>, DendriteError> {
        self.synapse(session, target, PING, timeout, Fields::none())
    }

    pub(super) async fn ask_ping(&self, target: &Target, timeout: Duration) -> Result<Duration, DendriteError> {
        let session = self.sessions.take();
        let request = self.ping_request(&session, target, timeout)?;
        let mut reply = send(&self.http, target, request, MAX_SMALL_REPLY).await?;
        if reply.status != StatusCode::OK {
            return Err(refused(reply).await);
        }
        reply.rest().await?;
        Ok(reply.elapsed())
    }

    pub(super) async fn ask_availability(
        &self,
        target: &Target,
        tasks: &[String],
        models: &[String],
        timeout: Duration,
    ) -> Result<AvailabilityReply, DendriteError> {
        let fields = Fields::of_availability(tasks, models)?;
        let session = self.sessions.take();
        let request = self.synapse(&session, target, AVAILABILITY, timeout, fields)?;
        let reply = send(&self.http, target, request, MAX_SMALL_REPLY).await?;
        read_availability(reply).await
    }

    pub(super) async fn ask_availability_unsigned(
        &self,
        target: &Target,
        tasks: &[String],
        models: &[String],
    ) -> Result<AvailabilityReply, DendriteError> {
        let bad_request = |reason: String| DendriteError::BadRequest { reason };
        let question = AvailabilityRequest::new(tasks.iter().cloned(), models.iter().cloned());
        let body = serde_json::to_vec(&question).map_err(|error| bad_request(error.to_string()))?;
        let request = Request::post(format!("http://{}{}", target.address(), crate::openai::AVAILABILITY_PATH))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Bytes::from(body))
            .map_err(|error| bad_request(error.to_string()))?;
        let reply = send(&self.http, target, request, MAX_SMALL_REPLY).await?;
        read_availability(reply).await
    }
}

/// Synapses are named after Python classes.
fn is_synapse_name(name: &str) -> bool {
    (1..=MAX_NAME_LEN).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// The JSON of an empty value of the same type, as the `input_obj` headers carry it.
fn empty_of(value: &Value) -> &'static str {
    match value {
        Value::Array(_) => "[]",
        Value::Object(_) => "{}",
        Value::String(_) => "\"\"",
        Value::Number(_) => "0",
        Value::Bool(_) => "false",
        Value::Null => "null",
    }
}

async fn read_availability(mut reply: Incomplete) -> Result<AvailabilityReply, DendriteError> {
    if reply.status != StatusCode::OK {
        return Err(refused(reply).await);
    }
    let body = reply.json().await?;
    serde_json::from_value(body).map_err(|_| DendriteError::bad_answer("no maps of availabilities"))
}

/// The status and message that the axon put into its headers; they go before HTTP's own.
fn axon_status(reply: &Incomplete) -> (Option<StatusCode>, Option<String>) {
    let code = reply.header("bt_header_axon_status_code").and_then(|text| text.parse::<StatusCode>().ok());
    (code, reply.header("bt_header_axon_status_message").map(str::to_owned))
}

async fn refused(reply: Incomplete) -> DendriteError {
    let (code, message) = axon_status(&reply);
    let code = code.filter(|code| *code != StatusCode::OK).unwrap_or(reply.status);
    reply.refusal(code, message).await
}

async fn read_plain(mut reply: Incomplete) -> Result<DendriteReply, DendriteError> {
    let (code, message) = axon_status(&reply);
    if reply.status != StatusCode::OK || code.is_some_and(|code| code != StatusCode::OK) {
        return Err(refused(reply).await);
    }
    if !reply.is_content_type("application/json") {
        return Err(DendriteError::bad_answer("the content type is not application/json"));
    }
    let body = reply.json().await?;
    // The header counts more than the body; without either, validators take the reply for a failure.
    let in_body = body.pointer("/axon/status_code").and_then(Value::as_u64);
    match code.map(|code| u64::from(code.as_u16())).or(in_body) {
        Some(200) => {}
        Some(code) => {
            let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
            let code = code.ok_or_else(|| DendriteError::bad_answer("a status code that is none"))?;
            let message = body.pointer("/axon/status_message").and_then(Value::as_str).unwrap_or_default().to_owned();
            return Err(DendriteError::Refused { code, status: code.to_string(), message });
        }
        None => return Err(DendriteError::bad_answer("no status code")),
    }
    for field in ["roles", "messages"] {
        if !body.get(field).is_some_and(Value::is_array) {
            return Err(DendriteError::bad_answer(format!("no {field}")));
        }
    }
    let text = body.get("completion").and_then(Value::as_str);
    let text = text.ok_or_else(|| DendriteError::bad_answer("no completion"))?.to_owned();
    Ok(finished(reply, text, 1, message))
}

async fn read_stream(mut reply: Incomplete) -> Result<DendriteReply, DendriteError> {
    let (code, message) = axon_status(&reply);
    if code != Some(StatusCode::OK) {
        return match code {
            Some(_) => Err(refused(reply).await),
            None => Err(DendriteError::bad_answer("no status code")),
        };
    }
    let mut text = Vec::new();
    let mut n_pieces = 0;
    while let Some(bytes) = reply.next().await? {
        text.extend_from_slice(&bytes);
        n_pieces += 1;
    }
    let text = String::from_utf8(text).map_err(|_| DendriteError::bad_answer("the text is not UTF-8"))?;
    Ok(finished(reply, text, n_pieces, message))
}

fn finished(reply: Incomplete, text: String, n_pieces: usize, message: Option<String>) -> DendriteReply {
    DendriteReply {
        text,
        status_code: 200,
        status_message: message.unwrap_or_default(),
        elapsed: reply.elapsed(),
        first_byte: reply.first_byte(),
        n_pieces,
        headers: reply.headers,
        model: None,
        finish_reason: None,
        logprobs: Vec::new(),
    }
}
