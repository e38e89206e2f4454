//! Used nonces on disk, so that a captured request does not work again after a restart.
//!
//! Nonces are written in batches, at most [`SAVE_EVERY`] late. The clock nonces of a batch are one row, written at the
//! table's end and deleted as a whole: each lives for seconds only, so a row and an index entry for each would cost more
//! than proving the signature beside it. A stop that is told leaves a mark. Where the mark is
//! missing at the next start (a kill, a loss of power) the last batch may be lost, so clock nonces older than that start
//! are refused; counters keep the last value that reached the disk.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use idiolect_protocol::{Clock, Hotkey, NonceRecord, NonceStore};
use sqlx::{Row, SqlitePool};
use tokio::time::MissedTickBehavior;

use crate::metrics as meters;

/// How late a nonce may reach the disk.
pub const SAVE_EVERY: Duration = Duration::from_millis(100);

/// How often nonces that no window reaches any more are deleted from disk.
const PRUNE_EVERY: Duration = Duration::from_secs(30);

const COMPONENT: &str = "nonces";
const VERSION: i64 = 2;

/// Why nonces cannot be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NonceDbError {
    /// The database does not do what it is asked.
    #[error("the store of nonces failed")]
    Database(#[from] sqlx::Error),
    /// A batch of nonces is no JSON of the right shape.
    #[error("the store of nonces is damaged; move it away")]
    Damaged(#[source] serde_json::Error),
    /// The tables are of a later version of this software.
    #[error(
        "the store of nonces has version {found}, this program knows {VERSION}: use a newer program or another data directory"
    )]
    Newer {
        /// The version on disk.
        found: i64,
    },
}

/// Writes the nonces of one [`NonceStore`] to SQLite.
#[derive(Debug)]
pub struct NoncePersister {
    pool: SqlitePool,
    receiver: Vec<u8>,
    store: Arc<NonceStore>,
    clock: Arc<dyn Clock>,
}

impl NoncePersister {
    /// Makes the tables where they are missing and a store with what is in them.
    ///
    /// `receiver` is the miner's own key: miners that share a database keep their nonces apart.
    ///
    /// # Errors
    /// [`NonceDbError`].
    pub async fn open(
        pool: SqlitePool,
        receiver: &Hotkey,
        max_entries: usize,
        clock: Arc<dyn Clock>,
    ) -> Result<(Arc<NonceStore>, Self), NonceDbError> {
        create_tables(&pool).await?;
        let receiver = receiver.as_bytes().to_vec();
        let now_ns = clock.now_ns();
        delete_expired(&pool, now_ns).await?;
        let records = load(&pool, &receiver, now_ns).await?;
        // From here on a stop is unclean until told otherwise.
        let was_clean = take_clean_mark(&pool, &receiver).await?;
        if !was_clean && !records.is_empty() {
            tracing::warn!("the last stop was not clean: requests signed before this start are refused");
        }
        tracing::debug!(nonces = records.len(), was_clean, "restored nonces");
        let refuse_before = (!was_clean).then_some(now_ns);
        let store = Arc::new(NonceStore::restore(max_entries, records, refuse_before));
        let persister = Self { pool, receiver, store: store.clone(), clock };
        Ok((store, persister))
    }

    /// Saves until `stop`, then saves the rest and leaves the mark of a clean stop. Stop the axon first.
    ///
    /// # Errors
    /// [`NonceDbError`] when the last save fails. Failures before are logged, counted and tried again.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), NonceDbError> {
        let mut ticks = tokio::time::interval(SAVE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since_prune = Duration::ZERO;
        let mut stop = std::pin::pin!(stop);
        let mut failing = false;
        loop {
            tokio::select! {
                () = &mut stop => break,
                _ = ticks.tick() => {}
            }
            since_prune += SAVE_EVERY;
            let mut saved = self.save().await;
            if saved.is_ok() && since_prune >= PRUNE_EVERY {
                since_prune = Duration::ZERO;
                saved = delete_expired(&self.pool, self.clock.now_ns()).await;
            }
            match saved {
                Ok(()) => failing = false,
                Err(error) => {
                    meters::nonce_save_failed();
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(error = %chain(&error), "nonces cannot be written, trying again");
                    }
                }
            }
        }
        self.save().await?;
        set_clean_mark(&self.pool, &self.receiver).await
    }

    /// Writes what is new now.
    ///
    /// # Errors
    /// [`NonceDbError`]; what was not written is kept for the next attempt.
    pub async fn save(&self) -> Result<(), NonceDbError> {
        let records = self.store.take_unsaved();
        meters::nonces(self.store.len());
        if records.is_empty() {
            return Ok(());
        }
        let saved = write(&self.pool, &self.receiver, &records).await;
        if saved.is_ok() {
            meters::nonces_saved(records.len());
            self.delete_forgotten().await?;
        } else {
            self.store.return_unsaved(still_needed(records, self.clock.now_ns()));
        }
        saved
    }
}

