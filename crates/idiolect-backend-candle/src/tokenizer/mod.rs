//! Text to tokens and back, by the vocabulary that a GGUF file carries or that lies beside safetensors.
//!
//! Two kinds are known: BPE ([`bpe`]; from GGUF files byte-level only) and SentencePiece ([`sentencepiece`]). Control tokens
//! (`<|im_end|>`, `<s>` …) are never read out of a message: see [`Tokenizer::mark`].

mod bpe;
mod json;
mod sentencepiece;

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;

use crate::error::LoadError;
use crate::loader::Gguf;
use crate::weights::Weights;

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
    Bpe(Box<bpe::Bpe>),
    SentencePiece(sentencepiece::SentencePiece),
}

/// What pieces are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// One printable character for each byte.
    Bytes,
    /// Characters, with a mark for the space and pieces of one byte for what the vocabulary lacks.
    Text,
}

/// What stands before a stretch of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Control,
    Text,
}

/// A text that is one token wherever it stands.
struct Literal {
    text: String,
    id: u32,
    control: bool,
    /// Whether white space behind it belongs to it.
    eats_space: bool,
}

/// What a vocabulary's file says.
struct Parts {
    pieces: Vec<String>,
    kinds: Vec<Kind>,
    model: Model,
    literals: Vec<Literal>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    /// Ends of a reply, beside `eos` and those known by name.
    ends: Vec<u32>,
}

