use std::path::Path;

use tokenizers::Tokenizer;

/// A tokenizer's file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the tokenizer {path}: {reason}")]
pub struct TokenizerError {
    path: String,
    reason: String,
}

/// A WordPiece tokenizer, from any `tokenizer.json`.
///
/// Validators of version 2.1 count n-grams in tokens of bert-base-cased, after making the text lower case. With
/// another vocabulary (that of all-MiniLM-L6-v2 is bert-base-*uncased*'s) phrases are cut into other, for lower-case text
/// usually fewer, pieces, and accents are lost: a phrase of `n` words then counts at smaller `n`, and those of 5 words are
/// found that bert-base-cased cuts into more than 10 pieces. Significance depends on the words alone.
#[derive(Clone, Debug)]
pub struct WordPiece {
    tokenizer: Tokenizer,
}

impl WordPiece {
    /// Loads a `tokenizer.json`; its truncation and padding are taken off.
    ///
    /// # Errors
    /// [`TokenizerError`] naming the file.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TokenizerError> {
        let path = path.as_ref();
        let failed =
            |reason: tokenizers::Error| TokenizerError { path: path.display().to_string(), reason: reason.to_string() };
        let mut tokenizer = Tokenizer::from_file(path).map_err(failed)?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(failed)?;
        Ok(Self { tokenizer })
    }

    /// Returns the text's tokens without special ones; none for a text that cannot be tokenised.
    #[must_use]
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode_fast(text, false).map(|e| e.get_ids().to_vec()).unwrap_or_default()
    }

    /// Returns a number that two tokenizers share only if they have the same vocabulary.
    pub(crate) fn fingerprint(&self) -> u64 {
        let of_entry = |(token, id): (&String, &u32)| {
            // FNV-1a; the sum does not depend on the order.
            let bytes = token.bytes().chain(id.to_le_bytes());
            bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
        };
        self.tokenizer.get_vocab(true).iter().map(of_entry).fold(0, u64::wrapping_add)
    }

    /// Returns the text of tokens: pieces joined to words, words divided by spaces.
    #[must_use]
    pub fn decode(&self, tokens: &[u32]) -> String {
        let mut text = String::new();
        for piece in tokens.iter().filter_map(|&t| self.tokenizer.id_to_token(t)) {
            match piece.strip_prefix("##") {
                // At the start of an n-gram the mark stays, as in Python.
                Some(rest) if !text.is_empty() => text.push_str(rest),
                _ => {
                    if !text.is_empty() {
                        text.push(' ');
                    }
                    text.push_str(&piece);
                }
            }
        }
        text
    }

    /// Cuts a text into windows of at most `max_tokens` tokens, the two special ones counted. A text without tokens is one
    /// window. A word that a border falls into is cut there.
    #[must_use]
    pub fn windows(&self, text: &str, max_tokens: usize) -> Vec<String> {
        let size = max_tokens.saturating_sub(2).max(1);
        let Ok(encoding) = self.tokenizer.encode(text, false) else { return vec![text.to_owned()] };
        let offsets = encoding.get_offsets();
        if offsets.len() <= size {
            return vec![text.to_owned()];
        }
        let spans = offsets.chunks(size).filter_map(|chunk| Some((chunk.first()?.0, chunk.last()?.1)));
        spans.filter_map(|(from, to)| text.get(from..to)).map(str::to_owned).collect()
    }
}
