//! One candidate that grows.

use std::collections::HashSet;

use idiolect_backend::{FinishReason, TokenLogprob, TopLogprob};

use crate::assembly::Assembly;
use crate::engine::Seq;
use crate::sampling::{DrawError, Drawn, Sampler};
use crate::tokenizer::Tokenizer;

/// Tokens of a run that counts as said before when it comes again.
const RUN: usize = 4;

/// What a candidate all of whose runs were said before loses in the comparison with others, as a log-probability.
const REPETITION: f64 = 4.0;

/// A candidate, from its first draw on.
pub(crate) struct Candidate {
    pub(crate) index: usize,
    /// Its sequence; with the first draw it is all candidates' own.
    pub(crate) seq: Seq,
    pub(crate) assembly: Assembly,
    sampler: Sampler,
    tokens: Vec<u32>,
    sum: f64,
    /// The row of logits that the next token is drawn from.
    pub(crate) row: usize,
    drawn: Result<Drawn, DrawError>,
}

impl Candidate {
    pub(crate) fn new(index: usize, seq: Seq, sampler: Sampler, assembly: Assembly) -> Self {
        Self { index, seq, assembly, sampler, tokens: Vec::new(), sum: 0.0, row: 0, drawn: Err(DrawError::NotFinite) }
    }

    /// Draws the next token from all rows of logits.
    pub(crate) fn draw(&mut self, logits: &[f32], vocabulary: usize, banned: &[u32]) {
        self.drawn = match logits.get(self.row * vocabulary..(self.row + 1) * vocabulary) {
            Some(row) => self.sampler.draw(row, banned),
            None => Err(DrawError::NotFinite),
        };
    }

    /// Takes note of the token that was drawn. Returns why the candidate ends, if it does.
    pub(crate) fn settle(
        &mut self,
        tokenizer: &Tokenizer,
        room: usize,
        with_logprobs: bool,
    ) -> Result<Option<FinishReason>, DrawError> {
        let drawn = match std::mem::replace(&mut self.drawn, Err(DrawError::NotFinite)) {
            Ok(drawn) => drawn,
            // Bans or a constraint leave nothing that could follow what is there, which need not be whole.
            Err(error) if error != DrawError::NotFinite && !self.tokens.is_empty() => {
                return Ok(Some(FinishReason::ContentFilter));
            }
            Err(error) => return Err(error),
        };
        self.tokens.push(drawn.token);
        self.sum += f64::from(drawn.logprob);
        if tokenizer.is_end(drawn.token) {
            return Ok(Some(FinishReason::Stop));
        }
        let detail = with_logprobs.then(|| detail(tokenizer, &drawn));
        if self.assembly.push(&tokenizer.bytes(drawn.token), drawn.logprob, detail) {
            return Ok(Some(FinishReason::Stop));
        }
        Ok((self.tokens.len() >= room).then_some(FinishReason::Length))
    }

    /// Returns the tokens drawn so far.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How good it is so far, to compare with others of the same request: its mean log-probability, less what it said
    /// before.
    pub(crate) fn worth(&self) -> f64 {
        let n = self.tokens.len().max(1);
        let runs = self.tokens.len().saturating_sub(RUN - 1);
        let distinct = self.tokens.windows(RUN).collect::<HashSet<_>>().len();
        #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
        let (mean, repeated) = (self.sum / n as f64, (runs - distinct) as f64 / runs.max(1) as f64);
        mean - REPETITION * repeated
    }
}

fn detail(tokenizer: &Tokenizer, drawn: &Drawn) -> TokenLogprob {
    let top = drawn.top.iter();
    TokenLogprob {
        token: tokenizer.show(drawn.token),
        logprob: drawn.logprob,
        top: top.map(|(token, logprob)| TopLogprob { token: tokenizer.show(*token), logprob: *logprob }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use idiolect_backend::{Preset, Sampling};

    use super::*;
    use crate::sampling::{Plan, Texts};
    use crate::testing::TinyGguf;

    fn candidate(tokens: &[u32], mean: f64) -> Candidate {
        let (_dir, gguf) = TinyGguf::model("llama").open();
        let tokenizer = Tokenizer::read(&gguf).unwrap();
        let plan = Plan::new(&Sampling::default(), Preset::LlamaCpp, &Texts::default(), &tokenizer).unwrap();
        let mut candidate = Candidate::new(0, Seq(0), plan.sampler(1, 0, &[]), Assembly::new(&[], false));
        candidate.tokens = tokens.to_vec();
        candidate.sum = mean * tokens.len() as f64;
        candidate
    }

    #[test]
    fn likelier_is_worth_more_and_saying_it_again_is_worth_less() {
        let fresh: Vec<u32> = (0..40).collect();
        let again: Vec<u32> = (0..40).map(|i| i % 5).collect();
        assert!(candidate(&fresh, -1.0).worth() > candidate(&fresh, -1.5).worth());
        assert!(candidate(&fresh, -1.5).worth() > candidate(&again, -0.2).worth());
        assert_eq!(candidate(&fresh, -1.0).worth(), -1.0);
        assert!(candidate(&[], 0.0).worth().abs() < 1e-9);
    }
}
