//! The body of a chat-completion request, checked.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::headers::saturating_seconds;
use crate::{Message, Prompt, PromptError, Role};

/// Most alternatives that can be asked for at each token.
const MAX_TOP_LOGPROBS: u64 = 20;
/// Most stop texts.
const MAX_STOPS: usize = 16;
/// Longest name of a task or model, in bytes.
const MAX_NAME_LEN: usize = 256;
/// Alternatives that go with an inference task's tokens when the request does not say how many.
const INFERENCE_TOP_LOGPROBS: u8 = 10;

/// Why a body is no chat request. Tells what was expected where, and nothing of the body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// Not JSON.
    #[error("the body is not JSON: line {line}, column {column}")]
    NotJson {
        /// Line of the mistake, from 1.
        line: usize,
        /// Column of the mistake, from 1.
        column: usize,
    },
    /// A field has another type, or a value outside its range.
    #[error("{name} must be {expected}")]
    Field {
        /// The field, with a dot before inner ones.
        name: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The messages are no prompt.
    #[error(transparent)]
    Prompt(#[from] PromptError),
}

/// How tokens are to be drawn, as far as a request says so.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct SamplingParameters {
    /// The seed. Negative ones count by their bits.
    pub seed: Option<u64>,
    /// Softmax temperature, 0 to 5. 0 where `do_sample` is false.
    pub temperature: Option<f32>,
    /// Nucleus bound, above 0 and at most 1.
    pub top_p: Option<f32>,
    /// Rank bound; 0 is none.
    pub top_k: Option<u32>,
    /// Repetition penalty, above 0 and at most 10.
    pub repetition_penalty: Option<f32>,
    /// Most tokens to generate, at least 1. Also read from `max_new_tokens` and `max_completion_tokens`.
    pub max_tokens: Option<u32>,
    /// Stop texts.
    pub stop: Vec<String>,
}

/// A checked chat-completion request. Unknown fields of the body are ignored.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ChatRequest {
    /// The conversation.
    pub prompt: Prompt,
    /// The model asked for.
    pub model: Option<String>,
    /// Whether the reply is to be streamed.
    pub stream: bool,
    /// The kind of task, as macrocosm's validators name it.
    pub task: Option<String>,
    /// The sampling fields at the top of the body.
    pub sampling: SamplingParameters,
    /// The `sampling_parameters` object, where the body has one.
    pub sampling_parameters: Option<SamplingParameters>,
    /// Log-probabilities are wanted, with this many alternatives a token.
    pub logprobs: Option<u8>,
    /// How many completions are wanted.
    pub n: usize,
    /// How long the client waits, as the body says. Not capped.
    pub timeout: Option<Duration>,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`ChatError`] with the first mistake.
    pub fn from_json(body: &[u8]) -> Result<Self, ChatError> {
        let body: Value = serde_json::from_slice(body)
            .map_err(|error| ChatError::NotJson { line: error.line(), column: error.column() })?;
        let Value::Object(body) = body else { return Err(field("the body", "an object")) };
        let fields = Fields { prefix: "", map: &body };
        let logprobs = match (fields.boolean("logprobs")?, fields.integer("top_logprobs")?) {
            (Some(true), n) => Some(
                u8::try_from(n.unwrap_or(0).min(MAX_TOP_LOGPROBS))
                    .map_err(|_| field("top_logprobs", "a number from 0 to 20"))?,
            ),
            _ => None,
        };
        let sampling_parameters = fields.object("sampling_parameters")?;
        Ok(Self {
            prompt: prompt(body.get("messages"))?,
            model: fields.name("model")?,
            stream: fields.boolean("stream")?.unwrap_or(false),
            task: fields.name("task")?,
            sampling: SamplingParameters::read(&fields)?,
            sampling_parameters: sampling_parameters.map(SamplingParameters::from_object).transpose()?,
            logprobs,
            n: match fields.integer("n")? {
                None => 1,
                Some(n) => {
                    usize::try_from(n).ok().filter(|n| (1..=128).contains(n)).ok_or_else(|| field("n", "1 to 128"))?
                }
            },
            timeout: fields.positive("timeout")?.map(saturating_seconds),
        })
    }

    /// The sampling that counts where the request dictates it: `sampling_parameters`, and what the top of the body adds.
    #[must_use]
    pub fn dictated_sampling(&self) -> SamplingParameters {
        let (inner, outer) = (self.sampling_parameters.clone().unwrap_or_default(), &self.sampling);
        SamplingParameters {
            // The body's own seed is the task's; the parameters repeat it at best.
            seed: outer.seed.or(inner.seed),
            temperature: inner.temperature.or(outer.temperature),
            top_p: inner.top_p.or(outer.top_p),
            top_k: inner.top_k.or(outer.top_k),
            repetition_penalty: inner.repetition_penalty.or(outer.repetition_penalty),
            max_tokens: inner.max_tokens.or(outer.max_tokens),
            stop: if inner.stop.is_empty() { outer.stop.clone() } else { inner.stop },
        }
    }

    /// How many alternatives go with each token's log-probability, `None` where none are wanted. A passed-through
    /// inference task needs them even where it does not ask.
    #[must_use]
    pub fn wanted_logprobs(&self, is_dictated: bool) -> Option<u8> {
        self.logprobs.or_else(|| is_dictated.then_some(INFERENCE_TOP_LOGPROBS))
    }
}

