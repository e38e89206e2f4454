//! The records of replies on disk.

use std::collections::BTreeMap;

use idiolect_uniqueness::store::migrate;
use idiolect_uniqueness::{Erase, Retention, StoreError};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection, SqlitePool};

use crate::config::{RecordConfig, StorePrompts};
use crate::{PipelineError, Provenance, hash};

/// The tables `provenance`, `sent_completions` and `rewards` of an SQLite file.
///
/// The main facts of a reply are columns, the rest is JSON in `body`: `sqlite3 idiolect.sqlite "SELECT body ->> 'reason'
/// FROM provenance"` works.
#[derive(Clone, Debug)]
pub struct ProvenanceStore {
    pool: SqlitePool,
}

const MIGRATIONS: &[&[&str]] = &[&[
    "CREATE TABLE provenance (
        id TEXT PRIMARY KEY,
        time_ms INTEGER NOT NULL,
        caller TEXT NOT NULL,
        transport TEXT NOT NULL,
        synapse TEXT NOT NULL,
        task TEXT NOT NULL,
        mode TEXT NOT NULL,
        reason TEXT NOT NULL,
        model TEXT NOT NULL,
        n_candidates INTEGER NOT NULL,
        total_ms REAL NOT NULL,
        prompt_hash TEXT,
        body TEXT NOT NULL
    ) STRICT",
    "CREATE INDEX provenance_by_time ON provenance (time_ms)",
    "CREATE INDEX provenance_by_caller ON provenance (caller)",
    "CREATE TABLE sent_completions (
        reply_id TEXT NOT NULL REFERENCES provenance (id) ON DELETE CASCADE,
        caller TEXT NOT NULL,
        completion_hash TEXT NOT NULL,
        PRIMARY KEY (reply_id, completion_hash)
    ) STRICT, WITHOUT ROWID",
    "CREATE INDEX sent_by_caller ON sent_completions (caller, completion_hash, reply_id)",
    "CREATE TABLE rewards (
        reply_id TEXT NOT NULL REFERENCES provenance (id) ON DELETE CASCADE,
        completion_hash TEXT NOT NULL,
        time_ms INTEGER NOT NULL,
        rewards TEXT NOT NULL,
        PRIMARY KEY (reply_id, completion_hash)
    ) STRICT, WITHOUT ROWID",
]];

/// What is written of one reply.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    provenance: Provenance,
    completion_hashes: Vec<String>,
}

impl Record {
    /// Takes what may be kept of a reply.
    pub(crate) fn new(provenance: &Provenance, config: &RecordConfig) -> Self {
        let mut kept = provenance.clone();
        let texts = kept.candidates.iter().filter(|c| c.sent).filter_map(|c| c.text.as_deref());
        let completion_hashes = texts.map(hash::completion).collect();
        let size: usize = kept.prompt.iter().flatten().map(|message| message.content.len()).sum();
        if config.store_prompts != StorePrompts::All {
            kept.prompt = None;
        } else if size > config.max_prompt_bytes {
            kept.prompt = None;
            kept.notes.push(format!("the prompt of {size} bytes was too long to be kept"));
        }
        if config.store_prompts == StorePrompts::None {
            kept.prompt_hash = None;
        }
        if !config.store_replies {
            kept.candidates.iter_mut().for_each(|candidate| candidate.text = None);
        }
        Self { provenance: kept, completion_hashes }
    }
}

/// One row of [`ProvenanceStore::list`].
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Listed {
    /// The reply's id.
    pub id: String,
    /// When the call came, in milliseconds since 1970.
    pub time_ms: i64,
    /// Who asked; empty for our own questions.
    pub caller: String,
    /// The transport.
    pub transport: String,
    /// Why the candidate was chosen.
    pub reason: String,
    /// How long it took, in milliseconds.
    pub total_ms: f64,
}

impl ProvenanceStore {
    /// Makes the tables when they are not there.
    ///
    /// # Errors
    /// What the store says.
    pub async fn open(pool: SqlitePool) -> Result<Self, StoreError> {
        migrate(&pool, "provenance", MIGRATIONS).await?;
        Ok(Self { pool })
    }

