//! A stream that holds on to something until its last item.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;

use crate::{CompletionStream, Error, Event};

/// Watches the items of a stream go by, and is dropped right after the last one or with the stream.
pub(crate) trait Watch: Send + Unpin + 'static {
    /// Sees each item before it is passed on, and may change it.
    fn item(&mut self, item: &mut Result<Event, Error>);
}

/// Passes a stream on and keeps `watch` alive until its last item passed.
pub(crate) fn hold<W: Watch>(stream: CompletionStream, watch: W) -> CompletionStream {
    Box::pin(Held { stream, watch: Some(watch) })
}

struct Held<W> {
    stream: CompletionStream,
    watch: Option<W>,
}

impl<W: Watch> Stream for Held<W> {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.watch.is_none() {
            // The last item has passed; a stream that says more than that breaks the contract.
            return Poll::Ready(None);
        }
        let mut polled = self.stream.as_mut().poll_next(cx);
        match &mut polled {
            Poll::Pending => {}
            Poll::Ready(None) => self.watch = None,
            Poll::Ready(Some(item)) => {
                if let Some(watch) = &mut self.watch {
                    watch.item(item);
                }
                if matches!(item, Err(_) | Ok(Event::Done { .. })) {
                    self.watch = None;
                }
            }
        }
        polled
    }
}
