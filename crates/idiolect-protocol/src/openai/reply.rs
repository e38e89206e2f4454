//! What goes back: whole completions, chunks of streamed ones, availability, errors.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::sse;
use crate::{Category, status};

/// How long a streamed piece of text may be, in bytes.
const MAX_PIECE_LEN: usize = 48;

/// One alternative of a token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// The token's text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// The log-probability of one token that was sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token's text.
    #[serde(default)]
    pub token: String,
    /// Natural logarithm of its probability.
    #[serde(default)]
    pub logprob: f32,
    /// The likeliest tokens in its place, best first.
    #[serde(default)]
    pub top_logprobs: Vec<TopLogprob>,
}

/// The log-probabilities of a choice or a chunk of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChoiceLogprobs {
    /// One entry a token.
    #[serde(default)]
    pub content: Option<Vec<TokenLogprob>>,
}

/// What a chunk adds.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// `assistant`, in the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// Completions stay out of logs.
impl std::fmt::Debug for Delta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delta({:?} bytes)", self.content.as_ref().map(String::len))
    }
}

/// A choice within a chunk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChunkChoice {
    /// Which completion.
    #[serde(default)]
    pub index: u32,
    /// What it adds.
    #[serde(default)]
    pub delta: Delta,
    /// Log-probabilities of the tokens in `delta`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChoiceLogprobs>,
    /// `stop` or `length` in the last chunk.
    #[serde(default)]
    pub finish_reason: Option<String>,
}

/// One event of a streamed reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// Identifier of the reply.
    #[serde(default)]
    pub id: String,
    /// `chat.completion.chunk`.
    #[serde(default)]
    pub object: String,
    /// Seconds since 1970.
    #[serde(default)]
    pub created: u64,
    /// The model that speaks.
    #[serde(default)]
    pub model: String,
    /// What is added; usually one entry.
    #[serde(default)]
    pub choices: Vec<ChunkChoice>,
}

/// The message of a whole reply.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyMessage {
    /// `assistant`.
    #[serde(default)]
    pub role: String,
    /// The completion.
    #[serde(default)]
    pub content: Option<String>,
}

/// Completions stay out of logs.
impl std::fmt::Debug for ReplyMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReplyMessage({:?} bytes)", self.content.as_ref().map(String::len))
    }
}

/// A choice of a whole reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Which completion.
    #[serde(default)]
    pub index: u32,
    /// The completion.
    #[serde(default)]
    pub message: ReplyMessage,
    /// Log-probabilities of its tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<ChoiceLogprobs>,
    /// `stop` or `length`.
    #[serde(default)]
    pub finish_reason: Option<String>,
}

/// What a reply cost. All zero where the server does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens of the completion.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Both.
    #[serde(default)]
    pub total_tokens: u64,
}

/// A whole reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// Identifier of the reply.
    #[serde(default)]
    pub id: String,
    /// `chat.completion`.
    #[serde(default)]
    pub object: String,
    /// Seconds since 1970.
    #[serde(default)]
    pub created: u64,
    /// The model that spoke.
    #[serde(default)]
    pub model: String,
    /// The completions, best first.
    #[serde(default)]
    pub choices: Vec<Choice>,
    /// What it cost.
    #[serde(default)]
    pub usage: Option<Usage>,
}

/// What every form of a reply says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyHead {
    /// Identifier of the reply.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that spoke.
    pub model: String,
}

impl ReplyHead {
    /// Makes a whole reply of completions, best first; log-probabilities are those of the first.
    #[must_use]
    pub fn completion(
        self,
        texts: Vec<String>,
        logprobs: Option<Vec<TokenLogprob>>,
        finish_reason: &str,
    ) -> Completion {
        let mut logprobs = logprobs.map(|content| ChoiceLogprobs { content: Some(content) });
        let choices = (0_u32..).zip(texts).map(|(index, text)| Choice {
            index,
            message: ReplyMessage { role: "assistant".to_owned(), content: Some(text) },
            logprobs: logprobs.take(),
            finish_reason: Some(finish_reason.to_owned()),
        });
        Completion {
            choices: choices.collect(),
            id: self.id,
            object: "chat.completion".to_owned(),
            created: self.created,
            model: self.model,
            usage: None,
        }
    }
}