impl SamplingParameters {
    /// Reads the object `sampling_parameters` of a request of any kind.
    pub(crate) fn from_object(map: &Map<String, Value>) -> Result<Self, ChatError> {
        Self::read(&Fields { prefix: "sampling_parameters.", map })
    }

    fn read(fields: &Fields<'_>) -> Result<Self, ChatError> {
        let is_greedy = fields.boolean("do_sample")? == Some(false);
        let max_tokens = ["max_tokens", "max_new_tokens", "max_completion_tokens"].into_iter().find_map(|name| {
            let tokens = fields.integer(name).transpose()?;
            Some(tokens.and_then(|n| {
                u32::try_from(n)
                    .ok()
                    .filter(|n| *n >= 1)
                    .ok_or_else(|| fields.error(name, "a number of tokens, at least 1"))
            }))
        });
        Ok(Self {
            seed: fields.seed()?,
            temperature: match is_greedy {
                true => Some(0.0),
                false => fields.float("temperature", "a number from 0 to 5", |v| (0.0..=5.0).contains(&v))?,
            },
            top_p: fields.float("top_p", "a number above 0 and at most 1", |v| v > 0.0 && v <= 1.0)?,
            top_k: fields.top_k()?,
            repetition_penalty: fields
                .float("repetition_penalty", "a number above 0 and at most 10", |v| v > 0.0 && v <= 10.0)?,
            max_tokens: max_tokens.transpose()?,
            stop: fields.stop()?,
        })
    }
}

/// The fields of an object. `null` counts as absent, as Python's clients send it.
struct Fields<'v> {
    prefix: &'static str,
    map: &'v Map<String, Value>,
}

impl<'v> Fields<'v> {
    fn error(&self, name: &str, expected: &'static str) -> ChatError {
        field(&format!("{}{name}", self.prefix), expected)
    }

    fn value(&self, name: &str) -> Option<&'v Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        name: &str,
        expected: &'static str,
        read: impl FnOnce(&'v Value) -> Option<T>,
    ) -> Result<Option<T>, ChatError> {
        self.value(name).map(|value| read(value).ok_or_else(|| self.error(name, expected))).transpose()
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, ChatError> {
        self.typed(name, "true or false", Value::as_bool)
    }

    fn integer(&self, name: &str) -> Result<Option<u64>, ChatError> {
        self.typed(name, "a whole number, at least 0", Value::as_u64)
    }

    fn object(&self, name: &str) -> Result<Option<&'v Map<String, Value>>, ChatError> {
        self.typed(name, "an object", Value::as_object)
    }

    fn positive(&self, name: &str) -> Result<Option<f64>, ChatError> {
        self.typed(name, "a number above 0", |value| value.as_f64().filter(|v| *v > 0.0))
    }

