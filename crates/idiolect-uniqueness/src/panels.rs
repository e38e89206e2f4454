//! Recorded replies of others, by the prompts that they answer.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead};

use idiolect_backend::Embedding;
use serde::Deserialize;

use crate::population::Panel;

/// One recorded reply of a rival: a line of a panel's file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// What provenance calls it; its line's number where it has none.
    #[serde(default)]
    pub id: String,
    /// The prompt that it answers; without one it is kept away from whatever the prompt.
    #[serde(default)]
    pub prompt: Option<String>,
    /// What it says.
    pub text: String,
}

/// Why a file is no panel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PanelError {
    /// It cannot be read.
    #[error("cannot read the panel")]
    Io(#[from] io::Error),
    /// A line is no recorded reply.
    #[error(
        "line {line} is no recorded reply: {problem}; expected a JSON object with text and, if wanted, prompt and id"
    )]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it, and at which column.
        problem: String,
    },
    /// A reply says nothing.
    #[error("line {line} has a text without any words")]
    Empty {
        /// Which, from 1.
        line: usize,
    },
    /// Two replies have one name.
    #[error("line {line} has the id {id:?} of an earlier line")]
    Twice {
        /// Which, from 1.
        line: usize,
        /// The name.
        id: String,
    },
    /// There is nothing in it.
    #[error("the panel has no replies")]
    Nothing,
}

/// Reads a panel's file: one JSON object a line, `{"text": …, "prompt": …, "id": …}`, of which `text` is needed. Lines without
/// anything on them are passed over.
///
/// # Errors
/// Any [`PanelError`], with the number of the line.
///
/// # Examples
/// ```
/// use idiolect_uniqueness::panels::read_panel;
///
/// let file = r#"{"id": "gpt", "prompt": "Why is the sky blue?", "text": "Because of scattering."}"#;
/// assert_eq!(read_panel(&mut file.as_bytes()).unwrap()[0].id, "gpt");
/// ```
pub fn read_panel(lines: &mut dyn BufRead) -> Result<Vec<Recorded>, PanelError> {
    let (mut replies, mut ids, mut bytes): (Vec<Recorded>, _, _) = (Vec::new(), HashSet::new(), Vec::new());
    for line in 1.. {
        bytes.clear();
        if lines.read_until(b'\n', &mut bytes)? == 0 {
            break;
        }
        let text = bytes.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let mut reply: Recorded = serde_json::from_slice(text)
            .map_err(|error| PanelError::Line { line, problem: crate::history::in_a_line(&error) })?;
        if reply.text.trim().is_empty() {
            return Err(PanelError::Empty { line });
        }
        if reply.id.is_empty() {
            reply.id = line.to_string();
        }
        if !ids.insert(reply.id.clone()) {
            return Err(PanelError::Twice { line, id: reply.id });
        }
        replies.push(reply);
    }
    if replies.is_empty() { Err(PanelError::Nothing) } else { Ok(replies) }
}

/// Recorded replies of rivals in one encoder's space, by prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Panels {
    dimensions: usize,
    by_prompt: HashMap<String, Panel>,
    elsewhere: Panel,
}

impl Panels {
    /// Makes an empty collection for embeddings of one encoder.
    #[must_use]
    pub fn new(encoder: impl Into<String>, dimensions: usize) -> Self {
        Self { dimensions, by_prompt: HashMap::new(), elsewhere: Panel::new(encoder, dimensions) }
    }

    /// Adds a reply to a prompt, or one that counts whatever the prompt. Says whether it could: an embedding of another size, or
    /// without a direction, is left out.
    pub fn push(&mut self, prompt: Option<&str>, label: impl Into<String>, embedding: &Embedding) -> bool {
        let panel = match prompt {
            None => &mut self.elsewhere,
            Some(prompt) => {
                let fresh = || Panel::new(self.elsewhere.encoder(), self.dimensions);
                self.by_prompt.entry(prompt.trim().to_owned()).or_insert_with(fresh)
            }
        };
        panel.push(label, embedding)
    }

    /// Returns the encoder's name.
    #[must_use]
    pub fn encoder(&self) -> &str {
        self.elsewhere.encoder()
    }

    /// Returns how many replies there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.elsewhere.len() + self.by_prompt.values().map(Panel::len).sum::<usize>()
    }

    /// Says whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the replies to this prompt: the last thing that the user said, without the white space around it.
    #[must_use]
    pub fn to_prompt(&self, prompt: &str) -> Option<&Panel> {
        self.by_prompt.get(prompt.trim())
    }

    /// Returns the replies that count whatever the prompt.
    #[must_use]
    pub const fn elsewhere(&self) -> &Panel {
        &self.elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_found_by_their_prompt() {
        let mut panels = Panels::new("e", 2);
        assert!(panels.is_empty());
        assert!(panels.push(Some(" Why?\n"), "a", &vec![1.0, 0.0]));
        assert!(panels.push(Some("Why?"), "b", &vec![0.0, 1.0]));
        assert!(panels.push(None, "c", &vec![1.0, 1.0]));
        for bad in [vec![], vec![1.0], vec![0.0, 0.0], vec![f32::NAN, 1.0]] {
            assert!(!panels.push(None, "bad", &bad) && !panels.push(Some("Why?"), "bad", &bad), "{bad:?}");
        }
        assert_eq!((panels.len(), panels.encoder()), (3, "e"));
        assert_eq!(panels.to_prompt("Why? ").unwrap().nearest(&[0.1, 1.0]).unwrap().0, "b");
        assert!(panels.to_prompt("How?").is_none());
        assert_eq!(panels.elsewhere().nearest(&[1.0, 1.0]).unwrap().0, "c");
    }

    #[test]
    fn bad_lines_are_named() {
        let read = |text: &[u8]| read_panel(&mut { text }).map_err(|error| error.to_string());
        let good = read(b"{\"text\": \"x\"}\n\n{\"id\": \"i\", \"prompt\": \"p\", \"text\": \"y\"}").unwrap();
        assert_eq!((good[0].id.as_str(), good[1].prompt.as_deref()), ("1", Some("p")));
        for (bad, why) in [
            (&b""[..], "no replies"),
            (b"\n \n", "no replies"),
            (b"{\"text\": \"x\"}\n{\"text\": \" \"}", "line 2 has a text without any words"),
            (b"{\"id\": \"a\"}", "line 1 is no recorded reply: missing field `text`"),
            (b"{\"text\": \"x\", \"model\": 1}", "unknown field `model`"),
            (b"\xff", "line 1"),
            (b"{\"text\": \"\xff\"}", "line 1"),
            (b"{\"text\": \"x\", \"id\": \"2\"}\n{\"text\": \"y\"}", "line 2 has the id \"2\" of an earlier line"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
