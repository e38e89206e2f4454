//! The records of replies on disk.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use idiolect_uniqueness::store::migrate;
use idiolect_uniqueness::{Erase, Retention, StoreError};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection, SqlitePool};
use tokio::sync::Mutex;

use crate::config::{RecordConfig, StorePrompts};
use crate::hash::CompletionHash;
use crate::{PipelineError, Provenance, hash};

/// The tables `provenance`, `sent_completions` and `rewards` of an SQLite file.
///
/// All of a reply is JSON in `body`: `sqlite3 idiolect.sqlite "SELECT body ->> 'reason' FROM provenance"` works. Records
/// are only ever added at the end of each tree, so writing one costs little, however many there are; what is asked for
/// rarely (all of one caller's replies, say) is found by reading through them.
#[derive(Clone, Debug)]
pub struct ProvenanceStore {
    pool: SqlitePool,
    known: Arc<Mutex<KnownCompletions>>,
}

pub(crate) const MIGRATIONS: &[&[&str]] = &[
    &[
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
    ],
    // Numbers instead of texts as keys, given in the order of writing and never twice. What was sent by then cannot be
    // given rewards any more: its hashes were made without the caller.
    &[
        "ALTER TABLE provenance RENAME TO provenance_1",
        "ALTER TABLE rewards RENAME TO rewards_1",
        "DROP TABLE sent_completions",
        "CREATE TABLE provenance (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            time_ms INTEGER NOT NULL,
            body TEXT NOT NULL
        ) STRICT",
        "INSERT INTO provenance (id, time_ms, body) SELECT id, time_ms, body FROM provenance_1 ORDER BY id",
        "CREATE TABLE sent_completions (
            reply INTEGER NOT NULL REFERENCES provenance (seq) ON DELETE CASCADE,
            completion_hash BLOB NOT NULL,
            PRIMARY KEY (reply, completion_hash)
        ) STRICT, WITHOUT ROWID",
        "CREATE TABLE rewards (
            reply INTEGER NOT NULL REFERENCES provenance (seq) ON DELETE CASCADE,
            completion_hash BLOB NOT NULL,
            time_ms INTEGER NOT NULL,
            rewards TEXT NOT NULL,
            PRIMARY KEY (reply, completion_hash)
        ) STRICT, WITHOUT ROWID",
        "INSERT INTO rewards (reply, completion_hash, time_ms, rewards)
         SELECT seq, CAST(completion_hash AS BLOB), rewards_1.time_ms, rewards
         FROM rewards_1 JOIN provenance ON id = reply_id",
        "DROP TABLE rewards_1",
        "DROP TABLE provenance_1",
    ],
];

/// Longest time between a call and the making of its reply's id, in milliseconds: what the longest question may take.
const LONGEST_CALL_MS: i64 = 24 * 3600 * 1000;

/// What is written of one reply.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    id: String,
    time_ms: i64,
    body: String,
    completion_hashes: Vec<CompletionHash>,
}

impl Record {
    /// Takes what may be kept of a reply; nothing where that cannot be written as JSON.
    pub(crate) fn new(provenance: &Provenance, config: &RecordConfig) -> Option<Self> {
        let completion_hashes = completion_hashes(provenance);
        match serde_json::to_string(&*kept(provenance, config)) {
            Ok(body) => Some(Self { id: provenance.id.clone(), time_ms: provenance.time_ms, body, completion_hashes }),
            Err(error) => {
                tracing::error!(id = provenance.id, %error, "a record cannot be written as JSON");
                None
            }
        }
    }
}

/// Returns the hashes by which rewards find this reply.
fn completion_hashes(provenance: &Provenance) -> Vec<CompletionHash> {
    let caller = provenance.caller.as_deref().unwrap_or_default();
    let texts = provenance.candidates.iter().filter(|c| c.sent).filter_map(|c| c.text.as_deref());
    texts.map(|text| hash::completion(caller, text)).collect()
}

/// Returns what may be kept of a reply: mostly all of it.
fn kept<'p>(provenance: &'p Provenance, config: &RecordConfig) -> Cow<'p, Provenance> {
    let size: usize = provenance.prompt.iter().flatten().map(|message| message.content.len()).sum();
    let is_too_long = size > config.max_prompt_bytes;
    if config.store_prompts == StorePrompts::All && !is_too_long && config.store_replies {
        return Cow::Borrowed(provenance);
    }
    let mut kept = provenance.clone();
    if config.store_prompts != StorePrompts::All {
        kept.prompt = None;
    } else if is_too_long {
        kept.prompt = None;
        kept.notes.push(format!("the prompt of {size} bytes was too long to be kept"));
    }
    if config.store_prompts == StorePrompts::None {
        kept.prompt_hash = None;
    }
    if !config.store_replies {
        kept.candidates.iter_mut().for_each(|candidate| candidate.text = None);
    }
    if kept.prompt.is_none() {
        // The prompt in other words is the prompt.
        let operators = kept.candidates.iter_mut().flat_map(|candidate| &mut candidate.operators);
        operators.for_each(|operator| operator.paraphrase = None);
    }
    Cow::Owned(kept)
}

