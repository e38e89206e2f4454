//! Drawing the tokens of one candidate.

use std::sync::Arc;

use idiolect_kernels::scan;

use crate::MirostatVersion;
use crate::candidates::{Candidates, Choice};
use crate::chain::{Chain, Step};
use crate::cut::{Cutter, Goal};
use crate::dry::DryScratch;
use crate::history::History;
use crate::random::{Random, Stream, Use};

/// Why no token was drawn.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DrawError {
    /// Some logit is NaN or positive infinity, or none is finite.
    #[error("the model computed logits that are no numbers")]
    NotFinite,
    /// Every token that the model allows is banned.
    #[error("no token is left to draw: all are banned")]
    NothingLeft,
    /// The constraint's parser gave up.
    #[error("the constraint cannot be followed any further: {0}")]
    Constraint(String),
}

/// A token that was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// The token.
    pub token: u32,
    /// Its log-probability under the model, before every stage.
    pub logprob: f32,
}

/// Draws the tokens of one candidate, one after the other.
///
/// What is drawn depends on the chain, the [`Stream`], the prompt, the logits and the tokens drawn before; on nothing that
/// happens beside. Nothing is allocated from token to token once the buffers have their size, which
/// [`with_room`](Self::with_room) gives to those that grow with the text (but by a constraint's parser), and the vocabulary is never sorted.
#[derive(Clone, Debug)]
pub struct Sampler {
    chain: Arc<Chain>,
    random: Random,
    n_drawn: u64,
    history: History,
    /// How many bytes of each phrase are matched.
    matched: Vec<u16>,
    /// What mirostat takes for the greatest surprise.
    mu: f32,
    min_tokens: u64,
    ends: Vec<u32>,
    n_top: usize,
    top: Vec<(u32, f32)>,
    top_ids: Vec<u32>,
    top_logits: Vec<f32>,
    top_maxima: Vec<f32>,
    cutter: Cutter,
    candidates: Candidates,
    dry: DryScratch,
    #[cfg(feature = "constrained")]
    matcher: Option<crate::constrained::Matching>,
}

impl Sampler {
    /// Makes the sampler of one candidate that continues `prompt`.
    #[must_use]
    pub fn new(chain: &Arc<Chain>, stream: Stream, prompt: &[u32]) -> Self {
        let mu = chain.steps.iter().find_map(|step| match step {
            Step::Mirostat { tau, .. } => Some(2.0 * tau),
            _ => None,
        });
        Self {
            chain: Arc::clone(chain),
            random: Random::new(stream),
            n_drawn: 0,
            history: History::new(&chain.reaches, prompt),
            matched: vec![0; chain.phrases.len()],
            mu: mu.unwrap_or_default(),
            min_tokens: 0,
            ends: Vec::new(),
            n_top: 0,
            top: Vec::new(),
            top_ids: Vec::new(),
            top_logits: Vec::new(),
            top_maxima: Vec::new(),
            cutter: Cutter::default(),
            candidates: Candidates::default(),
            dry: DryScratch::default(),
            #[cfg(feature = "constrained")]
            matcher: chain.grammar.as_ref().map(crate::constrained::Grammar::start),
        }
    }

    /// Draws none of the tokens `ends` before `n` others, unless nothing else is left.
    #[must_use]
    pub fn with_min_tokens(mut self, n: u32, ends: &[u32]) -> Self {
        self.min_tokens = u64::from(n);
        self.ends = ends.to_vec();
        self
    }

    /// Makes room for `n` tokens at once, so that no draw of so many has to when stages look back on them.
    #[must_use]
    pub fn with_room(mut self, n: usize) -> Self {
        let most = self.history.reserve(n);
        if self.chain.steps.iter().any(|step| matches!(step, Step::Dry { .. })) {
            self.dry.reserve(most);
        }
        self.candidates.reserve_changes(most * self.chain.reaches.len());
        self
    }

    /// Also finds the `n` likeliest tokens under the model at each draw: see [`top`](Self::top).
    #[must_use]
    pub const fn with_top_logprobs(mut self, n: usize) -> Self {
        self.n_top = n;
        self
    }

    /// Returns the likeliest tokens of the last draw with their log-probabilities under the model, best first.
    #[must_use]
    pub fn top(&self) -> &[(u32, f32)] {
        &self.top
    }

    /// Returns how many tokens were drawn.
    #[must_use]
    pub const fn n_drawn(&self) -> u64 {
        self.n_drawn
    }

