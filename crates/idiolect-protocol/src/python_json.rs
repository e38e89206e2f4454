//! JSON as Python's `json.dumps` writes it: a blank after `,` and `:`, and nothing but ASCII.

use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};

/// Writes `value` as Python would.
///
/// Used for requests only, so that they look like those of the clients they stand for.
pub(crate) fn to_string<T: Serialize + ?Sized>(value: &T) -> Result<String, serde_json::Error> {
    let mut bytes = Vec::with_capacity(256);
    value.serialize(&mut Serializer::with_formatter(&mut bytes, PythonFormatter(CompactFormatter)))?;
    // The formatter writes ASCII, so this copies nothing and cannot fail.
    String::from_utf8(bytes).map_err(|error| serde_json::Error::io(io::Error::new(io::ErrorKind::InvalidData, error)))
}

struct PythonFormatter(CompactFormatter);

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| !c.is_ascii()) {
            self.0.write_string_fragment(writer, &rest[..at])?;
            let mut chars = rest[at..].chars();
            if let Some(c) = chars.next() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = chars.as_str();
        }
        self.0.write_string_fragment(writer, rest)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_what_python_writes() {
        let value = json!({"role": "user", "content": "\u{1f600} \"q\" it's\n", "list": [1, 2.0, null], "b": "café\u{7f}\u{1}"});
        let expected = "{\"role\": \"user\", \"content\": \"\\ud83d\\ude00 \\\"q\\\" it's\\n\", \
                        \"list\": [1, 2.0, null], \"b\": \"caf\\u00e9\u{7f}\\u0001\"}";
        assert_eq!(to_string(&value).unwrap(), expected);
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_reads_back(text: String) {
            let written = to_string(&text).unwrap();
            proptest::prop_assert!(written.is_ascii());
            proptest::prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }
}