    /// Returns how a reply came to be, with the rewards that came for it. `which` is an id, the beginning of one, or `last`.
    ///
    /// # Errors
    /// [`PipelineError::NotFound`], also when several ids begin like this, or what the store says.
    pub async fn explain(&self, which: &str) -> Result<Provenance, PipelineError> {
        let rows: Vec<(String, String)> = if which == "last" {
            sqlx::query_as("SELECT id, body FROM provenance ORDER BY id DESC LIMIT 1")
        } else {
            // A range of ids, not a pattern: what is asked for has no wildcards.
            sqlx::query_as("SELECT id, body FROM provenance WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2").bind(which)
        }
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::from)?;
        let found = if which.is_empty() { None } else { <[(String, String); 1]>::try_from(rows).ok() };
        let Some([(id, body)]) = found else { return Err(PipelineError::NotFound(which.to_owned())) };
        let parsed = serde_json::from_str(&body);
        let mut provenance: Provenance = parsed.map_err(|source| PipelineError::Damaged { id: id.clone(), source })?;
        let rewards: Vec<(String,)> = sqlx::query_as("SELECT rewards FROM rewards WHERE reply_id = ?")
            .bind(&id)
            .fetch_all(&self.pool)
            .await
            .map_err(StoreError::from)?;
        for (json,) in rewards {
            let rewards: Vec<f32> =
                serde_json::from_str(&json).map_err(|source| PipelineError::Damaged { id: id.clone(), source })?;
            provenance.rewards.extend(rewards);
        }
        Ok(provenance)
    }

    /// Returns the last `n` replies, newest first.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(&self, n: u32) -> Result<Vec<Listed>, StoreError> {
        let rows: Vec<(String, i64, String, String, String, f64)> = sqlx::query_as(
            "SELECT id, time_ms, caller, transport, reason, total_ms FROM provenance ORDER BY id DESC LIMIT ?",
        )
        .bind(n)
        .fetch_all(&self.pool)
        .await?;
        let listed = |(id, time_ms, caller, transport, reason, total_ms)| Listed {
            id,
            time_ms,
            caller,
            transport,
            reason,
            total_ms,
        };
        Ok(rows.into_iter().map(listed).collect())
    }

    /// Returns how many replies are on record.
    ///
    /// # Errors
    /// What the store says.
    pub async fn count(&self) -> Result<u64, StoreError> {
        let (n,): (i64,) = sqlx::query_as("SELECT count(*) FROM provenance").fetch_one(&self.pool).await?;
        Ok(u64::try_from(n).unwrap_or(0))
    }

    /// Erases records, with the rewards beside them, and returns how many. What was erased is overwritten on disk.
    ///
    /// # Errors
    /// What the store says.
    pub async fn erase(&self, what: &Erase) -> Result<u64, StoreError> {
        let n = self.delete(what).await?;
        // The log ahead of the file still holds the erased pages until it is written back.
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&self.pool).await?;
        Ok(n)
    }

    async fn delete(&self, what: &Erase) -> Result<u64, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("DELETE FROM provenance WHERE ");
        match what {
            Erase::Before(before) => query.push("time_ms < ").push_bind(before),
            Erase::Caller(hotkey) => query.push("caller = ").push_bind(hotkey),
            Erase::Id(id) => query.push("id = ").push_bind(id),
            Erase::All => query.push("1 = 1"),
            // A kind of erasure that this crate does not know erases nothing.
            _ => query.push("1 = 0"),
        };
        Ok(query.build().execute(&self.pool).await?.rows_affected())
    }

    /// Erases what is older, or more, than allowed and returns how many.
    ///
    /// # Errors
    /// What the store says.
    pub async fn prune(&self, retention: &Retention, now_ms: i64) -> Result<u64, StoreError> {
        let mut erased = match retention.oldest_ms(now_ms) {
            Some(oldest) => self.delete(&Erase::Before(oldest)).await?,
            None => 0,
        };
        if let Some(max) = retention.max_replies {
            erased += sqlx::query(
                "DELETE FROM provenance WHERE id <= (SELECT id FROM provenance ORDER BY id DESC LIMIT 1 OFFSET ?)",
            )
            .bind(i64::try_from(max).unwrap_or(i64::MAX))
            .execute(&self.pool)
            .await?
            .rows_affected();
        }
        Ok(erased)
    }

    /// Writes replies, all or none of them.
    pub(crate) async fn insert(&self, records: &[Record]) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for chunk in records.chunks(CHUNK) {
            insert_chunk(&mut transaction, chunk).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Keeps rewards beside the caller's latest reply with this completion, and says whether there is one. Later
    /// rewards for the same completion take the place of earlier ones.
    pub(crate) async fn reward(
        &self,
        caller: &str,
        completion_hash: &str,
        rewards: &[f32],
        time_ms: i64,
    ) -> Result<bool, StoreError> {
        let json = serde_json::to_string(rewards).unwrap_or_else(|_| "[]".to_owned());
        let done = sqlx::query(
            "INSERT INTO rewards (reply_id, completion_hash, time_ms, rewards)
             SELECT reply_id, completion_hash, ?, ? FROM sent_completions
             WHERE caller = ? AND completion_hash = ? ORDER BY reply_id DESC LIMIT 1
             ON CONFLICT (reply_id, completion_hash)
             DO UPDATE SET rewards = excluded.rewards, time_ms = excluded.time_ms",
        )
        .bind(time_ms)
        .bind(json)
        .bind(caller)
        .bind(completion_hash)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}

/// Records that one statement writes: few enough that each number of them keeps its prepared statement.
const CHUNK: usize = 32;

/// Writes at most [`CHUNK`] records in two statements: every statement costs a trip to SQLite's thread and back.
async fn insert_chunk(connection: &mut SqliteConnection, records: &[Record]) -> Result<(), StoreError> {
    let mut written = Vec::with_capacity(records.len());
    for record in records {
        match serde_json::to_string(&record.provenance) {
            Ok(body) => written.push((record, body)),
            Err(error) => tracing::error!(id = record.provenance.id, %error, "a record cannot be written as JSON"),
        }
    }
    if written.is_empty() {
        return Ok(());
    }
    let sent: Vec<_> = written
        .iter()
        .flat_map(|(record, _)| record.completion_hashes.iter().map(|hash| (&record.provenance, hash)))
        .collect();
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT OR REPLACE INTO provenance
         (id, time_ms, caller, transport, synapse, task, mode, reason, model, n_candidates, total_ms, prompt_hash, body) ",
    );
    query.push_values(written.iter(), |mut row, (record, body)| {
        let p = &record.provenance;
        row.push_bind(&p.id)
            .push_bind(p.time_ms)
            .push_bind(p.caller.as_deref().unwrap_or_default())
            .push_bind(&p.transport)
            .push_bind(&p.synapse)
            .push_bind(&p.task)
            .push_bind(&p.mode)
            .push_bind(&p.reason)
            .push_bind(p.chosen().map_or("", |candidate| &candidate.model))
            .push_bind(i64::try_from(p.candidates.len()).unwrap_or(i64::MAX))
            .push_bind(p.timings.total_ms)
            .push_bind(&p.prompt_hash)
            .push_bind(body);
    });
    query.build().execute(&mut *connection).await?;
    for sent in sent.chunks(CHUNK) {
        let mut query =
            QueryBuilder::<Sqlite>::new("INSERT OR IGNORE INTO sent_completions (reply_id, caller, completion_hash) ");
        query.push_values(sent, |mut row, (p, hash)| {
            row.push_bind(&p.id).push_bind(p.caller.as_deref().unwrap_or_default()).push_bind(*hash);
        });
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// The last records of a pipeline without a store.
#[derive(Debug, Default)]
pub(crate) struct MemoryRecords(BTreeMap<String, Record>);

impl MemoryRecords {
    const KEEP: usize = 64;

    pub(crate) fn insert(&mut self, record: Record) {
        self.0.insert(record.provenance.id.clone(), record);
        while self.0.len() > Self::KEEP {
            self.0.pop_first();
        }
    }

    pub(crate) fn explain(&self, which: &str) -> Option<Provenance> {
        if which == "last" {
            return self.0.last_key_value().map(|(_, record)| record.provenance.clone());
        }
        let mut found = self.0.range(which.to_owned()..).take_while(|(id, _)| id.starts_with(which));
        match (which.is_empty(), found.next(), found.next()) {
            (false, Some((_, record)), None) => Some(record.provenance.clone()),
            _ => None,
        }
    }

    pub(crate) fn reward(&mut self, caller: &str, completion_hash: &str, rewards: &[f32]) -> bool {
        let is_it = |record: &&mut Record| {
            record.provenance.caller.as_deref() == Some(caller)
                && record.completion_hashes.iter().any(|hash| hash == completion_hash)
        };
        let found = self.0.values_mut().rev().find(is_it);
        found.map(|record| record.provenance.rewards = rewards.to_vec()).is_some()
    }

    pub(crate) fn erase(&mut self, what: &Erase) -> u64 {
        let before = self.0.len();
        self.0.retain(|id, record| {
            let Provenance { caller, time_ms, .. } = &record.provenance;
            !what.matches(id, caller.as_deref().unwrap_or_default(), *time_ms)
        });
        (before - self.0.len()) as u64
    }
}
