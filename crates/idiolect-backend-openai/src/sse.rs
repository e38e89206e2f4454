//! Server-sent events, bounded and checked.

use serde::Deserialize;

/// Longest single event, in bytes.
const MAX_EVENT: usize = 4 << 20;

/// What comes out of a stream of events.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// One event's JSON, in one line.
    Json(String),
    /// The end that the server itself announced.
    Done,
    /// What came cannot be read.
    Malformed(&'static str),
}

/// Cuts a stream of bytes into events. Pieces may be split anywhere, inside characters too.
#[derive(Debug, Default)]
pub(crate) struct SseDecoder {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    n_bytes: usize,
    over: bool,
}

impl SseDecoder {
    /// Takes the next bytes and returns the events that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<Item> {
        let mut items = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.over {
                break;
            }
            self.n_bytes += piece.len();
            self.line.extend_from_slice(piece);
            if self.n_bytes > MAX_EVENT {
                items.push(self.give_up("an event is too long"));
            } else if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                items.extend(self.line_ended(&line));
            }
        }
        items
    }

    /// Returns what is left when no more bytes come.
    pub(crate) fn finish(&mut self) -> Option<Item> {
        if self.over {
            return None;
        }
        let line = std::mem::take(&mut self.line);
        let item = if line.is_empty() { None } else { self.line_ended(&line) };
        if self.over { item } else { item.or_else(|| self.dispatch()) }
    }

    fn line_ended(&mut self, line: &[u8]) -> Option<Item> {
        let Ok(line) = std::str::from_utf8(line) else { return Some(self.give_up("an event is not UTF-8")) };
        let line = line.trim_end_matches(['\n', '\r']).trim_start_matches('\u{FEFF}');
        if line.is_empty() {
            return self.dispatch();
        }
        if let Some(data) = line.strip_prefix("data:") {
            if self.has_data {
                self.data.push(' '); // JSON may be broken between lines, where a space means the same.
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            self.has_data = true;
        }
        None
    }

    fn dispatch(&mut self) -> Option<Item> {
        self.n_bytes = 0;
        self.has_data = false;
        let data = std::mem::take(&mut self.data);
        let trimmed = data.trim();
        if trimmed.is_empty() {
            return None;
        }
        if trimmed == "[DONE]" {
            self.over = true;
            return Some(Item::Done);
        }
        if is_json(trimmed.as_bytes()) { Some(Item::Json(data)) } else { Some(self.give_up("an event is not JSON")) }
    }

    fn give_up(&mut self, why: &'static str) -> Item {
        *self = Self { over: true, ..Self::default() };
        Item::Malformed(why)
    }
}

/// Says whether these bytes are one JSON value that [`serde_json::Value`] can hold.
pub(crate) fn is_json(bytes: &[u8]) -> bool {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    serde_json::Value::deserialize(&mut reader).is_ok() && reader.end().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Item {
        Item::Json(text.to_owned())
    }

    fn check(bytes: &[u8], expected: &[Item]) {
        for size in [1, 2, 3, 7, bytes.len().max(1)] {
            let mut decoder = SseDecoder::default();
            let mut items: Vec<Item> = bytes.chunks(size).flat_map(|piece| decoder.push(piece)).collect();
            items.extend(decoder.finish());
            assert_eq!(items, expected, "in pieces of {size}: {:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn reads_events_however_they_are_split() {
        check("data: {\"a\":\"Grüße 👋\"}\n\n".as_bytes(), &[json("{\"a\":\"Grüße 👋\"}")]);
        check(
            b"\xEF\xBB\xBF: hi\r\nevent: x\r\nid: 3\r\ndata:{}\r\n\r\ndata: [DONE]\r\n\r\n",
            &[json("{}"), Item::Done],
        );
        check(b"data: {\ndata: }\n\n", &[json("{ }")]);
        check(b"data: [DONE]\n\ndata: {}\n\n", &[Item::Done]);
        check(b"\n\n\ndata:\n\n", &[]);
        check(b"data: {}", &[json("{}")]);
        check(b"", &[]);
    }

    #[test]
    fn gives_up_on_nonsense() {
        check(b"data: {\"a\n\ndata: {}\n\n", &[Item::Malformed("an event is not JSON")]);
        check(b"data: {\"a\": \"b", &[Item::Malformed("an event is not JSON")]);
        check(b"data: \xFF\n\n", &[Item::Malformed("an event is not UTF-8")]);
        let deep = format!("data: {}\n\n", "[".repeat(100_000));
        check(deep.as_bytes(), &[Item::Malformed("an event is not JSON")]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut decoder = SseDecoder::default();
        let piece = vec![b'x'; 1 << 20];
        let items: Vec<Item> = (0..64).flat_map(|_| decoder.push(&piece)).collect();
        assert_eq!(items, [Item::Malformed("an event is too long")]);
        assert!(decoder.line.capacity() <= MAX_EVENT * 2);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_the_same_however_they_are_split(
            text in "(data: ?(\\[DONE\\]|\\{\\}|\\{\"é\":1\\}|x)|:c|event: e|)(\r?\n){1,2}|\\PC{0,4}",
            more in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..12),
            cut in 0_usize..64,
        ) {
            let bytes = [text.as_bytes(), &more, b"\n\ndata: {}\n\n"].concat();
            let read = |pieces: &[&[u8]]| {
                let mut decoder = SseDecoder::default();
                let mut items: Vec<Item> = pieces.iter().flat_map(|piece| decoder.push(piece)).collect();
                items.extend(decoder.finish());
                items
            };
            let (left, right) = bytes.split_at(cut.min(bytes.len()));
            proptest::prop_assert_eq!(read(&[&bytes]), read(&[left, right]));
        }
    }
}