    fn float(
        &self,
        name: &str,
        expected: &'static str,
        is_valid: impl FnOnce(f64) -> bool,
    ) -> Result<Option<f32>, ChatError> {
        self.typed(name, expected, |value| value.as_f64().filter(|v| is_valid(*v)).map(|v| v as f32))
    }

    fn name(&self, name: &str) -> Result<Option<String>, ChatError> {
        self.typed(name, "a text of at most 256 bytes", |value| {
            value.as_str().filter(|text| text.len() <= MAX_NAME_LEN).map(str::to_owned)
        })
    }

    fn seed(&self) -> Result<Option<u64>, ChatError> {
        self.typed("seed", "a whole number of 64 bits", |value| {
            value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned))
        })
    }

    /// -1 is how vLLM spells "all".
    fn top_k(&self) -> Result<Option<u32>, ChatError> {
        self.typed("top_k", "a whole number, at least -1", |value| match value.as_i64()? {
            -1 => Some(0),
            k => u32::try_from(k).ok(),
        })
    }

    fn stop(&self) -> Result<Vec<String>, ChatError> {
        let texts = self.typed("stop", "a text or a list of at most 16 texts, none of them empty", |value| {
            let texts: Vec<String> = match value {
                Value::String(text) => vec![text.clone()],
                Value::Array(texts) if texts.len() <= MAX_STOPS => {
                    texts.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<_>>()?
                }
                _ => return None,
            };
            texts.iter().all(|text| !text.is_empty()).then_some(texts)
        })?;
        Ok(texts.unwrap_or_default())
    }
}

fn field(name: &str, expected: &'static str) -> ChatError {
    ChatError::Field { name: name.to_owned(), expected }
}

fn prompt(messages: Option<&Value>) -> Result<Prompt, ChatError> {
    let Some(Value::Array(messages)) = messages else { return Err(field("messages", "a list of messages")) };
    if messages.len() > Prompt::MAX_MESSAGES {
        return Err(PromptError::TooMany { n_messages: messages.len(), max: Prompt::MAX_MESSAGES }.into());
    }
    let messages = messages.iter().enumerate().map(|(index, message)| {
        let role = message.get("role").and_then(Value::as_str).ok_or(PromptError::NotAMessage { index })?;
        let content = message.get("content").and_then(content_text).ok_or(PromptError::NotAMessage { index })?;
        Ok(Message::new(role.parse::<Role>()?, content))
    });
    Ok(Prompt::new(messages.collect::<Result<_, PromptError>>()?)?)
}

