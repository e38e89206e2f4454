#![no_main]
//! Answers of OpenAI-shaped servers, streamed and whole: how a stream is cut into pieces makes no difference.

use idiolect_backend_openai::fuzzing::{read_error, read_stream, read_whole};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, data)) = data.split_first() else { return };
    assert_eq!(read_stream(data, usize::from(*first) + 1), read_stream(data, usize::MAX));
    let _ = read_whole(data);
    read_error(data);
});
