//! Bodies: requests' read within bounds of size, time and memory; replies' sent whole or in small pieces.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use idiolect_protocol::Category;
use tokio::time::Sleep;

use crate::metrics as meters;

/// Bytes of request bodies held at one time, over all connections.
#[derive(Debug)]
pub(crate) struct BodyBudget {
    held: AtomicUsize,
    max: usize,
}

impl BodyBudget {
    pub(crate) const fn new(max: usize) -> Self {
        Self { held: AtomicUsize::new(0), max }
    }

    fn take(&self, bytes: usize) -> bool {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > self.max {
            self.give_back(bytes);
            return false;
        }
        true
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// Why a request's body was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("request too large")]
    TooLarge,
    #[error("request came too slowly")]
    TooSlow,
    #[error("too many requests are being read")]
    NoRoom,
    #[error("request ended early")]
    Broken,
}

impl BodyError {
    pub(crate) const fn category(self) -> Category {
        match self {
            Self::TooLarge => Category::TooLarge,
            Self::TooSlow => Category::Timeout,
            Self::NoRoom => Category::Overloaded,
            Self::Broken => Category::Malformed,
        }
    }

    fn count(self) {
        match self {
            Self::TooSlow => meters::connection_cut("body"),
            Self::NoRoom => meters::shed("body"),
            Self::TooLarge | Self::Broken => {}
        }
    }
}

/// What a request's body may be.
#[derive(Clone, Debug)]
pub(crate) struct BodyLimits {
    pub(crate) max_bytes: usize,
    pub(crate) timeout: Duration,
    pub(crate) budget: Arc<BodyBudget>,
}

/// A request's body within its limits. What it read counts against the budget until it is dropped.
pub(crate) struct RequestBody {
    inner: Incoming,
    limits: BodyLimits,
    n_bytes: usize,
    frame_head: FrameHead,
    /// Set when the body first makes us wait: most come with their head.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Whether the first bytes are a gRPC frame's, which announces its length.
#[derive(Clone, Copy)]
enum FrameHead {
    Unchecked,
    None,
}

impl RequestBody {
    /// Takes the body of an HTTP request.
    pub(crate) fn plain(inner: Incoming, limits: BodyLimits) -> Self {
        Self { inner, limits, n_bytes: 0, frame_head: FrameHead::None, timer: None }
    }

    /// Takes the body of a gRPC request: its announced length is checked before its bytes come.
    pub(crate) fn grpc(inner: Incoming, limits: BodyLimits) -> Self {
        let mut body = Self::plain(inner, limits);
        body.frame_head = FrameHead::Unchecked;
        body
    }

    /// Refuses a body that says it will be too large.
    pub(crate) fn check_announced(&self) -> Result<(), BodyError> {
        if self.inner.size_hint().lower() > self.limits.max_bytes as u64 {
            return Err(BodyError::TooLarge);
        }
        Ok(())
    }

    /// Reads a small body that nobody wants, so that the connection can be used again after the refusal.
    pub(crate) async fn discard(&mut self) {
        if self.inner.size_hint().upper().is_none_or(|bytes| bytes > MAX_DISCARDED) {
            return;
        }
        let reading = async { while let Some(Ok(_)) = self.frame().await {} };
        let _ = tokio::time::timeout(DISCARD_TIMEOUT, reading).await;
    }

    /// Reads all of it.
    pub(crate) async fn collect_bytes(&mut self) -> Result<Bytes, BodyError> {
        self.check_announced()?;
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        while let Some(frame) = self.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if first.is_empty() {
                first = data;
            } else {
                if rest.is_empty() {
                    rest.extend_from_slice(&first);
                }
                rest.extend_from_slice(&data);
            }
        }
        Ok(if rest.is_empty() { first } else { rest.freeze() })
    }

    fn admit(&mut self, data: &Bytes) -> Result<(), BodyError> {
        if matches!(self.frame_head, FrameHead::Unchecked) {
            self.frame_head = FrameHead::None;
            if announced_len(data).is_some_and(|len| len > self.limits.max_bytes) {
                return Err(BodyError::TooLarge);
            }
        }
        if self.n_bytes + data.len() > self.limits.max_bytes.saturating_add(GRPC_FRAME_HEAD) {
            return Err(BodyError::TooLarge);
        }
        if !self.limits.budget.take(data.len()) {
            return Err(BodyError::NoRoom);
        }
        self.n_bytes += data.len();
        Ok(())
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.limits.timeout;
        self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout))).as_mut().poll(cx)
    }
}

/// Largest body that is read only to be dropped.
const MAX_DISCARDED: u64 = 64 << 10;

