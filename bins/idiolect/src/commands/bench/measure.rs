//! One run of the work: a prompt, n candidates, and when what came.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use futures_util::StreamExt as _;
use idiolect_backend::{Backend, Event, FinishReason, Message, Request, Sampling};
use serde::{Deserialize, Serialize};

use super::engine::{Decoding, Steps};

/// Common words, each a token of its own in nearly every vocabulary.
const WORDS: [&str; 24] = [
    "the", "river", "runs", "down", "to", "the", "sea", "and", "the", "people", "of", "the", "town", "go", "out", "in",
    "the", "morning", "with", "their", "old", "boats", "for", "fish",
];

/// How often the length of the prompt is corrected.
const TRIES: usize = 6;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Words of the prompt.
    pub(crate) n_words: usize,
    /// Tokens of each candidate.
    pub(crate) new_tokens: u32,
    /// Candidates.
    pub(crate) n: usize,
    /// Draw with top-p alone, which has the whole vocabulary to look at, and not after top-k.
    pub(crate) top_p_alone: bool,
}

/// What came, and when.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    /// Seconds until the first text.
    pub(crate) first_s: f64,
    /// Seconds until the end.
    pub(crate) total_s: f64,
    /// What the engine says of its steps after the first token; `None` where it is not ours.
    pub(crate) decoding: Option<Decoding>,
}

impl Run {
    /// The same run, timed by when its texts came and by nothing that only an engine of ours says: as other servers are.
    pub(crate) fn by_texts(self) -> Self {
        Self { decoding: None, ..self }
    }

    /// Seconds until the first token, and after it. The first text may come later than the first token, since a token may be
    /// part of a character only; so what the engine itself says comes first.
    fn seconds(&self) -> (f64, f64) {
        let after = self.decoding.map_or(self.total_s - self.first_s, |decoding| decoding.steps_s);
        (self.total_s - after, after)
    }

    /// Tokens of the prompt a second, up to the first token.
    pub(crate) fn prefill_tok_s(&self) -> f64 {
        rate(f64::from(self.prompt_tokens), self.seconds().0)
    }

    /// Which part of the time of steps that grow candidates it takes to draw their tokens.
    pub(crate) fn sampling_share(&self) -> Option<f64> {
        let Decoding { steps_s, draws_s } = self.decoding.filter(|decoding| decoding.steps_s > 0.0)?;
        Some(draws_s / steps_s)
    }

    /// Tokens a second, of all candidates together, after the first one of each, which the prompt's own pass gives.
    pub(crate) fn decode_tok_s(&self, n: usize) -> f64 {
        let n = f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        rate((f64::from(self.completion_tokens) - n).max(0.0), self.seconds().1)
    }

    /// Tokens a second, the prompt's time included.
    pub(crate) fn best_of_n_tok_s(&self) -> f64 {
        rate(f64::from(self.completion_tokens), self.total_s)
    }
}

fn rate(tokens: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { tokens / seconds } else { 0.0 }
}

/// Returns the middle one of some figures; 0 of none.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    f64::midpoint(values[last / 2], values[values.len() / 2])
}

/// Writes a prompt. The run's number stands first, so that no two runs share more than the template's beginning, and
/// nothing that a server remembers helps.
fn prompt(run: u32, n_words: usize) -> String {
    let mut text = format!("Report {run:06}:");
    for word in WORDS.iter().cycle().take(n_words) {
        text.push(' ');
        text.push_str(word);
    }
    text
}

fn request(run: u32, work: Work) -> Request {
    let sampling = Sampling {
        max_tokens: work.new_tokens,
        // Candidates that end early would make the work smaller.
        min_tokens: Some(work.new_tokens),
        temperature: Some(0.8),
        top_k: (!work.top_p_alone).then_some(40),
        top_p: Some(0.95),
        seed: Some(u64::from(run)),
        ..Sampling::default()
    };
    Request { n: work.n, sampling, ..Request::new(vec![Message::user(prompt(run, work.n_words))]) }
}

