//! Replies in an SQLite file.

use async_trait::async_trait;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Sqlite, SqlitePool, Transaction};

use super::queries::{self, Row, storable};
use super::{Erase, HistoryStore, Newer, Page, Retention, StoredReply};
use crate::store::{StoreError, migrate};

/// Replies in the table `replies` of an SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteHistory {
    pool: SqlitePool,
}

const MIGRATIONS: &[&[&str]] = &[
    &[
        "CREATE TABLE replies (
            seq INTEGER PRIMARY KEY,
            reply_id TEXT NOT NULL,
            part INTEGER NOT NULL,
            caller TEXT NOT NULL,
            prompt_hash TEXT NOT NULL,
            encoder TEXT NOT NULL,
            dimensions INTEGER NOT NULL,
            embedding BLOB NOT NULL,
            text TEXT,
            time_ms INTEGER NOT NULL,
            UNIQUE (reply_id, part, encoder)
        ) STRICT",
        "CREATE INDEX replies_by_encoder ON replies (encoder, seq)",
        "CREATE INDEX replies_by_caller ON replies (caller)",
        "CREATE INDEX replies_by_time ON replies (time_ms)",
    ],
    // The place of the last change, in one row.
    &[
        "CREATE TABLE replies_place (place INTEGER NOT NULL) STRICT",
        "INSERT INTO replies_place SELECT coalesce(max(seq), 0) FROM replies",
    ],
];

impl SqliteHistory {
    /// Makes the tables when they are not there.
    ///
    /// # Errors
    /// What the store says.
    pub async fn open(pool: SqlitePool) -> Result<Self, StoreError> {
        migrate(&pool, "replies", MIGRATIONS).await?;
        Ok(Self { pool })
    }

    async fn delete(&self, what: &Erase) -> Result<u64, StoreError> {
        let query = match what {
            Erase::Before(before) => sqlx::query(queries::ERASE_BEFORE).bind(before),
            Erase::Caller(hotkey) => sqlx::query(queries::ERASE_CALLER).bind(storable(hotkey)),
            Erase::Id(id) => sqlx::query(queries::ERASE_ID).bind(storable(id)),
            Erase::All => sqlx::query(queries::ERASE_ALL),
        };
        self.execute(query).await
    }

    /// Erases rows and returns how many. That some went is a change, which has a place.
    async fn execute(&self, query: Query<'_, Sqlite, SqliteArguments>) -> Result<u64, StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let n = query.execute(&mut *transaction).await?.rows_affected();
        if n > 0 {
            take_places(&mut transaction, 1).await?;
        }
        transaction.commit().await?;
        Ok(n)
    }
}

