//! Replies in PostgreSQL, for miners on several machines.

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgDatabaseError, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{PgPool, Postgres, Transaction};

use super::queries::{self, Row, storable};
use super::{Erase, HistoryStore, Newer, Page, Retention, StoredReply};
use crate::store::StoreError;

/// Replies in the table `idiolect.replies` of a PostgreSQL database (13 or newer) with the extension pgvector.
///
/// Writers take turns, so that places grow in the order in which replies become visible. An embedding that is
/// empty or has a value that is not finite is kept as missing, so the reply counts but is left out when replies are read, as
/// a damaged row is.
#[derive(Clone, Debug)]
pub struct PostgresHistory {
    pool: PgPool,
}

/// The lock that writers hold until their transaction ends: "idiolect" in ASCII.
const WRITER: i64 = i64::from_be_bytes(*b"idiolect");

const MIGRATIONS: &[&[&str]] = &[
    &[
        "CREATE TABLE replies (
            seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            reply_id TEXT NOT NULL,
            part BIGINT NOT NULL,
            caller TEXT NOT NULL,
            prompt_hash TEXT NOT NULL,
            encoder TEXT NOT NULL,
            dimensions BIGINT NOT NULL,
            embedding vector,
            text TEXT,
            time_ms BIGINT NOT NULL,
            UNIQUE (reply_id, part, encoder)
        )",
        "CREATE INDEX replies_by_encoder ON replies (encoder, seq)",
        "CREATE INDEX replies_by_caller ON replies (caller)",
        "CREATE INDEX replies_by_time ON replies (time_ms)",
    ],
    // The place of the last change, in one row.
    &[
        "ALTER TABLE replies ALTER COLUMN seq DROP IDENTITY",
        "CREATE TABLE replies_place (place BIGINT NOT NULL)",
        "INSERT INTO replies_place SELECT coalesce(max(seq), 0) FROM replies",
    ],
];

