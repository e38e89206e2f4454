//! What every [`HistoryStore`] must do, as a test.

use std::sync::Arc;
use std::time::Duration;

use crate::history::{Erase, HistoryStore, Retention, StoredReply, check_jsonl, export_jsonl, import_jsonl};

/// Makes a reply for a test, to a caller, with an embedding of two values.
#[must_use]
pub fn reply(id: &str, caller: &str, embedding: [f32; 2], time_ms: i64) -> StoredReply {
    StoredReply {
        reply_id: id.to_owned(),
        part: 0,
        caller: caller.to_owned(),
        prompt_hash: format!("hash of {caller}"),
        encoder: "test".to_owned(),
        embedding: embedding.to_vec(),
        text: Some(format!("text of {id}: \"ünïcode\" 🦀\n\u{1}")),
        time_ms,
    }
}

async fn ids(store: &dyn HistoryStore, place: i64, n: usize) -> Vec<String> {
    store.since("test", place, n).await.unwrap().replies.into_iter().map(|reply| reply.reply_id).collect()
}

/// Holds an empty store to the contract of [`HistoryStore`], and leaves it empty.
///
/// # Panics
/// Where it does not keep it.
pub async fn conformance(store: Arc<dyn HistoryStore>) {
    assert_eq!(store.count().await.unwrap(), 0, "the store must be empty");
    places_and_pages(&*store).await;
    what_is_damaged_counts_but_is_not_read(&*store).await;
    erasing(&*store).await;
    retention(&*store).await;
    all_or_none(&*store).await;
    changes_are_news(&*store).await;
    texts_with_nul(&*store).await;
    text_lines(&*store).await;
    claims(store.clone()).await;
    assert_eq!(store.erase(&Erase::All).await.unwrap(), store.count().await.unwrap());
}

async fn places_and_pages(store: &dyn HistoryStore) {
    store.append(&[]).await.unwrap();
    let empty = store.since("test", 0, 9).await.unwrap();
    assert!(empty.replies.is_empty() && store.page(empty.place, 9).await.unwrap().place.is_none());

    let other = StoredReply { encoder: "other".to_owned(), ..reply("x", "b", [0.25, -1.5], 3) };
    let replies = [reply("1", "a", [1.0, 0.0], 1), reply("2", "b", [0.1, 0.2], 2), other.clone()];
    store.append(&replies).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 3);
    assert_eq!(ids(store, 0, 9).await, ["1", "2"], "of one encoder only");
    assert_eq!(ids(store, 0, 1).await, ["2"], "the last one");
    assert_eq!(ids(store, 0, 0).await, [""; 0]);
    let newer = store.since("other", 0, 9).await.unwrap();
    assert_eq!(newer.replies, [StoredReply { text: None, ..other.clone() }]);
    let place = newer.place;
    let nothing = store.since("test", place, 9).await.unwrap();
    assert!(nothing.replies.is_empty() && nothing.place == place);

    // A reply that is there is replaced, and is news.
    let again = StoredReply { text: None, ..reply("1", "c", [0.5, 0.5], i64::MAX) };
    let part = StoredReply { part: u32::MAX, ..again.clone() };
    store.append(&[again.clone(), part.clone()]).await.unwrap();
    assert_eq!(store.count().await.unwrap(), 4);
    let newer = store.since("test", place, 9).await.unwrap();
    assert!(newer.place > place);
    assert_eq!(newer.replies, [again.clone(), part.clone()]);

    // Pages hold everything once, in order, texts included.
    let (mut place, mut read) = (0, Vec::new());
    loop {
        let page = store.page(place, 3).await.unwrap();
        assert!(page.replies.len() <= 3);
        read.extend(page.replies);
        match page.place {
            Some(last) => {
                assert!(last > place);
                place = last;
            }
            None => break,
        }
    }
    assert_eq!(read, [replies[1].clone(), other, again, part]);
    store.erase(&Erase::All).await.unwrap();
}

async fn what_is_damaged_counts_but_is_not_read(store: &dyn HistoryStore) {
    let bad = [&[f32::NAN, 0.0][..], &[0.0, f32::INFINITY], &[]];
    for (nth, embedding) in bad.into_iter().enumerate() {
        let bad = StoredReply { embedding: embedding.to_vec(), ..reply(&nth.to_string(), "a", [1.0, 0.0], 1) };
        store.append(&[bad]).await.unwrap();
    }
    store.append(&[reply("good", "a", [1.0, 1.0], 1)]).await.unwrap();
    assert_eq!((ids(store, 0, 9).await, store.count().await.unwrap()), (vec!["good".to_owned()], 4));
    assert_eq!(store.page(0, 9).await.unwrap().replies.len(), 1);
    store.erase(&Erase::All).await.unwrap();
}