/// A finished text that goes out in pieces.
#[derive(Clone, PartialEq)]
pub struct StreamedReply {
    /// What each chunk says of the reply.
    pub head: ReplyHead,
    /// The text.
    pub text: String,
    /// One entry a token of `text`, or none.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Why the text ends: `stop` or `length`.
    pub finish_reason: String,
}

/// Completions stay out of logs.
impl std::fmt::Debug for StreamedReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamedReply")
            .field("head", &self.head)
            .field("text_bytes", &self.text.len())
            .field("finish_reason", &self.finish_reason)
            .finish_non_exhaustive()
    }
}

impl StreamedReply {
    /// Returns the chunks: the text on character boundaries (a token each where log-probabilities go with it), then
    /// one with the finish reason. The contents joined are the text, the log-probabilities joined are all of them.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk> + '_ {
        let parts = match &self.logprobs {
            Some(logprobs) => token_parts(&self.text, logprobs),
            None => pieces(&self.text, MAX_PIECE_LEN).map(|piece| (piece, None)).collect(),
        };
        let content = parts.into_iter().enumerate().map(|(i, (text, logprobs))| ChunkChoice {
            delta: Delta { role: (i == 0).then(|| "assistant".to_owned()), content: Some(text.to_owned()) },
            logprobs: logprobs.map(|content| ChoiceLogprobs { content: Some(content.to_vec()) }),
            ..ChunkChoice::default()
        });
        let last = ChunkChoice { finish_reason: Some(self.finish_reason.clone()), ..ChunkChoice::default() };
        content.chain([last]).map(|choice| Chunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.head.created,
            model: self.head.model.clone(),
            choices: vec![choice],
        })
    }

    /// Returns the chunks as server-sent events, `[DONE]` at the end.
    pub fn events(&self) -> impl Iterator<Item = Bytes> + '_ {
        self.chunks().map(|chunk| sse::event(&chunk)).chain([sse::DONE])
    }
}

/// A part of a text and the log-probabilities of its tokens.
type Part<'r> = (&'r str, Option<&'r [TokenLogprob]>);

/// Lays tokens along the text they make up. Where a token's text is not what the text goes on with (half a character,
/// or a text cut after generation), the rest of both goes out as one part, so that nothing is lost or invented.
fn token_parts<'r>(text: &'r str, logprobs: &'r [TokenLogprob]) -> Vec<Part<'r>> {
    let mut parts: Vec<Part<'r>> = Vec::with_capacity(logprobs.len() + 1);
    let mut rest = text;
    for (i, logprob) in logprobs.iter().enumerate() {
        let Some(after) = rest.strip_prefix(logprob.token.as_str()) else {
            parts.push((rest, Some(&logprobs[i..])));
            return parts;
        };
        parts.push((&rest[..rest.len() - after.len()], Some(&logprobs[i..=i])));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push((rest, None));
    }
    parts
}

/// Cuts a text into pieces of at most `max_len` bytes (but at least one character), after blanks where there are any.
fn pieces(text: &str, max_len: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut at = rest.floor_char_boundary(max_len);
        if at == 0 {
            at = rest.ceil_char_boundary(1);
        } else if at < rest.len()
            && let Some(blank) = rest[..at].rfind(' ')
        {
            at = blank + 1;
        }
        let (piece, after) = rest.split_at(at);
        rest = after;
        Some(piece)
    })
}

/// The body of an availability question: the names count, their values do not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AvailabilityRequest {
    /// Tasks asked for.
    #[serde(default)]
    pub task_availabilities: BTreeMap<String, serde_json::Value>,
    /// Models asked for.
    #[serde(default)]
    pub llm_model_availabilities: BTreeMap<String, serde_json::Value>,
}