impl PostgresHistory {
    /// Connects to a database, by an URL such as `postgres://user:password@host/database?sslmode=verify-full`, and makes
    /// the schema `idiolect`, its tables and the extension `vector` when they are not there.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] where no database answers or lets us in, [`StoreError::Newer`] when a newer build made the
    /// tables, otherwise what the database says.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        // The URL holds a password: it stays out of errors.
        let options: PgConnectOptions = url.parse().map_err(StoreError::Unreachable)?;
        let options = options.options([("search_path", "idiolect,public")]).application_name("idiolect");
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(std::time::Duration::from_secs(10))
            .connect_with(options)
            .await
            .map_err(StoreError::Unreachable)?;
        let history = Self { pool };
        history.migrate().await.map_err(from_postgres)?;
        Ok(history)
    }

    /// Says what an URL names, without its password: `postgres://user@host:port/database`.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] for what is no URL of a database.
    pub fn describe(url: &str) -> Result<String, StoreError> {
        let is_url = url.starts_with("postgres://") || url.starts_with("postgresql://");
        let options: PgConnectOptions = match url.parse() {
            Ok(options) if is_url => options,
            Ok(_) => {
                let why = "the URL of a database begins with postgres://";
                return Err(StoreError::Unreachable(sqlx::Error::Configuration(why.into())));
            }
            Err(error) => return Err(StoreError::Unreachable(error)),
        };
        let database = options.get_database().unwrap_or_default();
        Ok(format!("postgres://{}@{}:{}/{database}", options.get_username(), options.get_host(), options.get_port()))
    }

    async fn migrate(&self) -> Result<(), Failure> {
        let mut transaction = self.writer().await?;
        sqlx::query("CREATE SCHEMA IF NOT EXISTS idiolect").execute(&mut *transaction).await?;
        sqlx::query("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public").execute(&mut *transaction).await?;
        sqlx::query("CREATE TABLE IF NOT EXISTS idiolect_schema (component TEXT PRIMARY KEY, version BIGINT NOT NULL)")
            .execute(&mut *transaction)
            .await?;
        let row: Option<(i64,)> = sqlx::query_as("SELECT version FROM idiolect_schema WHERE component = 'replies'")
            .fetch_optional(&mut *transaction)
            .await?;
        let found = row.map_or(0, |(version,)| version);
        let supported = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        let Some(missing) = usize::try_from(found).ok().and_then(|found| MIGRATIONS.get(found..)) else {
            return Err(Failure::Newer { found, supported });
        };
        for statement in missing.iter().flat_map(|statements| statements.iter()) {
            sqlx::query(*statement).execute(&mut *transaction).await?;
        }
        sqlx::query(
            "INSERT INTO idiolect_schema (component, version) VALUES ('replies', $1)
             ON CONFLICT (component) DO UPDATE SET version = excluded.version",
        )
        .bind(supported)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Begins a transaction that no other writer's overlaps.
    async fn writer(&self) -> Result<Transaction<'static, Postgres>, Failure> {
        let mut transaction = self.pool.begin().await?;
        // Whoever freezes while it holds the lock must not keep the others from writing.
        sqlx::query("SELECT set_config('lock_timeout', '10s', true), set_config('idle_in_transaction_session_timeout', '10s', true)")
            .execute(&mut *transaction)
            .await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(WRITER).execute(&mut *transaction).await?;
        Ok(transaction)
    }

    async fn append_if(&self, place: Option<i64>, replies: &[StoredReply]) -> Result<bool, Failure> {
        let mut transaction = self.writer().await?;
        if let Some(place) = place {
            let (last,): (i64,) = sqlx::query_as(queries::LAST_PLACE).fetch_one(&mut *transaction).await?;
            if last != place {
                return Ok(false);
            }
        }
        let n = queries::n(replies.len());
        let before = take_places(&mut transaction, n).await? - n;
        for (seq, reply) in (before + 1..).zip(replies) {
            let part = i64::from(reply.part);
            sqlx::query(queries::REMOVE)
                .bind(storable(&reply.reply_id))
                .bind(part)
                .bind(storable(&reply.encoder))
                .execute(&mut *transaction)
                .await?;
            let is_whole = !reply.embedding.is_empty() && reply.embedding.iter().all(|value| value.is_finite());
            sqlx::query(queries::insert!("$7::real[]::vector"))
                .bind(storable(&reply.reply_id))
                .bind(part)
                .bind(storable(&reply.caller))
                .bind(storable(&reply.prompt_hash))
                .bind(storable(&reply.encoder))
                .bind(queries::n(reply.embedding.len()))
                .bind(is_whole.then_some(&reply.embedding))
                .bind(reply.text.as_deref().map(storable))
                .bind(reply.time_ms)
                .bind(seq)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(true)
    }

    async fn newer(&self, encoder: &str, place: i64, n: usize) -> Result<Newer, Failure> {
        // One snapshot: a reply that comes in between the two statements must not be passed over.
        let mut transaction = self.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?;
        let (last,): (i64,) = sqlx::query_as(queries::LAST_PLACE).fetch_one(&mut *transaction).await?;
        if last <= place {
            return Ok(Newer { replies: Vec::new(), place: last });
        }
        let rows: Vec<Row<Option<Vec<f32>>>> = sqlx::query_as(queries::since!("embedding::real[]"))
            .bind(storable(encoder))
            .bind(place)
            .bind(queries::n(n))
            .fetch_all(&mut *transaction)
            .await?;
        Ok(Newer { replies: queries::replies(rows.into_iter().rev(), |embedding| embedding), place: last })
    }

    async fn delete(&self, what: &Erase) -> Result<u64, Failure> {
        let query = match what {
            Erase::Before(before) => sqlx::query(queries::ERASE_BEFORE).bind(before),
            Erase::Caller(hotkey) => sqlx::query(queries::ERASE_CALLER).bind(storable(hotkey)),
            Erase::Id(id) => sqlx::query(queries::ERASE_ID).bind(storable(id)),
            Erase::All => sqlx::query(queries::ERASE_ALL),
        };
        self.execute(query).await
    }

    async fn delete_surplus(&self, max: u64) -> Result<u64, Failure> {
        let max = i64::try_from(max).unwrap_or(i64::MAX);
        self.execute(sqlx::query(queries::ERASE_SURPLUS).bind(max)).await
    }

    /// Erases rows and returns how many. That some went is a change, which has a place.
    async fn execute(&self, query: Query<'_, Postgres, PgArguments>) -> Result<u64, Failure> {
        let mut transaction = self.writer().await?;
        let n = query.execute(&mut *transaction).await?.rows_affected();
        if n > 0 {
            take_places(&mut transaction, 1).await?;
        }
        transaction.commit().await?;
        Ok(n)
    }
}

