//! Starts and stops of the store on disk, clean and not.

use idiolect_protocol::{AuthError, Nonce};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode};

use super::*;

const NOW: i128 = 1_795_335_808_000_000_000;
const S: i128 = 1_000_000_000;

#[derive(Debug)]
struct At(i128);

impl Clock for At {
    fn now_ns(&self) -> i128 {
        self.0
    }
}

struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    async fn pool(&self) -> SqlitePool {
        let options = SqliteConnectOptions::new()
            .filename(self.folder.path().join("idiolect.sqlite"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal);
        SqlitePool::connect_with(options).await.unwrap()
    }

    async fn start(&self, now_ns: i128) -> (Arc<NonceStore>, NoncePersister) {
        NoncePersister::open(self.pool().await, &receiver(1), 1000, Arc::new(At(now_ns))).await.unwrap()
    }
}

fn receiver(n: u8) -> Hotkey {
    Hotkey::from_bytes([n; 32])
}

fn windowed(session: &str, at_ns: i128) -> Nonce {
    Nonce::Windowed {
        key: session.to_owned(),
        value: at_ns.to_string(),
        at_ns,
        max_age: Duration::from_secs(16),
        max_ahead: Duration::from_secs(60),
    }
}

fn counter(session: &str, value: i128) -> Nonce {
    Nonce::Monotonic { key: session.to_owned(), value }
}

#[tokio::test]
async fn captured_requests_do_not_work_again_after_a_clean_restart() {
    let disk = Disk::new();
    let (store, persister) = disk.start(NOW).await;
    // The very first start has no mark either, and refuses what was signed before it.
    assert_eq!(store.check_and_store(&windowed("a:1", NOW - S), NOW), Err(AuthError::Replayed));
    store.check_and_store(&windowed("a:1", NOW + 1), NOW).unwrap();
    store.check_and_store(&counter("a:\"quoted\\\"", 10_i128.pow(30)), NOW).unwrap();
    persister.run(std::future::ready(())).await.unwrap();

    let later = NOW + 2 * S;
    let (store, _persister) = disk.start(later).await;
    assert_eq!(store.check_and_store(&windowed("a:1", NOW + 1), later), Err(AuthError::Replayed));
    assert_eq!(store.check_and_store(&counter("a:\"quoted\\\"", 10_i128.pow(30)), later), Err(AuthError::Replayed));
    store.check_and_store(&counter("a:\"quoted\\\"", 10_i128.pow(30) + 1), later).unwrap();
    // The stop was clean, so requests signed before this start and never used are welcome.
    store.check_and_store(&windowed("b:1", NOW + S), later).unwrap();
}

#[tokio::test]
async fn after_a_kill_windowed_requests_from_before_the_start_are_refused_and_counters_keep_their_last_saved_value() {
    let disk = Disk::new();
    let (store, persister) = disk.start(NOW).await;
    store.check_and_store(&counter("a:1", 5), NOW).unwrap();
    persister.save().await.unwrap();
    // This one never reaches the disk: the process dies within the 100 ms.
    store.check_and_store(&windowed("a:1", NOW + 1), NOW).unwrap();
    drop((store, persister));

    let later = NOW + 2 * S;
    let (store, _persister) = disk.start(later).await;
    assert_eq!(store.check_and_store(&windowed("a:1", NOW + 1), later), Err(AuthError::Replayed));
    assert_eq!(store.check_and_store(&counter("a:1", 5), later), Err(AuthError::Replayed));
    store.check_and_store(&windowed("a:1", later + 1), later).unwrap();
    store.check_and_store(&counter("a:1", 6), later).unwrap();
}

#[tokio::test]
async fn running_saves_what_comes_while_it_runs() {
    let disk = Disk::new();
    let (store, persister) = disk.start(NOW).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(persister.run(async { drop(stopped.await) }));
    for n in 0..500 {
        store.check_and_store(&windowed(&format!("k{}:{}", n % 7, n % 50), NOW + n * 1000), NOW).unwrap();
    }
    let pool = disk.pool().await;
    let saved = async {
        loop {
            let n: i64 = sqlx::query("SELECT count(*) FROM nonce_windowed WHERE key <> '*'")
                .fetch_one(&pool)
                .await
                .unwrap()
                .get(0);
            if n == 500 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), saved).await.unwrap();
    drop(stop);
    running.await.unwrap().unwrap();
    let clean: i64 = sqlx::query("SELECT clean FROM nonce_stop").fetch_one(&pool).await.unwrap().get(0);
    assert_eq!(clean, 1);
}

#[tokio::test]
async fn what_no_window_reaches_any_more_leaves_the_disk() {
    let disk = Disk::new();
    let (store, persister) = disk.start(NOW).await;
    store.check_and_store(&windowed("a:1", NOW + 1), NOW).unwrap();
    store.check_and_store(&counter("a:2", 1), NOW).unwrap();
    persister.run(std::future::ready(())).await.unwrap();
    let (_store, _persister) = disk.start(NOW + 3600 * S).await;
    let pool = disk.pool().await;
    let count = |table: &'static str| {
        let pool = pool.clone();
        async move { sqlx::query(table).fetch_one(&pool).await.unwrap().get::<i64, _>(0) }
    };
    assert_eq!(count("SELECT count(*) FROM nonce_windowed WHERE key <> '*'").await, 0);
    assert_eq!(count("SELECT count(*) FROM nonce_monotonic WHERE key <> '*'").await, 1);
}

