//! Replies in an SQLite file.

use async_trait::async_trait;
use sqlx::{Sqlite, SqlitePool, Transaction};

use super::queries::{self, Row};
use super::{Erase, HistoryStore, Newer, Page, Retention, StoredReply};
use crate::store::{StoreError, migrate};

/// Replies in the table `replies` of an SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteHistory {
    pool: SqlitePool,
}

const MIGRATIONS: &[&[&str]] = &[&[
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
]];

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
            Erase::Caller(hotkey) => sqlx::query(queries::ERASE_CALLER).bind(hotkey),
            Erase::Id(id) => sqlx::query(queries::ERASE_ID).bind(id),
            Erase::All => sqlx::query(queries::ERASE_ALL),
        };
        Ok(query.execute(&self.pool).await?.rows_affected())
    }
}

async fn insert(transaction: &mut Transaction<'_, Sqlite>, replies: &[StoredReply]) -> Result<(), StoreError> {
    for reply in replies {
        sqlx::query(queries::REMOVE)
            .bind(&reply.reply_id)
            .bind(reply.part)
            .bind(&reply.encoder)
            .execute(&mut **transaction)
            .await?;
        sqlx::query(queries::insert!("$7"))
            .bind(&reply.reply_id)
            .bind(reply.part)
            .bind(&reply.caller)
            .bind(&reply.prompt_hash)
            .bind(&reply.encoder)
            .bind(i64::try_from(reply.embedding.len()).unwrap_or(i64::MAX))
            .bind(to_blob(&reply.embedding))
            .bind(&reply.text)
            .bind(reply.time_ms)
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
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
            .bind(encoder)
            .bind(place)
            .bind(i64::try_from(n).unwrap_or(i64::MAX))
            .fetch_all(&mut *transaction)
            .await?;
        Ok(Newer { replies: queries::replies(rows.into_iter().rev(), from_blob), place: last })
    }

    async fn page(&self, place: i64, n: usize) -> Result<Page, StoreError> {
        let rows: Vec<Row<Vec<u8>>> = sqlx::query_as(queries::page!("embedding"))
            .bind(place)
            .bind(i64::try_from(n).unwrap_or(i64::MAX))
            .fetch_all(&self.pool)
            .await?;
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
            erased += sqlx::query(queries::ERASE_SURPLUS).bind(max).execute(&self.pool).await?.rows_affected();
        }
        Ok(erased)
    }
}
