//! BERT's tokenisation of ASCII text, which needs no Unicode tables and no record of what became of each character.

use std::collections::HashMap;

use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Model as _, Tokenizer};

/// The vocabulary by pieces that begin a word and pieces that go on.
#[derive(Debug)]
pub(super) struct Ascii {
    starts: HashMap<Box<[u8]>, u32>,
    rests: HashMap<Box<[u8]>, u32>,
    unknown: u32,
    max_word: usize,
    lowercase: bool,
    added: Vec<String>,
}

impl Ascii {
    /// Returns `None` for a tokenizer that is not BERT's: it would cut texts otherwise.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let Some(NormalizerWrapper::BertNormalizer(normalizer)) = tokenizer.get_normalizer() else { return None };
        let Some(PreTokenizerWrapper::BertPreTokenizer(_)) = tokenizer.get_pre_tokenizer() else { return None };
        let ModelWrapper::WordPiece(model) = tokenizer.get_model() else { return None };
        if !normalizer.clean_text || model.continuing_subword_prefix.is_empty() {
            return None;
        }
        let vocabulary = model.get_vocab();
        let mut rests = HashMap::new();
        for (token, &id) in &vocabulary {
            if let Some(rest) = token.strip_prefix(&model.continuing_subword_prefix) {
                rests.insert(rest.as_bytes().into(), id);
            }
        }
        Some(Self {
            rests,
            unknown: *vocabulary.get(&model.unk_token)?,
            max_word: model.max_input_chars_per_word,
            lowercase: normalizer.lowercase,
            added: tokenizer.get_added_tokens_decoder().into_values().map(|token| token.content).collect(),
            starts: vocabulary.into_iter().map(|(token, id)| (token.into_bytes().into(), id)).collect(),
        })
    }

    /// Returns the text's tokens without special ones; `None` where it has other characters, or an added token in it.
    pub(super) fn encode(&self, text: &str) -> Option<Vec<u32>> {
        if !text.is_ascii() || self.added.iter().any(|token| text.contains(token.as_str())) {
            return None;
        }
        let (mut tokens, mut word) = (Vec::with_capacity(text.len() / 4), Vec::new());
        for byte in text.bytes() {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => self.end(&mut word, &mut tokens),
                // Control characters vanish, and do not divide words.
                byte if byte.is_ascii_control() => {}
                byte if byte.is_ascii_punctuation() => {
                    self.end(&mut word, &mut tokens);
                    word.push(byte);
                    self.end(&mut word, &mut tokens);
                }
                byte => word.push(if self.lowercase { byte.to_ascii_lowercase() } else { byte }),
            }
        }
        self.end(&mut word, &mut tokens);
        Some(tokens)
    }

    /// Cuts a word into its pieces, the longest first; a word that cannot be cut is unknown as a whole.
    fn end(&self, word: &mut Vec<u8>, tokens: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        let before = tokens.len();
        let mut start = 0;
        while word.len() <= self.max_word && start < word.len() {
            let pieces = if start == 0 { &self.starts } else { &self.rests };
            let longest = (start + 1..=word.len()).rev().find_map(|end| Some((end, *pieces.get(&word[start..end])?)));
            let Some((end, token)) = longest else { break };
            tokens.push(token);
            start = end;
        }
        if start < word.len() {
            tokens.truncate(before);
            tokens.push(self.unknown);
        }
        word.clear();
    }
}
