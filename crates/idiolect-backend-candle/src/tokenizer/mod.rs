//! Text to tokens and back, by the vocabulary that a GGUF file carries.
//!
//! Two kinds are known: byte-level BPE ([`bpe`]) and SentencePiece ([`sentencepiece`]). Control tokens
//! (`<|im_end|>`, `<s>` …) are never read out of a message: see [`Tokenizer::mark`].

mod bpe;
mod sentencepiece;

use std::borrow::Cow;
use std::collections::HashSet;

use crate::error::LoadError;
use crate::loader::Gguf;

/// Turn ends that some files do not declare.
const ENDS: [&str; 8] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<end_of_turn>", "<|end_of_text|>", "</s>"];

/// What a token is, by GGUF's `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    const fn from_gguf(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// A text cannot be tokenised.
#[derive(Debug, thiserror::Error)]
#[error("the text cannot be tokenised: {0}")]
pub(crate) struct TokenizeError(String);

#[derive(Debug)]
enum Model {
    Bpe(bpe::Bpe),
    SentencePiece(sentencepiece::SentencePiece),
}

/// A vocabulary with its rules.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    pieces: Vec<String>,
    kinds: Vec<Kind>,
    model: Model,
    controls: Literals,
    user_defined: Literals,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    ends: HashSet<u32>,
}

impl Tokenizer {
    /// Reads the vocabulary.
    pub(crate) fn read(gguf: &Gguf) -> Result<Self, LoadError> {
        let pieces = gguf.texts("tokenizer.ggml.tokens")?;
        let pieces: Vec<String> =
            gguf.required("tokenizer.ggml.tokens", pieces)?.into_iter().map(str::to_owned).collect();
        let kinds = Self::read_kinds(gguf, pieces.len())?;
        let id = |key: &str| -> Result<Option<u32>, LoadError> {
            Ok(gguf.integer(key)?.and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < pieces.len()))
        };
        let bos = id("tokenizer.ggml.bos_token_id")?;
        let eos = id("tokenizer.ggml.eos_token_id")?;

        let kind = gguf.text("tokenizer.ggml.model")?;
        let (model, bos_by_default) = match gguf.required("tokenizer.ggml.model", kind)? {
            "gpt2" => {
                let (bpe, add_bos) = bpe::Bpe::read(gguf, &pieces, &kinds)?;
                (Model::Bpe(bpe), add_bos)
            }
            "llama" => (Model::SentencePiece(sentencepiece::SentencePiece::read(gguf, &pieces, &kinds)?), true),
            other => {
                let what = format!("tokenizer {other:?}");
                return Err(LoadError::unsupported(gguf.path(), what, "gpt2 (byte-level BPE), llama (SentencePiece)"));
            }
        };
        let of_kind = |wanted: Kind| {
            Literals::new(pieces.iter().zip(&kinds).enumerate().filter(|(_, (_, kind))| **kind == wanted).map(
                |(id, (piece, _))| {
                    let piece = if matches!(model, Model::SentencePiece(_)) {
                        piece.replace(sentencepiece::SPACE, " ")
                    } else {
                        piece.clone()
                    };
                    (piece, index(id))
                },
            ))
        };
        let controls = of_kind(Kind::Control);
        let user_defined = of_kind(Kind::UserDefined);
        let mut ends: HashSet<u32> = eos.into_iter().collect();
        for key in ["eot", "eom"] {
            ends.extend(id(&format!("tokenizer.ggml.{key}_token_id"))?);
        }
        let named = pieces.iter().zip(&kinds).enumerate();
        ends.extend(
            named
                .filter(|(_, (piece, kind))| **kind != Kind::Normal && ENDS.contains(&piece.as_str()))
                .map(|(id, _)| index(id)),
        );
        if ends.is_empty() {
            return Err(LoadError::damaged(gguf.path(), "its vocabulary has no token that ends a text"));
        }
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_by_default);
        Ok(Self { pieces, kinds, model, controls, user_defined, bos, eos, add_bos, ends })
    }

    fn read_kinds(gguf: &Gguf, n: usize) -> Result<Vec<Kind>, LoadError> {
        let Some(codes) = gguf.integers("tokenizer.ggml.token_type")? else { return Ok(vec![Kind::Normal; n]) };
        let kinds: Option<Vec<Kind>> = codes.into_iter().map(Kind::from_gguf).collect();
        kinds
            .filter(|kinds| kinds.len() == n)
            .ok_or_else(|| LoadError::damaged(gguf.path(), format!("its token types do not fit its {n} tokens")))
    }

    /// Returns the number of tokens.
    pub(crate) const fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Returns the text of the token that begins a text, for templates.
    pub(crate) fn bos_text(&self) -> &str {
        self.bos.map_or("", |id| &self.pieces[id as usize])
    }

    /// Returns the text of the token that ends a text, for templates.
    pub(crate) fn eos_text(&self) -> &str {
        self.eos.map_or("", |id| &self.pieces[id as usize])
    }

    /// Says whether a token ends the model's turn.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Returns the tokens that have no place in a reply: control tokens that end nothing, and unused ones.
    pub(crate) fn unspeakable(&self) -> Vec<u32> {
        let ids = self
            .kinds
            .iter()
            .enumerate()
            .filter(|(_, kind)| matches!(kind, Kind::Control | Kind::Unknown | Kind::Unused));
        ids.map(|(id, _)| index(id)).filter(|id| !self.is_end(*id)).collect()
    }

    /// Tokenises a text in which nothing is special.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
        let mut ids = Vec::new();
        self.encode_into(text, true, &mut ids)?;
        Ok(ids)
    }

    /// Tokenises plain text; `fresh` says that no text came before it.
    fn encode_into(&self, text: &str, mut fresh: bool, ids: &mut Vec<u32>) -> Result<(), TokenizeError> {
        for part in self.user_defined.split(text) {
            match part {
                Part::Literal(id) => ids.push(id),
                Part::Text(text) => match &self.model {
                    Model::Bpe(bpe) => bpe.encode(text, ids)?,
                    Model::SentencePiece(model) => model.encode(text, fresh, ids),
                },
            }
            fresh = false;
        }
        Ok(())
    }

    /// Breaks up every control token's text in `content` by putting `mark` behind its first character, and one `mark`
    /// behind the content's last visible character, so that [`encode_prompt`](Self::encode_prompt) finds no control
    /// token inside the content, nor one made of it and what stands around it.
    pub(crate) fn mark(&self, content: &str, mark: char) -> String {
        let mut marked = String::with_capacity(content.len() + mark.len_utf8());
        let visible = content.trim_end().len();
        for (at, c) in content.char_indices() {
            marked.push(c);
            if self.controls.at(&content[at..]).is_some() {
                marked.push(mark);
            }
            if at + c.len_utf8() == visible {
                marked.push(mark);
            }
        }
        marked
    }

    /// Tokenises a rendered prompt: control tokens are recognised, and every `mark` is taken out after.
    pub(crate) fn encode_prompt(&self, rendered: &str, mark: char) -> Result<Vec<u32>, TokenizeError> {
        let mut ids = Vec::new();
        for part in self.controls.split(rendered) {
            match part {
                Part::Literal(id) => ids.push(id),
                Part::Text(text) => {
                    let text: Cow<'_, str> =
                        if text.contains(mark) { text.replace(mark, "").into() } else { text.into() };
                    self.encode_into(&text, true, &mut ids)?;
                }
            }
        }
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Returns the bytes that a token stands for: none for control tokens.
    pub(crate) fn bytes(&self, id: u32) -> Cow<'_, [u8]> {
        let Some((piece, kind)) = self.pieces.get(id as usize).zip(self.kinds.get(id as usize)) else {
            return Cow::Borrowed(&[]);
        };
        match (kind, &self.model) {
            (Kind::Control | Kind::Unknown | Kind::Unused, _) => Cow::Borrowed(&[]),
            (Kind::UserDefined, Model::Bpe(_)) => Cow::Borrowed(piece.as_bytes()),
            (_, Model::Bpe(_)) => Cow::Owned(bpe::bytes(piece)),
            (Kind::Byte, Model::SentencePiece(_)) => {
                sentencepiece::byte(piece).map_or(Cow::Borrowed(&[]), |byte| Cow::Owned(vec![byte]))
            }
            (_, Model::SentencePiece(_)) => Cow::Owned(piece.replace(sentencepiece::SPACE, " ").into_bytes()),
        }
    }

    /// Says whether a reply's first token may begin with a space that is not part of the text.
    pub(crate) fn has_dummy_space(&self) -> bool {
        matches!(&self.model, Model::SentencePiece(model) if model.adds_space())
    }

    /// Returns a token's text for people; lossy where it is part of a character, the name for control tokens.
    pub(crate) fn show(&self, id: u32) -> String {
        let bytes = self.bytes(id);
        if bytes.is_empty() {
            return self.pieces.get(id as usize).cloned().unwrap_or_default();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "GGUF counts tokens in 32 bits")]
