//! The trait.

use std::fmt::Debug;
use std::pin::Pin;

use async_trait::async_trait;
use futures_util::Stream;

use crate::{Capabilities, Completion, Error, Event, Request, Score, ScoreRequest};

/// A streamed answer; see [`Event`] for its order.
pub type CompletionStream = Pin<Box<dyn Stream<Item = Result<Event, Error>> + Send + 'static>>;

/// Whether a backend can be asked now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Ready.
    Ready,
    /// Answers for now with [`Error::Unavailable`] or [`Error::Overloaded`]; the text says why.
    Unavailable(String),
}

/// A language model that continues chat prompts.
///
/// # Contract
/// - **Checks**: a request that fails [`Request::validate`] is refused with [`Error::InvalidRequest`] and costs nothing.
/// - **Cancellation**: dropping the future of [`complete`](Self::complete) or the stream of [`stream`](Self::stream)
///   stops the work, and the resources it held are free soon after.
/// - **Deadline**: by [`Request::deadline`] the backend stops and returns what it has, each unfinished candidate with
///   [`FinishReason::Deadline`](crate::FinishReason::Deadline). With no text at all it fails with [`Error::DeadlineExceeded`].
/// - **Ordering**: `complete` gives candidates by index; `stream` keeps the order that [`Event`] states.
/// - **Equivalence**: with the same seed, `stream` joined together equals `complete`.
/// - **Retries** are the backend's own affair; a returned error is final for this request, but
///   [`Error::is_retryable`] says whether another try may go better.
/// - **Sharing**: implementations are cheap to share behind `Arc`, and calls may run at the same time. One that blocks
///   owns a thread with a bounded queue in front; a full queue is [`Error::Overloaded`], not a longer wait.
///
/// # Make your own
/// The feature `test-utils` has a conformance suite that checks every point above.
/// ```
/// use async_trait::async_trait;
/// use idiolect_backend::*;
///
/// /// Says the same to everything.
/// #[derive(Debug)]
/// struct Parrot {
///     capabilities: Capabilities,
/// }
///
/// #[async_trait]
/// impl Backend for Parrot {
///     fn capabilities(&self) -> &Capabilities {
///         &self.capabilities
///     }
///
///     async fn complete(&self, request: Request) -> Result<Completion, Error> {
///         request.validate()?;
///         let say = |index| Candidate {
///             index,
///             text: "hello".to_owned(),
///             finish_reason: FinishReason::Stop,
///             n_tokens: 1,
///             logprobs: None,
///             mean_logprob: None,
///         };
///         let usage = Usage { prompt_tokens: 1, completion_tokens: request.n as u32, ..Usage::default() };
///         let model = self.capabilities.model.clone();
///         Ok(Completion { candidates: (0..request.n).map(say).collect(), usage, model, backend: "parrot".to_owned() })
///     }
///
///     async fn stream(&self, request: Request) -> Result<CompletionStream, Error> {
///         Ok(stream_of(self.complete(request).await?))
///     }
///
///     async fn score(&self, _: ScoreRequest) -> Result<Score, Error> {
///         Err(Error::Unsupported { backend: "parrot".to_owned(), what: "scoring".to_owned() })
///     }
///
///     async fn health(&self) -> Health {
///         Health::Ready
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let parrot = Parrot { capabilities: Capabilities::new("parrot-1") };
/// assert_eq!(parrot.ask("who is there?").await?, "hello");
/// # Ok(())
/// # }
/// ```
#[async_trait]
pub trait Backend: Debug + Send + Sync + 'static {
    /// Returns the facts about this backend.
    fn capabilities(&self) -> &Capabilities;

    /// Draws the candidates and returns them whole.
    async fn complete(&self, request: Request) -> Result<Completion, Error>;

    /// Draws the candidates and returns them as they grow.
    ///
    /// # Errors
    /// What is known before the first token is an error here; what happens later ends the stream.
    async fn stream(&self, request: Request) -> Result<CompletionStream, Error>;

    /// Returns the log-probability of a given reply, and the rows of logits behind it only where they are asked for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where [`Capabilities::score`] falls short of what is asked
    /// ([`ScoreRequest::check_support`]).
    async fn score(&self, request: ScoreRequest) -> Result<Score, Error>;

    /// Says whether the backend can be asked now. Cheap: no generation.
    async fn health(&self) -> Health;
}