impl NoncePersister {
    /// Deletes the counters that the store forgot; the limits that stand for them have just been written.
    async fn delete_forgotten(&self) -> Result<(), NonceDbError> {
        let forgotten = self.store.take_forgotten();
        if forgotten.is_empty() {
            return Ok(());
        }
        tracing::warn!(
            sessions = forgotten.len(),
            "the store of nonces was full: forgot old sessions, which are refused from now on"
        );
        let keys = serde_json::to_string(&forgotten).map_err(NonceDbError::Damaged)?;
        sqlx::query("DELETE FROM nonce_monotonic WHERE receiver = ? AND key IN (SELECT value FROM json_each(?))")
            .bind(&self.receiver)
            .bind(keys)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Drops what lost its meaning, so that a disk that stays full does not fill the memory too.
fn still_needed(records: Vec<NonceRecord>, now_ns: i128) -> Vec<NonceRecord> {
    let mut last_of_counter = HashMap::new();
    let mut needed = Vec::new();
    for record in records {
        match record.expires_ns {
            Some(expires_ns) if expires_ns > now_ns => needed.push(record),
            Some(_) => {}
            None => {
                last_of_counter.insert(record.key.clone(), record);
            }
        }
    }
    needed.extend(last_of_counter.into_values());
    needed
}

/// Returns an error and its causes as text.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

async fn create_tables(pool: &SqlitePool) -> Result<(), NonceDbError> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query("CREATE TABLE IF NOT EXISTS idiolect_schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL)")
        .execute(&mut *transaction)
        .await?;
    let found: Option<i64> = sqlx::query("SELECT version FROM idiolect_schema WHERE component = ?")
        .bind(COMPONENT)
        .fetch_optional(&mut *transaction)
        .await?
        .map(|row| row.get(0));
    if let Some(found) = found.filter(|found| *found > VERSION) {
        return Err(NonceDbError::Newer { found });
    }
    let steps: &[&[&str]] = match found {
        None => &[TABLES],
        Some(1) => &[AWAY_1, TABLES, FROM_1],
        Some(_) => &[],
    };
    for statement in steps.iter().flat_map(|statements| statements.iter()) {
        sqlx::query(*statement).execute(&mut *transaction).await?;
    }
    sqlx::query(
        "INSERT INTO idiolect_schema (component, version) VALUES (?, ?)
         ON CONFLICT (component) DO UPDATE SET version = excluded.version",
    )
    .bind(COMPONENT)
    .bind(VERSION)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}

const TABLES: &[&str] = &[
    // Of each session of the batch: its key, when it expires, its values.
    "CREATE TABLE nonce_batches (
        seq INTEGER PRIMARY KEY, receiver BLOB NOT NULL, expires_ns INTEGER NOT NULL, sessions TEXT NOT NULL
    )",
    "CREATE VIEW nonce_windowed AS
        SELECT receiver, session.value ->> 0 AS key, nonce.value AS value, session.value ->> 1 AS expires_ns
        FROM nonce_batches, json_each(sessions) AS session, json_each(session.value, '$[2]') AS nonce",
    "CREATE TABLE IF NOT EXISTS nonce_monotonic (
        receiver BLOB NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (receiver, key)
    ) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS nonce_stop (receiver BLOB PRIMARY KEY, clean INTEGER NOT NULL) WITHOUT ROWID",
];

/// Version 1 had a row for each clock nonce.
const AWAY_1: &[&str] = &["ALTER TABLE nonce_windowed RENAME TO nonce_windowed_1"];
const FROM_1: &[&str] = &[
    "INSERT INTO nonce_batches (receiver, expires_ns, sessions)
        SELECT receiver, max(expires_ns), json_group_array(json_array(key, expires_ns, json_array(value)))
        FROM nonce_windowed_1 GROUP BY receiver",
    "DROP TABLE nonce_windowed_1",
];

/// One session of a batch: key, when it expires, values.
type Saved<K, V> = (K, i64, Vec<V>);

