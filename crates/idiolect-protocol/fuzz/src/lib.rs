//! What the fuzz targets share: input bytes cut into header values and a body.

use http::{HeaderMap, HeaderName, HeaderValue};
use idiolect_protocol::Hotkey;

/// The key of the miner that is asked.
pub const RECEIVER: Hotkey = Hotkey::from_bytes([7; 32]);

/// Takes one line of the input for each name, as the header's value; returns what is left as the body. A line of `!`
/// leaves the header out, and one that starts with `@` stands for the miner's own address.
pub fn headers<'d>(names: &[&'static str], mut data: &'d [u8]) -> (HeaderMap, &'d [u8]) {
    let mut headers = HeaderMap::new();
    for name in names {
        let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
        let (line, rest) = data.split_at(end);
        data = rest.get(1..).unwrap_or_default();
        let value = match line {
            b"!" => continue,
            [b'@', ..] => HeaderValue::try_from(RECEIVER.to_string()).ok(),
            line => HeaderValue::from_bytes(line).ok(),
        };
        if let Some(value) = value {
            headers.append(HeaderName::from_static(name), value);
        }
    }
    (headers, data)
}
