//! The statements of both stores. They differ in the type that embeddings have, and in nothing else.

use std::borrow::Cow;

/// Inserts a row; its parameter 7 is the embedding, written as given.
macro_rules! insert {
    ($embedding:literal) => {
        concat!(
            "INSERT INTO replies
             (reply_id, part, caller, prompt_hash, encoder, dimensions, embedding, text, time_ms, seq)
             VALUES ($1, $2, $3, $4, $5, $6, ",
            $embedding,
            ", $8, $9, $10)"
        )
    };
}

/// Selects the last rows of an encoder after a place, newest first; the embedding is read as given.
macro_rules! since {
    ($embedding:literal) => {
        concat!(
            "SELECT reply_id, part, caller, prompt_hash, encoder, dimensions, ",
            $embedding,
            ", CAST(NULL AS TEXT), time_ms, seq
             FROM replies WHERE encoder = $1 AND seq > $2 ORDER BY seq DESC LIMIT $3"
        )
    };
}

/// Selects the first rows after a place, oldest first.
macro_rules! page {
    ($embedding:literal) => {
        concat!(
            "SELECT reply_id, part, caller, prompt_hash, encoder, dimensions, ",
            $embedding,
            ", text, time_ms, seq FROM replies WHERE seq > $1 ORDER BY seq LIMIT $2"
        )
    };
}

pub(super) use {insert, page, since};

/// A reply that is there already is replaced by a new row, which others see as news.
pub(super) const REMOVE: &str = "DELETE FROM replies WHERE reply_id = $1 AND part = $2 AND encoder = $3";
/// The place of the last change. A place is given once: not again when what had it is erased or replaced.
pub(super) const LAST_PLACE: &str = "SELECT place FROM replies_place";
/// Takes places for so many changes, and returns the last of them.
pub(super) const TAKE_PLACES: &str = "UPDATE replies_place SET place = place + $1 RETURNING place";
pub(super) const COUNT: &str = "SELECT count(*) FROM replies";
pub(super) const ERASE_BEFORE: &str = "DELETE FROM replies WHERE time_ms < $1";
pub(super) const ERASE_CALLER: &str = "DELETE FROM replies WHERE caller = $1";
pub(super) const ERASE_ID: &str = "DELETE FROM replies WHERE reply_id = $1";
pub(super) const ERASE_ALL: &str = "DELETE FROM replies";
/// Keeps the last so many.
pub(super) const ERASE_SURPLUS: &str =
    "DELETE FROM replies WHERE seq <= (SELECT seq FROM replies ORDER BY seq DESC LIMIT 1 OFFSET $1)";

/// Returns a text as both stores keep it: PostgreSQL has no character U+0000, so U+FFFD stands in its place.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// Returns how many there are, as the stores count.
pub(super) fn n(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A row, with the embedding as the store has it.
pub(super) type Row<E> = (String, i64, String, String, String, i64, E, Option<String>, i64, i64);

/// Makes replies of rows, and leaves out those whose embedding is not whole; says how many that were.
pub(super) fn replies<E>(
    rows: impl IntoIterator<Item = Row<E>>,
    embedding: impl Fn(E) -> Option<Vec<f32>>,
) -> Vec<super::StoredReply> {
    let mut n_damaged = 0;
    let mut whole = Vec::new();
    for (reply_id, part, caller, prompt_hash, encoder, dimensions, values, text, time_ms, _) in rows {
        let embedding = embedding(values).filter(|values| {
            !values.is_empty() && n(values.len()) == dimensions && values.iter().all(|value| value.is_finite())
        });
        match (u32::try_from(part), embedding) {
            (Ok(part), Some(embedding)) => whole.push(super::StoredReply {
                reply_id,
                part,
                caller,
                prompt_hash,
                encoder,
                embedding,
                text,
                time_ms,
            }),
            _ => n_damaged += 1,
        }
    }
    if n_damaged > 0 {
        tracing::warn!(n_damaged, "left out damaged replies");
    }
    whole
}
