//! Writing records behind the replies' backs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use idiolect_uniqueness::{Erase, ReplyHistory, StoreError, StoredReply};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::RecordConfig;
use crate::store::{MemoryRecords, ProvenanceStore, Record};
use crate::{PipelineError, Provenance, metrics};

/// Rewards that came for a completion.
#[derive(Debug)]
pub(crate) struct Rewards {
    pub(crate) caller: String,
    pub(crate) completion_hash: String,
    pub(crate) rewards: Vec<f32>,
}

/// A message to the writer.
#[derive(Debug)]
pub(crate) enum Message {
    Reply(Box<Record>, Vec<StoredReply>),
    Rewards(Rewards),
    Flush(oneshot::Sender<()>),
}

/// Longest time that a reply waits for room in the queue.
const PATIENCE: Duration = Duration::from_millis(50);
const BATCH: usize = 256;
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// Where records go: to a writer with a bounded queue, or into memory where there is no store.
#[derive(Debug)]
pub(crate) enum Recorder {
    Store {
        queue: mpsc::Sender<Message>,
        store: ProvenanceStore,
        history: Option<Arc<ReplyHistory>>,
        /// The queue was full at last sight: whoever comes then does not wait as well.
        is_behind: AtomicBool,
    },
    Memory {
        records: Mutex<MemoryRecords>,
        history: Option<Arc<ReplyHistory>>,
    },
}

pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl Recorder {
    /// Starts the writer.
    pub(crate) fn new(
        store: Option<ProvenanceStore>,
        history: Option<Arc<ReplyHistory>>,
        config: &RecordConfig,
    ) -> Self {
        let Some(store) = store else { return Self::Memory { records: Mutex::default(), history } };
        let (queue, receiver) = mpsc::channel(config.queue.max(1));
        let writer = Writer { store: store.clone(), history: history.clone(), config: config.clone() };
        tokio::spawn(writer.run(receiver));
        Self::Store { queue, store, history, is_behind: AtomicBool::new(false) }
    }

    /// Hands a record over. Returns at once unless the queue is full; then the first to find it so waits a little, never
    /// beyond the deadline. Records that find no room are given up.
    pub(crate) async fn reply(&self, record: Record, replies: Vec<StoredReply>, deadline: Instant) {
        match self {
            Self::Memory { records, .. } => lock(records).insert(record),
            Self::Store { queue, is_behind, .. } => {
                let message = Message::Reply(Box::new(record), replies);
                let patience = if is_behind.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
                let left = deadline.saturating_duration_since(Instant::now()) / 2;
                if hand_over(queue, message, patience.min(left)).await {
                    is_behind.store(false, Ordering::Relaxed);
                    return;
                }
                metrics::records_lost("queue_full", 1);
                if !is_behind.swap(true, Ordering::Relaxed) {
                    tracing::error!("the store is too slow: replies are sent without a record until it catches up");
                }
            }
        }
    }

    /// Hands rewards over, in order behind the replies that they may belong to. Says whether there was room.
    pub(crate) fn rewards(&self, rewards: Rewards) -> bool {
        match self {
            Self::Memory { records, .. } => {
                let Rewards { caller, completion_hash, rewards } = rewards;
                metrics::rewards(lock(records).reward(&caller, &completion_hash, &rewards));
                true
            }
            Self::Store { queue, .. } => queue.try_send(Message::Rewards(rewards)).is_ok(),
        }
    }

    /// Waits until everything that was handed over is written.
    pub(crate) async fn flush(&self) {
        if let Self::Store { queue, .. } = self {
            let (sender, done) = oneshot::channel();
            if queue.send(Message::Flush(sender)).await.is_ok() {
                // The writer lives as long as the queue; should it be gone, there is nothing to wait for.
                let _ = done.await;
            }
        }
    }

    pub(crate) async fn explain(&self, which: &str) -> Result<Provenance, PipelineError> {
        match self {
            Self::Memory { records, .. } => {
                lock(records).explain(which).ok_or_else(|| PipelineError::NotFound(which.to_owned()))
            }
            Self::Store { store, .. } => {
                self.flush().await;
                store.explain(which).await
            }
        }
    }

    pub(crate) async fn erase(&self, what: &Erase) -> Result<u64, StoreError> {
        self.flush().await;
        let (Self::Memory { history, .. } | Self::Store { history, .. }) = self;
        if let Some(history) = history {
            history.erase(what).await?;
        }
        match self {
            Self::Memory { records, .. } => Ok(lock(records).erase(what)),
            Self::Store { store, .. } => store.erase(what).await,
        }
    }
}

