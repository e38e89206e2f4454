//! The replies that this miner sent: their embeddings, on disk and in memory.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::store::StoreError;
use crate::vectors::{IsOver, NO_LIMIT, OutOfTime, Vectors, distance, normalised};
use async_trait::async_trait;
use idiolect_backend::Embedding;
use serde::{Deserialize, Serialize};

pub(crate) use jsonl::in_a_line;
pub use jsonl::{ImportError, JsonlError, check_jsonl, export_jsonl, import_jsonl};
#[cfg(feature = "postgres")]
pub use postgres::PostgresHistory;
pub use sqlite::SqliteHistory;

mod jsonl;
#[cfg(feature = "postgres")]
mod postgres;
mod queries;
mod sqlite;

/// Up to this distance two embeddings are taken for those of the same words: machines and servers compute them with
/// differences in the last digits.
const SAME: f32 = 1e-3;

/// A reply that was sent.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredReply {
    /// The reply's id, the one of its provenance.
    pub reply_id: String,
    /// Which of the reply's completions this is, from 0: a caller may ask for several.
    pub part: u32,
    /// Who asked, as ss58 text; empty for our own questions.
    pub caller: String,
    /// A hash of the prompt: equal prompts have equal hashes. Empty when prompts must leave no trace.
    pub prompt_hash: String,
    /// The encoder's name.
    pub encoder: String,
    /// The reply's place in the encoder's space.
    pub embedding: Embedding,
    /// The text, where it may be kept.
    pub text: Option<String>,
    /// When it was sent, in milliseconds since 1970.
    pub time_ms: i64,
}

/// Replies stay out of logs.
impl Debug for StoredReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredReply")
            .field("reply_id", &self.reply_id)
            .field("caller", &self.caller)
            .field("encoder", &self.encoder)
            .field("time_ms", &self.time_ms)
            .finish_non_exhaustive()
    }
}

/// What to erase.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Erase {
    /// Everything older than this, in milliseconds since 1970.
    Before(i64),
    /// Everything that this hotkey asked for.
    Caller(String),
    /// One reply.
    Id(String),
    /// Everything.
    All,
}

impl Erase {
    /// Says whether a reply of these facts is to be erased.
    #[must_use]
    pub fn matches(&self, reply_id: &str, caller: &str, time_ms: i64) -> bool {
        match self {
            Self::Before(before) => time_ms < *before,
            Self::Caller(hotkey) => caller == hotkey,
            Self::Id(id) => reply_id == id,
            Self::All => true,
        }
    }
}

/// How long replies are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Most replies that are kept; `None` for any number.
    pub max_replies: Option<u64>,
    /// Longest time that a reply is kept; `None` for ever.
    pub max_age: Option<Duration>,
}

impl Retention {
    /// Returns the time before which everything is forgotten, in milliseconds since 1970.
    #[must_use]
    pub fn oldest_ms(&self, now_ms: i64) -> Option<i64> {
        let age = i64::try_from(self.max_age?.as_millis()).unwrap_or(i64::MAX);
        Some(now_ms.saturating_sub(age))
    }
}

/// Replies that came in after a place in a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Newer {
    /// The replies, oldest first.
    pub replies: Vec<StoredReply>,
    /// The place of the store's last change: of its last reply, of any encoder, or of a later erasure.
    pub place: i64,
}

/// A stretch of a store, read from its beginning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    /// The replies, oldest first, with their texts.
    pub replies: Vec<StoredReply>,
    /// The place of the last row that was read; the next page comes after it. `None` when there was nothing more.
    pub place: Option<i64>,
}

