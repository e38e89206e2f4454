#![no_main]
//! Streams of server-sent events: how they are cut into pieces makes no difference.

use idiolect_protocol::openai::sse::{Event, SseError, SseParser};

fn parse(data: &[u8], step: usize) -> Result<Vec<Event>, SseError> {
    let mut parser = SseParser::new(512);
    let mut events = Vec::new();
    for piece in data.chunks(step) {
        events.extend(parser.push(piece)?);
    }
    events.extend(parser.finish()?);
    Ok(events)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    assert_eq!(parse(data, usize::from(*first) + 1), parse(data, usize::MAX));
});