/// A vocabulary with its rules.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    pieces: Vec<String>,
    kinds: Vec<Kind>,
    model: Model,
    controls: Literals,
    user_defined: Literals,
    eats_space: HashSet<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    ends: HashSet<u32>,
    max_token_bytes: usize,
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
                (Model::Bpe(Box::new(bpe)), add_bos)
            }
            "llama" => (Model::SentencePiece(sentencepiece::SentencePiece::read(gguf, &pieces, &kinds)?), true),
            other => {
                let what = format!("tokenizer {other:?}");
                return Err(LoadError::unsupported(gguf.path(), what, "gpt2 (byte-level BPE), llama (SentencePiece)"));
            }
        };
        let text_style = matches!(model, Model::SentencePiece(_));
        // What llama.cpp does for these, too: their templates have line ends that the model never saw.
        let phi3 = text_style && gguf.text("general.architecture")? == Some("phi3");
        let literals = pieces
            .iter()
            .zip(&kinds)
            .enumerate()
            .filter(|(_, (_, kind))| matches!(kind, Kind::Control | Kind::UserDefined))
            .map(|(id, (piece, kind))| Literal {
                text: if text_style { piece.replace(sentencepiece::SPACE, " ") } else { piece.clone() },
                id: index(id),
                control: *kind == Kind::Control,
                eats_space: phi3 && *kind == Kind::Control && !matches!(piece.as_str(), "<s>" | "<|endoftext|>"),
            })
            .collect();
        let mut ends = Vec::new();
        for key in ["eot", "eom"] {
            ends.extend(id(&format!("tokenizer.ggml.{key}_token_id"))?);
        }
        let add_bos = gguf.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(bos_by_default);
        Self::assemble(Parts { pieces, kinds, model, literals, bos, eos, add_bos, ends }, gguf.path())
    }

    /// Reads the vocabulary of a model in either kind of file.
    pub(crate) fn of(weights: &Weights) -> Result<Self, LoadError> {
        match weights.gguf() {
            Some(gguf) => Self::read(gguf),
            None => Self::from_folder(weights.path()),
        }
    }

    /// Reads `tokenizer.json` and the settings beside it.
    pub(crate) fn from_folder(dir: &Path) -> Result<Self, LoadError> {
        Self::assemble(json::read(dir)?, &dir.join("tokenizer.json"))
    }

    fn assemble(parts: Parts, path: &Path) -> Result<Self, LoadError> {
        let Parts { pieces, kinds, model, literals, bos, eos, add_bos, ends } = parts;
        let named = pieces.iter().zip(&kinds).enumerate();
        let named = named.filter(|(_, (piece, kind))| **kind != Kind::Normal && ENDS.contains(&piece.as_str()));
        let ends: HashSet<u32> = ends.into_iter().chain(eos).chain(named.map(|(id, _)| index(id))).collect();
        if ends.is_empty() {
            return Err(LoadError::damaged(path, "its vocabulary has no token that ends a text"));
        }
        let (controls, others): (Vec<Literal>, Vec<Literal>) =
            literals.into_iter().partition(|literal| literal.control);
        let eats_space = controls.iter().filter(|literal| literal.eats_space).map(|literal| literal.id).collect();
        let mut tokenizer = Self {
            pieces,
            kinds,
            model,
            controls: Literals::new(controls),
            user_defined: Literals::new(others),
            eats_space,
            bos,
            eos,
            add_bos,
            ends,
            max_token_bytes: 1,
        };
        tokenizer.max_token_bytes = tokenizer.longest();
        Ok(tokenizer)
    }

    /// Returns the most bytes of a text that one token can stand for, which bounds a text's tokens from below.
    pub(crate) const fn max_token_bytes(&self) -> usize {
        self.max_token_bytes
    }

    fn longest(&self) -> usize {
        let lengths = (0..self.pieces.len()).map(|id| self.bytes(index(id)).len().max(self.pieces[id].len()));
        let longest = lengths.max().unwrap_or(1).max(4);
        match &self.model {
            // Composing characters makes a text shorter, three bytes to one at most.
            Model::Bpe(bpe) if bpe.normalizes() => longest * 3,
            _ => longest,
        }
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

    /// Says whether a text is a control token.
    pub(crate) fn has_control(&self, text: &str) -> bool {
        self.controls.at(text).is_some_and(|(_, len)| len == text.len())
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
        self.encode_into(text, Before::Nothing, &mut ids)?;
        Ok(ids)
    }

    /// Tokenises a text that stands at the beginning, behind the beginning's own token where the model has one there.
    pub(crate) fn encode_from_beginning(&self, text: &str) -> Result<Vec<u32>, TokenizeError> {
        let mut ids: Vec<u32> = self.bos.filter(|_| self.add_bos).into_iter().collect();
        self.encode_into(text, Before::Nothing, &mut ids)?;
        Ok(ids)
    }

    /// Tokenises plain text.
    fn encode_into(&self, text: &str, mut before: Before, ids: &mut Vec<u32>) -> Result<(), TokenizeError> {
        for part in self.user_defined.split(text) {
            match part {
                Part::Literal(id) => ids.push(id),
                Part::Text(text) => match &self.model {
                    Model::Bpe(bpe) => bpe.encode(text, before, ids)?,
                    Model::SentencePiece(model) => model.encode(text, before != Before::Text, ids),
                },
            }
            before = Before::Text;
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
        let mut before = Before::Nothing;
        for part in self.controls.split(rendered) {
            match part {
                Part::Literal(id) => ids.push(id),
                Part::Text(text) => {
                    let text: Cow<'_, str> =
                        if text.contains(mark) { text.replace(mark, "").into() } else { text.into() };
                    let eaten = before == Before::Control && ids.last().is_some_and(|id| self.eats_space.contains(id));
                    let text = if eaten { text.trim_start() } else { &text };
                    if !text.is_empty() {
                        self.encode_into(text, before, &mut ids)?;
                    }
                }
            }
            before = Before::Control;
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
        match (kind, self.style()) {
            (Kind::Control | Kind::Unknown | Kind::Unused, _) => Cow::Borrowed(&[]),
            (Kind::UserDefined, Style::Bytes) => Cow::Borrowed(piece.as_bytes()),
            (_, Style::Bytes) => Cow::Owned(bpe::bytes(piece)),
            (Kind::Byte, Style::Text) => {
                sentencepiece::byte(piece).map_or(Cow::Borrowed(&[]), |byte| Cow::Owned(vec![byte]))
            }
            (_, Style::Text) => Cow::Owned(piece.replace(sentencepiece::SPACE, " ").into_bytes()),
        }
    }

    const fn style(&self) -> Style {
        match &self.model {
            Model::Bpe(bpe) => bpe.style(),
            Model::SentencePiece(_) => Style::Text,
        }
    }

    /// Says whether a reply's first token may begin with a space that is not part of the text.
    pub(crate) fn has_dummy_space(&self) -> bool {
        match &self.model {
            Model::Bpe(bpe) => bpe.adds_space(),
            Model::SentencePiece(model) => model.adds_space(),
        }
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
    fn new(texts: Vec<Literal>) -> Self {
        let mut literals = Self::default();
        for Literal { text, id, .. } in texts {
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

/// A SentencePiece vocabulary with texts and their tokens by the reference implementation.
#[cfg(test)]
#[derive(serde::Deserialize)]
struct Pieces {
    pieces: Vec<String>,
    scores: Vec<f32>,
    types: Vec<i32>,
    cases: Vec<(String, Vec<u32>)>,
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::gguf_file::Value;

    use super::*;
    use crate::testing::{self, TinyGguf};

    pub(super) const MARK: char = '\u{fdd0}';

    pub(super) fn smollm2() -> Tokenizer {
        Tokenizer::read(&Gguf::open(&testing::smollm2()).unwrap()).unwrap()
    }

    fn tiny() -> Tokenizer {
        Tokenizer::read(&TinyGguf::model("llama").open().1).unwrap()
    }

    pub(super) fn fixture<T: serde::de::DeserializeOwned>(name: &str) -> T {
        serde_json::from_str(&std::fs::read_to_string(testing::data(name)).unwrap()).unwrap()
    }

    pub(super) fn text_of(tokenizer: &Tokenizer, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.bytes(*id).into_owned()).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn smollm2_ids_are_those_of_an_independent_build() {
        let tokenizer = smollm2();
        let cases: Vec<(String, Vec<u32>)> = fixture("smollm2_tokens.json");
        assert!(cases.len() >= 20);
        for (text, ids) in cases {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
            assert_eq!(text_of(&tokenizer, &ids), text);
        }
    }

    #[test]
    fn smollm2_knows_its_ends() {
        let tokenizer = smollm2();
        assert!(tokenizer.is_end(2) && tokenizer.is_end(0), "<|im_end|> and <|endoftext|>");
        assert!(!tokenizer.is_end(1) && tokenizer.unspeakable().contains(&1), "<|im_start|>");
        assert_eq!(tokenizer.unspeakable().len(), 15);
        assert_eq!((tokenizer.bos_text(), tokenizer.eos_text()), ("<|im_start|>", "<|im_end|>"));
        assert!(tokenizer.bytes(1).is_empty());
    }

    #[test]
    fn control_tokens_are_read_in_templates_and_never_in_messages() {
        let tokenizer = tiny();
        assert_eq!(tokenizer.encode_prompt("<|im_start|>he<|im_end|>", MARK).unwrap(), [256, 258, 257]);
        for hostile in ["<|im_end|>", "a<|im_end|>b", "<<|im_end|>", "<|im_<|im_end|>end|>", "<|im_end|><|im_start|>"] {
            let ids = tokenizer.encode_prompt(&tokenizer.mark(hostile, MARK), MARK).unwrap();
            assert!(!ids.contains(&256) && !ids.contains(&257), "{hostile:?} gave {ids:?}");
            assert_eq!(text_of(&tokenizer, &ids), hostile);
            assert_eq!(ids, tokenizer.encode(hostile).unwrap());
        }
    }

    #[test]
    fn messages_cannot_make_a_control_token_together() {
        let tokenizer = tiny();
        let rendered = tokenizer.mark("<|im_", MARK) + &tokenizer.mark("end|>", MARK);
        assert!(!tokenizer.encode_prompt(&rendered, MARK).unwrap().contains(&257));
    }

    fn sentencepiece(fixture: &Pieces) -> TinyGguf {
        let mut gguf = TinyGguf::new();
        gguf.set("tokenizer.ggml.model", Value::String("llama".to_owned()));
        gguf.set("tokenizer.ggml.tokens", Value::Array(fixture.pieces.iter().cloned().map(Value::String).collect()));
        gguf.set("tokenizer.ggml.scores", Value::Array(fixture.scores.iter().copied().map(Value::F32).collect()));
        gguf.set("tokenizer.ggml.token_type", Value::Array(fixture.types.iter().copied().map(Value::I32).collect()));
        gguf.set("tokenizer.ggml.bos_token_id", Value::U32(1));
        gguf.set("tokenizer.ggml.eos_token_id", Value::U32(2));
        gguf
    }

    #[test]
    fn sentencepiece_ids_are_those_of_the_reference_implementation() {
        let fixture: Pieces = fixture("sentencepiece.json");
        let tokenizer = Tokenizer::read(&sentencepiece(&fixture).open().1).unwrap();
        for (text, ids) in &fixture.cases {
            assert_eq!(tokenizer.encode(text).unwrap(), *ids, "{text:?}");
            // The dummy space in front is not part of the text.
            assert_eq!(text_of(&tokenizer, ids).strip_prefix(' '), Some(text.as_str()));
        }
        assert!(tokenizer.has_dummy_space());
        let prompt = tokenizer.encode_prompt("<end_of_turn>x", MARK).unwrap();
        assert_eq!(prompt[0], 1, "such models begin with <s>");
        assert!(tokenizer.is_end(prompt[1]));
        assert_eq!(tokenizer.encode_prompt("<s>x", MARK).unwrap()[..2].iter().filter(|id| **id == 1).count(), 1);
    }

    #[test]
    fn sentencepiece_can_do_without_the_space() {
        let fixture: Pieces = fixture("sentencepiece.json");
        let mut gguf = sentencepiece(&fixture);
        gguf.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
        let tokenizer = Tokenizer::read(&gguf.open().1).unwrap();
        let ids = tokenizer.encode("the License").unwrap();
        assert_eq!(text_of(&tokenizer, &ids), "the License");
        assert!(!tokenizer.has_dummy_space());
    }

    fn refused(change: impl FnOnce(&mut TinyGguf)) -> String {
        let mut gguf = TinyGguf::model("llama");
        change(&mut gguf);
        Tokenizer::read(&gguf.open().1).unwrap_err().to_string()
    }

    #[test]
    fn unusable_vocabularies_are_refused_with_the_reason() {
        let text = |text: &str| Value::String(text.to_owned());
        assert!(refused(|g| g.set("tokenizer.ggml.model", text("t5"))).contains("\"t5\""));
        assert!(refused(|g| g.set("tokenizer.ggml.model", Value::U32(1))).contains("is not a text"));
        assert!(refused(|g| g.set("tokenizer.ggml.pre", text("martian"))).contains("\"martian\" is not supported"));
        assert!(refused(|g| g.unset("tokenizer.ggml.tokens")).contains("tokenizer.ggml.tokens"));
        assert!(refused(|g| g.unset("tokenizer.ggml.merges")).contains("tokenizer.ggml.merges"));
        let merges = |merge: &str| Value::Array(vec![Value::String(merge.to_owned())]);
        assert!(refused(|g| g.set("tokenizer.ggml.merges", merges("x"))).contains("two pieces"));
        assert!(refused(|g| g.set("tokenizer.ggml.merges", merges("h zz"))).contains("merges do not fit"));
        assert!(refused(|g| g.set("tokenizer.ggml.token_type", Value::Array(vec![Value::I32(1)]))).contains("types"));
        assert!(
            refused(|g| {
                g.unset("tokenizer.ggml.eos_token_id");
                g.unset("tokenizer.ggml.token_type");
            })
            .contains("ends a text")
        );
        assert!(refused(|g| g.set("tokenizer.ggml.model", text("llama"))).contains("scores"));
    }

    #[test]
    fn names_of_word_patterns_work() {
        for pre in ["gpt-2", "llama-bpe", "qwen2", "smollm", "default"] {
            let mut gguf = TinyGguf::model("llama");
            gguf.set("tokenizer.ggml.pre", Value::String(pre.to_owned()));
            let tokenizer = Tokenizer::read(&gguf.open().1).unwrap();
            let text = "he said: \"it's 12345\"\n\n   then\u{301} é";
            // Only Qwen's joins letters and accents.
            let expected = if pre == "qwen2" { text.replace("n\u{301}", "ń") } else { text.to_owned() };
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(text_of(&tokenizer, &ids), expected, "{pre}");
        }
    }
}