/// Says whether there was room within the time.
async fn hand_over(queue: &mpsc::Sender<Message>, message: Message, patience: Duration) -> bool {
    match queue.try_send(message) {
        Ok(()) => true,
        Err(mpsc::error::TrySendError::Full(message)) if !patience.is_zero() => {
            queue.send_timeout(message, patience).await.is_ok()
        }
        Err(_) => false,
    }
}

fn lock(records: &Mutex<MemoryRecords>) -> std::sync::MutexGuard<'_, MemoryRecords> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Writer {
    store: ProvenanceStore,
    history: Option<Arc<ReplyHistory>>,
    config: RecordConfig,
}

impl Writer {
    /// Runs until the last sender is gone and the queue is empty.
    async fn run(self, mut receiver: mpsc::Receiver<Message>) {
        let mut prune = tokio::time::interval(PRUNE_EVERY);
        prune.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                n = receiver.recv_many(&mut batch, BATCH) => {
                    if n == 0 {
                        return;
                    }
                    self.write(&mut batch).await;
                }
                _ = prune.tick() => self.prune().await,
            }
        }
    }

    async fn write(&self, batch: &mut Vec<Message>) {
        let mut records = Vec::new();
        let mut replies = Vec::new();
        for message in batch.drain(..) {
            match message {
                Message::Reply(record, of_history) => {
                    records.push(*record);
                    replies.extend(of_history);
                }
                Message::Rewards(rewards) => {
                    self.write_replies(&mut records, &mut replies).await;
                    self.write_rewards(&rewards).await;
                }
                Message::Flush(done) => {
                    self.write_replies(&mut records, &mut replies).await;
                    // Whoever waited may have gone away.
                    let _ = done.send(());
                }
            }
        }
        self.write_replies(&mut records, &mut replies).await;
    }

    async fn write_replies(&self, records: &mut Vec<Record>, replies: &mut Vec<StoredReply>) {
        let written: &[Record] = records;
        if !written.is_empty() {
            match patiently(|| self.store.insert(written)).await {
                Ok(()) => metrics::recorded(written.len()),
                Err(error) => {
                    metrics::records_lost("store", written.len());
                    tracing::error!(n = written.len(), error = &error as &dyn std::error::Error, "records not written");
                }
            }
            records.clear();
        }
        let saved: &[StoredReply] = replies;
        if let Some(history) = self.history.as_ref().filter(|_| !saved.is_empty()) {
            if let Err(error) = patiently(|| history.save(saved)).await {
                tracing::error!(n = saved.len(), error = &error as &dyn std::error::Error, "history not written");
            }
            replies.clear();
        }
    }

    async fn write_rewards(&self, rewards: &Rewards) {
        let Rewards { caller, completion_hash, rewards } = rewards;
        match patiently(|| self.store.reward(caller, completion_hash, rewards, now_ms())).await {
            Ok(matched) => metrics::rewards(matched),
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "rewards not written"),
        }
    }

    async fn prune(&self) {
        let retention = &self.config.retention;
        match self.store.prune(retention, now_ms()).await {
            Ok(n) => metrics::pruned(n),
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "old records not erased"),
        }
        if let Some(history) = &self.history
            && let Err(error) = history.prune(retention, now_ms()).await
        {
            tracing::error!(error = &error as &dyn std::error::Error, "old replies not erased");
        }
    }
}

/// Tries again where another process holds the file.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(
    mut write: impl FnMut() -> F,
) -> Result<T, StoreError> {
    for _ in 0..3 {
        match write().await {
            Err(StoreError::Busy(_)) => tokio::time::sleep(Duration::from_millis(200)).await,
            other => return other,
        }
    }
    write().await
}