    /// Draws the next token. The tokens in `banned` are never drawn.
    ///
    /// # Errors
    /// [`DrawError`]: then the candidate has come to its end.
    pub fn draw(&mut self, logits: &[f32], banned: &[u32]) -> Result<Drawn, DrawError> {
        let (greatest, sum) = self.candidates.begin(logits);
        if !greatest.is_finite() {
            return Err(DrawError::NotFinite);
        }
        #[expect(clippy::cast_possible_truncation, reason = "the logarithm of a sum over a vocabulary")]
        let log_sum = greatest + sum.ln() as f32;
        if !log_sum.is_finite() {
            return Err(DrawError::NotFinite);
        }

        let chain = Arc::clone(&self.chain);
        let holds_back = self.n_drawn < self.min_tokens && !self.ends.is_empty();
        let mut choice = self.run(&chain, logits, banned, holds_back);
        if holds_back && choice == Err(DrawError::NothingLeft) {
            choice = self.run(&chain, logits, banned, false);
        }
        let token = choice?;

        let logprob = |logit: f32| (logit - log_sum).min(0.0);
        self.find_top(logits, logprob);
        self.accept(&chain, token)?;
        Ok(Drawn { token, logprob: logits.get(token as usize).map_or(f32::NEG_INFINITY, |logit| logprob(*logit)) })
    }

    /// Runs the chain and returns the token. Changes nothing that later draws depend on but mirostat's state.
    fn run(&mut self, chain: &Chain, logits: &[f32], banned: &[u32], holds_back: bool) -> Result<u32, DrawError> {
        self.candidates.begin_again();
        self.candidates.ban(logits, banned);
        if holds_back {
            self.candidates.ban(logits, &self.ends);
        }
        let mut mirostat = None;
        let mut chosen = None;
        for step in &chain.steps {
            match step {
                Step::Greedy => chosen = Some(self.candidates.likeliest(logits).ok_or(DrawError::NothingLeft)?),
                Step::Mirostat { version, tau, eta } => {
                    match version {
                        MirostatVersion::V1 => self.candidates.keep_by_slope(logits, self.mu),
                        MirostatVersion::V2 => self.candidates.keep_unsurprising(logits, self.mu),
                    }
                    mirostat = Some((*tau, *eta));
                }
                other => self.step(other, chain, logits)?,
            }
        }
        let choice = match chosen {
            Some(choice) => choice,
            None => {
                let fraction = self.random.fraction(self.n_drawn, Use::Token);
                self.candidates.choose(logits, fraction).ok_or(DrawError::NothingLeft)?
            }
        };
        if let Some((tau, eta)) = mirostat {
            self.mu -= eta * (surprise(choice) - tau);
        }
        Ok(choice.token)
    }

    fn step(&mut self, step: &Step, chain: &Chain, logits: &[f32]) -> Result<(), DrawError> {
        let candidates = &mut self.candidates;
        match step {
            Step::Bias(biases) => {
                let mut edit = candidates.edit(logits);
                for (token, bias) in biases {
                    if *bias <= NEVER {
                        edit.ban(*token);
                    } else {
                        edit.change(*token, |logit| logit + bias);
                    }
                }
            }
            Step::Ban(tokens) => candidates.ban(logits, tokens),
            Step::BanPhrases(range) => {
                if let Some(vocabulary) = &chain.vocabulary {
                    let mut edit = candidates.edit(logits);
                    for (phrase, matched) in chain.phrases[range.clone()].iter().zip(&self.matched[range.clone()]) {
                        phrase.each_completing(*matched, vocabulary, |token| edit.ban(token));
                    }
                }
            }
            Step::Repetition { penalty, window } => {
                let mut edit = candidates.edit(logits);
                for (token, _) in self.history.counts(*window) {
                    edit.change(*token, |logit| if logit > 0.0 { logit / penalty } else { logit * penalty });
                }
            }
            Step::FrequencyPresence { frequency, presence, window } => {
                let mut edit = candidates.edit(logits);
                for (token, n) in self.history.counts(*window) {
                    #[expect(clippy::cast_precision_loss, reason = "counts are at most the context's length")]
                    let by = *n as f32 * frequency + presence;
                    edit.change(*token, |logit| logit - by);
                }
            }
            Step::Dry { rule, window } => {
                let said = self.history.tokens(*window);
                let mut edit = candidates.edit(logits);
                rule.each(said, &mut self.dry, |token, by| edit.change(token, |logit| logit - by));
            }
            #[cfg(feature = "constrained")]
            Step::Constraint => {
                if let Some(matcher) = &mut self.matcher {
                    let allowed = matcher.allowed().map_err(DrawError::Constraint)?;
                    candidates.edit(logits).ban_all_but(allowed.as_slice());
                }
            }
            Step::TopNSigma(n) => candidates.keep_sigmas(logits, *n),
            Step::TopK(k) => candidates.keep_best(logits, *k),
            Step::Typical(p) => candidates.keep_typical(logits, *p),
            Step::TopP(p) => candidates.keep_mass(logits, *p),
            Step::MinP { p, exclusive } => candidates.keep_fraction(logits, *p, *exclusive),
            Step::Xtc { probability, threshold } => {
                if self.random.fraction(self.n_drawn, Use::Xtc) < *probability {
                    candidates.drop_top_choices(logits, *threshold);
                }
            }
            Step::Temperature(temperature) => candidates.cool(logits, *temperature),
            Step::DynamicTemperature { coldest, hottest, exponent } => {
                candidates.cool_by_entropy(logits, *coldest, *hottest, *exponent);
            }
            Step::Mirostat { .. } | Step::Greedy => {}
        }
        Ok(())
    }

