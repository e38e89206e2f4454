//! What goes over the wire: own types, as tolerant as servers are different.

use std::time::Duration;

use idiolect_backend::{FinishReason, Message, Request, Sampling, TokenLogprob, TopLogprob};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::chain;
use crate::config::{Flavour, LengthField, OpenAiConfig};
use crate::fault::Fault;

/// Most stop texts that OpenAI takes; the rest is seen to here.
const MAX_STOPS: usize = 4;

/// Most alternatives that servers give for a token.
const MAX_TOP: u8 = 20;

/// Builds the body of a chat request for `n` candidates.
pub(crate) fn chat_body(
    config: &OpenAiConfig,
    request: &Request,
    n: usize,
    is_streamed: bool,
    seed: Option<u64>,
) -> Value {
    let sampling = &request.sampling;
    let named = request.model.as_ref().filter(|name| config.models.contains(name));
    let mut body = Map::new();
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            body.insert(name.to_owned(), value);
        }
    };
    set("model", json!(named.unwrap_or(&config.model)));
    set("messages", messages(&request.messages));
    set("stream", json!(is_streamed));
    if is_streamed {
        set("stream_options", json!({ "include_usage": true }));
    }
    if n > 1 {
        set("n", json!(n));
    }
    let length = config.length_field.unwrap_or(match config.flavour {
        Flavour::OpenAi => LengthField::MaxCompletionTokens,
        _ => LengthField::MaxTokens,
    });
    set(
        match length {
            LengthField::MaxTokens => "max_tokens",
            LengthField::MaxCompletionTokens => "max_completion_tokens",
        },
        json!(sampling.max_tokens),
    );
    // Seeds are signed 64-bit numbers on the other side.
    set("seed", json!(seed.map(|seed| seed & (i64::MAX as u64))));
    if !sampling.stop.is_empty() {
        set("stop", json!(sampling.stop.iter().take(MAX_STOPS).collect::<Vec<_>>()));
    }
    if let Some(n_top) = sampling.logprobs.filter(|_| config.gives_logprobs()) {
        set("logprobs", json!(true));
        set("top_logprobs", json!(n_top.min(MAX_TOP)));
    }
    match (config.flavour, sampling.min_tokens) {
        (Flavour::Vllm, Some(n)) => set("min_tokens", json!(n)),
        // It knows all or nothing.
        (Flavour::LlamaCpp, Some(n)) if n == sampling.max_tokens => set("ignore_eos", json!(true)),
        _ => {}
    }
    if sampling.chain.is_none() {
        plain_fields(config.flavour, sampling, set);
    }
    // Chains that cannot be said were refused before.
    body.extend(chain::fields(config.flavour, &config.name, sampling).unwrap_or_default());
    for (name, value) in &config.extra {
        body.insert(name.clone(), value.clone());
    }
    Value::Object(body)
}

/// Sets what sampling says without a chain.
fn plain_fields(flavour: Flavour, sampling: &Sampling, mut set: impl FnMut(&str, Value)) {
    set("temperature", json!(sampling.temperature.map(exact)));
    set("top_p", json!(sampling.top_p.map(exact)));
    set("frequency_penalty", json!(sampling.frequency_penalty.map(exact)));
    set("presence_penalty", json!(sampling.presence_penalty.map(exact)));
    match flavour {
        Flavour::Vllm | Flavour::OpenRouter | Flavour::LlamaCpp => {
            set("top_k", json!(top_k(flavour, sampling.top_k)));
            set("min_p", json!(sampling.min_p.map(exact)));
            let name = if flavour == Flavour::LlamaCpp { "repeat_penalty" } else { "repetition_penalty" };
            set(name, json!(sampling.repetition_penalty.map(exact)));
        }
        Flavour::OpenAi | Flavour::Tgi | Flavour::Ollama => {}
    }
}

/// "All tokens" is 0 here and in most servers, and -1 in vLLM.
fn top_k(flavour: Flavour, top_k: Option<u32>) -> Option<i64> {
    top_k.map(|k| if k == 0 && flavour == Flavour::Vllm { -1 } else { i64::from(k) })
}