/// Rewards that came for a completion.
#[derive(Clone, Debug)]
pub(crate) struct Rewards {
    pub(crate) completion_hash: CompletionHash,
    pub(crate) rewards: Vec<f32>,
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
        Ok(Self { pool, known: Arc::default() })
    }

    /// Returns how a reply came to be, with the rewards that came for it. `which` is an id, the beginning of one, or `last`.
    ///
    /// # Errors
    /// [`PipelineError::NotFound`], also when several ids begin like this, or what the store says.
    pub async fn explain(&self, which: &str) -> Result<Provenance, PipelineError> {
        let rows: Vec<(i64, String, String)> = if which == "last" {
            sqlx::query_as("SELECT seq, id, body FROM provenance ORDER BY id DESC LIMIT 1")
        } else {
            // A range of ids, not a pattern: what is asked for has no wildcards.
            sqlx::query_as("SELECT seq, id, body FROM provenance WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2").bind(which)
        }
        .fetch_all(&self.pool)
        .await
        .map_err(StoreError::from)?;
        let found = if which.is_empty() { None } else { <[(i64, String, String); 1]>::try_from(rows).ok() };
        let Some([(seq, id, body)]) = found else { return Err(PipelineError::NotFound(which.to_owned())) };
        let parsed = serde_json::from_str(&body);
        let mut provenance: Provenance = parsed.map_err(|source| PipelineError::Damaged { id: id.clone(), source })?;
        let rewards: Vec<(String,)> = sqlx::query_as("SELECT rewards FROM rewards WHERE reply = ?")
            .bind(seq)
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
            "SELECT id, time_ms, coalesce(body ->> 'caller', ''), coalesce(body ->> 'transport', ''),
                coalesce(body ->> 'reason', ''), CAST(coalesce(body ->> '$.timings.total_ms', 0) AS REAL)
             FROM provenance ORDER BY id DESC LIMIT ?",
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
            Erase::Before(before) => {
                // Ids begin with their time, and are made between call and reply.
                query.push("id < ").push_bind(first_id(before.saturating_add(LONGEST_CALL_MS)));
                query.push(" AND time_ms < ").push_bind(before)
            }
            Erase::Caller(hotkey) => query.push("coalesce(body ->> 'caller', '') = ").push_bind(hotkey),
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

    pub(crate) fn is_closed(&self) -> bool {
        self.pool.is_closed()
    }

    /// Writes replies, all or none of them.
    pub(crate) async fn insert(&self, records: &[Record]) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let last: Option<(i64,)> = sqlx::query_as("SELECT seq FROM sqlite_sequence WHERE name = 'provenance'")
            .fetch_optional(&mut *transaction)
            .await?;
        let first = last.map_or(1, |(last,)| last.saturating_add(1));
        for (seq, chunk) in (first..).step_by(CHUNK).zip(records.chunks(CHUNK)) {
            insert_chunk(&mut transaction, seq, chunk).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Keeps rewards, each beside the caller's latest reply with this completion, and says for each whether there is one.
    /// Later rewards for the same completion take the place of earlier ones.
    pub(crate) async fn reward(&self, rewards: &[Rewards], time_ms: i64) -> Result<Vec<bool>, StoreError> {
        let mut known = self.known.lock().await;
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let mut matched = Vec::with_capacity(rewards.len());
        known.catch_up(&mut transaction).await?;
        for of_one in rewards {
            let mut is_kept = keep_rewards(&mut transaction, &known, of_one, time_ms).await?;
            if is_kept == Some(false) {
                // That reply was erased; an earlier one with the same text may be there.
                *known = KnownCompletions::default();
                known.catch_up(&mut transaction).await?;
                is_kept = keep_rewards(&mut transaction, &known, of_one, time_ms).await?;
            }
            matched.push(is_kept == Some(true));
        }
        transaction.commit().await?;
        Ok(matched)
    }
}

/// Returns what every id is below that was made at `ms` or later.
fn first_id(ms: i64) -> String {
    let ms = ms.clamp(0, (1 << 48) - 1);
    format!("{:08x}-{:04x}-", ms >> 16, ms & 0xffff)
}

/// Returns `None` where no reply is known, and `Some(false)` where the one that is known is gone.
async fn keep_rewards(
    connection: &mut SqliteConnection,
    known: &KnownCompletions,
    Rewards { completion_hash, rewards }: &Rewards,
    time_ms: i64,
) -> Result<Option<bool>, StoreError> {
    let Some(reply) = known.replies.get(completion_hash) else { return Ok(None) };
    let json = serde_json::to_string(rewards).unwrap_or_else(|_| "[]".to_owned());
    let done = sqlx::query(
        "INSERT INTO rewards (reply, completion_hash, time_ms, rewards)
         SELECT reply, completion_hash, ?, ? FROM sent_completions WHERE reply = ? AND completion_hash = ?
         ON CONFLICT (reply, completion_hash) DO UPDATE SET rewards = excluded.rewards, time_ms = excluded.time_ms",
    )
    .bind(time_ms)
    .bind(json)
    .bind(reply)
    .bind(completion_hash.as_slice())
    .execute(connection)
    .await?;
    Ok(Some(done.rows_affected() > 0))
}

/// Which reply each completion was last sent in: the table `sent_completions`, read as far as it went when rewards last
/// came. An index on disk would cost every reply a write to a random page.
#[derive(Debug, Default)]
pub(crate) struct KnownCompletions {
    replies: HashMap<CompletionHash, i64>,
    read_up_to: i64,
}

impl KnownCompletions {
    /// Most completions that are known: rewards for older ones find no reply.
    const MOST: usize = 1 << 20;

    /// Reads what was written since, by this process or another.
    async fn catch_up(&mut self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        if self.replies.len() > Self::MOST {
            *self = Self::default();
        }
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT reply, completion_hash FROM sent_completions WHERE reply > ? ORDER BY reply DESC LIMIT ?",
        )
        .bind(self.read_up_to)
        .bind(i64::try_from(Self::MOST).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await?;
        for (reply, hash) in rows.into_iter().rev() {
            self.read_up_to = reply;
            if let Ok(hash) = hash.try_into() {
                self.replies.insert(hash, reply);
            }
        }
        Ok(())
    }
}

/// Records that one statement writes: few enough that each number of them keeps its prepared statement.
const CHUNK: usize = 32;

/// Writes at most [`CHUNK`] records in two statements: every statement costs a trip to SQLite's thread and back.
async fn insert_chunk(connection: &mut SqliteConnection, first: i64, records: &[Record]) -> Result<(), StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new("INSERT OR REPLACE INTO provenance (seq, id, time_ms, body) ");
    query.push_values((first..).zip(records), |mut row, (seq, record)| {
        row.push_bind(seq).push_bind(&record.id).push_bind(record.time_ms).push_bind(&record.body);
    });
    query.build().execute(&mut *connection).await?;
    let sent: Vec<_> =
        (first..).zip(records).flat_map(|(seq, r)| r.completion_hashes.iter().map(move |hash| (seq, hash))).collect();
    for sent in sent.chunks(CHUNK) {
        let mut query = QueryBuilder::<Sqlite>::new("INSERT OR IGNORE INTO sent_completions (reply, completion_hash) ");
        query.push_values(sent, |mut row, (seq, hash)| {
            row.push_bind(*seq).push_bind(hash.as_slice());
        });
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// The last records of a pipeline without a store.
#[derive(Debug, Default)]
pub(crate) struct MemoryRecords(BTreeMap<String, (Provenance, Vec<CompletionHash>)>);

impl MemoryRecords {
    const KEEP: usize = 64;

    pub(crate) fn insert(&mut self, provenance: &Provenance, config: &RecordConfig) {
        let record = (kept(provenance, config).into_owned(), completion_hashes(provenance));
        self.0.insert(provenance.id.clone(), record);
        while self.0.len() > Self::KEEP {
            self.0.pop_first();
        }
    }

    pub(crate) fn explain(&self, which: &str) -> Option<Provenance> {
        if which == "last" {
            return self.0.last_key_value().map(|(_, (provenance, _))| provenance.clone());
        }
        let mut found = self.0.range(which.to_owned()..).take_while(|(id, _)| id.starts_with(which));
        match (which.is_empty(), found.next(), found.next()) {
            (false, Some((_, (provenance, _))), None) => Some(provenance.clone()),
            _ => None,
        }
    }

    pub(crate) fn reward(&mut self, Rewards { completion_hash, rewards }: Rewards) -> bool {
        let found = self.0.values_mut().rev().find(|(_, hashes)| hashes.contains(&completion_hash));
        found.map(|(provenance, _)| provenance.rewards = rewards).is_some()
    }

    pub(crate) fn erase(&mut self, what: &Erase) -> u64 {
        let before = self.0.len();
        self.0.retain(|id, (Provenance { caller, time_ms, .. }, _)| {
            !what.matches(id, caller.as_deref().unwrap_or_default(), *time_ms)
        });
        (before - self.0.len()) as u64
    }
}
