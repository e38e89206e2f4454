//! The replies of one step, from a file.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use idiolect_validator::Reply;
use serde::Deserialize;
use serde_json::Value;

use crate::replies;

#[derive(Deserialize)]
struct Object {
    uid: Option<u16>,
    hotkey: Option<String>,
    #[serde(alias = "reply", alias = "completion")]
    text: Option<String>,
    process_time: Option<f64>,
    /// As validators log it: a text. Others write a number.
    status_code: Option<Value>,
}

/// Reads a file's replies in their order; `-` is standard input. A line without a uid has its number less 1, counted over
/// the lines that are not blank.
///
/// # Errors
/// What cannot be read, with the line, and uids that occur twice.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Reply>> {
    let mut all = Vec::new();
    let mut seen = HashMap::new();
    replies::read_lines(path, &mut |number, text| {
        let reply = reply(text, number, all.len())?;
        if let Some(first) = seen.insert(reply.uid, number) {
            bail!("line {number} has the uid {} of line {first}", reply.uid);
        }
        all.push(reply);
        Ok(())
    })?;
    Ok(all)
}

fn reply(text: &str, number: usize, index: usize) -> anyhow::Result<Reply> {
    const EXPECTED: &str =
        "expected a JSON object with text and, if wanted, uid, hotkey, process_time, status_code, or a JSON string";
    let index = || u16::try_from(index).with_context(|| format!("line {number} is beyond the 65536 uids there are"));
    let value: Value = serde_json::from_str(text).with_context(|| format!("line {number} is no JSON; {EXPECTED}"))?;
    if let Value::String(text) = value {
        return Ok(Reply::new(index()?, text));
    }
    let object: Object =
        serde_json::from_value(value).with_context(|| format!("line {number} is not a reply; {EXPECTED}"))?;
    let Object { uid, hotkey, text, process_time, status_code } = object;
    // A call that failed has no text.
    let succeeded = status_code.is_none_or(|code| code == 200 || code == "200");
    let text = match text {
        Some(text) => text,
        None if !succeeded => String::new(),
        None => bail!("line {number} has no text; {EXPECTED}"),
    };
    let uid = uid.map_or_else(index, Ok)?;
    Ok(Reply { uid, hotkey, text, succeeded, process_time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_objects_or_strings() {
        let read = |text: &str| reply(text, 7, 3).map_err(|error| format!("{error:#}"));
        let plain = read("\" a reply \"").unwrap();
        assert_eq!((plain.uid, plain.text.as_str(), plain.succeeded), (3, " a reply ", true));
        let whole =
            read(r#"{"uid": 9, "hotkey": "5F", "completion": "x", "process_time": 1.5, "status_code": "200", "z": 1}"#);
        let expected = Reply { hotkey: Some("5F".to_owned()), process_time: Some(1.5), ..Reply::new(9, "x") };
        assert_eq!(whole.unwrap(), expected);
        for failed in [r#"{"status_code": "408"}"#, r#"{"status_code": 403, "text": "x"}"#] {
            assert!(!read(failed).unwrap().succeeded);
        }
        for (text, expected) in [
            ("x", "line 7 is no JSON"),
            ("{}", "line 7 has no text"),
            (r#"{"uid": 70000, "text": "x"}"#, "line 7 is not a reply"),
            (r#"{"text": "x", "process_time": "soon"}"#, "line 7 is not a reply"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
