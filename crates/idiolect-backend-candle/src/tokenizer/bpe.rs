//! Byte-level BPE, as GPT-2 and its heirs have it.

use std::collections::HashMap;
use std::sync::OnceLock;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, SplitDelimiterBehavior};

use super::{Before, Kind, Style, TokenizeError, index};
use crate::error::LoadError;
use crate::loader::Gguf;

/// How words are told apart before merging, by GGUF's `tokenizer.ggml.pre`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Words {
    /// GPT-2's pattern.
    Gpt2,
    /// GPT-2's pattern after every digit was set apart.
    DigitsThenGpt2,
    /// Llama 3's pattern: up to three digits together.
    Llama3,
    /// Qwen 2's pattern: single digits, and text in Unicode form NFC.
    Qwen2,
    /// Mistral's pattern since Nemo: capital letters begin words.
    Tekken,
    /// GPT-4o's pattern: as Mistral's, with endings such as `'ll` and up to three digits together.
    Gpt4o,
}

/// A kind of vocabulary, as files name it.
struct Named {
    name: &'static str,
    words: Words,
    /// Whether a word that is a token is taken as such, whatever the merges say.
    whole_words: bool,
    /// Whether a text begins with the begin token where the file does not say.
    add_bos: bool,
}

const fn plain(name: &'static str, words: Words) -> Named {
    Named { name, words, whole_words: false, add_bos: false }
}

const fn whole(name: &'static str, words: Words) -> Named {
    Named { name, words, whole_words: true, add_bos: true }
}

const NAMES: [Named; 28] = [
    plain("gpt-2", Words::Gpt2),
    plain("gpt2", Words::Gpt2),
    plain("default", Words::Gpt2),
    plain("mpt", Words::Gpt2),
    plain("olmo", Words::Gpt2),
    plain("jais", Words::Gpt2),
    plain("phi-2", Words::Gpt2),
    plain("smollm", Words::DigitsThenGpt2),
    plain("starcoder", Words::DigitsThenGpt2),
    plain("refact", Words::DigitsThenGpt2),
    plain("codeshell", Words::DigitsThenGpt2),
    plain("command-r", Words::DigitsThenGpt2),
    plain("exaone", Words::DigitsThenGpt2),
    whole("llama3", Words::Llama3),
    whole("llama-v3", Words::Llama3),
    whole("llama-bpe", Words::Llama3),
    whole("falcon3", Words::Llama3),
    whole("pixtral", Words::Llama3),
    plain("smaug-bpe", Words::Llama3),
    plain("dbrx", Words::Llama3),
    plain("qwen2", Words::Qwen2),
    plain("deepseek-r1-qwen", Words::Qwen2),
    plain("megrez", Words::Qwen2),
    plain("stablelm2", Words::Qwen2),
    whole("tekken", Words::Tekken),
    plain("gpt-4o", Words::Gpt4o),
    plain("llama4", Words::Gpt4o),
    plain("kanana2", Words::Gpt4o),
];

const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A BPE model.
#[derive(Debug)]
pub(super) struct Bpe {
    tokenizer: tokenizers::Tokenizer,
    style: Style,
    space: Option<Space>,
}

/// A space that texts get in front.
#[derive(Debug)]
pub(super) struct Space {
    /// For texts that get none.
    pub(super) without: Box<tokenizers::Tokenizer>,
    /// Whether texts behind a control token get one, too, and not only what begins.
    pub(super) behind_control: bool,
}

impl Bpe {
    pub(super) const fn new(tokenizer: tokenizers::Tokenizer, style: Style, space: Option<Space>) -> Self {
        Self { tokenizer, style, space }
    }

