//! The decoders of a server's bytes, for the fuzz targets. No part of what this crate promises.

use serde_json::Value;

use crate::lane::chunk;
use crate::sse::{Item, SseDecoder};
use crate::wire::WireError;

/// Reads a stream that comes in pieces of `step` bytes, and returns what was said, by which candidate.
#[must_use]
pub fn read_stream(bytes: &[u8], step: usize) -> Vec<(Option<usize>, String)> {
    let mut decoder = SseDecoder::default();
    let mut items = Vec::new();
    for piece in bytes.chunks(step.max(1)) {
        items.extend(decoder.push(piece));
    }
    items.extend(decoder.finish());
    let json = items.into_iter().map_while(|item| match item {
        Item::Json(text) => Some(text),
        Item::Done | Item::Malformed(_) => None,
    });
    json.flat_map(|text| read_whole(text.as_bytes())).collect()
}

/// Reads a whole answer, or one event.
#[must_use]
pub fn read_whole(bytes: &[u8]) -> Vec<(Option<usize>, String)> {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return Vec::new() };
    let Ok(mut chunk) = chunk(value) else { return Vec::new() };
    let said = chunk.choices.iter_mut().map(|choice| {
        let _ = (choice.reason(), choice.take_logprobs(5));
        (choice.index, choice.take_text())
    });
    said.collect()
}

/// Reads the body of a refusal.
pub fn read_error(bytes: &[u8]) {
    let _ = WireError::of_body(bytes).into_fault(500, None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_what_was_said() {
        let stream =
            b"data: {\"choices\": [{\"index\": 1, \"delta\": {\"content\": \"h\xc3\xa9\"}}]}\n\ndata: [DONE]\n\n";
        for step in [1, 7, 1000] {
            assert_eq!(read_stream(stream, step), [(Some(1), "h\u{e9}".to_owned())]);
        }
        assert!(read_whole(b"{").is_empty());
        read_error(b"{\"error\": {\"message\": 7}}");
    }
}
