//! Joining a streamed answer.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use tokio::time::Instant;

use crate::{Candidate, Completion, CompletionStream, Error, Event, FinishReason, TokenLogprob, Usage};

/// Joins a stream into a whole answer, and checks on the way that its items come in the order that [`Event`] states.
///
/// # Errors
/// The stream's own error, or [`Error::Protocol`] where it breaks that order or ends early.
///
/// # Cancellation
/// Dropping the future drops the stream, which stops the work.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idiolect_backend::Error> {
/// use idiolect_backend::{collect, Backend, Echo, Message, Request};
///
/// let stream = Echo::new().stream(Request::new(vec![Message::user("hello there")])).await?;
/// assert_eq!(collect(stream).await?.candidates[0].text, "hello there");
/// # Ok(())
/// # }
/// ```
pub async fn collect(mut stream: CompletionStream) -> Result<Completion, Error> {
    let mut collector = Collector::new();
    while let Some(event) = stream.next().await {
        collector.push(event?)?;
    }
    collector.finish()
}

/// Like [`collect`], but at `deadline` stops and returns what is there, unfinished candidates with
/// [`FinishReason::Deadline`]. Candidates without any text by then are left out.
///
/// # Errors
/// As [`collect`]; [`Error::DeadlineExceeded`] when no text came in time.
pub async fn collect_until(mut stream: CompletionStream, deadline: Instant) -> Result<Completion, Error> {
    let mut collector = Collector::new();
    loop {
        match tokio::time::timeout_at(deadline, stream.next()).await {
            Ok(Some(event)) => collector.push(event?)?,
            Ok(None) => return collector.finish(),
            Err(_) => return collector.cut().ok_or(Error::DeadlineExceeded),
        }
    }
}

/// Joins events one at a time; [`collect`] does it for a whole stream.
#[derive(Debug, Default)]
pub struct Collector {
    n: Option<usize>,
    parts: BTreeMap<usize, Part>,
    done: Option<(Usage, String, String)>,
}

#[derive(Debug, Default)]
struct Part {
    text: String,
    logprobs: Vec<TokenLogprob>,
    n_deltas: u32,
    finished: Option<(FinishReason, u32, Option<f32>)>,
}

impl Part {
    /// Tokens so far: exact with log-probabilities, else as many as pieces of text came.
    fn n_tokens(&self) -> u32 {
        let known = u32::try_from(self.logprobs.len()).unwrap_or(u32::MAX);
        if known > 0 { known } else { self.n_deltas }
    }

    /// The end of a candidate that was cut off.
    fn cut(&self) -> Finish {
        let n = self.logprobs.len();
        let mean = self.logprobs.iter().map(|t| f64::from(t.logprob)).sum::<f64>() / n as f64;
        (FinishReason::Deadline, self.n_tokens(), (n > 0).then_some(mean as f32))
    }

    fn into_candidate(self, index: usize, (finish_reason, n_tokens, mean_logprob): Finish) -> Candidate {
        let logprobs = (!self.logprobs.is_empty()).then_some(self.logprobs);
        Candidate { index, text: self.text, finish_reason, n_tokens, logprobs, mean_logprob }
    }
}

type Finish = (FinishReason, u32, Option<f32>);

impl Collector {
    /// Makes an empty collector.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses candidates whose index is `n` or more.
    #[must_use]
    pub const fn expecting(mut self, n: usize) -> Self {
        self.n = Some(n);
        self
    }