    /// Reads the merges, and says whether such files begin a text with the begin token when they don't say.
    pub(super) fn read(gguf: &Gguf, pieces: &[String], kinds: &[Kind]) -> Result<(Self, bool), LoadError> {
        let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or_else(|| {
            let path = gguf.path().display();
            tracing::warn!(%path, "the file does not say how its tokenizer tells words apart; taken: \"default\"");
            "default"
        });
        let Some(Named { words, whole_words, add_bos, .. }) = NAMES.iter().find(|known| known.name == name) else {
            let known: Vec<&str> = NAMES.iter().map(|known| known.name).collect();
            return Err(LoadError::unsupported(gguf.path(), format!("pre-tokenizer {name:?}"), known.join(", ")));
        };
        let merges = gguf.texts("tokenizer.ggml.merges")?;
        let merges: Vec<(String, String)> = gguf
            .required("tokenizer.ggml.merges", merges)?
            .into_iter()
            .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())))
            .collect::<Option<_>>()
            .ok_or_else(|| LoadError::damaged(gguf.path(), "a merge is not two pieces with a space between"))?;
        // Control and user-defined tokens stay out: nothing in a text may turn into one by merging.
        let vocabulary: HashMap<String, u32> = pieces
            .iter()
            .zip(kinds)
            .enumerate()
            .filter(|(_, (_, kind))| matches!(kind, Kind::Normal | Kind::Byte))
            .map(|(id, (piece, _))| (piece.clone(), index(id)))
            .collect();
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
            .ignore_merges(*whole_words)
            .build()
            .map_err(|e| LoadError::damaged(gguf.path(), format!("its merges do not fit its tokens: {e}")))?;
        let mut tokenizer = tokenizers::Tokenizer::new(bpe);
        let broken = |e: tokenizers::Error| LoadError::damaged(gguf.path(), e);
        if *words == Words::Qwen2 {
            tokenizer.with_normalizer(Some(NormalizerWrapper::NFC(NFC))).map_err(broken)?;
        }
        tokenizer.with_pre_tokenizer(Some(words.pre_tokenizer().map_err(broken)?));
        Ok((Self::new(tokenizer, Style::Bytes, None), *add_bos))
    }

    /// Says whether a text is brought into a Unicode form first.
    pub(super) fn normalizes(&self) -> bool {
        self.tokenizer.get_normalizer().is_some()
    }

    pub(super) const fn style(&self) -> Style {
        self.style
    }

    /// Says whether a text gets a space in front.
    pub(super) const fn adds_space(&self) -> bool {
        self.space.is_some()
    }

    /// Appends the tokens of a text.
    pub(super) fn encode(&self, text: &str, before: Before, ids: &mut Vec<u32>) -> Result<(), TokenizeError> {
        let tokenizer = match (&self.space, before) {
            (Some(space), Before::Text) => &space.without,
            (Some(space), Before::Control) if !space.behind_control => &space.without,
            _ => &self.tokenizer,
        };
        let encoding = tokenizer.encode_fast(text, false).map_err(|e| TokenizeError(e.to_string()))?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}

impl Words {
    fn pre_tokenizer(self) -> Result<PreTokenizerWrapper, tokenizers::Error> {
        let split = |pattern: &str| {
            Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
        };
        // ByteLevel::default() would put a space before every text.
        let bytes_only = ByteLevel::new(false, true, false);
        let gpt2 = ByteLevel::new(false, true, true);
        Ok(match self {
            Self::Gpt2 => gpt2.into(),
            Self::DigitsThenGpt2 => Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into(),
            Self::Llama3 => Sequence::new(vec![split(LLAMA3)?.into(), bytes_only.into()]).into(),
            Self::Qwen2 => Sequence::new(vec![split(QWEN2)?.into(), bytes_only.into()]).into(),
            Self::Tekken => Sequence::new(vec![split(TEKKEN)?.into(), bytes_only.into()]).into(),
            Self::Gpt4o => Sequence::new(vec![split(GPT4O)?.into(), bytes_only.into()]).into(),
        })
    }
}

/// Returns the bytes that a piece spells: GPT-2 writes each byte as one printable character.
pub(super) fn bytes(piece: &str) -> Vec<u8> {
    static TABLE: OnceLock<HashMap<char, u8>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let own = (0..=u8::MAX).filter(printable).map(|byte| (char::from(byte), byte));
        let shifted = (0..=u8::MAX).filter(|byte| !printable(byte));
        let moved = shifted.zip(256u32..).filter_map(|(byte, code)| Some((char::from_u32(code)?, byte)));
        own.chain(moved).collect()
    });
    let mut bytes = Vec::with_capacity(piece.len());
    for c in piece.chars() {
        match table.get(&c) {
            Some(byte) => bytes.push(*byte),
            None => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_character() {
        assert_eq!(bytes("ĠHello"), b" Hello");
        assert_eq!(bytes("Ċ"), b"\n");
        assert_eq!(bytes("Ã©"), "é".as_bytes());
        let alphabet: String = ByteLevel::alphabet().into_iter().collect();
        let mut all = bytes(&alphabet);
        all.sort_unstable();
        assert_eq!(all, (0..=255).collect::<Vec<u8>>());
    }
}