    /// Remembers a token.
    fn accept(&mut self, chain: &Chain, token: u32) -> Result<(), DrawError> {
        #[cfg(feature = "constrained")]
        if let Some(matcher) = &mut self.matcher {
            matcher.accept(token).map_err(DrawError::Constraint)?;
        }
        self.history.push(token);
        if let Some(vocabulary) = &chain.vocabulary {
            let bytes = vocabulary.bytes(token);
            for (phrase, matched) in chain.phrases.iter().zip(&mut self.matched) {
                *matched = phrase.follow(*matched, bytes);
            }
        }
        self.n_drawn += 1;
        Ok(())
    }

    fn find_top(&mut self, logits: &[f32], logprob: impl Fn(f32) -> f32) {
        self.top.clear();
        let n = self.n_top.min(logits.len());
        if n == 0 {
            return;
        }
        let Self { top, top_ids, top_logits, top_maxima, cutter, .. } = self;
        scan::block_maxima(logits, top_maxima);
        let threshold = if n <= top_maxima.len() {
            top_logits.clear();
            top_logits.extend_from_slice(top_maxima);
            *top_logits.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        scan::collect_at_least(logits, top_maxima, threshold, top_ids, top_logits);
        #[expect(clippy::cast_precision_loss, reason = "n is at most the number of tokens")]
        let goal = Goal { weight: n as f64, exceeds: false };
        let cut = cutter.cut(top_logits, |_| 1.0, goal);
        let mut keeps = cut.map(crate::cut::Cut::keeps);
        for (id, logit) in top_ids.iter().zip(&*top_logits) {
            if keeps.as_mut().is_none_or(|keeps| keeps(*logit)) {
                top.push((*id, *logit));
            }
        }
        top.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        top.iter_mut().for_each(|entry| entry.1 = logprob(entry.1));
    }
}

#[cfg(test)]
impl Sampler {
    /// Returns what was left at the last draw.
    pub(crate) fn left(&self, logits: &[f32]) -> Vec<u32> {
        self.candidates.left(logits)
    }

    /// Returns what was left at the last draw, with probabilities.
    pub(crate) fn probabilities(&mut self, logits: &[f32]) -> Vec<(u32, f64)> {
        match self.candidates.likeliest(logits) {
            Some(choice) if !self.chain_is_plain() => vec![(choice.token, 1.0)],
            _ => self.candidates.probabilities(logits),
        }
    }

    /// Returns what mirostat takes for the greatest surprise.
    pub(crate) fn mu(&self) -> f32 {
        self.mu
    }

    /// Says whether what is left is what the last draw was from; greedy takes one of more.
    pub(crate) fn chain_is_plain(&self) -> bool {
        !matches!(self.chain.steps.last(), Some(Step::Greedy))
    }
}

/// A bias that means never.
const NEVER: f32 = -100.0;

/// Returns the surprise at a choice in bits.
fn surprise(choice: Choice) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "a logarithm")]
    let bits = -choice.probability.log2() as f32;
    bits
}
