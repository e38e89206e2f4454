//! Drawing tokens: what a request's sampling means for a model.

use std::sync::{Arc, OnceLock};

use idiolect_backend::{Error, Sampling};
pub(crate) use idiolect_sampling::DrawError;
use idiolect_sampling::{Chain, Preset, Stage, Stream, Temperature, TopP, Vocabulary};

use crate::prompt::count;
use crate::tokenizer::Tokenizer;

/// Temperature where a request leaves the choice to us.
const TEMPERATURE: f32 = 0.7;
/// Top-p where a request leaves the choice to us.
const TOP_P: f32 = 0.95;

/// The most tokens that a sampler makes room for before they are drawn.
const MOST_ROOM: u32 = 1024;

/// What stages know of a model: made when the first one asks.
#[derive(Debug, Default)]
pub(crate) struct Texts {
    vocabulary: OnceLock<Arc<Vocabulary>>,
}

impl Texts {
    fn vocabulary(&self, tokenizer: &Tokenizer) -> &Arc<Vocabulary> {
        self.vocabulary.get_or_init(|| {
            let tokens = (0..count(tokenizer.len())).map(|id| tokenizer.bytes(id));
            Arc::new(Vocabulary::new(tokens, &ends(tokenizer)))
        })
    }
}

fn ends(tokenizer: &Tokenizer) -> Vec<u32> {
    (0..count(tokenizer.len())).filter(|id| tokenizer.is_end(*id)).collect()
}

/// How the candidates of one request are drawn.
#[derive(Debug)]
pub(crate) struct Plan {
    chain: Arc<Chain>,
    min_tokens: u32,
    ends: Vec<u32>,
    top_logprobs: Option<u8>,
    /// Tokens that samplers make room for at once.
    room: usize,
}

impl Plan {
    /// Makes a request's sampling ready for a model. `preset` orders the stages of a request that names no chain.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] when a stage cannot be had of this model, or a constraint cannot be read.
    pub(crate) fn new(
        sampling: &Sampling,
        preset: Preset,
        texts: &Texts,
        tokenizer: &Tokenizer,
    ) -> Result<Self, Error> {
        let defaults = [
            Stage::Temperature(Temperature { temperature: TEMPERATURE, ..Temperature::default() }),
            Stage::TopP(TopP { p: TOP_P }),
        ];
        let stages = sampling.stages(preset, &defaults);
        let vocabulary = Chain::needs_vocabulary(&stages).then(|| texts.vocabulary(tokenizer));
        let chain = Chain::new(&stages, vocabulary).map_err(|error| Error::InvalidRequest(error.to_string()))?;
        let min_tokens = sampling.min_tokens.unwrap_or(0);
        Ok(Self {
            chain: Arc::new(chain),
            min_tokens,
            ends: if min_tokens > 0 { ends(tokenizer) } else { Vec::new() },
            top_logprobs: sampling.logprobs,
            room: sampling.max_tokens.min(MOST_ROOM) as usize,
        })
    }

    /// Says whether the request asked for log-probabilities.
    pub(crate) const fn wants_logprobs(&self) -> bool {
        self.top_logprobs.is_some()
    }

    /// Makes the sampler of candidate `index`. `seed` is the request's, or a fresh one.
    pub(crate) fn sampler(&self, seed: u64, index: usize, prompt: &[u32]) -> Sampler {
        let stream = Stream::of_prompt(seed, prompt, index as u64);
        let sampler = idiolect_sampling::Sampler::new(&self.chain, stream, prompt)
            .with_min_tokens(self.min_tokens, &self.ends)
            .with_top_logprobs(usize::from(self.top_logprobs.unwrap_or(0)))
            .with_room(self.room);
        Sampler(sampler)
    }
}

/// A token that was drawn.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: u32,
    /// Log-probability under the model, before every stage.
    pub(crate) logprob: f32,
    /// The likeliest tokens under the model, best first, when asked for.
    pub(crate) top: Vec<(u32, f32)>,
}

/// Draws the tokens of one candidate.
#[derive(Clone, Debug)]
pub(crate) struct Sampler(idiolect_sampling::Sampler);