#[tokio::test]
async fn miners_that_share_a_database_keep_apart() {
    let disk = Disk::new();
    let pool = disk.pool().await;
    let clock: Arc<dyn Clock> = Arc::new(At(NOW));
    for n in [1, 2] {
        let (store, persister) = NoncePersister::open(pool.clone(), &receiver(n), 1000, clock.clone()).await.unwrap();
        store.check_and_store(&counter("a:1", i128::from(n)), NOW).unwrap();
        persister.run(std::future::ready(())).await.unwrap();
    }
    let (store, _persister) = NoncePersister::open(pool, &receiver(1), 1000, clock).await.unwrap();
    assert_eq!(store.check_and_store(&counter("a:1", 1), NOW), Err(AuthError::Replayed));
    store.check_and_store(&counter("a:1", 2), NOW).unwrap();
}

#[tokio::test]
async fn a_failed_save_loses_nothing() {
    let disk = Disk::new();
    let (store, persister) = disk.start(NOW).await;
    let pool = disk.pool().await;
    sqlx::query("ALTER TABLE nonce_monotonic RENAME TO away").execute(&pool).await.unwrap();
    store.check_and_store(&counter("a:1", 1), NOW).unwrap();
    assert!(persister.save().await.is_err());
    store.check_and_store(&counter("a:1", 2), NOW).unwrap();
    assert!(persister.save().await.is_err());
    sqlx::query("ALTER TABLE away RENAME TO nonce_monotonic").execute(&pool).await.unwrap();
    persister.save().await.unwrap();
    let rows = sqlx::query("SELECT value FROM nonce_monotonic WHERE key <> '*'").fetch_all(&pool).await.unwrap();
    let values: Vec<String> = rows.into_iter().map(|row| row.get(0)).collect();
    assert_eq!(values, ["2"]);
}

#[tokio::test]
async fn tables_of_a_newer_program_are_left_alone() {
    let disk = Disk::new();
    drop(disk.start(NOW).await);
    let pool = disk.pool().await;
    sqlx::query("UPDATE idiolect_schema SET version = 3 WHERE component = 'nonces'").execute(&pool).await.unwrap();
    let opened = NoncePersister::open(pool, &receiver(1), 1000, Arc::new(At(NOW))).await;
    assert!(matches!(opened, Err(NonceDbError::Newer { found: 3 })));
}

#[tokio::test]
async fn nonces_of_version_1_are_taken_over() {
    let disk = Disk::new();
    let pool = disk.pool().await;
    for statement in [
        "CREATE TABLE idiolect_schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL)",
        "INSERT INTO idiolect_schema VALUES ('nonces', 1)",
        "CREATE TABLE nonce_windowed (
            receiver BLOB NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, expires_ns INTEGER NOT NULL,
            PRIMARY KEY (receiver, key, value)
        ) WITHOUT ROWID",
        "CREATE INDEX nonce_windowed_expires ON nonce_windowed (expires_ns)",
        "CREATE TABLE nonce_monotonic (
            receiver BLOB NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (receiver, key)
        ) WITHOUT ROWID",
        "CREATE TABLE nonce_stop (receiver BLOB PRIMARY KEY, clean INTEGER NOT NULL) WITHOUT ROWID",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    for (key, ago) in [("a:1", 1), ("a:1", 2), ("b:\"1\"", 3)] {
        sqlx::query("INSERT INTO nonce_windowed VALUES (?, ?, ?, ?)")
            .bind(receiver(1).as_bytes().as_slice())
            .bind(key)
            .bind((NOW - ago).to_string())
            .bind(i64::try_from(NOW + 10 * S).unwrap())
            .execute(&pool)
            .await
            .unwrap();
    }
    set_clean_mark(&pool, receiver(1).as_bytes()).await.unwrap();
    let (store, _persister) = disk.start(NOW).await;
    for (key, ago) in [("a:1", 1), ("a:1", 2), ("b:\"1\"", 3)] {
        assert_eq!(store.check_and_store(&windowed(key, NOW - ago), NOW), Err(AuthError::Replayed), "{key} {ago}");
    }
    store.check_and_store(&windowed("b:\"1\"", NOW - 100), NOW).unwrap();
    let n: i64 = sqlx::query("SELECT count(*) FROM nonce_windowed").fetch_one(&pool).await.unwrap().get(0);
    assert_eq!(n, 3);
}

#[tokio::test]
async fn sessions_that_were_forgotten_leave_the_disk_and_stay_refused() {
    let disk = Disk::new();
    let (store, persister) = disk.start(NOW).await;
    // A key's share of a store of 1000: each of these sessions began one clock tick after the other, in 1998.
    let session = |n: i128| counter(&format!("a:{n:08x}-0000-11d2-8000-02fc00000001"), 5);
    for n in 0..250 {
        store.check_and_store(&session(n), NOW).unwrap();
    }
    persister.save().await.unwrap();
    let later = NOW + 3600 * S;
    store.check_and_store(&session(250), later).unwrap();
    persister.save().await.unwrap();
    let pool = disk.pool().await;
    let rows: i64 = sqlx::query("SELECT count(*) FROM nonce_monotonic WHERE key NOT LIKE '%*'")
        .fetch_one(&pool)
        .await
        .unwrap()
        .get(0);
    assert_eq!(rows, 125);
    let (restored, _persister) = disk.start(later).await;
    for n in 0..=250 {
        assert_eq!(restored.check_and_store(&session(n), later), Err(AuthError::Replayed), "{n}");
    }
    restored.check_and_store(&session(251), later).unwrap();
}