    /// Says whether the last item came.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.done.is_some()
    }

    /// Says whether any candidate has text.
    #[must_use]
    pub fn has_text(&self) -> bool {
        self.parts.values().any(|part| !part.text.is_empty())
    }

    /// Adds one item.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the item may not come here.
    pub fn push(&mut self, event: Event) -> Result<(), Error> {
        if self.done.is_some() {
            return Err(out_of_order("an item after the last one".to_owned()));
        }
        match event {
            Event::Delta { candidate, text, logprobs } => {
                let part = self.open(candidate)?;
                part.n_deltas = part.n_deltas.saturating_add(u32::from(!text.is_empty()));
                part.text.push_str(&text);
                part.logprobs.extend(logprobs);
            }
            Event::Finished { candidate, reason, n_tokens, mean_logprob } => {
                self.open(candidate)?.finished = Some((reason, n_tokens, mean_logprob));
            }
            Event::Done { usage, model, backend } => {
                if let Some(index) = self.parts.iter().find(|(_, part)| part.finished.is_none()).map(|(i, _)| i) {
                    return Err(out_of_order(format!("the end while candidate {index} is unfinished")));
                }
                self.done = Some((usage, model, backend));
            }
        }
        Ok(())
    }

    fn open(&mut self, candidate: usize) -> Result<&mut Part, Error> {
        if let Some(n) = self.n.filter(|n| candidate >= *n) {
            return Err(out_of_order(format!("candidate {candidate} where {n} were asked for")));
        }
        let part = self.parts.entry(candidate).or_default();
        if part.finished.is_some() {
            return Err(out_of_order(format!("more of candidate {candidate} after its end")));
        }
        Ok(part)
    }

    /// Forgets one candidate, as if it had never been begun.
    pub fn discard(&mut self, candidate: usize) {
        self.parts.remove(&candidate);
    }

    /// Returns the whole answer.
    ///
    /// # Errors
    /// [`Error::Protocol`] when the last item is missing or there is no candidate.
    pub fn finish(self) -> Result<Completion, Error> {
        let Some((usage, model, backend)) = self.done else {
            return Err(out_of_order("no last item".to_owned()));
        };
        let candidates: Vec<_> = (self.parts.into_iter())
            .filter_map(|(index, mut part)| part.finished.take().map(|finish| part.into_candidate(index, finish)))
            .collect();
        if candidates.is_empty() {
            return Err(Error::Protocol { backend, reason: "an answer without candidates".to_owned() });
        }
        Ok(Completion { candidates, usage, model, backend })
    }

    /// Returns what is there, unfinished candidates marked as cut by the deadline; `None` without any text.
    ///
    /// What only the last item tells is left empty: names, and the tokens of the prompt.
    #[must_use]
    pub fn cut(self) -> Option<Completion> {
        let candidates: Vec<_> = (self.parts.into_iter())
            .filter(|(_, part)| part.finished.is_some() || !part.text.is_empty())
            .map(|(index, mut part)| {
                let finish = part.finished.take().unwrap_or_else(|| part.cut());
                part.into_candidate(index, finish)
            })
            .collect();
        if candidates.iter().all(|candidate| candidate.text.is_empty()) {
            return None;
        }
        let completion_tokens = candidates.iter().fold(0_u32, |sum, c| sum.saturating_add(c.n_tokens));
        let (usage, model, backend) = self
            .done
            .unwrap_or_else(|| (Usage { completion_tokens, ..Usage::default() }, String::new(), String::new()));
        Some(Completion { candidates, usage, model, backend })
    }

    /// Returns the items that end a cut stream properly: one [`Event::Finished`] for each candidate that has text and
    /// no end. `None` when there is no text at all.
    pub(crate) fn closing(&self) -> Option<Vec<Event>> {
        self.has_text().then(|| {
            (self.parts.iter())
                .filter(|(_, part)| part.finished.is_none())
                .map(|(&candidate, part)| {
                    let (reason, n_tokens, mean_logprob) = part.cut();
                    Event::Finished { candidate, reason, n_tokens, mean_logprob }
                })
                .collect()
        })
    }

    /// Returns the tokens generated so far, over all candidates.
    pub(crate) fn n_tokens(&self) -> u32 {
        (self.parts.values())
            .fold(0, |sum: u32, part| sum.saturating_add(part.finished.map_or_else(|| part.n_tokens(), |f| f.1)))
    }
}

fn out_of_order(what: String) -> Error {
    Error::Protocol { backend: "stream".to_owned(), reason: what }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn delta(candidate: usize, text: &str) -> Event {
        Event::Delta { candidate, text: text.to_owned(), logprobs: Vec::new() }
    }

    fn finished(candidate: usize) -> Event {
        Event::Finished { candidate, reason: FinishReason::Stop, n_tokens: 1, mean_logprob: None }
    }

    fn done() -> Event {
        Event::Done { usage: Usage::default(), model: "m".to_owned(), backend: "b".to_owned() }
    }

    async fn check(events: Vec<Event>, expected: Result<&str, &str>) {
        let result = collect(Box::pin(stream::iter(events.into_iter().map(Ok)))).await;
        match (result, expected) {
            (Ok(c), Ok(texts)) => {
                let got: Vec<_> = c.candidates.iter().map(|c| format!("{}={}", c.index, c.text)).collect();
                assert_eq!(got.join(" "), texts);
            }
            (Err(e), Err(part)) => assert!(e.to_string().contains(part), "{e}"),
            (got, _) => panic!("{got:?}, expected {expected:?}"),
        }
    }

    #[tokio::test]
    async fn joins_in_order_and_refuses_disorder() {
        check(vec![delta(1, "x"), delta(0, "a"), delta(1, "y"), finished(1), finished(0), done()], Ok("0=a 1=xy"))
            .await;
        check(vec![finished(0), done()], Ok("0=")).await;
        check(vec![delta(0, "a"), finished(0)], Err("no last item")).await;
        check(vec![delta(0, "a"), done()], Err("candidate 0 is unfinished")).await;
        check(vec![delta(0, "a"), finished(0), delta(0, "b"), done()], Err("after its end")).await;
        check(vec![finished(0), finished(0), done()], Err("after its end")).await;
        check(vec![finished(0), done(), done()], Err("after the last one")).await;
        check(vec![done()], Err("without candidates")).await;
        check(vec![], Err("no last item")).await;
    }

    #[test]
    fn refuses_more_candidates_than_asked() {
        let mut collector = Collector::new().expecting(2);
        collector.push(delta(1, "a")).unwrap();
        assert!(collector.push(delta(2, "a")).unwrap_err().to_string().contains("2 were asked for"));
    }

    #[tokio::test(start_paused = true)]
    async fn cuts_at_the_deadline() {
        let soon = Instant::now() + std::time::Duration::from_secs(1);
        let events = stream::iter(vec![Ok(delta(0, "a")), Ok(finished(0)), Ok(delta(1, "b"))]);
        let stalled: CompletionStream = Box::pin(events.chain(stream::pending()));
        let cut = collect_until(stalled, soon).await.unwrap();
        assert_eq!(cut.candidates[0].finish_reason, FinishReason::Stop);
        assert_eq!(cut.candidates[1].finish_reason, FinishReason::Deadline);
        assert_eq!((cut.candidates[1].text.as_str(), cut.usage.completion_tokens), ("b", 2));

        let nothing: CompletionStream = Box::pin(stream::pending());
        let error = collect_until(nothing, soon).await.unwrap_err();
        assert!(matches!(error, Error::DeadlineExceeded), "{error:?}");
    }
}
