//! Reading a JSON object field by field without deciding what the fields are.

use std::fmt;

use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// Returns an object's fields in order, repeated ones included, each value still as text.
pub(crate) fn fields(text: &str) -> Result<Vec<(String, &RawValue)>, serde_json::Error> {
    struct Fields;
    impl<'de> Visitor<'de> for Fields {
        type Value = Vec<(String, &'de RawValue)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::with_capacity(12);
            while let Some(field) = map.next_entry()? {
                fields.push(field);
            }
            Ok(fields)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let fields = deserializer.deserialize_map(Fields)?;
    deserializer.end()?;
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_order_with_their_text() {
        let fields = fields(r#" {"b": [1, 2],"a":"x","b":null } "#).unwrap();
        let fields: Vec<_> = fields.iter().map(|(key, raw)| (key.as_str(), raw.get())).collect();
        assert_eq!(fields, [("b", "[1, 2]"), ("a", "\"x\""), ("b", "null")]);
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "[]", "{", "{} {}", "{\"a\":}", "null", "{a: 1}"] {
            assert!(fields(text).is_err(), "{text}");
        }
    }
}
