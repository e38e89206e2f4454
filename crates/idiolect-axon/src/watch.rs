//! One connection's stream, watched: peers that are too slow with a head, with reading, or with anything at all are cut off.

use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::AxonConfig;

/// What a connection is doing, shared by its stream, its requests and the task that judges it.
#[derive(Debug)]
pub(crate) struct Watch {
    born: Instant,
    n_active: AtomicUsize,
    is_http2: AtomicBool,
    /// Moments in milliseconds since `born`, plus one; 0 is "not so".
    head_since: AtomicU64,
    idle_since: AtomicU64,
    write_blocked_since: AtomicU64,
    /// When each answer that is not wholly handed over was begun, and a number to tell them apart.
    answers: Mutex<BTreeSet<(u64, u64)>>,
    n_answers: AtomicU64,
    is_dismissed: AtomicBool,
    dismissal: Notify,
}

impl Watch {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            born: Instant::now(),
            n_active: AtomicUsize::new(0),
            is_http2: AtomicBool::new(false),
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(1),
            write_blocked_since: AtomicU64::new(0),
            answers: Mutex::default(),
            n_answers: AtomicU64::new(0),
            is_dismissed: AtomicBool::new(false),
            dismissal: Notify::new(),
        })
    }

    /// Returns for how long nothing has been asked and no head has been on its way; `None` while a request is in hand.
    pub(crate) fn rest(&self) -> Option<Duration> {
        if self.is_active() {
            return None;
        }
        let since = self.idle_since.load(Ordering::Relaxed).max(self.head_since.load(Ordering::Relaxed));
        Some(Duration::from_millis(self.now().saturating_sub(since)))
    }

    pub(crate) fn is_active(&self) -> bool {
        self.n_active.load(Ordering::Relaxed) > 0
    }

    /// Sends the connection away: its place is needed.
    pub(crate) fn dismiss(&self) {
        self.is_dismissed.store(true, Ordering::Relaxed);
        self.dismissal.notify_one();
    }

    /// Waits until the connection is sent away.
    pub(crate) async fn dismissed(&self) {
        while !self.is_dismissed() {
            self.dismissal.notified().await;
        }
    }

    pub(crate) fn is_dismissed(&self) -> bool {
        self.is_dismissed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_http2(&self) {
        self.is_http2.store(true, Ordering::Relaxed);
    }

    /// Called with a request's head; the request ends when the returned value is dropped.
    pub(crate) fn request(self: &Arc<Self>) -> ActiveRequest {
        self.n_active.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        ActiveRequest { watch: self.clone(), answer: None }
    }

    fn answers(&self) -> MutexGuard<'_, BTreeSet<(u64, u64)>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn on_read(&self) {
        if self.n_active.load(Ordering::Relaxed) == 0 && self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
    }

    fn on_write(&self, progressed: bool) {
        if progressed {
            if self.write_blocked_since.load(Ordering::Relaxed) != 0 {
                self.write_blocked_since.store(0, Ordering::Relaxed);
            }
        } else if self.write_blocked_since.load(Ordering::Relaxed) == 0 {
            self.write_blocked_since.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Says what the peer is too slow at, if anything.
    pub(crate) fn judge(&self, config: &AxonConfig) -> Option<TooSlow> {
        let now = self.now();
        let longer = |since: &AtomicU64, limit: Duration| {
            let since = since.load(Ordering::Relaxed);
            since != 0 && u128::from(now.saturating_sub(since)) > limit.as_millis()
        };
        if longer(&self.write_blocked_since, config.write_timeout) {
            return Some(TooSlow::Write);
        }
        // A peer of HTTP/2 can also leave an answer unread by never giving room for it.
        let oldest = self.answers().first().map_or(0, |(since, _)| *since);
        if longer(&AtomicU64::new(oldest), config.write_timeout.saturating_mul(ANSWER_FACTOR)) {
            return Some(TooSlow::Write);
        }
        if self.is_active() {
            return None;
        }
        // An HTTP/2 peer may send pings and settings without ever asking anything.
        if !self.is_http2.load(Ordering::Relaxed) && longer(&self.head_since, config.header_timeout) {
            return Some(TooSlow::Head);
        }
        longer(&self.idle_since, config.idle_timeout).then_some(TooSlow::Idle)
    }
}

/// How many times the write timeout a peer may take over a whole answer.
const ANSWER_FACTOR: u32 = 3;

/// What a peer is too slow at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TooSlow {
    Head,
    Idle,
    Write,
}

impl TooSlow {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Idle => "idle",
            Self::Write => "write",
        }
    }
}

/// A request in progress on a connection.
#[derive(Debug)]
pub(crate) struct ActiveRequest {
    watch: Arc<Watch>,
    answer: Option<(u64, u64)>,
}

impl ActiveRequest {
    /// Called when all of the answer is there: from now on it is the peer that takes the time.
    pub(crate) fn set_answered(&mut self) {
        let answer = (self.watch.now(), self.watch.n_answers.fetch_add(1, Ordering::Relaxed));
        self.watch.answers().insert(answer);
        self.answer = Some(answer);
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if let Some(answer) = self.answer {
            self.watch.answers().remove(&answer);
        }
        self.watch.idle_since.store(self.watch.now(), Ordering::Relaxed);
        self.watch.n_active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that reports to a [`Watch`], and gives back first what was read to tell the protocols apart.
#[derive(Debug)]
pub(crate) struct WatchedStream {
    pub(crate) stream: TcpStream,
    pub(crate) sniffed: Bytes,
    pub(crate) watch: Arc<Watch>,
}

impl AsyncRead for WatchedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = if self.sniffed.is_empty() {
            Pin::new(&mut self.stream).poll_read(cx, buf)
        } else {
            let n = self.sniffed.len().min(buf.remaining());
            buf.put_slice(&self.sniffed[..n]);
            self.sniffed.advance(n);
            Poll::Ready(Ok(()))
        };
        if buf.filled().len() > before {
            self.watch.on_read();
        }
        polled
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch.on_write(polled.is_ready());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch.on_write(polled.is_ready());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AxonConfig {
        AxonConfig {
            header_timeout: Duration::from_millis(20),
            idle_timeout: Duration::from_millis(60),
            write_timeout: Duration::from_millis(40),
            ..AxonConfig::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_heads_idle_peers_and_deaf_peers_are_told_apart() {
        let watch = Watch::new();
        assert_eq!(watch.judge(&config()), None);
        watch.on_read();
        tokio::time::advance(Duration::from_millis(30)).await;
        assert_eq!(watch.judge(&config()), Some(TooSlow::Head));
        let request = watch.request();
        watch.on_read();
        tokio::time::advance(Duration::from_millis(70)).await;
        assert_eq!(watch.judge(&config()), None, "a running request may take its time");
        drop(request);
        assert_eq!(watch.judge(&config()), None);
        tokio::time::advance(Duration::from_millis(70)).await;
        assert_eq!(watch.judge(&config()), Some(TooSlow::Idle));
        watch.on_write(false);
        tokio::time::advance(Duration::from_millis(50)).await;
        watch.on_write(false);
        assert_eq!(watch.judge(&config()), Some(TooSlow::Write));
        watch.on_write(true);
        assert_ne!(watch.judge(&config()), Some(TooSlow::Write));
    }
}