async fn insert(transaction: &mut Transaction<'_, Sqlite>, replies: &[StoredReply]) -> Result<(), StoreError> {
    let n = queries::n(replies.len());
    let before = take_places(transaction, n).await? - n;
    for (seq, reply) in (before + 1..).zip(replies) {
        sqlx::query(queries::REMOVE)
            .bind(storable(&reply.reply_id))
            .bind(reply.part)
            .bind(storable(&reply.encoder))
            .execute(&mut **transaction)
            .await?;
        sqlx::query(queries::insert!("$7"))
            .bind(storable(&reply.reply_id))
            .bind(reply.part)
            .bind(storable(&reply.caller))
            .bind(storable(&reply.prompt_hash))
            .bind(storable(&reply.encoder))
            .bind(queries::n(reply.embedding.len()))
            .bind(to_blob(&reply.embedding))
            .bind(reply.text.as_deref().map(storable))
            .bind(reply.time_ms)
            .bind(seq)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

async fn take_places(transaction: &mut Transaction<'_, Sqlite>, n: i64) -> Result<i64, StoreError> {
    let (last,): (i64,) = sqlx::query_as(queries::TAKE_PLACES).bind(n).fetch_one(&mut **transaction).await?;
    Ok(last)
}

async fn last_place(transaction: &mut Transaction<'_, Sqlite>) -> Result<i64, StoreError> {
    let (last,): (i64,) = sqlx::query_as(queries::LAST_PLACE).fetch_one(&mut **transaction).await?;
    Ok(last)
}

fn to_blob(embedding: &[f32]) -> Vec<u8> {
    embedding.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn from_blob(blob: Vec<u8>) -> Option<Vec<f32>> {
    let (values, rest) = blob.as_chunks::<4>();
    rest.is_empty().then(|| values.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

#[async_trait]
impl HistoryStore for SqliteHistory {
    async fn append(&self, replies: &[StoredReply]) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        insert(&mut transaction, replies).await?;
        transaction.commit().await?;
        Ok(())
    }

    async fn append_at(&self, place: i64, replies: &[StoredReply]) -> Result<bool, StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if last_place(&mut transaction).await? != place {
            return Ok(false);
        }
        insert(&mut transaction, replies).await?;
        transaction.commit().await?;
        Ok(true)
    }

    async fn since(&self, encoder: &str, place: i64, n: usize) -> Result<Newer, StoreError> {
        // One snapshot: a reply that comes in between the two statements must not be passed over.
        let mut transaction = self.pool.begin().await?;
        let last = last_place(&mut transaction).await?;
        if last <= place {
            return Ok(Newer { replies: Vec::new(), place: last });
        }
        let rows: Vec<Row<Vec<u8>>> = sqlx::query_as(queries::since!("embedding"))
            .bind(storable(encoder))
            .bind(place)
            .bind(queries::n(n))
            .fetch_all(&mut *transaction)
            .await?;
        Ok(Newer { replies: queries::replies(rows.into_iter().rev(), from_blob), place: last })
    }

    async fn page(&self, place: i64, n: usize) -> Result<Page, StoreError> {
        let rows: Vec<Row<Vec<u8>>> =
            sqlx::query_as(queries::page!("embedding")).bind(place).bind(queries::n(n)).fetch_all(&self.pool).await?;
        Ok(Page { place: rows.last().map(|row| row.9), replies: queries::replies(rows, from_blob) })
    }

    async fn count(&self) -> Result<u64, StoreError> {
        let (n,): (i64,) = sqlx::query_as(queries::COUNT).fetch_one(&self.pool).await?;
        Ok(u64::try_from(n).unwrap_or(0))
    }

    async fn erase(&self, what: &Erase) -> Result<u64, StoreError> {
        let n = self.delete(what).await?;
        // The log ahead of the file still holds the erased pages until it is written back.
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.pool).await?;
        Ok(n)
    }

    async fn prune(&self, retention: &Retention, now_ms: i64) -> Result<u64, StoreError> {
        let mut erased = match retention.oldest_ms(now_ms) {
            Some(oldest) => self.delete(&Erase::Before(oldest)).await?,
            None => 0,
        };
        if let Some(max) = retention.max_replies {
            let max = i64::try_from(max).unwrap_or(i64::MAX);
            erased += self.execute(sqlx::query(queries::ERASE_SURPLUS).bind(max)).await?;
        }
        Ok(erased)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::reply;

    #[tokio::test]
    async fn histories_without_a_counter_of_places_get_one_and_keep_their_rows() {
        let dir = tempfile::tempdir().unwrap();
        let pool = crate::store::open(&dir.path().join("idiolect.sqlite")).await.unwrap();
        migrate(&pool, "replies", &MIGRATIONS[..1]).await.unwrap();
        for (seq, id) in [(3, "a"), (7, "b")] {
            sqlx::query(
                "INSERT INTO replies (seq, reply_id, part, caller, prompt_hash, encoder, dimensions, embedding, time_ms)
                 VALUES (?, ?, 0, 'c', 'h', 'test', 2, x'0000803f00000000', 5)",
            )
            .bind(seq)
            .bind(id)
            .execute(&pool)
            .await
            .unwrap();
        }
        let history = SqliteHistory::open(pool).await.unwrap();
        let newer = history.since("test", 0, 9).await.unwrap();
        assert_eq!((newer.replies.len(), newer.place), (2, 7));
        assert_eq!((&*newer.replies[0].reply_id, &newer.replies[1].embedding[..]), ("a", &[1.0, 0.0][..]));
        assert!(history.append_at(7, &[reply("b", "c", [0.0, 1.0], 6)]).await.unwrap());
        let newer = history.since("test", 7, 9).await.unwrap();
        assert_eq!((newer.replies.len(), newer.place, history.count().await.unwrap()), (1, 8, 2));
    }
}