/// Where sent replies are kept. Several processes may share one store.
///
/// # Contract
/// A reply that [`append`](Self::append) returned for survives the death of the process, and one that it did not return for is
/// there with all that was appended with it, or not at all. A power cut may take the last replies with it
/// (see [`store::open`](crate::store::open); of PostgreSQL, its server's settings). `since` returns replies of the
/// named encoder only: embeddings of different encoders are never compared. Places grow in the order in which replies can be
/// seen: what is appended after a look at the store has a greater place than all that was seen. A place is given once, even
/// when what had it is erased or replaced. In texts, ids and hashes U+FFFD is kept in place of U+0000, which not every
/// database has; what is searched for or erased is found all the same. A reply whose embedding is empty or has a value
/// that is not finite counts, but is left out when replies are read.
#[async_trait]
pub trait HistoryStore: Debug + Send + Sync + 'static {
    /// Keeps replies, all or none of them. A reply whose id, part and encoder are already there is replaced, and is news.
    async fn append(&self, replies: &[StoredReply]) -> Result<(), StoreError>;

    /// As [`append`](Self::append), if nothing came in, or went, since the store's last place was `place`; says whether it was so.
    ///
    /// Miners that share a store thus never send replies too near to each other's: look at what is [`since`](Self::since),
    /// choose a reply, claim it, and if another one was faster look again.
    async fn append_at(&self, place: i64, replies: &[StoredReply]) -> Result<bool, StoreError>;

    /// Returns the last `n` replies of an encoder that came in after `place`, oldest first, without their texts. Damaged
    /// rows are left out. Place 0 is before every reply.
    async fn since(&self, encoder: &str, place: i64, n: usize) -> Result<Newer, StoreError>;

    /// Returns the first rows after `place`, at most `n`, of all encoders. Damaged ones are left out.
    async fn page(&self, place: i64, n: usize) -> Result<Page, StoreError>;

    /// Returns how many replies are kept, of all encoders.
    async fn count(&self) -> Result<u64, StoreError>;

    /// Erases replies and returns how many.
    async fn erase(&self, what: &Erase) -> Result<u64, StoreError>;

    /// Erases what is older, or more, than allowed and returns how many.
    async fn prune(&self, retention: &Retention, now_ms: i64) -> Result<u64, StoreError>;
}

/// A reply of ours that is near.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryNeighbour {
    /// Its id.
    pub reply_id: String,
    /// Its distance, in [0, 1].
    pub distance: f32,
}

#[derive(Debug)]
struct Facts {
    reply_id: String,
    part: u32,
    caller: String,
    prompt_hash: String,
    time_ms: i64,
    /// Whether it came from the store, so that another process, or an earlier one, sent it.
    is_read: bool,
}

#[derive(Debug)]
struct Ring {
    vectors: Vectors,
    facts: VecDeque<Facts>,
    keep: usize,
}

impl Ring {
    /// Takes in a reply that was read from the store. One that is known stays what it is, but where it was replaced.
    fn take_in(&mut self, reply: &StoredReply) {
        let id = queries::storable(&reply.reply_id);
        let known = self.facts.iter().rposition(|facts| facts.part == reply.part && facts.reply_id == id);
        if let Some(at) = known {
            let unit = normalised(&reply.embedding);
            if unit.is_some() && self.vectors.get(at) == unit.as_deref() {
                let facts = &mut self.facts[at];
                facts.caller.clone_from(&reply.caller);
                facts.time_ms = reply.time_ms;
                return;
            }
            self.vectors.retain(|i| i != at);
            self.facts.remove(at);
        }
        self.push(reply, true);
    }

    fn push(&mut self, reply: &StoredReply, is_read: bool) -> bool {
        if !self.vectors.push(&reply.embedding) {
            return false;
        }
        self.facts.push_back(Facts {
            reply_id: queries::storable(&reply.reply_id).into_owned(),
            part: reply.part,
            caller: queries::storable(&reply.caller).into_owned(),
            prompt_hash: queries::storable(&reply.prompt_hash).into_owned(),
            time_ms: reply.time_ms,
            is_read,
        });
        // Moving the rows costs as much as a search, so it waits until an eighth more than the limit is there.
        if self.facts.len() > self.keep + self.keep / 8 {
            let surplus = self.facts.len() - self.keep;
            self.vectors.drop_oldest(surplus);
            self.facts.drain(..surplus);
        }
        true
    }

    fn erase(&mut self, what: &Erase) {
        let what = &match what {
            Erase::Caller(hotkey) => Erase::Caller(queries::storable(hotkey).into_owned()),
            Erase::Id(id) => Erase::Id(queries::storable(id).into_owned()),
            Erase::Before(_) | Erase::All => what.clone(),
        };
        let gone: Vec<bool> = self.facts.iter().map(|f| what.matches(&f.reply_id, &f.caller, f.time_ms)).collect();
        self.vectors.retain(|i| !gone[i]);
        let mut index = 0;
        self.facts.retain(|_| {
            index += 1;
            !gone[index - 1]
        });
    }
}

/// The last replies of one encoder, in memory, in front of an optional [`HistoryStore`].
///
/// What other processes add to the store is seen after [`refresh`](Self::refresh).
///
/// Searching is exact and costs one multiplication a kept value; it blocks, so call it off the executor when many
/// thousands are kept.
#[derive(Debug)]
pub struct ReplyHistory {
    encoder: String,
    ring: RwLock<Ring>,
    store: Option<Arc<dyn HistoryStore>>,
    /// The place in the store up to which it was read. Held while it is read, and while replies are erased, so that none
    /// comes back.
    place: tokio::sync::Mutex<i64>,
}

