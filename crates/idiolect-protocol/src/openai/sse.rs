//! Server-sent events, as far as chat completions use them: `data` lines.
//!
//! ```
//! use idiolect_protocol::openai::sse::{Event, SseParser};
//!
//! let mut parser = SseParser::new(1 << 20);
//! let events = parser.push(b"data: {\"a\":1}\n\nda")?;
//! assert_eq!(events, [Event::Data("{\"a\":1}".to_owned())]);
//! assert_eq!(parser.push(b"ta: [DONE]\n\n")?, [Event::Done]);
//! # Ok::<(), idiolect_protocol::openai::sse::SseError>(())
//! ```

use bytes::Bytes;
use serde::Serialize;

/// The event that ends a stream.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// Writes one event. A value that cannot be serialised gives an empty comment, which readers skip.
pub fn event<T: Serialize + ?Sized>(value: &T) -> Bytes {
    let mut bytes = b"data: ".to_vec();
    match serde_json::to_writer(&mut bytes, value) {
        Ok(()) => bytes.extend_from_slice(b"\n\n"),
        Err(_) => bytes = b":\n\n".to_vec(),
    }
    bytes.into()
}

/// One event of a stream.
#[derive(Clone, PartialEq, Eq)]
pub enum Event {
    /// The joined `data` lines.
    Data(String),
    /// `[DONE]`.
    Done,
}

/// Completions stay out of logs.
impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(data) => write!(f, "Data({} bytes)", data.len()),
            Self::Done => f.write_str("Done"),
        }
    }
}

/// Why a stream cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SseError {
    /// An event is longer than allowed.
    #[error("an event of more than {max_len} bytes")]
    TooLong {
        /// The limit.
        max_len: usize,
    },
    /// An event is no text.
    #[error("an event that is not UTF-8")]
    NotUtf8,
}

/// Puts events together from whatever pieces arrive. Comments and fields other than `data` are skipped.
#[derive(Debug)]
pub struct SseParser {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    was_cr: bool,
    max_len: usize,
}

impl SseParser {
    /// Makes a parser that takes events of at most `max_len` bytes.
    #[must_use]
    pub const fn new(max_len: usize) -> Self {
        Self { line: Vec::new(), data: None, was_cr: false, max_len }
    }

    /// Takes the next bytes and returns the events they complete.
    ///
    /// # Errors
    /// [`SseError`]; the parser is of no use afterwards.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, SseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            let is_second_half = byte == b'\n' && std::mem::take(&mut self.was_cr);
            match byte {
                b'\n' if is_second_half => {}
                b'\n' | b'\r' => {
                    self.was_cr = byte == b'\r';
                    events.extend(self.end_line()?);
                }
                _ => {
                    self.was_cr = false;
                    self.check_len(self.line.len() + 1)?;
                    self.line.push(byte);
                }
            }
        }
        Ok(events)
    }

    /// Ends the stream: an event without its empty line still counts, since some servers forget it.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(mut self) -> Result<Option<Event>, SseError> {
        if !self.line.is_empty() {
            self.end_line()?;
        }
        self.end_event()
    }

    fn check_len(&self, line_len: usize) -> Result<(), SseError> {
        let len = line_len + self.data.as_ref().map_or(0, Vec::len);
        if len > self.max_len { Err(SseError::TooLong { max_len: self.max_len }) } else { Ok(()) }
    }

    fn end_line(&mut self) -> Result<Option<Event>, SseError> {
        if self.line.is_empty() {
            return self.end_event();
        }
        if let Some(value) = self.line.strip_prefix(b"data")
            && let Some(value) = if value.is_empty() { Some(value) } else { value.strip_prefix(b":") }
        {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        self.line.clear();
        Ok(None)
    }

    fn end_event(&mut self) -> Result<Option<Event>, SseError> {
        let Some(data) = self.data.take() else { return Ok(None) };
        let text = String::from_utf8(data).map_err(|_| SseError::NotUtf8)?;
        Ok(Some(if text.trim() == "[DONE]" { Event::Done } else { Event::Data(text) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(text: &str) -> Event {
        Event::Data(text.to_owned())
    }

    fn parse(bytes: &[u8], step: usize) -> Result<Vec<Event>, SseError> {
        let mut parser = SseParser::new(1000);
        let mut events = Vec::new();
        for piece in bytes.chunks(step) {
            events.extend(parser.push(piece)?);
        }
        events.extend(parser.finish()?);
        Ok(events)
    }

    #[test]
    fn events_come_out_of_any_pieces_and_line_ends() {
        let check = |text: &str, expected: &[Event]| {
            for step in 1..=text.len().max(1) {
                assert_eq!(parse(text.as_bytes(), step).unwrap(), expected, "{text:?} in steps of {step}");
            }
        };
        check("", &[]);
        check("data: a\n\ndata: b\n\n", &[data("a"), data("b")]);
        check("data:a\r\n\r\ndata: [DONE]\r\n\r\n", &[data("a"), Event::Done]);
        check("data: a\r\rdata: b\r\r", &[data("a"), data("b")]);
        check("data: a\ndata: b\n\n", &[data("a\nb")]);
        check(": comment\nevent: x\nid: 1\ndata: é\n\n", &[data("é")]);
        check("data\n\n", &[data("")]);
        check("database: no\n\n\n\n", &[]);
        check("data: no empty line", &[data("no empty line")]);
    }

    #[test]
    fn long_events_and_broken_text_are_refused() {
        let long = format!("data: {}\n\n", "x".repeat(2000));
        assert_eq!(parse(long.as_bytes(), 7), Err(SseError::TooLong { max_len: 1000 }));
        let many = "data: xxxxxxxxxxxxx\n".repeat(100);
        assert_eq!(parse(many.as_bytes(), 7), Err(SseError::TooLong { max_len: 1000 }));
        assert_eq!(parse(b"data: \xff\n\n", 7), Err(SseError::NotUtf8));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic_and_steps_do_not_matter(bytes: Vec<u8>, step in 1..9_usize) {
            proptest::prop_assert_eq!(parse(&bytes, step), parse(&bytes, usize::MAX));
        }

        #[test]
        fn what_is_written_is_read(text: String) {
            let events = parse(&event(&text), 5);
            let expected = serde_json::to_string(&text).unwrap();
            if expected.len() < 900 {
                proptest::prop_assert_eq!(events, Ok(vec![Event::Data(expected)]));
            }
        }
    }
}
