//! SentencePiece models with a score for each piece (GGUF's tokenizer "llama"), with byte fallback.
//!
//! A text is taken apart into characters; then the neighbours whose union has the highest score are joined, over and
//! over, the leftmost first among equals. Characters that the vocabulary lacks become bytes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::{Kind, index};
use crate::error::LoadError;
use crate::loader::Gguf;

/// What stands for a space inside pieces.
pub(super) const SPACE: &str = "\u{2581}";

/// A SentencePiece model.
pub(super) struct SentencePiece {
    pieces: HashMap<String, (u32, f32)>,
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    add_space: bool,
}

impl std::fmt::Debug for SentencePiece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SentencePiece({} pieces)", self.pieces.len())
    }
}

/// Two neighbours that can be joined.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both together: a mismatch shows that one of them has changed since.
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// A stretch of the text; neighbours are linked by index.
struct Symbol {
    begin: usize,
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

impl SentencePiece {
    pub(super) fn read(gguf: &Gguf, pieces: &[String], kinds: &[Kind]) -> Result<Self, LoadError> {
        let scores = gguf.floats("tokenizer.ggml.scores")?;
        let scores = gguf.required("tokenizer.ggml.scores", scores)?;
        if scores.len() != pieces.len() {
            let reason = format!("it has {} tokens and {} scores", pieces.len(), scores.len());
            return Err(LoadError::damaged(gguf.path(), reason));
        }
        let mut bytes = vec![None; 256];
        let mut known = HashMap::with_capacity(pieces.len());
        let mut unknown = None;
        for (id, ((piece, kind), score)) in pieces.iter().zip(kinds).zip(&scores).enumerate() {
            match kind {
                Kind::Normal => {
                    known.entry(piece.clone()).or_insert((index(id), *score));
                }
                Kind::Byte => {
                    if let Some(byte) = byte(piece) {
                        bytes[usize::from(byte)] = Some(index(id));
                    }
                }
                Kind::Unknown => unknown = unknown.or(Some(index(id))),
                Kind::Control | Kind::UserDefined | Kind::Unused => {}
            }
        }
        let add_space = gguf.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        Ok(Self { pieces: known, bytes, unknown, add_space })
    }

    /// Says whether a text gets a space in front.
    pub(super) const fn adds_space(&self) -> bool {
        self.add_space
    }

    /// Appends the tokens of a text; `fresh` says that no text stands before it.
    pub(super) fn encode(&self, text: &str, fresh: bool, ids: &mut Vec<u32>) {
        let prefix = if fresh && self.add_space { SPACE } else { "" };
        let text = prefix.to_owned() + &text.replace(' ', SPACE);
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        for (i, (begin, c)) in text.char_indices().enumerate() {
            symbols.push(Symbol { begin, len: c.len_utf8(), before: i.checked_sub(1), after: Some(i + 1) });
        }
        if let Some(last) = symbols.last_mut() {
            last.after = None;
        }
        let mut pairs = BinaryHeap::new();
        for left in 0..symbols.len() {
            self.consider(&text, &symbols, Some(left), symbols[left].after, &mut pairs);
        }
        while let Some(Pair { left, right, len, .. }) = pairs.pop() {
            if symbols[left].len == 0 || symbols[right].len == 0 || symbols[left].len + symbols[right].len != len {
                continue;
            }
            symbols[left].len = len;
            symbols[right].len = 0;
            let after = symbols[right].after;
            symbols[left].after = after;
            if let Some(after) = after {
                symbols[after].before = Some(left);
            }
            self.consider(&text, &symbols, symbols[left].before, Some(left), &mut pairs);
            self.consider(&text, &symbols, Some(left), after, &mut pairs);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.begin..symbol.begin + symbol.len];
            if let Some((id, _)) = self.pieces.get(piece) {
                ids.push(*id);
            } else {
                ids.extend(piece.bytes().filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown)));
            }
        }
    }

    /// Queues two neighbours if their union is a piece.
    fn consider(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
        pairs: &mut BinaryHeap<Pair>,
    ) {
        let (Some(left), Some(right)) = (left, right) else { return };
        let len = symbols[left].len + symbols[right].len;
        let begin = symbols[left].begin;
        if let Some((_, score)) = self.pieces.get(&text[begin..begin + len]) {
            pairs.push(Pair { score: *score, left, right, len });
        }
    }
}

/// Returns the byte that a piece like `<0x0A>` stands for.
pub(super) fn byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}