/// Does the work once, on an engine of ours where its steps are given.
pub(crate) async fn measure(backend: &dyn Backend, steps: Option<&Steps>, run: u32, work: Work) -> anyhow::Result<Run> {
    let before = steps.map(Steps::so_far);
    let began = Instant::now();
    let mut stream = backend.stream(request(run, work)).await?;
    let mut first: Option<Duration> = None;
    let mut n_generated = 0;
    while let Some(event) = stream.next().await {
        match event? {
            Event::Delta { text, .. } if !text.is_empty() => {
                first.get_or_insert_with(|| began.elapsed());
            }
            Event::Delta { .. } => {}
            Event::Finished { reason, n_tokens, .. } => {
                // Some servers count pieces of text instead of tokens; what came to the limit has them all.
                n_generated += if reason == FinishReason::Length { work.new_tokens } else { n_tokens };
            }
            Event::Done { usage, .. } => {
                let total = began.elapsed();
                return Ok(Run {
                    prompt_tokens: usage.prompt_tokens,
                    completion_tokens: n_generated,
                    first_s: first.unwrap_or(total).as_secs_f64(),
                    total_s: total.as_secs_f64(),
                    decoding: steps.zip(before).map(|(steps, before)| steps.so_far().since(before)),
                });
            }
        }
    }
    bail!("the stream ended without its last item")
}

/// Finds how many words make a prompt of `wanted` tokens, or as near as it gets.
pub(crate) async fn words_for(backend: &dyn Backend, wanted: usize) -> anyhow::Result<usize> {
    let mut n_words = wanted.saturating_sub(20).max(1);
    let mut best: Option<(usize, usize)> = None;
    for run in (0..TRIES).map(|i| u32::try_from(900_000 + i).unwrap_or(0)) {
        let work = Work { n_words, new_tokens: 1, n: 1, top_p_alone: false };
        let counted = measure(backend, None, run, work).await.context("the length of the prompt cannot be measured")?;
        let n_tokens = usize::try_from(counted.prompt_tokens)?;
        if n_tokens == 0 {
            bail!("the backend does not count the prompt's tokens");
        }
        let off = n_tokens.abs_diff(wanted);
        if best.is_none_or(|(best_off, _)| off < best_off) {
            best = Some((off, n_words));
        }
        if off == 0 {
            break;
        }
        let next = (n_words + wanted).saturating_sub(n_tokens).max(1);
        if next == n_words {
            break;
        }
        n_words = next;
    }
    best.map(|(_, n_words)| n_words).context("no prompt was measured")
}

#[cfg(test)]
mod tests {
    use idiolect_backend::{Echo, EchoConfig};

    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn rates() {
        let run = Run { prompt_tokens: 100, completion_tokens: 80, first_s: 0.5, total_s: 2.5, decoding: None };
        assert_eq!((run.prefill_tok_s(), run.decode_tok_s(8), run.best_of_n_tok_s()), (200.0, 36.0, 32.0));
        assert_eq!(run.sampling_share(), None);
        // The first text came late, since the first tokens were part of one character.
        let late = Run { first_s: 2.4, decoding: Some(Decoding { steps_s: 2.0, draws_s: 0.1 }), ..run };
        assert_eq!((late.prefill_tok_s(), late.decode_tok_s(8), late.best_of_n_tok_s()), (200.0, 36.0, 32.0));
        assert_eq!(late.sampling_share(), Some(0.05));
        let late = late.by_texts();
        assert_eq!((late.decode_tok_s(8).round(), late.best_of_n_tok_s()), (720.0, 32.0), "as of another server");
        let nothing = Run { prompt_tokens: 0, completion_tokens: 0, first_s: 0.0, total_s: 0.0, decoding: None };
        assert_eq!((nothing.prefill_tok_s(), nothing.decode_tok_s(8), nothing.best_of_n_tok_s()), (0.0, 0.0, 0.0));
    }

    #[test]
    fn prompts_of_two_runs_differ_at_once_and_are_of_one_length() {
        let (a, b) = (prompt(1, 50), prompt(20, 50));
        assert_eq!(a.len(), b.len());
        assert_ne!(a[..14], b[..14]);
    }

    #[test]
    fn top_p_alone_is_what_it_says() {
        let work = Work { n_words: 50, new_tokens: 8, n: 3, top_p_alone: false };
        let sampling = request(1, work).sampling;
        assert_eq!((sampling.top_k, sampling.top_p), (Some(40), Some(0.95)));
        let sampling = request(1, Work { top_p_alone: true, ..work }).sampling;
        assert_eq!((sampling.top_k, sampling.top_p), (None, Some(0.95)));
    }

    #[tokio::test]
    async fn prompts_get_the_length_that_is_wanted() {
        let echo = Echo::with_config(EchoConfig::default());
        for wanted in [16, 64, 500] {
            let n_words = words_for(&echo, wanted).await.expect("measured");
            let run = measure(&echo, None, 7, Work { n_words, new_tokens: 8, n: 3, top_p_alone: false })
                .await
                .expect("measured");
            assert_eq!((run.prompt_tokens as usize, run.completion_tokens), (wanted, 24));
            assert!(run.first_s <= run.total_s);
        }
    }
}