/// How long that may take.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes before a gRPC message: a flag and its length.
const GRPC_FRAME_HEAD: usize = 5;

fn announced_len(data: &[u8]) -> Option<usize> {
    let length = data.get(1..GRPC_FRAME_HEAD)?;
    Some(u32::from_be_bytes(length.try_into().ok()?) as usize)
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.limits.budget.give_back(self.n_bytes);
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").field("n_bytes", &self.n_bytes).finish_non_exhaustive()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) => match frame.data_ref().map_or(Ok(()), |data| self.admit(data)) {
                Ok(()) => return Poll::Ready(Some(Ok(frame))),
                Err(error) => error,
            },
            Poll::Ready(Some(Err(_))) => BodyError::Broken,
            Poll::Pending => {
                ready!(self.poll_timer(cx));
                BodyError::TooSlow
            }
        };
        polled.count();
        Poll::Ready(Some(Err(polled)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A reply's body. `Held` is dropped when the last byte was handed over or the client went away.
pub(crate) struct ReplyBody<Held> {
    kind: Kind,
    held: Option<Held>,
}

enum Kind {
    Whole(Option<Bytes>),
    Pieces { pieces: VecDeque<Bytes>, flush: bool },
    Grpc(tonic::body::Body),
}

impl<Held> ReplyBody<Held> {
    pub(crate) const fn whole(bytes: Bytes) -> Self {
        Self { kind: Kind::Whole(Some(bytes)), held: None }
    }

    /// Sends each piece with a write of its own, so that a reader who decodes what arrives gets whole characters.
    pub(crate) fn pieces(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let pieces = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        Self { kind: Kind::Pieces { pieces, flush: false }, held: None }
    }

    pub(crate) const fn grpc(body: tonic::body::Body) -> Self {
        Self { kind: Kind::Grpc(body), held: None }
    }

    pub(crate) fn holding<Other>(self, held: Other) -> ReplyBody<Other> {
        ReplyBody { kind: self.kind, held: Some(held) }
    }
}

impl<Held> fmt::Debug for ReplyBody<Held> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyBody")
    }
}

impl<Held: Unpin> Body for ReplyBody<Held> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = match &mut self.kind {
            Kind::Whole(bytes) => bytes.take().filter(|bytes| !bytes.is_empty()).map(Frame::data),
            Kind::Pieces { pieces, flush } => {
                if std::mem::take(flush) {
                    // Being asked again at once makes the connection write out what it has first.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                *flush = pieces.len() > 1;
                pieces.pop_front().map(Frame::data)
            }
            // A server's body has nothing to fail by: statuses travel in trailers.
            Kind::Grpc(body) => ready!(Pin::new(body).poll_frame(cx)).and_then(Result::ok),
        };
        if frame.is_none() || self.is_end_stream() {
            self.held = None;
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Kind::Pieces { pieces, .. } => pieces.is_empty(),
            Kind::Grpc(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Kind::Pieces { .. } => SizeHint::default(),
            Kind::Grpc(body) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_refuses_what_does_not_fit_and_takes_back() {
        let budget = BodyBudget::new(10);
        assert!(budget.take(6));
        assert!(!budget.take(5));
        assert!(budget.take(4));
        budget.give_back(6);
        assert_eq!(budget.held(), 4);
    }

    #[test]
    fn the_announced_length_of_a_grpc_frame_is_read() {
        assert_eq!(announced_len(&[0, 0, 0, 1, 2, 99]), Some(258));
        assert_eq!(announced_len(&[0, 0xff, 0xff, 0xff, 0xff]), Some(u32::MAX as usize));
        assert_eq!(announced_len(&[0, 0, 0]), None);
    }

    #[test]
    fn every_piece_is_followed_by_a_pause_in_which_it_is_written_out() {
        let pieces = ["a", "", "b", "c"].map(|piece| Bytes::from_static(piece.as_bytes()));
        let mut body = ReplyBody::<()>::pieces(pieces);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let polled: Vec<_> = (0..6)
            .map(|_| match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Pending => "pause".to_owned(),
                Poll::Ready(None) => "end".to_owned(),
                Poll::Ready(Some(Ok(frame))) => String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap(),
            })
            .collect();
        assert_eq!(polled, ["a", "pause", "b", "pause", "c", "end"]);
    }

    #[test]
    fn what_a_reply_holds_is_let_go_with_its_last_byte() {
        let held = Arc::new(());
        let mut body = ReplyBody::<()>::whole(Bytes::from_static(b"x")).holding(held.clone());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert_eq!(Arc::strong_count(&held), 2);
        assert!(Pin::new(&mut body).poll_frame(&mut cx).is_ready());
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
