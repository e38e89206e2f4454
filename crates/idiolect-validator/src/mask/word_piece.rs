use std::path::Path;
use std::sync::Arc;

use idiolect_uniqueness::lexical::fnv1a;
use tokenizers::Tokenizer;

mod ascii;

use ascii::Ascii;

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
    tokenizer: Arc<Tokenizer>,
    /// A quicker way for most texts.
    ascii: Option<Arc<Ascii>>,
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
        let ascii = Ascii::of(&tokenizer).map(Arc::new);
        Ok(Self { tokenizer: Arc::new(tokenizer), ascii })
    }

    /// Returns the text's tokens without special ones; none for a text that cannot be tokenised.
    #[must_use]
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match self.ascii.as_ref().and_then(|ascii| ascii.encode(text)) {
            Some(tokens) => tokens,
            None => self.tokenizer.encode_fast(text, false).map(|e| e.get_ids().to_vec()).unwrap_or_default(),
        }
    }

    /// Returns a number that two tokenizers share only if they have the same vocabulary.
    pub(crate) fn fingerprint(&self) -> u64 {
        let of_entry = |(token, id): (&String, &u32)| fnv1a(token.bytes().chain(id.to_le_bytes()));
        // The sum does not depend on the order.
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
    /// window. A word that a border falls into is cut there, and what is left of it begins the next window as a word of its
    /// own: an encoder that gets texts reads other pieces there than the original, which cuts the list of tokens.
    #[must_use]
    pub fn windows(&self, text: &str, max_tokens: usize) -> Vec<String> {
        let size = max_tokens.saturating_sub(2).max(1);
        // Most texts are one window, and need no record of where their tokens are.
        if self.ascii.as_ref().and_then(|ascii| ascii.encode(text)).is_some_and(|tokens| tokens.len() <= size) {
            return vec![text.to_owned()];
        }
        let Ok(encoding) = self.tokenizer.encode(text, false) else { return vec![text.to_owned()] };
        let offsets = encoding.get_offsets();
        if offsets.len() <= size {
            return vec![text.to_owned()];
        }
        let spans = offsets.chunks(size).filter_map(|chunk| Some((chunk.first()?.0, chunk.last()?.1)));
        spans.filter_map(|(from, to)| text.get(from..to)).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn minilm() -> WordPiece {
        let dir = idiolect_models::testing::model("minilm").expect("the default encoder").dir;
        WordPiece::from_file(dir.join("tokenizer.json")).expect("it loads")
    }

    #[track_caller]
    fn check(tokenizer: &WordPiece, text: &str) {
        let expected = tokenizer.tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
        assert_eq!(tokenizer.encode(text), expected, "{text:?}");
        if let Some(tokens) = tokenizer.ascii.as_ref().unwrap().encode(text) {
            assert_eq!(tokens, expected, "{text:?}");
        }
    }

    #[test]
    fn texts_are_cut_as_the_library_does() {
        let tokenizer = minilm();
        let long = "x".repeat(101);
        for text in [
            "",
            " \t\r\n",
            "Photosynthesis turns light, water and CO2 into sugar; isn't it $5.00?",
            "a\u{0}b\u{7f}c\u{b}d e\u{1f}f",
            "the [MASK] of [UNK], [mask]",
            "snake_case(|x| x + 1) ~`^<>",
            "na\u{ef}ve caf\u{e9} \u{4e2d}\u{6587} \u{ad6d}",
            "zzqqxjkw unaffable",
            &long[1..],
            &long,
        ] {
            check(&tokenizer, text);
        }
        assert!(tokenizer.ascii.as_ref().unwrap().encode("caf\u{e9}").is_none());
        let window = "word ".repeat(511);
        assert_eq!(tokenizer.windows(&window[..2549], 512), [&window[..2549]]);
        assert_eq!(tokenizer.windows(&window, 512).len(), 2);
    }

    #[test]
    fn any_text_is_cut_as_the_library_does() {
        let tokenizer = minilm();
        proptest!(ProptestConfig::with_cases(2_000), |(text in "[ -~\\t\\n\u{0}-\u{1f}\u{7f}]{0,80}|[a-zA-Z ]{0,80}|\\PC{0,30}")| {
            check(&tokenizer, &text);
        });
    }
}