impl AvailabilityRequest {
    /// Most names that are answered.
    pub const MAX_NAMES: usize = 1024;

    /// Makes a question.
    pub fn new(tasks: impl IntoIterator<Item = String>, models: impl IntoIterator<Item = String>) -> Self {
        let map = |(name, value): (String, bool)| (name, value.into());
        Self {
            task_availabilities: tasks.into_iter().map(|name| map((name, false))).collect(),
            llm_model_availabilities: models.into_iter().map(|name| map((name, false))).collect(),
        }
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`super::ChatError`] where it is not two maps with at most [`Self::MAX_NAMES`] names.
    pub fn from_json(body: &[u8]) -> Result<Self, super::ChatError> {
        let expected = "an object with task_availabilities and llm_model_availabilities";
        let error = || super::ChatError::Field { name: "the body".to_owned(), expected };
        // serde would read a list of two maps as well.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(error());
        }
        let request: Self = serde_json::from_slice(body).map_err(|_| error())?;
        let n_names = request.task_availabilities.len() + request.llm_model_availabilities.len();
        if n_names > Self::MAX_NAMES { Err(error()) } else { Ok(request) }
    }
}

/// The answer: the same names, and whether they are served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AvailabilityReply {
    /// Tasks.
    #[serde(default)]
    pub task_availabilities: BTreeMap<String, bool>,
    /// Models.
    #[serde(default)]
    pub llm_model_availabilities: BTreeMap<String, bool>,
}

/// The inner part of an [`ErrorReply`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A few words.
    #[serde(default)]
    pub message: String,
    /// The kind of error.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The HTTP status.
    #[serde(default)]
    pub code: Option<serde_json::Value>,
}

/// The body of a reply with an error status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// The error.
    pub error: ErrorBody,
}