impl ReplyHistory {
    /// Makes an empty history that lives in memory only and holds about the last `keep` replies.
    #[must_use]
    pub fn in_memory(encoder: impl Into<String>, dimensions: usize, keep: usize) -> Self {
        let ring = Ring { vectors: Vectors::new(dimensions), facts: VecDeque::new(), keep };
        Self { encoder: encoder.into(), ring: RwLock::new(ring), store: None, place: tokio::sync::Mutex::default() }
    }

    /// Takes the last `keep` replies of this encoder out of the store.
    ///
    /// # Errors
    /// What the store says.
    pub async fn load(
        store: Arc<dyn HistoryStore>,
        encoder: impl Into<String>,
        dimensions: usize,
        keep: usize,
    ) -> Result<Self, StoreError> {
        let history = Self { store: Some(store), ..Self::in_memory(encoder, dimensions, keep) };
        history.refresh().await?;
        Ok(history)
    }

    /// Takes in what came into the store since it was last read, from this process or another, and returns the place up to
    /// which all is known. Costs one short query when there is nothing new.
    ///
    /// # Errors
    /// What the store says.
    pub async fn refresh(&self) -> Result<i64, StoreError> {
        let Some(store) = &self.store else { return Ok(0) };
        let mut place = self.place.lock().await;
        let keep = self.read(|ring| ring.keep);
        let mut newer = store.since(&self.encoder, *place, keep).await?;
        if newer.place < *place {
            // An older copy of the store was put in its place.
            newer = store.since(&self.encoder, 0, keep).await?;
        }
        *place = newer.place;
        if !newer.replies.is_empty() {
            let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
            for reply in &newer.replies {
                ring.take_in(reply);
            }
        }
        Ok(newer.place)
    }

