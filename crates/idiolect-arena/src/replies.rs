//! Recorded replies of many models to the same prompts.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;

use serde::{Deserialize, Deserializer};

use crate::lines::{self, LinesError};

/// One model's reply to one prompt: a line of a file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Recorded {
    /// The prompt's id.
    #[serde(rename = "p")]
    pub prompt: String,
    /// The model.
    #[serde(rename = "m")]
    pub model: String,
    /// The reply, without the white space around it: validators strip it, too.
    #[serde(rename = "t")]
    pub text: String,
    /// A judge's probability that it is better than a reference, in [0, 1], where somebody asked one. For reports only: no choice
    /// sees it.
    #[serde(rename = "q", default)]
    pub label: Option<f32>,
}

/// A prompt that a record has replies to: a line of a file.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct AskedPrompt {
    /// What replies call it.
    #[serde(alias = "p", deserialize_with = "id")]
    pub id: String,
    /// What was asked.
    #[serde(rename = "prompt")]
    pub text: String,
}

impl AskedPrompt {
    /// Reads a file of JSON lines, `{"id": ID, "prompt": TEXT}`, of which the id may be named `p`; other keys are passed over.
    ///
    /// # Errors
    /// Any [`LinesError`].
    pub fn open(path: &Path) -> Result<Vec<Self>, LinesError> {
        lines::read(path)
    }
}

/// Why a file is no record of replies.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepliesError {
    /// It cannot be read.
    #[error("cannot read the replies")]
    Io(#[from] io::Error),
    /// A line is no recorded reply.
    #[error(
        "line {line} is no recorded reply: {problem}; expected a JSON object with p (prompt), m (model) and t (text)"
    )]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A model answers a prompt twice.
    #[error("line {line}: {model} has answered prompt {prompt} in an earlier line")]
    Twice {
        /// Which, from 1.
        line: usize,
        /// The model.
        model: String,
        /// The prompt.
        prompt: String,
    },
    /// Two files have a model answer the same prompt.
    #[error("{model} answers prompt {prompt} in two files")]
    InTwo {
        /// The model.
        model: String,
        /// The prompt.
        prompt: String,
    },
    /// A label is no probability.
    #[error("line {line}: q is {label}, expected a number from 0 to 1")]
    Label {
        /// Which, from 1.
        line: usize,
        /// What it is.
        label: f32,
    },
    /// There is nothing in it.
    #[error("there are no replies")]
    Nothing,
}

/// Recorded replies, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Replies(Vec<Recorded>);

/// Prompts and models are names in most files, and numbers in some.
#[derive(Deserialize)]
struct Line {
    p: serde_json::Value,
    m: String,
    t: String,
    #[serde(default)]
    q: Option<f32>,
}

/// Reads an id, a name or a number.
fn id<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    named(serde_json::Value::deserialize(from)?).map_err(serde::de::Error::custom)
}

fn named(id: serde_json::Value) -> Result<String, String> {
    match id {
        serde_json::Value::String(id) => Ok(id),
        serde_json::Value::Number(id) => Ok(id.to_string()),
        other => Err(format!("is {other}, expected text or a number")),
    }
}

impl Replies {
    /// Reads a file of JSON lines, `{"p": PROMPT, "m": MODEL, "t": TEXT, "q": LABEL}`, of which `q` may be missing; other keys are
    /// passed over. A name that ends in `.zst` is decompressed.
    ///
    /// # Errors
    /// Any [`RepliesError`].
    pub fn open(path: &Path) -> Result<Self, RepliesError> {
        let file = File::open(path)?;
        if path.extension().is_some_and(|extension| extension == "zst") {
            let decoder = ruzstd::decoding::StreamingDecoder::new(file).map_err(io::Error::other)?;
            return Self::read(&mut BufReader::new(decoder));
        }
        Self::read(&mut BufReader::new(file))
    }

    /// Reads JSON lines. Blank ones are passed over.
    ///
    /// # Errors
    /// Any [`RepliesError`], with the number of the line.
    pub fn read(lines: &mut impl BufRead) -> Result<Self, RepliesError> {
        let (mut replies, mut seen, mut bytes) = (Vec::new(), HashSet::new(), Vec::new());
        for line in 1.. {
            bytes.clear();
            // A line of more than a mebibyte is no reply.
            if lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            let text = bytes.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let problem = |error: serde_json::Error| {
                let problem = error.to_string();
                let problem = problem.split(" at line ").next().unwrap_or_default().to_owned();
                RepliesError::Line { line, problem: format!("{problem} at column {}", error.column()) }
            };
            let Line { p, m: model, t, q: label } = serde_json::from_slice(text).map_err(problem)?;
            let prompt = named(p).map_err(|problem| RepliesError::Line { line, problem: format!("p {problem}") })?;
            if let Some(label) = label.filter(|label| !(0.0..=1.0).contains(label)) {
                return Err(RepliesError::Label { line, label });
            }
            if !seen.insert((prompt.clone(), model.clone())) {
                return Err(RepliesError::Twice { line, model, prompt });
            }
            replies.push(Recorded { prompt, model, text: t.trim().to_owned(), label });
        }
        if replies.is_empty() { Err(RepliesError::Nothing) } else { Ok(Self(replies)) }
    }

