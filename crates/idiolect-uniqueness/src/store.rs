//! The embedded store: one SQLite file that every component keeps its own tables in.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, SqlitePool};

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file or its folder cannot be made or opened.
    #[error("cannot open the store {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is something else than a SQLite database.
    #[error("{path} is not a SQLite database; move it away or name another data directory")]
    NotADatabase {
        /// The file.
        path: PathBuf,
    },
    /// The database is damaged.
    #[error("the store is damaged; move the file away, or restore it from a copy")]
    Corrupt(#[source] sqlx::Error),
    /// There is no room left on the disk.
    #[error("no room left on the disk of the store")]
    Full(#[source] sqlx::Error),
    /// The database may not be written.
    #[error("the store cannot be written")]
    ReadOnly(#[source] sqlx::Error),
    /// No database answers at the given place, or it does not let us in.
    #[error("cannot reach the database; check its URL, and that it runs and lets this user in")]
    Unreachable(#[source] sqlx::Error),
    /// Another process holds the database for longer than we wait.
    #[error("the store is locked by another process")]
    Busy(#[source] sqlx::Error),
    /// The tables were made by a newer version of this program.
    #[error("the tables of {component} are of version {found}, this build knows up to {supported}; use a newer build")]
    Newer {
        /// Whose tables.
        component: String,
        /// The version in the file.
        found: i64,
        /// The newest version that this build knows.
        supported: i64,
    },
    /// Anything else that the database refused.
    #[error("the store refused a statement")]
    Database(#[source] sqlx::Error),
}

/// SQLite's primary result codes that a user can do something about (<https://sqlite.org/rescode.html>).
mod code {
    pub(super) const BUSY: u32 = 5;
    pub(super) const LOCKED: u32 = 6;
    pub(super) const READONLY: u32 = 8;
    pub(super) const CORRUPT: u32 = 11;
    pub(super) const FULL: u32 = 13;
    pub(super) const NOTADB: u32 = 26;
}

fn primary_code(error: &sqlx::Error) -> Option<u32> {
    // Extended codes keep the primary one in their lowest byte.
    Some(error.as_database_error()?.code()?.parse::<u32>().ok()? & 0xff)
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match primary_code(&error) {
            Some(code::BUSY | code::LOCKED) => Self::Busy(error),
            Some(code::READONLY) => Self::ReadOnly(error),
            Some(code::CORRUPT | code::NOTADB) => Self::Corrupt(error),
            Some(code::FULL) => Self::Full(error),
            _ => Self::Database(error),
        }
    }
}

/// Opens the store at `path`, and makes it, and its folder, when it is not there.
///
/// The file is readable by its owner only. It is written ahead (WAL), so that a killed process leaves a whole database
/// behind, with every transaction that it committed; after a crash of the system or a power cut it is whole, too, but may lack
/// the last ones, which the system had not brought to the disk yet. Foreign keys are on; a statement waits five seconds for
/// another process; erased rows are overwritten.
///
/// # Errors
/// [`StoreError::Open`] for a bad path, [`StoreError::NotADatabase`] for a file of another kind, and the other variants
/// for what SQLite says.
///
/// # Examples
/// ```
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let dir = tempfile::tempdir().unwrap();
/// let pool = idiolect_uniqueness::store::open(&dir.path().join("idiolect.sqlite")).await.unwrap();
/// let (mode,): (String,) = sqlx::query_as("PRAGMA journal_mode").fetch_one(&pool).await.unwrap();
/// assert_eq!(mode, "wal");
/// # });
/// ```
pub async fn open(path: &Path) -> Result<SqlitePool, StoreError> {
    make_private_file(path).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        // Of a new file: most of what is written are records at the end of a table, which fill large pages in fewer steps.
        .page_size(8192)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
        .pragma("secure_delete", "ON");
    let in_this_file = |error: sqlx::Error| match (&error, primary_code(&error)) {
        (_, Some(code::NOTADB)) => StoreError::NotADatabase { path: path.to_owned() },
        (sqlx::Error::Io(_), _) => StoreError::Open { path: path.to_owned(), source: io::Error::other(error) },
        _ => error.into(),
    };
    let pool = SqlitePoolOptions::new()
        .max_connections(4)
        .acquire_timeout(Duration::from_secs(10))
        // Where SQLite itself ends a transaction, as on a full disk, sqlx goes on counting it and refuses to begin another.
        // Such a connection is replaced, or nothing would be written until the next start.
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
        .connect_with(options)
        .await
        .map_err(in_this_file)?;
    sqlx::query("SELECT count(*) FROM sqlite_master").execute(&pool).await.map_err(in_this_file)?;
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS idiolect_schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT",
    )
    .execute(&pool)
    .await
    .map_err(in_this_file)?;
    Ok(pool)
}

fn make_private_file(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(parent)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// Makes a component's tables and notes their version.
///
/// `migrations[i]` holds the statements that lead from version `i` to `i + 1`; each runs once, in one transaction.
///
/// # Errors
/// [`StoreError::Newer`] when the file was made by a newer build, otherwise what SQLite says.
pub async fn migrate(pool: &SqlitePool, component: &str, migrations: &[&[&'static str]]) -> Result<(), StoreError> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query(
        "CREATE TABLE IF NOT EXISTS idiolect_schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT",
    )
    .execute(&mut *transaction)
    .await?;
    let row: Option<(i64,)> = sqlx::query_as("SELECT version FROM idiolect_schema WHERE component = ?")
        .bind(component)
        .fetch_optional(&mut *transaction)
        .await?;
    let found = row.map_or(0, |(version,)| version);
    let supported = i64::try_from(migrations.len()).unwrap_or(i64::MAX);
    let Some(missing) = usize::try_from(found).ok().and_then(|found| migrations.get(found..)) else {
        return Err(StoreError::Newer { component: component.to_owned(), found, supported });
    };
    for statement in missing.iter().flat_map(|statements| statements.iter()) {
        sqlx::query(*statement).execute(&mut *transaction).await?;
    }
    sqlx::query(
        "INSERT INTO idiolect_schema (component, version) VALUES (?, ?)
         ON CONFLICT (component) DO UPDATE SET version = excluded.version",
    )
    .bind(component)
    .bind(supported)
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn makes_folder_and_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/idiolect.sqlite");
        let pool = open(&path).await.unwrap();
        migrate(&pool, "x", &[&["CREATE TABLE x (y INTEGER) STRICT"]]).await.unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            for file in ["a/b/idiolect.sqlite", "a/b/idiolect.sqlite-wal"] {
                let mode = std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode();
                assert_eq!(mode & 0o077, 0, "{file} is {mode:o}");
            }
        }
    }

    #[tokio::test]
    async fn a_bad_path_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = open(dir.path()).await.unwrap_err();
        assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
        assert!(error.to_string().contains(&*dir.path().to_string_lossy()));
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(open(&file.join("below")).await.unwrap_err(), StoreError::Open { .. }));
    }

    #[tokio::test]
    async fn a_file_of_another_kind_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("idiolect.sqlite");
        let text = "this is no database\n".repeat(200);
        std::fs::write(&path, &text).unwrap();
        let error = open(&path).await.unwrap_err();
        assert!(matches!(error, StoreError::NotADatabase { .. }), "{error:?}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[tokio::test]
    async fn a_damaged_file_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("idiolect.sqlite");
        let pool = open(&path).await.unwrap();
        migrate(&pool, "x", &[&["CREATE TABLE x (y TEXT) STRICT", "CREATE INDEX xy ON x (y)"]]).await.unwrap();
        pool.close().await;
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100..].fill(0xa5);
        std::fs::write(&path, bytes).unwrap();
        let error = open(&path).await.unwrap_err();
        assert!(matches!(error, StoreError::Corrupt(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_full_disk_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let pool = open(&dir.path().join("idiolect.sqlite")).await.unwrap();
        migrate(&pool, "x", &[&["CREATE TABLE x (y BLOB) STRICT"]]).await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        sqlx::query("PRAGMA max_page_count = 8").execute(&mut *connection).await.unwrap();
        let result = sqlx::query("INSERT INTO x VALUES (zeroblob(1000000))").execute(&mut *connection).await;
        let error = StoreError::from(result.unwrap_err());
        assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    }

    #[tokio::test]
    async fn a_transaction_that_sqlite_ended_does_not_block_later_ones() {
        let dir = tempfile::tempdir().unwrap();
        let pool = open(&dir.path().join("idiolect.sqlite")).await.unwrap();
        migrate(&pool, "x", &[&["CREATE TABLE x (y INTEGER UNIQUE) STRICT"]]).await.unwrap();
        for _ in 0..8 {
            let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
            sqlx::query("INSERT INTO x VALUES (1)").execute(&mut *transaction).await.unwrap();
            // As a full disk does, this fails and rolls back.
            sqlx::query("INSERT OR ROLLBACK INTO x VALUES (1)").execute(&mut *transaction).await.unwrap_err();
        }
        let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        sqlx::query("INSERT INTO x VALUES (1)").execute(&mut *transaction).await.unwrap();
        transaction.commit().await.unwrap();
    }

    #[tokio::test]
    async fn migrations_run_once_and_newer_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pool = open(&dir.path().join("idiolect.sqlite")).await.unwrap();
        let first: &[&str] = &["CREATE TABLE x (y INTEGER) STRICT"];
        let second: &[&str] = &["ALTER TABLE x ADD COLUMN z INTEGER"];
        migrate(&pool, "x", &[first]).await.unwrap();
        migrate(&pool, "x", &[first]).await.unwrap();
        migrate(&pool, "x", &[first, second]).await.unwrap();
        let error = migrate(&pool, "x", &[first]).await.unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 2, supported: 1, .. }), "{error:?}");
    }
}