    /// Says whether replies are written to a store.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.store.is_some()
    }

    /// Writes replies to the store, if nothing came in since [`refresh`](Self::refresh) returned `place`; says whether it was
    /// so. Written before they are sent, replies are known to all who share the store, and survive whatever happens then.
    ///
    /// # Errors
    /// What the store says.
    pub async fn claim(&self, place: i64, replies: &[StoredReply]) -> Result<bool, StoreError> {
        match &self.store {
            Some(store) => store.append_at(place, replies).await,
            None => Ok(true),
        }
    }

    /// Says whether somebody else who shares the store sent this in answer to the same prompt, not before `since_ms`: word for
    /// word, as far as the encoder can tell.
    #[must_use]
    pub fn is_anothers(&self, embedding: &[f32], prompt_hash: &str, since_ms: i64) -> bool {
        let Some(unit) = normalised(embedding).filter(|_| !prompt_hash.is_empty()) else { return false };
        let prompt_hash = queries::storable(prompt_hash);
        self.read(|ring| {
            let recent = ring.facts.iter().enumerate().rev().take_while(|(_, facts)| facts.time_ms >= since_ms);
            let of_others = recent.filter(|(_, facts)| facts.is_read && facts.prompt_hash == prompt_hash);
            of_others.filter_map(|(i, _)| ring.vectors.get(i)).any(|row| distance(&unit, row) <= SAME)
        })
    }

    /// Returns the encoder's name.
    #[must_use]
    pub fn encoder(&self) -> &str {
        &self.encoder
    }

    /// Returns how many values an embedding has.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.read(|ring| ring.vectors.dimensions())
    }

    /// Returns how many replies are in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read(|ring| ring.facts.len())
    }

    /// Says whether no reply is in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Compares later replies with this one from now on, without writing it down. Says whether it could: a reply of
    /// another encoder, or without a direction, is left out.
    pub fn remember(&self, reply: &StoredReply) -> bool {
        reply.encoder == self.encoder && self.ring.write().unwrap_or_else(PoisonError::into_inner).push(reply, false)
    }

    /// Writes replies to the store, when there is one.
    ///
    /// # Errors
    /// What the store says.
    pub async fn save(&self, replies: &[StoredReply]) -> Result<(), StoreError> {
        match &self.store {
            Some(store) => store.append(replies).await,
            None => Ok(()),
        }
    }

    /// Returns the `k` nearest of our replies, nearest first. Empty for an embedding without a direction.
    #[must_use]
    pub fn nearest(&self, embedding: &[f32], k: usize) -> Vec<HistoryNeighbour> {
        self.search(embedding, k, None, NO_LIMIT).unwrap_or_default()
    }

    /// As [`nearest`](Self::nearest), among our replies to the same prompt. Empty for an empty hash.
    #[must_use]
    pub fn nearest_to_prompt(&self, embedding: &[f32], prompt_hash: &str, k: usize) -> Vec<HistoryNeighbour> {
        self.search(embedding, k, Some(prompt_hash), NO_LIMIT).unwrap_or_default()
    }

    /// As [`nearest`](Self::nearest), or [`nearest_to_prompt`](Self::nearest_to_prompt), but stops as soon as `is_over`
    /// says so.
    pub(crate) fn search(
        &self,
        embedding: &[f32],
        k: usize,
        prompt_hash: Option<&str>,
        is_over: IsOver<'_>,
    ) -> Result<Vec<HistoryNeighbour>, OutOfTime> {
        if prompt_hash == Some("") {
            return Ok(Vec::new());
        }
        let hash = prompt_hash.map(queries::storable);
        let include = |facts: &Facts| hash.as_ref().is_none_or(|hash| facts.prompt_hash == *hash);
        self.read(|ring| {
            let found = ring.vectors.search(embedding, k, |i| ring.facts.get(i).is_some_and(include), is_over)?;
            let named = |(i, distance): (usize, f32)| {
                let reply_id = ring.facts.get(i)?.reply_id.clone();
                Some(HistoryNeighbour { reply_id, distance })
            };
            Ok(found.into_iter().filter_map(named).collect())
        })
    }

    /// Erases replies, in memory and in the store, and returns how many the store held.
    ///
    /// # Errors
    /// What the store says.
    pub async fn erase(&self, what: &Erase) -> Result<u64, StoreError> {
        let _place = self.place.lock().await;
        self.forget(what);
        match &self.store {
            Some(store) => store.erase(what).await,
            None => Ok(0),
        }
    }

    /// Drops what is older, or more, than allowed, in memory and in the store, and returns how many the store held.
    ///
    /// # Errors
    /// What the store says.
    pub async fn prune(&self, retention: &Retention, now_ms: i64) -> Result<u64, StoreError> {
        let _place = self.place.lock().await;
        if let Some(oldest) = retention.oldest_ms(now_ms) {
            self.forget(&Erase::Before(oldest));
        }
        match &self.store {
            Some(store) => store.prune(retention, now_ms).await,
            None => Ok(0),
        }
    }

    fn forget(&self, what: &Erase) {
        self.ring.write().unwrap_or_else(PoisonError::into_inner).erase(what);
    }

    fn read<R>(&self, with: impl FnOnce(&Ring) -> R) -> R {
        with(&self.ring.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use sqlx::SqlitePool;

    use super::*;
    use crate::store;

    fn reply(id: &str, caller: &str, embedding: &[f32], time_ms: i64) -> StoredReply {
        StoredReply {
            reply_id: id.to_owned(),
            part: 0,
            caller: caller.to_owned(),
            prompt_hash: format!("hash of {caller}"),
            encoder: "test".to_owned(),
            embedding: embedding.to_vec(),
            text: Some("text".to_owned()),
            time_ms,
        }
    }

    async fn sqlite() -> (tempfile::TempDir, SqlitePool, Arc<SqliteHistory>) {
        let dir = tempfile::tempdir().unwrap();
        let pool = store::open(&dir.path().join("idiolect.sqlite")).await.unwrap();
        let history = SqliteHistory::open(pool.clone()).await.unwrap();
        (dir, pool, Arc::new(history))
    }

    fn ids(replies: &[StoredReply]) -> Vec<&str> {
        replies.iter().map(|r| r.reply_id.as_str()).collect()
    }

    #[tokio::test]
    async fn replies_survive_reopening_and_encoders_stay_apart() {
        let (_dir, _pool, sqlite) = sqlite().await;
        let other = StoredReply { encoder: "other".to_owned(), ..reply("x", "a", &[0.0, 1.0, 0.0], 3) };
        let replies = [reply("1", "a", &[1.0, 0.0], 1), reply("2", "b", &[0.0, 2.0], 2), other.clone()];
        let history = ReplyHistory::load(sqlite.clone(), "test", 2, 10).await.unwrap();
        history.save(&replies).await.unwrap();
        history.remember(&other);
        assert!(history.is_empty(), "another encoder's reply is not compared with");

        let history = ReplyHistory::load(sqlite.clone(), "test", 2, 10).await.unwrap();
        assert_eq!(history.len(), 2);
        assert_eq!(history.nearest(&[0.0, 1.0], 1), [HistoryNeighbour { reply_id: "2".to_owned(), distance: 0.0 }]);
        assert_eq!(history.nearest_to_prompt(&[0.0, 1.0], "hash of a", 3)[0].reply_id, "1");
        assert!(history.nearest_to_prompt(&[0.0, 1.0], "", 3).is_empty());
        assert_eq!(ids(&sqlite.since("other", 0, 5).await.unwrap().replies), ["x"]);
        assert_eq!(ReplyHistory::load(sqlite, "test", 2, 1).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn damaged_rows_are_left_out() {
        let (_dir, pool, sqlite) = sqlite().await;
        sqlite.append(&[reply("1", "a", &[1.0, 0.0], 1), reply("2", "a", &[f32::NAN, 0.0], 1)]).await.unwrap();
        sqlite.append(&[reply("3", "a", &[1.0, 1.0], 1)]).await.unwrap();
        sqlx::query("UPDATE replies SET embedding = x'0102' WHERE reply_id = '3'").execute(&pool).await.unwrap();
        assert_eq!(ids(&sqlite.since("test", 0, 9).await.unwrap().replies), ["1"]);
    }

    #[tokio::test]
    async fn erasing_reaches_memory_and_disk() {
        let all =
            [reply("1", "a", &[1.0, 0.0], 10), reply("2", "b", &[0.0, 1.0], 20), reply("3", "a", &[1.0, 1.0], 30)];
        for (what, left) in [
            (Erase::Before(20), &["2", "3"][..]),
            (Erase::Caller("a".to_owned()), &["2"]),
            (Erase::Id("2".to_owned()), &["1", "3"]),
            (Erase::All, &[]),
        ] {
            let (_dir, _pool, sqlite) = sqlite().await;
            sqlite.append(&all).await.unwrap();
            let history = ReplyHistory::load(sqlite.clone(), "test", 2, 10).await.unwrap();
            assert_eq!(history.erase(&what).await.unwrap(), (all.len() - left.len()) as u64, "{what:?}");
            assert_eq!(ids(&sqlite.since("test", 0, 9).await.unwrap().replies), left, "{what:?}");
            let mut in_memory: Vec<String> = history.nearest(&[1.0, 0.5], 9).into_iter().map(|n| n.reply_id).collect();
            in_memory.sort();
            assert_eq!(in_memory, left, "{what:?}");
        }
    }

    #[tokio::test]
    async fn erased_texts_are_gone_from_disk_while_the_store_is_open() {
        let (dir, _pool, sqlite) = sqlite().await;
        let secret = "what nobody may read later";
        sqlite
            .append(&[StoredReply { text: Some(secret.to_owned()), ..reply("1", "a", &[1.0, 0.0], 1) }])
            .await
            .unwrap();
        sqlite.erase(&Erase::Caller("a".to_owned())).await.unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let path = file.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{path:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sqlite_keeps_the_contract() {
        let (_dir, _pool, sqlite) = sqlite().await;
        crate::testkit::conformance(sqlite).await;
    }

    #[tokio::test]
    async fn two_processes_see_each_others_replies_once() {
        let (_dir, pool, sqlite) = sqlite().await;
        let ours = ReplyHistory::load(sqlite.clone(), "test", 2, 10).await.unwrap();
        let other = ReplyHistory::load(sqlite.clone(), "test", 2, 10).await.unwrap();
        let first = reply("1", "a", &[1.0, 0.0], 1);
        assert!(ours.remember(&first));
        ours.save(&[first]).await.unwrap();
        for _ in 0..2 {
            ours.refresh().await.unwrap();
            other.refresh().await.unwrap();
            assert_eq!((ours.len(), other.len()), (1, 1));
        }
        // Erased by a third one.
        sqlite.append(&[reply("2", "a", &[0.0, 1.0], 2), reply("3", "a", &[0.0, 1.0], 3)]).await.unwrap();
        other.refresh().await.unwrap();
        assert_eq!(other.len(), 3);
        sqlx::query("DELETE FROM replies").execute(&pool).await.unwrap();
        sqlite.append(&[reply("4", "a", &[1.0, 1.0], 4)]).await.unwrap();
        other.refresh().await.unwrap();
        assert_eq!(other.nearest(&[1.0, 1.0], 1)[0].reply_id, "4");
        // Replaced by a third one, though it is the last: what it was is forgotten, and what is ours stays ours.
        sqlite.append(&[reply("4", "a", &[-1.0, 2.0], 4)]).await.unwrap();
        ours.refresh().await.unwrap();
        other.refresh().await.unwrap();
        let nearest = &other.nearest(&[-1.0, 2.0], 1)[0];
        assert!(nearest.reply_id == "4" && nearest.distance < 1e-6, "{nearest:?}");
        let n = other.nearest(&[1.0, 1.0], 9).iter().filter(|known| known.reply_id == "4").count();
        assert_eq!(n, 1, "what was replaced is no longer compared with");
        sqlite.append(&[reply("1", "b", &[1.0, 0.0], 9)]).await.unwrap();
        ours.refresh().await.unwrap();
        assert!(!ours.is_anothers(&[1.0, 0.0], "hash of a", 0), "written again, it is ours still");
        ours.forget(&Erase::Caller("b".to_owned()));
        assert_eq!(ours.nearest(&[1.0, 0.0], 9).iter().filter(|known| known.reply_id == "1").count(), 0);
        other.erase(&Erase::All).await.unwrap();
        other.refresh().await.unwrap();
        assert!(other.is_empty());
    }

    #[tokio::test]
    async fn claims_know_of_all_that_came_before() {
        let (_dir, _pool, sqlite) = sqlite().await;
        let ours = ReplyHistory::load(sqlite.clone(), "test", 2, 10).await.unwrap();
        let theirs = ReplyHistory::load(sqlite.clone(), "test", 2, 10).await.unwrap();
        let (place, old) = (ours.refresh().await.unwrap(), theirs.refresh().await.unwrap());
        let first = reply("1", "a", &[1.0, 0.0], 1000);
        assert!(ours.claim(place, std::slice::from_ref(&first)).await.unwrap());
        ours.remember(&first);
        let second = reply("2", "a", &[1.0, 0.0], 1001);
        assert!(!theirs.claim(old, std::slice::from_ref(&second)).await.unwrap(), "the other one was faster");
        assert!(!theirs.is_anothers(&[1.0, 0.0], "hash of a", 0), "not known yet");
        let place = theirs.refresh().await.unwrap();
        assert!(theirs.is_anothers(&[2.0, 0.0], "hash of a", 1000) && !ours.is_anothers(&[2.0, 0.0], "hash of a", 0));
        for (embedding, prompt, since) in [
            ([1.0, 0.2], "hash of a", 0),
            ([1.0, 0.0], "hash of b", 0),
            ([1.0, 0.0], "hash of a", 1001),
            ([0.0, 0.0], "hash of a", 0),
            ([1.0, 0.0], "", 0),
        ] {
            assert!(!theirs.is_anothers(&embedding, prompt, since), "{embedding:?} {prompt} {since}");
        }
        assert!(theirs.claim(place, &[second]).await.unwrap());
        assert_eq!(sqlite.count().await.unwrap(), 2);

        let alone = ReplyHistory::in_memory("test", 2, 10);
        assert!(!alone.is_kept() && alone.claim(alone.refresh().await.unwrap(), &[first]).await.unwrap());
    }

    #[test]
    fn what_cannot_be_compared_is_not_remembered() {
        let history = ReplyHistory::in_memory("test", 2, 16);
        for bad in [&[f32::NAN, 1.0][..], &[0.0, 0.0], &[1.0], &[1.0, 0.0, 0.0]] {
            assert!(!history.remember(&reply("1", "a", bad, 1)), "{bad:?}");
        }
        let other_encoder = StoredReply { encoder: "other".to_owned(), ..reply("1", "a", &[1.0, 0.0], 1) };
        assert!(!history.remember(&other_encoder));
        assert!(history.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let at = |i: f32| [(i * 0.01).cos(), (i * 0.01).sin()];
        let history = ReplyHistory::in_memory("test", 2, 16);
        for i in 0..100 {
            history.remember(&reply(&i.to_string(), "a", &at(i as f32), i));
            assert!(history.len() <= 18);
        }
        assert_eq!(history.nearest(&at(99.0), 1)[0].reply_id, "99");
        assert_eq!(ReplyHistory::in_memory("test", 2, 0).nearest(&[1.0, 0.0], 1), []);
    }

    #[test]
    fn texts_stay_out_of_debug() {
        let shown = format!("{:?}", StoredReply { text: Some("secret".to_owned()), ..reply("1", "a", &[1.0], 1) });
        assert!(!shown.contains("secret"), "{shown}");
    }
}