async fn load(pool: &SqlitePool, receiver: &[u8], now_ns: i128) -> Result<Vec<NonceRecord>, NonceDbError> {
    let mut records = Vec::new();
    let batches =
        sqlx::query("SELECT sessions FROM nonce_batches WHERE receiver = ?").bind(receiver).fetch_all(pool).await?;
    for batch in batches {
        let sessions: Vec<Saved<String, String>> =
            serde_json::from_str(&batch.get::<String, _>(0)).map_err(NonceDbError::Damaged)?;
        // Some expired before the last of their batch.
        for (key, expires_ns, values) in sessions.into_iter().filter(|saved| i128::from(saved.1) >= now_ns) {
            let record = |value| NonceRecord { key: key.clone(), value, expires_ns: Some(i128::from(expires_ns)) };
            records.extend(values.into_iter().map(record));
        }
    }
    let counters =
        sqlx::query("SELECT key, value FROM nonce_monotonic WHERE receiver = ?").bind(receiver).fetch_all(pool).await?;
    let record = |row: sqlx::sqlite::SqliteRow| NonceRecord { key: row.get(0), value: row.get(1), expires_ns: None };
    records.extend(counters.into_iter().map(record));
    Ok(records)
}

/// Writes records with one statement a table, however many they are: their values travel as one JSON text.
async fn write(pool: &SqlitePool, receiver: &[u8], records: &[NonceRecord]) -> Result<(), NonceDbError> {
    let mut sessions: Vec<Saved<&str, &str>> = Vec::new();
    let mut counters: Vec<(&str, &str)> = Vec::new();
    for NonceRecord { key, value, expires_ns } in records {
        match (expires_ns.map(nanoseconds), sessions.last_mut()) {
            (None, _) => counters.push((key, value)),
            // The values of one session come together.
            (Some(expires), Some(last)) if last.0 == key && last.1 == expires => last.2.push(value),
            (Some(expires), _) => sessions.push((key, expires, vec![value])),
        }
    }
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    if let Some(expires_ns) = sessions.iter().map(|saved| saved.1).max() {
        sqlx::query("INSERT INTO nonce_batches (receiver, expires_ns, sessions) VALUES (?, ?, ?)")
            .bind(receiver)
            .bind(expires_ns)
            .bind(serde_json::to_string(&sessions).map_err(NonceDbError::Damaged)?)
            .execute(&mut *transaction)
            .await?;
    }
    if !counters.is_empty() {
        sqlx::query(
            "INSERT INTO nonce_monotonic (receiver, key, value)
             SELECT ?1, value ->> 0, value ->> 1 FROM json_each(?2) WHERE true
             ON CONFLICT (receiver, key) DO UPDATE SET value = excluded.value",
        )
        .bind(receiver)
        .bind(serde_json::to_string(&counters).map_err(NonceDbError::Damaged)?)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// SQLite's integers reach to the year 2262.
fn nanoseconds(ns: i128) -> i64 {
    i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
}

async fn delete_expired(pool: &SqlitePool, now_ns: i128) -> Result<(), NonceDbError> {
    sqlx::query("DELETE FROM nonce_batches WHERE expires_ns < ?").bind(nanoseconds(now_ns)).execute(pool).await?;
    Ok(())
}

async fn take_clean_mark(pool: &SqlitePool, receiver: &[u8]) -> Result<bool, NonceDbError> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    let row = sqlx::query("SELECT clean FROM nonce_stop WHERE receiver = ?")
        .bind(receiver)
        .fetch_optional(&mut *transaction)
        .await?;
    mark(&mut transaction, receiver, false).await?;
    transaction.commit().await?;
    Ok(row.is_some_and(|row| row.get::<i64, _>(0) != 0))
}

async fn set_clean_mark(pool: &SqlitePool, receiver: &[u8]) -> Result<(), NonceDbError> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    mark(&mut transaction, receiver, true).await?;
    transaction.commit().await?;
    Ok(())
}

async fn mark(
    transaction: &mut sqlx::Transaction<'_, sqlx::Sqlite>,
    receiver: &[u8],
    clean: bool,
) -> Result<(), NonceDbError> {
    sqlx::query(
        "INSERT INTO nonce_stop (receiver, clean) VALUES (?, ?)
         ON CONFLICT (receiver) DO UPDATE SET clean = excluded.clean",
    )
    .bind(receiver)
    .bind(i64::from(clean))
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

#[cfg(test)]
#[path = "nonces_tests.rs"]
mod tests;
