//! The history of replies in a real PostgreSQL with pgvector.

use std::error::Error as _;
use std::sync::Arc;

use idiolect_tests::postgres::PostgresServer;
use idiolect_uniqueness::{HistoryStore as _, PostgresHistory, ReplyHistory, StoreError, testkit};
use sqlx::Connection as _;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_in_postgresql_keeps_the_contract() {
    let mut server = PostgresServer::start().unwrap();
    let history = Arc::new(PostgresHistory::connect(&server.url()).await.unwrap());
    testkit::conformance(history.clone()).await;

    // Two miners on one history, opened one after the other: the tables are there already.
    let other = Arc::new(PostgresHistory::connect(&server.url()).await.unwrap());
    let ours = ReplyHistory::load(history.clone(), "test", 2, 10).await.unwrap();
    let theirs = ReplyHistory::load(other, "test", 2, 10).await.unwrap();
    let first = testkit::reply("1", "a", [1.0, 0.0], 1);
    assert!(ours.remember(&first));
    ours.save(&[first]).await.unwrap();
    for _ in 0..2 {
        ours.refresh().await.unwrap();
        theirs.refresh().await.unwrap();
        assert_eq!((ours.len(), theirs.len()), (1, 1));
    }
    assert_eq!(theirs.nearest(&[1.0, 0.0], 1)[0].reply_id, "1");

    a_history_without_a_counter_of_places_gets_one(&server.url()).await;

    let error = PostgresHistory::connect(&server.url_with("hunter2")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
    assert!(error.to_string().contains("check its URL") && !format!("{error:?}").contains("hunter2"), "{error:?}");
    assert!(error.source().unwrap().to_string().contains("password authentication failed"));

    server.kill();
    let error = history.count().await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
}

/// Puts the tables back to what the first version made, and opens them again.
async fn a_history_without_a_counter_of_places_gets_one(url: &str) {
    let mut old = sqlx::PgConnection::connect(url).await.unwrap();
    for statement in [
        "DROP TABLE idiolect.replies_place",
        "ALTER TABLE idiolect.replies ALTER COLUMN seq ADD GENERATED ALWAYS AS IDENTITY (START 100000)",
        "INSERT INTO idiolect.replies (reply_id, part, caller, prompt_hash, encoder, dimensions, embedding, time_ms)
         VALUES ('old', 0, 'c', 'h', 'test', 2, '[1, 0]', 5)",
        "UPDATE idiolect.idiolect_schema SET version = 1 WHERE component = 'replies'",
    ] {
        sqlx::query(statement).execute(&mut old).await.unwrap();
    }
    let history = PostgresHistory::connect(url).await.unwrap();
    let newer = history.since("test", 0, 9).await.unwrap();
    assert_eq!((newer.replies.len(), newer.place), (2, 100_000));
    assert_eq!((&*newer.replies[0].reply_id, &*newer.replies[1].reply_id), ("1", "old"));
    assert!(history.append_at(100_000, &[testkit::reply("old", "a", [0.0, 1.0], 6)]).await.unwrap());
    let newer = history.since("test", 100_000, 9).await.unwrap();
    assert_eq!((newer.replies.len(), newer.place, history.count().await.unwrap()), (1, 100_001, 2));
    old.close().await.unwrap();
}

#[tokio::test]
async fn what_is_no_url_of_a_database_is_refused_without_its_password() {
    for url in ["", "postgres://u:hunter2@127.0.0.1:1/x", "mysql://u:hunter2@h/x", "postgres://u:hunter2@[::1/x"] {
        let error = PostgresHistory::connect(url).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable(_)), "{url}: {error:?}");
        assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
    }
}