impl ErrorReply {
    /// Makes an error of a category.
    pub fn new(category: Category, message: impl Into<String>) -> Self {
        use Category as C;
        let kind = match category {
            C::Malformed | C::TooLarge | C::NotFound | C::BodyMismatch => "invalid_request_error",
            C::Unauthenticated => "authentication_error",
            C::Forbidden => "permission_error",
            C::RateLimited => "rate_limit_error",
            C::Overloaded | C::Unavailable => "overloaded_error",
            C::Timeout => "timeout_error",
            C::Internal => "server_error",
        };
        let code = Some(status::http_status(category).as_u16().into());
        Self { error: ErrorBody { message: message.into(), kind: kind.to_owned(), code } }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn reply(text: &str, logprobs: Option<Vec<TokenLogprob>>) -> StreamedReply {
        let head = ReplyHead { id: "chatcmpl-1".into(), created: 5, model: "m".into() };
        StreamedReply { head, text: text.to_owned(), logprobs, finish_reason: "stop".into() }
    }

    fn token(text: &str) -> TokenLogprob {
        let top = TopLogprob { token: text.to_owned(), logprob: -0.5 };
        TokenLogprob { token: text.to_owned(), logprob: -0.5, top_logprobs: vec![top] }
    }

    fn joined(reply: &StreamedReply) -> (String, usize) {
        let chunks: Vec<_> = reply.chunks().collect();
        let text = chunks.iter().filter_map(|c| c.choices[0].delta.content.clone()).collect();
        let logprobs = chunks.iter().filter_map(|c| c.choices[0].logprobs.clone()?.content).flatten().count();
        (text, logprobs)
    }

    #[test]
    fn events_have_the_shape_that_validators_read() {
        let events: Vec<_> = reply("Hé", Some(vec![token("H"), token("é")])).events().collect();
        let json = |event: &Bytes| -> Value {
            serde_json::from_slice(event.strip_prefix(b"data: ").unwrap().strip_suffix(b"\n\n").unwrap()).unwrap()
        };
        assert_eq!(events.len(), 4);
        let first = json(&events[0]);
        assert_eq!(
            first["choices"],
            json!([{"index": 0, "delta": {"role": "assistant", "content": "H"}, "finish_reason": null,
                "logprobs": {"content": [{"token": "H", "logprob": -0.5,
                                          "top_logprobs": [{"token": "H", "logprob": -0.5}]}]}}])
        );
        assert_eq!(json(&events[1])["choices"][0]["delta"], json!({"content": "é"}));
        assert_eq!(json(&events[2])["choices"], json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]));
        assert_eq!(events[3], "data: [DONE]\n\n");
    }

    #[test]
    fn tokens_that_do_not_make_up_the_text_lose_nothing() {
        // 😀 came as two tokens, neither of them a character.
        let halves = reply("a😀b", Some(vec![token("a"), token("\u{fffd}"), token("\u{fffd}"), token("b")]));
        assert_eq!(joined(&halves), ("a😀b".to_owned(), 4));
        assert_eq!(joined(&reply("cut", Some(vec![token("c"), token("ut"), token(" off")]))), ("cut".to_owned(), 3));
        assert_eq!(joined(&reply("and more", Some(vec![token("and")]))), ("and more".to_owned(), 1));
        assert_eq!(joined(&reply("", None)), (String::new(), 0));
    }

    #[test]
    fn whole_replies_have_openais_shape() {
        let head = ReplyHead { id: "chatcmpl-1".into(), created: 5, model: "m".into() };
        let completion = head.completion(vec!["x".into(), "y".into()], Some(vec![token("x")]), "length");
        let value = serde_json::to_value(&completion).unwrap();
        assert_eq!(value["object"], "chat.completion");
        assert_eq!(value["choices"][0]["message"], json!({"role": "assistant", "content": "x"}));
        assert_eq!(value["choices"][0]["logprobs"]["content"][0]["token"], "x");
        assert_eq!(value["choices"][1]["logprobs"], Value::Null);
        assert_eq!(value["choices"][1]["finish_reason"], "length");
        assert_eq!(serde_json::from_value::<Completion>(value).unwrap(), completion);
    }

    #[test]
    fn availability_is_asked_by_name() {
        let body = br#"{"task_availabilities": {"QA": true, "Other": false}, "llm_model_availabilities": {"m": null}}"#;
        let request = AvailabilityRequest::from_json(body).unwrap();
        assert_eq!(request.task_availabilities.keys().collect::<Vec<_>>(), ["Other", "QA"]);
        assert_eq!(AvailabilityRequest::from_json(b"{}").unwrap(), AvailabilityRequest::default());
        for bad in [&b"[]"[..], b"", b"{\"task_availabilities\": 1}"] {
            assert!(AvailabilityRequest::from_json(bad).is_err());
        }
        let many = AvailabilityRequest::new((0..2000).map(|i| i.to_string()), []);
        assert!(AvailabilityRequest::from_json(&serde_json::to_vec(&many).unwrap()).is_err());
    }

    #[test]
    fn errors_carry_status_and_kind() {
        let value = serde_json::to_value(ErrorReply::new(Category::Forbidden, "not welcome")).unwrap();
        assert_eq!(value, json!({"error": {"message": "not welcome", "type": "permission_error", "code": 403}}));
    }

    proptest::proptest! {
        #[test]
        fn pieces_make_up_the_text(text in "\\PC{0,200}", max_len in 0..60_usize) {
            let cut: Vec<&str> = pieces(&text, max_len).collect();
            proptest::prop_assert_eq!(cut.concat(), text.as_str());
            proptest::prop_assert!(cut.iter().all(|piece| piece.len() <= max_len.max(4) && !piece.is_empty()));
        }

        #[test]
        fn chunks_make_up_text_and_tokens(text in "\\PC{0,60}", tokens in proptest::collection::vec("\\PC{0,4}", 0..20)) {
            let n_tokens = tokens.len();
            let logprobs = tokens.iter().map(|t| token(t)).collect();
            proptest::prop_assert_eq!(joined(&reply(&text, Some(logprobs))), (text, n_tokens));
        }
    }
}
