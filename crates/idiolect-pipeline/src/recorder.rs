//! Writing records behind the replies' backs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use idiolect_uniqueness::{Erase, ReplyHistory, Retention, StoreError, StoredReply};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use crate::config::RecordConfig;
use crate::store::{MemoryRecords, ProvenanceStore, Record, Rewards};
use crate::{PipelineError, Provenance, metrics};

/// A message to the writer.
#[derive(Debug)]
pub(crate) enum Message {
    Reply(Record, Vec<StoredReply>),
    Rewards(Rewards),
    Flush(oneshot::Sender<()>),
}

/// Longest time that a reply waits for room in the queue.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long a record may wait for others, so that one transaction writes them all: each one costs a wake-up of SQLite's
/// thread and writes every page that it touched.
const GATHER: Duration = Duration::from_millis(100);
/// Most messages that are worked on at once.
const BATCH: usize = 2048;
const PRUNE_EVERY: Duration = Duration::from_secs(600);

/// Where records go: to a writer with a bounded queue, or into memory where there is no store.
#[derive(Debug)]
pub(crate) enum Recorder {
    Store {
        queue: mpsc::Sender<Message>,
        /// Tells the writer to wait for no more.
        urgent: Arc<Notify>,
        store: ProvenanceStore,
        history: Option<Arc<ReplyHistory>>,
        config: RecordConfig,
        /// The queue was full at last sight: whoever comes then does not wait as well.
        is_behind: AtomicBool,
    },
    Memory {
        records: Mutex<MemoryRecords>,
        history: Option<Arc<ReplyHistory>>,
        config: RecordConfig,
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
        config: RecordConfig,
    ) -> Self {
        let Some(store) = store else { return Self::Memory { records: Mutex::default(), history, config } };
        let (queue, receiver) = mpsc::channel(config.queue.max(1));
        let urgent = Arc::new(Notify::new());
        let writer = Writer {
            store: store.clone(),
            history: history.clone(),
            retention: config.retention,
            urgent: Arc::clone(&urgent),
        };
        tokio::spawn(writer.run(receiver));
        Self::Store { queue, urgent, store, history, config, is_behind: AtomicBool::new(false) }
    }

    /// Hands a record over. Returns at once unless the queue is full; then the first to find it so waits a little, never
    /// beyond the deadline. Records that find no room are given up.
    pub(crate) async fn reply(&self, provenance: &Provenance, replies: Vec<StoredReply>, deadline: Instant) {
        match self {
            Self::Memory { records, config, .. } => lock(records).insert(provenance, config),
            Self::Store { queue, urgent, is_behind, config, .. } => {
                let Some(record) = Record::new(provenance, config) else { return };
                let message = Message::Reply(record, replies);
                let patience = if is_behind.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
                let left = deadline.saturating_duration_since(Instant::now()) / 2;
                if hand_over(queue, urgent, message, patience.min(left)).await {
                    if is_behind.load(Ordering::Relaxed) {
                        is_behind.store(false, Ordering::Relaxed);
                    }
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
                metrics::rewards(lock(records).reward(rewards));
                true
            }
            Self::Store { queue, .. } => queue.try_send(Message::Rewards(rewards)).is_ok(),
        }
    }

    /// Waits until everything that was handed over is written.
    pub(crate) async fn flush(&self) {
        if let Self::Store { queue, urgent, .. } = self {
            let (sender, done) = oneshot::channel();
            urgent.notify_one();
            if queue.send(Message::Flush(sender)).await.is_ok() {
                urgent.notify_one();
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
async fn hand_over(queue: &mpsc::Sender<Message>, urgent: &Notify, message: Message, patience: Duration) -> bool {
    if queue.capacity() < queue.max_capacity() / 2 {
        urgent.notify_one();
    }
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
    retention: Retention,
    urgent: Arc<Notify>,
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
                    self.gather(&mut receiver, &mut batch).await;
                    self.write(&mut batch).await;
                }
                _ = prune.tick() => self.prune().await,
            }
        }
    }

    /// Waits a little for more, unless somebody waits for us or the queue fills up.
    async fn gather(&self, receiver: &mut mpsc::Receiver<Message>, batch: &mut Vec<Message>) {
        if batch.iter().any(|message| matches!(message, Message::Flush(_))) {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(GATHER) => {}
            () = self.urgent.notified() => {}
        }
        while batch.len() < BATCH
            && let Ok(message) = receiver.try_recv()
        {
            batch.push(message);
        }
    }

    /// Writes the replies of a batch, then the rewards, which may belong to one of them.
    async fn write(&self, batch: &mut Vec<Message>) {
        let (mut records, mut replies, mut rewards, mut waiting) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for message in batch.drain(..) {
            match message {
                Message::Reply(record, of_history) => {
                    records.push(record);
                    replies.extend(of_history);
                }
                Message::Rewards(of_one) => rewards.push(of_one),
                Message::Flush(done) => waiting.push(done),
            }
        }
        self.write_replies(&records, &replies).await;
        self.write_rewards(&rewards).await;
        for done in waiting {
            // Whoever waited may have gone away.
            let _ = done.send(());
        }
    }

    async fn write_replies(&self, records: &[Record], replies: &[StoredReply]) {
        if !records.is_empty() {
            match patiently(|| self.store.insert(records)).await {
                Ok(()) => metrics::recorded(records.len()),
                Err(error) => {
                    metrics::records_lost("store", records.len());
                    tracing::error!(n = records.len(), error = &error as &dyn std::error::Error, "records not written");
                }
            }
        }
        if let Some(history) = self.history.as_ref().filter(|_| !replies.is_empty())
            && let Err(error) = patiently(|| history.save(replies)).await
        {
            tracing::error!(n = replies.len(), error = &error as &dyn std::error::Error, "history not written");
        }
    }

    async fn write_rewards(&self, rewards: &[Rewards]) {
        if rewards.is_empty() {
            return;
        }
        match patiently(|| self.store.reward(rewards, now_ms())).await {
            Ok(matched) => matched.into_iter().for_each(metrics::rewards),
            Err(error) => {
                tracing::error!(n = rewards.len(), error = &error as &dyn std::error::Error, "rewards not written");
            }
        }
    }

    async fn prune(&self) {
        let retention = &self.retention;
        match self.store.prune(retention, now_ms()).await {
            Ok(n) => metrics::pruned(n),
            // Whoever closed the store wants nothing of it any more.
            Err(_) if self.store.is_closed() => return,
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "old records not erased"),
        }
        if let Some(history) = &self.history
            && let Err(error) = history.prune(retention, now_ms()).await
            && !self.store.is_closed()
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
