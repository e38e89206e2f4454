//! The history of replies in a real PostgreSQL with pgvector.

use std::error::Error as _;
use std::sync::Arc;

use idiolect_tests::postgres::PostgresServer;
use idiolect_uniqueness::{
    HistoryStore, PostgresHistory, ReplyHistory, Retention, StoreError, StoredReply, check_jsonl, export_jsonl,
    import_jsonl, testkit,
};
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

/// Replies of several encoders, with everything that differs between databases: odd texts and times, values near the bounds.
fn odd_replies() -> Vec<StoredReply> {
    let texts = [None, Some(""), Some("a\\b\t\u{1}\r\n'\"--"), Some("ünïcode 🦀 \u{202e}x"), Some("\u{fffd}\u{feff}")];
    let embeddings: [&[f32]; 5] = [
        &[1.0, 0.0],
        &[0.1, -0.2],
        &[f32::MAX, f32::MIN_POSITIVE, 1e-45],
        &[0.333_333_34, -0.0],
        &[f32::EPSILON, 12_345_679.0],
    ];
    let times = [0, -1, i64::MIN, i64::MAX, 1_700_000_000_000];
    let cases = texts.into_iter().zip(embeddings).zip(times);
    let odd = cases.enumerate().map(|(i, ((text, embedding), time_ms))| StoredReply {
        part: [0, 1, u32::MAX][i % 3],
        encoder: format!("encoder of {} values", embedding.len()),
        embedding: embedding.to_vec(),
        text: text.map(str::to_owned),
        ..testkit::reply(&format!("odd {i}"), "", [1.0, 0.0], time_ms)
    });
    let usual = (0..1200_u16).map(|i| testkit::reply(&i.to_string(), "a", [1.0, 1.0 / f32::from(i + 1)], i64::from(i)));
    odd.chain(usual).collect()
}

/// What `idiolect history` does to move a miner from one kind of store to the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_moves_to_postgresql_and_back() {
    let server = PostgresServer::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let open = async |place: String| idiolect_miner::history::open(&place.parse().unwrap()).await.unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let here = open(file("here.sqlite")).await;
    let replies = odd_replies();
    here.append(&replies).await.unwrap();

    let mut exports = Vec::new();
    let mut last = here.clone();
    for place in [server.url(), file("back.sqlite")] {
        let mut lines = Vec::new();
        assert_eq!(export_jsonl(&*last, &mut lines).await.unwrap(), replies.len() as u64);
        assert_eq!(check_jsonl(&mut &lines[..]).unwrap(), replies.len() as u64);
        let next = open(place).await;
        // Twice: what is there already is replaced.
        for _ in 0..2 {
            assert_eq!(import_jsonl(&*next, &mut &lines[..]).await.unwrap(), replies.len() as u64);
            assert_eq!(next.count().await.unwrap(), replies.len() as u64);
        }
        exports.push(lines);
        last = next;
    }
    let there = open(server.url()).await;
    let mut lines = Vec::new();
    export_jsonl(&*last, &mut lines).await.unwrap();
    assert!(exports[0] == exports[1] && exports[1] == lines, "exports are the same whatever the store");

    // And so is what a miner reads of it.
    for encoder in ["test", "encoder of 2 values", "encoder of 3 values", "none"] {
        let [a, b, c] = [&here, &there, &last];
        let read = async |store: &Arc<dyn HistoryStore>| store.since(encoder, 0, 5000).await.unwrap().replies;
        let first = read(a).await;
        assert_eq!(first.is_empty(), encoder == "none");
        assert!(first == read(b).await && first == read(c).await, "{encoder}");
    }
    let retention = Retention { max_replies: Some(7), max_age: None };
    for store in [&here, &there, &last] {
        assert_eq!(store.prune(&retention, 0).await.unwrap(), replies.len() as u64 - 7);
    }
    let left = async |store: &Arc<dyn HistoryStore>| store.page(0, 99).await.unwrap().replies;
    assert!(left(&here).await == replies[replies.len() - 7..]);
    assert!(left(&here).await == left(&there).await && left(&here).await == left(&last).await);
}

#[tokio::test]
async fn what_is_no_url_of_a_database_is_refused_without_its_password() {
    for url in ["", "postgres://u:hunter2@127.0.0.1:1/x", "mysql://u:hunter2@h/x", "postgres://u:hunter2@[::1/x"] {
        let error = PostgresHistory::connect(url).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable(_)), "{url}: {error:?}");
        assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
    }
}