/// Keeps 0.7_f32 from becoming 0.699999988 on the wire.
pub(crate) fn exact(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

pub(crate) fn messages(messages: &[Message]) -> Value {
    messages.iter().map(|m| json!({ "role": m.role.as_str(), "content": m.content })).collect()
}

/// Takes `null` for a missing field.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// An answer, or a piece of one.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Chunk {
    #[serde(deserialize_with = "or_default")]
    pub(crate) choices: Vec<Choice>,
    pub(crate) usage: Option<WireUsage>,
    pub(crate) model: Option<String>,
    pub(crate) error: Option<Value>,
    pub(crate) prompt_logprobs: Option<Vec<Option<Map<String, Value>>>>,
    pub(crate) idiolect_fault: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Choice {
    pub(crate) index: Option<usize>,
    delta: Option<Said>,
    message: Option<Said>,
    text: Option<String>,
    pub(crate) finish_reason: Option<String>,
    logprobs: Option<Logprobs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    content: Option<Content>,
}

/// A text, or parts of which some are text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    text: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Logprobs {
    #[serde(deserialize_with = "or_default")]
    content: Vec<Token>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Token {
    #[serde(deserialize_with = "or_default")]
    token: String,
    logprob: Option<f64>,
    #[serde(deserialize_with = "or_default")]
    top_logprobs: Vec<Self>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WireUsage {
    #[serde(deserialize_with = "or_default")]
    pub(crate) prompt_tokens: u32,
    #[serde(deserialize_with = "or_default")]
    pub(crate) completion_tokens: u32,
    #[serde(deserialize_with = "or_default")]
    pub(crate) prompt_tokens_details: WirePromptUsage,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct WirePromptUsage {
    #[serde(deserialize_with = "or_default")]
    pub(crate) cached_tokens: u32,
}

impl Chunk {
    /// Returns the failure that the server, or the way to it, put into the answer.
    pub(crate) fn fault(&self) -> Option<Fault> {
        if let Some(why) = &self.idiolect_fault {
            return Some(match why.as_str() {
                "connection" => Fault::Broken("the connection broke".to_owned()),
                why => Fault::Malformed(why.chars().take(80).collect()),
            });
        }
        let error = self.error.as_ref().filter(|error| !error.is_null())?;
        let status = error.get("code").and_then(Value::as_u64).filter(|code| (400..600).contains(code));
        Some(WireError::of_value(error).into_fault(status.unwrap_or(500) as u16, None))
    }
}

impl Choice {
    /// Takes the new text out.
    pub(crate) fn take_text(&mut self) -> String {
        let said = self.delta.take().and_then(|said| said.content).or_else(|| self.message.take()?.content);
        match said {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts.into_iter().filter_map(|part| part.text).collect(),
            None => self.text.take().unwrap_or_default(),
        }
    }

    /// Takes the new tokens out, with at most `n_top` alternatives each.
    pub(crate) fn take_logprobs(&mut self, n_top: u8) -> Vec<TokenLogprob> {
        let tokens = self.logprobs.take().map(|logprobs| logprobs.content).unwrap_or_default();
        let convert = |token: Token| {
            let mut top: Vec<_> = (token.top_logprobs.into_iter())
                .map(|top| TopLogprob { token: top.token, logprob: logprob(top.logprob) })
                .collect();
            top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
            top.truncate(usize::from(n_top));
            TokenLogprob { token: token.token, logprob: logprob(token.logprob), top }
        };
        tokens.into_iter().map(convert).collect()
    }

    pub(crate) fn reason(&self) -> Option<FinishReason> {
        match self.finish_reason.as_deref()? {
            "" => None,
            "length" | "max_tokens" => Some(FinishReason::Length),
            "content_filter" => Some(FinishReason::ContentFilter),
            _ => Some(FinishReason::Stop),
        }
    }
}

/// Servers write -9999 or `null` for "never"; rounding makes some a little more than 0.
pub(crate) fn logprob(value: Option<f64>) -> f32 {
    value.filter(|value| !value.is_nan()).unwrap_or(-9999.0).clamp(-9999.0, 0.0) as f32
}

/// What can be used of a server's error: no free text, since that may quote the prompt or the key.
#[derive(Debug, Default)]
pub(crate) struct WireError {
    code: Option<String>,
    too_long: Option<(u32, u32)>,
}

impl WireError {
    /// Reads `{"error": {...}}`, `{"error": "..."}`, vLLM's bare object and FastAPI's `{"detail": ...}`.
    pub(crate) fn of_body(body: &[u8]) -> Self {
        let Ok(value) = serde_json::from_slice::<Value>(body) else { return Self::default() };
        Self::of_value(value.get("error").filter(|error| !error.is_null()).unwrap_or(&value))
    }

    pub(crate) fn of_value(error: &Value) -> Self {
        let field = |name: &str| error.get(name).and_then(Value::as_str).filter(|text| is_identifier(text));
        let message =
            error.get("message").or_else(|| error.get("detail")).unwrap_or(error).as_str().unwrap_or_default();
        let code = field("code").or_else(|| field("type")).or_else(|| field("error_type")).map(str::to_owned);
        Self { too_long: too_long(code.as_deref(), message), code }
    }

    pub(crate) fn into_fault(self, status: u16, retry_after: Option<Duration>) -> Fault {
        Fault::Status { status, code: self.code, retry_after, too_long: self.too_long.filter(|_| status < 500) }
    }
}

fn is_identifier(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        // A key would look like one, too.
        && !text.starts_with("sk-")
}

/// Reads the figures out of "maximum context length is 4096 tokens. However, you requested 5000 tokens".
fn too_long(code: Option<&str>, message: &str) -> Option<(u32, u32)> {
    let is_meant = code == Some("context_length_exceeded")
        || code == Some("exceed_context_size_error")
        || message.contains("maximum context length");
    if !is_meant {
        return None;
    }
    let digits = message.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok());
    let numbers: Vec<u32> = digits.filter(|number| *number >= 16).collect();
    let context = if message.contains("maximum context length") { numbers.first() } else { numbers.iter().min() };
    let prompt = numbers.iter().skip(1).max().or_else(|| numbers.iter().max());
    Some((*prompt.unwrap_or(&0), *context.unwrap_or(&0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        let mut request = Request::new(vec![Message::system("s"), Message::user("u")]);
        let s = &mut request.sampling;
        (s.temperature, s.top_p, s.top_k, s.min_p) = (Some(0.7), Some(0.9), Some(0), Some(0.05));
        (s.repetition_penalty, s.frequency_penalty, s.presence_penalty) = (Some(1.1), Some(0.2), Some(-0.3));
        s.stop = ["a", "b", "c", "d", "e"].map(str::to_owned).to_vec();
        s.logprobs = Some(3);
        request
    }

    #[test]
    fn each_flavour_gets_what_it_knows() {
        let keys = |flavour| {
            let config = OpenAiConfig { flavour, ..OpenAiConfig::new("m") };
            let body = chat_body(&config, &request(), 2, false, Some(u64::MAX));
            assert_eq!(body["seed"], json!(i64::MAX));
            assert_eq!(body["temperature"].to_string(), "0.7");
            assert_eq!(body["messages"][1], json!({"role": "user", "content": "u"}));
            assert_eq!(body["stop"].as_array().unwrap().len(), 4);
            let common = ["model", "messages", "stream", "n", "temperature", "top_p", "frequency_penalty"];
            assert!(common.iter().all(|key| body.get(*key).is_some()), "{body}");
            let mut rest: Vec<String> = body.as_object().unwrap().keys().cloned().collect();
            rest.retain(|key| {
                !common.contains(&key.as_str()) && !["presence_penalty", "seed", "stop"].contains(&key.as_str())
            });
            rest.sort();
            rest.join(" ")
        };
        assert_eq!(keys(Flavour::OpenAi), "logprobs max_completion_tokens top_logprobs");
        assert_eq!(keys(Flavour::Vllm), "logprobs max_tokens min_p repetition_penalty top_k top_logprobs");
        assert_eq!(keys(Flavour::Tgi), "logprobs max_tokens top_logprobs");
        assert_eq!(keys(Flavour::Ollama), "max_tokens");
        assert_eq!(keys(Flavour::LlamaCpp), "logprobs max_tokens min_p repeat_penalty top_k top_logprobs");
        assert_eq!(keys(Flavour::OpenRouter), "max_tokens min_p repetition_penalty top_k");
    }

    #[test]
    fn least_lengths_and_chains_are_sent_where_they_are_known() {
        let body = |flavour, min_tokens, chain| {
            let mut request = request();
            request.sampling.min_tokens = Some(min_tokens);
            request.sampling.chain = chain;
            chat_body(&OpenAiConfig { flavour, ..OpenAiConfig::new("m") }, &request, 1, false, None)
        };
        assert_eq!(body(Flavour::Vllm, 5, None)["min_tokens"], 5);
        assert_eq!(body(Flavour::LlamaCpp, 256, None)["ignore_eos"], true);
        for body in [body(Flavour::LlamaCpp, 255, None), body(Flavour::OpenAi, 256, None)] {
            assert!(body.get("ignore_eos").is_none() && body.get("min_tokens").is_none(), "{body}");
        }
        let stages = vec![idiolect_backend::Stage::Greedy {}];
        let body = body(Flavour::LlamaCpp, 1, Some(stages.into()));
        assert_eq!((&body["samplers"], &body["temperature"]), (&json!(["temperature"]), &json!(0)));
        assert!(body.get("top_p").is_none() && body.get("repeat_penalty").is_none(), "a chain is all there is: {body}");
    }

    #[test]
    fn callers_choose_only_among_the_models_allowed() {
        let config = OpenAiConfig { models: vec!["big".to_owned()], ..OpenAiConfig::new("small") };
        for (asked, used) in [(None, "small"), (Some("big"), "big"), (Some("dear"), "small")] {
            let request = Request { model: asked.map(str::to_owned), ..request() };
            assert_eq!(chat_body(&config, &request, 1, true, None)["model"], used);
        }
        let extra = json!({"model": "forced", "user": "u1"}).as_object().unwrap().clone();
        let body = chat_body(&OpenAiConfig { extra, ..config }, &request(), 1, true, None);
        assert_eq!((&body["model"], &body["user"]), (&json!("forced"), &json!("u1")));
    }

    #[test]
    fn reads_answers_of_many_shapes() {
        let text = |json: Value| {
            let mut chunk: Chunk = serde_json::from_value(json).unwrap();
            chunk.choices.remove(0).take_text()
        };
        assert_eq!(text(json!({"choices": [{"delta": {"content": "a"}}]})), "a");
        assert_eq!(text(json!({"choices": [{"delta": {"role": "assistant", "content": null}}]})), "");
        assert_eq!(text(json!({"choices": [{"message": {"content": [{"type": "text", "text": "b"}]}}]})), "b");
        assert_eq!(text(json!({"choices": [{"text": "c", "logprobs": null, "index": 0}]})), "c");
        let empty: Chunk = serde_json::from_value(json!({"choices": null, "usage": {"prompt_tokens": null}})).unwrap();
        assert!(empty.choices.is_empty() && empty.fault().is_none());
        for (details, cached) in [(json!(null), 0), (json!({"cached_tokens": 5}), 5), (json!({"audio_tokens": 1}), 0)] {
            let usage = json!({"usage": {"prompt_tokens": 9, "prompt_tokens_details": details}});
            let chunk: Chunk = serde_json::from_value(usage).unwrap();
            assert_eq!(chunk.usage.unwrap().prompt_tokens_details.cached_tokens, cached);
        }
        let odd = json!({"choices": [{"logprobs": {"content": [
            {"token": "x", "logprob": 1e-9, "bytes": [120], "top_logprobs": [{"token": "y", "logprob": -2.0}, {"token": "x", "logprob": -0.1}]},
            {"token": "z", "logprob": null},
        ]}}]});
        let mut chunk: Chunk = serde_json::from_value(odd).unwrap();
        let logprobs = chunk.choices[0].take_logprobs(1);
        assert_eq!((logprobs[0].logprob, logprobs[1].logprob), (0.0, -9999.0));
        assert_eq!(logprobs[0].top, [TopLogprob { token: "x".to_owned(), logprob: -0.1 }]);
    }

    #[test]
    fn errors_keep_identifiers_and_figures_only() {
        let fault =
            |status, body: Value| WireError::of_body(body.to_string().as_bytes()).into_fault(status, None).to_string();
        let quoting = json!({"error": {"message": "Incorrect API key provided: sk-abc", "type": "invalid_request_error", "code": null}});
        assert_eq!(fault(401, quoting), "status 401 (invalid_request_error)");
        assert_eq!(fault(422, json!({"detail": [{"input": "the prompt"}]})), "status 422");
        assert_eq!(fault(404, json!({"error": "model 'x' not found"})), "status 404");
        assert_eq!(
            fault(400, json!({"object": "error", "type": "BadRequestError", "code": 400})),
            "status 400 (BadRequestError)"
        );
        assert_eq!(fault(400, json!({"error": {"code": "sk-abc"}})), "status 400");

        let long = json!({"error": {"code": "context_length_exceeded", "message":
            "This model's maximum context length is 4097 tokens. However, your messages resulted in 5003 tokens."}});
        let error = WireError::of_body(long.to_string().as_bytes()).into_fault(400, None).into_error("x");
        assert_eq!(error.to_string(), "prompt has 5003 tokens, context length is 4097");
    }
}
