//! The history of replies in a real PostgreSQL with pgvector.

use std::error::Error as _;
use std::sync::Arc;

use idiolect_tests::postgres::PostgresServer;
use idiolect_uniqueness::{HistoryStore as _, PostgresHistory, ReplyHistory, StoreError, testkit};

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

    // U+0000 is the one character that PostgreSQL has not.
    let nul =
        idiolect_uniqueness::StoredReply { text: Some("a\0b".to_owned()), ..testkit::reply("nul", "a", [1.0, 0.0], 1) };
    history.append(&[nul]).await.unwrap();
    assert_eq!(history.page(0, 9).await.unwrap().replies[1].text.as_deref(), Some("a\u{fffd}b"));

    let error = PostgresHistory::connect(&server.url_with("hunter2")).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
    assert!(error.to_string().contains("check its URL") && !format!("{error:?}").contains("hunter2"), "{error:?}");
    assert!(error.source().unwrap().to_string().contains("password authentication failed"));

    server.kill();
    let error = history.count().await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
}

#[tokio::test]
async fn what_is_no_url_of_a_database_is_refused_without_its_password() {
    for url in ["", "postgres://u:hunter2@127.0.0.1:1/x", "mysql://u:hunter2@h/x", "postgres://u:hunter2@[::1/x"] {
        let error = PostgresHistory::connect(url).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable(_)), "{url}: {error:?}");
        assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
    }
}