    /// Adds those of another record behind these.
    ///
    /// # Errors
    /// [`RepliesError::InTwo`] where a model answers a prompt in both.
    pub fn join(&mut self, others: Self) -> Result<(), RepliesError> {
        let known: HashSet<(&str, &str)> = self.0.iter().map(|r| (r.prompt.as_str(), r.model.as_str())).collect();
        if let Some(twice) = others.0.iter().find(|r| known.contains(&(r.prompt.as_str(), r.model.as_str()))) {
            return Err(RepliesError::InTwo { model: twice.model.clone(), prompt: twice.prompt.clone() });
        }
        self.0.extend(others.0);
        Ok(())
    }

    /// Returns all of them.
    #[must_use]
    pub fn all(&self) -> &[Recorded] {
        &self.0
    }

    /// Returns the prompts, by id, with the places of the replies to each.
    #[must_use]
    pub fn by_prompt(&self) -> BTreeMap<&str, Vec<usize>> {
        let mut prompts: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, reply) in self.0.iter().enumerate() {
            prompts.entry(&reply.prompt).or_default().push(index);
        }
        prompts
    }
}

const MAX_LINE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Replies, String> {
        Replies::read(&mut text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn lines_are_read_and_stripped() {
        let replies = read(
            "{\"p\": \"a\", \"m\": \"x\", \"t\": \" hi \\n\", \"q\": 0.25}\n\n{\"p\": 7, \"m\": \"x\", \"t\": \"\", \"z\": 1}\n",
        );
        let replies = replies.unwrap();
        assert_eq!(replies.all()[0].text, "hi");
        assert_eq!((replies.all()[0].label, replies.all()[1].label), (Some(0.25), None));
        assert_eq!(replies.by_prompt().into_keys().collect::<Vec<_>>(), ["7", "a"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, expected) in [
            ("", "there are no replies"),
            ("{\"p\": \"a\", \"m\": \"x\"}", "line 1 is no recorded reply: missing field `t`"),
            ("\n{", "line 2 is no recorded reply: EOF while parsing"),
            (
                "{\"p\": [1], \"m\": \"x\", \"t\": \"\"}",
                "line 1 is no recorded reply: p is [1], expected text or a number",
            ),
            ("{\"p\": 1, \"m\": \"x\", \"t\": \"\", \"q\": 1.5}", "line 1: q is 1.5, expected a number from 0 to 1"),
            (
                "{\"p\": 1, \"m\": \"x\", \"t\": \"\"}\n{\"p\": 1, \"m\": \"x\", \"t\": \"\"}",
                "line 2: x has answered prompt 1 in an earlier line",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn records_are_joined_unless_they_say_two_things() {
        let mut replies = read("{\"p\": 1, \"m\": \"x\", \"t\": \"a\"}").unwrap();
        replies.join(read("{\"p\": 1, \"m\": \"y\", \"t\": \"b\"}").unwrap()).unwrap();
        assert_eq!(replies.by_prompt()["1"], [0, 1]);
        let error = replies.join(read("{\"p\": 1, \"m\": \"y\", \"t\": \"c\"}").unwrap()).unwrap_err();
        assert_eq!((error.to_string().as_str(), replies.all().len()), ("y answers prompt 1 in two files", 2));
    }

    #[test]
    fn prompts_are_called_by_names_or_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.jsonl");
        std::fs::write(&path, "{\"id\": 7, \"prompt\": \"a?\", \"set\": 1}\n{\"p\": \"x\", \"prompt\": \"b?\"}\n")
            .unwrap();
        let prompts = AskedPrompt::open(&path).unwrap();
        assert_eq!([&*prompts[0].id, &*prompts[0].text, &*prompts[1].id], ["7", "a?", "x"]);
        std::fs::write(&path, "{\"id\": [1], \"prompt\": \"a?\"}\n").unwrap();
        let error = AskedPrompt::open(&path).unwrap_err().to_string();
        assert!(error.contains("line 1: is [1], expected text or a number"), "{error}");
    }

    #[test]
    fn compressed_files_are_read_and_damaged_ones_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("replies.jsonl.zst");
        let text = "{\"p\": \"a\", \"m\": \"x\", \"t\": \"hi\"}\n".to_owned();
        let bytes = ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Replies::open(&path).unwrap(), read(&text).unwrap());
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(Replies::open(&path).is_err());
        std::fs::write(&path, "no such format").unwrap();
        assert!(matches!(Replies::open(&path), Err(RepliesError::Io(_))));
    }
}