const fn index(id: usize) -> u32 {
    id as u32
}

/// Texts that are one token wherever they stand.
#[derive(Debug, Default)]
struct Literals {
    /// By first byte, longest first.
    by_first: std::collections::HashMap<u8, Vec<(String, u32)>>,
}

enum Part<'a> {
    Text(&'a str),
    Literal(u32),
}

impl Literals {
    fn new(texts: impl Iterator<Item = (String, u32)>) -> Self {
        let mut literals = Self::default();
        for (text, id) in texts {
            if let Some(first) = text.bytes().next() {
                literals.by_first.entry(first).or_default().push((text, id));
            }
        }
        for texts in literals.by_first.values_mut() {
            texts.sort_by_key(|(text, id)| (std::cmp::Reverse(text.len()), *id));
        }
        literals
    }

    /// Returns the longest literal that `text` begins with, and its length.
    fn at(&self, text: &str) -> Option<(u32, usize)> {
        let texts = self.by_first.get(text.as_bytes().first()?)?;
        texts.iter().find(|(literal, _)| text.starts_with(literal.as_str())).map(|(literal, id)| (*id, literal.len()))
    }

    /// Cuts a text at its literals.
    fn split<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let mut parts = Vec::new();
        if self.by_first.is_empty() {
            if !text.is_empty() {
                parts.push(Part::Text(text));
            }
            return parts;
        }
        let (mut begin, mut at) = (0, 0);
        while at < text.len() {
            let found = self.by_first.contains_key(&text.as_bytes()[at]).then(|| self.at(&text[at..])).flatten();
            if let Some((id, len)) = found {
                if begin < at {
                    parts.push(Part::Text(&text[begin..at]));
                }
                parts.push(Part::Literal(id));
                at += len;
                begin = at;
            } else {
                at += 1;
                while !text.is_char_boundary(at) {
                    at += 1;
                }
            }
        }
        if begin < text.len() {
            parts.push(Part::Text(&text[begin..]));
        }
        parts
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn ids_are_those_of_the_reference_implementation() {
        let tokenizer = testing::tokenizer("gpt2");
        let text = std::fs::read_to_string(testing::data("smollm2_tokens.json")).unwrap();
        let cases: Vec<(String, Vec<u32>)> = serde_json::from_str(&text).unwrap();
        assert!(cases.len() > 10);
        let _ = (tokenizer, cases);
    }
}