/// A message's text: a string, `null` (an assistant turn without text), or a list of text parts.
fn content_text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Null => Some(String::new()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| match part.get("type")?.as_str()? {
                "text" => part.get("text")?.as_str(),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rest: &str) -> Result<ChatRequest, ChatError> {
        let body = format!(r#"{{"messages": [{{"role": "user", "content": "secret"}}]{rest}}}"#);
        ChatRequest::from_json(body.as_bytes())
    }

    #[test]
    fn the_recorded_body_is_read() {
        for case in crate::testdata::vectors("epistula.json")["cases"].as_array().unwrap() {
            let request = ChatRequest::from_json(case["body_utf8"].as_str().unwrap().as_bytes()).unwrap();
            assert_eq!(request.prompt.messages(), [Message::new(Role::User, "hi")]);
            assert_eq!((request.model, request.stream, request.sampling.seed), (None, true, Some(42)));
        }
    }

    #[test]
    fn every_field_is_read() {
        let request = read(
            r#", "model": "m", "stream": true, "task": "InferenceTask", "seed": -1, "logprobs": true, "top_logprobs": 99,
               "n": 2, "timeout": 12.5, "temperature": 1, "stop": "x", "unknown": {"a": [1]}, "top_k": -1,
               "sampling_parameters": {"max_new_tokens": 7, "do_sample": false, "temperature": 0.7, "top_p": 0.95,
                                       "top_k": 50, "repetition_penalty": 1.1, "stop": ["a", "b"], "seed": null}"#,
        )
        .unwrap();
        assert_eq!(request.model.as_deref(), Some("m"));
        assert_eq!(request.task.as_deref(), Some("InferenceTask"));
        assert_eq!((request.stream, request.n, request.logprobs), (true, 2, Some(20)));
        assert_eq!(request.timeout, Some(Duration::from_millis(12_500)));
        assert_eq!(request.sampling.temperature, Some(1.0));
        assert_eq!(request.sampling.top_k, Some(0));
        let dictated = SamplingParameters {
            seed: Some(u64::MAX),
            temperature: Some(0.0),
            top_p: Some(0.95),
            top_k: Some(50),
            repetition_penalty: Some(1.1),
            max_tokens: Some(7),
            stop: vec!["a".to_owned(), "b".to_owned()],
        };
        assert_eq!(request.dictated_sampling(), dictated);
    }

    #[test]
    fn log_probabilities_go_with_passed_through_answers() {
        let check = |rest, is_dictated, expected| {
            assert_eq!(read(rest).unwrap().wanted_logprobs(is_dictated), expected, "{rest} {is_dictated}");
        };
        check("", false, None);
        check("", true, Some(10));
        check(r#", "logprobs": true"#, false, Some(0));
        check(r#", "logprobs": true, "top_logprobs": 3"#, true, Some(3));
        check(r#", "top_logprobs": 3"#, false, None);
    }

    #[test]
    fn mistakes_are_named_without_the_text() {
        let check = |rest: &str, expected: &str| {
            let error = read(rest).unwrap_err().to_string();
            assert_eq!(error, expected, "{rest}");
        };
        check(r#", "seed": "secret""#, "seed must be a whole number of 64 bits");
        check(r#", "seed": 1.5"#, "seed must be a whole number of 64 bits");
        check(r#", "stream": 1"#, "stream must be true or false");
        check(r#", "timeout": -1"#, "timeout must be a number above 0");
        check(r#", "n": 0"#, "n must be 1 to 128");
        check(r#", "temperature": 9"#, "temperature must be a number from 0 to 5");
        check(r#", "stop": ["", "x"]"#, "stop must be a text or a list of at most 16 texts, none of them empty");
        check(r#", "sampling_parameters": "{'a': 1}""#, "sampling_parameters must be an object");
        check(
            r#", "sampling_parameters": {"max_new_tokens": 0}"#,
            "sampling_parameters.max_new_tokens must be a number of tokens, at least 1",
        );
        check(r#", "x": secret"#, "the body is not JSON: line 1, column 60");
        let check = |body: &str, expected: &str| {
            assert_eq!(ChatRequest::from_json(body.as_bytes()).unwrap_err().to_string(), expected, "{body}");
        };
        check("[]", "the body must be an object");
        check("{}", "messages must be a list of messages");
        check(r#"{"messages": []}"#, "no message with any text");
        check(r#"{"messages": [{"role": "user"}]}"#, "message 0 is not an object with role and content");
        check(r#"{"messages": ["secret"]}"#, "message 0 is not an object with role and content");
        check(
            r#"{"messages": [{"role": "tool", "content": "secret"}]}"#,
            "unknown role \"tool\", expected system, user or assistant",
        );
        assert!(matches!(ChatRequest::from_json(b"{\"messages\": \"\xff\"}"), Err(ChatError::NotJson { .. })));
    }

    #[test]
    fn a_timeout_of_ages_is_no_panic() {
        assert_eq!(read(r#", "timeout": 1e300"#).unwrap().timeout, Some(Duration::MAX));
    }

    #[test]
    fn content_comes_in_parts_too() {
        let body = br#"{"messages": [{"role": "assistant", "content": null}, {"role": "user", "content":
            [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}"#;
        let request = ChatRequest::from_json(body).unwrap();
        assert_eq!(request.prompt.messages()[1].content, "ab");
        let body = br#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}"#;
        assert_eq!(ChatRequest::from_json(body), Err(PromptError::NotAMessage { index: 0 }.into()));
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_the_reader_panic(body: Vec<u8>, text in "\\PC{0,100}") {
            let _ = ChatRequest::from_json(&body);
            let _ = ChatRequest::from_json(text.as_bytes());
            let _ = read(&format!(", {text}"));
        }
    }
}
