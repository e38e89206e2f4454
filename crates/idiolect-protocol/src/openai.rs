//! OpenAI-shaped chat completions, as the clients of the Epistula and btauth eras send and read them.
//!
//! [`ChatRequest::from_json`] is the one place where such a body is checked. Replies are [`Completion`]s, or streams of
//! [`Chunk`]s as server-sent events: see [`StreamedReply`] and [`sse`].
//!
//! ```
//! use idiolect_protocol::openai::{ChatRequest, ReplyHead, StreamedReply};
//!
//! let body = br#"{"messages": [{"role": "user", "content": "hi"}], "stream": true, "unknown": 1}"#;
//! let request = ChatRequest::from_json(body)?;
//! assert!(request.stream);
//! assert_eq!(request.prompt.messages()[0].content, "hi");
//!
//! let head = ReplyHead { id: "chatcmpl-1".into(), created: 1_700_000_000, model: "m".into() };
//! let reply = StreamedReply { head, text: "Hello!".into(), logprobs: None, finish_reason: "stop".into() };
//! let events: Vec<_> = reply.events().collect();
//! assert!(events[0].starts_with(b"data: {"));
//! assert_eq!(events.last().unwrap(), &b"data: [DONE]\n\n"[..]);
//! # Ok::<(), idiolect_protocol::openai::ChatError>(())
//! ```

mod reply;
mod request;
pub mod sse;

pub use reply::{
    AvailabilityReply, AvailabilityRequest, Choice, ChoiceLogprobs, Chunk, ChunkChoice, Completion, Delta, ErrorBody,
    ErrorReply, ReplyHead, ReplyMessage, StreamedReply, TokenLogprob, TopLogprob, Usage,
};
pub use request::{ChatError, ChatRequest, SamplingParameters};

/// Path of chat completions.
pub const CHAT_PATH: &str = "/v1/chat/completions";
/// Path of the availability question.
pub const AVAILABILITY_PATH: &str = "/availability";
/// Content type of a streamed reply.
pub const EVENT_STREAM: &str = "text/event-stream";