impl Sampler {
    /// Draws the next token. `banned` tokens are never drawn.
    pub(crate) fn draw(&mut self, logits: &[f32], banned: &[u32]) -> Result<Drawn, DrawError> {
        let drawn = self.0.draw(logits, banned)?;
        Ok(Drawn { token: drawn.token, logprob: drawn.logprob, top: self.0.top().to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use idiolect_sampling::{Ban, ChainSpec, ConstraintSpec, StageKind};

    use super::*;
    use crate::testing::TinyGguf;

    fn tokenizer() -> Tokenizer {
        let (_dir, gguf) = TinyGguf::model("llama").open();
        Tokenizer::read(&gguf).unwrap()
    }

    fn plan(sampling: &Sampling) -> Plan {
        Plan::new(sampling, Preset::LlamaCpp, &Texts::default(), &tokenizer()).unwrap()
    }

    #[test]
    fn log_probabilities_and_alternatives_come_when_asked_for() {
        let logits = [1.0f32, 2.0, 3.0, 0.0];
        let sum: f32 = logits.iter().map(|l| l.exp()).sum();
        let sampling = Sampling { logprobs: Some(2), top_k: Some(1), temperature: Some(3.0), ..Sampling::default() };
        let plan = plan(&sampling);
        assert!(plan.wants_logprobs());
        let drawn = plan.sampler(1, 0, &[]).draw(&logits, &[]).unwrap();
        assert_eq!(drawn.token, 2);
        assert!((drawn.logprob - (3f32.exp() / sum).ln()).abs() < 1e-5);
        assert_eq!(drawn.top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 1]);
        assert!((drawn.top[1].1 - (2f32.exp() / sum).ln()).abs() < 1e-5);
    }

    #[test]
    fn what_is_left_open_is_filled_in() {
        // At temperature 0.7 the second token has e^(-3 / 0.7), beyond the likeliest 95 %.
        let logits = [3.0f32, 0.0];
        let draws = |sampling: Sampling| {
            let plan = plan(&sampling);
            (0..400).filter(|i| plan.sampler(1, *i, &[]).draw(&logits, &[]).unwrap().token == 1).count()
        };
        assert_eq!(draws(Sampling::default()), 0);
        assert!(draws(Sampling { top_p: Some(1.0), temperature: Some(2.0), ..Sampling::default() }) > 20);
        assert!(draws(Sampling { top_p: Some(1.0), ..Sampling::default() }) < 20);
    }

    #[test]
    fn ends_wait_for_min_tokens() {
        let tokenizer = tokenizer();
        let end = ends(&tokenizer)[0];
        let mut logits = vec![0.0; tokenizer.len()];
        logits[end as usize] = 30.0;
        let plan = plan(&Sampling { min_tokens: Some(3), temperature: Some(0.0), ..Sampling::default() });
        let mut sampler = plan.sampler(0, 0, &[]);
        let drawn: Vec<bool> = (0..4).map(|_| sampler.draw(&logits, &[]).unwrap().token == end).collect();
        assert_eq!(drawn, [false, false, false, true]);
    }

    #[test]
    fn phrases_are_kept_out() {
        let tokenizer = tokenizer();
        let ban = Stage::Ban(Ban { phrases: vec!["he".to_owned()], ..Ban::default() });
        let sampling = Sampling { chain: Some(ChainSpec::from(vec![ban, Stage::Greedy {}])), ..Sampling::default() };
        let plan = plan(&sampling);
        let mut sampler = plan.sampler(0, 0, &[]);
        let [h, e, he] = ["h", "e", "he"]
            .map(|text| (0..count(tokenizer.len())).find(|id| *tokenizer.bytes(*id) == *text.as_bytes()).unwrap());
        let mut logits = vec![0.0; tokenizer.len()];
        (logits[he as usize], logits[h as usize], logits[e as usize]) = (3.0, 2.0, 1.0);
        assert_eq!(sampler.draw(&logits, &[]).unwrap().token, h, "the word itself is banned");
        logits[h as usize] = 0.0;
        assert_ne!(sampler.draw(&logits, &[]).unwrap().token, e, "and so is its end");
        assert_eq!(sampler.draw(&logits, &[]).unwrap().token, e);
    }

    #[test]
    fn constraints_are_followed_where_they_are_built_in() {
        let sampling = Sampling {
            constraint: Some(ConstraintSpec::Choice(vec!["he".into()])),
            temperature: Some(0.0),
            ..Sampling::default()
        };
        let tokenizer = tokenizer();
        let plan = Plan::new(&sampling, Preset::LlamaCpp, &Texts::default(), &tokenizer);
        assert_eq!(Chain::available().contains(&StageKind::Constraint), plan.is_ok());
        let Ok(plan) = plan else { return };
        let mut sampler = plan.sampler(0, 0, &[]);
        let mut text = Vec::new();
        loop {
            let token = sampler.draw(&vec![0.0; tokenizer.len()], &[]).unwrap().token;
            if tokenizer.is_end(token) {
                break;
            }
            text.extend_from_slice(&tokenizer.bytes(token));
        }
        assert_eq!(text, b"he");
    }
}
