//! Replies in files: one JSON object, or text, a line.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, stdin};
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use serde::Deserialize;
use serde_json::Value;

/// One reply of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its `id`; its line's number where it has none.
    pub id: String,
    /// The reply, without the white space around it: validators strip it, too.
    pub text: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Object {
        #[serde(default)]
        id: Option<Value>,
        #[serde(alias = "reply", alias = "completion")]
        text: Option<String>,
    },
}

/// Reads a file's replies in their order; `-` is standard input. Lines without anything on them are passed over.
///
/// # Errors
/// What cannot be read, with the line, and ids that occur twice.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Line>> {
    read_by(path, &mut |input| parse(input))
}

/// Reads each line of a file by the given function, which gets the line's number, from 1, and its text.
///
/// # Errors
/// What cannot be read, with the line.
pub(crate) fn read_lines(path: &Path, read: &mut dyn FnMut(usize, &str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    read_by(path, &mut |input| each_line(input, read))
}

fn read_by<T>(path: &Path, read: &mut dyn FnMut(&mut dyn BufRead) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let lines = if is_standard_input(path) {
        read(&mut stdin().lock())
    } else {
        File::open(path).map_err(anyhow::Error::new).and_then(|file| read(&mut BufReader::new(file)))
    };
    lines.with_context(|| format!("cannot read the replies of {}", name(path)))
}

/// Returns what a file is called in messages.
pub(crate) fn name(path: &Path) -> String {
    if is_standard_input(path) { "standard input".to_owned() } else { path.display().to_string() }
}

/// Says whether a path means standard input, or output.
pub(crate) fn is_standard_input(path: &Path) -> bool {
    path == Path::new("-")
}

fn parse(input: &mut dyn BufRead) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut seen = HashMap::new();
    each_line(input, &mut |number, text| {
        let line = line(text, number)?;
        if let Some(first) = seen.insert(line.id.clone(), number) {
            bail!("line {number} has the id {:?} of line {first}", line.id);
        }
        lines.push(line);
        Ok(())
    })?;
    Ok(lines)
}

/// Gives each line that is not blank to a function, with its number.
fn each_line(input: &mut dyn BufRead, read: &mut dyn FnMut(usize, &str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    for number in 1_usize.. {
        bytes.clear();
        if input.read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        let text = str::from_utf8(&bytes)
            .with_context(|| format!("line {number} is no UTF-8 at byte {}", invalid_at(&bytes)))?
            .trim_start_matches('\u{feff}')
            .trim();
        if !text.is_empty() {
            read(number, text)?;
        }
    }
    Ok(())
}

fn invalid_at(bytes: &[u8]) -> usize {
    str::from_utf8(bytes).err().map_or(0, |error| error.valid_up_to() + 1)
}

fn line(text: &str, number: usize) -> anyhow::Result<Line> {
    const EXPECTED: &str = "expected a JSON object with text and, if wanted, id, or a JSON string";
    let value: Value = serde_json::from_str(text)
        .map_err(|error| anyhow!("line {number} is no JSON at column {}; {EXPECTED}", error.column()))?;
    let (id, text) = match serde_json::from_value(value) {
        Ok(Written::Text(text)) => (None, text),
        Ok(Written::Object { id, text: Some(text) }) => (id, text),
        Ok(Written::Object { text: None, .. }) => bail!("line {number} has no text; {EXPECTED}"),
        Err(_) => bail!("line {number} is not a reply; {EXPECTED}"),
    };
    let id = match id {
        None | Some(Value::Null) => number.to_string(),
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) => id.to_string(),
        Some(other) => bail!("line {number} has the id {other}, expected text or a number"),
    };
    Ok(Line { id, text: text.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &[u8]) -> Result<Vec<(String, String)>, String> {
        let lines = parse(&mut &*text).map_err(|error| format!("{error:#}"))?;
        Ok(lines.into_iter().map(|line| (line.id, line.text)).collect())
    }

    #[test]
    fn lines_are_objects_or_strings() {
        let text = "\u{feff}{\"id\": \"a\", \"text\": \" one \\n\", \"score\": 3}\n\n\"two\"\r\n{\"id\": 7, \"reply\": \"\"}\n{\"completion\": \"x\"}";
        let expected = [("a", "one"), ("3", "two"), ("7", ""), ("5", "x")];
        let expected = expected.map(|(id, text)| (id.to_owned(), text.to_owned()));
        assert_eq!(parsed(text.as_bytes()).unwrap(), expected);
        assert_eq!(parsed(b"").unwrap(), []);
    }

    #[test]
    fn what_is_no_reply_is_named_with_its_line() {
        for (text, expected) in [
            (&b"\"a\"\nb\n"[..], "line 2 is no JSON at column 1; expected a JSON object"),
            (b"[1]", "line 1 is not a reply"),
            (b"{\"id\": \"a\"}", "line 1 has no text"),
            (b"{\"text\": 3}", "line 1 is not a reply"),
            (b"{\"text\": \"x\", \"id\": [1]}", "line 1 has the id [1], expected text or a number"),
            (b"\"a\"\n\"\xff\"", "line 2 is no UTF-8 at byte 2"),
            (b"{\"id\": 2, \"text\": \"x\"}\n\"y\"", "line 2 has the id \"2\" of line 1"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
