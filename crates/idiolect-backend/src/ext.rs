//! Conveniences on every backend.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;

use crate::{Backend, Completion, CompletionStream, Error, Event, Message, Request, collect};

/// Conveniences that every [`Backend`] has. Implementors never see them.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idiolect_backend::Error> {
/// use idiolect_backend::{BackendExt, Echo};
///
/// assert_eq!(Echo::new().ask("say it again").await?, "say it again");
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait BackendExt: Backend {
    /// Asks one question with default sampling and returns the text of the one candidate.
    async fn ask(&self, prompt: &str) -> Result<String, Error> {
        let completion = self.complete(Request::new(vec![Message::user(prompt)])).await?;
        let first = completion.candidates.into_iter().next();
        first.map(|candidate| candidate.text).ok_or_else(|| Error::Protocol {
            backend: completion.backend,
            reason: "an answer without candidates".to_owned(),
        })
    }

    /// Streams the answer and joins it, checking the order of its items.
    async fn stream_and_collect(&self, request: Request) -> Result<Completion, Error> {
        collect(self.stream(request).await?).await
    }

    /// Completes with a deadline `timeout` from now, or the request's own if that is earlier.
    async fn complete_within(&self, timeout: Duration, mut request: Request) -> Result<Completion, Error> {
        let now = tokio::time::Instant::now().into_std();
        if let Some(limit) = now.checked_add(timeout) {
            request.deadline = Some(request.deadline.map_or(limit, |own| own.min(limit)));
        }
        self.complete(request).await
    }
}

impl<B: Backend + ?Sized> BackendExt for B {}

/// Turns a whole answer into a stream of it, one piece of text for each candidate.
///
/// For backends whose engine cannot stream.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idiolect_backend::Error> {
/// use idiolect_backend::{collect, stream_of, Backend, Echo, Message, Request};
///
/// let whole = Echo::new().complete(Request::new(vec![Message::user("hello there")])).await?;
/// assert_eq!(collect(stream_of(whole.clone())).await?, whole);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn stream_of(completion: Completion) -> CompletionStream {
    let Completion { candidates, usage, model, backend } = completion;
    let mut events = Vec::with_capacity(candidates.len() * 2 + 1);
    for c in candidates {
        let logprobs = c.logprobs.unwrap_or_default();
        if !c.text.is_empty() || !logprobs.is_empty() {
            events.push(Ok(Event::Delta { candidate: c.index, text: c.text, logprobs }));
        }
        let (reason, n_tokens, mean_logprob) = (c.finish_reason, c.n_tokens, c.mean_logprob);
        events.push(Ok(Event::Finished { candidate: c.index, reason, n_tokens, mean_logprob }));
    }
    events.push(Ok(Event::Done { usage, model, backend }));
    Box::pin(stream::iter(events))
}
