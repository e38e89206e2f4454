//! Miners that share a history of replies: none sends what another one sends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::stream;
use idiolect_backend::{
    Backend, Capabilities, Completion, CompletionStream, Error, Event, FinishReason, HashEmbedder, Health, Request,
    Score, ScoreRequest, Usage, collect,
};
use idiolect_pipeline::{Answer, Ask, Parts, Pipeline, PipelineConfig};
use idiolect_tests::postgres::PostgresServer;
use idiolect_uniqueness::{
    Erase, HistoryStore, Newer, Page, PostgresHistory, Retention, SqliteHistory, StoreError, StoredReply, store,
};

use crate::support::prompt;

/// A model without any whim: the same prompt, the same candidates, in the same order.
#[derive(Debug)]
struct Same(Capabilities);

/// What it says: texts that share no words.
fn candidate(asked: &str, nth: usize) -> String {
    const WORDS: [&str; 6] = ["apple", "brook", "cedar", "delta", "ember", "field"];
    (0..12).map(|i| format!("{}{i}{asked}", WORDS[nth % WORDS.len()])).collect::<Vec<_>>().join(" ")
}

#[async_trait]
impl Backend for Same {
    fn capabilities(&self) -> &Capabilities {
        &self.0
    }

    async fn complete(&self, request: Request) -> Result<Completion, Error> {
        collect(self.stream(request).await?).await
    }

    async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
        let asked = request.messages.last().map_or("", |message| message.content.as_str());
        let mut events = Vec::new();
        for nth in 0..request.n {
            events.push(Ok(Event::Delta { candidate: nth, text: candidate(asked, nth), logprobs: Vec::new() }));
            let reason = FinishReason::Stop;
            events.push(Ok(Event::Finished { candidate: nth, reason, n_tokens: 12, mean_logprob: None }));
        }
        let (model, backend) = ("same".to_owned(), "same".to_owned());
        events.push(Ok(Event::Done { usage: Usage::default(), model, backend }));
        Ok(Box::pin(stream::iter(events)))
    }

    async fn score(&self, _: ScoreRequest) -> Result<Score, Error> {
        Err(Error::Unsupported { backend: "same".to_owned(), what: "scoring".to_owned() })
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

async fn miner(history: Arc<dyn HistoryStore>, candidates: usize) -> Arc<Pipeline> {
    let parts = Parts {
        embedder: Some(Arc::new(HashEmbedder::new(256))),
        shared_history: Some(history),
        ..Parts::new(Arc::new(Same(Capabilities::new("same"))))
    };
    let config = PipelineConfig { candidates, recipes: 1, seed: Some(1), ..PipelineConfig::default() };
    Arc::new(Pipeline::start(config, parts).await.unwrap())
}

async fn asked(miner: &Arc<Pipeline>, question: String) -> Answer {
    let miner = Arc::clone(miner);
    tokio::spawn(async move { miner.answer(Ask::new(prompt(&question))).await.unwrap() }).await.unwrap()
}

/// Several miners answer the same prompts at the same moment, with models that say the same.
async fn race(histories: Vec<Arc<dyn HistoryStore>>, n_prompts: usize) {
    let n_miners = histories.len();
    let mut miners = Vec::new();
    for history in &histories {
        miners.push(miner(Arc::clone(history), 6).await);
    }
    for nth in 0..n_prompts {
        let answers = futures_util::future::join_all(miners.iter().map(|miner| asked(miner, format!("q{nth}")))).await;
        let mut sent = BTreeMap::new();
        for answer in &answers {
            *sent.entry(answer.reply.completions[0].as_str()).or_insert(0) += 1;
            assert_eq!(answer.provenance.notes, [""; 0], "claimed");
        }
        assert_eq!(sent.len(), n_miners, "{sent:?}");
    }
    // All of it was written before it was sent, and once.
    assert_eq!(histories[0].count().await.unwrap(), (n_miners * n_prompts) as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn miners_on_one_sqlite_file_never_send_each_others_replies() {
    let dir = tempfile::tempdir().unwrap();
    let mut histories: Vec<Arc<dyn HistoryStore>> = Vec::new();
    for _ in 0..3 {
        // As of a process each: a pool of its own.
        let pool = store::open(&dir.path().join("history.sqlite")).await.unwrap();
        histories.push(Arc::new(SqliteHistory::open(pool).await.unwrap()));
    }
    race(histories, 60).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn miners_on_one_database_never_send_each_others_replies() {
    let mut server = PostgresServer::start().unwrap();
    let mut histories: Vec<Arc<dyn HistoryStore>> = Vec::new();
    for _ in 0..3 {
        histories.push(Arc::new(PostgresHistory::connect(&server.url()).await.unwrap()));
    }
    let last = Arc::clone(&histories[0]);
    race(histories, 40).await;

    // Without the database replies go on, and say so.
    let alone = miner(last, 2).await;
    server.kill();
    for nth in 0..3 {
        let answer = asked(&alone, format!("after {nth}")).await;
        assert_eq!(answer.reply.completions.len(), 1);
        let notes = answer.provenance.notes.join(";");
        assert!(notes.contains("sent before it was in the history"), "{notes}");
        assert!(nth == 0 || notes.contains("resting"), "{notes}");
    }
}

/// A history that never answers.
#[derive(Debug, Default)]
struct Stuck(std::sync::atomic::AtomicBool);

impl Stuck {
    async fn wait(&self) {
        if self.0.load(std::sync::atomic::Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl HistoryStore for Stuck {
    async fn append(&self, _: &[StoredReply]) -> Result<(), StoreError> {
        self.wait().await;
        Ok(())
    }

    async fn append_at(&self, _: i64, _: &[StoredReply]) -> Result<bool, StoreError> {
        self.wait().await;
        Ok(true)
    }

    async fn since(&self, _: &str, _: i64, _: usize) -> Result<Newer, StoreError> {
        self.wait().await;
        Ok(Newer::default())
    }

    async fn page(&self, _: i64, _: usize) -> Result<Page, StoreError> {
        Ok(Page::default())
    }

    async fn count(&self) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn erase(&self, _: &Erase) -> Result<u64, StoreError> {
        Ok(0)
    }

    async fn prune(&self, _: &Retention, _: i64) -> Result<u64, StoreError> {
        Ok(0)
    }
}

#[tokio::test]
async fn a_history_that_hangs_costs_no_reply_and_no_deadline() {
    let history = Arc::new(Stuck::default());
    let miner = miner(history.clone(), 3).await;
    history.0.store(true, std::sync::atomic::Ordering::SeqCst);
    let timeout = Duration::from_secs(8);
    for why in ["slow", "resting", "resting"] {
        let began = Instant::now();
        let ask = Ask { timeout, ..Ask::new(prompt("hm?")) };
        let answer = miner.answer(ask).await.unwrap();
        assert!(began.elapsed() < timeout);
        assert!(answer.provenance.notes.join(";").contains(why), "{:?}", answer.provenance.notes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_candidates_taken_the_asker_of_its_own_miner_still_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    let pool = store::open(&dir.path().join("history.sqlite")).await.unwrap();
    let history: Arc<dyn HistoryStore> = Arc::new(SqliteHistory::open(pool).await.unwrap());
    let (first, second) = (miner(Arc::clone(&history), 1).await, miner(history, 1).await);
    let (one, two) = (asked(&first, "same".to_owned()).await, asked(&second, "same".to_owned()).await);
    assert_eq!(one.reply.completions, two.reply.completions);
}
