//! Histories as text: one JSON object a line.

use std::io::{self, BufRead, Read as _, Write};

use super::{HistoryStore, StoredReply};
use crate::store::StoreError;

/// How many replies are read or written at a time.
const AT_A_TIME: usize = 500;
/// Longest line: several times what a reply of 100,000 characters and an embedding of 16,000 values take.
const MAX_LINE_BYTES: usize = 8 << 20;

/// Why a history cannot be exported or imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonlError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file cannot be read or written.
    #[error("cannot read or write the lines")]
    Io(#[from] io::Error),
    /// A line is not a reply.
    #[error("line {line} is not a reply: {problem}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it, and at which column.
        problem: String,
    },
    /// A line does not end.
    #[error("line {line} is longer than {MAX_LINE_BYTES} bytes")]
    Long {
        /// Which, from 1.
        line: usize,
    },
    /// A line's embedding cannot be compared with anything.
    #[error("line {line}: an embedding needs a value that is not zero, and no other than finite ones")]
    Embedding {
        /// Which, from 1.
        line: usize,
    },
}

/// Why an import ended, and what had been imported by then.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", imported(*.n_imported))]
pub struct ImportError {
    /// How many replies, the first ones of the text, are in the store.
    pub n_imported: u64,
    /// What ended it.
    #[source]
    pub error: JsonlError,
}

fn imported(n: u64) -> String {
    match n {
        0 => "nothing was imported".to_owned(),
        n => format!("only the first {n} replies were imported"),
    }
}

/// Writes all replies of a store, oldest first, and returns how many. The fields are those of [`StoredReply`].
///
/// # Errors
/// [`JsonlError::Store`] and [`JsonlError::Io`].
pub async fn export_jsonl(store: &dyn HistoryStore, out: &mut (dyn Write + Send)) -> Result<u64, JsonlError> {
    let (mut place, mut n) = (0, 0);
    loop {
        let page = store.page(place, AT_A_TIME).await?;
        for reply in &page.replies {
            serde_json::to_writer(&mut *out, reply).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
            n += 1;
        }
        match page.place {
            Some(last) => place = last,
            None => break,
        }
    }
    out.flush()?;
    Ok(n)
}

/// Reads a text that [`export_jsonl`] wrote as [`import_jsonl`] would, without importing anything, and returns how many
/// replies it has.
///
/// # Errors
/// Any [`JsonlError`] but that of a store, with the number of the line.
pub fn check_jsonl(lines: &mut dyn BufRead) -> Result<u64, JsonlError> {
    let mut replies = Replies::new(lines);
    let mut n = 0;
    while replies.next()?.is_some() {
        n += 1;
    }
    Ok(n)
}

/// Appends the replies of a text that [`export_jsonl`] wrote, and returns how many. Those that the store has are replaced;
/// empty lines are passed over. They are written by the hundred: of a bad text, those long before the bad line are
/// imported, and the error says how many. [`check_jsonl`] tells it beforehand.
///
/// # Errors
/// Any [`JsonlError`], with the number of the line.
pub async fn import_jsonl(store: &dyn HistoryStore, lines: &mut (dyn BufRead + Send)) -> Result<u64, ImportError> {
    let mut n_imported = 0;
    match import(store, lines, &mut n_imported).await {
        Ok(()) => Ok(n_imported),
        Err(error) => Err(ImportError { n_imported, error }),
    }
}

async fn import(
    store: &dyn HistoryStore,
    lines: &mut (dyn BufRead + Send),
    n_imported: &mut u64,
) -> Result<(), JsonlError> {
    let mut batch = Vec::with_capacity(AT_A_TIME);
    let mut replies = Replies::new(lines);
    loop {
        let next = replies.next()?;
        let is_end = next.is_none();
        batch.extend(next);
        if batch.len() == AT_A_TIME || (is_end && !batch.is_empty()) {
            store.append(&batch).await?;
            *n_imported += batch.len() as u64;
            batch.clear();
        }
        if is_end {
            return Ok(());
        }
    }
}

/// Says what is wrong with a line without its number, which for the parser is always 1.
pub(crate) fn in_a_line(error: &serde_json::Error) -> String {
    error.to_string().replace(&format!(" at line {} column", error.line()), " at column")
}

/// The replies of a text, one after the other.
struct Replies<L> {
    lines: L,
    line: Vec<u8>,
    number: usize,
}

impl<L: BufRead> Replies<L> {
    const fn new(lines: L) -> Self {
        Self { lines, line: Vec::new(), number: 0 }
    }

    fn next(&mut self) -> Result<Option<StoredReply>, JsonlError> {
        loop {
            self.line.clear();
            self.number += 1;
            let number = self.number;
            let most = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX) + 1;
            if (&mut self.lines).take(most).read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            if self.line.len() > MAX_LINE_BYTES {
                return Err(JsonlError::Long { line: number });
            }
            if self.line.trim_ascii().is_empty() {
                continue;
            }
            let reply: StoredReply = serde_json::from_slice(&self.line)
                .map_err(|error| JsonlError::Line { line: number, problem: in_a_line(&error) })?;
            if crate::vectors::normalised(&reply.embedding).is_none() {
                return Err(JsonlError::Embedding { line: number });
            }
            return Ok(Some(reply));
        }
    }
}