async fn take_places(transaction: &mut Transaction<'_, Postgres>, n: i64) -> Result<i64, Failure> {
    let (last,): (i64,) = sqlx::query_as(queries::TAKE_PLACES).bind(n).fetch_one(&mut **transaction).await?;
    Ok(last)
}

/// What went wrong, before it is put into the words of [`StoreError`].
enum Failure {
    Sql(sqlx::Error),
    Newer { found: i64, supported: i64 },
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

/// By SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
fn from_postgres(failure: Failure) -> StoreError {
    let error = match failure {
        Failure::Newer { found, supported } => {
            return StoreError::Newer { component: "replies".to_owned(), found, supported };
        }
        Failure::Sql(error) => error,
    };
    let state = error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .map(|error| error.code().to_owned());
    match (state.as_deref(), &error) {
        (Some("25006"), _) => StoreError::ReadOnly(error),
        (Some("53100"), _) => StoreError::Full(error),
        (Some("55P03" | "40P01" | "53300"), _) => StoreError::Busy(error),
        (Some("XX001" | "XX002"), _) => StoreError::Corrupt(error),
        // Shut down, starting up, or gone.
        (Some("57P01" | "57P02" | "57P03"), _)
        | (None, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed) => {
            StoreError::Unreachable(error)
        }
        _ => StoreError::Database(error),
    }
}

#[async_trait]
impl HistoryStore for PostgresHistory {
    async fn append(&self, replies: &[StoredReply]) -> Result<(), StoreError> {
        self.append_if(None, replies).await.map(drop).map_err(from_postgres)
    }

    async fn append_at(&self, place: i64, replies: &[StoredReply]) -> Result<bool, StoreError> {
        self.append_if(Some(place), replies).await.map_err(from_postgres)
    }

    async fn since(&self, encoder: &str, place: i64, n: usize) -> Result<Newer, StoreError> {
        self.newer(encoder, place, n).await.map_err(from_postgres)
    }

    async fn page(&self, place: i64, n: usize) -> Result<Page, StoreError> {
        let rows: Result<Vec<Row<Option<Vec<f32>>>>, sqlx::Error> = sqlx::query_as(queries::page!("embedding::real[]"))
            .bind(place)
            .bind(queries::n(n))
            .fetch_all(&self.pool)
            .await;
        let rows = rows.map_err(|error| from_postgres(error.into()))?;
        Ok(Page { place: rows.last().map(|row| row.9), replies: queries::replies(rows, |embedding| embedding) })
    }

    async fn count(&self) -> Result<u64, StoreError> {
        let row: Result<(i64,), sqlx::Error> = sqlx::query_as(queries::COUNT).fetch_one(&self.pool).await;
        let (n,) = row.map_err(|error| from_postgres(error.into()))?;
        Ok(u64::try_from(n).unwrap_or(0))
    }

    async fn erase(&self, what: &Erase) -> Result<u64, StoreError> {
        self.delete(what).await.map_err(from_postgres)
    }

    async fn prune(&self, retention: &Retention, now_ms: i64) -> Result<u64, StoreError> {
        let mut erased = match retention.oldest_ms(now_ms) {
            Some(oldest) => self.delete(&Erase::Before(oldest)).await.map_err(from_postgres)?,
            None => 0,
        };
        if let Some(max) = retention.max_replies {
            erased += self.delete_surplus(max).await.map_err(from_postgres)?;
        }
        Ok(erased)
    }
}
