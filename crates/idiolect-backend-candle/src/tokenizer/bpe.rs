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

use super::{Kind, TokenizeError, index};
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
}

const NAMES: [(&str, Words); 20] = [
    ("gpt-2", Words::Gpt2),
    ("gpt2", Words::Gpt2),
    ("default", Words::Gpt2),
    ("mpt", Words::Gpt2),
    ("olmo", Words::Gpt2),
    ("jais", Words::Gpt2),
    ("phi-2", Words::Gpt2),
    ("smollm", Words::DigitsThenGpt2),
    ("starcoder", Words::DigitsThenGpt2),
    ("refact", Words::DigitsThenGpt2),
    ("codeshell", Words::DigitsThenGpt2),
    ("command-r", Words::DigitsThenGpt2),
    ("llama3", Words::Llama3),
    ("llama-v3", Words::Llama3),
    ("llama-bpe", Words::Llama3),
    ("falcon3", Words::Llama3),
    ("smaug-bpe", Words::Llama3),
    ("dbrx", Words::Llama3),
    ("qwen2", Words::Qwen2),
    ("deepseek-r1-qwen", Words::Qwen2),
];

const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A byte-level BPE model.
#[derive(Debug)]
pub(super) struct Bpe(tokenizers::Tokenizer);

impl Bpe {
    /// Reads the merges, and says whether such files begin a text with the begin token when they don't say.
    pub(super) fn read(gguf: &Gguf, pieces: &[String], kinds: &[Kind]) -> Result<(Self, bool), LoadError> {
        let name = gguf.text("tokenizer.ggml.pre")?.unwrap_or("default");
        let Some((_, words)) = NAMES.iter().find(|(known, _)| *known == name) else {
            let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
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
        let llama3 = *words == Words::Llama3;
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
            .ignore_merges(llama3)
            .build()
            .map_err(|e| LoadError::damaged(gguf.path(), format!("its merges do not fit its tokens: {e}")))?;
        let mut tokenizer = tokenizers::Tokenizer::new(bpe);
        let broken = |e: tokenizers::Error| LoadError::damaged(gguf.path(), e);
        if *words == Words::Qwen2 {
            tokenizer.with_normalizer(Some(NormalizerWrapper::NFC(NFC))).map_err(broken)?;
        }
        tokenizer.with_pre_tokenizer(Some(words.pre_tokenizer().map_err(broken)?));
        Ok((Self(tokenizer), llama3))
    }

    /// Appends the tokens of a text.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizeError> {
        let encoding = self.0.encode_fast(text, false).map_err(|e| TokenizeError(e.to_string()))?;
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