async fn erasing(store: &dyn HistoryStore) {
    let all = [reply("1", "a", [1.0, 0.0], 10), reply("2", "b", [0.0, 1.0], 20), reply("3", "a", [1.0, 1.0], 30)];
    for (what, left) in [
        (Erase::Before(20), &["2", "3"][..]),
        (Erase::Caller("a".to_owned()), &["2"]),
        (Erase::Id("2".to_owned()), &["1", "3"]),
        (Erase::Id("' OR 1 = 1 --".to_owned()), &["1", "2", "3"]),
        (Erase::All, &[]),
    ] {
        store.append(&all).await.unwrap();
        assert_eq!(store.erase(&what).await.unwrap(), (all.len() - left.len()) as u64, "{what:?}");
        assert_eq!(ids(store, 0, 9).await, left, "{what:?}");
    }
}

async fn retention(store: &dyn HistoryStore) {
    let replies: Vec<StoredReply> =
        (0..10).map(|i: u8| reply(&i.to_string(), "a", [1.0, f32::from(i)], i64::from(i) * 1000)).collect();
    store.append(&replies).await.unwrap();
    let aged = Retention { max_age: Some(Duration::from_secs(5)), max_replies: None };
    assert_eq!(store.prune(&aged, 10_000).await.unwrap(), 5);
    let both = Retention { max_age: Some(Duration::MAX), max_replies: Some(2) };
    assert_eq!(store.prune(&both, 10_000).await.unwrap(), 3);
    assert_eq!(ids(store, 0, 9).await, ["8", "9"]);
    assert_eq!(store.prune(&Retention::default(), i64::MAX).await.unwrap(), 0);
    let none = Retention { max_age: None, max_replies: Some(0) };
    assert_eq!(store.prune(&none, 10_000).await.unwrap(), 2);
}

async fn all_or_none(store: &dyn HistoryStore) {
    let place = store.since("test", 0, 0).await.unwrap().place;
    assert!(store.append_at(place, &[reply("1", "a", [1.0, 0.0], 1), reply("2", "a", [1.0, 0.0], 1)]).await.unwrap());
    assert!(!store.append_at(place, &[reply("3", "a", [1.0, 0.0], 1)]).await.unwrap(), "somebody was faster");
    assert_eq!(ids(store, 0, 9).await, ["1", "2"]);
    store.erase(&Erase::All).await.unwrap();
}

async fn changes_are_news(store: &dyn HistoryStore) {
    let (first, last) = (reply("1", "a", [1.0, 0.0], 1), reply("2", "a", [1.0, 0.0], 2));
    store.append(&[first.clone(), last.clone()]).await.unwrap();
    let place = async || store.since("test", 0, 0).await.unwrap().place;
    let claim = async |place, id| store.append_at(place, &[reply(id, "a", [0.0, 1.0], 3)]).await.unwrap();

    // The last one is replaced.
    let seen = place().await;
    let replaced = reply("2", "a", [0.5, 0.5], 2);
    store.append(std::slice::from_ref(&replaced)).await.unwrap();
    let newer = store.since("test", seen, 9).await.unwrap();
    assert_eq!(newer.replies, [StoredReply { text: None, ..replaced }]);
    assert!(newer.place > seen && !claim(seen, "3").await, "a reply was replaced");

    // The last one is erased, and another one comes.
    let seen = place().await;
    assert_eq!(store.erase(&Erase::Id("2".to_owned())).await.unwrap(), 1);
    assert!(!claim(seen, "3").await, "a reply went");
    store.append(&[last]).await.unwrap();
    assert_eq!(ids(store, seen, 9).await, ["2"]);
    assert!(!claim(seen, "3").await, "a reply went, and one came");

    // One in the middle is erased, or all are.
    for what in [Erase::Id("1".to_owned()), Erase::All] {
        let seen = place().await;
        assert!(store.erase(&what).await.unwrap() > 0);
        assert!(!claim(seen, "3").await, "{what:?}");
        assert!(store.since("test", seen, 9).await.unwrap().replies.is_empty());
    }
    let seen = place().await;
    store.append(&[first]).await.unwrap();
    assert_eq!(ids(store, seen, 9).await, ["1"]);
    let seen = place().await;
    let none = Retention { max_age: None, max_replies: Some(0) };
    assert_eq!(store.prune(&none, 10).await.unwrap(), 1);
    assert!(!claim(seen, "3").await, "a reply grew too old");

    // What changes nothing is no news.
    let seen = place().await;
    store.append(&[]).await.unwrap();
    assert_eq!(store.erase(&Erase::All).await.unwrap() + store.prune(&none, 10).await.unwrap(), 0);
    assert_eq!(place().await, seen);
    assert!(claim(seen, "3").await);
    store.erase(&Erase::All).await.unwrap();
}

