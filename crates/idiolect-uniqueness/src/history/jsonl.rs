//! Histories as text: one JSON object a line.

use std::io::{self, BufRead, Write};

use super::{HistoryStore, StoredReply};
use crate::store::StoreError;

/// How many replies are read or written at a time.
const AT_A_TIME: usize = 500;

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
    #[error("line {line} is not a reply: {source}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A line's embedding cannot be compared with anything.
    #[error("line {line}: an embedding needs a value that is not zero, and no other than finite ones")]
    Embedding {
        /// Which, from 1.
        line: usize,
    },
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

/// Appends the replies of a text that [`export_jsonl`] wrote, and returns how many. Those that the store has are replaced;
/// empty lines are passed over. Nothing of a bad text's last 500 lines before the bad one is kept, and all before them is.
///
/// # Errors
/// Any [`JsonlError`], with the number of the line.
pub async fn import_jsonl(store: &dyn HistoryStore, lines: &mut (dyn BufRead + Send)) -> Result<u64, JsonlError> {
    let (mut batch, mut n, mut number) = (Vec::with_capacity(AT_A_TIME), 0, 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let is_last = lines.read_until(b'\n', &mut line)? == 0;
        number += 1;
        if !line.trim_ascii().is_empty() {
            let reply: StoredReply =
                serde_json::from_slice(&line).map_err(|source| JsonlError::Line { line: number, source })?;
            if crate::vectors::normalised(&reply.embedding).is_none() {
                return Err(JsonlError::Embedding { line: number });
            }
            batch.push(reply);
        }
        if batch.len() == AT_A_TIME || (is_last && !batch.is_empty()) {
            store.append(&batch).await?;
            n += batch.len() as u64;
            batch.clear();
        }
        if is_last {
            return Ok(n);
        }
    }
}
