//! Reading a JSON object field by field without deciding what the fields are.

use std::fmt;

use serde::Deserializer;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Returns an object's fields in order, repeated ones included, each value still as text.
pub(crate) fn fields(text: &str) -> Result<Vec<(String, &RawValue)>, serde_json::Error> {
    fields_up_to(usize::MAX, text).map(Option::unwrap_or_default)
}

/// As [`fields`]; `None` where there are more than `max`, and then nothing beyond them was read.
pub(crate) fn fields_up_to(max: usize, text: &str) -> Result<Option<Vec<(String, &RawValue)>>, serde_json::Error> {
    struct Fields<'f> {
        max: usize,
        is_over: &'f mut bool,
    }
    impl<'de> Visitor<'de> for Fields<'_> {
        type Value = Vec<(String, &'de RawValue)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::with_capacity(12);
            while let Some(field) = map.next_entry()? {
                if fields.len() == self.max {
                    *self.is_over = true;
                    return Err(A::Error::custom("too many fields"));
                }
                fields.push(field);
            }
            Ok(fields)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let mut is_over = false;
    let fields = deserializer.deserialize_map(Fields { max, is_over: &mut is_over });
    if is_over {
        return Ok(None);
    }
    let fields = fields?;
    deserializer.end()?;
    Ok(Some(fields))
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
    fn reading_ends_where_there_are_too_many() {
        assert_eq!(fields_up_to(2, r#"{"a": 1, "b": 2}"#).unwrap().map(|fields| fields.len()), Some(2));
        // What follows the third field is not even JSON.
        assert!(fields_up_to(2, r#"{"a": 1, "b": 2, "c": 3, ]"#).unwrap().is_none());
        assert!(fields_up_to(2, r#"{"a": 1, "b": 2, ]"#).is_err());
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "[]", "{", "{} {}", "{\"a\":}", "null", "{a: 1}"] {
            assert!(fields(text).is_err(), "{text}");
        }
    }
}