/// A character that PostgreSQL does not have.
async fn texts_with_nul(store: &dyn HistoryStore) {
    let nul = StoredReply {
        prompt_hash: "h\0".to_owned(),
        encoder: "e\0".to_owned(),
        text: Some("\0a\0b\0".to_owned()),
        ..reply("1\0", "a\0", [1.0, 0.0], 1)
    };
    let kept = StoredReply {
        prompt_hash: "h\u{fffd}".to_owned(),
        encoder: "e\u{fffd}".to_owned(),
        text: Some("\u{fffd}a\u{fffd}b\u{fffd}".to_owned()),
        ..reply("1\u{fffd}", "a\u{fffd}", [1.0, 0.0], 1)
    };
    for what in [Erase::Id("1\0".to_owned()), Erase::Caller("a\0".to_owned())] {
        store.append(std::slice::from_ref(&nul)).await.unwrap();
        store.append(std::slice::from_ref(&nul)).await.unwrap();
        assert_eq!(store.page(0, 9).await.unwrap().replies, std::slice::from_ref(&kept));
        assert_eq!(store.since("e\0", 0, 9).await.unwrap().replies, [StoredReply { text: None, ..kept.clone() }]);
        assert_eq!(store.erase(&what).await.unwrap(), 1, "{what:?}");
    }
}

async fn text_lines(store: &dyn HistoryStore) {
    let replies: Vec<StoredReply> =
        (0..1203_u16).map(|i| reply(&i.to_string(), "a", [1.0, f32::from(i) / 3.0], i64::from(i))).collect();
    for some in replies.chunks(100) {
        store.append(some).await.unwrap();
    }
    let mut lines = Vec::new();
    assert_eq!(export_jsonl(store, &mut lines).await.unwrap(), 1203);
    store.erase(&Erase::All).await.unwrap();
    assert_eq!(import_jsonl(store, &mut &lines[..]).await.unwrap(), 1203);
    assert_eq!(check_jsonl(&mut &lines[..]).unwrap(), 1203);
    let mut again = Vec::new();
    export_jsonl(store, &mut again).await.unwrap();
    assert!(lines == again, "what was imported is what was exported");

    store.erase(&Erase::All).await.unwrap();

    let zero = serde_json::to_string(&reply("0", "a", [0.0, 0.0], 1)).unwrap();
    let long = vec![b'x'; 9 << 20];
    for (bad, expected) in [
        (&b"\n{\"reply_id\": 3}\n"[..], "line 2 is not a reply: invalid type: integer `3`, expected a string"),
        (zero.as_bytes(), "line 1: an embedding needs"),
        (&b"\xff\n"[..], "line 1 is not a reply"),
        (&long[..], "line 1 is longer than 8388608 bytes"),
    ] {
        let error = check_jsonl(&mut &*bad).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        let error = import_jsonl(store, &mut &*bad).await.unwrap_err();
        assert_eq!((error.n_imported, store.count().await.unwrap()), (0, 0));
        assert!(error.to_string().starts_with(&format!("nothing was imported: {expected}")), "{error}");
    }
    lines.truncate(lines.len() - 9);
    assert!(check_jsonl(&mut &lines[..]).unwrap_err().to_string().starts_with("line 1203 is not a reply"));
    let error = import_jsonl(store, &mut &lines[..]).await.unwrap_err();
    assert!(
        error.to_string().starts_with("only the first 1000 replies were imported: line 1203 is not a reply"),
        "{error}"
    );
    assert_eq!((error.n_imported, store.count().await.unwrap()), (1000, 1000));
    store.erase(&Erase::All).await.unwrap();
}

/// Several miners claim texts out of the same few; nobody may get what another one has.
async fn claims(store: Arc<dyn HistoryStore>) {
    let miners = (0..8).map(|miner: usize| {
        let store = store.clone();
        tokio::spawn(async move {
            let (mut place, mut taken, mut mine) = (0, Vec::new(), Vec::new());
            for want in 0..6 {
                loop {
                    let newer = store.since("test", place, 99).await.unwrap();
                    taken.extend(newer.replies.into_iter().map(|reply| reply.prompt_hash));
                    place = newer.place;
                    let free = (want..).map(|n| n.to_string()).find(|text| !taken.contains(text)).unwrap();
                    let claim = StoredReply {
                        prompt_hash: free.clone(),
                        ..reply(&format!("{miner}/{want}"), "a", [1.0, 0.0], 1)
                    };
                    if store.append_at(place, &[claim]).await.unwrap() {
                        mine.push(free);
                        break;
                    }
                }
            }
            mine
        })
    });
    let mut all = Vec::new();
    for miner in miners.collect::<Vec<_>>() {
        all.extend(miner.await.unwrap());
    }
    let n = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!((n, all.len()), (48, 48), "no text twice");
    store.erase(&Erase::All).await.unwrap();
}
